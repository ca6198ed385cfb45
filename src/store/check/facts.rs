//! What a check has to know of the whole file, and the rows that belong to no segment.

use rusqlite::Connection;

use crate::event::Seq;
use crate::store::damage::{ignoring_damage, is_damage, within};
use crate::store::kept::Kept;
use crate::store::read;
use crate::store::schema::{self, meta};

/// What is known of the file before its segments are checked.
#[derive(Clone, Copy)]
pub struct Facts {
    /// Events up to this one were stored before rows had checksums.
    pub unchecked_through: Seq,
    /// The file is of a format whose keys and holes have no checksums.
    pub is_former: bool,
    /// What was deleted when the check began.
    pub deletions: Deletions,
}

/// What a deletion changes for good: where the events begin, and how many were chosen out of the middle, unless damage
/// hides that number.
pub type Deletions = (Seq, Option<i64>);

impl Facts {
    /// Also checks the marks in `meta` and the durable subscriptions.
    pub fn read(connection: &Connection, found: &mut dyn FnMut(String)) -> rusqlite::Result<Self> {
        if let Err(error) = Kept::all(connection) {
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
        let is_former = schema::version(connection)? < schema::HOLES_CHECKED_SINCE;
        Ok(Self { unchecked_through, is_former, deletions: deletions(connection)? })
    }
}

/// What was deleted of the whole file.
pub fn deletions(connection: &Connection) -> rusqlite::Result<Deletions> {
    let oldest = read::rows(connection)?.map_or(Seq::MAX, |rows| *rows.start());
    Ok((oldest, ignoring_damage(chosen(connection))?))
}

/// The name of damage. Gives back any other error.
pub fn name_of_damage(error: rusqlite::Error) -> rusqlite::Result<String> {
    if is_damage(&error) { Ok(error.to_string()) } else { Err(error) }
}

/// How many events were chosen to be deleted.
fn chosen(connection: &Connection) -> rusqlite::Result<i64> {
    const SQL: &str = "SELECT coalesce(sum(count), 0) FROM holes";
    let chosen = connection.prepare_cached(SQL)?.query_row([], |row| row.get(0));
    chosen.map_err(|error| within("holes", error))
}

fn marks(connection: &Connection) -> rusqlite::Result<Seq> {
    for mark in [meta::LAST_SEQ, meta::LAST_TIME_US, meta::EPOCH, meta::INODE] {
        meta::get(connection, mark)?;
    }
    meta::get(connection, meta::UNCHECKED_THROUGH).map(|seq| Seq(seq as u64))
}
