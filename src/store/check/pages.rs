//! The check of the pages of a file, by SQLite's own checks.

use rusqlite::{Connection, ErrorCode};

use crate::store::damage::is_damage;

/// How thoroughly the pages are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// `quick_check`, and `integrity_check` of the idempotency keys alone.
    Quick,
    /// `integrity_check`, which also compares SQLite's indexes with their tables.
    All,
}

/// Checks whether the pages fit together. Returns whether it came to the end: the connection's progress handler may
/// stop it.
///
/// # Errors
/// What SQLite reports, other than damage.
pub fn pages(connection: &Connection, pages: Pages, mut found: impl FnMut(String)) -> rusqlite::Result<bool> {
    let pragmas: &[&str] = match pages {
        // Keys are found only by their index, and it is small enough to be compared with its table.
        Pages::Quick => &["PRAGMA quick_check", "PRAGMA integrity_check('idempotency_keys')"],
        Pages::All => &["PRAGMA integrity_check"],
    };
    for pragma in pragmas {
        let lines = connection.prepare(pragma).and_then(|mut statement| {
            statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()
        });
        match lines {
            Ok(lines) => lines.into_iter().filter(|line| line != "ok").for_each(&mut found),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => return Ok(false),
            Err(error) if is_damage(&error) => found(format!("{pragma}: {error}")),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
