//! The ordered, durable record of events: append, read, committed. The only SQL is in here.
//!
//! One thread writes; it takes what waits in a bounded queue, stores it in one transaction, and then
//! resolves the receipts and hands the commit on. Readers use connections of their own.

mod check;
mod checksum;
mod deletion;
mod epoch;
mod keys;
mod read;
mod rebuild;
mod receipt;
mod repair;
mod schema;
pub mod segments;
mod upgrade;
mod wal;
mod writer;

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use rusqlite::{Connection, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub use check::{Integrity, Progress, check, is_damage};
pub use read::{Order, Query, Stats, TypeStats};
pub use receipt::{Receipt, Stored};
pub use repair::{RepairError, Repaired, repair};

use crate::audience::Audience;
use crate::config::{Config, Durability};
use crate::event::{Columns, EventId, Filter, Seq, Timestamp};
use crate::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::wire::Failure;
use crate::wire::answer::AckLevel;
use crate::wire::batch::{Batch, Commit};
use crate::wire::subscription::Epoch;
use check::{Check, Pages};
use epoch::Witness;
use schema::{damaged, meta};
use segments::{Recent, Segment};
use writer::{Append, Command, Writer};

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
    readers: read::Readers,
    integrity: Arc<Mutex<Integrity>>,
    has_legacy_ids: bool,
    /// Events up to this one were stored before rows had checksums.
    unchecked_through: Seq,
    epoch: Epoch,
    /// Where the file is, to look for free space.
    folder: PathBuf,
    queue: Queue,
}

/// The write-ahead log.
#[derive(Debug, Default)]
pub struct Log {
    /// Pages in it.
    pages: AtomicUsize,
    /// How many of them are in the database, too.
    moved: AtomicUsize,
    /// Since when a reader has kept it from starting over, in microseconds; 0 if none does.
    held_since: AtomicI64,
}

impl Log {
    /// Pages that the next checkpoint will move.
    pub fn pages_to_move(&self) -> usize {
        self.pages.load(Ordering::Relaxed).saturating_sub(self.moved.load(Ordering::Relaxed))
    }

    /// The room it takes.
    pub fn bytes(&self) -> u64 {
        self.pages.load(Ordering::Relaxed) as u64 * LOG_PAGE_BYTES
    }

    /// Since when a reader has kept it from starting over.
    pub fn held_since(&self) -> Option<Timestamp> {
        Some(Timestamp(self.held_since.load(Ordering::Relaxed))).filter(|since| since.0 != 0)
    }

    /// A commit made it so long.
    fn grew(&self, pages: usize) {
        // Where all of it was moved, the commit has begun at its start.
        if self.pages_to_move() == 0 {
            self.moved.store(0, Ordering::Relaxed);
        }
        self.pages.store(pages, Ordering::Relaxed);
    }

    /// A checkpoint came so far.
    fn note(&self, log: Moved) {
        self.pages.store(log.pages, Ordering::Relaxed);
        self.moved.store(log.moved, Ordering::Relaxed);
        let was_held = self.held_since().is_some();
        if was_held == log.is_all() {
            let since = if was_held { 0 } else { Timestamp::now().0 };
            self.held_since.store(since, Ordering::Relaxed);
        }
    }
}

/// A page and its head in the log.
const LOG_PAGE_BYTES: u64 = 4_096 + 24;

/// How many pages are in the log, and how many of these a checkpoint has moved into the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moved {
    pages: usize,
    moved: usize,
}

impl Moved {
    fn is_all(self) -> bool {
        self.moved >= self.pages
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

    /// How many were acknowledged as queued and could not be stored then.
    pub fn queued_and_lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Room for what waits to be written. The channel itself has no bound: who has no room does not send.
#[derive(Debug)]
struct Queue {
    events: Arc<Semaphore>,
    events_max: usize,
    kibibytes: Arc<Semaphore>,
    kibibytes_max: usize,
}

/// Room taken in the queue, given back when dropped.
#[derive(Debug)]
struct Room {
    _events: OwnedSemaphorePermit,
    _kibibytes: OwnedSemaphorePermit,
}

/// A durable subscription as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub name: Arc<str>,
    /// As they were asked for, in JSON.
    pub filters: Arc<str>,
    /// Everything up to this event is confirmed.
    pub position: Seq,
    pub last_seen: String,
}

impl Kept {
    /// All of them.
    ///
    /// # Errors
    /// What SQLite reports, and a row that is not what was stored.
    fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let rows = Self::rows(connection)?;
        rows.into_iter().map(|row| row.ok_or_else(|| damaged("subscriptions: a row is damaged"))).collect()
    }

