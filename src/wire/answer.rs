//! What a publisher is answered, as values and as bytes.

use serde_json::Value;

use super::frame;
use super::refusal::{self, Ending, Failure};
use crate::event::{EventId, Parsed, Seq};

/// What a publisher wants to hear (`?ack=` of its URL).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AckMode {
    /// One answer a message.
    #[default]
    Each,
    /// One answer for all that was committed since the last; errors still one by one.
    Batch,
    /// No answer at all, not even to what is refused.
    None,
}

/// What the messages of one read will be answered once their batch is committed, in their order.
#[derive(Debug, Default)]
pub struct Answers(Vec<Answer>);

#[derive(Debug)]
enum Answer {
    /// So many single events without a `ref`, one after the other: the common case, kept short.
    Events(u32),
    Event {
        reference: Box<str>,
    },
    Array {
        len: u32,
    },
    Error {
        message: Box<str>,
        reference: Option<Box<str>>,
    },
}

/// Answers whose outcome is known: the number of the first event of their batch, or why there is none.
#[derive(Debug)]
pub struct Answered {
    pub outcome: Result<Seq, Failure>,
    pub answers: Answers,
}

/// What waits to leave a publisher's socket.
#[derive(Debug)]
pub enum ToPublisher {
    Answered(Answered),
    /// Frames as they are: pongs.
    Frames(Vec<u8>),
    /// Nothing more will be read; once everything is answered the socket ends so.
    End(Ending),
}

impl Answers {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Messages that will be answered.
    pub fn messages(&self) -> usize {
        self.0.iter().map(|answer| if let Answer::Events(n) = answer { *n as usize } else { 1 }).sum()
    }

    /// Bytes kept until the answers leave.
    pub fn bytes(&self) -> usize {
        let text = |answer: &Answer| match answer {
            Answer::Events(_) | Answer::Array { .. } => 0,
            Answer::Event { reference } => reference.len(),
            Answer::Error { message, reference } => message.len() + reference.as_ref().map_or(0, |r| r.len()),
        };
        self.0.iter().map(|answer| size_of::<Answer>() + text(answer)).sum()
    }

    /// Notes how a message was read: its events are in the batch, or it is refused.
    #[inline]
    pub fn note(&mut self, parsed: &Parsed<'_>) {
        match (&parsed.outcome, parsed.reference) {
            (Ok(None), None) => match self.0.last_mut() {
                Some(Answer::Events(n)) => *n += 1,
                _ => self.0.push(Answer::Events(1)),
            },
            (Ok(None), Some(reference)) => self.0.push(Answer::Event { reference: reference.into() }),
            (Ok(Some(len)), _) => self.0.push(Answer::Array { len: *len as u32 }),
            (Err(rejection), reference) => self.error(refusal::sentence(rejection), reference),
        }
    }

    /// Notes a message that held no events.
    pub fn error(&mut self, message: impl Into<Box<str>>, reference: Option<&str>) {
        self.0.push(Answer::Error { message: message.into(), reference: reference.map(Into::into) });
    }
}

/// Renders answers as WebSocket frames, one after the other, ready for one write.
#[derive(Debug, Default)]
pub struct AnswerWriter {
    mode: AckMode,
    /// In `AckMode::Batch`: events acknowledged but not yet told, and the last of them.
    untold: u64,
    last: Seq,
    text: Vec<u8>,
}

