//! The scenario `publish`: how fast events are stored and acknowledged.

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::answer;
use crate::events::Events;
use crate::latency::Operation;
use crate::numbers::grouped;
use crate::options::{Common, defaults};
use crate::report::Report;
use crate::requests::Requests;
use crate::run::Run;
use crate::schedule::Rate;
use crate::target::Target;
use crate::tracker::Dialect;
use crate::workload::{Ingress, Site, Workload};

/// Publish events and measure how fast they are acknowledged
///
/// Verifies that every request is answered, in order, with ascending ids of which none comes twice, that as many events
/// are stored as were acknowledged, and that they are stored as they were sent.
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
    /// What an acknowledgement is to promise [default: what the server's setting DURABILITY says]
    #[arg(long, value_enum)]
    pub ack: Option<Level>,
    #[command(flatten)]
    #[serde(flatten)]
    pub events: Events,
}

/// An acknowledgement level with ids, so that it can be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Stored,
    Synced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    Ws,
    Http,
}

impl Default for Publish {
    fn default() -> Self {
        defaults()
    }
}

impl Publish {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        self.measure_on(Target::new(&common.target).await?, common).await
    }

    /// Measures a server that keeps the same contract.
    pub async fn measure_on(&self, target: Target, common: &Common) -> anyhow::Result<Report> {
        let (ingress, title) = self.ingress();
        let mut site = Site::of(target).await?;
        let level = self.ack.map(|level| if level == Level::Stored { "stored" } else { "synced" });
        let mut before = 0;
        if let Some(level) = level {
            site.ack = format!("?ack={level}");
            before = site.target.acknowledged_at(level).await?;
        }
        let publishers = site.publishers(&ingress, &self.events, 0, ingress.connections).await?;
        let first = publishers[0].requests.clone();
        let mut workload = Workload::new(Operation::Acknowledgement, publishers);
        workload.rate = common.profile(self.rate);
        let driven = workload.drive(&site, common).await?;
        let mut report = Report::of("publish", title, self, common, &driven);
        if let Some(level) = level {
            let reached = site.target.acknowledged_at(level).await? - before;
            let acknowledged = driven.run.verification.borrow().acknowledged;
            if reached != acknowledged {
                driven.run.violation(|| {
                    format!("{acknowledged} events were acknowledged, {reached} of them at the level {level}")
                });
            }
            report = report.exercised(&format!("events acknowledged as {level}"), reached);
        }
        if self.events.idempotency_keys {
            let repeated = repeat(&site, &first, ingress.dialect, &driven.run).await?;
            report = report.exercised("events repeated under their keys", repeated);
        }
        let mut report = report.finish(driven, site).await?;
        if let Some(level) = level {
            report.acknowledged_means = level.to_owned();
        }
        Ok(report)
    }

    /// Resolves the defaults that depend on other options, and says in words what is done.
    pub fn ingress(&self) -> (Ingress, String) {
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
        let in_flight = grouped(f64::from(window * self.batch));
        let title = format!("{each}, {connections} connections × {in_flight} events in flight");
        (Ingress::new(dialect, connections, self.batch, window), title)
    }
}

/// Sends the first request of a run again, and expects that its events have their ids already. Returns how many there are.
async fn repeat(site: &Site, requests: &Requests, dialect: Dialect, run: &Run) -> anyhow::Result<u64> {
    let (mut connection, _) = site.connect(dialect).await?;
    requests.write(connection.out(), 0, 1);
    let mut ids = Vec::new();
    match dialect {
        Dialect::WebSocket => answer::of_socket(&connection.reply().await?, |id| ids.push(id))?,
        _ => {
            let (status, body) = connection.request("").await?;
            // A repeat is answered with 200, because nothing was created.
            answer::of_post(if status == 200 { 201 } else { status }, &body, |id| ids.push(id))?
        }
    };
    let last = run.verification.borrow().last();
    if ids.len() != requests.events_each() || ids.iter().any(|id| *id > last) {
        run.violation(|| {
            format!("a request was repeated with its idempotency keys, and answered with {ids:?} after {last}")
        });
    }
    Ok(ids.len() as u64)
}
