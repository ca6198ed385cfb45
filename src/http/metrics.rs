//! `GET /metrics`: figures of the server for Prometheus and what reads the same text. docs/metrics.md says what each means.
//!
//! Everything is read when it is asked for, from what the other modules keep anyway. So a server that is not scraped pays
//! for nothing but counting, and what exists does not depend on who has looked.

use std::fmt::Result;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use super::exposition::{Exposition, Format, written};
use super::media::{OPEN_METRICS, TEXT, preference};
use super::process::Process;
use super::response::{self, Body};
use crate::event::Timestamp;
use crate::feed::Doing;
use crate::pipeline::Pipeline;
use crate::record::AckLevel;
use crate::store::{IntegrityState, SyncOf};

/// Stands before the name of every metric but those of the process.
const PREFIX: &str = "event_pipeline";

impl Format {
    /// Prometheus asks for OpenMetrics before all others. A client that prefers plain text gets the older format.
    fn accepted(headers: &HeaderMap) -> Self {
        match preference(headers, TEXT) > preference(headers, OPEN_METRICS) {
            true => Self::Prometheus,
            false => Self::OpenMetrics,
        }
    }

    fn media_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        })
    }
}

/// `GET /metrics`. It is put together outside the network thread, because it asks the system for the free space of the disk.
pub(super) async fn metrics(headers: &HeaderMap, pipeline: &Arc<Pipeline>) -> Response<Body> {
    let (format, server) = (Format::accepted(headers), Server(pipeline.clone()));
    let process = Process { started: pipeline.started };
    let collectors = move || written(format, vec![(Some(PREFIX), Box::new(server)), (None, Box::new(process))]);
    let text = pipeline.parse_beside(collectors).await;
    let mut response = response::new(StatusCode::OK, format.media_type(), text);
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    response
}

#[derive(Debug)]
struct Server(Arc<Pipeline>);

impl Collector for Server {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result {
        let mut out = Exposition(encoder);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        out.info("build", "The version that runs", &version)?;
        self.times(&mut out)?;
        self.events(&mut out)?;
        self.queue(&mut out)?;
        self.subscribers(&mut out)?;
        self.clients(&mut out)?;
        self.files(&mut out)
    }
}

const BYTES: Option<&Unit> = Some(&Unit::Bytes);
const SECONDS: Option<&Unit> = Some(&Unit::Seconds);

impl Server {
    fn times(&self, out: &mut Exposition<'_>) -> Result {
        let Pipeline { store, hub, .. } = &*self.0;
        let timings = store.timings();
        out.seconds("acknowledgement", "From a batch to the answer of its producer", &timings.acknowledgement)?;
        out.seconds("commit", "Transactions, with their syncs", &timings.commit)?;
        let syncs = SyncOf::ALL.map(|sync| (sync.name(), store.syncs().of(sync)));
        out.seconds_of("sync", "Syncs to the disk", "of", syncs)?;
        out.seconds("delivery_round", "Rounds of the fan-out", &hub.rounds.took)?;
        out.seconds("query", "Reads of stored events", &timings.query)
    }

    fn events(&self, out: &mut Exposition<'_>) -> Result {
        let Pipeline { store, hub, .. } = &*self.0;
        let counts = store.counts();
        out.counter("stored_events", "Events stored", store.stored())?;
        let acknowledged = AckLevel::ALL.map(|level| (level.name(), counts.at(level)));
        out.counters("acknowledged_events", "Events acknowledged, by how safe they were", "level", acknowledged)?;
        out.counter("lost_events", "Events acknowledged as queued and then not stored", counts.queued_and_lost())?;
        out.counter("deliveries", "Times that events were put into an outbox", hub.rounds.deliveries.load(Relaxed))?;
        let events = hub.rounds.events.load(Relaxed);
        out.counter("delivered_events", "Events in these deliveries, for each subscriber", events)
    }

