//! Paced replay: history in the rhythm in which it was stored, or a multiple of it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::event::Timestamp;
use crate::wire::committed::Run;

/// Hands out events at the intervals at which they were stored, divided by the speed. Once it has reached the present,
/// every event is due at once.
#[derive(Debug)]
pub(super) struct PacedReplay {
    speed: f64,
    /// When the replay began, and the time of its first event.
    began: Option<(Instant, Timestamp)>,
    waiting: VecDeque<Run>,
}

impl PacedReplay {
    pub(super) fn new(speed: f64) -> Self {
        Self { speed, began: None, waiting: VecDeque::new() }
    }

    pub(super) fn push(&mut self, runs: Vec<Run>) {
        self.waiting.extend(runs);
    }

    /// When the next event is due; `None` if none waits.
    pub(super) fn due(&mut self) -> Option<Instant> {
        let first = self.waiting.front()?;
        Some(self.time_of(first.batch().time(first.range().start)))
    }

    /// The events that are due by now, in order.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Run> {
        let mut due = Vec::new();
        while let Some(run) = self.waiting.pop_front() {
            let range = run.range();
            let is_due = |replay: &mut Self, index| replay.time_of(run.batch().time(index)) <= now;
            let first_not_due = range.clone().find(|index| !is_due(self, *index)).unwrap_or(range.end);
            if first_not_due > range.start {
                due.push(Run::new(run.batch().clone(), range.start, first_not_due));
            }
            if first_not_due < range.end {
                self.waiting.push_front(Run::new(run.batch().clone(), first_not_due, range.end));
                break;
            }
        }
        due
    }

    /// When an event with this time is due.
    fn time_of(&mut self, time: Timestamp) -> Instant {
        let (began, first) = *self.began.get_or_insert_with(|| (Instant::now(), time));
        let micros = (time.0 - first.0).max(0) as f64 / self.speed;
        began + Duration::from_micros(micros as u64)
    }
}
