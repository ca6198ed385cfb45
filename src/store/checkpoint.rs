//! The write-ahead log, and how its pages get into the database.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::schema::PAGE_BYTES;
use super::wal::FRAME_HEADER_LEN;
use crate::event::Timestamp;
use crate::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// The write-ahead log.
#[derive(Debug, Default)]
pub struct Log {
    /// Pages in it.
    pages: AtomicUsize,
    /// How many of them are in the database, too.
    moved: AtomicUsize,
    /// Since when a reader has kept it from starting over, in microseconds; 0 if none does.
    held_since: AtomicI64,
}

impl Log {
    /// Pages in it.
    pub(super) fn pages(&self) -> usize {
        self.pages.load(Ordering::Relaxed)
    }

    /// Pages that the next checkpoint will move.
    pub fn pages_to_move(&self) -> usize {
        self.pages().saturating_sub(self.moved.load(Ordering::Relaxed))
    }

    /// The room it takes.
    pub fn bytes(&self) -> u64 {
        self.pages() as u64 * LOG_PAGE_BYTES
    }

    /// Since when a reader has kept it from starting over.
    pub fn held_since(&self) -> Option<Timestamp> {
        Some(Timestamp(self.held_since.load(Ordering::Relaxed))).filter(|since| since.0 != 0)
    }

    /// A commit made it so long.
    pub(super) fn grew(&self, pages: usize) {
        // Where all of it was moved, the commit has begun at its start.
        if self.pages_to_move() == 0 {
            self.moved.store(0, Ordering::Relaxed);
        }
        self.pages.store(pages, Ordering::Relaxed);
    }

    /// A checkpoint came so far.
    pub(super) fn note(&self, log: Moved) {
        self.pages.store(log.pages, Ordering::Relaxed);
        self.moved.store(log.moved, Ordering::Relaxed);
        let was_held = self.held_since().is_some();
        if was_held == log.is_all() {
            let since = if was_held { 0 } else { Timestamp::now().0 };
            self.held_since.store(since, Ordering::Relaxed);
        }
    }
}

/// A page and its head in the log.
const LOG_PAGE_BYTES: u64 = PAGE_BYTES + FRAME_HEADER_LEN as u64;

/// How many pages are in the log, and how many of these a checkpoint has moved into the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moved {
    pages: usize,
    moved: usize,
}

impl Moved {
    pub(super) fn is_empty(self) -> bool {
        self.pages == 0
    }

    fn is_all(self) -> bool {
        self.moved >= self.pages
    }
}

/// Pages in the write-ahead log at which a checkpoint begins: 4 MiB keeps each one short.
const CHECKPOINT_PAGES: usize = if cfg!(test) { 8 } else { 1_024 };

/// While a reader holds the log, another checkpoint is tried each time that so many pages were added.
const CHECKPOINT_PAGES_HELD: usize = CHECKPOINT_PAGES / 4;

/// A log of 64 MiB that a reader holds is worth a warning, and again each time it has doubled.
const HELD_PAGES_TOLD: usize = CHECKPOINT_PAGES * 16;

/// 12 MiB: from this length on a checkpoint keeps our own reads out, because at every one before it a reader kept the
/// log from starting over. Where bodies have up to 2 MiB and come one after the other, the log stays below 32 MiB, for it
/// grows by less than 20 MiB meanwhile. Many large bodies at one time fill commits of 16 MiB, several while one checkpoint
/// is under way: then it comes to some 60 MiB.
const CHECKPOINT_PAGES_ALONE: usize = CHECKPOINT_PAGES * 3;

/// What a checkpoint does about our own reads. Those of other programs it cannot keep out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// They go on. What one of them needs stays in the log.
    Readers,
    /// New ones are kept out until all is moved, so that the log can start over.
    Nobody,
}

/// When the log is to be moved, and whether somebody holds it.
pub(super) struct Checkpoints {
    is_running: bool,
    /// Pages in the log at which the next one begins.
    due_at: usize,
    /// Pages in the log at which the next one is to be alone.
    alone_at: usize,
    /// Since when a reader keeps the log from starting over.
    held_since: Option<Instant>,
    /// Pages of a log that is held at which an operator is told.
    tell_at: usize,
}

impl Default for Checkpoints {
    fn default() -> Self {
        let (due_at, alone_at) = (CHECKPOINT_PAGES, CHECKPOINT_PAGES_ALONE);
        Self { is_running: false, due_at, alone_at, held_since: None, tell_at: HELD_PAGES_TOLD }
    }
}