    /// Those whose rows are what was stored, and nothing in the place of the others.
    fn rows(connection: &Connection) -> rusqlite::Result<Vec<Option<Self>>> {
        const SQL: &str = "SELECT name, filters, position, last_seen, checksum FROM subscriptions";
        let mut statement = connection.prepare(SQL)?;
        let mut rows = statement.query([])?;
        let mut kept = Vec::new();
        while let Some(row) = rows.next()? {
            let checksum = row.get::<_, i32>(4).ok();
            kept.push(Self::read(row).ok().filter(|kept| Some(kept.checksum()) == checksum));
        }
        Ok(kept)
    }

    /// From a row's first columns: name, filters, position, last_seen.
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (name, filters): (String, String) = (row.get(0)?, row.get(1)?);
        let position = Seq(row.get::<_, i64>(2)? as u64);
        Ok(Self { name: name.into(), filters: filters.into(), position, last_seen: row.get(3)? })
    }

    fn store(&self, connection: &Connection) -> rusqlite::Result<()> {
        const SQL: &str = "INSERT OR REPLACE INTO subscriptions (name, filters, position, last_seen, checksum) \
                           VALUES (?1, ?2, ?3, ?4, ?5)";
        let columns = (&*self.name, &*self.filters, self.position.0 as i64, &self.last_seen, self.checksum());
        connection.prepare_cached(SQL)?.execute(columns).map(drop)
    }

    fn checksum(&self) -> i32 {
        checksum::of_subscription(&self.name, &self.filters, self.position.0 as i64, &self.last_seen)
    }
}

/// The threads of an open store, and what they hand on.
#[derive(Debug)]
pub struct Running {
    /// Every commit that stored events while there was an audience, in order. Must be emptied: a full
    /// channel stops the writer. It ends when the writer has ended.
    pub commits: Receiver<Arc<Commit>>,
    /// How the writer ended: well after [`Store::close`], with an error when it could not go on. Nothing
    /// if it panicked.
    pub writer: oneshot::Receiver<rusqlite::Result<()>>,
    pub threads: Vec<JoinHandle<()>>,
}

/// Why the store cannot be opened. Shown to the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("create folder {0}: {1}")]
    Folder(PathBuf, std::io::Error),
    #[error("open {0}: {1}")]
    File(PathBuf, std::io::Error),
    #[error("read the write-ahead log of {0} and write it again: {1}")]
    Log(PathBuf, std::io::Error),
    #[error("{0} is in use by another server")]
    InUse(PathBuf),
    #[error("{0} was written by a newer version (format {1}, this one knows {known})", known = schema::VERSION)]
    Newer(PathBuf, i64),
    #[error(
        "{0} is a database of another program: its table `events` has neither our columns nor those of the Python service"
    )]
    Foreign(PathBuf),
    #[error("open database {0}: {1}")]
    Database(PathBuf, rusqlite::Error),
    #[error("{0} is damaged ({1}): `event-pipeline check` says where, `event-pipeline repair` saves the rest")]
    Damaged(PathBuf, rusqlite::Error),
    #[error("upgrade database {0}: {1}")]
    Upgrade(PathBuf, upgrade::UpgradeError),
    #[error(
        "the write-ahead log of {0} is damaged at frame {frame}: {commits} later commits would be dropped. \
         `event-pipeline repair` saves them",
        frame = .1.frame, commits = .1.commits
    )]
    SeveredLog(PathBuf, wal::Severed),
}

/// Bytes of a page, SQLite's default: for a log, larger ones mean more bytes for each small commit.
const PAGE_BYTES: u64 = 4_096;

/// Commits that may wait for the fan-out before the writer waits for it: more than come while it rests.
const COMMITS_WAITING_MAX: usize = 64;

impl Store {
    /// Opens or creates the database, upgrades one of the Python service, and starts the threads.
    ///
    /// # Errors
    /// When the file cannot be used; nothing of it is changed then, apart from an upgrade that finished.
    pub fn open(config: &Config) -> Result<(Store, Running), OpenError> {
        let (store, parts) = Self::open_parts(config)?;
        Ok((store, parts.start()))
    }

