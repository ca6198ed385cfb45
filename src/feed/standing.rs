//! Where a subscriber stands, for those who watch the server.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::Seq;

/// What a subscriber is doing, and its position. Its feed writes this and others read it, both without a lock.
#[derive(Debug, Default)]
pub struct Standing(AtomicU64);

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
        self.0.store(position.0 << DOING_BITS | doing as u64, Ordering::Relaxed);
    }

    pub fn get(&self) -> (Doing, Seq) {
        let both = self.0.load(Ordering::Relaxed);
        (Doing::ALL[(both & ((1 << DOING_BITS) - 1)) as usize], Seq(both >> DOING_BITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_is_read_as_it_was_set() {
        let standing = Standing::default();
        assert_eq!(standing.get(), (Doing::Opening, Seq::ZERO));
        for doing in Doing::ALL {
            let last = Seq((1 << 48) - 1);
            standing.set(doing, last);
            assert_eq!(standing.get(), (doing, last));
        }
    }
}
