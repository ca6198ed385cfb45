//! Opening: the file is locked, its write-ahead log settled, the file brought to the newest format, and its state read.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::checker::Checker;
use super::damage::{ignoring_damage, is_damage, within};
use super::files::{beside, folder_of, has_content, lock, make_folder, private_file, sync_names};
use super::integrity::Integrity;
use super::migrate::{self, python};
use super::queue::Queue;
use super::schema::meta;
use super::segments::{Recent, Segment};
use super::shared::{Counts, Shared, Timings};
use super::sidecar::{self, Sidecar};
use super::syncs::Syncs;
use super::threads::{Checkpointer, Parts, Running, Sealer, Sweeper};
use super::write::{Applier, Arrivals, Position, RollingUp, Space, Syncing, Tidying, Wal, WalUpkeep, Work, Writer};
use super::{Store, read, rollups, schema, segments, wal};
use crate::audience::Audience;
use crate::config::{Config, Durability};
use crate::event::{Columns, Seq, Timestamp};
use crate::record::AckLevel;
use crate::sync::atomic::AtomicU64;
use crate::sync::{Mutex, RwLock};

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
    Upgrade(PathBuf, python::UpgradeError),
    #[error(
        "the write-ahead log of {0} is damaged at frame {frame}: {commits} later commits would be dropped. \
         `event-pipeline repair` saves them",
        frame = .1.frame, commits = .1.commits
    )]
    SeveredLog(PathBuf, wal::Severed),
}

/// Commits that may wait for the fan-out before the writer waits for it. 64: more than come while the fan-out rests.
const COMMITS_WAITING_MAX: usize = 64;

impl Store {
    /// Opens or creates the database, upgrades one of the Python service, and starts the threads.
    ///
    /// # Errors
    /// When the file cannot be used. Then it is unchanged, apart from an upgrade that was finished.
    pub fn open(config: &Config) -> Result<(Store, Running), OpenError> {
        let (store, parts) = Self::open_parts(config)?;
        Ok((store, parts.start()))
    }

    /// Opens without starting the threads.
    pub(crate) fn open_parts(config: &Config) -> Result<(Store, Parts), OpenError> {
        let path = &config.database_path;
        let folder = folder_of(path).to_owned();
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
        // The names of the database and the lock; SQLite syncs the names of its own files.
        sync_names(&folder).map_err(|e| OpenError::Folder(folder.clone(), e))?;

        let has_log = wal::is_there(path);
        let log = |error| OpenError::Log(path.clone(), error);
        if let Some(severed) = wal::examine(path).map_err(log)? {
            if sidecar::rules_out_power_cut(&lock, &severed) {
                return Err(OpenError::SeveredLog(path.clone(), severed));
            }
            severed.drop_end(path).map_err(log)?;
        }
        // Not later: closing it would drop the locks of connections that are open by then.
        let file =
            OpenOptions::new().read(true).write(true).open(path).map_err(|e| OpenError::File(path.clone(), e))?;
        if config.durability != Durability::Off {
            // After a run at durability `off`, pages of the database may be unsynced.
            file.sync_data().map_err(|e| OpenError::File(path.clone(), e))?;
        }
        let mut connection = schema::open_writer(path).map_err(database)?;
        if config.durability != Durability::Off {
            // Otherwise, what another program writes meanwhile would be overwritten.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(database)?;
            wal::settle(path).map_err(log)?;
            transaction.rollback().map_err(database)?;
        }
        let version = schema::version(&connection).map_err(database)?;
        if version > schema::VERSION {
            return Err(OpenError::Newer(path.clone(), version));
        }
        let is_of = |formats| schema::is_of(&connection, formats).map_err(database);
        let (is_current, can_be_verified) = (is_of(schema::VERSION..=schema::VERSION)?, is_of(schema::VERIFIED)?);
        let needs_upgrade = !is_current && python::wrote(&connection).map_err(database)?;
        if can_be_verified {
            schema::verify(&connection).map_err(database)?;
        } else if !needs_upgrade && schema::is_foreign(&connection).map_err(database)? {
            return Err(OpenError::Foreign(path.clone()));
        }
        schema::prepare(&connection, config.durability).map_err(database)?;
        if needs_upgrade {
            python::run(&mut connection).map_err(|error| OpenError::Upgrade(path.clone(), error))?;
        }
        if !is_current {
            migrate::to_newest(&mut connection).map_err(database)?;
        }
        let state = State::read(&connection, sidecar::last_noted(&lock)).map_err(database)?;
        let beside = lock.try_clone().map_err(|e| OpenError::File(path.clone(), e))?;
        let last = state.position.seq;
        let sidecar =
            Sidecar::compare(beside, &connection, path, last, has_log, config.durability).map_err(database)?;
        // The server before may have ended before it had overwritten what deletions left.
        let may_have_remains = last > Seq::ZERO;
        assemble(config, (folder, file), connection, state, sidecar, lock, may_have_remains).map_err(database)
    }
}

