//! The words of the record: which of its events are still stored, how safe an acknowledged event is, what became of an
//! event, and why the store could not take, read or delete one. Values only; no input or output.

use std::fmt;
use std::sync::Arc;

use crate::event::Seq;

/// What became of one event of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Stored(Seq),
    /// The same event was stored before under the same idempotency key, and has this number.
    Replayed(Seq),
    /// Nothing of its message is stored: the event with this index in the message has a key that was used for another
    /// event.
    Refused(usize),
    /// Nothing of its message is stored: damage hides whether one of its keys was used, or keeps the key from being
    /// stored.
    Damaged,
}

/// What became of the events of a batch.
#[derive(Debug, Clone)]
pub enum Outcomes {
    /// All are stored, the first under this number and each other one under the next.
    From(Seq, AckLevel),
    /// The batch had idempotency keys: the outcome of each event.
    Each(Arc<[Outcome]>, AckLevel),
    /// The events wait to be stored.
    Queued,
}

impl Outcomes {
    /// The outcome of the event with this index; `None` while it waits to be stored.
    pub fn of(&self, index: usize) -> Option<Outcome> {
        match self {
            Self::From(first, _) => Some(Outcome::Stored(first.plus(index))),
            Self::Each(outcomes, _) => Some(outcomes[index]),
            Self::Queued => None,
        }
    }

    /// How safe the stored events are.
    pub fn level(&self) -> AckLevel {
        match self {
            Self::From(_, level) | Self::Each(_, level) => *level,
            Self::Queued => AckLevel::Queued,
        }
    }
}

/// How safe an event is when it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AckLevel {
    /// It waits to be stored, and has no id yet. If storing it fails, its producer is not told.
    Queued,
    /// It is committed: it survives the end of the process, and queries find it.
    Stored,
    /// It is synced to the disk: it survives a power cut.
    Synced,
}

impl AckLevel {
    pub const ALL: [AckLevel; 3] = [AckLevel::Queued, AckLevel::Stored, AckLevel::Synced];

    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Stored => "stored",
            Self::Synced => "synced",
        }
    }
}

/// Why valid events could not be stored, or stored events could not be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("Too many events are waiting to be stored, try again")]
    QueueFull,
    #[error("The disk is full, try again later")]
    StorageFull,
    #[error("The database is locked by another program, try again")]
    Locked,
    #[error("The event could not be stored, try again")]
    Unavailable,
    #[error("A part of the stored events is damaged and cannot be read; the operator has been told")]
    Damaged,
}

/// The events that are still stored, and the epoch their ids belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retained {
    /// The first event that is stored, or the next one to come.
    pub oldest: Seq,
    /// The last event that was ever stored, deleted or not.
    pub newest: Seq,
    pub epoch: Epoch,
}

/// A life of the database, in which an id means the same event. Another one begins when the database is restored,
/// replaced, or may have lost its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// What a client that resumes cannot get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gap {
    /// The events after its cursor, up to and including this one, are deleted.
    MissingThrough(Seq),
    /// Its cursor is from another epoch, or is an id that no event has had yet.
    Unknown(String),
}

impl Gap {
    /// What is missing after a cursor: the id that the client sent, its position, and its epoch if the client said one.
    pub fn after(id: &str, position: Seq, epoch: Option<&str>, retained: &Retained) -> Option<Self> {
        if position > retained.newest || epoch.is_some_and(|epoch| epoch != retained.epoch.to_string()) {
            return Some(Self::Unknown(id.to_owned()));
        }
        Self::deleted_after(position, retained)
    }

    /// What was deleted after a position of this epoch.
    pub fn deleted_after(position: Seq, retained: &Retained) -> Option<Self> {
        (position.next() < retained.oldest).then(|| Self::MissingThrough(retained.oldest.prev()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_has_a_gap_if_an_event_after_it_is_deleted_or_it_is_beyond_the_end(
            position in 0..20u64,
            oldest in 1..10u64,
            stored in 0..10u64,
        ) {
            let (newest, epoch) = (oldest + stored - 1, Epoch(7));
            let retained = Retained { oldest: Seq(oldest), newest: Seq(newest), epoch };
            let gap = Gap::after("id", Seq(position), Some("00000007"), &retained);
            let deleted: Vec<_> = (position + 1..oldest).collect();
            prop_assert_eq!(&gap, &match deleted.last() {
                _ if position > newest => Some(Gap::Unknown("id".to_owned())),
                Some(last) => Some(Gap::MissingThrough(Seq(*last))),
                None => None,
            });
            prop_assert_eq!(Gap::after("id", Seq(position), None, &retained), gap);
            let of_another_epoch = Some(Gap::Unknown("id".to_owned()));
            prop_assert_eq!(Gap::after("id", Seq(position), Some("00000008"), &retained), of_another_epoch);
        }
    }
}
