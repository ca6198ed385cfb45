//! The ordered, durable record of events: append, read, committed. The only SQL is in here.
//!
//! One thread writes; it takes what waits in a bounded queue, stores it in one transaction, and then
//! resolves the receipts and hands the commit on. Readers use connections of their own.

mod check;
mod checker;
mod checkpoint;
mod checksum;
mod damage;
mod deletion;
mod epoch;
mod error;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod holes;
mod integrity;
mod kept;
mod keys;
mod lag;
mod migrate;
mod open;
mod queue;
mod read;
mod reader;
mod reading;
mod rebuild;
mod receipt;
mod repair;
mod salvage;
mod schema;
pub mod segments;
mod threads;
mod wal;
mod writer;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use rusqlite::Connection;
use tokio::sync::oneshot;

pub use check::{CheckError, check};
pub use checkpoint::Log;
pub use error::{Error, Result};
pub use integrity::{Integrity, Progress};
pub use kept::Kept;
pub use lag::Lag;
pub use open::OpenError;
pub use read::{Order, Query, Stats, TypeStats};
pub use reader::Reader;
pub use reading::Reading;
pub use receipt::{Receipt, Stored};
pub use repair::{RepairError, Repaired, repair};
pub use threads::Running;
#[cfg(test)]
pub(crate) use {epoch::Witness, threads::Parts};

use crate::audience::Audience;
use crate::event::{EventId, Filter, Seq, Timestamp};
use crate::record::{AckLevel, Epoch, Failure};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::wire::batch::Batch;
use queue::{Queue, Room};
use read::Record;
use segments::Recent;
use writer::{Append, Command};

/// A handle to the record; clones are cheap and share it.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    commands: Sender<Command>,
}

/// What the writer tells everyone else.
#[derive(Debug)]
struct Shared {
    /// The number of the last event on disk. Events up to it are in the table and in the segment lists.
    committed: AtomicU64,
    log: Log,
    recent: RwLock<Recent>,
    audience: Audience,
    usual_level: AckLevel,
    counts: Counts,
    /// Durable subscriptions whose last state the writer has not taken yet; nothing stands for one that is gone.
    changed_subscriptions: Mutex<HashMap<Arc<str>, Option<Kept>>>,
    pool: read::Pool,
    integrity: Arc<Mutex<Integrity>>,
    has_legacy_ids: bool,
    /// Events up to this one were stored before rows had checksums.
    unchecked_through: Seq,
    epoch: Epoch,
    /// How long one reading may take for which a client waits.
    read_timeout: Duration,
    /// Where the file is, to look for free space.
    folder: PathBuf,
    queue: Queue,
}

impl Shared {
    /// Takes note of an error that was met, if it is damage.
    fn note_damage(&self, error: &rusqlite::Error) {
        self.integrity.lock().note_error(error);
    }

    /// The high-water mark.
    fn committed(&self) -> Seq {
        Seq(self.committed.load(Ordering::SeqCst))
    }

    /// The record as a transaction of this connection sees it.
    fn record<'c>(&'c self, connection: &'c Connection) -> Record<'c> {
        let (unchecked_through, integrity) = (self.unchecked_through, &*self.integrity);
        Record { connection, unchecked_through, last: self.committed(), integrity }
    }

    /// Logs that a search for events to delete failed, and notes damage.
    fn note_failed_deletion(&self, error: &Error) {
        tracing::error!(%error, "find what to delete");
        if error.is_damage() {
            self.integrity.lock().note(error.to_string());
        }
    }
}

/// Events acknowledged since the start, by how safe they were then.
#[derive(Debug, Default)]
pub struct Counts {
    by_level: [AtomicU64; 3],
    lost: AtomicU64,
}

impl Counts {
    fn acknowledged(&self, level: AckLevel, events: usize) {
        self.by_level[level as usize].fetch_add(events as u64, Ordering::Relaxed);
    }

    fn lost(&self, events: usize) {
        self.lost.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// How many were acknowledged at a level.
    pub fn at(&self, level: AckLevel) -> u64 {
        self.by_level[level as usize].load(Ordering::Relaxed)
    }

    /// How many were acknowledged as queued and could not be stored then because of a full disk, a lock or damage; those
    /// refused for a used key are not counted.
    pub fn queued_and_lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
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
        let room = self.shared.queue.room(&batch).await;
        self.hand_in(batch, receipt, room);
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
        let room = match self.shared.queue.try_room(&batch) {
            Some(room) => room,
            None => match tokio::time::timeout(patience, self.shared.queue.room(&batch)).await {
                Ok(room) => room,
                Err(_) => return Err(Failure::QueueFull),
            },
        };
        self.hand_in(batch, receipt, room);
        Ok(())
    }

