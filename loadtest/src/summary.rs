//! All runs of a call at a glance.

use std::fmt::Write;

use crate::compare::{Column, Comparison};
use crate::fail_if::Judgement;
use crate::metric::{RATE, SERVER, Spread};
use crate::numbers::{grouped, written};
use crate::report::{OBJECTIONS, Report, Verdict};

/// A screen is as wide as this; what is longer is cut.
const COLUMNS: usize = 100;

const WRITTEN: &str = "a string takes everything";

/// The worst verdict of these runs.
pub fn worst(reports: &[Report]) -> Verdict {
    reports.iter().map(|run| run.verdict).max().unwrap_or_default()
}

/// A table of the medians and the spread for each set of runs that measured the same; nothing where there was one run.
pub fn of_repetitions(comparisons: &[Comparison]) -> String {
    let repeated = comparisons.iter().filter(|all| all.columns.iter().any(|column| column.reports.len() > 1));
    repeated.map(|comparison| comparison.table() + "\n").collect()
}

/// A condition and what became of it, as a row like those of a report.
pub fn row(judgement: &Judgement) -> String {
    format!("  {:<17}{judgement}\n", if judgement.failed { "FAILED" } else { "passed" })
}

/// The verdict, and a few lines on each series: 24 lines for two of them.
pub fn screen(reports: &[Report], comparisons: &[Comparison], judgements: &[Judgement]) -> String {
    let mut lines = headlines(reports, judgements);
    for comparison in comparisons {
        for column in &comparison.columns {
            lines.push(String::new());
            lines.extend(series(&comparison.scenario, column));
        }
    }
    lines.extend([
        String::new(),
        "More: --verbose, a scenario by itself (loadtest publish), --html FILE, --help".to_owned(),
    ]);
    let cut = |line: &String| match line.char_indices().nth(COLUMNS) {
        None => line.clone(),
        Some(_) => line.chars().take(COLUMNS - 1).chain(['…']).collect(),
    };
    lines.iter().map(|line| cut(line) + "\n").collect()
}

/// The verdict on all runs, and what speaks against them, each in one line with the first run of which it is said.
fn headlines(reports: &[Report], judgements: &[Judgement]) -> Vec<String> {
    let all = reports.len();
    let objections = reports.iter().map(Report::objections).collect::<Vec<_>>();
    let such = |name: &'static str| {
        objections.iter().filter_map(move |of_run| of_run.iter().find(|(known, _)| *known == name))
    };
    let lines = OBJECTIONS.into_iter().filter_map(|name| {
        let (_, why) = such(name).next()?;
        Some(format!("{name} in {} of {all} runs: {why}", such(name).count()))
    });
    let verdict = match (worst(reports), judgements.iter().find(|judgement| judgement.failed)) {
        _ if reports.is_empty() => Some("NOTHING MEASURED: no run was finished".to_owned()),
        (Verdict::Verified, Some(failed)) => Some(format!("FAILED: {failed}")),
        (Verdict::Verified, None) => {
            let events = grouped(reports.iter().map(|run| run.acknowledged).sum::<u64>() as f64);
            Some(format!("VERIFIED: {all} of {all} runs kept every promise; {events} events were acknowledged"))
        }
        _ => None,
    };
    verdict.into_iter().chain(lines).collect()
}

