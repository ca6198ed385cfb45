//! One history of ordered commands, applied to two databases. However the commands are grouped into transactions, and
//! whatever housekeeping, full disks and crashes come in between, both have the same events, keys, subscriptions,
//! counts and statistics at the same position, and give each client the same answer.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;

use super::endings::copy_files;
use super::event::{ModelEvent, SESSIONS};
use super::random::Random;
use super::seeds::seeds;
use super::world::folder;
use crate::config::{Config, Durability};
use crate::event::{Seq, Timestamp, TimestampText};
use crate::record::{AckLevel, Failure, Outcome, Outcomes};
use crate::store::ordered::{Append, Changed, Deleted, Deletion, Ordered};
use crate::store::{Intervals, Parts, Query, Receipt, Series, Stats, Store, Stored, StoredSubscription, check};
use crate::wire::Batch;

/// Histories of an ordinary run of the tests: some 2 seconds.
const SEEDS: u64 = 60;
/// The databases are compared after each round of commands.
const ROUNDS: usize = 12;
const COMMANDS_PER_ROUND: u64 = 12;
/// All minutes of a history. In tests they are shorter.
const MINUTES: Intervals = Intervals { start: Timestamp(0), length: Duration::from_millis(1), number: 1_000 };

#[test]
fn applying_one_history_twice_makes_two_equal_databases() {
    for seed in seeds(SEEDS, 5) {
        let mut random = Random(seed);
        let [mut one, mut other] = [1, 2].map(|nth| Database::new(Random(seed + nth * 1_000_003)));
        let mut history = History::default();
        for round in 0..ROUNDS {
            let mut commands = Vec::new();
            for _ in 0..1 + random.below(COMMANDS_PER_ROUND) {
                // One copy goes ahead, so that the next command can be about events that it has.
                let command = history.next(&mut random, one.store.committed());
                one.add(&command);
                one.flush();
                commands.push(command);
            }
            other.catch_up(&commands);
            let what = format!("seed {seed}, round {round}");
            assert_eq!(one.answers.len(), other.answers.len(), "{what}");
            for (nth, (one, other)) in one.answers.iter().zip(&other.answers).enumerate() {
                assert!(
                    one.is_none() || other.is_none() || one == other,
                    "{what}, command {nth} of the history: {one:?}, {other:?}"
                );
            }
            let (one, other) = (one.contents(), other.contents());
            assert_eq!((one.retained, one.stats), (other.retained, other.stats), "{what}");
            assert_eq!(one.series, other.series, "{what}");
            assert_eq!((one.keys, one.subscriptions), (other.keys, other.subscriptions), "{what}");
            assert_eq!(one.events, other.events, "{what}");
        }
        for copy in [one, other] {
            copy.must_be_sound(seed);
        }
    }
}

/// A command in its order.
#[derive(Clone)]
struct Command {
    time: Timestamp,
    what: What,
}

#[derive(Clone)]
enum What {
    Append(Vec<ModelEvent>),
    Delete(Deleted),
    Subscriptions(Changed),
}

#[derive(Default)]
struct History {
    time: Timestamp,
    keys: u64,
    keyed: Vec<ModelEvent>,
    subscriptions: u64,
}

impl History {
    /// The next command, to a record that stands at `last`.
    fn next(&mut self, random: &mut Random, last: Seq) -> Command {
        // A clock that stands still, runs, and is set back.
        self.time.0 = (self.time.0 + random.pick(&[0, 0, 1, 5, 1_000, -700])).max(0);
        let what = match random.below(10) {
            0 => What::Delete(Deleted::Through(Seq(random.below(last.0 + 1)))),
            1 | 2 => {
                let near = random.below(last.0 + 1);
                What::Delete(Deleted::Chosen(random.some(&[1, 2, 3, 5, 8, 13].map(|n| Seq(near + n)), 2)))
            }
            3 => {
                self.subscriptions += 1;
                let name = random.pick(&SESSIONS);
                let (filters, position) = (self.subscriptions.to_string().into(), Seq(random.below(last.0 + 1)));
                let last_seen = self.time.to_string();
                let state = StoredSubscription { name: name.into(), filters, position, last_seen };
                let state = (!random.one_in(4)).then_some(state);
                What::Subscriptions(Changed(BTreeMap::from([(name.into(), state)])))
            }
            _ => What::Append((0..random.below(7)).map(|_| self.event(random)).collect()),
        };
        Command { time: self.time, what }
    }

