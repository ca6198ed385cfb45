//! Reading the record back, in short transactions on connections of their own, so that no reader holds up the
//! writer or keeps the write-ahead log from starting over for long. All of it blocks: call it from a thread that may.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use super::damage::{Integrity, damaged, is_damage, within};
use super::holes::Holes;
use super::schema::{self, Text};
use super::segments::{self, SEGMENT_EVENTS};
use super::{Shared, checksum};
use crate::event::{EventId, Field, Filter, Seq, Timestamp, TimestampText};
use crate::record::Retained;
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;
use crate::wire::StoredEvent;

/// A reading of the record: which events, from where to where, in which order.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pub filter: Filter,
    /// Only events after this one.
    pub after: Seq,
    /// Only events before this one.
    pub before: Option<Seq>,
    /// Only events with a later time.
    pub since: Option<Timestamp>,
    /// Only events with an earlier time.
    pub until: Option<Timestamp>,
    pub order: Order,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    OldestFirst,
    NewestFirst,
}

/// How many events a durable subscription is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    pub events: u64,
    /// Only the next events were counted, and the rest is taken to be like them.
    pub is_estimate: bool,
}

impl Lag {
    /// Of `numbers` events after a position the first `counted` were counted, and `events` of them pass.
    fn of(events: u64, counted: u64, numbers: u64) -> Self {
        if counted >= numbers {
            return Self { events, is_estimate: false };
        }
        let estimate = u128::from(events) * u128::from(numbers) / u128::from(counted.max(1));
        Self { events: estimate as u64, is_estimate: true }
    }
}

/// What `GET /stats` tells of the stored events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    pub total_events: u64,
    pub events_last_hour: u64,
    /// Largest first.
    pub by_type: Vec<TypeStats>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStats {
    pub event_type: String,
    pub count: u64,
    pub last_seen: String,
}

/// The read-only connections. One is opened when all are in use and kept afterwards, up to a few.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// Every read holds it shared. A checkpoint that needs the log to itself holds it alone, and reads wait.
    gate: RwLock<()>,
    integrity: Arc<Mutex<Integrity>>,
}

/// Idle connections kept. Reads run on as many threads as the server lends to blocking work; beyond
/// this many at once, opening a connection (some 100 µs) is the smaller cost.
const IDLE_MAX: usize = 8;

/// The statement that has the events which are given in SQL, for [`stored`] to read.
macro_rules! select_events {
    ($which:literal) => {
        concat!(
            "SELECT seq, time_us, event_type, source, session_id, user_id, payload, legacy_id, checksum ",
            "FROM events WHERE ",
            $which
        )
    };
}
pub(super) use select_events;

/// Events looked at in one read, which may take several transactions: some 50 ms at 0.8 µs each, so that other reads
/// get their turn on the blocking threads.
const EVENTS_PER_READ: usize = if cfg!(test) { 40 } else { 1 << 16 };

/// Time after which a transaction ends at its next look at the clock; with its last step it takes 20 ms at most. While
/// it is open the write-ahead log cannot start over, and a checkpoint that keeps reads out waits for it. In tests
/// each look at the clock ends one, whatever the machine, so that reads go on from one transaction to the next.
pub(super) const TRANSACTION_TIME: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_millis(15) };

/// Events between two looks at the clock, which costs as much as a twentieth of an event.
pub(super) const EVENTS_PER_LOOK_AT_CLOCK: usize = 16;

/// Segments whose lists are counted in one transaction: some 20 ms at 150 µs for dense lists.
const SEGMENTS_PER_COUNT: u64 = if cfg!(test) { 1 } else { 128 };

/// How long a read waits for a checkpoint, which usually takes some 10 ms. On a disk where one takes longer than this,
/// reads go on beside it, and the log grows.
const GATE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a checkpoint waits for the reads under way: several times as long as one takes.
const READS_END_WITHIN: Duration = Duration::from_millis(100);

/// Counting by the lists of a segment costs as much as looking at this many events: some 100 µs where they are long.
const LOOKS_PER_SEGMENT: u64 = 128;

impl Query {
    /// The same reading without a beginning.
    fn whole(&self) -> Self {
        Self { after: Seq::ZERO, ..self.clone() }
    }

    /// The rest of this query, once it was read up to `reached`.
    pub fn go_on_after(&mut self, reached: Seq) {
        match self.order {
            Order::OldestFirst => self.after = reached,
            Order::NewestFirst => self.before = Some(reached),
        }
    }
}

impl Readers {
    pub(super) fn new(path: PathBuf, integrity: Arc<Mutex<Integrity>>) -> Self {
        Self { path, idle: Mutex::new(Vec::new()), gate: RwLock::new(()), integrity }
    }

    /// Keeps new reads out until the guard is dropped, once those under way have ended. `None` if one of them takes
    /// longer than [`READS_END_WITHIN`]. Never call it within a read: it would wait for itself.
    pub(super) fn keep_out(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        self.gate.try_write_for(READS_END_WITHIN)
    }

    /// Goes in at the gate, until the guard is dropped. `None` if it stayed closed for too long: then a read goes on
    /// beside the checkpoint. Never call it within a read.
    pub(super) fn enter(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.gate.try_read_for(GATE_PATIENCE)
    }

    /// Whether a checkpoint keeps new reads out, or waits for those under way to end.
    pub(super) fn is_closing(&self) -> bool {
        // The lock lets no reader in while a writer waits for it.
        self.gate.try_read().is_none()
    }

    /// One transaction, which must be short. Never call it within another.
    pub(super) fn with<T>(&self, read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let _inside = self.enter();
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => schema::open_reader(&self.path)?,
        };
        let result = connection.unchecked_transaction().and_then(|transaction| read(&transaction));
        if let Err(error) = &result {
            self.integrity.lock().note_error(error);
        }
        let mut idle = self.idle.lock();
        // A connection that failed may be broken; the next read gets a new one.
        if result.is_ok() && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        result
    }
}

