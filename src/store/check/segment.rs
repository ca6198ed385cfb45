//! Holding one segment against itself: its events, holes, keys and posting lists.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Instant;

use rusqlite::Connection;

use super::facts::{self, Deletions, Facts, name_of_damage};
use crate::event::{Seq, Timestamp};
use crate::store::damage::{damaged, ignoring_damage, within};
use crate::store::holes::Holes;
use crate::store::keys::{self, select_keys};
use crate::store::read::{self, EVENTS_PER_LOOK_AT_CLOCK, TRANSACTION_TIME};
use crate::store::schema::{Text, meta};
use crate::store::segments::{self, SEGMENT_EVENTS, Segment};
use crate::wire::StoredEvent;

/// A check of one segment, in several transactions. Between two of them events may be stored and deleted. New events are
/// taken along. A deletion is noticed by what it leaves behind: then the segment is checked again from its beginning. A
/// segment is sealed only once it is full, so whether it is sealed matters at the end of its events alone.
pub struct SegmentCheck {
    pub number: u64,
    /// No event was seen before this segment.
    is_first: bool,
    facts: Facts,
    /// What was deleted of the segment when its check began.
    began_with: Option<Deletions>,
    is_disturbed: bool,
    /// What was found damaged. Told only once the check is complete: one that begins again finds it again.
    pub damage: Vec<String>,
    /// Of all events so far, with those of this segment.
    pub tally: Tally,
    rows_seen: i64,
    present: Vec<bool>,
    segment: Segment,
    /// No event comes after the segment.
    pub is_last: bool,
    /// Its lists were all stored when its last event had been read.
    is_sealed: bool,
    lists_right: usize,
    lists_wrong: usize,
    next: Next,
}

/// What comes next in the check of a segment.
enum Next {
    /// The events from this one on.
    Rows(Seq),
    /// The keys from that of this event on.
    Keys(Seq),
    /// The lists after this one.
    Lists(i64, Box<[u8]>),
}

/// How far one transaction came.
pub enum Came {
    Some,
    ToTheEnd,
    /// Events of the segment were deleted since its check began: what was read before does not fit to what would be read
    /// now.
    UponDeletions,
}

/// What the events of a file add up to.
#[derive(Clone, Default)]
pub struct Tally {
    pub events: u64,
    by_type: HashMap<String, (u64, Timestamp)>,
    last: Option<(Seq, Timestamp)>,
    /// Some events could not be read, so the sums are too small.
    has_gaps: bool,
}

impl Tally {
    fn note(&mut self, event: &StoredEvent<'_>) {
        self.last = Some((event.seq, event.time));
        self.events += 1;
        match self.by_type.get_mut(event.event_type) {
            Some(of_type) => *of_type = (of_type.0 + 1, event.time),
            None => drop(self.by_type.insert(event.event_type.to_owned(), (1, event.time))),
        }
    }
}

impl SegmentCheck {
    /// At this segment, or at the first after it that has events. `tally` is of the events before it.
    pub fn new(number: u64, tally: Tally, facts: Facts) -> Self {
        Self {
            number,
            is_first: tally.last.is_none(),
            facts,
            began_with: None,
            is_disturbed: false,
            damage: Vec::new(),
            tally,
            rows_seen: 0,
            present: vec![false; SEGMENT_EVENTS as usize],
            segment: Segment::new(number),
            is_last: false,
            is_sealed: false,
            lists_right: 0,
            lists_wrong: 0,
            next: Next::Rows(Seq::ZERO),
        }
    }

    /// Goes on in another transaction. A check that deletions disturb and that may not begin again still holds every row
    /// against its checksum and the rows against their order, and nothing else.
    pub fn go_on(&mut self, connection: &Connection, may_begin_again: bool) -> rusqlite::Result<Came> {
        let Some(stored) = facts::stored(connection)? else {
            self.is_last = true;
            self.statistics(connection)?;
            return Ok(Came::ToTheEnd);
        };
        if self.began_with.is_none() {
            self.number = segments::segment_of(*stored.start()).max(self.number);
            self.segment = Segment::new(self.number);
        }
        let deletions = self.deletions_in_segment(connection, &stored)?;
        if *self.began_with.get_or_insert(deletions) != deletions {
            if may_begin_again {
                return Ok(Came::UponDeletions);
            }
            self.is_disturbed = true;
        }
        match std::mem::replace(&mut self.next, Next::Rows(Seq::ZERO)) {
            Next::Rows(from) => self.rows(connection, &stored, from),
            Next::Keys(from) => self.keys(connection, from),
            Next::Lists(kind, key) => self.lists(connection, (kind, &*key)),
        }
    }

    fn numbers_of_segment(&self) -> RangeInclusive<Seq> {
        segments::first_of(self.number)..=segments::first_of(self.number + 1).prev()
    }

