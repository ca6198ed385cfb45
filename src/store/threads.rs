//! The threads of an open store, and how they start and end.

use std::fs::File;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::RwLockWriteGuard;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::checker::Checker;
use super::error::Error;
use super::holes;
#[cfg(test)]
use super::queue::Reservation;
use super::remains::Search;
use super::segments::Segment;
use super::shared::Shared;
use super::syncs::SyncOf;
#[cfg(test)]
use super::write::ordered::{Changed, Ordered, Reply};
use super::write::{Command, Readers, Writer, checkpoint};
#[cfg(test)]
use crate::wire::Batch;
use crate::wire::committed::Commit;

/// The threads of an open store, and what comes out of them.
#[derive(Debug)]
pub struct Running {
    /// Every commit that stored events while there was an audience, in order. It must be emptied, because the writer
    /// waits for a full channel. It ends when the writer has ended.
    pub commits: Receiver<Arc<Commit>>,
    /// How the writer ended: `Ok` after [`Store::close`], an error if it could not go on. Closed without a value if it
    /// panicked.
    pub writer: oneshot::Receiver<Result<(), Error>>,
    pub threads: Vec<JoinHandle<()>>,
}

/// An open store whose threads have not been started.
pub(crate) struct Parts {
    pub(super) writer: Writer,
    pub(crate) commits: Receiver<Arc<Commit>>,
    pub(super) sealer: Sealer,
    pub(super) checkpointer: Checkpointer,
    pub(super) sweeper: Sweeper,
    pub(super) checker: Option<Checker>,
    pub(super) lock: File,
}

/// Encodes full segments, which takes too long for the writer.
pub(super) struct Sealer {
    pub(super) full: Receiver<Arc<Segment>>,
    pub(super) commands: Sender<Command>,
    pub(super) shared: Arc<Shared>,
}

impl Sealer {
    fn run(self) {
        if let Err(error) = self.find_holes() {
            tracing::warn!(%error, "find which segments from before format 4 have holes");
        }
        self.full.iter().for_each(|segment| self.encode(&segment));
    }

    /// Finds the holes of each segment of a file from before format 4, once.
    fn find_holes(&self) -> Result<(), Error> {
        let pool = &self.shared.pool;
        for segment in pool.with(|transaction| holes::unknown(transaction))? {
            let offsets = match pool.with(|transaction| holes::find(transaction, segment)) {
                Ok(offsets) => offsets,
                Err(error) => {
                    tracing::warn!(%error, segment, "find the holes of a segment from before format 4");
                    continue;
                }
            };
            if self.commands.send(Command::HolesFound { segment, offsets }).is_err() {
                // The writer has ended only if the process is ending; the next start goes on.
                break;
            }
        }
        Ok(())
    }

    fn encode(&self, segment: &Segment) {
        // The writer has ended only if the process is ending.
        let _ = self.commands.send(Command::Encoded { segment: segment.number(), rows: segment.rows() });
    }
}

/// Moves pages from the write-ahead log into the database, so that no commit waits for that.
pub(super) struct Checkpointer {
    pub(super) connection: Connection,
    pub(super) shared: Arc<Shared>,
    pub(super) due: Receiver<Readers>,
    pub(super) commands: Sender<Command>,
}

/// The gate, closed until the writer has moved the last pages.
struct ClosedGate<'c> {
    _guard: Option<RwLockWriteGuard<'c, ()>>,
    /// Disconnected when the writer has done its part.
    finished: Receiver<()>,
}

impl Checkpointer {
    /// Moves the pages that are in the write-ahead log when it begins. Most of them are moved while readers go on in
    /// any case. Readers wait only for the pages that were added meanwhile.
    fn checkpoint(&self, readers: Readers) -> Option<ClosedGate<'_>> {
        let mut result = self.move_and_sync();
        if readers == Readers::GoOn {
            let _ = self.commands.send(Command::Checkpointed { result, gate: None });
            return None;
        }
        let _guard = self.shared.pool.close_gate();
        if result.is_ok() {
            result = self.move_and_sync();
        }
        let (gate, finished) = bounded(0);
        let _ = self.commands.send(Command::Checkpointed { result, gate: Some(gate) });
        Some(ClosedGate { _guard, finished })
    }

    /// Moves pages and syncs the database. SQLite does the latter only when the last page is moved, which under load is the
    /// writer's part: it would sync some megabytes, and every producer would wait.
    fn move_and_sync(&self) -> rusqlite::Result<()> {
        let begun = Instant::now();
        checkpoint(&self.connection, "PASSIVE")?;
        self.shared.sync_database()?;
        self.shared.syncs.note(SyncOf::Database, begun.elapsed());
        Ok(())
    }

    fn run(self) {
        for readers in &self.due {
            if let Some(gate) = self.checkpoint(readers) {
                // Nothing is ever sent: the writer drops its end when it is done, or when it dies.
                let _ = gate.finished.recv();
            }
        }
    }
}

/// Searches the database for what deleted rows left, which takes too long for the writer.
pub(super) struct Sweeper {
    pub(super) shared: Arc<Shared>,
    pub(super) searches: Receiver<Search>,
    pub(super) commands: Sender<Command>,
}

