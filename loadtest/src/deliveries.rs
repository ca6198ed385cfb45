//! What subscribers must receive, what is in flight to them, and what they have received.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::digest::SetDigest;
use crate::due_times::DueTimes;
use crate::events::{Events, Keys, Names};
use crate::latency::Operation;
use crate::requests::Requests;
use crate::run::{PATIENCE, Run};

/// The filter of a subscriber: everything, or one session, user or type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FilterBy {
    All,
    Session,
    User,
    Type,
}

impl FilterBy {
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

    /// The filters of a subscriber of this key.
    fn filters(self, names: &Names, key: usize) -> Value {
        match self {
            Self::All => json!({}),
            Self::Session => json!({ "session_id": names.sessions[key] }),
            Self::User => json!({ "user_id": names.users[key] }),
            Self::Type => json!({ "event_types": [names.types[key]] }),
        }
    }
}

/// All subscribers of a run. No other program may publish meanwhile.
pub struct Deliveries {
    /// The last event before the run.
    newest: u64,
    names: Names,
    classes: Vec<FilterClass>,
    subscribers: Vec<Subscriber>,
    /// Whether there is one producer with one event in each request, so that the sequence number of an event follows
    /// from the order of sending. Otherwise it is known from the acknowledgement.
    one_producer: bool,
    due: RefCell<DueTimes>,
    /// When events were received that are not acknowledged yet, by sequence number.
    early: RefCell<HashMap<u64, Vec<Instant>>>,
    /// Deliveries that the events sent so far will bring.
    sent: Cell<u64>,
    received: Cell<u64>,
    /// Events of a burst: half of what may be in flight, so that one half is received while the other is stored.
    burst: usize,
    /// The next burst may be sent once no more deliveries than this are in flight.
    in_flight_max: u64,
    progress: Notify,
}

/// The subscribers whose filters are of the same kind.
struct FilterClass {
    by: FilterBy,
    /// How many subscribe to each key.
    subscribers: Vec<u32>,
    /// The acknowledged events of each key.
    expected: RefCell<Vec<SetDigest>>,
}

struct Subscriber {
    class: usize,
    key: usize,
    got: Cell<Received>,
}

/// What one subscriber has received so far.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    pub last: u64,
    pub digest: SetDigest,
}

impl Deliveries {
    /// This many subscribers of each kind of filter, which take the keys in turn. If the producer waits for them, at
    /// most `window` events are in flight.
    pub fn new(newest: u64, events: &Events, asking: &[(FilterBy, u32)], window: u32, one_producer: bool) -> Self {
        Self::with_names(newest, events.names(), asking, window, one_producer)
    }

    /// The same for events with other keys.
    pub fn with_names(newest: u64, names: Names, asking: &[(FilterBy, u32)], window: u32, one_producer: bool) -> Self {
        let (mut classes, mut subscribers) = (Vec::new(), Vec::new());
        // Deliveries that one event brings, on average.
        let mut each = 0.0;
        for (class, (by, count)) in asking.iter().enumerate() {
            let keys = by.keys(&names);
            let mut of_keys = vec![0; keys];
            for number in 0..*count as usize {
                let key = number % keys;
                of_keys[key] += 1;
                let got = Cell::new(Received { last: newest, digest: SetDigest::default() });
                subscribers.push(Subscriber { class, key, got });
            }
            each += f64::from(*count) / keys as f64;
            classes.push(FilterClass {
                by: *by,
                subscribers: of_keys,
                expected: RefCell::new(vec![SetDigest::default(); keys]),
            });
        }
        let burst = window.div_ceil(2);
        Self {
            newest,
            names,
            classes,
            subscribers,
            one_producer,
            due: RefCell::new(DueTimes::new(newest)),
            early: RefCell::default(),
            sent: Cell::new(0),
            received: Cell::new(0),
            burst: burst as usize,
            in_flight_max: (f64::from(window - burst) * each) as u64,
            progress: Notify::new(),
        }
    }

    /// The filters of each subscriber.
    pub fn filters(&self) -> impl Iterator<Item = Value> {
        self.subscribers.iter().map(|subscriber| self.classes[subscriber.class].by.filters(&self.names, subscriber.key))
    }

    /// Whether this subscriber gets every event.
    pub fn is_dense(&self, subscriber: usize) -> bool {
        self.classes[self.subscribers[subscriber].class].by == FilterBy::All
    }

    /// Notes that these requests were sent.
    pub fn sent(&self, requests: &Requests, first: u64, count: usize, due: Instant) {
        if self.one_producer {
            self.due.borrow_mut().note(self.newest + 1 + first, count, due);
        }
        let events = first * requests.events_each() as u64..(first + count as u64) * requests.events_each() as u64;
        let deliveries = |class: &FilterClass, keys| u64::from(class.subscribers[class.by.key(keys)]);
        let of_event = |keys| self.classes.iter().map(|class| deliveries(class, keys)).sum::<u64>();
        self.sent.set(self.sent.get() + events.map(|event| of_event(requests.keys(event))).sum::<u64>());
    }

    /// Notes that an event was acknowledged.
    #[inline]
    pub fn acknowledged(&self, keys: Keys, sequence: u64) {
        for class in &self.classes {
            class.expected.borrow_mut()[class.by.key(keys)].add(sequence);
        }
    }

    /// Whether [`was_due`](Self::was_due) must be called for each acknowledged event.
    pub fn asks_when_due(&self) -> bool {
        !self.one_producer
    }