/// Whether a file is certainly another program's. Such a file is refused before anything is written to it or beside it.
/// So this does not read the log, because only a connection that makes files can do that; the caller looks again with
/// one later.
pub(super) fn is_another_programs(path: &Path) -> rusqlite::Result<bool> {
    let looked = schema::open_untouched(path).and_then(|connection| {
        Ok(!schema::is_ours(&connection)? && !python::wrote(&connection)? && schema::is_foreign(&connection)?)
    });
    // Either has pages with which SQLite would replace damaged ones.
    let may_be_mended = || wal::is_there(path) || has_content(&beside(path, "-journal"));
    match looked {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) && !may_be_mended() => Err(error),
        looked => Ok(looked.unwrap_or(false)),
    }
}

/// What is read of the file at a start.
struct State {
    position: Position,
    /// The last number that was given is also the largest in the table.
    is_last_largest: bool,
    recent: Recent,
    has_legacy_ids: bool,
    unchecked_through: Seq,
    tidying: Tidying,
    rolling_up: RollingUp,
    /// What was found damaged meanwhile, by name.
    damage: Vec<String>,
}

impl State {
    /// Numbers and times go on from the larger of what `meta` has and what is stored. Posting lists of segments that
    /// are not sealed yet are built again from their rows.
    fn read(connection: &Connection, last_noted: Seq) -> rusqlite::Result<State> {
        let noted = |key| meta::get(connection, key);
        let unchecked_through = meta::seq(connection, meta::UNCHECKED_THROUGH)?;
        let deleted_through = meta::seq(connection, meta::DELETED_THROUGH)?;
        let mut damage = Vec::new();
        let last_seen = match read::last_seen(connection) {
            // The statistics are needed only for events without a checksum.
            Err(error) if is_damage(&error) => {
                damage.push(within("event_stats", error).to_string());
                None
            }
            last_seen => last_seen?,
        };
        let newest = read::newest(connection, unchecked_through, last_seen)?;
        let last = newest.last(meta::seq(connection, meta::LAST_SEQ)?, last_noted).max(deleted_through);
        let is_last_largest = newest.damaged.iter().all(|seq| *seq <= last);
        let last_time = newest.time.unwrap_or_default().max(Timestamp(noted(meta::LAST_TIME_US)?));
        damage.extend(newest.damaged.iter().map(|seq| read::name_of_damaged(*seq)));
        let sealed_before = noted(meta::SEALED_BEFORE)?;
        connection.execute("DELETE FROM event_index WHERE segment >= ?1", [sealed_before])?;

        let position = Position { seq: last, time: last_time, deleted_through };
        let recent = lists(connection, sealed_before as u64, &position, unchecked_through, &mut damage)?;
        let has_legacy_ids = connection.query_row(
            "SELECT EXISTS (SELECT 1 FROM pragma_index_list('events') AS its \
             JOIN pragma_index_info(its.name) AS columns WHERE columns.name = 'legacy_id')",
            [],
            |row| row.get(0),
        )?;
        // With a damaged page of the oldest rows, these rows stay in the file, and everything else works.
        let tidying = ignoring_damage(Tidying::after_start(connection, deleted_through))?.unwrap_or_else(Tidying::none);
        let rolling_up = RollingUp::new(rollups::missing(connection)?);
        Ok(State { position, is_last_largest, recent, has_legacy_ids, unchecked_through, tidying, rolling_up, damage })
    }
}

