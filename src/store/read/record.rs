//! The record as one transaction sees it: events by number, the retained range, and the number that belongs to a time.

use std::ops::RangeInclusive;

use rusqlite::{Connection, OptionalExtension};

use super::query::Query;
use super::row::{number, select_events, stored};
use crate::event::{Seq, Timestamp};
use crate::store::damage::{is_damage, within};
use crate::store::integrity::{Integrity, noting_damage};
use crate::sync::Mutex;
use crate::wire::StoredEvent;

/// The record as one transaction sees it. Each event is compared with its checksum.
#[derive(Clone, Copy)]
pub struct Record<'c> {
    pub connection: &'c Connection,
    /// Events up to this one were stored before rows had checksums.
    pub unchecked_through: Seq,
    /// The high-water mark when the transaction began, or before.
    pub last: Seq,
    /// Everything up to this event is deleted, even if its rows are still there.
    pub deleted_through: Seq,
    pub integrity: &'c Mutex<Integrity>,
}

impl Record<'_> {
    /// Shows an event, if it is stored.
    pub fn event(self, seq: Seq, show: impl FnOnce(StoredEvent<'_>)) -> rusqlite::Result<()> {
        if seq <= self.deleted_through {
            return Ok(());
        }
        let mut statement = self.connection.prepare_cached(select_events!("seq = ?1"))?;
        let mut rows = statement.query([seq.0 as i64])?;
        rows.next()?.map(|row| stored(row, self.unchecked_through).map(show)).transpose().map(drop)
    }

    /// The retained range: the first and the last number of the stored events up to `committed`. Between them only
    /// holes are missing. The number of a damaged row is not believed, so the range may be too wide beside one. If a
    /// damaged page hides the first event, the range begins with the first number that is not deleted, and only a read
    /// that needs that page fails.
    pub fn retained(self, committed: Seq) -> rusqlite::Result<Option<RangeInclusive<Seq>>> {
        let Some(newest) = self.newest()? else { return Ok(None) };
        let first = self.first().map_err(|error| within("events", error));
        let start = match noting_damage(self.integrity, first)? {
            None => Seq(1),
            Some((first, damaged)) => {
                // Numbers are dense: as many come before the first undamaged event as there are damaged rows before it.
                let first = first.unwrap_or(self.last.next()).0.saturating_sub(damaged.len() as u64);
                damaged.into_iter().fold(Seq(first), Seq::min)
            }
        };
        let start = start.max(self.deleted_through.next());
        Ok(Some(start..=newest.min(committed)).filter(|retained| !retained.is_empty()))
    }

    /// The numbers that can answer a query; `None` when there are none.
    pub fn range(self, query: &Query, committed: Seq) -> rusqlite::Result<Option<RangeInclusive<Seq>>> {
        let Some(retained) = self.retained(committed)? else { return Ok(None) };
        let (mut from, mut to) = ((*retained.start()).max(query.after.next()), *retained.end());
        if let Some(before) = query.before {
            to = to.min(before.prev());
        }
        if let Some(since) = query.since {
            from = from.max(self.first_later(&retained, since)?);
        }
        if let Some(until) = query.until {
            to = to.min(self.first_later(&retained, Timestamp(until.0 - 1))?.prev());
        }
        Ok((from <= to).then_some(from..=to))
    }

    /// The first number of the retained range from which on events are later than `time`, or the number after the
    /// range. Times increase with the numbers, so this is a binary search: 27 looks among 100 million events.
    pub fn first_later(self, retained: &RangeInclusive<Seq>, time: Timestamp) -> rusqlite::Result<Seq> {
        let (mut low, mut high) = (retained.start().0, retained.end().0 + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.readable_from(middle, high)? {
                Some((seq, its_time)) if its_time <= time => low = seq.0 + 1,
                _ => high = middle,
            }
        }
        Ok(Seq(low.min(retained.end().0 + 1)))
    }

    /// The number of the last event, or the high-water mark if its row is damaged. `None` if there is no row.
    pub fn newest(self) -> rusqlite::Result<Option<Seq>> {
        let mut find = self.connection.prepare_cached(select_events!("true ORDER BY seq DESC LIMIT 1"))?;
        let mut rows = find.query([])?;
        let newest = rows.next()?.map(|row| stored(row, self.unchecked_through).map_or(self.last, |event| event.seq));
        Ok(newest)
    }

    /// The number of the first undamaged event that is not deleted, and the numbers that damaged rows before it show.
    pub fn first(self) -> rusqlite::Result<(Option<Seq>, Vec<Seq>)> {
        let mut find = self.connection.prepare_cached(select_events!("seq > ?1 ORDER BY seq"))?;
        let (mut rows, mut damaged) = (find.query([self.deleted_through.0 as i64])?, Vec::new());
        while let Some(row) = rows.next()? {
            match stored(row, self.unchecked_through) {
                Ok(event) => return Ok((Some(event.seq), damaged)),
                Err(_) => damaged.push(number(row)?),
            }
        }
        Ok((None, damaged))
    }

    /// The first undamaged event from a number on, because the event of that number may be deleted or damaged. If a
    /// page cannot be read, it is the first event after that page, or `None` if that is not before `end`.
    pub fn readable_from(self, number: u64, end: u64) -> rusqlite::Result<Option<(Seq, Timestamp)>> {
        let error = match self.whole_from(number) {
            Err(error) if is_damage(&error) => error,
            found => return found,
        };
        self.integrity.lock().note_error(&within("events", error));
        let (mut unreadable, mut after, mut found) = (number, end, None);
        while after - unreadable > 1 {
            let middle = unreadable + (after - unreadable) / 2;
            match self.whole_from(middle) {
                Err(error) if is_damage(&error) => unreadable = middle,
                readable => (after, found) = (middle, readable?),
            }
        }
        Ok(found)
    }

    /// The first undamaged event from a number on, if its page can be read.
    fn whole_from(self, number: u64) -> rusqlite::Result<Option<(Seq, Timestamp)>> {
        let mut statement = self.connection.prepare_cached(select_events!("seq >= ?1 ORDER BY seq"))?;
        let mut rows = statement.query([number as i64])?;
        while let Some(row) = rows.next()? {
            match stored(row, self.unchecked_through) {
                Ok(event) if event.seq.0 >= number => return Ok(Some((event.seq, event.time))),
                // It is damaged, or a damaged number led to it.
                _ => {}
            }
        }
        Ok(None)
    }
}

