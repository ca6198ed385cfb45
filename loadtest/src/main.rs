//! A load test for the event pipeline, measured as its users would measure it: from outside, over the wire.
//!
//! One thread does everything, so that the server has the other cores to itself: requests are rendered before
//! the clock starts, and answers are read for their ids and nothing else. Every run is also verified: one that finds a
//! broken promise says so and ends with 1, and so does one in which what the scenario exists for did not happen.
//!
//! An event is *due* at its intended send time. At a rate, latency counts from then, so that a server that stalls does
//! not make the load test omit the latencies of the events that had to wait (coordinated omission).
//!
//! Imports point strictly down this list:
//!
//! * [`peers`] — other servers, measured beside ours in turns
//! * [`floors`] — what the machine gives: syncs, bare answers, bare sends
//! * [`scenario`] — the workloads, each with its options and what it verifies
//! * [`output`] — what is made of runs: text, files, pages, and the exit code
//! * [`summary`] — all runs of a call at a glance
//! * [`html`] — runs as a page with plots
//! * [`export`] — runs in the formats of other tools
//! * [`fail_if`] — conditions under which runs count as failed
//! * [`record`] — recordings from a database
//! * [`compare`] — what changed from one set of runs to the next
//! * [`run_files`] — runs read from files, and which of them measured the same
//! * [`metric`] — the metrics of runs, their spread, and how they differ
//! * [`rank_test`] — how often chance alone makes such a difference
//! * [`report`] — one run as a table or as JSON
//! * [`read_back`] — whether what is stored is what was sent
//! * [`workload`] — producers, subscribers and readers, driven, measured and verified together
//! * [`query_client`] — sends queries and checks the answers
//! * [`query`] — a query, and the check of its answer
//! * [`producer`] — publishes, as fast as its window allows or at a rate
//! * [`tracker`] — the requests of a producer, and the check of their answers
//! * [`subscriber`] — receives events and checks them
//! * [`deliveries`] — what subscribers must receive, and what they have received
//! * [`tasks`] — all tasks of one run
//! * [`run`] — what they share: the clock, the counts, the latencies, the verification
//! * [`measurement`] — what was counted and used in the measured interval
//! * [`progress`] — what a person sees meanwhile
//! * [`timeline`] — how a run went over time
//! * [`options`] — options of every scenario
//! * [`schedule`] — rates, and when requests are due
//! * [`connection`] — one socket: batches out, frames or responses in
//! * [`target`] — the server under test: one of our own, one that runs already, or one of another kind
//! * [`dial`] — how a connection is made
//! * [`process`] — a server started from here, and its folder
//! * [`wire`] — frames, responses and event streams in what a server sends
//! * [`usage`], [`disk`] — what a process used, from `/proc` and its disk
//! * [`interrupt`] — Ctrl-C
//! * [`verification`] — which events were acknowledged, and which promises were broken
//! * [`due_times`] — when each event was due
//! * [`finding`] — what a run found beside counts and latencies
//! * [`latency`] — what is timed, and its percentiles
//! * [`answer`] — the ids in an answer, found without parsing
//! * [`requests`] — requests rendered in advance
//! * [`events`] — the events that are published, and their key space
//! * [`recording`] — a recorded class, and copies of it
//! * [`random`] — random numbers that are the same in each run
//! * [`numbers`] — numbers as people read them
//! * [`machine`] — the machine that everything runs on

mod answer;
mod compare;
mod connection;
mod deliveries;
mod dial;
mod disk;
mod due_times;
mod events;
mod export;
mod fail_if;
mod finding;
mod floors;
mod html;
mod interrupt;
mod latency;
mod machine;
mod measurement;
mod metric;
mod numbers;
mod options;
mod output;
mod peers;
mod process;
mod producer;
mod progress;
mod query;
mod query_client;
mod random;
mod rank_test;
mod read_back;
mod record;
mod recording;
mod report;
mod requests;
mod run;
mod run_files;
mod scenario;
mod schedule;
mod subscriber;
mod summary;
mod target;
mod tasks;
mod timeline;
mod tracker;
mod usage;
mod verification;
mod wire;
mod workload;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime;
use tokio::task::LocalSet;

