//! Fault injection: kills, power cuts, failing and full disks, damaged files, clocks that step, overload, and hostile
//! clients. Each module injects one kind of fault into the real binary over real sockets and real files, and checks
//! what `RELIABILITY.md` promises for it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop at once")]

#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests of the contract")]
mod support;

mod autobahn;
mod backup;
mod clock;
mod consumer;
mod corpus;
mod corruption;
mod crash;
mod faulty_disk;
mod frames;
mod h2;
mod half_open;
mod hostile;
mod io;
mod lives;
mod neighbours;
mod overload;
mod power;
mod producers;
mod record;
mod slow;
mod smuggling;
