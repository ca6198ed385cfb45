//! An amount of something that is there once for everybody, such as memory: given out in the order in which it is
//! asked for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a request or a message waits for its share, or for room in a full queue, before it is refused. Sockets that
/// pipeline fill the queue for tens of milliseconds at a time; a request should feel that as slowness, not as refusals.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Bodies and messages up to this take nothing of the memory for all of them, which every connection therefore may need
/// once.
pub const SMALL_BYTES_MAX: usize = 16 << 10;

/// Memory for each byte of a body or a message: itself, and its events, which grow sixfold at most when they are encoded.
pub const BYTES_FOR_A_BYTE: usize = 7;

/// The slowest pace at which a client that holds memory may send a body or message, or take a page: others may be waiting
/// for the same memory, and a client that stalls on purpose would keep it for nothing.
const BYTES_PER_SECOND_MIN: f64 = 16.0 * 1024.0;
/// How far it may be behind this pace.
const STALL_MAX: Duration = Duration::from_secs(5);

/// How long after it got its memory a client may take for this many bytes before it is given up.
pub fn stall_max(bytes: usize) -> Duration {
    STALL_MAX + at_slowest(bytes)
}

/// The same for a body of `expected` bytes, all of which may take `time_max`: its pace is faster if it has to be.
pub fn stall_max_within(time_max: Duration, bytes: usize, expected: usize) -> Duration {
    let whole = time_max.min(at_slowest(expected));
    time_max.min(STALL_MAX + whole.mul_f64(bytes as f64 / expected as f64))
}

fn at_slowest(bytes: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND_MIN)
}

/// So much of it. Who needs more than there is gets all of it, and nobody gets nothing.
#[derive(Debug)]
pub struct Budget {
    free: Arc<Semaphore>,
    /// In units of so much.
    unit: usize,
    units: u32,
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Share {
    permit: OwnedSemaphorePermit,
    unit: usize,
}

impl Share {
    /// Keeps this much, and gives the rest back.
    pub fn keep(&mut self, amount: usize) {
        let more = self.permit.num_permits().saturating_sub(amount.div_ceil(self.unit).max(1));
        drop(self.permit.split(more));
    }

    /// Takes what another share of the same budget has.
    pub fn add(&mut self, more: Self) {
        self.permit.merge(more.permit);
    }
}

impl Budget {
    pub fn new(whole: usize) -> Self {
        Self::in_units(whole, 1)
    }

    pub fn of_bytes(whole: usize) -> Self {
        Self::in_units(whole, 1024)
    }

    fn in_units(whole: usize, unit: usize) -> Self {
        // As many as one call can ask a semaphore for.
        let units = u32::try_from(whole.div_ceil(unit)).unwrap_or(u32::MAX).max(1);
        Self { free: Arc::new(Semaphore::new(units as usize)), unit, units }
    }

    /// Waits until there is so much. Cancel-safe: who no longer waits loses the place in the line, and nothing else.
    pub async fn take(&self, amount: usize) -> Share {
        let permit = self.free.clone().acquire_many_owned(self.units(amount)).await;
        Share { permit: permit.expect("it is never closed"), unit: self.unit }
    }

    /// So much, if it is there.
    pub fn try_take(&self, amount: usize) -> Option<Share> {
        let permit = self.free.clone().try_acquire_many_owned(self.units(amount));
        permit.ok().map(|permit| Share { permit, unit: self.unit })
    }

    /// How much is given out.
    pub fn taken(&self) -> usize {
        (self.units as usize - self.free.available_permits()) * self.unit
    }

    fn units(&self, amount: usize) -> u32 {
        u32::try_from(amount.div_ceil(self.unit)).unwrap_or(u32::MAX).clamp(1, self.units)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn more_is_waited_for_at_the_slowest_pace_that_ends_in_time() {
        let secs = Duration::from_secs;
        assert_eq!(stall_max(0), secs(5));
        assert_eq!(stall_max(160 << 10), secs(15));
        // 160 KiB at the slowest pace take 10 s.
        for (time_max, half, whole) in [(60, 10, 15), (10, 10, 10), (8, 8, 8), (4, 4, 4)] {
            let waited = |bytes| stall_max_within(secs(time_max), bytes, 160 << 10);
            assert_eq!((waited(80 << 10), waited(160 << 10)), (secs(half), secs(whole)), "{time_max}");
        }
        assert_eq!(stall_max_within(secs(8), 40 << 10, 160 << 10), secs(7), "a quarter of it");
    }

    fn poll<T>(taking: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        taking.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn nobody_gets_nothing_and_nobody_more_than_there_is() {
        for budget in [Budget::new(8), Budget::of_bytes(8 * 1024)] {
            let one = budget.try_take(0).expect("room");
            assert_eq!(budget.taken(), budget.unit);
            assert!(budget.try_take(usize::MAX).is_none());
            drop(one);
            let mut all = budget.try_take(usize::MAX).expect("room");
            assert_eq!(budget.taken(), 8 * budget.unit);
            all.keep(usize::MAX);
            all.keep(3 * budget.unit);
            assert_eq!(budget.taken(), 3 * budget.unit);
            all.keep(0);
            assert_eq!(budget.taken(), budget.unit);
            all.add(budget.try_take(2 * budget.unit).expect("room"));
            assert_eq!(budget.taken(), 3 * budget.unit);
            drop(all);
            assert_eq!(budget.taken(), 0);
        }
    }

    #[test]
    fn who_asks_for_much_is_not_passed_by_those_who_ask_for_little() {
        let budget = Budget::new(8);
        let [first, second] = [4, 4].map(|amount| budget.try_take(amount).expect("room"));
        let (mut much, mut little) = (pin!(budget.take(6)), pin!(budget.take(1)));
        assert!(poll(much.as_mut()).is_pending() && poll(little.as_mut()).is_pending());
        drop(first);
        assert!(poll(much.as_mut()).is_pending() && poll(little.as_mut()).is_pending());
        assert!(budget.try_take(1).is_none(), "not even who only asks once");
        drop(second);
        let Poll::Ready(much) = poll(much.as_mut()) else { panic!("there is enough") };
        assert!(poll(little.as_mut()).is_ready());
        drop(much);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn who_gives_up_waiting_stands_in_nobodys_way() {
        let budget = Budget::new(8);
        let half = budget.try_take(4).expect("room");
        {
            let mut much = pin!(budget.take(8));
            assert!(poll(much.as_mut()).is_pending());
        }
        assert_eq!(budget.taken(), 4);
        assert!(budget.try_take(4).is_some());
        drop(half);
        assert_eq!(budget.taken(), 0);
    }
}
