//! Runs read from files, and which of them measured the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::report::Report;

/// Runs, and the name of the file that they were read from.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// Empty for runs that come from no file.
    pub name: String,
    pub reports: Vec<Report>,
}

impl Source {
    /// Reads files of runs, one JSON object a line, as `--out` writes them. Each is named by the shortest end of its
    /// path that distinguishes it from the others.
    pub fn read_all(files: &[PathBuf]) -> anyhow::Result<Vec<Self>> {
        let names = short_names(files);
        let read = files.iter().zip(names).map(|(file, name)| Ok(Self { name, reports: read(file)? }));
        read.collect()
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<Report>> {
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("read {name}"))?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let runs = lines.map(|(number, line)| {
        Report::from_json(line).with_context(|| format!("line {number} of {name} is not a run of this load test"))
    });
    let runs = runs.collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!runs.is_empty(), "{name} holds no runs");
    Ok(runs)
}

/// The shortest ends of these paths that differ; of equal paths the whole.
fn short_names(files: &[PathBuf]) -> Vec<String> {
    let end = |file: &Path, parts: usize| {
        let all = file.components().collect::<Vec<_>>();
        all[all.len().saturating_sub(parts)..].iter().collect::<PathBuf>()
    };
    let name = |file: &PathBuf| {
        let others = || files.iter().filter(|other| *other != file);
        let longest = file.components().count();
        let differs = |parts: &usize| others().all(|other| end(other, *parts) != end(file, *parts));
        end(file, (1..longest).find(differs).unwrap_or(longest)).display().to_string()
    };
    files.iter().map(name).collect()
}

/// Runs from one source that measured the same thing in the same way; at least one.
#[derive(Debug, Clone)]
pub struct Series<'r> {
    /// The index of the source.
    pub source: usize,
    pub runs: Vec<&'r Report>,
}

impl<'r> Series<'r> {
    /// All runs, in the order of their first.
    pub fn all(sources: &'r [Source]) -> Vec<Self> {
        let mut series = Vec::<Self>::new();
        let mut indexes = BTreeMap::new();
        for (source, report) in
            sources.iter().enumerate().flat_map(|(i, source)| source.reports.iter().map(move |r| (i, r)))
        {
            let of = (&report.scenario, &report.subject, &report.acknowledged_means);
            let how = (&report.title, report.options.to_string(), &report.server_settings);
            let key = (source, of, how, &report.label, &report.commit);
            let index = *indexes.entry(key).or_insert(series.len());
            match series.get_mut(index) {
                Some(known) => known.runs.push(report),
                None => series.push(Self { source, runs: vec![report] }),
            }
        }
        series
    }

    /// The first run: its scenario, subject and options are those of all runs.
    pub fn first(&self) -> &'r Report {
        self.runs[0]
    }

    /// Its options and its server's settings that are not the same for a whole group, as text.
    pub fn differing_options(&self, group: &[Self]) -> Vec<(String, String)> {
        let given = group.iter().map(|series| given(series.first())).collect::<Vec<_>>();
        let value = |given: &[(String, String)], name| {
            let known = given.iter().find(|(known, _)| known == name);
            known.map_or("–".to_owned(), |(_, value)| value.clone())
        };
        let own = self::given(self.first());
        let mut differing = Vec::<(String, String)>::new();
        for (name, _) in given.iter().flatten() {
            let is_known = differing.iter().any(|(known, _)| known == name);
            if !is_known && given.iter().any(|other| value(other, name) != value(&given[0], name)) {
                differing.push((name.clone(), value(&own, name)));
            }
        }
        differing
    }

    pub fn violations(&self) -> usize {
        self.runs.iter().map(|run| run.violations.len()).sum()
    }
}

/// The scenario's options and the server's settings of a run.
fn given(run: &Report) -> Vec<(String, String)> {
    let options = run.options.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.to_string()));
    options.chain(run.server_settings.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_short_as_can_be() {
        let check = |files: &[&str], names: &[&str]| {
            let files = files.iter().map(PathBuf::from).collect::<Vec<_>>();
            assert_eq!(short_names(&files), names, "{files:?}");
        };
        check(&["perf/a.json", "/b.json"], &["a.json", "b.json"]);
        check(&["old/run.json", "new/run.json", "run.json"], &["old/run.json", "new/run.json", "run.json"]);
        check(&["/x/old/run.json", "/y/old/run.json"], &["x/old/run.json", "y/old/run.json"]);
        check(&["a.json", "a.json"], &["a.json", "a.json"]);
        check(&[], &[]);
    }

    #[test]
    fn repetitions_belong_together() {
        let report = |title: &str| Report { title: title.to_owned(), ..Report::example() };
        let source =
            |titles: &[&str]| Source { name: String::new(), reports: titles.iter().map(|t| report(t)).collect() };
        let mut sources = [source(&["a", "b", "a"]), source(&["b", "b"])];
        let found = Series::all(&sources);
        let found = found.iter().map(|s| (s.source, s.first().title.as_str(), s.runs.len())).collect::<Vec<_>>();
        assert_eq!(found, [(0, "a", 2), (0, "b", 1), (1, "b", 2)]);
        // What was measured under other conditions is no repetition, nor what is called otherwise or by another tool.
        sources[0].reports[2].options["window"] = 7.into();
        sources[1].reports[1].server_settings.insert("NETWORK_THREADS".to_owned(), "2".to_owned());
        let found = Series::all(&sources);
        assert_eq!(found.len(), 5);
        let told = |series: &Series, text: &[(&str, &str)]| {
            let text = text.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            assert_eq!(series.differing_options(&found), text.collect::<Vec<_>>());
        };
        told(&found[0], &[("window", "1024"), ("NETWORK_THREADS", "–")]);
        told(&found[2], &[("window", "7"), ("NETWORK_THREADS", "–")]);
        told(&found[4], &[("window", "1024"), ("NETWORK_THREADS", "2")]);
    }

    #[test]
    fn a_file_that_holds_no_runs_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("runs.json");
        let check = |text: &str, expected: &str| {
            fs::write(&file, text).expect("a file");
            let error = format!("{:#}", Source::read_all(std::slice::from_ref(&file)).expect_err(text));
            assert!(error.contains(expected), "{error}");
        };
        let run = Report::example().to_json();
        check("", "runs.json holds no runs");
        check(&format!("{run}\n\n{{}}\n"), "line 3 of ");
        check(&run.replace(r#""format":1"#, r#""format":2"#), "format 2");
        fs::write(&file, format!("{run}\n{run}\n")).expect("a file");
        assert_eq!(Source::read_all(&[file]).expect("runs")[0].reports.len(), 2);
        let error = Source::read_all(&[folder.path().join("none.json")]).expect_err("no file");
        assert!(format!("{error:#}").contains("none.json"), "{error:#}");
    }
}
