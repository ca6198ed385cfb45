//! A workload: the producers, subscribers and readers of a run, driven, measured and verified together.

use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;

use crate::connection::{Connection, Scratch};
use crate::deliveries::{Audience, Deliveries};
use crate::events::{Events, Names};
use crate::latency::Operation;
use crate::measurement::Measured;
use crate::options::Common;
use crate::producer::{Flow, Producer};
use crate::query_client::{QueryClient, QueryKind, QueryWorkload};
use crate::requests::{Framing, Requests};
use crate::run::Run;
use crate::schedule::{Arrivals, Profile, RATE_REACHED, Rate, Scheduler};
use crate::subscriber::{Slowness, Subscribers};
use crate::target::{Heads, Stopped, Target, TargetArgs};
use crate::tasks::Tasks;
use crate::timeline::STEP;
use crate::tracker::{Dialect, RequestTracker};

/// Events beyond what a schedule of that many can be expected to be off by chance, in standard deviations.
const BY_CHANCE: f64 = 5.0;

/// The clients of a run, connected, and how fast they are to go.
pub struct Workload {
    /// What the run counts.
    pub counted: Operation,
    pub producers: Vec<Publisher>,
    pub subscribers: Option<Subscribers>,
    pub readers: Option<Readers>,
    /// Events a second of all producers; without it they send as fast as answers come.
    pub rate: Option<Profile>,
    /// Whether producers without a rate wait until subscribers have received what was sent.
    pub waits_for_subscribers: bool,
    /// See [`Run::in_phases`].
    pub step: Duration,
    pub phases: Vec<Duration>,
}

/// A producer that is connected.
pub struct Publisher {
    pub connection: Connection,
    pub requests: Rc<Requests>,
    pub dialect: Dialect,
    /// Most requests under way.
    pub window: usize,
    /// Whether the latency of its answers is recorded.
    pub is_timed: bool,
    /// When its requests are due in a run at a rate.
    pub turn: Turn,
}

/// A producer's part in a rate.
pub enum Turn {
    /// An equal share: this is producer `number` of `of` producers, which together have `part` of the rate.
    Share { part: f64, number: usize, of: usize },
    /// Times of its own.
    Own(Arrivals),
}

/// Clients that query.
pub struct Readers {
    pub asks: Vec<QueryKind>,
    pub connections: Vec<Connection>,
    /// Queries a second of all of them.
    pub rate: Rate,
    pub sessions: u32,
}

/// A way in, over which connections publish events that are rendered for them.
pub struct Ingress {
    pub dialect: Dialect,
    pub connections: usize,
    pub events_each: usize,
    /// Requests under way on each.
    pub window: usize,
    /// Its part of the rate.
    pub part: f64,
}

impl Ingress {
    /// One that takes the whole rate.
    pub fn new(dialect: Dialect, connections: u32, events_each: u32, window: u32) -> Self {
        let [connections, events_each, window] = [connections, events_each, window].map(|count| count as usize);
        Self { dialect, connections, events_each, window, part: 1.0 }
    }
}

/// The server of a run, and what it had stored before.
pub struct Site {
    pub target: Rc<Target>,
    pub newest: u64,
    pub stored: u64,
    /// How many events the run has deleted.
    pub deleted: u64,
    pub scratch: Scratch,
    /// What producers ask for in their URL, such as `?ack=stored`.
    pub ack: String,
}

impl Site {
    /// The server that these options name, or one that is started.
    pub async fn new(args: &TargetArgs) -> anyhow::Result<Self> {
        Self::of(Target::new(args).await?).await
    }

    /// Looks at what a server has stored.
    pub async fn of(target: Target) -> anyhow::Result<Self> {
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        Ok(Self { newest, stored, ..Self::empty(target) })
    }

    /// A server of another kind that has stored nothing.
    pub fn empty(target: Target) -> Self {
        let (scratch, ack) = Default::default();
        Self { target: Rc::new(target), newest: 0, stored: 0, deleted: 0, scratch, ack }
    }

    /// Ends a server that was started for the run.
    pub fn stop(self) -> anyhow::Result<Stopped> {
        Rc::into_inner(self.target).context("a task still holds the target")?.stop()
    }

    /// Connects producers. `number` is the number of the first, of `all` in the run.
    ///
    /// # Errors
    /// The server does not let one in.
    pub async fn publishers(
        &self,
        ingress: &Ingress,
        events: &Events,
        number: usize,
        all: usize,
    ) -> anyhow::Result<Vec<Publisher>> {
        let mut publishers = Vec::new();
        for own in 0..ingress.connections {
            let Ingress { dialect, events_each, window, part, connections } = *ingress;
            let (connection, framing) = self.connect(dialect).await?;
            let requests = Rc::new(Requests::render(events, events_each, &framing, number + own, all));
            let turn = Turn::Share { part, number: own, of: connections };
            publishers.push(Publisher { turn, ..Publisher::new(connection, requests, dialect, window) });
        }
        Ok(publishers)
    }

