//! Load for the event pipeline, measured as its users would measure it: from outside, over the wire.
//!
//! One thread does everything, so that the server has the other cores to itself: bytes are rendered before
//! the clock starts, sent as they are, and answers are read for their ids and nothing else. Whatever was
//! measured was also checked; a run that finds a promise broken says so and ends with 1.
//!
//! Imports point strictly down this list:
//!
//! * [`peers`] — servers of other kinds that are measured beside ours, in turns
//! * [`scenario`] — what can be measured
//! * [`summary`] — what several runs come to
//! * [`compare`] — what changed from one file of runs to the next
//! * [`html`] — runs as a page with plots
//! * [`runs`] — runs that were kept in files, and which of them measured the same
//! * [`figure`] — the main figures of runs, and how they are spread
//! * [`report`] — the figures of one run as a table or as JSON
//! * [`reader`] — asks questions and checks the answers
//! * [`page`] — what an answer to a question has to be
//! * [`producer`] — keeps a connection's window full, or keeps to the pace
//! * [`subscriber`] — gets events and checks them
//! * [`deliveries`] — what subscribers asked for, what is on its way, what they got
//! * [`visible`] — what every query has to show
//! * [`tasks`] — all tasks of one run
//! * [`run`] — what they share: the clock, the figures, the ledger
//! * [`timeline`] — how a run went over time
//! * [`connection`] — one socket: batches out, frames or responses in
//! * [`target`] — the server: one of our own, one that runs already, or one of another kind
//! * [`process`] — a server started from here, in a folder of its own
//! * [`usage`], [`disk`] — what a process cost, from `/proc` and its disk
//! * [`interrupt`] — Ctrl-C
//! * [`ledger`] — which events were acknowledged, and what breaks a promise
//! * [`trend`] — whether a figure grows
//! * [`latency`] — how long things took
//! * [`score`] — when recorded events are due, and who is told
//! * [`recording`] — a recorded class, and copies of it
//! * [`events`] — what is published: the key space, and requests rendered in advance
//! * [`answer`] — the ids in an answer, found without parsing
//! * [`pace`] — when events are due, if there is a rate
//! * [`machine`] — what everything runs on

mod answer;
mod compare;
mod connection;
mod deliveries;
mod disk;
mod events;
mod figure;
mod html;
mod interrupt;
mod latency;
mod ledger;
mod machine;
mod pace;
mod page;
mod peers;
mod process;
mod producer;
mod reader;
mod recording;
mod report;
mod run;
mod runs;
mod scenario;
mod score;
mod subscriber;
mod summary;
mod target;
mod tasks;
mod timeline;
mod trend;
mod usage;
mod visible;

use std::fs::File;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime;
use tokio::task::LocalSet;

use compare::Compare;
use peers::baseline::Baseline;
use peers::{Peers, Trial, ratios};
use report::Report;
use run::Common;
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
  loadtest fanout --subscribers 1000                  every event to each of 1,000 subscribers
  loadtest query --ask session --stored 1000000       the newest 100 of a session, of a million events
  loadtest mixed                                      every way in and out at once, 20,000 events a second
  loadtest spike --factor 10                          ten times as many for two seconds, and what comes after
  loadtest soak --seconds 7200                        two hours: does anything grow?
  loadtest overload --seconds 120                     more than can be stored: acknowledged or refused, nothing else
  loadtest classroom --classes 30                     a recorded class, 30 times, each with 2 dashboards
  loadtest baseline                                   beside the Python service that this server replaced
  loadtest peers --repeat 3                           beside NATS and Redis, in turns, with the ratios
  loadtest slow-consumer --slow 10                    what those who hang cost the others
  loadtest dashboard --interval-ms 250                2,000 ticking sessions for 20 pairs of eyes
  loadtest fanout --out runs.json --html report.html  figures for later, and a page with plots
  loadtest compare before.json after.json             what changed; with --html FILE also as a page
  loadtest connections --storm 32                     10,000 idle subscribers, then clients that come and go
  loadtest publish --set DURABILITY=normal --json     a setting for the server, figures for a program

Exit codes: 0 measured and verified, 1 failed or a promise was broken, 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    scenario: Option<Scenario>,
    #[command(flatten)]
    common: Common,
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
    SlowConsumer(SlowConsumer),
    Connections(Connections),
    Dashboard(Dashboard),
    Baseline(Baseline),
    Peers(Peers),
    Compare(Compare),
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
            Self::Connections(connections) => connections.measure(common).await?,
            Self::Dashboard(dashboard) => vec![dashboard.measure(common).await?],
            Self::SlowConsumer(slow_consumer) => vec![slow_consumer.measure(common).await?],
            Self::Trial(trial) => vec![trial.measure(common).await?],
            Self::Baseline(_) | Self::Peers(_) => unreachable!("they are measured trial by trial"),
            Self::Compare(_) => unreachable!("it measures nothing"),
        })
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every promise was kept.
fn run(cli: Cli) -> anyhow::Result<bool> {
    raise_open_files_limit();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("start")?;
    let common = &cli.common;
    if let Some(Scenario::Compare(compare)) = &cli.scenario {
        return compare.print(common).map(|()| true);
    }
    // What was measured for hours must not be lost for a wrong path.
    for file in common.out.iter().chain(&common.html) {
        File::options().create(true).append(true).open(file).with_context(|| format!("write to {}", file.display()))?;
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
                report.print(common.json)?;
                if let Some(file) = &common.out {
                    report.append_to(file)?;
                }
                reports.push(report);
            }
            if common.interrupt.came() {
                break 'runs;
            }
        }
    }
    if let Some(file) = &common.html {
        html::write(file, &reports)?;
    }
    if !common.json {
        print!("{}", summary::of_repetitions(&reports));
        if is_canonical {
            print!("{}", summary::headline(&reports));
        }
        if are_compared {
            print!("{}", ratios::table(&reports));
        }
    }
    Ok(reports.iter().all(Report::kept))
}

/// Each connection is an open file, here and in a server started from here. Where the limit cannot be raised,
/// connecting says so.
fn raise_open_files_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// All files of this program that belong to a module, with the name of the module.
    fn files(folder: &Path, module: Option<&str>) -> Vec<(String, PathBuf)> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let stem = path.file_stem().expect("a name").to_str().expect("UTF-8").to_owned();
            let module = module.unwrap_or(&stem);
            if path.is_dir() {
                all.extend(files(&path, Some(module)));
            } else if path.extension().is_some_and(|extension| extension == "rs") && module != "main" {
                all.push((module.to_owned(), path));
            }
        }
        all
    }

    #[test]
    fn imports_point_down_the_list_of_modules() {
        let list = include_str!("main.rs").lines().filter_map(|line| line.strip_prefix("//! * [`"));
        // A line may name several.
        let names = list.flat_map(|line| line.split(" — ").next().unwrap_or(line).split("`], [`"));
        let order = names.map(|name| name.trim_end_matches("`]").to_owned()).collect::<Vec<_>>();
        let place = |module: &str| order.iter().position(|name| name == module);
        for (module, path) in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None) {
            let of_module = place(&module).unwrap_or_else(|| panic!("{module} is not in the list"));
            let text = fs::read_to_string(&path).expect("a file");
            let imports = text.lines().filter_map(|line| line.trim().strip_prefix("use crate::"));
            for import in imports.filter_map(|import| import.split([':', ';']).next()) {
                assert!(
                    import == module || place(import) > Some(of_module),
                    "{} imports {import}, which does not stand below {module}",
                    path.display()
                );
            }
        }
    }
}
