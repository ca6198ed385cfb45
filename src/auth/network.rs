//! Which client an address stands for.

use std::net::{IpAddr, Ipv6Addr};

/// The address that rates and slots count by. An IPv6 client commonly has 2^64 addresses, so its network of 64 bits
/// counts as one client.
pub(super) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}
