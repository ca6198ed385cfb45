//! How many events pass a filter, and how many of them a durable subscription is behind.

use std::borrow::Cow;
use std::ops::ControlFlow;

use super::error::Result;
use super::holes;
use super::read::{Query, Scan, in_memory};
use super::reader::Reader;
use super::segments::{self, SEGMENT_EVENTS};
use crate::event::{Filter, Seq};

/// How many events a durable subscription is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    pub events: u64,
    /// Only the next events were counted, and the rest is taken to be like them.
    pub is_estimate: bool,
}

/// Segments whose posting lists are counted in one transaction. 128 take about 20 ms, at 150 µs each with dense lists.
const SEGMENTS_PER_COUNT: u64 = if cfg!(test) { 1 } else { 128 };

/// Counting by the posting lists of a segment costs as much as looking at this many events: about 100 µs with long
/// lists.
const LOOKS_PER_SEGMENT: u64 = 128;

impl Lag {
    /// `numbers` events come after a position. The first `counted` of them were counted, and `events` of these pass.
    fn of(events: u64, counted: u64, numbers: u64) -> Self {
        if counted >= numbers {
            return Self { events, is_estimate: false };
        }
        let estimate = u128::from(events) * u128::from(numbers) / u128::from(counted.max(1));
        Self { events: estimate as u64, is_estimate: true }
    }
}

impl Reader {
    /// How many events pass. Reads the events only for conditions that no posting list has.
    pub fn count(&self, query: &Query) -> Result<u64> {
        if query.filter.has_rest() {
            let mut count = 0;
            self.scan(query, |_| {
                count += 1;
                ControlFlow::Continue(())
            })?;
            return Ok(count);
        }
        let (committed, recent) = (self.committed(), &in_memory(&self.shared.recent, query));
        let (mut count, mut rest) = (0, Cow::Borrowed(query));
        loop {
            self.go_on()?;
            let reached = self.with_record(|record| {
                let Some(range) = record.range(&rest, committed)? else { return Ok(None) };
                if !query.filter.is_indexed() {
                    count += holes::count_events(record.connection, range)?;
                    return Ok(None);
                }
                let segment = segments::segment_of(*range.start()) + SEGMENTS_PER_COUNT;
                let reached = segments::first_of(segment).prev();
                let (is_all, range) = (reached >= *range.end(), *range.start()..=reached.min(*range.end()));
                count += Scan { record, query: &rest, range, recent, left: usize::MAX, until: None }.count()?;
                Ok((!is_all).then_some(reached))
            })?;
            match reached {
                Some(reached) => rest.to_mut().after = reached,
                None => return Ok(count),
            }
        }
    }

    /// How many events after a position pass. If counting all would take longer than `looks_max` looks at events, only
    /// the next events are counted, and the rest is estimated from them.
    pub fn lag(&self, filter: &Filter, after: Seq, looks_max: u64) -> Result<Lag> {
        let extent = self.extent()?;
        let after = after.max(extent.oldest.prev());
        let numbers = extent.newest.0.saturating_sub(after.0);
        let (events, counted) = match filter.has_rest() {
            true => self.count_looking(filter, after, looks_max.min(numbers))?,
            false => {
                let lists_max = looks_max.div_ceil(LOOKS_PER_SEGMENT);
                let counted =
                    if filter.is_indexed() { numbers.min(lists_max.saturating_mul(SEGMENT_EVENTS)) } else { numbers };
                let before = (counted < numbers).then(|| after.plus(counted as usize).next());
                (self.count(&Query { filter: filter.clone(), after, before, ..Query::default() })?, counted)
            }
        };
        Ok(Lag::of(events, counted, numbers))
    }

    /// How many events of the next `numbers` after a position pass, by a look at each. Also how many numbers were
    /// looked at: fewer if one read does not come to their end.
    fn count_looking(&self, filter: &Filter, after: Seq, numbers: u64) -> Result<(u64, u64)> {
        let before = Some(after.plus(numbers as usize).next());
        let mut events = 0;
        let reached = self.scan_some(&Query { filter: filter.clone(), after, before, ..Query::default() }, |_| {
            events += 1;
            ControlFlow::Continue(())
        })?;
        Ok((events, reached.map_or(numbers, |reached| reached.0 - after.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Field;
    use crate::store::fixture::three_segments;

    #[test]
    fn a_lag_that_would_take_long_to_count_is_estimated() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        while parts.seal() | parts.write() {}
        let all = 3 * SEGMENT_EVENTS;
        let lag = |filter: &Filter, after, looks_max| {
            let Lag { events, is_estimate } = store.reader().lag(filter, Seq(after), looks_max).expect("read");
            (events, is_estimate)
        };
        assert_eq!(lag(&Filter::default(), 1, 1), (all - 1, false), "without a filter it is a subtraction");
        let one_of_five = Filter::default().with(Field::Session, ["3"]);
        assert_eq!(lag(&one_of_five, 0, 3 * LOOKS_PER_SEGMENT), (all / 5, false));
        // Of the first 32 events six have it.
        assert_eq!(lag(&one_of_five, 0, 1), (6 * 3, true));
        let asked: serde_json::Value = serde_json::from_str(r#"{"exclude":{"session_id":["3","4"]}}"#).expect("JSON");
        let three_of_five = Filter::parse(asked.as_object().expect("an object")).expect("a filter");
        assert_eq!(lag(&three_of_five, 0, 10), (6 * all / 10, true));
        assert_eq!(lag(&three_of_five, all - 10, 10), (6, false));
        assert_eq!(lag(&three_of_five, all, 10), (0, false));
    }
}