impl AnswerWriter {
    pub fn new(mode: AckMode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Appends the frames for `answered`.
    pub fn write(&mut self, answered: &Answered, out: &mut Vec<u8>) {
        if self.mode == AckMode::None {
            return;
        }
        let mut next = answered.outcome;
        for answer in &answered.answers.0 {
            match (answer, next) {
                (Answer::Error { message, reference }, _) => self.error(message, reference.as_deref(), out),
                (Answer::Events(n), Err(failure)) => (0..*n).for_each(|_| self.error(&failure.to_string(), None, out)),
                (Answer::Event { reference }, Err(failure)) => self.error(&failure.to_string(), Some(reference), out),
                (Answer::Array { .. }, Err(failure)) => self.error(&failure.to_string(), None, out),
                (Answer::Events(_) | Answer::Event { .. } | Answer::Array { .. }, Ok(first)) => {
                    let len = match answer {
                        Answer::Events(n) | Answer::Array { len: n } => *n,
                        _ => 1,
                    };
                    if self.mode == AckMode::Batch {
                        self.untold += u64::from(len);
                        self.last = first.plus(len as usize - 1);
                    } else {
                        self.stored(answer, first, out);
                    }
                    next = Ok(first.plus(len as usize));
                }
            }
        }
    }

    /// Appends what is still untold; call it once what was taken together is written.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.untold > 0 {
            let text = format!(r#"{{"status":"ok","count":{},"last_event_id":"{}"}}"#, self.untold, self.last.id());
            frame::text(out, text.as_bytes());
            self.untold = 0;
        }
    }

    fn stored(&mut self, answer: &Answer, first: Seq, out: &mut Vec<u8>) {
        match answer {
            Answer::Events(n) => {
                let mut template = OK_FRAME;
                for i in 0..*n as usize {
                    template[OK_DIGITS_AT..OK_DIGITS_AT + EventId::DIGITS]
                        .copy_from_slice(&first.plus(i).id().digits());
                    out.extend_from_slice(&template);
                }
            }
            Answer::Event { reference } => {
                let text = format!(r#"{{"status":"ok","event_id":"{}","ref":{reference}}}"#, first.id());
                frame::text(out, text.as_bytes());
            }
            Answer::Array { len } => {
                self.text.clear();
                self.text.extend_from_slice(br#"{"status":"ok","event_ids":["#);
                write_ids(first, *len as usize, &mut self.text);
                self.text.extend_from_slice(b"]}");
                frame::text(out, &self.text);
            }
            Answer::Error { .. } => {}
        }
    }

    fn error(&mut self, message: &str, reference: Option<&str>, out: &mut Vec<u8>) {
        // Answers stay in the order of their messages.
        self.finish(out);
        frame::text(out, error(message, reference).as_bytes());
    }
}

/// `{"status":"error","message":…}`, with the `ref` of the message if it had one.
pub fn error(message: &str, reference: Option<&str>) -> String {
    let message = Value::from(message);
    match reference {
        Some(reference) => format!(r#"{{"status":"error","message":{message},"ref":{reference}}}"#),
        None => format!(r#"{{"status":"error","message":{message}}}"#),
    }
}

/// Appends the ids of `len` events, quoted, with commas between them.
pub fn write_ids(first: Seq, len: usize, out: &mut Vec<u8>) {
    for i in 0..len {
        out.extend_from_slice(if i == 0 { b"\"evt_" } else { b",\"evt_" });
        out.extend_from_slice(&first.plus(i).id().digits());
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
        let refused = Rejection { index: None, fault: Fault::BadSource };
        let mut answers = Answers::default();
        for parsed in [
            Parsed { reference: None, outcome: Ok(None) },
            Parsed { reference: None, outcome: Ok(None) },
            Parsed { reference: None, outcome: Err(refused) },
            Parsed { reference: Some("7"), outcome: Ok(None) },
            Parsed { reference: None, outcome: Ok(Some(2)) },
        ] {
            answers.note(&parsed);
        }
        answers
    }

    fn written(mode: AckMode, outcome: Result<Seq, Failure>) -> Vec<String> {
        let (mut writer, mut out) = (AnswerWriter::new(mode), Vec::new());
        writer.write(&Answered { outcome, answers: answers() }, &mut out);
        writer.finish(&mut out);
        texts(&out)
    }

    #[test]
    fn each_message_gets_its_answer_in_its_place() {
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
    fn a_batch_is_acknowledged_at_once_but_for_its_errors() {
        let batch = written(AckMode::Batch, Ok(Seq(10)));
        assert_eq!(batch[0], r#"{"status":"ok","count":2,"last_event_id":"evt_00000000000b"}"#);
        assert!(batch[1].starts_with(r#"{"status":"error""#));
        assert_eq!(batch[2], r#"{"status":"ok","count":3,"last_event_id":"evt_00000000000e"}"#);
        assert_eq!(batch.len(), 3);
    }
}
