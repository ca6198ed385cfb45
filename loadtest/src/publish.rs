//! The scenario `publish`: how fast events are stored and acknowledged.

use anyhow::{Context, ensure};
use clap::{Args, Parser, ValueEnum};
use event_pipeline::wire::frame::{self, OpCode};
use serde::Serialize;
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answer;
use crate::connection::{Connection, Scratch, frames};
use crate::events::{Events, Framing, Requests};
use crate::pace::Pace;
use crate::producer::{Book, Dialect, Flow, Producer};
use crate::report::Report;
use crate::run::{Common, Counted, PATIENCE, Run};
use crate::target::Target;

/// Publish events and measure how fast they are acknowledged
///
/// Verifies that every request is answered, in order, with ascending ids of which none comes twice, and that as
/// many events are stored as were acknowledged.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Publish {
    /// The way in
    #[arg(long, value_enum, default_value_t = Via::Ws)]
    via: Via,
    /// Connections, each a producer of its own [default: 4; 64 over HTTP with one event a request]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    connections: Option<u32>,
    /// Events under way on each connection [default: 1024; over HTTP one request]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    window: Option<u32>,
    /// Events in each request: a JSON array over WebSocket, NDJSON over HTTP
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Events a second, or max: as fast as the windows let. At a rate, latency counts from when an event was due
    #[arg(long, value_name = "RATE", default_value = "max")]
    rate: Rate,
    /// Afterwards read all events back and compare each with what was sent
    #[arg(long, conflicts_with = "url")]
    read_back: bool,
    #[command(flatten)]
    #[serde(flatten)]
    events: Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Via {
    Ws,
    Http,
}

/// Events a second; `None` is as fast as it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rate(pub Option<u64>);

impl std::str::FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "max" => Ok(Self(None)),
            Ok(rate @ 1..=100_000_000) => Ok(Self(Some(rate))),
            _ => Err("neither max nor a whole number from 1 to 100000000"),
        }
    }
}

impl Default for Publish {
    fn default() -> Self {
        #[derive(Parser)]
        struct Defaults {
            #[command(flatten)]
            publish: Publish,
        }
        Defaults::parse_from([""]).publish
    }
}

impl Publish {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let plan = self.resolve();
        let target = Target::new(&common.target)?;
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        let framing = match self.via {
            Via::Ws => Framing::WebSocket,
            Via::Http => Framing::Http { path: format!("{}/events", target.prefix), headers: target.headers() },
        };
        let (scratch, mut ready) = (Scratch::default(), Vec::new());
        for producer in 0..plan.connections {
            let connection = match self.via {
                Via::Ws => Connection::web_socket(&target, "/ws/publish", &scratch).await?,
                Via::Http => Connection::open(&target, &scratch).await?,
            };
            ready.push((connection, self.requests(&framing, producer, plan.connections)));
        }

        let run = Run::new(newest);
        let pace = match self.rate {
            Rate(None) => None,
            Rate(Some(rate)) => Some(Pace::start(run.start, rate.div_ceil(u64::from(self.batch)))?),
        };
        let mut producers = JoinSet::new();
        for (number, (connection, requests)) in ready.into_iter().enumerate() {
            let flow = pace.as_ref().map_or(Flow::Window, |p| Flow::Due(p.schedule(number, plan.connections)));
            let book = Book::new(run.clone(), requests.into(), plan.dialect).keeping_ids(self.read_back);
            let producer = Producer::new(connection, flow, plan.window, book);
            producers.spawn_local(async move { producer.run().await.map(|ids| (number, ids)) });
        }
        let measured = select! {
            measured = run.measure(common, &target, Counted::Events) => measured?,
            Some(ended) = producers.join_next() => {
                ended.context("a producer panicked")??;
                unreachable!("producers do not end before the run does")
            }
        };
        run.stop();
        let mut ids = vec![Vec::new(); plan.connections];
        let answered = timeout(PATIENCE, async {
            while let Some(ended) = producers.join_next().await {
                let (producer, its) = ended.context("a producer panicked")??;
                ids[producer] = its;
            }
            anyhow::Ok(())
        });
        match answered.await {
            Ok(ended) => ended?,
            Err(_) => {
                run.ledger.borrow_mut().violation(|| format!("some requests are not answered after {PATIENCE:?}"))
            }
        }
        let stored = target.stored().await? - stored;
        run.ledger.borrow_mut().check_stored(stored);
        if self.read_back {
            self.compare(&target, &run, &ids, &scratch).await?;
        }
        Ok(Report::new("publish", plan.title, self, measured, Counted::Events, self.rate, &run, target.stop()?))
    }

    /// What depends on what.
    fn resolve(&self) -> Plan {
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
    /// and its place with what the producer was answered.
    async fn compare(&self, target: &Target, run: &Run, ids: &[Vec<u64>], scratch: &Scratch) -> anyhow::Result<()> {
        let mut socket = Connection::web_socket(target, "/ws/subscribe", scratch).await?;
        frame::masked(socket.out(), OpCode::Text, br#"{"after":"evt_000000000000"}"#, *b"mask");
        let sent = (0..ids.len()).map(|producer| self.requests(&Framing::Plain, producer, ids.len()));
        let sent = sent.collect::<Vec<_>>();
        // An event's place among those of its producer follows from its id.
        let mut places = ids
            .iter()
            .enumerate()
            .flat_map(|(p, ids)| (0..).zip(ids).map(move |(n, id)| (*id, p, n)))
            .collect::<Vec<_>>();
        places.sort_unstable();
        let mut places = places.into_iter();
        let mut left = places.len();
        while left > 0 {
            let read = socket.exchange(|bytes, out| {
                frames(bytes, out, |text| {
                    let Some(sequence) = answer::of_delivery(text)? else { return Ok(()) };
                    let (id, producer, number) = places.next().context("more events came back than were sent")?;
                    ensure!(id == sequence, "event {sequence} was read back where {id} should be");
                    // Before what was sent stands the id, behind it the timestamp.
                    const ID_BYTES: usize = r#"{"id":"evt_000000000000","#.len();
                    let sent = sent[producer].get(number).strip_suffix(b"}").expect("an object ends so");
                    if !text.get(ID_BYTES..).is_some_and(|text| text.starts_with(&sent[1..])) {
                        run.ledger.borrow_mut().violation(|| {
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

struct Plan {
    dialect: Dialect,
    connections: usize,
    /// Requests under way on each connection.
    window: usize,
    title: String,
}
