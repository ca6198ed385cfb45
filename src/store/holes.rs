//! Holes: the numbers of events that were chosen to be deleted. The numbers stay in the posting lists, so every reader
//! of a list first removes the holes of its segment from it, and then looks for no deleted event.

use std::ops::RangeInclusive;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row};

use super::checksum;
use super::damage::{damaged, is_damage};
use super::segments::{self, SEGMENT_EVENTS};
use crate::event::Seq;

/// The holes of one segment.
#[derive(Debug, Default)]
pub(super) struct Holes {
    /// How many there are.
    pub count: u64,
    /// Their offsets, ascending. `None` in a segment from before format 4 until the sealer has found them ([`find`]).
    pub offsets: Option<Vec<u16>>,
}

impl Holes {
    /// The holes of a segment, if there are any.
    pub fn of(connection: &Connection, segment: u64) -> rusqlite::Result<Option<Self>> {
        const SQL: &str = "SELECT count, offsets, checksum FROM holes WHERE segment = ?1";
        let mut find = connection.prepare_cached(SQL)?;
        find.query_row([segment as i64], |row| Ok(Self::read(row, segment))).optional()?.transpose()
    }

    fn read(row: &Row<'_>, segment: u64) -> rusqlite::Result<Self> {
        let count: i64 = row.get(0)?;
        let holes = match (row.get_ref(1)?, row.get_ref(2)?) {
            (ValueRef::Null, ValueRef::Null) => Some(Self { count: count as u64, offsets: None }),
            (ValueRef::Blob(blob), ValueRef::Integer(checksum)) => {
                let is_whole = i64::from(checksum::of_holes(segment as i64, count, blob)) == checksum;
                let offsets = is_whole.then(|| segments::decode(blob)).flatten();
                offsets.map(|offsets| Self { count: count as u64, offsets: Some(offsets) })
            }
            _ => None,
        };
        holes.ok_or_else(|| damaged(format!("holes: those of segment {segment} are damaged")))
    }

    pub fn store(&self, connection: &Connection, segment: u64) -> rusqlite::Result<()> {
        const SQL: &str = "INSERT OR REPLACE INTO holes (segment, count, offsets, checksum) VALUES (?1, ?2, ?3, ?4)";
        let (segment, count) = (segment as i64, self.count as i64);
        let blob = self.offsets.as_deref().map(segments::encode);
        let checksum = blob.as_deref().map(|blob| checksum::of_holes(segment, count, blob));
        connection.prepare_cached(SQL)?.execute((segment, count, blob, checksum)).map(drop)
    }

    /// Removes the holes from an ascending list, as far as they are known.
    pub fn remove_from(&self, list: &mut Vec<u16>) {
        let mut rest = self.offsets.as_deref().unwrap_or_default();
        list.retain(|offset| {
            // A list may be short and the holes many, so the holes are searched and not walked through.
            rest = &rest[rest.partition_point(|hole| hole < offset)..];
            rest.first() != Some(offset)
        });
    }

    /// Whether no event of an encoded posting list of a segment is left: each is a hole, or comes before `oldest`, the
    /// beginning of the retained range. A damaged list counts as one with events; the integrity check reports it.
    pub fn leave_none_of(&self, list: &[u8], segment: u64, oldest: Seq) -> bool {
        let first = segments::first_of(segment);
        segments::decode(list).is_some_and(|mut offsets| {
            offsets.retain(|offset| first.plus((*offset).into()) >= oldest);
            self.remove_from(&mut offsets);
            offsets.is_empty()
        })
    }
}

/// Notes that these events of one segment, ascending, were deleted out of the middle. Returns all holes of the segment.
pub(super) fn add(connection: &Connection, segment: u64, deleted: &[u16]) -> rusqlite::Result<Holes> {
    let mut holes = match Holes::of(connection, segment)? {
        Some(holes) => holes,
        None => Holes { count: 0, offsets: Some(Vec::new()) },
    };
    holes.count += deleted.len() as u64;
    match &mut holes.offsets {
        Some(offsets) => {
            offsets.extend_from_slice(deleted);
            offsets.sort_unstable();
        }
        unknown => *unknown = Some(find(connection, segment)?),
    }
    holes.store(connection, segment)?;
    Ok(holes)
}

/// The offsets of a full segment that have no event. Looks at each event of the segment, which takes about 5 ms.
pub(super) fn find(connection: &Connection, segment: u64) -> rusqlite::Result<Vec<u16>> {
    let mut is_missing = vec![true; SEGMENT_EVENTS as usize];
    let first = segments::first_of(segment);
    let end = segments::first_of(segment + 1);
    // A damaged number is out of order with its neighbours. It may lead the search for an end of the segment to a wrong
    // row, or be taken for the end, so two rows beyond each end are looked at.
    const BEFORE: &str = "SELECT seq FROM events WHERE seq < ?1 ORDER BY seq DESC LIMIT 2";
    const FROM: &str = "SELECT seq FROM events WHERE seq >= ?1 ORDER BY seq";
    let is_damaged = |one: Seq, other: Seq| damaged(format!("events: {} or {} is damaged", one.id(), other.id()));
    let mut statement = connection.prepare_cached(BEFORE)?;
    let (mut rows, mut next) = (statement.query([first.0 as i64])?, first);
    while let Some(row) = rows.next()? {
        let seq = Seq(row.get::<_, i64>(0)? as u64);
        if seq >= next {
            return Err(is_damaged(seq, next));
        }
        next = seq;
    }
    let mut statement = connection.prepare_cached(FROM)?;
    let (mut rows, mut last, mut beyond) = (statement.query([first.0 as i64])?, first.prev(), 0);
    while beyond < 2
        && let Some(row) = rows.next()?
    {
        let seq = Seq(row.get::<_, i64>(0)? as u64);
        if seq <= last {
            return Err(is_damaged(last, seq));
        }
        last = seq;
        match is_missing.get_mut((seq.0 - first.0) as usize) {
            Some(is_missing) if seq < end => *is_missing = false,
            _ => beyond += 1,
        }
    }
    let numbered = is_missing.into_iter().enumerate();
    Ok(numbered.filter(|(_, is_missing)| *is_missing).map(|(offset, _)| offset as u16).collect())
}

