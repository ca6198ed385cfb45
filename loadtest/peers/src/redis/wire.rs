//! The protocol of Redis (RESP 2), as far as a load needs it: commands out, replies in, nothing allocated.

use anyhow::Context;

use crate::replies::{Fault, Reader, number, replies};

/// Appends a command.
pub fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// A reply of one value.
#[derive(Debug, PartialEq, Eq)]
pub enum Scalar<'a> {
    Integer(u64),
    /// A string, be it simple or bulk.
    Text(&'a [u8]),
    Error(&'a [u8]),
}

/// The next reply, which is not an array.
#[inline]
pub fn scalar<'a>(reader: &mut Reader<'a>) -> Result<Scalar<'a>, Fault> {
    let (kind, rest) = reader.line()?.split_first().ok_or_else(|| reader.unexpected())?;
    let integer = || number(rest).ok_or_else(|| reader.unexpected());
    match kind {
        b'$' => integer().and_then(|length| reader.text(length)).map(Scalar::Text),
        b':' => integer().map(Scalar::Integer),
        b'+' => Ok(Scalar::Text(rest)),
        b'-' => Ok(Scalar::Error(rest)),
        _ => Err(reader.unexpected()),
    }
}

/// The length of the array that begins here.
#[inline]
pub fn array(reader: &mut Reader) -> Result<u64, Fault> {
    length(reader, b'*')
}

/// The bulk string that begins here.
#[inline]
pub fn bulk<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Fault> {
    length(reader, b'$').and_then(|length| reader.text(length))
}

#[inline]
fn length(reader: &mut Reader, kind: u8) -> Result<u64, Fault> {
    let line = reader.line()?;
    line.strip_prefix(&[kind]).and_then(number).ok_or_else(|| reader.unexpected())
}

/// The number of an entry whose id is `0-` and that number.
#[inline]
pub fn sequence(id: &[u8]) -> anyhow::Result<u64> {
    id.strip_prefix(b"0-")
        .and_then(number)
        .with_context(|| format!("{:?} is not the id of an entry", String::from_utf8_lossy(id)))
}

/// Visits the channel's messages in what a subscriber is sent, and returns how many bytes are used up.
#[inline]
pub fn messages<'a>(bytes: &'a [u8], mut visit: impl FnMut(&'a [u8])) -> anyhow::Result<usize> {
    replies(bytes, |reader| {
        let (3, b"message", _channel) = (array(reader)?, bulk(reader)?, bulk(reader)?) else {
            return Err(reader.unexpected());
        };
        visit(bulk(reader)?);
        Ok(())
    })
}

/// Visits the entries, number and field, in a reply to `XREAD` of one stream whose entries have one field
/// each. Returns how many bytes are used up: none before all of it has come.
pub fn entries<'a>(bytes: &'a [u8], mut visit: impl FnMut(u64, &'a [u8])) -> anyhow::Result<usize> {
    // Once to see that it is whole, once to visit.
    for visiting in [false, true] {
        let mut first = true;
        let used = replies(bytes, |reader| {
            if !std::mem::take(&mut first) {
                return Err(Fault::Incomplete);
            }
            let (1, 2, _stream) = (array(reader)?, array(reader)?, bulk(reader)?) else {
                return Err(reader.unexpected());
            };
            for _ in 0..array(reader)? {
                let (2, id, 2, _name) = (array(reader)?, bulk(reader)?, array(reader)?, bulk(reader)?) else {
                    return Err(reader.unexpected());
                };
                let field = bulk(reader)?;
                if visiting {
                    visit(sequence(id)?, field);
                }
            }
            Ok(())
        })?;
        if used == 0 || visiting {
            return Ok(used);
        }
    }
    unreachable!("the second pass returns")
}

#[cfg(test)]
mod tests {
    use super::*;
    use loadtest::in_two_pieces;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = Vec::new();
        command(&mut out, &[b"XADD", b"events", b"0-*", b"e", b"{\r\n}", b""]);
        assert_eq!(
            text(&out),
            "*6\r\n$4\r\nXADD\r\n$6\r\nevents\r\n$3\r\n0-*\r\n$1\r\ne\r\n$4\r\n{\r\n}\r\n$0\r\n\r\n"
        );
    }

    #[test]
    fn replies_are_whole_wherever_they_are_cut() {
        let bytes = b"$4\r\n0-17\r\n:12\r\n+OK\r\n-ERR no\r\n$0\r\n\r\n$4\r\na\r\nb\r\n";
        let expected = ["Text(0-17)", "Integer(12)", "Text(OK)", "Error(ERR no)", "Text()", "Text(a\r\nb)"];
        in_two_pieces(bytes, &expected, |bytes, seen| {
            replies(bytes, |reader| {
                seen.push(match scalar(reader)? {
                    Scalar::Integer(number) => format!("Integer({number})"),
                    Scalar::Text(bytes) => format!("Text({})", text(bytes)),
                    Scalar::Error(bytes) => format!("Error({})", text(bytes)),
                });
                Ok(())
            })
            .expect("replies")
        });
    }

    #[test]
    fn messages_are_whole_wherever_they_are_cut() {
        let bytes =
            b"*3\r\n$7\r\nmessage\r\n$6\r\nevents\r\n$2\r\n{}\r\n*3\r\n$7\r\nmessage\r\n$6\r\nevents\r\n$0\r\n\r\n";
        let take = |bytes: &[u8], seen: &mut Vec<String>| {
            messages(bytes, |message| seen.push(text(message))).expect("messages")
        };
        in_two_pieces(bytes, &["{}", ""], take);
    }

    #[test]
    fn entries_come_once_all_of_them_are_there() {
        let entry = |id: &str, field: &str| {
            let (id_length, length) = (id.len(), field.len());
            format!("*2\r\n${id_length}\r\n{id}\r\n*2\r\n$1\r\ne\r\n${length}\r\n{field}\r\n")
        };
        let reply = format!("*1\r\n*2\r\n$6\r\nevents\r\n*2\r\n{}{}", entry("0-9", "{}"), entry("0-10", "x"));
        let take = |bytes: &[u8], seen: &mut Vec<String>| {
            entries(bytes, |number, field| seen.push(format!("{number} {}", text(field)))).expect("entries")
        };
        in_two_pieces(reply.as_bytes(), &["9 {}", "10 x"], take);
        // What follows is the next reply's.
        let mut seen = Vec::new();
        assert_eq!(take(format!("{reply}{reply}").as_bytes(), &mut seen), reply.len());
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn an_unexpected_reply_is_an_error() {
        let read = |bytes| replies(bytes, |reader| scalar(reader).map(drop));
        for bytes in
            [&b"!\r\n"[..], b":x\r\n", b":\r\n", b":1\rx\n", b"$1\r\nabc", b":1234567890123456789\r\n", b"$-1\r\n"]
        {
            let error = read(bytes).expect_err("no reply").to_string();
            assert!(error.starts_with("the server sent what was not expected: "), "{error}");
        }
        assert!(messages(b"*3\r\n$9\r\nsubscribe\r\n$6\r\nevents\r\n:1\r\n", |_| ()).is_err());
        assert!(messages(b"-ERR\r\n", |_| ()).is_err());
        assert!(entries(b"*-1\r\n", |_, _| ()).is_err());
        assert!(
            entries(b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\ne\r\n$0\r\n\r\n", |_, _| ()).is_err()
        );
        assert!(sequence(b"1-1").is_err() && sequence(b"0-").is_err() && sequence(b"0-7").is_ok_and(|n| n == 7));
    }
}
