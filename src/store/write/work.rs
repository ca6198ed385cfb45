//! What the writer has to do besides the commands of one transaction.

use super::command::Reply;
use super::hole_notes::HoleNotes;
use super::housekeeping::Housekeeping;
use super::order::Clock;
use super::rolling_up::RollingUp;
use super::sealing::Sealing;
use super::subscriptions::Changes;
use super::tidying::Tidying;
use crate::doorbell::Wakes;

/// What waits for a later transaction, and what the writer needs to order and answer.
pub struct Work {
    pub subscriptions: Changes,
    pub sealing: Sealing,
    pub hole_notes: HoleNotes,
    pub tidying: Tidying,
    pub rolling_up: RollingUp,
    /// Probes that are not answered yet.
    pub probes: Vec<Reply<()>>,
    pub clock: Clock,
    pub wakes: Wakes,
}

impl Work {
    /// At a start only rows of deleted events may wait, and events to be rolled up.
    pub fn new(tidying: Tidying, rolling_up: RollingUp) -> Self {
        Self {
            subscriptions: Changes::default(),
            sealing: Sealing::default(),
            hole_notes: HoleNotes::default(),
            tidying,
            rolling_up,
            probes: Vec::new(),
            clock: Clock::default(),
            wakes: Wakes::default(),
        }
    }

    pub fn housekeeping(&mut self) -> [&mut dyn Housekeeping; 4] {
        [&mut self.sealing, &mut self.hole_notes, &mut self.tidying, &mut self.rolling_up]
    }
}
