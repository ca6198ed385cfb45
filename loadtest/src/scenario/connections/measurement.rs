//! What both measurements of `connections` need.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use crate::connection::{Connection, Dial, Scratch};
use crate::measurement::Measured;
use crate::report::Findings;
use crate::run::Run;
use crate::target::Target;

/// Loopback addresses that connections come from: each has some 28,000 ports, and a closed port stays in use for a
/// minute.
const SOURCES: usize = 32;

/// One of the two measurements.
pub struct Measurement {
    pub findings: Findings,
    pub run: Rc<Run>,
    pub measured: Measured,
}

/// The resident memory of the server, if its process is known.
pub fn memory(target: &Target) -> anyhow::Result<Option<u64>> {
    target.watched.as_ref().map(|watched| Ok(watched.usage()?.memory_bytes)).transpose()
}

/// A connection from one of this machine's many addresses, where the server is on it too.
pub async fn dial(number: usize, target: &Target, scratch: &Scratch) -> anyhow::Result<Connection> {
    let server = target.authority.parse::<SocketAddr>().ok();
    let is_here = server.is_some_and(|server| server.is_ipv4() && server.ip().is_loopback());
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + (number % SOURCES) as u8));
    let dial = Dial { source: is_here.then_some(source), ..Dial::default() };
    Connection::dial(&target.authority, dial, scratch).await
}
