//! Reading the record back. Every read is one short transaction on a connection of its own, so no
//! reader holds up the writer or keeps the write-ahead log from starting over. All of it blocks: call
//! it from a thread that may.

use std::ops::{ControlFlow, RangeInclusive};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use super::segments::{self, Kind};
use super::{Shared, schema};
use crate::event::{EventId, Filter, Seq, Timestamp};
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
}

/// Idle connections kept. Reads run on as many threads as the server lends to blocking work; beyond
/// this many at once, opening a connection (some 100 µs) is the smaller cost.
const IDLE_MAX: usize = 8;

const COLUMNS: &str = "seq, time_us, event_type, source, session_id, user_id, payload, legacy_id";

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::new(Vec::new()) }
    }

    fn with<T>(&self, read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => schema::open_reader(&self.path)?,
        };
        let result = connection.unchecked_transaction().and_then(|transaction| read(&transaction));
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
        // Noted before the transaction begins: a segment that is not in memory now is in the table then.
        let committed = self.committed();
        let recent = if query.filter.is_any() { Vec::new() } else { self.shared.recent.read().select(&query.filter) };
        self.shared.readers.with(|transaction| {
            let Some(range) = range(transaction, query, committed)? else { return Ok(None) };
            let scan = Scan { transaction, query, range };
            match query.filter.is_any() {
                true => scan.all(&mut visit),
                false => scan.indexed(&recent, &mut visit),
            }
        })
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
            row(transaction, seq, |event| event.write_json(&mut json))?;
            Ok(Some(json).filter(|json| !json.is_empty()))
        })
    }

    /// The place of an id in the order, whether its event is stored, deleted, or yet to come; `None`
    /// when it is no id at all.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn position(&self, id: &str) -> rusqlite::Result<Option<Seq>> {
        self.shared.readers.with(|transaction| seq_of(transaction, id, &self.shared))
    }

    /// Where a reader has to start to see the last `count` events that pass.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn before_last(&self, filter: &Filter, count: usize) -> rusqlite::Result<Seq> {
        let query = Query { filter: filter.clone(), order: Order::NewestFirst, ..Query::default() };
        let (mut left, mut start) = (count, self.committed());
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
        self.shared.readers.with(|transaction| match kept(transaction, committed)? {
            None => Ok(committed),
            Some(kept) => Ok(first_later(transaction, &kept, time)?.prev()),
        })
    }

    /// Counts of what is stored, all from one moment. Costs the same however many events there are.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn stats(&self, now: Timestamp) -> rusqlite::Result<Stats> {
        const HOUR_US: i64 = 3_600_000_000;
        self.shared.readers.with(|transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT event_type, count, last_seen FROM event_stats ORDER BY count DESC, event_type",
            )?;
            let by_type = statement
                .query_map([], |row| {
                    Ok(TypeStats {
                        event_type: row.get(0)?,
                        count: row.get::<_, i64>(1)? as u64,
                        last_seen: row.get(2)?,
                    })
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let events_last_hour = match kept(transaction, Seq::MAX)? {
                None => 0,
                Some(kept) => kept.end().0 + 1 - first_later(transaction, &kept, Timestamp(now.0 - HOUR_US))?.0,
            };
            Ok(Stats { total_events: by_type.iter().map(|t| t.count).sum(), events_last_hour, by_type })
        })
    }
}

/// One reading within its transaction, over the numbers of `range`.
struct Scan<'c, 'q> {
    transaction: &'c Transaction<'c>,
    query: &'q Query,
    range: RangeInclusive<Seq>,
}

