//! Who may do what, from which web pages, how often, and over how many connections.

mod key;
mod keys;
mod keys_file;
mod network;
mod pages;
mod principal;
mod rate;
mod slots;

use crate::config::Config;
use keys::Keys;
use pages::Pages;
use rate::Rates;
use slots::Slots;

pub use key::NewKey;
pub use keys_file::{KeyRecord, KeysFile, KeysFileError};
pub use principal::{Caller, Principal, Scope};
pub use slots::Slot;

/// The rules of access that the configuration sets, and what they have counted so far.
#[derive(Debug)]
pub struct Access {
    pub keys: Keys,
    pub pages: Pages,
    pub rates: Rates,
    /// For WebSockets.
    pub slots: Slots,
}

/// Why the server does not start with such rules of access.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Keys(#[from] KeysFileError),
    #[error(
        "HOST {0} can be reached from other machines, and no client would be asked for a key. Make a key, or allow that:
  event-pipeline keys add NAME --scope publish --scope subscribe --scope query
  ALLOW_UNAUTHENTICATED=true event-pipeline"
    )]
    Unauthenticated(std::net::IpAddr),
}

impl Access {
    /// # Errors
    /// The keys file cannot be used, or other machines could reach the server without a key.
    pub fn new(config: &Config) -> Result<Self, AccessError> {
        let keys = Keys::new(config)?;
        if !keys.are_required() && !config.host.to_canonical().is_loopback() && !config.allow_unauthenticated {
            return Err(AccessError::Unauthenticated(config.host));
        }
        Ok(Self {
            pages: Pages::new(config, keys.are_required()),
            keys,
            rates: Rates::new(config),
            slots: Slots::new(config.max_ws_connections_per_ip),
        })
    }
}
