//! Events on stdout.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use serde::Deserialize;
use serde_json::value::RawValue;

/// Writes events to stdout, one a line; for people, or as received.
pub struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    json: bool,
    colour: bool,
}

/// The longest built-in type, so that what follows stands in a column.
pub const TYPE_WIDTH: usize = "learning_gap_detected".len();

/// What is shown of an event. A message without an id is none.
#[derive(Deserialize)]
struct Shown<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    session_id: Option<String>,
    user_id: Option<String>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

impl Printer {
    pub fn new(json: bool) -> Self {
        let out = io::stdout();
        let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { out: BufWriter::new(out.lock()), json, colour }
    }

    /// Writes an event and returns its id; leaves out any other message.
    pub fn event(&mut self, text: &str) -> io::Result<Option<String>> {
        let Ok(shown) = serde_json::from_str::<Shown>(text) else { return Ok(None) };
        if self.json {
            writeln!(self.out, "{text}")?;
        } else {
            self.line(&shown)?;
        }
        Ok(Some(shown.id.into_owned()))
    }

    /// `2026-01-15 10:30:00.123Z  quiz_started  quiz_engine  session-1  student-7  {"quiz_id":"demo-quiz"}`
    fn line(&mut self, event: &Shown) -> io::Result<()> {
        const RED: &str = "\x1b[31m";
        const CYAN: &str = "\x1b[36m";
        const DIM: &str = "\x1b[2m";
        let alarm = event.event_type.contains("error") || event.event_type.contains("warning");
        let [dim, hue, end] = match (self.colour, alarm) {
            (false, _) => ["", "", ""],
            (true, alarm) => [DIM, if alarm { RED } else { CYAN }, "\x1b[0m"],
        };
        // Milliseconds are enough for the eye.
        let time = event.timestamp.get(..23).unwrap_or(&event.timestamp).replacen('T', " ", 1);
        let (event_type, source) = (plain(&event.event_type), plain(&event.source));
        let session = plain(event.session_id.as_deref().unwrap_or("-"));
        let user = plain(event.user_id.as_deref().unwrap_or("-"));
        let payload = plain(event.payload.get());
        writeln!(
            self.out,
            "{dim}{}Z{end}  {hue}{event_type:<TYPE_WIDTH$}{end}  {source:<16}  {session}  {user}  {dim}{payload}{end}",
            plain(&time),
        )
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Text from elsewhere without control characters, which could make a terminal do anything.
pub fn plain(text: &str) -> Cow<'_, str> {
    match text.contains(char::is_control) {
        true => text.replace(char::is_control, "\u{fffd}").into(),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_elsewhere_controls_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\u{9b}c\u{7f}"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
        assert_eq!(plain("für {\"x\":1}"), "für {\"x\":1}");
    }
}