impl Scan<'_, '_> {
    fn all(&self, visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>) -> rusqlite::Result<Option<Seq>> {
        let order = match self.query.order {
            Order::OldestFirst => "ASC",
            Order::NewestFirst => "DESC",
        };
        let sql = format!("SELECT {COLUMNS} FROM events WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq {order}");
        let mut statement = self.transaction.prepare_cached(&sql)?;
        let mut rows = statement.query([self.range.start().0 as i64, self.range.end().0 as i64])?;
        while let Some(row) = rows.next()? {
            let event = stored(row)?;
            let seq = event.seq;
            if visit(event).is_break() {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    fn indexed(
        &self,
        recent: &[(u64, Vec<u16>)],
        visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> rusqlite::Result<Option<Seq>> {
        let (lowest, highest) = (segments::segment_of(*self.range.start()), segments::segment_of(*self.range.end()));
        for step in 0..=highest - lowest {
            let number = match self.query.order {
                Order::OldestFirst => lowest + step,
                Order::NewestFirst => highest - step,
            };
            let from_table;
            let offsets = match recent.iter().find(|(of, _)| *of == number) {
                Some((_, offsets)) => offsets,
                None => {
                    from_table = segments::select(&self.query.filter, |kind, key| self.list(number, kind, key))?;
                    &from_table
                }
            };
            let first = segments::first_of(number);
            let passing = offsets.iter().map(|&o| first.plus(o.into())).filter(|seq| self.range.contains(seq));
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

    fn rows(
        &self,
        seqs: impl Iterator<Item = Seq>,
        visit: &mut impl FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> rusqlite::Result<Option<Seq>> {
        for seq in seqs {
            let mut flow = ControlFlow::Continue(());
            row(self.transaction, seq, |event| flow = visit(event))?;
            if flow.is_break() {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    fn list(&self, segment: u64, kind: Kind, key: &str) -> rusqlite::Result<Option<Vec<u16>>> {
        const SQL: &str = "SELECT offsets FROM event_index WHERE segment = ?1 AND kind = ?2 AND key = ?3";
        let mut statement = self.transaction.prepare_cached(SQL)?;
        let mut rows = statement.query((segment as i64, kind as i64, key))?;
        let Some(row) = rows.next()? else { return Ok(None) };
        match segments::decode(row.get_ref(0)?.as_blob()?) {
            Some(offsets) => Ok(Some(offsets)),
            None => {
                Err(damaged(format!("event_index: segment {segment}, kind {}, key {key:?} is damaged", kind as i64)))
            }
        }
    }
}

fn damaged(what: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(what))
}

/// The numbers that can answer a query; `None` when there are none.
fn range(
    transaction: &Transaction<'_>,
    query: &Query,
    committed: Seq,
) -> rusqlite::Result<Option<RangeInclusive<Seq>>> {
    let Some(kept) = kept(transaction, committed)? else { return Ok(None) };
    let (mut from, mut to) = ((*kept.start()).max(query.after.next()), *kept.end());
    if let Some(before) = query.before {
        to = to.min(before.prev());
    }
    if let Some(since) = query.since {
        from = from.max(first_later(transaction, &kept, since)?);
    }
    if let Some(until) = query.until {
        to = to.min(first_later(transaction, &kept, Timestamp(until.0 - 1))?.prev());
    }
    Ok((from <= to).then_some(from..=to))
}

/// The numbers of the stored events up to `committed`: there is no gap between the first and the last.
fn kept(transaction: &Transaction<'_>, committed: Seq) -> rusqlite::Result<Option<RangeInclusive<Seq>>> {
    let mut statement =
        transaction.prepare_cached("SELECT (SELECT min(seq) FROM events), (SELECT max(seq) FROM events)")?;
    let (first, last): (Option<i64>, Option<i64>) = statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let range = first.zip(last).map(|(first, last)| Seq(first as u64)..=Seq(last as u64).min(committed));
    Ok(range.filter(|range| !range.is_empty()))
}

/// The first of the kept events that is later than `time`, or the number after the last. Times increase
/// with the numbers, so this is a binary search: some 27 looks among 100 million events.
pub(super) fn first_later(
    connection: &Connection,
    kept: &RangeInclusive<Seq>,
    time: Timestamp,
) -> rusqlite::Result<Seq> {
    let mut statement = connection.prepare_cached("SELECT time_us FROM events WHERE seq = ?1")?;
    let (mut low, mut high) = (kept.start().0, kept.end().0 + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let time_us: i64 = statement.query_row([middle as i64], |row| row.get(0))?;
        if time_us > time.0 {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(Seq(low))
}

fn row(transaction: &Transaction<'_>, seq: Seq, visit: impl FnOnce(StoredEvent<'_>)) -> rusqlite::Result<()> {
    const SQL: &str =
        "SELECT seq, time_us, event_type, source, session_id, user_id, payload, legacy_id FROM events WHERE seq = ?1";
    let mut statement = transaction.prepare_cached(SQL)?;
    let mut rows = statement.query([seq.0 as i64])?;
    if let Some(row) = rows.next()? {
        visit(stored(row)?);
    }
    Ok(())
}

fn stored<'r>(row: &'r Row<'_>) -> rusqlite::Result<StoredEvent<'r>> {
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
