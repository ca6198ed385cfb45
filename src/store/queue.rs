//! The bounds of what waits to be written, and since when it waits.

use std::time::{Duration, Instant};

use crate::budget::{self, Budget};
use crate::config::Config;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::wire::Batch;

/// How many events and bytes may wait to be written. The channel itself has no bound: a batch is sent only with a
/// reservation. A batch larger than the whole queue reserves all of it. An empty one, which only carries answers,
/// counts as one event, so that answers are bounded, too.
#[derive(Debug)]
pub(super) struct Queue {
    events: Budget,
    bytes: Budget,
    opened: Instant,
    /// When the oldest batch that waits, or that the writer has in hand, was handed in, in microseconds after `opened`; 0 if
    /// there is none. A producer sets it only in an empty queue, so a busy one costs each batch a look.
    oldest_micros: AtomicU64,
}

/// What a batch takes of the queue, returned when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    _events: budget::Reservation,
    _bytes: budget::Reservation,
}

impl Queue {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            events: Budget::new(config.max_queue_size),
            bytes: Budget::of_bytes(config.max_queue_bytes),
            opened: Instant::now(),
            oldest_micros: AtomicU64::new(0),
        }
    }

    /// Events that wait.
    pub(super) fn len(&self) -> usize {
        self.events.reserved()
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.reserved()
    }

    /// How long the oldest batch has waited for its answer. It may be shown older by as long as a commit takes.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let micros = Some(self.oldest_micros.load(Ordering::SeqCst)).filter(|micros| *micros != 0)?;
        Some(self.opened.elapsed().saturating_sub(Duration::from_micros(micros)))
    }

    /// A batch was sent to the writer.
    pub(super) fn sent(&self, at: Instant) {
        if self.oldest_micros.load(Ordering::SeqCst) == 0 {
            self.oldest_micros.store(self.micros(at), Ordering::SeqCst);
        }
    }

    /// The writer has answered the batches in its hand, of which the last was handed in at `last`, if there were any. `is_empty`
    /// looks whether others wait. These came later, so they are not shown younger than they are. A producer that sees the 0 sets the time
    /// itself; the batch of one that does not is in the queue already.
    pub(super) fn answered(&self, last: Option<Instant>, is_empty: impl FnOnce() -> bool) {
        let Some(last) = last else { return };
        self.oldest_micros.store(0, Ordering::SeqCst);
        if !is_empty() {
            self.oldest_micros.store(self.micros(last), Ordering::SeqCst);
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        (at.duration_since(self.opened).as_micros() as u64).max(1)
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
