//! The integrity check that runs behind a serving server.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use rusqlite::Connection;

use super::check::{self, Pages, Rows};
use super::error::Result;
use super::integrity::Progress;
use super::schema;
use super::shared::Shared;

/// After each transaction the check rests this many times as long as the transaction took: it takes a fifth of a core.
const REST: u32 = 4;

/// A check of the pages that was ended for a checkpoint is tried again after this, and then after twice as long each
/// time, up to [`TRY_AGAIN_MAX`].
const TRY_AGAIN: Duration = Duration::from_secs(1);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Checks the file while the server runs.
pub(super) struct Checker {
    pub(super) path: PathBuf,
    pub(super) shared: Arc<Shared>,
}

impl Checker {
    /// Runs until the check is done, or `stopped` has no sender any more.
    pub(super) fn run(self, stopped: &Receiver<()>) {
        let integrity = self.shared.integrity.clone();
        integrity.lock().progress = Progress::Running;
        loop {
            match self.check(stopped) {
                Ok(Some(events)) => {
                    let mut integrity = integrity.lock();
                    (integrity.progress, integrity.events) = (Progress::Done, events);
                }
                Ok(None) => {}
                Err(error) if error.is_damage() => integrity.lock().note(error.to_string()),
                // Such as no file descriptor left: the check begins again.
                Err(error) => {
                    tracing::warn!(%error, "check the database");
                    if stopped.recv_timeout(TRY_AGAIN_MAX) == Err(RecvTimeoutError::Timeout) {
                        continue;
                    }
                }
            }
            return;
        }
    }

    /// Returns how many events there are, or `None` if it was stopped.
    fn check(&self, stopped: &Receiver<()>) -> Result<Option<u64>> {
        let Checker { path, shared } = self;
        let found = |what| shared.integrity.lock().note(what);
        let is_stopped = |rest| stopped.recv_timeout(rest) != Err(RecvTimeoutError::Timeout);
        let connection = pages_connection(path, shared, stopped.clone())?;
        let pages = || pages(&connection, shared, found);
        let mut is_done = pages()?;

        let mut began = Instant::now();
        let mut rows = Rows {
            source: &shared.pool,
            found: &mut { found },
            between: &mut |events| {
                shared.integrity.lock().events = events;
                let is_stopped = is_stopped(began.elapsed() * REST);
                began = Instant::now();
                if is_stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        };
        let events = rows.check()?;
        let mut rest = TRY_AGAIN;
        while events.is_some() && !is_done && !is_stopped(rest) {
            is_done = pages()?;
            rest = TRY_AGAIN_MAX.min(2 * rest);
        }
        Ok(events.filter(|_| is_done))
    }
}

/// A connection that reads all pages in one transaction. Its statements end when the server ends, or when a checkpoint
/// needs the write-ahead log to itself.
fn pages_connection(path: &Path, shared: &Arc<Shared>, stopped: Receiver<()>) -> rusqlite::Result<Connection> {
    /// Steps of SQLite's virtual machine between two calls of `must_end`. A step may read a page, so 100 steps take a
    /// few milliseconds on a slow disk. A call costs about 30 ns.
    const STEPS: i32 = 100;
    let mut connection = schema::open_reader(path)?;
    let shared = shared.clone();
    let must_end = move || stopped.try_recv() == Err(TryRecvError::Disconnected) || shared.pool.is_gate_closing();
    connection.progress_handler(STEPS, Some(must_end))?;
    Ok(connection)
}

/// Checks whether the pages fit together, as one of the readers. Returns whether it came to the end.
fn pages(connection: &Connection, shared: &Shared, found: impl FnMut(String)) -> rusqlite::Result<bool> {
    let _passed = shared.pool.pass_gate();
    check::pages(connection, Pages::Quick, found)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::config::Config;
    use crate::store::Store;

    #[test]
    fn a_checkpoint_waits_for_the_check_of_the_pages_which_then_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let database_path = folder.path().join("a.db");
        let config = Config::of_test(database_path);
        let (store, _parts) = Store::open_parts(&config).expect("a new file");
        // Enough that SQLite takes some thousand steps.
        const ROWS: &str = "INSERT INTO events (time_us, event_type, source, payload) \
                            WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1000) \
                            SELECT n, 'timer_tick', 's', '{}' FROM numbers";
        let written = schema::open_writer(&config.database_path).and_then(|file| file.execute(ROWS, []));
        assert_eq!(written, Ok(1_000));
        let shared = &store.shared;
        let (running, stopped) = crossbeam_channel::bounded(0);
        let connection = pages_connection(&config.database_path, shared, stopped).expect("undamaged");
        let all = || check::pages(&connection, Pages::Quick, |damage| panic!("{damage}"));
        assert_eq!(all(), Ok(true));
        let closed = shared.pool.close_gate();
        assert!(closed.is_some());
        assert_eq!(all(), Ok(false));
        drop(closed);
        assert_eq!(all(), Ok(true));
        drop(running);
        assert_eq!(all(), Ok(false), "the server ends");

        let mut looking = schema::open_reader(&config.database_path).expect("undamaged");
        let (store, is_waited_for) = (shared.clone(), Arc::new(AtomicBool::new(false)));
        let noted = is_waited_for.clone();
        let note = move || {
            noted.store(store.pool.close_gate().is_none(), Ordering::Relaxed);
            true
        };
        looking.progress_handler(1, Some(note)).expect("set");
        assert_eq!(pages(&looking, shared, |damage| panic!("{damage}")), Ok(false));
        assert!(is_waited_for.load(Ordering::Relaxed));
    }
}
