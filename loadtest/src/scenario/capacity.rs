//! The scenario `capacity`: the highest load at which latency stays below a limit.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::finding::Finding;
use crate::numbers::grouped;
use crate::options::Common;
use crate::report::{Report, Verdict};
use crate::scenario::classroom::Classroom;
use crate::scenario::publish::Publish;
use crate::schedule::Rate;

/// Search for the most classes, or events a second, with a p99 below a limit and every event verified
///
/// Loads are tried in an open loop, each for --seconds on a server of its own: twice as much until one is too much, then
/// in the middle between what is possible and what is not. The highest is then tried again for three times as long, and
/// must hold. With --page FILE all of it stands on one page, to be signed.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Capacity {
    /// What is searched for
    #[arg(long, value_enum, default_value_t = Unit::Events)]
    of: Unit,
    /// The limit of the p99 in milliseconds: of acknowledgements for events, of deliveries for classes
    #[arg(long, value_name = "MS", default_value_t = 10.0)]
    p99_ms: f64,
    /// The first load that is tried [default: 10000 events a second, 4 classes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    from: Option<u64>,
    /// How exactly, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=50))]
    within: u64,
    /// Write the result and every try to a page of Markdown
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    page: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Unit {
    /// Events a second, on 4 WebSockets
    Events,
    /// Copies of the recorded class at its own speed, each with two dashboards
    Classes,
}

/// One load that was tried.
struct Try {
    load: u64,
    report: Report,
}

impl Capacity {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let mut search =
            Search::new(self.from.unwrap_or(if self.of == Unit::Events { 10_000 } else { 4 }), self.within);
        let (mut tries, longer) = (Vec::new(), Common { seconds: 3 * common.seconds, ..common.clone() });
        let held = loop {
            let Some(load) = search.next() else {
                let Some(load) = search.possible else { bail!("even {} is too much", self.told(1)) };
                let report = self.attempt(load, &longer).await?;
                let holds = self.holds(&report);
                tries.push(Try { load, report });
                if holds {
                    break load;
                }
                if common.interrupt.was_requested() {
                    bail!("interrupted before {} was confirmed", self.told(load));
                }
                search.was_too_much(load);
                continue;
            };
            let report = self.attempt(load, common).await?;
            let holds = self.holds(&report);
            eprintln!("loadtest: {}: p99 {:.3} ms, {}", self.told(load), p99_ms(&report), verdict(holds));
            tries.push(Try { load, report });
            search.note(load, holds);
            if common.interrupt.was_requested() {
                bail!("interrupted before the search was over");
            }
        };
        let mut report = tries.last().expect("at least one was tried").report.clone();
        report.scenario = "capacity".to_owned();
        report.title = format!("the most {} with a p99 below {} ms", self.unit(), self.p99_ms);
        report.options = serde_json::to_value(self).expect("options are plain");
        report.results.insert(0, Finding::new("capacity", self.unit(), held as f64));
        if let Some(file) = &self.page {
            fs::write(file, self.page(held, &report, &tries))
                .with_context(|| format!("write to {}", file.display()))?;
        }
        Ok(report)
    }

    async fn attempt(&self, load: u64, common: &Common) -> anyhow::Result<Report> {
        match self.of {
            Unit::Events => Publish { rate: Rate(Some(load)), ..Publish::default() }.measure(common).await,
            Unit::Classes => Classroom::of(load as u32).measure(common).await,
        }
    }

    /// Whether a run kept every promise and the limit.
    fn holds(&self, report: &Report) -> bool {
        report.verdict == Verdict::Verified && p99_ms(report) <= self.p99_ms
    }

    fn unit(&self) -> &'static str {
        if self.of == Unit::Events { "events/s" } else { "classes" }
    }

    fn told(&self, load: u64) -> String {
        format!("{} {}", grouped(load as f64), self.unit())
    }

    /// What a responsible person needs to know, and a line to sign on.
    fn page(&self, held: u64, report: &Report, tries: &[Try]) -> String {
        let mut page = String::new();
        let mut line = |text: &str| writeln!(page, "{text}").expect("a string takes everything");
        line(&format!("# Capacity: {}\n", self.told(held)));
        line(&format!(
            "The highest load at which the p99 {} stays below {} ms, and every event is acknowledged once and stored; what is \
             read back (of more than a million events a sample) is as it was sent.{}\n",
            if self.of == Unit::Events { "of acknowledgements" } else { "of deliveries" },
            self.p99_ms,
            if self.of == Unit::Events {
                ""
            } else {
                " Each is delivered once and in order to everybody who asked for it."
            }
        ));
        for (name, value) in [
            ("Server", report.subject.clone()),
            ("An acknowledgement means", report.acknowledged_means.clone()),
            ("Settings", format!("{:?}", report.server_settings)),
            ("Machine, with the load generator", report.machine.to_string()),
            ("Begun", report.started_at.clone()),
            ("Load test, commit", report.commit.clone().unwrap_or_else(|| "unknown".to_owned())),
        ] {
            line(&format!("* {name}: {value}"));
        }
        line("\n| load | seconds | events | read back | p50, ms | p99, ms | p99.9, ms | verdict |");
        line("|---|---|---|---|---|---|---|---|");
        for Try { load, report } in tries {
            let latency = &report.latency_us;
            line(&format!(
                "| {} | {:.0} | {} | {} | {:.3} | {:.3} | {:.3} | {} |",
                self.told(*load),
                report.seconds,
                grouped(report.acknowledged as f64),
                grouped(report.read_back as f64),
                latency.p50 / 1e3,
                latency.p99 / 1e3,
                latency.p99_9 / 1e3,
                verdict(self.holds(report))
            ));
        }
        line("\nDate, name, signature: ______________________________");
        page
    }
}

