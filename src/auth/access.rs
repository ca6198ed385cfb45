//! All rules of access together.

use super::key::Key;
use super::origin::Origins;
use super::rate::Rates;
use super::slots::Slots;
use crate::config::Config;

/// The rules of access that the configuration sets, and what they have counted so far.
#[derive(Debug)]
pub struct Access {
    pub key: Key,
    pub origins: Origins,
    pub rates: Rates,
    /// For WebSockets.
    pub slots: Slots,
}

impl Access {
    pub fn new(config: &Config) -> Self {
        Self {
            key: Key::new(config.require_auth, &config.api_key),
            origins: Origins::new(config.cors_origins.clone()),
            rates: Rates::new(config),
            slots: Slots::new(config.max_ws_connections_per_ip),
        }
    }
}
