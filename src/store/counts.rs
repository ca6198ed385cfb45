//! How many events of each type there are among some numbers.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use rusqlite::Connection;

use super::damage::{damaged, is_damage};
use super::holes::Holes;
use super::read::{self, Record};
use super::schema::meta;
use super::segments::{self, Recent};
use crate::event::{Field, Seq};
use crate::sync::RwLock;

/// By the name of the type.
pub type Counts = BTreeMap<Box<[u8]>, u64>;

/// How many events there are of each type, among these numbers. Posting lists are counted, in about 10 µs for a segment if
/// they are in the system's cache, else 1 ms. A damaged list is noted, and costs a look at the rows of its segment.
///
/// The lists of the last segments are in memory, in `recent`. Without it the rows of these segments are counted: another
/// thread than the writer would hold its lock meanwhile.
///
/// # Errors
/// What SQLite reports, damage of a page included.
pub fn by_type(
    record: Record<'_>,
    recent: Option<&RwLock<Recent>>,
    numbers: RangeInclusive<Seq>,
) -> rusqlite::Result<Counts> {
    // No list has the events of this transaction yet. Here nobody orders a deletion of them: a log may.
    let (first, last) = numbers.into_inner();
    let (listed, new) = (last.min(record.last), first.max(record.last.next()));
    let mut counts = count_in_rows(record.connection, &(new..=last))?;
    let numbers = first..=listed;
    if numbers.is_empty() {
        return Ok(counts);
    }
    let recent = recent.map(|recent| recent.read());
    // With the lists in memory every segment has some.
    let listed_before = match &recent {
        Some(_) => u64::MAX,
        None => meta::get(record.connection, meta::SEALED_BEFORE)? as u64,
    };
    for segment in segments::segment_of(*numbers.start())..=segments::segment_of(*numbers.end()) {
        let (first, last) = (segments::first_of(segment), segments::first_of(segment + 1).prev());
        let numbers = first.max(*numbers.start())..=last.min(*numbers.end());
        let counted = match segment < listed_before {
            true => count_by_lists(record, recent.as_deref(), segment, &numbers),
            false => Ok(None),
        };
        let counted = match counted {
            Err(error) if is_damage(&error) => {
                record.integrity.lock().note_error(&error);
                None
            }
            counted => counted?,
        };
        let counted = match counted {
            Some(counted) => counted,
            None => count_in_rows(record.connection, &numbers)?,
        };
        for (event_type, events) in counted {
            *counts.entry(event_type).or_default() += events;
        }
    }
    Ok(counts)
}

/// Counts by the posting lists of a segment; `None`: the rows have to be counted instead.
fn count_by_lists(
    record: Record<'_>,
    recent: Option<&Recent>,
    segment: u64,
    numbers: &RangeInclusive<Seq>,
) -> rusqlite::Result<Option<Counts>> {
    let holes = match Holes::of(record.connection, segment)? {
        // It is not known yet where the holes are.
        Some(Holes { offsets: None, .. }) => return Ok(None),
        holes => holes.and_then(|holes| holes.offsets).unwrap_or_default(),
    };
    let offsets = segments::offset_of(*numbers.start())..=segments::offset_of(*numbers.end());
    let in_memory = recent.and_then(|recent| recent.segment(segment));
    let counts: Counts = match in_memory {
        Some(segment) => {
            let lists = segment.lists_of(Field::Type);
            lists.map(|(key, list)| (key.into(), segments::count_in(list, &offsets, &holes))).collect()
        }
        None => count_in_sealed(record.connection, segment, &offsets, &holes)?,
    };
    // An event has one type, so all numbers but the holes are counted once.
    let holes = holes.iter().filter(|hole| offsets.contains(hole)).count() as u64;
    let are_all = counts.values().sum::<u64>() == numbers.end().0 + 1 - numbers.start().0 - holes;
    match are_all {
        true => Ok(Some(counts)),
        false if in_memory.is_some() => Ok(None),
        false => Err(damaged(format!("event_index: the lists of segment {segment} have not all of its events"))),
    }
}

/// Counts by the posting lists of a sealed segment.
fn count_in_sealed(
    connection: &Connection,
    segment: u64,
    offsets: &RangeInclusive<u16>,
    holes: &[u16],
) -> rusqlite::Result<Counts> {
    const SQL: &str = "SELECT key, offsets, checksum FROM event_index WHERE segment = ?1 AND kind = ?2";
    let mut statement = connection.prepare_cached(SQL)?;
    let mut rows = statement.query((segment as i64, Field::Type as i64))?;
    let mut counts = Counts::new();
    while let Some(row) = rows.next()? {
        let key = row.get_ref(0)?.as_bytes()?;
        let list = read::whole_list(row, 1, segment, Field::Type, key)?;
        let events = segments::count(list, offsets, holes).ok_or_else(|| read::damaged_list(segment))?;
        counts.insert(key.into(), events);
    }
    Ok(counts)
}

/// Counts the rows, in about 20 ms for a whole segment.
fn count_in_rows(connection: &Connection, numbers: &RangeInclusive<Seq>) -> rusqlite::Result<Counts> {
    if numbers.is_empty() {
        return Ok(Counts::new());
    }
    const SQL: &str = "SELECT event_type, count(*) FROM events WHERE seq BETWEEN ?1 AND ?2 GROUP BY event_type";
    let mut statement = connection.prepare_cached(SQL)?;
    let mut rows = statement.query([numbers.start().0 as i64, numbers.end().0 as i64])?;
    let mut counts = Counts::new();
    while let Some(row) = rows.next()? {
        counts.insert(row.get_ref(0)?.as_bytes()?.into(), row.get::<_, i64>(1)? as u64);
    }
    Ok(counts)
}
