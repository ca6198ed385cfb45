//! What is known of damage in the file.

use super::damage::is_damage;
use crate::sync::Mutex;

/// What is known of damage in the file.
#[derive(Debug, Clone, Default)]
pub struct Integrity {
    pub progress: Progress,
    /// Events that were compared with their checksums since the start.
    pub events: u64,
    /// What is damaged, by name: at most the first [`NAMED_MAX`] things.
    pub damage: Vec<String>,
}

/// How far the integrity check behind a serving server is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Progress {
    /// It is switched off.
    #[default]
    Off,
    Running,
    Done,
}

/// What is known in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntegrityState {
    Unchecked,
    Checking,
    Sound,
    Damaged,
}

impl IntegrityState {
    pub const ALL: [Self; 4] = [Self::Unchecked, Self::Checking, Self::Sound, Self::Damaged];

    pub fn name(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Checking => "checking",
            Self::Sound => "sound",
            Self::Damaged => "damaged",
        }
    }
}

/// Damaged things that are named. A file with more needs a repair, not a longer list.
const NAMED_MAX: usize = 20;

impl Integrity {
    pub fn state(&self) -> IntegrityState {
        match self.progress {
            _ if !self.damage.is_empty() => IntegrityState::Damaged,
            Progress::Off => IntegrityState::Unchecked,
            Progress::Running => IntegrityState::Checking,
            Progress::Done => IntegrityState::Sound,
        }
    }

    /// Notes an error, if it is damage.
    pub(super) fn note_error(&mut self, error: &rusqlite::Error) {
        if is_damage(error) {
            self.note(error.to_string());
        }
    }

    /// Notes damage, and logs it the first time.
    pub(super) fn note(&mut self, what: String) {
        if self.damage.len() < NAMED_MAX && !self.damage.contains(&what) {
            tracing::error!(damage = what, "the database is damaged: `event-pipeline repair` saves what can be read");
            self.damage.push(what);
        }
    }
}

/// What was read, or `None` where it is damaged, which is noted.
pub(super) fn noting_damage<T>(integrity: &Mutex<Integrity>, read: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match read {
        Err(error) if is_damage(&error) => {
            integrity.lock().note_error(&error);
            Ok(None)
        }
        read => read.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;
    use crate::store::damage::damaged;

    #[test]
    fn only_damage_is_noted_and_left_out_and_other_errors_are_passed_on() {
        let integrity = Mutex::default();
        let interrupted = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None);
        assert_eq!(noting_damage::<()>(&integrity, Err(damaged("a row"))), Ok(None));
        assert!(noting_damage::<()>(&integrity, Err(interrupted)).is_err());
        assert_eq!(noting_damage(&integrity, Ok(1)), Ok(Some(1)));
        assert_eq!(integrity.lock().damage, ["a row"]);
    }
}
