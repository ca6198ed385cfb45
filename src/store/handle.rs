//! The handle through which everything outside uses the store.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use super::error::Result;
use super::files::free_bytes;
use super::integrity::Integrity;
use super::queue::Reservation;
use super::reader::Reader;
use super::reading::Reading;
use super::receipt::Receipt;
use super::shared::{Counts, Shared, Timings};
use super::subscription::StoredSubscription;
use super::syncs::Syncs;
use super::write::{Append, Command, Wal};
use crate::audience::Audience;
use crate::event::{EventId, Filter, Seq, Timestamp};
use crate::record::{AckLevel, Epoch, Failure};
use crate::wire::batch::Batch;

/// A handle to the record; clones are cheap and share it.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Sender<Command>,
}

/// The time of a brief reading: about what one read of a page takes. In unit tests every reading that scans takes
/// longer.
const BRIEF: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_millis(50) };

impl Store {
    /// Whether anything follows the commits.
    pub fn audience(&self) -> Audience {
        self.shared.audience.clone()
    }

    /// The number of the last event on disk; every event up to it can be read.
    pub fn committed(&self) -> Seq {
        self.shared.committed()
    }

    /// Hands in a batch, waiting for space in the queue. Cancel-safe: a batch is handed in whole or not at all, and its
    /// receipt resolves either way.
    pub async fn append(&self, batch: Batch, receipt: Receipt) {
        let reservation = self.shared.queue.reserve(&batch).await;
        self.hand_in(batch, receipt, reservation);
    }

    /// Like [`Store::append`], but waits for space in the queue no longer than `patience`.
    ///
    /// # Errors
    /// `QueueFull` when there was none.
    pub async fn append_within(
        &self,
        patience: Duration,
        batch: Batch,
        receipt: Receipt,
    ) -> std::result::Result<(), Failure> {
        let reservation = match self.shared.queue.try_reserve(&batch) {
            Some(reservation) => reservation,
            None => match tokio::time::timeout(patience, self.shared.queue.reserve(&batch)).await {
                Ok(reservation) => reservation,
                Err(_) => return Err(Failure::QueueFull),
            },
        };
        self.hand_in(batch, receipt, reservation);
        Ok(())
    }

    /// Hands in a batch if there is space in the queue.
    ///
    /// # Errors
    /// `QueueFull`, at once, when there is none.
    pub fn try_append(&self, batch: Batch, receipt: Receipt) -> std::result::Result<(), Failure> {
        let reservation = self.shared.queue.try_reserve(&batch).ok_or(Failure::QueueFull)?;
        self.hand_in(batch, receipt, reservation);
        Ok(())
    }

    fn hand_in(&self, batch: Batch, receipt: Receipt, reservation: Reservation) {
        if receipt.level() == AckLevel::Queued {
            self.shared.counts.queued(batch.len());
        }
        let append = Append::new(batch, receipt, reservation);
        let received = append.received;
        // The writer has ended only if the process is ending. Then the receipt is dropped, and resolves as unavailable.
        let _ = self.commands.send(Command::Append(append));
        self.shared.queue.sent(received);
    }

    /// Deletes the stored events that pass a filter, before a time if one is given, and returns how many there were. Their
    /// numbers are not used again.
    ///
    /// * With a filter, no trace of them is in the files when this returns, unless another program reads the files: then
    ///   the write-ahead log has traces until soon after that program's transaction ends.
    /// * Without a filter, all are deleted at one moment, and their rows are removed from the file later.
    ///
    /// # Errors
    /// When the writer cannot do it. With a filter, a part may be deleted already: the oldest events.
    pub async fn delete(&self, before: Option<Timestamp>, filter: Filter) -> std::result::Result<u64, Failure> {
        if filter.is_any() {
            return self.ask(|reply| Command::DeleteOldest { before, reply }).await;
        }
        let (mut deleted, mut after, last) = (0, Seq::ZERO, self.committed());
        loop {
            let filter = filter.clone();
            let chosen = self.reading(move |reader| reader.choose(filter, after, last, before)).await;
            let (chosen, reached) = chosen.map_err(|error| {
                self.shared.note_failed_deletion(&error);
                error.failure()
            })?;
            deleted += self.delete_in_parts(chosen).await?;
            match reached {
                Some(reached) => after = reached,
                // Also if nothing was deleted: after an error a client asks again, and the traces of its first try must
                // go, too.
                None => return self.ask(|reply| Command::Erase { reply }).await.map(|()| deleted),
            }
        }
    }

