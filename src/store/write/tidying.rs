//! Removing the rows of deleted events, after a deletion of the oldest. The deletion itself only stores up to which
//! number the record is deleted (`meta.deleted_through`), and no client sees anything up to there from then on. The rows are
//! removed in slices, so that no event waits long for a commit.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::housekeeping::{Housekeeping, LeftOut, Turn};
use super::position::Position;
use crate::event::Seq;
use crate::store::damage::damaged;
use crate::store::shared::Shared;
use crate::store::{keys, read, segments};

/// Rows of events, and as many posting lists, removed in one commit: about 2 ms of work.
const ROWS_PER_COMMIT: u64 = if cfg!(test) { 16 } else { 4_096 };

/// On a full disk slices become smaller, down to this many rows.
const ROWS_PER_COMMIT_MIN: u64 = if cfg!(test) { 2 } else { 64 };

/// How long the next slice is put off when it does not fit on the disk, or is in the way of commands.
const PUT_OFF: Duration = Duration::from_secs(if cfg!(test) { 3_600 } else { 1 });

pub struct Tidying {
    is_under_way: bool,
    /// No slice comes meanwhile.
    is_paused: bool,
    /// The next slice comes at this moment at the earliest.
    not_before: Option<Instant>,
    rows_per_commit: u64,
    /// The last transaction removed the last rows, or damage ended the work.
    is_done: bool,
}

impl Tidying {
    /// At a start. The server before may have ended between a deletion and its last slice.
    ///
    /// # Errors
    /// What SQLite reports, damage included: the caller goes on without tidying.
    pub fn after_start(connection: &Connection, deleted_through: Seq) -> rusqlite::Result<Self> {
        const LISTS: &str = "SELECT EXISTS (SELECT 1 FROM event_index WHERE segment < ?1)";
        let lists =
            || connection.query_row(LISTS, [segments::segment_of(deleted_through.next()) as i64], |row| row.get(0));
        let is_under_way = deleted_through > Seq::ZERO && (read::first_row(connection)? <= deleted_through || lists()?);
        Ok(Self { is_under_way, ..Self::none() })
    }

    /// Without anything to remove.
    pub fn none() -> Self {
        Self {
            is_under_way: false,
            is_paused: false,
            not_before: None,
            rows_per_commit: ROWS_PER_COMMIT,
            is_done: false,
        }
    }

    /// Events were deleted.
    pub fn begin(&mut self) {
        (self.is_under_way, self.not_before) = (true, None);
    }

    /// Holds slices back, or no longer. Pages that a slice frees keep their bytes, so none may be freed while these are
    /// searched for.
    pub fn pause(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// Whether there is something left to remove, now or later.
    pub fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// When the next slice comes, if it has to wait.
    pub fn put_off_until(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.is_under_way && !self.is_paused)
    }

    /// Halves the next slices, because the disk is full. At the minimum it puts the next one off and returns `false`.
    pub fn shrink(&mut self) -> bool {
        let is_smaller = self.rows_per_commit > ROWS_PER_COMMIT_MIN;
        match is_smaller {
            true => self.rows_per_commit = (self.rows_per_commit / 2).max(ROWS_PER_COMMIT_MIN),
            false => self.put_off(),
        }
        is_smaller
    }

    /// Puts the next slice off, so that commands can be applied without it.
    pub fn put_off(&mut self) {
        self.not_before = Some(Instant::now() + PUT_OFF);
    }

    /// Removes a slice of the oldest rows, and the lists and holes of segments that have no event any more. Returns
    /// whether nothing is left to remove.
    fn remove(&self, connection: &Connection, shared: &Shared, position: &Position) -> rusqlite::Result<bool> {
        let (first, last) = (read::first_row(connection)?, position.deleted_through);
        if first > last {
            // The first row may have a damaged number. If an undamaged row up to the mark comes after it, it is named.
            let (whole, _) = shared.record_at(connection, Seq::ZERO).first()?;
            if whole.is_some_and(|whole| whole <= last) {
                return Err(damaged(read::name_of_damaged(first)));
            }
        }
        let through = match first <= last {
            true => last.min(Seq(first.0 + self.rows_per_commit - 1)),
            false => last,
        };
        if first <= last {
            let removed =
                connection.prepare_cached("DELETE FROM events WHERE seq <= ?1")?.execute([through.0 as i64])?;
            if removed == 0 {
                // A damaged number leads SQLite to another row, and would do so again.
                return Err(damaged(read::name_of_damaged(first)));
            }
            keys::remove_through(connection, through)?;
        }
        // `DELETE … LIMIT`, written out: the first lists by their key.
        const LISTS: &str = "DELETE FROM event_index WHERE segment < ?1 AND (segment, kind, key) <= (SELECT segment, \
                             kind, key FROM (SELECT segment, kind, key FROM event_index ORDER BY segment, kind, key \
                             LIMIT ?2) ORDER BY segment DESC, kind DESC, key DESC LIMIT 1)";
        let first_segment = segments::segment_of(through.next()) as i64;
        let lists = connection.prepare_cached(LISTS)?.execute((first_segment, self.rows_per_commit as i64))?;
        connection.prepare_cached("DELETE FROM holes WHERE segment < ?1")?.execute([first_segment])?;
        Ok(through == last && (lists as u64) < self.rows_per_commit)
    }
}

impl Housekeeping for Tidying {
    fn is_due(&self) -> bool {
        self.is_under_way && !self.is_paused && self.not_before.is_none_or(|moment| moment <= Instant::now())
    }

    fn in_transaction(&mut self, turn: &mut Turn<'_>) -> rusqlite::Result<()> {
        self.is_done = turn.left_out.tidying;
        if !self.is_due() || self.is_done {
            return Ok(());
        }
        if !turn.is_disk_full {
            self.rows_per_commit = ROWS_PER_COMMIT;
        }
        let removed = self.remove(turn.connection, turn.shared, &turn.position);
        self.is_done =
            turn.left_out.note_damage_of(turn.shared, |left_out: &mut LeftOut| &mut left_out.tidying, removed)?;
        Ok(())
    }

    fn after_commit(&mut self, _: &Shared) {
        if std::mem::take(&mut self.is_done) {
            *self = Self { is_paused: self.is_paused, ..Self::none() };
        }
    }
}