/// A series in some lines: rates, latencies, what the server used, what limited it, what went wrong.
fn series(scenario: &str, column: &Column) -> Vec<String> {
    let (run, runs) = (column.reports[0], column.reports.len());
    let medians = if runs > 1 { format!(", medians of {runs} runs") } else { String::new() };
    let mut lines = vec![format!("{scenario}: {}{medians}", run.title)];
    let mut groups = Vec::<(&str, String)>::new();
    for Spread { name, median, .. } in column.metrics.iter().map(|metric| &metric.spread) {
        let told = match (name.of, name.text.as_str()) {
            (RATE, text) => format!("{} {text}{}", grouped(*median), name.unit),
            // All four would not fit beside each other.
            (SERVER, "disk syncs") => continue,
            (_, text) => format!("{text} {} {}", written(*median), name.unit),
        };
        match groups.last_mut().filter(|(of, _)| *of == name.of) {
            Some((_, text)) => write!(text, "   {told}").expect(WRITTEN),
            None => groups.push((name.of, told)),
        }
    }
    lines.extend(groups.iter().map(|(of, text)| format!("  {of:<17}{text}")));
    lines.extend(
        [("loop", run.loop_kind.words()), ("limit", &run.limit)].map(|(name, text)| format!("  {name:<17}{text}")),
    );
    let warnings = column.reports.iter().flat_map(|run| &run.server_warnings).map(|text| ("server says", text));
    let violations = column.reports.iter().flat_map(|run| &run.violations).map(|text| ("VIOLATION", text));
    lines.extend(violations.chain(warnings).take(1).map(|(name, text)| format!("  {name:<17}{text}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::{Asked, Exercised};
    use crate::latency::Operation;
    use crate::report::Count;
    use crate::run_files::Source;

    fn runs(scenario: &str, rates: &[f64]) -> Vec<Report> {
        let run = |rate: &f64| {
            let count = Count { count: 1, per_second: *rate };
            let mut report = Report { scenario: scenario.to_owned(), events: count.clone(), ..Report::example() };
            report.deliveries = Some(Count { per_second: rate * 10.0, ..count });
            report
        };
        rates.iter().map(run).collect()
    }

    fn told(reports: Vec<Report>) -> String {
        let sources = [Source { name: String::new(), reports }];
        let comparisons = Comparison::all(&sources);
        let conditions = ["p99>5ms", "rate<1500"].map(|text| text.parse().expect("a condition"));
        let judgements = crate::fail_if::judge(&conditions, &comparisons).expect("judgements");
        screen(&sources[0].reports, &comparisons, &judgements)
    }

    #[test]
    fn repetitions_are_told_with_their_spread() {
        let mut reports = runs("publish", &[3_000.0, 1_000.0, 2_000.0]);
        reports.extend(runs("fanout", &[1.0]));
        let mut sources = [Source { name: String::new(), reports }];
        let text = of_repetitions(&Comparison::all(&sources));
        assert!(text.starts_with("publish: ") && text.contains("  (3 runs)\n"), "{text}");
        assert!(text.contains(" 2,000 (1,000–3,000)\n") && !text.contains("fanout"), "{text}");
        sources[0].reports.drain(..2);
        assert_eq!(of_repetitions(&Comparison::all(&sources)), "");
    }

    #[test]
    fn a_screen_begins_with_the_verdict_and_is_no_longer_than_a_screen() {
        let mut reports = runs("publish", &[3_000.0, 1_000.0, 2_000.0]);
        reports.extend(runs("fanout", &[2_000.0]));
        for run in &mut reports {
            run.disturbed = Some(true);
            run.server_warnings = vec!["a warning ".repeat(20); 9];
            run.more_latencies_us = vec![run.latency_us.clone()];
            run.more_latencies_us[0].of = Operation::Delivery;
        }
        let text = told(reports.clone());
        assert!(
            text.starts_with("VERIFIED: 4 of 4 runs kept every promise; 12,000 events were acknowledged\n"),
            "{text}"
        );
        assert!(
            text.contains("medians of 3 runs\n") && text.contains(" 2,000 events/s   20,000 deliveries/s\n"),
            "{text}"
        );
        assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 100), "{text}");

        let check = |reports: &[Report], expected: &str| {
            let text = told(reports.to_vec());
            assert!(text.starts_with(expected), "{text}");
        };
        check(&reports[1..2], "FAILED: rate<1500: 1,000/s, publish, event-pipeline 0.1.0\n");
        reports[0].verdict = Verdict::RateMissed;
        reports[0].asked = Some(Asked { of: Operation::Acknowledgement, per_second: 5e3, missed: true });
        check(&reports, "RATE MISSED in 1 of 4 runs: 5,000 events/s were asked for\nDISTURBED in 4 of 4 runs: ");
        reports[1].verdict = Verdict::NotExercised;
        reports[1].exercised = vec![Exercised { what: "refused".to_owned(), count: 0 }];
        check(&reports, "NOT EXERCISED in 1 of 4 runs: no refused: this run shows nothing\nRATE MISSED ");
        reports[2].verdict = Verdict::Violation;
        reports[2].violations = vec!["event 7 was lost".to_owned()];
        check(&reports, "VIOLATION in 1 of 4 runs: event 7 was lost\n");
    }
}
