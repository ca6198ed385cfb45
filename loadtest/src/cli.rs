//! The command line: the scenarios, and what is done with them.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::compare::Compare;
use crate::floors::Floors;
use crate::floors::bare::Bare;
use crate::options::Common;
use crate::output::Output;
use crate::program::{self, in_turns};
use crate::record::Record;
use crate::report::Report;
use crate::run_files::Source;
use crate::scenario::capacity::Capacity;
use crate::scenario::classroom::Classroom;
use crate::scenario::connections::Connections;
use crate::scenario::dashboard::Dashboard;
use crate::scenario::fanout::Fanout;
use crate::scenario::mixed::Mixed;
use crate::scenario::overload::Overload;
use crate::scenario::publish::Publish;
use crate::scenario::query::Query;
use crate::scenario::slow_consumer::SlowConsumer;
use crate::scenario::soak::Soak;
use crate::scenario::spike::Spike;

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
  loadtest floors                                     what this machine gives: syncs, bare answers and sends
  loadtest slow-consumer --slow 10                    what subscribers that hang cost the others
  loadtest dashboard --interval-ms 250                2,000 ticking sessions on 20 dashboards
  loadtest fanout --out runs.json --html report.html  figures for later, and a page with plots
  loadtest compare before.json after.json             what changed; with --html FILE also as a page
  loadtest publish --repeat 5 --fail-if 'p99>20ms'    a gate: ends with 3 if the median of the runs is above
  loadtest connections --storm 32                     10,000 idle subscribers, then clients that come and go
  loadtest publish --set DURABILITY=normal --json     a setting for the server, figures for a program

To measure Redis, NATS and the Python service beside this server: loadtest-peers --help

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
    Floors(Floors),
    #[command(hide = true)]
    Bare(Bare),
    Compare(Compare),
    Record(Record),
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
            Self::Compare(_) | Self::Record(_) | Self::Bare(_) => unreachable!("they measure nothing"),
        })
    }
}

/// Does what the arguments of the program say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // A server that this program starts: it has a runtime of its own, and inherits the limit of open files.
    if let Some(Scenario::Bare(bare)) = cli.scenario {
        return program::exit(bare.serve().map(|()| 0));
    }
    program::run(run(cli))
}

/// Measures or compares: returns the exit code.
async fn run(cli: Cli) -> anyhow::Result<u8> {
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
    let scenarios = cli.scenario.map_or_else(canonical, |scenario| vec![scenario]);
    let each = scenarios.iter().flat_map(|scenario| (0..common.repeat).map(move |_| scenario));
    let is_told = !is_canonical || output.verbose;
    let reports = in_turns(each, common, output, is_told, async |scenario| scenario.measure(common).await).await?;
    output.measured(reports, is_canonical, false)
}
