//! The real server, in parts: the simulation calls the steps of its threads.

use std::sync::Arc;

use crate::config::Config;
use crate::event::Seq;
use crate::hub::{FanOut, Hub};
use crate::store::{Parts, Store};

pub struct Server {
    pub store: Store,
    pub parts: Parts,
    pub hub: Arc<Hub>,
    fan_out: FanOut,
    /// The last event that was handed to the hub.
    fanned_out: Seq,
}

impl Server {
    pub fn open(config: &Config) -> Self {
        let (store, parts) = Store::open_parts(config).expect("open");
        let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
        Self { fanned_out: store.committed(), store, parts, hub, fan_out: FanOut::default() }
    }

    /// A round of the fan-out with at most this many commits. Returns whether there were any.
    pub fn fan_out(&mut self, commits_max: usize) -> bool {
        let round = self.parts.commits.try_iter().take(commits_max).collect::<Vec<_>>();
        for commit in &round {
            for batch in &commit.batches {
                // Commits come without a gap, except for commits without an audience, which are left out as a whole.
                let follows = batch.first() == self.fanned_out.next() || batch.first() == commit.batches[0].first();
                assert!(follows && batch.first() > self.fanned_out && !batch.is_empty(), "out of order");
                self.fanned_out = batch.first().plus(batch.len()).prev();
            }
            assert!(commit.through == self.fanned_out && self.fanned_out <= self.store.committed());
        }
        self.hub.deliver(&round, &mut self.fan_out);
        !round.is_empty()
    }
}
