//! What a check has to know of the whole file, and the check of rows that belong to no segment.

use std::ops::RangeInclusive;

use rusqlite::Connection;

use crate::event::Seq;
use crate::store::damage::{damaged, ignoring_damage, is_damage, within};
use crate::store::read;
use crate::store::schema::{self, meta};
use crate::store::subscription::StoredSubscription;

/// What is read of the file before its segments are checked.
#[derive(Clone, Copy)]
pub struct Facts {
    /// Events up to this one were stored before rows had checksums.
    pub unchecked_through: Seq,
    /// The file is of a format whose keys and holes have no checksums.
    pub is_former: bool,
    /// The file is of a format that has rollups.
    pub has_rollups: bool,
    /// What was deleted when the check began.
    pub deletions: Deletions,
}

/// What a deletion changes for good: up to which event everything is deleted, and how many chosen events are deleted,
/// unless damage hides that number.
pub type Deletions = (Seq, Option<i64>);

impl Facts {
    /// Also checks the marks in `meta` and the durable subscriptions.
    pub fn read(connection: &Connection, found: &mut dyn FnMut(String)) -> rusqlite::Result<Self> {
        if let Err(error) = StoredSubscription::all(connection) {
            found(name_of_damage(error)?);
        }
        let unchecked_through = match marks(connection) {
            Ok(unchecked_through) => unchecked_through,
            Err(error) => {
                found(name_of_damage(error)?);
                Seq::ZERO
            }
        };
        if let Err(error) = chosen(connection) {
            found(name_of_damage(error)?);
        }
        let version = schema::version(connection)?;
        let (is_former, has_rollups) = (version < schema::HOLES_CHECKED_SINCE, version >= schema::ROLLUPS_SINCE);
        Ok(Self { unchecked_through, is_former, has_rollups, deletions: deletions(connection)? })
    }
}

/// What was deleted of the whole file.
pub fn deletions(connection: &Connection) -> rusqlite::Result<Deletions> {
    Ok((deleted_through(connection)?, ignoring_damage(chosen(connection))?))
}

/// The name of damage. Returns any other error.
pub fn name_of_damage(error: rusqlite::Error) -> rusqlite::Result<String> {
    if is_damage(&error) { Ok(error.to_string()) } else { Err(error) }
}

/// How many chosen events are deleted.
fn chosen(connection: &Connection) -> rusqlite::Result<i64> {
    const SQL: &str = "SELECT coalesce(sum(count), 0) FROM holes";
    let chosen = connection.prepare_cached(SQL)?.query_row([], |row| row.get(0));
    chosen.map_err(|error| within("holes", error))
}

/// Everything up to this event is deleted. If the mark is damaged, nothing counts as deleted.
pub fn deleted_through(connection: &Connection) -> rusqlite::Result<Seq> {
    let mark = match schema::version(connection)? < schema::DELETED_THROUGH_SINCE {
        true => read::first_row(connection).map(Seq::prev),
        false => meta::seq(connection, meta::DELETED_THROUGH),
    };
    Ok(ignoring_damage(mark)?.unwrap_or_default())
}

/// The numbers of the rows whose events are not deleted, from the first one that may be stored to the last row, damaged
/// or not.
pub fn stored(connection: &Connection) -> rusqlite::Result<Option<RangeInclusive<Seq>>> {
    let (first, last) = (deleted_through(connection)?.next(), read::last_row(connection)?.unwrap_or_default());
    Ok(Some(first..=last).filter(|stored| !stored.is_empty()))
}

/// Checks the marks in `meta`. Returns up to which event rows have no checksum.
fn marks(connection: &Connection) -> rusqlite::Result<Seq> {
    for mark in [meta::LAST_TIME_US, meta::EPOCH, meta::INODE] {
        meta::get(connection, mark)?;
    }
    let deleted_through = meta::seq(connection, meta::DELETED_THROUGH)?;
    let last = meta::seq(connection, meta::LAST_SEQ)?.max(read::last_row(connection)?.unwrap_or_default());
    if deleted_through > last {
        return Err(damaged("meta: deleted_through is after the last event"));
    }
    meta::seq(connection, meta::UNCHECKED_THROUGH)
}
