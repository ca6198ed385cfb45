//! What is measured: everything that is counted at two moments, and the difference.

use std::fmt::{self, Display};
use std::process;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::latency::{Latency, Operation};
use crate::machine;
use crate::timeline::{Point, Steps};
use crate::usage::{Cost, Processors, Usage, Watched};

/// What happened in the measured interval.
pub struct Measured {
    pub elapsed: Duration,
    /// Whether a signal ended it.
    pub ended_early: bool,
    pub counts: [u64; Operation::ALL.len()],
    /// The latency of what the run counts, and of everything else that was timed.
    pub latency: Latency,
    pub more_latencies: Vec<Latency>,
    pub timeline: Vec<Point>,
    pub steps: Steps,
    /// Of what the run counts, by phases.
    pub phases: Vec<Latency>,
    pub client: Cost,
    /// `None` where the server's process is not known.
    pub server: Option<Cost>,
    /// How many processors were in use, and by which program.
    pub shares: Shares,
}

impl Measured {
    pub fn between(before: &Snapshot, after: &Snapshot, counted: Operation, latencies: &[Histogram<u64>]) -> Self {
        let elapsed = after.at - before.at;
        let counts = Operation::ALL.map(|kind| after.counts[kind as usize] - before.counts[kind as usize]);
        let (units, events) = (counts[counted as usize], counts[Operation::Acknowledgement as usize]);
        let cost = |before, after| Cost::between(before, after, elapsed, units, events);
        let client = cost(&before.client, &after.client);
        let server = before.server.as_ref().zip(after.server.as_ref()).map(|(before, after)| cost(before, after));
        let shares = Shares {
            client: client.cpu.as_secs_f64() / elapsed.as_secs_f64(),
            server: server.as_ref().map(|server| server.cpu.as_secs_f64() / elapsed.as_secs_f64()),
            all: after.processors.busy_since(&before.processors),
            processors: machine::processors(),
        };
        let latency = |kind: Operation| Latency::of(kind, &latencies[kind as usize]);
        let others = Operation::ALL.into_iter().filter(|kind| *kind != counted);
        Self {
            elapsed,
            ended_early: false,
            counts,
            latency: latency(counted),
            more_latencies: others.map(latency).filter(|latency| latency.count > 0).collect(),
            timeline: Vec::new(),
            steps: Steps::default(),
            phases: Vec::new(),
            client,
            server,
            shares,
        }
    }

    pub fn count(&self, kind: Operation) -> u64 {
        self.counts[kind as usize]
    }
}

/// How many processors were in use, on average: 1.5 is one and a half.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    pub client: f64,
    pub server: Option<f64>,
    /// By all programs.
    pub all: f64,
    /// How many there are.
    pub processors: usize,
}

impl Shares {
    /// By other programs than the client and the server; `None` where the server's process is not known.
    pub fn others(&self) -> Option<f64> {
        self.server.map(|server| (self.all - server - self.client).max(0.0))
    }
}

impl Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, all, processors, .. } = self;
        write!(f, "{all:.2} of {processors} busy: ")?;
        match self.server.zip(self.others()) {
            Some((server, others)) => {
                write!(f, "the server {server:.2}, this client {client:.2}, others {others:.2}")
            }
            None => write!(f, "this client {client:.2}, the server and others the rest"),
        }
    }
}

/// Everything that is counted, at one point in time.
pub struct Snapshot {
    pub at: Instant,
    pub counts: [u64; Operation::ALL.len()],
    processors: Processors,
    client: Usage,
    pub server: Option<Usage>,
}

impl Snapshot {
    /// Now, with these counts.
    pub fn now(counts: [u64; Operation::ALL.len()], server: Option<&Watched>) -> anyhow::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            counts,
            processors: Processors::now()?,
            client: Usage::of(process::id())?,
            server: server.map(Watched::usage).transpose()?,
        })
    }
}
