//! What subscribers have asked for, what is on its way to them, and what they got.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::events::{Events, Keys, Names, Requests};
use crate::latency::Kind;
use crate::ledger::Tally;
use crate::run::{PATIENCE, Run};

/// What a subscriber asks for: everything, or what has one key of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    All,
    Session,
    User,
    Type,
}

impl By {
    pub const ALL: [Self; 4] = [Self::All, Self::Session, Self::User, Self::Type];

    /// How many different keys there are.
    fn keys(self, names: &Names) -> usize {
        match self {
            Self::All => 1,
            Self::Session => names.sessions.len(),
            Self::User => names.users.len(),
            Self::Type => names.types.len(),
        }
    }

    #[inline]
    fn key(self, keys: Keys) -> usize {
        match self {
            Self::All => 0,
            Self::Session => keys.session as usize,
            Self::User => keys.user as usize,
            Self::Type => keys.event_type as usize,
        }
    }

    /// The filters of a subscriber that asks for this key.
    fn filters(self, names: &Names, key: usize) -> Value {
        match self {
            Self::All => json!({}),
            Self::Session => json!({ "session_id": names.sessions[key] }),
            Self::User => json!({ "user_id": names.users[key] }),
            Self::Type => json!({ "event_types": [names.types[key]] }),
        }
    }
}

/// All subscribers of a run. Nobody else may publish meanwhile.
pub struct Deliveries {
    /// The last event before the run.
    newest: u64,
    names: Names,
    groups: Vec<Group>,
    subscribers: Vec<Subscriber>,
    /// Whether there is one producer with one event in each request, so that an event's sequence number
    /// follows from its number. Otherwise it is known from the acknowledgement.
    one_producer: bool,
    due: RefCell<DueTimes>,
    /// Received before they were acknowledged: when, by sequence number.
    early: RefCell<HashMap<u64, Vec<Instant>>>,
    /// Deliveries that will come of what was sent.
    sent: Cell<u64>,
    received: Cell<u64>,
    /// Events sent at one time at most: half of what may be under way, so that while one half is received the
    /// other is stored.
    burst: usize,
    /// Deliveries under way at which the next burst may leave.
    under_way_max: u64,
    progress: Notify,
}

/// Those who ask by the same kind of key.
struct Group {
    by: By,
    /// How many ask for each key.
    subscribers: Vec<u32>,
    /// What was acknowledged of each key.
    expected: RefCell<Vec<Tally>>,
}

struct Subscriber {
    group: usize,
    key: usize,
    got: Cell<Got>,
}

/// What one subscriber got so far.
#[derive(Debug, Clone, Copy)]
pub struct Got {
    pub last: u64,
    pub tally: Tally,
}

impl Deliveries {
    /// So many subscribers of each kind, who take the keys of their kind in turn, and at most `window` events
    /// that are not received by all of them, if their producer waits for them.
    pub fn new(newest: u64, events: &Events, asking: &[(By, u32)], window: u32, one_producer: bool) -> Self {
        Self::with_names(newest, events.names(), asking, window, one_producer)
    }

    /// The same for events with other keys.
    pub fn with_names(newest: u64, names: Names, asking: &[(By, u32)], window: u32, one_producer: bool) -> Self {
        let (mut groups, mut subscribers) = (Vec::new(), Vec::new());
        // Deliveries that come of one event, on average.
        let mut each = 0.0;
        for (group, (by, count)) in asking.iter().enumerate() {
            let keys = by.keys(&names);
            let mut of_keys = vec![0; keys];
            for number in 0..*count as usize {
                let key = number % keys;
                of_keys[key] += 1;
                let got = Cell::new(Got { last: newest, tally: Tally::default() });
                subscribers.push(Subscriber { group, key, got });
            }
            each += f64::from(*count) / keys as f64;
            groups.push(Group { by: *by, subscribers: of_keys, expected: RefCell::new(vec![Tally::default(); keys]) });
        }
        let burst = window.div_ceil(2);
        Self {
            newest,
            names,
            groups,
            subscribers,
            one_producer,
            due: RefCell::new(DueTimes::new(newest)),
            early: RefCell::default(),
            sent: Cell::new(0),
            received: Cell::new(0),
            burst: burst as usize,
            under_way_max: (f64::from(window - burst) * each) as u64,
            progress: Notify::new(),
        }
    }

    /// The filters of each subscriber.
    pub fn filters(&self) -> impl Iterator<Item = Value> {
        self.subscribers.iter().map(|subscriber| self.groups[subscriber.group].by.filters(&self.names, subscriber.key))
    }

    /// Whether this subscriber gets every event.
    pub fn is_dense(&self, subscriber: usize) -> bool {
        self.groups[self.subscribers[subscriber].group].by == By::All
    }

