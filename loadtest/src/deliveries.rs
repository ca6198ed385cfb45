//! What subscribers must receive, what is in flight to them, and what they have received.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::iter::Sum;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::answer::Delivery;
use crate::connection::PATIENCE;
use crate::due_times::DueTimes;
use crate::events::{Keys, Names};
use crate::latency::Operation;
use crate::requests::Requests;
use crate::run::Run;

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

/// Subscribers that are alike.
#[derive(Debug, Clone)]
pub struct Audience {
    /// Their filters, which take the keys in turn.
    pub by: FilterBy,
    pub count: u32,
    pub way: Way,
}

/// How they get their events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// Every one, on a WebSocket.
    #[default]
    Socket,
    /// Every one, in an event stream.
    Stream,
    /// On a WebSocket that is read slowly between two times of the run. They are neither timed nor waited for.
    Slow { from: Duration, to: Duration, bytes_per_second: u32 },
    /// The latest of each session, at this interval.
    Conflated { interval_ms: u64 },
    /// Every one, under a name of its own, confirmed as it comes.
    Named,
    /// Each goes to one of them, and is confirmed there.
    Group,
}

impl Audience {
    /// Subscribers that get every event on a WebSocket.
    pub fn new(by: FilterBy, count: u32) -> Self {
        Self { by, count, way: Way::Socket }
    }
}

/// All subscribers of a run. No other program may publish meanwhile.
pub struct Deliveries {
    /// The last event before the run.
    newest: u64,
    names: Names,
    classes: Vec<FilterClass>,
    subscribers: Vec<Subscriber>,
    /// The requests of the only producer, with one event in each: the sequence number of an event follows from the order
    /// of sending. With several producers it is known from the acknowledgement.
    of_one_producer: Option<Rc<Requests>>,
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
    /// How often subscribers have confirmed.
    pub confirmed: Cell<u64>,
}

/// The subscribers of an [`Audience`].
struct FilterClass {
    by: FilterBy,
    way: Way,
    /// How many subscribe to each key.
    subscribers: Vec<u32>,
    /// The acknowledged events of each key.
    expected: RefCell<Vec<SetDigest>>,
    /// The newest acknowledged event of each session, if only that is to be shown.
    latest: RefCell<Vec<u64>>,
}

struct Subscriber {
    class: usize,
    key: usize,
    got: Cell<Received>,
    /// The newest event of each session that was shown, if only that is to be shown.
    shown: RefCell<Vec<u64>>,
    /// Why its connection ended, if it may.
    lost: RefCell<Option<String>>,
}

/// What one subscriber has received so far.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    pub last: u64,
    pub digest: SetDigest,
}

/// A set of events, each a sequence number and what it says, reduced to their count and the sum of their hashes: enough
/// to compare two sets.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SetDigest {
    pub count: u64,
    sum: u64,
}

impl SetDigest {
    #[inline]
    pub fn add(&mut self, sequence: u64, content: u64) {
        // splitmix64: sums of neighbouring numbers alone would agree by accident.
        let mut hash = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ content;
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash ^ (hash >> 31));
    }
}

impl Sum for SetDigest {
    /// Of sets that share nothing.
    fn sum<I: Iterator<Item = Self>>(digests: I) -> Self {
        digests
            .fold(Self::default(), |all, one| Self { count: all.count + one.count, sum: all.sum.wrapping_add(one.sum) })
    }
}

impl FilterClass {
    fn is_conflated(&self) -> bool {
        matches!(self.way, Way::Conflated { .. })
    }

    /// Whether every event is waited for.
    fn is_awaited(&self) -> bool {
        !self.is_conflated() && !matches!(self.way, Way::Slow { .. })
    }

    fn is_group(&self) -> bool {
        self.way == Way::Group
    }
}

impl Deliveries {
    /// With `of_one_producer`, which publishes alone and waits for the subscribers, at most `window` events are in flight.
    pub fn new(
        newest: u64,
        names: Names,
        audiences: &[Audience],
        window: u32,
        of_one_producer: Option<Rc<Requests>>,
    ) -> Self {
        let (mut classes, mut subscribers) = (Vec::new(), Vec::new());
        // Deliveries that one event brings, on average.
        let mut each = 0.0;
        for (class, Audience { by, count, way }) in audiences.iter().enumerate() {
            let keys = by.keys(&names);
            let mut of_keys = vec![0; keys];
            let is_conflated = matches!(way, Way::Conflated { .. });
            let latest = vec![0; if is_conflated { names.sessions.len() } else { 0 }];
            for number in 0..*count as usize {
                let key = number % keys;
                // An event goes to one member of a group, however many there are.
                of_keys[key] += u32::from(*way != Way::Group || of_keys[key] == 0);
                let got = Cell::new(Received { last: newest, digest: SetDigest::default() });
                let (shown, lost) = (RefCell::new(latest.clone()), RefCell::default());
                subscribers.push(Subscriber { class, key, got, shown, lost });
            }
            let class = FilterClass {
                by: *by,
                way: *way,
                subscribers: of_keys,
                expected: RefCell::new(vec![SetDigest::default(); keys]),
                latest: RefCell::new(latest),
            };
            let of_event = f64::from(class.subscribers.iter().sum::<u32>()) / keys as f64;
            each += if class.is_awaited() { of_event } else { 0.0 };
            classes.push(class);
        }
        let burst = window.div_ceil(2);
        Self {
            newest,
            names,
            classes,
            subscribers,
            of_one_producer,
            due: RefCell::new(DueTimes::new(newest)),
            early: RefCell::default(),
            sent: Cell::new(0),
            received: Cell::new(0),
            burst: burst as usize,
            in_flight_max: (f64::from(window - burst) * each) as u64,
            progress: Notify::new(),
            confirmed: Cell::new(0),
        }
    }