impl super::Store {
    /// Shows `visit` the events of a query until it breaks off or there are no more. Returns the last
    /// event the reading came to: all that pass up to there (down to there, newest first) were shown;
    /// `None` when it came to the end.
    ///
    /// # Errors
    /// What SQLite reports; events shown before stay shown.
    pub fn scan(
        &self,
        query: &Query,
        mut visit: impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> rusqlite::Result<Option<Seq>> {
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

    /// Like [`Store::scan`], but looks at a bounded number of events, whether they pass or not. A filter that few
    /// events pass comes to less than `visit` would take.
    ///
    /// # Errors
    /// What SQLite reports; events shown before stay shown.
    pub fn scan_some(
        &self,
        query: &Query,
        mut visit: impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> rusqlite::Result<Option<Seq>> {
        // Noted before the first transaction begins: a segment that is not in memory now is in the table then.
        let (committed, recent) = (self.committed(), in_memory(&self.shared, query));
        let (mut query, mut left, mut broken_off) = (Cow::Borrowed(query), EVENTS_PER_READ, false);
        loop {
            self.go_on()?;
            let reached = self.shared.readers.with(|transaction| {
                let record = Record::new(transaction, &self.shared);
                let Some(range) = record.range(&query, committed)? else { return Ok(None) };
                let until = Instant::now().checked_add(TRANSACTION_TIME);
                let mut scan = Scan { record, query: &query, range, left, until };
                let reached = scan.run(&recent, &mut |event| {
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

    /// Shows `visit` the events of these numbers, as far as they are stored, until it breaks off. Returns the
    /// number it broke off at.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn scan_these(
        &self,
        these: &[Seq],
        mut visit: impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> rusqlite::Result<Option<Seq>> {
        self.shared.readers.with(|transaction| {
            let record = Record::new(transaction, &self.shared);
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

    /// How many events pass. Reads the events themselves only for what the index does not know.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn count(&self, query: &Query) -> rusqlite::Result<u64> {
        let mut count = 0;
        if !query.filter.has_rest() {
            let (committed, recent) = (self.committed(), in_memory(&self.shared, query));
            let mut rest = Cow::Borrowed(query);
            loop {
                self.go_on()?;
                let reached = self.shared.readers.with(|transaction| {
                    let record = Record::new(transaction, &self.shared);
                    let Some(range) = record.range(&rest, committed)? else { return Ok(None) };
                    if !query.filter.is_indexed() {
                        count += count_between(transaction, range)?;
                        return Ok(None);
                    }
                    let segment = segments::segment_of(*range.start()) + SEGMENTS_PER_COUNT;
                    let reached = segments::first_of(segment).prev();
                    let (is_all, range) = (reached >= *range.end(), *range.start()..=reached.min(*range.end()));
                    count += Scan { record, query: &rest, range, left: usize::MAX, until: None }.count(&recent)?;
                    Ok((!is_all).then_some(reached))
                })?;
                match reached {
                    Some(reached) => rest.to_mut().after = reached,
                    None => return Ok(count),
                }
            }
        }
        self.scan(query, |_| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        Ok(count)
    }

    /// How many events after a position pass. Where counting them all would take longer than `looks_max` looks at events,
    /// it counts those of the next numbers and estimates the rest from them.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn lag(&self, filter: &Filter, after: Seq, looks_max: u64) -> rusqlite::Result<Lag> {
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

    /// How many events of the next `numbers` after a position pass, by a look at each, and how many numbers that
    /// were: fewer where one read does not come so far.
    fn count_looking(&self, filter: &Filter, after: Seq, numbers: u64) -> rusqlite::Result<(u64, u64)> {
        let before = Some(after.plus(numbers as usize).next());
        let mut events = 0;
        let reached = self.scan_some(&Query { filter: filter.clone(), after, before, ..Query::default() }, |_| {
            events += 1;
            ControlFlow::Continue(())
        })?;
        Ok((events, reached.map_or(numbers, |reached| reached.0 - after.0)))
    }

    /// For each value of a field the newest event up to `through` that passes, ascending; of the values last
    /// seen, at most `values_max`. Sealed segments are asked for their values first, so those cost their
    /// names (some 0.3 µs each) and not their events.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn latest_by(
        &self,
        field: Field,
        filter: &Filter,
        through: Seq,
        values_max: usize,
    ) -> rusqlite::Result<Vec<Seq>> {
        let mut latest = Latest { known: HashSet::default(), seqs: Vec::new(), values_max };
        let in_memory = self.shared.recent.read().lowest();
        let query = Query {
            filter: filter.clone(),
            after: segments::first_of(in_memory).prev(),
            before: Some(through.next()),
            order: Order::NewestFirst,
            ..Query::default()
        };
        self.scan(&query, |event| latest.note(event.columns().field(field), event.seq))?;
        let sealed = in_memory.min(segments::segment_of(through.max(Seq(1))) + 1);
        for number in (0..sealed).rev() {
            if latest.is_full() {
                break;
            }
            let mut values = Values::default();
            // No transaction holds the log up for long.
            let is_beginning = loop {
                self.go_on()?;
                let is_beginning = self.shared.readers.with(|transaction| {
                    let record = Record::new(transaction, &self.shared);
                    let Some(range) = record.range(&query.whole(), through)? else { return Ok(Some(true)) };
                    let until = Instant::now().checked_add(TRANSACTION_TIME);
                    let is_beginning = segments::first_of(number) <= *range.start();
                    let mut scan = Scan { record, query: &query, range, left: usize::MAX, until };
                    let flow = scan.latest_in(number, field, &latest, &mut values)?;
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
        latest.seqs.sort_unstable();
        Ok(latest.seqs)
    }

    /// The event of this id, whether given by this server or by the one before it, as JSON.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn event(&self, id: &str) -> rusqlite::Result<Option<Vec<u8>>> {
        let committed = self.committed();
        self.shared.readers.with(|transaction| {
            let Some(seq) = seq_of(transaction, id, &self.shared)?.filter(|seq| *seq <= committed) else {
                return Ok(None);
            };
            let mut json = Vec::new();
            let record = Record::new(transaction, &self.shared);
            record.event(seq, |event| event.write_json(&mut json, &mut TimestampText::default()))?;
            Ok(Some(json).filter(|json| !json.is_empty()))
        })
    }

    /// The event of this number, as JSON.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn event_at(&self, seq: Seq) -> rusqlite::Result<Option<Vec<u8>>> {
        let mut json = Vec::new();
        self.scan_these(&[seq], |event| {
            event.write_json(&mut json, &mut TimestampText::default());
            ControlFlow::Break(())
        })?;
        Ok(Some(json).filter(|json| !json.is_empty()))
    }

    /// The place of an id in the order, whether its event is stored, deleted, or yet to come; `None`
    /// when it is no id at all.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn position(&self, id: &str) -> rusqlite::Result<Option<Seq>> {
        self.shared.readers.with(|transaction| seq_of(transaction, id, &self.shared))
    }

    /// Which events are kept, and which life of the database it is.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn extent(&self) -> rusqlite::Result<Retained> {
        let newest = self.committed();
        let kept = self.shared.readers.with(|transaction| Record::new(transaction, &self.shared).kept(newest))?;
        let oldest = kept.map_or(newest.next(), |kept| *kept.start());
        Ok(Retained { oldest, newest, epoch: self.shared.epoch })
    }

    /// Where a reader has to start to see the last `count` events up to `through` that pass.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn before_last(&self, filter: &Filter, count: usize, through: Seq) -> rusqlite::Result<Seq> {
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

    /// Where a reader has to start to see every event after `time`.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn before_time(&self, time: Timestamp) -> rusqlite::Result<Seq> {
        let committed = self.committed();
        self.shared.readers.with(|transaction| {
            let record = Record::new(transaction, &self.shared);
            match record.kept(committed)? {
                None => Ok(committed),
                Some(kept) => Ok(record.first_later(&kept, time)?.prev()),
            }
        })
    }

    /// Counts of what is stored, all from one moment. Costs the same however many events there are. What is damaged is
    /// noted, which is told beside these figures, and left out.
    ///
    /// # Errors
    /// What SQLite reports, other than damage.
    pub fn stats(&self, now: Timestamp) -> rusqlite::Result<Stats> {
        self.shared.readers.with(|transaction| {
            let named = |error| within("event_stats", error);
            let mut statement = transaction.prepare_cached(
                "SELECT event_type, count, last_seen FROM event_stats ORDER BY count DESC, event_type",
            )?;
            let mut rows = statement.query([])?;
            let mut by_type = Vec::new();
            while let Some(Some(row)) = self.shared.unless_damaged(rows.next().map_err(named))? {
                by_type.extend(self.shared.unless_damaged(TypeStats::read(row).map_err(named))?);
            }
            let total_events = by_type.iter().map(|of_type| of_type.count).sum();
            let counted = self.shared.unless_damaged(self.last_hour(transaction, now))?;
            // Where a damaged page hides the oldest event, what was deleted before it would count, too.
            let events_last_hour = counted.unwrap_or(0).min(total_events);
            Ok(Stats { total_events, events_last_hour, by_type })
        })
    }

    fn last_hour(&self, transaction: &Transaction<'_>, now: Timestamp) -> rusqlite::Result<u64> {
        const HOUR_US: i64 = 3_600_000_000;
        let record = Record::new(transaction, &self.shared);
        let Some(kept) = record.kept(Seq::MAX)? else { return Ok(0) };
        // Where the clock is behind the record, the hour is the last one of the record. A damaged event has no time.
        let mut newest = Timestamp(0);
        self.shared.unless_damaged(record.event(*kept.end(), |event| newest = event.time))?;
        let first = record.first_later(&kept, Timestamp(now.0.max(newest.0) - HOUR_US))?;
        count_between(transaction, first..=*kept.end()).map_err(|error| within("holes", error))
    }
}

impl TypeStats {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { event_type: row.get(0)?, count: row.get::<_, i64>(1)? as u64, last_seen: row.get(2)? })
    }
}

/// The time of the newest event of a type, as the writer sees it in its transaction. None is before `oldest`.
pub(super) fn newest_of_type(
    connection: &Connection,
    shared: &Shared,
    event_type: &str,
    oldest: Seq,
) -> rusqlite::Result<Option<Timestamp>> {
    let filter = Filter::default().with_types([event_type]);
    let query = Query { filter, order: Order::NewestFirst, ..Query::default() };
    let recent = in_memory(shared, &query);
    let record = Record::new(connection, shared);
    let Some(newest) = record.newest()? else { return Ok(None) };
    Scan { record, query: &query, range: oldest..=newest, left: usize::MAX, until: None }
        .newest(&recent, |error| shared.note_damage(&error))
}

/// The newest event that is whole, and what is damaged behind it: a flipped bit in the last time would have every later
/// event stamped centuries ahead, one in the last number would have numbers given twice or left out. An event without a
/// checksum counts as whole if the statistics ([`last_seen`]) know of none later.
#[derive(Default)]
pub(super) struct Newest {
    pub seq: Seq,
    pub time: Option<Timestamp>,
    /// The numbers that damaged rows behind it have.
    pub damaged: Vec<Seq>,
}

pub(super) fn newest(
    connection: &Connection,
    unchecked_through: Seq,
    last_seen: Option<Timestamp>,
) -> rusqlite::Result<Newest> {
    let mut damaged = Vec::new();
    let mut statement = connection.prepare(select_events!("true ORDER BY seq DESC"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match stored(row, unchecked_through) {
            Ok(StoredEvent { seq, time, .. })
                if seq > unchecked_through || last_seen.is_none_or(|last_seen| time <= last_seen) =>
            {
                return Ok(Newest { seq, time: Some(time), damaged });
            }
            _ => damaged.push(Seq(row.get::<_, i64>(0)? as u64)),
        }
    }
    Ok(Newest { damaged, ..Newest::default() })
}

impl Newest {
    /// The last number that was given; those up to `noted` were in any case, and up to `witnessed` as far as the file
    /// beside the database knows, if that is none of another life. Numbers are dense: at most as many follow the last whole
    /// event as there are rows behind it. A damaged row's own number counts only if it is one of so many.
    pub fn last(&self, noted: Seq, witnessed: Seq) -> Seq {
        let behind = self.damaged.len();
        let dense = self.seq.plus(behind);
        let last = if witnessed == Seq::ZERO { dense } else { dense.min(witnessed).max(self.seq) };
        let end = noted.max(self.seq).plus(behind);
        self.damaged.iter().copied().filter(|seq| *seq <= end).fold(last.max(noted), Seq::max)
    }
}

/// The time of the newest event as the statistics have it, which is another witness of it where events have no checksum.
pub(super) fn last_seen(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    const SQL: &str = "SELECT max(last_seen) FROM event_stats";
    let last_seen: Option<String> = connection.query_row(SQL, [], |row| row.get(0))?;
    Ok(last_seen.and_then(|last_seen| Timestamp::parse_floor(&last_seen).ok()))
}

/// Whether any of these numbers has its event.
pub(super) fn is_any_of(connection: &Connection, numbers: RangeInclusive<Seq>) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM events WHERE seq BETWEEN ?1 AND ?2)";
    let numbers = [numbers.start().0 as i64, numbers.end().0 as i64];
    connection.prepare_cached(SQL)?.query_row(numbers, |row| row.get(0))
}

/// The offsets that a query asks for of the segments in memory.
fn in_memory(shared: &Shared, query: &Query) -> Vec<(u64, Vec<u16>)> {
    if query.filter.is_indexed() { shared.recent.read().select(&query.filter) } else { Vec::new() }
}

/// One reading within its transaction, over the numbers of `range`.
struct Scan<'c, 'q> {
    record: Record<'c>,
    query: &'q Query,
    range: RangeInclusive<Seq>,
    /// So many more events may be looked at.
    left: usize,
    /// When the transaction is to end.
    until: Option<Instant>,
}

impl Scan<'_, '_> {
    fn run(
        &mut self,
        recent: &[(u64, Vec<u16>)],
        visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> rusqlite::Result<Option<Seq>> {
        match self.query.filter.is_indexed() {
            true => self.indexed(recent, visit),
            false => self.all(visit),
        }
    }

    fn all(&mut self, visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>) -> rusqlite::Result<Option<Seq>> {
        // The far end is not left to SQLite: it believes a damaged number, and would take it for the end.
        let (near, far, sql) = match self.query.order {
            Order::OldestFirst => (*self.range.start(), *self.range.end(), select_events!("seq >= ?1 ORDER BY seq")),
            Order::NewestFirst => {
                (*self.range.end(), *self.range.start(), select_events!("seq <= ?1 ORDER BY seq DESC"))
            }
        };
        let Record { connection, unchecked_through, .. } = self.record;
        let (mut statement, mut last) = (connection.prepare_cached(sql)?, None);
        let mut rows = statement.query([near.0 as i64])?;
        while let Some(row) = rows.next()? {
            let event = match stored(row, unchecked_through) {
                // Behind the far end, if its number can be right: the reading does not come to it.
                Err(error) => {
                    let shown = Seq(row.get::<_, i64>(0)? as u64);
                    let between = match self.query.order {
                        Order::OldestFirst if shown > far => last.map_or(near, Seq::next)..=shown.prev(),
                        Order::NewestFirst if shown < far => shown.next()..=last.map_or(near, Seq::prev),
                        _ => return Err(error),
                    };
                    match count_between(connection, between)? {
                        0 => break,
                        _ => return Err(error),
                    }
                }
                Ok(event) => event,
            };
            let seq = event.seq;
            let (is_before, is_behind, is_next) = match self.query.order {
                Order::OldestFirst => (seq < near, seq > far, last < Some(seq)),
                Order::NewestFirst => (seq > near, seq < far, last.is_none_or(|last| seq < last)),
            };
            if is_before {
                continue;
            }
            if last.is_none() && seq != near {
                self.record.look_beside(near, Some(seq), self.query.order)?;
            }
            if !is_next {
                return Err(damaged(format!("events: {} is out of order", seq.id())));
            }
            last = Some(seq);
            if is_behind {
                break;
            }
            if self.show(event, visit).is_break() {
                return Ok(Some(seq));
            }
            if seq == far {
                break;
            }
        }
        if last.is_none() {
            self.record.look_beside(near, None, self.query.order)?;
        }
        Ok(None)
    }

    fn indexed(
        &mut self,
        recent: &[(u64, Vec<u16>)],
        visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> rusqlite::Result<Option<Seq>> {
        let (lowest, highest) = (segments::segment_of(*self.range.start()), segments::segment_of(*self.range.end()));
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
            let offsets = self.offsets(number, recent)?;
            let (first, range) = (segments::first_of(number), self.range.clone());
            let passing = offsets.iter().map(|&o| first.plus(o.into())).filter(|seq| range.contains(seq));
            let broken_off = match self.query.order {
                Order::OldestFirst => self.rows(passing, visit)?,
                Order::NewestFirst => self.rows(passing.rev(), visit)?,
            };
            if broken_off.is_some() {
                return Ok(broken_off);
            }
        }
        Ok(None)
    }

    /// The time of the newest event that the index finds and that is whole; what is not is handed to `damaged`.
    fn newest(
        &self,
        recent: &[(u64, Vec<u16>)],
        mut damaged: impl FnMut(rusqlite::Error),
    ) -> rusqlite::Result<Option<Timestamp>> {
        let (lowest, highest) = (segments::segment_of(*self.range.start()), segments::segment_of(*self.range.end()));
        for number in (lowest..=highest).rev() {
            let offsets = match self.offsets(number, recent) {
                Err(error) if is_damage(&error) => {
                    damaged(error);
                    continue;
                }
                offsets => offsets?,
            };
            let first = segments::first_of(number);
            let seqs = offsets.iter().rev().map(|offset| first.plus((*offset).into()));
            for seq in seqs.filter(|seq| self.range.contains(seq)) {
                let mut newest = None;
                match self.record.event(seq, |event| newest = Some(event.time)) {
                    Err(error) if is_damage(&error) => damaged(error),
                    looked => looked?,
                }
                if newest.is_some() {
                    return Ok(newest);
                }
            }
        }
        Ok(None)
    }

    /// How many events the index finds.
    fn count(&mut self, recent: &[(u64, Vec<u16>)]) -> rusqlite::Result<u64> {
        let (lowest, highest) = (segments::segment_of(*self.range.start()), segments::segment_of(*self.range.end()));
        let mut count = 0;
        for number in lowest..=highest {
            let offsets = self.offsets(number, recent)?;
            let (first, range) = (segments::first_of(number), self.range.clone());
            let passing = offsets.iter().map(|&o| first.plus(o.into())).filter(|seq| range.contains(seq));
            let are_there = offsets.is_empty()
                || Holes::of(self.record.connection, number)?.is_none_or(|holes| holes.offsets.is_some());
            match are_there {
                true => count += passing.count() as u64,
                // A segment from before format 4 whose holes the sealer has not found yet.
                false => drop(self.rows(passing, &mut |_| {
                    count += 1;
                    ControlFlow::Continue(())
                })?),
            }
        }
        Ok(count)
    }

    /// The offsets within a segment whose events have the field values asked for, without those that are deleted.
    fn offsets<'r>(&self, number: u64, recent: &'r [(u64, Vec<u16>)]) -> rusqlite::Result<Cow<'r, [u16]>> {
        let mut offsets: Cow<'r, [u16]> = match recent.iter().find(|(of, _)| *of == number) {
            Some((_, offsets)) => Cow::Borrowed(offsets),
            None => segments::select(&self.query.filter, |field, key| self.list(number, field, key))?.into(),
        };
        if !offsets.is_empty()
            && let Some(holes) = Holes::of(self.record.connection, number)?
        {
            holes.take_from(offsets.to_mut());
        }
        Ok(offsets)
    }

    fn rows(
        &mut self,
        seqs: impl Iterator<Item = Seq>,
        visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> rusqlite::Result<Option<Seq>> {
        for seq in seqs {
            let (mut flow, left) = (ControlFlow::Continue(()), self.left);
            self.record.event(seq, |event| flow = self.show(event, visit))?;
            if self.left == left {
                // A list leads to it, and it was not deleted: it is under a number that is not its own.
                let holes = Holes::of(self.record.connection, segments::segment_of(seq))?;
                if holes.is_none_or(|holes| holes.offsets.is_some()) {
                    return Err(damaged(format!("events: {} is missing", seq.id())));
                }
                // There is no such event: looking for it takes as long.
                flow = self.looked();
            }
            if flow.is_break() {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    /// Shows an event if it passes what the index knows nothing of; breaks off when enough were looked at.
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

    /// Counts a look at an event, or for one; breaks off when it was the last.
    fn looked(&mut self) -> ControlFlow<()> {
        self.left -= 1;
        let looks_at_clock = self.left.is_multiple_of(EVENTS_PER_LOOK_AT_CLOCK);
        let is_over = self.left == 0 || (looks_at_clock && self.is_time_up());
        if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_time_up(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }

    /// Finds the newest passing event of each value of a field in one sealed segment, from where `values` has come to.
    /// Breaks off when the time of the transaction is up.
    fn latest_in(
        &mut self,
        number: u64,
        field: Field,
        latest: &Latest,
        values: &mut Values,
    ) -> rusqlite::Result<ControlFlow<()>> {
        let (Record { connection, .. }, filter) = (self.record, &self.query.filter);
        let passing = match filter.is_indexed() {
            true => Some(segments::select(filter, |field, key| self.list(number, field, key))?),
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
        while let Some(row_of_index) = rows.next()? {
            let row_value = row_of_index.get_ref(0)?.as_bytes()?;
            let before = if *row_value == *value { std::mem::replace(&mut before, Seq::MAX) } else { Seq::MAX };
            if !latest.known.contains(row_value) && before > segments::first_of(number) {
                let mut offsets = list(row_of_index, 1, number, field, row_value)?;
                holes.take_from(&mut offsets);
                let passes =
                    |offset: &u16| passing.as_ref().is_none_or(|passing| passing.binary_search(offset).is_ok());
                for offset in offsets.iter().rev().filter(|offset| passes(offset)) {
                    let seq = segments::first_of(number).plus((*offset).into());
                    if seq >= before || !self.range.contains(&seq) {
                        continue;
                    }
                    let mut is_it = false;
                    self.record.event(seq, |event| is_it = filter.matches(&event.columns()))?;
                    if is_it {
                        values.found.push((seq, row_value.into()));
                        break;
                    }
                    if self.looked().is_break() {
                        values.reached = Some((row_value.into(), seq));
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
            if self.looked().is_break() {
                // With this list it is done.
                values.reached = Some((row_value.into(), Seq::ZERO));
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn list(&self, segment: u64, field: Field, key: &str) -> rusqlite::Result<Option<Vec<u16>>> {
        const SQL: &str = "SELECT offsets, checksum FROM event_index WHERE segment = ?1 AND kind = ?2 AND key = ?3";
        let mut statement = self.record.connection.prepare_cached(SQL)?;
        let mut rows = statement.query((segment as i64, field as i64, key))?;
        rows.next()?.map(|row| list(row, 0, segment, field, key.as_bytes())).transpose()
    }
}

/// The values found in one segment, over one transaction or several.
#[derive(Default)]
struct Values {
    /// The newest passing event of each, in the order of the values: which of them are the newest is known once all
    /// were looked at.
    found: Vec<(Seq, Box<[u8]>)>,
    /// The value that the last transaction came to, and the event down to which its list was looked at.
    reached: Option<(Box<[u8]>, Seq)>,
}

/// The newest event of each value of a field.
struct Latest {
    /// The values come from clients, so the hash is seeded.
    known: HashSet<Box<[u8]>, foldhash::fast::RandomState>,
    seqs: Vec<Seq>,
    values_max: usize,
}

impl Latest {
    /// Notes an event, the newest first. Breaks off when there are enough.
    fn note(&mut self, value: Option<&[u8]>, seq: Seq) -> ControlFlow<()> {
        if let Some(value) = value
            && !self.is_full()
            && !self.known.contains(value)
        {
            self.known.insert(value.into());
            self.seqs.push(seq);
        }
        if self.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Notes what was found in a segment before those noted so far.
    fn note_all(&mut self, values: Values) {
        let mut found = values.found;
        found.sort_unstable_by_key(|(seq, _)| std::cmp::Reverse(*seq));
        for (seq, value) in found {
            if self.note(Some(&value), seq).is_break() {
                break;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.seqs.len() >= self.values_max
    }
}

/// The offsets of a row of `event_index`, which has them and their checksum from column `column` on.
pub(super) fn list(row: &Row<'_>, column: usize, segment: u64, field: Field, key: &[u8]) -> rusqlite::Result<Vec<u16>> {
    let offsets = row.get_ref(column)?.as_blob()?;
    let is_whole = checksum::of_list(segment as i64, field as i64, key, offsets) == row.get::<_, i32>(column + 1)?;
    let offsets = is_whole.then(|| segments::decode(offsets)).flatten();
    offsets.ok_or_else(|| damaged(format!("event_index: a list of segment {segment} is damaged")))
}

/// The first number that has an event, or one after all where none is stored.
pub(super) fn oldest(connection: &Connection) -> rusqlite::Result<Seq> {
    let mut find = connection.prepare_cached("SELECT min(seq) FROM events")?;
    let first = find.query_row([], |row| row.get::<_, Option<i64>>(0)).map_err(|error| within("events", error))?;
    Ok(first.map_or(Seq::MAX, |first| Seq(first as u64)))
}

/// The numbers of the first and the last row, damaged or not. Where a damaged page hides the first, it is taken for the
/// first that was ever given: only who comes to that page is concerned.
pub(super) fn kept(connection: &Connection) -> rusqlite::Result<Option<RangeInclusive<Seq>>> {
    let mut find = connection.prepare_cached("SELECT max(seq) FROM events")?;
    let last = find.query_row([], |row| row.get::<_, Option<i64>>(0)).map_err(|error| within("events", error))?;
    let Some(last) = last else { return Ok(None) };
    let first = match oldest(connection) {
        Err(error) if is_damage(&error) => Seq(1),
        oldest => oldest?,
    };
    Ok(Some(first..=Seq(last as u64)).filter(|kept| !kept.is_empty()))
}

/// How many of these numbers have their events. Costs a look at each segment out of which events were chosen to
/// be deleted, and a search in the holes of those that it cuts through.
fn count_between(connection: &Connection, numbers: RangeInclusive<Seq>) -> rusqlite::Result<u64> {
    if numbers.is_empty() {
        return Ok(0);
    }
    let (start, end) = (*numbers.start(), *numbers.end());
    let (first, last) = (segments::segment_of(start), segments::segment_of(end));
    let mut count = end.0 + 1 - start.0;
    const HOLES: &str = "SELECT segment, count FROM holes WHERE segment BETWEEN ?1 AND ?2";
    const PRESENT: &str = "SELECT count(*) FROM events WHERE seq BETWEEN ?1 AND ?2";
    let mut holes = connection.prepare_cached(HOLES)?;
    let mut rows = holes.query([first as i64, last as i64])?;
    while let Some(row) = rows.next()? {
        let (segment, missing) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
        let (from, to) = (segments::first_of(segment), segments::first_of(segment + 1).prev());
        if from >= start && to <= end {
            count -= missing;
            continue;
        }
        let (from, to) = (from.max(start), to.min(end));
        count -= match Holes::of(connection, segment) {
            Ok(Some(Holes { offsets: Some(offsets), .. })) => {
                let (from, to) = (segments::offset_of(from), segments::offset_of(to));
                let before = offsets.partition_point(|offset| *offset < from);
                (offsets.partition_point(|offset| *offset <= to) - before) as u64
            }
            Err(error) if !is_damage(&error) => return Err(error),
            // Where they are is not known: the events themselves tell.
            _ => {
                let mut present = connection.prepare_cached(PRESENT)?;
                let present: i64 = present.query_row([from.0 as i64, to.0 as i64], |row| row.get(0))?;
                to.0 + 1 - from.0 - present as u64
            }
        };
    }
    Ok(count)
}

/// The events of the record as one connection sees them, each held against its checksum.
#[derive(Clone, Copy)]
pub(super) struct Record<'c> {
    pub connection: &'c Connection,
    unchecked_through: Seq,
    /// The watermark.
    last: Seq,
    shared: &'c Shared,
}

impl<'c> Record<'c> {
    pub fn new(connection: &'c Connection, shared: &'c Shared) -> Self {
        let last = Seq(shared.committed.load(Ordering::SeqCst));
        Self { connection, unchecked_through: shared.unchecked_through, last, shared }
    }

    /// The first and the last number of the stored events up to `committed`. Between them only those are missing that
    /// were chosen to be deleted. The number of a damaged row is not believed, so there they may lie further apart. Where
    /// a damaged page hides the first, it is taken for the first that was ever given: only who comes to that page is
    /// concerned.
    pub fn kept(self, committed: Seq) -> rusqlite::Result<Option<RangeInclusive<Seq>>> {
        let Some(newest) = self.newest()? else { return Ok(None) };
        let first = self.first().map_err(|error| within("events", error));
        let start = match self.shared.unless_damaged(first)? {
            None => Seq(1),
            Some((first, damaged)) => {
                // Numbers are dense: so many precede the first whole event.
                let first = first.unwrap_or(self.last.next()).0.saturating_sub(damaged.len() as u64);
                damaged.into_iter().fold(Seq(first.max(1)), Seq::min)
            }
        };
        Ok(Some(start..=newest.min(committed)).filter(|kept| !kept.is_empty()))
    }

    /// The number of the last event, or the watermark where its row is damaged. `None` if there is no row.
    fn newest(self) -> rusqlite::Result<Option<Seq>> {
        let mut find = self.connection.prepare_cached(select_events!("true ORDER BY seq DESC LIMIT 1"))?;
        let mut rows = find.query([])?;
        let newest = rows.next()?.map(|row| stored(row, self.unchecked_through).map_or(self.last, |event| event.seq));
        Ok(newest)
    }

    /// The number of the first whole event, and those that damaged rows before it have.
    fn first(self) -> rusqlite::Result<(Option<Seq>, Vec<Seq>)> {
        let mut find = self.connection.prepare_cached(select_events!("true ORDER BY seq"))?;
        let (mut rows, mut damaged) = (find.query([])?, Vec::new());
        while let Some(row) = rows.next()? {
            match stored(row, self.unchecked_through) {
                Ok(event) => return Ok((Some(event.seq), damaged)),
                Err(_) => damaged.push(Seq(row.get::<_, i64>(0)? as u64)),
            }
        }
        Ok((None, damaged))
    }

    /// That everything up to a number is gone. SQLite deletes up to the first number that is larger, also where it is
    /// damaged and smaller ones follow.
    pub fn begins_after(self, through: Seq) -> rusqlite::Result<()> {
        let (first, damaged) = self.first()?;
        let end = first.unwrap_or(self.last.next());
        let wrong = damaged.into_iter().find(|seq| *seq <= through || *seq >= end);
        match wrong.or(first.filter(|first| *first <= through)) {
            Some(seq) => Err(self::damaged(is_damaged(seq))),
            None => Ok(()),
        }
    }

    /// A search for a number that has no event ends beside the row whose damaged number led it astray, if any did: looks at
    /// the row on the other side of the number, after the search came to that of `found`.
    fn look_beside(self, number: Seq, found: Option<Seq>, order: Order) -> rusqlite::Result<()> {
        let sql = match order {
            Order::OldestFirst => select_events!("seq < ?1 ORDER BY seq DESC LIMIT 1"),
            Order::NewestFirst => select_events!("seq > ?1 ORDER BY seq LIMIT 1"),
        };
        let mut find = self.connection.prepare_cached(sql)?;
        let mut rows = find.query([number.0 as i64])?;
        let Some(row) = rows.next()? else { return Ok(()) };
        let beside = Seq(row.get::<_, i64>(0)? as u64);
        let found = found.unwrap_or(number);
        let between = match order {
            Order::OldestFirst if beside < number => beside.next()..=found.prev(),
            Order::NewestFirst if beside > number => found.next()..=beside.prev(),
            _ => return Err(damaged(format!("events: {} is out of order", beside.id()))),
        };
        match stored(row, self.unchecked_through) {
            // It is damaged, but its number may be right all the same.
            Err(error) if count_between(self.connection, between)? > 0 => Err(error),
            _ => Ok(()),
        }
    }

    /// Shows an event, if it is there.
    pub fn event(self, seq: Seq, visit: impl FnOnce(StoredEvent<'_>)) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare_cached(select_events!("seq = ?1"))?;
        let mut rows = statement.query([seq.0 as i64])?;
        rows.next()?.map(|row| stored(row, self.unchecked_through).map(visit)).transpose().map(drop)
    }

    /// The numbers that can answer a query; `None` when there are none.
    fn range(self, query: &Query, committed: Seq) -> rusqlite::Result<Option<RangeInclusive<Seq>>> {
        let Some(kept) = self.kept(committed)? else { return Ok(None) };
        let (mut from, mut to) = ((*kept.start()).max(query.after.next()), *kept.end());
        if let Some(before) = query.before {
            to = to.min(before.prev());
        }
        if let Some(since) = query.since {
            from = from.max(self.first_later(&kept, since)?);
        }
        if let Some(until) = query.until {
            to = to.min(self.first_later(&kept, Timestamp(until.0 - 1))?.prev());
        }
        Ok((from <= to).then_some(from..=to))
    }

    /// The first number from which on the kept events are later than `time`, or the one after the last. Times
    /// increase with the numbers, so this is a binary search: some 27 looks among 100 million events.
    pub fn first_later(self, kept: &RangeInclusive<Seq>, time: Timestamp) -> rusqlite::Result<Seq> {
        let (mut low, mut high) = (kept.start().0, kept.end().0 + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.standing_for(middle, high)? {
                Some((seq, its_time)) if its_time <= time => low = seq.0 + 1,
                _ => high = middle,
            }
        }
        Ok(Seq(low.min(kept.end().0 + 1)))
    }

    /// The event that stands for that of a number, which may have been deleted or damaged: the first from there on that
    /// is whole. If its page cannot be read, the first behind that page; none if that is not before `end`.
    fn standing_for(self, number: u64, end: u64) -> rusqlite::Result<Option<(Seq, Timestamp)>> {
        let error = match self.whole_from(number) {
            Err(error) if is_damage(&error) => error,
            found => return found,
        };
        self.shared.note_damage(&within("events", error));
        let (mut unreadable, mut behind, mut found) = (number, end, None);
        while behind - unreadable > 1 {
            let middle = unreadable + (behind - unreadable) / 2;
            match self.whole_from(middle) {
                Err(error) if is_damage(&error) => unreadable = middle,
                readable => (behind, found) = (middle, readable?),
            }
        }
        Ok(found)
    }

    /// The first event from a number on that is whole.
    fn whole_from(self, number: u64) -> rusqlite::Result<Option<(Seq, Timestamp)>> {
        let mut statement = self.connection.prepare_cached(select_events!("seq >= ?1 ORDER BY seq"))?;
        let mut rows = statement.query([number as i64])?;
        while let Some(row) = rows.next()? {
            match stored(row, self.unchecked_through) {
                Ok(event) if event.seq.0 >= number => return Ok(Some((event.seq, event.time))),
                // Damaged, or what a damaged number led to.
                _ => {}
            }
        }
        Ok(None)
    }
}

/// An event as it was stored, or an error that names it. Those up to `unchecked_through` have no checksum.
pub(super) fn stored<'r>(row: &'r Row<'_>, unchecked_through: Seq) -> rusqlite::Result<StoredEvent<'r>> {
    let event = unverified(row).ok().filter(|event| match row.get_ref(8) {
        Ok(ValueRef::Integer(checksum)) => {
            let legacy_id = event.legacy_id.map(str::as_bytes);
            let room = &mut Vec::with_capacity(256 + event.payload.len());
            checksum == i64::from(checksum::of_event(room, event.seq, event.time, &event.columns(), legacy_id))
        }
        Ok(ValueRef::Null) => event.seq <= unchecked_through,
        _ => false,
    });
    event.ok_or_else(|| {
        let seq = row.get::<_, i64>(0).unwrap_or_default();
        damaged(is_damaged(Seq(seq as u64)))
    })
}

/// How a damaged event is named.
pub(super) fn is_damaged(seq: Seq) -> String {
    format!("events: {} is damaged", seq.id())
}

fn unverified<'r>(row: &'r Row<'_>) -> rusqlite::Result<StoredEvent<'r>> {
    let text = |i: usize| Ok::<_, rusqlite::Error>(row.get_ref(i)?.as_str()?);
    let optional = |i: usize| Ok::<_, rusqlite::Error>(row.get_ref(i)?.as_str_or_null()?);
    Ok(StoredEvent {
        seq: Seq(row.get::<_, i64>(0)? as u64),
        time: Timestamp(row.get(1)?),
        event_type: text(2)?,
        source: text(3)?,
        session_id: optional(4)?,
        user_id: optional(5)?,
        payload: text(6)?,
        legacy_id: optional(7)?,
    })
}

fn seq_of(transaction: &Transaction<'_>, id: &str, shared: &Arc<Shared>) -> rusqlite::Result<Option<Seq>> {
    if shared.has_legacy_ids {
        const SQL: &str = "SELECT seq FROM events WHERE legacy_id = ?1 AND legacy_id IS NOT NULL";
        let found = transaction.prepare_cached(SQL)?.query_row([id], |row| row.get::<_, i64>(0)).optional()?;
        if let Some(seq) = found {
            return Ok(Some(Seq(seq as u64)));
        }
    }
    Ok(id.parse().ok().map(|EventId(seq)| seq))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::event::Event;
    use crate::store::flip::{file_with, renumber};
    use crate::store::{Parts, Receipt, Store};
    use crate::wire::Batch;

    /// A record of three segments of ticks in five sessions, none of which is in the table yet.
    fn three_segments(folder: &tempfile::TempDir) -> (Store, Parts) {
        let config = Config::of_test(folder.path().join("events.db"));
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        let event_type = config.event_types.get("timer_tick").expect("built in");
        let mut batch = Batch::default();
        for n in 0..3 * SEGMENT_EVENTS {
            let session = (n % 5).to_string();
            let event = Event {
                event_type,
                source: "s",
                session_id: Some(&session),
                user_id: None,
                payload: "{}",
                idempotency_key: None,
            };
            batch.push(&event, &config.event_types);
        }
        store.try_append(batch, Receipt::new().0).expect("room");
        while parts.write() {}
        (store, parts)
    }

    #[test]
    fn the_latest_of_each_key_stay_the_same_once_their_segment_is_in_the_table() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        let latest =
            |through: u64| store.latest_by(Field::Session, &Filter::default(), Seq(through), 100).expect("read");
        // In the middle, at the end and at the beginning of a segment.
        let ends = [0, 3, SEGMENT_EVENTS + 7, 2 * SEGMENT_EVENTS, 2 * SEGMENT_EVENTS + 1];
        let expected = ends.map(|end| (end.saturating_sub(4).max(1)..=end).map(Seq).collect::<Vec<_>>());
        assert_eq!(ends.map(latest), expected);
        while parts.seal() | parts.write() {}
        assert_eq!(store.shared.recent.read().lowest(), 2, "two segments are in the table");
        assert_eq!(ends.map(latest), expected);
    }

    #[test]
    fn the_last_events_are_counted_back_from_a_moment_that_has_passed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        let session = Filter::default().with(Field::Session, ["3"]);
        let before = |filter: &Filter, count, through| store.before_last(filter, count, Seq(through)).expect("read").0;
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
    fn a_snapshot_of_too_many_values_keeps_those_seen_last_in_a_sealed_segment() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        while parts.seal() | parts.write() {}
        let end = 2 * SEGMENT_EVENTS;
        let latest = store.latest_by(Field::Session, &Filter::default(), Seq(end), 2).expect("read");
        assert_eq!(latest, [Seq(end - 1), Seq(end)]);
    }

    #[test]
    fn a_snapshot_goes_on_from_one_transaction_to_the_next_within_a_sealed_segment() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        while parts.seal() | parts.write() {}
        let asked: serde_json::Value = serde_json::from_str(r#"{"exclude":{"session_id":["3","4"]}}"#).expect("JSON");
        let filter = Filter::parse(asked.as_object().expect("an object")).expect("a filter");
        let end = 2 * SEGMENT_EVENTS;
        let query = Query { filter: filter.clone(), order: Order::NewestFirst, ..Query::default() };
        let latest = Latest { known: HashSet::default(), seqs: Vec::new(), values_max: 100 };
        let (mut values, mut transactions, mut looks) = (Values::default(), 0, 0);
        loop {
            transactions += 1;
            let flow = store.shared.readers.with(|transaction| {
                let record = Record::new(transaction, &store.shared);
                let range = record.range(&query, Seq(end))?.expect("there are some");
                let until = Some(Instant::now());
                let mut scan = Scan { record, query: &query, range, left: usize::MAX, until };
                let flow = scan.latest_in(1, Field::Session, &latest, &mut values);
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
        let found = |through: u64| store.latest_by(Field::Session, &filter, Seq(through), 100).expect("read");
        for end in [end, end - 7, SEGMENT_EVENTS] {
            let expected: Vec<_> = (end - 4..=end).map(Seq).filter(|seq| (seq.0 - 1) % 5 < 3).collect();
            assert_eq!(found(end), expected);
        }
    }

    #[test]
    fn a_reading_under_way_sees_that_a_checkpoint_waits_for_it() {
        let readers = Readers::new(PathBuf::new(), Arc::default());
        let inside = readers.enter();
        assert!(inside.is_some() && !readers.is_closing());
        std::thread::scope(|scope| {
            scope.spawn(|| drop(readers.gate.write()));
            while !readers.is_closing() {
                std::thread::yield_now();
            }
            drop(inside);
        });
        assert!(!readers.is_closing());
    }

    #[test]
    fn a_lag_that_would_take_long_to_count_is_estimated() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        while parts.seal() | parts.write() {}
        let all = 3 * SEGMENT_EVENTS;
        let lag = |filter: &Filter, after, looks_max| {
            let Lag { events, is_estimate } = store.lag(filter, Seq(after), looks_max).expect("read");
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

    /// Deletes every event but each fifth.
    fn delete_most(store: &Store, parts: &mut Parts) -> Vec<Seq> {
        let (gone, left) = (1..=3 * SEGMENT_EVENTS).map(Seq).partition::<Vec<_>, _>(|seq| !seq.0.is_multiple_of(5));
        for some in gone.chunks(7) {
            let mut deletion = std::pin::pin!(store.delete_these(some.to_vec()));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(deletion.as_mut().poll(&mut context).is_pending());
            while parts.write() {}
            assert_eq!(deletion.poll(&mut context), std::task::Poll::Ready(Ok(some.len() as u64)));
        }
        left
    }

    #[test]
    fn what_a_count_costs_does_not_grow_with_the_events_of_the_segments_it_cuts_through() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        let left = delete_most(&store, &mut parts);
        let mut file = schema::open_writer(&folder.path().join("events.db")).expect("whole");
        let count = |file: &mut Connection, from: u64, to: u64| {
            let steps = Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let counted = steps.clone();
            let step = move || {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                false
            };
            file.progress_handler(1, Some(step)).expect("set");
            let count = count_between(file, Seq(from)..=Seq(to)).expect("read");
            let expected = left.iter().filter(|seq| (from..=to).contains(&seq.0)).count();
            assert_eq!(count, expected as u64, "from {from} to {to}");
            steps.load(std::sync::atomic::Ordering::Relaxed)
        };
        let segments = [0, 1].map(|segment| segments::first_of(segment).0);
        for first in segments {
            // Statements are compiled with the first count.
            count(&mut file, first, first + 1);
            assert_eq!(count(&mut file, first, first + 1), count(&mut file, first, first + SEGMENT_EVENTS - 2));
        }
        for (from, to) in (1..=3 * SEGMENT_EVENTS).step_by(7).flat_map(|from| (from..96).map(move |to| (from, to))) {
            count(&mut file, from, to);
        }
        let damage = "UPDATE holes SET checksum = checksum + 1";
        assert_eq!(file.execute(damage, []), Ok(3));
        count(&mut file, 3, SEGMENT_EVENTS + 9);
    }

    fn ticks() -> Query {
        Query { filter: Filter::default().with_types(["timer_tick"]), ..Query::default() }
    }

    #[test]
    fn no_list_leads_to_an_event_that_is_deleted() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        let left = delete_most(&store, &mut parts);
        for is_sealed in [false, true] {
            let query = ticks();
            let recent = in_memory(&store.shared, &query);
            let found = store.shared.readers.with(|transaction| {
                let record = Record::new(transaction, &store.shared);
                let range = record.range(&query, store.committed())?.expect("some are left");
                let scan = Scan { record, query: &query, range, left: usize::MAX, until: None };
                let of = |segment| {
                    let offsets = scan.offsets(segment, &recent)?.into_owned();
                    Ok(offsets.into_iter().map(move |offset| segments::first_of(segment).plus(offset.into())))
                };
                Ok((0..3).map(of).collect::<rusqlite::Result<Vec<_>>>()?.into_iter().flatten().collect::<Vec<_>>())
            });
            assert_eq!(found.expect("read"), left, "sealed: {is_sealed}");
            assert_eq!(store.count(&query).expect("read"), left.len() as u64);
            while parts.seal() | parts.write() {}
        }
    }

    #[test]
    fn looking_for_a_deleted_event_counts_towards_the_bound_of_a_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = three_segments(&folder);
        while parts.seal() | parts.write() {}
        let left = delete_most(&store, &mut parts);
        // As a former format knows its holes: only how many there are.
        let forget = "UPDATE holes SET offsets = NULL, checksum = NULL";
        let forgot = schema::open_writer(&folder.path().join("events.db")).and_then(|file| file.execute(forget, []));
        assert_eq!(forgot.expect("written"), 3);
        let (mut query, mut found, mut reads) = (ticks(), Vec::new(), 0);
        loop {
            reads += 1;
            let reached = store.scan_some(&query, |event| {
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
        assert_eq!(store.count(&ticks()).expect("read"), left.len() as u64);
    }

    #[test]
    fn a_bounded_reading_does_not_come_to_what_is_damaged_behind_a_hole_at_its_end() {
        let (_folder, config) = file_with(40);
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        let mut deletion = std::pin::pin!(store.delete_these(vec![Seq(11), Seq(19)]));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(deletion.as_mut().poll(&mut context).is_pending());
        while parts.write() {}
        let flipped = "UPDATE events SET payload = '[}' WHERE seq IN (10, 20)";
        assert_eq!(schema::open_writer(&config.database_path).and_then(|file| file.execute(flipped, [])), Ok(2));
        for order in [Order::OldestFirst, Order::NewestFirst] {
            for filter in [Filter::default(), Filter::default().with_types(["timer_tick"])] {
                let query = Query { filter, after: Seq(10), before: Some(Seq(20)), order, ..Query::default() };
                let mut count = 0;
                let scanned = store.scan(&query, |_| {
                    count += 1;
                    ControlFlow::Continue(())
                });
                assert_eq!((scanned, count), (Ok(None), 7), "{order:?}");
            }
        }
    }

    #[test]
    fn a_damaged_number_makes_no_reading_end_early() {
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
                    let scanned = store.scan(&query, |event| {
                        found.push(event.seq.0);
                        ControlFlow::Continue(())
                    });
                    found.sort_unstable();
                    let what = format!("{seq} is {to}: after {after}, before {before}, {order:?}");
                    match &scanned {
                        Ok(_) => assert_eq!(found, (after + 1..before).collect::<Vec<_>>(), "{what}"),
                        Err(error) => assert!(is_damage(error), "{what}: {error}"),
                    }
                    if (after + 1..before).contains(&seq) {
                        assert!(scanned.is_err(), "{what}");
                    }
                }
            }
            // Whatever it finds, it comes to an end.
            for since in 0..200 {
                let mut time = None;
                let before = Some(Seq(since + 2));
                let query = Query { after: Seq(since), before, ..Query::default() };
                let _ = store.scan(&query, |event| {
                    time = Some(event.time);
                    ControlFlow::Continue(())
                });
                let Some(time) = time else { continue };
                let _ = store.before_time(time);
            }
            drop(parts);
        }
    }
}