/// The posting lists of segments from this one on, built from their rows, in about 100 ms for 65,536 rows of 1 KB. The
/// rows are read whole and compared with their checksums: otherwise a list with a damaged number would be stored as if
/// it were right. A damaged row is noted under the values that it shows, so that a query for one of them meets the
/// damage.
fn lists(
    connection: &Connection,
    from: u64,
    position: &Position,
    unchecked_through: Seq,
    damage: &mut Vec<String>,
) -> rusqlite::Result<Recent> {
    let mut recent = Recent { open: Segment::new(from), full: Vec::new() };
    let (mut next, last) = (segments::first_of(from).max(position.oldest()), position.seq);
    // Damaged rows after the last undamaged one. Their numbers are among those up to the next undamaged one.
    let mut doubtful = Vec::new();
    let mut statement = connection.prepare(read::select_events!("seq >= ?1 ORDER BY seq"))?;
    let mut rows = statement.query([next.0 as i64])?;
    while let Some(row) = rows.next()? {
        match read::stored(row, unchecked_through) {
            Ok(event) if event.seq >= next && event.seq <= last => {
                note_doubtful(&mut recent, doubtful.drain(..), next, event.seq);
                recent.note(event.seq, &event.columns());
                next = event.seq.next();
            }
            Ok(event) => damage.push(read::out_of_order(event.seq).to_string()),
            Err(error) => {
                damage.push(error.to_string());
                let text = |column| row.get_ref(column).ok().and_then(|value| value.as_str().ok());
                let seq = Seq(row.get::<_, i64>(0)? as u64);
                doubtful.push((seq, [2, 3, 4, 5].map(|column| text(column).map(|text| text.as_bytes().into()))));
            }
        }
    }
    note_doubtful(&mut recent, doubtful.drain(..), next, last.next());
    Ok(recent)
}

/// A damaged row: the number and the values that it shows.
type Doubtful = (Seq, [Option<Box<[u8]>>; 4]);

/// Notes damaged events whose numbers are from `next` up to, and without, `end`.
fn note_doubtful(recent: &mut Recent, doubtful: impl Iterator<Item = Doubtful>, mut next: Seq, end: Seq) {
    for (shown, values) in doubtful {
        let seq = if (next..end).contains(&shown) { shown } else { next };
        let [event_type, source, session_id, user_id] = values.each_ref().map(Option::as_deref);
        if seq < end
            && let (Some(event_type), Some(source)) = (event_type, source)
        {
            recent.note(seq, &Columns { event_type, source, session_id, user_id, payload: b"" });
            next = seq.next();
        }
    }
}

