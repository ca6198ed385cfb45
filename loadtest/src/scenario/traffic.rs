//! Traffic of every kind at once: HTTP, WebSocket and NDJSON producers, subscribers and query clients.

use std::rc::Rc;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::connection::{Connection, Scratch};
use crate::deliveries::{Deliveries, FilterBy};
use crate::events::Events;
use crate::flow::Flow;
use crate::latency::Operation;
use crate::measurement::Measured;
use crate::options::Common;
use crate::producer::Producer;
use crate::query_client::{QueryClient, QueryKind, QueryWorkload};
use crate::requests::{Framing, Requests};
use crate::run::Run;
use crate::schedule::{Pacer, Rate, RateProfile};
use crate::subscriber::Subscribers;
use crate::target::{Stopped, Target};
use crate::tasks::Tasks;
use crate::tracker::{Dialect, RequestTracker};

/// Events in each request of a producer that sends many.
const MANY: u32 = 100;

/// Events in flight of a producer on a WebSocket.
const WINDOW: usize = 1_024;

/// How many clients of each kind take part.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Traffic {
    /// Connections that POST one event at a time
    #[arg(long, value_name = "N", default_value_t = 16)]
    http: u32,
    /// WebSockets that publish, one event a message
    #[arg(long, value_name = "N", default_value_t = 2)]
    ws: u32,
    /// Connections that POST 100 events at a time, as NDJSON
    #[arg(long, value_name = "N", default_value_t = 1)]
    ndjson: u32,
    /// Subscribers: in equal parts of everything, and of a session, a user or a type each
    #[arg(long, value_name = "N", default_value_t = 20)]
    subscribers: u32,
    /// Query clients that send all kinds of queries in turn, one at a time
    #[arg(long, value_name = "N", default_value_t = 2)]
    readers: u32,
    /// Queries a second of all query clients, or max
    #[arg(long, value_name = "RATE", default_value = "200")]
    query_rate: Rate,
    #[command(flatten)]
    #[serde(flatten)]
    events: Events,
}

/// How a run is driven.
pub struct Drive {
    /// Events a second of all producers, each ingress with an equal share; `None` is as fast as possible.
    pub profile: Option<RateProfile>,
    /// See [`Run::in_phases`].
    pub step: Duration,
    pub phases: Vec<Duration>,
}

/// The result of a run, with everything verified.
pub struct Driven {
    pub run: Rc<Run>,
    pub measured: Measured,
    pub server: Stopped,
    /// The latencies of queries, in sentences.
    pub notes: Vec<String>,
}

/// One way of publishing, with its producers.
struct Ingress {
    connections: u32,
    dialect: Dialect,
    framing: Framing,
    events_each: u32,
    /// Requests in flight.
    window: usize,
}

impl Traffic {
    /// Runs all clients, measures them, and verifies acknowledgements, deliveries and answers.
    pub async fn drive(&self, target: Target, common: &Common, drive: Drive) -> anyhow::Result<Driven> {
        let producers = (self.http + self.ws + self.ndjson) as usize;
        ensure!(producers > 0, "nobody publishes: --http, --ws and --ndjson are all 0");
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        let (scratch, mut ready) = (Scratch::default(), Vec::new());
        let ingresses = self.ingresses(&target);
        for ingress in &ingresses {
            for number in 0..ingress.connections as usize {
                let connection = match ingress.framing {
                    Framing::WebSocket => Connection::web_socket(&target, "/ws/publish", &scratch).await?,
                    _ => Connection::open(&target.authority, &scratch).await?,
                };
                let (each, source) = (ingress.events_each as usize, ready.len());
                let requests = Requests::render(&self.events, each, &ingress.framing, source, producers);
                ready.push((ingress, number, connection, requests));
            }
        }
        let deliveries = Rc::new(Deliveries::new(newest, &self.events, &self.asking(), 0, false));
        let connected = Subscribers::connect(deliveries.clone(), &target, &scratch).await?;
        let mut readers = Vec::new();
        for _ in 0..self.readers {
            readers.push(Connection::open(&target.authority, &scratch).await?);
        }

        let run = Run::in_phases(Operation::Acknowledgement, newest, drive.step, &drive.phases);
        let workload = QueryWorkload::new(&run, &target, &self.events, &QueryKind::USUAL, newest, stored);
        let mut tasks = Tasks::default();
        let pacer = drive
            .profile
            .map(|profile| anyhow::Ok((Pacer::start(run.start, profile.clone())?, profile)))
            .transpose()?;
        let shares = ingresses.iter().filter(|ingress| ingress.connections > 0).count() as u64;
        for (ingress, number, connection, requests) in ready {
            let flow = pacer.as_ref().map_or(Flow::Window, |(pacer, profile)| {
                let profile = profile.divided(shares * u64::from(ingress.events_each));
                Flow::Due(pacer.schedule_of(profile, number, ingress.connections as usize))
            });
            let tracker = RequestTracker::new(run.clone(), Rc::new(requests), ingress.dialect);
            let tracker = tracker.with_deliveries(deliveries.clone()).with_acknowledged(workload.acknowledged.clone());
            tasks.spawn(Producer::new(connection, flow, ingress.window, tracker).run());
        }
        connected.listen(&run, &mut tasks);
        let query_pacer = Pacer::steady(run.start, self.query_rate)?;
        for (number, connection) in readers.into_iter().enumerate() {
            let flow = Flow::share(query_pacer.as_ref(), number, self.readers as usize);
            tasks.spawn(QueryClient::new(number, workload.clone(), connection, flow).run());
        }
        let measured = tasks.measure(&run, common, &target).await?;
        tasks.finish(&run).await?;
        deliveries.check(&run).await;
        tasks.shutdown().await;
        run.check_stored(&target, stored).await?;
        let server = target.stop()?;
        Ok(Driven { measured, server, notes: workload.notes(), run })
    }

    /// The clients that take part, in words.
    pub fn title(&self) -> String {
        let Self { http, ws, ndjson, subscribers, readers, .. } = self;
        format!("producers: {http} HTTP, {ws} WebSocket, {ndjson} NDJSON; {subscribers} subscribers, {readers} readers")
    }

    fn ingresses(&self, target: &Target) -> [Ingress; 3] {
        let http = Framing::Http { path: format!("{}/events", target.prefix), headers: target.headers() };
        let ingress = |connections, dialect, framing, events_each, window| Ingress {
            connections,
            dialect,
            framing,
            events_each,
            window,
        };
        [
            ingress(self.http, Dialect::Http, http.clone(), 1, 1),
            ingress(self.ws, Dialect::WebSocket, Framing::WebSocket, 1, WINDOW),
            ingress(self.ndjson, Dialect::Http, http, MANY, 1),
        ]
    }

    /// How many subscribers have each kind of filter.
    fn asking(&self) -> Vec<(FilterBy, u32)> {
        let parts = FilterBy::ALL.len() as u32;
        (0..).zip(FilterBy::ALL).map(|(n, by)| (by, (self.subscribers + parts - 1 - n) / parts)).collect()
    }
}
