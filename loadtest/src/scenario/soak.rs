//! The scenario `soak`: a moderate load for a long time.

use clap::Args;
use serde::Serialize;

use crate::options::Common;
use crate::report::{Findings, Report, grouped};
use crate::scenario::traffic::{Drive, Traffic};
use crate::schedule::{Rate, RateProfile};
use crate::target::Target;
use crate::timeline::{Point, STEP};
use crate::trend::Trend;

/// Most parts into which a run is divided in the report.
const PARTS_MAX: f64 = 12.0;

const HOUR: f64 = 3_600.0;

/// Growth that lasts for 5 minutes is extrapolated to an hour.
const FORESEEABLE: f64 = HOUR / 12.0;

/// Publish, subscribe and query at a moderate rate for as long as --seconds says, such as hours
///
/// Tells how the rate, latency, memory and CPU time of the server were over time, and whether any of them grew in
/// the second half; whether that is too much is for you to say. Verifies what mixed verifies.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Soak {
    /// Events a second of all producers, each way in with an equal share
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    #[command(flatten)]
    #[serde(flatten)]
    traffic: Traffic,
}

impl Soak {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let target = Target::new(&common.target).await?;
        let drive = Drive { profile: Some(RateProfile::steady(self.rate)), step: STEP, phases: Vec::new() };
        let driven = self.traffic.drive(target, common, drive).await?;
        let mut notes = parts(&driven.measured.timeline);
        notes.extend(growth(&driven.measured.timeline));
        notes.extend(driven.notes);
        let title = format!("{} events/s, {}", grouped(self.rate as f64), self.traffic.title());
        let findings = Findings::new("soak", title, self).at(Rate(Some(self.rate))).noting(notes);
        Ok(Report::new(findings, &driven.run, driven.measured, driven.server))
    }
}

/// How it was in each part of the run, in words.
fn parts(timeline: &[Point]) -> Vec<String> {
    let length = timeline.last().map_or(0.0, |point| point.at);
    // Whole minutes, unless there are too few of them.
    let minutes = (length / 60.0 / PARTS_MAX).ceil();
    let part = if length < 120.0 { length / 4.0 } else { 60.0 * minutes };
    let parts = timeline.chunk_by(|one, other| (one.at / part).ceil() == (other.at / part).ceil());
    let told = parts.map(|points| {
        let until = points.last().map_or(0.0, |point| point.at);
        let mean = |value: fn(&Point) -> f64| points.iter().map(value).sum::<f64>() / points.len() as f64;
        let rate = grouped(mean(|point| point.per_second));
        let p99 = points.iter().map(|point| point.p99_us).fold(0.0, f64::max) / 1e3;
        let mut text = format!("until {}: {rate} events/s, p99 {p99:.3} ms at worst", time(until));
        if let Some(memory) = points.last().and_then(|point| point.server_memory_bytes) {
            let processors = mean(|point| point.server_processors.unwrap_or_default());
            text += &format!(", the server {processors:.3} processors, {:.1} MB", memory as f64 / 1e6);
        }
        text
    });
    told.collect()
}

/// Seconds as a person says them.
fn time(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3_600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m}:{s:02} min"),
        (h, m, s) => format!("{h}:{m:02}:{s:02} h"),
    }
}

/// Whether something grew in the second half, in words.
fn growth(timeline: &[Point]) -> Vec<String> {
    let half = timeline.last().map_or(0.0, |point| point.at / 2.0);
    let second = timeline.iter().filter(|point| point.at >= half).collect::<Vec<_>>();
    let told = |name: &str, unit: &str, value: fn(&Point) -> Option<f64>| {
        let points = second.iter().filter_map(|point| Some((point.at, value(point)?))).collect::<Vec<_>>();
        let trend = Trend::of(&points)?;
        let Trend { mean, growth, noise, length } = trend;
        Some(if trend.is_real() {
            let (grew, share) = (if growth > 0.0 { "grew" } else { "fell" }, growth.abs() / mean * 100.0);
            let mut text = format!("{name} {grew} by {:.3} {unit} ({share:.0} %) over the second half", growth.abs());
            if length >= FORESEEABLE {
                let an_hour = growth.abs() / length * HOUR;
                text += &format!(", which in an hour would be {an_hour:.1} {unit}");
            }
            text
        } else {
            format!("{name} was steady over the second half: {mean:.3} {unit}, give or take {noise:.3}")
        })
    };
    let figures = [
        told("the server's memory", "MB", |point| Some(point.server_memory_bytes? as f64 / 1e6)),
        told("the server's CPU time", "µs/event", |point| {
            (point.per_second > 0.0).then_some(point.server_processors? * 1e6 / point.per_second)
        }),
        told("the median latency", "ms", |point| Some(point.p50_us / 1e3)),
    ];
    figures.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(seconds: u32, memory: impl Fn(f64) -> f64) -> Vec<Point> {
        let point = |at: f64| Point {
            at,
            per_second: 1_000.0,
            p50_us: 500.0,
            p99_us: at,
            max_us: at,
            server_processors: Some(0.1),
            server_memory_bytes: Some((memory(at) * 1e6) as u64),
        };
        (1..=seconds).map(|second| point(f64::from(second))).collect()
    }

    #[test]
    fn growth_of_memory_is_reported() {
        let growing = growth(&timeline(1_200, |at| 50.0 + at / 60.0));
        assert!(
            growing[0].starts_with("the server's memory grew by ")
                && growing[0].ends_with(", which in an hour would be 60.0 MB"),
            "{growing:?}"
        );
        let soon = growth(&timeline(60, |at| 50.0 + at));
        assert!(
            soon[0].starts_with("the server's memory grew by ") && soon[0].ends_with(" over the second half"),
            "{soon:?}"
        );
        let steady = growth(&timeline(600, |at| if at < 100.0 { at } else { 100.0 }));
        assert!(steady.iter().all(|note| note.contains(" was steady over the second half: ")), "{steady:?}");
        assert_eq!(growth(&[]), [] as [&str; 0]);
    }

    #[test]
    fn parts_are_few_and_of_whole_minutes() {
        let check = |seconds, count: usize, first: &str, last: &str| {
            let parts = parts(&timeline(seconds, |_| 1.0));
            assert_eq!(parts.len(), count, "{parts:?}");
            assert!(parts[0].starts_with(first) && parts[count - 1].starts_with(last), "{parts:?}");
        };
        check(40, 4, "until 10 s: 1,000 events/s, p99 0.010 ms at worst", "until 40 s: ");
        check(120, 2, "until 1:00 min: ", "until 2:00 min: ");
        check(7_200, 12, "until 10:00 min: ", "until 2:00:00 h: ");
        check(7_300, 12, "until 11:00 min: ", "until 2:01:40 h: ");
        assert_eq!(parts(&[]), [] as [&str; 0]);
    }
}