fn assemble(
    config: &Config,
    (folder, database): (PathBuf, File),
    mut connection: Connection,
    state: State,
    sidecar: Sidecar,
    lock: File,
    may_have_remains: bool,
) -> rusqlite::Result<(Store, Parts)> {
    let State { position, is_last_largest, recent, has_legacy_ids, unchecked_through, tidying, rolling_up, damage } =
        state;
    let (full_sender, full) = crossbeam_channel::unbounded();
    for segment in &recent.full {
        full_sender.send(segment.clone()).expect("its receiver is in this scope");
    }
    let mut integrity = Integrity::default();
    damage.into_iter().for_each(|what| integrity.note(what));
    let integrity = Arc::new(Mutex::new(integrity));
    let shared = Arc::new(Shared {
        committed: AtomicU64::new(position.seq.0),
        wal: Wal::default(),
        recent: RwLock::new(recent),
        audience: Audience::default(),
        usual_level: if config.durability == Durability::Full { AckLevel::Synced } else { AckLevel::Stored },
        committed_at_start: position.seq,
        counts: Counts::default(),
        timings: Timings::default(),
        changed_subscriptions: Mutex::default(),
        pool: read::Pool::new(config.database_path.clone(), integrity.clone()),
        integrity,
        has_legacy_ids,
        unchecked_through,
        epoch: sidecar.epoch(),
        read_timeout: config.read_timeout,
        queue: Queue::new(config),
        syncs: Syncs::new(config.durability),
        database,
    });
    connection.wal_hook(Some({
        let shared = shared.clone();
        move |_: &mut rusqlite::hooks::Wal, pages| {
            shared.wal.grew(pages as usize);
            Ok(())
        }
    }))?;
    let (commands, queue) = crossbeam_channel::unbounded();
    let (commit_sender, commits) = crossbeam_channel::bounded(COMMITS_WAITING_MAX);
    let (due_sender, due) = crossbeam_channel::bounded(1);
    let (search_sender, searches) = crossbeam_channel::bounded(1);
    let writer = Writer {
        connection,
        shared: shared.clone(),
        commands: queue,
        commits: commit_sender,
        sealer: full_sender,
        position,
        space: Space::new(folder, config.free_space_min_bytes),
        syncing: Syncing::new(config.durability, sidecar),
        wal: WalUpkeep::new(due_sender, search_sender, may_have_remains),
        arrivals: Arrivals::new(Duration::from_micros(config.writer_spin_micros)),
        applier: Applier::new(is_last_largest),
        work: Work::new(tidying, rolling_up),
    };
    let sealer = Sealer { full, commands: commands.clone(), shared: shared.clone() };
    let connection = schema::open_writer(&config.database_path)?;
    schema::prepare(&connection, config.durability)?;
    let checkpointer = Checkpointer { connection, shared: shared.clone(), due, commands: commands.clone() };
    let sweeper = Sweeper { shared: shared.clone(), searches, commands: commands.clone() };
    let checker = config.check_at_start.then(|| Checker { path: config.database_path.clone(), shared: shared.clone() });
    Ok((Store { shared, commands }, Parts { writer, commits, sealer, checkpointer, sweeper, checker, lock }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Field, Filter};
    use crate::store::Query;
    use crate::store::fixture::{close, file_with, hand_in_ticks, renumber};

    #[test]
    fn a_damaged_number_of_the_last_event_changes_no_later_number() {
        for to in [300 - 128, 299, 300 + 8_192, 300 + 3] {
            let (_folder, config) = file_with(300);
            renumber(&config.database_path, 300, to);
            for last in [300, 321] {
                let (store, mut parts) = Store::open_parts(&config).expect("open");
                assert_eq!(store.committed(), Seq(last), "{to}");
                hand_in_ticks(&store, 20, None);
                hand_in_ticks(&store, 1, None);
                while parts.write() {}
                assert_eq!(store.committed(), Seq(last + 21), "{to}");
                let mut numbers = Vec::new();
                let query = Query { after: Seq(last), ..Query::default() };
                let scanned = store.reader().scan(&query, |event| {
                    numbers.push(event.seq.0);
                    std::ops::ControlFlow::Continue(())
                });
                assert_eq!((scanned, numbers), (Ok(None), (last + 1..=last + 21).collect()), "{to}");
                close(&store, parts);
            }
        }
    }

    #[test]
    fn a_damaged_number_does_not_get_into_a_posting_list() {
        for to in [200 + 8_192, 200 + 64, 200 - 128] {
            let (_folder, config) = file_with(310);
            renumber(&config.database_path, 200, to);
            for _ in 0..2 {
                let (store, mut parts) = Store::open_parts(&config).expect("open");
                while parts.seal() | parts.write() {}
                let file = schema::open_reader(&config.database_path).expect("undamaged");
                let sealed = file.prepare("SELECT DISTINCT segment FROM event_index").and_then(|mut sealed| {
                    sealed.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()
                });
                assert_eq!(sealed, Ok((0..9).collect()), "{to}");
                assert_eq!(meta::get(&file, meta::SEALED_BEFORE), Ok(9), "{to}");
                let mut query =
                    Query { filter: Filter::default().with_types(["timer_tick"]), after: Seq(200), ..Query::default() };
                assert_eq!(store.reader().count(&query), Ok(110), "{to}");
                query.after = Seq(199);
                let scanned = store.reader().scan(&query, |_| std::ops::ControlFlow::Continue(()));
                assert!(scanned.is_err_and(|error| error.to_string().contains("0000000000c8")), "{to}");
                close(&store, parts);
            }
        }
    }

    #[test]
    fn a_start_goes_on_and_names_an_event_with_a_field_of_a_wrong_type() {
        let (_folder, config) = file_with(10);
        let flipped = "UPDATE events SET event_type = X'00FF', session_id = 5 WHERE seq = 4";
        assert_eq!(schema::open_writer(&config.database_path).and_then(|file| file.execute(flipped, [])), Ok(1));
        let (store, parts) = Store::open_parts(&config).expect("open");
        assert_eq!(store.integrity().damage, ["events: evt_000000000004 is damaged"]);
        assert_eq!(
            store.reader().count(&Query { filter: Filter::default().with(Field::Session, ["a"]), ..Query::default() }),
            Ok(9)
        );
        drop(parts);
    }
}
