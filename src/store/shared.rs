//! What the threads of an open store share.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::error::Error;
use super::integrity::Integrity;
use super::queue::Queue;
use super::read::{Pool, Record};
use super::schema::meta;
use super::segments::Recent;
use super::subscription::StoredSubscription;
use super::syncs::Syncs;
use super::write::{Wal, failed_sync};
use crate::audience::Audience;
use crate::event::Seq;
use crate::histogram::Histogram;
use crate::record::{AckLevel, Epoch};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};

/// What the threads of an open store share.
#[derive(Debug)]
pub struct Shared {
    /// The number of the last event on disk. Events up to it are in the table and in the segment lists.
    pub committed: AtomicU64,
    pub wal: Wal,
    pub recent: RwLock<Recent>,
    pub audience: Audience,
    pub usual_level: AckLevel,
    /// The high-water mark at the start.
    pub committed_at_start: Seq,
    pub counts: Counts,
    pub timings: Timings,
    /// Durable subscriptions whose last state the writer has not taken yet; `None` for one that is removed.
    pub changed_subscriptions: Mutex<HashMap<Arc<str>, Option<StoredSubscription>>>,
    pub pool: Pool,
    pub integrity: Arc<Mutex<Integrity>>,
    pub has_legacy_ids: bool,
    /// Events up to this one were stored before rows had checksums.
    pub unchecked_through: Seq,
    pub epoch: Epoch,
    /// How long a reading may take while a client waits for it.
    pub read_timeout: Duration,
    pub queue: Queue,
    pub syncs: Syncs,
    /// The database, for syncing it. It is closed after every connection, as the last field: when a process closes any
    /// descriptor of a file, the system drops the process's locks on that file, and with them those of SQLite.
    pub database: File,
}

impl Shared {
    /// Syncs the database, but not at `DURABILITY=off`.
    ///
    /// # Errors
    /// As SQLite reports a failed sync of its own.
    pub fn sync_database(&self) -> rusqlite::Result<()> {
        if self.syncs.are_on() { self.database.sync_data().map_err(failed_sync) } else { Ok(()) }
    }

    /// Takes note of an error that was met, if it is damage.
    pub fn note_damage(&self, error: &rusqlite::Error) {
        self.integrity.lock().note_error(error);
    }

    /// The high-water mark.
    pub fn committed(&self) -> Seq {
        Seq(self.committed.load(Ordering::SeqCst))
    }

    /// The record as a transaction of this connection sees it.
    ///
    /// # Errors
    /// What SQLite reports, and damage of the mark up to which it is deleted.
    pub fn record<'c>(&'c self, connection: &'c Connection) -> rusqlite::Result<Record<'c>> {
        Ok(self.record_at(connection, meta::seq(connection, meta::DELETED_THROUGH)?))
    }

    /// The same, for a caller that knows up to which event the record is deleted.
    pub fn record_at<'c>(&'c self, connection: &'c Connection, deleted_through: Seq) -> Record<'c> {
        let (unchecked_through, integrity) = (self.unchecked_through, &*self.integrity);
        Record { connection, unchecked_through, last: self.committed(), deleted_through, integrity }
    }

    /// Logs that a search for events to delete failed, and notes damage.
    pub fn note_failed_deletion(&self, error: &Error) {
        tracing::error!(%error, "find what to delete");
        if error.is_damage() {
            self.integrity.lock().note(error.to_string());
        }
    }
}

/// Events acknowledged since the start, by how safe they were then.
#[derive(Debug, Default)]
pub struct Counts {
    /// Noted by producers, so apart from what the writer notes.
    queued: CacheLine<AtomicU64>,
    /// By level; that of `queued` stays 0.
    by_level: [AtomicU64; 3],
    lost: AtomicU64,
    checkpoints: AtomicU64,
}

/// Keeps what one thread writes on other cache lines than what others write. Processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct CacheLine<T>(T);

/// How long what the store does takes.
#[derive(Debug, Default)]
pub struct Timings {
    /// From a batch that is handed in to the answer of its producer, if that waits for the commit. Noted by the writer, once
    /// a batch.
    pub acknowledgement: Histogram,
    /// Transactions of the writer that were committed, their syncs included.
    pub commit: Histogram,
    /// Readings: a page of events, a look-up, a count. Noted by the threads that read.
    pub query: Histogram,
}

impl Counts {
    /// Events were acknowledged before they are stored.
    pub fn queued(&self, events: usize) {
        self.queued.0.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// The writer has acknowledged events of one commit.
    pub fn acknowledged(&self, level: AckLevel, events: usize) {
        self.by_level[level as usize].fetch_add(events as u64, Ordering::Relaxed);
    }

    pub fn checkpoint(&self) {
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
    }

    /// How often pages were moved from the write-ahead log into the database.
    pub fn checkpoints(&self) -> u64 {
        self.checkpoints.load(Ordering::Relaxed)
    }

    pub fn lost(&self, events: usize) {
        self.lost.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// How many were acknowledged at a level.
    pub fn at(&self, level: AckLevel) -> u64 {
        let count = if level == AckLevel::Queued { &self.queued.0 } else { &self.by_level[level as usize] };
        count.load(Ordering::Relaxed)
    }

    /// How many were acknowledged as queued and then not stored, because of a full disk, a lock or damage. Events
    /// refused for a used key are not counted.
    pub fn queued_and_lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