    /// Deletes chosen events in one transaction, or in smaller ones if the disk has no space for that.
    async fn delete_in_parts(&self, chosen: Vec<Seq>) -> std::result::Result<u64, Failure> {
        let (mut left, mut deleted) = (Vec::from_iter(Some(chosen).filter(|chosen| !chosen.is_empty())), 0);
        while let Some(mut part) = left.pop() {
            match self.delete_chosen(part.clone()).await {
                Err(Failure::StorageFull) if part.len() > 1 => {
                    let second_half = part.split_off(part.len() / 2);
                    left.extend([second_half, part]);
                }
                answer => deleted += answer?,
            }
        }
        Ok(deleted)
    }

    /// Stores the state of a durable subscription within a moment, in one commit with others. A later state replaces
    /// one that waits.
    pub fn save_soon(&self, state: StoredSubscription) {
        self.change_soon(state.name.clone(), Some(state));
    }

    /// Like [`Store::save_soon`], but the state is stored once the returned future resolves. The call itself queues the
    /// change, not the first poll, so changes of one subscription are stored in the order of their calls.
    ///
    /// # Errors
    /// When the writer cannot do it now; it may do so later.
    pub fn save(&self, state: StoredSubscription) -> impl Future<Output = std::result::Result<(), Failure>> {
        self.change(state.name.clone(), Some(state));
        self.ask(|reply| Command::SubscriptionsChanged { reply: Some(reply) })
    }

    /// Removes a durable subscription, which is done once the returned future resolves. The call itself queues the
    /// change, as that of [`Store::save`] does.
    ///
    /// # Errors
    /// When the writer cannot do it now; it may do so later.
    pub fn remove(&self, name: Arc<str>) -> impl Future<Output = std::result::Result<(), Failure>> {
        self.change(name, None);
        self.ask(|reply| Command::SubscriptionsChanged { reply: Some(reply) })
    }

    /// Like [`Store::remove`], if no client waits for it. It is done within a moment, in one commit with others.
    pub fn remove_soon(&self, name: Arc<str>) {
        self.change_soon(name, None);
    }

    fn change_soon(&self, name: Arc<str>, state: Option<StoredSubscription>) {
        if self.change(name, state) {
            // The writer has ended only if the process is ending. Then the events of the subscription are delivered
            // again.
            let _ = self.commands.send(Command::SubscriptionsChanged { reply: None });
        }
    }

    /// Adds a change to those that the writer will take. Returns whether it is the first of them: then the writer needs
    /// a command.
    fn change(&self, name: Arc<str>, state: Option<StoredSubscription>) -> bool {
        let mut changed = self.shared.changed_subscriptions.lock();
        let is_first = changed.is_empty();
        changed.insert(name, state);
        is_first
    }

    /// The sequence number of an id, as [`Reader::seq_of`] returns it.
    pub async fn seq_of(&self, id: String) -> Result<Option<Seq>> {
        if !self.shared.has_legacy_ids {
            return Ok(id.parse().ok().map(|EventId(seq)| seq));
        }
        self.reading(move |reader| reader.seq_of(&id)).await
    }

