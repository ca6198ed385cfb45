//! Only the latest event of each type and key, once an interval: for eyes, which see no more.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::time::Instant;

use crate::wire::committed::Run;
use crate::wire::request::Conflate;

/// Holds back the latest event of each type and key until the interval is over. What a newer one replaces
/// is never sent; the last one always is.
#[derive(Debug)]
pub(super) struct Conflator {
    rule: Conflate,
    /// The keys hold what clients sent, so the hash is seeded.
    latest: HashMap<Box<[u8]>, Latest, foldhash::fast::RandomState>,
    bytes: usize,
    bytes_max: usize,
    skipped: u64,
    next: Instant,
    key: Vec<u8>,
    arrived: u64,
}

/// A frame of its own: a slice would keep the whole batch in memory it came in.
#[derive(Debug)]
struct Latest {
    order: u64,
    frame: Vec<u8>,
}

/// Between the type and the key: a byte that UTF-8 never has.
const SEPARATOR: u8 = 0xff;

impl Conflator {
    /// At most about `bytes_max` bytes are held back; more are sent before their time.
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

    /// When what is held back is due; nothing is held back: `None`.
    pub(super) fn due(&self) -> Option<Instant> {
        let is_full = self.bytes > self.bytes_max;
        (!self.latest.is_empty()).then(|| if is_full { Instant::now() } else { self.next })
    }

    /// The frames that were held back, in the order of their events, and how many were left out since the
    /// last time if that was asked for.
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
