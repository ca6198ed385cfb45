//! The bounds of what waits to be written.

use crate::budget::{self, Budget};
use crate::config::Config;
use crate::wire::Batch;

/// How many events and bytes may wait to be written. The channel itself has no bound: a batch is sent only with a
/// reservation. A batch larger than the whole queue reserves all of it. An empty one, which only carries answers,
/// counts as one event, so that answers are bounded, too.
#[derive(Debug)]
pub(super) struct Queue {
    events: Budget,
    bytes: Budget,
}

/// What a batch takes of the queue, returned when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    _events: budget::Reservation,
    _bytes: budget::Reservation,
}

impl Queue {
    pub(super) fn new(config: &Config) -> Self {
        Self { events: Budget::new(config.max_queue_size), bytes: Budget::of_bytes(config.max_queue_bytes) }
    }

    /// Events that wait.
    pub(super) fn len(&self) -> usize {
        self.events.reserved()
    }

    pub(super) async fn reserve(&self, batch: &Batch) -> Reservation {
        Reservation { _events: self.events.reserve(batch.len()).await, _bytes: self.bytes.reserve(batch.bytes()).await }
    }

    pub(super) fn try_reserve(&self, batch: &Batch) -> Option<Reservation> {
        Some(Reservation {
            _events: self.events.try_reserve(batch.len())?,
            _bytes: self.bytes.try_reserve(batch.bytes())?,
        })
    }
}