    /// Opens without starting the threads.
    pub(crate) fn open_parts(config: &Config) -> Result<(Store, Parts), OpenError> {
        let path = &config.database_path;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        make_folder(&folder).map_err(|e| OpenError::Folder(folder.clone(), e))?;
        let lock = lock(path)?;
        private_file(path).map_err(|e| OpenError::File(path.clone(), e))?;
        // The names of both; SQLite sees to those of its own files.
        sync_names(&folder).map_err(|e| OpenError::Folder(folder.clone(), e))?;

        let log = |error| OpenError::Log(path.clone(), error);
        if let Some(severed) = wal::examine(path).map_err(log)? {
            if epoch::rules_out_power_cut(&lock, &severed) {
                return Err(OpenError::SeveredLog(path.clone(), severed));
            }
            severed.drop_end(path).map_err(log)?;
        }
        if config.durability != Durability::Off {
            wal::settle(path).map_err(log)?;
        }

        let database = |error| match is_damage(&error) {
            true => OpenError::Damaged(path.clone(), error),
            false => OpenError::Database(path.clone(), error),
        };
        let mut connection = schema::open_writer(path).map_err(database)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(database)?;
        if version > schema::VERSION {
            return Err(OpenError::Newer(path.clone(), version));
        }
        let needs_upgrade = upgrade::is_needed(&connection).map_err(database)?;
        if !needs_upgrade && schema::is_foreign(&connection).map_err(database)? {
            return Err(OpenError::Foreign(path.clone()));
        }
        schema::prepare(&connection, config.durability).map_err(database)?;
        if needs_upgrade {
            upgrade::run(&mut connection).map_err(|error| OpenError::Upgrade(path.clone(), error))?;
        }
        schema::create(&mut connection).map_err(database)?;
        let state = State::read(&connection).map_err(database)?;
        let beside = lock.try_clone().map_err(|e| OpenError::File(path.clone(), e))?;
        let witness = Witness::hear(beside, &connection, path, state.last, config.durability).map_err(database)?;
        assemble(config, folder, connection, state, witness, lock).map_err(database)
    }

    /// Who follows the commits.
    pub fn audience(&self) -> Audience {
        self.shared.audience.clone()
    }

    /// The number of the last event on disk; every event up to it can be read.
    pub fn committed(&self) -> Seq {
        Seq(self.shared.committed.load(Ordering::SeqCst))
    }

    /// Hands in a batch, waiting for room in the queue. Cancel-safe: a batch is handed in whole or not
    /// at all, and its receipt resolves either way.
    pub async fn append(&self, batch: Batch, receipt: Receipt) {
        if let Some(room) = self.shared.queue.room(&batch).await {
            self.hand_in(batch, receipt, room);
        }
    }

    /// Like [`Store::append`], but waits for room no longer than `patience`.
    ///
    /// # Errors
    /// `QueueFull` when there was none.
    pub async fn append_within(&self, patience: Duration, batch: Batch, receipt: Receipt) -> Result<(), Failure> {
        let room = match self.shared.queue.try_room(&batch) {
            Some(room) => room,
            None => match tokio::time::timeout(patience, self.shared.queue.room(&batch)).await {
                Ok(Some(room)) => room,
                Ok(None) | Err(_) => return Err(Failure::QueueFull),
            },
        };
        self.hand_in(batch, receipt, room);
        Ok(())
    }