fn p99_ms(report: &Report) -> f64 {
    report.latency_us.p99 / 1e3
}

fn verdict(holds: bool) -> &'static str {
    if holds { "holds" } else { "too much" }
}

/// The search for the highest load that is possible.
struct Search {
    start: u64,
    within: u64,
    /// The highest that was possible, and the lowest that was not.
    possible: Option<u64>,
    too_much: Option<u64>,
}

impl Search {
    fn new(start: u64, within: u64) -> Self {
        Self { start, within, possible: None, too_much: None }
    }

    /// The next load to try; `None` once it is known closely enough.
    fn next(&self) -> Option<u64> {
        match (self.possible, self.too_much) {
            (None, None) => Some(self.start),
            (Some(possible), None) => Some(possible * 2),
            (None, Some(too_much)) => Some(too_much / 2).filter(|load| *load > 0),
            (Some(possible), Some(too_much)) => {
                let apart = too_much - possible;
                (apart > 1 && apart * 100 > possible * self.within).then_some(possible + apart / 2)
            }
        }
    }

    fn note(&mut self, load: u64, holds: bool) {
        *(if holds { &mut self.possible } else { &mut self.too_much }) = Some(load);
    }

    /// Notes that what seemed possible is not: the search goes on below it.
    fn was_too_much(&mut self, load: u64) {
        (self.possible, self.too_much) = (None, Some(load));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_highest_possible_load_is_found(limit in 1..2_000_000_u64, start in 1..100_000_u64, within in 1..50_u64) {
            let mut search = Search::new(start, within);
            let mut tries = 0;
            while let Some(load) = search.next() {
                search.note(load, load <= limit);
                tries += 1;
                prop_assert!(tries < 60);
            }
            let found = search.possible.expect("1 is possible");
            prop_assert!(found <= limit && (limit - found) * 100 <= found * within + 100, "{found} of {limit}");
            // A longer run may show that it does not hold.
            search.was_too_much(found);
            prop_assert!(search.next().is_none_or(|load| load < found));
        }
    }

    #[test]
    fn nothing_is_possible_where_even_one_is_too_much() {
        let mut search = Search::new(3, 5);
        while let Some(load) = search.next() {
            search.note(load, false);
        }
        assert_eq!(search.possible, None);
    }
}
