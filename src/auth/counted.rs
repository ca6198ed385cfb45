//! Whom rates and slots count.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// One client, as limits count it: a key, wherever it is used from, because a whole school may have one address; without a
/// key an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Counted {
    ApiKey,
    /// A named key, by its id.
    Key(Arc<str>),
    /// The `sub` of tokens.
    Subject(Arc<str>),
    /// Of IPv6 the network of 64 bits: a client commonly has that many addresses.
    Address(IpAddr),
}

impl Counted {
    pub fn address(ip: IpAddr) -> Self {
        Self::Address(match ip.to_canonical() {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}
