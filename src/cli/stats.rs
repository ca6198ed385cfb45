//! The command that shows the server's statistics.

use std::io::{self, Write};

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use super::arguments::Server;
use super::printer::{TYPE_WIDTH, plain};

/// Show how many events of each type are stored, and how many subscribers are connected
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline stats
  event-pipeline stats --json --url http://events.school.example:8001")]
pub struct Stats {
    /// Print the JSON that the server sent
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

impl Stats {
    pub async fn run(self) -> anyhow::Result<()> {
        let answer = self.server.client()?.get("/stats").await?;
        let mut out = io::stdout().lock();
        if self.json {
            return Ok(writeln!(out, "{}", String::from_utf8_lossy(&answer))?);
        }
        let stats: Value = serde_json::from_slice(&answer).context("the answer is not JSON")?;
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
