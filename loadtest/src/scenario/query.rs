//! The scenario `query`: how fast queries are answered while events are stored.

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use crate::answer::{self, Answer};
use crate::connection::{Connection, Scratch};
use crate::events::Events;
use crate::finding::Asked;
use crate::latency::Operation;
use crate::numbers::grouped;
use crate::options::Common;
use crate::query_client::QueryKind;
use crate::report::Report;
use crate::requests::{Framing, Requests};
use crate::schedule::{RATE_REACHED, Rate};
use crate::target::Target;
use crate::tracker::Dialect;
use crate::wire::frames;
use crate::workload::{Ingress, Site, Workload};

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
        let target = Target::new(&common.target).await?;
        fill(&target, &self.events, self.stored, &Scratch::default()).await?;
        let site = Site::of(target).await?;
        let ingress = Ingress::new(Dialect::WebSocket, self.publishers, 1, self.window);
        let publishers = site.publishers(&ingress, &self.events, 0, ingress.connections).await?;
        let readers = site.readers(self.readers, &self.ask, self.query_rate, self.events.sessions).await?;
        let rate = common.profile(self.rate).filter(|_| self.publishers > 0);
        let workload = Workload { readers: Some(readers), rate, ..Workload::new(Operation::Query, publishers) };
        let driven = workload.drive(&site, common).await?;
        let Self { readers, publishers, query_rate: Rate(query_rate), .. } = self;
        let title =
            format!("{readers} readers over {} stored events, {publishers} producers", grouped(site.stored as f64));
        let mut report = Report::of("query", title, self, common, &driven);
        report.in_flight = u64::from(*readers);
        if report.asked.as_ref().is_none_or(|asked| !asked.missed) {
            let answered = driven.measured.count(Operation::Query) as f64 / driven.measured.elapsed.as_secs_f64();
            report.asked = query_rate.map(|asked| Asked {
                of: Operation::Query,
                per_second: asked as f64,
                missed: answered < asked as f64 * RATE_REACHED - f64::from(*readers),
            });
        }
        report.finish(driven, site).await
    }
}

/// Stores at least this many events.
async fn fill(target: &Target, events: &Events, count: u64, scratch: &Scratch) -> anyhow::Result<()> {
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