    /// These requests were sent.
    pub fn sent(&self, requests: &Requests, first: u64, count: usize, due: Instant) {
        if self.one_producer {
            self.due.borrow_mut().note(self.newest + 1 + first, count, due);
        }
        let events = first * requests.events_each() as u64..(first + count as u64) * requests.events_each() as u64;
        let deliveries = |group: &Group, keys| u64::from(group.subscribers[group.by.key(keys)]);
        let of_event = |keys| self.groups.iter().map(|group| deliveries(group, keys)).sum::<u64>();
        self.sent.set(self.sent.get() + events.map(|event| of_event(requests.keys(event))).sum::<u64>());
    }

    /// An event was acknowledged.
    #[inline]
    pub fn acknowledged(&self, keys: Keys, sequence: u64) {
        for group in &self.groups {
            group.expected.borrow_mut()[group.by.key(keys)].add(sequence);
        }
    }

    /// Whether [`was_due`](Self::was_due) is to be told of each acknowledged event.
    pub fn asks_when_due(&self) -> bool {
        !self.one_producer
    }

    /// An event that was acknowledged had been due then.
    pub fn was_due(&self, run: &Run, sequence: u64, due: Instant) {
        self.due.borrow_mut().note(sequence, 1, due);
        for received in self.early.borrow_mut().remove(&sequence).into_iter().flatten() {
            run.took(Kind::Delivery, due, received, 1);
        }
    }

    /// What a subscriber got so far.
    pub fn got(&self, subscriber: usize) -> Got {
        self.subscribers[subscriber].got.get()
    }

    /// A subscriber received at this time events with these sequence numbers, with which it has now got so much.
    pub fn received(&self, run: &Run, subscriber: usize, sequences: &[u64], now: Instant, got: Got) {
        {
            let due = self.due.borrow();
            // Events that were due together mostly arrive together.
            for together in sequences.chunk_by(|one, next| due.of(*one) == due.of(*next)) {
                match due.of(together[0]) {
                    Some(at) => run.took(Kind::Delivery, due.epoch + at, now, together.len() as u64),
                    None => {
                        let mut early = self.early.borrow_mut();
                        together.iter().for_each(|sequence| early.entry(*sequence).or_default().push(now));
                    }
                }
            }
        }
        self.subscribers[subscriber].got.set(got);
        self.received.set(self.received.get() + sequences.len() as u64);
        run.count(Kind::Delivery, sequences.len() as u64);
        self.progress.notify_one();
        self.forget();
    }

    /// Forgets when events were due that everybody has got, once there are many.
    fn forget(&self) {
        let mut due = self.due.borrow_mut();
        if due.nanos.len() >= due.forget_at {
            let got = self.subscribers.iter().map(|subscriber| subscriber.got.get().last).min();
            due.forget(got.unwrap_or(self.newest));
        }
    }

    /// How many of at most `max` events may be sent now.
    pub fn room(&self, max: usize) -> usize {
        // In bursts, for each batch that a server handles costs something.
        if max >= self.burst && self.under_way() <= self.under_way_max { self.burst } else { 0 }
    }

    /// Waits until a subscriber has received more. Cancel safe.
    pub async fn progress(&self) {
        self.progress.notified().await;
    }

    fn under_way(&self) -> u64 {
        // More is received than was sent only by mistake, which is found at the end.
        self.sent.get().saturating_sub(self.received.get())
    }

    /// Waits until everything is received, or cannot be any more, and notes who did not get what it asked for.
    pub async fn check(&self, run: &Run) {
        let expected = |group: &Group| {
            let expected = group.expected.borrow();
            expected.iter().zip(&group.subscribers).map(|(tally, n)| tally.count * u64::from(*n)).sum::<u64>()
        };
        let of_one = |subscriber: &Subscriber| self.groups[subscriber.group].expected.borrow()[subscriber.key];
        // Who gets too much does not make up for who gets too little.
        let has_all = |subscriber: &Subscriber| subscriber.got.get().tally.count >= of_one(subscriber).count;
        let complete = || {
            let all = self.groups.iter().map(expected).sum();
            self.received.get() >= all && self.subscribers.iter().all(has_all)
        };
        while !complete() && run.ledger.borrow().is_clean() && timeout(PATIENCE, self.progress()).await.is_ok() {}
        for (number, subscriber) in self.subscribers.iter().enumerate() {
            let (expected, got) = (of_one(subscriber), subscriber.got.get().tally);
            if expected != got {
                let (expected, got) = (expected.count, got.count);
                let violation = || format!("subscriber {number} got {got} events, not the {expected} it asked for");
                run.ledger.borrow_mut().violation(violation);
            }
        }
    }
}

/// When events were due, by their sequence numbers.
struct DueTimes {
    epoch: Instant,
    /// The sequence number of the first that is known.
    first: u64,
    /// Nanoseconds since `epoch`.
    nanos: VecDeque<u64>,
    /// At so many it is worth while to forget some.
    forget_at: usize,
}

