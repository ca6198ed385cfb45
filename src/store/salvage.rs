//! The events of a damaged file on their way into a new one.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use rusqlite::Connection;
use serde_json::value::RawValue;

use super::damage::{ignoring_damage, is_damage};
use super::read;
use super::rebuild::Rebuild;
use crate::event::{Columns, Seq, Timestamp};
use crate::wire::StoredEvent;

/// Copies every event of a damaged file that can be read and matches its checksum.
pub struct Salvage<'c> {
    old: &'c Connection,
    rebuild: Rebuild<'c>,
    /// Events up to this one were stored before rows had checksums.
    unchecked_through: Seq,
    /// Events without a checksum, until it is known whether their times can be right.
    unproven: VecDeque<Unproven>,
    /// The time of the first event with a checksum, which is later than all of these.
    unproven_end: Timestamp,
    /// The time of the newest event according to the statistics.
    last_seen: Option<Timestamp>,
    /// The first and the last event that were copied.
    pub first: Option<Seq>,
    pub last_seq: Seq,
    pub last_time: Timestamp,
    pub has_legacy_ids: bool,
    /// Events that could be read, copied or not.
    found: u64,
    /// Events that were copied.
    pub events: u64,
    /// Events that were found damaged, by id: at most the first [`NAMED_MAX`].
    pub damaged: Vec<String>,
}

