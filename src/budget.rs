//! A budget: an amount that many share, such as memory. Reservations of it are granted in the order of their requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a request or a message waits for memory or for a full queue before it is refused. Sockets that pipeline fill the
/// queue for tens of milliseconds at a time: that should delay a request and not refuse it.
pub const WAIT_MAX: Duration = Duration::from_secs(1);

/// Bodies and messages up to this size reserve no memory, so each connection may need this much outside the budget.
pub const SMALL_BYTES_MAX: usize = 16 << 10;

/// Memory for each byte of a body or a message: the byte itself, and its events, which grow at most sixfold when they are
/// encoded (a control character becomes `\u001f`).
pub const MEMORY_PER_BYTE: usize = 7;

/// The slowest pace at which a client with a reservation may send a body or a message, or read a page. Other clients may
/// wait for the same memory, and a client that stalls on purpose would hold it for nothing.
const BYTES_PER_SECOND_MIN: f64 = 16.0 * 1024.0;
/// How far a client may be behind this pace.
const STALL_MAX: Duration = Duration::from_secs(5);

/// How long a client may take for this many bytes, counted from its reservation, before the server gives up on it.
pub fn stall_max(bytes: usize) -> Duration {
    STALL_MAX + at_slowest(bytes)
}

/// The same for the first `bytes` of a body of `expected` bytes, which has to be complete within `time_max`. Where the
/// slowest pace would take longer, the pace is faster.
pub fn stall_max_within(time_max: Duration, bytes: usize, expected: usize) -> Duration {
    let whole = time_max.min(at_slowest(expected));
    time_max.min(STALL_MAX + whole.mul_f64(bytes as f64 / expected as f64))
}

fn at_slowest(bytes: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND_MIN)
}

/// An amount that many share. A request for more than the whole amount is granted the whole, and a request for nothing one
/// unit.
#[derive(Debug)]
pub struct Budget {
    free: Arc<Semaphore>,
    /// Amounts are rounded up to a multiple of this.
    unit: usize,
    units: u32,
}

/// A part of a [`Budget`], returned when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    permit: OwnedSemaphorePermit,
    unit: usize,
}

impl Reservation {
    /// Keeps this amount and returns the rest.
    pub fn shrink_to(&mut self, amount: usize) {
        let rest = self.permit.num_permits().saturating_sub(amount.div_ceil(self.unit).max(1));
        drop(self.permit.split(rest));
    }

    /// Adds another reservation of the same budget to this one.
    pub fn merge(&mut self, other: Self) {
        self.permit.merge(other.permit);
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
        // One call can ask a semaphore for at most this many.
        let units = u32::try_from(whole.div_ceil(unit)).unwrap_or(u32::MAX).max(1);
        Self { free: Arc::new(Semaphore::new(units as usize)), unit, units }
    }

    /// Waits until this amount is free, and reserves it. Cancel-safe: a caller that stops waiting only loses its place in the
    /// queue.
    pub async fn reserve(&self, amount: usize) -> Reservation {
        let permit = self.free.clone().acquire_many_owned(self.units(amount)).await;
        Reservation { permit: permit.expect("it is never closed"), unit: self.unit }
    }

    /// Reserves this amount if it is free and no earlier request waits.
    pub fn try_reserve(&self, amount: usize) -> Option<Reservation> {
        let permit = self.free.clone().try_acquire_many_owned(self.units(amount));
        permit.ok().map(|permit| Reservation { permit, unit: self.unit })
    }

    /// How much is reserved.
    pub fn reserved(&self) -> usize {
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
    fn the_time_allowed_follows_the_slowest_pace_that_ends_within_the_limit() {
        let secs = Duration::from_secs;
        assert_eq!(stall_max(0), secs(5));
        assert_eq!(stall_max(160 << 10), secs(15));
        // 160 KiB at the slowest pace take 10 s.
        for (time_max, half, whole) in [(60, 10, 15), (10, 10, 10), (8, 8, 8), (4, 4, 4)] {
            let waited = |bytes| stall_max_within(secs(time_max), bytes, 160 << 10);
            assert_eq!((waited(80 << 10), waited(160 << 10)), (secs(half), secs(whole)), "{time_max}");
        }
        assert_eq!(stall_max_within(secs(8), 40 << 10, 160 << 10), secs(7), "a quarter of the body");
    }

    fn poll<T>(reserving: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        reserving.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_reservation_is_at_least_one_unit_and_at_most_the_whole_budget() {
        for budget in [Budget::new(8), Budget::of_bytes(8 * 1024)] {
            let one = budget.try_reserve(0).expect("free");
            assert_eq!(budget.reserved(), budget.unit);
            assert!(budget.try_reserve(usize::MAX).is_none());
            drop(one);
            let mut all = budget.try_reserve(usize::MAX).expect("free");
            assert_eq!(budget.reserved(), 8 * budget.unit);
            all.shrink_to(usize::MAX);
            all.shrink_to(3 * budget.unit);
            assert_eq!(budget.reserved(), 3 * budget.unit);
            all.shrink_to(0);
            assert_eq!(budget.reserved(), budget.unit);
            all.merge(budget.try_reserve(2 * budget.unit).expect("free"));
            assert_eq!(budget.reserved(), 3 * budget.unit);
            drop(all);
            assert_eq!(budget.reserved(), 0);
        }
    }

    #[test]
    fn small_requests_do_not_overtake_a_large_one() {
        let budget = Budget::new(8);
        let [first, second] = [4, 4].map(|amount| budget.try_reserve(amount).expect("free"));
        let (mut much, mut little) = (pin!(budget.reserve(6)), pin!(budget.reserve(1)));
        assert!(poll(much.as_mut()).is_pending() && poll(little.as_mut()).is_pending());
        drop(first);
        assert!(poll(much.as_mut()).is_pending() && poll(little.as_mut()).is_pending());
        assert!(budget.try_reserve(1).is_none(), "a request that does not wait overtakes none either");
        drop(second);
        let Poll::Ready(much) = poll(much.as_mut()) else { panic!("there is enough") };
        assert!(poll(little.as_mut()).is_ready());
        drop(much);
        assert_eq!(budget.reserved(), 0);
    }

    #[test]
    fn a_request_that_is_given_up_blocks_no_other() {
        let budget = Budget::new(8);
        let half = budget.try_reserve(4).expect("free");
        {
            let mut much = pin!(budget.reserve(8));
            assert!(poll(much.as_mut()).is_pending());
        }
        assert_eq!(budget.reserved(), 4);
        assert!(budget.try_reserve(4).is_some());
        drop(half);
        assert_eq!(budget.reserved(), 0);
    }
}
