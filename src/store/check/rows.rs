//! The check of every row of a file, segment by segment.

use std::collections::HashSet;
use std::ops::ControlFlow;

use rusqlite::{Connection, Transaction};

use super::facts::Facts;
use super::segment::{Reached, SegmentCheck, Tally};
use crate::store::error::{Error, Result};
use crate::store::read::Pool;

/// A check of the rows of a whole file, in many short transactions.
pub struct Rows<'c, S> {
    pub source: &'c S,
    /// Takes what is damaged, by name.
    pub found: &'c mut dyn FnMut(String),
    /// Called between two transactions with how many events were checked until now. It may end the check.
    pub between: &'c mut dyn FnMut(u64) -> ControlFlow<()>,
}

/// Where a check gets its transactions.
pub trait Source {
    /// Reads in one transaction, which must be short. Never call it within another.
    ///
    /// # Errors
    /// Those of `read`.
    fn with<T>(&self, read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T>;
}

/// Behind a server the check is one of its readers, so it waits at the gate, too.
impl Source for Pool {
    fn with<T>(&self, read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        Pool::with(self, read)
    }
}

impl Source for Connection {
    fn with<T>(&self, read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        Ok(read(&self.unchecked_transaction()?)?)
    }
}

/// Most checks of one segment while its events are being deleted. In the last one only checksums and the order of the
/// rows count. 8: with more, a check takes longer while events are deleted all the time.
const TRIES_MAX: u32 = 8;

impl<S: Source> Rows<'_, S> {
    /// Checks every row. Returns how many events there were, or `None` if `between` ended it.
    ///
    /// # Errors
    /// What SQLite reports, other than damage.
    pub fn check(&mut self) -> Result<Option<u64>> {
        let Self { source, found, between } = self;
        // The check may meet an unreadable page several times; its damage has one name and is reported once.
        let mut reported = HashSet::new();
        let found = &mut |what: String| {
            if reported.insert(what.clone()) {
                found(what);
            }
        };
        let facts = match source.with(|transaction| Facts::read(transaction, found)) {
            Ok(facts) => facts,
            Err(error) => return end_at(error, 0, found),
        };
        let (mut tally, mut disturbed) = (Tally::default(), 0);
        let mut segment = SegmentCheck::new(0, tally.clone(), facts);
        loop {
            let reached = source.with(|transaction| segment.go_on(transaction, disturbed < TRIES_MAX - 1));
            let events = segment.tally.events;
            match reached {
                Ok(Reached::Part) => {}
                Ok(Reached::End) => {
                    segment.damage.drain(..).for_each(&mut *found);
                    if segment.is_last {
                        return Ok(Some(events));
                    }
                    (tally, disturbed) = (segment.tally, 0);
                    segment = SegmentCheck::new(segment.number + 1, tally.clone(), facts);
                }
                Ok(Reached::Deletions) => {
                    disturbed += 1;
                    segment = SegmentCheck::new(segment.number, tally.clone(), facts);
                }
                Err(error) => {
                    segment.damage.drain(..).for_each(&mut *found);
                    return end_at(error, events, found);
                }
            }
            if between(events).is_break() {
                return Ok(None);
            }
        }
    }
}

/// Ends the check when not even the ends of a table can be read.
fn end_at(error: Error, events: u64, found: &mut dyn FnMut(String)) -> Result<Option<u64>> {
    if !error.is_damage() {
        return Err(error);
    }
    found(format!("the rest of the file cannot be read ({error})"));
    Ok(Some(events))
}