    /// What each subscriber asks for, and how it gets it.
    pub fn asked(&self) -> impl Iterator<Item = (Value, Way)> {
        self.subscribers.iter().map(|subscriber| {
            let class = &self.classes[subscriber.class];
            (class.by.filters(&self.names, subscriber.key), class.way)
        })
    }

    /// The last event before the run.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Whether this subscriber gets every event.
    pub fn is_dense(&self, subscriber: usize) -> bool {
        let class = &self.classes[self.subscribers[subscriber].class];
        class.by == FilterBy::All && !class.is_conflated() && !class.is_group()
    }

    /// Notes that these requests were sent.
    pub fn sent(&self, requests: &Requests, first: u64, count: usize, due: Instant) {
        if self.of_one_producer.is_some() {
            self.due.borrow_mut().note(self.newest + 1 + first, count, due);
        }
        let events = first * requests.events_each() as u64..(first + count as u64) * requests.events_each() as u64;
        let awaited = || self.classes.iter().filter(|class| class.is_awaited());
        let of_event = |keys| awaited().map(|class| u64::from(class.subscribers[class.by.key(keys)])).sum::<u64>();
        self.sent.set(self.sent.get() + events.map(|event| of_event(requests.keys(event))).sum::<u64>());
    }

    /// Notes that an event was acknowledged.
    #[inline]
    pub fn acknowledged(&self, keys: Keys, sequence: u64) {
        for class in &self.classes {
            class.expected.borrow_mut()[class.by.key(keys)].add(sequence, keys.content);
            if let Some(latest) = class.latest.borrow_mut().get_mut(keys.session as usize) {
                *latest = sequence.max(*latest);
            }
        }
    }

    /// Whether [`was_due`](Self::was_due) must be called for each acknowledged event.
    pub fn asks_when_due(&self) -> bool {
        self.of_one_producer.is_none()
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
        let Subscriber { class, got: before, .. } = &self.subscribers[subscriber];
        before.set(got);
        self.progress.notify_one();
        if matches!(self.classes[*class].way, Way::Slow { .. }) {
            return;
        }
        {
            let due = self.due.borrow();
            // Events that were due together mostly arrive together.
            for together in sequences.chunk_by(|one, next| due.of(*one) == due.of(*next)) {
                match due.of(together[0]) {
                    Some(at) => {
                        run.took(Operation::Delivery, due.origin() + at, now, together.len() as u64);
                    }
                    None => {
                        let mut early = self.early.borrow_mut();
                        together.iter().for_each(|sequence| early.entry(*sequence).or_default().push(now));
                    }
                }
            }
        }
        run.count(Operation::Delivery, sequences.len() as u64);
        if self.classes[*class].is_awaited() {
            self.received.set(self.received.get() + sequences.len() as u64);
        }
        self.forget();
    }

    /// Notes that a subscriber was shown an event as the latest of its session. Whether it says what was sent.
    pub fn shown(&self, subscriber: usize, Delivery { sequence, content }: Delivery) -> bool {
        let requests = self.of_one_producer.as_ref().expect("only such runs have dashboards");
        let keys = requests.keys(sequence.wrapping_sub(self.newest + 1));
        self.subscribers[subscriber].shown.borrow_mut()[keys.session as usize] = sequence;
        keys.content == content
    }

    /// Notes why the connection of a subscriber ended.
    pub fn lost(&self, subscriber: usize, why: String) {
        self.subscribers[subscriber].lost.replace(Some(why));
        self.progress.notify_one();
    }

    /// Those that were cut off: how many events each had got, and why.
    pub fn cut_off(&self) -> Vec<String> {
        self.subscribers.iter().filter_map(|subscriber| subscriber.lost.borrow().clone()).collect()
    }

