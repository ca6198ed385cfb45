//! Filling an empty database with events in the order of their numbers, and with their index, holes and statistics.

use std::collections::HashMap;

use rusqlite::{Connection, Statement};

use super::checksum;
use super::holes::Holes;
use super::rollups;
use super::schema::{Text, meta};
use super::segments::{self, Segment};
use crate::event::{Columns, Seq, Timestamp};

/// Fills the tables of an empty database. Its memory does not grow with the number of events.
pub(super) struct Rebuild<'c> {
    connection: &'c Connection,
    insert: Statement<'c>,
    /// For checksums.
    scratch: Vec<u8>,
    segment: Segment,
    /// A segment, and the holes that were found in it until now.
    holes: (u64, Vec<u16>),
    by_type: HashMap<Box<[u8]>, (i64, Timestamp)>,
    /// A minute, and its events by type until now.
    minute: (i64, HashMap<Box<[u8]>, u64>),
    last: Option<(Seq, Timestamp)>,
}

impl<'c> Rebuild<'c> {
    pub fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        let insert = connection.prepare(
            "INSERT INTO events (seq, time_us, event_type, source, session_id, user_id, payload, legacy_id, checksum)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        let (scratch, segment, holes, by_type) = (Vec::new(), Segment::new(0), (0, Vec::new()), HashMap::new());
        let minute = (i64::MIN, HashMap::new());
        Ok(Self { connection, insert, scratch, segment, holes, by_type, minute, last: None })
    }

    /// Stores the next event: with a larger number and a later time than the one before it. The numbers between the two
    /// become holes.
    pub fn event(
        &mut self,
        seq: Seq,
        time: Timestamp,
        columns: &Columns<'_>,
        legacy_id: Option<&[u8]>,
    ) -> rusqlite::Result<()> {
        let checksum = checksum::of_event(&mut self.scratch, seq, time, columns, legacy_id);
        let Columns { event_type, source, session_id, user_id, payload } = *columns;
        self.insert.execute((
            seq.0 as i64,
            time.0,
            Text(Some(event_type)),
            Text(Some(source)),
            Text(session_id),
            Text(user_id),
            Text(Some(payload)),
            Text(legacy_id),
            checksum,
        ))?;
        if let Some((last, _)) = self.last {
            self.skip(last.next(), seq)?;
        }
        if segments::segment_of(seq) != self.segment.number() {
            segments::store(self.connection, self.segment.number(), &self.segment.rows())?;
            self.segment = Segment::new(segments::segment_of(seq));
        }
        self.segment.note(seq, columns);
        match self.by_type.get_mut(event_type) {
            Some((count, last_seen)) => (*count, *last_seen) = (*count + 1, time),
            None => drop(self.by_type.insert(event_type.into(), (1, time))),
        }
        let minute = rollups::minute_of(time);
        if minute != self.minute.0 {
            self.store_minute()?;
            self.minute.0 = minute;
        }
        match self.minute.1.get_mut(event_type) {
            Some(count) => *count += 1,
            None => drop(self.minute.1.insert(event_type.into(), 1)),
        }
        self.last = Some((seq, time));
        Ok(())
    }

    /// Notes the numbers from `from` up to, and without, `end` as holes.
    fn skip(&mut self, from: Seq, end: Seq) -> rusqlite::Result<()> {
        for seq in (from.0..end.0).map(Seq) {
            let segment = segments::segment_of(seq);
            if segment != self.holes.0 {
                self.store_holes()?;
                self.holes.0 = segment;
            }
            self.holes.1.push(segments::offset_of(seq));
        }
        Ok(())
    }

    fn store_holes(&mut self) -> rusqlite::Result<()> {
        let (segment, offsets) = (self.holes.0, std::mem::take(&mut self.holes.1));
        match offsets.is_empty() {
            true => Ok(()),
            false => Holes { count: offsets.len() as u64, offsets: Some(offsets) }.store(self.connection, segment),
        }
    }

    fn store_minute(&mut self) -> rusqlite::Result<()> {
        let (minute, by_type) = &mut self.minute;
        by_type.drain().try_for_each(|(event_type, count)| rollups::add(self.connection, *minute, &event_type, count))
    }

    /// Stores statistics and marks, after the last event. The last segment stays open, full or not.
    pub fn finish(&mut self) -> rusqlite::Result<()> {
        self.store_holes()?;
        self.store_minute()?;
        for (event_type, (count, last_seen)) in &self.by_type {
            const SQL: &str = "INSERT INTO event_stats (event_type, count, last_seen) VALUES (?1, ?2, ?3)";
            self.connection.execute(SQL, (Text(Some(event_type)), count, last_seen.to_string()))?;
        }
        if let Some((seq, time)) = self.last {
            meta::set(self.connection, meta::LAST_SEQ, seq.0 as i64)?;
            meta::set(self.connection, meta::LAST_TIME_US, time.0)?;
            meta::set(self.connection, meta::SEALED_BEFORE, self.segment.number() as i64)?;
        }
        Ok(())
    }
}
