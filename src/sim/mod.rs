//! The pipeline on one thread, from a seed. The files are real; the writer, the sealer, the checkpointer,
//! the fan-out and the tasks of subscribers and groups are stepped by hand, so that a seed picks one order of
//! appends, commits, deliveries, catch-up, overflow, deletions, confirmations, repeats of keys, full disks, crashes and
//! power cuts, the same each time.
//!
//! Beside it runs a model, a list of events and a few rules, and every step is held against it.
//! `SIM_SEED=123` replays one seed, `SIM_SEEDS=3000` runs that many, from `SIM_FIRST` on, on as many threads as there
//! are cores. Some seeds are lived again and again, with a crash after each action in turn; `SIM_CRASH_EVERY=1` does so
//! with all.

mod durable;
mod group;
mod model;
pub(crate) mod random;
mod subscriber;
mod wish;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::thread;

use tempfile::TempDir;

use self::durable::Durables;
use self::group::Group;
use self::model::{Model, ModelEvent, TYPES, Unanswered, Unheard};
use self::random::Random;
use self::subscriber::{Asked, Over, Subscriber};
use self::wish::Wish;
use crate::config::{Config, Durability};
use crate::event::{Field, Seq, Timestamp, TimestampText};
use crate::hub::{FanOut, Hub};
use crate::record::{AckLevel, Failure};
use crate::store::{Order, Parts, Query, Receipt, Store, TypeStats, Witness};
use crate::wire::Batch;
use crate::wire::subscription::OnLag;

/// Seeds of an ordinary run of the tests: some 5 seconds.
const SEEDS: u64 = 300;
const ACTIONS_PER_SEED: usize = 300;
/// One seed in so many is lived again for each of its actions, with a crash after it.
const SEEDS_PER_CRASH_EVERY: u64 = 100;
/// These lives are shorter, for there are as many of them.
const ACTIONS_BEFORE_CRASH_MAX: usize = 60;
const ACTIONS_AFTER_CRASH: usize = 15;
/// A world that is left alone comes to rest within so many rounds.
const ROUNDS_MAX: usize = 10_000;

/// The head of a log, and a page with its own.
const LOG_HEADER_BYTES: usize = 32;
const LOG_PAGE_BYTES: usize = 24 + 4_096;

const SUBSCRIBERS_MAX: usize = 6;
/// What positions are kept under, apart from groups.
const NAMES: [&str; 3] = ["dashboard", "consumer", "caf\u{e9}"];
const GROUPS: [&str; 2] = ["group:marks", "group:mail"];

#[test]
fn promises_are_kept_whatever_the_order() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("SIM_FIRST").unwrap_or(0);
            first..first + number("SIM_SEEDS").unwrap_or(SEEDS)
        }
    };
    let crashes_every = number("SIM_CRASH_EVERY").is_some_and(|number| number > 0);
    let next = AtomicU64::new(seeds.start);
    let live_some = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) {
                return;
            }
            match crashes_every || seed % SEEDS_PER_CRASH_EVERY == SEEDS_PER_CRASH_EVERY - 1 {
                true => (0..ACTIONS_BEFORE_CRASH_MAX).for_each(|actions| crash_after(seed, actions)),
                false => live(seed),
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(live_some)));
    });
}

fn live(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..ACTIONS_PER_SEED {
        world = world.act();
    }
    world.then(World::rest).crash().then(World::rest);
}

fn crash_after(seed: u64, actions: usize) {
    let mut world = World::new(seed);
    for _ in 0..actions {
        world = world.act();
    }
    world.log.actions.push("crash".to_owned());
    world = world.crash();
    for _ in 0..ACTIONS_AFTER_CRASH {
        world = world.act();
    }
    world.then(World::rest).restart().then(World::rest);
}

type Action = fn(World) -> World;