impl Sweeper {
    fn search(&self, search: Search) {
        let synced = self.shared.sync_database();
        // The writer has ended only if the process is ending.
        let _ = self.commands.send(Command::Searched { synced, found: search.step(&self.shared.database) });
    }

    fn run(self) {
        self.searches.iter().for_each(|search| self.search(search));
    }
}

impl Parts {
    pub(super) fn start(self) -> Running {
        let Parts { writer, commits, sealer, checkpointer, sweeper, checker, lock } = self;
        let (ended, how) = oneshot::channel();
        let (running, stopped) = crossbeam_channel::bounded(0);
        let mut threads = vec![
            spawn("writer", move || {
                let outcome = writer.run().map_err(Error::from);
                drop(running);
                // The next server may open the file from here on.
                drop(lock);
                let _ = ended.send(outcome);
            }),
            spawn("sealer", move || sealer.run()),
            spawn("checkpointer", move || checkpointer.run()),
            spawn("sweeper", move || sweeper.run()),
        ];
        threads.extend(checker.map(|checker| spawn("checker", move || checker.run(&stopped))));
        Running { commits, writer: how, threads }
    }
}

/// The work of the threads in steps, for the simulation and for unit tests. A step that returns a `bool` returns
/// whether there was anything to do.
#[cfg(test)]
impl Parts {
    /// A turn of the writer, if it would not have to wait.
    pub(crate) fn write(&mut self) -> bool {
        let has_work = self.writer.has_housekeeping() || !self.writer.commands.is_empty();
        let can = has_work && !self.commits.is_full();
        if can {
            self.writer.turn(&mut Ordered::default()).expect("the writer can go on");
        }
        can
    }

    /// A turn of the writer up to its commit. No client is answered: a crash is to follow.
    pub(crate) fn write_unanswered(&mut self) {
        if !self.commits.is_full() && (self.writer.has_housekeeping() || !self.writer.commands.is_empty()) {
            self.writer.turn_unanswered();
        }
    }

    /// Applies commands that were put in order elsewhere. With `is_unanswered` the writer breaks off after its commit.
    pub(crate) fn apply(&mut self, mut ordered: Ordered, changed: Option<(Changed, Reply<()>)>, is_unanswered: bool) {
        self.writer.apply_ordered(&mut ordered, changed, is_unanswered);
        self.commits.try_iter().for_each(drop);
    }

    /// Reserves what a batch takes of the queue.
    pub(crate) fn reserve(&self, batch: &Batch) -> Reservation {
        self.writer.shared.queue.try_reserve(batch).expect("nothing else is in the queue")
    }

    /// The idempotency keys that have events: each with the number of its first event, and how many it has.
    pub(crate) fn keys(&self) -> Vec<(String, u64, u64)> {
        const SQL: &str = "SELECT key, seq, count FROM idempotency_keys WHERE seq + count - 1 > ?1 ORDER BY seq";
        let mut keys = self.writer.connection.prepare(SQL).expect("a table");
        let number = |row: &rusqlite::Row<'_>, column| row.get::<_, i64>(column).map(|number| number as u64);
        let deleted_through = self.writer.position.deleted_through.0 as i64;
        let keys = keys.query_map([deleted_through], |row| Ok((row.get(0)?, number(row, 1)?, number(row, 2)?)));
        keys.expect("read").map(|key| key.expect("read")).collect()
    }

    /// The rows of events, deleted or not.
    pub(crate) fn rows(&self) -> u64 {
        let rows: i64 =
            self.writer.connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).expect("read");
        rows as u64
    }

    pub(crate) fn seal(&self) -> bool {
        self.sealer.full.try_recv().map(|segment| self.sealer.encode(&segment)).is_ok()
    }

    pub(crate) fn checkpoint(&self) -> bool {
        // The readers are on the same thread, so the gate is opened again at once.
        let has_moved =
            self.checkpointer.due.try_recv().map(|readers| drop(self.checkpointer.checkpoint(readers))).is_ok();
        has_moved | self.sweeper.searches.try_recv().map(|search| self.sweeper.search(search)).is_ok()
    }

    /// Sets `FREE_SPACE_MIN_BYTES`.
    pub(crate) fn keep_free(&mut self, bytes: u64) {
        self.writer.space.free_bytes_min = bytes;
    }

    /// How many pages are in the write-ahead log, how many of them were moved into the database, and whether all are
    /// synced.
    pub(crate) fn log(&self) -> (usize, usize, bool) {
        let wal = &self.writer.shared.wal;
        (wal.pages(), wal.pages() - wal.pages_to_move(), !self.writer.syncing.has_unsynced())
    }

    /// Sets the clock back, by setting the time of the last event forward.
    pub(crate) fn step_clock_back(&mut self, micros: i64) {
        self.writer.position.time.0 += micros;
    }

    /// Lets the database grow by this many pages at most; `None` removes the limit.
    pub(crate) fn limit_disk(&self, pages: Option<u64>) {
        let count = |name| self.writer.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let max = pages.map_or(1 << 30, |more| count("page_count").expect("a number") + more as i64);
        self.writer.connection.pragma_update(None, "max_page_count", max).expect("a valid number");
    }

    /// Runs the writer to its end. Returns the commits for the fan-out.
    pub(crate) fn finish(self) -> Receiver<Arc<Commit>> {
        self.writer.run().expect("the writer ends well");
        self.commits
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).expect("the system can start a thread")
}
