//! The scenario `connections`: the cost of idle connections, and of connection churn.

mod churn;
mod idle;
mod measurement;

use std::rc::Rc;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use crate::machine;
use crate::options::Common;
use crate::report::Report;
use crate::target::Target;
use measurement::Measurement;

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
        let target = Rc::new(Target::new(&common.target.with_slots(idle + coming, coming)).await?);
        let stored = target.stored().await?;
        let mut measurements = Vec::new();
        let mut idlers = Vec::new();
        if idle > 0 {
            let (measurement, connected) = idle::idle(idle, self.at_once, &target, common, self).await?;
            measurements.push(measurement);
            idlers = connected;
        }
        if storm > 0 && !common.interrupt.was_requested() {
            measurements.push(churn::storm(storm, self.rate, &target, common, self).await?);
        }
        drop(idlers);
        let acknowledged =
            measurements.iter().map(|Measurement { run, .. }| run.verification.borrow().acknowledged).sum::<u64>();
        let stored = target.stored().await? - stored;
        let target = Rc::into_inner(target).context("a task still holds the target")?;
        let stopped = target.stop()?;
        let reports = measurements.into_iter().map(|Measurement { findings, run, measured }| {
            if stored != acknowledged {
                run.violation(|| format!("{acknowledged} events were acknowledged, {stored} are stored"));
            }
            Report::new(findings, &run, measured, stopped.clone())
        });
        Ok(reports.collect())
    }
}
