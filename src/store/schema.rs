//! The tables, and the only place that opens connections.

use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use percent_encoding::{AsciiSet, percent_encode};
use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, Row, ToSql, TransactionBehavior};

use super::damage::damaged;
use super::holes::{self, Holes};
use super::{Kept, checksum, segments};
use crate::config::Durability;
use crate::event::Seq;

/// Written into `PRAGMA user_version`; a file with a larger one was made by a newer server.
pub const VERSION: i64 = 4;

/// Bytes of a page, SQLite's default: for a log, larger ones mean more bytes for each small commit.
pub const PAGE_BYTES: u64 = 4_096;

/// Written into `PRAGMA application_id`: "EvPl".
pub const APPLICATION_ID: i64 = 0x4576_506c;

/// Older SQLite can lose commits when the writer and the checkpointer are different connections.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// `events` is append-only: `seq` is the rowid, and no index needs an update in the middle of a tree.
/// `legacy_id` is the id an event had in the service this one replaces. The view `readable_events` shows
/// a person what a client sees; were `id` and `timestamp` generated columns of the table, SQLite would
/// compute them at every insert (a quarter of its time), even though it stores neither.
///
/// `event_index` holds, for each full segment of 65,536 events and each value of a field, the offsets of the events
/// that have it (`segments.rs` describes the blob); `kind` is 0 type, 1 session, 2 user, 3 source. A list does not
/// change, and is removed with its last event: `holes` counts the events that were chosen to be deleted out of each
/// segment, and has their offsets, encoded as those of a list. `idempotency_keys` has for a key the first of the
/// `count` events that were stored under it, and a digest of them.
///
/// `checksum` is over all else in a row (`checksum.rs`). It is the last column because it was added to existing files:
/// rows from before have none, and keys and holes from before format 4 no digest and no offsets either.
pub const TABLES: &str = "
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY,
    time_us INTEGER NOT NULL,
    event_type TEXT NOT NULL,
    source TEXT NOT NULL,
    session_id TEXT,
    user_id TEXT,
    payload TEXT NOT NULL,
    legacy_id TEXT,
    checksum INTEGER
);
CREATE VIEW IF NOT EXISTS readable_events AS SELECT
    coalesce(legacy_id, printf('evt_%012x', seq)) AS id,
    event_type, source, session_id, user_id, payload,
    strftime('%Y-%m-%dT%H:%M:%S', time_us / 1000000 - (time_us % 1000000 < 0), 'unixepoch')
        || printf('.%06dZ', (time_us % 1000000 + 1000000) % 1000000) AS timestamp,
    seq
FROM events;
CREATE TABLE IF NOT EXISTS event_index (
    segment INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    key TEXT NOT NULL,
    offsets BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (segment, kind, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS idempotency_keys (
    seq INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    key TEXT NOT NULL UNIQUE,
    digest BLOB,
    checksum INTEGER
);
CREATE TABLE IF NOT EXISTS holes (
    segment INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    offsets BLOB,
    checksum INTEGER
);
CREATE TABLE IF NOT EXISTS event_stats (
    event_type TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    last_seen TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS subscriptions (
    name TEXT PRIMARY KEY,
    filters TEXT NOT NULL,
    position INTEGER NOT NULL,
    last_seen TEXT NOT NULL,
    checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (
    key TEXT PRIMARY KEY,
    value INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) WITHOUT ROWID;
";

/// The columns that came with format 4.
const SINCE_4: [&str; 4] = ["idempotency_keys.digest", "idempotency_keys.checksum", "holes.offsets", "holes.checksum"];

/// Only an upgraded file has old ids, so only it has an index of them.
pub const LEGACY_INDEX: &str = "CREATE UNIQUE INDEX events_legacy_id ON events(legacy_id) WHERE legacy_id IS NOT NULL";

/// UTF-8 that is known to be, bound without being checked again.
pub struct Text<'b>(pub Option<&'b [u8]>);

impl ToSql for Text<'_> {
    #[inline]
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0.map_or(ValueRef::Null, ValueRef::Text)))
    }
}

