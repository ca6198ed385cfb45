//! What a publisher is answered, as values and as bytes.

use std::ops::Range;

use serde_json::Value;

use super::frame;
use super::refusal::{self, Ending};
use crate::event::{EventId, Parsed, Seq};
use crate::record::{AckLevel, Failure, Outcome, Outcomes};

/// How a publisher's messages are answered (`?ack=` of its URL).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AckMode {
    /// One answer for each message.
    #[default]
    Each,
    /// One answer for all events committed since the last answer, and one for each error.
    Batch,
    /// No answer, not even an error.
    None,
}

/// The words of `?ack=`, separated by commas: at most one mode and at most one level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ack {
    pub mode: AckMode,
    pub level: Option<AckLevel>,
}

impl Ack {
    pub fn parse(words: &str) -> Result<Self, String> {
        let (mut mode, mut level) = (None, None);
        for word in words.split(',') {
            let known_mode = match word {
                "each" => Some(AckMode::Each),
                "batch" => Some(AckMode::Batch),
                "none" => Some(AckMode::None),
                _ => None,
            };
            let known_level = AckLevel::ALL.into_iter().find(|level| level.name() == word);
            let is_new = known_mode.is_some() && mode.is_none() || known_level.is_some() && level.is_none();
            if !is_new {
                let levels = AckLevel::ALL.map(AckLevel::name).join(", ");
                return Err(format!("'ack' must be one of {levels}, and for a WebSocket one of each, batch, none"));
            }
            (mode, level) = (mode.or(known_mode), level.or(known_level));
        }
        Ok(Self { mode: mode.unwrap_or_default(), level })
    }
}

/// The answers to the messages of one read, in their order. They are written once the outcomes of the batch are known.
#[derive(Debug, Default)]
pub struct Answers(Vec<Answer>);

#[derive(Debug)]
enum Answer {
    /// The count of neighbouring messages with one event and no `ref`. This is the common case, so it takes 4 bytes.
    Events(u32),
    Event {
        reference: Box<str>,
    },
    Array {
        len: u32,
    },
    Error {
        reason: &'static str,
        message: Box<str>,
        reference: Option<Box<str>>,
    },
}

/// Answers, and the outcomes of their events.
#[derive(Debug)]
pub struct Answered {
    pub outcomes: Result<Outcomes, Failure>,
    pub answers: Answers,
}

/// What waits to be sent on a publisher's socket.
#[derive(Debug)]
pub enum ToPublisher {
    Answered(Answered),
    /// A whole frame: a ping or a pong.
    Frame(Vec<u8>),
    /// Nothing more is read. The socket is closed for this reason once everything is answered.
    End(Ending),
}

impl Answers {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Events in flight, and messages without an event, which count as one.
    pub fn in_flight(&self) -> usize {
        let count = |answer: &Answer| match answer {
            Answer::Events(len) | Answer::Array { len } => *len as usize,
            Answer::Event { .. } | Answer::Error { .. } => 1,
        };
        self.0.iter().map(count).sum()
    }

    /// Memory that the answers take until they are sent.
    pub fn bytes(&self) -> usize {
        let text = |answer: &Answer| match answer {
            Answer::Events(_) | Answer::Array { .. } => 0,
            Answer::Event { reference } => reference.len(),
            Answer::Error { message, reference, .. } => message.len() + reference.as_ref().map_or(0, |r| r.len()),
        };
        self.0.iter().map(|answer| size_of::<Answer>() + text(answer)).sum()
    }

    /// Adds the answer to a parsed message: its events are in the batch, or it is refused.
    #[inline]
    pub fn note(&mut self, parsed: &Parsed<'_>) {
        match (&parsed.result, parsed.reference) {
            (Ok(None), None) => match self.0.last_mut() {
                Some(Answer::Events(n)) => *n += 1,
                _ => self.0.push(Answer::Events(1)),
            },
            (Ok(None), Some(reference)) => self.0.push(Answer::Event { reference: reference.into() }),
            (Ok(Some(len)), _) => self.0.push(Answer::Array { len: *len as u32 }),
            (Err(rejections), reference) => {
                let first = rejections.first().expect("a refused message has a rejection");
                self.error("invalid", refusal::sentence(first), reference);
            }
        }
    }

