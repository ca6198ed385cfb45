//! How long syncs take, so that a stall of the disk can be told from one of the server.

use std::time::Duration;

use crate::config::Durability;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A kind of sync: which file it brings to the disk, and which clients wait until it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncOf {
    /// A commit: its pages are written to the write-ahead log and synced. Its producers wait.
    Log,
    /// The same while the checkpointer moves pages, which keeps the disk busy, too.
    LogBesideCheckpoint,
    /// The checkpointer's part of a checkpoint: pages are moved into the database, which is synced. No producer waits.
    Database,
    /// The writer's part of a checkpoint: the last pages are moved and the database is synced. Every producer waits.
    DatabaseByWriter,
}

impl SyncOf {
    pub const ALL: [Self; 4] = [Self::Log, Self::LogBesideCheckpoint, Self::Database, Self::DatabaseByWriter];

    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::LogBesideCheckpoint => "log_beside_checkpoint",
            Self::Database => "database",
            Self::DatabaseByWriter => "database_by_writer",
        }
    }
}

/// How long the syncs since the start took.
#[derive(Debug)]
pub struct Syncs {
    /// At `DURABILITY=off` nothing is synced, and so nothing is noted.
    is_on: bool,
    histograms: [Histogram; SyncOf::ALL.len()],
}

/// From 1 s on an operator is told: producers have waited that long, or soon will.
const SLOW: Duration = Duration::from_secs(1);

impl Syncs {
    pub fn new(durability: Durability) -> Self {
        Self { is_on: durability != Durability::Off, histograms: Default::default() }
    }

    /// Whether anything is synced.
    pub fn are_on(&self) -> bool {
        self.is_on
    }

    pub fn note(&self, sync: SyncOf, took: Duration) {
        if !self.is_on {
            return;
        }
        self.histograms[sync as usize].note(took);
        if took >= SLOW {
            let seconds = took.as_secs_f64();
            tracing::warn!(seconds, sync = sync.name(), "the disk is slow: a sync took longer than a second");
        }
    }

    pub fn of(&self, sync: SyncOf) -> &Histogram {
        &self.histograms[sync as usize]
    }
}

/// How many took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// How many took at most the bound of the same index, and more than the one before; in the end, more than all.
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
    longest_micros: AtomicU64,
}

/// Upper bounds in seconds: from a fast disk's sync to one that looks like a broken disk.
const BOUNDS: [f64; 14] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

impl Histogram {
    fn note(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.counts[BOUNDS.partition_point(|bound| *bound < seconds)].fetch_add(1, Ordering::Relaxed);
        let micros = took.as_micros() as u64;
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.longest_micros.fetch_max(micros, Ordering::Relaxed);
    }

    /// How many took at most so many seconds, for each bound; and how many there were.
    pub fn cumulative(&self) -> (Vec<(f64, u64)>, u64) {
        let mut count = 0;
        let mut up_to = |more: &AtomicU64| {
            count += more.load(Ordering::Relaxed);
            count
        };
        let bounded = BOUNDS.into_iter().zip(&self.counts).map(|(bound, more)| (bound, up_to(more))).collect();
        (bounded, up_to(&self.counts[BOUNDS.len()]))
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_micros.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_sync_up_to_every_bound_that_it_did_not_exceed() {
        let syncs = Syncs::new(Durability::Full);
        for micros in [100, 101, 30_000, 60_000_000] {
            syncs.note(SyncOf::Log, Duration::from_micros(micros));
        }
        let (bounded, count) = syncs.of(SyncOf::Log).cumulative();
        assert_eq!(
            bounded.iter().map(|(_, count)| *count).collect::<Vec<_>>(),
            [1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]
        );
        assert_eq!((bounded[8].0, count), (0.05, 4));
        assert_eq!(syncs.of(SyncOf::Log).sum(), Duration::from_micros(60_030_201));
        assert_eq!(syncs.of(SyncOf::Log).longest(), Duration::from_secs(60));
        assert_eq!(syncs.of(SyncOf::Database).cumulative().1, 0);

        let off = Syncs::new(Durability::Off);
        off.note(SyncOf::Log, Duration::from_secs(60));
        assert_eq!(off.of(SyncOf::Log).cumulative().1, 0, "nothing is synced");
    }
}
