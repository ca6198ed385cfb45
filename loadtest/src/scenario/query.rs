//! The scenario `query`: how fast queries are answered while events are stored.

use std::rc::Rc;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use crate::answer::{self, Answer};
use crate::connection::{Connection, Scratch};
use crate::events::Events;
use crate::flow::Flow;
use crate::latency::Operation;
use crate::options::Common;
use crate::producer::Producer;
use crate::query_client::{QueryClient, QueryKind, QueryWorkload};
use crate::report::{Findings, Report, grouped};
use crate::requests::{Framing, Requests};
use crate::run::Run;
use crate::schedule::{Pacer, Rate};
use crate::target::Target;
use crate::tasks::Tasks;
use crate::tracker::{Dialect, RequestTracker};
use crate::wire::frames;

/// Query stored events and measure how fast answers come, while producers publish
///
/// Verifies every answer: descending ids, none missing where nothing is filtered out, nothing of another session or
/// time, and every event that had been acknowledged when the query was asked.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Query {
    /// Query clients, each with a connection and one query at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    readers: u32,
    /// The kinds of queries, which each client sends in turn
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',', default_values_t = QueryKind::USUAL)]
    ask: Vec<QueryKind>,
    /// Queries a second of all query clients, or max. At a rate, latency counts from when a query was due
    #[arg(long, value_name = "RATE", default_value = "max")]
    query_rate: Rate,
    /// Events stored before, so that there is something to look through
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    stored: u64,
    /// Connections that publish meanwhile; 0 is none
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(..=50_000))]
    publishers: u32,
    /// Events a second of all publishers, or max
    #[arg(long, value_name = "RATE", default_value = "20000")]
    rate: Rate,
    /// Events under way on each publisher's connection
    #[arg(long, value_name = "N", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    #[command(flatten)]
    #[serde(flatten)]
    events: Events,
}

impl Query {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        self.measure_on(Target::new(&common.target).await?, common).await
    }

    /// Measures a server that keeps the same contract.
    pub async fn measure_on(&self, target: Target, common: &Common) -> anyhow::Result<Report> {
        let scratch = Scratch::default();
        fill(&target, &self.events, self.stored, &scratch).await?;
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        let (mut readers, mut publishers) = (Vec::new(), Vec::new());
        for _ in 0..self.readers {
            readers.push(Connection::open(&target.authority, &scratch).await?);
        }
        let producers = self.publishers as usize;
        for number in 0..producers {
            let requests = Requests::render(&self.events, 1, &Framing::WebSocket, number, producers);
            publishers.push((Connection::web_socket(&target, "/ws/publish", &scratch).await?, requests));
        }

        let run = Run::new(Operation::Query, newest);
        let workload = QueryWorkload::new(&run, &target, &self.events, &self.ask, newest, stored);
        let (query_pacer, pacer) = (Pacer::steady(run.start, self.query_rate)?, Pacer::steady(run.start, self.rate)?);
        let mut tasks = Tasks::default();
        for (number, (connection, requests)) in publishers.into_iter().enumerate() {
            let tracker = RequestTracker::new(run.clone(), Rc::new(requests), Dialect::WebSocket);
            let tracker = tracker.with_acknowledged(workload.acknowledged.clone());
            let flow = Flow::share(pacer.as_ref(), number, producers);
            tasks.spawn(Producer::new(connection, flow, self.window as usize, tracker).run());
        }
        for (number, connection) in readers.into_iter().enumerate() {
            let flow = Flow::share(query_pacer.as_ref(), number, self.readers as usize);
            tasks.spawn(QueryClient::new(number, workload.clone(), connection, flow).run());
        }
        let measured = tasks.measure(&run, common, &target).await?;
        tasks.finish(&run).await?;
        run.check_stored(&target, stored).await?;
        let Self { readers, publishers, .. } = self;
        let title = format!("{readers} readers over {} stored events, {publishers} producers", grouped(stored as f64));
        let findings =
            Findings::new("query", title, self).at_rate_of(Operation::Query, self.query_rate).noting(workload.notes());
        Ok(Report::new(findings, &run, measured, target.stop()?))
    }
}

/// Stores at least this many events.
pub async fn fill(target: &Target, events: &Events, count: u64, scratch: &Scratch) -> anyhow::Result<()> {
    /// Events in each request, and requests under way.
    const EACH: u64 = 1_000;
    const UNDER_WAY: u64 = 8;
    if count == 0 {
        return Ok(());
    }
    let mut connection = Connection::web_socket(target, "/ws/publish", scratch).await?;
    let requests = Requests::render(events, EACH as usize, &Framing::WebSocket, 0, 1);
    let (all, mut sent, mut answered) = (count.div_ceil(EACH), 0, 0);
    while answered < all {
        let more = (all - sent).min(UNDER_WAY - (sent - answered));
        requests.write(connection.out(), sent, more as usize);
        sent += more;
        let read = connection.exchange(|bytes, out| {
            frames(bytes, out, |text| match answer::of_socket(text, |_| {})? {
                Answer::Ok(_) => {
                    answered += 1;
                    Ok(())
                }
                Answer::Refused(reason) => bail!("events to be queried were refused: {reason}"),
            })
        });
        read.await?;
    }
    Ok(())
}
