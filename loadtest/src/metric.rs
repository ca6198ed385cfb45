//! The metrics of runs: their names, their spread over several runs, and how they differ.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::numbers::written;
use crate::rank_test::p_value;
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
    /// The group of the metric: [`RATE`], [`SERVER`], [`RESULT`], or what was timed, such as "acknowledgement".
    pub of: &'static str,
    #[serde(rename = "name")]
    pub text: String,
    pub unit: String,
}

impl Display for MetricName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of, text, unit } = self;
        match *of {
            RATE => write!(f, "{text}{unit}"),
            RESULT if unit.is_empty() => f.write_str(text),
            RESULT => write!(f, "{text}, {unit}"),
            _ => write!(f, "{of} {text}, {unit}"),
        }
    }
}

/// Groups of metrics; the other groups are named after what was timed.
pub const RATE: &str = "rate";
pub const SERVER: &str = "server";
/// What only the scenario measures.
pub const RESULT: &str = "result";

/// A metric of the server.
pub const SERVER_CPU: &str = "CPU";

/// The metrics that every scenario can have, by what is measured: a number, a time, or bytes.
pub const NUMBERS: [&str; 5] = ["events", "deliveries", "queries", "connections", "disk syncs"];
pub const TIMES: [&str; 5] = ["p50", "p99", "p99.9", "max", SERVER_CPU];
pub const BYTES: [&str; 2] = ["memory", "written"];

/// Syncs are given for 1,000 events: at full speed hundreds of events share one.
const EVENTS_OF_SYNCS: f64 = 1_000.0;

/// A change is taken for one from this p-value on: of 20 metrics that did not change, one shows so much by chance.
const EVIDENT: f64 = 0.05;

/// How changes are to be read.
pub const CHANGES: &str = "\
p is how often chance alone would make as great a difference between the runs (Mann–Whitney U test,
two-sided). Above 0.05 there is no evidence of a change; of 20 metrics that did not change, one is below it
all the same. With 4 runs on each side p can fall to 0.03, with 5 to 0.008; with 3 never below 0.1.";

/// All metrics of a run, in the order in which they are shown.
fn metrics(report: &Report) -> Vec<Metric> {
    let mut all = Vec::new();
    let mut add = |of, text: &str, unit: &str, value| {
        all.push(Metric { name: MetricName { of, text: text.to_owned(), unit: unit.to_owned() }, value });
    };
    report.counts().for_each(|(kind, count)| add(RATE, kind.units(), "/s", count.per_second));
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
    report.results.iter().for_each(|result| add(RESULT, &result.name, &result.unit, result.value));
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
    /// Of each run, ascending.
    #[serde(skip)]
    pub values: Vec<f64>,
}

impl Spread {
    /// Of every metric that each of these runs has.
    pub fn all(runs: &[&Report]) -> Vec<Self> {
        let each = runs.iter().map(|run| metrics(run)).collect::<Vec<_>>();
        let names = each.first().into_iter().flatten().map(|metric| metric.name.clone());
        let spreads = names.filter_map(|name| {
            let value = |metrics: &Vec<Metric>| Some(metrics.iter().find(|metric| metric.name == name)?.value);
            Some(Self::of(name.clone(), each.iter().map(value).collect::<Option<Vec<_>>>()?))
        });
        spreads.collect()
    }

    /// Of these values, at least one.
    fn of(name: MetricName, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { least: values[0], median: median(&values), most: values[values.len() - 1], values, name }
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
            p_value: p_value(&self.values, &first.values),
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
    /// How often chance alone would make as great a difference between the runs.
    pub p_value: f64,
}

impl Change {
    /// The size of the change, without a word on whether it means something.
    fn size(&self) -> String {
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

    fn p(&self) -> String {
        match self.p_value {
            p if p < 0.000_05 => "p < 0.0001".to_owned(),
            p if p < 0.000_95 => format!("p = {p:.4}"),
            p if p < 0.095 => format!("p = {p:.3}"),
            p if p < 0.995 => format!("p = {p:.2}"),
            _ => "p = 1".to_owned(),
        }
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.p_value <= EVIDENT {
            true => write!(f, "{}, {}", self.size(), self.p()),
            false => write!(f, "{}, no evidence ({})", self.size(), self.p()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: &[f64]) -> Spread {
        let name = MetricName { of: RATE, text: "events".to_owned(), unit: "/s".to_owned() };
        Spread::of(name, values.to_vec())
    }

    #[test]
    fn changes_are_written_as_percent_or_factor_with_their_p_value() {
        let first = spread(&[98.0, 99.0, 100.0, 101.0, 102.0]);
        for (other, text) in [
            (spread(&[120.0, 124.0, 125.0, 126.0, 130.0]), "+25 %, p = 0.008"),
            (spread(&[80.0, 84.0, 85.0, 86.0, 89.0]), "−15 %, p = 0.008"),
            (spread(&[120.0, 125.0, 130.0]), "+25 %, p = 0.036"),
            (spread(&[97.0, 98.5, 102.5, 103.0, 104.0]), "+2.5 %, no evidence (p = 0.55)"),
            (spread(&[125.0, 125.0]), "+25 %, no evidence (p = 0.10)"),
            (spread(&[340.0]), "× 3.40, no evidence (p = 0.33)"),
            (spread(&[1.2]), "× 0.0120, no evidence (p = 0.33)"),
            (first.clone(), "0 %, no evidence (p = 1)"),
        ] {
            assert_eq!(other.against(&first).to_string(), text);
        }
        assert_eq!(first.against(&spread(&[0.0])).size(), "–");
        let p = |p_value| Change { ratio: None, p_value }.p();
        assert_eq!([1e-9, 0.0001, 0.0012, 0.31].map(p), ["p < 0.0001", "p = 0.0001", "p = 0.001", "p = 0.31"]);
    }

    #[test]
    fn a_range_whose_ends_are_written_alike_is_left_out() {
        assert_eq!(spread(&[0.5, 1.0, 2.0]).range(written).as_deref(), Some("0.500–2.00"));
        assert_eq!(spread(&[1.0, 1.001, 1.002]).range(written), None);
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
        assert_eq!(both.last().expect("results").name.to_string(), "recovery, s");
        blind.server = None;
        let all = Spread::all(&[&fast, &slow, &blind]);
        assert_eq!((all[0].least, all[0].median, all[0].most), (10.0, 20.0, 30.0));
        assert!(all.iter().all(|spread| spread.name.of != "server"), "{all:?}");
        assert!(Spread::all(&[]).is_empty());
    }

    #[test]
    fn every_metric_but_a_result_is_named() {
        for Metric { name, .. } in metrics(&Report::example()) {
            let names = match name.unit.split('/').next() {
                _ if name.of == RESULT => continue,
                Some("") => &NUMBERS[..],
                Some("ms" | "µs") => &TIMES,
                _ => &BYTES,
            };
            assert!(names.contains(&name.text.as_str()), "{name}");
        }
    }
}
