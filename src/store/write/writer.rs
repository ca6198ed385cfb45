//! The one thread that writes. It takes the commands that wait, applies them in one transaction, commits, and only then
//! answers clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::Connection;

use super::apply::{Applied, Applier};
use super::arrivals::Arrivals;
use super::command::{Append, Command};
use super::durability::Syncing;
use super::housekeeping::{Housekeeping, LeftOut, Turn};
use super::order::{Deleted, Deletion, Ordered};
use super::position::Position;
use super::space::Space;
use super::wal_upkeep::{TRUNCATE_PATIENCE, WalUpkeep};
use super::work::Work;
use crate::event::{Seq, Timestamp};
use crate::record::{AckLevel, Failure, Outcome, Outcomes};
use crate::store::damage::{is_damage, is_disk_full};
use crate::store::error::Error;
use crate::store::receipt::{Stored, answer};
use crate::store::schema::PAGE_BYTES;
use crate::store::segments::Segment;
use crate::store::shared::Shared;
use crate::store::syncs::SyncOf;
use crate::sync::atomic::Ordering;
use crate::wire::committed::Commit;

pub struct Writer {
    pub connection: Connection,
    pub shared: Arc<Shared>,
    pub commands: Receiver<Command>,
    pub commits: Sender<Arc<Commit>>,
    pub sealer: Sender<Arc<Segment>>,
    pub position: Position,
    pub space: Space,
    pub syncing: Syncing,
    pub wal: WalUpkeep,
    pub arrivals: Arrivals,
    pub applier: Applier,
    pub work: Work,
}

/// A transaction takes no further batch once it has this many events. At about 2 µs for each event, 10,000 bound how
/// long an acknowledgement waits for the other events of its commit.
const COMMIT_EVENTS_MAX: usize = if cfg!(test) { 8 } else { 10_000 };
/// A transaction takes no further batch once it has this many bytes of batches. 16 MiB keeps the write-ahead log at
/// about 60 MiB when many large bodies arrive at one time.
const COMMIT_BYTES_MAX: usize = 16 << 20;

/// What one transaction did.
struct Written {
    applied: Applied,
    level: AckLevel,
    left_out: LeftOut,
}

impl Writer {
    /// Runs until `Close`, or until an error makes it unsafe to go on. Receipts that are not resolved then resolve as
    /// unavailable when they are dropped.
    pub fn run(mut self) -> rusqlite::Result<()> {
        let ended = self.run_to_the_end();
        if ended.is_err() {
            // Closing the last connection would move and sync the write-ahead log once more, after the disk has failed.
            std::mem::forget(self.connection);
        }
        ended
    }

    fn run_to_the_end(&mut self) -> rusqlite::Result<()> {
        let mut ordered = Ordered::default();
        while self.turn(&mut ordered)? {}
        self.truncate_wal(TRUNCATE_PATIENCE)?;
        self.syncing.sidecar.note_ended();
        Ok(())
    }

    /// Receives commands, waiting for one if there is nothing to do, and commits them. Returns whether more may come.
    /// `ordered` is empty before and after the call; its memory is used again.
    pub fn turn(&mut self, ordered: &mut Ordered) -> rusqlite::Result<bool> {
        let is_closing = self.receive(ordered)?;
        let last = self.shared.queue.taken(ordered.appends.iter().map(|append| append.received));
        self.commit(ordered)?;
        self.shared.queue.answered(last, || self.commands.is_empty());
        if self.wal.has_traces() {
            self.wal.start_if_due(&self.shared);
        }
        Ok(!is_closing)
    }

