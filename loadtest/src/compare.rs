//! The command `compare`: what changed from one file of runs to the next.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::html;
use crate::metric::{Change, MetricName, Spread, written};
use crate::options::Common;
use crate::run_files::{Series, Source};

/// Compare files of runs, as --out and --json write them: the median and the spread of each metric, and the change
///
/// Runs of the same scenario, server and title are compared, whatever the server's version. A change is "within the
/// spread" if the ranges of both overlap: then it may mean nothing. With --html FILE also writes a report with plots;
/// one file of runs is enough for that.
#[derive(Args, Debug, Clone)]
pub struct Compare {
    /// Files of runs, one JSON object a line; the first is what the others are compared with
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

impl Compare {
    /// To stdout, as tables or as JSON; and to a page, if one is asked for.
    pub fn print(&self, common: &Common) -> anyhow::Result<()> {
        let sources = Source::read_all(&self.files)?;
        if let Some(file) = &common.html {
            html::write_sources(file, &sources)?;
        }
        let comparisons = Comparison::all(&sources);
        let text = match common.json {
            true => comparisons.iter().map(|comparison| comparison.to_json() + "\n").collect(),
            false => {
                comparisons.iter().map(|comparison| comparison.table() + "\n").collect::<String>()
                    + legend(&comparisons)
            }
        };
        match io::stdout().write_all(text.as_bytes()) {
            // A reader such as `head` may close the pipe early.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            written => written.context("print the comparison"),
        }
    }
}

/// The comparison of all runs of the same scenario, server and title.
#[derive(Debug, Serialize)]
pub struct Comparison {
    scenario: String,
    title: String,
    columns: Vec<Column>,
    /// Files without such runs.
    absent: Vec<String>,
}

/// The runs of one file.
#[derive(Debug, Serialize)]
struct Column {
    file: String,
    subject: String,
    acknowledged_means: String,
    machine: String,
    runs: usize,
    violations: usize,
    /// The options that differ between columns.
    options: Vec<(String, String)>,
    #[serde(rename = "figures")]
    metrics: Vec<Compared>,
}

#[derive(Debug, Serialize)]
struct Compared {
    #[serde(flatten)]
    spread: Spread,
    /// The change since the first column that has this metric; none in that column.
    #[serde(flatten)]
    change: Option<Change>,
}

impl Comparison {
    /// One for each scenario, server and title, in the order of the files.
    pub fn all(sources: &[Source]) -> Vec<Self> {
        let mut groups = Vec::<(_, Vec<Series>)>::new();
        for series in Series::all(sources) {
            let run = series.first();
            let key = (&run.scenario, unversioned(&run.subject), &run.title);
            match groups.iter_mut().find(|(known, _)| *known == key) {
                Some((_, group)) => group.push(series),
                None => groups.push((key, vec![series])),
            }
        }
        groups.iter().map(|(_, group)| Self::of(group, sources)).collect()
    }

    fn of(group: &[Series], sources: &[Source]) -> Self {
        let first = group[0].first();
        let mut columns = Vec::<Column>::new();
        for series in group {
            let run = series.first();
            let spreads = Spread::all(&series.runs);
            let compared = spreads.into_iter().map(|spread| {
                let mut earlier = columns.iter().flat_map(|column| &column.metrics).map(|metric| &metric.spread);
                let base = earlier.find(|base| base.name == spread.name);
                Compared { change: base.map(|base| spread.against(base)), spread }
            });
            let metrics = compared.collect();
            columns.push(Column {
                file: sources[series.source].name.clone(),
                subject: run.subject.clone(),
                acknowledged_means: run.acknowledged_means.clone(),
                machine: run.machine.to_string(),
                runs: series.runs.len(),
                violations: series.violations(),
                options: series.differing_options(group),
                metrics,
            });
        }
        let absent = sources.iter().enumerate().filter(|(index, _)| group.iter().all(|series| series.source != *index));
        let absent = absent.map(|(_, source)| source.name.clone()).collect();
        Self { scenario: first.scenario.clone(), title: first.title.clone(), columns, absent }
    }

