//! Reading the record, in short transactions one after the other, on connections that only read. So no read delays the
//! writer, or keeps the write-ahead log from starting over for long.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::error::{Error, Result};
use super::read::{self, Latest, Order, Query, Record, Scan, Stats, TRANSACTION_TIME, Values, in_memory};
use super::segments;
use super::shared::Shared;
use super::subscription::StoredSubscription;
use super::write::{CHOSEN_BYTES_PER_COMMIT, CHOSEN_EVENTS_PER_COMMIT};
use crate::event::{EventId, Field, Filter, Seq, Timestamp, TimestampText};
use crate::record::Retained;
use crate::wire::StoredEvent;

/// Reads the record. Every method blocks, so a reading calls them on a thread that may.
///
/// # Errors
/// Every read fails with what SQLite reports, with damage that it meets, or because the reading is over.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
    /// When the reading is over, if it is limited.
    pub(super) limit: Option<Limit>,
}

/// When a reading is over. This is checked between two transactions, which are short.
#[derive(Debug, Clone, Default)]
pub(super) struct Limit {
    pub abandoned: Arc<AtomicBool>,
    pub deadline: Option<Instant>,
}

/// Events that one read looks at, in one transaction or several. 65,536 take about 50 ms, at 0.8 µs each. Then other
/// reads get their turn on the blocking threads.
const EVENTS_PER_READ: usize = if cfg!(test) { 40 } else { 1 << 16 };

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, limit: None }
    }

    /// The high-water mark: every event up to it can be read.
    pub fn committed(&self) -> Seq {
        self.shared.committed()
    }

    /// Shows `visit` the events of a query until it breaks off or there are no more. Returns the last event that the
    /// read came to: all that pass up to there (down to there, newest first) were shown. `None` when it came to the
    /// end.
    ///
    /// # Errors
    /// Events shown before an error stay shown.
    pub fn scan(
        &self,
        query: &Query,
        mut visit: impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Seq>> {
        let (mut query, mut broken_off) = (Cow::Borrowed(query), false);
        loop {
            let reached = self.scan_some(&query, |event| {
                let flow = visit(event);
                broken_off = flow.is_break();
                flow
            })?;
            match reached {
                Some(reached) if !broken_off => query.to_mut().go_on_after(reached),
                end => return Ok(end),
            }
        }
    }

    /// Like [`Reader::scan`], but looks at a bounded number of events, whether they pass or not. With a filter that few
    /// events pass, it shows fewer than `visit` would take.
    ///
    /// # Errors
    /// Events shown before an error stay shown.
    pub fn scan_some(
        &self,
        query: &Query,
        mut visit: impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Seq>> {
        let (committed, recent) = (self.committed(), &in_memory(&self.shared.recent, query));
        let (mut query, mut left, mut broken_off) = (Cow::Borrowed(query), EVENTS_PER_READ, false);
        loop {
            self.go_on()?;
            let reached = self.with_record(|record| {
                let Some(range) = record.range(&query, committed)? else { return Ok(None) };
                let until = Instant::now().checked_add(TRANSACTION_TIME);
                let mut scan = Scan { record, query: &query, range, recent, left, until };
                let reached = scan.run(&mut |event| {
                    let flow = visit(event);
                    broken_off = flow.is_break();
                    flow
                });
                left = scan.left;
                reached
            })?;
            match reached {
                Some(reached) if left > 0 && !broken_off => query.to_mut().go_on_after(reached),
                end => return Ok(end),
            }
        }
    }

    /// Shows `visit` the events of these numbers, as far as they are stored, until it breaks off. Returns the number it
    /// broke off at.
    ///
    /// # Errors
    /// Events shown before an error stay shown.
    pub fn scan_these(
        &self,
        these: &[Seq],
        mut visit: impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Seq>> {
        self.with_record(|record| {
            for seq in these {
                let mut flow = ControlFlow::Continue(());
                record.event(*seq, |event| flow = visit(event))?;
                if flow.is_break() {
                    return Ok(Some(*seq));
                }
            }
            Ok(None)
        })
    }

    /// For each value of a field the newest event up to `through` that passes, ascending; of the values last seen, at
    /// most `values_max`. In sealed segments the posting lists have the values, so a value costs about 0.3 µs there,
    /// and not a look at each event.
    pub fn latest_by(&self, field: Field, filter: &Filter, through: Seq, values_max: usize) -> Result<Vec<Seq>> {
        let mut latest = Latest::new(values_max);
        let in_memory = self.shared.recent.read().lowest();
        let mut query = Query {
            filter: filter.clone(),
            after: segments::first_of(in_memory).prev(),
            before: Some(through.next()),
            order: Order::NewestFirst,
            ..Query::default()
        };
        self.scan(&query, |event| latest.note(event.columns().field(field), event.seq))?;
        query.after = Seq::ZERO;
        let sealed = in_memory.min(segments::segment_of(through.max(Seq(1))) + 1);
        for number in (0..sealed).rev() {
            if latest.is_full() {
                break;
            }
            let mut values = Values::default();
            let is_beginning = loop {
                self.go_on()?;
                let is_beginning = self.with_record(|record| {
                    let Some(range) = record.range(&query, through)? else { return Ok(Some(true)) };
                    let until = Instant::now().checked_add(TRANSACTION_TIME);
                    let is_beginning = segments::first_of(number) <= *range.start();
                    let mut scan = Scan { record, query: &query, range, recent: &[], left: usize::MAX, until };
                    let flow = latest.find(&mut scan, number, field, &mut values)?;
                    Ok(flow.is_continue().then_some(is_beginning))
                })?;
                if let Some(is_beginning) = is_beginning {
                    break is_beginning;
                }
            };
            latest.note_all(values);
            if is_beginning {
                break;
            }
        }
        Ok(latest.into_seqs())
    }

    /// The event with an id, given by this server or by the one before it, as JSON, if it passes.
    pub fn event(&self, id: &str, filter: &Filter) -> Result<Option<Vec<u8>>> {
        match self.seq_of(id)?.filter(|seq| *seq <= self.committed()) {
            Some(seq) => self.event_at(seq, filter),
            None => Ok(None),
        }
    }

    /// The event with a number, as JSON, if it passes.
    pub fn event_at(&self, seq: Seq, filter: &Filter) -> Result<Option<Vec<u8>>> {
        let mut json = Vec::new();
        self.scan_these(&[seq], |event| {
            if filter.matches(&event.columns()) {
                event.write_json(&mut json, &mut TimestampText::default());
            }
            ControlFlow::Break(())
        })?;
        Ok(Some(json).filter(|json| !json.is_empty()))
    }

    /// The sequence number of an id, whether its event is stored, deleted or yet to come; `None` when the text is no
    /// id.
    pub fn seq_of(&self, id: &str) -> Result<Option<Seq>> {
        let legacy = match self.shared.has_legacy_ids {
            // The id of a deleted event is forgotten at once, not when its row is removed.
            true => self.with_record(|record| {
                let seq = read::of_legacy_id(record.connection, id)?;
                Ok(seq.filter(|seq| *seq > record.deleted_through))
            })?,
            false => None,
        };
        Ok(legacy.or_else(|| id.parse().ok().map(|EventId(seq)| seq)))
    }

    /// The retained range, and the epoch.
    pub fn extent(&self) -> Result<Retained> {
        let newest = self.committed();
        let retained = self.with_record(|record| record.retained(newest))?;
        let oldest = retained.map_or(newest.next(), |retained| *retained.start());
        Ok(Retained { oldest, newest, epoch: self.shared.epoch })
    }

    /// The position from which a subscriber gets the last `count` events up to `through` that pass.
    pub fn before_last(&self, filter: &Filter, count: usize, through: Seq) -> Result<Seq> {
        let (filter, before) = (filter.clone(), Some(through.next()));
        let query = Query { filter, before, order: Order::NewestFirst, ..Query::default() };
        let (mut left, mut start) = (count, through);
        if count > 0 {
            self.scan(&query, |event| {
                start = event.seq.prev();
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        Ok(start)
    }

    /// The position from which a subscriber gets every event after `time`.
    pub fn before_time(&self, time: Timestamp) -> Result<Seq> {
        let committed = self.committed();
        self.with_record(|record| match record.retained(committed)? {
            None => Ok(committed),
            Some(retained) => Ok(record.first_later(&retained, time)?.prev()),
        })
    }

    /// Counts of what is stored, all from one moment. They cost the same however many events there are. Damaged rows
    /// are noted and left out.
    pub fn stats(&self, now: Timestamp) -> Result<Stats> {
        self.with_record(|record| Stats::read(record, now))
    }

    /// The durable subscriptions that are stored. Those whose rows are damaged are noted and left out.
    pub fn durable_subscriptions(&self) -> Result<Vec<StoredSubscription>> {
        let rows = self.shared.pool.with(|transaction| StoredSubscription::rows(transaction))?;
        let mut whole = Vec::with_capacity(rows.len());
        for row in rows {
            match row {
                Ok(stored) => whole.push(stored),
                Err(damaged) => {
                    tracing::error!(name = &*damaged.name, "a durable subscription is damaged: it is left out");
                    self.shared.note_damage(&damaged.into());
                }
            }
        }
        Ok(whole)
    }

    /// The next events to be deleted, the oldest first: at most as many as one commit deletes. Also how far the search
    /// came, or `None` when it came to the end.
    pub(crate) fn choose(
        &self,
        filter: Filter,
        after: Seq,
        last: Seq,
        until: Option<Timestamp>,
    ) -> Result<(Vec<Seq>, Option<Seq>)> {
        let (mut chosen, mut bytes) = (Vec::new(), 0);
        let query = Query { filter, after, before: Some(last.next()), until, ..Query::default() };
        let reached = self.scan_some(&query, |event| {
            chosen.push(event.seq);
            bytes += event.payload.len();
            if chosen.len() < CHOSEN_EVENTS_PER_COMMIT && bytes < CHOSEN_BYTES_PER_COMMIT {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok((chosen, reached))
    }

    /// Reads in one transaction, which must be short.
    pub(super) fn with_record<T>(&self, read: impl FnOnce(Record<'_>) -> rusqlite::Result<T>) -> Result<T> {
        self.shared.pool.with(|transaction| read(self.shared.record(transaction)?))
    }

    /// Called between two transactions of one reading.
    ///
    /// # Errors
    /// When the reading is over.
    pub(super) fn go_on(&self) -> Result<()> {
        self.limit.as_ref().map_or(Ok(()), Limit::check)
    }
}

impl Limit {
    fn check(&self) -> Result<()> {
        match self.deadline {
            _ if self.abandoned.load(Ordering::Relaxed) => Err(Error::Abandoned),
            Some(deadline) if deadline <= Instant::now() => Err(Error::TookTooLong),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixture::{delete, delete_most, file_with, renumber, three_segments};
    use crate::store::read::EVENTS_PER_LOOK_AT_CLOCK;
    use crate::store::segments::SEGMENT_EVENTS;
    use crate::store::{Store, schema};

    fn ticks() -> Query {
        Query { filter: Filter::default().with_types(["timer_tick"]), ..Query::default() }
    }

    #[test]
    fn a_snapshot_is_the_same_before_and_after_its_segments_are_sealed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        let latest = |through: u64| {
            store.reader().latest_by(Field::Session, &Filter::default(), Seq(through), 100).expect("read")
        };
        // In the middle, at the end and at the beginning of a segment.
        let ends = [0, 3, SEGMENT_EVENTS + 7, 2 * SEGMENT_EVENTS, 2 * SEGMENT_EVENTS + 1];
        let expected = ends.map(|end| (end.saturating_sub(4).max(1)..=end).map(Seq).collect::<Vec<_>>());
        assert_eq!(ends.map(latest), expected);
        while parts.seal() | parts.write() {}
        assert_eq!(store.shared.recent.read().lowest(), 2, "two segments are in the table");
        assert_eq!(ends.map(latest), expected);
    }

    #[test]
    fn the_start_before_the_last_events_counts_back_from_the_given_event() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        let session = Filter::default().with(Field::Session, ["3"]);
        let before =
            |filter: &Filter, count, through| store.reader().before_last(filter, count, Seq(through)).expect("read").0;
        for _ in 0..2 {
            for through in [7, SEGMENT_EVENTS, 2 * SEGMENT_EVENTS + 3] {
                assert!(Seq(through) < store.committed());
                for count in [0, 1, 6] {
                    assert_eq!(before(&Filter::default(), count, through), through - count as u64);
                }
            }
            // Event 4 is the session's first, 9 its second.
            assert_eq!([3, 4, 8, 9].map(|through| before(&session, 1, through)), [3, 3, 3, 8]);
            while parts.seal() | parts.write() {}
        }
    }

    #[test]
    fn a_snapshot_of_too_many_values_has_those_seen_last_in_a_sealed_segment() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        while parts.seal() | parts.write() {}
        let end = 2 * SEGMENT_EVENTS;
        let latest = store.reader().latest_by(Field::Session, &Filter::default(), Seq(end), 2).expect("read");
        assert_eq!(latest, [Seq(end - 1), Seq(end)]);
    }

    #[test]
    fn a_snapshot_of_a_sealed_segment_may_take_several_transactions() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        while parts.seal() | parts.write() {}
        let asked: serde_json::Value = serde_json::from_str(r#"{"exclude":{"session_id":["3","4"]}}"#).expect("JSON");
        let filter = Filter::parse(asked.as_object().expect("an object")).expect("a filter");
        let end = 2 * SEGMENT_EVENTS;
        let query = Query { filter: filter.clone(), order: Order::NewestFirst, ..Query::default() };
        let latest = Latest::new(100);
        let (mut values, mut transactions, mut looks) = (Values::default(), 0, 0);
        loop {
            transactions += 1;
            let flow = store.reader().with_record(|record| {
                let range = record.range(&query, Seq(end))?.expect("there are some");
                let until = Some(Instant::now());
                let mut scan = Scan { record, query: &query, range, recent: &[], left: usize::MAX, until };
                let flow = latest.find(&mut scan, 1, Field::Session, &mut values);
                looks = usize::MAX - scan.left;
                flow
            });
            assert!(looks <= EVENTS_PER_LOOK_AT_CLOCK, "{looks} in one transaction");
            if flow.expect("read").is_continue() {
                break;
            }
        }
        // Of 32 events 12 or 13 do not pass, and are looked at beside the five lists and the three that pass.
        assert_eq!(transactions, 2);
        let found = |through: u64| store.reader().latest_by(Field::Session, &filter, Seq(through), 100).expect("read");
        for end in [end, end - 7, SEGMENT_EVENTS] {
            let expected: Vec<_> = (end - 4..=end).map(Seq).filter(|seq| (seq.0 - 1) % 5 < 3).collect();
            assert_eq!(found(end), expected);
        }
    }

    #[test]
    fn no_posting_list_leads_to_a_deleted_event() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        let left = delete_most(&store, &mut parts);
        for is_sealed in [false, true] {
            let query = ticks();
            let recent = &in_memory(&store.shared.recent, &query);
            let found = store.reader().with_record(|record| {
                let range = record.range(&query, store.committed())?.expect("some are left");
                let scan = Scan { record, query: &query, range, recent, left: usize::MAX, until: None };
                let of = |segment| {
                    let offsets = scan.offsets(segment)?.into_owned();
                    Ok(offsets.into_iter().map(move |offset| segments::first_of(segment).plus(offset.into())))
                };
                Ok((0..3).map(of).collect::<rusqlite::Result<Vec<_>>>()?.into_iter().flatten().collect::<Vec<_>>())
            });
            assert_eq!(found.expect("read"), left, "sealed: {is_sealed}");
            assert_eq!(store.reader().count(&query).expect("read"), left.len() as u64);
            while parts.seal() | parts.write() {}
        }
    }

    #[test]
    fn a_look_for_a_deleted_event_counts_towards_the_bound_of_a_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        while parts.seal() | parts.write() {}
        let left = delete_most(&store, &mut parts);
        // As in a file from before format 4: only the number of holes is known.
        let forget = "UPDATE holes SET offsets = NULL, checksum = NULL";
        let forgot = schema::open_writer(&folder.path().join("events.db")).and_then(|file| file.execute(forget, []));
        assert_eq!(forgot.expect("written"), 3);
        let (mut query, mut found, mut reads) = (ticks(), Vec::new(), 0);
        loop {
            reads += 1;
            let reached = store.reader().scan_some(&query, |event| {
                found.push(event.seq);
                ControlFlow::Continue(())
            });
            match reached.expect("read") {
                Some(reached) => query.go_on_after(reached),
                None => break,
            }
        }
        assert_eq!(found, left);
        assert_eq!(reads, 3 * SEGMENT_EVENTS as usize / EVENTS_PER_READ + 1);
        assert_eq!(store.reader().count(&ticks()).expect("read"), left.len() as u64);
    }

    #[test]
    fn a_bounded_read_does_not_meet_damage_after_a_hole_at_its_end() {
        let (_folder, config) = file_with(40);
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        delete(&store, &mut parts, vec![Seq(11), Seq(19)]);
        let flipped = "UPDATE events SET payload = '[}' WHERE seq IN (10, 20)";
        assert_eq!(schema::open_writer(&config.database_path).and_then(|file| file.execute(flipped, [])), Ok(2));
        for order in [Order::OldestFirst, Order::NewestFirst] {
            for filter in [Filter::default(), Filter::default().with_types(["timer_tick"])] {
                let query = Query { filter, after: Seq(10), before: Some(Seq(20)), order, ..Query::default() };
                let mut count = 0;
                let scanned = store.reader().scan(&query, |_| {
                    count += 1;
                    ControlFlow::Continue(())
                });
                assert_eq!((scanned, count), (Ok(None), 7), "{order:?}");
            }
        }
    }

    #[test]
    fn a_read_that_meets_a_damaged_number_fails_and_does_not_end_early() {
        // In one byte and in two; up, down, and to a number that is there.
        let damages =
            [(1, 100), (60, 90), (60, 20), (130, 130 + 8_192), (130, 2), (130, 140), (200, 200 - 128), (200, 72)];
        for (seq, to) in damages {
            let (_folder, config) = file_with(200);
            renumber(&config.database_path, seq, to);
            let (store, parts) = Store::open_parts(&config).expect("open");
            let ranges =
                (0..=200).step_by(7).flat_map(|after| (after + 1..=201).step_by(13).map(move |before| (after, before)));
            for ((after, before), order) in
                ranges.flat_map(|range| [(range, Order::OldestFirst), (range, Order::NewestFirst)])
            {
                for filter in [Filter::default(), Filter::default().with_types(["timer_tick"])] {
                    let query =
                        Query { filter, after: Seq(after), before: Some(Seq(before)), order, ..Query::default() };
                    let mut found = Vec::new();
                    let scanned = store.reader().scan(&query, |event| {
                        found.push(event.seq.0);
                        ControlFlow::Continue(())
                    });
                    found.sort_unstable();
                    let what = format!("{seq} is {to}: after {after}, before {before}, {order:?}");
                    match &scanned {
                        Ok(_) => assert_eq!(found, (after + 1..before).collect::<Vec<_>>(), "{what}"),
                        Err(error) => assert!(error.is_damage(), "{what}: {error}"),
                    }
                    if (after + 1..before).contains(&seq) {
                        assert!(scanned.is_err(), "{what}");
                    }
                }
            }
            // Whatever a search for a time finds, it ends.
            for since in 0..200 {
                let mut time = None;
                let before = Some(Seq(since + 2));
                let query = Query { after: Seq(since), before, ..Query::default() };
                let _ = store.reader().scan(&query, |event| {
                    time = Some(event.time);
                    ControlFlow::Continue(())
                });
                let Some(time) = time else { continue };
                let _ = store.reader().before_time(time);
            }
            drop(parts);
        }
    }
}
