//! Output for people: events on stdout, and text that is safe to show in a terminal.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use serde::Deserialize;
use serde_json::value::RawValue;

/// Writes events to stdout, one on each line: in columns for people, or as the JSON that the server sent.
pub struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    json: bool,
    colour: bool,
}

/// The length of the longest built-in type, so that the fields after it form columns.
pub const TYPE_WIDTH: usize = "learning_gap_detected".len();

/// The fields of an event. Messages that are not events lack some of them.
#[derive(Deserialize)]
struct Event<'a> {
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

    /// Writes an event and returns its id. Ignores any other message.
    pub fn event(&mut self, text: &str) -> io::Result<Option<String>> {
        let Ok(event) = serde_json::from_str::<Event>(text) else { return Ok(None) };
        if self.json {
            writeln!(self.out, "{text}")?;
        } else {
            self.line(&event)?;
        }
        Ok(Some(event.id.into_owned()))
    }

    /// `2026-01-15 10:30:00.123Z  quiz_started  quiz_engine  session-1  student-7  {"quiz_id":"demo-quiz"}`
    fn line(&mut self, event: &Event) -> io::Result<()> {
        const RED: &str = "\x1b[31m";
        const CYAN: &str = "\x1b[36m";
        const DIM: &str = "\x1b[2m";
        let alarm = event.event_type.contains("error") || event.event_type.contains("warning");
        let [dim, hue, end] = match (self.colour, alarm) {
            (false, _) => ["", "", ""],
            (true, alarm) => [DIM, if alarm { RED } else { CYAN }, "\x1b[0m"],
        };
        // People need no more than milliseconds.
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

/// Text from a server without control characters, with which a terminal could be controlled.
pub fn plain(text: &str) -> Cow<'_, str> {
    match text.contains(char::is_control) {
        true => text.replace(char::is_control, "\u{fffd}").into(),
        false => text.into(),
    }
}

/// Text for stderr: in a terminal, long text is broken between words into indented lines of at most 100 columns.
pub fn folded(text: &str) -> Cow<'_, str> {
    const COLUMNS: usize = 100;
    if text.chars().count() <= COLUMNS || !io::stderr().is_terminal() {
        return text.into();
    }
    let (mut lines, mut width) = (String::with_capacity(text.len() + text.len() / 16), 0);
    for word in text.split(' ') {
        let word_width = word.chars().count() + 1;
        if width > 0 && width + word_width > COLUMNS {
            lines.push_str("\n   ");
            width = 3;
        }
        lines.push_str(if lines.is_empty() { "" } else { " " });
        lines.push_str(word);
        width += word_width;
    }
    lines.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_a_server_do_not_reach_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\u{9b}c\u{7f}"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
        assert_eq!(plain("für {\"x\":1}"), "für {\"x\":1}");
    }
}
