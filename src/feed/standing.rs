//! Where a subscriber stands, for those who watch the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::event::Seq;
use crate::hub::Delivery;
use crate::outbox::Outbox;

/// What a subscriber is doing, its position, and what waits for it. Its feed writes this, in each of its steps without a lock.
#[derive(Debug, Default)]
pub struct Standing {
    doing_at: AtomicU64,
    /// The outbox of its last registration. The lock is taken when it registers, and to look.
    outbox: Mutex<Option<Arc<Outbox<Delivery>>>>,
}

/// Where a subscriber stands at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandsAt {
    pub doing: Doing,
    pub position: Seq,
    /// Bytes that wait in its outbox.
    pub waiting: usize,
}

/// What a subscriber is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It has no stream: its start is being searched for, or it is a request that waits for one event.
    Opening,
    /// It gets what is committed, as it comes.
    Live,
    /// Storage serves it until it is live.
    CatchingUp,
    /// It was too slow, and events are left out or its stream ends, as it had asked for.
    Skipping,
    /// It replays the past in a rhythm or up to an end, so it is not meant to be at the end of the record.
    Replaying,
    /// It has a part in the stream of its group.
    Member,
}

impl Doing {
    pub const ALL: [Self; 6] =
        [Self::Opening, Self::Live, Self::CatchingUp, Self::Skipping, Self::Replaying, Self::Member];

    pub fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Live => "live",
            Self::CatchingUp => "catching_up",
            Self::Skipping => "skipping",
            Self::Replaying => "replaying",
            Self::Member => "member",
        }
    }

    /// Whether events wait for it in storage although it wants them now.
    pub fn is_behind(self) -> bool {
        matches!(self, Self::CatchingUp | Self::Skipping)
    }
}

/// Below the position. An id has 48 bits, so both fit.
const DOING_BITS: u32 = 3;

impl Standing {
    pub fn set(&self, doing: Doing, position: Seq) {
        self.doing_at.store(position.0 << DOING_BITS | doing as u64, Ordering::Relaxed);
    }

    /// Its feed has registered, and live events arrive here.
    pub(super) fn registered(&self, outbox: &Arc<Outbox<Delivery>>) {
        *self.outbox.lock() = Some(outbox.clone());
    }

    pub fn get(&self) -> StandsAt {
        let both = self.doing_at.load(Ordering::Relaxed);
        let (doing, position) = (Doing::ALL[(both & ((1 << DOING_BITS) - 1)) as usize], Seq(both >> DOING_BITS));
        let outbox = (doing == Doing::Live).then(|| self.outbox.lock().clone()).flatten();
        match outbox.map(|outbox| outbox.bytes()) {
            None => StandsAt { doing, position, waiting: 0 },
            Some(Some(waiting)) => StandsAt { doing, position, waiting },
            // Its feed learns of the overflow only when its client has taken what is being sent.
            Some(None) => StandsAt { doing: Doing::CatchingUp, position, waiting: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_is_read_as_it_was_set() {
        let standing = Standing::default();
        assert_eq!(standing.get(), StandsAt { doing: Doing::Opening, position: Seq::ZERO, waiting: 0 });
        for doing in Doing::ALL {
            let position = Seq((1 << 48) - 1);
            standing.set(doing, position);
            assert_eq!(standing.get(), StandsAt { doing, position, waiting: 0 });
        }
    }
}
