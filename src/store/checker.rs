//! The check of the file behind a serving server.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use rusqlite::Connection;

use super::check::{self, Check, Pages};
use super::damage::{Progress, is_damage};
use super::{Shared, schema};

/// Holds the file against itself, behind a serving server.
pub(super) struct Checker {
    pub(super) path: PathBuf,
    pub(super) shared: Arc<Shared>,
}

impl Checker {
    /// Until it is done, or `stopped` has no sender any more.
    pub(super) fn run(self, stopped: &Receiver<()>) {
        let integrity = self.shared.integrity.clone();
        integrity.lock().progress = Progress::Running;
        match self.check(stopped) {
            Ok(Some(events)) => {
                let mut integrity = integrity.lock();
                (integrity.progress, integrity.events) = (Progress::Done, events);
            }
            Ok(None) => {}
            Err(error) if is_damage(&error) => integrity.lock().note(error.to_string()),
            Err(error) => tracing::warn!(%error, "check the database"),
        }
    }

    /// Returns how many events there are, or `None` if it was stopped.
    fn check(self, stopped: &Receiver<()>) -> rusqlite::Result<Option<u64>> {
        let Checker { path, shared } = self;
        let found = |what| shared.integrity.lock().note(what);
        let is_stopped = |rest| stopped.recv_timeout(rest) != Err(RecvTimeoutError::Timeout);
        let mut pages_connection = schema::open_reader(&path)?;
        give_way(&mut pages_connection, &shared, stopped.clone())?;
        let pages = || check::pages(&pages_connection, Pages::Quick, found);
        let mut is_done = pages()?;

        let connection = schema::open_reader(&path)?;
        let mut began = Instant::now();
        let mut check = Check {
            connection: &connection,
            found: &mut { found },
            between: &mut |events| {
                shared.integrity.lock().events = events;
                let is_stopped = is_stopped(began.elapsed() * check::REST);
                began = Instant::now();
                if is_stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        };
        let events = check.rows()?;
        while events.is_some() && !is_done && !is_stopped(check::TRY_AGAIN) {
            is_done = pages()?;
        }
        Ok(events.filter(|_| is_done))
    }
}

/// Has a reading of all pages end when the server does, or when the log it keeps from starting over gets
/// longer than it may stay.
fn give_way(connection: &mut Connection, shared: &Arc<Shared>, stopped: Receiver<()>) -> rusqlite::Result<()> {
    /// Steps of SQLite, some of which take a page: it looks about every millisecond.
    const STEPS: i32 = 1_000;
    let shared = shared.clone();
    let must_end = move || {
        let is_stopped = stopped.try_recv() == Err(TryRecvError::Disconnected);
        is_stopped || shared.log.bytes() > schema::WAL_BYTES_KEPT as u64
    };
    connection.progress_handler(STEPS, Some(must_end))
}