impl Checkpoints {
    /// Whether one is to begin, now that the log is so long, and how; it is then under way. `erasure` is whether the
    /// log has traces of what was deleted.
    pub(super) fn begin(&mut self, pages: usize, erasure: Erasure) -> Option<Company> {
        let erases = match erasure {
            Erasure::None => false,
            Erasure::Due(from) => from <= Instant::now(),
            Erasure::Awaited => true,
        };
        if self.is_running || !(pages >= self.due_at || erases) {
            return None;
        }
        self.is_running = true;
        let is_alone = pages >= self.alone_at || erases;
        if is_alone {
            // Where another program reads, keeping ours out does not help: the log has to grow before the next try.
            self.alone_at = pages + CHECKPOINT_PAGES.max(pages / 4);
        }
        Some(if is_alone { Company::Nobody } else { Company::Readers })
    }

    /// When the log is to be emptied although nothing is written, if it is so long and nothing comes before.
    pub(super) fn empties(&self, pages: usize, erasure: Erasure) -> Option<Instant> {
        match erasure {
            Erasure::Due(from) => Some(from).filter(|_| !self.is_running),
            _ => (pages > 0).then(|| Instant::now() + IDLE_BEFORE_TRUNCATE),
        }
    }

    pub(super) fn end(&mut self) {
        self.is_running = false;
    }

    /// A log that is not moved entirely has a reader that needs what its pages would replace: one of ours for an
    /// instant, another program for as long as its transaction is open. The log grows until that ends, so it is
    /// said who is to blame.
    pub(super) fn watch(&mut self, log: Moved) {
        if log.is_all() {
            if let Some(since) = self.held_since
                && self.tell_at > HELD_PAGES_TOLD
            {
                let seconds = since.elapsed().as_secs();
                tracing::info!(seconds, "the reader has ended: the write-ahead log starts over");
            }
            *self = Self { is_running: self.is_running, ..Self::default() };
            return;
        }
        self.due_at = log.pages + CHECKPOINT_PAGES_HELD;
        let since = *self.held_since.get_or_insert_with(Instant::now);
        if log.pages >= self.tell_at {
            self.tell_at = log.pages * 2;
            let (seconds, bytes) = (since.elapsed().as_secs(), log.pages as u64 * LOG_PAGE_BYTES);
            tracing::warn!(
                bytes,
                seconds,
                "a reader with an open transaction, probably another program, keeps the write-ahead log from starting over"
            );
        }
    }
}

/// A log that nobody adds to is emptied after this long.
const IDLE_BEFORE_TRUNCATE: Duration = Duration::from_secs(2);

/// Where another program reads, the log is emptied so long after it has ended at the latest, however busy the writer is.
/// Each try may keep our own reads waiting for some ms.
const BETWEEN_ERASURES: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 1 });

/// When a log that a start has found is emptied: not while the first requests come, for which our reads would wait.
const AFTER_START: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 10 });

/// Whether the log has traces of events that were chosen to be deleted. They go when it is truncated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Erasure {
    #[default]
    None,
    /// They are to go, and from when on that is tried again.
    Due(Instant),
    /// A client that deleted events waits until they are gone.
    Awaited,
}

impl Erasure {
    /// Traces are left after a try, because another program reads.
    pub(super) fn later() -> Self {
        Self::Due(Instant::now() + BETWEEN_ERASURES)
    }

    /// The server before may have ended while another program kept the log.
    pub(super) fn after_start(has_log: bool) -> Self {
        if has_log { Self::Due(Instant::now() + AFTER_START) } else { Self::None }
    }
}

/// Moves pages from the write-ahead log into the database; `mode` as in `PRAGMA wal_checkpoint`. Nothing if another
/// checkpoint is under way, or it could not: then they stay in the log, and the next one moves them all.
///
/// # Errors
/// A failed sync. What it should have brought to the disk would be taken for synced by the next one.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<Option<Moved>> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let moved: rusqlite::Result<(i64, i64)> = connection.query_row(&sql, [], |row| Ok((row.get(1)?, row.get(2)?)));
    match moved {
        Ok((pages, moved)) => {
            let counts = usize::try_from(pages).ok().zip(usize::try_from(moved).ok());
            Ok(counts.map(|(pages, moved)| Moved { pages, moved }))
        }
        Err(error) if is_failed_sync(&error) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "checkpoint");
            Ok(None)
        }
    }
}

fn is_failed_sync(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_FSYNC)
}
