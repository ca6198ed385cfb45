//! Conflation: only the latest event of each type and key, once an interval. Dashboards ask for it, as people cannot see
//! more.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::time::Instant;

use crate::wire::committed::Run;
use crate::wire::request::Conflate;

/// Holds back the latest event of each type and key until the interval is over. An event that is replaced by a newer one is
/// never sent; the last one always is.
#[derive(Debug)]
pub(super) struct Conflator {
    rule: Conflate,
    /// The keys come from clients, so the hash is seeded.
    latest: HashMap<Box<[u8]>, Latest, foldhash::fast::RandomState>,
    bytes: usize,
    bytes_max: usize,
    skipped: u64,
    /// When the interval is over.
    next: Instant,
    /// The key of the present event, in memory that is used again.
    key: Vec<u8>,
    /// How many events have arrived.
    arrived: u64,
}

/// The latest event of a key. The frame is a copy: a slice would keep its whole batch in memory.
#[derive(Debug)]
struct Latest {
    /// [`Conflator::arrived`] when it arrived.
    order: u64,
    frame: Vec<u8>,
}

/// Stands between the type and the key. UTF-8 never has this byte.
const SEPARATOR: u8 = 0xff;

impl Conflator {
    /// Holds back about `bytes_max` bytes at most. Beyond that, the events are sent before the interval is over.
    pub(super) fn new(rule: Conflate, bytes_max: usize) -> Self {
        let (latest, key) = (HashMap::default(), Vec::new());
        Self { rule, latest, bytes: 0, bytes_max, skipped: 0, next: Instant::now(), key, arrived: 0 }
    }

    pub(super) fn push(&mut self, runs: &[Run]) {
        for run in runs {
            for index in run.range() {
                let event = run.batch().columns(index);
                self.key.clear();
                self.key.extend_from_slice(event.event_type);
                self.key.push(SEPARATOR);
                self.key.extend_from_slice(event.field(self.rule.key).unwrap_or_default());
                let frame = run.batch().frames_between(index, index + 1);
                self.arrived += 1;
                self.bytes += frame.len();
                match self.latest.get_mut(&*self.key) {
                    Some(latest) => {
                        self.skipped += 1;
                        self.bytes -= latest.frame.len();
                        latest.order = self.arrived;
                        latest.frame.clear();
                        latest.frame.extend_from_slice(&frame);
                    }
                    None => {
                        self.bytes += self.key.len() + size_of::<Latest>();
                        let latest = Latest { order: self.arrived, frame: frame.to_vec() };
                        self.latest.insert(self.key.as_slice().into(), latest);
                    }
                }
            }
        }
    }

    /// When the events that are held back are due; `None` if there are none.
    pub(super) fn due(&self) -> Option<Instant> {
        let is_full = self.bytes > self.bytes_max;
        (!self.latest.is_empty()).then(|| if is_full { Instant::now() } else { self.next })
    }

    /// The frames that were held back, in the order of their events, and how many events were left out since the last
    /// call, if the subscriber asked to be told.
    pub(super) fn flush(&mut self) -> (Bytes, Option<u64>) {
        let mut latest: Vec<_> = self.latest.drain().map(|(_, latest)| latest).collect();
        latest.sort_unstable_by_key(|latest| latest.order);
        let mut frames = Vec::with_capacity(self.bytes);
        latest.iter().for_each(|latest| frames.extend_from_slice(&latest.frame));
        self.bytes = 0;
        self.next = Instant::now() + self.rule.interval;
        let skipped = std::mem::take(&mut self.skipped);
        (frames.into(), (self.rule.tells_skipped && skipped > 0).then_some(skipped))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::event::{Event, EventTypes, Field, Seq, Timestamp, TimestampText};
    use crate::wire::Batch;

    /// Events of these types and sessions, in one run.
    fn run(events: &[(usize, usize)], types: &EventTypes) -> Run {
        let mut batch = Batch::default();
        for (event_type, session) in events {
            let event = Event {
                event_type: types.get(["timer_tick", "timer_warning"][*event_type]).expect("built in"),
                source: "timer",
                session_id: ["a", "b", "c"].get(*session).copied(),
                user_id: None,
                payload: "{}",
                idempotency_key: None,
            };
            batch.push(&event, types);
        }
        for index in 0..batch.len() {
            batch.stamp(index, Seq(1).plus(index), &TimestampText::default().render(Timestamp(0)));
        }
        Run::whole(Arc::new(batch.committed(Seq(1))))
    }

    proptest! {
        /// The number 3 stands for no session: such events have one key, too.
        #[test]
        fn what_is_flushed_is_the_last_of_each_type_and_key_in_order(
            rounds in prop::collection::vec(prop::collection::vec((0..2usize, 0..4usize), 1..12), 1..6),
            tells_skipped in any::<bool>(),
        ) {
            let types = EventTypes::default();
            let rule = Conflate { key: Field::Session, interval: Duration::from_secs(60), tells_skipped };
            let mut conflator = Conflator::new(rule, usize::MAX);
            prop_assert_eq!(conflator.due(), None);
            for events in rounds {
                let run = run(&events, &types);
                conflator.push(std::slice::from_ref(&run));
                prop_assert!(conflator.due().is_some());
                let is_last = |at: &usize| !events[at + 1..].contains(&events[*at]);
                let kept: Vec<_> = (0..events.len()).filter(is_last).collect();
                let expected: Vec<u8> = kept.iter().flat_map(|at| run.batch().frames_between(*at, at + 1)).collect();
                let skipped = (events.len() - kept.len()) as u64;
                let (frames, told) = conflator.flush();
                prop_assert_eq!(&frames[..], &expected[..]);
                prop_assert_eq!(told, (tells_skipped && skipped > 0).then_some(skipped));
                prop_assert_eq!(conflator.due(), None);
                prop_assert_eq!(conflator.bytes, 0);
            }
        }
    }
}
