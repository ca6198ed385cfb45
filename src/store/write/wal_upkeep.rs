//! Keeping the write-ahead log short, and the files free of traces of deleted events.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::checkpoint::{Checkpoints, Erasure, Moved, Readers, checkpoint, failed_sync, unless_failed_sync};
use super::command::Reply;
use super::sweep::Sweeps;
use crate::store::remains::{Found, Search};
use crate::store::schema::{self, meta};
use crate::store::shared::Shared;
use crate::store::sidecar::Sidecar;
use crate::store::syncs::SyncOf;
use crate::store::wal;

/// How long a truncation waits for readers when the disk is short of space. 100 ms is longer than one of our own reads
/// takes; it is not longer, because nothing is stored meanwhile.
pub const TRUNCATE_PATIENCE: Duration = Duration::from_millis(100);

pub struct WalUpkeep {
    checkpoints: Checkpoints,
    checkpointer: Sender<Readers>,
    erasure: Erasure,
    sweeps: Sweeps,
}

impl WalUpkeep {
    /// `may_have_remains`: an earlier run may have left traces of deleted events.
    pub fn new(checkpointer: Sender<Readers>, sweeper: Sender<Search>, may_have_remains: bool) -> Self {
        let erasure = Erasure::after_start(may_have_remains);
        let sweeps = Sweeps::new(sweeper, may_have_remains);
        Self { checkpoints: Checkpoints::default(), checkpointer, erasure, sweeps }
    }

    pub fn start_if_due(&mut self, shared: &Shared) {
        if let Some(readers) = self.checkpoints.begin(shared.wal.pages(), self.erasure) {
            self.checkpointer.send(readers).expect("the checkpointer lives as long as the writer");
        }
    }

    /// When the write-ahead log is to be tidied, if nothing is written before then.
    pub fn tidies(&self, shared: &Shared, is_disk_full: bool) -> Option<Instant> {
        self.checkpoints.tidies(shared.wal.pages_to_move(), self.erasure, is_disk_full)
    }

    /// Whether the checkpointer is moving pages.
    pub fn is_checkpoint_running(&self) -> bool {
        self.checkpoints.is_running()
    }

    /// Moves what is in the write-ahead log while nothing else is to be done. The file stays, because commits that
    /// overwrite it are faster than those that make it longer, unless it is long. This does not wait for a reader, because
    /// the next event must not wait. Traces of deletions do not stay: the caller knows that there are none.
    ///
    /// # Errors
    /// A failed sync: going on would be unsafe.
    pub fn tidy(
        &mut self,
        is_disk_full: bool,
        (connection, shared, sidecar): (&Connection, &Shared, &mut Sidecar),
    ) -> rusqlite::Result<()> {
        match self.checkpoints.is_file_long(is_disk_full) {
            true => self.truncate(Duration::ZERO, (connection, shared, sidecar)).map(drop),
            false => self.checkpoint(connection, shared, "PASSIVE").map(drop),
        }
    }

    pub fn has_traces(&self) -> bool {
        self.erasure != Erasure::None
    }

    /// Chosen events were deleted, and their traces are to be erased soon.
    pub fn leave_traces(&mut self) {
        self.sweeps.make_due();
        if self.erasure == Erasure::None {
            self.erasure = Erasure::later();
        }
    }

    /// A client waits until the traces are gone.
    pub fn erase(&mut self, reply: Reply<()>) {
        self.sweeps.wait(reply);
        self.erasure = Erasure::Awaited;
    }

    /// Whether traces in the database are being searched for and overwritten.
    pub fn is_sweeping(&self) -> bool {
        self.sweeps.is_under_way()
    }

    /// Takes note of what the sweeper found. The write-ahead log has to be emptied before that can be overwritten.
    pub fn searched(&mut self, found: std::io::Result<Found>) {
        self.sweeps.found(found);
        if self.sweeps.needs_empty_log() {
            self.erasure = Erasure::Awaited;
        }
    }

