//! Which web pages may use the server (`CORS_ORIGINS`).

use hyper::header::HeaderValue;

use crate::config::CorsOrigins;

#[derive(Debug)]
pub struct Origins(CorsOrigins);

impl Origins {
    pub(super) fn new(origins: CorsOrigins) -> Self {
        Self(origins)
    }

    /// Whether pages of this origin may use the server. A client that sends no `Origin` is no web page, and may.
    pub fn allow(&self, origin: Option<&HeaderValue>) -> bool {
        origin.is_none_or(|origin| origin.to_str().is_ok_and(|origin| self.0.allows(origin)))
    }

    /// Whether every page may, so that answers are the same for each origin.
    pub fn allow_any(&self) -> bool {
        self.0 == CorsOrigins::Any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_origins_are_allowed() {
        let origins = Origins::new(CorsOrigins::List(vec!["https://school.example".into()]));
        let allowed = |origin| origins.allow(Some(&HeaderValue::from_static(origin)));
        assert!(allowed("https://school.example"));
        assert!(!allowed("http://school.example"));
        assert!(!allowed("https://school.example.evil.example"));
        assert!(!allowed("null"));
        assert!(origins.allow(None));
        assert!(!origins.allow_any());
    }
}
