//! The table `rollups`: how many events of each type each minute has. Events of a file from before format 6 come in
//! afterwards, the newest first: `meta.not_rolled_up` says up to which event they are missing.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use rusqlite::{Connection, OptionalExtension};

use super::counts;
use super::read::Record;
use super::schema::{Text, meta};
use super::segments::Recent;
use crate::event::{Seq, Timestamp};
use crate::sync::RwLock;

/// Microseconds of a minute. In unit tests it is shorter, so that a short history has many.
pub const MINUTE_US: i64 = if cfg!(test) { 1_000 } else { 60_000_000 };

/// The minute of a time, counted from 1970.
pub fn minute_of(time: Timestamp) -> i64 {
    time.0.div_euclid(MINUTE_US)
}

/// The first time of a minute.
pub fn start_of(minute: i64) -> Timestamp {
    Timestamp(minute * MINUTE_US)
}

/// Counts of events by minute and type.
pub type ByMinute = BTreeMap<(i64, Box<[u8]>), u64>;

/// Adds events of a type to a minute.
pub fn add(connection: &Connection, minute: i64, event_type: &[u8], events: u64) -> rusqlite::Result<()> {
    const ADD: &str = "INSERT INTO rollups (minute, event_type, count) VALUES (?1, ?2, ?3) \
                       ON CONFLICT (minute, event_type) DO UPDATE SET count = count + excluded.count";
    connection.prepare_cached(ADD)?.execute((minute, Text(Some(event_type)), events as i64)).map(drop)
}

/// Takes deleted events away.
pub fn subtract(connection: &Connection, deleted: &ByMinute) -> rusqlite::Result<()> {
    const SUBTRACT: &str =
        "UPDATE rollups SET count = count - ?3 WHERE minute = ?1 AND event_type = ?2 RETURNING count";
    const REMOVE: &str = "DELETE FROM rollups WHERE minute = ?1 AND event_type = ?2";
    let mut subtract = connection.prepare_cached(SUBTRACT)?;
    let mut remove = connection.prepare_cached(REMOVE)?;
    for ((minute, event_type), events) in deleted {
        let of = (*minute, Text(Some(event_type)), *events as i64);
        let left: Option<i64> = subtract.query_row(of, |row| row.get(0)).optional()?;
        if left.is_some_and(|left| left <= 0) {
            remove.execute((*minute, Text(Some(event_type))))?;
        }
    }
    Ok(())
}

/// Takes away everything up to an event, before the mark of the deletion moves there. Only the minute in which it falls is
/// counted, in about 10 µs for each of its segments.
pub fn delete_through(record: Record<'_>, recent: &RwLock<Recent>, through: Seq) -> rusqlite::Result<()> {
    let oldest = record.deleted_through.next();
    if through < oldest {
        return Ok(());
    }
    let Some((_, next)) = record.readable_from(through.next().0, u64::MAX >> 1)? else {
        return clear(record.connection);
    };
    let minute = minute_of(next);
    record.connection.prepare_cached("DELETE FROM rollups WHERE minute < ?1")?.execute([minute])?;
    let first = record.first_later(&(oldest..=through), Timestamp(start_of(minute).0 - 1))?;
    let first = first.max(missing(record.connection)?.next());
    let counted = counts::by_type(record, Some(recent), first..=through)?;
    let counted = counted.into_iter().map(|(event_type, events)| ((minute, event_type), events));
    subtract(record.connection, &counted.collect())
}

/// Takes everything away.
pub fn clear(connection: &Connection) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM rollups")?.execute([]).map(drop)
}

/// Events up to this one are not rolled up yet; zero if all are.
pub fn missing(connection: &Connection) -> rusqlite::Result<Seq> {
    meta::seq(connection, meta::NOT_ROLLED_UP)
}

/// Counts the rows of some events. Damaged ones count for the minute and the type that they show.
pub fn count_rows(connection: &Connection, numbers: &RangeInclusive<Seq>) -> rusqlite::Result<ByMinute> {
    const ROWS: &str = "SELECT time_us, event_type FROM events WHERE seq BETWEEN ?1 AND ?2";
    let mut statement = connection.prepare_cached(ROWS)?;
    let mut rows = statement.query([numbers.start().0 as i64, numbers.end().0 as i64])?;
    let mut counted = ByMinute::new();
    while let Some(row) = rows.next()? {
        let (minute, event_type) = (minute_of(Timestamp(row.get(0)?)), row.get_ref(1)?.as_bytes()?);
        *counted.entry((minute, event_type.into())).or_default() += 1;
    }
    Ok(counted)
}
