//! Overwriting what deleted rows left in the database. The sweeper searches the file, some pages at a time; the writer
//! overwrites what it finds, between two commits, while the write-ahead log is empty.

use std::io;

use crossbeam_channel::Sender;
use rusqlite::{Connection, ErrorCode};

use super::command::Reply;
use crate::record::Failure;
use crate::store::receipt::answer;
use crate::store::remains::{self, Found, Search};
use crate::store::shared::Shared;
use crate::store::wal;

/// While events are stored, the file is searched so many times at most: each time less could have moved.
const SEARCHES_MAX: u32 = 3;

/// The sweep under way, the next one if it is due, and the clients that wait for either.
pub struct Sweeps {
    sweeper: Sender<Search>,
    /// Events were deleted since the last search began.
    is_due: bool,
    /// Clients whose events were deleted since then.
    waiting: Vec<Reply<()>>,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    clients: Vec<Reply<()>>,
    /// How often the whole file has been searched, this time included, and what the connection had changed when it began.
    searches: u32,
    changes: u64,
    /// Pages to be overwritten, and what is left to be searched.
    found: Option<Found>,
}

impl Sweeps {
    pub fn new(sweeper: Sender<Search>, is_due: bool) -> Self {
        Self { sweeper, is_due, waiting: Vec::new(), under_way: None }
    }

    /// Events were deleted whose bytes are to go.
    pub fn make_due(&mut self) {
        self.is_due = true;
    }

    /// A client waits until no byte of its events is left.
    pub fn wait(&mut self, client: Reply<()>) {
        self.is_due = true;
        self.waiting.push(client);
    }

    /// Whether the sweeper searches, or pages that it found wait to be overwritten. Tidying may free no page meanwhile; a
    /// chosen deletion makes another sweep due.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether the write-ahead log has to be emptied for the next step.
    pub fn needs_empty_log(&self) -> bool {
        match &self.under_way {
            Some(under_way) => under_way.found.is_some(),
            None => self.is_due,
        }
    }

    /// Does the next step, now that the write-ahead log is empty. It is put off if another program has written, or writes.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn step(&mut self, connection: &Connection, shared: &Shared) -> rusqlite::Result<()> {
        match connection.execute_batch("BEGIN IMMEDIATE") {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => return Ok(()),
            begun => begun?,
        }
        // With this lock held, no program can add to the log.
        let stepped = match wal::is_there(shared.pool.path()) {
            true => Ok(()),
            false => self.step_locked(shared, connection.total_changes()),
        };
        // Else the next change of a page would bring back what the writer's copy of it still has.
        connection.execute_batch("ROLLBACK; PRAGMA shrink_memory")?;
        if let Err(error) = stepped {
            self.fail(&error);
        }
        Ok(())
    }

    fn step_locked(&mut self, shared: &Shared, changes: u64) -> io::Result<()> {
        if let Some(under_way) = &mut self.under_way {
            let Some(Found { pages, rest }) = under_way.found.take() else { return Ok(()) };
            remains::overwrite(&shared.database, &pages)?;
            match rest {
                Some(rest) => Self::search(&self.sweeper, rest),
                None if under_way.changes != changes && under_way.searches < SEARCHES_MAX => {
                    (under_way.searches, under_way.changes) = (under_way.searches + 1, changes);
                    Self::search(&self.sweeper, Search::begin(&shared.database)?);
                }
                None => {
                    let done = self.under_way.take();
                    done.into_iter().flat_map(|done| done.clients).for_each(|client| answer(client, Ok(())));
                }
            }
        } else if std::mem::take(&mut self.is_due) {
            let clients = std::mem::take(&mut self.waiting);
            self.under_way = Some(UnderWay { clients, searches: 1, changes, found: None });
            Self::search(&self.sweeper, Search::begin(&shared.database)?);
        }
        Ok(())
    }

    /// Takes note of what the sweeper found.
    pub fn found(&mut self, found: io::Result<Found>) {
        match found {
            Ok(Found { pages, rest: Some(rest) }) if pages.is_empty() => Self::search(&self.sweeper, rest),
            Ok(found) => {
                if let Some(under_way) = &mut self.under_way {
                    under_way.found = Some(found);
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    fn search(sweeper: &Sender<Search>, part: Search) {
        sweeper.send(part).expect("the sweeper lives as long as the writer");
    }

    fn fail(&mut self, error: &io::Error) {
        tracing::error!(%error, "overwrite what deleted events left in the file");
        let failure = match error.kind() {
            io::ErrorKind::StorageFull => Failure::StorageFull,
            io::ErrorKind::InvalidData => Failure::Damaged,
            _ => Failure::Unavailable,
        };
        let under_way = self.under_way.take();
        under_way.into_iter().flat_map(|ended| ended.clients).for_each(|client| answer(client, Err(failure)));
    }

    /// Answers every client, because another program reads and the rest has to wait for it.
    pub fn answer_early(&mut self) {
        let under_way = self.under_way.iter_mut().flat_map(|under_way| under_way.clients.drain(..));
        self.waiting.drain(..).chain(under_way).for_each(|client| answer(client, Ok(())));
    }
}
