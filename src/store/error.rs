//! Why something could not be read or stored.

use super::damage::{is_damage, is_disk_full};
use crate::record::Failure;

/// Why something could not be read or stored. Its text is for an operator; a client hears its [`Failure`].
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// What is read is not what was stored. The text names it.
    #[error("{0}")]
    Damaged(String),
    #[error("the reading took longer than it may")]
    TookTooLong,
    #[error("the reading was cancelled, because no client waits for it")]
    Abandoned,
    #[error("the disk is full ({0})")]
    DiskFull(#[source] rusqlite::Error),
    #[error("another program has locked the database ({0})")]
    Locked(#[source] rusqlite::Error),
    #[error(transparent)]
    Sqlite(rusqlite::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether what is stored is at fault.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_))
    }

    /// Whether a reading ended because its time was over.
    pub fn took_too_long(&self) -> bool {
        matches!(self, Self::TookTooLong)
    }

    /// The failure that a client hears.
    pub fn failure(&self) -> Failure {
        if self.is_damage() { Failure::Damaged } else { Failure::Unavailable }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::DatabaseBusy;
        match error.sqlite_error_code() {
            _ if is_damage(&error) => Self::Damaged(error.to_string()),
            _ if is_disk_full(&error) => Self::DiskFull(error),
            Some(DatabaseBusy) => Self::Locked(error),
            _ => Self::Sqlite(error),
        }
    }
}
