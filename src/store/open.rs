//! Opening: the file is locked, its log settled, its format made today's, and its state read.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::checker::Checker;
use super::damage::{Integrity, is_damage};
use super::epoch::Witness;
use super::files::{beside, has_content, lock, make_folder, private_file, sync_names};
use super::queue::Queue;
use super::schema::meta;
use super::segments::{Recent, Segment};
use super::threads::{Checkpointer, Parts, Running, Sealer};
use super::writer::Writer;
use super::{Counts, Log, Shared, Store, epoch, read, schema, segments, upgrade, wal, writer};
use crate::audience::Audience;
use crate::config::{Config, Durability};
use crate::event::{Columns, Seq, Timestamp};
use crate::sync::atomic::AtomicU64;
use crate::sync::{Mutex, RwLock};
use crate::wire::answer::AckLevel;

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
    #[error("{0} is locked by another program, which writes to it")]
    Locked(PathBuf),
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
        let database = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => OpenError::Locked(path.clone()),
            _ if is_damage(&error) => OpenError::Damaged(path.clone(), error),
            _ => OpenError::Database(path.clone(), error),
        };
        if is_another_programs(path).map_err(database)? {
            return Err(OpenError::Foreign(path.clone()));
        }
        make_folder(&folder).map_err(|e| OpenError::Folder(folder.clone(), e))?;
        let held = lock(path).map_err(|e| OpenError::File(beside(path, ".lock"), e))?;
        let lock = held.ok_or_else(|| OpenError::InUse(path.clone()))?;
        private_file(path).map_err(|e| OpenError::File(path.clone(), e))?;
        // The names of both; SQLite sees to those of its own files.
        sync_names(&folder).map_err(|e| OpenError::Folder(folder.clone(), e))?;

        let has_log = wal::is_there(path);
        let log = |error| OpenError::Log(path.clone(), error);
        if let Some(severed) = wal::examine(path).map_err(log)? {
            if epoch::rules_out_power_cut(&lock, &severed) {
                return Err(OpenError::SeveredLog(path.clone(), severed));
            }
            severed.drop_end(path).map_err(log)?;
        }
        let mut connection = schema::open_writer(path).map_err(database)?;
        if config.durability != Durability::Off {
            // What another program wrote in between would be written over.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(database)?;
            wal::settle(path).map_err(log)?;
            // After a run at durability `off`, pages of the database may be unsynced, too.
            File::open(path).and_then(|file| file.sync_data()).map_err(|e| OpenError::File(path.clone(), e))?;
            transaction.rollback().map_err(database)?;
        }
        let version = schema::version(&connection).map_err(database)?;
        if version > schema::VERSION {
            return Err(OpenError::Newer(path.clone(), version));
        }
        let is_of = |formats| schema::is_of(&connection, formats).map_err(database);
        let (is_current, can_be_verified) = (is_of(schema::VERSION..=schema::VERSION)?, is_of(schema::VERIFIED)?);
        let needs_upgrade = !is_current && upgrade::is_needed(&connection).map_err(database)?;
        if can_be_verified {
            schema::verify(&connection).map_err(database)?;
        } else if !needs_upgrade && schema::is_foreign(&connection).map_err(database)? {
            return Err(OpenError::Foreign(path.clone()));
        }
        schema::prepare(&connection, config.durability).map_err(database)?;
        if needs_upgrade {
            upgrade::run(&mut connection).map_err(|error| OpenError::Upgrade(path.clone(), error))?;
        }
        if !is_current {
            schema::create(&mut connection).map_err(database)?;
        }
        let state = State::read(&connection).map_err(database)?;
        let beside = lock.try_clone().map_err(|e| OpenError::File(path.clone(), e))?;
        let witness =
            Witness::hear(beside, &connection, path, state.last, has_log, config.durability).map_err(database)?;
        assemble(config, folder, connection, state, witness, lock).map_err(database)
    }
}

/// Whether a file is certainly another program's. It is refused before anything is written to it or beside it, so this
/// does not read the log, which only a connection that makes files can do: such a connection looks again later.
fn is_another_programs(path: &Path) -> rusqlite::Result<bool> {
    let looked = schema::open_untouched(path).and_then(|connection| {
        Ok(!schema::is_ours(&connection)? && !upgrade::is_needed(&connection)? && schema::is_foreign(&connection)?)
    });
    // Either has pages that SQLite would put in the place of damaged ones.
    let may_be_mended = || wal::is_there(path) || has_content(&beside(path, "-journal"));
    match looked {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) && !may_be_mended() => Err(error),
        looked => Ok(looked.unwrap_or(false)),
    }
}

/// What the file says at start.
struct State {
    last: Seq,
    last_time: Timestamp,
    recent: Recent,
    has_legacy_ids: bool,
    unchecked_through: Seq,
    /// What was found damaged on the way.
    damage: Vec<String>,
}

impl State {
    /// Numbers and times go on from the larger of what is noted and what is stored. Lists of segments
    /// that are not in the table yet are built again from their rows.
    fn read(connection: &Connection) -> rusqlite::Result<State> {
        let noted = |key| meta::get(connection, key);
        let stored: i64 = connection.query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| row.get(0))?;
        let last = Seq(stored.max(noted(meta::LAST_SEQ)?) as u64);
        let unchecked_through = Seq(noted(meta::UNCHECKED_THROUGH)? as u64);
        let (stored_time, damage) = read::newest_time(connection, unchecked_through)?;
        let last_time = stored_time.unwrap_or_default().max(Timestamp(noted(meta::LAST_TIME_US)?));
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
            "SELECT EXISTS (SELECT 1 FROM pragma_index_list('events') AS its \
             JOIN pragma_index_info(its.name) AS columns WHERE columns.name = 'legacy_id')",
            [],
            |row| row.get(0),
        )?;
        Ok(State { last, last_time, recent, has_legacy_ids, unchecked_through, damage })
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
    let State { last, last_time, recent, has_legacy_ids, unchecked_through, damage } = state;
    let (full_sender, full) = crossbeam_channel::unbounded();
    for segment in &recent.full {
        full_sender.send(segment.clone()).expect("its receiver is in this scope");
    }
    let mut integrity = Integrity::default();
    damage.into_iter().for_each(|what| integrity.note(what));
    let integrity = Arc::new(Mutex::new(integrity));
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
        read_timeout: config.read_timeout,
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
        syncs: config.durability != Durability::Off,
        has_unsynced: true,
        work: writer::Work::default(),
    };
    let sealer = Sealer { full, commands: commands.clone(), shared: shared.clone() };
    let connection = schema::open_writer(&config.database_path)?;
    schema::prepare(&connection, config.durability)?;
    let checkpointer = Checkpointer { connection, shared: shared.clone(), due, commands: commands.clone() };
    let checker = config.check_at_start.then(|| Checker { path: config.database_path.clone(), shared: shared.clone() });
    Ok((Store { shared, commands, leash: None }, Parts { writer, commits, sealer, checkpointer, checker, lock }))
}
