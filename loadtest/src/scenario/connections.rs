//! The scenario `connections`: the cost of idle connections, and of connection churn.

mod churn;
mod idle;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::machine;
use crate::options::Common;
use crate::report::Report;
use crate::workload::Site;

/// Connect many subscribers and let them idle; let clients come and go
///
/// Two measurements. The first one opens connections as fast as possible, each a subscriber of a session of its own,
/// lets them idle for --seconds, and reports what they cost. Verifies that afterwards an event of its session reaches
/// each of them, and nothing else does. The second one (--storm) opens and closes connections for --seconds:
/// subscribers and HTTP requests, half of which vanish instead of closing, while a producer publishes. Verifies that
/// the server forgets them all. Its settings MAX_SUBSCRIBERS and MAX_CONNECTIONS are raised as needed.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Connections {
    /// Subscribers that idle, each with a connection of its own; they stay through the storm
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(..=500_000))]
    idle: u32,
    /// How many of them connect at one time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// Clients that connect and leave, again and again
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    storm: u32,
    /// Events a second that are published meanwhile
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: u64,
}

impl Connections {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Vec<Report>> {
        ensure!(self.idle > 0 || self.storm > 0, "there is nothing to do without --idle and --storm");
        let (idle, storm) = (self.idle as usize, self.storm as usize);
        // A client that has left may still take a slot for a short time.
        let coming = 2 * storm;
        machine::ensure_open_files(idle + coming)?;
        let mut site = Site::new(&common.target.with_slots(idle + coming, coming)).await?;
        let (mut measurements, mut idlers) = (Vec::new(), None);
        if idle > 0 {
            let (measurement, tasks) = idle::idle(self.idle, self.at_once, &site, common, self).await?;
            measurements.push(measurement);
            idlers = Some(tasks);
        }
        if storm > 0 && !common.interrupt.was_requested() {
            (site.newest, site.stored) = (site.target.newest().await?, site.target.stored().await?);
            measurements.push(churn::storm(storm, self.rate, &site, common, self).await?);
        }
        if let Some(idlers) = idlers {
            idlers.shutdown().await;
        }
        let stopped = site.stop()?;
        Ok(measurements.into_iter().map(|(report, run)| report.judged(&run, stopped.clone())).collect())
    }
}