    /// Hands in a batch if there is room in the queue.
    ///
    /// # Errors
    /// `QueueFull`, at once, when there is none.
    pub fn try_append(&self, batch: Batch, receipt: Receipt) -> Result<(), Failure> {
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
    /// were. Their numbers are not used again.
    ///
    /// # Errors
    /// When the writer cannot do it; a part of the events, the oldest, may be gone then.
    pub async fn delete(&self, before: Option<Timestamp>, filter: Filter) -> Result<u64, Failure> {
        if filter.is_any() {
            return self.ask(|reply| Command::Delete { before, reply }).await;
        }
        let (mut deleted, mut after, last) = (0, Seq::ZERO, self.committed());
        loop {
            let (store, filter) = (self.clone(), filter.clone());
            let chosen = tokio::task::spawn_blocking(move || store.choose(filter, after, last, before)).await;
            let chosen = chosen.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()));
            let (chosen, reached) = chosen.map_err(|error| {
                tracing::error!(%error, "find what to delete");
                Failure::Unavailable
            })?;
            if !chosen.is_empty() {
                deleted += self.delete_these(chosen).await?;
            }
            match reached {
                Some(reached) => after = reached,
                None => return Ok(deleted),
            }
        }
    }

    /// The durable subscriptions that are stored.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn kept_subscriptions(&self) -> rusqlite::Result<Vec<Kept>> {
        self.shared.readers.with(|transaction| Kept::all(transaction))
    }

    /// Keeps a durable subscription as it is now. It is written with others within a moment; until then only its
    /// last state waits.
    pub fn keep(&self, subscription: Kept) {
        if self.change(subscription.name.clone(), Some(subscription)) {
            // The writer is gone only when the process is ending; then its events come again.
            let _ = self.commands.send(Command::SubscriptionsChanged { reply: None });
        }
    }

    /// Like [`Store::keep`], but it is stored when this returns.
    ///
    /// # Errors
    /// When the writer cannot do it now; it may do so later.
    pub async fn keep_now(&self, subscription: Kept) -> Result<(), Failure> {
        self.change(subscription.name.clone(), Some(subscription));
        self.ask(|reply| Command::SubscriptionsChanged { reply: Some(reply) }).await
    }

    /// Removes a durable subscription.
    ///
    /// # Errors
    /// When the writer cannot do it now; it may do so later.
    pub async fn forget(&self, name: Arc<str>) -> Result<(), Failure> {
        self.change(name, None);
        self.ask(|reply| Command::SubscriptionsChanged { reply: Some(reply) }).await
    }

    /// Puts down what a durable subscription is now, for the writer to take. Returns whether it does not know yet
    /// that there is something to take.
    fn change(&self, name: Arc<str>, state: Option<Kept>) -> bool {
        let mut changed = self.shared.changed_subscriptions.lock();
        let is_first = changed.is_empty();
        changed.insert(name, state);
        is_first
    }

    /// The place of an id, for whoever may not block; `None` when it is none.
    ///
    /// # Errors
    /// What SQLite reports.
    pub async fn place_of(&self, id: String) -> rusqlite::Result<Option<Seq>> {
        if !self.shared.has_legacy_ids {
            return Ok(id.parse().ok().map(|EventId(seq)| seq));
        }
        let store = self.clone();
        let found = tokio::task::spawn_blocking(move || store.position(&id)).await;
        found.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))
    }

    /// Some events that pass, the oldest first, and how far it looked; `None` when to the end. Blocks.
    pub(crate) fn choose(
        &self,
        filter: Filter,
        after: Seq,
        last: Seq,
        until: Option<Timestamp>,
    ) -> rusqlite::Result<(Vec<Seq>, Option<Seq>)> {
        let mut chosen = Vec::new();
        let query = Query { filter, after, before: Some(last.next()), until, ..Query::default() };
        let reached = self.scan_some(&query, |event| {
            chosen.push(event.seq);
            if chosen.len() < deletion::CHOSEN_EVENTS_PER_COMMIT {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok((chosen, reached))
    }

    /// Deletes what was chosen, and returns how many of these events there still were.
    pub(crate) async fn delete_these(&self, chosen: Vec<Seq>) -> Result<u64, Failure> {
        self.ask(|reply| Command::DeleteThese { chosen, reply }).await
    }

    /// Has the writer do something and tell.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Command) -> Result<T, Failure> {
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
        self.shared.queue.events_max - self.shared.queue.events.available_permits()
    }

    /// The write-ahead log.
    pub fn log(&self) -> &Log {
        &self.shared.log
    }

    /// Whether the writer takes events: goes through the queue as an event does. Cancel-safe.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn check(&self) -> Result<(), Failure> {
        let (receipt, answer) = Receipt::new();
        self.append(Batch::default(), receipt).await;
        answer.await.unwrap_or(Err(Failure::Unavailable)).map(drop)
    }

    /// Tells the writer that nothing will follow. It stores what is in the queue and ends.
    pub fn close(&self) {
        let _ = self.commands.send(Command::Close);
    }
}

impl Queue {
    fn new(config: &Config) -> Self {
        let kibibytes_max = config.max_queue_bytes.div_ceil(1024).clamp(1, u32::MAX as usize >> 4);
        Self {
            events: Arc::new(Semaphore::new(config.max_queue_size)),
            events_max: config.max_queue_size,
            kibibytes: Arc::new(Semaphore::new(kibibytes_max)),
            kibibytes_max,
        }
    }

