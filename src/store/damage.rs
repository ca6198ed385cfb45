//! Damage: what is read is not what was stored. How it is distinguished from other errors.

use rusqlite::ErrorCode;

/// The error that what is read is not what was stored. Inside the store it is SQLite's own error for this, so that
/// damage found by a checksum and damage found by SQLite are handled alike.
pub fn damaged(what: impl Into<String>) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(what.into()))
}

/// Puts the name of a table before damage that a read of it met. Other errors stay as they are.
pub fn within(table: &str, error: rusqlite::Error) -> rusqlite::Error {
    let what = match &error {
        error if !is_damage(error) => None,
        rusqlite::Error::SqliteFailure(..) | rusqlite::Error::SqlInputError { .. } => Some(error.to_string()),
        _ => Some("a row is damaged".to_owned()),
    };
    match what {
        Some(what) if !what.starts_with(table) => damaged(format!("{table}: {what}")),
        _ => error,
    }
}

/// Whether an error is damage: pages that do not fit together, or rows that are not what was stored.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error;
    match error {
        // An error in a statement, which SQLite also calls unknown. Our statements are correct, so the tables are not
        // as they were made.
        Error::SqlInputError { .. } => true,
        Error::SqliteFailure(..) => {
            use ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
            matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase | Unknown))
        }
        // A column of another type than it was stored with.
        Error::InvalidColumnType(..) | Error::FromSqlConversionFailure(..) | Error::IntegralValueOutOfRange(..) => true,
        Error::Utf8Error(..) => true,
        _ => false,
    }
}

/// Whether an error says that the disk is full: for a write, or for the index of the write-ahead log in `-shm`.
pub fn is_disk_full(error: &rusqlite::Error) -> bool {
    let extended = error.sqlite_error().map(|error| error.extended_code);
    error.sqlite_error_code() == Some(ErrorCode::DiskFull) || extended == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
}

/// What was read, or `None` if it is damaged. The damage is not noted: the caller does without the value.
pub fn ignoring_damage<T>(read: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match read {
        Err(error) if is_damage(&error) => Ok(None),
        read => read.map(Some),
    }
}
