//! The scenario `dashboard`: the cost of keeping dashboards of ticking sessions up to date.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use crate::answer;
use crate::connection::{Connection, Scratch};
use crate::events::{Keys, session};
use crate::flow::Flow;
use crate::latency::Operation;
use crate::options::Common;
use crate::producer::Producer;
use crate::report::{Findings, Report, grouped};
use crate::requests::{Framing, Requests};
use crate::run::{PATIENCE, Run};
use crate::schedule::Rate;
use crate::subscriber::subscribe;
use crate::target::Target;
use crate::tasks::Tasks;
use crate::tracker::{Dialect, Ids, RequestTracker};
use crate::wire::frames;

/// Let sessions tick, and keep dashboards up to date
///
/// The CPU that an event costs is the metric to look at: run it with an interval and with --interval-ms 0, which is the
/// plain stream. An interval skips something only where sessions tick more often (--ticks); of sessions that tick once
/// a second, updates at 4 Hz skip nothing, and only share writes. Verifies that ids only grow, and that in the end
/// every dashboard shows the last tick of every session.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Dashboard {
    /// Sessions, each with a timer that ticks
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
    /// How often each ticks in a second
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    ticks: u32,
    /// Dashboards that show all of them
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    dashboards: u32,
    /// Between two updates of a dashboard; 0 sends every event
    #[arg(long, value_name = "N", default_value_t = 250)]
    interval_ms: u64,
}

/// For each session the number of the last event that was shown.
type Shown = Rc<RefCell<HashMap<Vec<u8>, u64>>>;

impl Dashboard {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let target = Target::new(&common.target).await?;
        let (newest, scratch) = (target.newest().await?, Scratch::default());
        let ticks = (0..self.sessions).map(|number| {
            let body = json!({ "event_type": "timer_tick", "source": "loadtest", "session_id": session(number),
                "payload": { "remaining": 3_600 } });
            (body.to_string().into_bytes(), Keys { event_type: 0, session: number, user: 0 })
        });
        let requests = Rc::new(Requests::of_events(ticks, &Framing::WebSocket, 0));
        let conflate = (self.interval_ms > 0).then(|| json!({ "key": "session_id", "interval_ms": self.interval_ms }));
        let first_message = json!({ "event_types": ["timer_tick"], "conflate": conflate }).to_string();
        let mut connections = Vec::new();
        for _ in 0..self.dashboards {
            connections.push(subscribe(&target, &first_message, &scratch).await?);
        }
        let connection = Connection::web_socket(&target, "/ws/publish", &scratch).await?;

        let run = Run::new(Operation::Acknowledgement, newest);
        let per_second = u64::from(self.sessions) * u64::from(self.ticks);
        let rate = Rate(Some(per_second));
        let flow = Flow::at_rate(per_second, &run)?;
        let ids = Ids::default();
        let tracker = RequestTracker::new(run.clone(), requests, Dialect::WebSocket).recording_ids(ids.clone());
        let mut tasks = Tasks::default();
        tasks.spawn(Producer::new(connection, flow, self.sessions as usize, tracker).run());
        let shown: Vec<Shown> = connections.iter().map(|_| Shown::default()).collect();
        for (connection, shown) in connections.into_iter().zip(&shown) {
            tasks.spawn_endless(show(connection, run.clone(), shown.clone()));
        }
        let measured = tasks.measure(&run, common, &target).await?;
        tasks.finish(&run).await?;
        let sent = ids.take();
        self.check(&run, &sent, &shown).await;
        tasks.shutdown().await;
        let each = grouped(run.counted(Operation::Delivery) as f64 / f64::from(self.dashboards));
        let stream = match self.interval_ms {
            0 => "every event".to_owned(),
            interval => format!("the latest every {interval} ms"),
        };
        let ticks = if self.ticks == 1 { String::new() } else { format!(" {} times a second", self.ticks) };
        let title = format!("{} sessions that tick{ticks}, {} dashboards, {stream}", self.sessions, self.dashboards);
        let note = format!("each dashboard was sent {each} events");
        let findings = Findings::new("dashboard", title, self).at(rate).noting([note]);
        Ok(Report::new(findings, &run, measured, target.stop()?))
    }

    /// Every dashboard shows the last tick of every session in the end.
    async fn check(&self, run: &Run, ids: &[u64], shown: &[Shown]) {
        let last = ids.iter().enumerate().map(|(n, id)| (session(n as u32 % self.sessions).into_bytes(), *id));
        let last: HashMap<Vec<u8>, u64> = last.collect();
        let deadline = Instant::now() + PATIENCE;
        for (number, shown) in shown.iter().enumerate() {
            while *shown.borrow() != last && Instant::now() < deadline {
                sleep(Duration::from_millis(5)).await;
            }
            if *shown.borrow() != last {
                run.violation(|| format!("dashboard {number} does not show the last event of every session"));
            }
        }
    }
}

/// Receives updates, as a dashboard does.
async fn show(mut connection: Connection, run: Rc<Run>, shown: Shown) -> anyhow::Result<()> {
    let mut last = 0;
    loop {
        let read = connection.exchange(|bytes, out| {
            frames(bytes, out, |text| {
                let Some(sequence) = answer::of_delivery(text)? else { return Ok(()) };
                if sequence <= last {
                    run.violation(|| format!("a dashboard got event {sequence} after {last}"));
                }
                last = sequence;
                run.count(Operation::Delivery, 1);
                shown.borrow_mut().insert(session_of(text).to_vec(), sequence);
                Ok(())
            })
        });
        read.await?;
    }
}

/// The session in a delivered event.
fn session_of(text: &[u8]) -> &[u8] {
    const BEFORE: &[u8] = br#""session_id":""#;
    let start = memchr::memmem::find(text, BEFORE).map_or(text.len(), |at| at + BEFORE.len());
    let end = memchr::memchr(b'"', &text[start..]).unwrap_or_default();
    &text[start..start + end]
}
