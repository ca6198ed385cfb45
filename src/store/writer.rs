//! The one thread that writes: it drains the queue into one transaction, commits, and only then lets
//! anyone know.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::{Connection, Statement};
use tokio::sync::oneshot;

use super::checkpoint::{Checkpoints, Company, Erasure, checkpoint};
use super::checksum;
use super::damage::is_damage;
use super::deletion::{self, Deleted};
use super::epoch::Witness;
use super::error::Error;
use super::holes::{self, Holes};
use super::keys::{self, Known, Verdict};
use super::read;
use super::receipt::{Receipt, Stored, tell};
use super::schema::{self, PAGE_BYTES, Text, meta};
use super::segments::{self, IndexRow, SEGMENT_EVENTS, Segment};
use super::{Kept, Shared};
use crate::config::Durability;
use crate::doorbell::Wakes;
use crate::event::{Columns, Seq, Timestamp, TimestampText};
use crate::record::{AckLevel, Failure, Outcome as Fate, Outcomes as Outcome};
use crate::sync::atomic::Ordering;
use crate::wire::batch::{Batch, Keyed};
use crate::wire::committed::Commit;

/// What the writer is asked to do.
pub(super) enum Command {
    Append(Append),
    /// Delete what came before a time, or everything.
    Delete {
        before: Option<Timestamp>,
        reply: oneshot::Sender<Result<u64, Failure>>,
    },
    /// Delete these events, ascending.
    DeleteThese {
        chosen: Vec<Seq>,
        reply: oneshot::Sender<Result<u64, Failure>>,
    },
    /// Say whether an event would be stored now.
    Check {
        room: super::queue::Room,
        reply: oneshot::Sender<Result<(), Failure>>,
    },
    /// Durable subscriptions are to be stored: at once if a client waits for the reply, else within `KEEP_INTERVAL`.
    SubscriptionsChanged {
        reply: Option<oneshot::Sender<Result<(), Failure>>>,
    },
    /// A full segment's rows, ready to be stored.
    Encoded {
        segment: u64,
        rows: Vec<IndexRow>,
    },
    /// Where the holes of a segment of a file from before format 4 are.
    HolesFound {
        segment: u64,
        offsets: Vec<u16>,
    },
    /// The checkpointer has moved into the database what was in the log when it began; or a sync failed.
    Checkpointed {
        how: rusqlite::Result<()>,
        /// Dropped when the writer has done its part, if readers are kept out until then.
        alone: Option<Sender<()>>,
    },
    /// Chosen events were deleted: answer once their traces are gone from the log, or cannot go because another program
    /// reads it.
    Erase {
        reply: oneshot::Sender<Result<(), Failure>>,
    },
    /// Nothing will follow: finish and end.
    Close,
}

pub(super) struct Append {
    pub batch: Batch,
    pub receipt: Receipt,
    /// What it took of the queue's room, given back once the writer has it in hand.
    pub room: super::queue::Room,
    /// What became of each event, when some had idempotency keys and not all are new.
    pub fates: Option<Arc<[Fate]>>,
}

pub(super) struct Writer {
    pub connection: Connection,
    pub shared: Arc<Shared>,
    pub commands: Receiver<Command>,
    pub commits: Sender<Arc<Commit>>,
    pub sealer: Sender<Arc<Segment>>,
    pub checkpointer: Sender<Company>,
    pub last: Seq,
    pub last_time: Timestamp,
    /// Whether the last event has the largest number in the table.
    pub is_last_largest: bool,
    pub free_space_min_bytes: u64,
    pub witness: Witness,
    pub durability: Durability,
    /// Whether commits are synced at the moment.
    pub syncs: bool,
    /// Whether something may be committed that is not synced yet: true at start, because whoever ran before may
    /// have been killed between the two.
    pub has_unsynced: bool,
    pub work: Work,
}

/// What the writer has taken on and not finished.
#[derive(Default)]
pub(super) struct Work {
    sealing: VecDeque<Sealing>,
    deletions: VecDeque<Deletion>,
    /// Clients that wait to hear whether an event would be stored.
    checks: Vec<oneshot::Sender<Result<(), Failure>>>,
    /// Where the holes of segments are, found and not noted yet.
    holes: VecDeque<(u64, Vec<u16>)>,
    subscriptions: Changes,
    checkpoints: Checkpoints,
    erasure: Erasure,
    /// Clients that wait for the erasure.
    erasing: Vec<oneshot::Sender<Result<(), Failure>>>,
    wakes: Wakes,
    time_text: TimestampText,
    /// For checksums.
    room: Vec<u8>,
    storage_full: bool,
    /// What the last transaction left out; `finish_deletion` reads it.
    left_out: LeftOut,
    /// When an operator was last told why events are refused.
    warned: Option<Instant>,
    /// Whether the clock is behind the last event, which an operator was told.
    clock_is_behind: bool,
}

/// Durable subscriptions that changed and are not stored yet: of each the last state that was taken, nothing if it
/// is gone.
#[derive(Default)]
struct Changes {
    by_name: HashMap<Arc<str>, Option<Kept>>,
    /// When they are to be stored at the latest.
    due: Option<Instant>,
    replies: Vec<oneshot::Sender<Result<(), Failure>>>,
}

impl Changes {
    /// There is something to be taken, at once if somebody waits.
    fn announce(&mut self, reply: Option<oneshot::Sender<Result<(), Failure>>>) {
        let latest = Instant::now() + if reply.is_some() { Duration::ZERO } else { KEEP_INTERVAL };
        self.due = Some(self.due.map_or(latest, |due| due.min(latest)));
        self.replies.extend(reply);
    }

    fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }
}

/// Confirmations that come within this time share a write. Those that a crash loses only bring events again.
const KEEP_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 200 });

/// After a full disk or a locked database has refused confirmations, the next try is so much later.
const KEEP_WHEN_REFUSED: Duration = Duration::from_secs(if cfg!(test) { 3_600 } else { 1 });

/// A full segment on its way into `event_index`, a slice with every commit.
struct Sealing {
    segment: u64,
    rows: std::vec::IntoIter<IndexRow>,
    len: usize,
}

/// A deletion under way: the oldest events go first, a slice with every commit.
struct Deletion {
    what: Doomed,
    deleted: u64,
    reply: oneshot::Sender<Result<u64, Failure>>,
}

enum Doomed {
    Through(Seq),
    /// Chosen events, and how many of them go in one commit: all, unless the disk has less room for the log.
    These {
        chosen: Vec<Seq>,
        at_once: usize,
    },
}

/// Most events and bytes of one transaction: at some 2 µs an event it bounds how long the last
/// acknowledgement of a full queue waits behind the first.
const COMMIT_EVENTS_MAX: usize = if cfg!(test) { 8 } else { 10_000 };
const COMMIT_BYTES_MAX: usize = 16 << 20;

/// Events of one statement. More would have more parameters than SQLite keeps room for beside a connection, and
/// each would cost an allocation: 16 take 16 % fewer instructions than single ones, 64 take 12 % more.
const ROWS_PER_INSERT: usize = 16;

const COLUMNS: usize = 7;
const INSERT_FIRST: &str = "INSERT INTO events (time_us, event_type, source, session_id, user_id, payload, checksum, \
                            seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
