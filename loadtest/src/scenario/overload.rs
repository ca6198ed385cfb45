//! The scenario `overload`: more events than the server can store.

use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use event_pipeline::config::Config;
use serde::Serialize;

use crate::connection::{Connection, Scratch};
use crate::events::Events;
use crate::flow::Flow;
use crate::latency::Operation;
use crate::machine;
use crate::measurement::Measured;
use crate::options::Common;
use crate::producer::Producer;
use crate::report::{Findings, Report, grouped};
use crate::requests::{Framing, Requests};
use crate::run::Run;
use crate::target::Target;
use crate::tasks::Tasks;
use crate::tracker::{Dialect, RequestTracker};
use crate::wire::responses;

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
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    http: u32,
    /// Events of each request
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    #[command(flatten)]
    #[serde(flatten)]
    events: Events,
}

impl Overload {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let (sockets, posting) = (self.ws as usize, self.http as usize);
        machine::ensure_open_files(sockets + posting)?;
        let target = Target::new(&common.target.with_slots(0, sockets + posting + 1)).await?;
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        let scratch = Scratch::default();
        let path = format!("{}/events", target.prefix);
        let post = Framing::Http { path, headers: target.headers() };
        let producers = sockets + 1;
        // All connections send the same rendered requests.
        let posts = Rc::new(Requests::render(&self.events, self.batch as usize, &post, sockets, producers));
        let mut ready = Vec::new();
        for producer in 0..sockets {
            let connection = Connection::web_socket(&target, "/ws/publish", &scratch).await?;
            let requests = Rc::new(Requests::render(&self.events, 1, &Framing::WebSocket, producer, producers));
            ready.push((connection, self.window as usize, requests, Dialect::WebSocket));
        }
        for _ in 0..posting {
            let connection = Connection::open(&target.authority, &scratch).await?;
            ready.push((connection, 1, posts.clone(), Dialect::Http));
        }
        let probe = Connection::open(&target.authority, &scratch).await?;

        let run = Run::new(Operation::Acknowledgement, newest);
        run.verification.borrow_mut().excuse_overload();
        let mut tasks = Tasks::default();
        for (connection, window, requests, dialect) in ready {
            let mut tracker = RequestTracker::new(run.clone(), requests, dialect);
            if matches!(dialect, Dialect::WebSocket) {
                // Their latency depends on their own window: they send on into the buffers of the system.
                tracker = tracker.untimed();
            }
            tasks.spawn(Producer::new(connection, Flow::Window, window, tracker).run());
        }
        let probes = Flow::at_rate(PROBES_PER_SECOND, &run)?;
        let request = format!("GET {}/health HTTP/1.1\r\n{}\r\n", target.prefix, target.headers());
        tasks.spawn(ask(probe, probes, request, run.clone()));
        let measured = tasks.measure(&run, common, &target).await?;
        tasks.finish(&run).await?;
        run.check_stored(&target, stored).await?;
        let notes = [self.told(&run), self.check_memory(common, &run, &measured)];
        let title = format!(
            "{sockets} sockets that do not wait, {} HTTP requests of {} events under way",
            grouped(f64::from(self.http)),
            self.batch
        );
        let findings = Findings::new("overload", title, self).noting(notes.into_iter().flatten());
        Ok(Report::new(findings, &run, measured, target.stop()?))
    }

    fn told(&self, run: &Run) -> Option<String> {
        let verification = run.verification.borrow();
        let (acknowledged, turned_away) = (verification.acknowledged as f64, verification.turned_away as f64);
        let share = turned_away / (acknowledged + turned_away).max(1.0) * 1e2;
        Some(format!("{} events were refused with 503, {share:.0} % of all that were sent.", grouped(turned_away)))
    }

    /// Checks the peak memory of the server against what its settings allow, if both are known.
    fn check_memory(&self, common: &Common, run: &Run, measured: &Measured) -> Option<String> {
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
        let [held, allowed] = [held, allowed].map(|bytes| bytes as f64 / 1e6);
        Some(format!("The server held {held:.0} MB at most; by its settings it may hold {allowed:.0} MB here."))
    }
}

/// The memory that all connections share, and the memory for each connection.
fn allowed_bytes(shared: u64, sockets: u64, requests: u64) -> u64 {
    BASE_BYTES + shared + sockets * SOCKET_BYTES + requests * REQUEST_BYTES
}

/// Requests `/health` again and again until the run stops, and checks each answer.
async fn ask(mut connection: Connection, mut due: Flow, request: String, run: Rc<Run>) -> anyhow::Result<()> {
    /// 5 s: a load balancer does not wait longer for a health check.
    const PATIENCE: Duration = Duration::from_secs(5);
    while !run.is_stopping() {
        let Some((since, _)) = due.take(1) else {
            due.changed().await;
            continue;
        };
        connection.out().extend_from_slice(request.as_bytes());
        let answered = connection.answer(|bytes, _, answered| {
            let now = std::time::Instant::now();
            responses(bytes, |status, _| {
                *answered = Some(());
                run.took(Operation::Query, since, now, 1);
                run.count(Operation::Query, 1);
                if status != 200 || now - since > PATIENCE {
                    run.violation(|| format!("/health was answered {status} after {:?}", now - since));
                }
                Ok(())
            })
        });
        answered.await?;
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
