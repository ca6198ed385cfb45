//! One run, as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::finding::{Asked, Exercised, Finding, Loop};
use crate::latency::{Latency, Operation};
use crate::machine::Machine;
use crate::measurement::{Measured, Shares};
use crate::numbers::{grouped, written};
use crate::options::Common;
use crate::read_back;
use crate::run::Run;
use crate::target::Stopped;
use crate::timeline::{Point, Steps};
use crate::usage::Cost;
use crate::workload::{Driven, Site};

/// The version of the JSON. It changes when the meaning of a field changes, not when fields are added.
const FORMAT: u32 = 1;

/// A thread or a machine that is busy for this share of the time is taken for the limit.
const BUSY: f64 = 0.9;

/// Other programs that use this much of a processor falsify the measurement. The kernel's own threads, which write to
/// the disk for the server, use up to 0.15.
const DISTURBED: f64 = 0.25;

/// Everything that is reported about one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    pub scenario: String,
    /// The server that was measured.
    pub subject: String,
    /// What an acknowledgement of it promises.
    pub acknowledged_means: String,
    pub title: String,
    pub options: Value,
    /// The settings of a server that was started for the run, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub server_settings: BTreeMap<String, String>,
    /// RFC 3339.
    pub started_at: String,
    pub machine: Machine,
    pub seconds: f64,
    /// What it was called with `--label`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The commit that this tool was built from, with `-dirty` where files were changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    #[serde(default, rename = "loop")]
    pub loop_kind: Loop,
    /// What may be in flight at a time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub in_flight: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exercised: Vec<Exercised>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<Finding>,
    #[serde(default)]
    pub verdict: Verdict,
    /// Whether other programs used so much of the processors that the figures mean little; `None` where it cannot be
    /// known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disturbed: Option<bool>,
    /// Acknowledged, each counted once.
    pub events: Count,
    /// Received by subscribers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliveries: Option<Count>,
    /// Answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries: Option<Count>,
    /// Opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Count>,
    /// The latency of what the scenario counts.
    pub latency_us: Latency,
    /// The latencies of everything else that was timed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_latencies_us: Vec<Latency>,
    pub timeline: Vec<Point>,
    /// What the timeline is from; empty of a run that was read from a file.
    #[serde(skip)]
    pub steps: Steps,
    /// `None` where the server's process is not known.
    pub server: Option<Cost>,
    pub client: Cost,
    pub processors_busy: Shares,
    /// What kept the rate from being higher.
    pub limit: String,
    /// Over the whole run, with what came before and after the measured interval.
    pub acknowledged: u64,
    /// How many of these were read back and compared with what was sent.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub read_back: u64,
    pub violations: Vec<String>,
    pub server_warnings: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Count {
    pub count: u64,
    pub per_second: f64,
}

/// What a run has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every promise was kept, and everything that the scenario exists for has happened.
    #[default]
    Verified,
    /// The same, at less than the rate that was asked for.
    RateMissed,
    /// Something that the scenario exists for has not happened, so it has shown nothing.
    NotExercised,
    /// A promise was broken.
    Violation,
}

