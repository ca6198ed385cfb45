//! The command that publishes a recording in its original rhythm.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::arguments::Server;
use super::publisher::{Line, Progress, Tally, publish, read_lines};

/// Publish a recording in its original rhythm
///
/// A recording has one {"offset_ms": 1500, "event": {...}} on each line. The first event is published at once, and the
/// others as long after it as they were recorded. If the server refuses any event, the command names the first ones and
/// exits with 1.
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline replay data/classroom.ndjson --speed 10
  event-pipeline replay data/classroom.ndjson --speed max")]
pub struct Replay {
    /// File with the recording
    file: PathBuf,
    /// How many times faster than recorded; max is as fast as the server accepts events
    #[arg(long, value_name = "N", default_value = "1", value_parser = speed)]
    speed: Speed,
    #[command(flatten)]
    server: Server,
}

/// The longest offset of an event, 100 years: adding a larger one to the clock could overflow.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// One line of a recording.
#[derive(Deserialize)]
struct Recorded<'a> {
    offset_ms: f64,
    #[serde(borrow)]
    event: &'a RawValue,
}

impl Replay {
    pub async fn run(self) -> anyhow::Result<()> {
        let file = self.file.display();
        let recording = BufReader::new(File::open(&self.file).with_context(|| format!("open {file}"))?);
        // The whole recording is read before anything is sent, so that a damaged one does not publish half a class.
        let (mut start_ms, mut events) = (f64::INFINITY, 0);
        for (number, line) in recording.lines().enumerate() {
            let line = line.with_context(|| format!("{file}, line {}", number + 1))?;
            if !line.trim().is_empty() {
                let Recorded { offset_ms, .. } = serde_json::from_str(&line)
                    .with_context(|| format!("{file}, line {}: not {{\"offset_ms\", \"event\"}}", number + 1))?;
                start_ms = start_ms.min(offset_ms);
                events += 1;
            }
        }
        let speed = self.speed;
        let lines = read_lines(&self.file, move |number, line| {
            let Recorded { offset_ms, event } = serde_json::from_str(&line)?;
            let due = Duration::try_from_secs_f64((offset_ms - start_ms) / 1000.0 / speed.0)?;
            Ok(Line { number, due: due.min(CENTURY), json: event.get().to_owned() })
        })?;

        let socket = self.server.client()?.publisher().await?;
        let bar = ProgressBar::new(events).with_style(
            ProgressStyle::with_template("{bar:40} {pos}/{len} events, {elapsed} so far").expect("a valid template"),
        );
        let started = Instant::now();
        let tally = publish(socket, lines, |progress| {
            if let Progress::Acknowledged(ids) = progress {
                bar.inc(ids.len() as u64);
            }
            Ok(())
        })
        .await?;
        bar.finish_and_clear();
        let seconds = started.elapsed().as_secs_f64();
        let Tally { acknowledged, refused, .. } = &tally;
        let rate = *acknowledged as f64 / seconds;
        writeln!(
            io::stdout(),
            "{acknowledged} events acknowledged, {refused} refused, in {seconds:.1} s ({rate:.0}/s)"
        )?;
        tally.check()
    }
}

/// The number that the recorded times are divided by.
#[derive(Clone, Copy)]
struct Speed(f64);

fn speed(text: &str) -> Result<Speed, String> {
    match (text, text.parse()) {
        ("max", _) => Ok(Speed(f64::INFINITY)),
        (_, Ok(factor)) if factor > 0.0 => Ok(Speed(factor)),
        _ => Err("not a number above 0, nor max".into()),
    }
}