    fn queue(&self, out: &mut Exposition<'_>) -> Result {
        let Pipeline { store, config, bodies, pages, .. } = &*self.0;
        out.gauge("queue_events", "Events that wait for the writer", None, store.queue_len())?;
        out.gauge("queue_events_max", "MAX_QUEUE_SIZE", None, config.max_queue_size)?;
        out.gauge("queue", "Bytes that wait for the writer", BYTES, store.queue_bytes())?;
        out.gauge("queue_max", "MAX_QUEUE_BYTES", BYTES, config.max_queue_bytes)?;
        let oldest = store.queue_oldest().unwrap_or_default().as_secs_f64();
        out.gauge("queue_oldest", "How long the oldest batch has waited", SECONDS, oldest)?;
        let reserved = [("bodies", bodies.reserved()), ("pages", pages.reserved())];
        out.gauges("reserved_memory", "Memory that bodies and pages have reserved", BYTES, "of", reserved)
    }

    fn subscribers(&self, out: &mut Exposition<'_>) -> Result {
        let Pipeline { hub, config, subscriptions, .. } = &*self.0;
        let standings = self.0.standings();
        let by_doing = Doing::ALL.map(|doing| (doing.name(), standings.by_doing[doing as usize]));
        out.gauges("subscribers", "Subscribers, by what they are doing", None, "state", by_doing)?;
        out.gauge("subscribers_max", "MAX_SUBSCRIBERS", None, config.max_subscribers)?;
        out.gauge("subscribers_behind", "Subscribers that storage serves until they are live", None, standings.behind)?;
        out.gauge("lag_events", "How far the last of them is behind", None, standings.largest_lag)?;
        out.gauge("outboxes", "What live subscribers have not taken", BYTES, standings.waiting)?;
        out.gauge("outbox_largest", "The same of the slowest one", BYTES, standings.most_waiting)?;
        out.gauge("outbox_max", "MAX_SUBSCRIBER_BYTES", BYTES, config.max_subscriber_bytes)?;
        let losses = &hub.losses;
        let overflows = losses.overflows.load(Relaxed);
        out.counter("outbox_overflows", "Subscribers that were too slow for the live stream", overflows)?;
        out.counter("gaps", "Gaps that clients were told of", losses.gaps.load(Relaxed))?;
        let skipped = losses.skipped_events.load(Relaxed);
        out.counter("skipped_events", "Events left out for slow subscribers that wanted it", skipped)?;
        let in_use = subscriptions.in_use();
        let durable = [("true", in_use.connected), ("false", in_use.idle)];
        out.gauges("durable_subscriptions", "Durable subscriptions and groups", None, "connected", durable)?;
        out.gauge("durable_lag_events", "How far the last connected one is behind", None, in_use.largest_lag)?;
        out.gauge("unconfirmed_events", "Events that members of groups have in hand", None, in_use.unconfirmed)
    }

    fn clients(&self, out: &mut Exposition<'_>) -> Result {
        let Pipeline { connections, refusals, access, .. } = &*self.0;
        out.gauge("connections", "Connected clients", None, connections.in_use())?;
        out.gauge("connections_max", "Clients that may be connected", None, connections.max)?;
        out.counters("refusals", "Requests and messages refused", "reason", refusals.counts())?;
        let ignored = access.proxies.ignored();
        out.counter("forwarded_ignored", "Requests whose Forwarded header was not believed", ignored)
    }

    fn files(&self, out: &mut Exposition<'_>) -> Result {
        let store = &self.0.store;
        let log = store.wal();
        out.gauge("wal", "The write-ahead log", BYTES, log.bytes())?;
        let held = log.held_since().map_or(0, |since| (Timestamp::now().0 - since.0).max(0));
        out.gauge("wal_held", "How long a reader has kept it from starting over", SECONDS, held as f64 / 1e6)?;
        out.counter("checkpoints", "Times that its pages were moved", store.counts().checkpoints())?;
        out.gauge("segments_to_seal", "Full segments that are not sealed yet", None, store.segments_to_seal())?;
        if let Some(bytes) = store.database_bytes() {
            out.gauge("database", "The database without the write-ahead log", BYTES, bytes)?;
        }
        if let Some(bytes) = store.disk_free_bytes() {
            out.gauge("disk_free", "What is free on its volume", BYTES, bytes)?;
        }
        let integrity = store.integrity();
        let is = |state: IntegrityState| (state.name(), usize::from(state == integrity.state()));
        out.gauges("integrity", "1 for the state of the database", None, "state", IntegrityState::ALL.map(is))?;
        out.counter("checked_events", "Events compared with their checksums", integrity.events)
    }
}
