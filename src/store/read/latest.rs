//! The newest event of each value of a field.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::record::Record;
use super::scan::{Scan, posting_list};
use crate::event::{Field, Seq};
use crate::store::holes::Holes;
use crate::store::schema::Text;
use crate::store::segments;

/// The newest event of each value of a field, for the values that were seen last.
pub struct Latest {
    /// The values come from clients, so the hash is seeded.
    known: HashSet<Box<[u8]>, foldhash::fast::RandomState>,
    seqs: Vec<Seq>,
    values_max: usize,
}

/// The values found in one segment, over one transaction or several.
#[derive(Default)]
pub struct Values {
    /// The newest passing event of each value, in the order of the values. Which of these events are the newest is
    /// known once all values were looked at.
    found: Vec<(Seq, Box<[u8]>)>,
    /// The value that the last transaction came to, and the event down to which its list was looked at.
    reached: Option<(Box<[u8]>, Seq)>,
}

impl Latest {
    /// For at most this many values.
    pub fn new(values_max: usize) -> Self {
        Self { known: HashSet::default(), seqs: Vec::new(), values_max }
    }

    /// Notes an event; they come the newest first. Breaks off when there are enough.
    pub fn note(&mut self, value: Option<&[u8]>, seq: Seq) -> ControlFlow<()> {
        if let Some(value) = value
            && !self.is_full()
            && !self.known.contains(value)
        {
            self.known.insert(value.into());
            self.seqs.push(seq);
        }
        if self.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Notes what was found in a segment that comes before the events noted until now.
    pub fn note_all(&mut self, values: Values) {
        let mut found = values.found;
        found.sort_unstable_by_key(|(seq, _)| std::cmp::Reverse(*seq));
        for (seq, value) in found {
            if self.note(Some(&value), seq).is_break() {
                break;
            }
        }
    }

    pub fn is_full(&self) -> bool {
        self.seqs.len() >= self.values_max
    }

    /// The events, ascending.
    pub fn into_seqs(mut self) -> Vec<Seq> {
        self.seqs.sort_unstable();
        self.seqs
    }

    /// Finds, in one sealed segment, the newest passing event of each value that is not known yet. Goes on where
    /// `values` ended. Breaks off when the transaction is over.
    pub fn find(
        &self,
        scan: &mut Scan<'_, '_>,
        number: u64,
        field: Field,
        values: &mut Values,
    ) -> rusqlite::Result<ControlFlow<()>> {
        let (Record { connection, .. }, filter) = (scan.record, &scan.query.filter);
        let passing = match filter.is_indexed() {
            true => Some(segments::select(filter, |field, key| scan.list(number, field, key))?),
            false => None,
        };
        if passing.as_ref().is_some_and(Vec::is_empty) {
            return Ok(ControlFlow::Continue(()));
        }
        let holes = Holes::of(connection, number)?.unwrap_or_default();
        const SQL: &str = "SELECT key, offsets, checksum FROM event_index \
                           WHERE segment = ?1 AND kind = ?2 AND key >= ?3 ORDER BY key";
        let mut statement = connection.prepare_cached(SQL)?;
        let (value, mut before) = values.reached.take().unwrap_or_else(|| (Box::default(), Seq::MAX));
        let mut rows = statement.query((number as i64, field as i64, Text(Some(&value))))?;
        while let Some(row) = rows.next()? {
            let row_value = row.get_ref(0)?.as_bytes()?;
            let before = if *row_value == *value { std::mem::replace(&mut before, Seq::MAX) } else { Seq::MAX };
            if !self.known.contains(row_value) && before > segments::first_of(number) {
                let mut offsets = posting_list(row, 1, number, field, row_value)?;
                holes.remove_from(&mut offsets);
                let passes =
                    |offset: &u16| passing.as_ref().is_none_or(|passing| passing.binary_search(offset).is_ok());
                for offset in offsets.iter().rev().filter(|offset| passes(offset)) {
                    let seq = segments::first_of(number).plus((*offset).into());
                    if seq >= before || !scan.range.contains(&seq) {
                        continue;
                    }
                    let mut is_passing = false;
                    scan.record.event(seq, |event| is_passing = filter.matches(&event.columns()))?;
                    if is_passing {
                        values.found.push((seq, row_value.into()));
                        break;
                    }
                    if scan.looked().is_break() {
                        values.reached = Some((row_value.into(), seq));
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
            if scan.looked().is_break() {
                // The next transaction leaves this list out.
                values.reached = Some((row_value.into(), Seq::ZERO));
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
