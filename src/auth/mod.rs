//! Who may do what, from which web pages, how often, and over how many connections.

mod clients;
mod counted;
mod jwt_crypto;
mod key;
mod keys;
mod keys_file;
mod pages;
mod principal;
mod proxies;
mod rate;
mod slots;
mod tokens;

use std::net::IpAddr;

use hyper::HeaderMap;

use crate::config::Config;
use crate::wire::Refusal;
use pages::Pages;
use proxies::Proxies;
use rate::Rates;
use slots::Slots;

pub use counted::Counted;
pub use key::{NewKey, Shown};
pub use keys::{Keys, Verified};
pub use keys_file::{KeyRecord, KeysFile, KeysFileError};
pub use principal::{Caller, Grant, Holder, KEY_OVER, Notice, Principal, Scope};
pub use slots::Slot;
pub use tokens::{TokenKeysError, Tokens};

/// The rules of access that the configuration sets, and what they have counted so far.
#[derive(Debug)]
pub struct Access {
    pub keys: Keys,
    pub pages: Pages,
    pub proxies: Proxies,
    pub rates: Rates,
    /// For WebSockets.
    pub slots: Slots,
}

/// Why the server does not start with such rules of access.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Keys(#[from] KeysFileError),
    #[error(transparent)]
    Tokens(#[from] TokenKeysError),
    #[error(
        "HOST {0} can be reached from other machines, and no client would be asked for a key. Make a key, or allow that:
  event-pipeline keys add NAME --scope publish,subscribe,query
  ALLOW_UNAUTHENTICATED=true event-pipeline serve"
    )]
    Unauthenticated(IpAddr),
}

impl Access {
    /// # Errors
    /// The keys file cannot be used, or other machines could reach the server without a key.
    pub fn new(config: &Config) -> Result<Self, AccessError> {
        let keys = Keys::new(config, Tokens::new(config)?)?;
        if !keys.are_required() && !config.host.to_canonical().is_loopback() && !config.allow_unauthenticated {
            return Err(AccessError::Unauthenticated(config.host));
        }
        Ok(Self {
            pages: Pages::new(config, keys.are_required()),
            keys,
            proxies: Proxies::new(config.trusted_proxies.clone()),
            rates: Rates::new(config),
            slots: Slots::new(config.max_ws_connections_per_ip),
        })
    }

    /// Finds out who a client is, and counts its request. A request without a valid key counts for its address, so that
    /// nobody is locked out by what others try with wrong ones.
    ///
    /// # Errors
    /// `RateLimited`, `Unauthorized`.
    pub fn admit(
        &self,
        peer: IpAddr,
        headers: &HeaderMap,
        key_in_url: Option<&str>,
        verified: &mut Verified,
        scope: Scope,
    ) -> Result<Caller, Refusal> {
        let principal = self.keys.authorize(headers, key_in_url, verified);
        let counted = match &principal {
            Ok(Principal::Granted(grant)) => grant.holder.counted(),
            Ok(Principal::Everything) if self.keys.are_required() => Counted::ApiKey,
            _ => Counted::address(self.proxies.client(peer, headers)),
        };
        self.rates.check(scope, &counted)?;
        Ok(Caller { counted, principal: principal? })
    }
}
