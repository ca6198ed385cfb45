//! Rows of `meta`: facts about the whole file, one number each.

use rusqlite::{Connection, OptionalExtension};

use crate::event::Seq;
use crate::store::checksum;
use crate::store::damage::damaged;

/// Numbers up to this one were given, even if their events are deleted.
pub const LAST_SEQ: &str = "last_seq";
/// The time of the event `LAST_SEQ`; later events have later times.
pub const LAST_TIME_US: &str = "last_time_us";
/// Everything up to this event is deleted, whether its rows are removed yet or not.
pub const DELETED_THROUGH: &str = "deleted_through";
/// The epoch of the database.
pub const EPOCH: &str = "epoch";
/// The inode of the file that the epoch belongs to: a copy of the file has another.
pub const INODE: &str = "inode";
/// Segments before this one have all their rows in `event_index`.
pub const SEALED_BEFORE: &str = "sealed_before";
/// Events up to this one are not in the rollups yet.
pub const NOT_ROLLED_UP: &str = "not_rolled_up";
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

/// The value of a row as the number of an event, 0 if there is no row.
pub fn seq(connection: &Connection, key: &str) -> rusqlite::Result<Seq> {
    get(connection, key).map(|seq| Seq(seq as u64))
}

/// Gives a transaction one page to commit, and so to sync, without changing anything. SQLite leaves out a page whose bytes
/// stay the same, so a row is changed and changed back.
pub fn touch(connection: &Connection) -> rusqlite::Result<()> {
    let mut invert = connection.prepare_cached("UPDATE meta SET value = ~value WHERE key = ?1")?;
    invert.execute([EPOCH])?;
    invert.execute([EPOCH]).map(drop)
}

pub fn set(connection: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT OR REPLACE INTO meta (key, value, checksum) VALUES (?1, ?2, ?3)";
    connection.prepare_cached(SQL)?.execute((key, value, checksum::of_meta(key, value))).map(drop)
}