    /// What was deleted of the segment. With every event of it that is deleted one of the two numbers becomes larger than it
    /// ever was. Where damage hides the holes, no event can be chosen.
    fn deletions_in_segment(
        &self,
        connection: &Connection,
        stored: &RangeInclusive<Seq>,
    ) -> rusqlite::Result<Deletions> {
        const HOLES: &str = "SELECT coalesce((SELECT count FROM holes WHERE segment = ?1), 0)";
        let chosen = connection.prepare_cached(HOLES)?.query_row([self.number as i64], |row| row.get(0));
        Ok((*self.numbers_of_segment().start().max(stored.start()), ignoring_damage(chosen)?))
    }

    /// Checks the events of the segment from one on and, behind the last, what has to fit to them in the same transaction.
    fn rows(&mut self, connection: &Connection, stored: &RangeInclusive<Seq>, mut from: Seq) -> rusqlite::Result<Came> {
        let whole = self.numbers_of_segment();
        let numbers = *whole.start().max(stored.start())..=*whole.end().min(stored.end());
        self.is_last = self.number >= segments::segment_of(*stored.end());
        let mut deadline = Deadline::begin();
        const SQL: &str = read::select_events!("seq BETWEEN ?1 AND ?2 ORDER BY seq");
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query([from.max(*numbers.start()).0 as i64, numbers.end().0 as i64])?;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => {
                    self.tally.has_gaps = true;
                    self.note(within("events", error))?;
                    return Ok(Came::ToTheEnd);
                }
            };
            self.rows_seen += 1;
            match read::stored(row, self.facts.unchecked_through) {
                Ok(event) => self.event(&event, &numbers),
                Err(error) => {
                    self.tally.has_gaps = true;
                    self.note(error)?;
                }
            }
            // A row out of order would have the next transaction read rows again, so none ends there.
            let seq = read::number(row)?;
            if seq >= from && numbers.contains(&seq) {
                from = seq.next();
                if deadline.is_over() {
                    self.next = Next::Rows(from);
                    return Ok(Came::Some);
                }
            }
        }

        if self.is_last {
            self.statistics(connection)?;
        }
        if !self.facts.is_former {
            self.holes(connection, &numbers)?;
        }
        self.numbers(&numbers);
        self.is_sealed = (self.number as i64) < meta::get(connection, meta::SEALED_BEFORE)?;
        // The first segment with events also takes the keys before them: a key stays while any of its events does.
        Ok(match self.facts.is_former {
            false => self.go_on_with(Next::Keys(if self.is_first { Seq::ZERO } else { *whole.start() })),
            true => self.go_on_with_lists(),
        })
    }

    fn go_on_with(&mut self, next: Next) -> Came {
        self.next = next;
        Came::Some
    }

    fn go_on_with_lists(&mut self) -> Came {
        // No field is below 0.
        if self.is_sealed { self.go_on_with(Next::Lists(-1, Box::default())) } else { Came::ToTheEnd }
    }

    /// An event that is whole.
    fn event(&mut self, event: &StoredEvent<'_>, numbers: &RangeInclusive<Seq>) {
        let is_in_order = self.tally.last.is_none_or(|(seq, time)| event.seq > seq && event.time > time);
        if !numbers.contains(&event.seq) || !is_in_order {
            self.damage.push(read::out_of_order(event.seq).to_string());
            return;
        }
        self.present[usize::from(segments::offset_of(event.seq))] = true;
        self.segment.note(event.seq, &event.columns());
        self.tally.note(event);
    }

    /// Holds the numbers without an event against how many were deleted.
    fn numbers(&mut self, numbers: &RangeInclusive<Seq>) {
        let Some((_, Some(deleted))) = self.began_with.filter(|_| !self.is_disturbed) else { return };
        let missing = numbers.end().0 as i64 + 1 - numbers.start().0 as i64 - self.rows_seen;
        // The count includes holes before the first and behind the last stored event.
        if missing > deleted || (*numbers == self.numbers_of_segment() && missing < deleted) {
            let id = numbers.start().id();
            self.damage
                .push(format!("events: {missing} are missing from {id} on in their segment, {deleted} were deleted"));
        }
    }

    /// Holds the holes of the segment against the numbers without an event.
    fn holes(&mut self, connection: &Connection, numbers: &RangeInclusive<Seq>) -> rusqlite::Result<()> {
        let holes = match Holes::of(connection, self.number) {
            Ok(holes) => holes.and_then(|holes| holes.offsets),
            Err(error) => return self.note(within("holes", error)),
        };
        let Some(holes) = holes.filter(|_| !self.tally.has_gaps && !self.is_disturbed) else { return Ok(()) };
        let wrong = holes.iter().filter(|hole| self.is_present(**hole)).count();
        if wrong > 0 {
            let id = numbers.start().id();
            self.damage.push(format!("holes: {wrong} of the segment of {id} have their events"));
        }
        Ok(())
    }

    fn is_present(&self, offset: u16) -> bool {
        self.present.get(usize::from(offset)).is_some_and(|is_present| *is_present)
    }

    /// Holds the idempotency keys of the segment, from that of an event on, against their checksums.
    fn keys(&mut self, connection: &Connection, mut from: Seq) -> rusqlite::Result<Came> {
        let mut deadline = Deadline::begin();
        const SQL: &str = select_keys!("WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq");
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query([from.0 as i64, self.numbers_of_segment().end().0 as i64])?;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => {
                    self.note(error)?;
                    break;
                }
            };
            keys::StoredKey::read(row).map(drop).or_else(|error| self.note(error))?;
            let seq = Seq(row.get::<_, i64>(1)? as u64);
            // As with events, no transaction ends at a row out of order.
            if seq >= from {
                from = seq.next();
                if deadline.is_over() {
                    return Ok(self.go_on_with(Next::Keys(from)));
                }
            }
        }
        Ok(self.go_on_with_lists())
    }

    /// Holds the posting lists of the segment, from behind one on, against those of its events.
    fn lists(&mut self, connection: &Connection, after: (i64, &[u8])) -> rusqlite::Result<Came> {
        let mut deadline = Deadline::begin();
        const SQL: &str = "SELECT kind, key, offsets, checksum FROM event_index \
                           WHERE segment = ?1 AND (kind, key) > (?2, ?3) ORDER BY kind, key";
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query((self.number as i64, after.0, Text(Some(after.1))))?;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => {
                    self.note(error)?;
                    return Ok(Came::ToTheEnd);
                }
            };
            let list =
                segments::field_of(row.get(0)?).ok_or_else(|| damaged("event_index: no such kind")).and_then(|field| {
                    let key = row.get_ref(1)?.as_bytes()?;
                    Ok((field, key, read::posting_list(row, 2, self.number, field, key)?))
                });
            match list {
                Ok((field, key, mut offsets)) => {
                    // Lists keep the numbers of events that were deleted.
                    offsets.retain(|offset| self.is_present(*offset));
                    let events = self.segment.list(field, key).unwrap_or_default();
                    let is_right = *offsets == *events;
                    self.lists_right += usize::from(is_right && !events.is_empty());
                    self.lists_wrong += usize::from(!is_right);
                    // As with events, no transaction ends at a row out of order.
                    if (field as i64, key) > after && deadline.is_over() {
                        return Ok(self.go_on_with(Next::Lists(field as i64, key.into())));
                    }
                }
                Err(error) => self.note(error)?,
            }
        }
        let (right, wrong) = (self.lists_right, self.lists_wrong);
        let lacking = self.segment.lists().saturating_sub(right + wrong);
        if wrong + lacking > 0 && !self.is_disturbed {
            let number = self.number;
            self.damage
                .push(format!("event_index: of segment {number} {wrong} lists are wrong and {lacking} are missing"));
        }
        Ok(Came::ToTheEnd)
    }

    /// Holds the statistics against all events, if none was deleted since the check of the file began.
    fn statistics(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let told = match told_by_type(connection).map_err(|error| within("event_stats", error)) {
            Ok(told) => told,
            Err(error) => return self.note(error),
        };
        if self.tally.has_gaps
            || self.facts.deletions.1.is_none()
            || facts::deletions(connection)? != self.facts.deletions
        {
            return Ok(());
        }
        let counted = self.tally.by_type.iter().map(|(of, (count, last))| (of.clone(), (*count, last.to_string())));
        if told != counted.collect() {
            self.damage.push("event_stats: the statistics are not those of the events".to_owned());
        }
        Ok(())
    }

    /// Notes damage by its name, and gives back any other error.
    fn note(&mut self, error: rusqlite::Error) -> rusqlite::Result<()> {
        name_of_damage(error).map(|name| self.damage.push(name))
    }
}

/// What the statistics tell of each type.
fn told_by_type(connection: &Connection) -> rusqlite::Result<HashMap<String, (u64, String)>> {
    let mut statement = connection.prepare("SELECT event_type, count, last_seen FROM event_stats WHERE count > 0")?;
    let told = statement.query_map([], |row| Ok((row.get(0)?, (row.get::<_, i64>(1)? as u64, row.get(2)?))))?;
    told.collect()
}

/// When a transaction is to end.
struct Deadline {
    until: Instant,
    looked: usize,
}

impl Deadline {
    fn begin() -> Self {
        Self { until: Instant::now() + TRANSACTION_TIME, looked: 0 }
    }

    /// Counts a row that was looked at. Returns whether it is the last in this transaction.
    fn is_over(&mut self) -> bool {
        self.looked += 1;
        self.looked.is_multiple_of(EVENTS_PER_LOOK_AT_CLOCK) && self.until <= Instant::now()
    }
}