    /// The metrics of all columns, each once.
    fn names(&self) -> Vec<&MetricName> {
        let mut names = Vec::new();
        for name in self.columns.iter().flat_map(|column| &column.metrics).map(|metric| &metric.spread.name) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The rows above the metrics: a name, and a cell for each column.
    fn facts(&self) -> Vec<(String, Vec<String>)> {
        let fact =
            |name: &str, of: &dyn Fn(&Column) -> String| (name.to_owned(), self.columns.iter().map(of).collect());
        let options = self.columns[0]
            .options
            .iter()
            .enumerate()
            .map(|(index, (option, _))| fact(option, &|column| column.options[index].1.clone()));
        let mut facts = vec![
            fact("", &|column| {
                format!("{} ({} run{})", column.file, column.runs, if column.runs == 1 { "" } else { "s" })
            }),
            fact("server", &|column| column.subject.clone()),
        ];
        // These rows are shown only where they differ.
        let conditions = [
            fact("acknowledged means", &|column| column.acknowledged_means.clone()),
            fact("machine", &|column| column.machine.clone()),
            fact("VIOLATIONS", &|column| column.violations.to_string()),
        ];
        let is_told = |(name, cells): &(String, Vec<String>)| {
            cells.iter().any(|cell| *cell != cells[0]) || name == "VIOLATIONS" && cells[0] != "0"
        };
        facts.extend(conditions.into_iter().chain(options).filter(is_told));
        facts
    }

    /// One line for programs.
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a comparison is plain")
    }

    /// As a table for people.
    fn table(&self) -> String {
        let (facts, names) = (self.facts(), self.names());
        let mut rows = facts.iter().map(|(name, _)| vec![name.clone()]).collect::<Vec<_>>();
        rows.extend(names.iter().map(|name| vec![name.to_string()]));
        for (index, column) in self.columns.iter().enumerate() {
            let metrics = names.iter().map(|name| column.metrics.iter().find(|metric| metric.spread.name == **name));
            let parts = metrics.map(|metric| {
                metric.map(Compared::parts).unwrap_or_else(|| ["–".to_owned(), String::new(), String::new()])
            });
            let parts = parts.collect::<Vec<_>>();
            let width = |part: usize| parts.iter().map(|parts| parts[part].chars().count()).max().unwrap_or_default();
            let (medians, ranges) = (width(0), width(1));
            let metrics = parts.iter().map(|[median, range, change]| {
                format!("{median:>medians$} {range:<ranges$} {change}").trim_end().to_owned()
            });
            let cells = facts.iter().map(|(_, cells)| cells[index].clone()).chain(metrics);
            rows.iter_mut().zip(cells).for_each(|(row, cell)| row.push(cell));
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths = (0..=self.columns.len()).map(width).collect::<Vec<_>>();
        let mut text = format!("{}: {}\n", self.scenario, self.title);
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(text, "  {}", cells.collect::<Vec<_>>().join("   ").trim_end())
                .expect("a string takes everything");
        }
        for file in &self.absent {
            writeln!(text, "  not measured in {file}").expect("a string takes everything");
        }
        text
    }
}

impl Compared {
    /// The median, the range and the change.
    fn parts(&self) -> [String; 3] {
        let Self { spread, change } = self;
        let range = spread.range(written).map(|range| format!("({range})"));
        [written(spread.median), range.unwrap_or_default(), change.map(|change| change.to_string()).unwrap_or_default()]
    }
}

/// The name of a server without its version.
fn unversioned(subject: &str) -> String {
    let is_version = |word: &str| {
        let word = word.trim_start_matches('v').trim_end_matches([',', ';', ':', ')']);
        word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit())
    };
    subject.split_whitespace().filter(|word| !is_version(word)).collect::<Vec<_>>().join(" ")
}

