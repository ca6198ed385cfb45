//! Histograms of durations: how many took how long, since the start and in the last minute.

use std::array::from_fn;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// How many took how long. Noting a duration costs three additions and no lock. A thread that notes often has a histogram to
/// itself, so its cache lines move to another processor only when somebody reads them.
#[derive(Debug, Default)]
pub struct Histogram {
    by_bucket: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    longest_nanos: AtomicU64,
    /// What it had counted at each of the last marks, oldest first.
    marks: Mutex<VecDeque<Counts>>,
}

/// Upper bounds of the buckets: from a fast disk's sync to one that looks like a broken disk. Half a second is among them,
/// because from there on a class notices, and alerts compare with a bound.
const BOUNDS: [Duration; 14] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(10),
];

/// One bucket for each bound, and one for what took longer than all of them.
const BUCKETS: usize = BOUNDS.len() + 1;

/// How often a histogram is to be marked ([`Histogram::mark`]).
pub const MARK_INTERVAL: Duration = Duration::from_secs(5);

/// The oldest of so many marks is 60 to 65 s old.
const MARKS: usize = 13;

impl Histogram {
    pub fn note(&self, took: Duration) {
        self.by_bucket[BOUNDS.partition_point(|bound| *bound < took)].fetch_add(1, Ordering::Relaxed);
        // 64 bits hold the nanoseconds of five centuries.
        let nanos = took.as_nanos() as u64;
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        if nanos > self.longest_nanos.load(Ordering::Relaxed) {
            self.longest_nanos.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    /// All since the start.
    pub fn counts(&self) -> Counts {
        Counts(from_fn(|bucket| self.by_bucket[bucket].load(Ordering::Relaxed)))
    }

    /// Those of the last minute, if it is marked in time; all, if it is not that old.
    pub fn last_minute(&self) -> Counts {
        let marks = self.marks.lock();
        let now = self.counts();
        match marks.front() {
            Some(before) => Counts(from_fn(|bucket| now.0[bucket] - before.0[bucket])),
            None => now,
        }
    }

    /// Remembers what it has counted so far. To be called every [`MARK_INTERVAL`].
    pub fn mark(&self) {
        let mut marks = self.marks.lock();
        marks.push_back(self.counts());
        if marks.len() > MARKS {
            marks.pop_front();
        }
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest_nanos.load(Ordering::Relaxed))
    }
}

/// How many durations each bucket has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts([u64; BUCKETS]);

impl Counts {
    pub fn all(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those of both.
    pub fn and(&self, other: &Self) -> Self {
        Self(from_fn(|bucket| self.0[bucket] + other.0[bucket]))
    }

    /// How many each bucket has, with its upper bound in seconds. That of the last one is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]).zip(self.0)
    }

    /// How many took at most so many seconds, for each bound.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let up_to = self.0.iter().scan(0, |count, more| {
            *count += more;
            Some(*count)
        });
        BOUNDS.iter().map(Duration::as_secs_f64).zip(up_to)
    }

    /// The seconds that this share of them did not exceed, from 0 to 1; within a bucket they are taken to lie evenly, as
    /// Prometheus does it. It is at most the highest bound, and `None` if there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = self.all() as f64 * share;
        let (mut low, mut below) = (0.0, 0);
        for (high, up_to) in self.cumulative() {
            if up_to > below && up_to as f64 >= rank {
                return Some(low + (high - low) * (rank - below as f64) / (up_to - below) as f64);
            }
            (low, below) = (high, up_to);
        }
        (self.all() > 0).then_some(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: &[u64]) -> Histogram {
        let histogram = Histogram::default();
        millis.iter().for_each(|millis| histogram.note(Duration::from_millis(*millis)));
        histogram
    }

    #[test]
    fn a_duration_counts_up_to_every_bound_that_it_does_not_exceed() {
        let histogram = Histogram::default();
        for micros in [100, 101, 30_000, 60_000_000] {
            histogram.note(Duration::from_micros(micros));
        }
        let counts = histogram.counts();
        let cumulative: Vec<_> = counts.cumulative().collect();
        assert_eq!(
            cumulative.iter().map(|(_, count)| *count).collect::<Vec<_>>(),
            [1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]
        );
        assert_eq!((cumulative[8].0, counts.all()), (0.05, 4));
        assert_eq!(histogram.sum(), Duration::from_micros(60_030_201));
        assert_eq!(histogram.longest(), Duration::from_secs(60));
        assert!(cumulative.iter().any(|(bound, _)| *bound == 0.5), "alerts compare with it");
    }

    #[test]
    fn a_quantile_lies_within_its_bucket_as_prometheus_interpolates_it() {
        assert_eq!(Histogram::default().counts().quantile(0.99), None);
        let counts = of(&[1, 20, 20, 20]).counts();
        // The 1 ms is one of four; the others lie evenly between 10 and 25 ms.
        assert_eq!(counts.quantile(0.25), Some(0.001));
        assert!((counts.quantile(0.5).expect("some") - 0.015).abs() < 1e-12);
        assert_eq!(counts.quantile(1.0), Some(0.025));
        assert_eq!(of(&[60_000]).counts().quantile(0.5), Some(10.0), "there is no bound above");
    }

    #[test]
    fn the_last_minute_begins_with_the_oldest_mark() {
        let histogram = of(&[1]);
        assert_eq!(histogram.last_minute().all(), 1, "it is not that old");
        histogram.mark();
        histogram.note(Duration::from_secs(1));
        assert_eq!(histogram.last_minute().quantile(1.0), Some(1.0));
        (1..MARKS).for_each(|_| histogram.mark());
        assert_eq!(histogram.last_minute().all(), 1);
        histogram.mark();
        assert_eq!((histogram.last_minute().all(), histogram.counts().all()), (0, 2));
    }
}
