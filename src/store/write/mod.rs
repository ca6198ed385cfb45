//! Changing the record: commands come in through a queue, are put in order, and are applied in transactions.
//!
//! * [`command`] — what the writer is asked to do
//! * [`writer`] — the thread that writes, turn by turn: receive, order, apply, commit, answer
//! * [`arrivals`] — waiting for the next command
//! * [`order`] — which commands the next transaction applies, and at what time
//! * [`apply`] — changing the database as ordered commands say, from one [`position`] to the next; [`insert`] and [`deletion`]
//!   are its parts
//! * [`subscriptions`] — changes of durable subscriptions that wait to be stored
//! * [`work`] — what waits for a later transaction
//! * [`housekeeping`] — what a transaction does besides: [`sealing`], [`tidying`], [`hole_notes`], [`rolling_up`]
//! * [`durability`] — which commits are synced, and what the sidecar says of them
//! * [`space`] — whether the disk has space for more events
//! * [`wal_upkeep`], [`checkpoint`] — getting pages out of the write-ahead log; [`sweep`] — and deleted bytes out of the
//!   database

mod apply;
mod arrivals;
mod checkpoint;
mod command;
mod deletion;
mod durability;
mod hole_notes;
mod housekeeping;
mod insert;
mod order;
mod position;
mod rolling_up;
mod sealing;
mod space;
mod subscriptions;
mod sweep;
mod tidying;
mod wal_upkeep;
mod work;
mod writer;

pub use apply::Applier;
pub use arrivals::Arrivals;
pub use checkpoint::{Readers, Wal, checkpoint, failed_sync};
pub use command::{Append, Command};
pub use deletion::{CHOSEN_BYTES_PER_COMMIT, CHOSEN_EVENTS_PER_COMMIT};
pub use durability::Syncing;
pub use position::Position;
pub use rolling_up::RollingUp;
pub use space::Space;
pub use tidying::Tidying;
pub use wal_upkeep::WalUpkeep;
pub use work::Work;
pub use writer::Writer;

/// For tests that put commands in order themselves.
#[cfg(test)]
pub mod ordered {
    pub use super::command::{Append, Reply};
    pub use super::order::{Deleted, Deletion, Ordered};
    pub use super::subscriptions::Changed;
}