    /// What a batch takes. One larger than the whole queue takes all of it; an empty one, which only
    /// carries answers, takes one place, so that they are bounded too.
    fn cost(&self, batch: &Batch) -> (u32, u32) {
        let events = batch.len().clamp(1, self.events_max);
        let kibibytes = batch.bytes().div_ceil(1024).clamp(1, self.kibibytes_max);
        (events as u32, kibibytes as u32)
    }

    async fn room(&self, batch: &Batch) -> Option<Room> {
        let (events, kibibytes) = self.cost(batch);
        let _events = self.events.clone().acquire_many_owned(events).await.ok()?;
        let _kibibytes = self.kibibytes.clone().acquire_many_owned(kibibytes).await.ok()?;
        Some(Room { _events, _kibibytes })
    }

    fn try_room(&self, batch: &Batch) -> Option<Room> {
        let (events, kibibytes) = self.cost(batch);
        let _events = self.events.clone().try_acquire_many_owned(events).ok()?;
        let _kibibytes = self.kibibytes.clone().try_acquire_many_owned(kibibytes).ok()?;
        Some(Room { _events, _kibibytes })
    }
}

/// What the file says at start.
struct State {
    last: Seq,
    last_time: Timestamp,
    recent: Recent,
    has_legacy_ids: bool,
    unchecked_through: Seq,
}

impl State {
    /// Numbers and times go on from the larger of what is noted and what is stored. Lists of segments
    /// that are not in the table yet are built again from their rows.
    fn read(connection: &Connection) -> rusqlite::Result<State> {
        let noted = |key| meta::get(connection, key);
        let (stored, stored_time): (i64, i64) = connection.query_row(
            "SELECT coalesce(max(seq), 0), coalesce((SELECT time_us FROM events ORDER BY seq DESC LIMIT 1), 0) FROM events",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let last = Seq(stored.max(noted(meta::LAST_SEQ)?) as u64);
        let last_time = Timestamp(stored_time.max(noted(meta::LAST_TIME_US)?));
        let sealed_before = noted(meta::SEALED_BEFORE)?;
        connection.execute("DELETE FROM event_index WHERE segment >= ?1", [sealed_before])?;

        let mut recent = Recent { open: Segment::new(sealed_before as u64), full: Vec::new() };
        let mut statement = connection
            .prepare("SELECT seq, event_type, source, session_id, user_id FROM events WHERE seq >= ?1 ORDER BY seq")?;
        let mut rows = statement.query([segments::first_of(sealed_before as u64).0 as i64])?;
        while let Some(row) = rows.next()? {
            let event = Columns {
                event_type: row.get_ref(1)?.as_bytes()?,
                source: row.get_ref(2)?.as_bytes()?,
                session_id: row.get_ref(3)?.as_bytes_or_null()?,
                user_id: row.get_ref(4)?.as_bytes_or_null()?,
                payload: b"",
            };
            recent.note(Seq(row.get::<_, i64>(0)? as u64), &event);
        }
        let has_legacy_ids = connection.query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = 'events_legacy_id')",
            [],
            |row| row.get(0),
        )?;
        let unchecked_through = Seq(noted(meta::UNCHECKED_THROUGH)? as u64);
        Ok(State { last, last_time, recent, has_legacy_ids, unchecked_through })
    }
}

/// An open store whose threads have not been started.
pub(crate) struct Parts {
    writer: Writer,
    pub(crate) commits: Receiver<Arc<Commit>>,
    sealer: Sealer,
    checkpointer: Checkpointer,
    checker: Option<Checker>,
    lock: File,
}

/// Encodes full segments, which takes too long for the writer.
struct Sealer {
    full: Receiver<Arc<Segment>>,
    commands: Sender<Command>,
}

/// Moves the log's pages into the database, so that no commit waits for the disk to take them.
struct Checkpointer {
    connection: Connection,
    due: Receiver<()>,
    commands: Sender<Command>,
}

/// Holds the file against itself, behind a serving server.
struct Checker {
    path: PathBuf,
    shared: Arc<Shared>,
}

impl Sealer {
    fn encode(&self, segment: &Segment) {
        // The writer is gone only when the process is ending.
        let _ = self.commands.send(Command::Encoded { segment: segment.number(), rows: segment.rows() });
    }
}

