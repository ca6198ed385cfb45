//! Traffic of every kind at once: HTTP, WebSocket and NDJSON producers, subscribers and query clients.

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::deliveries::{Audience, FilterBy};
use crate::events::Events;
use crate::latency::Operation;
use crate::query_client::QueryKind;
use crate::report::Report;
use crate::schedule::Rate;
use crate::tracker::Dialect;
use crate::workload::{Driven, Ingress, Site, Workload};

/// Events in each request of a producer that sends many.
const MANY: u32 = 100;

/// Events in flight of a producer on a WebSocket.
const WINDOW: u32 = 1_024;

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

impl Traffic {
    /// Connects everybody.
    ///
    /// # Errors
    /// Nobody is to publish, or the server does not let one in.
    pub async fn workload(&self, site: &Site) -> anyhow::Result<Workload> {
        let ingresses = [
            Ingress::new(Dialect::Http, self.http, 1, 1),
            Ingress::new(Dialect::WebSocket, self.ws, 1, WINDOW),
            Ingress::new(Dialect::Http, self.ndjson, MANY, 1),
        ];
        let ingresses = ingresses.into_iter().filter(|ingress| ingress.connections > 0).collect::<Vec<_>>();
        ensure!(!ingresses.is_empty(), "nobody publishes: --http, --ws and --ndjson are all 0");
        let all = (self.http + self.ws + self.ndjson) as usize;
        let part = 1.0 / ingresses.len() as f64;
        let mut publishers = Vec::new();
        for ingress in ingresses {
            let (ingress, number) = (Ingress { part, ..ingress }, publishers.len());
            publishers.extend(site.publishers(&ingress, &self.events, number, all).await?);
        }
        let subscribers = site.subscribers(self.events.names(), &self.audiences(), 0, None).await?;
        let readers = site.readers(self.readers, &QueryKind::USUAL, self.query_rate, self.events.sessions).await?;
        Ok(Workload {
            subscribers: Some(subscribers),
            readers: Some(readers),
            ..Workload::new(Operation::Acknowledgement, publishers)
        })
    }

    /// The clients that take part, in words.
    pub fn title(&self) -> String {
        let Self { http, ws, ndjson, subscribers, readers, .. } = self;
        format!("producers: {http} HTTP, {ws} WebSocket, {ndjson} NDJSON; {subscribers} subscribers, {readers} readers")
    }

    /// How many of everything were counted: a run without one of them is not exercised.
    pub fn exercised(&self, report: Report, driven: &Driven) -> Report {
        let of = |kind| driven.measured.count(kind);
        let report = report.exercised("events acknowledged", of(Operation::Acknowledgement));
        let report = match self.subscribers {
            0 => report,
            _ => report.exercised("deliveries", of(Operation::Delivery)),
        };
        if self.readers > 0 { report.exercised("queries answered", of(Operation::Query)) } else { report }
    }

    /// Subscribers, in equal parts of each kind of filter.
    fn audiences(&self) -> Vec<Audience> {
        let parts = FilterBy::ALL.len() as u32;
        (0..).zip(FilterBy::ALL).map(|(n, by)| Audience::new(by, (self.subscribers + parts - 1 - n) / parts)).collect()
    }
}
