//! The check of one segment: its events, holes, keys and posting lists, each row and then all of them together.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Instant;

use rusqlite::Connection;

use super::facts::{self, Deletions, Facts, name_of_damage};
use super::minutes::Minutes;
use crate::event::{Seq, Timestamp};
use crate::store::damage::{damaged, ignoring_damage, within};
use crate::store::holes::Holes;
use crate::store::keys::{self, select_keys};
use crate::store::read::{self, EVENTS_PER_LOOK_AT_CLOCK, TRANSACTION_TIME};
use crate::store::rollups;
use crate::store::schema::{Text, meta};
use crate::store::segments::{self, SEGMENT_EVENTS, Segment};
use crate::wire::StoredEvent;

/// A check of one segment, in several transactions. Between two of them events may be stored and deleted. New events
/// are checked, too. A deletion is noticed by what it changes for good; then the segment is checked again from its
/// beginning. A segment is sealed only once it is full, so whether it is sealed is read after its last event.
pub struct SegmentCheck {
    pub number: u64,
    /// No event was seen before this segment.
    is_first: bool,
    facts: Facts,
    /// What was deleted of the segment when its check began.
    deleted_at_begin: Option<Deletions>,
    /// Deletions came in between, and the check may not begin again.
    is_disturbed: bool,
    /// What was found damaged. It is reported once the check is complete, because a check that begins again finds it
    /// again.
    pub damage: Vec<String>,
    /// Of all events until now, with those of this segment.
    pub tally: Tally,
    rows_seen: i64,
    /// Which offsets have an event.
    present: Vec<bool>,
    /// The posting lists that the events should have.
    segment: Segment,
    /// No event comes after the segment.
    pub is_last: bool,
    /// All its lists were stored when its last event had been read.
    is_sealed: bool,
    lists_right: usize,
    lists_wrong: usize,
    next: Next,
}

/// Where the next transaction of a check goes on.
enum Next {
    /// The events from this one on.
    Rows(Seq),
    /// The keys from that of this event on.
    Keys(Seq),
    /// The lists after this one.
    Lists(i64, Box<[u8]>),
}

/// How far one transaction came.
pub enum Reached {
    /// There is more.
    Part,
    End,
    /// Events of the segment were deleted since its check began: what was read before does not fit what would be read
    /// now.
    Deletions,
}

/// What the events of a file add up to.
#[derive(Clone, Default)]
pub struct Tally {
    pub events: u64,
    by_type: HashMap<String, (u64, Timestamp)>,
    last: Option<(Seq, Timestamp)>,
    minutes: Minutes,
    /// Some events could not be read, so the counts are too small.
    has_gaps: bool,
}

impl Tally {
    fn note(&mut self, event: &StoredEvent<'_>) {
        self.last = Some((event.seq, event.time));
        self.events += 1;
        self.minutes.note(event.event_type, event.time);
        match self.by_type.get_mut(event.event_type) {
            Some(of_type) => *of_type = (of_type.0 + 1, event.time),
            None => drop(self.by_type.insert(event.event_type.to_owned(), (1, event.time))),
        }
    }
}

