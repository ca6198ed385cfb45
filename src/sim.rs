//! The pipeline on one thread, from a seed. The files are real; the writer, the sealer, the checkpointer,
//! the fan-out and the tasks of subscribers are stepped by hand, so that a seed picks one order of
//! appends, commits, deliveries, catch-up, overflow, deletions, full disks and crashes, the same each time.
//!
//! Beside it runs a model, a list of events and a few rules, and every step is held against it.
//! `SIM_SEED=123` replays one seed, `SIM_SEEDS=3000` runs that many.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::config::{Config, Durability};
use crate::event::{Columns, Event, EventId, EventTypes, Field, Filter, Seq, Timestamp, TimestampText};
use crate::feed::{Chunk, Feed, PAGE_BYTES, Page, PageRequest, Step};
use crate::hub::{FanOut, Hub};
use crate::store::{Order, Parts, Query, Receipt, Store, Stored, TypeStats};
use crate::wire::batch::{Commit, Run};
use crate::wire::{Batch, Committed, Failure, frame};

/// Seeds of an ordinary run of the tests: some 5 seconds.
const SEEDS: u64 = 300;
const ACTIONS_PER_SEED: usize = 300;
/// A world that is left alone comes to rest within so many rounds.
const ROUNDS_MAX: usize = 10_000;

const TYPES: [&str; 3] = ["quiz_started", "timer_tick", "answer_submitted"];
const SOURCES: [&str; 2] = ["quiz-engine", "timer"];
const SESSIONS: [&str; 3] = ["class-a", "class-b", "\u{fc}\"c"];
const USERS: [&str; 4] = ["1", "2", "3", "4"];
const PADDING_BYTES_MAX: u64 = 600;
const EVENT_BYTES_MAX: usize = PADDING_BYTES_MAX as usize + 300;
const SUBSCRIBERS_MAX: usize = 6;

#[test]
fn promises_are_kept_whatever_the_order() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..ACTIONS_PER_SEED {
            world = world.act();
        }
        world.then(World::rest).crash().rest();
    }
}

type Action = fn(World) -> World;

/// What may happen, and how often; each seed multiplies the numbers by its own temper.
const ACTIONS: [(&str, u64, Action); 16] = [
    ("append", 24, |world| world.then(World::append)),
    ("write", 16, |world| world.then(World::write)),
    ("fan out", 12, |world| world.then(World::fan_out)),
    ("step", 50, |world| world.then(|w| w.any_subscriber().map(|i| w.step(i)))),
    ("seal", 4, |world| world.then(|w| w.server.parts.seal())),
    ("checkpoint", 4, |world| world.then(|w| w.server.parts.checkpoint())),
    ("subscribe", 3, |world| world.then(World::subscribe)),
    ("change filter", 3, |world| world.then(World::change_filter)),
    ("unsubscribe", 1, |world| world.then(|w| w.any_subscriber().map(|i| w.subscribers.swap_remove(i)))),
    ("query", 6, |world| world.then(World::query)),
    ("delete", 1, |world| world.then(World::delete)),
    ("disk", 1, |world| world.then(World::limit_disk)),
    ("clock", 1, |world| world.then(|w| w.server.parts.step_clock_back(w.random.below(10_000_000_000) as i64))),
    ("rest", 1, |world| world.then(World::rest)),
    ("crash", 1, World::crash),
    ("restart", 1, World::restart),
];

/// An append that waits for room in the queue.
type Waiting = Pin<Box<dyn Future<Output = ()>>>;

struct World {
    log: Log,
    random: Random,
    weights: [u64; ACTIONS.len()],
    folder: TempDir,
    crashes: usize,
    config: Config,
    server: Server,
    /// A producer that waits for room in the queue, and what it has in hand.
    blocked: Option<(Waiting, Unanswered)>,
    model: Model,
    subscribers: Vec<Subscriber>,
}