/// Rows of `meta`.
pub mod meta {
    use rusqlite::{Connection, OptionalExtension};

    use super::{checksum, damaged};

    /// Numbers up to this one are used up, also when their events are deleted.
    pub const LAST_SEQ: &str = "last_seq";
    /// The time of the event `LAST_SEQ`; later events have later times.
    pub const LAST_TIME_US: &str = "last_time_us";
    /// Which life of the database this is.
    pub const EPOCH: &str = "epoch";
    /// The file it is stored in.
    pub const INODE: &str = "inode";
    /// Segments before this one have all their rows in `event_index`.
    pub const SEALED_BEFORE: &str = "sealed_before";
    /// Events up to this one were stored before rows had checksums.
    pub const UNCHECKED_THROUGH: &str = "unchecked_through";

    /// The value of a row, 0 if there is none.
    pub fn get(connection: &Connection, key: &str) -> rusqlite::Result<i64> {
        let mut find = connection.prepare_cached("SELECT value, checksum FROM meta WHERE key = ?1")?;
        let found: Option<(i64, i32)> = find.query_row([key], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match found {
            None => Ok(0),
            Some((value, sum)) if checksum::of_meta(key, value) == sum => Ok(value),
            Some(_) => Err(damaged(format!("meta: {key} is damaged"))),
        }
    }

    pub fn set(connection: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
        const SQL: &str = "INSERT OR REPLACE INTO meta (key, value, checksum) VALUES (?1, ?2, ?3)";
        connection.prepare_cached(SQL)?.execute((key, value, checksum::of_meta(key, value))).map(drop)
    }
}

/// The read-write connection, which has changed nothing yet.
pub fn open_writer(path: &Path) -> rusqlite::Result<Connection> {
    assert!(
        rusqlite::version_number() >= SQLITE_VERSION_MIN,
        "this build holds SQLite {}, which is older than 3.51.3 and can lose commits",
        rusqlite::version()
    );
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Write-ahead log, and no checkpoints by itself: the store does them off the commit path.
pub fn prepare(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // What a start changes is synced. The writer sets it to less once the file beside the database admits unsynced
    // commits.
    let synchronous = if durability == Durability::Off { "OFF" } else { "FULL" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "secure_delete", SECURE_DELETE)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    connection.pragma_update(None, "cache_size", -(WRITER_CACHE_KIB as i64))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// A connection that changes nothing, takes no lock and makes no files: for a file that may be another program's. What
/// is in the log alone it does not see.
pub fn open_untouched(path: &Path) -> rusqlite::Result<Connection> {
    /// Characters of a path that mean something else in a URI.
    const ESCAPED: &AsciiSet = &percent_encoding::CONTROLS.add(b'%').add(b'?').add(b'#');
    let uri = format!("file:{}?immutable=1", percent_encode(path.as_os_str().as_bytes(), ESCAPED));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags)
}

/// A connection that can only read, and has not read how the tables are defined.
pub fn open_unread(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// A connection that can only read.
pub fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = open_unread(path)?;
    connection.pragma_update(None, "cache_size", -(READER_CACHE_KIB as i64))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Whether there are no tables.
pub fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
}

/// Whether there are tables, and none of them is our `events`.
pub fn is_foreign(connection: &Connection) -> rusqlite::Result<bool> {
    let has_tables = !is_empty(connection)?;
    match connection.prepare("SELECT seq, time_us, legacy_id FROM events").map(drop) {
        Err(error) if matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)) => Err(error),
        found => Ok(has_tables && found.is_err()),
    }
}

/// Whether it says of itself that it is ours, of whatever format.
pub fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    Ok(application == APPLICATION_ID)
}

/// The format that a file says it has.
pub fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Whether it says of itself that it is ours and of one of these formats.
pub fn is_of(connection: &Connection, formats: RangeInclusive<i64>) -> rusqlite::Result<bool> {
    Ok(is_ours(connection)? && formats.contains(&version(connection)?))
}