/// Where a damaged number is behind the last one. SQLite would go on from that, so each event names its number; should one
/// come to it, the row that is damaged makes room.
const INSERT_NAMED: &str = "INSERT OR REPLACE INTO events (time_us, event_type, source, session_id, user_id, payload, \
                            checksum, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
const INSERT_ONE: &str = "INSERT INTO events (time_us, event_type, source, session_id, user_id, payload, checksum) \
                          VALUES (?, ?, ?, ?, ?, ?, ?)";
static INSERT_MANY: LazyLock<String> =
    LazyLock::new(|| INSERT_ONE.to_owned() + &", (?, ?, ?, ?, ?, ?, ?)".repeat(ROWS_PER_INSERT - 1));

/// Index rows written in a commit that has nothing else to do: some 1 ms of work.
const SEALED_ROWS_WHEN_IDLE: usize = if cfg!(test) { 4 } else { 1_024 };
const SEALED_ROWS_MIN: usize = if cfg!(test) { 1 } else { 256 };

/// Segments whose holes are noted in one commit: 8 KiB each at most.
const HOLES_PER_COMMIT: usize = 8;

/// How long a checkpoint that wants the log for itself waits for readers, where room is short: longer than one of our
/// own takes, and no longer, for meanwhile nothing is stored.
const TRUNCATE_PATIENCE: Duration = Duration::from_millis(100);

/// A clock is set back by a second or two now and then; what is more is worth a warning.
const CLOCK_BEHIND_TOLD: Duration = Duration::from_secs(10);

/// A disk at its limit takes some batches and not others: that is said once in a while, not each time.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(10);

impl Work {
    /// Nothing but what a log that the start has found brings.
    pub fn beside_log(has_log: bool) -> Self {
        Self { erasure: Erasure::after_start(has_log), ..Self::default() }
    }
}

impl Writer {
    /// Runs until `Close` or an error that makes it unsafe to go on. Receipts not resolved by then
    /// resolve themselves as unavailable.
    pub fn run(mut self) -> rusqlite::Result<()> {
        let ended = self.run_to_the_end();
        if ended.is_err() {
            // Closing the last connection would move and sync the log once more, after a disk that failed.
            std::mem::forget(self.connection);
        }
        ended
    }

    fn run_to_the_end(&mut self) -> rusqlite::Result<()> {
        let mut appends = Vec::new();
        while self.turn(&mut appends)? {}
        self.truncate_log(TRUNCATE_PATIENCE)?;
        self.witness.has_ended();
        Ok(())
    }

    /// Takes what waits, or waits for something, and commits it. Returns whether more may come.
    pub fn turn(&mut self, appends: &mut Vec<Append>) -> rusqlite::Result<bool> {
        let closing = self.receive(appends)?;
        self.commit(appends)?;
        if self.work.erasure != Erasure::None {
            self.start_checkpoint_if_due();
        }
        Ok(!closing)
    }

    /// A turn that breaks off after its commit, before anyone knows.
    #[cfg(test)]
    pub fn turn_unheard(&mut self) {
        let mut appends = Vec::new();
        self.receive(&mut appends).expect("the writer can go on");
        // On a full disk nothing was committed, and nobody hears of that either.
        let _ = self.write(&mut appends);
    }

