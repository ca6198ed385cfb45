//! When events were due, by their sequence numbers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// When events were due, by their sequence numbers.
pub struct DueTimes {
    origin: Instant,
    /// The sequence number of the first that is known.
    first: u64,
    /// Nanoseconds since `origin`.
    nanos: VecDeque<u64>,
    /// With this many times it is worth while to forget some.
    forget_at: usize,
}

impl DueTimes {
    /// Stands for a time that is not known yet.
    const UNKNOWN: u64 = u64::MAX;

    /// This many times (8 MiB) stay in memory whether they are still needed or not.
    const KEPT: usize = 1 << 20;

    /// A number this far ahead of all others is no sequence number.
    const AHEAD_MAX: usize = 1 << 24;

    pub fn new(newest: u64) -> Self {
        Self { origin: Instant::now(), first: newest + 1, nanos: VecDeque::new(), forget_at: Self::KEPT }
    }

    /// The time from which [`of`](Self::of) counts.
    pub fn origin(&self) -> Instant {
        self.origin
    }

    /// Whether it is worth while to forget some.
    pub fn is_crowded(&self) -> bool {
        self.nanos.len() >= self.forget_at
    }

    /// Notes that `count` events from `first` on were due then.
    pub fn note(&mut self, first: u64, count: usize, due: Instant) {
        let Some(index) = first.checked_sub(self.first) else { return };
        let (index, nanos) = (index as usize, (due - self.origin).as_nanos() as u64);
        if index >= self.nanos.len() + Self::AHEAD_MAX {
            return;
        }
        self.nanos.resize(self.nanos.len().max(index + count), Self::UNKNOWN);
        self.nanos.range_mut(index..index + count).for_each(|slot| *slot = nanos);
    }

    #[inline]
    pub fn of(&self, sequence: u64) -> Option<Duration> {
        let nanos = *self.nanos.get(sequence.checked_sub(self.first)? as usize)?;
        (nanos != Self::UNKNOWN).then(|| Duration::from_nanos(nanos))
    }

    /// Forgets everything up to this sequence number.
    pub fn forget(&mut self, last: u64) {
        let count = (last + 1).saturating_sub(self.first).min(self.nanos.len() as u64);
        self.nanos.drain(..count as usize);
        self.first += count;
        self.forget_at = Self::KEPT.max(2 * self.nanos.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_times_are_known_until_they_are_forgotten() {
        let mut due = DueTimes::new(10);
        let at = |millis| due.origin + Duration::from_millis(millis);
        let (one, two) = (at(1), at(2));
        due.note(13, 2, one);
        due.note(11, 1, two);
        due.note(10, 1, one);
        due.note(u64::MAX, 1, one);
        let known = |due: &DueTimes| {
            (9..16).map(|sequence| due.of(sequence).map_or(0, |at| at.as_millis())).collect::<Vec<_>>()
        };
        assert_eq!(known(&due), [0, 0, 2, 0, 1, 1, 0]);
        due.forget(13);
        assert_eq!(known(&due), [0, 0, 0, 0, 0, 1, 0]);
        due.note(15, 1, two);
        assert_eq!(known(&due), [0, 0, 0, 0, 0, 1, 2]);
        due.forget(u64::MAX - 1);
        assert_eq!(due.nanos.len(), 0);
    }
}
