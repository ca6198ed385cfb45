//! The scenario `publish`: how fast events are stored and acknowledged.

use anyhow::{Context, ensure};
use clap::{Args, Parser, ValueEnum};
use event_pipeline::wire::frame::{self, OpCode};
use serde::Serialize;
use tokio::time::timeout;

use crate::answer;
use crate::connection::{Connection, Scratch};
use crate::events::Events;
use crate::flow::Flow;
use crate::latency::Operation;
use crate::options::Common;
use crate::producer::Producer;
use crate::report::{Findings, Report};
use crate::requests::{Framing, Requests};
use crate::run::{PATIENCE, Run};
use crate::schedule::{Pacer, Rate};
use crate::target::{Target, TargetArgs};
use crate::tasks::Tasks;
use crate::tracker::{Dialect, Ids, RequestTracker};
use crate::wire::frames;

/// Publish events and measure how fast they are acknowledged
///
/// Verifies that every request is answered, in order, with ascending ids of which none comes twice, and that as
/// many events are stored as were acknowledged.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Publish {
    /// The way in
    #[arg(long, value_enum, default_value_t = Via::Ws)]
    pub via: Via,
    /// Connections, each a producer of its own [default: 4; 64 over HTTP with one event a request]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub connections: Option<u32>,
    /// Events in flight on each connection [default: 1024; over HTTP one request]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub window: Option<u32>,
    /// Events in each request: a JSON array over WebSocket, NDJSON over HTTP
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: u32,
    /// Events a second, or max: as fast as the windows permit. At a rate, latency counts from when an event was due
    #[arg(long, value_name = "RATE", default_value = "max")]
    pub rate: Rate,
    /// Afterwards read all events back and compare each with what was sent
    #[arg(long, conflicts_with = "url")]
    pub read_back: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub events: Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    Ws,
    Http,
}

impl Default for Publish {
    fn default() -> Self {
        #[derive(Parser)]
        struct Defaults {
            #[command(flatten)]
            publish: Publish,
            // `read_back` conflicts with an option of this one.
            #[command(flatten)]
            _target: TargetArgs,
        }
        Defaults::parse_from([""]).publish
    }
}

impl Publish {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        self.measure_on(Target::new(&common.target).await?, common).await
    }

    /// Measures a server that keeps the same contract.
    pub async fn measure_on(&self, target: Target, common: &Common) -> anyhow::Result<Report> {
        let plan = self.resolve();
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        let framing = match self.via {
            Via::Ws => Framing::WebSocket,
            Via::Http => Framing::Http { path: format!("{}/events", target.prefix), headers: target.headers() },
        };
        let (scratch, mut ready) = (Scratch::default(), Vec::new());
        for producer in 0..plan.connections {
            let connection = match self.via {
                Via::Ws => Connection::web_socket(&target, "/ws/publish", &scratch).await?,
                Via::Http => Connection::open(&target.authority, &scratch).await?,
            };
            ready.push((connection, self.requests(&framing, producer, plan.connections)));
        }

        let run = Run::new(Operation::Acknowledgement, newest);
        let requests_per_second = self.rate.0.map(|rate| rate.div_ceil(u64::from(self.batch)));
        let pacer = Pacer::steady(run.start, Rate(requests_per_second))?;
        let (mut tasks, mut ids) = (Tasks::default(), Vec::new());
        for (number, (connection, requests)) in ready.into_iter().enumerate() {
            let flow = Flow::share(pacer.as_ref(), number, plan.connections);
            let mut tracker = RequestTracker::new(run.clone(), requests.into(), plan.dialect);
            if self.read_back {
                ids.push(Ids::default());
                tracker = tracker.recording_ids(ids[number].clone());
            }
            tasks.spawn(Producer::new(connection, flow, plan.window, tracker).run());
        }
        let measured = tasks.measure(&run, common, &target).await?;
        tasks.finish(&run).await?;
        run.check_stored(&target, stored).await?;
        if self.read_back {
            self.compare(&target, &run, &ids, &scratch).await?;
        }
        Ok(Report::new(Findings::new("publish", plan.title, self).at(self.rate), &run, measured, target.stop()?))
    }

    /// Resolves the defaults that depend on other options.
    pub fn resolve(&self) -> Plan {
        let (dialect, connections, in_flight) = match (self.via, self.batch) {
            (Via::Ws, _) => (Dialect::WebSocket, 4, 1_024),
            (Via::Http, 1) => (Dialect::Http, 64, 1),
            (Via::Http, batch) => (Dialect::Http, 4, batch),
        };
        let connections = self.connections.unwrap_or(connections);
        let window = (self.window.unwrap_or(in_flight) / self.batch).max(1);
        let each = match (self.via, self.batch) {
            (Via::Ws, 1) => "WebSocket, one event a message".to_owned(),
            (Via::Ws, batch) => format!("WebSocket, arrays of {batch} events"),
            (Via::Http, 1) => "HTTP, one event a request".to_owned(),
            (Via::Http, batch) => format!("HTTP, {batch} events as NDJSON a request"),
        };
        let title = format!("{each}, {connections} connections × {} events in flight", window * self.batch);
        Plan { dialect, connections: connections as usize, window: window as usize, title }
    }

    fn requests(&self, framing: &Framing, producer: usize, producers: usize) -> Requests {
        Requests::render(&self.events, self.batch as usize, framing, producer, producers)
    }

    /// Reads everything back through a subscription and compares each event with what its producer sent,
    /// and its order with what the producer was answered.
    async fn compare(&self, target: &Target, run: &Run, ids: &[Ids], scratch: &Scratch) -> anyhow::Result<()> {
        let mut socket = Connection::web_socket(target, "/ws/subscribe", scratch).await?;
        frame::masked(socket.out(), OpCode::Text, br#"{"after":"evt_000000000000"}"#, *b"mask");
        let sent = (0..ids.len()).map(|producer| self.requests(&Framing::Plain, producer, ids.len()));
        let sent = sent.collect::<Vec<_>>();
        // An event's index among those of its producer follows from its id.
        let mut events = ids
            .iter()
            .enumerate()
            .flat_map(|(p, ids)| (0..).zip(ids.take()).map(move |(n, id)| (id, p, n)))
            .collect::<Vec<_>>();
        events.sort_unstable();
        let mut events = events.into_iter();
        let mut left = events.len();
        while left > 0 {
            let read = socket.exchange(|bytes, out| {
                frames(bytes, out, |text| {
                    let Some(sequence) = answer::of_delivery(text)? else { return Ok(()) };
                    let (id, producer, number) = events.next().context("more events came back than were sent")?;
                    ensure!(id == sequence, "event {sequence} was read back where {id} should be");
                    // Before what was sent stands the id, behind it the timestamp.
                    const ID_BYTES: usize = r#"{"id":"evt_000000000000","#.len();
                    let sent = sent[producer].get(number).strip_suffix(b"}").expect("an object ends so");
                    if !text.get(ID_BYTES..).is_some_and(|text| text.starts_with(&sent[1..])) {
                        run.violation(|| {
                            format!("event {sequence} is not what was sent: {}", String::from_utf8_lossy(text))
                        });
                    }
                    left -= 1;
                    Ok(())
                })
            });
            timeout(PATIENCE, read).await.with_context(|| format!("{left} events do not come back"))??;
        }
        Ok(())
    }
}

pub struct Plan {
    dialect: Dialect,
    pub connections: usize,
    /// Requests in flight on each connection.
    pub window: usize,
    title: String,
}