    /// Adds the answer to a message without an event. `reason` is the problem type that a request would get
    /// ([`Refusal::slug`](super::Refusal::slug)).
    pub fn error(&mut self, reason: &'static str, message: impl Into<Box<str>>, reference: Option<&str>) {
        self.0.push(Answer::Error { reason, message: message.into(), reference: reference.map(Into::into) });
    }

    /// Why messages are refused, once for each.
    pub fn reasons(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter_map(|answer| match answer {
            Answer::Error { reason, .. } => Some(*reason),
            Answer::Events(_) | Answer::Event { .. } | Answer::Array { .. } => None,
        })
    }
}

/// Renders answers as WebSocket frames, one after the other, for one write.
#[derive(Debug, Default)]
pub struct AnswerWriter {
    ack: Ack,
    /// In `AckMode::Batch`: how many events the next answer acknowledges, the last of them, and the lowest of their levels.
    pending: u64,
    last: Seq,
    level: Option<AckLevel>,
    text: Vec<u8>,
}

impl AnswerWriter {
    pub fn new(ack: Ack) -> Self {
        Self { ack, ..Self::default() }
    }

    /// Appends the frames for `answered`.
    pub fn write(&mut self, answered: &Answered, out: &mut Vec<u8>) {
        if self.ack.mode == AckMode::None {
            return;
        }
        let mut next = 0;
        for answer in &answered.answers.0 {
            let (len, reference) = match answer {
                Answer::Error { message, reference, .. } => {
                    self.error(message, reference.as_deref(), out);
                    continue;
                }
                Answer::Events(len) => (*len as usize, None),
                Answer::Event { reference } => (1, Some(&**reference)),
                Answer::Array { len } => (*len as usize, None),
            };
            let events = next..next + len;
            next += len;
            match (&answered.outcomes, answer) {
                (Err(failure), Answer::Events(_)) => {
                    events.for_each(|_| self.error(&failure.to_string(), None, out));
                }
                (Err(failure), _) => self.error(&failure.to_string(), reference, out),
                (Ok(outcomes), _) if self.ack.mode == AckMode::Batch => self.gather(outcomes, answer, events, out),
                (Ok(Outcomes::From(first, _)), Answer::Events(_)) if self.ack.level.is_none() => {
                    stored_in_a_row(first.plus(events.start), len, out);
                }
                (Ok(outcomes), Answer::Events(_)) => {
                    events.for_each(|event| self.one(outcomes, event, None, out));
                }
                (Ok(outcomes), Answer::Array { .. }) => self.many(outcomes, events, out),
                (Ok(outcomes), _) => self.one(outcomes, events.start, reference, out),
            }
        }
    }