    /// Hands in a batch if there is room in the queue.
    ///
    /// # Errors
    /// `QueueFull`, at once, when there is none.
    pub fn try_append(&self, batch: Batch, receipt: Receipt) -> std::result::Result<(), Failure> {
        let room = self.shared.queue.try_room(&batch).ok_or(Failure::QueueFull)?;
        self.hand_in(batch, receipt, room);
        Ok(())
    }

    fn hand_in(&self, batch: Batch, receipt: Receipt, room: Room) {
        if receipt.level() == AckLevel::Queued {
            self.shared.counts.acknowledged(AckLevel::Queued, batch.len());
        }
        // The writer is gone only when the process is ending; the dropped receipt says so.
        let _ = self.commands.send(Command::Append(Append { batch, receipt, room, fates: None }));
    }

    /// Deletes every event before `before`, or all of them, that passes a filter, and returns how many there
    /// were. Their numbers are not used again. What a filter chose has left no trace in the files when this returns,
    /// unless another program reads them: then the write-ahead log has some until that ends.
    ///
    /// # Errors
    /// When the writer cannot do it; a part of the events, the oldest, may be gone then.
    pub async fn delete(&self, before: Option<Timestamp>, filter: Filter) -> std::result::Result<u64, Failure> {
        if filter.is_any() {
            return self.ask(|reply| Command::Delete { before, reply }).await;
        }
        let (mut deleted, mut after, last) = (0, Seq::ZERO, self.committed());
        loop {
            let filter = filter.clone();
            let chosen = self.reading(move |reader| reader.choose(filter, after, last, before)).await;
            let (chosen, reached) = chosen.map_err(|error| {
                self.shared.note_failed_deletion(&error);
                error.failure()
            })?;
            if !chosen.is_empty() {
                deleted += self.delete_these(chosen).await?;
            }
            match reached {
                Some(reached) => after = reached,
                // Also when nothing was deleted: a client that repeats a deletion which was cut short still wants the
                // traces of the first part gone.
                None => return self.ask(|reply| Command::Erase { reply }).await.map(|()| deleted),
            }
        }
    }

    /// Keeps a durable subscription as it is now. It is written with others within a moment; until then only its
    /// last state waits.
    pub fn keep(&self, subscription: Kept) {
        if self.change(subscription.name.clone(), Some(subscription)) {
            // The writer is gone only when the process is ending; then its events come again.
            let _ = self.commands.send(Command::SubscriptionsChanged { reply: None });
        }
    }

    /// Like [`Store::keep`], but stored once the returned future resolves. The call itself queues the change, not the
    /// first poll, so changes of one subscription are stored in the order of their calls.
    ///
    /// # Errors
    /// When the writer cannot do it now; it may do so later.
    pub fn keep_now(&self, subscription: Kept) -> impl Future<Output = std::result::Result<(), Failure>> {
        self.change(subscription.name.clone(), Some(subscription));
        self.ask(|reply| Command::SubscriptionsChanged { reply: Some(reply) })
    }

    /// Removes a durable subscription, which is done once the returned future resolves. The call itself queues the
    /// change, as that of [`Store::keep_now`] does.
    ///
    /// # Errors
    /// When the writer cannot do it now; it may do so later.
    pub fn forget(&self, name: Arc<str>) -> impl Future<Output = std::result::Result<(), Failure>> {
        self.change(name, None);
        self.ask(|reply| Command::SubscriptionsChanged { reply: Some(reply) })
    }

    /// Like [`Store::forget`], for a subscription of which nobody waits to hear any more. It is done with others within a
    /// moment.
    pub fn forget_soon(&self, name: Arc<str>) {
        if self.change(name, None) {
            let _ = self.commands.send(Command::SubscriptionsChanged { reply: None });
        }
    }

    /// Puts down what a durable subscription is now, for the writer to take. Returns whether it does not know yet
    /// that there is something to take.
    fn change(&self, name: Arc<str>, state: Option<Kept>) -> bool {
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
        Reader { shared: self.shared.clone(), limit: None }
    }

    /// Deletes what was chosen, and returns how many of these events there still were.
    pub(crate) async fn delete_these(&self, chosen: Vec<Seq>) -> std::result::Result<u64, Failure> {
        self.ask(|reply| Command::DeleteThese { chosen, reply }).await
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
    pub fn log(&self) -> &Log {
        &self.shared.log
    }

    /// Whether the writer would store an event now. Waits for room in the queue as an event does, and stores nothing.
    /// Cancel-safe.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn check(&self) -> std::result::Result<(), Failure> {
        let room = self.shared.queue.room(&Batch::default()).await;
        self.ask(|reply| Command::Check { room, reply }).await
    }

    /// Tells the writer that nothing will follow. It stores what is in the queue and ends.
    pub fn close(&self) {
        let _ = self.commands.send(Command::Close);
    }
}
