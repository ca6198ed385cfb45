//! How much of its rate each client has left. The memory for that is bounded, however many addresses send requests.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::{DashMapStateStore, ShrinkableKeyedStateStore};

use super::counted::Counted;

/// Addresses with a rate of their own at one time: 65,536 take some 8 MB. Clients with a key or a token are as many as the
/// operator lets in, and always have their own.
const ADDRESSES_MAX: usize = 65_536;

/// Any further address shares one of so many rates with others, until a quiet one is forgotten.
const SHARED: usize = 4096;

/// The states of one rate.
#[derive(Default)]
pub(super) struct Clients {
    known: DashMapStateStore<Counted>,
    addresses: DashMapStateStore<Counted>,
    /// How many addresses there are. At most a few too many are counted, until the next sweep.
    count: AtomicUsize,
    shared: DashMapStateStore<usize>,
    /// With a secret seed, so that nobody can choose with whom an address shares.
    seed: RandomState,
}

impl StateStore for Clients {
    type Key = Counted;

    fn measure_and_replace<T, F, E>(&self, client: &Counted, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if !matches!(client, Counted::Address(_)) {
            return self.known.measure_and_replace(client, measure);
        }
        if self.addresses.contains_key(client) || self.reserve() {
            return self.addresses.measure_and_replace(client, measure);
        }
        self.shared.measure_and_replace(&(self.seed.hash_one(client) as usize % SHARED), measure)
    }
}

impl Clients {
    /// Whether one more address may have a rate of its own.
    fn reserve(&self) -> bool {
        let add = |count: usize| (count < ADDRESSES_MAX).then_some(count + 1);
        self.count.try_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }
}

impl ShrinkableKeyedStateStore<Counted> for Clients {
    fn retain_recent(&self, drop_below: Nanos) {
        self.known.retain_recent(drop_below);
        self.addresses.retain_recent(drop_below);
        self.count.store(self.addresses.len(), Ordering::Relaxed);
    }

    fn shrink_to_fit(&self) {
        self.known.shrink_to_fit();
        self.addresses.shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.known.len() + self.addresses.len() + self.shared.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