    /// A new event, or one with a key that was used before, by the same event or by another one.
    fn event(&mut self, random: &mut Random) -> ModelEvent {
        let mut event = ModelEvent::random(random);
        match random.below(6) {
            0 | 1 => {
                self.keys += 1;
                event.key = Some(format!("key{}", self.keys));
                self.keyed.push(event.clone());
            }
            2 if !self.keyed.is_empty() => {
                let earlier = &self.keyed[random.below(self.keyed.len() as u64) as usize];
                match random.one_in(4) {
                    true => event.key = earlier.key.clone(),
                    false => event = earlier.clone(),
                }
            }
            _ => {}
        }
        event
    }
}

/// A database to which the history is applied.
struct Database {
    random: Random,
    folder: TempDir,
    config: Config,
    store: Store,
    parts: Parts,
    crashes: usize,
    /// Commands of the next transaction.
    group: Vec<Command>,
    /// The answer to the client of each command; `None` if a crash came before it.
    answers: Vec<Option<Answer>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Events(Vec<Outcome>),
    Deleted(u64),
    Saved,
}

/// What a client can read of a database, and the keys that are known.
#[derive(Debug, PartialEq)]
struct Contents {
    events: Vec<String>,
    stats: Stats,
    series: Series,
    subscriptions: Vec<StoredSubscription>,
    retained: (Seq, Seq),
    keys: Vec<(String, u64, u64)>,
}

/// An answer that comes with the commit.
enum Awaited {
    Events(usize, oneshot::Receiver<Result<Stored, Failure>>),
    Deleted(oneshot::Receiver<Result<u64, Failure>>),
    Saved(oneshot::Receiver<Result<(), Failure>>),
}

impl Database {
    fn new(mut random: Random) -> Self {
        let folder = folder();
        let durability = random.pick(&[Durability::Full, Durability::Normal]);
        let config = Config { durability, ..Config::of_test(folder.path().join("events.db")) };
        let (store, parts) = Store::open_parts(&config).expect("open");
        Self { random, folder, config, store, parts, crashes: 0, group: Vec::new(), answers: Vec::new() }
    }

    /// Applies commands, with anything else in between.
    fn catch_up(&mut self, commands: &[Command]) {
        for command in commands {
            self.add(command);
            if self.random.one_in(2) {
                self.flush();
            }
            for _ in 0..self.random.below(4) {
                match self.random.below(8) {
                    0 => _ = self.parts.seal(),
                    1 => _ = self.parts.checkpoint(),
                    2 if self.group.is_empty() => self.crash(),
                    _ => _ = self.parts.write(),
                }
            }
        }
        self.flush();
    }

    /// Adds a command to the next transaction. Commits first if in one transaction it would come before the commands
    /// that wait.
    fn add(&mut self, command: &Command) {
        let rank = |command: &Command| match command.what {
            What::Append(_) => 0,
            What::Delete(_) => 1,
            What::Subscriptions(_) => 2,
        };
        let fits = |last| last < rank(command) || (last, rank(command)) == (0, 0);
        if !self.group.last().map(rank).is_none_or(fits) {
            self.flush();
        }
        self.group.push(command.clone());
    }

    /// Applies the commands that wait in one transaction. Sometimes the disk is full at first, and sometimes a crash
    /// comes before any client is answered.
    fn flush(&mut self) {
        if self.group.is_empty() {
            return;
        }
        // With commands of several kinds, a server that is alone goes on with those that free space.
        if self.group.len() == 1 && self.random.one_in(6) {
            self.parts.limit_disk(Some(self.random.below(2)));
            let answers = self.commit(false);
            self.parts.limit_disk(None);
            if answers.iter().all(Option::is_some) {
                return self.hear(answers);
            }
        }
        let is_unanswered = self.random.one_in(8);
        let answers = self.commit(is_unanswered);
        assert!(is_unanswered || answers.iter().all(Option::is_some), "refused");
        self.hear(answers);
        if is_unanswered {
            self.crash();
        }
    }

