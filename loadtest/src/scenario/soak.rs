//! The scenario `soak`: a moderate load for a long time.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use event_pipeline::event::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio::select;
use tokio::time::sleep;

use crate::connection::Connection;
use crate::numbers::grouped;
use crate::options::Common;
use crate::query_client::QueryKind;
use crate::report::Report;
use crate::run::Run;
use crate::scenario::traffic::Traffic;
use crate::schedule::Rate;
use crate::target::Heads;
use crate::timeline::Point;
use crate::workload::{Readers, Site};

const HOUR: f64 = 3_600.0;

/// How often old events are deleted.
const DELETION: Duration = Duration::from_secs(1);

/// Publish, subscribe and query at a moderate rate for as long as --seconds says, such as hours
///
/// Tells whether the latency, the memory or the CPU time of the server grew in the second half; whether that is too much
/// is for you to say. Verifies what mixed verifies.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Soak {
    /// Events a second of all producers, each way in with an equal share
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Delete events that are older than this, every second, so that the file does not grow for ever
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    keep: Option<u64>,
    #[command(flatten)]
    #[serde(flatten)]
    traffic: Traffic,
}

impl Soak {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let mut site = Site::new(&common.target).await?;
        let mut workload = self.traffic.workload(&site).await?;
        if let (Some(Readers { asks, .. }), Some(_)) = (&mut workload.readers, self.keep) {
            // What the other queries must show is not known where events are deleted meanwhile.
            *asks = vec![QueryKind::Latest, QueryKind::Since];
        }
        workload.rate = common.profile(Rate(Some(self.rate)));
        let mut started = workload.start(&site);
        let deleted = Rc::<Cell<u64>>::default();
        if let Some(keep) = self.keep {
            let (run, connection, deleted) = (started.run.clone(), site.open().await?, deleted.clone());
            let heads = site.target.heads.clone();
            started.tasks.spawn(delete(run, connection, heads, Duration::from_secs(keep), deleted));
        }
        let driven = started.measure(&site.target, common).await?;
        site.deleted = deleted.get();

        let title = format!("{} events/s, {}", grouped(self.rate as f64), self.traffic.title());
        let mut report = Report::of("soak", title, self, common, &driven);
        for (name, unit, trend) in trends(&driven.measured.timeline) {
            let a_hour = trend.growth / trend.length * HOUR;
            report = report.result(&format!("{name} growth"), &format!("{unit}/h"), a_hour);
            report = report.result(&format!("{name} noise"), unit, trend.noise);
            let Trend { mean, growth, .. } = trend;
            report = report.noting(trend.is_real().then(|| {
                let (grew, share) = (if growth > 0.0 { "grew" } else { "fell" }, growth.abs() / mean * 100.0);
                format!("The {name} {grew} by {:.3} {unit} ({share:.0} %) over the second half.", growth.abs())
            }));
        }
        let mut report = self.traffic.exercised(report, &driven);
        if self.keep.is_some() {
            report = report.exercised("events deleted", deleted.get());
        }
        report.finish(driven, site).await
    }
}

/// Deletes what has become too old, until the run stops.
async fn delete(
    run: Rc<Run>,
    mut connection: Connection,
    heads: Heads,
    keep: Duration,
    deleted: Rc<Cell<u64>>,
) -> anyhow::Result<()> {
    while !run.is_stopping() {
        let before = Timestamp(Timestamp::now().0 - keep.as_micros() as i64);
        let request = heads.request("DELETE", &format!("/events?before={before}"), "");
        let (status, body) = connection.request(&request).await?;
        let said = || format!("the server answered a deletion with {status} {}", String::from_utf8_lossy(&body));
        ensure!(status == 200, "{}", said());
        let answer: Value = serde_json::from_slice(&body).with_context(said)?;
        deleted.set(deleted.get() + answer["deleted"].as_u64().with_context(said)?);
        select! {
            () = sleep(DELETION) => {}
            () = run.stopped() => {}
        }
    }
    Ok(())
}