    /// How many deliveries of acknowledged events were spared because only the latest was shown.
    pub fn conflated(&self) -> u64 {
        let of_one = |subscriber: &Subscriber| {
            let class = &self.classes[subscriber.class];
            let expected = class.expected.borrow()[subscriber.key].count;
            if class.is_conflated() { expected - subscriber.got.get().digest.count.min(expected) } else { 0 }
        };
        self.subscribers.iter().map(of_one).sum()
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
    /// events. Slow ones that were cut off are excused if `may_be_cut_off`.
    pub async fn check(&self, run: &Run, may_be_cut_off: bool) {
        let of_one = |subscriber: &Subscriber| self.classes[subscriber.class].expected.borrow()[subscriber.key];
        // What the members of a group got counts as that of the first.
        let got = |subscriber: &Subscriber| match self.classes[subscriber.class].is_group() {
            true => self
                .subscribers
                .iter()
                .filter(|other| other.class == subscriber.class)
                .map(|s| s.got.get().digest)
                .sum(),
            false => subscriber.got.get().digest,
        };
        let is_judged = |number: usize| {
            let class = self.subscribers[number].class;
            !self.classes[class].is_group() || number == 0 || self.subscribers[number - 1].class != class
        };
        let judged = || self.subscribers.iter().enumerate().filter(|(number, _)| is_judged(*number));
        let shows_latest = |subscriber: &Subscriber| {
            let class = &self.classes[subscriber.class];
            *subscriber.shown.borrow() == *class.latest.borrow()
        };
        let is_complete = |subscriber: &Subscriber| match self.classes[subscriber.class].is_conflated() {
            true => shows_latest(subscriber),
            // Each is looked at: one that gets too many events does not make up for one that gets too few.
            false => got(subscriber).count >= of_one(subscriber).count || subscriber.lost.borrow().is_some(),
        };
        let is_clean = || run.verification.borrow().is_clean();
        // Those that were complete once remain so: nothing more is published.
        let mut missing = judged().map(|(_, subscriber)| subscriber).collect::<Vec<_>>();
        loop {
            missing.retain(|subscriber| !is_complete(subscriber));
            if missing.is_empty() || !is_clean() || timeout(PATIENCE, self.progress()).await.is_err() {
                break;
            }
        }
        for (number, subscriber) in judged() {
            let (expected, got, last) = (of_one(subscriber), got(subscriber), subscriber.got.get().last);
            if self.classes[subscriber.class].is_conflated() {
                if !shows_latest(subscriber) {
                    run.violation(|| format!("subscriber {number} was not shown the last event of every session"));
                }
            } else if let Some(why) = &*subscriber.lost.borrow() {
                if !may_be_cut_off {
                    run.violation(|| format!("subscriber {number} was cut off after event {last}: {why}"));
                }
            } else if expected.count != got.count {
                let (expected, got) = (expected.count, got.count);
                run.violation(|| format!("subscriber {number} got {got} events, not the {expected} it asked for"));
            } else if expected != got {
                run.violation(|| format!("subscriber {number} got {} events, not as they were sent", expected.count));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Events, PayloadBytes};
    use crate::requests::Framing;

    const EVENTS: Events =
        Events { sessions: 3, users: 5, skew: 0.0, payload_bytes: PayloadBytes(Some(40)), idempotency_keys: false };

    #[test]
    fn deliveries_are_timed_whichever_comes_first_they_or_the_acknowledgement() {
        let (run, due) = (Run::new(Operation::Delivery, 0), Instant::now());
        run.begin_to_measure(due, Duration::from_secs(1));
        let deliveries = Deliveries::new(0, EVENTS.names(), &[Audience::new(FilterBy::All, 1)], 8, None);
        let digest = SetDigest::default();
        deliveries.was_due(&run, 1, due);
        deliveries.received(&run, 0, &[1, 2], due + Duration::from_millis(3), Received { last: 2, digest });
        assert_eq!(run.timed(Operation::Delivery), 1);
        deliveries.was_due(&run, 2, due);
        assert_eq!((run.timed(Operation::Delivery), run.counted(Operation::Delivery)), (2, 2));
        assert!(deliveries.early.borrow().is_empty());
        // What was due after the measured interval is not timed.
        deliveries.was_due(&run, 3, due + Duration::from_secs(1));
        deliveries.received(&run, 0, &[3], due + Duration::from_secs(2), Received { last: 3, digest });
        assert_eq!(run.timed(Operation::Delivery), 2);
    }

    #[test]
    fn each_subscriber_is_expected_to_get_the_events_of_its_filter() {
        let audiences = FilterBy::ALL.map(|by| Audience::new(by, 7));
        let requests = Rc::new(Requests::render(&EVENTS, 1, &Framing::WebSocket, 0, 1));
        let deliveries = Deliveries::new(0, EVENTS.names(), &audiences, 8, Some(requests.clone()));
        assert_eq!(deliveries.asked().count(), 28);
        assert_eq!(deliveries.asked().nth(8), Some((json!({ "session_id": "session-000001" }), Way::Socket)));
        assert!(deliveries.is_dense(6) && !deliveries.is_dense(7));
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

    #[test]
    fn digests_of_different_sets_differ() {
        let digest = |sequences: &[u64]| {
            let mut digest = SetDigest::default();
            sequences.iter().for_each(|s| digest.add(*s, 7));
            digest
        };
        assert_eq!(digest(&[1, 2, 3]), digest(&[3, 1, 2]));
        assert_ne!(digest(&[1, 4]), digest(&[2, 3]));
        assert_ne!(digest(&[1]), digest(&[1, 1]));
        let mut altered = SetDigest::default();
        altered.add(1, 8);
        assert_ne!(digest(&[1]), altered);
    }
}