impl Checkpointer {
    fn checkpoint(&self) {
        let how = checkpoint(&self.connection, "PASSIVE").map(drop);
        let _ = self.commands.send(Command::Checkpointed(how));
    }
}

impl Checker {
    /// Until it is done, or `stopped` has no sender any more.
    fn run(self, stopped: &Receiver<()>) {
        let integrity = self.shared.integrity.clone();
        integrity.lock().progress = Progress::Running;
        match self.check(stopped) {
            Ok(Some(events)) => {
                let mut integrity = integrity.lock();
                (integrity.progress, integrity.events) = (Progress::Done, events);
            }
            Ok(None) => {}
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

fn assemble(
    config: &Config,
    folder: PathBuf,
    mut connection: Connection,
    state: State,
    witness: Witness,
    lock: File,
) -> rusqlite::Result<(Store, Parts)> {
    let State { last, last_time, recent, has_legacy_ids, unchecked_through } = state;
    let (full_sender, full) = crossbeam_channel::unbounded();
    for segment in &recent.full {
        full_sender.send(segment.clone()).expect("its receiver is in this scope");
    }
    let integrity = Arc::new(Mutex::new(Integrity::default()));
    let shared = Arc::new(Shared {
        committed: AtomicU64::new(last.0),
        log: Log::default(),
        recent: RwLock::new(recent),
        audience: Audience::default(),
        usual_level: if config.durability == Durability::Full { AckLevel::Synced } else { AckLevel::Stored },
        counts: Counts::default(),
        changed_subscriptions: Mutex::default(),
        readers: read::Readers::new(config.database_path.clone(), integrity.clone()),
        integrity,
        has_legacy_ids,
        unchecked_through,
        epoch: witness.epoch(),
        folder,
        queue: Queue::new(config),
    });
    connection.wal_hook(Some({
        let shared = shared.clone();
        move |_: &mut rusqlite::hooks::Wal, pages| {
            shared.log.grew(pages as usize);
            Ok(())
        }
    }))?;
    let (commands, queue) = crossbeam_channel::unbounded();
    let (commit_sender, commits) = crossbeam_channel::bounded(COMMITS_WAITING_MAX);
    let (due_sender, due) = crossbeam_channel::bounded(1);
    let writer = Writer {
        connection,
        shared: shared.clone(),
        commands: queue,
        commits: commit_sender,
        sealer: full_sender,
        checkpointer: due_sender,
        last,
        last_time,
        free_space_min_bytes: config.free_space_min_bytes,
        witness,
        durability: config.durability,
        syncs: config.durability == Durability::Full,
        has_unsynced: true,
        work: writer::Work::default(),
    };
    let sealer = Sealer { full, commands: commands.clone() };
    let connection = schema::open_writer(&config.database_path)?;
    schema::prepare(&connection, config.durability)?;
    let checkpointer = Checkpointer { connection, due, commands: commands.clone() };
    let checker = config.check_at_start.then(|| Checker { path: config.database_path.clone(), shared: shared.clone() });
    Ok((Store { shared, commands }, Parts { writer, commits, sealer, checkpointer, checker, lock }))
}

impl Parts {
    fn start(self) -> Running {
        let Parts { writer, commits, sealer, checkpointer, checker, lock } = self;
        let (ended, how) = oneshot::channel();
        let (running, stopped) = crossbeam_channel::bounded(0);
        let mut threads = vec![
            spawn("writer", move || {
                let outcome = writer.run();
                drop(running);
                // The next server may open the file from here on.
                drop(lock);
                let _ = ended.send(outcome);
            }),
            spawn("sealer", move || sealer.full.iter().for_each(|segment| sealer.encode(&segment))),
            spawn("checkpointer", move || checkpointer.due.iter().for_each(|()| checkpointer.checkpoint())),
        ];
        threads.extend(checker.map(|checker| spawn("checker", move || checker.run(&stopped))));
        Running { commits, writer: how, threads }
    }
}

/// The threads' work in pieces, for the simulation. Each says whether there was anything to do.
#[cfg(test)]
impl Parts {
    /// A turn of the writer, if it would not have to wait.
    pub(crate) fn write(&mut self) -> bool {
        let has_work = self.writer.has_housekeeping() || !self.writer.commands.is_empty();
        let can = has_work && !self.commits.is_full();
        if can {
            self.writer.turn(&mut Vec::new()).expect("the writer can go on");
        }
        can
    }

    /// The beginning of such a turn, up to the commit, of which nobody hears: what follows is a crash.
    pub(crate) fn write_unheard(&mut self) {
        if !self.commits.is_full() && (self.writer.has_housekeeping() || !self.writer.commands.is_empty()) {
            self.writer.turn_unheard();
        }
    }

    pub(crate) fn seal(&self) -> bool {
        self.sealer.full.try_recv().map(|segment| self.sealer.encode(&segment)).is_ok()
    }

    pub(crate) fn checkpoint(&self) -> bool {
        self.checkpointer.due.try_recv().map(|()| self.checkpointer.checkpoint()).is_ok()
    }

    /// From now on the clock is so much behind the last event's time.
    pub(crate) fn step_clock_back(&mut self, micros: i64) {
        self.writer.last_time.0 += micros;
    }

    /// Lets the database grow by so many pages; without a number, without end.
    pub(crate) fn limit_disk(&self, pages: Option<u64>) {
        let count = |name| self.writer.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let max = pages.map_or(1 << 30, |more| count("page_count").expect("a number") + more as i64);
        self.writer.connection.pragma_update(None, "max_page_count", max).expect("a valid number");
    }

    /// Runs the writer to its end, and leaves the commits.
    pub(crate) fn finish(self) -> Receiver<Arc<Commit>> {
        self.writer.run().expect("the writer ends well");
        self.commits
    }
}

/// Has a reading of all pages end when the server does, or when the log it keeps from starting over gets long.
fn give_way(connection: &mut Connection, shared: &Arc<Shared>, stopped: Receiver<()>) -> rusqlite::Result<()> {
    /// As much as the log keeps of the disk anyway (64 MiB).
    const WAL_PAGES_MAX: usize = 1 << 14;
    /// Steps of SQLite, some of which take a page: it looks about every millisecond.
    const STEPS: i32 = 1_000;
    let shared = shared.clone();
    let must_end = move || {
        let is_stopped = stopped.try_recv() == Err(TryRecvError::Disconnected);
        is_stopped || shared.log.pages.load(Ordering::Relaxed) > WAL_PAGES_MAX
    };
    connection.progress_handler(STEPS, Some(must_end))
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).expect("the system has room for a thread")
}

/// Moves pages from the write-ahead log into the database; `mode` as in `PRAGMA wal_checkpoint`. Nothing if another
/// checkpoint is under way, or it could not: then they stay in the log, and the next one moves them all.
///
/// # Errors
/// A failed sync. What it should have brought to the disk would be taken for synced by the next one.
fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<Option<Moved>> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let moved: rusqlite::Result<(i64, i64)> = connection.query_row(&sql, [], |row| Ok((row.get(1)?, row.get(2)?)));
    match moved {
        Ok((pages, moved)) => {
            let counts = usize::try_from(pages).ok().zip(usize::try_from(moved).ok());
            Ok(counts.map(|(pages, moved)| Moved { pages, moved }))
        }
        Err(error) if is_failed_sync(&error) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "checkpoint");
            Ok(None)
        }
    }
}

