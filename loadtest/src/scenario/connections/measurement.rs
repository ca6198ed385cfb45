//! What both measurements of `connections` need.

use std::rc::Rc;

use crate::findings::Findings;
use crate::measurement::Measured;
use crate::run::Run;
use crate::target::Target;

/// One of the two measurements, verified.
pub struct Measurement {
    pub findings: Findings,
    pub run: Rc<Run>,
    pub measured: Measured,
}

/// The resident memory of the server, if its process is known.
pub fn memory(target: &Target) -> anyhow::Result<Option<u64>> {
    target.watched.as_ref().map(|watched| Ok(watched.usage()?.memory_bytes)).transpose()
}