    /// Ends a checkpoint. The checkpointer has moved most pages; the few that were written meanwhile are moved here,
    /// between two commits, because a write-ahead log can only start over when all of it is moved. Without this step it
    /// would grow for as long as events keep coming.
    ///
    /// # Errors
    /// A failed sync: going on would be unsafe.
    pub fn finish(
        &mut self,
        result: rusqlite::Result<()>,
        do_reads_wait: bool,
        (connection, shared, sidecar): (&Connection, &Shared, &mut Sidecar),
    ) -> rusqlite::Result<()> {
        self.checkpoints.end();
        result?;
        if !do_reads_wait || self.erasure == Erasure::None {
            return self.checkpoint(connection, shared, "PASSIVE").map(drop);
        }
        if !self.truncate(Duration::ZERO, (connection, shared, sidecar))? {
            // Only another program can be reading now, perhaps for long.
            self.erasure = Erasure::later();
            self.sweeps.answer_early();
        }
        Ok(())
    }

    /// Truncates the write-ahead log, which gives its space back to the disk and erases what is in it. If a reader
    /// still needs it after `patience`, the next idle moment tries again, or the next erasure. Returns whether it was
    /// truncated.
    ///
    /// # Errors
    /// A failed sync: going on would be unsafe.
    pub fn truncate(
        &mut self,
        patience: Duration,
        (connection, shared, sidecar): (&Connection, &Shared, &mut Sidecar),
    ) -> rusqlite::Result<bool> {
        sidecar.note_log_may_be_emptied();
        connection.busy_timeout(patience)?;
        let truncated = self.truncate_now(connection, shared);
        connection.busy_timeout(schema::BUSY_TIMEOUT)?;
        truncated
    }

    fn truncate_now(&mut self, connection: &Connection, shared: &Shared) -> rusqlite::Result<bool> {
        let path = shared.pool.path();
        if wal::is_there(path) && !self.start_over(connection, shared)? {
            return Ok(false);
        }
        if !self.checkpoint(connection, shared, "TRUNCATE")?.is_some_and(Moved::is_truncated) {
            return Ok(false);
        }
        if shared.syncs.are_on() {
            // Else a power cut could bring back traces that a client was told are gone.
            wal::sync(path).map_err(failed_sync)?;
        }
        self.checkpoints.truncated();
        self.erasure = Erasure::None;
        if self.sweeps.needs_empty_log() {
            self.sweeps.step(connection, shared)?;
            if self.sweeps.needs_empty_log() {
                self.erasure = Erasure::later();
            }
        }
        Ok(true)
    }

    /// Has the write-ahead log start over with a commit of one page that changes nothing. A disk may cut off the log in any
    /// order of its sectors, as long as that is not synced. After a power cut SQLite reads what is left up to the first gap,
    /// and would take pages from it that are older than those in the database. Of one commit it takes all or nothing.
    /// Returns whether the log holds nothing else now.
    fn start_over(&mut self, connection: &Connection, shared: &Shared) -> rusqlite::Result<bool> {
        if !self.checkpoint(connection, shared, "RESTART")?.is_some_and(Moved::is_complete) {
            return Ok(false);
        }
        let committed = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
            .and_then(|transaction| meta::touch(&transaction).and_then(|()| transaction.commit()));
        // More pages than that one: another program has written in between.
        Ok(unless_failed_sync(committed)?.is_some() && shared.wal.pages() == 1)
    }

    fn checkpoint(&mut self, connection: &Connection, shared: &Shared, mode: &str) -> rusqlite::Result<Option<Moved>> {
        let begun = Instant::now();
        let checkpointed = checkpoint(connection, mode)?;
        shared.syncs.note(SyncOf::DatabaseByWriter, begun.elapsed());
        if let Some(log) = checkpointed {
            shared.counts.checkpoint();
            shared.wal.note(log);
            self.checkpoints.watch(log);
        }
        Ok(checkpointed)
    }
}