    /// A connection for a producer, and how requests are framed on it.
    pub async fn connect(&self, dialect: Dialect) -> anyhow::Result<(Connection, Framing)> {
        let target = &self.target;
        Ok(match dialect {
            Dialect::WebSocket => {
                let path = format!("/ws/publish{}", self.ack);
                (Connection::web_socket(target, &path, &self.scratch).await?, Framing::WebSocket)
            }
            _ => {
                let Heads { prefix, headers } = target.heads.clone();
                (self.open().await?, Framing::Http { path: format!("{prefix}/events{}", self.ack), headers })
            }
        })
    }

    /// A connection for requests over HTTP.
    pub async fn open(&self) -> anyhow::Result<Connection> {
        Connection::open(&self.target, &self.scratch).await
    }

    /// Connects the subscribers of such audiences.
    pub async fn subscribers(
        &self,
        names: Names,
        audiences: &[Audience],
        window: u32,
        of_one_producer: Option<Rc<Requests>>,
    ) -> anyhow::Result<Subscribers> {
        let deliveries = Rc::new(Deliveries::new(self.newest, names, audiences, window, of_one_producer));
        Subscribers::connect(deliveries, &self.target, &self.scratch).await
    }

    /// One producer on a WebSocket with one event a message, and its subscribers; without a rate it waits for them.
    pub async fn one_producer(
        &self,
        requests: Requests,
        names: Names,
        audiences: &[Audience],
        window: u32,
    ) -> anyhow::Result<Workload> {
        let requests = Rc::new(requests);
        let subscribers = self.subscribers(names, audiences, window, Some(requests.clone())).await?;
        let (connection, _) = self.connect(Dialect::WebSocket).await?;
        let publisher = Publisher::new(connection, requests, Dialect::WebSocket, window as usize);
        Ok(Workload {
            subscribers: Some(subscribers),
            waits_for_subscribers: true,
            ..Workload::new(Operation::Delivery, vec![publisher])
        })
    }

    pub async fn readers(&self, count: u32, asks: &[QueryKind], rate: Rate, sessions: u32) -> anyhow::Result<Readers> {
        let mut connections = Vec::new();
        for _ in 0..count {
            connections.push(self.open().await?);
        }
        Ok(Readers { asks: asks.to_vec(), connections, rate, sessions })
    }
}

impl Publisher {
    /// The only one of a run, as far as the rate is concerned.
    pub fn new(connection: Connection, requests: Rc<Requests>, dialect: Dialect, window: usize) -> Self {
        let turn = Turn::Share { part: 1.0, number: 0, of: 1 };
        Self { connection, requests, dialect, window, is_timed: true, turn }
    }
}

impl Workload {
    /// Of producers that send as fast as answers come.
    pub fn new(counted: Operation, producers: Vec<Publisher>) -> Self {
        Self {
            counted,
            producers,
            subscribers: None,
            readers: None,
            rate: None,
            waits_for_subscribers: false,
            step: STEP,
            phases: Vec::new(),
        }
    }

