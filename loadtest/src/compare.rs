//! What changed from one set of runs to the next.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::metric::{CHANGES, Change, MetricName, Spread};
use crate::numbers::written;
use crate::report::Report;
use crate::run_files::{Series, Source};

/// Compare files of runs, as --out and --json write them: the median and the spread of each metric, and the change
///
/// Runs of the same scenario, server and title are compared, whatever the server's version; within a file also runs with
/// different labels, commits or options. With --html FILE also writes a report with plots; one file of runs is enough for
/// that. A --fail-if is judged on every file but the first, and may name a ratio to the first: 'rate<0.95x'.
#[derive(Args, Debug, Clone)]
pub struct Compare {
    /// Files of runs, one JSON object a line; the first is what the others are compared with
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Series side by side.
#[derive(Debug, Serialize)]
pub struct Comparison<'r> {
    pub scenario: String,
    title: String,
    pub columns: Vec<Column<'r>>,
    /// Files without such runs.
    absent: Vec<String>,
}

/// A series: runs of one file that measured the same.
#[derive(Debug, Serialize)]
pub struct Column<'r> {
    pub file: String,
    pub subject: String,
    acknowledged_means: String,
    machine: String,
    label: Option<String>,
    commit: Option<String>,
    runs: usize,
    violations: usize,
    /// Runs during which other programs used the processors.
    disturbed: usize,
    /// The options that differ between columns.
    options: Vec<(String, String)>,
    #[serde(rename = "figures")]
    pub metrics: Vec<Compared>,
    #[serde(skip)]
    pub reports: Vec<&'r Report>,
    /// The index of the file.
    #[serde(skip)]
    pub source: usize,
}

#[derive(Debug, Serialize)]
pub struct Compared {
    #[serde(flatten)]
    pub spread: Spread,
    /// The change since the first column that has this metric; none in that column.
    #[serde(flatten)]
    pub change: Option<Change>,
}

impl<'r> Comparison<'r> {
    /// One for each scenario, server and title, in the order of the files.
    pub fn all(sources: &'r [Source]) -> Vec<Self> {
        Self::grouped(sources, |run| [&run.scenario, &unversioned(&run.subject), &run.title].map(String::from).to_vec())
    }

    /// One for each scenario, whatever else differs.
    pub fn by_scenario(sources: &'r [Source]) -> Vec<Self> {
        Self::grouped(sources, |run| vec![run.scenario.clone(), run.latency_us.of.name().to_owned()])
    }

    /// One for each scenario with its options, whichever the server.
    pub fn by_workload(sources: &'r [Source]) -> Vec<Self> {
        Self::grouped(sources, |run| vec![run.scenario.clone(), run.options.to_string()])
    }

    fn grouped(sources: &'r [Source], key: impl Fn(&Report) -> Vec<String>) -> Vec<Self> {
        let mut groups = Vec::<(_, Vec<Series>)>::new();
        for series in Series::all(sources) {
            let key = key(series.first());
            match groups.iter_mut().find(|(known, _)| *known == key) {
                Some((_, group)) => group.push(series),
                None => groups.push((key, vec![series])),
            }
        }
        groups.iter().map(|(_, group)| Self::of(group, sources)).collect()
    }

    fn of(group: &[Series<'r>], sources: &[Source]) -> Self {
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
                label: run.label.clone(),
                commit: run.commit.clone(),
                runs: series.runs.len(),
                violations: series.violations(),
                disturbed: series.runs.iter().filter(|run| run.disturbed == Some(true)).count(),
                options: series.differing_options(group),
                metrics,
                reports: series.runs.clone(),
                source: series.source,
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
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "–".to_owned());
        let options = self.columns[0]
            .options
            .iter()
            .enumerate()
            .map(|(index, (option, _))| fact(option, &|column| column.options[index].1.clone()));
        let mut facts = vec![
            fact("", &|column| {
                let count = format!("({} run{})", column.runs, if column.runs == 1 { "" } else { "s" });
                format!("{} {count}", column.file).trim_start().to_owned()
            }),
            fact("server", &|column| column.subject.clone()),
        ];
        // Labels, commits and these counts are shown where there are any; the others only where they differ.
        let conditions: [(_, Vec<_>); 6] = [
            fact("label", &|column| or_dash(&column.label)),
            fact("commit of loadtest", &|column| or_dash(&column.commit)),
            fact("VIOLATIONS", &|column| column.violations.to_string()),
            fact("DISTURBED runs", &|column| column.disturbed.to_string()),
            fact("acknowledged means", &|column| column.acknowledged_means.clone()),
            fact("machine", &|column| column.machine.clone()),
        ];
        let conditions = conditions.into_iter().enumerate().filter(|(index, (_, cells))| {
            cells.iter().any(|cell| if *index < 4 { cell != "–" && cell != "0" } else { *cell != cells[0] })
        });
        facts.extend(
            conditions
                .map(|(_, fact)| fact)
                .chain(options.filter(|(_, cells)| cells.iter().any(|cell| *cell != cells[0]))),
        );
        facts
    }

