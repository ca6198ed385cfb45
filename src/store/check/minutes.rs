//! The check of the rollups: each minute has as many events of each type as the events that the check has read.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::event::Timestamp;
use crate::store::rollups;

/// Counts the events by minute, and compares each minute once all its events were read.
#[derive(Clone, Default)]
pub struct Minutes {
    /// The minute that is being read, and those that were read since the last comparison.
    read: BTreeMap<i64, BTreeMap<String, u64>>,
    /// The last minute that was compared. Those before it have no other rows.
    compared: Option<i64>,
    is_wrong: bool,
    is_given_up: bool,
}

impl Minutes {
    pub fn note(&mut self, event_type: &str, time: Timestamp) {
        if self.is_given_up {
            return;
        }
        let by_type = self.read.entry(rollups::minute_of(time)).or_default();
        match by_type.get_mut(event_type) {
            Some(count) => *count += 1,
            None => drop(by_type.insert(event_type.to_owned(), 1)),
        }
    }

    /// Compares no further minute: what was read may not be what is stored.
    pub fn give_up(&mut self) {
        *self = Self { is_given_up: true, ..Self::default() };
    }

    /// Whether a minute was read to its end.
    pub fn has_whole(&self) -> bool {
        self.read.len() > 1
    }

    /// Compares the minutes that were read to their end; if `is_end`, all of them. Returns the first that is found wrong, one
    /// in the whole check.
    pub fn compare(&mut self, connection: &Connection, is_end: bool) -> rusqlite::Result<Option<Timestamp>> {
        if self.is_given_up {
            return Ok(None);
        }
        let open = if is_end { None } else { self.read.pop_last() };
        let read = std::mem::take(&mut self.read);
        let last = if is_end { Some(i64::MAX) } else { read.last_key_value().map(|(minute, _)| *minute) };
        self.read.extend(open);
        let Some(last) = last else { return Ok(None) };
        let first = self.compared.map_or(i64::MIN, |compared| compared + 1);
        self.compared = Some(last);
        const STORED: &str =
            "SELECT minute, event_type, count FROM rollups WHERE minute BETWEEN ?1 AND ?2 ORDER BY minute, event_type";
        let mut statement = connection.prepare_cached(STORED)?;
        let mut rows = statement.query([first, last])?;
        let mut counted =
            read.iter().flat_map(|(minute, by_type)| by_type.iter().map(|(of, count)| (*minute, &**of, *count)));
        loop {
            let stored = rows.next()?;
            let stored = stored.map(|row| {
                Ok::<_, rusqlite::Error>((row.get(0)?, row.get_ref(1)?.as_str()?, row.get::<_, i64>(2)? as u64))
            });
            let (stored, counted) = (stored.transpose()?, counted.next());
            if stored != counted && !self.is_wrong {
                self.is_wrong = true;
                let minutes = [stored, counted].into_iter().flatten().map(|(minute, ..)| minute);
                return Ok(minutes.min().map(rollups::start_of));
            }
            if stored.is_none() || counted.is_none() {
                return Ok(None);
            }
        }
    }
}
