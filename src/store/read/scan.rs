//! The part of a read in one transaction: the events that pass a query, found in the table or by the posting lists.

use std::borrow::Cow;
use std::ops::{ControlFlow, RangeInclusive};
use std::time::{Duration, Instant};

use rusqlite::Row;

use super::query::{Order, Query};
use super::record::Record;
use super::walk::{Step, Walk};
use crate::event::{Field, Filter, Seq, Timestamp};
use crate::store::checksum;
use crate::store::damage::{damaged, is_damage};
use crate::store::holes::Holes;
use crate::store::segments::{self, Recent};
use crate::sync::RwLock;
use crate::wire::StoredEvent;

/// Time after which a transaction ends at its next look at the clock; with its last step it takes 20 ms at most. While
/// it is open the write-ahead log cannot start over, and a checkpoint that has closed the gate waits for it. In unit
/// tests each look at the clock ends a transaction, so that long reads take several on any machine.
pub const TRANSACTION_TIME: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_millis(15) };

/// Events between two looks at the clock. A look costs a twentieth of what an event costs.
pub const EVENTS_PER_LOOK_AT_CLOCK: usize = 16;

/// A read within its transaction, over the numbers of `range`.
pub struct Scan<'c, 'q> {
    pub record: Record<'c>,
    pub query: &'q Query,
    pub range: RangeInclusive<Seq>,
    /// The offsets that pass in the segments that are in memory ([`in_memory`]).
    pub recent: &'q [(u64, Vec<u16>)],
    /// How many more events may be looked at.
    pub left: usize,
    /// When the transaction is to end.
    pub until: Option<Instant>,
}

/// The offsets that pass a query in the segments that are in memory. Call it before the transaction begins: a segment
/// that is not in memory by then is in the table when the transaction begins.
pub fn in_memory(recent: &RwLock<Recent>, query: &Query) -> Vec<(u64, Vec<u16>)> {
    if query.filter.is_indexed() { recent.read().select(&query.filter) } else { Vec::new() }
}