    /// One line for programs.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a comparison is plain")
    }

    /// As a table for people.
    pub fn table(&self) -> String {
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
pub fn legend(comparisons: &[Comparison]) -> String {
    match comparisons.iter().any(|comparison| comparison.columns.len() > 1) {
        false => String::new(),
        true => format!("The median of the runs (least–most), and the change since the first column.\n{CHANGES}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let sources = [source("a.json", &[90.0, 100.0, 110.0]), source("b.json", &[150.0, 120.0, 130.0])];
        let all = Comparison::all(&sources);
        assert_eq!(all.len(), 1);
        let table = all[0].table();
        let line = |name: &str| table.lines().find(|line| line.trim_start().starts_with(name)).expect(name).to_owned();
        assert!(line("events/s").contains(" 100 (90.0–110) "), "{table}");
        assert!(line("events/s").ends_with(" 130 (120–150) +30 %, no evidence (p = 0.10)"), "{table}");
        assert!(line("acknowledgement p99, ms").ends_with(" 3.00           0 %, no evidence (p = 1)"), "{table}");
        assert!(line("a.json (3 runs)").contains("b.json (3 runs)"), "{table}");
        assert!(
            !["machine", "DISTURBED", "payload_bytes", "not measured"].iter().any(|fact| table.contains(fact)),
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
        let sources = [source("a.json", &[100.0]), after];
        let all = Comparison::all(&sources);
        let columns = all.iter().map(|comparison| (comparison.columns.len(), comparison.absent.clone()));
        assert_eq!(columns.collect::<Vec<_>>(), [(2, vec![]), (1, vec!["a.json".to_owned()])]);
        assert!(all[1].table().ends_with("  not measured in a.json\n"), "{}", all[1].table());
        assert_eq!(Comparison::by_workload(&sources)[0].columns.len(), 3);
    }

    #[test]
    fn differing_conditions_are_shown() {
        let (before, mut after) = (source("a.json", &[100.0]), source("b.json", &[100.0]));
        let run = &mut after.reports[0];
        run.label = Some("new disk".to_owned());
        run.commit = Some("abcdef0-dirty".to_owned());
        run.disturbed = Some(true);
        run.machine.processors = 64;
        run.acknowledged_means = "received".to_owned();
        run.options["payload_bytes"] = 4_000.into();
        run.violations.push("event 7 was lost".to_owned());
        let sources = [before, after];
        let table = Comparison::all(&sources)[0].table();
        for part in [
            "  machine ",
            "64 processors",
            "  payload_bytes ",
            " 4000\n",
            "  VIOLATIONS ",
            "  acknowledged means ",
            " received\n",
            " new disk\n",
            " abcdef0-dirty\n",
            "  DISTURBED runs ",
        ] {
            assert!(table.contains(part), "{part}: {table}");
        }
    }

    #[test]
    fn runs_of_one_file_are_compared_by_their_labels() {
        let mut both = source("a.json", &[100.0, 200.0]);
        both.reports[1].label = Some("after".to_owned());
        let sources = [both];
        let all = Comparison::all(&sources);
        assert_eq!(all.iter().map(|comparison| comparison.columns.len()).collect::<Vec<_>>(), [2]);
        assert!(all[0].table().contains(" 200  × 2.00, no evidence (p = 1)\n"), "{}", all[0].table());
        assert!(legend(&all).contains("Mann–Whitney"), "{}", legend(&all));
    }

    #[test]
    fn the_json_says_the_same_as_the_table() {
        let sources = [source("a.json", &[100.0]), source("b.json", &[150.0])];
        let all = Comparison::all(&sources);
        let json = serde_json::from_str::<serde_json::Value>(&all[0].to_json()).expect("JSON");
        let metric = &json["columns"][1]["figures"][0];
        assert_eq!((&metric["name"], &metric["median"]), (&"events".into(), &150.0.into()));
        assert_eq!((&metric["ratio"], &metric["p_value"]), (&1.5.into(), &1.0.into()));
        assert!(json["columns"][0]["figures"][0].get("ratio").is_none(), "{json}");
    }
}
