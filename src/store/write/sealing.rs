//! Storing the posting lists of full segments, a slice with each commit.

use std::collections::VecDeque;

use super::housekeeping::{Housekeeping, Turn};
use crate::store::holes::Holes;
use crate::store::schema::meta;
use crate::store::segments::{self, IndexRow, SEGMENT_EVENTS};
use crate::store::shared::Shared;

/// Posting lists stored in a commit without events: about 1 ms of work.
const ROWS_WHEN_IDLE: usize = if cfg!(test) { 4 } else { 1_024 };
/// The fewest posting lists stored in a commit with events: the share of a small commit would round to none.
const ROWS_MIN: usize = if cfg!(test) { 1 } else { 256 };

/// Full segments on their way into `event_index`, the oldest first.
#[derive(Default)]
pub struct Sealing {
    segments: VecDeque<FullSegment>,
    /// How many lists the last transaction stored.
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

    /// Stores so many lists that the segment is sealed when the next one is half full, and no more, so that no commit
    /// waits long for them.
    fn in_transaction(&mut self, turn: &mut Turn<'_>) -> rusqlite::Result<()> {
        self.done = 0;
        let Some(segment) = self.segments.front().filter(|_| !turn.is_disk_full) else { return Ok(()) };
        let pace = segment.len * turn.events / (SEGMENT_EVENTS as usize / 2);
        let rows = if turn.events == 0 { ROWS_WHEN_IDLE } else { pace.max(ROWS_MIN) };
        let slice = &segment.rows.as_slice()[..rows.min(segment.rows.len())];
        let holes = match turn.left_out.holes {
            true => None,
            // If they are damaged, it is not known which events were deleted, so lists that have only deleted events are
            // stored, too.
            false => {
                let holes = Holes::of(turn.connection, segment.number);
                let database = (turn.connection, turn.shared);
                turn.left_out.despite_damage(database, |left_out| &mut left_out.holes, holes)?.flatten()
            }
        };
        // To look into every list costs time, and mostly nothing is deleted.
        let oldest = turn.position.oldest();
        let is_some_deleted = holes.is_some() || oldest > segments::first_of(segment.number);
        let holes = holes.unwrap_or_default();
        let is_emptied = |row: &IndexRow| is_some_deleted && holes.leave_none_of(&row.offsets, segment.number, oldest);
        segments::store(turn.connection, segment.number, slice.iter().filter(|row| !is_emptied(row)))?;
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
