//! The protocol of NATS, as far as a load needs it: commands out, operations in, nothing allocated.

use anyhow::{anyhow, bail};
use serde::Deserialize;

use crate::replies::{number, replies};

/// What we call ourselves. Nothing is confirmed (`verbose`) but what is stored, and nothing is checked twice.
pub const CONNECT: &[u8] =
    b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"1\",\"name\":\"loadtest\"}\r\n";

/// What a server answers with `PONG`, once it has handled everything before.
pub const PING: &[u8] = b"PING\r\n";

/// Something a server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// A message of a subscription.
    Message(&'a [u8]),
    Pong,
}

/// Appends a message for a subject. Whoever has taken it in answers to `reply`.
pub fn publish(out: &mut Vec<u8>, subject: &str, reply: Option<&str>, message: &[u8]) {
    let (reply, space) = reply.map_or(("", ""), |reply| (reply, " "));
    out.extend_from_slice(format!("PUB {subject} {reply}{space}{}\r\n", message.len()).as_bytes());
    out.extend_from_slice(message);
    out.extend_from_slice(b"\r\n");
}

/// Appends a subscription.
pub fn subscribe(out: &mut Vec<u8>, subject: &str) {
    out.extend_from_slice(format!("SUB {subject} 1\r\n").as_bytes());
}

/// Visits the operations in what a server sent, answers its pings, and returns how many bytes are used up.
///
/// # Errors
/// An error that the server reports, what is no operation, or what `visit` says.
#[inline]
pub fn operations<'a>(
    bytes: &'a [u8],
    out: &mut Vec<u8>,
    mut visit: impl FnMut(Operation<'a>) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    replies(bytes, |reader| {
        let line = reader.line()?;
        match line {
            [b'M', b'S', b'G', b' ', words @ ..] => {
                let length = words.rsplit(|byte| *byte == b' ').next().and_then(number);
                let length = length.ok_or_else(|| reader.unexpected())?;
                visit(Operation::Message(reader.text(length)?))?;
            }
            b"PING" => out.extend_from_slice(b"PONG\r\n"),
            b"PONG" => visit(Operation::Pong)?,
            b"+OK" => {}
            _ if line.starts_with(b"INFO ") => {}
            [b'-', b'E', b'R', b'R', b' ', error @ ..] => {
                return Err(anyhow!("the server reports {}", String::from_utf8_lossy(error)).into());
            }
            _ => return Err(reader.unexpected()),
        }
        Ok(())
    })
}

/// What JetStream answers to a message: its sequence number in the stream, or why it was refused.
#[inline]
pub fn acknowledgement(message: &[u8]) -> anyhow::Result<Result<u64, String>> {
    #[derive(Deserialize)]
    struct Answer {
        seq: Option<u64>,
        error: Option<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        description: String,
    }
    if let Some(sequence) = sequence(message) {
        return Ok(Ok(sequence));
    }
    let answer = serde_json::from_slice::<Answer>(message).ok();
    match answer {
        Some(Answer { error: Some(error), .. }) => Ok(Err(error.description)),
        Some(Answer { seq: Some(sequence), .. }) => Ok(Ok(sequence)),
        _ => bail!("{:?} is not an acknowledgement", String::from_utf8_lossy(message)),
    }
}

/// The number at the end of an acknowledgement in the usual spelling.
#[inline]
fn sequence(message: &[u8]) -> Option<u64> {
    let rest = message.strip_suffix(b"}")?.strip_prefix(br#"{"stream":""#)?;
    let (before, digits) = rest.split_at(rest.iter().rposition(|byte| *byte == b':')? + 1);
    before.ends_with(br#""seq":"#).then(|| number(digits))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use loadtest::in_two_pieces;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[test]
    fn commands_are_rendered() {
        let mut out = Vec::new();
        subscribe(&mut out, "_INBOX.1");
        publish(&mut out, "events", Some("_INBOX.1"), b"{}");
        publish(&mut out, "events", None, b"");
        assert_eq!(text(&out), "SUB _INBOX.1 1\r\nPUB events _INBOX.1 2\r\n{}\r\nPUB events 0\r\n\r\n");
    }

    #[test]
    fn operations_are_whole_wherever_they_are_cut() {
        let bytes = b"INFO {\"version\":\"2.9.10\"} \r\nPONG\r\n+OK\r\nMSG events 1 4\r\na\r\nb\r\n\
            MSG _INBOX.1 1  2\r\n{}\r\nMSG events 1 _INBOX.1 0\r\n\r\nPING\r\n";
        let take = |bytes: &[u8], seen: &mut Vec<String>| {
            let mut out = Vec::new();
            let used = operations(bytes, &mut out, |operation| {
                seen.push(match operation {
                    Operation::Message(message) => text(message),
                    Operation::Pong => "pong".to_owned(),
                });
                Ok(())
            });
            seen.extend((!out.is_empty()).then(|| text(&out)));
            used.expect("operations")
        };
        in_two_pieces(bytes, &["pong", "a\r\nb", "{}", "", "PONG\r\n"], take);
    }

    #[test]
    fn errors_of_the_server_and_of_the_protocol_are_reported() {
        let check = |bytes: &[u8], fault: &str| {
            let error = operations(bytes, &mut Vec::new(), |_| Ok(())).expect_err(fault);
            assert_eq!(error.to_string(), fault);
        };
        check(b"-ERR 'Unknown Protocol Operation'\r\n", "the server reports 'Unknown Protocol Operation'");
        for bytes in ["HTTP/1.1 200\r\n", "MSG events 1 x\r\n", "MSG events 1 2\r\nabc\r\n"] {
            check(bytes.as_bytes(), &format!("the server sent what was not expected: {bytes:?}"));
        }
    }

    #[test]
    fn acknowledgements_are_read_in_every_spelling() {
        let check = |text: &str, expected: Result<u64, &str>| {
            let answer = acknowledgement(text.as_bytes()).expect(text);
            assert_eq!(answer, expected.map_err(str::to_owned), "{text}");
        };
        check(r#"{"stream":"EVENTS","seq":42}"#, Ok(42));
        check(r#"{"stream":"EVENTS", "seq":42}"#, Ok(42));
        check(r#"{"seq": 42, "stream": "EVENTS", "domain": "a"}"#, Ok(42));
        check(r#"{"error":{"code":503,"description":"no space"},"stream":"EVENTS","seq":0}"#, Err("no space"));
        for text in ["", "{}", r#"{"stream":"EVENTS","seq":}"#, r#"{"stream":"EVENTS","no_seq":7x}"#] {
            assert!(acknowledgement(text.as_bytes()).is_err(), "{text}");
        }
    }
}
