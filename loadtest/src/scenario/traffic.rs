//! Every way in and every way out at once, as other scenarios use it.

use std::rc::Rc;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::connection::{Connection, Scratch};
use crate::deliveries::{By, Deliveries};
use crate::events::{Events, Framing, Requests};
use crate::latency::Kind;
use crate::pace::{Pace, Rate, Rhythm};
use crate::producer::{Book, Dialect, Flow, Producer};
use crate::reader::{Ask, Library, Reader};
use crate::run::{Common, Measured, Run};
use crate::subscriber::Audience;
use crate::target::{Stopped, Target};
use crate::tasks::Tasks;

/// Events in each request of a producer that sends many.
const MANY: u32 = 100;

/// Most events under way of a producer that need not wait for an answer.
const WINDOW: usize = 1_024;

/// Who takes part.
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
    /// Readers that ask for everything in turn, one question at a time
    #[arg(long, value_name = "N", default_value_t = 2)]
    readers: u32,
    /// Questions a second of all readers, or max
    #[arg(long, value_name = "RATE", default_value = "200")]
    query_rate: Rate,
    #[command(flatten)]
    #[serde(flatten)]
    events: Events,
}

/// How a run is driven.
pub struct Drive {
    /// Events a second of all producers, each way in with an equal share; `None` is as fast as it goes.
    pub rhythm: Option<Rhythm>,
    /// See [`Run::in_phases`].
    pub step: Duration,
    pub phases: Vec<Duration>,
}

/// What came of it, everything verified.
pub struct Driven {
    pub run: Rc<Run>,
    pub measured: Measured,
    pub server: Stopped,
    /// How long answers took, in sentences.
    pub notes: Vec<String>,
}

/// One way in.
struct Way {
    connections: u32,
    dialect: Dialect,
    framing: Framing,
    events_each: u32,
    /// Requests under way.
    window: usize,
}

impl Traffic {
    /// Lets everybody do what they do, measures it, and verifies acknowledgements, deliveries and answers.
    pub async fn drive(&self, target: Target, common: &Common, drive: Drive) -> anyhow::Result<Driven> {
        let producers = (self.http + self.ws + self.ndjson) as usize;
        ensure!(producers > 0, "nobody publishes: --http, --ws and --ndjson are all 0");
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        let (scratch, mut ready) = (Scratch::default(), Vec::new());
        let ways = self.ways(&target);
        for way in &ways {
            for number in 0..way.connections as usize {
                let connection = match way.framing {
                    Framing::WebSocket => Connection::web_socket(&target, "/ws/publish", &scratch).await?,
                    _ => Connection::open(&target.authority, &scratch).await?,
                };
                let (each, source) = (way.events_each as usize, ready.len());
                let requests = Requests::render(&self.events, each, &way.framing, source, producers);
                ready.push((way, number, connection, requests));
            }
        }
        let deliveries = Rc::new(Deliveries::new(newest, &self.events, &self.asking(), 0, false));
        let audience = Audience::connect(deliveries.clone(), &target, &scratch).await?;
        let mut readers = Vec::new();
        for _ in 0..self.readers {
            readers.push(Connection::open(&target.authority, &scratch).await?);
        }

        let run = Run::in_phases(Kind::Acknowledgement, newest, drive.step, &drive.phases);
        let library = Library::new(&run, &target, &self.events, &Ask::USUAL, newest, stored);
        let mut tasks = Tasks::default();
        let pace =
            drive.rhythm.map(|rhythm| anyhow::Ok((Pace::start(run.start, rhythm.clone())?, rhythm))).transpose()?;
        let shares = ways.iter().filter(|way| way.connections > 0).count() as u64;
        for (way, number, connection, requests) in ready {
            let flow = pace.as_ref().map_or(Flow::Window, |(pace, rhythm)| {
                let rhythm = rhythm.divided(shares * u64::from(way.events_each));
                Flow::Due(pace.schedule_of(rhythm, number, way.connections as usize))
            });
            let book = Book::new(run.clone(), Rc::new(requests), way.dialect);
            let book = book.with_deliveries(deliveries.clone()).with_visible(library.visible.clone());
            tasks.spawn(Producer::new(connection, flow, way.window, book).run());
        }
        audience.listen(&run, &mut tasks);
        let query_pace = self.query_rate.0.map(|rate| Pace::start(run.start, Rhythm::steady(rate))).transpose()?;
        for (number, connection) in readers.into_iter().enumerate() {
            let flow = query_pace
                .as_ref()
                .map_or(Flow::Window, |pace| Flow::Due(pace.schedule(number, self.readers as usize)));
            tasks.spawn(Reader::new(number, library.clone(), connection, flow).run());
        }
        let measured = tasks.measure(&run, common, &target).await?;
        tasks.finish(&run).await?;
        deliveries.check(&run).await;
        tasks.shutdown().await;
        let more = target.stored().await? - stored;
        run.ledger.borrow_mut().check_stored(more);
        let server = target.stop()?;
        Ok(Driven { measured, server, notes: library.notes(), run })
    }

    /// Who takes part, in words.
    pub fn title(&self) -> String {
        let Self { http, ws, ndjson, subscribers, readers, .. } = self;
        format!("producers: {http} HTTP, {ws} WebSocket, {ndjson} NDJSON; {subscribers} subscribers, {readers} readers")
    }

    fn ways(&self, target: &Target) -> [Way; 3] {
        let http = Framing::Http { path: format!("{}/events", target.prefix), headers: target.headers() };
        let way = |connections, dialect, framing, events_each, window| Way {
            connections,
            dialect,
            framing,
            events_each,
            window,
        };
        [
            way(self.http, Dialect::Http, http.clone(), 1, 1),
            way(self.ws, Dialect::WebSocket, Framing::WebSocket, 1, WINDOW),
            way(self.ndjson, Dialect::Http, http, MANY, 1),
        ]
    }

    /// How many subscribers ask by what.
    fn asking(&self) -> Vec<(By, u32)> {
        let parts = By::ALL.len() as u32;
        (0..).zip(By::ALL).map(|(n, by)| (by, (self.subscribers + parts - 1 - n) / parts)).collect()
    }
}
