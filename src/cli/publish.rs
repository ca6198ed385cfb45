//! The commands that publish: from flags, from a file, from a recording.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use event_pipeline::client::Socket;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Server;
use super::printer::plain;

/// Publish one event from flags, or many from a file or stdin
///
/// Events of a file go out without waiting for each other, every acknowledgement is checked, and the ids
/// are printed in order. Ends with 1 if any event was refused, naming its line.
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline publish --type quiz_started --source quiz_engine --session s1 --payload '{\"quiz_id\":\"demo\"}'
  grep timer_tick events.ndjson | event-pipeline publish --quiet -")]
pub struct Publish {
    /// File with one event, a JSON object, on each line; - is stdin
    #[arg(required_unless_present = "event_type", conflicts_with_all = ["event_type", "source", "session", "user", "payload"])]
    file: Option<PathBuf>,
    /// Type of the event
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Service it comes from
    #[arg(long, default_value = "cli")]
    source: String,
    /// Session it belongs to
    #[arg(long)]
    session: Option<String>,
    /// User it is about
    #[arg(long)]
    user: Option<String>,
    /// Anything else about it, a JSON object
    #[arg(long, value_name = "JSON", value_parser = payload)]
    payload: Option<Box<RawValue>>,
    /// Print no ids
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
        let socket = self.server.client()?.publisher("").await?;
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

    /// The event of the flags, as the only line.
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

/// Replay a recording: publish its events in their rhythm
///
/// A recording has one {"offset_ms": 1500, "event": {...}} on each line. The first event goes out at once, the
/// others after it as they were recorded. Every acknowledgement is checked; ends with 1 if any event was
/// refused, naming the first.
#[derive(Args)]
#[command(after_help = "Examples:
  event-pipeline replay data/classroom.ndjson --speed 10
  event-pipeline replay data/classroom.ndjson --speed max")]
pub struct Replay {
    /// The recording
    file: PathBuf,
    /// How many times faster than recorded, or max for as fast as the server takes it
    #[arg(long, value_name = "N", default_value = "1", value_parser = speed)]
    speed: Speed,
    #[command(flatten)]
    server: Server,
}

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
        // Read once before anything is sent, so that a broken recording does not leave half a class behind.
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

        let socket = self.server.client()?.publisher("").await?;
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

/// A message to be published.
struct Line {
    /// Its place in the file, from 1.
    number: usize,
    /// When to publish it, after the first one.
    due: Duration,
    json: String,
}

/// Lines as they are read; an error is the last of them.
type Lines = mpsc::Receiver<anyhow::Result<Line>>;

/// Most messages without an answer: what the server takes at its default settings before it stops reading.
const UNANSWERED_MAX: usize = 4096;
/// A recording's gaps are no longer than this, which the clock can still add.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Lines read ahead of their time, enough to fill a write to the socket.
const READ_AHEAD: usize = 1024;
/// How many of the refused events are named; the first ones tell what is wrong.
const REFUSED_NAMED: usize = 10;

/// The non-empty lines of a file, or of stdin for `-`. A thread reads them, because a terminal or a pipe may
/// keep it waiting; it ends with the process if not before.
fn read_lines(
    path: &Path,
    parse: impl Fn(usize, String) -> anyhow::Result<Line> + Send + 'static,
) -> anyhow::Result<Lines> {
    let (name, input): (_, Box<dyn BufRead + Send>) = if path == Path::new("-") {
        ("stdin".into(), Box::new(BufReader::new(io::stdin())))
    } else {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("open {name}"))?;
        (name, Box::new(BufReader::new(file)))
    };
    let (sender, lines) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        for (number, line) in (1..).zip(input.lines()) {
            let line = match line {
                Ok(line) if line.trim().is_empty() => continue,
                line => line.map_err(Into::into).and_then(|line| parse(number, line)),
            };
            let failed = line.is_err();
            let gone = sender.blocking_send(line.with_context(|| format!("{name}, line {number}"))).is_err();
            if failed || gone {
                return;
            }
        }
    });
    Ok(lines)
}

/// What [`publish`] tells while it goes on.
enum Progress<'a> {
    /// A message was answered with these ids, one for each event in it.
    Acknowledged(&'a [Cow<'a, str>]),
    /// There is nothing more to tell for the moment.
    Waiting,
}

#[derive(Default)]
struct Tally {
    acknowledged: usize,
    refused: usize,
    /// Line and reason of the first refused ones.
    reasons: Vec<(usize, String)>,
    /// What ended the lines or the connection too early.
    failure: Option<anyhow::Error>,
}

