//! The tables of the newest format, and how a file says which format it has.

use std::ops::RangeInclusive;

use rusqlite::Connection;
use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};

/// Written into `PRAGMA user_version`; a file with a larger one was made by a newer server.
pub const VERSION: i64 = 6;

/// Bytes of a page. 4,096 is SQLite's default; with larger pages each small commit writes more bytes.
pub const PAGE_BYTES: u64 = 4_096;

/// Written into `PRAGMA application_id`: "EvPl".
pub const APPLICATION_ID: i64 = 0x4576_506c;

/// `events` is append-only: `seq` is the rowid, and no index needs an update in the middle of a tree. `legacy_id` is
/// the id that an event had in the Python service. The view `readable_events` shows a person what a client sees,
/// without rows that are deleted and not removed yet. If `id` and `timestamp` were generated columns of the table,
/// SQLite would compute them at every insert, which is a quarter of its time, although it stores neither.
///
/// `event_index` has, for each full segment of 65,536 events and each value of a field, the offsets of the events that
/// have it (`segments.rs` describes the blob); `kind` is 0 type, 1 session, 2 user, 3 source. A list does not change,
/// and is removed with its last event. `holes` has the number of holes of each segment, and their offsets, encoded like
/// those of a list. `idempotency_keys` has, for each key, the first of the `count` events that were stored under it,
/// and a digest of them. `rollups` counts the events of each minute (since 1970) and type, `event_stats` those of each type.
///
/// `checksum` is over all other columns of a row (`checksum.rs`). It is the last column because it was added to
/// existing files. Rows from before that have none; keys and holes from before format 4 have no digest and no offsets
/// either.
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
FROM events WHERE seq > coalesce((SELECT value FROM meta WHERE key = 'deleted_through'), 0);
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
CREATE TABLE IF NOT EXISTS rollups (
    minute INTEGER NOT NULL,
    event_type TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (minute, event_type)
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

/// The index of ids of the Python service. Only a file that was upgraded from it has such ids, and this index.
pub const LEGACY_INDEX: &str = "CREATE UNIQUE INDEX events_legacy_id ON events(legacy_id) WHERE legacy_id IS NOT NULL";

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

/// Whether a file says that it is ours, in any format.
pub fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    Ok(application == APPLICATION_ID)
}

/// The format that a file says it has.
pub fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Whether a file says that it is ours, in one of these formats.
pub fn is_of(connection: &Connection, formats: RangeInclusive<i64>) -> rusqlite::Result<bool> {
    Ok(is_ours(connection)? && formats.contains(&version(connection)?))
}
