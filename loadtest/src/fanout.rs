//! The scenario `fanout`: how fast stored events reach their subscribers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Parser, ValueEnum};
use event_pipeline::wire::frame::{self, OpCode};
use serde::Serialize;
use serde_json::json;
use tokio::select;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answer;
use crate::connection::{Connection, Scratch, frames};
use crate::events::{self, Events, Framing, Keys, Requests};
use crate::ledger::Tally;
use crate::pace::Pace;
use crate::producer::{Book, Dialect, Flow, Producer};
use crate::publish::Rate;
use crate::report::Report;
use crate::run::{Common, Counted, PATIENCE, Run};
use crate::target::Target;

/// Publish events on one connection and measure how fast they reach subscribers
///
/// Verifies that each subscriber gets every event that matches its filter exactly once and in order, and that
/// all of them are stored. At the rate max, new events leave once their forerunners have arrived, so that live
/// delivery is measured and not how slow readers are helped.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Fanout {
    /// Subscribers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    subscribers: u32,
    /// What a subscriber asks for: everything, or what has one session, user or type, which they take in turn
    #[arg(long, value_enum, default_value_t = By::All)]
    filter: By,
    /// Events a second, or max. At a rate, latency counts from when an event was due
    #[arg(long, value_name = "RATE", default_value = "max")]
    rate: Rate,
    /// Events that are published and not yet received or acknowledged
    #[arg(long, value_name = "N", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    #[command(flatten)]
    #[serde(flatten)]
    events: Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum By {
    All,
    Session,
    User,
    Type,
}

impl Default for Fanout {
    fn default() -> Self {
        #[derive(Parser)]
        struct Defaults {
            #[command(flatten)]
            fanout: Fanout,
        }
        Defaults::parse_from([""]).fanout
    }
}

impl Fanout {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let target = Target::new(&common.target)?;
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        let scratch = Scratch::default();
        let deliveries = Rc::new(Deliveries::new(self));
        let mut ready = Vec::new();
        for number in 0..self.subscribers {
            ready.push((self.subscribe(number, &target, &scratch).await?, self.key_of(number)));
        }
        let connection = Connection::web_socket(&target, "/ws/publish", &scratch).await?;
        let requests = Rc::new(Requests::render(&self.events, 1, &Framing::WebSocket, 0, 1));

        let run = Run::new(newest);
        let flow = match self.rate {
            Rate(None) => Flow::Received(deliveries.clone()),
            Rate(Some(rate)) => Flow::Due(Pace::start(run.start, rate)?.schedule(0, 1)),
        };
        let book = Book::new(run.clone(), requests, Dialect::WebSocket).with_deliveries(deliveries.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn_local(Producer::new(connection, flow, self.window as usize, book).run());
        let mut readers = JoinSet::new();
        let mut tallies = Vec::new();
        for (number, (connection, key)) in ready.into_iter().enumerate() {
            let tally = Rc::new(Cell::new(Tally::default()));
            tallies.push((key, tally.clone()));
            let subscriber = Subscriber {
                number,
                dense: self.filter == By::All,
                run: run.clone(),
                deliveries: deliveries.clone(),
                newest,
                last: newest,
                cursor: 0,
                tally,
            };
            readers.spawn_local(subscriber.run(connection));
        }
        let measured = select! {
            measured = run.measure(common, &target, Counted::Deliveries) => measured?,
            Some(ended) = tasks.join_next() => {
                ended.context("the producer panicked")??;
                unreachable!("the producer does not end before the run does")
            }
            Some(ended) = readers.join_next() => {
                ended.context("a subscriber panicked")??;
                unreachable!("subscribers do not end by themselves")
            }
        };
        run.stop();
        match timeout(PATIENCE, tasks.join_next()).await {
            Ok(ended) => drop(ended.expect("there is one producer").context("the producer panicked")??),
            Err(_) => run.ledger.borrow_mut().violation(|| format!("some events are not answered after {PATIENCE:?}")),
        }
        deliveries.wait_for_all(&run).await;
        readers.shutdown().await;
        let stored = target.stored().await? - stored;
        for (number, (key, tally)) in tallies.iter().enumerate() {
            let (expected, got) = (deliveries.expected.borrow()[*key], tally.get());
            if expected != got {
                let (expected, got) = (expected.count, got.count);
                let violation = || format!("subscriber {number} got {got} events, not the {expected} it asked for");
                run.ledger.borrow_mut().violation(violation);
            }
        }
        run.ledger.borrow_mut().check_stored(stored);
        let filter = match self.filter {
            By::All => "of everything".to_owned(),
            by => format!("of one {} each", format!("{by:?}").to_lowercase()),
        };
        let title = format!("{} subscribers {filter}, one producer", self.subscribers);
        Ok(Report::new("fanout", title, self, measured, Counted::Deliveries, self.rate, &run, target.stop()?))
    }

    /// How many different keys the filters may ask for.
    fn keys(&self) -> usize {
        match self.filter {
            By::All => 1,
            By::Session => self.events.sessions as usize,
            By::User => self.events.users as usize,
            By::Type => events::types().len(),
        }
    }

    /// The key that a subscriber asks for.
    fn key_of(&self, number: u32) -> usize {
        number as usize % self.keys()
    }