    /// Waits for work and takes what there is, up to a commit's worth. Returns whether it is the end.
    fn receive(&mut self, appends: &mut Vec<Append>) -> rusqlite::Result<bool> {
        let first = if self.has_housekeeping() {
            self.commands.try_recv().ok()
        } else {
            let empties_log = self.work.checkpoints.empties(self.shared.log.pages(), self.work.erasure);
            let received = match self.work.subscriptions.due.or(empties_log) {
                Some(until) => self.commands.recv_deadline(until),
                None => self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Disconnected) => return Ok(true),
                Err(RecvTimeoutError::Timeout) => {
                    if self.work.subscriptions.due.is_none() && self.work.erasure == Erasure::None {
                        // The next event must not wait for a reader that takes its time.
                        self.truncate_log(Duration::ZERO)?;
                    }
                    return Ok(false);
                }
            }
        };
        let (mut events, mut bytes) = (0, 0);
        let mut next = first;
        while let Some(command) = next {
            match command {
                Command::Append(append) => {
                    events += append.batch.len();
                    bytes += append.batch.bytes();
                    appends.push(append);
                    if events >= COMMIT_EVENTS_MAX || bytes >= COMMIT_BYTES_MAX {
                        break;
                    }
                }
                Command::Encoded { segment, rows } => {
                    let len = rows.len();
                    self.work.sealing.push_back(Sealing { segment, rows: rows.into_iter(), len });
                }
                Command::Delete { before, reply } => match self.deletion_end(before) {
                    Ok(last) => {
                        self.work.deletions.push_back(Deletion { what: Doomed::Through(last), deleted: 0, reply });
                    }
                    Err(error) => {
                        let error = Error::from(error);
                        self.shared.note_failed_deletion(&error);
                        tell(reply, Err(error.failure()));
                    }
                },
                Command::DeleteThese { chosen, reply } => {
                    let at_once = chosen.len();
                    self.work.deletions.push_back(Deletion {
                        what: Doomed::These { chosen, at_once },
                        deleted: 0,
                        reply,
                    });
                }
                Command::Check { room, reply } => {
                    drop(room);
                    self.work.checks.push(reply);
                }
                Command::SubscriptionsChanged { reply } => self.work.subscriptions.announce(reply),
                Command::HolesFound { segment, offsets } => self.work.holes.push_back((segment, offsets)),
                Command::Checkpointed { how, alone } => self.finish_checkpoint(how, alone)?,
                Command::Erase { reply } => {
                    self.work.erasing.push(reply);
                    self.work.erasure = Erasure::Awaited;
                }
                Command::Close => {
                    self.work.subscriptions.due = self.work.subscriptions.due.map(|_| Instant::now());
                    return Ok(true);
                }
            }
            next = self.commands.try_recv().ok();
        }
        Ok(false)
    }

    pub fn has_housekeeping(&self) -> bool {
        // On a full disk deleting is what helps; the index can wait.
        !self.work.deletions.is_empty()
            || self.work.subscriptions.is_due()
            || (!self.work.storage_full && (!self.work.sealing.is_empty() || !self.work.holes.is_empty()))
    }

    /// One transaction for all that was taken. Returns an error only when going on is unsafe.
    fn commit(&mut self, appends: &mut Vec<Append>) -> rusqlite::Result<()> {
        let stores = !appends.is_empty() || !self.work.checks.is_empty();
        if !stores && !self.has_housekeeping() {
            return Ok(());
        }
        let bytes = appends.iter().map(|append| append.batch.bytes()).sum();
        if stores && !self.has_free_space(bytes)? {
            self.refuse(appends, Failure::StorageFull);
            if !self.has_housekeeping() {
                return Ok(());
            }
        }
        if !self.work.deletions.is_empty() && self.free_bytes() < self.free_space_min_bytes {
            // Deleting is what helps, and it needs the log's room for its next slice.
            self.truncate_log(TRUNCATE_PATIENCE)?;
        }
        let level = self.sync_as_asked(appends)?;
        match self.write(appends) {
            Ok(written) => {
                self.work.storage_full &= appends.is_empty();
                self.has_unsynced = !self.syncs;
                self.publish(appends, written, level);
                self.start_checkpoint_if_due();
                Ok(())
            }
            Err(error) => {
                // An error at COMMIT may have ended the transaction already.
                let _ = self.connection.execute_batch("ROLLBACK");
                match error.sqlite_error_code() {
                    Some(rusqlite::ErrorCode::DiskFull) => {
                        if self.may_warn() {
                            tracing::warn!(%error, "the disk is full: events are refused until there is space");
                        }
                        let was_full = std::mem::replace(&mut self.work.storage_full, true);
                        let had_events = !appends.is_empty();
                        self.refuse(appends, Failure::StorageFull);
                        if ((had_events || !was_full) && self.has_housekeeping()) || self.halve_deletion() {
                            // A deletion makes room, and may fit without the events and the index rows beside it, or a
                            // part of it.
                            return self.commit(appends);
                        }
                        self.fail(appends, Failure::StorageFull);
                    }
                    // Nothing was written, and the other program may give the lock back.
                    Some(rusqlite::ErrorCode::DatabaseBusy) => {
                        if self.may_warn() {
                            tracing::warn!(%error, "another program writes to the database: events are refused until it ends");
                        }
                        self.fail(appends, Failure::Locked);
                    }
                    _ => {
                        self.refuse(appends, Failure::Unavailable);
                        return Err(error);
                    }
                }
                Ok(())
            }
        }
    }

    /// Has the next commit synced if anybody in it wants that, and returns how safe it will be. A synced commit also
    /// syncs those before it that were not.
    fn sync_as_asked(&mut self, appends: &[Append]) -> rusqlite::Result<AckLevel> {
        let others_want = !self.work.deletions.is_empty() || !self.work.subscriptions.replies.is_empty();
        let wanted = appends.iter().any(|append| append.receipt.level() == AckLevel::Synced)
            || (others_want && self.durability == Durability::Full);
        if !wanted && !appends.is_empty() {
            self.witness.note_unsynced();
        }
        // At `off` nothing is synced, because a synced commit would be no safer than the unsynced ones before it. At the
        // other durabilities every commit is synced, also of confirmations alone or of slices of the index, until the
        // file beside the database says that not all are.
        let syncs = (wanted || !self.witness.may_leave_unsynced()) && self.durability != Durability::Off;
        if syncs != self.syncs && self.durability != Durability::Off {
            self.connection.pragma_update(None, "synchronous", if syncs { "FULL" } else { "NORMAL" })?;
            self.syncs = syncs;
        }
        Ok(if syncs { AckLevel::Synced } else { AckLevel::Stored })
    }

    /// Tells producers that their events are not stored. Deletions and confirmations go on: on a full disk a deletion
    /// makes room.
    fn refuse(&mut self, appends: &mut Vec<Append>, failure: Failure) {
        for Append { receipt, batch, .. } in appends.drain(..) {
            if receipt.level() == AckLevel::Queued {
                self.shared.counts.lost(batch.len());
            }
            receipt.resolve(Err(failure), &mut self.work.wakes);
        }
        self.work.wakes.wake_all();
        for reply in self.work.checks.drain(..) {
            tell(reply, Err(failure));
        }
    }

    /// Has a deletion of chosen events take less of the log at once. Returns whether it can.
    fn halve_deletion(&mut self) -> bool {
        match self.work.deletions.front_mut() {
            Some(Deletion { what: Doomed::These { at_once, .. }, .. }) if *at_once > 1 => {
                *at_once /= 2;
                true
            }
            _ => false,
        }
    }

    /// Tells every client that waits that the transaction was not written. A later one may be.
    fn fail(&mut self, appends: &mut Vec<Append>, failure: Failure) {
        self.refuse(appends, failure);
        for deletion in self.work.deletions.drain(..) {
            tell(deletion.reply, Err(failure));
        }
        // What is not stored now is tried again later, but nobody waits for it.
        for reply in self.work.subscriptions.replies.drain(..) {
            tell(reply, Err(failure));
        }
        self.work.subscriptions.due = self.work.subscriptions.due.map(|_| Instant::now() + KEEP_WHEN_REFUSED);
    }

    /// Whether so many bytes of events can be stored and the watermark stays free. What is in the log
    /// already has yet to be moved into the database, so its room counts as used.
    fn has_free_space(&mut self, bytes: usize) -> rusqlite::Result<bool> {
        if self.free_space_min_bytes == 0 {
            return Ok(true);
        }
        let mut enough = self.fits(bytes, 0);
        if !enough {
            // Rarely gets here, so it may cost something: give back the log's room, and count the pages
            // that deleted events left in the database.
            if !self.work.storage_full {
                self.truncate_log(TRUNCATE_PATIENCE)?;
            }
            let reusable_pages: i64 = self.connection.query_row("PRAGMA freelist_count", [], |r| r.get(0)).unwrap_or(0);
            enough = self.fits(bytes, reusable_pages as u64 * PAGE_BYTES);
        }
        if !enough && self.may_warn() {
            tracing::warn!("almost no disk space left: events are refused until there is more");
        }
        self.work.storage_full = !enough;
        Ok(enough)
    }

    /// Whether it is time to tell an operator again.
    fn may_warn(&mut self) -> bool {
        let may = self.work.warned.is_none_or(|at| at.elapsed() > BETWEEN_WARNINGS);
        if may {
            self.work.warned = Some(Instant::now());
        }
        may
    }

    fn fits(&self, bytes: usize, reusable_bytes: u64) -> bool {
        let free = self.free_bytes();
        // Rows, their index and the pages around them come to less than twice the encoded events. The
        // log takes that from the disk for a while and gives it back, so it may use most of what is kept
        // free; the database takes it for good.
        let needed = 2 * bytes as u64;
        let in_log = self.shared.log.pages_to_move() as u64 * PAGE_BYTES;
        free >= needed + self.free_space_min_bytes / 4
            && free + reusable_bytes >= needed + in_log + self.free_space_min_bytes
    }

    fn free_bytes(&self) -> u64 {
        // A file system that cannot tell keeps nobody from storing.
        rustix::fs::statvfs(&*self.shared.folder).map_or(u64::MAX / 4, |fs| fs.f_bavail * fs.f_frsize)
    }

    /// Writes everything in one transaction and commits it; changes no state that a failure would have to undo.
    ///
    /// Once SQLite has met damage in a transaction, it refuses every further write in it and its commit, also behind a
    /// savepoint. So the transaction is rolled back and begins again without the part that met the damage.
    fn write(&mut self, appends: &mut [Append]) -> rusqlite::Result<Written> {
        self.work.left_out = LeftOut::default();
        loop {
            let before = self.work.left_out;
            match self.try_to_write(appends) {
                Err(error) if is_damage(&error) && self.work.left_out != before => {
                    // An error at COMMIT may have ended the transaction already.
                    let _ = self.connection.execute_batch("ROLLBACK");
                }
                tried => return tried,
            }
        }
    }

    fn try_to_write(&mut self, appends: &mut [Append]) -> rusqlite::Result<Written> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
        let mut written = self.insert_events(appends)?;
        if !self.work.storage_full {
            self.seal_some(&mut written)?;
        }
        self.delete_some(&mut written)?;
        self.note_holes(&mut written)?;
        self.keep_subscriptions(&mut written)?;
        if self.syncs && self.has_unsynced && written.events == 0 {
            // Repeats alone write nothing, and SQLite does not sync a commit that wrote nothing. They would be told that
            // their events are synced while these are not, so something is written.
            meta::set(&self.connection, meta::LAST_SEQ, written.last.0 as i64)?;
        }
        self.connection.prepare_cached("COMMIT")?.raw_execute()?;
        for Append { batch, fates, .. } in appends {
            if let Some(fates) = fates {
                batch.retain(|index| matches!(fates[index], Fate::Stored(_)));
            }
        }
        Ok(written)
    }

    /// Notes damage. After damage that only a checksum told of, the transaction goes on.
    ///
    /// # Errors
    /// The damage, if SQLite itself met it: then it refuses even the statement below, which changes nothing.
    fn go_on_after(&self, damage: rusqlite::Error) -> rusqlite::Result<()> {
        self.shared.note_damage(&damage);
        self.connection.execute_batch("DELETE FROM meta WHERE false").map_err(|_| damage)
    }

    /// Inserts and counts the events that are new.
    fn insert_events(&mut self, appends: &mut [Append]) -> rusqlite::Result<Written> {
        let mut written = Written { last: self.last, last_time: self.last_time, ..Written::default() };
        // All events of a commit are from one moment, a microsecond apart so that times increase.
        let now = Timestamp::now();
        if !appends.is_empty() {
            self.watch_clock(now);
        }
        written.next_time = Timestamp(now.0.max(self.last_time.0 + 1));
        for appends in appends.chunk_by_mut(|one, other| !has_keys(one) && !has_keys(other)) {
            match appends {
                [append] if has_keys(append) => self.insert_keyed(append, &mut written)?,
                appends => {
                    let len = appends.iter().map(|append| append.batch.len()).sum();
                    let events = appends.iter_mut().map(|append| (0..append.batch.len(), &mut append.batch));
                    self.insert_run(events, len, &mut written)?;
                }
            }
        }
        const COUNT: &str = "INSERT INTO event_stats (event_type, count, last_seen) VALUES (?1, ?2, ?3) ON CONFLICT \
                             (event_type) DO UPDATE SET count = count + excluded.count, last_seen = excluded.last_seen";
        let mut count = self.connection.prepare_cached(COUNT)?;
        for (event_type, events, last_seen) in &written.by_type {
            count.execute((Text(Some(event_type)), *events as i64, last_seen.to_string()))?;
        }
        written.events = (written.last.0 - self.last.0) as usize;
        Ok(written)
    }

    /// Tells an operator, once, that events get other times than the clock's, and that they do so no longer.
    fn watch_clock(&mut self, now: Timestamp) {
        let behind = self.last_time.0 - now.0;
        let was_behind = self.work.clock_is_behind;
        if !was_behind && behind > CLOCK_BEHIND_TOLD.as_micros() as i64 {
            self.work.clock_is_behind = true;
            let (seconds, last) = (behind / 1_000_000, self.last_time);
            tracing::warn!(
                seconds, %last,
                "the clock is behind the last event: until it has come past that, times go on a microsecond an event"
            );
        } else if was_behind && behind <= 0 {
            self.work.clock_is_behind = false;
            tracing::info!("the clock has come past the last event: events have its time again");
        }
    }

    /// Inserts those events of a batch with idempotency keys that are new, message by message. Which these are is noted
    /// beside the batch: the batch itself stays as it is until the commit.
    fn insert_keyed(&mut self, append: &mut Append, written: &mut Written) -> rusqlite::Result<()> {
        let batch = &mut append.batch;
        let mut fates = Vec::with_capacity(batch.len());
        for (message, keys) in keys::messages(batch) {
            match self.work.left_out.keys && !keys.is_empty() {
                true => fates.extend(message.map(|_| Fate::Damaged)),
                false => self.insert_message(batch, message, &keys, &mut fates, written)?,
            }
        }
        let are_all_new = fates.iter().all(|fate| matches!(fate, Fate::Stored(_)));
        append.fates = (!are_all_new).then(|| fates.into());
        Ok(())
    }

    /// Inserts those events of a message that are new, with its keys, and adds the fate of each to those of the messages
    /// before it.
    fn insert_message(
        &mut self,
        batch: &mut Batch,
        message: Range<usize>,
        keys: &[Keyed],
        fates: &mut Vec<Fate>,
        written: &mut Written,
    ) -> rusqlite::Result<()> {
        let accepted = match keys::judge(self.shared.record(&self.connection), batch, &message, keys) {
            Ok(Verdict::Accepted(accepted)) => accepted,
            Ok(Verdict::Refused(place)) => {
                fates.extend(message.map(|_| Fate::Refused(place)));
                return Ok(());
            }
            // Whether it is a repeat cannot be told, and what is damaged must not end the server.
            Err(error) if is_damage(&error) => {
                fates.extend(message.map(|_| Fate::Damaged));
                return self.go_on_after(error).inspect_err(|_| self.work.left_out.keys = true);
            }
            Err(error) => return Err(error),
        };
        let mut index = message.start;
        for alike in accepted.chunk_by(|one, other| (*one == Known::New) == (*other == Known::New)) {
            let events = index..index + alike.len();
            index = events.end;
            if alike[0] == Known::New {
                fates.extend((0..events.len()).map(|n| Fate::Stored(written.last.next().plus(n))));
                self.insert_run([(events.clone(), &mut *batch)].into_iter(), events.len(), written)?;
            } else {
                for before in alike {
                    let seq = match *before {
                        Known::Stored(seq) => seq,
                        Known::Like(place) => match fates[place] {
                            Fate::Stored(seq) | Fate::Replayed(seq) => seq,
                            Fate::Refused(_) | Fate::Damaged => {
                                unreachable!("a message is refused as a whole")
                            }
                        },
                        Known::New => unreachable!("chunks are of one kind"),
                    };
                    fates.push(Fate::Replayed(seq));
                }
            }
        }
        keys::keep(&self.connection, batch, keys, fates).inspect_err(|error| {
            if is_damage(error) {
                self.shared.note_damage(error);
                self.work.left_out.keys = true;
            }
        })
    }

    /// Inserts `len` events in runs of `ROWS_PER_INSERT`. Only the first names its number: the others get the next
    /// ones from SQLite, which then appends without searching the table for each.
    fn insert_run<'b>(
        &mut self,
        events: impl Iterator<Item = (Range<usize>, &'b mut Batch)>,
        len: usize,
        written: &mut Written,
    ) -> rusqlite::Result<()> {
        let after_first = len.saturating_sub(1);
        let in_many = if self.is_last_largest { after_first / ROWS_PER_INSERT * ROWS_PER_INSERT } else { 0 };
        // Finding a statement costs a small commit as much as running it: only those that are needed.
        let prepare = |sql, is_needed: bool| is_needed.then(|| self.connection.prepare_cached(sql)).transpose();
        let mut first =
            self.connection.prepare_cached(if self.is_last_largest { INSERT_FIRST } else { INSERT_NAMED })?;
        let mut many = prepare(&INSERT_MANY, in_many > 0)?;
        let mut one = prepare(INSERT_ONE, self.is_last_largest && in_many < after_first)?;
        let mut inserted = 0_usize;
        for (events, batch) in events {
            for index in events {
                let time = written.next_time;
                written.last = written.last.next();
                batch.stamp(index, written.last, &self.work.time_text.render(time));
                let columns = batch.columns(index);
                let checksum = checksum::of_event(&mut self.work.room, written.last, time, &columns, None);
                match (inserted.checked_sub(1).filter(|_| self.is_last_largest), &mut many, &mut one) {
                    (None, ..) => {
                        first.raw_bind_parameter(COLUMNS + 1, written.last.0 as i64)?;
                        bind(&mut first, 0, time, &columns, checksum)?;
                        first.raw_execute()?;
                    }
                    (Some(nth), Some(many), _) if nth < in_many => {
                        let row = nth % ROWS_PER_INSERT;
                        bind(many, row, time, &columns, checksum)?;
                        if row + 1 == ROWS_PER_INSERT {
                            many.raw_execute()?;
                        }
                    }
                    (_, _, one) => {
                        let one = one.as_mut().expect("prepared for what is left");
                        bind(one, 0, time, &columns, checksum)?;
                        one.raw_execute()?;
                    }
                }
                inserted += 1;
                written.count(columns.event_type, time);
                written.last_time = time;
                written.next_time.0 += 1;
            }
        }
        let numbered_as_stamped = inserted == 0 || self.connection.last_insert_rowid() as u64 == written.last.0;
        assert!(numbered_as_stamped, "SQLite numbers events as they are stamped");
        Ok(())
    }

    /// Stores a slice of the oldest full segment's rows: enough to be done before the next segment is
    /// full, and no more, so that no commit waits long for it.
    fn seal_some(&mut self, written: &mut Written) -> rusqlite::Result<()> {
        if self.work.sealing.is_empty() {
            return Ok(());
        }
        let oldest = self.oldest()?;
        let sealing = &self.work.sealing[0];
        let pace = sealing.len * written.events / (SEGMENT_EVENTS as usize / 2);
        let rows = if written.events == 0 { SEALED_ROWS_WHEN_IDLE } else { pace.max(SEALED_ROWS_MIN) };
        const INSERT: &str =
            "INSERT INTO event_index (segment, kind, key, offsets, checksum) VALUES (?1, ?2, ?3, ?4, ?5)";
        let mut insert = self.connection.prepare_cached(INSERT)?;
        let slice = &sealing.rows.as_slice()[..rows.min(sealing.rows.len())];
        let holes = match self.work.left_out.holes {
            true => Ok(None),
            false => Holes::of(&self.connection, sealing.segment),
        };
        let holes = match holes {
            // Which events were chosen and deleted is not known then: lists are kept that only such events are in.
            Err(error) if is_damage(&error) => {
                self.go_on_after(error).inspect_err(|_| self.work.left_out.holes = true)?;
                None
            }
            holes => holes?,
        };
        // Looking into every list costs, and mostly nothing is gone.
        let is_some_gone = holes.is_some() || oldest > segments::first_of(sealing.segment);
        let holes = holes.unwrap_or_default();
        for row in slice {
            if is_some_gone && holes.leave_none_of(&row.offsets, sealing.segment, oldest) {
                continue;
            }
            insert.raw_bind_parameter(1, sealing.segment as i64)?;
            insert.raw_bind_parameter(2, row.field as i64)?;
            insert.raw_bind_parameter(3, Text(Some(&row.key)))?;
            insert.raw_bind_parameter(4, &row.offsets)?;
            insert.raw_bind_parameter(5, row.checksum)?;
            insert.raw_execute()?;
        }
        written.sealed_rows = slice.len();
        if slice.len() == sealing.rows.len() {
            meta::set(&self.connection, meta::SEALED_BEFORE, sealing.segment as i64 + 1)?;
        }
        Ok(())
    }

    /// A number that no event is before: mostly that of the oldest.
    fn oldest(&mut self) -> rusqlite::Result<Seq> {
        if self.work.left_out.oldest {
            return Ok(Seq(1));
        }
        match read::first_row(&self.connection) {
            Err(error) if is_damage(&error) => {
                self.work.left_out.oldest = true;
                self.shared.note_damage(&error);
                Err(error)
            }
            oldest => oldest,
        }
    }

    /// Stores what became of durable subscriptions, once it is time.
    fn keep_subscriptions(&mut self, written: &mut Written) -> rusqlite::Result<()> {
        written.kept = self.work.subscriptions.is_due();
        if !written.kept {
            return Ok(());
        }
        let changed = std::mem::take(&mut *self.shared.changed_subscriptions.lock());
        self.work.subscriptions.by_name.extend(changed);
        for (name, state) in &self.work.subscriptions.by_name {
            match state {
                Some(kept) => kept.store(&self.connection)?,
                None => {
                    self.connection.prepare_cached("DELETE FROM subscriptions WHERE name = ?1")?.execute([&**name])?;
                }
            }
        }
        Ok(())
    }

    /// Deletes a slice of what is to be deleted, and keeps the statistics true to what remains.
    fn delete_some(&mut self, written: &mut Written) -> rusqlite::Result<()> {
        if self.work.deletions.is_empty() || self.work.left_out.deletion {
            return Ok(());
        }
        let oldest = self.oldest()?;
        let deleted = match &self.work.deletions[0].what {
            Doomed::Through(last) => deletion::oldest(&self.connection, &self.shared, oldest, *last),
            Doomed::These { chosen, at_once } => {
                // Pages that become free are overwritten, too, which costs a write for each.
                self.connection.pragma_update(None, "secure_delete", "ON")?;
                let deleted = deletion::chosen(&self.connection, &self.shared, oldest, &chosen[..*at_once]);
                self.connection.pragma_update(None, "secure_delete", schema::SECURE_DELETE)?;
                deleted.map(|events| Deleted { events, is_done: *at_once == chosen.len() })
            }
        };
        let Deleted { events, is_done } = match deleted {
            // The events of the same commit do not depend on it.
            Err(error) if is_damage(&error) => {
                self.shared.note_damage(&error);
                self.work.left_out.deletion = true;
                return Err(error);
            }
            deleted => deleted?,
        };
        (written.deleted, written.deletion_done) = (events, is_done);
        if events > 0 || is_done {
            // A damaged event may be counted under another type: that goes with the last event of all. Whether any is left
            // the end of the table tells, for its beginning may be damaged.
            const EMPTY: &str = "DELETE FROM event_stats WHERE count <= 0 OR (SELECT max(seq) FROM events) IS NULL";
            self.connection.prepare_cached(EMPTY)?.execute([])?;
        }
        if events > 0 {
            // Which numbers and times are used up was told by the rows that are gone, so it is noted.
            meta::set(&self.connection, meta::LAST_SEQ, written.last.0 as i64)?;
            meta::set(&self.connection, meta::LAST_TIME_US, written.last_time.0)?;
        }
        Ok(())
    }

    /// Notes where the holes of some segments are.
    fn note_holes(&mut self, written: &mut Written) -> rusqlite::Result<()> {
        written.noted_holes = self.work.holes.len().min(HOLES_PER_COMMIT);
        if self.work.left_out.holes {
            return Ok(());
        }
        for (segment, offsets) in self.work.holes.iter().take(written.noted_holes) {
            match holes::found(&self.connection, *segment, offsets.clone()) {
                // The row also has the number of holes, which is lost. Offsets without it are of no use, so they are
                // dropped.
                Err(error) if is_damage(&error) => {
                    self.go_on_after(error).inspect_err(|_| self.work.left_out.holes = true)?;
                }
                noted => noted?,
            }
        }
        Ok(())
    }

    /// Lets the world know of what is now on disk, in this order: queries see it, producers hear of it,
    /// subscribers get it.
    fn publish(&mut self, appends: &mut Vec<Append>, written: Written, level: AckLevel) {
        let before = self.last;
        (self.last, self.last_time) = (written.last, written.last_time);
        if self.last > before {
            self.witness.has_come_to(self.last);
        }
        self.note_in_segments(appends, before);
        self.shared.committed.store(self.last.0, Ordering::SeqCst);

        let mut first = before.next();
        let has_audience = self.shared.audience.is_present();
        let mut batches = Vec::with_capacity(if has_audience { appends.len() } else { 0 });
        for Append { batch, receipt, room, fates } in appends.drain(..) {
            drop(room);
            if receipt.level() == AckLevel::Queued {
                let is_lost = |fate: &&Fate| matches!(fate, Fate::Damaged);
                self.shared.counts.lost(fates.iter().flat_map(|fates| fates.iter().filter(is_lost)).count());
            }
            let outcomes = match fates {
                None => Outcome::From(first, level),
                Some(fates) => Outcome::Each(fates, level),
            };
            let batch = Arc::new(batch.committed(first));
            first = first.plus(batch.len());
            if receipt.level() != AckLevel::Queued {
                self.shared.counts.acknowledged(level, batch.len());
            }
            receipt.resolve(Ok(Stored { batch: batch.clone(), outcomes }), &mut self.work.wakes);
            if has_audience && !batch.is_empty() {
                batches.push(batch);
            }
        }
        self.work.wakes.wake_all();
        for reply in self.work.checks.drain(..) {
            tell(reply, Ok(()));
        }
        if !batches.is_empty() {
            // The fan-out never waits for a subscriber, so this waits only while it is busy; it is gone
            // only when the process is ending.
            let _ = self.commits.send(Arc::new(Commit { batches, through: self.last }));
        }
        self.finish_sealing(written.sealed_rows);
        self.finish_deletion(&written);
        self.work.holes.drain(..written.noted_holes);
        if written.kept {
            let changes = std::mem::take(&mut self.work.subscriptions);
            for reply in changes.replies {
                tell(reply, Ok(()));
            }
        }
    }

    fn note_in_segments(&self, appends: &[Append], before: Seq) {
        let mut seq = before;
        let mut recent = self.shared.recent.write();
        for Append { batch, .. } in appends {
            for index in 0..batch.len() {
                seq = seq.next();
                if let Some(full) = recent.note(seq, &batch.columns(index)) {
                    self.sealer.send(full).expect("the sealer lives as long as the writer");
                }
            }
        }
    }

    fn finish_sealing(&mut self, rows: usize) {
        let Some(sealing) = self.work.sealing.front_mut() else { return };
        sealing.rows.by_ref().take(rows).for_each(drop);
        if sealing.rows.len() == 0 {
            let segment = sealing.segment;
            self.work.sealing.pop_front();
            self.shared.recent.write().full.retain(|full| full.number() != segment);
        }
    }

    fn finish_deletion(&mut self, written: &Written) {
        if self.work.left_out.deletion {
            let deletion = self.work.deletions.pop_front().expect("it was under way");
            tell(deletion.reply, Err(Failure::Damaged));
            return;
        }
        let Some(deletion) = self.work.deletions.front_mut() else { return };
        deletion.deleted += written.deleted;
        if let Doomed::These { chosen, at_once } = &mut deletion.what {
            chosen.drain(..*at_once);
            *at_once = (*at_once).min(chosen.len());
        }
        if written.deletion_done {
            let deletion = self.work.deletions.pop_front().expect("just looked at");
            // It may have freed enough: the next event truncates the log and looks at the free space again.
            self.work.storage_full = false;
            if matches!(deletion.what, Doomed::These { .. }) && self.work.erasure == Erasure::None {
                self.work.erasure = Erasure::later();
            }
            tracing::info!(events = deletion.deleted, "deleted events");
            tell(deletion.reply, Ok(deletion.deleted));
        }
    }

    /// The last event to delete.
    fn deletion_end(&self, before: Option<Timestamp>) -> rusqlite::Result<Seq> {
        let Some(before) = before else { return Ok(self.last) };
        let record = self.shared.record(&self.connection);
        match record.retained(self.last)? {
            Some(kept) => Ok(record.first_later(&kept, Timestamp(before.0 - 1))?.prev()),
            None => Ok(Seq::ZERO),
        }
    }

    fn start_checkpoint_if_due(&mut self) {
        if let Some(company) = self.work.checkpoints.begin(self.shared.log.pages(), self.work.erasure) {
            self.checkpointer.send(company).expect("the checkpointer lives as long as the writer");
        }
    }

    /// The checkpointer has done the bulk; the few pages written meanwhile are moved here, between two
    /// commits, because only a log that is moved entirely can start over. Without this step it would
    /// grow for as long as events keep coming.
    fn finish_checkpoint(&mut self, how: rusqlite::Result<()>, alone: Option<Sender<()>>) -> rusqlite::Result<()> {
        self.work.checkpoints.end();
        how?;
        if alone.is_none() || self.work.erasure == Erasure::None {
            return self.checkpoint("PASSIVE").map(drop);
        }
        // Only another program can be reading now, perhaps for long.
        self.truncate_log(Duration::ZERO)?;
        if self.work.erasure != Erasure::None {
            self.work.erasure = Erasure::later();
            self.tell_erased();
        }
        Ok(())
    }

    fn tell_erased(&mut self) {
        for reply in self.work.erasing.drain(..) {
            tell(reply, Ok(()));
        }
    }

    /// Truncates the log, which gives its room back to the disk and erases what is in it. If a reader still needs it
    /// after `patience`, the next idle moment tries again, or the next erasure.
    fn truncate_log(&mut self, patience: Duration) -> rusqlite::Result<()> {
        self.witness.may_lose_log();
        self.connection.busy_timeout(patience)?;
        let truncated = self.checkpoint("TRUNCATE");
        if let Ok(true) = truncated {
            self.work.erasure = Erasure::None;
            self.tell_erased();
        }
        truncated.and(self.connection.busy_timeout(schema::BUSY_TIMEOUT))
    }

    /// Returns whether the log is empty now, and an error only when going on is unsafe.
    fn checkpoint(&mut self, mode: &str) -> rusqlite::Result<bool> {
        let Some(log) = checkpoint(&self.connection, mode)? else { return Ok(false) };
        self.shared.log.note(log);
        self.work.checkpoints.watch(log);
        Ok(log.is_empty())
    }
}

