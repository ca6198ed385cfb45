//! What is made of runs: text, files, pages, and the exit code.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::json;

use crate::compare::{self, Comparison};
use crate::fail_if::{self, FailIf, Judgement};
use crate::report::{Report, Verdict};
use crate::run_files::Source;
use crate::{export, html, summary};

/// What is printed and written.
#[derive(Args, Debug, Clone)]
pub struct Output {
    /// Print one JSON object a run instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// Print the table of each run; without it, a call without a scenario prints one screen about all
    #[arg(long, global = true)]
    pub verbose: bool,
    /// What to call these runs, such as a branch; it stands in every report, and compare tells runs apart by it
    #[arg(long, global = true, value_name = "TEXT")]
    label: Option<String>,
    /// End with 3 if this is so of the median of the runs: 'p99>5ms', 'rate<100000', 'query p99>20ms', 'server
    /// CPU>1.5us', 'memory>200MB', 'result recovery>2s'; in compare also ratios: 'rate<0.95x'. May be repeated
    #[arg(long, global = true, value_name = "CONDITION")]
    fail_if: Vec<FailIf>,
    /// Append one JSON object a run to a file, whatever is printed
    #[arg(long, global = true, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write a report with plots, as one self-contained page
    #[arg(long, global = true, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a CSV file, one row a run
    #[arg(long, global = true, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the latencies of each run as an HdrHistogram log, an interval for each step of its timeline
    #[arg(long, global = true, value_name = "FILE")]
    hdr: Option<PathBuf>,
    /// Write the medians as gauges in the text format of Prometheus
    #[arg(long, global = true, value_name = "FILE")]
    prometheus: Option<PathBuf>,
}

/// The arguments ask for something that there is not.
#[derive(Debug)]
pub struct WrongUsage(String);

impl std::fmt::Display for WrongUsage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}

impl Output {
    /// Checks before anything runs what can be known then, so that hours of measuring are not lost: whether the files can
    /// be written, and what is asked only of comparisons, or never of them.
    ///
    /// # Errors
    /// [`WrongUsage`], or a file that cannot be written.
    pub fn check(&self, compares: bool) -> anyhow::Result<()> {
        if !compares && self.fail_if.iter().any(FailIf::is_ratio) {
            return Err(
                WrongUsage("--fail-if: a ratio needs something to be compared with: loadtest compare".into()).into()
            );
        }
        if compares && (self.hdr.is_some() || self.out.is_some() || self.label.is_some()) {
            return Err(WrongUsage("--out, --hdr and --label are for runs that are measured now".into()).into());
        }
        for file in [&self.out, &self.html, &self.csv, &self.hdr, &self.prometheus].into_iter().flatten() {
            File::options().create(true).append(true).open(file).with_context(|| write_to(file))?;
        }
        Ok(())
    }

    /// Takes a run as soon as it is measured: labels it, appends it to the file of runs, and prints it if each run is
    /// `told`.
    pub fn take(&self, mut report: Report, told: bool) -> anyhow::Result<Report> {
        report.label.clone_from(&self.label);
        report.commit = option_env!("LOADTEST_COMMIT").map(str::to_owned);
        if told || self.json {
            report.print(self.json)?;
        }
        if let Some(file) = &self.out {
            report.append_to(file)?;
        }
        Ok(report)
    }

    /// Prints a comparison, writes all files, and judges: returns the exit code.
    pub fn compared(&self, sources: &[Source]) -> anyhow::Result<u8> {
        let comparisons = Comparison::all(sources);
        let text = match self.json {
            true => comparisons.iter().map(|comparison| comparison.to_json() + "\n").collect(),
            false => tables(&comparisons),
        };
        let judgements = self.judge(sources, &comparisons)?;
        say(&(text + &self.told(&judgements)))?;
        Ok(exit_code(&[], &judgements))
    }

    /// Writes all files about runs that were measured, judges and summarises them: returns the exit code. Several servers
    /// are `side_by_side`.
    pub fn measured(&self, reports: Vec<Report>, one_screen: bool, side_by_side: bool) -> anyhow::Result<u8> {
        if let Some(file) = &self.hdr {
            fs::write(file, export::hdr_log(&reports)?).with_context(|| write_to(file))?;
        }
        let sources = [Source { name: String::new(), reports }];
        let comparisons = Comparison::all(&sources);
        let judgements = self.judge(&sources, &comparisons)?;
        let reports = &sources[0].reports;
        let text = match (self.json, one_screen) {
            (true, _) => String::new(),
            (false, true) => summary::screen(reports, &comparisons, &judgements),
            (false, false) if side_by_side => tables(&Comparison::by_workload(&sources)),
            (false, false) => summary::of_repetitions(&comparisons),
        };
        say(&(text + &self.told(&judgements)))?;
        Ok(exit_code(reports, &judgements))
    }

    /// Judges the conditions, and writes the files that are about all runs.
    fn judge(&self, sources: &[Source], comparisons: &[Comparison]) -> anyhow::Result<Vec<Judgement>> {
        let judgements = fail_if::judge(&self.fail_if, comparisons);
        let told = judgements.as_deref().unwrap_or_default();
        let write = |file: &Option<PathBuf>, content: &dyn Fn() -> String| match file {
            Some(file) => fs::write(file, content()).with_context(|| write_to(file)),
            None => Ok(()),
        };
        write(&self.html, &|| html::page(sources, told))?;
        write(&self.csv, &|| export::csv(sources))?;
        write(&self.prometheus, &|| export::prometheus(sources))?;
        judgements.map_err(|error| WrongUsage(error).into())
    }

    /// The judgements as rows, or as a line of JSON.
    fn told(&self, judgements: &[Judgement]) -> String {
        match self.json {
            _ if judgements.is_empty() => String::new(),
            true => format!("{}\n", json!({ "fail_if": judgements })),
            false => judgements.iter().map(summary::row).collect(),
        }
    }
}

/// Comparisons as tables, with how they are to be read.
fn tables(comparisons: &[Comparison]) -> String {
    let tables = comparisons.iter().map(|comparison| comparison.table() + "\n");
    tables.collect::<String>() + &compare::legend(comparisons)
}

fn write_to(file: &Path) -> String {
    format!("write to {}", file.display())
}

/// 1 if a promise was broken or something was not exercised, 3 if all is verified but slower than asked for, else 0.
fn exit_code(reports: &[Report], judgements: &[Judgement]) -> u8 {
    match summary::worst(reports) {
        Verdict::Violation | Verdict::NotExercised => 1,
        Verdict::Verified if !judgements.iter().any(|judgement| judgement.failed) => 0,
        _ => 3,
    }
}

/// Prints to a reader that may close the pipe early, such as `head`.
fn say(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("print to stdout"),
    }
}