impl DueTimes {
    /// Stands where nothing is known yet.
    const UNKNOWN: u64 = u64::MAX;

    /// Times that are kept without asking whether anybody needs them: 8 MiB.
    const KEPT: usize = 1 << 20;

    /// A number so far ahead of all others is no sequence number.
    const AHEAD_MAX: usize = 1 << 24;

    fn new(newest: u64) -> Self {
        Self { epoch: Instant::now(), first: newest + 1, nanos: VecDeque::new(), forget_at: Self::KEPT }
    }

    /// Events with so many sequence numbers were due then.
    fn note(&mut self, first: u64, count: usize, due: Instant) {
        let Some(place) = first.checked_sub(self.first) else { return };
        let (place, nanos) = (place as usize, (due - self.epoch).as_nanos() as u64);
        if place >= self.nanos.len() + Self::AHEAD_MAX {
            return;
        }
        self.nanos.resize(self.nanos.len().max(place + count), Self::UNKNOWN);
        self.nanos.range_mut(place..place + count).for_each(|slot| *slot = nanos);
    }

    #[inline]
    fn of(&self, sequence: u64) -> Option<Duration> {
        let nanos = *self.nanos.get(sequence.checked_sub(self.first)? as usize)?;
        (nanos != Self::UNKNOWN).then(|| Duration::from_nanos(nanos))
    }

    /// Forgets everything up to this sequence number.
    fn forget(&mut self, last: u64) {
        let count = (last + 1).saturating_sub(self.first).min(self.nanos.len() as u64);
        self.nanos.drain(..count as usize);
        self.first += count;
        self.forget_at = Self::KEPT.max(2 * self.nanos.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Framing;

    const EVENTS: Events = Events { sessions: 3, users: 5, payload_bytes: 40 };

    #[test]
    fn due_times_are_known_until_they_are_forgotten() {
        let mut due = DueTimes::new(10);
        let at = |millis| due.epoch + Duration::from_millis(millis);
        let (one, two) = (at(1), at(2));
        due.note(13, 2, one);
        due.note(11, 1, two);
        due.note(10, 1, one);
        due.note(u64::MAX, 1, one);
        let known = |due: &DueTimes| {
            (9..16).map(|sequence| due.of(sequence).map_or(0, |at| at.as_millis())).collect::<Vec<_>>()
        };
        assert_eq!(known(&due), [0, 0, 2, 0, 1, 1, 0]);
        due.forget(13);
        assert_eq!(known(&due), [0, 0, 0, 0, 0, 1, 0]);
        due.note(15, 1, two);
        assert_eq!(known(&due), [0, 0, 0, 0, 0, 1, 2]);
        due.forget(u64::MAX - 1);
        assert_eq!(due.nanos.len(), 0);
    }

    #[test]
    fn deliveries_are_timed_whichever_comes_first_they_or_the_acknowledgement() {
        let run = Run::new(Kind::Delivery, 0);
        run.begin_to_measure();
        let deliveries = Deliveries::new(0, &EVENTS, &[(By::All, 1)], 8, false);
        let (due, tally) = (Instant::now(), Tally::default());
        deliveries.was_due(&run, 1, due);
        deliveries.received(&run, 0, &[1, 2], due + Duration::from_millis(3), Got { last: 2, tally });
        assert_eq!(run.timed(Kind::Delivery), 1);
        deliveries.was_due(&run, 2, due);
        assert_eq!((run.timed(Kind::Delivery), run.counted(Kind::Delivery)), (2, 2));
        assert!(deliveries.early.borrow().is_empty());
    }

    #[test]
    fn everybody_is_expected_to_get_what_it_asked_for() {
        let asking = By::ALL.map(|by| (by, 7));
        let deliveries = Deliveries::new(0, &EVENTS, &asking, 8, true);
        assert_eq!(deliveries.filters().count(), 28);
        assert_eq!(deliveries.filters().nth(8), Some(json!({ "session_id": "session-000001" })));
        assert!(deliveries.is_dense(6) && !deliveries.is_dense(7));
        let requests = Requests::render(&EVENTS, 1, &Framing::Plain, 0, 1);
        deliveries.sent(&requests, 0, 300, Instant::now());
        (0..300).for_each(|event| deliveries.acknowledged(requests.keys(event), event + 1));
        let expected = |group: &Group| {
            let expected = group.expected.borrow();
            let of_key = |key: usize| expected[key].count * u64::from(group.subscribers[key]);
            (0..expected.len()).map(of_key).sum::<u64>()
        };
        assert_eq!(deliveries.under_way(), deliveries.groups.iter().map(expected).sum::<u64>());
        // All seven of the first group get everything.
        assert_eq!(expected(&deliveries.groups[0]), 7 * 300);
    }
}