    fn hear(&mut self, answers: Vec<Option<Answer>>) {
        self.answers.extend(answers);
        self.group.clear();
    }

    /// One transaction. Returns the answers; `None` if a command was refused, or not answered.
    fn commit(&mut self, is_unanswered: bool) -> Vec<Option<Answer>> {
        let (mut ordered, mut changed, mut awaited) = (Ordered::default(), None, Vec::new());
        for Command { time, what } in &self.group {
            match what {
                What::Append(events) => {
                    let mut batch = Batch::default();
                    events.iter().for_each(|event| event.push_to(&mut batch, &self.config.event_types));
                    let (receipt, answer) = Receipt::at(self.random.pick(&[AckLevel::Synced, AckLevel::Stored]));
                    awaited.push(Awaited::Events(batch.len(), answer));
                    let reservation = self.parts.reserve(&batch);
                    ordered.appends.push(Append { time: *time, ..Append::new(batch, receipt, reservation) });
                }
                What::Delete(what) => {
                    let (reply, answer) = oneshot::channel();
                    awaited.push(Awaited::Deleted(answer));
                    ordered.deletion = Some(Deletion { what: what.clone(), reply });
                }
                What::Subscriptions(changes) => {
                    let (reply, answer) = oneshot::channel();
                    awaited.push(Awaited::Saved(answer));
                    changed = Some((changes.clone(), reply));
                }
            }
        }
        self.parts.apply(ordered, changed, is_unanswered);
        awaited.into_iter().map(Awaited::take).collect()
    }

    /// Goes on with what the files hold at this moment.
    fn crash(&mut self) {
        self.crashes += 1;
        let after = self.folder.path().join(format!("events-{}.db", self.crashes));
        copy_files(&self.config.database_path, &after);
        self.config.database_path = after;
        (self.store, self.parts) = Store::open_parts(&self.config).expect("open");
    }

    fn contents(&self) -> Contents {
        let reader = self.store.reader();
        let mut events = Vec::new();
        let read = reader.scan(&Query::default(), |event| {
            let mut json = Vec::new();
            event.write_json(&mut json, &mut TimestampText::default());
            events.push(String::from_utf8(json).expect("UTF-8"));
            ControlFlow::Continue(())
        });
        read.expect("read");
        let retained = reader.extent().expect("read");
        Contents {
            events,
            stats: reader.stats(Timestamp(0)).expect("read"),
            series: reader.series(&MINUTES, None).expect("read").expect("a new file has all counts"),
            subscriptions: reader.durable_subscriptions().expect("read"),
            retained: (retained.oldest, retained.newest),
            keys: self.parts.keys(),
        }
    }

    /// Index, holes, marks and statistics are those of the events, before and after all housekeeping is done.
    fn must_be_sound(mut self, seed: u64) {
        let contents = self.contents();
        for _ in 0..2 {
            let mut damage = Vec::new();
            let events = check(&self.config.database_path, |what| damage.push(what), |_| {});
            assert_eq!((events, damage), (Ok(contents.events.len() as u64), Vec::new()), "seed {seed}");
            // Checkpoints, too: rows are not removed while the file is swept.
            while self.parts.write() | self.parts.seal() | self.parts.checkpoint() {}
            assert_eq!(self.contents(), contents, "seed {seed}");
        }
        assert_eq!(
            self.parts.rows(),
            contents.events.len() as u64,
            "seed {seed}: all rows of deleted events are removed"
        );
    }
}

impl Awaited {
    fn take(self) -> Option<Answer> {
        match self {
            Self::Events(events, mut answer) => match answer.try_recv().ok()?.ok()?.outcomes {
                Outcomes::From(first, _) => {
                    Some(Answer::Events((0..events).map(|n| Outcome::Stored(first.plus(n))).collect()))
                }
                Outcomes::Each(outcomes, _) => Some(Answer::Events(outcomes.to_vec())),
                Outcomes::Queued => unreachable!("each asks for at least *stored*"),
            },
            Self::Deleted(mut answer) => answer.try_recv().ok()?.ok().map(Answer::Deleted),
            Self::Saved(mut answer) => answer.try_recv().ok()?.ok().map(|()| Answer::Saved),
        }
    }
}
