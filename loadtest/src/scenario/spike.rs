//! The scenario `spike`: a multiple of the usual rate for some seconds.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::numbers::grouped;
use crate::options::Common;
use crate::report::Report;
use crate::scenario::traffic::Traffic;
use crate::schedule::Rate;
use crate::timeline::Point;
use crate::workload::{Site, Workload};

/// The resolution of the time at which the latency is back to normal.
const STEP: Duration = Duration::from_millis(100);

/// Intervals in a row that must be normal, so that a single lucky one is not taken for the recovery.
const NORMAL: usize = 3;

/// Publish at a rate, then at a multiple of it for some seconds, then at the first rate again
///
/// Tells the latency before, during and after it, each event counted where it was due, and when it was back to
/// what it had been. Verifies what mixed verifies.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Spike {
    /// Events a second of all producers before and after it
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// How many times as many during it
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=100))]
    factor: u64,
    /// How long it lasts; it begins after a third of the run
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    spike_seconds: u64,
    #[command(flatten)]
    #[serde(flatten)]
    traffic: Traffic,
}

impl Spike {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let length = Duration::from_secs(common.seconds);
        let begin = length / 3;
        let end = begin + Duration::from_secs(self.spike_seconds);
        ensure!(
            end + STEP * NORMAL as u32 <= length,
            "in {} seconds there is no time for a spike of {} and what comes after it; choose more --seconds",
            common.seconds,
            self.spike_seconds
        );
        let site = Site::new(&common.target).await?;
        let (warm, spike) = (common.warm_up(), self.rate * self.factor);
        let phases = vec![warm + begin, warm + end];
        let steady = common.profile(Rate(Some(self.rate)));
        let rate = steady.map(|rate| rate.then(phases[0], spike).then(phases[1], self.rate));
        let workload = Workload { rate, step: STEP, phases, ..self.traffic.workload(&site).await? };
        let driven = workload.drive(&site, common).await?;

        let title = format!(
            "{} events/s, {} times as many for {} s; {}",
            grouped(self.rate as f64),
            self.factor,
            self.spike_seconds,
            self.traffic.title()
        );
        let mut report = Report::of("spike", title, self, common, &driven);
        for (name, latency) in ["before", "during", "after"].iter().zip(&driven.measured.phases) {
            for (percentile, us) in [("p50", latency.p50), ("p99", latency.p99), ("max", latency.max)] {
                report = report.result(&format!("{name} the spike {percentile}"), "ms", us / 1e3);
            }
        }
        let (usual, recovery) = recovery(&driven.measured.timeline, begin, end);
        report = report.result("p99 of 0.1 s before the spike, at most", "ms", usual);
        // Where it took longer than the run lasted, that is what is known.
        let left = (driven.measured.elapsed.as_secs_f64() - end.as_secs_f64()).max(0.0);
        report = report.result("recovery", "s", recovery.unwrap_or(left));
        if recovery.is_none() {
            report = report.noting(["The p99 was not back to what it had been before the spike.".to_owned()]);
        }
        let during = driven.measured.phases.get(1).map_or(0, |latency| latency.count);
        let report = self.traffic.exercised(report, &driven).exercised("events of the spike", during);
        report.finish(driven, site).await
    }
}

/// The greatest p99 of an interval before the spike, in milliseconds; and how many seconds after it the latency was back
/// to that, if it was.
fn recovery(timeline: &[Point], begin: Duration, end: Duration) -> (f64, Option<f64>) {
    let (begin, end, step) = (begin.as_secs_f64(), end.as_secs_f64(), STEP.as_secs_f64());
    let before = timeline.iter().filter(|point| point.at <= begin);
    let usual = before.map(|point| point.p99_us).fold(0.0, f64::max);
    let after = timeline.iter().filter(|point| point.at >= end + step / 2.0).collect::<Vec<_>>();
    let normal = after.windows(NORMAL).find(|points| points.iter().all(|point| point.p99_us <= usual));
    (usual / 1e3, normal.map(|points| (points[0].at - end).max(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_is_where_the_latency_stays_normal() {
        let timeline = |p99s: &[f64]| {
            let point = |(n, p99_us): (usize, &f64)| Point {
                at: (n + 1) as f64 * 0.1,
                p99_us: *p99_us * 1e3,
                ..Point::default()
            };
            p99s.iter().enumerate().map(point).collect::<Vec<_>>()
        };
        let recovery = |p99s: &[f64]| recovery(&timeline(p99s), Duration::from_millis(300), Duration::from_millis(500));
        let near = |seconds: Option<f64>, expected: f64| (seconds.expect("it recovered") - expected).abs() < 1e-6;
        let (usual, at_once) = recovery(&[1.0, 3.0, 2.0, 9.0, 9.0, 2.0, 3.0, 1.0]);
        assert!(near(at_once, 0.1) && usual == 3.0, "{at_once:?}");
        // One lucky interval is not the end of it.
        let (_, later) = recovery(&[1.0, 3.0, 2.0, 9.0, 9.0, 9.0, 2.0, 9.0, 3.0, 1.0, 2.0, 9.0]);
        assert!(near(later, 0.4), "{later:?}");
        assert_eq!(recovery(&[1.0, 3.0, 2.0, 9.0, 9.0, 9.0, 2.0, 9.0, 3.0]), (3.0, None));
        assert_eq!(recovery(&[1.0, 3.0, 2.0, 9.0, 9.0]), (3.0, None));
    }
}