impl<'q> Scan<'_, 'q> {
    /// Shows `visit` the events that pass, until it breaks off or the transaction is over. Returns the event that the
    /// scan came to, or `None` at the end.
    pub fn run(&mut self, visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>) -> rusqlite::Result<Option<Seq>> {
        match self.query.filter.is_indexed() {
            true => self.by_lists(visit),
            false => self.by_rows(visit),
        }
    }

    fn by_rows(&mut self, visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>) -> rusqlite::Result<Option<Seq>> {
        let mut walk = Walk::new(self.record, &self.range, self.query.order);
        let mut statement = self.record.connection.prepare_cached(walk.sql())?;
        let mut rows = statement.query([walk.near.0 as i64])?;
        while let Some(row) = rows.next()? {
            let event = match walk.step(row)? {
                Step::Before => continue,
                Step::Event(event) => event,
                Step::After => break,
            };
            let seq = event.seq;
            if self.show(event, visit).is_break() {
                return Ok(Some(seq));
            }
            if seq == walk.far {
                break;
            }
        }
        walk.finish().map(|()| None)
    }

    fn by_lists(
        &mut self,
        visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> rusqlite::Result<Option<Seq>> {
        let (lowest, highest) = self.segments().into_inner();
        for step in 0..=highest - lowest {
            let number = match self.query.order {
                Order::OldestFirst => lowest + step,
                Order::NewestFirst => highest - step,
            };
            if step > 0 && self.is_time_up() {
                // All of the segments before this one were looked at.
                return Ok(Some(match self.query.order {
                    Order::OldestFirst => segments::first_of(number).prev(),
                    Order::NewestFirst => segments::first_of(number + 1),
                }));
            }
            let offsets = self.offsets(number)?;
            let passing = self.numbers(number, &offsets);
            let broken_off = match self.query.order {
                Order::OldestFirst => self.look_at(passing, visit)?,
                Order::NewestFirst => self.look_at(passing.rev(), visit)?,
            };
            if broken_off.is_some() {
                return Ok(broken_off);
            }
        }
        Ok(None)
    }

    /// How many events pass, counted by the posting lists.
    pub fn count(&mut self) -> rusqlite::Result<u64> {
        let mut count = 0;
        for number in self.segments() {
            let offsets = self.offsets(number)?;
            let passing = self.numbers(number, &offsets);
            match offsets.is_empty() || self.knows_holes(number)? {
                true => count += passing.count() as u64,
                false => drop(self.look_at(passing, &mut |_| {
                    count += 1;
                    ControlFlow::Continue(())
                })?),
            }
        }
        Ok(count)
    }

    fn segments(&self) -> RangeInclusive<u64> {
        segments::segment_of(*self.range.start())..=segments::segment_of(*self.range.end())
    }

    /// The numbers of offsets of a segment, as far as they are in the range.
    fn numbers<'o>(&self, segment: u64, offsets: &'o [u16]) -> impl DoubleEndedIterator<Item = Seq> + use<'o> {
        let (first, range) = (segments::first_of(segment), self.range.clone());
        offsets.iter().map(move |offset| first.plus((*offset).into())).filter(move |seq| range.contains(seq))
    }

    /// The offsets within a segment whose events have the field values that the query names, without holes.
    pub fn offsets(&self, number: u64) -> rusqlite::Result<Cow<'q, [u16]>> {
        let mut offsets: Cow<'q, [u16]> = match self.recent.iter().find(|(of, _)| *of == number) {
            Some((_, offsets)) => Cow::Borrowed(offsets),
            None => segments::select(&self.query.filter, |field, key| self.list(number, field, key))?.into(),
        };
        if !offsets.is_empty()
            && let Some(holes) = Holes::of(self.record.connection, number)?
        {
            holes.remove_from(offsets.to_mut());
        }
        Ok(offsets)
    }

    /// The posting list of a value in a sealed segment.
    pub fn list(&self, segment: u64, field: Field, key: &str) -> rusqlite::Result<Option<Vec<u16>>> {
        const SQL: &str = "SELECT offsets, checksum FROM event_index WHERE segment = ?1 AND kind = ?2 AND key = ?3";
        let mut statement = self.record.connection.prepare_cached(SQL)?;
        let mut rows = statement.query((segment as i64, field as i64, key))?;
        rows.next()?.map(|row| posting_list(row, 0, segment, field, key.as_bytes())).transpose()
    }

    /// Whether it is known where the holes of a segment are. In a file from before format 4 it is not until the sealer
    /// has found them.
    fn knows_holes(&self, segment: u64) -> rusqlite::Result<bool> {
        Ok(Holes::of(self.record.connection, segment)?.is_none_or(|holes| holes.offsets.is_some()))
    }

    /// Shows the events of these numbers, to which posting lists lead.
    fn look_at(
        &mut self,
        seqs: impl Iterator<Item = Seq>,
        visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> rusqlite::Result<Option<Seq>> {
        for seq in seqs {
            let (mut flow, left) = (ControlFlow::Continue(()), self.left);
            self.record.event(seq, |event| flow = self.show(event, visit))?;
            if self.left == left {
                // No row has this number, although a list has it. So it is a hole that is not known yet, or the row has
                // a damaged number.
                if self.knows_holes(segments::segment_of(seq))? {
                    return Err(damaged(format!("events: {} is missing", seq.id())));
                }
                // A look for a missing event takes as long as a look at one.
                flow = self.looked();
            }
            if flow.is_break() {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    /// Shows an event if it passes the conditions that no list has. Breaks off when the transaction is over.
    fn show(
        &mut self,
        event: StoredEvent<'_>,
        visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let is_over = self.looked();
        let filter = &self.query.filter;
        if !filter.has_rest() || filter.matches(&event.columns()) {
            visit(event)?;
        }
        is_over
    }

    /// Counts a look at an event, or for a missing one. Breaks off when it was the last of the transaction.
    pub fn looked(&mut self) -> ControlFlow<()> {
        self.left -= 1;
        let looks_at_clock = self.left.is_multiple_of(EVENTS_PER_LOOK_AT_CLOCK);
        let is_over = self.left == 0 || (looks_at_clock && self.is_time_up());
        if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_time_up(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }
}

/// The time of the newest undamaged event of a type from `oldest` on, as the writer sees it in its transaction. Damage
/// is noted and passed over.
pub fn newest_of_type(
    record: Record<'_>,
    recent: &RwLock<Recent>,
    event_type: &str,
    oldest: Seq,
) -> rusqlite::Result<Option<Timestamp>> {
    let filter = Filter::default().with_types([event_type]);
    let query = Query { filter, order: Order::NewestFirst, ..Query::default() };
    let recent = &in_memory(recent, &query);
    let Some(newest) = record.newest()? else { return Ok(None) };
    let scan = Scan { record, query: &query, range: oldest..=newest, recent, left: usize::MAX, until: None };
    let note = |error: &rusqlite::Error| record.integrity.lock().note_error(error);
    for number in scan.segments().rev() {
        let offsets = match scan.offsets(number) {
            Err(error) if is_damage(&error) => {
                note(&error);
                continue;
            }
            offsets => offsets?,
        };
        for seq in scan.numbers(number, &offsets).rev() {
            let mut newest = None;
            match record.event(seq, |event| newest = Some(event.time)) {
                Err(error) if is_damage(&error) => note(&error),
                looked => looked?,
            }
            if newest.is_some() {
                return Ok(newest);
            }
        }
    }
    Ok(None)
}

/// The offsets of a row of `event_index`, which has them and their checksum from column `column` on.
pub fn posting_list(
    row: &Row<'_>,
    column: usize,
    segment: u64,
    field: Field,
    key: &[u8],
) -> rusqlite::Result<Vec<u16>> {
    segments::decode(whole_list(row, column, segment, field, key)?).ok_or_else(|| damaged_list(segment))
}

/// The same offsets, still encoded.
pub fn whole_list<'r>(
    row: &'r Row<'_>,
    column: usize,
    segment: u64,
    field: Field,
    key: &[u8],
) -> rusqlite::Result<&'r [u8]> {
    let offsets = row.get_ref(column)?.as_blob()?;
    let is_whole = checksum::of_list(segment as i64, field as i64, key, offsets) == row.get::<_, i32>(column + 1)?;
    is_whole.then_some(offsets).ok_or_else(|| damaged_list(segment))
}

/// The error that a posting list is damaged.
pub fn damaged_list(segment: u64) -> rusqlite::Error {
    damaged(format!("event_index: a list of segment {segment} is damaged"))
}