/// What can speak against a run; first what makes it worthless.
pub const OBJECTIONS: [&str; 4] = ["VIOLATION", "NOT EXERCISED", "RATE MISSED", "DISTURBED"];

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Report {
    /// What every run tells, while its server is up. What only the scenario knows is added to it.
    pub fn new(
        scenario: &str,
        title: String,
        options: &impl Serialize,
        common: &Common,
        run: &Run,
        measured: &Measured,
    ) -> Self {
        let mut options = serde_json::to_value(options).expect("options are plain");
        if common.poisson {
            options["poisson"] = true.into();
        }
        let seconds = measured.elapsed.as_secs_f64();
        let count = |kind| Count { count: measured.count(kind), per_second: measured.count(kind) as f64 / seconds };
        // Only what occurred in the run.
        let told = |kind| (run.counted == kind || run.counted(kind) > 0).then(|| count(kind));
        let mut notes = Vec::new();
        if measured.ended_early {
            notes.push("Ended early, by a signal.".to_owned());
        }
        if let abandoned @ 1.. = run.abandoned.get() {
            let abandoned = grouped(abandoned as f64);
            notes.push(format!(
                "{abandoned} events were due and never sent: their latency is how long they had waited."
            ));
        }
        let started_at = run.started_at.to_string();
        Self {
            format: FORMAT,
            scenario: scenario.to_owned(),
            subject: String::new(),
            acknowledged_means: String::new(),
            title,
            options,
            server_settings: BTreeMap::new(),
            // To the second.
            started_at: format!("{}Z", started_at.split('.').next().unwrap_or(&started_at)),
            machine: Machine::this(),
            seconds,
            label: None,
            commit: None,
            loop_kind: Loop::default(),
            in_flight: 0,
            asked: None,
            exercised: Vec::new(),
            results: Vec::new(),
            verdict: Verdict::default(),
            disturbed: measured.shares.others().map(|others| others > DISTURBED),
            events: count(Operation::Acknowledgement),
            deliveries: told(Operation::Delivery),
            queries: told(Operation::Query),
            connections: told(Operation::Connection),
            latency_us: measured.latency.clone(),
            more_latencies_us: measured.more_latencies.clone(),
            timeline: measured.timeline.clone(),
            steps: measured.steps.clone(),
            server: measured.server.clone(),
            client: measured.client.clone(),
            processors_busy: measured.shares.clone(),
            limit: String::new(),
            acknowledged: 0,
            read_back: 0,
            violations: Vec::new(),
            server_warnings: Vec::new(),
            notes,
        }
    }

    /// Of a driven run: also the rate that was asked for, and the latencies of queries.
    pub fn of(scenario: &str, title: String, options: &impl Serialize, common: &Common, driven: &Driven) -> Self {
        let asked = driven.asked.map(|(per_second, reached)| Asked {
            of: Operation::Acknowledgement,
            per_second,
            missed: !reached,
        });
        let results = driven.queries.as_ref().map(|queries| queries.findings()).unwrap_or_default();
        let report = Self::new(scenario, title, options, common, &driven.run, &driven.measured);
        Self { asked, in_flight: driven.in_flight, results, ..report }
    }

    /// What the scenario exists for: a run in which it did not happen is not exercised.
    pub fn exercised(mut self, what: &str, count: u64) -> Self {
        self.exercised.push(Exercised { what: what.to_owned(), count });
        self
    }

    pub fn result(mut self, name: &str, unit: &str, value: f64) -> Self {
        self.results.push(Finding::new(name, unit, value));
        self
    }

    /// The same, of what may not be known.
    pub fn result_if_known(self, name: &str, unit: &str, value: Option<f64>) -> Self {
        match value {
            Some(value) => self.result(name, unit, value),
            None => self,
        }
    }

    /// Further findings, in sentences.
    pub fn noting(mut self, notes: impl IntoIterator<Item = String>) -> Self {
        self.notes.extend(notes);
        self
    }

    /// Reads back what is stored, ends the server, and judges.
    ///
    /// # Errors
    /// The server does not answer, or does not end well.
    pub async fn finish(mut self, driven: Driven, site: Site) -> anyhow::Result<Self> {
        self.read_back = read_back::check(&site, &driven.run).await?;
        let acknowledged = driven.run.verification.borrow().acknowledged;
        if site.target.has_pages && acknowledged > site.deleted {
            let counted = driven.run.counted;
            if self.exercised.is_empty() {
                self = self.exercised(counted.units(), driven.measured.count(counted));
            }
            let read_back = self.read_back;
            self = self.exercised("events read back", read_back);
        }
        Ok(self.judged(&driven.run, site.stop()?))
    }

    /// Judges, after everything was verified.
    pub fn judged(mut self, run: &Run, server: Stopped) -> Self {
        let counted = self.latency_us.of;
        if self.exercised.is_empty() {
            let count = self.count(counted).map_or(0, |count| count.count);
            self = self.exercised(counted.units(), count);
        }
        let verification = run.verification.borrow();
        (self.acknowledged, self.violations) = (verification.acknowledged, verification.violations());
        self.verdict = match &self.asked {
            _ if !self.violations.is_empty() => Verdict::Violation,
            _ if self.exercised.iter().any(|exercised| exercised.count == 0) => Verdict::NotExercised,
            Some(asked) if asked.missed => Verdict::RateMissed,
            _ => Verdict::Verified,
        };
        // What is delivered was due when it was published.
        let is_of = |asked: &Asked| asked.of == counted || counted == Operation::Delivery;
        self.loop_kind = if self.asked.as_ref().is_some_and(is_of) { Loop::Open } else { Loop::Closed };
        self.limit = self.limit();
        let Stopped { subject, settings, warnings } = server;
        (self.subject, self.acknowledged_means) = (subject.name, subject.acknowledged_means);
        (self.server_settings, self.server_warnings) = (settings, warnings);
        self
    }

    /// What kept the rate from being higher.
    fn limit(&self) -> String {
        let Shares { all, processors, .. } = self.processors_busy;
        if self.asked.as_ref().is_some_and(|asked| !asked.missed) {
            return "the rate asked for, which was reached".to_owned();
        }
        if self.client.busiest_thread_share >= BUSY {
            return "this client, not the server".to_owned();
        }
        match &self.server {
            Some(server) if server.busiest_thread_share >= BUSY => {
                format!("the server's thread {}", server.busiest_thread)
            }
            _ if all >= BUSY * processors as f64 => "the processors, which all were busy".to_owned(),
            _ => "none of the processors: waiting for the disk and for each other".to_owned(),
        }
    }

    /// The latencies of every kind that was timed.
    pub fn latencies(&self) -> impl Iterator<Item = &Latency> {
        [&self.latency_us].into_iter().chain(&self.more_latencies_us).filter(|latency| latency.count > 0)
    }

    /// What was counted of a kind, if it occurred.
    pub fn count(&self, kind: Operation) -> Option<&Count> {
        match kind {
            Operation::Acknowledgement => Some(&self.events),
            Operation::Delivery => self.deliveries.as_ref(),
            Operation::Query => self.queries.as_ref(),
            Operation::Connection => self.connections.as_ref(),
        }
    }

    /// What was counted, of each kind that occurred.
    pub fn counts(&self) -> impl Iterator<Item = (Operation, &Count)> {
        Operation::ALL.into_iter().filter_map(|kind| Some((kind, self.count(kind)?)))
    }

    /// What speaks against the run, in words; first what makes it worthless.
    pub fn objections(&self) -> Vec<(&'static str, String)> {
        let [violated, not_exercised, missed, disturbed] = OBJECTIONS;
        let mut all = Vec::new();
        all.extend(self.violations.iter().map(|violation| (violated, violation.clone())));
        for Exercised { what, .. } in self.exercised.iter().filter(|exercised| exercised.count == 0) {
            all.push((not_exercised, format!("no {what}: this run shows nothing")));
        }
        if let Some(Asked { of, per_second, missed: true }) = &self.asked {
            all.push((missed, format!("{} {}/s were asked for", grouped(*per_second), of.units())));
        }
        if self.disturbed == Some(true) {
            all.push((disturbed, "others used the processors too; measure again when they are gone".to_owned()));
        }
        all
    }

    /// Prints it to stdout. With JSON on stdout, what speaks against it goes to stderr as well.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            writeln!(out, "{}", self.to_json())?;
            self.objections().iter().for_each(|(name, why)| eprintln!("{name}: {why}"));
        } else {
            writeln!(out, "{self}")?;
        }
        Ok(())
    }

    /// Adds a line to a file of them.
    pub fn append_to(&self, file: &Path) -> anyhow::Result<()> {
        let opened = File::options().create(true).append(true).open(file);
        let written = opened.and_then(|mut file| writeln!(file, "{}", self.to_json()));
        written.with_context(|| format!("write to {}", file.display()))
    }

    /// One line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report is plain")
    }

    /// Reads such a line.
    pub fn from_json(line: &str) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_str(line)?;
        ensure!(format == FORMAT, "it is of format {format}, and this load test reads format {FORMAT}");
        Ok(serde_json::from_str(line)?)
    }

    /// The run that the schema shows as an example.
    #[cfg(test)]
    pub fn example() -> Self {
        let schema = serde_json::from_str::<Value>(include_str!("../schema/report.json")).expect("JSON");
        serde_json::from_value(schema["examples"][0].clone()).expect("a run")
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, value: &dyn Display| writeln!(f, "  {name:<17}{value}");
        let count = |count: &Count| {
            format!("{:>13}/s   {} in {:.1} s", grouped(count.per_second), grouped(count.count as f64), self.seconds)
        };
        writeln!(f, "{}: {}", self.scenario, self.title)?;
        row(f, "measured", &format!("{}; an acknowledgement means: {}", self.subject, self.acknowledged_means))?;
        for (kind, counted) in self.counts() {
            row(f, kind.units(), &count(counted))?;
        }
        for latency in [&self.latency_us].into_iter().chain(&self.more_latencies_us) {
            row(f, &format!("{} in", latency.of.done()), latency)?;
        }
        row(f, "loop", &self.loop_in_words())?;
        let unit = self.latency_us.of.unit();
        let of_events = self.events.count > 0;
        if let Some(server) = &self.server {
            row(f, "server CPU", &cpu(server, unit, of_events))?;
        }
        row(f, "client CPU", &cpu(&self.client, unit, of_events))?;
        if let Some(server) = &self.server {
            row(f, "server", &resources(server, of_events))?;
        }
        row(f, "processors", &self.processors_busy)?;
        row(f, "limit", &self.limit)?;
        for Exercised { what, count } in &self.exercised {
            row(f, "exercised", &format_args!("{} {what}", grouped(*count as f64)))?;
        }
        for Finding { name, unit, value } in &self.results {
            row(f, "result", &format!("{name}: {} {unit}", written(*value)).trim_end())?;
        }
        for note in &self.notes {
            row(f, "note", note)?;
        }
        for warning in &self.server_warnings {
            row(f, "server says", warning)?;
        }
        for (name, why) in self.objections() {
            row(f, name, &why)?;
        }
        if self.verdict <= Verdict::RateMissed {
            let mut all = format!("all {} events of the run", grouped(self.acknowledged as f64));
            if self.read_back > 0 {
                all += &format!(", {} of them read back", grouped(self.read_back as f64));
            }
            for (name, counted) in [("every delivery", &self.deliveries), ("the ids in every answer", &self.queries)] {
                if counted.is_some() {
                    all += &format!(", {name}");
                }
            }
            row(f, "verified", &all)?;
        }
        Ok(())
    }
}