    /// Starts everybody; nothing is due yet.
    pub fn start(self, site: &Site) -> Started {
        let run = Run::in_phases(self.counted, site.newest, self.step, &self.phases);
        let (mut tasks, mut scheduler) = (Tasks::default(), Scheduler::default());
        let deliveries = self.subscribers.as_ref().map(|subscribers| subscribers.deliveries.clone());
        let queries = self.readers.as_ref().map(|readers| {
            QueryWorkload::new(&run, &site.target, readers.sessions, &readers.asks, site.newest, site.stored)
        });
        let mut plan = Plan { rate: self.rate.clone(), recorded: Vec::new(), coarseness: 0, in_flight: 0 };
        for Publisher { connection, requests, dialect, window, is_timed, turn } in self.producers {
            let each = requests.events_each();
            plan.coarseness += each as u64;
            plan.in_flight += (window * each) as u64;
            let flow = match (turn, &self.rate, &deliveries) {
                (Turn::Own(arrivals), ..) => {
                    plan.recorded.push(arrivals.clone());
                    Flow::Due(scheduler.add(arrivals))
                }
                (Turn::Share { part, number, of }, Some(rate), _) => {
                    Flow::Due(scheduler.add(Arrivals::at_rate(rate, part, each, number, of)))
                }
                (_, None, Some(deliveries)) if self.waits_for_subscribers => Flow::Received(deliveries.clone()),
                _ => Flow::Window,
            };
            let mut tracker = RequestTracker::new(run.clone(), requests, dialect, is_timed);
            tracker.deliveries = deliveries.clone();
            tracker.acknowledged = queries.as_ref().map(|queries| queries.acknowledged.clone());
            tasks.spawn(Producer::new(connection, flow, window, tracker).run());
        }
        let slowness = self.subscribers.as_ref().map(|subscribers| subscribers.slowness.clone()).unwrap_or_default();
        if let Some(subscribers) = self.subscribers {
            subscribers.listen(&run, &mut tasks);
        }
        if let (Some(Readers { connections, rate: Rate(rate), .. }), Some(queries)) = (self.readers, &queries) {
            let (rate, of) = (rate.map(Profile::steady), connections.len());
            for (number, connection) in connections.into_iter().enumerate() {
                let arrivals = rate.as_ref().map(|rate| Arrivals::at_rate(rate, 1.0, 1, number, of));
                let flow = arrivals.map_or(Flow::Window, |arrivals| Flow::Due(scheduler.add(arrivals)));
                tasks.spawn(QueryClient::new(number, queries.clone(), connection, flow).run());
            }
        }
        Started { run, tasks, scheduler, deliveries, slowness, queries, plan }
    }

    /// Starts everybody, measures and verifies.
    pub async fn drive(self, site: &Site, common: &Common) -> anyhow::Result<Driven> {
        self.start(site).measure(&site.target, common).await
    }
}

/// A run that has begun.
pub struct Started {
    pub run: Rc<Run>,
    pub tasks: Tasks,
    pub scheduler: Scheduler,
    pub deliveries: Option<Rc<Deliveries>>,
    pub slowness: Rc<Slowness>,
    pub queries: Option<Rc<QueryWorkload>>,
    plan: Plan,
}

/// What was to be published.
struct Plan {
    rate: Option<Profile>,
    recorded: Vec<Arrivals>,
    /// Events in one request of every producer.
    coarseness: u64,
    in_flight: u64,
}

/// A run that is over, with every acknowledgement, delivery and answer verified, but not what is stored.
pub struct Driven {
    pub run: Rc<Run>,
    pub measured: Measured,
    pub deliveries: Option<Rc<Deliveries>>,
    pub slowness: Rc<Slowness>,
    pub queries: Option<Rc<QueryWorkload>>,
    /// The events a second that were to be published, if a rate was given, and whether they were.
    pub asked: Option<(f64, bool)>,
    /// Most events in flight.
    pub in_flight: u64,
}

impl Started {
    /// Measures, waits for every answer and every delivery, and verifies them.
    ///
    /// # Errors
    /// A client failed.
    pub async fn measure(self, target: &Target, common: &Common) -> anyhow::Result<Driven> {
        let Self { run, mut tasks, scheduler, deliveries, slowness, queries, plan } = self;
        let clock = scheduler.run(run.start)?;
        let interval = tasks.measure(&run, common, target, &clock).await?;
        slowness.resume.notify_waiters();
        tasks.finish(&run).await?;
        if let Some(deliveries) = &deliveries {
            deliveries.check(&run, slowness.may_be_cut_off.get()).await;
        }
        tasks.shutdown().await;
        let measured = run.measured(interval);
        let asked = plan.asked(common.warm_up(), measured.elapsed).map(|asked| {
            let events = asked * measured.elapsed.as_secs_f64();
            let least = events * RATE_REACHED - plan.coarseness as f64 - plan.by_chance(events);
            (asked, run.abandoned.get() == 0 && measured.count(Operation::Acknowledgement) as f64 >= least)
        });
        Ok(Driven { run, measured, deliveries, slowness, queries, asked, in_flight: plan.in_flight })
    }
}

impl Plan {
    /// Events a second that were due in the measured interval; `None` of a closed loop.
    fn asked(&self, warm_up: Duration, elapsed: Duration) -> Option<f64> {
        let (from, to) = (warm_up, warm_up + elapsed);
        let recorded = self.recorded.iter().map(|arrivals| arrivals.count(from, to)).sum::<u64>() as f64;
        let events = match &self.rate {
            Some(rate) => rate.between(from, to),
            None if !self.recorded.is_empty() => recorded,
            None => return None,
        };
        Some(events / elapsed.as_secs_f64())
    }

    fn by_chance(&self, events: f64) -> f64 {
        if self.rate.as_ref().is_some_and(Profile::is_random) { BY_CHANCE * events.sqrt() } else { 0.0 }
    }
}
