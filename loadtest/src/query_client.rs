//! Query clients: each sends one query at a time and checks every answer.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context;
use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::connection::Connection;
use crate::finding::Finding;
use crate::latency::{Operation, histogram, micros};
use crate::producer::Flow;
use crate::query::{Expected, Query};
use crate::random::Random;
use crate::verification::AcknowledgedEvents;

use crate::run::Run;
use crate::target::{Heads, Target};

/// What query clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QueryKind {
    /// The newest 100 events
    Latest,
    /// The newest 100 events of a session
    Session,
    /// What came after the newest event of the answer before, by its time, 100 events at most
    Since,
    /// The 100 events before those of the answer before, and so on into the past
    Older,
    /// The statistics
    Stats,
    /// Events with a payload that none has, for which all are looked at
    Nothing,
}

impl QueryKind {
    /// What clients usually ask.
    pub const USUAL: [Self; 5] = [Self::Latest, Self::Session, Self::Since, Self::Older, Self::Stats];
    const ALL: [Self; 6] = [Self::Latest, Self::Session, Self::Since, Self::Older, Self::Stats, Self::Nothing];
}

/// What all query clients of a run share.
pub struct QueryWorkload {
    pub run: Rc<Run>,
    pub acknowledged: Rc<AcknowledgedEvents>,
    /// The kinds of queries, which each client takes in turn.
    asks: Vec<QueryKind>,
    /// Sessions that may be asked for.
    sessions: u32,
    /// The oldest event that is stored, and how many were before the run.
    first: u64,
    stored: u64,
    heads: Heads,
    latency: RefCell<[Histogram<u64>; QueryKind::ALL.len()]>,
}

impl QueryWorkload {
    /// For queries of these kinds to a server that has stored `stored` events, the newest of which is `newest`.
    pub fn new(
        run: &Rc<Run>,
        target: &Target,
        sessions: u32,
        asks: &[QueryKind],
        newest: u64,
        stored: u64,
    ) -> Rc<Self> {
        Rc::new(Self {
            run: run.clone(),
            acknowledged: Rc::new(AcknowledgedEvents::new(newest, sessions)),
            asks: asks.to_vec(),
            sessions,
            first: newest + 1 - stored,
            stored,
            heads: target.heads.clone(),
            latency: RefCell::new(QueryKind::ALL.map(|_| histogram())),
        })
    }

    /// The latency of each kind of query that was sent, in milliseconds.
    pub fn findings(&self) -> Vec<Finding> {
        let latency = self.latency.borrow();
        let asked = QueryKind::ALL.iter().zip(&*latency).filter(|(_, latency)| !latency.is_empty());
        let findings = asked.flat_map(|(ask, latency)| {
            let name = ask.to_possible_value().expect("each has a name");
            [50.0, 99.0].map(|percentile| {
                let name = format!("{} p{percentile}", name.get_name());
                Finding::new(&name, "ms", micros(latency, percentile) / 1e3)
            })
        });
        findings.collect()
    }
}

/// One query client, with a connection of its own and its position in the record.
pub struct QueryClient {
    workload: Rc<QueryWorkload>,
    connection: Connection,
    flow: Flow,
    random: Random,
    /// How many queries it has sent.
    asked: usize,
    /// The newest event seen when last asked for news, and its timestamp.
    since: Option<(u64, String)>,
    /// The event before which the next page is.
    older: Option<u64>,
}

impl QueryClient {
    pub fn new(number: usize, workload: Rc<QueryWorkload>, connection: Connection, flow: Flow) -> Self {
        // Each client begins with another kind, so that not all send the same at the same time.
        let asked = number;
        Self { workload, connection, flow, random: Random::new(number), asked, since: None, older: None }
    }

    /// Sends queries until the run stops and all that were due are answered.
    ///
    /// # Errors
    /// The connection was lost, or the server answered what is no answer.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let workload = self.workload.clone();
        while let Some(due) = self.flow.next(&workload.run).await {
            let ask = workload.asks[self.asked % workload.asks.len()];
            self.asked += 1;
            self.ask(ask, due).await?;
        }
        Ok(())
    }

    async fn ask(&mut self, ask: QueryKind, due: Instant) -> anyhow::Result<()> {
        let workload = self.workload.clone();
        let query = match (ask, &self.since, self.older) {
            (QueryKind::Since, Some((event, timestamp)), _) => Query::Since(*event, timestamp.clone()),
            (QueryKind::Older, _, Some(event)) => Query::Older(event),
            (QueryKind::Session, ..) => Query::Session(self.random.below(workload.sessions)),
            (QueryKind::Stats, ..) => Query::Stats,
            (QueryKind::Nothing, ..) => Query::Nothing,
            // Paging into the past begins at the newest event.
            (QueryKind::Latest | QueryKind::Since | QueryKind::Older, ..) => Query::Latest,
        };
        let acknowledged = match query {
            Query::Session(session) => workload.acknowledged.of_session(session),
            _ => workload.acknowledged.all(),
        };
        let expected = Expected { first: workload.first, stored: workload.stored, acknowledged };
        let (status, body) = self.connection.request(&workload.heads.get(&query.path())).await?;
        workload.took(ask, due, Instant::now());
        let checked = match status {
            200 => query.check(&body, &expected).with_context(|| query.path())?,
            _ => Err(format!("{status} {}", String::from_utf8_lossy(&body))),
        };
        match checked {
            Err(fault) => {
                let path = query.path();
                workload.run.violation(|| format!("{path}: {fault}"));
            }
            Ok(page) => {
                // At the beginning of the record, paging begins anew at the newest event.
                if matches!(query, Query::Older(_)) || self.older.is_none() && query == Query::Latest {
                    self.older = page.oldest().filter(|event| *event > workload.first);
                }
                if let (Query::Latest | Query::Since(..), Some((event, timestamp))) = (&query, page.newest()) {
                    self.since = Some((event, timestamp.to_owned()));
                }
            }
        }
        Ok(())
    }
}

impl QueryWorkload {
    fn took(&self, ask: QueryKind, due: Instant, now: Instant) {
        self.run.count(Operation::Query, 1);
        if self.run.took(Operation::Query, due, now, 1) {
            self.latency.borrow_mut()[ask as usize].saturating_record((now - due).as_nanos() as u64);
        }
    }
}
