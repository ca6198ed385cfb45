//! The figures of one run, as a table or as JSON.

use std::fmt::{self, Display};
use std::io::{self, Write};

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::Value;

use crate::publish::Rate;
use crate::run::{Counted, Measured, Run, Shares};
use crate::usage::Cost;

/// A thread or machine this busy is the limit.
const BUSY: f64 = 0.9;

/// Others that use this much of a processor falsify the figures. The kernel's own threads, which write to the
/// disk for the server, use a few hundredths.
const DISTURBED: f64 = 0.15;

/// A rate missed by more than this was not reached.
const RATE_REACHED: f64 = 0.98;

/// Everything to be told about one run.
#[derive(Serialize)]
pub struct Report {
    scenario: &'static str,
    title: String,
    options: Value,
    seconds: f64,
    /// Acknowledged, each counted once.
    events: Count,
    /// Received by subscribers.
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries: Option<Count>,
    latency_us: Latency,
    server: Option<Cost>,
    client: Cost,
    processors_busy: Shares,
    limit: String,
    /// Over the whole run, with what came before and after the measured interval.
    acknowledged: u64,
    violations: Vec<String>,
    server_warnings: Vec<String>,
}

#[derive(Serialize)]
struct Count {
    count: u64,
    per_second: f64,
}

impl Report {
    #[expect(clippy::too_many_arguments, reason = "each scenario has all of this to tell, and only once")]
    pub fn new(
        scenario: &'static str,
        title: String,
        options: &impl Serialize,
        measured: Measured,
        counted: Counted,
        rate: Rate,
        run: &Run,
        server_warnings: Vec<String>,
    ) -> Self {
        let seconds = measured.elapsed.as_secs_f64();
        let count = |count| Count { count, per_second: count as f64 / seconds };
        let ledger = run.ledger.borrow();
        Self {
            scenario,
            title,
            options: serde_json::to_value(options).expect("options are plain"),
            seconds,
            events: count(measured.events),
            deliveries: (counted == Counted::Deliveries).then(|| count(measured.deliveries)),
            limit: limit(&measured, rate),
            latency_us: measured.latency,
            server: measured.server,
            client: measured.client,
            processors_busy: measured.shares,
            acknowledged: ledger.acknowledged,
            violations: ledger.violations(),
            server_warnings,
        }
    }

    /// Whether every promise was kept.
    pub fn kept(&self) -> bool {
        self.violations.is_empty()
    }

    /// To stdout; what was broken goes to stderr too when a program reads stdout.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            self.violations.iter().for_each(|violation| eprintln!("VIOLATION: {violation}"));
        } else {
            writeln!(out, "{self}")?;
        }
        Ok(())
    }
}

/// What kept the figure from being higher.
fn limit(measured: &Measured, rate: Rate) -> String {
    let Measured { client, server, shares, .. } = measured;
    if let Rate(Some(rate)) = rate
        && measured.events as f64 >= rate as f64 * RATE_REACHED * measured.elapsed.as_secs_f64()
    {
        return "the rate asked for, which was reached".to_owned();
    }
    if client.busiest_thread_share >= BUSY {
        return "this client, not the server".to_owned();
    }
    match server {
        Some(server) if server.busiest_thread_share >= BUSY => format!("the server's thread {}", server.busiest_thread),
        _ if shares.all >= BUSY * shares.processors as f64 => "the processors, which all were busy".to_owned(),
        _ => "none of the processors: waiting for the disk and for each other".to_owned(),
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, value: &dyn Display| writeln!(f, "  {name:<14}{value}");
        let count = |count: &Count| {
            format!("{:>13}/s   {} in {:.1} s", grouped(count.per_second), grouped(count.count as f64), self.seconds)
        };
        writeln!(f, "{}: {}", self.scenario, self.title)?;
        row(f, "events", &count(&self.events))?;
        let mut unit = "event";
        if let Some(deliveries) = &self.deliveries {
            row(f, "deliveries", &count(deliveries))?;
            unit = "delivery";
        }
        row(f, "latency", &self.latency_us)?;
        if let Some(server) = &self.server {
            row(f, "server CPU", &cpu(server, unit))?;
        }
        row(f, "client CPU", &cpu(&self.client, unit))?;
        if let Some(server) = &self.server {
            let memory = server.peak_memory_bytes as f64 / 1e6;
            let written = server.written_bytes_per_event;
            row(f, "server", &format!("{memory:.0} MB of memory at most, {written:.0} bytes written for an event"))?;
        }
        row(f, "processors", &self.processors_busy)?;
        row(f, "limit", &self.limit)?;
        if self.processors_busy.others() > DISTURBED {
            row(f, "DISTURBED", &"others used the processors too; measure again when they are gone")?;
        }
        for warning in &self.server_warnings {
            row(f, "server says", warning)?;
        }
        for violation in &self.violations {
            row(f, "VIOLATION", violation)?;
        }
        if self.kept() {
            let all = grouped(self.acknowledged as f64);
            row(f, "verified", &format!("all {all} events of the run"))?;
        }
        Ok(())
    }
}

impl Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, all, processors, .. } = self;
        write!(f, "{all:.2} of {processors} busy: ")?;
        if let Some(server) = self.server {
            write!(f, "the server {server:.2}, ")?;
        }
        write!(f, "this client {client:.2}, others {:.2}", self.others())
    }
}

fn cpu(cost: &Cost, unit: &str) -> String {
    let threads = cost.cpu_us_each_by_thread.iter().filter(|(_, us)| **us >= 0.0005);
    let threads = threads.map(|(name, us)| format!("{name} {us:.3}")).collect::<Vec<_>>();
    let event = if unit == "event" { String::new() } else { format!(", {:.3} µs/event", cost.cpu_us_per_event) };
    format!("{:.3} µs/{unit}  ({}){event}", cost.cpu_us_each, threads.join(", "))
}

/// A whole number, its thousands apart.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let first = digits.len() % 3;
    let groups = digits.as_bytes().iter().enumerate().flat_map(|(i, digit)| {
        let comma = i > 0 && i % 3 == first;
        comma.then_some(',').into_iter().chain([char::from(*digit)])
    });
    groups.collect()
}

/// Percentiles, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
    mean: f64,
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let micros = |nanos| nanos as f64 / 1e3;
        let at = |percentile| micros(histogram.value_at_percentile(percentile));
        Self {
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p99_9: at(99.9),
            max: micros(histogram.max()),
            mean: histogram.mean() / 1e3,
        }
    }
}

impl Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [("p50", self.p50), ("p90", self.p90), ("p99", self.p99), ("p99.9", self.p99_9), ("max", self.max)];
        for (i, (name, micros)) in named.into_iter().enumerate() {
            let gap = if i > 0 { "   " } else { "" };
            write!(f, "{gap}{name} {:.3} ms", micros / 1e3)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        for (number, text) in [(0.0, "0"), (999.4, "999"), (1_000.0, "1,000"), (12_345.0, "12,345"), (1e6, "1,000,000")]
        {
            assert_eq!(grouped(number), text);
        }
    }
}