impl Report {
    /// Whether latency depends on the rate or on what is in flight.
    fn loop_in_words(&self) -> String {
        let per_second = self.count(self.latency_us.of).map_or(0.0, |count| count.per_second);
        let words = self.loop_kind.words();
        match self.loop_kind {
            Loop::Closed if self.in_flight > 0 && per_second > 0.0 && self.latency_us.of != Operation::Delivery => {
                let (in_flight, latency) = (self.in_flight as f64, self.in_flight as f64 / per_second * 1e3);
                let [in_flight, rate] = [in_flight, per_second].map(grouped);
                format!("{words}: {in_flight} ÷ {rate}/s = {latency:.3} ms")
            }
            _ => words.to_owned(),
        }
    }
}

/// CPU time for each of what the run counts and, if that is not events, for each event.
fn cpu(cost: &Cost, unit: &str, of_events: bool) -> String {
    let threads = cost.cpu_us_each_by_thread.iter().filter(|(_, us)| **us >= 0.0005);
    let threads = threads.map(|(name, us)| format!("{name} {us:.3}")).collect::<Vec<_>>();
    let mut text = format!("{:.3} µs/{unit}  ({})", cost.cpu_us_each, threads.join(", "));
    if of_events && unit != "event" {
        text += &format!(", {:.3} µs/event", cost.cpu_us_per_event);
    }
    text
}

fn resources(server: &Cost, of_events: bool) -> String {
    let mut text = format!("{:.0} MB of memory at most", server.peak_memory_bytes as f64 / 1e6);
    if of_events {
        text += &format!(", {:.0} bytes written for an event", server.written_bytes_per_event);
    }
    if let Some(syncs) = server.syncs_per_event {
        // Five digits: at full speed many hundreds of events share a sync.
        text += &format!(", {syncs:.5} disk syncs for an event");
    }
    text
}
