//! Holes: the numbers of events that were chosen to be deleted. Lists of the index keep these numbers, so every
//! reader of a list takes the holes of its segment away first, and looks for no event that is gone.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row};

use super::checksum;
use super::damage::damaged;
use super::segments::{self, SEGMENT_EVENTS};
use crate::event::Seq;

/// What was chosen to be deleted out of one segment.
#[derive(Debug, Default)]
pub(super) struct Holes {
    /// How many there are.
    pub count: u64,
    /// Where they were, ascending. Nothing is known of a segment of a file from before format 4 until the sealer has
    /// looked ([`find`]).
    pub offsets: Option<Vec<u16>>,
}

impl Holes {
    /// Those of a segment, if there are any.
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

    /// Takes the holes away from an ascending list, as far as they are known.
    pub fn take_from(&self, list: &mut Vec<u16>) {
        let mut rest = self.offsets.as_deref().unwrap_or_default();
        list.retain(|offset| {
            // A short list looks its offsets up among many holes.
            rest = &rest[rest.partition_point(|hole| hole < offset)..];
            rest.first() != Some(offset)
        });
    }

    /// Whether no event of an encoded list of a segment is left: each was chosen, or went before `oldest`, the first
    /// that is kept. A damaged list counts as one with events, for the check to find.
    pub fn leave_none_of(&self, list: &[u8], segment: u64, oldest: Seq) -> bool {
        let first = segments::first_of(segment);
        segments::decode(list).is_some_and(|mut offsets| {
            offsets.retain(|offset| first.plus((*offset).into()) >= oldest);
            self.take_from(&mut offsets);
            offsets.is_empty()
        })
    }
}

/// Notes events of one segment, ascending, that were chosen and are deleted now.
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

/// The numbers of a full segment that have no event. Costs a look at each that has one: some 5 ms.
pub(super) fn find(connection: &Connection, segment: u64) -> rusqlite::Result<Vec<u16>> {
    let mut is_missing = vec![true; SEGMENT_EVENTS as usize];
    let first = segments::first_of(segment);
    let end = segments::first_of(segment + 1);
    // A damaged number is out of order with its neighbours', also where it leads a search astray or seems to be the end: so
    // two rows beyond either end are looked at.
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
    let (mut rows, mut last, mut behind) = (statement.query([first.0 as i64])?, first.prev(), 0);
    while behind < 2
        && let Some(row) = rows.next()?
    {
        let seq = Seq(row.get::<_, i64>(0)? as u64);
        if seq <= last {
            return Err(is_damaged(last, seq));
        }
        last = seq;
        match is_missing.get_mut((seq.0 - first.0) as usize) {
            Some(is_missing) if seq < end => *is_missing = false,
            _ => behind += 1,
        }
    }
    let numbered = is_missing.into_iter().enumerate();
    Ok(numbered.filter(|(_, is_missing)| *is_missing).map(|(offset, _)| offset as u16).collect())
}

/// The segments whose holes are counted and not found yet.
pub(super) fn unknown(connection: &Connection) -> rusqlite::Result<Vec<u64>> {
    let mut statement = connection.prepare("SELECT segment FROM holes WHERE offsets IS NULL")?;
    statement.query_map([], |row| row.get::<_, i64>(0).map(|segment| segment as u64))?.collect()
}

/// Notes where the holes of a segment are, unless a deletion has done so meanwhile.
pub(super) fn found(connection: &Connection, segment: u64, offsets: Vec<u16>) -> rusqlite::Result<()> {
    match Holes::of(connection, segment)? {
        Some(Holes { count, offsets: None }) => Holes { count, offsets: Some(offsets) }.store(connection, segment),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::flip::{file_with, renumber};
    use crate::store::schema;

    #[test]
    fn a_damaged_number_is_an_error_to_whoever_looks_for_holes() {
        // Of the second segment, with 128 events in two bytes.
        let at = SEGMENT_EVENTS * 5 + 8;
        for to in [at - 128, at + 128, at + 8_192] {
            let (_folder, config) = file_with(300);
            renumber(&config.database_path, at, to);
            let file = schema::open_reader(&config.database_path).expect("whole");
            let found = find(&file, segments::segment_of(Seq(at)));
            assert!(found.is_err_and(|error| super::super::damage::is_damage(&error)), "{to}");
        }
    }
}
