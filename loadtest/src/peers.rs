//! Other servers that are measured beside ours, on the same machine and in the same hour: they take turns, so that
//! whatever else the machine does disturbs all of them.
//!
//! Imports point strictly down this list:
//!
//! * [`baseline`] — the command for the service that ours replaced
//! * [`brokers`] — the command for NATS and Redis
//! * [`trial`] — one run of one server, and the order in which they take turns
//! * [`service`] — the service that ours replaced
//! * [`nats`], [`redis`] — drivers of the others
//! * [`driver`] — what a driver does, and the scenarios on it
//! * [`replies`] — lines and texts in what they send

mod baseline;
mod brokers;
mod driver;
mod nats;
mod redis;
mod replies;
mod service;
mod trial;

pub use baseline::Baseline;
pub use brokers::Peers;
pub use trial::Trial;