fn has_keys(append: &Append) -> bool {
    !append.batch.keyed().is_empty()
}

/// Parts of a transaction that met damage, so that it had to begin again without them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct LeftOut {
    /// All messages with keys: their producers are told of the damage.
    keys: bool,
    /// The deletion under way: its client is told of the damage.
    deletion: bool,
    /// Where the holes of segments are. The next start finds them again.
    holes: bool,
    /// Which event is the oldest: none counts as gone then.
    oldest: bool,
}

/// What one transaction did.
#[derive(Default)]
struct Written {
    last: Seq,
    last_time: Timestamp,
    next_time: Timestamp,
    events: usize,
    /// Types of the new events, with their number and last time. A handful: searched, not hashed.
    by_type: Vec<(Box<[u8]>, u64, Timestamp)>,
    sealed_rows: usize,
    deleted: u64,
    deletion_done: bool,
    /// Segments of `Work::holes` that are done with: noted, or dropped because damage is in the way.
    noted_holes: usize,
    kept: bool,
}

impl Written {
    #[inline]
    fn count(&mut self, event_type: &[u8], time: Timestamp) {
        match self.by_type.iter_mut().find(|(of, ..)| **of == *event_type) {
            Some((_, events, last_seen)) => {
                *events += 1;
                *last_seen = time;
            }
            None => self.by_type.push((event_type.into(), 1, time)),
        }
    }
}

