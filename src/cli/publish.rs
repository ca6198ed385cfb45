//! The command that publishes one event from flags, or many from a file.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::arguments::Server;
use super::publisher::{Line, Lines, Progress, publish, read_lines};

/// Publish one event from flags, or many from a file or stdin
///
/// Prints the id of each acknowledged event, in order. The events of a file are sent without waiting for
/// each other's acknowledgement. If the server refuses any, the command names their lines and exits with 1.
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline publish --type quiz_started --source quiz_engine --payload '{\"quiz_id\":\"demo\"}'
  grep timer_tick events.ndjson | event-pipeline publish --quiet -")]
pub struct Publish {
    /// File with one event on each line, as a JSON object; - is stdin
    #[arg(required_unless_present = "event_type", conflicts_with_all = ["event_type", "source", "session", "user", "payload"])]
    file: Option<PathBuf>,
    /// Event type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Service that the event comes from
    #[arg(long, default_value = "cli")]
    source: String,
    /// Session that the event belongs to
    #[arg(long)]
    session: Option<String>,
    /// User that the event is about
    #[arg(long)]
    user: Option<String>,
    /// Payload, a JSON object
    #[arg(long, value_name = "JSON", value_parser = payload)]
    payload: Option<Box<RawValue>>,
    /// Do not print the ids
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    server: Server,
}

impl Publish {
    pub async fn run(self) -> anyhow::Result<()> {
        let lines = match &self.file {
            Some(path) => read_lines(path, |number, json| Ok(Line { number, due: Duration::ZERO, json }))?,
            None => self.event()?,
        };
        let socket = self.server.client()?.publisher().await?;
        let mut out = BufWriter::new(io::stdout().lock());
        let tally = publish(socket, lines, |progress| match progress {
            Progress::Acknowledged(ids) if !self.quiet => ids.iter().try_for_each(|id| writeln!(out, "{id}")),
            Progress::Acknowledged(_) => Ok(()),
            Progress::Waiting => out.flush(),
        })
        .await?;
        out.flush()?;
        tally.check()
    }

    /// The event that the flags describe, as the only line.
    fn event(&self) -> anyhow::Result<Lines> {
        let mut json = json!({
            "event_type": self.event_type, "source": self.source, "session_id": self.session, "user_id": self.user,
        })
        .to_string();
        if let Some(payload) = &self.payload {
            json.pop();
            write!(json, ",\"payload\":{payload}}}")?;
        }
        let (sender, lines) = mpsc::channel(1);
        sender.try_send(Ok(Line { number: 1, due: Duration::ZERO, json })).expect("the channel is empty");
        Ok(lines)
    }
}

fn payload(text: &str) -> Result<Box<RawValue>, String> {
    let payload: Box<RawValue> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if payload.get().starts_with('{') { Ok(payload) } else { Err("not a JSON object".into()) }
}
