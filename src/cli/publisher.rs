//! Publishes many messages over one WebSocket and checks every acknowledgement.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use event_pipeline::client::Socket;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::printer::{folded, plain};

/// A message to be published.
pub struct Line {
    /// The number of its line in the file, from 1.
    pub number: usize,
    /// How long after the first message to publish it.
    pub due: Duration,
    pub json: String,
}

/// Lines as they are read. An error is the last of them.
pub type Lines = mpsc::Receiver<anyhow::Result<Line>>;

/// Most messages without an answer: with so many, the server stops reading at its default settings.
const UNANSWERED_MAX: usize = 4096;
/// Lines that are read before they are due: enough to fill a write to the socket.
const READ_AHEAD: usize = 1024;
/// How many of the refused messages are named: the first ones show what is wrong.
const REFUSED_NAMED: usize = 10;

/// The non-empty lines of a file, or of stdin for `-`. A thread reads them, because a terminal or a pipe may block it; the
/// thread ends with the process at the latest.
pub fn read_lines(
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

/// What [`publish`] reports while it runs.
pub enum Progress<'a> {
    /// A message was acknowledged with these ids, one for each event in it.
    Acknowledged(&'a [Cow<'a, str>]),
    /// Nothing more can be reported until the next message arrives.
    Waiting,
}

/// How many events were acknowledged and refused.
#[derive(Default)]
pub struct Tally {
    pub acknowledged: usize,
    pub refused: usize,
    /// Line number and reason of the first refused messages.
    reasons: Vec<(usize, String)>,
    /// Why the lines or the connection ended too early.
    failure: Option<anyhow::Error>,
}

impl Tally {
    fn add(
        &mut self,
        line: usize,
        answer: &str,
        report: &mut impl FnMut(Progress) -> io::Result<()>,
    ) -> io::Result<()> {
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
                    return report(Progress::Acknowledged(&ids));
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

    /// The line. If it could not be read, the error is noted, and no line follows.
    fn take(&mut self, line: anyhow::Result<Line>) -> Option<Line> {
        line.map_err(|error| self.failure = Some(error)).ok()
    }

    /// Names the first refused messages on stderr.
    ///
    /// # Errors
    /// The server refused a message, or the lines or the connection ended too early.
    pub fn check(self) -> anyhow::Result<()> {
        for (line, reason) in &self.reasons {
            eprintln!("{}", folded(&format!("line {line}: {}", plain(reason))));
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        ensure!(self.refused == 0, "{} messages refused, {} events acknowledged", self.refused, self.acknowledged);
        Ok(())
    }
}

/// Publishes lines when they are due, many without an answer at a time, until every one is answered.
///
/// # Errors
/// Only those of `report`. Any other failure is in the tally, with what was acknowledged before it.
pub async fn publish(
    socket: Socket,
    mut lines: Lines,
    mut report: impl FnMut(Progress) -> io::Result<()>,
) -> io::Result<Tally> {
    let (mut sender, mut receiver) = socket.split();
    let mut tally = Tally::default();
    // The numbers of the lines without an answer. The answers come in this order.
    let mut unanswered: VecDeque<usize> = VecDeque::new();
    let mut next: Option<Line> = None;
    let mut all_read = false;
    let start = Instant::now();
    while !(all_read && next.is_none() && unanswered.is_empty()) {
        let may_send = unanswered.len() < UNANSWERED_MAX;
        let due = start + next.as_ref().map_or(Duration::ZERO, |line| line.due);
        let mut reported = Ok(());
        let moved = tokio::select! {
            received = receiver.receive_batch(|answer| {
                let line = unanswered.pop_front().unwrap_or_default();
                let result = tally.add(line, answer, &mut report);
                reported = std::mem::replace(&mut reported, Ok(())).and(result);
            }) => received.map(drop),
            flushed = sender.flush(), if sender.queued_bytes() > 0 => flushed,
            () = sleep_until(due), if next.is_some() && may_send => {
                // All lines that are due leave in one write.
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
        reported.and_then(|()| report(Progress::Waiting))?;
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
    // Everything is answered, so it does not matter whether the Close frame arrives.
    let _ = sender.close(1000, "").await;
    Ok(tally)
}
