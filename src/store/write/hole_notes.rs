//! Noting where the holes of segments from before format 4 are, once the sealer has found them.

use std::collections::VecDeque;

use super::housekeeping::{Housekeeping, Turn};
use crate::store::holes;
use crate::store::shared::Shared;

/// Segments whose holes are noted in one commit: 8 KiB each at most.
const SEGMENTS_PER_COMMIT: usize = 8;

/// Holes that were found and are not noted yet: a segment, and the offsets in it.
#[derive(Default)]
pub struct HoleNotes {
    pub found: VecDeque<(u64, Vec<u16>)>,
    /// How many the last transaction noted, or dropped because of damage.
    done: usize,
}

impl Housekeeping for HoleNotes {
    fn is_due(&self) -> bool {
        !self.found.is_empty()
    }

    fn in_transaction(&mut self, turn: &mut Turn<'_>) -> rusqlite::Result<()> {
        self.done = if turn.is_disk_full { 0 } else { self.found.len().min(SEGMENTS_PER_COMMIT) };
        if turn.left_out.holes {
            return Ok(());
        }
        for (segment, offsets) in self.found.iter().take(self.done) {
            let noted = holes::note_found(turn.connection, *segment, offsets.clone());
            // The row also has the number of holes, which is lost if it is damaged. Without the number the offsets are of
            // no use, so they are dropped.
            let database = (turn.connection, turn.shared);
            turn.left_out.despite_damage(database, |left_out| &mut left_out.holes, noted)?;
        }
        Ok(())
    }

    fn after_commit(&mut self, _: &Shared) {
        self.found.drain(..std::mem::take(&mut self.done));
    }
}
