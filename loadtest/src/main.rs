//! Load for the event pipeline, measured as its users would measure it: from outside, over the wire.
//!
//! One thread does everything, so that the server has the other cores to itself: bytes are rendered before
//! the clock starts, sent as they are, and answers are read for their ids and nothing else. Whatever was
//! measured was also checked; a run that finds a promise broken says so and ends with 1.
//!
//! * [`events`] — what is published: the key space, and requests rendered in advance
//! * [`connection`] — one socket: batches out, frames or responses in
//! * [`answer`] — the ids in an answer, found without parsing
//! * [`pace`] — when events are due, if there is a rate
//! * [`producer`] — keeps a connection's window full, or keeps to the pace
//! * [`run`] — what all tasks of one run share: the clock, the figures, the ledger
//! * [`ledger`] — which events were acknowledged, and what breaks a promise
//! * [`publish`], [`fanout`] — the scenarios
//! * [`target`] — the server: one of our own, or one that runs already
//! * [`usage`] — what a process cost, from `/proc`
//! * [`report`] — the figures as a table or as JSON

mod answer;
mod connection;
mod events;
mod fanout;
mod ledger;
mod pace;
mod producer;
mod publish;
mod report;
mod run;
mod target;
mod usage;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime;
use tokio::task::LocalSet;

use fanout::Fanout;
use publish::Publish;
use report::Report;
use run::Common;

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
    let scenarios = match cli.scenario {
        Some(scenario) => vec![scenario],
        None => vec![Scenario::Publish(Publish::default()), Scenario::Fanout(Fanout::default())],
    };
    let mut kept = true;
    for scenario in scenarios {
        let measure = async {
            match scenario {
                Scenario::Publish(publish) => publish.measure(&cli.common).await,
                Scenario::Fanout(fanout) => fanout.measure(&cli.common).await,
            }
        };
        let report: Report = LocalSet::new().block_on(&runtime, measure)?;
        report.print(cli.common.json)?;
        kept &= report.kept();
    }
    Ok(kept)
}

/// Each connection is an open file, here and in a server started from here. Where the limit cannot be raised,
/// connecting says so.
fn raise_open_files_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