impl Tally {
    fn add(&mut self, line: usize, answer: &str, told: &mut impl FnMut(Progress) -> io::Result<()>) -> io::Result<()> {
        #[derive(Deserialize)]
        struct Ack<'a> {
            #[serde(borrow)]
            status: Cow<'a, str>,
            #[serde(borrow)]
            event_id: Option<Cow<'a, str>>,
            #[serde(borrow)]
            event_ids: Option<Vec<Cow<'a, str>>>,
            #[serde(borrow)]
            message: Option<Cow<'a, str>>,
        }
        let reason = match serde_json::from_str(answer) {
            Ok(Ack { status, event_id, event_ids, message }) => {
                let ids = event_ids.or_else(|| event_id.map(|id| vec![id])).filter(|_| status == "ok");
                if let Some(ids) = ids {
                    self.acknowledged += ids.len();
                    return told(Progress::Acknowledged(&ids));
                }
                message
            }
            Err(_) => None,
        };
        self.refused += 1;
        if self.reasons.len() < REFUSED_NAMED {
            self.reasons.push((line, reason.as_deref().unwrap_or(answer).into()));
        }
        Ok(())
    }

    /// The line, unless it could not be read: then the lines end there.
    fn take(&mut self, line: anyhow::Result<Line>) -> Option<Line> {
        line.map_err(|error| self.failure = Some(error)).ok()
    }

    /// Names on stderr what was refused.
    fn check(self) -> anyhow::Result<()> {
        for (line, reason) in &self.reasons {
            eprintln!("line {line}: {}", plain(reason));
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        ensure!(self.refused == 0, "{} messages refused, {} events acknowledged", self.refused, self.acknowledged);
        Ok(())
    }
}

/// Publishes lines as they come and are due, many unanswered at a time, until every one is answered.
///
/// # Errors
/// Only those of `told`. What else goes wrong is in the tally, with all that went well before.
async fn publish(
    socket: Socket,
    mut lines: Lines,
    mut told: impl FnMut(Progress) -> io::Result<()>,
) -> io::Result<Tally> {
    let (mut sender, mut receiver) = socket.split();
    let mut tally = Tally::default();
    // The lines whose answers are to come; they come in this order.
    let mut unanswered: VecDeque<usize> = VecDeque::new();
    let mut next: Option<Line> = None;
    let mut all_read = false;
    let start = Instant::now();
    while !(all_read && next.is_none() && unanswered.is_empty()) {
        let room = unanswered.len() < UNANSWERED_MAX;
        let due = start + next.as_ref().map_or(Duration::ZERO, |line| line.due);
        let mut telling = Ok(());
        let moved = tokio::select! {
            received = receiver.recv_batch(|answer| {
                let line = unanswered.pop_front().unwrap_or_default();
                let told = tally.add(line, answer, &mut told);
                telling = std::mem::replace(&mut telling, Ok(())).and(told);
            }) => received.map(drop),
            flushed = sender.flush(), if sender.queued_bytes() > 0 => flushed,
            () = sleep_until(due), if next.is_some() && room => {
                // All that are due leave in one write.
                while let Some(line) = next.take_if(|line| {
                    unanswered.len() < UNANSWERED_MAX && start + line.due <= Instant::now()
                }) {
                    sender.queue(&line.json);
                    unanswered.push_back(line.number);
                    next = lines.try_recv().ok().and_then(|line| tally.take(line));
                }
                Ok(())
            }
            line = lines.recv(), if next.is_none() && !all_read => {
                all_read = line.is_none();
                next = line.and_then(|line| tally.take(line));
                Ok(())
            }
        };
        telling.and_then(|()| told(Progress::Waiting))?;
        if let Err(lost) = moved {
            let from = unanswered.front().map_or(String::new(), |line| format!(", from line {line} on"));
            let state = format!(
                "{} events acknowledged, {} messages without an answer{from}",
                tally.acknowledged,
                unanswered.len()
            );
            tally.failure = Some(anyhow::Error::new(lost).context(state));
            return Ok(tally);
        }
    }
    // Everything is answered; whether the goodbye arrives matters to nobody.
    let _ = sender.close(1000, "").await;
    Ok(tally)
}

fn payload(text: &str) -> Result<Box<RawValue>, String> {
    let payload: Box<RawValue> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if payload.get().starts_with('{') { Ok(payload) } else { Err("not a JSON object".into()) }
}

/// By how much the recorded times are divided.
#[derive(Clone, Copy)]
struct Speed(f64);

fn speed(text: &str) -> Result<Speed, String> {
    match (text, text.parse()) {
        ("max", _) => Ok(Speed(f64::INFINITY)),
        (_, Ok(factor)) if factor > 0.0 => Ok(Speed(factor)),
        _ => Err("not a number above 0, nor max".into()),
    }
}
