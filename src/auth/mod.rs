//! Who may do what, how often, and over how many connections.

mod key;
mod network;
mod principal;
mod rate;
mod slots;

use hyper::HeaderMap;
use hyper::header::ORIGIN;

use crate::config::{Config, CorsOrigins};
use key::Key;
use rate::Rates;
use slots::Slots;

pub use principal::{Caller, Principal};
pub use rate::Class;
pub use slots::Slot;

/// The rules of access that the configuration sets, and what they have counted so far.
#[derive(Debug)]
pub struct Access {
    pub key: Key,
    /// The origins whose web pages may use the server.
    pub origins: CorsOrigins,
    pub rates: Rates,
    /// For WebSockets.
    pub slots: Slots,
}

impl Access {
    pub fn new(config: &Config) -> Self {
        Self {
            key: Key::new(config.require_auth, &config.api_key),
            origins: config.cors_origins.clone(),
            rates: Rates::new(config),
            slots: Slots::new(config.max_ws_connections_per_ip),
        }
    }

    /// Whether a request with these headers may come from where it comes from. A client that sends no `Origin` is no web
    /// page, and may.
    pub fn allows_origin(&self, headers: &HeaderMap) -> bool {
        headers.get(ORIGIN).is_none_or(|origin| origin.to_str().is_ok_and(|origin| self.origins.allows(origin)))
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn only_listed_origins_are_allowed() {
        let cors_origins = CorsOrigins::List(vec!["https://school.example".into()]);
        let access = Access::new(&Config { cors_origins, ..Config::default() });
        let allowed =
            |origin| access.allows_origin(&HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]));
        assert!(allowed("https://school.example"));
        assert!(!allowed("http://school.example"));
        assert!(!allowed("https://school.example.evil.example"));
        assert!(!allowed("null"));
        assert!(access.allows_origin(&HeaderMap::new()), "no web page");
    }
}
