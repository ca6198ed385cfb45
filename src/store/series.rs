//! Counts over time: how many events of each type came in each of many equal intervals.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::counts;
use super::error::Result;
use super::read::{Record, TRANSACTION_TIME};
use super::reader::Reader;
use super::rollups::{self, MINUTE_US};
use super::schema::Text;
use crate::event::{Seq, Timestamp};

/// Equal intervals, one after the other. The first begins at a multiple of their length, counted from 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    pub start: Timestamp,
    pub length: Duration,
    pub number: usize,
}

impl Intervals {
    /// Those that have any time from `since` up to, and without, `until`.
    pub fn between(since: Timestamp, until: Timestamp, length: Duration) -> Self {
        let micros = length.as_micros() as i64;
        let start = since.0.div_euclid(micros) * micros;
        let number = (until.0 - start).max(0) as u64;
        Self { start: Timestamp(start), length, number: number.div_ceil(micros as u64) as usize }
    }

    /// The time at which an interval begins, or, with [`Intervals::number`], the last one ends.
    pub fn start_of(&self, index: usize) -> Timestamp {
        Timestamp(self.start.0 + self.length.as_micros() as i64 * index as i64)
    }

    fn are_minutes(&self) -> bool {
        (self.length.as_micros() as i64) % MINUTE_US == 0
    }

    fn minutes(&self) -> Range<i64> {
        rollups::minute_of(self.start)..rollups::minute_of(self.start_of(self.number))
    }
}

/// For each type that occurs: its events in each interval.
pub type Series = BTreeMap<String, Vec<u64>>;

/// Rows of rollups that one transaction reads, in some 5 ms.
const ROWS_PER_TRANSACTION: usize = if cfg!(test) { 5 } else { 16_384 };

impl Reader {
    /// Counts events by interval and type; all types, or only these. Intervals of whole minutes take 0.3 µs for each minute and
    /// type, however many events there are. Shorter ones are counted in the posting lists, and those of the last segments in
    /// the rows.
    ///
    /// Read in several transactions: if events are deleted meanwhile, some intervals still have them.
    ///
    /// `None` while the rollups lack events of these intervals: those of a file from before format 6 come in after the start.
    pub fn series(&self, intervals: &Intervals, types: Option<&[String]>) -> Result<Option<Series>> {
        let is_wanted = |event_type: &str| types.is_none_or(|types| types.iter().any(|wanted| wanted == event_type));
        let mut series = Series::new();
        let mut note = |index: usize, event_type: &str, events: u64| {
            if !is_wanted(event_type) {
                return;
            }
            match series.get_mut(event_type) {
                Some(counts) => counts[index] += events,
                None => {
                    let mut counts = vec![0; intervals.number];
                    counts[index] = events;
                    series.insert(event_type.to_owned(), counts);
                }
            }
        };
        let is_complete = match intervals.are_minutes() {
            true => self.rolled_up(intervals, &mut note)?,
            false => self.counted(intervals, &mut note).map(|()| true)?,
        };
        Ok(is_complete.then_some(series))
    }

    /// Reads the rollups. Returns whether they have all events.
    fn rolled_up(&self, intervals: &Intervals, note: &mut impl FnMut(usize, &str, u64)) -> Result<bool> {
        let committed = self.committed();
        if !self.with_record(|record| has_all_since(record, committed, intervals.start))? {
            return Ok(false);
        }
        let Range { start, end } = intervals.minutes();
        let minutes_each = intervals.length.as_micros() as i64 / MINUTE_US;
        let (mut minute, mut event_type) = (start, String::new());
        loop {
            self.go_on()?;
            let rows_read = self.with_record(|record| {
                const ROWS: &str = "SELECT minute, event_type, count FROM rollups \
                                    WHERE (minute, event_type) > (?1, ?2) AND minute < ?3 ORDER BY minute, event_type LIMIT ?4";
                let mut statement = record.connection.prepare_cached(ROWS)?;
                let after = Text(Some(event_type.as_bytes()));
                let mut rows = statement.query((minute, after, end, ROWS_PER_TRANSACTION as i64))?;
                let (mut read, mut last) = (0, None);
                while let Some(row) = rows.next()? {
                    let (of, name) = (row.get::<_, i64>(0)?, row.get_ref(1)?.as_str()?);
                    note(((of - start) / minutes_each) as usize, name, row.get::<_, i64>(2)?.max(0) as u64);
                    read += 1;
                    if read == ROWS_PER_TRANSACTION {
                        last = Some((of, name.to_owned()));
                    }
                }
                drop(rows);
                if let Some(last) = last {
                    (minute, event_type) = last;
                }
                Ok(read)
            })?;
            if rows_read < ROWS_PER_TRANSACTION {
                return Ok(true);
            }
        }
    }