/// What may happen, and how often; each seed multiplies the numbers by its own temper.
const ACTIONS: [(&str, u64, Action); 28] = [
    ("append", 24, |world| world.then(World::append)),
    ("repeat", 3, |world| world.then(World::repeat)),
    ("write", 16, |world| world.then(World::write)),
    ("fan out", 12, |world| world.then(World::fan_out)),
    ("step", 50, |world| world.then(|w| w.any_subscriber().map(|i| w.step(i)))),
    ("seal", 4, |world| world.then(|w| w.server.parts.seal())),
    ("checkpoint", 4, |world| world.then(World::checkpoint)),
    ("subscribe", 3, |world| world.then(World::subscribe)),
    ("change filter", 3, |world| world.then(World::change_filter)),
    ("unsubscribe", 1, |world| world.then(|w| w.any_subscriber().map(|i| w.subscribers.swap_remove(i)))),
    ("query", 6, |world| world.then(World::query)),
    ("delete", 1, |world| world.then(World::delete)),
    ("choose", 6, |world| world.then(World::choose)),
    ("keep", 3, |world| world.then(World::keep)),
    ("found group", 3, |world| world.then(World::found_group)),
    ("join", 4, |world| world.then(World::join)),
    ("leave", 3, |world| world.then(World::leave)),
    ("step group", 16, |world| world.then(|w| w.with_group(|group, w| _ = group.step(&w.server.store)))),
    ("confirm", 8, |world| world.then(|w| w.with_group(|group, w| group.confirm(&mut w.random, &w.model)))),
    ("time", 2, |world| world.then(|w| w.with_group(|group, w| group.pass_time(&mut w.random, &w.model)))),
    ("disk", 1, |world| world.then(World::limit_disk)),
    ("free space", 1, |world| world.then(World::keep_free)),
    ("clock", 1, |world| world.then(|w| w.server.parts.step_clock_back(w.random.below(10_000_000_000) as i64))),
    ("rest", 1, |world| world.then(World::rest)),
    ("crash", 1, World::crash),
    ("crash in a commit", 1, World::crash_in_commit),
    ("power cut", 1, World::cut_power),
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
    /// Pages of the log that are synced: those behind them a power cut may tear.
    synced_pages: usize,
    config: Config,
    server: Server,
    /// A producer that waits for room in the queue, and what it has in hand.
    blocked: Option<(Waiting, Unanswered)>,
    model: Model,
    subscribers: Vec<Subscriber>,
    /// Somebody who deletes chosen events, a slice after the other.
    choosing: Option<Choosing>,
    durables: Durables,
    /// The groups that have members.
    groups: BTreeMap<&'static str, Group>,
}

