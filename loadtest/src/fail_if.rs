//! Conditions under which runs count as failed, such as `p99>5ms`, judged on the median of the runs.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::Serialize;

use crate::compare::{Column, Compared, Comparison};
use crate::latency::Operation;
use crate::metric::{BYTES, MetricName, NUMBERS, RATE, RESULT, SERVER, TIMES};
use crate::numbers::written;

/// A condition.
#[derive(Debug, Clone, PartialEq)]
pub struct FailIf {
    /// As it was typed.
    text: String,
    /// The group of the metric, where one was named.
    group: Option<&'static str>,
    metric: String,
    /// Whether what is above the limit fails; else what is below.
    is_upper: bool,
    limit: f64,
    /// In what the limit is, and so the metric.
    quantity: Quantity,
}

/// What a number with a unit is. Times are compared in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Number,
    Time,
    Bytes,
    /// A ratio to the first file of a comparison.
    Ratio,
}

/// The units that limits and metrics can have.
const UNITS: [(&str, Quantity, f64); 14] = [
    ("", Quantity::Number, 1.0),
    ("/s", Quantity::Number, 1.0),
    ("k", Quantity::Number, 1e3),
    ("M", Quantity::Number, 1e6),
    ("us", Quantity::Time, 1.0),
    ("µs", Quantity::Time, 1.0),
    ("ms", Quantity::Time, 1e3),
    ("s", Quantity::Time, 1e6),
    ("B", Quantity::Bytes, 1.0),
    ("kB", Quantity::Bytes, 1e3),
    ("MB", Quantity::Bytes, 1e6),
    ("GB", Quantity::Bytes, 1e9),
    ("%", Quantity::Number, 1.0),
    ("x", Quantity::Ratio, 1.0),
];

/// What a unit measures, and how much of it one is; what it is divided by does not matter.
fn unit(text: &str) -> Option<(Quantity, f64)> {
    let text =
        if text.starts_with("/1") { "" } else { text.split('/').next().filter(|of| !of.is_empty()).unwrap_or(text) };
    UNITS.iter().find(|(known, ..)| *known == text).map(|(_, quantity, size)| (*quantity, *size))
}

impl FromStr for FailIf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, limit) = text.split_once(['<', '>']).ok_or("it needs a metric, < or >, and a limit: p99>5ms")?;
        let end = limit.trim().find(|c: char| !(c.is_ascii_digit() || ".,_".contains(c))).unwrap_or(limit.trim().len());
        let (number, of) = limit.trim().split_at(end);
        let number = number.replace([',', '_'], "").parse::<f64>().map_err(|_| format!("{limit:?} is no number"))?;
        let (quantity, size) = unit(of.trim()).ok_or_else(|| format!("{of:?} is no unit of a limit"))?;
        let groups = Operation::ALL.map(Operation::name).into_iter().chain([RATE, SERVER, RESULT]);
        let words = name.split_whitespace().collect::<Vec<_>>();
        let group = groups.into_iter().find(|group| words.len() > 1 && words[0].eq_ignore_ascii_case(group));
        let metric = words[usize::from(group.is_some())..].join(" ");
        let is_one_of = |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(&metric));
        let expected = match group {
            // Which results there are, only the scenario knows.
            Some(RESULT) => quantity,
            _ if is_one_of(&TIMES) => Quantity::Time,
            _ if is_one_of(&BYTES) => Quantity::Bytes,
            _ if is_one_of(&NUMBERS) || metric == RATE => Quantity::Number,
            _ => {
                let names = [&[RATE][..], &NUMBERS, &TIMES, &BYTES].concat().join(", ");
                return Err(format!(
                    "there is no metric {name:?}: there are {names}, and what a scenario adds (result NAME)"
                ));
            }
        };
        match quantity {
            Quantity::Ratio => {}
            _ if quantity == expected => {}
            _ if expected == Quantity::Time => return Err(format!("the limit of {metric} is a time: 5ms, 200us")),
            _ if expected == Quantity::Bytes => return Err(format!("the limit of {metric} is in bytes: 300B, 64MB")),
            _ => return Err(format!("the limit of {metric} is a number without a unit")),
        }
        let (text, is_upper) = (text.trim().to_owned(), text.contains('>'));
        Ok(Self { text, group, metric, is_upper, limit: number * size, quantity })
    }
}

impl FailIf {
    /// Whether it can only be judged where files are compared.
    pub fn is_ratio(&self) -> bool {
        self.quantity == Quantity::Ratio
    }

    fn names(&self, name: &MetricName, counted: Operation) -> bool {
        let is_named = name.text.eq_ignore_ascii_case(&self.metric);
        match self.group {
            Some(group) => name.of == group && is_named,
            None if self.metric == RATE => name.of == RATE && name.text == counted.units(),
            None if name.of == RATE || name.of == SERVER => is_named,
            None => name.of == counted.name() && is_named,
        }
    }

