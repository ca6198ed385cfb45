//! What the server survives: killed processes, dead power, failing and full disks, damaged files, clocks that step,
//! too much load, and clients that mean harm. Each module breaks one thing on purpose, on the real binary over real
//! sockets and real files, and holds the server against what `RELIABILITY.md` promises.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

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
