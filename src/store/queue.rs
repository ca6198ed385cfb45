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

    /// How long the oldest batch has waited for its answer. It may be shown older than it is by as long as a commit takes.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let micros = self.oldest_micros.load(Ordering::SeqCst);
        // A producer may have set it after its batch was answered.
        (micros != 0 && self.len() > 0).then(|| self.opened.elapsed().saturating_sub(Duration::from_micros(micros)))
    }

    /// A batch was sent to the writer.
    pub(super) fn sent(&self, at: Instant) {
        if self.oldest_micros.load(Ordering::SeqCst) == 0 {
            self.note_oldest(at);
        }
    }

    /// The writer has taken batches that were handed in at these times, in order. Returns the last of them.
    pub(super) fn taken(&self, mut times: impl DoubleEndedIterator<Item = Instant>) -> Option<Instant> {
        let first = times.next()?;
        self.note_oldest(first);
        Some(times.next_back().unwrap_or(first))
    }

    /// The writer has answered the batches in its hand, if there were any; the last was handed in at `last`. `is_empty` looks
    /// whether others wait: these came later, so they are not shown younger than they are. A producer that sees the 0 sets
    /// the time itself; the batch of one that does not is in the queue already.
    pub(super) fn answered(&self, last: Option<Instant>, is_empty: impl FnOnce() -> bool) {
        let Some(last) = last else { return };
        self.oldest_micros.store(0, Ordering::SeqCst);
        if !is_empty() {
            self.note_oldest(last);
        }
    }

    fn note_oldest(&self, at: Instant) {
        let micros = at.duration_since(self.opened).as_micros() as u64;
        self.oldest_micros.store(micros.max(1), Ordering::SeqCst);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_batch_is_the_first_in_hand_then_at_latest_the_last_one_answered() {
        let queue = Queue::new(&Config::default());
        let ago = |seconds: u64| queue.opened + Duration::from_secs(1_000 - seconds);
        // As if it were 1,000 s after the start.
        let age = || queue.oldest().map(|_| 1_000 - queue.oldest_micros.load(Ordering::SeqCst) / 1_000_000);
        assert_eq!(age(), None);
        let waiting = queue.try_reserve(&Batch::default()).expect("space");
        queue.sent(ago(30));
        queue.sent(ago(20));
        assert_eq!(age(), Some(30));
        let last = queue.taken([ago(30), ago(20)].into_iter());
        assert_eq!((last, age()), (Some(ago(20)), Some(30)));
        queue.sent(ago(10));
        queue.answered(last, || false);
        assert_eq!(age(), Some(20), "the one that waits came later");
        queue.answered(queue.taken([ago(10)].into_iter()), || true);
        drop(waiting);
        // A producer that was held up between the two.
        queue.sent(ago(10));
        assert_eq!((queue.oldest(), queue.taken([].into_iter())), (None, None));
    }
}
