//! How many WebSockets one client may have open (`MAX_WS_CONNECTIONS_PER_IP`).

use std::sync::Arc;

use dashmap::DashMap;

use super::counted::Counted;

#[derive(Debug)]
pub struct Slots {
    /// For each client; 0 is no limit.
    max: usize,
    taken: Arc<DashMap<Counted, usize>>,
}

/// The right of one client to one more WebSocket, given back when dropped.
#[derive(Debug)]
pub struct Slot(Option<(Arc<DashMap<Counted, usize>>, Counted)>);

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self { max, taken: Arc::default() }
    }

    /// A slot for one more WebSocket of this client, or `None` when it has as many as it may.
    pub fn take(&self, client: &Counted) -> Option<Slot> {
        if self.max == 0 {
            return Some(Slot(None));
        }
        let mut taken = self.taken.entry(client.clone()).or_insert(0);
        if *taken >= self.max {
            return None;
        }
        *taken += 1;
        drop(taken);
        Some(Slot(Some((self.taken.clone(), client.clone()))))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((slots, client)) = &self.0 {
            slots.remove_if_mut(client, |_, taken| {
                *taken -= 1;
                *taken == 0
            });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn slots_are_counted_by_client_and_given_back() {
        let slots = Slots::new(2);
        let take = |ip: &str| slots.take(&Counted::address(ip.parse().unwrap()));
        let first = take("2001:db8::1");
        let second = take("2001:db8::2");
        assert!(first.is_some() && second.is_some());
        assert!(take("2001:db8::3").is_none(), "the network has two");
        assert!(take("2001:db8:0:1::1").is_some());
        drop(first);
        let third = take("2001:db8::3");
        assert!(third.is_some());
        drop((second, third));
        assert!(slots.taken.is_empty());
        let unlimited = Slots::new(0);
        assert!((0..100).all(|_| unlimited.take(&Counted::ApiKey).is_some()));
    }
}