struct Server {
    store: Store,
    parts: Parts,
    hub: Arc<Hub>,
    fan_out: FanOut,
    fanned_out: Seq,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let weights = ACTIONS.map(|(name, weight, _)| match name {
            "append" | "write" | "step" => weight * random.pick(&[1, 2, 3]),
            _ => weight * random.pick(&[0, 1, 1, 4]),
        });
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let config = Config {
            database_path: folder.path().join("events.db"),
            durability: Durability::Off,
            free_space_min_bytes: 0,
            max_queue_size: 3 + random.below(40) as usize,
            max_queue_bytes: (4 + random.below(40) as usize) * 1024,
            max_subscriber_bytes: 300 + random.below(2_500) as usize,
            ..Config::default()
        };
        let server = Server::open(&config);
        let (log, model, subscribers) = (Log { seed, actions: Vec::new() }, Model::default(), Vec::new());
        Self { log, random, weights, folder, crashes: 0, config, server, blocked: None, model, subscribers }
    }

    fn then<T>(mut self, act: impl FnOnce(&mut Self) -> T) -> Self {
        act(&mut self);
        self
    }

    fn act(mut self) -> Self {
        let mut left = self.random.below(self.weights.iter().sum());
        let chosen = self.weights.iter().position(|weight| left.checked_sub(*weight).map(|rest| left = rest).is_none());
        let (name, _, act) = ACTIONS[chosen.expect("below the sum")];
        self.log.actions.push(format!("{name} ({})", self.model.last().0));
        let world = act(self);
        assert_eq!(world.server.store.committed(), world.model.last());
        assert!(world.server.store.queue_len() <= world.config.max_queue_size);
        world
    }

    /// Hands in a batch, or looks whether there is room for the one that waits. Returns whether one went in.
    fn append(&mut self) -> bool {
        if let Some((mut appending, batch)) = self.blocked.take() {
            let has_room = appending.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            match has_room {
                true => self.model.unanswered.push_back(batch),
                false => self.blocked = Some((appending, batch)),
            }
            return has_room;
        }
        let events: Vec<ModelEvent> = (0..self.random.below(6)).map(|_| self.event()).collect();
        let mut batch = Batch::default();
        events.iter().for_each(|event| event.push_to(&mut batch, &self.config.event_types));
        let (receipt, answer) = Receipt::new();
        let cost = (events.len().clamp(1, self.config.max_queue_size), batch.bytes().div_ceil(1024).max(1));
        let unanswered = Unanswered::new(events, cost, answer, &self.server);
        if self.random.one_in(4) {
            let store = self.server.store.clone();
            self.blocked = Some((Box::pin(async move { store.append(batch, receipt).await }), unanswered));
            return self.append();
        }
        let sum = self.model.unanswered.iter().fold(cost, |sum, of| (sum.0 + of.cost.0, sum.1 + of.cost.1));
        let fits = sum.0 <= self.config.max_queue_size && sum.1 <= self.config.max_queue_bytes / 1024;
        let expected = if fits { Ok(()) } else { Err(Failure::QueueFull) };
        assert_eq!(self.server.store.try_append(batch, receipt), expected);
        match fits {
            true => self.model.unanswered.push_back(unanswered),
            false => unanswered.must_be_unavailable(),
        }
        fits
    }

    fn event(&mut self) -> ModelEvent {
        let random = &mut self.random;
        let padding = if random.one_in(4) { random.below(PADDING_BYTES_MAX) } else { 0 };
        ModelEvent {
            event_type: random.pick(&TYPES),
            source: random.pick(&SOURCES),
            session_id: (!random.one_in(4)).then(|| random.pick(&SESSIONS)),
            user_id: (!random.one_in(4)).then(|| random.pick(&USERS)),
            payload: format!(r#"{{"n":{},"padding":"{}"}}"#, random.below(1_000), "x".repeat(padding as usize)),
            time: Timestamp::default(),
        }
    }

    fn write(&mut self) -> bool {
        let (last, waiting) = (self.model.last(), self.server.parts.commits.len());
        let wrote = self.server.parts.write();
        self.model.settle(&self.server.store, waiting, last);
        let is_due = self.model.last() > last && self.server.store.audience().is_there();
        let handed_on = self.server.parts.commits.len() - waiting;
        assert_eq!(handed_on, usize::from(is_due), "commits go to whoever follows, and to nobody else");
        wrote
    }

    fn fan_out(&mut self) -> bool {
        let Server { store, parts, hub, fan_out, fanned_out } = &mut self.server;
        let round = parts.commits.try_iter().take(1 + self.random.below(3) as usize).collect::<Vec<_>>();
        for commit in &round {
            for batch in &commit.batches {
                // Commits without an audience are left out as a whole.
                let follows = batch.first() == fanned_out.next() || batch.first() == commit.batches[0].first();
                assert!(follows && batch.first() > *fanned_out && !batch.is_empty(), "out of order");
                *fanned_out = batch.first().plus(batch.len()).prev();
            }
            assert!(commit.through == *fanned_out && *fanned_out <= store.committed());
        }
        hub.deliver(&round, fan_out);
        !round.is_empty()
    }

    fn delete(&mut self) {
        let before = (!self.random.one_in(4)).then(|| self.time());
        let store = self.server.store.clone();
        let mut answer: Pin<Box<dyn Future<Output = _>>> =
            Box::pin(async move { store.delete(before, Filter::default()).await });
        assert!(answer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        self.model.deletions.push_back(Deletion { before, asked: self.model.last(), answer });
    }

    fn limit_disk(&mut self) {
        self.model.disk_had_an_end = true;
        self.server.parts.limit_disk((!self.random.one_in(3)).then(|| self.random.below(3)));
    }

    fn any_subscriber(&mut self) -> Option<usize> {
        let count = self.subscribers.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    fn subscribe(&mut self) {
        if self.subscribers.len() == SUBSCRIBERS_MAX {
            return;
        }
        let (store, filter, last) = (self.server.store.clone(), self.filter(), self.model.last());
        let (start, expected) = match self.random.below(4) {
            0 => (store.committed(), last),
            1 => {
                let seq = Seq(self.random.below(last.0 + 3));
                (
                    store.position(&seq.id().to_string()).expect("read").expect("an id").min(store.committed()),
                    seq.min(last),
                )
            }
            2 => {
                let count = self.random.below(40) as usize;
                let earliest = self.model.kept(&filter).rev().take(count).last();
                (store.before_last(&filter, count).expect("read"), earliest.map_or(last, |(seq, _)| seq.prev()))
            }
            _ => {
                let (time, any) = (self.time(), Filter::default());
                let later = self.model.kept(&any).find(|(_, event)| event.time > time);
                (store.before_time(time).expect("read"), later.map_or(last, |(seq, _)| seq.prev()))
            }
        };
        assert_eq!(start, expected);
        self.connect(filter, start);
    }

    fn connect(&mut self, filter: Filter, start: Seq) {
        self.subscribers.push(Subscriber {
            feed: Feed::new(self.server.store.clone(), self.server.hub.clone(), filter.clone(), start),
            filter,
            changes: VecDeque::new(),
            asked: start,
            seen: start,
            received: start,
            chunk_bytes_max: self.config.max_subscriber_bytes.max(PAGE_BYTES + EVENT_BYTES_MAX),
            reading: None,
            bell: Arc::new(Bell(AtomicBool::new(true))),
        });
    }

    fn change_filter(&mut self) {
        let Some(i) = self.any_subscriber() else { return };
        for _ in 0..=self.random.below(3) {
            let filter = self.filter();
            let subscriber = &mut self.subscribers[i];
            // The message was read some time ago, but after those before it.
            subscriber.asked.0 += self.random.below(self.model.last().0 - subscriber.asked.0 + 1);
            let after = subscriber.changes.back().map_or(subscriber.feed.position, |(_, after)| *after);
            subscriber.changes.push_back((filter.clone(), after.max(subscriber.asked)));
            subscriber.feed.change_filter(filter, subscriber.asked);
            subscriber.is_called_away();
        }
    }

    /// A step of a subscriber's task, unless it sleeps. Returns whether there was one.
    fn step(&mut self, i: usize) -> bool {
        let subscriber = &mut self.subscribers[i];
        let is_awake = subscriber.bell.0.load(Ordering::SeqCst);
        if is_awake {
            if self.random.one_in(16) {
                subscriber.is_called_away();
            }
            assert!(!subscriber.step(&self.server.store, &self.model), "the stream ended before the server did");
        }
        is_awake
    }

    /// Lets everything come to rest; then everybody has everything.
    fn rest(&mut self) {
        let mut rounds = 0;
        let mut is_busy = true;
        while is_busy {
            rounds += 1;
            assert!(rounds < ROUNDS_MAX, "it never comes to rest");
            is_busy = self.blocked.is_some() && self.append();
            is_busy |= self.write() | self.server.parts.seal() | self.server.parts.checkpoint() | self.fan_out();
            (0..self.subscribers.len()).for_each(|i| is_busy |= self.step(i));
        }
        assert!(self.blocked.is_none() && self.model.unanswered.is_empty() && self.model.deletions.is_empty());
        assert_eq!(self.server.store.queue_len(), 0);
        self.subscribers.iter().for_each(|subscriber| subscriber.must_have_everything(&self.model));
        self.check_all();
        (0..3).for_each(|_| self.query());
    }

    /// Holds everything that is stored, and what is told about it, against the model.
    fn check_all(&mut self) {
        self.check(&Query::default(), usize::MAX);
        let now = self.time();
        let stats = self.server.store.stats(now).expect("read");
        let count = |filter: &Filter| self.model.kept(filter).count() as u64;
        let by_type = TYPES.into_iter().filter_map(|event_type| {
            let filter = Filter::default().with_types([event_type]);
            let last_seen = self.model.kept(&filter).last()?.1.time.to_string();
            Some(TypeStats { event_type: event_type.to_owned(), count: count(&filter), last_seen })
        });
        let mut by_type: Vec<_> = by_type.collect();
        by_type.sort_by(|a, b| b.count.cmp(&a.count).then(a.event_type.cmp(&b.event_type)));
        assert_eq!((stats.total_events, stats.by_type), (count(&Filter::default()), by_type));
        let is_recent = |(_, event): &(Seq, &ModelEvent)| event.time.0 > now.0 - 3_600_000_000;
        assert_eq!(stats.events_last_hour, self.model.kept(&Filter::default()).filter(is_recent).count() as u64);
    }

    fn query(&mut self) {
        let end = self.model.last().0 + 3;
        let query = Query {
            filter: self.filter(),
            after: Seq(if self.random.one_in(2) { self.random.below(end) } else { 0 }),
            before: self.random.one_in(3).then(|| Seq(self.random.below(end))),
            since: self.random.one_in(3).then(|| self.time()),
            until: self.random.one_in(3).then(|| self.time()),
            order: self.random.pick(&[Order::OldestFirst, Order::NewestFirst]),
        };
        let limit = if self.random.one_in(2) { usize::MAX } else { 1 + self.random.below(20) as usize };
        self.check(&query, limit);

        let (seq, any) = (Seq(self.random.below(end)), Filter::default());
        let expected = self.model.kept(&any).find(|(of, _)| *of == seq);
        let found = self.server.store.event(&seq.id().to_string()).expect("read");
        assert_eq!(found, expected.map(|(seq, event)| event.json(seq).into_bytes()));
    }

    /// Holds what the store finds against a filter over the model's list.
    fn check(&self, query: &Query, limit: usize) {
        let mut found = Vec::new();
        let reached = self.server.store.scan(query, |event| {
            let mut json = Vec::new();
            event.write_json(&mut json, &mut TimestampText::default());
            found.push((event.seq, event.time, String::from_utf8(json).expect("UTF-8")));
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let passing = self.model.kept(&query.filter).filter(|(seq, event)| {
            *seq > query.after
                && query.before.is_none_or(|before| *seq < before)
                && query.since.is_none_or(|since| event.time > since)
                && query.until.is_none_or(|until| event.time < until)
        });
        let mut expected: Vec<_> = passing.map(|(seq, event)| (seq, event.time, event.json(seq))).collect();
        if query.order == Order::NewestFirst {
            expected.reverse();
        }
        expected.truncate(limit);
        assert_eq!(found, expected, "{query:?} limit {limit}");
        assert_eq!(
            reached.expect("read"),
            (found.len() == limit).then(|| found[limit - 1].0),
            "{query:?} limit {limit}"
        );
    }

    /// Ends at once; what is left is what the files hold at this moment.
    fn crash(mut self) -> Self {
        self.crashes += 1;
        let after = self.folder.path().join(format!("events-{}.db", self.crashes));
        let beside = |path: &Path, end| format!("{}{end}", path.display());
        for end in ["", "-wal"] {
            let copied = std::fs::copy(beside(&self.config.database_path, end), beside(&after, end));
            assert!(copied.is_ok() || end == "-wal", "{copied:?}");
        }
        self.config.database_path = after;
        let clients = Subscriber::disconnect(self.subscribers);
        drop((self.server, self.blocked));
        self.model.abandon();
        let (server, blocked, subscribers) = (Server::open(&self.config), None, Vec::new());
        Self { server, blocked, subscribers, ..self }.reconnect(clients)
    }

    /// Ends in order: nothing more comes in, what was handed in is stored, and everybody gets everything.
    fn restart(mut self) -> Self {
        while self.fan_out() {}
        self.server.store.close();
        let Server { store, parts, hub, .. } = self.server;
        let commits = parts.finish();
        self.model.is_ending = true;
        self.model.settle(&store, commits.len(), Seq::MAX);
        assert!(self.model.unanswered.is_empty(), "somebody was left without an answer");
        hub.run(&commits);
        for subscriber in &mut self.subscribers {
            assert!(subscriber.bell.0.load(Ordering::SeqCst), "nobody told it that the stream is over");
            let ended = (0..ROUNDS_MAX).any(|_| subscriber.step(&store, &self.model));
            assert!(ended, "its stream never ends");
            subscriber.must_have_everything(&self.model);
        }
        let clients = Subscriber::disconnect(self.subscribers);
        drop((store, hub, self.blocked));
        self.model.abandon();
        let (server, blocked, subscribers) = (Server::open(&self.config), None, Vec::new());
        Self { server, blocked, subscribers, ..self }.reconnect(clients)
    }

    fn reconnect(mut self, clients: Vec<(Filter, Seq)>) -> Self {
        assert_eq!(self.server.store.committed(), self.model.last(), "numbers are lost or used again");
        self.check_all();
        clients.into_iter().for_each(|(filter, received)| self.connect(filter, received));
        self
    }

    fn filter(&mut self) -> Filter {
        let random = &mut self.random;
        if random.one_in(4) {
            return Filter::default();
        }
        let types: Vec<&str> = TYPES.into_iter().chain(["error_occurred"]).filter(|_| random.one_in(4)).collect();
        let mut filter = Filter::default().with_types(types);
        for (field, values) in [(Field::Source, &SOURCES[..]), (Field::Session, &SESSIONS), (Field::User, &USERS)] {
            let chosen = values.iter().filter(|_| random.one_in(3)).copied().collect::<Vec<_>>();
            filter = if random.one_in(3) { filter.with(field, chosen) } else { filter };
        }
        filter
    }

    /// A time at, beside or far from that of an event.
    fn time(&mut self) -> Timestamp {
        let chosen = self.random.below(self.model.last().0 + 1) as usize;
        let time = self.model.events.get(chosen).map_or(Timestamp::now(), |event| event.time);
        Timestamp(time.0 + self.random.pick(&[-4_000_000_000, -1, 0, 1, 4_000_000_000]))
    }
}

impl Server {
    fn open(config: &Config) -> Self {
        let (store, parts) = Store::open_parts(config).expect("open");
        let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
        Self { fanned_out: store.committed(), store, parts, hub, fan_out: FanOut::default() }
    }
}

/// What must be true.
#[derive(Default)]
struct Model {
    /// Every acknowledged event; the first has number 1.
    events: Vec<ModelEvent>,
    /// So many of them, the oldest, are deleted.
    deleted: u64,
    /// What was handed in and not answered, in that order.
    unanswered: VecDeque<Unanswered>,
    deletions: VecDeque<Deletion>,
    /// So many of the deleted ones were told of to whoever asked for it.
    told_of: u64,
    /// The store may refuse what it has no room for.
    disk_had_an_end: bool,
    /// The store may break off deletions.
    is_ending: bool,
}

struct ModelEvent {
    event_type: &'static str,
    source: &'static str,
    session_id: Option<&'static str>,
    user_id: Option<&'static str>,
    payload: String,
    time: Timestamp,
}

struct Deletion {
    before: Option<Timestamp>,
    /// The last event when it was asked for.
    asked: Seq,
    answer: Pin<Box<dyn Future<Output = Result<u64, Failure>>>>,
}

impl Model {
    fn last(&self) -> Seq {
        Seq(self.events.len() as u64)
    }

    /// The stored events that pass a filter.
    fn kept<'m>(&'m self, filter: &'m Filter) -> impl DoubleEndedIterator<Item = (Seq, &'m ModelEvent)> {
        let numbered = self.events.iter().enumerate().map(|(i, event)| (Seq(i as u64 + 1), event));
        numbered.skip(self.deleted as usize).filter(|(_, event)| event.passes(filter))
    }

    /// Takes note of what the writer has done since `last` was the last event, and `commits` waited for the
    /// fan-out.
    fn settle(&mut self, store: &Store, commits: usize, last: Seq) {
        while let Some(Ok(answer)) = self.unanswered.front_mut().map(|batch| batch.answer.try_recv()) {
            let Unanswered { events, witness, .. } = self.unanswered.pop_front().expect("just looked at");
            match answer {
                Ok(Stored { batch, .. }) if batch.is_empty() => assert!(events.is_empty()),
                Ok(Stored { batch, .. }) => {
                    self.acknowledged(events, &batch);
                    let saw = witness.saw.lock().take().expect("whoever waits for an answer is woken");
                    let stored = saw.newest == Some(saw.committed) && saw.committed >= self.last();
                    assert!(stored, "acknowledged before it was stored");
                    assert!(saw.commits <= commits, "delivered before it was acknowledged");
                }
                Err(failure) => assert!(failure == Failure::StorageFull && self.disk_had_an_end, "{failure}"),
            }
        }
        assert!(self.unanswered.iter().all(|later| later.answer.is_empty()), "answered out of order");
        self.settle_deletions(store, last);
    }

    fn acknowledged(&mut self, events: Vec<ModelEvent>, batch: &Committed) {
        assert_eq!((batch.first(), batch.len()), (self.last().next(), events.len()), "dense, and in order");
        for (i, mut event) in events.into_iter().enumerate() {
            let json = batch.json(i);
            let time = &json[json.len() - Timestamp::LEN - 2..json.len() - 2];
            event.time = Timestamp::parse_floor(std::str::from_utf8(time).expect("ASCII")).expect("a time");
            assert!(self.events.last().is_none_or(|before| event.time > before.time), "times increase");
            assert_eq!(json, event.json(self.last().next()));
            self.events.push(event);
        }
    }

    fn settle_deletions(&mut self, store: &Store, last: Seq) {
        let mut first = self.last().next();
        let found = store.scan(&Query::default(), |event| {
            first = event.seq;
            ControlFlow::Break(())
        });
        found.expect("read");
        let most = self.deletions.iter().map(|deletion| deletion.end(&self.events, last)).max();
        let deleted = first.prev().0;
        assert!(deleted >= self.deleted && deleted <= most.unwrap_or(0).max(self.deleted), "deleted too much");
        self.deleted = deleted;
        while let Some(deletion) = self.deletions.front_mut() {
            match deletion.answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => return,
                Poll::Ready(Ok(count)) => {
                    self.told_of += count;
                    assert!(self.told_of >= deletion.end(&self.events, deletion.asked), "deleted too little");
                }
                Poll::Ready(Err(failure)) => {
                    let excused = match failure {
                        Failure::Unavailable => self.is_ending,
                        Failure::StorageFull => self.disk_had_an_end,
                        Failure::QueueFull => false,
                    };
                    assert!(excused, "{failure}");
                    self.told_of = self.deleted;
                }
            }
            self.deletions.pop_front();
        }
        assert_eq!(self.told_of, self.deleted);
    }

    /// The server is gone: whoever still waits for an answer gets none.
    fn abandon(&mut self) {
        self.unanswered.drain(..).for_each(Unanswered::must_be_unavailable);
        for mut deletion in self.deletions.drain(..) {
            let answer = deletion.answer.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(answer, Poll::Ready(Err(Failure::Unavailable)));
        }
        (self.told_of, self.is_ending) = (self.deleted, false);
    }
}

impl ModelEvent {
    fn push_to(&self, batch: &mut Batch, types: &EventTypes) {
        let Self { source, session_id, user_id, ref payload, .. } = *self;
        let event_type = types.get(self.event_type).expect("built in");
        batch.push(&Event { event_type, source, session_id, user_id, payload, idempotency_key: None }, types);
    }

    fn passes(&self, filter: &Filter) -> bool {
        filter.matches(&self.columns())
    }

    fn columns(&self) -> Columns<'_> {
        Columns {
            event_type: self.event_type.as_bytes(),
            source: self.source.as_bytes(),
            session_id: self.session_id.map(str::as_bytes),
            user_id: self.user_id.map(str::as_bytes),
            payload: self.payload.as_bytes(),
        }
    }

    fn json(&self, seq: Seq) -> String {
        let Self { event_type, source, payload, time, .. } = self;
        let [session, user] = [self.session_id, self.user_id].map(|id| serde_json::to_string(&id).expect("JSON"));
        let (id, ids) = (seq.id(), format!(r#""session_id":{session},"user_id":{user}"#));
        let fields = format!(r#""event_type":"{event_type}","source":"{source}",{ids},"payload":{payload}"#);
        format!(r#"{{"id":"{id}",{fields},"timestamp":"{time}"}}"#)
    }
}

impl Deletion {
    /// How many of the events up to `last` it deletes.
    fn end(&self, events: &[ModelEvent], last: Seq) -> u64 {
        let stored = &events[..events.len().min(last.0 as usize)];
        self.before.map_or(stored.len(), |before| stored.partition_point(|event| event.time < before)) as u64
    }
}

/// A batch that was handed in, and who waits for its answer.
struct Unanswered {
    events: Vec<ModelEvent>,
    /// Events and KiB it takes in the queue.
    cost: (usize, usize),
    answer: Answer,
    witness: Arc<Witness>,
}

type Answer = oneshot::Receiver<Result<Stored, Failure>>;

impl Unanswered {
    fn new(events: Vec<ModelEvent>, cost: (usize, usize), mut answer: Answer, server: &Server) -> Self {
        let (store, commits) = (server.store.clone(), server.parts.commits.clone());
        let witness = Arc::new(Witness { store, commits, saw: Mutex::new(None) });
        let waker = Waker::from(witness.clone());
        assert!(pin!(&mut answer).poll(&mut Context::from_waker(&waker)).is_pending());
        Self { events, cost, answer, witness }
    }

    fn must_be_unavailable(mut self) {
        assert!(matches!(self.answer.try_recv(), Ok(Err(Failure::Unavailable))));
    }
}

/// Woken by an answer, in the middle of the writer's turn, it looks around at that moment.
struct Witness {
    store: Store,
    commits: Receiver<Arc<Commit>>,
    saw: Mutex<Option<Saw>>,
}

struct Saw {
    committed: Seq,
    /// The newest event that a query finds.
    newest: Option<Seq>,
    /// Commits that wait for the fan-out.
    commits: usize,
}

impl Wake for Witness {
    fn wake(self: Arc<Self>) {
        let query = Query { order: Order::NewestFirst, ..Query::default() };
        let newest = self.store.scan(&query, |_| ControlFlow::Break(())).expect("read");
        *self.saw.lock() = Some(Saw { committed: self.store.committed(), newest, commits: self.commits.len() });
    }
}

/// A client that subscribes, with the task that serves it.
struct Subscriber {
    feed: Feed,
    filter: Filter,
    /// Filters it asked for, each with the event after which it comes into force.
    changes: VecDeque<(Filter, Seq)>,
    /// The last event when it last asked for one.
    asked: Seq,
    /// It needs nothing up to this event.
    seen: Seq,
    /// The last event it received, after which it would resume.
    received: Seq,
    chunk_bytes_max: usize,
    reading: Option<Reading>,
    /// Whether its task is awake.
    bell: Arc<Bell>,
}

enum Reading {
    Asked(PageRequest),
    Read(Page),
}

impl Subscriber {
    /// A step of its task, a read of a page being one of its own. Returns whether the stream has ended.
    fn step(&mut self, store: &Store, model: &Model) -> bool {
        let chunk = match self.reading.take() {
            Some(Reading::Asked(request)) => {
                self.reading = Some(Reading::Read(request.read(store).expect("read")));
                return false;
            }
            Some(Reading::Read(page)) => self.feed.page_read(page),
            None => match self.feed.step() {
                Step::Give(chunk) => Some(chunk),
                Step::Again => None,
                Step::Read(request) => {
                    self.reading = Some(Reading::Asked(request));
                    None
                }
                Step::Wait => {
                    self.bell.0.store(false, Ordering::SeqCst);
                    let waker = Waker::from(self.bell.clone());
                    let has_news = pin!(self.feed.wait()).poll(&mut Context::from_waker(&waker)).is_ready();
                    self.bell.0.fetch_or(has_news, Ordering::SeqCst);
                    None
                }
            },
        };
        match chunk {
            Some(Chunk::Events(runs)) => {
                let frames = runs.iter().map(Run::frames).collect::<Vec<_>>();
                self.receive(&frames.concat(), model);
            }
            Some(Chunk::FellBehind | Chunk::CaughtUp) => {}
            Some(chunk @ (Chunk::Lagged { .. } | Chunk::TooSlow | Chunk::Complete)) => panic!("{chunk:?}"),
            Some(Chunk::FilterChanged) => {
                let (filter, after) = self.changes.pop_front().expect("only what was asked for is announced");
                assert!(self.seen <= after, "the former filter went on after {}", after.id());
                self.must_have_up_to(after, model);
                (self.filter, self.seen) = (filter, after);
            }
            Some(Chunk::End) => return true,
            None => {}
        }
        false
    }

    /// Something else is to be done at once, so its task drops what it waits for and begins again.
    fn is_called_away(&mut self) {
        self.reading = None;
        self.bell.0.store(true, Ordering::SeqCst);
    }

    /// Holds every frame against what it must get next.
    fn receive(&mut self, mut frames: &[u8], model: &Model) {
        assert!(frames.len() <= self.chunk_bytes_max);
        while !frames.is_empty() {
            // The frame of a longer event has two bytes more of length.
            let json = if frames[1] < 126 { &frames[2..] } else { &frames[4..] };
            let id: EventId = std::str::from_utf8(&json[7..23]).expect("ASCII").parse().expect("an id");
            assert!(id.0 > self.seen, "{id} again, after {}", self.seen.id());
            assert!(id.0 <= model.last(), "{id} before it was stored");
            let event = &model.events[id.0.0 as usize - 1];
            assert!(event.passes(&self.filter), "{id} does not pass {:?}", self.filter);
            self.must_have_up_to(id.0.prev(), model);
            let mut frame = Vec::new();
            frame::text(&mut frame, event.json(id.0).as_bytes());
            frames = frames.strip_prefix(&*frame).expect("the event's own bytes");
            (self.seen, self.received) = (id.0, id.0);
        }
    }

    /// Nothing it wants is left out, but what was deleted before it came there.
    fn must_have_up_to(&self, seq: Seq, model: &Model) {
        let missed = model.kept(&self.filter).find(|(of, _)| *of > self.seen && *of <= seq);
        assert_eq!(missed.map(|(of, _)| of), None, "left out after {}", self.seen.id());
    }

    fn must_have_everything(&self, model: &Model) {
        assert!(self.changes.is_empty(), "a change of filters was forgotten");
        self.must_have_up_to(model.last(), model);
    }

    /// What the clients remember when their connections are gone.
    fn disconnect(subscribers: Vec<Self>) -> Vec<(Filter, Seq)> {
        let remembered = |mut subscriber: Self| {
            let newest = subscriber.changes.pop_back().map(|(filter, _)| filter);
            (newest.unwrap_or(subscriber.filter), subscriber.received)
        };
        subscribers.into_iter().map(remembered).collect()
    }
}

struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What was done, with the last event before it, told when it went wrong.
struct Log {
    seed: u64,
    actions: Vec<String>,
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SIM_SEED={} failed in the last of: {}", self.seed, self.actions.join(", "));
        }
    }
}

/// splitmix64: small, and every seed is a good one.
struct Random(u64);

impl Random {
    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