/// A deletion with a filter.
struct Choosing {
    wish: Wish,
    before: Option<Timestamp>,
    after: Seq,
    last: Seq,
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
            durability: random.pick(&[Durability::Full, Durability::Full, Durability::Normal, Durability::Off]),
            free_space_min_bytes: 0,
            max_queue_size: 3 + random.below(40) as usize,
            max_queue_bytes: (4 + random.below(40) as usize) * 1024,
            max_subscriber_bytes: 300 + random.below(2_500) as usize,
            ..Config::default()
        };
        let server = Server::open(&config);
        Self {
            log: Log { seed, actions: Vec::new() },
            random,
            weights,
            folder,
            crashes: 0,
            synced_pages: 0,
            config,
            server,
            blocked: None,
            model: Model::default(),
            subscribers: Vec::new(),
            choosing: None,
            durables: Durables::default(),
            groups: BTreeMap::new(),
        }
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
        let events: Vec<_> = (0..self.random.below(6)).map(|_| self.model.new_event(&mut self.random)).collect();
        let mut batch = Batch::default();
        events.iter().for_each(|event| event.push_to(&mut batch, &self.config.event_types));
        self.hand_in(events, batch, None)
    }

    /// An event is sent again that has a key.
    fn repeat(&mut self) -> bool {
        let keyed = self.model.keyed(&mut self.random);
        let Some((seq, event)) = keyed.filter(|_| self.blocked.is_none()) else { return false };
        let mut batch = Batch::default();
        event.push_to(&mut batch, &self.config.event_types);
        self.hand_in(vec![event], batch, Some(seq))
    }

    fn hand_in(&mut self, events: Vec<ModelEvent>, batch: Batch, repeats: Option<Seq>) -> bool {
        let (receipt, answer) = Receipt::at(self.random.pick(&[AckLevel::Synced, AckLevel::Synced, AckLevel::Stored]));
        let cost = (events.len().clamp(1, self.config.max_queue_size), batch.bytes().div_ceil(1024).max(1));
        let unanswered = Unanswered::new(events, repeats, cost, answer, &self.server);
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

    fn write(&mut self) -> bool {
        let (last, waiting) = (self.model.last(), self.server.parts.commits.len());
        let log_before = self.server.parts.log();
        let wrote = self.server.parts.write();
        self.note_syncs(log_before);
        self.model.settle(&self.server.store, waiting, last);
        let disk_had_an_end = self.model.disk_had_an_end;
        self.durables.settle(&self.server.store, |failure| failure == Failure::StorageFull && disk_had_an_end);
        let is_due = self.model.last() > last && self.server.store.audience().is_there();
        let handed_on = self.server.parts.commits.len() - waiting;
        assert_eq!(handed_on, usize::from(is_due), "commits go to whoever follows, and to nobody else");
        wrote
    }

    /// Takes note of how much of the log is synced after a turn of the writer.
    fn note_syncs(&mut self, (pages_before, moved_before, _): (usize, usize, bool)) {
        let (pages, moved, is_synced) = self.server.parts.log();
        self.synced_pages = match () {
            // Nothing was committed. After a start the store knows no pages of the log that it found and synced.
            () if pages == 0 && pages_before == 0 => self.synced_pages,
            () if is_synced => pages,
            // The log has started over.
            () if pages < pages_before || moved < moved_before => 0,
            // A checkpoint came before the commit, and syncs what it moves.
            () if moved > moved_before => pages_before,
            () => self.synced_pages,
        };
    }

    fn checkpoint(&mut self) -> bool {
        let did = self.server.parts.checkpoint();
        if did {
            self.synced_pages = self.synced_pages.max(self.server.parts.log().0);
        }
        did
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
        let before = (!self.random.one_in(4)).then(|| self.model.time(&mut self.random));
        let store = self.server.store.clone();
        let deleting = async move { store.delete(before, Wish::default().filter).await };
        self.model.delete_oldest(before, Box::pin(deleting));
    }

    /// A deletion with a filter begins, or goes on once its last slice is deleted. Returns whether it did.
    fn choose(&mut self) -> bool {
        if self.choosing.is_none() && self.random.one_in(6) {
            let before = self.random.one_in(3).then(|| self.model.time(&mut self.random));
            let (wish, last) = (Wish::random(&mut self.random), self.server.store.committed());
            self.choosing = Some(Choosing { wish, before, after: Seq::ZERO, last });
        }
        self.go_on_choosing()
    }

    fn go_on_choosing(&mut self) -> bool {
        if self.model.waits_for_slice() {
            return false;
        }
        let Some(Choosing { wish, before, after, last }) = self.choosing.take() else { return false };
        let store = self.server.store.clone();
        let (chosen, reached) = store.reader().choose(wish.filter.clone(), after, last, before).expect("read");
        let is_before = |event: &ModelEvent| before.is_none_or(|before| event.time < before);
        let passing = self.model.kept_between(&wish, after, reached.unwrap_or(last));
        let expected: Vec<_> = passing.filter(|(_, event)| is_before(event)).map(|(seq, _)| seq).collect();
        assert_eq!(chosen, expected, "{:?} up to {reached:?}", wish.filter);
        assert!(reached.is_none_or(|reached| reached > after), "it does not get on");
        if !chosen.is_empty() {
            let these = chosen.clone();
            self.model.delete_these(chosen, Box::pin(async move { store.delete_these(these).await }));
        }
        self.choosing = reached.map(|after| Choosing { wish, before, after, last });
        true
    }

    /// A position is told, late or early, or a name is forgotten.
    fn keep(&mut self) {
        let name = self.random.pick(&NAMES);
        let position = Seq(self.random.below(self.model.last().0 + 1));
        match self.random.below(8) {
            0 => self.durables.forget(&self.server.store, name),
            choice => self.durables.keep(&self.server.store, name, &Wish::default(), position, choice == 1),
        }
    }

    /// A new group with its first member, or the end of one.
    fn found_group(&mut self) {
        let name = self.random.pick(&GROUPS);
        match self.durables.last_of(name) {
            None => {
                let (wish, position) =
                    (Wish::random(&mut self.random), Seq(self.random.below(self.model.last().0 + 1)));
                self.durables.keep(&self.server.store, name, &wish, position, true);
                self.join_this(name);
            }
            Some(_) if self.random.one_in(4) => {
                self.groups.remove(name);
                self.durables.forget(&self.server.store, name);
            }
            Some(_) => {}
        }
    }

    fn join(&mut self) {
        let name = self.random.pick(&GROUPS);
        self.join_this(name);
    }

    /// One member more, or the first, with which the group goes on after what was confirmed.
    fn join_this(&mut self, name: &'static str) {
        let Some((position, wish)) = self.durables.last_of(name) else { return };
        match self.groups.get_mut(name) {
            Some(group) => group.join(),
            None => drop(self.groups.insert(name, Group::new(&self.server, wish, position))),
        }
        self.deal(name);
    }

    fn leave(&mut self) {
        let name = self.random.pick(&GROUPS);
        let Some(group) = self.groups.get_mut(name) else { return };
        match group.leave(&mut self.random) {
            true => self.deal(name),
            false => drop(self.groups.remove(name)),
        }
    }

    /// Something happens to one of the groups.
    fn with_group(&mut self, happens: impl FnOnce(&mut Group, &mut Self)) {
        let name = self.random.pick(&GROUPS);
        let Some(mut group) = self.groups.remove(name) else { return };
        if self.random.one_in(16) {
            group.is_called_away();
        }
        happens(&mut group, self);
        self.groups.insert(name, group);
        self.deal(name);
    }

    /// What is due is dealt out, and a new position is told to the store.
    fn deal(&mut self, name: &'static str) {
        let group = self.groups.get_mut(name).expect("it has members");
        if let Some(position) = group.deal(&self.model) {
            let (_, wish) = self.durables.last_of(name).expect("it was founded");
            let wish = wish.clone();
            self.durables.keep(&self.server.store, name, &wish, position, false);
        }
    }

    fn limit_disk(&mut self) {
        self.model.disk_had_an_end = true;
        self.server.parts.limit_disk((!self.random.one_in(3)).then(|| self.random.below(3)));
    }

    /// The free space falls below `FREE_SPACE_MIN_BYTES`, or is above it again.
    fn keep_free(&mut self) {
        self.model.disk_had_an_end = true;
        let bytes = self.random.pick(&[0, 1 << 60]);
        self.server.parts.keep_free(bytes);
    }

    fn any_subscriber(&mut self) -> Option<usize> {
        self.random.place(self.subscribers.len())
    }

    fn subscribe(&mut self) {
        if self.subscribers.len() == SUBSCRIBERS_MAX {
            return;
        }
        let (store, wish, last) = (self.server.store.clone(), Wish::random(&mut self.random), self.model.last());
        let mut asked = Asked {
            start: last,
            on_lag: self.random.pick(&[OnLag::CatchUp, OnLag::CatchUp, OnLag::Skip, OnLag::Disconnect]),
            from_history: true,
            end: None,
            snapshot: Vec::new(),
            wish,
        };
        match self.random.below(5) {
            0 => {
                assert_eq!(store.committed(), last);
                asked.from_history = self.random.one_in(2);
            }
            1 => {
                let seq = Seq(self.random.below(last.0 + 3));
                asked.start = store.reader().seq_of(&seq.id().to_string()).expect("read").expect("an id").min(last);
                assert_eq!(asked.start, seq.min(last));
            }
            2 => {
                // A subscriber counts back from what it is told is the last event, whatever was stored since.
                let (count, told) =
                    (self.random.below(40) as usize, Seq(last.0 - self.random.below(last.0.min(20) + 1)));
                let earliest = self.model.kept_between(&asked.wish, Seq::ZERO, told).rev().take(count).last();
                asked.start = store.reader().before_last(&asked.wish.filter, count, told).expect("read");
                assert_eq!(asked.start, earliest.map_or(told, |(seq, _)| seq.prev()));
            }
            3 => {
                let (time, any) = (self.model.time(&mut self.random), Wish::default());
                asked.start = store.reader().before_time(time).expect("read");
                // Between two events that are kept any place is as good.
                let next = self.model.kept_between(&any, asked.start, last).next().map(|(seq, _)| seq);
                let later = self.model.kept(&any).find(|(_, event)| event.time > time).map(|(seq, _)| seq);
                assert!(next == later && asked.start <= last);
            }
            _ => asked.snapshot = self.latest(&asked.wish, last),
        }
        if asked.snapshot.is_empty() && self.random.one_in(3) {
            asked.end = Some(Seq(self.random.below(last.0 + 1)));
        }
        self.connect(asked);
    }

    /// The newest event of each value of some field, up to one.
    fn latest(&mut self, wish: &Wish, through: Seq) -> Vec<Seq> {
        let field = self.random.pick(&Field::ALL);
        let mut newest = BTreeMap::new();
        for (seq, event) in self.model.kept_between(wish, Seq::ZERO, through) {
            newest.extend(event.field(field).map(|value| (value, seq)));
        }
        let mut expected: Vec<_> = newest.into_values().collect();
        expected.sort_unstable();
        let found = self.server.store.reader().latest_by(field, &wish.filter, through, usize::MAX).expect("read");
        assert_eq!(found, expected, "{field:?} of {:?} up to {}", wish.filter, through.id());
        let few = 1 + self.random.below(3) as usize;
        let some = self.server.store.reader().latest_by(field, &wish.filter, through, few).expect("read");
        assert!(some.len() == few.min(found.len()) && some.iter().all(|seq| found.contains(seq)), "{some:?}");
        found
    }

    fn connect(&mut self, asked: Asked) {
        self.subscribers.push(Subscriber::new(&self.server, asked, self.config.max_subscriber_bytes));
    }

    fn change_filter(&mut self) {
        let Some(i) = self.any_subscriber() else { return };
        for _ in 0..=self.random.below(3) {
            let (wish, later) = (Wish::random(&mut self.random), self.random.below(self.model.last().0 + 1));
            self.subscribers[i].change_filter(wish, later, &self.model);
        }
    }

    /// A step of a subscriber's task, unless it sleeps. Returns whether there was one.
    fn step(&mut self, i: usize) -> bool {
        let subscriber = &mut self.subscribers[i];
        let is_awake = subscriber.is_awake();
        if is_awake {
            if self.random.one_in(16) {
                subscriber.is_called_away();
            }
            match subscriber.step(&self.server.store, &self.model) {
                None => {}
                Some(Over::Served) => panic!("the stream ended before the server did"),
                Some(Over::Complete) => drop(self.subscribers.swap_remove(i)),
                Some(Over::TooSlow) => {
                    let asked = self.subscribers.swap_remove(i).disconnect();
                    self.connect(asked);
                }
            }
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
            is_busy |= self.write() | self.server.parts.seal() | self.checkpoint() | self.fan_out();
            is_busy |= self.go_on_choosing();
            (0..self.subscribers.len()).rev().for_each(|i| is_busy |= self.step(i));
            for name in GROUPS {
                let Some(group) = self.groups.get_mut(name) else { continue };
                is_busy |= group.step(&self.server.store) | group.confirm_all();
                self.deal(name);
            }
        }
        assert!(self.blocked.is_none() && self.model.unanswered.is_empty() && self.model.deletions.is_empty());
        assert_eq!(self.server.store.queue_len(), 0);
        self.subscribers.iter_mut().for_each(|subscriber| subscriber.must_have_everything(&self.model));
        self.groups.values().for_each(|group| group.must_have_everything(&self.model));
        if !self.model.disk_had_an_end {
            self.durables.must_be_stored(&self.server.store);
        }
        self.check_all();
        (0..3).for_each(|_| self.query());
    }

    /// Holds everything that is stored, and what is told about it, against the model.
    fn check_all(&mut self) {
        self.check(&Query::default(), &Wish::default(), usize::MAX);
        let now = self.model.time(&mut self.random);
        let stats = self.server.store.reader().stats(now).expect("read");
        let count = |wish: &Wish| self.model.kept(wish).count() as u64;
        let by_type = TYPES.into_iter().filter_map(|event_type| {
            let wish = Wish::of_type(event_type);
            let last_seen = self.model.kept(&wish).next_back()?.1.time.to_string();
            Some(TypeStats { event_type: event_type.to_owned(), count: count(&wish), last_seen })
        });
        let mut by_type: Vec<_> = by_type.collect();
        by_type.sort_by(|a, b| b.count.cmp(&a.count).then(a.event_type.cmp(&b.event_type)));
        assert_eq!((stats.total_events, stats.by_type), (count(&Wish::default()), by_type));
        let newest = self.model.kept(&Wish::default()).next_back().map_or(now, |(_, event)| event.time);
        let is_recent = |(_, event): &(Seq, &ModelEvent)| event.time.0 > now.max(newest).0 - 3_600_000_000;
        assert_eq!(stats.events_last_hour, self.model.kept(&Wish::default()).filter(is_recent).count() as u64);
        let (extent, last) = (self.server.store.reader().extent().expect("read"), self.model.last());
        let oldest = self.model.kept(&Wish::default()).next().map_or(last.next(), |(seq, _)| seq);
        assert_eq!((extent.oldest, extent.newest), (oldest, last));
    }

    fn query(&mut self) {
        let end = self.model.last().0 + 3;
        let wish = Wish::random(&mut self.random);
        let query = Query {
            filter: wish.filter.clone(),
            after: Seq(if self.random.one_in(2) { self.random.below(end) } else { 0 }),
            before: self.random.one_in(3).then(|| Seq(self.random.below(end))),
            since: self.random.one_in(3).then(|| self.model.time(&mut self.random)),
            until: self.random.one_in(3).then(|| self.model.time(&mut self.random)),
            order: self.random.pick(&[Order::OldestFirst, Order::NewestFirst]),
        };
        let limit = if self.random.one_in(2) { usize::MAX } else { 1 + self.random.below(20) as usize };
        self.check(&query, &wish, limit);
        let through = Seq(self.random.below(end)).min(self.model.last());
        self.latest(&wish, through);

        let (seq, any) = (Seq(self.random.below(end)), Wish::default());
        let expected = self.model.kept_between(&any, seq.prev(), seq).next();
        let found = self.server.store.reader().event(&seq.id().to_string()).expect("read");
        assert_eq!(found, expected.map(|(seq, event)| event.json(seq).into_bytes()));
    }

    /// Holds what the store finds and counts against a look through the model's list.
    fn check(&self, query: &Query, wish: &Wish, limit: usize) {
        let passing = self.model.kept(wish).filter(|(seq, event)| {
            *seq > query.after
                && query.before.is_none_or(|before| *seq < before)
                && query.since.is_none_or(|since| event.time > since)
                && query.until.is_none_or(|until| event.time < until)
        });
        let mut expected: Vec<_> = passing.map(|(seq, event)| (seq, event.time, event.json(seq))).collect();
        assert_eq!(self.server.store.reader().count(query).expect("read"), expected.len() as u64, "{query:?}");
        if query.order == Order::NewestFirst {
            expected.reverse();
        }
        self.check_pages(query, &expected);
        expected.truncate(limit);
        let mut found = Vec::new();
        let reached = self.server.store.reader().scan(query, |event| {
            let mut json = Vec::new();
            event.write_json(&mut json, &mut TimestampText::default());
            found.push((event.seq, event.time, String::from_utf8(json).expect("UTF-8")));
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert_eq!(found, expected, "{query:?} limit {limit}");
        assert_eq!(
            reached.expect("read"),
            (found.len() == limit).then(|| found[limit - 1].0),
            "{query:?} limit {limit}"
        );
    }

    /// The same in pieces, each of which is one short reading that goes on where the one before it ended.
    fn check_pages(&self, query: &Query, expected: &[(Seq, Timestamp, String)]) {
        let (mut rest, mut found) = (query.clone(), Vec::new());
        loop {
            let before = found.len();
            let reached = self.server.store.reader().scan_some(&rest, |event| {
                found.push(event.seq);
                if found.len() < before + 7 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            let Some(reached) = reached.expect("read") else { break };
            let is_further = match rest.order {
                Order::OldestFirst => reached > rest.after,
                Order::NewestFirst => rest.before.is_none_or(|before| reached < before),
            };
            assert!(is_further, "{query:?} does not get on");
            rest.go_on_after(reached);
        }
        assert!(found.iter().eq(expected.iter().map(|(seq, ..)| seq)), "{query:?} in pieces: {found:?}");
    }

    /// Ends at once; what is left is what the files hold at this moment.
    fn crash(self) -> Self {
        self.end_at_once(None, None, false)
    }

    /// Ends with the power: of what is not synced any sectors are there.
    fn cut_power(self) -> Self {
        match self.config.durability {
            // The file may be damaged.
            Durability::Off => self,
            Durability::Full | Durability::Normal => self.end_at_once(None, None, true),
        }
    }

    /// Takes away some sectors of a log that are not synced.
    fn tear(&mut self, log: &Path) {
        const SECTOR: usize = 512;
        let (from, to) = (self.synced_pages, self.server.parts.log().0);
        let [from, to] = [from, to].map(|pages| LOG_HEADER_BYTES + pages * LOG_PAGE_BYTES);
        let Ok(log) = OpenOptions::new().write(true).open(log) else { return };
        for at in (from..to).step_by(SECTOR) {
            if self.random.one_in(12) {
                log.write_all_at(&[0; SECTOR][..SECTOR.min(to - at)], at as u64).expect("written");
            }
        }
    }

    /// Ends after a commit of which nobody heard, or in the middle of its last write.
    fn crash_in_commit(mut self) -> Self {
        let log = beside(&self.config.database_path, "-wal");
        let log_bytes = || std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let before = log_bytes();
        self.server.parts.write_unheard();
        let (after, is_torn) = (log_bytes(), self.random.one_in(2));
        let cut = (is_torn && after > before).then(|| before + self.random.below(after - before));
        let unheard = self.model.unheard(cut.is_some());
        self.end_at_once(Some(unheard), cut, false)
    }

    fn end_at_once(mut self, unheard: Option<Unheard>, log_bytes: Option<u64>, has_no_power: bool) -> Self {
        self.crashes += 1;
        let after = self.folder.path().join(format!("events-{}.db", self.crashes));
        for end in ["", "-wal"] {
            let copied = std::fs::copy(beside(&self.config.database_path, end), beside(&after, end));
            assert!(copied.is_ok() || end == "-wal", "{copied:?}");
        }
        if let Some(bytes) = log_bytes {
            let log: File = OpenOptions::new().write(true).open(beside(&after, "-wal")).expect("a log");
            log.set_len(bytes).expect("a shorter log");
        }
        if has_no_power {
            Witness::copy_to_another_boot(&beside(&self.config.database_path, ".lock"), &beside(&after, ".lock"));
            self.tear(&beside(&after, "-wal"));
        }
        self.config.database_path = after;
        let clients: Vec<Asked> = self.subscribers.drain(..).map(Subscriber::disconnect).collect();
        self.groups.clear();
        drop((self.server, self.blocked.take()));
        let server = Server::open(&self.config);
        if has_no_power {
            self.model.lost_its_end(&server.store, self.config.durability == Durability::Full);
            self.durables.lost_their_end(self.config.durability == Durability::Full);
        }
        Self { server, ..self }.go_on(clients, unheard)
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
        if !self.model.disk_had_an_end {
            self.durables.must_be_stored(&store);
        }
        hub.run(&commits);
        for subscriber in &mut self.subscribers {
            assert!(subscriber.is_awake(), "nobody told it that the stream is over");
            let over = (0..ROUNDS_MAX).find_map(|_| subscriber.step(&store, &self.model));
            match over.expect("its stream ends") {
                Over::Served => subscriber.must_have_everything(&self.model),
                Over::Complete | Over::TooSlow => {}
            }
        }
        let clients: Vec<Asked> = self.subscribers.drain(..).map(Subscriber::disconnect).collect();
        self.groups.clear();
        drop((store, hub, self.blocked.take()));
        let server = Server::open(&self.config);
        Self { server, ..self }.go_on(clients, None)
    }

    /// Everybody comes again to a server that has read the files.
    fn go_on(mut self, clients: Vec<Asked>, unheard: Option<Unheard>) -> Self {
        let store = &self.server.store;
        self.choosing = None;
        self.model.reopened(store, unheard);
        self.durables.reopened(store);
        self.check_all();
        // A start syncs the log that it finds, of which the store knows no pages yet.
        let log_bytes = std::fs::metadata(beside(&self.config.database_path, "-wal")).map_or(0, |log| log.len());
        self.synced_pages = (log_bytes as usize).saturating_sub(LOG_HEADER_BYTES) / LOG_PAGE_BYTES;
        let last = self.model.last();
        for asked in clients {
            self.connect(Asked { start: asked.start.min(last), end: asked.end.map(|end| end.min(last)), ..asked });
        }
        for name in GROUPS {
            if self.random.one_in(2) {
                self.join_this(name);
            }
        }
        self
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

impl Server {
    fn open(config: &Config) -> Self {
        let (store, parts) = Store::open_parts(config).expect("open");
        let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
        Self { fanned_out: store.committed(), store, parts, hub, fan_out: FanOut::default() }
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