    /// Reads until the end, or until the reading is dropped.
    pub fn reading<T: Send + 'static>(&self, read: impl FnOnce(&Reader) -> Result<T> + Send + 'static) -> Reading<T> {
        Reading::begin(self.reader(), None, read)
    }

    /// Reads for `READ_TIMEOUT_SECONDS` at most. A reading that is not done then fails: [`Error::took_too_long`].
    pub fn reading_in_time<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T> + Send + 'static,
    ) -> Reading<T> {
        Reading::begin(self.reader(), Some(self.shared.read_timeout), read)
    }

    /// Reads for about as long as one read of a page takes. A reading that is not done then fails
    /// ([`Error::took_too_long`]): its caller takes a permit for a search and begins again.
    pub fn brief_reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T> + Send + 'static,
    ) -> Reading<T> {
        Reading::begin(self.reader(), Some(BRIEF), read)
    }

    /// Reads on the calling thread, which must be one that may block.
    pub fn reader(&self) -> Reader {
        Reader::new(self.shared.clone())
    }

    /// Deletes chosen events in one transaction, and returns how many of them there still were.
    pub(crate) async fn delete_chosen(&self, chosen: Vec<Seq>) -> std::result::Result<u64, Failure> {
        self.ask(|reply| Command::DeleteChosen { chosen, reply }).await
    }

    /// Sends a command to the writer at once. The future waits for its answer.
    fn ask<T, C: FnOnce(oneshot::Sender<std::result::Result<T, Failure>>) -> Command>(
        &self,
        command: C,
    ) -> impl Future<Output = std::result::Result<T, Failure>> + use<T, C> {
        let (reply, answer) = oneshot::channel();
        // If the writer has ended, the command and its end of the channel are dropped.
        let _ = self.commands.send(command(reply));
        async { answer.await.unwrap_or(Err(Failure::Unavailable)) }
    }

    /// How safe an event is when it is acknowledged, if its producer does not ask for a level.
    pub fn usual_level(&self) -> AckLevel {
        self.shared.usual_level
    }

    /// The epoch of the database.
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// How many events were acknowledged since the start.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// What is known of damage in the file.
    pub fn integrity(&self) -> Integrity {
        self.shared.integrity.lock().clone()
    }

    /// Events waiting to be written.
    pub fn queue_len(&self) -> usize {
        self.shared.queue.len()
    }

    /// Bytes of events waiting to be written.
    pub fn queue_bytes(&self) -> usize {
        self.shared.queue.bytes()
    }

    /// How long the oldest waiting batch has waited; `None` if none waits.
    pub fn queue_oldest(&self) -> Option<Duration> {
        self.shared.queue.oldest()
    }

    /// How many events were stored since the start.
    pub fn stored(&self) -> u64 {
        self.committed().0 - self.shared.committed_at_start.0
    }

    /// Full segments whose posting lists are not stored yet.
    pub fn segments_to_seal(&self) -> usize {
        self.shared.recent.read().full.len()
    }

    /// Free bytes of the volume of the database; `None` if its file system does not say. It asks the system, which may have
    /// to wait for the disk.
    pub fn disk_free_bytes(&self) -> Option<u64> {
        free_bytes(self.shared.pool.path().parent()?)
    }

    /// The bytes of the database, without the write-ahead log.
    pub fn database_bytes(&self) -> Option<u64> {
        Some(self.shared.database.metadata().ok()?.len())
    }

    /// The write-ahead log.
    pub fn wal(&self) -> &Wal {
        &self.shared.wal
    }

    /// How long what the store does took since the start.
    pub fn timings(&self) -> &Timings {
        &self.shared.timings
    }

    /// How long syncs took since the start.
    pub fn syncs(&self) -> &Syncs {
        &self.shared.syncs
    }

    /// Asks the writer whether it would store an event now. Waits for space in the queue as an event does, and stores
    /// nothing. Cancel-safe.
    ///
    /// # Errors
    /// Why it would not.
    pub async fn probe(&self) -> std::result::Result<(), Failure> {
        let reservation = self.shared.queue.reserve(&Batch::default()).await;
        self.ask(|reply| Command::Probe { reservation, reply }).await
    }

    /// Ends the writer, once it has stored what is in the queue.
    pub fn close(&self) {
        let _ = self.commands.send(Command::Close);
    }
}