/// Binds the parameters of row number `row` of a statement.
#[inline]
fn bind(
    insert: &mut Statement<'_>,
    row: usize,
    time: Timestamp,
    columns: &Columns<'_>,
    checksum: i32,
) -> rusqlite::Result<()> {
    let before = row * COLUMNS;
    insert.raw_bind_parameter(before + 1, time.0)?;
    insert.raw_bind_parameter(before + 2, Text(Some(columns.event_type)))?;
    insert.raw_bind_parameter(before + 3, Text(Some(columns.source)))?;
    insert.raw_bind_parameter(before + 4, Text(columns.session_id))?;
    insert.raw_bind_parameter(before + 5, Text(columns.user_id))?;
    insert.raw_bind_parameter(before + 6, Text(Some(columns.payload)))?;
    insert.raw_bind_parameter(before + 7, checksum)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::config::Config;
    use crate::event::{Event, Filter};
    use crate::store::{Order, Parts, Query, Store};

    fn open(folder: &tempfile::TempDir) -> (Store, Parts, Config) {
        let config = Config::of_test(folder.path().join("events.db"));
        let (store, parts) = Store::open_parts(&config).expect("open");
        (store, parts, config)
    }

    fn hand_in(
        store: &Store,
        config: &Config,
        events: usize,
        payload: &str,
    ) -> oneshot::Receiver<Result<Stored, Failure>> {
        hand_in_messages(store, config, &vec![None; events], payload)
    }

    /// Hands in messages of one event each, some with a key, as they come out of one read of a socket.
    fn hand_in_messages(
        store: &Store,
        config: &Config,
        keys: &[Option<&str>],
        payload: &str,
    ) -> oneshot::Receiver<Result<Stored, Failure>> {
        let event_type = config.event_types.get("timer_tick").expect("built in");
        let (source, session_id, user_id) = ("s", None, None);
        let mut batch = Batch::default();
        for (nth, idempotency_key) in keys.iter().copied().enumerate() {
            let event = Event { event_type, source, session_id, user_id, payload, idempotency_key };
            batch.push(&event, &config.event_types);
            batch.end_message(nth);
        }
        let (receipt, answer) = Receipt::new();
        store.try_append(batch, receipt).expect("room");
        answer
    }

    #[test]
    fn a_full_disk_refuses_events_and_not_the_deletion_beside_them() {
        const EVENTS: u64 = 100;
        let large = format!(r#"{{"x":"{}"}}"#, "x".repeat(60_000));
        let fills: [fn(&mut Parts); 2] =
            [|parts| parts.limit_disk(Some(0)), |parts| parts.writer.free_space_min_bytes = 1 << 60];
        for fill in fills {
            let folder = tempfile::tempdir().expect("a folder");
            let (store, mut parts, config) = open(&folder);
            drop(hand_in(&store, &config, EVENTS as usize, "{}"));
            while parts.write() {}
            fill(&mut parts);

            let mut deleting = pin!(store.delete(None, Filter::default()));
            let mut checking = pin!(store.check());
            let mut context = Context::from_waker(Waker::noop());
            let mut turns = 0;
            let deleted = loop {
                let deleted = deleting.as_mut().poll(&mut context);
                if let Poll::Ready(deleted) = deleted {
                    break deleted;
                }
                // A producer that is at it again with every commit of the deletion.
                let mut refused = hand_in(&store, &config, 1, &large);
                if turns == 0 {
                    assert!(checking.as_mut().poll(&mut context).is_pending());
                }
                assert!(parts.write(), "the deletion does not get on");
                assert!(matches!(refused.try_recv(), Ok(Err(Failure::StorageFull))));
                turns += 1;
            };
            assert_eq!(deleted, Ok(EVENTS));
            assert!(turns > 2, "a deletion of one commit shows nothing");
            assert_eq!(checking.as_mut().poll(&mut context), Poll::Ready(Err(Failure::StorageFull)));
        }
    }

    #[test]
    fn damaged_holes_are_named_and_do_not_end_the_writer() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts, config) = open(&folder);
        drop(hand_in(&store, &config, SEGMENT_EVENTS as usize, "{}"));
        while parts.write() {}
        let mut context = Context::from_waker(Waker::noop());
        let mut delete = |parts: &mut Parts, seq| {
            let mut deleting = pin!(store.delete_these(vec![Seq(seq)]));
            assert!(deleting.as_mut().poll(&mut context).is_pending());
            while parts.write() {}
            deleting.poll(&mut context)
        };
        assert_eq!(delete(&mut parts, 7), Poll::Ready(Ok(1)));
        let file = schema::open_writer(&config.database_path).expect("whole");
        assert_eq!(file.execute("UPDATE holes SET checksum = checksum + 1", []), Ok(1));

        // The first of the next segment has the lists of this one stored.
        drop(hand_in(&store, &config, 1, "{}"));
        while parts.write() | parts.seal() {}
        assert_eq!(store.integrity().damage, ["holes: those of segment 0 are damaged"]);
        let lists: i64 = file.query_row("SELECT count(*) FROM event_index", [], |row| row.get(0)).expect("read");
        assert_eq!(lists, 2, "of a type and a source");
        parts.writer.work.holes.push_back((0, vec![6]));
        assert_eq!(delete(&mut parts, 8), Poll::Ready(Err(Failure::Damaged)));
        assert_eq!(parts.writer.work.holes.len(), 0);
        let mut stored = hand_in(&store, &config, 1, "{}");
        while parts.write() {}
        assert!(matches!(stored.try_recv(), Ok(Ok(_))));
    }

    /// What became of the events of a batch.
    fn fates(mut answer: oneshot::Receiver<Result<Stored, Failure>>, events: usize) -> Vec<Fate> {
        match answer.try_recv().expect("an answer").expect("a commit").outcomes {
            Outcome::From(first, _) => (0..events).map(|n| Fate::Stored(first.plus(n))).collect(),
            Outcome::Each(fates, _) => fates.to_vec(),
            Outcome::Queued => unreachable!("asked for more than that"),
        }
    }

    /// Fills the page of a file with zeros, as a disk may return one.
    fn damage_page(path: &std::path::Path, whole: &[u8], page: u32) {
        let (mut bytes, end) = (whole.to_vec(), page as usize * PAGE_BYTES as usize);
        bytes[end - PAGE_BYTES as usize..end].fill(0);
        std::fs::write(path, bytes).expect("written");
    }

    /// A file with events that have keys, and the pages of the two trees of the keys.
    fn with_keys(folder: &tempfile::TempDir, keys: &[String]) -> (Vec<u8>, Vec<u32>) {
        let (store, mut parts, config) = open(folder);
        for key in keys {
            drop(hand_in_messages(&store, &config, &[Some(key.as_str())], "{}"));
            while parts.write() {}
        }
        store.close();
        drop(parts.finish());
        let file = schema::open_reader(&config.database_path).expect("whole");
        let sql = "SELECT pageno FROM dbstat WHERE name IN ('idempotency_keys', 'sqlite_autoindex_idempotency_keys_1')";
        let mut pages = file.prepare(sql).expect("a table");
        let pages = pages.query_map([], |row| row.get(0)).expect("read").collect::<rusqlite::Result<Vec<_>>>();
        (std::fs::read(&config.database_path).expect("a file"), pages.expect("read"))
    }

    #[test]
    fn damage_that_a_key_meets_as_it_is_stored_costs_only_messages_with_keys() {
        const KEYS: usize = 100;
        // Long enough for some ten leaves of the index.
        let key = |name: &str| format!("{name}{}", "k".repeat(200));
        let folder = tempfile::tempdir().expect("a folder");
        let (whole, pages) = with_keys(&folder, &(0..KEYS).map(|n| key(&format!("{n:02}"))).collect::<Vec<_>>());
        let path = folder.path().join("events.db");
        let (mut damaged, mut stored) = (0, 0);
        for page in pages {
            damage_page(&path, &whole, page);
            let mut last = Seq(KEYS as u64);
            for life in ["a", "b"] {
                let (store, mut parts, config) = open(&folder);
                assert_eq!(store.committed(), last, "page {page}");
                // Each falls between others in the index.
                let keys = ["10", "50", "90"].map(|after| key(&format!("{after}{life}")));
                let messages = [Some(keys[0].as_str()), None, Some(keys[1].as_str()), Some(keys[2].as_str())];
                let first = hand_in(&store, &config, 1, "{}");
                let second = hand_in_messages(&store, &config, &messages, "{}");
                let third = hand_in(&store, &config, 1, "{}");
                assert!(parts.write());
                let told = [fates(first, 1), fates(second, 4), fates(third, 1)].concat();
                let are_damaged = told.contains(&Fate::Damaged);
                let places = match are_damaged {
                    true => [Some(1), None, Some(2), None, None, Some(3)],
                    false => [1, 2, 3, 4, 5, 6].map(Some),
                };
                let expected = places.map(|place| place.map_or(Fate::Damaged, |place| Fate::Stored(last.plus(place))));
                assert_eq!(told, expected, "page {page}");
                assert_eq!(are_damaged, !store.integrity().damage.is_empty(), "page {page}: {:?}", store.integrity());
                last = last.plus(if are_damaged { 3 } else { 6 });
                // Alone each tells what it meets. What was refused left nothing behind, and what was stored is known.
                for (key, before) in keys.iter().zip([1, 3, 4].map(|place| told[place])) {
                    let alone = hand_in_messages(&store, &config, &[Some(key.as_str())], "{}");
                    assert!(parts.write());
                    match (before, fates(alone, 1)[0]) {
                        (Fate::Stored(before), fate) => assert_eq!(fate, Fate::Replayed(before), "page {page}"),
                        (_, Fate::Damaged) => damaged += 1,
                        (_, fate) => {
                            last = last.next();
                            stored += 1;
                            assert_eq!(fate, Fate::Stored(last), "page {page}");
                        }
                    }
                }
                let file = schema::open_reader(&path).expect("readable");
                let found = file.query_row("SELECT count(*), max(seq) FROM events", [], |row| {
                    Ok([row.get::<_, i64>(0)?, row.get::<_, i64>(1)?].map(|n| Seq(n as u64)))
                });
                assert_eq!(found, Ok([last, last]), "page {page}");
                drop(file);
                store.close();
                drop(parts.finish());
            }
        }
        assert!(damaged > 0 && stored > 0, "{damaged} damaged, {stored} stored");
    }

    #[test]
    fn a_deletion_that_meets_a_damaged_page_is_refused_and_nothing_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let (whole, pages) = with_keys(&folder, &["a".to_owned(), "b".to_owned()]);
        for page in pages {
            damage_page(&folder.path().join("events.db"), &whole, page);
            let (store, mut parts, config) = open(&folder);
            let mut context = Context::from_waker(Waker::noop());
            for life in 0..2 {
                let mut all = pin!(store.delete(None, Filter::default()));
                let mut one = pin!(store.delete_these(vec![Seq(1)]));
                assert!(all.as_mut().poll(&mut context).is_pending() && one.as_mut().poll(&mut context).is_pending());
                let stored = hand_in(&store, &config, 1, "{}");
                while parts.write() {}
                assert_eq!(all.poll(&mut context), Poll::Ready(Err(Failure::Damaged)), "page {page}");
                assert_eq!(one.poll(&mut context), Poll::Ready(Err(Failure::Damaged)), "page {page}");
                assert_eq!(fates(stored, 1), [Fate::Stored(Seq(3 + life))], "page {page}");
            }
        }
    }

    #[test]
    fn a_wiped_page_of_the_oldest_events_costs_only_who_comes_to_it() {
        const EVENTS: usize = SEGMENT_EVENTS as usize;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events.db");
        // Some nine on a page.
        let payload = format!(r#"{{"x":"{}"}}"#, "x".repeat(400));
        let (store, mut parts, config) = open(&folder);
        drop(hand_in(&store, &config, EVENTS + 1, &payload));
        while parts.write() | parts.seal() {}
        store.close();
        drop(parts.finish());
        const OLDEST: &str = "SELECT pageno FROM dbstat WHERE name = 'events' AND pagetype = 'leaf' ORDER BY path";
        let page = schema::open_reader(&path).and_then(|file| file.query_row(OLDEST, [], |row| row.get(0)));
        damage_page(&path, &std::fs::read(&path).expect("a file"), page.expect("a page"));

        let mut context = Context::from_waker(Waker::noop());
        for life in 1..=2 {
            let (store, mut parts, config) = open(&folder);
            let before = store.committed();
            assert_eq!(store.reader().extent().map(|extent| extent.newest), Ok(before));
            let hour = store.reader().stats(Timestamp::now()).expect("counted").events_last_hour;
            assert!((1..=before.0).contains(&hour), "{hour} of {before:?}");
            // A full segment has its lists stored, and a deletion looks into them.
            let mut stored = hand_in(&store, &config, EVENTS, &payload);
            while parts.write() | parts.seal() {}
            assert!(matches!(stored.try_recv(), Ok(Ok(_))));
            let last = store.committed();
            assert_eq!(last, before.plus(EVENTS));
            let lists = |file: Connection| file.query_row("SELECT count(*) FROM event_index", [], |row| row.get(0));
            // All are of one type and one source; the last segment stays open.
            assert_eq!(schema::open_reader(&path).and_then(lists), Ok(2 + 2 * life));
            let mut one = pin!(store.delete_these(vec![last]));
            let mut all = pin!(store.delete(Some(Timestamp::now()), Filter::default()));
            assert!(one.as_mut().poll(&mut context).is_pending() && all.as_mut().poll(&mut context).is_pending());
            while parts.write() {}
            assert_eq!(one.poll(&mut context), Poll::Ready(Ok(1)));
            assert_eq!(all.poll(&mut context), Poll::Ready(Err(Failure::Damaged)), "it comes to the page");
            let mut newest = None;
            let query = Query { order: Order::NewestFirst, ..Query::default() };
            let read = store.reader().scan(&query, |event| {
                newest = Some(event.seq);
                std::ops::ControlFlow::Break(())
            });
            assert_eq!((read, newest), (Ok(Some(last.prev())), Some(last.prev())));
            assert_eq!(store.integrity().damage[0], "events: database disk image is malformed");
            store.close();
            drop(parts.finish());
        }
    }
}
