//! Removing the rows of deleted events, after a deletion of the oldest. The deletion itself only stores up to which
//! number the record is deleted (`meta.deleted_through`), and nothing up to there is read from then on. The rows are
//! removed in slices, so that no event waits long for a commit.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::housekeeping::{Housekeeping, LeftOut, Turn};
use super::position::Position;
use crate::event::Seq;
use crate::store::damage::damaged;
use crate::store::shared::Shared;
use crate::store::{keys, read, segments};

/// Events removed in one commit: about 2 ms of work.
const EVENTS_PER_COMMIT: u64 = if cfg!(test) { 16 } else { 4_096 };

/// On a full disk slices become smaller, down to this many events.
const EVENTS_PER_COMMIT_MIN: u64 = if cfg!(test) { 2 } else { 64 };

/// When even the smallest slice does not fit on the disk, it is tried again after this time.
const REST_WHEN_FULL: Duration = Duration::from_secs(if cfg!(test) { 3_600 } else { 1 });

pub struct Tidying {
    is_due: bool,
    /// The next slice comes at this moment at the earliest.
    from: Option<Instant>,
    events_per_commit: u64,
    /// The last transaction removed the last rows.
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
        let is_due = deleted_through > Seq::ZERO && (read::first_row(connection)? <= deleted_through || lists()?);
        Ok(Self { is_due, from: None, events_per_commit: EVENTS_PER_COMMIT, is_done: false })
    }

    /// Without anything to remove.
    pub fn none() -> Self {
        Self { is_due: false, from: None, events_per_commit: EVENTS_PER_COMMIT, is_done: false }
    }

    /// Events were deleted.
    pub fn begin(&mut self) {
        (self.is_due, self.from) = (true, None);
    }

    /// Whether there is something left to remove, now or later.
    pub fn is_under_way(&self) -> bool {
        self.is_due
    }

    /// When the next slice comes, if it has to wait.
    pub fn rests_until(&self) -> Option<Instant> {
        self.from.filter(|_| self.is_due)
    }

    /// Makes the next slices smaller, because the disk is full. If they cannot be smaller, they come later. Returns
    /// whether to try again now.
    pub fn shrink(&mut self) -> bool {
        let is_smaller = self.events_per_commit > EVENTS_PER_COMMIT_MIN;
        match is_smaller {
            true => self.events_per_commit = (self.events_per_commit / 2).max(EVENTS_PER_COMMIT_MIN),
            false => self.rest(),
        }
        is_smaller
    }

    /// Puts the next slice off, so that commands can be applied without it.
    pub fn rest(&mut self) {
        self.from = Some(Instant::now() + REST_WHEN_FULL);
    }

    /// Removes a slice of the oldest rows, and the lists and holes of segments that have no event any more. Returns
    /// whether nothing is left to remove.
    fn remove(&self, connection: &Connection, shared: &Shared, position: &Position) -> rusqlite::Result<bool> {
        let (first, last) = (read::first_row(connection)?, position.deleted_through);
        if first > last {
            // Nothing is left, unless the first row has a damaged number and hides others.
            let (whole, _) = shared.record_at(connection, Seq::ZERO).first()?;
            if whole.is_some_and(|whole| whole <= last) {
                return Err(damaged(read::name_of_damaged(first)));
            }
        }
        let through = match first <= last {
            true => last.min(Seq(first.0 + self.events_per_commit - 1)),
            false => last,
        };
        if first <= last {
            let removed =
                connection.prepare_cached("DELETE FROM events WHERE seq <= ?1")?.execute([through.0 as i64])?;
            if removed == 0 {
                // SQLite followed a damaged number to the wrong row, and would do so again.
                return Err(damaged(read::name_of_damaged(first)));
            }
            keys::remove_through(connection, through)?;
        }
        const LISTS: &str = "DELETE FROM event_index WHERE segment < ?1 AND (segment, kind, key) <= (SELECT segment, \
                             kind, key FROM (SELECT segment, kind, key FROM event_index ORDER BY segment, kind, key \
                             LIMIT ?2) ORDER BY segment DESC, kind DESC, key DESC LIMIT 1)";
        let first_segment = segments::segment_of(through.next()) as i64;
        let lists = connection.prepare_cached(LISTS)?.execute((first_segment, self.events_per_commit as i64))?;
        connection.prepare_cached("DELETE FROM holes WHERE segment < ?1")?.execute([first_segment])?;
        Ok(through == last && (lists as u64) < self.events_per_commit)
    }
}

impl Housekeeping for Tidying {
    fn is_due(&self) -> bool {
        self.is_due && self.from.is_none_or(|from| from <= Instant::now())
    }

    fn in_transaction(&mut self, turn: &mut Turn<'_>) -> rusqlite::Result<()> {
        self.is_done = turn.left_out.tidying;
        if !self.is_due() || self.is_done {
            return Ok(());
        }
        if !turn.is_disk_full {
            self.events_per_commit = EVENTS_PER_COMMIT;
        }
        let removed = self.remove(turn.connection, turn.shared, &turn.position);
        self.is_done =
            turn.left_out.unless_damaged(turn.shared, |left_out: &mut LeftOut| &mut left_out.tidying, removed)?;
        Ok(())
    }

    fn after_commit(&mut self, _: &Shared) {
        if std::mem::take(&mut self.is_done) {
            *self = Self::none();
        }
    }
}