/// The number of the first row, or the largest number if there is no row.
pub fn first_row(connection: &Connection) -> rusqlite::Result<Seq> {
    Ok(end_row(connection, "SELECT min(seq) FROM events")?.unwrap_or(Seq::MAX))
}

/// The number of the last row, damaged or not. `None` if there is no row.
pub fn last_row(connection: &Connection) -> rusqlite::Result<Option<Seq>> {
    end_row(connection, "SELECT max(seq) FROM events")
}

fn end_row(connection: &Connection, sql: &str) -> rusqlite::Result<Option<Seq>> {
    let found = connection.prepare_cached(sql)?.query_row([], |row| row.get::<_, Option<i64>>(0));
    found.map(|seq| seq.map(|seq| Seq(seq as u64))).map_err(|error| within("events", error))
}

/// Whether any of these numbers has its event.
pub fn is_any_of(connection: &Connection, numbers: RangeInclusive<Seq>) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM events WHERE seq BETWEEN ?1 AND ?2)";
    let numbers = [numbers.start().0 as i64, numbers.end().0 as i64];
    connection.prepare_cached(SQL)?.query_row(numbers, |row| row.get(0))
}

/// The number of the event that has this id from the Python service.
pub fn of_legacy_id(connection: &Connection, id: &str) -> rusqlite::Result<Option<Seq>> {
    const SQL: &str = "SELECT seq FROM events WHERE legacy_id = ?1 AND legacy_id IS NOT NULL";
    connection.prepare_cached(SQL)?.query_row([id], number).optional()
}
