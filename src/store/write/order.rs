//! Order: the commands of one transaction, and their time. Here, where one server is alone with its file, the writer takes
//! them from its queue (`Writer::receive`); in a cluster a log will order them. Applying them reads no clock.

use std::time::Duration;

use super::command::{Append, Reply};
use crate::event::{Seq, Timestamp};

/// The commands of one transaction, in their order: the appends, then a deletion, then durable subscriptions.
#[derive(Default)]
pub struct Ordered {
    pub appends: Vec<Append>,
    pub deletion: Option<Deletion>,
    /// Whether the waiting changes of durable subscriptions are stored, too.
    pub subscriptions: bool,
}

/// A deletion, which one transaction does as a whole.
pub struct Deletion {
    pub what: Deleted,
    pub reply: Reply<u64>,
}

/// Which events a deletion deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// Everything up to this event. A time is turned into a number before the deletion is ordered: two copies with
    /// different damage could find different numbers.
    Through(Seq),
    /// Chosen events, ascending.
    Chosen(Vec<Seq>),
}

/// How far the clock may be behind the last event without a warning. 10 s, because small corrections of a clock are usual.
const CLOCK_BEHIND_MAX: Duration = Duration::from_secs(10);

/// The clock that stamps commands.
#[derive(Default)]
pub struct Clock {
    /// It is behind the last event, and an operator was warned.
    is_behind: bool,
}

impl Ordered {
    /// Whether something is to be applied.
    pub fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.deletion.is_none() && !self.subscriptions
    }

    /// Bytes of the batches.
    pub fn bytes(&self) -> usize {
        self.appends.iter().map(|append| append.batch.bytes()).sum()
    }
}

impl Clock {
    /// Gives the appends the present time. Warns an operator once when the clock is more than 10 s behind the last event,
    /// and says once when it has caught up.
    pub fn stamp(&mut self, ordered: &mut Ordered, last: Timestamp) {
        if ordered.appends.is_empty() {
            return;
        }
        let now = Timestamp::now();
        ordered.appends.iter_mut().for_each(|append| append.time = now);
        let behind = last.0 - now.0;
        let was_behind = self.is_behind;
        if !was_behind && behind > CLOCK_BEHIND_MAX.as_micros() as i64 {
            self.is_behind = true;
            let seconds = behind / 1_000_000;
            tracing::warn!(
                seconds, %last,
                "the clock is behind the last event: until it has passed that, each event is stamped 1 µs after the one before"
            );
        } else if was_behind && behind <= 0 {
            self.is_behind = false;
            tracing::info!("the clock has passed the last event: events are stamped with its time again");
        }
    }
}
