//! Comparing the definitions of a file's tables with ours, and defining them again in a copy if they are damaged.

use std::ops::RangeInclusive;

use rusqlite::Connection;

use super::sql::each;
use super::tables::{TABLES, VERSION, version};
use crate::store::damage::damaged;

/// The formats whose tables are known well enough to be verified.
pub const VERIFIED: RangeInclusive<i64> = 3..=VERSION;

/// The first format in which keys and holes have checksums.
pub const HOLES_CHECKED_SINCE: i64 = 4;

/// The first format that has a mark up to which event everything is deleted.
pub const DELETED_THROUGH_SINCE: i64 = 5;

/// The first format that has the rollups.
pub const ROLLUPS_SINCE: i64 = 6;

/// Columns that came later, with their format.
const ADDED: [(i64, &str); 7] = [
    (4, "idempotency_keys.digest"),
    (4, "idempotency_keys.checksum"),
    (4, "holes.offsets"),
    (4, "holes.checksum"),
    (6, "rollups.minute"),
    (6, "rollups.event_type"),
    (6, "rollups.count"),
];

/// An empty database with our tables.
fn ours() -> rusqlite::Result<Connection> {
    let ours = Connection::open_in_memory()?;
    ours.execute_batch(TABLES)?;
    Ok(ours)
}

/// Compares the tables of a file of one of the formats [`VERIFIED`] with [`TABLES`]. Without this, a table with a
/// damaged name would be taken for missing, and an empty one created beside it; a statement that names a damaged column
/// would fail in the middle of the work; and two tables with the same root page would be written into each other.
/// Tables and columns that are not ours do not matter.
///
/// # Errors
/// What is damaged.
pub fn verify(connection: &Connection) -> rusqlite::Result<()> {
    let expected = columns(&ours()?)?;
    let (found, version) = (columns(connection)?, version(connection)?);
    let is_expected = |name: &str| !ADDED.iter().any(|(since, added)| version < *since && *added == name);
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

/// Defines the tables of a copy again if their definitions are damaged: their rows are still in the file. The root page
/// of a table is found by the table's name, in which one byte may be wrong. Tables that are not ours are no longer
/// defined afterwards.
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
        let is_name = |found: &[u8]| {
            let wrong = found.iter().zip(name.as_bytes()).filter(|(found, right)| found != right).count();
            found.len() == name.len() && wrong <= 1
        };
        let Some((_, root)) = roots.iter().find(|(found, _)| is_name(found)) else { return Ok(()) };
        const SQL: &str = "INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES (?1, ?2, ?3, ?4, ?5)";
        let [kind, of, sql] = [0, 2, 3].map(|column| row.get::<_, Option<String>>(column));
        copy.execute(SQL, (kind?, &name, of?, root, sql?)).map(drop)
    })?;
    copy.execute_batch("PRAGMA writable_schema = RESET")
}
