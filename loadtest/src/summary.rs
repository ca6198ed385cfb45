//! The summary of several runs.

use std::fmt::Write;

use crate::metric::{Spread, median, written};
use crate::report::{Report, grouped};
use crate::run_files::{Series, Source};

/// The median and the spread of each metric, for each set of runs that measured the same; nothing where there was
/// one run of each.
pub fn of_repetitions(reports: &[Report]) -> String {
    let source = [Source { name: String::new(), reports: reports.to_vec() }];
    let mut text = String::new();
    for series in Series::all(&source).iter().filter(|series| series.runs.len() > 1) {
        let Report { scenario, title, subject, .. } = series.first();
        writeln!(text, "{} runs of {scenario}, {subject}: {title}", series.runs.len()).expect(WRITTEN);
        for Spread { name, least, median, most } in Spread::all(&series.runs) {
            let [least, median, most] = [least, median, most].map(written);
            writeln!(text, "  {:<32}{median:>13}   from {least} to {most}", name.to_string()).expect(WRITTEN);
        }
        text.push('\n');
    }
    text
}

const WRITTEN: &str = "a string takes everything";

/// The two numbers that matter, of runs of `publish` and of `fanout`; the medians where there are several.
pub fn headline(reports: &[Report]) -> String {
    let deliveries = |report: &Report| report.deliveries.as_ref().map(|count| count.per_second);
    let lines = [
        line(reports, "publish", "durable events a second", |report| Some(report.events.per_second)),
        line(reports, "fanout", "deliveries a second", deliveries),
    ];
    let lines = lines.into_iter().flatten().collect::<Vec<_>>();
    let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or_default();
    let rule = "━".repeat(width + 2);
    format!("{rule}\n{}{rule}\n", lines.iter().map(|line| format!(" {line}\n")).collect::<String>())
}

/// One line of the headline; `None` without such a run.
fn line(reports: &[Report], scenario: &str, what: &str, rate: impl Fn(&Report) -> Option<f64>) -> Option<String> {
    let middle = |metric: &dyn Fn(&Report) -> Option<f64>| {
        let mut values = reports.iter().filter(|run| run.scenario == scenario).filter_map(metric).collect::<Vec<_>>();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then(|| median(&values))
    };
    let (rate, p99) = (middle(&rate)?, middle(&|run| Some(run.latency_us.p99 / 1e3))?);
    let mut text = format!("{:>12} {what:<24} p99 {p99:.1} ms", grouped(rate));
    if let Some(cpu) = middle(&|run| Some(run.server.as_ref()?.cpu_us_each)) {
        text += &format!("   {cpu:.3} µs of server CPU each");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Count;

    fn runs(scenario: &str, rates: &[f64]) -> Vec<Report> {
        let run = |rate: &f64| {
            let count = Count { count: 1, per_second: *rate };
            let mut report = Report { scenario: scenario.to_owned(), events: count.clone(), ..Report::example() };
            report.deliveries = Some(Count { per_second: rate * 10.0, ..count });
            report
        };
        rates.iter().map(run).collect()
    }

    #[test]
    fn repetitions_are_told_with_their_spread() {
        let mut all = runs("publish", &[3_000.0, 1_000.0, 2_000.0]);
        all.extend(runs("fanout", &[1.0]));
        let text = of_repetitions(&all);
        assert!(text.starts_with("3 runs of publish, "), "{text}");
        assert!(text.contains("2,000   from 1,000 to 3,000\n") && !text.contains("fanout"), "{text}");
        assert_eq!(of_repetitions(&all[2..]), "");
    }

    #[test]
    fn the_headline_has_the_numbers_that_matter() {
        let mut all = runs("publish", &[3_000.0, 1_000.0, 2_000.0]);
        all.extend(runs("fanout", &[1_000.0]));
        let headline = headline(&all);
        let lines = headline.lines().collect::<Vec<_>>();
        assert_eq!(lines.len(), 4, "{headline}");
        assert!(lines[1].contains(" 2,000 durable events a second") && lines[1].contains(" p99 "), "{headline}");
        assert!(lines[2].contains(" 10,000 deliveries a second"), "{headline}");
    }
}
