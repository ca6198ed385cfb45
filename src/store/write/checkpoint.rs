//! The write-ahead log: how long it is, and when and how its pages get into the database.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::event::Timestamp;
use crate::store::schema::PAGE_BYTES;
use crate::store::wal::FRAME_HEADER_LEN;
use crate::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// What is known of the write-ahead log.
#[derive(Debug, Default)]
pub struct Wal {
    /// Pages in it.
    pages: AtomicUsize,
    /// How many of them were moved, and are in the database, too.
    moved: AtomicUsize,
    /// Since when a reader has kept it from starting over, in microseconds; 0 if none does.
    held_since: AtomicI64,
}

impl Wal {
    /// Pages in it.
    pub fn pages(&self) -> usize {
        self.pages.load(Ordering::Relaxed)
    }

    /// Pages that the next checkpoint will move.
    pub fn pages_to_move(&self) -> usize {
        self.pages().saturating_sub(self.moved.load(Ordering::Relaxed))
    }

    /// The bytes it takes on the disk.
    pub fn bytes(&self) -> u64 {
        self.pages() as u64 * WAL_PAGE_BYTES
    }

    /// Since when a reader has kept it from starting over.
    pub fn held_since(&self) -> Option<Timestamp> {
        Some(Timestamp(self.held_since.load(Ordering::Relaxed))).filter(|since| since.0 != 0)
    }

    /// Notes its length after a commit.
    pub fn grew(&self, pages: usize) {
        // If all of it was moved, the commit was written to its beginning.
        if self.pages_to_move() == 0 {
            self.moved.store(0, Ordering::Relaxed);
        }
        self.pages.store(pages, Ordering::Relaxed);
    }

    /// Notes what a checkpoint found and moved.
    pub fn note(&self, log: Moved) {
        self.pages.store(log.pages, Ordering::Relaxed);
        self.moved.store(log.moved, Ordering::Relaxed);
        let was_held = self.held_since().is_some();
        if was_held == log.is_all() {
            let since = if was_held { 0 } else { Timestamp::now().0 };
            self.held_since.store(since, Ordering::Relaxed);
        }
    }
}

/// A page and its header in the write-ahead log.
const WAL_PAGE_BYTES: u64 = PAGE_BYTES + FRAME_HEADER_LEN as u64;

/// How many pages are in the write-ahead log, and how many of these a checkpoint has moved into the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    pages: usize,
    moved: usize,
    /// Whether nothing kept the checkpoint from all that its mode says.
    is_done: bool,
}

impl Moved {
    /// Whether a checkpoint that was to truncate the write-ahead log has done so. That no page is in the log does not
    /// show it: the file may still have pages from before it last started over.
    pub fn is_truncated(self) -> bool {
        self.is_done && self.pages == 0
    }

    /// Whether nothing but the database is needed any more, and nobody reads anything else.
    pub fn is_complete(self) -> bool {
        self.is_done && self.is_all()
    }

    fn is_all(self) -> bool {
        self.moved >= self.pages
    }
}

/// Pages in the write-ahead log at which a checkpoint begins. 4 MiB: a larger write-ahead log would make each
/// checkpoint longer.
const CHECKPOINT_PAGES: usize = if cfg!(test) { 8 } else { 1_024 };

/// An idle write-ahead log whose file has more pages than this is truncated. 8 MiB: what it reaches beside a checkpoint
/// under load. A file that is kept is overwritten by later commits, whose syncs take half as long as those that make a
/// file longer.
const KEPT_PAGES: usize = CHECKPOINT_PAGES * 2;

/// While a reader keeps the write-ahead log from starting over, another checkpoint is tried each time it has grown by
/// this many pages.
const CHECKPOINT_PAGES_HELD: usize = CHECKPOINT_PAGES / 4;

/// At 64 MiB of a write-ahead log that a reader keeps from starting over, an operator is warned, and again each time it
/// has doubled.
const HELD_PAGES_WARN: usize = CHECKPOINT_PAGES * 16;

/// From 12 MiB on, our own reads wait at the gate during a checkpoint, because at every checkpoint before it a reader
/// kept the write-ahead log from starting over. With bodies of up to 2 MiB, one after the other, the write-ahead log
/// stays below 32 MiB: it grows by less than 20 MiB meanwhile. Many large bodies at one time fill commits of 16 MiB,
/// several of them during one checkpoint, and bring it to some 60 MiB.
const CHECKPOINT_PAGES_ALONE: usize = CHECKPOINT_PAGES * 3;

/// What our own reads do during a checkpoint. Those of other programs go on in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// They go on. Pages that replace what one of them needs stay in the write-ahead log.
    GoOn,
    /// New ones wait at the gate until all is moved, so that the write-ahead log can start over.
    Wait,
}

/// When the next checkpoint begins, and whether a reader keeps the write-ahead log from starting over.
pub struct Checkpoints {
    is_running: bool,
    /// Pages in the write-ahead log at which the next checkpoint begins.
    due_at: usize,
    /// Pages in the write-ahead log from which on reads wait during a checkpoint.
    alone_at: usize,
    /// The most pages that the write-ahead log has had since it was last truncated: the length of its file.
    file_pages: usize,
    /// Since when a reader has kept the write-ahead log from starting over.
    held_since: Option<Instant>,
    /// Pages at which an operator is warned of that reader.
    warn_at: usize,
}

