//! Reading the rows of `events` one after the other in spite of damaged numbers. SQLite believes the number of a row.
//! With a damaged one it would end a search at a wrong row, leave rows out, or end too early.

use std::ops::RangeInclusive;

use rusqlite::Row;

use super::query::Order;
use super::record::Record;
use super::row::{number, out_of_order, select_events, stored};
use crate::event::Seq;
use crate::store::holes;
use crate::wire::StoredEvent;

/// A walk over the rows of a range of numbers, from the near end to the far end. SQLite cannot be trusted with the far
/// end, so the statement has no bound there.
pub struct Walk<'c> {
    record: Record<'c>,
    order: Order,
    pub near: Seq,
    pub far: Seq,
    /// The last event that the walk came to.
    last: Option<Seq>,
}

/// What a row is to a walk.
pub enum Step<'r> {
    /// Not reached yet: the row comes before the near end.
    Before,
    Event(StoredEvent<'r>),
    /// The row comes after the far end.
    After,
}

impl<'c> Walk<'c> {
    pub fn new(record: Record<'c>, range: &RangeInclusive<Seq>, order: Order) -> Self {
        let (near, far) = match order {
            Order::OldestFirst => (*range.start(), *range.end()),
            Order::NewestFirst => (*range.end(), *range.start()),
        };
        Self { record, order, near, far, last: None }
    }

    /// The statement whose rows are stepped through. Its parameter is the near end.
    pub fn sql(&self) -> &'static str {
        match self.order {
            Order::OldestFirst => select_events!("seq >= ?1 ORDER BY seq"),
            Order::NewestFirst => select_events!("seq <= ?1 ORDER BY seq DESC"),
        }
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// Damage, unless it is certainly after the far end.
    pub fn step<'r>(&mut self, row: &'r Row<'_>) -> rusqlite::Result<Step<'r>> {
        let event = match stored(row, self.record.unchecked_through) {
            Ok(event) => event,
            Err(error) => return if self.is_after(number(row)?)? { Ok(Step::After) } else { Err(error) },
        };
        let (seq, near, last) = (event.seq, self.near, self.last);
        let (is_before, is_after, is_next) = match self.order {
            Order::OldestFirst => (seq < near, seq > self.far, last < Some(seq)),
            Order::NewestFirst => (seq > near, seq < self.far, last.is_none_or(|last| seq < last)),
        };
        if is_before {
            return Ok(Step::Before);
        }
        if last.is_none() && seq != near {
            self.look_beside(Some(seq))?;
        }
        if !is_next {
            return Err(out_of_order(seq));
        }
        self.last = Some(seq);
        Ok(if is_after { Step::After } else { Step::Event(event) })
    }

    /// Ends the walk when there are no more rows, or the last one is after the far end.
    ///
    /// # Errors
    /// Damage that has made the walk miss all events.
    pub fn finish(self) -> rusqlite::Result<()> {
        if self.last.is_none() { self.look_beside(None) } else { Ok(()) }
    }

    /// Whether a damaged row is after the far end. It is if the number that it shows can be right: if no event is
    /// missing between the last one and that number.
    fn is_after(&self, shown: Seq) -> rusqlite::Result<bool> {
        let between = match self.order {
            Order::OldestFirst if shown > self.far => self.last.map_or(self.near, Seq::next)..=shown.prev(),
            Order::NewestFirst if shown < self.far => shown.next()..=self.last.map_or(self.near, Seq::prev),
            _ => return Ok(false),
        };
        Ok(self.count_events(between)? == 0)
    }

    /// Looks at the row on the other side of the near end, after the search for the near end came to the row of
    /// `found`. If a damaged number led that search to a wrong row, the damaged row is there.
    fn look_beside(&self, found: Option<Seq>) -> rusqlite::Result<()> {
        let sql = match self.order {
            Order::OldestFirst => select_events!("seq < ?1 ORDER BY seq DESC LIMIT 1"),
            Order::NewestFirst => select_events!("seq > ?1 ORDER BY seq LIMIT 1"),
        };
        let mut find = self.record.connection.prepare_cached(sql)?;
        let mut rows = find.query([self.near.0 as i64])?;
        let Some(row) = rows.next()? else { return Ok(()) };
        let (beside, found) = (number(row)?, found.unwrap_or(self.near));
        let between = match self.order {
            Order::OldestFirst if beside < self.near => beside.next()..=found.prev(),
            Order::NewestFirst if beside > self.near => found.next()..=beside.prev(),
            _ => return Err(out_of_order(beside)),
        };
        match stored(row, self.record.unchecked_through) {
            // If no event is missing, the number of the row may be right although the row is damaged.
            Err(error) if self.count_events(between)? > 0 => Err(error),
            _ => Ok(()),
        }
    }

    /// How many of these numbers have events that are not deleted.
    fn count_events(&self, numbers: RangeInclusive<Seq>) -> rusqlite::Result<u64> {
        let oldest = self.record.deleted_through.next();
        holes::count_events(self.record.connection, oldest.max(*numbers.start())..=*numbers.end())
    }
}