/// How the server's memory, its CPU time and the latency changed in the second half: name, unit and trend.
fn trends(timeline: &[Point]) -> Vec<(&'static str, &'static str, Trend)> {
    let half = timeline.last().map_or(0.0, |point| point.at / 2.0);
    let second = timeline.iter().filter(|point| point.at >= half).collect::<Vec<_>>();
    let trend = |name, unit, value: fn(&Point) -> Option<f64>| {
        let points = second.iter().filter_map(|point| Some((point.at, value(point)?))).collect::<Vec<_>>();
        Trend::of(&points).map(|trend| (name, unit, trend))
    };
    let trends = [
        trend("memory", "MB", |point| Some(point.server_memory_bytes? as f64 / 1e6)),
        trend("CPU time", "µs/event", |point| {
            (point.per_second > 0.0).then_some(point.server_processors? * 1e6 / point.per_second)
        }),
        trend("median latency", "ms", |point| Some(point.p50_us / 1e3)),
        trend("p99 latency", "ms", |point| Some(point.p99_us / 1e3)),
    ];
    trends.into_iter().flatten().collect()
}

/// The straight line nearest to some points.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Trend {
    /// Of the values.
    mean: f64,
    /// From the beginning to the end of the line.
    growth: f64,
    /// How far the values lie from the line, as a standard deviation.
    noise: f64,
    /// From the first point to the last.
    length: f64,
}

impl Trend {
    /// Of values at times; `None` of fewer than three or all at one time.
    fn of(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        let (first, last) = (points.first()?.0, points.last()?.0);
        if points.len() < 3 || last <= first {
            return None;
        }
        let mean_of = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
        let (time, mean) = (mean_of(|(time, _)| *time), mean_of(|(_, value)| *value));
        let variance = points.iter().map(|(t, _)| (t - time).powi(2)).sum::<f64>();
        let slope = points.iter().map(|(t, value)| (t - time) * (value - mean)).sum::<f64>() / variance;
        let distance = |(t, value): &(f64, f64)| value - mean - slope * (t - time);
        let noise = (points.iter().map(|point| distance(point).powi(2)).sum::<f64>() / count).sqrt();
        Some(Self { mean, growth: slope * (last - first), noise, length: last - first })
    }

    /// Whether the growth is more than twice the noise, and more than 1 % of the mean.
    fn is_real(&self) -> bool {
        self.growth.abs() > (2.0 * self.noise).max(0.01 * self.mean.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_growth_in_the_second_half_counts() {
        let timeline = |seconds: u32, memory: fn(f64) -> f64| {
            let point = |at: f64| Point {
                at,
                per_second: 1_000.0,
                server_processors: Some(0.1),
                server_memory_bytes: Some((memory(at) * 1e6) as u64),
                ..Point::default()
            };
            (1..=seconds).map(|second| point(f64::from(second))).collect::<Vec<_>>()
        };
        let memory =
            |timeline: &[Point]| trends(timeline).into_iter().find(|(name, ..)| *name == "memory").expect("it").2;
        let growing = memory(&timeline(1_200, |at| 50.0 + at / 60.0));
        assert!(growing.is_real() && (growing.growth / growing.length * HOUR - 60.0).abs() < 0.1, "{growing:?}");
        let steady = memory(&timeline(600, |at| at.min(100.0)));
        assert!(!steady.is_real() && steady.growth == 0.0, "{steady:?}");
        assert!(trends(&[]).is_empty());
    }

    fn trend(values: impl Fn(f64) -> f64) -> Trend {
        let points = (0..100).map(|n| (f64::from(n), values(f64::from(n)))).collect::<Vec<_>>();
        Trend::of(&points).expect("enough points")
    }

    #[test]
    fn growth_is_distinguished_from_noise() {
        let tremble = |t: f64| if t % 2.0 == 0.0 { 5.0 } else { -5.0 };
        let steady = trend(|t| 100.0 + tremble(t));
        assert!(!steady.is_real() && (steady.noise - 5.0).abs() < 0.1, "{steady:?}");
        let growing = trend(|t| 100.0 + t + tremble(t));
        assert!(growing.is_real() && (growing.growth - 99.0).abs() < 1.0, "{growing:?}");
        assert!(trend(|t| 100.0 - t).is_real());
        // Without noise, but less than 1 %.
        assert!(!trend(|t| 1_000.0 + t / 50.0).is_real());
        assert!(!trend(|_| 0.0).is_real());
    }

    #[test]
    fn too_few_points_have_no_trend() {
        assert_eq!(Trend::of(&[]), None);
        assert_eq!(Trend::of(&[(1.0, 1.0), (2.0, 2.0)]), None);
        assert_eq!(Trend::of(&[(1.0, 1.0); 3]), None);
    }
}
