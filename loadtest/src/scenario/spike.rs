//! The scenario `spike`: a multiple of the usual rate for some seconds.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::latency::Latency;
use crate::options::Common;
use crate::report::{Findings, Report, grouped};
use crate::run::WARM_UP;
use crate::scenario::traffic::{Drive, Traffic};
use crate::schedule::{Rate, RateProfile};
use crate::target::Target;
use crate::timeline::Point;

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
        let target = Target::new(&common.target).await?;
        let phases = vec![WARM_UP + begin, WARM_UP + end];
        let profile =
            RateProfile::steady(self.rate).then(phases[0], self.rate * self.factor).then(phases[1], self.rate);
        let drive = Drive { profile: Some(profile), step: STEP, phases };
        let driven = self.traffic.drive(target, common, drive).await?;

        let mut notes = self.phases(&driven.measured.phases);
        notes.extend(recovery(&driven.measured.timeline, begin, end));
        notes.extend(driven.notes);
        let title = format!(
            "{} events/s, {} times as many for {} s; {}",
            grouped(self.rate as f64),
            self.factor,
            self.spike_seconds,
            self.traffic.title()
        );
        // The average target rate.
        let more = (self.factor - 1) as f64 * self.spike_seconds as f64 / common.seconds as f64;
        let rate = Rate(Some((self.rate as f64 * (1.0 + more)) as u64));
        let findings = Findings::new("spike", title, self).at(rate).noting(notes);
        Ok(Report::new(findings, &driven.run, driven.measured, driven.server))
    }

    /// The latency of each phase, in words.
    fn phases(&self, latencies: &[Latency]) -> Vec<String> {
        let rates = [self.rate, self.rate * self.factor, self.rate].map(|rate| grouped(rate as f64));
        let names = ["before", "during", "after"].into_iter().zip(rates);
        // The run may have ended early.
        let told = names.zip(latencies).filter(|(_, latency)| latency.count > 0);
        told.map(|((name, rate), latency)| format!("{name} the spike, {rate}/s: {latency}")).collect()
    }
}

/// When the latency was back to what it had been before the spike, in words; `None` of a run that did not last.
fn recovery(timeline: &[Point], begin: Duration, end: Duration) -> Option<String> {
    let (begin, end, step) = (begin.as_secs_f64(), end.as_secs_f64(), STEP.as_secs_f64());
    let before = timeline.iter().filter(|point| point.at <= begin);
    let usual = before.map(|point| point.p99_us).fold(0.0, f64::max);
    let after = timeline.iter().filter(|point| point.at >= end + step / 2.0).collect::<Vec<_>>();
    if after.len() < NORMAL {
        return None;
    }
    let normal = after.windows(NORMAL).find(|points| points.iter().all(|point| point.p99_us <= usual));
    let usual = usual / 1e3;
    Some(match normal.map(|points| (points[0].at - end).max(0.0)) {
        None => format!("the p99 of 0.1 s was not back to what it had been before the spike, {usual:.3} ms at most"),
        Some(time) => format!(
            "{time:.1} s after the spike the p99 of 0.1 s was back to what it had been before, {usual:.3} ms at most"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_is_where_the_latency_stays_normal() {
        let timeline = |p99s: &[f64]| {
            let point = |(n, p99_us): (usize, &f64)| Point {
                at: (n + 1) as f64 * 0.1,
                per_second: 1.0,
                p50_us: 0.0,
                p99_us: *p99_us * 1e3,
                max_us: 0.0,
                server_processors: None,
                server_memory_bytes: None,
            };
            p99s.iter().enumerate().map(point).collect::<Vec<_>>()
        };
        let told = |p99s: &[f64]| recovery(&timeline(p99s), Duration::from_millis(300), Duration::from_millis(500));
        let recovery = |p99s: &[f64]| told(p99s).expect("it lasted");
        let at_once = recovery(&[1.0, 3.0, 2.0, 9.0, 9.0, 2.0, 3.0, 1.0]);
        assert!(at_once.starts_with("0.1 s after the spike"), "{at_once}");
        // One lucky interval is not the end of it.
        let later = recovery(&[1.0, 3.0, 2.0, 9.0, 9.0, 9.0, 2.0, 9.0, 3.0, 1.0, 2.0, 9.0]);
        assert!(later.starts_with("0.4 s after") && later.ends_with("before, 3.000 ms at most"), "{later}");
        let never = recovery(&[1.0, 3.0, 2.0, 9.0, 9.0, 9.0, 2.0, 9.0, 3.0]);
        assert!(never.starts_with("the p99 of 0.1 s was not back"), "{never}");
        assert_eq!(told(&[1.0, 3.0, 2.0, 9.0, 9.0]), None);
    }
}
