//! A recorded class: what was sent, when, and in which session; and copies of it with ids of their own.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::value::RawValue;

/// A class of 56 students and 16 exam timers, three minutes long.
pub const CLASSROOM: &str = include_str!("../../data/classroom.ndjson");

/// The pause between the last event of a recording and the first one of its repetition.
const PAUSE: Duration = Duration::from_secs(1);

/// A recording: at least one event, in the order of time.
pub struct Recording {
    /// The ids of all sessions, in the order of their first events.
    pub sessions: Vec<String>,
    pub events: Vec<Recorded>,
}

/// One event, as a template that can be written for any class.
pub struct Recorded {
    /// Since the recording began.
    pub offset: Duration,
    /// Which of the recording's sessions it belongs to.
    pub session: usize,
    /// The size of its payload.
    pub payload_bytes: u32,
    /// As it was sent, byte for byte but for its ids.
    pub sent: Template,
    /// As it is delivered, without its id and its timestamp.
    pub delivered: Template,
}

/// A text in pieces, between which the mark of a class is written: so the ids of the recording become ids of that
/// class.
#[derive(Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Box<str>>,
}

/// The mark that makes an id of the recording an id of this class.
pub fn mark(class: usize) -> String {
    format!("@{class}")
}

impl Recording {
    /// Reads one event a line: `{"offset_ms": …, "event": {…}}`. Each belongs to a session, and none comes before
    /// the one above it.
    ///
    /// # Errors
    /// Names the line that is not so.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut recording = Self { sessions: Vec::new(), events: Vec::new() };
        let mut numbers = HashMap::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            recording.add(line, &mut numbers).with_context(|| format!("line {number} of the recording"))?;
        }
        ensure!(!recording.events.is_empty(), "the recording is empty");
        Ok(recording)
    }

    fn add(&mut self, line: &str, numbers: &mut HashMap<String, usize>) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Line<'t> {
            offset_ms: u64,
            #[serde(borrow)]
            event: &'t RawValue,
        }
        #[derive(Deserialize)]
        struct Fields<'t> {
            event_type: String,
            source: String,
            #[serde(borrow)]
            session_id: &'t RawValue,
            #[serde(borrow)]
            user_id: Option<&'t RawValue>,
            #[serde(borrow)]
            payload: Option<&'t RawValue>,
        }
        let Line { offset_ms, event } = serde_json::from_str(line)?;
        let offset = Duration::from_millis(offset_ms);
        ensure!(self.events.last().is_none_or(|last| last.offset <= offset), "is earlier than the line above it");
        let event = event.get();
        let Fields { event_type, source, session_id, user_id, payload } = serde_json::from_str(event)?;
        let session_id = plain_string(session_id.get())?;
        let user_id = user_id.map(|user| plain_string(user.get())).transpose()?;
        let session = *numbers.entry(session_id.to_owned()).or_insert_with(|| {
            self.sessions.push(session_id.to_owned());
            self.sessions.len() - 1
        });
        // Both are slices of the event, so that their addresses tell where they end in it.
        let end = |id: &str| id.as_ptr().addr() + id.len() - event.as_ptr().addr();
        let mut ends = [Some(end(session_id)), user_id.map(end)].into_iter().flatten().collect::<Vec<_>>();
        ends.sort_unstable();
        let payload = payload.map_or("{}".to_owned(), |payload| compact(payload.get()));
        let (event_type, source) = (serde_json::to_string(&event_type)?, serde_json::to_string(&source)?);
        let before = format!(r#""event_type":{event_type},"source":{source},"session_id":"{session_id}"#);
        let after = format!(r#","payload":{payload}"#);
        let delivered = match user_id {
            Some(user) => vec![before, format!(r#"","user_id":"{user}"#), format!(r#""{after}"#)],
            None => vec![before, format!(r#"","user_id":null{after}"#)],
        };
        self.events.push(Recorded {
            offset,
            session,
            payload_bytes: payload.len() as u32,
            sent: Template::cut(event, &ends),
            delivered: Template { pieces: delivered.into_iter().map(Into::into).collect() },
        });
        Ok(())
    }

    /// The sizes of the payloads that are there, each as often as it occurs.
    pub fn payload_bytes(&self) -> Vec<u32> {
        self.events.iter().map(|event| event.payload_bytes).collect()
    }

    /// From an event to its repetition.
    pub fn lap(&self) -> Duration {
        self.events.last().expect("at least one event").offset + PAUSE
    }

    /// The first event that was sent this long after the recording began, or later; the first of all if there is none.
    pub fn first_from(&self, offset: Duration) -> usize {
        self.events.partition_point(|event| event.offset < offset) % self.events.len()
    }

    /// Divides the events among `hands`, by session. Each gets its events in the order of the recording, beginning with
    /// event number `from`; after the last event comes the first.
    pub fn deal(&self, from: usize, hands: usize, hand_of: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
        let mut dealt = vec![Vec::new(); hands];
        (from..self.events.len()).chain(0..from).for_each(|event| {
            dealt[hand_of(self.events[event].session)].push(event);
        });
        dealt
    }
}

/// What stands between the quotation marks.
fn plain_string(json: &str) -> anyhow::Result<&str> {
    let inner = json.strip_prefix('"').and_then(|json| json.strip_suffix('"'));
    match inner {
        Some(id) if !id.is_empty() && !id.contains('\\') => Ok(id),
        _ => bail!("{json} is not an id: a string without escapes"),
    }
}

/// JSON without the whitespace that means nothing.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|c| {
            if in_string {
                (in_string, escaped) = (escaped || *c != '"', !escaped && *c == '\\');
                return true;
            }
            in_string = *c == '"';
            !c.is_ascii_whitespace()
        })
        .collect()
}

impl Template {
    /// A text cut at the offsets where marks belong.
    fn cut(text: &str, offsets: &[usize]) -> Self {
        let starts = [0].into_iter().chain(offsets.iter().copied());
        let ends = offsets.iter().copied().chain([text.len()]);
        Self { pieces: starts.zip(ends).map(|(start, end)| text[start..end].into()).collect() }
    }

    /// Appends the text about the class with this mark.
    pub fn write(&self, out: &mut Vec<u8>, mark: &str) {
        for (i, piece) in self.pieces.iter().enumerate() {
            if i > 0 {
                out.extend_from_slice(mark.as_bytes());
            }
            out.extend_from_slice(piece.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"
{"offset_ms":10,"event":{"event_type":"quiz_started","source":"s","session_id":"one","user_id":"u","payload":{"a": "x y" }}}

{"offset_ms":30,"event": {"user_id":"v","event_type":"timer_tick","session_id":"two","source":"s"}}
"#;

    #[test]
    fn the_recorded_class_of_the_repository_is_read_completely() {
        let recording = Recording::parse(CLASSROOM).expect("a recording");
        assert_eq!((recording.events.len(), recording.sessions.len()), (6_571, 72));
        assert_eq!(recording.lap(), Duration::from_millis(175_333) + PAUSE);
        for (line, event) in CLASSROOM.lines().zip(&recording.events) {
            let mut sent = Vec::new();
            event.sent.write(&mut sent, "");
            assert!(line.ends_with(&format!(r#""event":{}}}"#, String::from_utf8_lossy(&sent))), "{line}");
            // This recording is spelled as the server spells.
            let mut delivered = Vec::new();
            event.delivered.write(&mut delivered, "");
            let delivered = String::from_utf8(delivered).expect("UTF-8").replace(r#""user_id":null,"#, "");
            assert_eq!(String::from_utf8_lossy(&sent), format!("{{{delivered}}}"));
        }
    }

    #[test]
    fn a_class_differs_in_its_ids_alone() {
        let recording = Recording::parse(TWO).expect("a recording");
        let text = |template: &Template| {
            let mut out = Vec::new();
            template.write(&mut out, &mark(7));
            String::from_utf8(out).expect("UTF-8")
        };
        let [one, two] = &*recording.events else { panic!("two events") };
        assert_eq!(
            text(&one.sent),
            r#"{"event_type":"quiz_started","source":"s","session_id":"one@7","user_id":"u@7","payload":{"a": "x y" }}"#
        );
        assert_eq!(
            text(&one.delivered),
            r#""event_type":"quiz_started","source":"s","session_id":"one@7","user_id":"u@7","payload":{"a":"x y"}"#
        );
        assert_eq!(text(&two.sent), r#"{"user_id":"v@7","event_type":"timer_tick","session_id":"two@7","source":"s"}"#);
        assert_eq!(
            text(&two.delivered),
            r#""event_type":"timer_tick","source":"s","session_id":"two@7","user_id":"v@7","payload":{}"#
        );
    }

    #[test]
    fn a_recording_that_cannot_be_copied_is_refused() {
        let event = |fields: &str| format!(r#"{{"offset_ms":5,"event":{{"event_type":"t","source":"s"{fields}}}}}"#);
        let good = event(r#","session_id":"a""#);
        assert!(Recording::parse(&good).is_ok());
        let earlier = good.replace('5', "4");
        for (text, expected) in [
            (String::new(), "the recording is empty"),
            (event(""), "line 1 of the recording: missing field `session_id`"),
            (event(r#","session_id":null"#), "line 1 of the recording: null is not an id"),
            (event(r#","session_id":"\u0061""#), r#"line 1 of the recording: "\u0061" is not an id"#),
            (format!("{good}\n{earlier}"), "line 2 of the recording: is earlier than the line above it"),
        ] {
            let error = Recording::parse(&text).err().expect("an error");
            assert!(format!("{error:#}").starts_with(expected), "{error:#}");
        }
    }

    #[test]
    fn whitespace_outside_strings_is_removed() {
        assert_eq!(compact("{ \"a b\\\" c\" :\n[1, 2,\t\"\\\\\" ] }"), r#"{"a b\" c":[1,2,"\\"]}"#);
    }

    #[test]
    fn each_event_is_dealt_once_and_in_order() {
        let recording = Recording::parse(CLASSROOM).expect("a recording");
        let count = recording.events.len();
        for from in [0, 1, 3_000, count - 1] {
            let hands = recording.deal(from, 5, |session| session % 5);
            for (number, hand) in hands.iter().enumerate() {
                assert!(hand.is_sorted_by_key(|event| (event + count - from) % count));
                assert!(hand.iter().all(|event| recording.events[*event].session % 5 == number));
            }
            let mut all = hands.concat();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..count));
        }
        assert_eq!(recording.first_from(Duration::ZERO), 0);
        assert_eq!(recording.first_from(recording.lap()), 0);
        assert_eq!(recording.first_from(recording.events[3_000].offset), 3_000);
    }
}
