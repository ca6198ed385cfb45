//! What is stored and is not what was stored: how it is told from other errors, and what is known of it.

use rusqlite::ErrorCode;

/// Something stored is not what was stored.
pub fn damaged(what: impl Into<String>) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(what.into()))
}

/// An error that was met in a table. Damage that a row or SQLite tells of is named by the table.
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

/// Whether what is stored is at fault: pages that do not fit together, or rows that are not what was stored.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error;
    match error {
        // An error in a statement, which SQLite also calls unknown. Ours are correct: it is the tables that are not as
        // they were made.
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

/// What is known of the file's soundness.
#[derive(Debug, Clone, Default)]
pub struct Integrity {
    pub progress: Progress,
    /// Events held against their checksums since the start.
    pub events: u64,
    /// What is damaged, by name; of very much only the first.
    pub damage: Vec<String>,
}

/// How far the check that runs behind a serving server is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Progress {
    /// It was not asked for.
    #[default]
    Off,
    Running,
    Done,
}

/// Of so many damaged things the names are kept; with more, the file needs a repair and not a list.
const NAMED_MAX: usize = 20;

impl Integrity {
    /// Takes note of an error, if it is damage.
    pub(super) fn note_error(&mut self, error: &rusqlite::Error) {
        if is_damage(error) {
            self.note(error.to_string());
        }
    }

    /// Takes note of damage, and tells the operator the first time.
    pub(super) fn note(&mut self, what: String) {
        if self.damage.len() < NAMED_MAX && !self.damage.contains(&what) {
            tracing::error!(damage = what, "the database is damaged: `event-pipeline repair` saves what can be read");
            self.damage.push(what);
        }
    }
}
