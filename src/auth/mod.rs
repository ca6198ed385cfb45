//! Who may do what, from which web pages, how often, and over how many connections.

mod audit;
mod audit_file;
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
mod repeats;
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

pub use audit::{Action, Audit};
pub use audit_file::AuditError;
pub use counted::Counted;
pub use key::{NewKey, Shown};
pub use keys::{API_KEY_BYTES_MIN, Keys, Verified};
pub use keys_file::{KeyRecord, KeysFile, KeysFileError};
pub use principal::{Caller, Grant, Holder, KEY_OVER, Notice, Principal, Scope};
pub use slots::Slot;
pub use tokens::{JWT_SECRET_BYTES_MIN, TokenKeysError, Tokens};

/// The rules of access that the configuration sets, and what they have counted so far.
#[derive(Debug)]
pub struct Access {
    pub audit: Audit,
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
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(
        "HOST {0} can be reached from other machines, and no client would be asked for a key. Make a key, or allow that:
  event-pipeline keys add NAME --scope publish,subscribe,query
  ALLOW_UNAUTHENTICATED=true event-pipeline serve"
    )]
    Unauthenticated(IpAddr),
}

impl Access {
    /// # Errors
    /// The keys file or the file of the audit cannot be used, or other machines could reach the server without a key.
    pub fn new(config: &Config) -> Result<Self, AccessError> {
        let audit = Audit::new(config)?;
        let keys = Keys::new(config, Tokens::new(config)?, audit.clone())?;
        if !keys.are_required() && !config.host.to_canonical().is_loopback() && !config.allow_unauthenticated {
            return Err(AccessError::Unauthenticated(config.host));
        }
        Ok(Self {
            pages: Pages::new(config, keys.are_required()),
            keys,
            audit,
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
        let (from, is_ignored) = self.proxies.client(peer, headers);
        let counted = match &principal {
            Ok(Principal::Granted(grant)) => grant.holder.counted(),
            Ok(Principal::Everything) if self.keys.are_required() => Counted::ApiKey,
            _ => {
                self.proxies.count(is_ignored);
                Counted::address(from)
            }
        };
        if let Err(Refusal::Unauthorized(why)) = &principal {
            self.audit.login_refused(from, why);
        }
        self.rates.check(scope, &counted)?;
        Ok(Caller { counted, from, principal: principal? })
    }

    /// Whether a client may make a request, which `route` names.
    ///
    /// # Errors
    /// `ScopeMissing`.
    pub fn may(&self, caller: &Caller, scope: Scope, route: impl FnOnce() -> String) -> Result<(), Refusal> {
        caller.principal.may(scope).inspect_err(|_| self.audit.scope_refused(caller, scope.name(), &route()))
    }
}