use compare::Compare;
use floors::Floors;
use floors::bare::Bare;
use options::Common;
use output::{Output, WrongUsage};
use peers::{Baseline, Peers, Trial};
use record::Record;
use report::Report;
use run_files::Source;
use scenario::capacity::Capacity;
use scenario::classroom::Classroom;
use scenario::connections::Connections;
use scenario::dashboard::Dashboard;
use scenario::fanout::Fanout;
use scenario::mixed::Mixed;
use scenario::overload::Overload;
use scenario::publish::Publish;
use scenario::query::Query;
use scenario::slow_consumer::SlowConsumer;
use scenario::soak::Soak;
use scenario::spike::Spike;

/// Load for the event pipeline: measures and verifies a server, its own or a running one.
#[derive(Parser)]
#[command(
    version,
    after_help = "Without a command: publish, then fanout, both with their defaults.

Build the server and this tool together, both optimised:
  cargo build --release --workspace

Examples:
  loadtest publish                                    4 sockets, 1,024 events in flight on each
  loadtest publish --connections 1 --window 1         the latency of a single event
  loadtest publish --via http                         64 connections, one POST in flight on each
  loadtest publish --rate 50000                       latency at a given load, from the intended send time
  loadtest publish --rate 50000 --poisson --skew 1    the same at random times, some sessions busier than others
  loadtest fanout --subscribers 1000                  every event to each of 1,000 subscribers
  loadtest fanout --out-via group                     100 members of a group; also sse (event streams), names (durable)
  loadtest query --ask session --stored 1000000       the newest 100 of a session, of a million events
  loadtest mixed                                      every way in and out at once, 20,000 events a second
  loadtest spike --factor 10                          ten times the rate for two seconds, and the recovery
  loadtest soak --seconds 7200                        two hours: does anything grow?
  loadtest overload --seconds 120                     more than can be stored: each event acknowledged or refused
  loadtest classroom --classes 30                     a recorded class, 30 times, each with 2 dashboards
  loadtest record data/events.db day.ndjson           a real day as a recording, without its texts and names
  loadtest capacity --p99-ms 5 --page capacity.md     the most events a second below 5 ms, on a page to sign
  loadtest baseline                                   beside the Python service that this server replaced
  loadtest peers --repeat 3                           beside NATS and Redis, in turns, with the ratios
  loadtest floors                                     what this machine gives: syncs, bare answers and sends
  loadtest slow-consumer --slow 10                    what subscribers that hang cost the others
  loadtest dashboard --interval-ms 250                2,000 ticking sessions on 20 dashboards
  loadtest fanout --out runs.json --html report.html  figures for later, and a page with plots
  loadtest compare before.json after.json             what changed; with --html FILE also as a page
  loadtest publish --repeat 5 --fail-if 'p99>20ms'    a gate: ends with 3 if the median of the runs is above
  loadtest connections --storm 32                     10,000 idle subscribers, then clients that come and go
  loadtest publish --set DURABILITY=normal --json     a setting for the server, figures for a program

Exit codes: 0 measured and verified, 1 failed, a promise was broken or something was not exercised, 2 wrong usage,
3 verified but slower than asked for: a rate was missed, or a --fail-if is so."
)]
struct Cli {
    #[command(subcommand)]
    scenario: Option<Scenario>,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    output: Output,
}

#[derive(Subcommand)]
enum Scenario {
    Publish(Publish),
    Fanout(Fanout),
    Query(Query),
    Mixed(Mixed),
    Spike(Spike),
    Soak(Soak),
    Overload(Overload),
    Classroom(Classroom),
    Capacity(Capacity),
    SlowConsumer(SlowConsumer),
    Connections(Connections),
    Dashboard(Dashboard),
    Baseline(Baseline),
    Peers(Peers),
    Floors(Floors),
    #[command(hide = true)]
    Bare(Bare),
    Compare(Compare),
    Record(Record),
    #[command(skip)]
    Trial(Trial),
}

