//! Where a record stands.

use crate::event::{Seq, Timestamp};

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The last number that was given.
    pub seq: Seq,
    /// The time of that event; later events have later times.
    pub time: Timestamp,
    /// Everything up to this event is deleted.
    pub deleted_through: Seq,
}

impl Position {
    /// No event before this number is stored.
    pub fn oldest(&self) -> Seq {
        self.deleted_through.next()
    }
}