impl Default for Checkpoints {
    fn default() -> Self {
        let (due_at, alone_at) = (CHECKPOINT_PAGES, CHECKPOINT_PAGES_ALONE);
        Self { is_running: false, due_at, alone_at, file_pages: 0, held_since: None, warn_at: HELD_PAGES_WARN }
    }
}

impl Checkpoints {
    /// Begins a checkpoint if one is due, now that the write-ahead log has this many pages and these traces of deleted
    /// events.
    pub fn begin(&mut self, pages: usize, erasure: Erasure) -> Option<Readers> {
        self.file_pages = self.file_pages.max(pages);
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
            // If another program reads, it does not help that ours wait: the log has to grow before the next try.
            self.alone_at = pages + CHECKPOINT_PAGES.max(pages / 4);
        }
        Some(if is_alone { Readers::Wait } else { Readers::GoOn })
    }

    /// When the write-ahead log is to be tidied if nothing is written before: when its pages are to be moved, or its file
    /// is to be truncated.
    pub fn tidies(&self, pages_to_move: usize, erasure: Erasure, is_disk_full: bool) -> Option<Instant> {
        match erasure {
            Erasure::Due(from) => Some(from).filter(|_| !self.is_running),
            _ => (pages_to_move > 0 || self.is_file_long(is_disk_full)).then(|| Instant::now() + IDLE),
        }
    }

    /// Whether the file is too long to be kept. A full disk gets all of it back.
    pub fn is_file_long(&self, is_disk_full: bool) -> bool {
        self.file_pages > if is_disk_full { 0 } else { KEPT_PAGES }
    }

    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Takes note that the file is empty.
    pub fn truncated(&mut self) {
        self.file_pages = 0;
    }

    pub fn end(&mut self) {
        self.is_running = false;
    }

    /// Takes note of what a checkpoint moved. If pages are left, a reader still needs the versions in the database that
    /// they would replace: one of our readers for an instant, another program for as long as its transaction is open.
    /// The log grows until that reader ends, so an operator is warned.
    pub fn watch(&mut self, log: Moved) {
        if log.is_all() {
            if let Some(since) = self.held_since
                && self.warn_at > HELD_PAGES_WARN
            {
                let seconds = since.elapsed().as_secs();
                tracing::info!(seconds, "the reader has ended: the write-ahead log starts over");
            }
            *self = Self { is_running: self.is_running, file_pages: self.file_pages, ..Self::default() };
            return;
        }
        self.due_at = log.pages + CHECKPOINT_PAGES_HELD;
        let since = *self.held_since.get_or_insert_with(Instant::now);
        if log.pages >= self.warn_at {
            self.warn_at = log.pages * 2;
            let (seconds, bytes) = (since.elapsed().as_secs(), log.pages as u64 * WAL_PAGE_BYTES);
            tracing::warn!(
                bytes,
                seconds,
                "a reader with an open transaction, probably another program, keeps the write-ahead log from starting over"
            );
        }
    }
}

/// The write-ahead log is tidied when nothing has been written for 2 s: by then a burst of events is over.
const IDLE: Duration = Duration::from_secs(2);

/// While another program reads, the server tries once a second to remove traces from the write-ahead log, however busy
/// the writer is. During each try our own reads may wait for some ms.
const BETWEEN_ERASURES: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 1 });

/// A write-ahead log that a start has found is emptied after 10 s: our reads would wait for that, and the first
/// requests come now.
const AFTER_START: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 10 });

/// Whether the write-ahead log has traces of events that were chosen to be deleted. They go when it is truncated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Erasure {
    #[default]
    None,
    /// It has some. From this moment on, the next try may begin.
    Due(Instant),
    /// It has some, and a client that deleted the events waits until they are gone.
    Awaited,
}

impl Erasure {
    /// After a try that left traces because another program reads.
    pub fn later() -> Self {
        Self::Due(Instant::now() + BETWEEN_ERASURES)
    }

    /// At a start. The server before may have ended before all traces were gone.
    pub fn after_start(may_have_remains: bool) -> Self {
        if may_have_remains { Self::Due(Instant::now() + AFTER_START) } else { Self::None }
    }
}

/// Moves pages from the write-ahead log into the database; `mode` as in `PRAGMA wal_checkpoint`. Returns `None` if
/// another checkpoint is under way, or pages could not be moved: then they stay in the log, and the next checkpoint
/// moves them all.
///
/// # Errors
/// A failed sync. The next sync would report success without bringing to the disk what this one left out.
pub fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<Option<Moved>> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let moved = connection.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    let Some((is_busy, pages, moved)) = unless_failed_sync::<(bool, i64, i64)>(moved)? else { return Ok(None) };
    let counts = usize::try_from(pages).ok().zip(usize::try_from(moved).ok());
    Ok(counts.map(|(pages, moved)| Moved { pages, moved, is_done: !is_busy }))
}

/// The result of a step of a checkpoint; `None`, and a line in the log, if it failed and can be tried again.
///
/// # Errors
/// A failed sync.
pub fn unless_failed_sync<T>(result: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if is_failed_sync(&error) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "checkpoint");
            Ok(None)
        }
    }
}

/// A failed sync of our own, as the same error that SQLite reports for one of its own.
pub fn failed_sync(error: std::io::Error) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
    rusqlite::Error::SqliteFailure(code, Some(format!("disk I/O error: {error}")))
}

fn is_failed_sync(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_FSYNC)
}
