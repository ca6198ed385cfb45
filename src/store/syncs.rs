//! How long syncs take, so that a stall of the disk can be told from one of the server.

use std::time::Duration;

use crate::config::Durability;
use crate::histogram::Histogram;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_noted_by_what_it_syncs_unless_nothing_is_synced() {
        let [full, off] = [Durability::Full, Durability::Off].map(Syncs::new);
        for syncs in [&full, &off] {
            syncs.note(SyncOf::Log, Duration::from_micros(100));
            syncs.note(SyncOf::Log, Duration::from_secs(60));
        }
        let count = |syncs: &Syncs, sync| syncs.of(sync).counts().all();
        assert_eq!((count(&full, SyncOf::Log), count(&full, SyncOf::Database)), (2, 0));
        assert_eq!(full.of(SyncOf::Log).longest(), Duration::from_secs(60));
        assert_eq!(count(&off, SyncOf::Log), 0);
    }
}