impl SegmentCheck {
    /// Begins at this segment, or at the first one after it that has events. `tally` is of the events before it.
    pub fn new(number: u64, tally: Tally, facts: Facts) -> Self {
        Self {
            number,
            is_first: tally.last.is_none(),
            facts,
            deleted_at_begin: None,
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

    /// Goes on in another transaction. A check that is disturbed by deletions and may not begin again compares every
    /// row with its checksum, checks the order of the rows, and nothing else.
    pub fn go_on(&mut self, connection: &Connection, may_begin_again: bool) -> rusqlite::Result<Reached> {
        let Some(stored) = facts::stored(connection)? else {
            self.is_last = true;
            self.minutes(connection, true)?;
            self.statistics(connection)?;
            return Ok(Reached::End);
        };
        if self.deleted_at_begin.is_none() {
            self.number = segments::segment_of(*stored.start()).max(self.number);
            self.segment = Segment::new(self.number);
        }
        let deletions = self.deletions_in_segment(connection, &stored)?;
        if *self.deleted_at_begin.get_or_insert(deletions) != deletions {
            if may_begin_again {
                return Ok(Reached::Deletions);
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

    /// What was deleted of the segment. Each deletion of one of its events makes one of the two numbers larger than it
    /// was before. If damage hides the number of holes, no chosen event can be deleted.
    fn deletions_in_segment(
        &self,
        connection: &Connection,
        stored: &RangeInclusive<Seq>,
    ) -> rusqlite::Result<Deletions> {
        const HOLES: &str = "SELECT coalesce((SELECT count FROM holes WHERE segment = ?1), 0)";
        let chosen = connection.prepare_cached(HOLES)?.query_row([self.number as i64], |row| row.get(0));
        Ok((*self.numbers_of_segment().start().max(stored.start()), ignoring_damage(chosen)?))
    }

    /// Checks the events of the segment from one on. After the last one it checks, in the same transaction, what has to
    /// fit them.
    fn rows(
        &mut self,
        connection: &Connection,
        stored: &RangeInclusive<Seq>,
        mut from: Seq,
    ) -> rusqlite::Result<Reached> {
        let whole = self.numbers_of_segment();
        let numbers = *whole.start().max(stored.start())..=*whole.end().min(stored.end());
        self.is_last = self.number >= segments::segment_of(*stored.end());
        let mut deadline = Deadline::begin();
        const SQL: &str = read::select_events!("seq BETWEEN ?1 AND ?2 ORDER BY seq");
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query([from.max(*numbers.start()).0 as i64, numbers.end().0 as i64])?;
        loop {
            let row = match self.note_damage_in(rows.next().map_err(|error| within("events", error)))? {
                Some(Some(row)) => row,
                Some(None) => break,
                None => {
                    self.tally.has_gaps = true;
                    return Ok(Reached::End);
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
            // After a row out of order the next transaction would read rows again, so no transaction ends there.
            let seq = read::number(row)?;
            if seq >= from && numbers.contains(&seq) {
                from = seq.next();
                if deadline.is_over() {
                    self.minutes(connection, false)?;
                    self.next = Next::Rows(from);
                    return Ok(Reached::Part);
                }
            }
        }

        self.minutes(connection, self.is_last)?;
        if self.is_last {
            self.statistics(connection)?;
        }
        if !self.facts.is_former {
            self.holes(connection, &numbers)?;
        }
        self.numbers(&numbers);
        self.is_sealed = (self.number as i64) < meta::get(connection, meta::SEALED_BEFORE)?;
        // The first segment with events also checks the keys before them: a key stays while any of its events does.
        Ok(match self.facts.is_former {
            false => self.go_on_with(Next::Keys(if self.is_first { Seq::ZERO } else { *whole.start() })),
            true => self.go_on_with_lists(),
        })
    }

    fn go_on_with(&mut self, next: Next) -> Reached {
        self.next = next;
        Reached::Part
    }

    fn go_on_with_lists(&mut self) -> Reached {
        // No field is below 0.
        if self.is_sealed { self.go_on_with(Next::Lists(-1, Box::default())) } else { Reached::End }
    }

    /// Takes note of an undamaged event, and checks its order.
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

    /// Compares how many numbers have no event with how many were deleted.
    fn numbers(&mut self, numbers: &RangeInclusive<Seq>) {
        let Some((_, Some(deleted))) = self.deleted_at_begin.filter(|_| !self.is_disturbed) else { return };
        let missing = numbers.end().0 as i64 + 1 - numbers.start().0 as i64 - self.rows_seen;
        // The count includes holes before the first and after the last stored event.
        if missing > deleted || (*numbers == self.numbers_of_segment() && missing < deleted) {
            let id = numbers.start().id();
            self.damage
                .push(format!("events: {missing} are missing from {id} on in their segment, {deleted} were deleted"));
        }
    }

    /// Compares the holes of the segment with the numbers that have no event.
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

    /// Compares the idempotency keys of the segment, from that of one event on, with their checksums.
    fn keys(&mut self, connection: &Connection, mut from: Seq) -> rusqlite::Result<Reached> {
        let mut deadline = Deadline::begin();
        const SQL: &str = select_keys!("WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq");
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query([from.0 as i64, self.numbers_of_segment().end().0 as i64])?;
        while let Some(row) = self.note_damage_in(rows.next())?.flatten() {
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

    /// Compares the posting lists of the segment, those after one of them, with the lists that its events should have.
    fn lists(&mut self, connection: &Connection, after: (i64, &[u8])) -> rusqlite::Result<Reached> {
        let mut deadline = Deadline::begin();
        const SQL: &str = "SELECT kind, key, offsets, checksum FROM event_index \
                           WHERE segment = ?1 AND (kind, key) > (?2, ?3) ORDER BY kind, key";
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query((self.number as i64, after.0, Text(Some(after.1))))?;
        loop {
            let row = match self.note_damage_in(rows.next())? {
                Some(Some(row)) => row,
                Some(None) => break,
                None => return Ok(Reached::End),
            };
            let list =
                segments::field_of(row.get(0)?).ok_or_else(|| damaged("event_index: no such kind")).and_then(|field| {
                    let key = row.get_ref(1)?.as_bytes()?;
                    Ok((field, key, read::posting_list(row, 2, self.number, field, key)?))
                });
            match list {
                Ok((field, key, mut offsets)) => {
                    // The numbers of deleted events stay in the lists.
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
        Ok(Reached::End)
    }

    /// Compares the rollups of the minutes that were read to their end with their events, if none was deleted since the check of
    /// the file began, and all events are in the rollups.
    fn minutes(&mut self, connection: &Connection, is_end: bool) -> rusqlite::Result<()> {
        if !is_end && !self.tally.minutes.has_whole() {
            return Ok(());
        }
        let may_compare = self.facts.has_rollups && !self.tally.has_gaps && !self.were_events_deleted(connection)?;
        let missing = self.note_damage_in(rollups::missing(connection))?;
        if !may_compare || missing != Some(Seq::ZERO) {
            self.tally.minutes.give_up();
            return Ok(());
        }
        let compared = self.tally.minutes.compare(connection, is_end).map_err(|error| within("rollups", error));
        if let Some(Some(wrong)) = self.note_damage_in(compared)? {
            self.damage
                .push(format!("rollups: the counts are not those of the events, first in the minute of {wrong}"));
        }
        Ok(())
    }

    /// Whether any event was deleted since the check of the file began, or that is not known.
    fn were_events_deleted(&self, connection: &Connection) -> rusqlite::Result<bool> {
        Ok(self.facts.deletions.1.is_none() || facts::deletions(connection)? != self.facts.deletions)
    }

    /// Compares the statistics with all events, if none was deleted since the check of the file began.
    fn statistics(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let stored = stored_statistics(connection).map_err(|error| within("event_stats", error));
        let Some(stored) = self.note_damage_in(stored)? else { return Ok(()) };
        if self.tally.has_gaps || self.were_events_deleted(connection)? {
            return Ok(());
        }
        let counted = self.tally.by_type.iter().map(|(of, (count, last))| (of.clone(), (*count, last.to_string())));
        if stored != counted.collect() {
            self.damage.push("event_stats: the statistics are not those of the events".to_owned());
        }
        Ok(())
    }

    /// Notes damage by its name. Returns any other error.
    fn note(&mut self, error: rusqlite::Error) -> rusqlite::Result<()> {
        name_of_damage(error).map(|name| self.damage.push(name))
    }

    /// What was read, or `None` if it is damaged, which is noted.
    fn note_damage_in<T>(&mut self, read: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
        read.map(Some).or_else(|error| self.note(error).map(|()| None))
    }
}

/// How many events there are of each type, and when the last one was, according to the statistics.
fn stored_statistics(connection: &Connection) -> rusqlite::Result<HashMap<String, (u64, String)>> {
    let mut statement = connection.prepare("SELECT event_type, count, last_seen FROM event_stats WHERE count > 0")?;
    statement.query_map([], |row| Ok((row.get(0)?, (row.get::<_, i64>(1)? as u64, row.get(2)?))))?.collect()
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

    /// Counts a row that was read. Returns whether it is the last one of this transaction.
    fn is_over(&mut self) -> bool {
        self.looked += 1;
        self.looked.is_multiple_of(EVENTS_PER_LOOK_AT_CLOCK) && self.until <= Instant::now()
    }
}