impl<'c> Salvage<'c> {
    pub fn new(
        old: &'c Connection,
        rebuild: Rebuild<'c>,
        unchecked_through: Seq,
        last_seen: Option<Timestamp>,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            old,
            rebuild,
            unchecked_through,
            unproven: VecDeque::new(),
            unproven_end: first_checked_time(old, unchecked_through)?,
            last_seen,
            first: None,
            last_seq: Seq::ZERO,
            last_time: Timestamp(i64::MIN),
            has_legacy_ids: false,
            found: 0,
            events: 0,
            damaged: Vec::new(),
        })
    }

    /// Stores index, holes and statistics of the copied events.
    pub fn finish(&mut self) -> rusqlite::Result<()> {
        self.rebuild.finish()
    }

    /// Copies every event with one of these numbers that can be read.
    pub fn run(&mut self, numbers: RangeInclusive<Seq>) -> rusqlite::Result<()> {
        let mut next = *numbers.start();
        while next <= *numbers.end() {
            // From row to row through the leaves of the tree, as far as one leads to the next. After a break, number by
            // number: each is searched for from the root of the tree.
            next = self.read(read::select_events!("seq >= ?1 ORDER BY seq"), next)?;
            while next <= *numbers.end() {
                let before = self.found;
                self.read(read::select_events!("seq = ?1"), next)?;
                next = next.next();
                if self.found > before {
                    break;
                }
            }
        }
        self.prove(0)
    }

    /// Copies the events that a statement finds, whose parameter is the number `from`. Returns the number from which on
    /// it finds no more, or wrong rows: the number of a row is believed only if the row matches its checksum and no row
    /// was left out before it.
    fn read(&mut self, sql: &str, from: Seq) -> rusqlite::Result<Seq> {
        let mut next = from;
        let looked = (|| {
            let mut statement = self.old.prepare_cached(sql)?;
            let mut rows = statement.query([from.0 as i64])?;
            while let Some(row) = rows.next()? {
                let seq = read::number(row)?;
                let stored = read::stored(row, self.unchecked_through);
                if stored.is_ok() {
                    if seq < next || self.is_any_between(next, seq)? {
                        return Ok(());
                    }
                    next = seq.next();
                }
                match stored {
                    Ok(event) if seq <= self.unchecked_through => {
                        let is_json = serde_json::from_str::<&RawValue>(event.payload);
                        match is_json.is_ok_and(|json| json.get().starts_with('{')) {
                            true => self.unproven.push_back(Unproven::of(&event)),
                            false => self.name(seq),
                        }
                        self.prove(WITNESSES)?;
                        self.found += 1;
                    }
                    Ok(event) => {
                        self.prove(0)?;
                        match event.time > self.last_time {
                            true => self.take(seq, event.time, &event.columns(), event.legacy_id.map(str::as_bytes))?,
                            false => self.name(seq),
                        }
                        self.found += 1;
                    }
                    Err(error) if is_damage(&error) => self.name(seq),
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })();
        or_lost(looked, ())?;
        Ok(next)
    }

    /// Whether any number from `next` up to `seq`, without `seq`, has a row. Each number is searched for from the root,
    /// because a leaf that was written over another one leads past the rows between. So each deleted number costs a
    /// search, except before the first event.
    fn is_any_between(&self, next: Seq, seq: Seq) -> rusqlite::Result<bool> {
        if self.found == 0 && seq > next {
            // Mostly the oldest events are deleted, and they may be very many: only the neighbour is searched for.
            return or_lost(read::is_any_of(self.old, seq.prev()..=seq.prev()), true);
        }
        for seq in (next.0..seq.0).map(Seq) {
            if or_lost(read::is_any_of(self.old, seq..=seq), true)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Copies an event.
    fn take(
        &mut self,
        seq: Seq,
        time: Timestamp,
        columns: &Columns<'_>,
        legacy_id: Option<&[u8]>,
    ) -> rusqlite::Result<()> {
        self.rebuild.event(seq, time, columns, legacy_id)?;
        self.has_legacy_ids |= legacy_id.is_some();
        self.first = self.first.or(Some(seq));
        (self.last_seq, self.last_time) = (seq, time);
        self.events += 1;
        Ok(())
    }

    /// Decides on the events without a checksum, the oldest first, until only `left` of them wait. Times increase with
    /// the numbers, so an event with a later time than most of the events after it has a damaged time. If its time were
    /// believed, all of those would be lost.
    ///
    /// No event comes after the last one. There the time of the newest event in the statistics counts, as if one more
    /// event with a slightly later time came after it. The statistics have no checksum either; if they are damaged, one
    /// event is lost at most.
    fn prove(&mut self, left: usize) -> rusqlite::Result<()> {
        while self.unproven.len() > left
            && let Some(Unproven { seq, time, texts: [event_type, source, session_id, user_id, payload, legacy_id] }) =
                self.unproven.pop_front()
        {
            let end = self.last_seen.map(|Timestamp(last_seen)| Timestamp(last_seen.saturating_add(1)));
            let behind =
                self.unproven.iter().map(|later| later.time).chain(end).filter(|later| *later > self.last_time);
            let (earlier, later): (Vec<_>, Vec<_>) = behind.partition(|later| *later <= time);
            let is_in_order = time > self.last_time && time < self.unproven_end;
            match is_in_order && earlier.len() <= later.len() {
                true => {
                    let columns = Columns {
                        event_type: event_type.as_deref().unwrap_or_default(),
                        source: source.as_deref().unwrap_or_default(),
                        session_id: session_id.as_deref(),
                        user_id: user_id.as_deref(),
                        payload: payload.as_deref().unwrap_or_default(),
                    };
                    self.take(seq, time, &columns, legacy_id.as_deref())?;
                }
                false => self.name(seq),
            }
        }
        Ok(())
    }

    fn name(&mut self, seq: Seq) {
        let id = seq.id().to_string();
        // More than one statement may find it.
        if self.damaged.len() < NAMED_MAX && !self.damaged.contains(&id) {
            self.damaged.push(id);
        }
    }
}

/// Later events with which the time of an event is compared. 16: more than are likely to be damaged in a row.
const WITNESSES: usize = 16;

/// An event without a checksum.
struct Unproven {
    seq: Seq,
    time: Timestamp,
    texts: [Option<Box<[u8]>>; 6],
}

impl Unproven {
    fn of(event: &StoredEvent<'_>) -> Self {
        let StoredEvent { seq, time, event_type, source, session_id, user_id, payload, legacy_id } = *event;
        let texts = [Some(event_type), Some(source), session_id, user_id, Some(payload), legacy_id];
        Self { seq, time, texts: texts.map(|text| text.map(|text| text.as_bytes().into())) }
    }
}

/// The time of the first undamaged event after those without checksums, or the largest time.
fn first_checked_time(old: &Connection, unchecked_through: Seq) -> rusqlite::Result<Timestamp> {
    let looked = (|| {
        let mut statement = old.prepare(read::select_events!("seq > ?1 ORDER BY seq"))?;
        let mut rows = statement.query([unchecked_through.0 as i64])?;
        while let Some(row) = rows.next()? {
            if let Ok(event) = read::stored(row, unchecked_through) {
                return Ok(Some(event.time));
            }
        }
        Ok(None)
    })();
    Ok(or_lost(looked, None)?.unwrap_or(Timestamp(i64::MAX)))
}

/// Damaged events that are named.
const NAMED_MAX: usize = 20;

/// What was read, or another value if it is damaged.
pub fn or_lost<T>(read: rusqlite::Result<T>, otherwise: T) -> rusqlite::Result<T> {
    ignoring_damage(read).map(|read| read.unwrap_or(otherwise))
}
