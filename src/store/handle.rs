//! The handle through which everything outside uses the store.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use super::error::Result;
use super::integrity::Integrity;
use super::queue::Reservation;
use super::reader::Reader;
use super::reading::Reading;
use super::receipt::Receipt;
use super::shared::{Counts, Shared};
use super::subscription::StoredSubscription;
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

/// The time of a brief reading. In tests every reading that scans is longer.
const BRIEF: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_millis(50) };

impl Store {
    /// Who follows the commits.
    pub fn audience(&self) -> Audience {
        self.shared.audience.clone()
    }

    /// The number of the last event on disk; every event up to it can be read.
    pub fn committed(&self) -> Seq {
        self.shared.committed()
    }

    /// Hands in a batch, waiting for room in the queue. Cancel-safe: a batch is handed in whole or not
    /// at all, and its receipt resolves either way.
    pub async fn append(&self, batch: Batch, receipt: Receipt) {
        let reservation = self.shared.queue.reserve(&batch).await;
        self.hand_in(batch, receipt, reservation);
    }

    /// Like [`Store::append`], but waits for room no longer than `patience`.
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

    /// Hands in a batch if there is room in the queue.
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
            self.shared.counts.acknowledged(AckLevel::Queued, batch.len());
        }
        // The writer is gone only when the process is ending; the dropped receipt says so.
        let _ = self.commands.send(Command::Append(Append::new(batch, receipt, reservation)));
    }

    /// Deletes every event before `before`, or all of them, that passes a filter, and returns how many there were. Their numbers
    /// are not used again. What a filter chose has left no trace in the files when this returns, unless another program reads
    /// them: then the write-ahead log has some until that ends. Without a filter all of it is deleted at one moment, and the
    /// rows are removed from the file later.
    ///
    /// # Errors
    /// When the writer cannot do it; with a filter, a part of the events, the oldest, may be gone then.
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
                // Also when nothing was deleted: a client that repeats a deletion which was cut short still wants the
                // traces of the first part gone.
                None => return self.ask(|reply| Command::Erase { reply }).await.map(|()| deleted),
            }
        }
    }

    /// Deletes chosen events: in one transaction or, if the disk has no room for that, in smaller ones.
    async fn delete_in_parts(&self, chosen: Vec<Seq>) -> std::result::Result<u64, Failure> {
        let (mut left, mut deleted) = (vec![chosen], 0);
        while let Some(mut part) = left.pop().filter(|part| !part.is_empty()) {
            match self.delete_chosen(part.clone()).await {
                Err(Failure::StorageFull) if part.len() > 1 => {
                    let rest = part.split_off(part.len() / 2);
                    left.extend([rest, part]);
                }
                answer => deleted += answer?,
            }
        }
        Ok(deleted)
    }

    /// Stores the state of a durable subscription, with others within a moment. Until then only the last state of each waits.
    pub fn save_soon(&self, state: StoredSubscription) {
        self.change_soon(state.name.clone(), Some(state));
    }

    /// Like [`Store::save_soon`], but the state is stored once the returned future resolves. The call itself queues the change,
    /// not the first poll, so changes of one subscription are stored in the order of their calls.
    ///
    /// # Errors
    /// When the writer cannot do it now; it may do so later.
    pub fn save(&self, state: StoredSubscription) -> impl Future<Output = std::result::Result<(), Failure>> {
        self.change(state.name.clone(), Some(state));
        self.ask(|reply| Command::SubscriptionsChanged { reply: Some(reply) })
    }

    /// Removes a durable subscription, which is done once the returned future resolves. The call itself queues the change, as
    /// that of [`Store::save`] does.
    ///
    /// # Errors
    /// When the writer cannot do it now; it may do so later.
    pub fn remove(&self, name: Arc<str>) -> impl Future<Output = std::result::Result<(), Failure>> {
        self.change(name, None);
        self.ask(|reply| Command::SubscriptionsChanged { reply: Some(reply) })
    }

    /// Like [`Store::remove`], for a subscription of which no client waits to hear any more. It is done with others within a
    /// moment.
    pub fn remove_soon(&self, name: Arc<str>) {
        self.change_soon(name, None);
    }

    fn change_soon(&self, name: Arc<str>, state: Option<StoredSubscription>) {
        if self.change(name, state) {
            // The writer is gone only when the process is ending; then the events of the subscription come again.
            let _ = self.commands.send(Command::SubscriptionsChanged { reply: None });
        }
    }

    /// Queues a change for the writer to take. Returns whether the writer does not know yet that there is something to take.
    fn change(&self, name: Arc<str>, state: Option<StoredSubscription>) -> bool {
        let mut changed = self.shared.changed_subscriptions.lock();
        let is_first = changed.is_empty();
        changed.insert(name, state);
        is_first
    }

    /// The sequence number of an id, as [`Reader::seq_of`] tells it.
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

    /// Has the writer do something and tell.
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<std::result::Result<T, Failure>>) -> Command,
    ) -> std::result::Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| Failure::Unavailable)?;
        answer.await.unwrap_or(Err(Failure::Unavailable))
    }

    /// How safe an event is when it is acknowledged, if its producer does not say.
    pub fn usual_level(&self) -> AckLevel {
        self.shared.usual_level
    }

    /// Which life of the database this is.
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// What was acknowledged since the start.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// What is known of the file's soundness.
    pub fn integrity(&self) -> Integrity {
        self.shared.integrity.lock().clone()
    }

    /// Events waiting to be written.
    pub fn queue_len(&self) -> usize {
        self.shared.queue.len()
    }

    /// The write-ahead log.
    pub fn wal(&self) -> &Wal {
        &self.shared.wal
    }

    /// Whether the writer would store an event now. Waits for room in the queue as an event does, and stores nothing.
    /// Cancel-safe.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn probe(&self) -> std::result::Result<(), Failure> {
        let reservation = self.shared.queue.reserve(&Batch::default()).await;
        self.ask(|reply| Command::Probe { reservation, reply }).await
    }

    /// Tells the writer that nothing will follow. It stores what is in the queue and ends.
    pub fn close(&self) {
        let _ = self.commands.send(Command::Close);
    }
}
