//! The metrics of runs: their names, their spread over several runs, and how they differ.

use std::fmt::{self, Display};

use serde::Serialize;

pub use crate::numbers::written;
use crate::report::Report;

/// One metric of one run.
#[derive(Debug, Clone, PartialEq)]
struct Metric {
    name: MetricName,
    value: f64,
}

/// What a metric is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MetricName {
    /// The group of the metric: [`RATE`], [`SERVER`], or what was timed, such as "acknowledgement".
    pub of: &'static str,
    #[serde(rename = "name")]
    pub text: &'static str,
    pub unit: String,
}

impl Display for MetricName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of, text, unit } = self;
        match *of {
            RATE => write!(f, "{text}{unit}"),
            _ => write!(f, "{of} {text}, {unit}"),
        }
    }
}

/// Groups of metrics; the other groups are named after what was timed.
pub const RATE: &str = "rate";
pub const SERVER: &str = "server";

/// A metric of the server.
pub const SERVER_CPU: &str = "CPU";

/// Syncs are given for 1,000 events: at full speed hundreds of events share one.
const EVENTS_OF_SYNCS: f64 = 1_000.0;

/// All metrics of a run, in the order in which they are shown.
fn metrics(report: &Report) -> Vec<Metric> {
    let mut all = Vec::new();
    let mut add = |of, text, unit: &str, value| {
        all.push(Metric { name: MetricName { of, text, unit: unit.to_owned() }, value });
    };
    add(RATE, "events", "/s", report.events.per_second);
    let others =
        [("deliveries", &report.deliveries), ("queries", &report.queries), ("connections", &report.connections)];
    for (text, count) in others {
        if let Some(count) = count {
            add(RATE, text, "/s", count.per_second);
        }
    }
    for latency in report.latencies() {
        let told = [("p50", latency.p50), ("p99", latency.p99), ("p99.9", latency.p99_9), ("max", latency.max)];
        told.into_iter().for_each(|(text, us)| add(latency.of.name(), text, "ms", us / 1e3));
    }
    if let Some(server) = &report.server {
        add(SERVER, SERVER_CPU, &format!("µs/{}", report.latency_us.of.unit()), server.cpu_us_each);
        add(SERVER, "memory", "MB", server.peak_memory_bytes as f64 / 1e6);
        add(SERVER, "written", "B/event", server.written_bytes_per_event);
        if let Some(syncs) = server.syncs_per_event {
            add(SERVER, "disk syncs", "/1,000 events", syncs * EVENTS_OF_SYNCS);
        }
    }
    all
}

/// A metric over several runs of the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    #[serde(flatten)]
    pub name: MetricName,
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Spread {
    /// Of every metric that each of these runs has.
    pub fn all(runs: &[&Report]) -> Vec<Self> {
        let each = runs.iter().map(|run| metrics(run)).collect::<Vec<_>>();
        let names = each.first().into_iter().flatten().map(|metric| metric.name.clone());
        let spreads = names.filter_map(|name| {
            let value = |metrics: &Vec<Metric>| Some(metrics.iter().find(|metric| metric.name == name)?.value);
            let mut values = each.iter().map(value).collect::<Option<Vec<_>>>()?;
            values.sort_by(f64::total_cmp);
            Some(Self { least: values[0], median: median(&values), most: *values.last()?, name })
        });
        spreads.collect()
    }

    /// The range in words, its ends written by `written`; `None` if both ends are written alike.
    pub fn range(&self, written: impl Fn(f64) -> String) -> Option<String> {
        let [least, most] = [self.least, self.most].map(written);
        (least != most).then(|| format!("{least}–{most}"))
    }

    /// How it differs from the same metric of other runs.
    pub fn against(&self, first: &Self) -> Change {
        Change {
            ratio: (first.median != 0.0).then(|| self.median / first.median),
            within_spread: self.least <= first.most && first.least <= self.most,
        }
    }
}

/// The middle one of sorted values, or what lies between the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// How a metric differs from that of other runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Change {
    /// Of the medians; `None` if the first is 0.
    pub ratio: Option<f64>,
    /// Whether the ranges overlap, so that the difference may mean nothing.
    pub within_spread: bool,
}

impl Change {
    /// The size of the change, without a word on whether it means something.
    pub fn size(&self) -> String {
        match self.ratio {
            None => "–".to_owned(),
            Some(ratio) if !(0.5..2.0).contains(&ratio) => format!("× {}", written(ratio)),
            Some(ratio) => {
                let percent = (ratio - 1.0) * 100.0;
                // Tenths where there is not much else.
                let digits = usize::from(percent.abs() < 9.95);
                match format!("{:.digits$}", percent.abs()).as_str() {
                    "0.0" => "0 %".to_owned(),
                    size => format!("{}{size} %", if percent < 0.0 { '−' } else { '+' }),
                }
            }
        }
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spread = if self.within_spread { ", within the spread" } else { "" };
        write!(f, "{}{spread}", self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(least: f64, median: f64, most: f64) -> Spread {
        Spread { name: MetricName { of: RATE, text: "events", unit: "/s".to_owned() }, least, median, most }
    }

    #[test]
    fn numbers_are_written_to_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.000_123_4, "0.000123"),
            (0.5, "0.500"),
            (7.304, "7.30"),
            (12.34, "12.3"),
            (99.96, "100"),
            (450.4, "450"),
            (1_234_567.8, "1,234,568"),
        ] {
            assert_eq!(written(value), text);
        }
    }

    #[test]
    fn changes_are_written_as_percent_or_factor() {
        let first = spread(98.0, 100.0, 102.0);
        for (other, text) in [
            (spread(120.0, 125.0, 130.0), "+25 %"),
            (spread(102.0, 112.0, 130.0), "+12 %, within the spread"),
            (spread(80.0, 85.0, 89.0), "−15 %"),
            (spread(102.1, 102.5, 103.0), "+2.5 %"),
            (spread(300.0, 340.0, 350.0), "× 3.40"),
            (spread(1.0, 1.2, 1.3), "× 0.0120"),
            (first.clone(), "0 %, within the spread"),
        ] {
            assert_eq!(other.against(&first).to_string(), text);
        }
        assert_eq!(first.against(&spread(0.0, 0.0, 0.0)).to_string(), "–");
    }

    #[test]
    fn a_range_whose_ends_are_written_alike_is_left_out() {
        assert_eq!(spread(0.5, 1.0, 2.0).range(written).as_deref(), Some("0.500–2.00"));
        assert_eq!(spread(1.0, 1.001, 1.002).range(written), None);
    }

    #[test]
    fn a_spread_holds_what_every_run_has() {
        let with = |per_second: f64| {
            let mut report = Report::example();
            report.events.per_second = per_second;
            report
        };
        let (slow, fast, mut blind) = (with(10.0), with(30.0), with(20.0));
        let both = Spread::all(&[&slow, &fast]);
        assert_eq!((both[0].least, both[0].median, both[0].most), (10.0, 20.0, 30.0));
        assert!(both.iter().any(|spread| spread.name.to_string() == "server CPU, µs/event"), "{both:?}");
        blind.server = None;
        let all = Spread::all(&[&fast, &slow, &blind]);
        assert_eq!((all[0].least, all[0].median, all[0].most), (10.0, 20.0, 30.0));
        assert!(all.iter().all(|spread| spread.name.of != "server"), "{all:?}");
        assert!(Spread::all(&[]).is_empty());
    }
}