/// The formats whose tables are known well enough to be verified.
pub const VERIFIED: RangeInclusive<i64> = 3..=VERSION;

/// An empty database with our tables.
fn ours() -> rusqlite::Result<Connection> {
    let ours = Connection::open_in_memory()?;
    ours.execute_batch(TABLES)?;
    Ok(ours)
}

/// Compares the tables of a file of one of the formats [`VERIFIED`] with [`TABLES`]. One with a damaged name would be
/// taken for missing, a statement that does not find a column would fail in the middle of the work, and of two trees
/// with one root each would be written into the other. What else there is does not matter.
///
/// # Errors
/// What is damaged.
pub fn verify(connection: &Connection) -> rusqlite::Result<()> {
    let expected = columns(&ours()?)?;
    let (found, is_former) = (columns(connection)?, version(connection)? < 4);
    let is_expected = |name: &str| !(is_former && SINCE_4.contains(&name));
    if let Some((name, _)) = expected.into_iter().find(|column| is_expected(&column.0) && !found.contains(column)) {
        return Err(damaged(format!("tables: {name} is damaged")));
    }
    const ROOTS: &str = "SELECT count(*) = count(DISTINCT rootpage) FROM sqlite_schema WHERE rootpage != 0";
    match connection.query_row(ROOTS, [], |row| row.get(0))? {
        true => Ok(()),
        false => Err(damaged("tables: two have the same root")),
    }
}

/// The columns of all tables and views, each with how it is declared.
fn columns(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    const SQL: &str = "SELECT its.name || '.' || columns.name, its.type || its.wr || columns.type || columns.\"notnull\" || \
                       columns.pk || coalesce(columns.dflt_value, '') \
                       FROM sqlite_schema JOIN pragma_table_list(sqlite_schema.name) AS its \
                       JOIN pragma_table_xinfo(its.name) AS columns WHERE its.schema = 'main'";
    connection.prepare(SQL)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Defines the tables of a copy anew where their definitions are damaged: their trees are there all the same. Which is
/// whose is told by the name, of which a byte may be wrong. What else there was is not defined any more.
pub fn redefine(copy: &Connection) -> rusqlite::Result<()> {
    copy.execute_batch("PRAGMA writable_schema = ON")?;
    let pages: i64 = copy.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    let mut roots = Vec::new();
    each(copy, "SELECT CAST(name AS BLOB), rootpage FROM sqlite_schema", |row| {
        let root = row.get(1).ok().filter(|root: &i64| (2..=pages).contains(root));
        roots.extend(row.get::<_, Vec<u8>>(0).ok().zip(root));
        Ok(())
    })?;
    copy.execute_batch("DELETE FROM sqlite_schema")?;
    each(&ours()?, "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE type != 'view'", |row| {
        let name: String = row.get(1)?;
        let is_it = |found: &[u8]| {
            let wrong = found.iter().zip(name.as_bytes()).filter(|(found, right)| found != right).count();
            found.len() == name.len() && wrong <= 1
        };
        let Some((_, root)) = roots.iter().find(|(found, _)| is_it(found)) else { return Ok(()) };
        const SQL: &str = "INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES (?1, ?2, ?3, ?4, ?5)";
        let [kind, of, sql] = [0, 2, 3].map(|column| row.get::<_, Option<String>>(column));
        copy.execute(SQL, (kind?, &name, of?, root, sql?)).map(drop)
    })?;
    copy.execute_batch("PRAGMA writable_schema = RESET")
}

/// Creates what is missing, and makes a file of an earlier format one of this: in one transaction, so that a crash
/// leaves the one or the other.
pub fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let former = version(&transaction)?;
    let is_without_checksums = (1..3).contains(&former);
    if is_without_checksums {
        transaction.execute_batch(
            "ALTER TABLE events ADD COLUMN checksum INTEGER;
            ALTER TABLE event_index RENAME TO former_index;
            ALTER TABLE subscriptions RENAME TO former_subscriptions;
            ALTER TABLE meta RENAME TO former_meta;",
        )?;
    }
    // Their tables came with format 2. Adding a column costs nothing for the rows there are.
    if (2..4).contains(&former) {
        transaction.execute_batch(
            "ALTER TABLE idempotency_keys ADD COLUMN digest BLOB;
            ALTER TABLE idempotency_keys ADD COLUMN checksum INTEGER;
            ALTER TABLE holes ADD COLUMN offsets BLOB;
            ALTER TABLE holes ADD COLUMN checksum INTEGER;",
        )?;
    }
    transaction.execute_batch(TABLES)?;
    if is_without_checksums {
        add_checksums(&transaction)?;
    }
    if (2..4).contains(&former) {
        add_holes(&transaction)?;
    }
    transaction
        .execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"))?;
    transaction.commit()
}