    /// Waits for commands and takes what there is, up to one commit: appends in the order of the queue, and one deletion
    /// behind them. Returns whether `Close` came.
    fn receive(&mut self, ordered: &mut Ordered) -> rusqlite::Result<bool> {
        let first = if self.has_housekeeping() {
            self.commands.try_recv().ok()
        } else {
            // While changes of subscriptions wait, the write-ahead log is not tidied.
            let until = self.work.subscriptions.due.or(self.wal.tidies(&self.shared, self.space.is_full));
            let until = until.into_iter().chain(self.work.tidying.put_off_until()).min();
            match self.arrivals.next(&self.commands, until) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Disconnected) => return Ok(true),
                Err(RecvTimeoutError::Timeout) => {
                    if self.work.subscriptions.due.is_none() && !self.wal.has_traces() {
                        let parts = (&self.connection, &*self.shared, &mut self.syncing.sidecar);
                        self.wal.tidy(self.space.is_full, parts)?;
                    }
                    None
                }
            }
        };
        let (mut events, mut bytes, mut is_closing) = (0, 0, false);
        let mut next = first;
        while let Some(command) = next {
            match command {
                Command::Append(append) => {
                    events += append.batch.len();
                    bytes += append.batch.bytes();
                    ordered.appends.push(append);
                    if events >= COMMIT_EVENTS_MAX || bytes >= COMMIT_BYTES_MAX {
                        break;
                    }
                }
                // No append behind a deletion in the queue is in its transaction.
                Command::DeleteOldest { before, reply } => match self.end_of_deletion(before) {
                    Ok(through) => {
                        ordered.deletion = Some(Deletion { what: Deleted::Through(through), reply });
                        break;
                    }
                    Err(error) => {
                        let error = Error::from(error);
                        self.shared.note_failed_deletion(&error);
                        answer(reply, Err(error.failure()));
                    }
                },
                Command::DeleteChosen { chosen, reply } => {
                    ordered.deletion = Some(Deletion { what: Deleted::Chosen(chosen), reply });
                    break;
                }
                Command::Probe { reservation, reply } => {
                    drop(reservation);
                    self.work.probes.push(reply);
                }
                Command::SubscriptionsChanged { reply } => self.work.subscriptions.announce(reply),
                Command::Encoded { segment, rows } => self.work.sealing.push(segment, rows),
                Command::HolesFound { segment, offsets } => self.work.hole_notes.found.push_back((segment, offsets)),
                Command::Checkpointed { result, gate } => {
                    let parts = (&self.connection, &*self.shared, &mut self.syncing.sidecar);
                    self.wal.finish(result, gate.is_some(), parts)?;
                }
                Command::Erase { reply } => self.wal.erase(reply),
                Command::Searched { synced, found } => {
                    synced?;
                    self.wal.searched(found);
                }
                Command::Close => {
                    self.work.subscriptions.make_due();
                    is_closing = true;
                    break;
                }
            }
            next = self.commands.try_recv().ok();
        }
        self.arrivals.note(ordered.appends.len());
        self.work.subscriptions.order(&self.shared, ordered);
        self.work.clock.stamp(ordered, self.position.time);
        Ok(is_closing)
    }

    /// The last event of those that a deletion of the oldest deletes: at most the last one that is stored, so events
    /// before it in the queue may stay. It is searched for before the transaction begins: inside it, a damaged page would
    /// end the transaction.
    fn end_of_deletion(&self, before: Option<Timestamp>) -> rusqlite::Result<Seq> {
        let Position { seq: last, deleted_through, .. } = self.position;
        let Some(before) = before else { return Ok(last) };
        let record = self.shared.record_at(&self.connection, deleted_through);
        match record.retained(last)? {
            Some(retained) => Ok(record.first_later(&retained, Timestamp(before.0 - 1))?.prev()),
            None => Ok(deleted_through),
        }
    }

    /// Whether something is to be done although no command waits.
    pub fn has_housekeeping(&self) -> bool {
        // On a full disk only the removal of rows goes on.
        let index = self.work.sealing.is_due() || self.work.hole_notes.is_due() || self.work.rolling_up.is_due();
        self.work.tidying.is_due() || self.work.subscriptions.is_due() || (!self.space.is_full && index)
    }

    /// Commits the ordered commands in one transaction, with housekeeping. Returns an error only if going on is unsafe.
    fn commit(&mut self, ordered: &mut Ordered) -> rusqlite::Result<()> {
        self.work.tidying.pause(self.wal.is_sweeping());
        let stores = !ordered.appends.is_empty() || !self.work.probes.is_empty();
        if stores && !self.has_free_space(ordered.bytes())? {
            self.refuse_events(ordered, Failure::StorageFull);
        }
        loop {
            if ordered.is_empty() && self.work.probes.is_empty() && !self.has_housekeeping() {
                return Ok(());
            }
            if (ordered.deletion.is_some() || self.work.tidying.is_due()) && self.space.is_low() {
                // A deletion frees space in the end and needs some first, so it is taken from the write-ahead log.
                self.truncate_wal(TRUNCATE_PATIENCE)?;
                if self.space.is_low() && self.shared.wal.pages() > 0 {
                    // The write-ahead log could not be emptied, because another program reads. Each slice would make it
                    // longer.
                    self.work.tidying.put_off();
                }
            }
            let error = match self.write(ordered) {
                Ok(written) => {
                    if !ordered.appends.is_empty() {
                        self.space.is_full = false;
                    }
                    self.publish(ordered, written);
                    self.wal.start_if_due(&self.shared);
                    return Ok(());
                }
                Err(error) => error,
            };
            self.roll_back();
            match error.sqlite_error_code() {
                _ if is_disk_full(&error) => {
                    if self.space.may_warn() {
                        tracing::warn!(%error, "the disk is full: events are refused until there is space");
                    }
                    if !self.leave_out_for_space(ordered) {
                        self.refuse(ordered, Failure::StorageFull);
                        return Ok(());
                    }
                }
                // Nothing was written, and the other program may give the lock back.
                Some(rusqlite::ErrorCode::DatabaseBusy) => {
                    if self.space.may_warn() {
                        tracing::warn!(%error, "another program writes to the database: events are refused until it ends");
                    }
                    self.work.tidying.put_off();
                    self.refuse(ordered, Failure::Locked);
                    return Ok(());
                }
                _ => {
                    self.refuse_events(ordered, Failure::Unavailable);
                    return Err(error);
                }
            }
        }
    }

    /// Makes a transaction smaller that did not fit on the disk. First it leaves out events, probes, posting lists and notes
    /// of holes, because a deletion frees space. Then it puts off the removal of rows if commands wait, else it removes
    /// fewer of them. Returns whether to try again.
    fn leave_out_for_space(&mut self, ordered: &mut Ordered) -> bool {
        let was_full = std::mem::replace(&mut self.space.is_full, true);
        let had_events = !ordered.appends.is_empty() || !self.work.probes.is_empty();
        self.refuse_events(ordered, Failure::StorageFull);
        if had_events || !was_full {
            return true;
        }
        match self.work.tidying.is_due() {
            false => false,
            // Commands do not wait for smaller slices.
            true if !ordered.is_empty() => {
                self.work.tidying.put_off();
                true
            }
            true => self.work.tidying.shrink(),
        }
    }

    /// Refuses the events, and answers probes that none would be stored. Deletions and confirmations go on.
    fn refuse_events(&mut self, ordered: &mut Ordered, failure: Failure) {
        for Append { receipt, batch, .. } in ordered.appends.drain(..) {
            if receipt.level() == AckLevel::Queued {
                self.shared.counts.lost(batch.len());
            }
            receipt.resolve(Err(failure), &mut self.work.wakes);
        }
        self.work.wakes.wake_all();
        self.work.probes.drain(..).for_each(|reply| answer(reply, Err(failure)));
    }

    /// Refuses every command of the transaction, because it was not written. A later one may be.
    fn refuse(&mut self, ordered: &mut Ordered, failure: Failure) {
        self.refuse_events(ordered, failure);
        if let Some(deletion) = ordered.deletion.take() {
            answer(deletion.reply, Err(failure));
        }
        ordered.subscriptions = false;
        self.work.subscriptions.refuse(failure);
    }

    /// Whether this many bytes of events can be stored and enough of the disk stays free.
    fn has_free_space(&mut self, bytes: usize) -> rusqlite::Result<bool> {
        if self.space.free_bytes_min == 0 {
            return Ok(true);
        }
        let mut enough = self.space.fits(bytes, 0, &self.shared.wal);
        if !enough {
            // This is rare, so it may take a while: the write-ahead log gives its space back to the disk, and the free
            // pages that deleted events left in the database are counted.
            if !self.space.is_full {
                self.truncate_wal(TRUNCATE_PATIENCE)?;
            }
            let reusable_pages: i64 = self.connection.query_row("PRAGMA freelist_count", [], |r| r.get(0)).unwrap_or(0);
            enough = self.space.fits(bytes, reusable_pages as u64 * PAGE_BYTES, &self.shared.wal);
        }
        if !enough && self.space.may_warn() {
            tracing::warn!("almost no disk space left: events are refused until there is more");
        }
        self.space.is_full = !enough;
        Ok(enough)
    }

    /// Writes everything in one transaction and commits it. A failed attempt leaves nothing that the next one does not
    /// overwrite: the position changes only in [`Writer::publish`]. If SQLite meets damage, the transaction begins again without the part that met it ([`LeftOut`]).
    fn write(&mut self, ordered: &mut Ordered) -> rusqlite::Result<Written> {
        let others_wait = ordered.deletion.is_some() || self.work.subscriptions.is_awaited();
        let levels = ordered.appends.iter().map(|append| append.receipt.level());
        let level = self.syncing.prepare(&self.connection, levels, others_wait)?;
        let mut left_out = LeftOut::default();
        loop {
            let before = left_out;
            match self.try_to_write(ordered, &mut left_out) {
                Err(error) if is_damage(&error) && left_out != before => self.roll_back(),
                tried => return tried.map(|applied| Written { applied, level, left_out }),
            }
        }
    }

    fn roll_back(&self) {
        // An error at COMMIT may have ended the transaction already.
        let _ = self.connection.execute_batch("ROLLBACK");
    }

    fn try_to_write(&mut self, ordered: &mut Ordered, left_out: &mut LeftOut) -> rusqlite::Result<Applied> {
        let (connection, shared, begun) = (&self.connection, &*self.shared, Instant::now());
        connection.prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
        let changed = &self.work.subscriptions.changed;
        let applied = self.applier.apply(connection, shared, self.position, ordered, changed, left_out)?;
        let (position, events) = (applied.position, applied.events);
        let is_disk_full = self.space.is_full;
        let mut turn = Turn { connection, shared, position, events, is_disk_full, left_out };
        for part in self.work.housekeeping() {
            part.in_transaction(&mut turn)?;
        }
        if applied.events == 0 {
            self.syncing.in_transaction(connection)?;
        }
        let applied_at = Instant::now();
        connection.prepare_cached("COMMIT")?.raw_execute()?;
        let ended = Instant::now();
        shared.timings.commit.note(ended - begun);
        if self.syncing.syncs() {
            let is_beside = self.wal.is_checkpoint_running();
            shared.syncs.note(if is_beside { SyncOf::LogBesideCheckpoint } else { SyncOf::Log }, ended - applied_at);
        }
        for Append { batch, outcomes, .. } in &mut ordered.appends {
            if let Some(outcomes) = outcomes {
                batch.retain(|index| matches!(outcomes[index], Outcome::Stored(_)));
            }
        }
        Ok(applied)
    }

    /// Makes a commit known, in this order: readers see its events, producers are answered, the fan-out gets the events,
    /// the other clients are answered.
    fn publish(&mut self, ordered: &mut Ordered, Written { applied, level, left_out }: Written) {
        let before = std::mem::replace(&mut self.position, applied.position);
        self.syncing.after_commit(&before, &self.position);
        self.note_in_segments(&ordered.appends, before.seq);
        self.shared.committed.store(self.position.seq.0, Ordering::SeqCst);

        self.acknowledge(&mut ordered.appends, before.seq.next(), level);
        self.work.probes.drain(..).for_each(|reply| answer(reply, Ok(())));
        if let Some(deletion) = ordered.deletion.take() {
            self.finish_deletion(deletion, applied.deleted);
        }
        if std::mem::take(&mut ordered.subscriptions) {
            self.work.subscriptions.after_commit();
        }
        self.finish_housekeeping(left_out);
    }

    /// Resolves the receipts of a commit whose first new event has the number `first`, and hands the commit to the
    /// fan-out.
    fn acknowledge(&mut self, appends: &mut Vec<Append>, mut first: Seq, level: AckLevel) {
        let (has_audience, now) = (self.shared.audience.is_present(), Instant::now());
        self.shared.counts.acknowledged(level, appends.iter().map(Append::awaited).sum());
        let mut batches = Vec::with_capacity(if has_audience { appends.len() } else { 0 });
        for Append { batch, receipt, reservation, received, outcomes, .. } in appends.drain(..) {
            drop(reservation);
            if receipt.level() == AckLevel::Queued {
                let is_lost = |outcome: &&Outcome| matches!(outcome, Outcome::Damaged);
                self.shared.counts.lost(outcomes.iter().flat_map(|each| each.iter().filter(is_lost)).count());
            }
            let outcomes = match outcomes {
                None => Outcomes::From(first, level),
                Some(each) => Outcomes::Each(each, level),
            };
            let batch = Arc::new(batch.committed(first));
            first = first.plus(batch.len());
            if receipt.level() != AckLevel::Queued {
                self.shared.timings.acknowledgement.note(now - received);
            }
            receipt.resolve(Ok(Stored { batch: batch.clone(), outcomes }), &mut self.work.wakes);
            if has_audience && !batch.is_empty() {
                batches.push(batch);
            }
        }
        self.work.wakes.wake_all();
        if !batches.is_empty() {
            // The fan-out never waits for a subscriber, so this waits only while the fan-out is busy. It has ended only
            // if the process is ending.
            let _ = self.commits.send(Arc::new(Commit { batches, through: self.position.seq }));
        }
    }

    /// Adds the new events to the posting lists in memory, and has full segments sealed.
    fn note_in_segments(&self, appends: &[Append], before: Seq) {
        let mut first = before.next();
        let mut recent = self.shared.recent.write();
        let seal = |full| self.sealer.send(full).expect("the sealer lives as long as the writer");
        for Append { batch, .. } in appends {
            recent.note_batch(first, batch, seal);
            first = first.plus(batch.len());
        }
    }

    /// Answers a deletion. `deleted` is `None` if it was left out because of damage.
    fn finish_deletion(&mut self, deletion: Deletion, deleted: Option<u64>) {
        let Some(events) = deleted else { return answer(deletion.reply, Err(Failure::Damaged)) };
        match deletion.what {
            Deleted::Through(_) => self.work.tidying.begin(),
            Deleted::Chosen(_) => {
                self.wal.leave_traces();
                // It may have freed enough space: the next event truncates the write-ahead log and looks again.
                self.space.is_full = false;
            }
        }
        tracing::info!(events, "deleted events");
        answer(deletion.reply, Ok(events));
    }

    fn finish_housekeeping(&mut self, left_out: LeftOut) {
        let was_tidying = self.work.tidying.is_under_way();
        for part in self.work.housekeeping() {
            part.after_commit(&self.shared);
        }
        if was_tidying && !self.work.tidying.is_under_way() {
            // The removed rows may have freed enough space.
            self.space.is_full = false;
            if left_out.tidying {
                tracing::error!("damage keeps the rows of deleted events in the file");
            }
        }
    }

    fn truncate_wal(&mut self, patience: Duration) -> rusqlite::Result<()> {
        self.wal.truncate(patience, (&self.connection, &self.shared, &mut self.syncing.sidecar)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use tokio::sync::oneshot;

    use super::super::command::Reply;
    use super::super::subscriptions::{Changed, Changes};
    use super::*;
    use crate::event::{Event, EventTypes, Filter};
    use crate::store::fixture::{close, open, path, tick, wipe_page};
    use crate::store::schema;
    use crate::store::segments::SEGMENT_EVENTS;
    use crate::store::{Order, Parts, Query, Receipt, Store, StoredSubscription};
    use crate::wire::Batch;

    /// For the simulation.
    impl Writer {
        /// A turn that breaks off after its commit, before any client is answered.
        pub fn turn_unanswered(&mut self) {
            let mut ordered = Ordered::default();
            self.receive(&mut ordered).expect("the writer can go on");
            // On a full disk nothing is committed, and no client is answered either.
            let _ = self.write(&mut ordered);
        }

        /// Commits commands that were put in order elsewhere. With `is_unanswered` it breaks off before any client is
        /// answered.
        pub fn apply_ordered(
            &mut self,
            ordered: &mut Ordered,
            changed: Option<(Changed, Reply<()>)>,
            is_unanswered: bool,
        ) {
            if let Some((changed, reply)) = changed {
                self.work.subscriptions = Changes::default();
                self.work.subscriptions.changed = changed;
                self.work.subscriptions.announce(Some(reply));
                ordered.subscriptions = true;
            }
            match is_unanswered {
                true => drop(self.write(ordered).expect("the writer can go on")),
                false => self.commit(ordered).expect("the writer can go on"),
            }
        }
    }

    fn hand_in(store: &Store, events: usize, payload: &str) -> oneshot::Receiver<Result<Stored, Failure>> {
        hand_in_messages(store, &vec![None; events], payload)
    }

    /// Hands in messages of one event each, some with a key, as they come out of one read of a socket.
    fn hand_in_messages(
        store: &Store,
        keys: &[Option<&str>],
        payload: &str,
    ) -> oneshot::Receiver<Result<Stored, Failure>> {
        let (mut batch, types) = (Batch::default(), EventTypes::builtin());
        for (nth, idempotency_key) in keys.iter().copied().enumerate() {
            batch.push(&Event { payload, idempotency_key, ..tick() }, &types);
            batch.end_message(nth);
        }
        let (receipt, answer) = Receipt::synced();
        store.try_append(batch, receipt).expect("space in the queue");
        answer
    }

    #[test]
    fn deleting_works_while_the_disk_is_full_and_events_are_refused() {
        const EVENTS: u64 = 100;
        let large = format!(r#"{{"x":"{}"}}"#, "x".repeat(60_000));
        let fills: [fn(&mut Parts); 2] = [|parts| parts.limit_disk(Some(0)), |parts| parts.keep_free(1 << 60)];
        for (fill, fits_then) in fills.into_iter().zip([true, false]) {
            let folder = tempfile::tempdir().expect("a folder");
            let (store, mut parts) = open(&folder);
            drop(hand_in(&store, EVENTS as usize, &large));
            while parts.write() {}
            fill(&mut parts);

            let mut context = Context::from_waker(Waker::noop());
            let mut probing = pin!(store.probe());
            assert!(probing.as_mut().poll(&mut context).is_pending());
            let mut refused = hand_in(&store, 1, &large);
            let mut deleting = pin!(store.delete(None, Filter::default()));
            assert!(deleting.as_mut().poll(&mut context).is_pending());
            assert!(parts.write());
            assert!(matches!(refused.try_recv(), Ok(Err(Failure::StorageFull))));
            assert_eq!(probing.poll(&mut context), Poll::Ready(Err(Failure::StorageFull)));
            assert_eq!(deleting.poll(&mut context), Poll::Ready(Ok(EVENTS)));
            assert_eq!(store.reader().count(&Query::default()), Ok(0));

            let rows = || -> i64 {
                let count = |file: Connection| file.query_row("SELECT count(*) FROM events", [], |row| row.get(0));
                schema::open_reader(&path(&folder)).and_then(count).expect("read")
            };
            assert_eq!(rows(), EVENTS as i64);
            let mut slices = 0;
            while parts.write() {
                slices += 1;
            }
            assert_eq!(rows(), 0);
            assert!(slices > 2, "more than one slice is needed");
            let mut then = hand_in(&store, 1, &large);
            assert!(parts.write());
            assert_eq!(matches!(then.try_recv(), Ok(Ok(_))), fits_then);
        }
    }

    #[test]
    fn posting_lists_wait_until_an_event_fits_on_a_full_disk_and_confirmations_do_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = open(&folder);
        // The first of the next segment has the lists of this one stored.
        drop(hand_in(&store, SEGMENT_EVENTS as usize + 1, "{}"));
        while parts.write() {}
        parts.keep_free(1 << 60);
        let mut refused = hand_in(&store, 1, "{}");
        while parts.write() | parts.seal() {}
        assert!(matches!(refused.try_recv(), Ok(Err(Failure::StorageFull))));

        let lists = || -> i64 {
            let count = |file: Connection| file.query_row("SELECT count(*) FROM event_index", [], |row| row.get(0));
            schema::open_reader(&path(&folder)).and_then(count).expect("read")
        };
        let (name, filters, last_seen) = ("board".into(), "{}".into(), Timestamp(0).to_string());
        let mut confirmed = pin!(store.save(StoredSubscription { name, filters, position: Seq(1), last_seen }));
        let mut context = Context::from_waker(Waker::noop());
        assert!(confirmed.as_mut().poll(&mut context).is_pending());
        while parts.write() {}
        assert_eq!(confirmed.poll(&mut context), Poll::Ready(Ok(())));
        assert_eq!(lists(), 0);

        parts.keep_free(0);
        drop(hand_in(&store, 1, "{}"));
        while parts.write() {}
        assert_eq!(lists(), 2, "of a type and a source");
    }

    #[test]
    fn damaged_holes_are_reported_and_do_not_end_the_writer() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = open(&folder);
        drop(hand_in(&store, SEGMENT_EVENTS as usize, "{}"));
        while parts.write() {}
        let mut context = Context::from_waker(Waker::noop());
        let mut delete = |parts: &mut Parts, seq| {
            let mut deleting = pin!(store.delete_chosen(vec![Seq(seq)]));
            assert!(deleting.as_mut().poll(&mut context).is_pending());
            while parts.write() {}
            deleting.poll(&mut context)
        };
        assert_eq!(delete(&mut parts, 7), Poll::Ready(Ok(1)));
        let file = schema::open_writer(&path(&folder)).expect("undamaged");
        assert_eq!(file.execute("UPDATE holes SET checksum = checksum + 1", []), Ok(1));

        // The first of the next segment has the lists of this one stored.
        drop(hand_in(&store, 1, "{}"));
        while parts.write() | parts.seal() {}
        assert_eq!(store.integrity().damage, ["holes: those of segment 0 are damaged"]);
        let lists: i64 = file.query_row("SELECT count(*) FROM event_index", [], |row| row.get(0)).expect("read");
        assert_eq!(lists, 2, "of a type and a source");
        parts.writer.work.hole_notes.found.push_back((0, vec![6]));
        assert_eq!(delete(&mut parts, 8), Poll::Ready(Err(Failure::Damaged)));
        assert_eq!(parts.writer.work.hole_notes.found.len(), 0);
        let mut stored = hand_in(&store, 1, "{}");
        while parts.write() {}
        assert!(matches!(stored.try_recv(), Ok(Ok(_))));
    }

    /// What became of the events of a batch.
    fn outcomes(mut answer: oneshot::Receiver<Result<Stored, Failure>>, events: usize) -> Vec<Outcome> {
        match answer.try_recv().expect("an answer").expect("a commit").outcomes {
            Outcomes::From(first, _) => (0..events).map(|n| Outcome::Stored(first.plus(n))).collect(),
            Outcomes::Each(outcomes, _) => outcomes.to_vec(),
            Outcomes::Queued => unreachable!("each asks for at least *stored*"),
        }
    }

    /// Writes a file with one page wiped.
    fn damage_page(path: &std::path::Path, whole: &[u8], page: u32) {
        let mut bytes = whole.to_vec();
        wipe_page(&mut bytes, page);
        std::fs::write(path, bytes).expect("written");
    }

    /// A file with events that have keys, and the pages of the two trees of the keys.
    fn with_keys(folder: &tempfile::TempDir, keys: &[String]) -> (Vec<u8>, Vec<u32>) {
        let (store, mut parts) = open(folder);
        for key in keys {
            drop(hand_in_messages(&store, &[Some(key.as_str())], "{}"));
            while parts.write() {}
        }
        close(&store, parts);
        let file = schema::open_reader(&path(folder)).expect("undamaged");
        let sql = "SELECT pageno FROM dbstat WHERE name IN ('idempotency_keys', 'sqlite_autoindex_idempotency_keys_1')";
        let mut pages = file.prepare(sql).expect("a table");
        let pages = pages.query_map([], |row| row.get(0)).expect("read").collect::<rusqlite::Result<Vec<_>>>();
        (std::fs::read(path(folder)).expect("a file"), pages.expect("read"))
    }

    #[test]
    fn damage_in_the_table_of_keys_refuses_only_messages_with_keys() {
        const KEYS: usize = 100;
        // Long enough for some ten leaves of the index.
        let key = |name: &str| format!("{name}{}", "k".repeat(200));
        let folder = tempfile::tempdir().expect("a folder");
        let (whole, pages) = with_keys(&folder, &(0..KEYS).map(|n| key(&format!("{n:02}"))).collect::<Vec<_>>());
        let path = path(&folder);
        let (mut damaged, mut stored) = (0, 0);
        for page in pages {
            damage_page(&path, &whole, page);
            let mut last = Seq(KEYS as u64);
            for life in ["a", "b"] {
                let (store, mut parts) = open(&folder);
                assert_eq!(store.committed(), last, "page {page}");
                // Each is between two others in the index.
                let keys = ["10", "50", "90"].map(|after| key(&format!("{after}{life}")));
                let messages = [Some(keys[0].as_str()), None, Some(keys[1].as_str()), Some(keys[2].as_str())];
                let first = hand_in(&store, 1, "{}");
                let second = hand_in_messages(&store, &messages, "{}");
                let third = hand_in(&store, 1, "{}");
                assert!(parts.write());
                let found = [outcomes(first, 1), outcomes(second, 4), outcomes(third, 1)].concat();
                let are_damaged = found.contains(&Outcome::Damaged);
                let nth_stored = match are_damaged {
                    true => [Some(1), None, Some(2), None, None, Some(3)],
                    false => [1, 2, 3, 4, 5, 6].map(Some),
                };
                let expected =
                    nth_stored.map(|nth| nth.map_or(Outcome::Damaged, |nth| Outcome::Stored(last.plus(nth))));
                assert_eq!(found, expected, "page {page}");
                assert_eq!(are_damaged, !store.integrity().damage.is_empty(), "page {page}: {:?}", store.integrity());
                last = last.plus(if are_damaged { 3 } else { 6 });
                // Each key is sent again, alone. A refused message left no key behind; a stored one is replayed.
                for (key, before) in keys.iter().zip([1, 3, 4].map(|index| found[index])) {
                    let alone = hand_in_messages(&store, &[Some(key.as_str())], "{}");
                    assert!(parts.write());
                    match (before, outcomes(alone, 1)[0]) {
                        (Outcome::Stored(before), outcome) => {
                            assert_eq!(outcome, Outcome::Replayed(before), "page {page}")
                        }
                        (_, Outcome::Damaged) => damaged += 1,
                        (_, outcome) => {
                            last = last.next();
                            stored += 1;
                            assert_eq!(outcome, Outcome::Stored(last), "page {page}");
                        }
                    }
                }
                let file = schema::open_reader(&path).expect("readable");
                let found = file.query_row("SELECT count(*), max(seq) FROM events", [], |row| {
                    Ok([row.get::<_, i64>(0)?, row.get::<_, i64>(1)?].map(|n| Seq(n as u64)))
                });
                assert_eq!(found, Ok([last, last]), "page {page}");
                drop(file);
                close(&store, parts);
            }
        }
        assert!(damaged > 0 && stored > 0, "{damaged} damaged, {stored} stored");
    }

    #[test]
    fn a_deletion_that_meets_a_damaged_page_is_refused_and_events_of_its_commit_are_stored() {
        let folder = tempfile::tempdir().expect("a folder");
        let (whole, pages) = with_keys(&folder, &["a".to_owned(), "b".to_owned()]);
        let mut all_refused = 0;
        for page in pages {
            damage_page(&path(&folder), &whole, page);
            let mut left = 2;
            for life in 0..2 {
                let (store, mut parts) = open(&folder);
                let mut context = Context::from_waker(Waker::noop());
                let mut one = pin!(store.delete_chosen(vec![Seq(2)]));
                let mut all = pin!(store.delete(None, Filter::default()));
                assert!(one.as_mut().poll(&mut context).is_pending() && all.as_mut().poll(&mut context).is_pending());
                let stored = hand_in(&store, 1, "{}");
                while parts.write() {}
                let is_there = left > 1 || life == 0;
                let expected = if is_there { Err(Failure::Damaged) } else { Ok(0) };
                assert_eq!(one.poll(&mut context), Poll::Ready(expected), "page {page}");
                match all.poll(&mut context) {
                    // The index of the keys is needed only to remove a key.
                    Poll::Ready(Ok(deleted)) => assert_eq!(deleted, std::mem::replace(&mut left, 0), "page {page}"),
                    refused => {
                        assert_eq!(refused, Poll::Ready(Err(Failure::Damaged)), "page {page}");
                        all_refused += 1;
                    }
                }
                left += 1;
                assert_eq!(outcomes(stored, 1), [Outcome::Stored(Seq(3 + life))], "page {page}");
                assert!(!store.integrity().damage.is_empty());
                close(&store, parts);
            }
        }
        assert_eq!(all_refused, 3, "where the key of the last event cannot be looked up, or not be removed");
    }

    #[test]
    fn a_wiped_page_of_the_oldest_events_fails_only_reads_that_need_it() {
        const EVENTS: usize = SEGMENT_EVENTS as usize;
        let folder = tempfile::tempdir().expect("a folder");
        let path = path(&folder);
        // Some nine on a page.
        let payload = format!(r#"{{"x":"{}"}}"#, "x".repeat(400));
        let (store, mut parts) = open(&folder);
        drop(hand_in(&store, EVENTS + 1, &payload));
        while parts.write() | parts.seal() {}
        close(&store, parts);
        const OLDEST: &str = "SELECT pageno FROM dbstat WHERE name = 'events' AND pagetype = 'leaf' ORDER BY path";
        let page = schema::open_reader(&path).and_then(|file| file.query_row(OLDEST, [], |row| row.get(0)));
        damage_page(&path, &std::fs::read(&path).expect("a file"), page.expect("a page"));

        let mut context = Context::from_waker(Waker::noop());
        for life in 1..=2 {
            let (store, mut parts) = open(&folder);
            let before = store.committed();
            assert_eq!(store.reader().extent().map(|extent| extent.newest), Ok(before));
            let hour = store.reader().stats(Timestamp::now()).expect("counted").events_last_hour;
            assert!((1..=before.0).contains(&hour), "{hour} of {before:?}");
            // A full segment has its lists stored, and a deletion looks into them.
            let mut stored = hand_in(&store, EVENTS, &payload);
            while parts.write() | parts.seal() {}
            assert!(matches!(stored.try_recv(), Ok(Ok(_))));
            let last = store.committed();
            assert_eq!(last, before.plus(EVENTS));
            let lists = |file: Connection| file.query_row("SELECT count(*) FROM event_index", [], |row| row.get(0));
            // All are of one type and one source; the last segment stays open.
            assert_eq!(schema::open_reader(&path).and_then(lists), Ok(2 + 2 * life));
            let mut second_segment = None;
            let query = Query { after: Seq(EVENTS as u64), ..Query::default() };
            let read = store.reader().scan(&query, |event| {
                second_segment = Some(event.time);
                std::ops::ControlFlow::Break(())
            });
            assert_eq!(read, Ok(Some(Seq(EVENTS as u64 + 1))));
            let mut one = pin!(store.delete_chosen(vec![last]));
            let mut first_segment = pin!(store.delete(second_segment, Filter::default()));
            assert!(one.as_mut().poll(&mut context).is_pending());
            assert!(first_segment.as_mut().poll(&mut context).is_pending());
            while parts.write() {}
            assert_eq!(one.poll(&mut context), Poll::Ready(Ok(1)));
            let expected = if life == 1 { EVENTS as u64 } else { 0 };
            assert_eq!(
                first_segment.poll(&mut context),
                Poll::Ready(Ok(expected)),
                "counted by the posting lists, without the page"
            );
            assert_eq!(store.reader().extent().map(|extent| extent.oldest), Ok(Seq(EVENTS as u64 + 1)));
            let whole = store.reader().scan(&Query::default(), |_| std::ops::ControlFlow::Continue(()));
            assert_eq!(whole, Ok(None), "no read needs the page any more");
            let mut newest = None;
            let query = Query { order: Order::NewestFirst, ..Query::default() };
            let read = store.reader().scan(&query, |event| {
                newest = Some(event.seq);
                std::ops::ControlFlow::Break(())
            });
            assert_eq!((read, newest), (Ok(Some(last.prev())), Some(last.prev())));
            assert_eq!(store.integrity().damage[0], "events: database disk image is malformed");
            close(&store, parts);
        }
    }
}
