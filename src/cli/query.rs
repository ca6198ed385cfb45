//! The command that searches the stored events.

use anyhow::Context;
use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::value::RawValue;

use super::arguments::{EVENTS, Filter, Server, time};
use super::printer::Printer;

/// RFC 3986, 2.3: what has no meaning in a URL stays readable, and so does the comma between types.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b',');

/// Search the stored events
///
/// Prints the newest events first, at most --limit of them. With --all, prints every matching event, oldest first.
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline query --user student-120 --since 2h
  event-pipeline query --type error_occurred --all --json > errors.ndjson")]
pub struct Query {
    /// Maximum number of events, up to 1000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Print every matching event, oldest first
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Print each event as the JSON that the server sent
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    filter: Filter,
    /// Only events after this time, in RFC 3339, or an age: 30s, 10m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = EVENTS)]
    since: Option<String>,
    /// Only events before this time, in the same formats
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = EVENTS)]
    until: Option<String>,
    #[command(flatten)]
    server: Server,
}

impl Query {
    pub async fn run(self) -> anyhow::Result<()> {
        let client = self.server.client()?;
        let mut out = Printer::new(self.json);
        if !self.all {
            let answer = client.get(&self.path()).await?;
            let events: Vec<&RawValue> = serde_json::from_slice(&answer).context("the answer is not a list")?;
            events.into_iter().try_for_each(|event| out.event(event.get()).map(drop))?;
            return Ok(out.flush()?);
        }
        let mut answer = client.lines(&self.path(), "application/x-ndjson").await?;
        let mut printed = Ok(());
        while answer
            .read(|event| {
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
        let query: Vec<String> =
            given.map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, ENCODED))).collect();
        format!("/events?{}", query.join("&"))
    }
}