    /// `None` where there is no ratio, or where the metric is of another unit.
    fn judge(&self, scenario: &str, column: &Column, metric: &Compared) -> Option<Judgement> {
        let name = &metric.spread.name;
        let (value, size, unit) = match self.quantity {
            Quantity::Ratio => (metric.change?.ratio?, 1.0, "×".to_owned()),
            quantity => {
                let (_, size) = unit(&name.unit).filter(|(of, _)| *of == quantity)?;
                (metric.spread.median, size, name.unit.clone())
            }
        };
        let (compared, limit) = (value * size, self.limit);
        Some(Judgement {
            condition: self.text.clone(),
            scenario: scenario.to_owned(),
            subject: column.subject.clone(),
            file: column.file.clone(),
            value,
            unit,
            p_value: metric.change.filter(|_| self.is_ratio()).map(|change| change.p_value),
            failed: if self.is_upper { compared > limit } else { compared < limit },
        })
    }
}

/// What became of a condition with one series.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    condition: String,
    scenario: String,
    subject: String,
    /// Empty for runs that come from no file.
    file: String,
    /// The median, or the ratio of the medians.
    value: f64,
    unit: String,
    /// Of a ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    p_value: Option<f64>,
    pub failed: bool,
}

impl Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { condition, scenario, subject, file, value, unit, .. } = self;
        let gap = if unit.starts_with('/') { "" } else { " " };
        write!(f, "{condition}: {}{gap}{unit}, {scenario}, {subject}", written(*value))?;
        self.p_value.map_or(Ok(()), |p| write!(f, ", p = {p:.3}"))?;
        if file.is_empty() { Ok(()) } else { write!(f, ", {file}") }
    }
}

/// Judges each condition on every series that has its metric; where several files are compared, not on those of the first.
///
/// # Errors
/// No series has it.
pub fn judge(conditions: &[FailIf], comparisons: &[Comparison]) -> Result<Vec<Judgement>, String> {
    let columns = || comparisons.iter().flat_map(|all| all.columns.iter().map(|column| (&all.scenario, column)));
    let has_files = columns().any(|(_, column)| column.source > 0);
    let mut judgements = Vec::new();
    for condition in conditions {
        let before = judgements.len();
        for (scenario, column) in columns().filter(|(_, column)| !has_files || column.source > 0) {
            let counted = column.reports[0].latency_us.of;
            let own = column.metrics.iter().filter(|metric| condition.names(&metric.spread.name, counted));
            judgements.extend(own.filter_map(|metric| condition.judge(scenario, column, metric)));
        }
        if judgements.len() == before {
            return Err(format!("--fail-if '{}': none of the runs has this metric in this unit", condition.text));
        }
    }
    Ok(judgements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use crate::run_files::Source;

    fn condition(text: &str) -> FailIf {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// The example, 2,000 events a second in 1, 3 and 5 ms, three times slower from one file to the next.
    fn files(count: usize) -> Vec<Source> {
        let run = |file: usize| {
            let mut report = Report::example();
            report.events.per_second /= 3_f64.powi(file as i32);
            report
        };
        (0..count).map(|file| Source { name: format!("{file}.json"), reports: vec![run(file); 3] }).collect()
    }

    fn judged(text: &str, files: &[Source]) -> Vec<bool> {
        let judged = judge(&[condition(text)], &Comparison::all(files)).unwrap_or_else(|error| panic!("{error}"));
        judged.into_iter().map(|judgement| judgement.failed).collect()
    }

    #[test]
    fn a_condition_is_judged_on_the_median_in_its_unit() {
        let one = files(1);
        for (text, failed) in [
            ("p99>2ms", true),
            ("p99>3ms", false),
            ("P99 > 2999us", true),
            ("p99<3.1ms", true),
            ("acknowledgement max>0.004s", true),
            ("rate<2,000", false),
            ("rate<2.1k", true),
            ("rate events>1999/s", true),
            ("CPU>2.6µs", false),
            ("server cpu>2us", true),
            ("memory>0.021GB", true),
            ("written>250B", false),
            ("disk syncs>3", true),
            ("result recovery>150ms", true),
        ] {
            assert_eq!(judged(text, &one), [failed], "{text}");
        }
    }

    #[test]
    fn the_first_of_several_files_is_what_the_others_are_judged_by() {
        let three = files(3);
        assert_eq!(judged("rate<0.5x", &three), [true, true]);
        assert_eq!(judged("rate<0.2x", &three), [false, true]);
        assert_eq!(judged("rate<500", &three), [false, true]);
        assert_eq!(judged("p99>1.01x", &three), [false, false]);
        let told = judge(&[condition("rate<0.5x")], &Comparison::all(&three)).expect("judgements")[0].to_string();
        assert_eq!(told, "rate<0.5x: 0.333 ×, publish, event-pipeline 0.1.0, p = 0.100, 1.json");
    }

    #[test]
    fn what_cannot_be_judged_is_wrong_usage() {
        for text in
            ["p99", "p99>", "p99>5", "p99>5MB", "mood>5", "rate<5ms", "query>5ms", "p99=5ms", "memory>1s", "p98>1ms"]
        {
            assert!(text.parse::<FailIf>().is_err(), "{text}");
        }
        for text in ["deliveries<5", "query p99>1ms", "result mood>1", "result recovery>1MB", "rate<0.9x"] {
            let error = judge(&[condition(text)], &Comparison::all(&files(1)));
            assert!(error.is_err_and(|error| error.contains(text)), "{text}");
        }
    }
}