impl Scenario {
    /// Measures once.
    async fn measure(&self, common: &Common) -> anyhow::Result<Vec<Report>> {
        Ok(match self {
            Self::Publish(publish) => vec![publish.measure(common).await?],
            Self::Fanout(fanout) => vec![fanout.measure(common).await?],
            Self::Query(query) => vec![query.measure(common).await?],
            Self::Mixed(mixed) => vec![mixed.measure(common).await?],
            Self::Spike(spike) => vec![spike.measure(common).await?],
            Self::Soak(soak) => vec![soak.measure(common).await?],
            Self::Overload(overload) => vec![overload.measure(common).await?],
            Self::Classroom(classroom) => vec![classroom.measure(common).await?],
            Self::Capacity(capacity) => vec![capacity.measure(common).await?],
            Self::Connections(connections) => connections.measure(common).await?,
            Self::Dashboard(dashboard) => vec![dashboard.measure(common).await?],
            Self::SlowConsumer(slow_consumer) => vec![slow_consumer.measure(common).await?],
            Self::Floors(floors) => floors.measure(common).await?,
            Self::Trial(trial) => vec![trial.measure(common).await?],
            Self::Baseline(_) | Self::Peers(_) => unreachable!("these are measured trial by trial"),
            Self::Compare(_) | Self::Record(_) | Self::Bare(_) => unreachable!("they measure nothing"),
        })
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::from(if error.is::<WrongUsage>() { 2 } else { 1 })
        }
    }
}

/// Measures or compares: returns the exit code.
fn run(cli: Cli) -> anyhow::Result<u8> {
    raise_open_files_limit();
    if let Some(Scenario::Bare(bare)) = cli.scenario {
        return bare.serve().map(|()| 0);
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("start")?;
    let (common, output) = (&cli.common, &cli.output);
    if let Some(Scenario::Record(record)) = &cli.scenario {
        return record.write().map(|()| 0);
    }
    output.check(matches!(cli.scenario, Some(Scenario::Compare(_))))?;
    if let Some(Scenario::Compare(compare)) = &cli.scenario {
        return output.compared(&Source::read_all(&compare.files)?);
    }
    let canonical = || vec![Scenario::Publish(Publish::default()), Scenario::Fanout(Fanout::default())];
    let is_canonical = cli.scenario.is_none();
    // Servers that are compared take turns, so their trials are repeated as a whole.
    let trials = match &cli.scenario {
        Some(Scenario::Baseline(baseline)) => {
            let installed = common.interrupt.guard(baseline.trials(common));
            Some(LocalSet::new().block_on(&runtime, installed)?)
        }
        Some(Scenario::Peers(peers)) => Some(peers.trials(common)?),
        _ => None,
    };
    let (are_compared, repeat) = (trials.is_some(), if trials.is_some() { 1 } else { common.repeat });
    let scenarios = match trials {
        Some(trials) => trials.into_iter().map(Scenario::Trial).collect(),
        None => cli.scenario.map_or_else(canonical, |scenario| vec![scenario]),
    };
    let mut reports = Vec::new();
    'runs: for scenario in &scenarios {
        for _ in 0..repeat {
            let measure = common.interrupt.guard(scenario.measure(common));
            for report in LocalSet::new().block_on(&runtime, measure)? {
                reports.push(output.take(report, !is_canonical || output.verbose)?);
            }
            if common.interrupt.was_requested() {
                break 'runs;
            }
        }
    }
    output.measured(reports, is_canonical, are_compared)
}

/// Each connection is an open file, here and in a server started from here. Where the limit cannot be raised,
/// connecting fails with the reason.
fn raise_open_files_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
