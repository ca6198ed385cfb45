//! Room for what waits to be written.

use crate::budget::{Budget, Reservation};
use crate::config::Config;
use crate::wire::Batch;

/// Room for what waits to be written. The channel itself has no bound: who has no room does not send. A batch larger
/// than the whole queue takes all of it; an empty one, which only carries answers, takes a place, so that they are
/// bounded too.
#[derive(Debug)]
pub(super) struct Queue {
    events: Budget,
    bytes: Budget,
}

/// Room taken in the queue, given back when dropped.
#[derive(Debug)]
pub(super) struct Room {
    _events: Reservation,
    _bytes: Reservation,
}

impl Queue {
    pub(super) fn new(config: &Config) -> Self {
        Self { events: Budget::new(config.max_queue_size), bytes: Budget::of_bytes(config.max_queue_bytes) }
    }

    /// Events that wait.
    pub(super) fn len(&self) -> usize {
        self.events.reserved()
    }

    pub(super) async fn room(&self, batch: &Batch) -> Room {
        Room { _events: self.events.reserve(batch.len()).await, _bytes: self.bytes.reserve(batch.bytes()).await }
    }

    pub(super) fn try_room(&self, batch: &Batch) -> Option<Room> {
        Some(Room { _events: self.events.try_reserve(batch.len())?, _bytes: self.bytes.try_reserve(batch.bytes())? })
    }
}