/// The explanation under the tables, if something is compared.
fn legend(comparisons: &[Comparison]) -> &'static str {
    let columns = || comparisons.iter().filter(|comparison| comparison.columns.len() > 1).flat_map(|c| &c.columns);
    match columns().next() {
        None => "",
        Some(_) if columns().any(|column| column.runs == 1) => {
            "The median of the runs (least–most), and the change since the first file. One run has no spread: what a\n\
             change means is known from several (--repeat 5).\n"
        }
        Some(_) => "The median of the runs (least–most), and the change since the first file.\n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    /// Runs at these rates.
    fn source(name: &str, rates: &[f64]) -> Source {
        let reports = rates.iter().map(|rate| {
            let mut report = Report::example();
            report.events.per_second = *rate;
            report
        });
        Source { name: name.to_owned(), reports: reports.collect() }
    }

    #[test]
    fn the_change_of_each_metric_is_shown() {
        let (before, after) = (source("a.json", &[90.0, 100.0, 110.0]), source("b.json", &[150.0, 120.0, 130.0]));
        let all = Comparison::all(&[before, after]);
        assert_eq!(all.len(), 1);
        let table = all[0].table();
        let line = |name: &str| table.lines().find(|line| line.trim_start().starts_with(name)).expect(name).to_owned();
        assert!(line("events/s").contains(" 100 (90.0–110) "), "{table}");
        assert!(line("events/s").ends_with(" 130 (120–150) +30 %"), "{table}");
        assert!(line("acknowledgement p99, ms").ends_with(" 3.00           0 %, within the spread"), "{table}");
        assert!(line("a.json (3 runs)").contains("b.json (3 runs)"), "{table}");
        assert!(
            !table.contains("machine") && !table.contains("payload_bytes") && !table.contains("not measured"),
            "{table}"
        );
    }

    #[test]
    fn versions_of_a_server_are_compared_and_other_servers_are_not() {
        for (subject, name) in [
            ("event-pipeline 0.1.0", "event-pipeline"),
            ("NATS JetStream 2.10.1, synced", "NATS JetStream synced"),
            ("FastAPI + sqlite3", "FastAPI + sqlite3"),
            ("Redis v7.0.15 (AOF)", "Redis (AOF)"),
        ] {
            assert_eq!(unversioned(subject), name);
        }
        let [mut after, mut peer] = [source("b.json", &[100.0]), source("b.json", &[5.0])];
        after.reports[0].subject = "event-pipeline 9.9.9".to_owned();
        peer.reports[0].subject = "Another 1.0".to_owned();
        after.reports.append(&mut peer.reports);
        let all = Comparison::all(&[source("a.json", &[100.0]), after]);
        let columns = all.iter().map(|comparison| (comparison.columns.len(), comparison.absent.clone()));
        assert_eq!(columns.collect::<Vec<_>>(), [(2, vec![]), (1, vec!["a.json".to_owned()])]);
        assert!(all[1].table().ends_with("  not measured in a.json\n"), "{}", all[1].table());
    }

    #[test]
    fn differing_conditions_are_shown() {
        let (before, mut after) = (source("a.json", &[100.0]), source("b.json", &[100.0]));
        let run = &mut after.reports[0];
        run.machine.processors = 64;
        run.acknowledged_means = "received".to_owned();
        run.options["payload_bytes"] = 4_000.into();
        run.violations.push("event 7 was lost".to_owned());
        let table = Comparison::all(&[before, after])[0].table();
        for part in [
            "  machine ",
            "64 processors",
            "  payload_bytes ",
            " 4000\n",
            "  VIOLATIONS ",
            "  acknowledged means ",
            " received\n",
        ] {
            assert!(table.contains(part), "{part}: {table}");
        }
    }

    #[test]
    fn the_json_says_the_same_as_the_table() {
        let all = Comparison::all(&[source("a.json", &[100.0]), source("b.json", &[150.0])]);
        let json = serde_json::from_str::<serde_json::Value>(&all[0].to_json()).expect("JSON");
        let metric = &json["columns"][1]["figures"][0];
        assert_eq!((&metric["name"], &metric["median"]), (&"events".into(), &150.0.into()));
        assert_eq!((&metric["ratio"], &metric["within_spread"]), (&1.5.into(), &false.into()));
        assert!(json["columns"][0]["figures"][0].get("ratio").is_none(), "{json}");
    }
}
