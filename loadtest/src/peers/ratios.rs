//! How much better ours is than the others that were measured beside it.

use std::fmt::Write;

use crate::metric::{RATE, SERVER, SERVER_CPU, Spread};
use crate::numbers::written;
use crate::report::Report;

/// Columns of a metric and of its ratio.
const FIGURE_WIDTH: usize = 13;
const RATIO_WIDTH: usize = 9;

/// A table for each workload: the medians of each server, and in brackets the ratios of the others to the first,
/// which is ours.
pub fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    for runs in reports.chunk_by(|one, next| (&one.scenario, &one.options) == (&next.scenario, &next.options)) {
        let mut subjects: Vec<&Report> = Vec::new();
        for run in runs {
            if !subjects.iter().any(|subject| subject.subject == run.subject) {
                subjects.push(run);
            }
        }
        let columns = subjects.iter().map(|subject| Column::all(runs, &subject.subject)).collect::<Vec<_>>();
        let width = subjects.iter().map(|subject| subject.subject.chars().count()).max().unwrap_or_default();
        let names = columns[0].iter().map(|it| format!("{:>FIGURE_WIDTH$} {:RATIO_WIDTH$}", it.name, ""));
        let mut line = |line: String| writeln!(text, "{}", line.trim_end()).expect("a string takes everything");
        line(format!("{}: {}", runs[0].scenario, runs[0].title));
        line(format!("  {:width$}{}  acknowledged means", "", names.collect::<String>()));
        for (number, (subject, metrics)) in subjects.iter().zip(&columns).enumerate() {
            let cells = metrics.iter().zip(&columns[0]).map(|(metric, ours)| {
                let ratio = if number > 0 { metric.ratio(ours) } else { None };
                let ratio = ratio.map_or(String::new(), |ratio| format!("({}×)", written(ratio)));
                let median = metric.median.map_or("–".to_owned(), written);
                format!("{median:>FIGURE_WIDTH$} {ratio:RATIO_WIDTH$}")
            });
            let cells = cells.collect::<String>();
            line(format!("  {:width$}{cells}  {}", subject.subject, subject.acknowledged_means));
        }
        line(String::new());
    }
    if !text.is_empty() {
        text.push_str("Medians; in brackets, how many times better the first is (below 1 it is worse).\n");
    }
    text
}

/// One metric of one server.
struct Column {
    name: String,
    median: Option<f64>,
    more_is_better: bool,
}

impl Column {
    /// The rate, what it cost, and how long it took, over all runs of one server.
    fn all(runs: &[Report], subject: &str) -> [Self; 4] {
        let its = runs.iter().filter(|run| run.subject == subject).collect::<Vec<_>>();
        let Report { deliveries, latency_us: latency, .. } = its[0];
        let spreads = Spread::all(&its);
        let median = |of, text| Spread::find(&spreads, of, text).map(|spread| spread.median);
        let units = if deliveries.is_some() { "deliveries" } else { "events" };
        let rate = median(RATE, units);
        // Where nothing was counted, the other metrics mean nothing.
        let some = |value: Option<f64>| value.filter(|_| rate > Some(0.0));
        let column = |name: &str, median| Self { name: name.to_owned(), median, more_is_better: false };
        let of = latency.of.name();
        [
            Self { name: format!("{units}/s"), median: rate, more_is_better: true },
            column(&format!("CPU µs/{}", latency.of.unit()), some(median(SERVER, SERVER_CPU))),
            column("p50 ms", some(median(of, "p50"))),
            column("p99 ms", some(median(of, "p99"))),
        ]
    }

    /// How many times better ours is.
    fn ratio(&self, ours: &Self) -> Option<f64> {
        let (theirs, ours) = (self.median?, ours.median?);
        let ratio = if self.more_is_better { ours / theirs } else { theirs / ours };
        ratio.is_finite().then_some(ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(workload: u32, subject: &str, per_second: f64, p50_us: f64) -> Report {
        let count = json!({ "count": per_second as u64, "per_second": per_second });
        let latency = json!({ "of": "acknowledgement", "count": per_second as u64, "mean": 1.0, "p50": p50_us, "p90": 1.0,
            "p99": 2.0 * p50_us, "p99_9": 1.0, "max": 1.0, "percentiles": [] });
        let cost = json!({ "cpu_us_per_event": 2.5, "cpu_us_each": 2.5, "cpu_us_each_by_thread": {},
            "written_bytes_per_event": 1.0, "peak_memory_bytes": 1, "busiest_thread": "", "busiest_thread_share": 0.0 });
        let report = json!({
            "format": 1, "scenario": "publish", "subject": subject, "acknowledged_means": format!("{subject} promises"),
            "title": "a title", "options": { "window": workload }, "started_at": "2026-11-24T10:00:00Z",
            "machine": { "processors": 2, "cpu": "", "memory_bytes": 1, "kernel": "" }, "seconds": 1.0, "events": count,
            "latency_us": latency, "timeline": [], "server": cost, "client": cost,
            "processors_busy": { "client": 0.0, "server": null, "all": 0.0, "processors": 2 }, "limit": "",
            "acknowledged": 1, "violations": [], "server_warnings": [],
        });
        serde_json::from_value(report).expect("a report")
    }

    #[test]
    fn medians_of_the_first_are_divided_by_those_of_the_others() {
        let reports = [
            run(1, "ours", 3_000.0, 500.0),
            run(1, "theirs", 1_000.0, 2_000.0),
            run(1, "ours", 1_000.0, 500.0),
            run(1, "theirs", 500.0, 2_000.0),
            run(1, "ours", 2_000.0, 9_000.0),
            run(1, "theirs", 1_000.0, 100.0),
            run(2, "ours", 10.0, 1.0),
            run(2, "theirs", 0.0, 0.0),
        ];
        let text = table(&reports);
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
        let head = "events/s CPU µs/event p50 ms p99 ms acknowledged means";
        let expected = [
            "publish: a title",
            head,
            "ours 2,000 2.50 0.500 1.00 ours promises",
            "theirs 1,000 (2.00×) 2.50 (1.00×) 2.00 (4.00×) 4.00 (4.00×) theirs promises",
            "",
            "publish: a title",
            head,
            "ours 10.0 2.50 0.00100 0.00200 ours promises",
            "theirs 0 – – – theirs promises",
            "",
            "Medians; in brackets, how many times better the first is (below 1 it is worse).",
        ];
        assert_eq!(lines, expected);
        assert_eq!(table(&[]), "");
    }
}