fn is_failed_sync(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_FSYNC)
}

/// Makes sure of a folder, also after a power cut: a name is safe once the folder that it stands in is synced.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    let holder = |folder: &Path| match folder.parent() {
        Some(holder) if !holder.as_os_str().is_empty() => holder.to_owned(),
        _ => PathBuf::from("."),
    };
    let new: Vec<_> = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    new.into_iter().try_for_each(|new| sync_names(&holder(new)))
}

/// Syncs the names in a folder, where it can be: it may be somebody else's, or on a file system that has no such thing.
fn sync_names(folder: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) => Ok(()),
        done => done,
    }
}

/// The file that has the name of another, and more at its end.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Holds `<database>.lock` for as long as the file is open, so that one server at a time writes.
fn lock(database: &Path) -> Result<File, OpenError> {
    let path = beside(database, ".lock");
    let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
    let file = open.map_err(|error| OpenError::File(path.clone(), error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(database.to_owned())),
        Err(error) => Err(OpenError::File(path, error.into())),
    }
}

/// Makes sure that the database exists and that only its owner can read it; SQLite gives the files
/// beside it the same permissions.
fn private_file(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    let mut permissions = file.metadata()?.permissions();
    if permissions.mode() & 0o077 != 0 {
        permissions.set_mode(0o600);
        file.set_permissions(permissions)?;
    }
    Ok(())
}