    /// Notes when an acknowledged event had been due.
    pub fn was_due(&self, run: &Run, sequence: u64, due: Instant) {
        self.due.borrow_mut().note(sequence, 1, due);
        for received in self.early.borrow_mut().remove(&sequence).into_iter().flatten() {
            run.took(Operation::Delivery, due, received, 1);
        }
    }

    /// What a subscriber has received so far.
    pub fn received_by(&self, subscriber: usize) -> Received {
        self.subscribers[subscriber].got.get()
    }

    /// Notes that a subscriber received these events now, and what it has received with them in all.
    pub fn received(&self, run: &Run, subscriber: usize, sequences: &[u64], now: Instant, got: Received) {
        {
            let due = self.due.borrow();
            // Events that were due together mostly arrive together.
            for together in sequences.chunk_by(|one, next| due.of(*one) == due.of(*next)) {
                match due.of(together[0]) {
                    Some(at) => run.took(Operation::Delivery, due.origin() + at, now, together.len() as u64),
                    None => {
                        let mut early = self.early.borrow_mut();
                        together.iter().for_each(|sequence| early.entry(*sequence).or_default().push(now));
                    }
                }
            }
        }
        self.subscribers[subscriber].got.set(got);
        self.received.set(self.received.get() + sequences.len() as u64);
        run.count(Operation::Delivery, sequences.len() as u64);
        self.progress.notify_one();
        self.forget();
    }

    /// Forgets the due times of events that all subscribers have received, once there are many.
    fn forget(&self) {
        let mut due = self.due.borrow_mut();
        if due.is_crowded() {
            let got = self.subscribers.iter().map(|subscriber| subscriber.got.get().last).min();
            due.forget(got.unwrap_or(self.newest));
        }
    }

    /// How many of at most `max` events may be sent now.
    pub fn room(&self, max: usize) -> usize {
        // Sent in bursts, because each batch costs a server something.
        if max >= self.burst && self.in_flight() <= self.in_flight_max { self.burst } else { 0 }
    }

    /// Waits until a subscriber has received more. Cancel safe.
    pub async fn progress(&self) {
        self.progress.notified().await;
    }

    fn in_flight(&self) -> u64 {
        // More is received than sent only if the server repeats events, which the check at the end finds.
        self.sent.get().saturating_sub(self.received.get())
    }

    /// Waits until everything is received, or nothing arrives for [`PATIENCE`], and notes each subscriber that lacks
    /// events.
    pub async fn check(&self, run: &Run) {
        let expected = |class: &FilterClass| {
            let expected = class.expected.borrow();
            expected.iter().zip(&class.subscribers).map(|(digest, n)| digest.count * u64::from(*n)).sum::<u64>()
        };
        let of_one = |subscriber: &Subscriber| self.classes[subscriber.class].expected.borrow()[subscriber.key];
        // Each subscriber is looked at: one that gets too many events does not make up for one that gets too few.
        let has_all = |subscriber: &Subscriber| subscriber.got.get().digest.count >= of_one(subscriber).count;
        let complete = || {
            let all = self.classes.iter().map(expected).sum();
            self.received.get() >= all && self.subscribers.iter().all(has_all)
        };
        while !complete() && run.verification.borrow().is_clean() && timeout(PATIENCE, self.progress()).await.is_ok() {}
        for (number, subscriber) in self.subscribers.iter().enumerate() {
            let (expected, got) = (of_one(subscriber), subscriber.got.get().digest);
            if expected != got {
                let (expected, got) = (expected.count, got.count);
                run.violation(|| format!("subscriber {number} got {got} events, not the {expected} it asked for"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::requests::Framing;

    const EVENTS: Events = Events { sessions: 3, users: 5, payload_bytes: 40 };

    #[test]
    fn deliveries_are_timed_whichever_comes_first_they_or_the_acknowledgement() {
        let run = Run::new(Operation::Delivery, 0);
        run.begin_to_measure();
        let deliveries = Deliveries::new(0, &EVENTS, &[(FilterBy::All, 1)], 8, false);
        let (due, digest) = (Instant::now(), SetDigest::default());
        deliveries.was_due(&run, 1, due);
        deliveries.received(&run, 0, &[1, 2], due + Duration::from_millis(3), Received { last: 2, digest });
        assert_eq!(run.timed(Operation::Delivery), 1);
        deliveries.was_due(&run, 2, due);
        assert_eq!((run.timed(Operation::Delivery), run.counted(Operation::Delivery)), (2, 2));
        assert!(deliveries.early.borrow().is_empty());
    }

    #[test]
    fn each_subscriber_is_expected_to_get_the_events_of_its_filter() {
        let asking = FilterBy::ALL.map(|by| (by, 7));
        let deliveries = Deliveries::new(0, &EVENTS, &asking, 8, true);
        assert_eq!(deliveries.filters().count(), 28);
        assert_eq!(deliveries.filters().nth(8), Some(json!({ "session_id": "session-000001" })));
        assert!(deliveries.is_dense(6) && !deliveries.is_dense(7));
        let requests = Requests::render(&EVENTS, 1, &Framing::Plain, 0, 1);
        deliveries.sent(&requests, 0, 300, Instant::now());
        (0..300).for_each(|event| deliveries.acknowledged(requests.keys(event), event + 1));
        let expected = |class: &FilterClass| {
            let expected = class.expected.borrow();
            let of_key = |key: usize| expected[key].count * u64::from(class.subscribers[key]);
            (0..expected.len()).map(of_key).sum::<u64>()
        };
        assert_eq!(deliveries.in_flight(), deliveries.classes.iter().map(expected).sum::<u64>());
        // All seven of the first class get everything.
        assert_eq!(expected(&deliveries.classes[0]), 7 * 300);
    }
}