/// How many of these numbers have their events. Reads the number of holes of each segment, and searches in the holes of
/// the two segments that the range cuts through.
pub(super) fn count_events(connection: &Connection, numbers: RangeInclusive<Seq>) -> rusqlite::Result<u64> {
    if numbers.is_empty() {
        return Ok(0);
    }
    let (start, end) = (*numbers.start(), *numbers.end());
    let (first, last) = (segments::segment_of(start), segments::segment_of(end));
    let mut count = end.0 + 1 - start.0;
    const HOLES: &str = "SELECT segment, count FROM holes WHERE segment BETWEEN ?1 AND ?2";
    const PRESENT: &str = "SELECT count(*) FROM events WHERE seq BETWEEN ?1 AND ?2";
    let mut holes = connection.prepare_cached(HOLES)?;
    let mut rows = holes.query([first as i64, last as i64])?;
    while let Some(row) = rows.next()? {
        let (segment, missing) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
        let (from, to) = (segments::first_of(segment), segments::first_of(segment + 1).prev());
        if from >= start && to <= end {
            count -= missing;
            continue;
        }
        let (from, to) = (from.max(start), to.min(end));
        count -= match Holes::of(connection, segment) {
            Ok(Some(Holes { offsets: Some(offsets), .. })) => {
                let (from, to) = (segments::offset_of(from), segments::offset_of(to));
                let before = offsets.partition_point(|offset| *offset < from);
                (offsets.partition_point(|offset| *offset <= to) - before) as u64
            }
            Err(error) if !is_damage(&error) => return Err(error),
            // It is not known where the holes are, so the events are counted.
            _ => {
                let mut present = connection.prepare_cached(PRESENT)?;
                let present: i64 = present.query_row([from.0 as i64, to.0 as i64], |row| row.get(0))?;
                to.0 + 1 - from.0 - present as u64
            }
        };
    }
    Ok(count)
}

/// The segments of which only the number of holes is known.
pub(super) fn unknown(connection: &Connection) -> rusqlite::Result<Vec<u64>> {
    let mut statement = connection.prepare("SELECT segment FROM holes WHERE offsets IS NULL")?;
    statement.query_map([], |row| row.get::<_, i64>(0).map(|segment| segment as u64))?.collect()
}

/// Notes where the holes of a segment are, unless a deletion has done so meanwhile.
pub(super) fn note_found(connection: &Connection, segment: u64, offsets: Vec<u16>) -> rusqlite::Result<()> {
    match Holes::of(connection, segment)? {
        Some(Holes { count, offsets: None }) => Holes { count, offsets: Some(offsets) }.store(connection, segment),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::store::fixture::{delete_most, file_with, renumber, three_segments};
    use crate::store::schema;

    #[test]
    fn the_search_for_holes_fails_on_a_damaged_number() {
        // An event of the sixth segment, whose number has two bytes in its row.
        let at = SEGMENT_EVENTS * 5 + 8;
        for to in [at - 128, at + 128, at + 8_192] {
            let (_folder, config) = file_with(300);
            renumber(&config.database_path, at, to);
            let file = schema::open_reader(&config.database_path).expect("undamaged");
            let found = find(&file, segments::segment_of(Seq(at)));
            assert!(found.is_err_and(|error| is_damage(&error)), "{to}");
        }
    }

    #[test]
    fn counting_events_between_holes_takes_as_long_for_many_events_as_for_few() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        let left = delete_most(&store, &mut parts);
        let mut file = schema::open_writer(&folder.path().join("events.db")).expect("undamaged");
        let count = |file: &mut Connection, from: u64, to: u64| {
            let steps = Arc::new(AtomicUsize::new(0));
            let counted = steps.clone();
            let step = move || {
                counted.fetch_add(1, Ordering::Relaxed);
                false
            };
            file.progress_handler(1, Some(step)).expect("set");
            let count = count_events(file, Seq(from)..=Seq(to)).expect("read");
            let expected = left.iter().filter(|seq| (from..=to).contains(&seq.0)).count();
            assert_eq!(count, expected as u64, "from {from} to {to}");
            steps.load(Ordering::Relaxed)
        };
        let segments = [0, 1].map(|segment| segments::first_of(segment).0);
        for first in segments {
            // Statements are compiled with the first count.
            count(&mut file, first, first + 1);
            assert_eq!(count(&mut file, first, first + 1), count(&mut file, first, first + SEGMENT_EVENTS - 2));
        }
        for (from, to) in (1..=3 * SEGMENT_EVENTS).step_by(7).flat_map(|from| (from..96).map(move |to| (from, to))) {
            count(&mut file, from, to);
        }
        let damage = "UPDATE holes SET checksum = checksum + 1";
        assert_eq!(file.execute(damage, []), Ok(3));
        count(&mut file, 3, SEGMENT_EVENTS + 9);
    }
}
