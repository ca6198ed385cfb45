//! The scenario `overload`: more events than the server can store.

use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use event_pipeline::config::Config;
use serde::Serialize;

use crate::connection::Connection;
use crate::events::Events;
use crate::latency::Operation;
use crate::machine;
use crate::measurement::Measured;
use crate::numbers::grouped;
use crate::options::Common;
use crate::producer::Flow;
use crate::report::Report;
use crate::run::Run;
use crate::schedule::{Arrivals, Profile};
use crate::tracker::Dialect;
use crate::workload::{Ingress, Publisher, Site, Workload};

/// Requests of `/health` a second.
const PROBES_PER_SECOND: u64 = 20;

/// The memory of a server without connections: caches of its database, and what the allocator keeps.
const BASE_BYTES: u64 = 128 << 20;

/// The memory for each publishing WebSocket: an unfinished message, its events, their answers.
const SOCKET_BYTES: u64 = 1 << 20;

/// The memory for each HTTP connection beside the memory for bodies: 64 KiB read ahead, and everything that is made of
/// a small body (16 KiB).
const REQUEST_BYTES: u64 = 192 << 10;

/// Publish more than the server can store, and verify the outcome of each event
///
/// Sockets send as much as the system takes without waiting for answers, and more HTTP requests are under way than the
/// server stores in the second for which it lets one wait. Verifies that each event is acknowledged and stored once,
/// or refused with 503 and not stored, that the server answers to /health all the while, and that it holds no more than
/// follows from its settings. Latency is that of accepted requests; at its best it says how long the queue is.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Overload {
    /// WebSockets
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(..=10_000))]
    ws: u32,
    /// Events in flight on each: more than the server permits (MAX_IN_FLIGHT)
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// HTTP connections, with a request in flight on each
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    http: u32,
    /// Events of each request
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    #[command(flatten)]
    #[serde(flatten)]
    events: Events,
}

impl Overload {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let (sockets, posting) = (self.ws as usize, self.http as usize);
        machine::ensure_open_files(sockets + posting)?;
        let site = Site::new(&common.target.with_slots(0, sockets + posting + 1)).await?;
        let producers = sockets + 1;
        let socket = Ingress::new(Dialect::WebSocket, self.ws, 1, self.window);
        let mut publishers = site.publishers(&socket, &self.events, 0, producers).await?;
        // Their latency depends on their own window: they send on into the buffers of the system.
        publishers.iter_mut().for_each(|publisher| publisher.is_timed = false);
        // All connections send the same rendered requests.
        let posts = Ingress::new(Dialect::Http, 1, self.batch, 1);
        publishers.extend(site.publishers(&posts, &self.events, sockets, producers).await?);
        let requests = publishers[sockets].requests.clone();
        for _ in 1..posting {
            publishers.push(Publisher::new(site.open().await?, requests.clone(), Dialect::Http, 1));
        }
        let probe = site.open().await?;

        let mut started = Workload::new(Operation::Acknowledgement, publishers).start(&site);
        let run = started.run.clone();
        run.verification.borrow_mut().excuse_overload();
        let probes = Arrivals::at_rate(&Profile::steady(PROBES_PER_SECOND), 1.0, 1, 0, 1);
        let probes = Flow::Due(started.scheduler.add(probes));
        let request = site.target.heads.get("/health");
        started.tasks.spawn(ask(probe, probes, request, run.clone()));
        let driven = started.measure(&site.target, common).await?;

        let title = format!(
            "{sockets} sockets that do not wait, {} HTTP requests of {} events under way",
            grouped(f64::from(self.http)),
            self.batch
        );
        let (acknowledged, refused) = {
            let verification = run.verification.borrow();
            (verification.acknowledged as f64, verification.turned_away)
        };
        let share = refused as f64 / (acknowledged + refused as f64).max(1.0) * 1e2;
        let memory = self.check_memory(common, &run, &driven.measured);
        let report = Report::of("overload", title, self, common, &driven)
            .exercised("events refused with 503", refused)
            .exercised("answers of /health", driven.measured.count(Operation::Query))
            .result("refused", "%", share)
            .result_if_known("memory", "% of what the settings allow", memory);
        report.finish(driven, site).await
    }

    /// Checks the peak memory of the server against what its settings allow, if both are known. Returns its share of it,
    /// in percent.
    fn check_memory(&self, common: &Common, run: &Run, measured: &Measured) -> Option<f64> {
        let held = measured.server.as_ref()?.peak_memory_bytes;
        let defaults = Config::default();
        let setting = |name, default: usize| match common.target.setting(name) {
            Some(bytes) => bytes.parse().ok(),
            None => Some(default as u64),
        };
        let shared = setting("MAX_QUEUE_BYTES", defaults.max_queue_bytes)?
            + setting("MAX_BODIES_BYTES", defaults.max_bodies_bytes)?;
        let allowed = allowed_bytes(shared, u64::from(self.ws), u64::from(self.http));
        if held > allowed {
            run.violation(|| format!("the server held {held} bytes, by its settings it may hold {allowed}"));
        }
        Some(held as f64 / allowed as f64 * 1e2)
    }
}

/// The memory that all connections share, and the memory for each connection.
fn allowed_bytes(shared: u64, sockets: u64, requests: u64) -> u64 {
    BASE_BYTES + shared + sockets * SOCKET_BYTES + requests * REQUEST_BYTES
}

/// Requests `/health` again and again until the run stops, and checks each answer.
async fn ask(mut connection: Connection, due: Flow, request: String, run: Rc<Run>) -> anyhow::Result<()> {
    /// 5 s: a load balancer does not wait longer for a health check.
    const PATIENCE: Duration = Duration::from_secs(5);
    while let Some(since) = due.next(&run).await {
        let (status, _) = connection.request(&request).await?;
        let now = Instant::now();
        run.took(Operation::Query, since, now, 1);
        run.count(Operation::Query, 1);
        if status != 200 || now - since > PATIENCE {
            run.violation(|| format!("/health was answered {status} after {:?}", now - since));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allowed_memory_grows_with_each_connection() {
        let alone = allowed_bytes(0, 0, 0);
        assert_eq!(allowed_bytes(64 << 20, 2, 0) - alone, 66 << 20);
        assert_eq!(allowed_bytes(0, 0, 10) - alone, 10 * (192 << 10));
    }
}