/// Finds the holes of segments that are not in the index yet: only here it is known which numbers of the open one are
/// used up. The sealer finds those of the others later.
fn add_holes(connection: &Connection) -> rusqlite::Result<()> {
    let stored: i64 = connection.query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| row.get(0))?;
    let last = Seq(stored.max(meta::get(connection, meta::LAST_SEQ)?) as u64);
    let sealed_before = meta::get(connection, meta::SEALED_BEFORE)?;
    let sql = format!("SELECT segment, count FROM holes WHERE segment >= {sealed_before}");
    each(connection, &sql, |row| {
        let (segment, count) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
        let mut offsets = holes::find(connection, segment)?;
        offsets.retain(|offset| segments::first_of(segment).plus((*offset).into()) <= last);
        Holes { count, offsets: Some(offsets) }.store(connection, segment)
    })
}

/// Gives the rows of the small tables their checksums. Events keep theirs as they are, for that would rewrite the
/// whole file: those there are stay without.
fn add_checksums(connection: &Connection) -> rusqlite::Result<()> {
    each(connection, "SELECT key, value FROM former_meta", |row| {
        meta::set(connection, row.get_ref(0)?.as_str()?, row.get(1)?)
    })?;
    let last: i64 = connection.query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| row.get(0))?;
    meta::set(connection, meta::UNCHECKED_THROUGH, last)?;

    let mut keep = connection.prepare("INSERT INTO event_index VALUES (?1, ?2, ?3, ?4, ?5)")?;
    each(connection, "SELECT segment, kind, key, offsets FROM former_index ORDER BY segment, kind, key", |row| {
        let (segment, kind): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (key, offsets) = (row.get_ref(2)?.as_str()?, row.get_ref(3)?.as_blob()?);
        let checksum = checksum::of_list(segment, kind, key.as_bytes(), offsets);
        keep.execute((segment, kind, key, offsets, checksum)).map(drop)
    })?;
    each(connection, "SELECT name, filters, position, last_seen FROM former_subscriptions", |row| {
        Kept::read(row).and_then(|kept| kept.store(connection))
    })?;
    connection.execute_batch("DROP TABLE former_index; DROP TABLE former_subscriptions; DROP TABLE former_meta")
}

fn each(
    connection: &Connection,
    sql: &str,
    mut visit: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        visit(row)?;
    }
    Ok(())
}

/// Zeros replace a deleted cell on a page that is written anyway. Without them a row that moved to the next page, as
/// most do when a segment is sealed, would leave a copy that outlives its deletion.
pub const SECURE_DELETE: &str = "FAST";

/// How long a connection waits for another that holds a lock: for an instant (start, recovery), or another program
/// that writes.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A write-ahead log that was larger is cut back to this when it starts over.
pub const WAL_BYTES_KEPT: i64 = 64 << 20;

/// The writer touches the right edge of a few trees; this holds them with room for a deletion's pages.
const WRITER_CACHE_KIB: usize = 8 << 10;

/// Upper pages of the trees and the working set of one page read.
const READER_CACHE_KIB: usize = 2 << 10;
