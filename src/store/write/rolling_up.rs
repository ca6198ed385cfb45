//! Rolling up the events of a file from before format 6: counting them by minute and type, a slice with each commit, from
//! the newest to the oldest. Newer events are counted when they are stored.

use rusqlite::Connection;

use super::housekeeping::{Housekeeping, LeftOut, Turn};
use crate::event::Seq;
use crate::store::rollups;
use crate::store::schema::meta;
use crate::store::shared::Shared;

/// Events counted in one commit: about 2 ms of work.
const EVENTS_PER_COMMIT: u64 = if cfg!(test) { 16 } else { 4_096 };

pub struct RollingUp {
    /// Events up to this one are to be counted; zero if all are.
    missing: Seq,
    /// What the last transaction leaves to be counted.
    left: Seq,
    /// Damage ended the work, until the next start.
    is_stopped: bool,
}

impl RollingUp {
    /// At a start.
    pub fn new(missing: Seq) -> Self {
        Self { missing, left: missing, is_stopped: false }
    }

    /// Counts the newest events that are missing. Returns up to which event they still are.
    fn count(connection: &Connection, deleted_through: Seq, missing: Seq) -> rusqlite::Result<Seq> {
        let first = Seq(missing.0.saturating_sub(EVENTS_PER_COMMIT - 1)).max(deleted_through.next());
        for ((minute, event_type), events) in rollups::count_rows(connection, &(first..=missing))? {
            rollups::add(connection, minute, &event_type, events)?;
        }
        let left = if first == deleted_through.next() { Seq::ZERO } else { first.prev() };
        meta::set(connection, meta::NOT_ROLLED_UP, left.0 as i64)?;
        Ok(left)
    }
}

impl Housekeeping for RollingUp {
    fn is_due(&self) -> bool {
        self.missing > Seq::ZERO && !self.is_stopped
    }

    fn in_transaction(&mut self, turn: &mut Turn<'_>) -> rusqlite::Result<()> {
        self.left = self.missing;
        self.is_stopped |= turn.left_out.rollups;
        if !self.is_due() || turn.is_disk_full {
            return Ok(());
        }
        // What is deleted meanwhile is not missing any more.
        let missing = if self.missing <= turn.position.deleted_through { Seq::ZERO } else { self.missing };
        let counted = match missing {
            Seq::ZERO => meta::set(turn.connection, meta::NOT_ROLLED_UP, 0).map(|()| Seq::ZERO),
            missing => Self::count(turn.connection, turn.position.deleted_through, missing),
        };
        self.left =
            turn.left_out.note_damage_of(turn.shared, |left_out: &mut LeftOut| &mut left_out.rollups, counted)?;
        Ok(())
    }

    fn after_commit(&mut self, _: &Shared) {
        self.missing = self.left;
    }
}
