//! The commands that ask for what is stored.

use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::Context;
use clap::Args;
use hyper::Method;
use serde_json::value::RawValue;

use super::printer::{Printer, TYPE_WIDTH, plain};
use super::{Filter, Server, time};

/// Search the stored events
///
/// Prints the newest first, as many as --limit says; or all of them, oldest first, with --all.
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline query --user student-120 --since 2h
  event-pipeline query --type error_occurred --all --json > errors.ndjson")]
pub struct Query {
    #[command(flatten)]
    filter: Filter,
    /// Only events after this time: RFC 3339, or how long ago: 30s, 10m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Which events")]
    since: Option<String>,
    /// Only events before this time
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Which events")]
    until: Option<String>,
    /// Most events to print, up to 1000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Print every matching event, oldest first
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Print each event as received, in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

impl Query {
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = self.server.client()?;
        let mut out = Printer::new(self.json);
        if !self.all {
            let answer = client.get(&self.path()).await?.ok()?;
            let events: Vec<&RawValue> = serde_json::from_slice(&answer.body).context("the answer is not a list")?;
            events.into_iter().try_for_each(|event| out.event(event.get()).map(drop))?;
            return Ok(out.flush()?);
        }
        let headers = [("accept", "application/x-ndjson")];
        let mut stream = client.stream(Method::GET, &self.path(), &headers, "").await?;
        if !stream.status.is_success() {
            stream.collect().await?.ok()?;
            return Ok(());
        }
        let mut printed = Ok(());
        while stream
            .lines(|event| {
                if printed.is_ok() {
                    printed = out.event(event).map(drop);
                }
            })
            .await?
        {
            std::mem::replace(&mut printed, Ok(()))?;
        }
        printed.and_then(|()| out.flush()).map_err(Into::into)
    }

    pub(super) fn path(&self) -> String {
        let Filter { types, source, session, user, expression } = &self.filter;
        let types = (!types.is_empty()).then(|| types.join(","));
        let limit = (!self.all).then(|| self.limit.to_string());
        let parameters = [
            ("event_type", &types),
            ("source", source),
            ("session_id", session),
            ("user_id", user),
            ("filter", expression),
            ("since", &self.since),
            ("until", &self.until),
            ("limit", &limit),
        ];
        let given = parameters.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let query: Vec<String> = given.map(|(name, value)| format!("{name}={}", percent_encoded(value))).collect();
        format!("/events?{}", query.join("&"))
    }
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b',' => encoded.push(byte.into()),
            _ => write!(encoded, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    encoded
}

/// Show how many events of each type are stored, and who is connected
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline stats
  event-pipeline stats --json --url http://events.school.example:8001")]
pub struct Stats {
    /// Print the answer as received, in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

impl Stats {
    pub async fn run(self) -> anyhow::Result<()> {
        let answer = self.server.client()?.get("/stats").await?.ok()?;
        let mut out = io::stdout().lock();
        if self.json {
            return Ok(writeln!(out, "{}", answer.text())?);
        }
        let stats = answer.json()?;
        let router = &stats["router"];
        for (name, value) in [
            ("events stored", &stats["total_events"]),
            ("events last hour", &stats["events_last_hour"]),
            ("subscribers", &router["active_subscribers"]),
            ("events queued", &router["queue_size"]),
        ] {
            writeln!(out, "{name:<TYPE_WIDTH$}  {:>10}", value.to_string())?;
        }
        let by_type = stats["by_type"].as_array().map_or(&[][..], Vec::as_slice);
        if !by_type.is_empty() {
            writeln!(out, "\n{:<TYPE_WIDTH$}  {:>10}  last seen", "type", "count")?;
        }
        for row in by_type {
            let text = |key: &str| plain(row[key].as_str().unwrap_or("-"));
            writeln!(
                out,
                "{:<TYPE_WIDTH$}  {:>10}  {}",
                text("event_type"),
                row["count"].to_string(),
                text("last_seen")
            )?;
        }
        Ok(())
    }
}
