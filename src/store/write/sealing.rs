//! Storing the posting lists of full segments, a slice with each commit.

use std::collections::VecDeque;

use rusqlite::Connection;

use super::housekeeping::{Housekeeping, Turn, go_on_after};
use crate::store::damage::is_damage;
use crate::store::holes::Holes;
use crate::store::schema::{Text, meta};
use crate::store::segments::{self, IndexRow, SEGMENT_EVENTS};
use crate::store::shared::Shared;

/// Posting lists stored in a commit that has nothing else to do: some 1 ms of work.
const ROWS_WHEN_IDLE: usize = if cfg!(test) { 4 } else { 1_024 };
const ROWS_MIN: usize = if cfg!(test) { 1 } else { 256 };

/// Full segments on their way into `event_index`, the oldest first.
#[derive(Default)]
pub struct Sealing {
    segments: VecDeque<FullSegment>,
    /// The lists that the last transaction stored.
    done: usize,
}

struct FullSegment {
    number: u64,
    rows: std::vec::IntoIter<IndexRow>,
    len: usize,
}

impl Sealing {
    pub fn push(&mut self, number: u64, rows: Vec<IndexRow>) {
        let len = rows.len();
        self.segments.push_back(FullSegment { number, rows: rows.into_iter(), len });
    }
}

impl Housekeeping for Sealing {
    fn is_due(&self) -> bool {
        !self.segments.is_empty()
    }

    /// Stores enough lists to be done before the next segment is full, and no more, so that no commit waits long for them.
    fn in_transaction(&mut self, turn: &mut Turn<'_>) -> rusqlite::Result<()> {
        self.done = 0;
        let Some(segment) = self.segments.front().filter(|_| !turn.is_disk_full) else { return Ok(()) };
        let pace = segment.len * turn.events / (SEGMENT_EVENTS as usize / 2);
        let rows = if turn.events == 0 { ROWS_WHEN_IDLE } else { pace.max(ROWS_MIN) };
        let slice = &segment.rows.as_slice()[..rows.min(segment.rows.len())];
        let holes = match turn.left_out.holes {
            true => None,
            false => match Holes::of(turn.connection, segment.number) {
                // Which events were chosen and deleted is not known then: lists are stored that only such events are in.
                Err(error) if is_damage(&error) => {
                    turn.shared.note_damage(&error);
                    go_on_after(error, turn.connection).inspect_err(|_| turn.left_out.holes = true)?;
                    None
                }
                holes => holes?,
            },
        };
        // Looking into every list costs, and mostly nothing is gone.
        let oldest = turn.position.oldest();
        let is_some_gone = holes.is_some() || oldest > segments::first_of(segment.number);
        let holes = holes.unwrap_or_default();
        let is_emptied = |row: &IndexRow| is_some_gone && holes.leave_none_of(&row.offsets, segment.number, oldest);
        store(turn.connection, segment.number, slice.iter().filter(|row| !is_emptied(row)))?;
        self.done = slice.len();
        if slice.len() == segment.rows.len() {
            meta::set(turn.connection, meta::SEALED_BEFORE, segment.number as i64 + 1)?;
        }
        Ok(())
    }

    fn after_commit(&mut self, shared: &Shared) {
        let done = std::mem::take(&mut self.done);
        let Some(segment) = self.segments.front_mut() else { return };
        segment.rows.by_ref().take(done).for_each(drop);
        if segment.rows.len() == 0 {
            let number = segment.number;
            self.segments.pop_front();
            shared.recent.write().full.retain(|full| full.number() != number);
        }
    }
}

fn store<'r>(connection: &Connection, segment: u64, rows: impl Iterator<Item = &'r IndexRow>) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO event_index (segment, kind, key, offsets, checksum) VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut insert = connection.prepare_cached(SQL)?;
    for row in rows {
        insert.raw_bind_parameter(1, segment as i64)?;
        insert.raw_bind_parameter(2, row.field as i64)?;
        insert.raw_bind_parameter(3, Text(Some(&row.key)))?;
        insert.raw_bind_parameter(4, &row.offsets)?;
        insert.raw_bind_parameter(5, row.checksum)?;
        insert.raw_execute()?;
    }
    Ok(())
}