    /// Counts by posting lists and rows.
    fn counted(&self, intervals: &Intervals, note: &mut impl FnMut(usize, &str, u64)) -> Result<()> {
        let (committed, mut index) = (self.committed(), 0);
        while index < intervals.number {
            self.go_on()?;
            self.with_record(|record| {
                let Some(retained) = record.retained(committed)? else {
                    index = intervals.number;
                    return Ok(());
                };
                let until = Instant::now() + TRANSACTION_TIME;
                let before =
                    |time: Timestamp, from: Seq| record.first_later(&(from..=*retained.end()), Timestamp(time.0 - 1));
                let mut first = before(intervals.start_of(index), *retained.start())?;
                loop {
                    let next = before(intervals.start_of(index + 1), first)?;
                    for (event_type, events) in counts::by_type(record, None, first..=next.prev())? {
                        note(index, &String::from_utf8_lossy(&event_type), events);
                    }
                    (first, index) = (next, index + 1);
                    if index == intervals.number || until <= Instant::now() {
                        return Ok(());
                    }
                }
            })?;
        }
        Ok(())
    }
}

/// Whether the rollups have every event from a time on.
fn has_all_since(record: Record<'_>, committed: Seq, since: Timestamp) -> rusqlite::Result<bool> {
    let missing = rollups::missing(record.connection)?;
    match record.retained(committed)? {
        Some(retained) if missing >= *retained.start() => {
            Ok(record.first_later(&retained, Timestamp(since.0 - 1))? > missing)
        }
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::event::{Event, EventTypes, Filter};
    use crate::store::fixture::{close, hand_in, open, path, tick};
    use crate::store::segments::SEGMENT_EVENTS;
    use crate::store::{Parts, Query, Store, check, schema};

    /// A record of several segments, minutes and types.
    fn fill(store: &Store, parts: &mut Parts, events: u64) {
        let types = EventTypes::builtin();
        let of = ["timer_tick", "answer_submitted", "timer_tick", "quiz_started"]
            .map(|name| types.get(name).expect("built in"));
        hand_in(store, (0..events as usize).map(|n| Event { event_type: of[n % 4], ..tick() }));
        while parts.write() {}
    }

    /// The same counts, from the events.
    fn recounted(store: &Store, intervals: &Intervals) -> Series {
        let mut series = Series::new();
        let scanned = store.reader().scan(&Query::default(), |event| {
            let index = (event.time.0 - intervals.start.0).div_euclid(intervals.length.as_micros() as i64);
            if (0..intervals.number as i64).contains(&index) {
                let counts = series.entry(event.event_type.to_owned()).or_insert_with(|| vec![0; intervals.number]);
                counts[index as usize] += 1;
            }
            ControlFlow::Continue(())
        });
        assert_eq!(scanned, Ok(None));
        series
    }

    /// When the event of a number was stored.
    fn time_of(store: &Store, seq: u64) -> Timestamp {
        let mut time = None;
        let query = Query { after: Seq(seq - 1), ..Query::default() };
        let scanned = store.reader().scan(&query, |event| {
            time = Some(event.time);
            ControlFlow::Break(())
        });
        assert!(scanned.is_ok());
        time.expect("stored")
    }

    fn delete(parts: &mut Parts, deletion: impl Future) {
        let (mut deletion, mut context) = (pin!(deletion), Context::from_waker(Waker::noop()));
        while deletion.as_mut().poll(&mut context).is_pending() {
            assert!(parts.write(), "the deletion is not done");
        }
    }

    /// Compares intervals of each kind, over the whole record and over a part of it, with the events.
    fn compare(store: &Store, what: &str) {
        let Some(oldest) = store.reader().extent().ok().filter(|extent| extent.oldest <= extent.newest) else { return };
        let (first, last) = (time_of(store, oldest.oldest.0), time_of(store, oldest.newest.0));
        for micros in [MINUTE_US, 3 * MINUTE_US, MINUTE_US / 4] {
            for since in [first.0 - 5, (first.0 + last.0) / 2] {
                let length = Duration::from_micros(micros as u64);
                let intervals = Intervals::between(Timestamp(since), Timestamp(last.0 + 1), length);
                let counted = store.reader().series(&intervals, None);
                assert_eq!(counted, Ok(Some(recounted(store, &intervals))), "{what}, {micros} µs");
            }
        }
    }

    #[test]
    fn counts_are_those_of_the_events_whatever_is_sealed_and_deleted() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = open(&folder);
        for round in 0..6 {
            fill(&store, &mut parts, 2 * SEGMENT_EVENTS + 7 * round);
            compare(&store, "stored");
            if round % 2 == 0 {
                while parts.write() | parts.seal() {}
                compare(&store, "sealed");
            }
            let extent = store.reader().extent().expect("read");
            let nth = |part: u64| extent.oldest.0 + (extent.newest.0 - extent.oldest.0) * part / 5;
            delete(&mut parts, store.delete_chosen((0..5).map(|n| Seq(nth(3) + n)).collect()));
            compare(&store, "chosen");
            delete(&mut parts, store.delete(Some(time_of(&store, nth(1))), Filter::default()));
            compare(&store, "the oldest");
            while parts.write() {}
        }
        assert_eq!(check(&path(&folder), |what| panic!("{what}"), |_| ()).map(|events| events > 0), Ok(true));
        delete(&mut parts, store.delete(None, Filter::default()));
        let all = Intervals { start: Timestamp(0), length: Duration::from_micros(1 << 62), number: 1 };
        assert_eq!(
            store.reader().series(&Intervals { length: Duration::from_micros(MINUTE_US as u64), ..all }, None),
            Ok(Some(Series::new()))
        );
        close(&store, parts);
    }

    #[test]
    fn events_of_a_former_format_come_in_while_some_are_deleted_and_others_are_stored() {
        for seed in 0..8 {
            let folder = tempfile::tempdir().expect("a folder");
            let (store, mut parts) = open(&folder);
            fill(&store, &mut parts, 2 * SEGMENT_EVENTS + 50);
            let (first, middle) = (time_of(&store, 1), time_of(&store, SEGMENT_EVENTS));
            close(&store, parts);
            let file = schema::open_writer(&path(&folder)).expect("undamaged");
            file.execute_batch("DROP TABLE rollups; PRAGMA user_version = 5").expect("written");
            drop(file);

            let (store, mut parts) = open(&folder);
            let length = Duration::from_micros(MINUTE_US as u64);
            let whole = Intervals::between(first, Timestamp(middle.0 + 1), length);
            assert_eq!(store.reader().series(&whole, None), Ok(None), "nothing is counted yet");
            let (mut turns, mut is_deleted) = (0, false);
            loop {
                turns += 1;
                match (turns + seed) % 5 {
                    0 => delete(
                        &mut parts,
                        store.delete_chosen(vec![Seq(SEGMENT_EVENTS + turns), Seq(2 * SEGMENT_EVENTS - turns)]),
                    ),
                    1 => fill(&store, &mut parts, 3),
                    2 if turns > 4 && !is_deleted => {
                        is_deleted = true;
                        delete(&mut parts, store.delete(Some(time_of(&store, 30 + 10 * seed)), Filter::default()));
                    }
                    _ if !parts.write() => break,
                    _ => {}
                }
            }
            compare(&store, &format!("seed {seed}"));
            assert_eq!(check(&path(&folder), |what| panic!("{what}"), |_| ()).map(|events| events > 0), Ok(true));
            close(&store, parts);
            let (store, parts) = open(&folder);
            compare(&store, "after another start");
            close(&store, parts);
        }
    }

    #[test]
    fn a_wrong_count_is_found_by_the_check() {
        for damage in [
            "UPDATE rollups SET count = count + 1 WHERE minute = (SELECT max(minute) FROM rollups)",
            "DELETE FROM rollups WHERE minute = (SELECT min(minute) FROM rollups)",
            "INSERT INTO rollups VALUES (0, 'timer_tick', 1)",
            "UPDATE rollups SET minute = minute + 1000000",
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let (store, mut parts) = open(&folder);
            fill(&store, &mut parts, 3 * SEGMENT_EVENTS);
            let mut found = Vec::new();
            assert!(check(&path(&folder), |what| found.push(what), |_| ()).is_ok());
            assert!(found.is_empty(), "{found:?}");
            let file = schema::open_writer(&path(&folder)).expect("undamaged");
            file.execute(damage, []).expect("written");
            assert!(check(&path(&folder), |what| found.push(what), |_| ()).is_ok());
            assert!(matches!(&*found, [only] if only.starts_with("rollups: ")), "{damage}: {found:?}");
            close(&store, parts);
        }
    }
}