    async fn subscribe(&self, number: u32, target: &Target, scratch: &Scratch) -> anyhow::Result<Connection> {
        let key = self.key_of(number);
        let filters = match self.filter {
            By::All => json!({}),
            By::Session => json!({ "session_id": events::session(key as u32) }),
            By::User => json!({ "user_id": events::user(key as u32) }),
            By::Type => json!({ "event_types": [events::types()[key]] }),
        };
        let mut connection = Connection::web_socket(target, "/ws/subscribe", scratch).await?;
        frame::masked(connection.out(), OpCode::Text, filters.to_string().as_bytes(), *b"mask");
        let mut subscribed = false;
        while !subscribed {
            let read = connection.exchange(|bytes, out| {
                frames(bytes, out, |text| {
                    let answer: serde_json::Value =
                        serde_json::from_slice(text).context("the server's first answer")?;
                    if answer["status"] != "subscribed" {
                        bail!("subscriber {number}: the server answered {answer}");
                    }
                    subscribed = true;
                    Ok(())
                })
            });
            read.await?;
        }
        Ok(connection)
    }
}

/// What is on its way to subscribers.
pub struct Deliveries {
    by: By,
    /// How many subscribers ask for each key.
    subscribers: Vec<u32>,
    /// What was acknowledged of each key.
    expected: RefCell<Vec<Tally>>,
    /// When events were due: from each of these events on, counted from the first, at this time.
    due: RefCell<Vec<(u64, Instant)>>,
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

impl Deliveries {
    fn new(fanout: &Fanout) -> Self {
        let keys = fanout.keys();
        let mut subscribers = vec![0; keys];
        (0..fanout.subscribers).for_each(|number| subscribers[fanout.key_of(number)] += 1);
        let burst = fanout.window.div_ceil(2);
        Self {
            by: fanout.filter,
            subscribers,
            expected: RefCell::new(vec![Tally::default(); keys]),
            due: RefCell::default(),
            sent: Cell::new(0),
            received: Cell::new(0),
            burst: burst as usize,
            // On average an event goes to so many of the subscribers.
            under_way_max: u64::from(fanout.window - burst) * u64::from(fanout.subscribers) / keys as u64,
            progress: Notify::new(),
        }
    }

    #[inline]
    fn key(&self, keys: Keys) -> usize {
        match self.by {
            By::All => 0,
            By::Session => keys.session as usize,
            By::User => keys.user as usize,
            By::Type => keys.event_type as usize,
        }
    }

    /// These requests were sent, with an event in each.
    pub fn sent(&self, requests: &Requests, first: u64, count: usize, due: Instant) {
        self.due.borrow_mut().push((first, due));
        let sent = (first..first + count as u64).map(|n| u64::from(self.subscribers[self.key(requests.keys(n))]));
        self.sent.set(self.sent.get() + sent.sum::<u64>());
    }

    #[inline]
    pub fn acknowledged(&self, keys: Keys, sequence: u64) {
        self.expected.borrow_mut()[self.key(keys)].add(sequence);
    }

    fn received(&self, count: u64) {
        self.received.set(self.received.get() + count);
        self.progress.notify_one();
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

    /// Waits until everything is received, or cannot be any more.
    async fn wait_for_all(&self, run: &Run) {
        let complete = || {
            let expected = self.expected.borrow();
            let expected = expected.iter().zip(&self.subscribers).map(|(tally, n)| tally.count * u64::from(*n));
            run.deliveries() >= expected.sum()
        };
        while !complete() && run.ledger.borrow().is_clean() && timeout(PATIENCE, self.progress()).await.is_ok() {}
    }
}

struct Subscriber {
    number: usize,
    /// Whether it asks for everything.
    dense: bool,
    run: Rc<Run>,
    deliveries: Rc<Deliveries>,
    /// The last event before the run.
    newest: u64,
    last: u64,
    /// Where in `deliveries.due` the last event stands.
    cursor: usize,
    tally: Rc<Cell<Tally>>,
}

impl Subscriber {
    async fn run(mut self, mut connection: Connection) -> anyhow::Result<()> {
        loop {
            connection.exchange(|bytes, out| self.read(bytes, out)).await?;
        }
    }

    fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> anyhow::Result<usize> {
        let now = Instant::now();
        let mut tally = self.tally.get();
        let due = self.deliveries.due.borrow();
        let (before, mut noted) = (tally.count, tally.count);
        let used = frames(bytes, out, |text| {
            let Some(sequence) = answer::of_delivery(text)? else { return Ok(()) };
            let last = self.last;
            if sequence <= last || (self.dense && sequence != last + 1) {
                let number = self.number;
                let violation = || format!("subscriber {number} got event {sequence} after {last}");
                self.run.ledger.borrow_mut().violation(violation);
            }
            self.last = sequence;
            // We alone publish, so the number of an event among ours follows from its sequence number.
            let event = sequence.saturating_sub(self.newest + 1);
            while due.get(self.cursor + 1).is_some_and(|(first, _)| *first <= event) {
                if let Some((_, at)) = due.get(self.cursor) {
                    self.run.took(*at, now, tally.count - noted);
                }
                noted = tally.count;
                self.cursor += 1;
            }
            tally.add(sequence);
            Ok(())
        })?;
        if let Some((_, at)) = due.get(self.cursor) {
            self.run.took(*at, now, tally.count - noted);
        }
        self.tally.set(tally);
        self.run.delivered(tally.count - before);
        self.deliveries.received(tally.count - before);
        Ok(used)
    }
}