    /// Appends the answer to the events that are pending. Call it once everything that was taken together is written.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.pending > 0 {
            let count = self.pending;
            let last = (self.last > Seq::ZERO).then(|| format!(r#","last_event_id":"{}""#, self.last.id()));
            let level = self.level.take();
            let ack = self.named(level);
            let text = format!(r#"{{"status":"ok","count":{count}{}{ack}}}"#, last.unwrap_or_default());
            frame::text(out, text.as_bytes());
            (self.pending, self.last) = (0, Seq::ZERO);
        }
    }

    /// The JSON of the level that was reached, if the publisher asked for a level.
    fn named(&self, level: Option<AckLevel>) -> String {
        let level = level.filter(|_| self.ack.level.is_some());
        level.map_or(String::new(), |level| format!(r#","ack":"{}""#, level.name()))
    }

    /// Adds the events of a message to those that are pending. Refused ones are answered now.
    fn gather(&mut self, outcomes: &Outcomes, answer: &Answer, events: Range<usize>, out: &mut Vec<u8>) {
        let (is_array, first) = (matches!(answer, Answer::Array { .. }), events.start);
        for event in events {
            match outcomes.of(event) {
                Some(Outcome::Refused(index)) => {
                    let is_first_of_message =
                        !is_array || event == 0 || outcomes.of(event - 1) != Some(Outcome::Refused(index));
                    if is_first_of_message {
                        self.error(&key_reused(is_array.then_some(index)), None, out);
                    }
                    continue;
                }
                Some(Outcome::Damaged) => {
                    if event == first {
                        self.error(&Failure::Damaged.to_string(), None, out);
                    }
                    continue;
                }
                Some(Outcome::Stored(seq) | Outcome::Replayed(seq)) => self.last = self.last.max(seq),
                None => {}
            }
            self.pending += 1;
            let level = outcomes.level();
            self.level = Some(self.level.map_or(level, |least| least.min(level)));
        }
    }

    fn one(&mut self, outcomes: &Outcomes, event: usize, reference: Option<&str>, out: &mut Vec<u8>) {
        let (id, replayed) = match outcomes.of(event) {
            Some(Outcome::Refused(_)) => return self.error(&key_reused(None), reference, out),
            Some(Outcome::Damaged) => return self.error(&Failure::Damaged.to_string(), reference, out),
            Some(Outcome::Stored(seq)) => (format!(r#","event_id":"{}""#, seq.id()), ""),
            Some(Outcome::Replayed(seq)) => (format!(r#","event_id":"{}""#, seq.id()), r#","replayed":true"#),
            None => (String::new(), ""),
        };
        let ack = self.named(Some(outcomes.level()));
        let reference = reference.map_or(String::new(), |reference| format!(r#","ref":{reference}"#));
        frame::text(out, format!(r#"{{"status":"ok"{id}{replayed}{ack}{reference}}}"#).as_bytes());
    }

    fn many(&mut self, outcomes: &Outcomes, events: Range<usize>, out: &mut Vec<u8>) {
        let each = events.clone().map(|event| outcomes.of(event));
        match each.clone().next().flatten() {
            Some(Outcome::Refused(index)) => return self.error(&key_reused(Some(index)), None, out),
            Some(Outcome::Damaged) => return self.error(&Failure::Damaged.to_string(), None, out),
            Some(Outcome::Stored(_) | Outcome::Replayed(_)) | None => {}
        }
        let replayed = each.clone().filter(|outcome| matches!(outcome, Some(Outcome::Replayed(_)))).count();
        self.text.clear();
        self.text.extend_from_slice(br#"{"status":"ok""#);
        match outcomes {
            Outcomes::Queued => self.text.extend_from_slice(format!(r#","count":{}"#, events.len()).as_bytes()),
            _ => {
                self.text.extend_from_slice(br#","event_ids":["#);
                let numbers = each.filter_map(|outcome| match outcome {
                    Some(Outcome::Stored(seq) | Outcome::Replayed(seq)) => Some(seq),
                    Some(Outcome::Refused(_) | Outcome::Damaged) | None => None,
                });
                write_ids(numbers, &mut self.text);
                self.text.push(b']');
            }
        }
        if replayed > 0 {
            self.text.extend_from_slice(format!(r#","replayed":{replayed}"#).as_bytes());
        }
        let ack = self.named(Some(outcomes.level()));
        self.text.extend_from_slice(ack.as_bytes());
        self.text.push(b'}');
        frame::text(out, &self.text);
    }

    fn error(&mut self, message: &str, reference: Option<&str>, out: &mut Vec<u8>) {
        // Answers stay in the order of their messages, so the pending events come first.
        self.finish(out);
        frame::text(out, error(message, reference).as_bytes());
    }
}

/// The common case: nothing but the id has to be said of each event.
fn stored_in_a_row(first: Seq, len: usize, out: &mut Vec<u8>) {
    let mut template = OK_FRAME;
    for i in 0..len {
        template[OK_DIGITS_AT..OK_DIGITS_AT + EventId::DIGITS].copy_from_slice(&first.plus(i).id().digits());
        out.extend_from_slice(&template);
    }
}

/// The text for a client that used an idempotency key for another event; in an array it names the index.
pub fn key_reused(index: Option<usize>) -> String {
    let of = index.map_or(String::new(), |index| format!("Event {index}: "));
    format!("{of}The idempotency key was used for another event")
}

/// `{"status":"error","message":…}`, with the `ref` of the message if it had one.
pub fn error(message: &str, reference: Option<&str>) -> String {
    let message = Value::from(message);
    match reference {
        Some(reference) => format!(r#"{{"status":"error","message":{message},"ref":{reference}}}"#),
        None => format!(r#"{{"status":"error","message":{message}}}"#),
    }
}

/// Appends the ids of events, quoted, with commas between them.
pub fn write_ids(seqs: impl IntoIterator<Item = Seq>, out: &mut Vec<u8>) {
    for (i, seq) in seqs.into_iter().enumerate() {
        out.extend_from_slice(if i == 0 { b"\"evt_" } else { b",\"evt_" });
        out.extend_from_slice(&seq.id().digits());
        out.push(b'"');
    }
}

/// The frame of an acknowledgement: a final text frame of 45 bytes.
const OK_FRAME: [u8; 47] = *b"\x81\x2d{\"status\":\"ok\",\"event_id\":\"evt_000000000000\"}";
const OK_DIGITS_AT: usize = OK_FRAME.len() - 2 - EventId::DIGITS;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Fault, Rejection};

    fn texts(mut frames: &[u8]) -> Vec<String> {
        let mut texts = Vec::new();
        while let [0x81, len, ..] = *frames {
            let (head, len) = match len {
                126 => (4, usize::from(u16::from_be_bytes([frames[2], frames[3]]))),
                len => (2, usize::from(len)),
            };
            texts.push(String::from_utf8(frames[head..head + len].to_vec()).expect("UTF-8"));
            frames = &frames[head + len..];
        }
        assert!(frames.is_empty());
        texts
    }

    fn answers() -> Answers {
        let refused = vec![Rejection { index: None, fault: Fault::BadSource }];
        let mut answers = Answers::default();
        for parsed in [
            Parsed { reference: None, result: Ok(None) },
            Parsed { reference: None, result: Ok(None) },
            Parsed { reference: None, result: Err(refused) },
            Parsed { reference: Some("7"), result: Ok(None) },
            Parsed { reference: None, result: Ok(Some(2)) },
        ] {
            answers.note(&parsed);
        }
        answers
    }

    fn written(mode: AckMode, first: Result<Seq, Failure>) -> Vec<String> {
        let (mut writer, mut out) = (AnswerWriter::new(Ack { mode, level: None }), Vec::new());
        let outcomes = first.map(|first| Outcomes::From(first, AckLevel::Synced));
        writer.write(&Answered { outcomes, answers: answers() }, &mut out);
        writer.finish(&mut out);
        texts(&out)
    }

    #[test]
    fn every_event_of_an_array_is_in_flight() {
        assert_eq!(answers().in_flight(), 6);
    }

    #[test]
    fn answers_come_in_the_order_of_their_messages() {
        let each = written(AckMode::Each, Ok(Seq(10)));
        assert_eq!(each[0], r#"{"status":"ok","event_id":"evt_00000000000a"}"#);
        assert_eq!(each[1], r#"{"status":"ok","event_id":"evt_00000000000b"}"#);
        assert!(each[2].starts_with(r#"{"status":"error","message":"Field 'source'"#));
        assert_eq!(each[3], r#"{"status":"ok","event_id":"evt_00000000000c","ref":7}"#);
        assert_eq!(each[4], r#"{"status":"ok","event_ids":["evt_00000000000d","evt_00000000000e"]}"#);
        assert_eq!(each.len(), 5);
        let failed = written(AckMode::Each, Err(Failure::StorageFull));
        assert_eq!(failed.len(), 5);
        assert_eq!(failed[3], r#"{"status":"error","message":"The disk is full, try again later","ref":7}"#);
        assert!(written(AckMode::None, Ok(Seq(10))).is_empty());
    }

    #[test]
    fn in_batch_mode_events_share_an_answer_and_each_error_has_its_own() {
        let batch = written(AckMode::Batch, Ok(Seq(10)));
        assert_eq!(batch[0], r#"{"status":"ok","count":2,"last_event_id":"evt_00000000000b"}"#);
        assert!(batch[1].starts_with(r#"{"status":"error""#));
        assert_eq!(batch[2], r#"{"status":"ok","count":3,"last_event_id":"evt_00000000000e"}"#);
        assert_eq!(batch.len(), 3);
    }

    fn texts_for(ack: &str, outcomes: Outcomes) -> Vec<String> {
        let ack = Ack::parse(ack).expect("words");
        let (mut writer, mut out) = (AnswerWriter::new(ack), Vec::new());
        writer.write(&Answered { outcomes: Ok(outcomes), answers: answers() }, &mut out);
        writer.finish(&mut out);
        texts(&out)
    }

    #[test]
    fn a_publisher_that_asks_for_a_level_is_told_the_level_reached() {
        let each = texts_for("stored", Outcomes::From(Seq(10), AckLevel::Synced));
        assert_eq!(each[0], r#"{"status":"ok","event_id":"evt_00000000000a","ack":"synced"}"#);
        assert_eq!(each[3], r#"{"status":"ok","event_id":"evt_00000000000c","ack":"synced","ref":7}"#);
        assert!(each[4].ends_with(r#""],"ack":"synced"}"#), "{}", each[4]);
        let queued = texts_for("queued,each", Outcomes::Queued);
        assert_eq!(queued[0], r#"{"status":"ok","ack":"queued"}"#);
        assert_eq!(queued[3], r#"{"status":"ok","ack":"queued","ref":7}"#);
        assert_eq!(queued[4], r#"{"status":"ok","count":2,"ack":"queued"}"#);
        let batch = texts_for("batch,queued", Outcomes::Queued);
        assert_eq!(batch[0], r#"{"status":"ok","count":2,"ack":"queued"}"#);
    }

    #[test]
    fn a_replayed_event_is_acknowledged_as_replayed() {
        let (stored, replayed, refused) =
            (|n| Outcome::Stored(Seq(n)), |n| Outcome::Replayed(Seq(n)), Outcome::Refused(1));
        let outcomes = |each: [Outcome; 5]| Outcomes::Each(each.into(), AckLevel::Synced);
        let each = texts_for("each", outcomes([stored(10), replayed(3), refused, replayed(2), stored(11)]));
        assert_eq!(each[0], r#"{"status":"ok","event_id":"evt_00000000000a"}"#);
        assert_eq!(each[1], r#"{"status":"ok","event_id":"evt_000000000003","replayed":true}"#);
        assert_eq!(each[3], r#"{"status":"error","message":"The idempotency key was used for another event","ref":7}"#);
        assert_eq!(each[4], r#"{"status":"ok","event_ids":["evt_000000000002","evt_00000000000b"],"replayed":1}"#);
        let each = texts_for("each", outcomes([stored(10), stored(11), stored(12), refused, refused]));
        assert_eq!(
            each[4],
            r#"{"status":"error","message":"Event 1: The idempotency key was used for another event"}"#
        );
        let batch = texts_for("batch", outcomes([stored(10), replayed(3), refused, stored(11), stored(12)]));
        assert_eq!(batch[0], r#"{"status":"ok","count":2,"last_event_id":"evt_00000000000a"}"#);
        assert!(batch[1].contains("Field 'source'") && batch[2].contains("idempotency key"), "{batch:?}");
        assert_eq!(batch[3], r#"{"status":"ok","count":2,"last_event_id":"evt_00000000000c"}"#);
    }

    #[test]
    fn only_the_words_of_acknowledgements_are_accepted() {
        let ack = |mode, level| Ok(Ack { mode, level });
        assert_eq!(Ack::parse("each"), ack(AckMode::Each, None));
        assert_eq!(Ack::parse("stored,batch"), ack(AckMode::Batch, Some(AckLevel::Stored)));
        for bad in ["", "soon", "each,none", "stored,synced", "each,", "Each"] {
            assert!(Ack::parse(bad).is_err(), "{bad}");
        }
    }
}
