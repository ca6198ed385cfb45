//! The protocol of Redis (RESP 2), as far as a load needs it: commands out, replies in, nothing allocated.

use anyhow::{Context, bail};

/// Most bytes of one line; ours hold a number or a few words.
const LINE_BYTES_MAX: usize = 1 << 10;

/// Why no reply could be read.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// The rest is still to come.
    Incomplete,
    /// It is not what was expected.
    Unexpected(String),
}

/// Appends a command.
pub fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Calls `read` for each reply in what a server sent until one is incomplete, and returns how many bytes are
/// used up. `read` gets an incomplete reply again once there is more, so it may act only on a whole one.
///
/// # Errors
/// What `read` did not expect.
#[inline]
pub fn replies<'a>(
    bytes: &'a [u8],
    mut read: impl FnMut(&mut Reader<'a>) -> Result<(), Fault>,
) -> anyhow::Result<usize> {
    let mut used = 0;
    loop {
        let mut reader = Reader { bytes, at: used };
        match read(&mut reader) {
            Ok(()) => used = reader.at,
            Err(Fault::Incomplete) => return Ok(used),
            Err(Fault::Unexpected(words)) => bail!("the server sent what was not expected: {words}"),
        }
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

/// Reads one value after the other.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next reply, which is not an array.
    #[inline]
    pub fn scalar(&mut self) -> Result<Scalar<'a>, Fault> {
        match self.bytes.get(self.at) {
            Some(b'$') => self.bulk().map(Scalar::Text),
            Some(b':') => self.number(b':').map(Scalar::Integer),
            Some(b'+') => self.line().map(Scalar::Text),
            Some(b'-') => self.line().map(Scalar::Error),
            Some(_) => Err(self.unexpected()),
            None => Err(Fault::Incomplete),
        }
    }

    /// The length of the array that begins here.
    #[inline]
    pub fn array(&mut self) -> Result<u64, Fault> {
        self.number(b'*')
    }

    /// The bulk string that begins here.
    #[inline]
    pub fn bulk(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.number(b'$')? as usize;
        let end = self.at.saturating_add(length);
        let text = self.bytes.get(self.at..end).ok_or(Fault::Incomplete)?;
        match self.bytes.get(end..end + 2) {
            Some(b"\r\n") => {
                self.at = end + 2;
                Ok(text)
            }
            Some(_) => Err(self.unexpected()),
            None => Err(Fault::Incomplete),
        }
    }

    /// The number in a line of this kind.
    #[inline]
    fn number(&mut self, kind: u8) -> Result<u64, Fault> {
        let mut at = self.at;
        match self.bytes.get(at) {
            Some(first) if *first == kind => at += 1,
            Some(_) => return Err(self.unexpected()),
            None => return Err(Fault::Incomplete),
        }
        let mut number = 0_u64;
        let first = at;
        loop {
            match self.bytes.get(at) {
                Some(digit @ b'0'..=b'9') if at - first < 18 => number = number * 10 + u64::from(digit - b'0'),
                Some(b'\r') if at > first => break,
                Some(_) => return Err(self.unexpected()),
                None => return Err(Fault::Incomplete),
            }
            at += 1;
        }
        match self.bytes.get(at + 1) {
            Some(b'\n') => {
                self.at = at + 2;
                Ok(number)
            }
            Some(_) => Err(self.unexpected()),
            None => Err(Fault::Incomplete),
        }
    }

    /// The rest of a line after the byte that says of what kind it is.
    fn line(&mut self) -> Result<&'a [u8], Fault> {
        let line = &self.bytes[self.at + 1..];
        match line.iter().take(LINE_BYTES_MAX).position(|b| *b == b'\n') {
            Some(end) => {
                self.at += end + 2;
                Ok(line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]))
            }
            None if line.len() < LINE_BYTES_MAX => Err(Fault::Incomplete),
            None => Err(self.unexpected()),
        }
    }

    #[cold]
    fn unexpected(&self) -> Fault {
        let rest = &self.bytes[self.at..];
        Fault::Unexpected(format!("{:?}", String::from_utf8_lossy(&rest[..rest.len().min(100)])))
    }
}

/// The number of an entry whose id is `0-` and that number.
#[inline]
pub fn sequence(id: &[u8]) -> anyhow::Result<u64> {
    let number = id.strip_prefix(b"0-").and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
    number.with_context(|| format!("{:?} is not the id of an entry", String::from_utf8_lossy(id)))
}

/// Visits the channel's messages in what a subscriber is sent, and returns how many bytes are used up.
#[inline]
pub fn messages<'a>(bytes: &'a [u8], mut visit: impl FnMut(&'a [u8])) -> anyhow::Result<usize> {
    replies(bytes, |reader| {
        let (3, b"message", _channel) = (reader.array()?, reader.bulk()?, reader.bulk()?) else {
            return Err(Fault::Unexpected("something other than a message".to_owned()));
        };
        visit(reader.bulk()?);
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
            let (1, 2, _stream) = (reader.array()?, reader.array()?, reader.bulk()?) else {
                return Err(Fault::Unexpected("something other than the entries of one stream".to_owned()));
            };
            for _ in 0..reader.array()? {
                let (2, id, 2, _name) = (reader.array()?, reader.bulk()?, reader.array()?, reader.bulk()?) else {
                    return Err(Fault::Unexpected("an entry that has not one field".to_owned()));
                };
                let field = reader.bulk()?;
                if visiting {
                    visit(sequence(id).map_err(|error| Fault::Unexpected(error.to_string()))?, field);
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
    use crate::wire::in_two_pieces;

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
                seen.push(match reader.scalar()? {
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
        let scalar = |bytes| replies(bytes, |reader| reader.scalar().map(drop)).map_err(|error| error.to_string());
        for bytes in
            [&b"!\r\n"[..], b":x\r\n", b":\r\n", b":1\rx", b"$1\r\nabc", b":1234567890123456789\r\n", b"$-1\r\n"]
        {
            let error = scalar(bytes).expect_err("no reply");
            assert!(error.starts_with("the server sent what was not expected: "), "{error}");
        }
        assert!(scalar(&[b"-", &[b'x'; LINE_BYTES_MAX][..]].concat()).is_err());
        assert!(messages(b"*3\r\n$9\r\nsubscribe\r\n$6\r\nevents\r\n:1\r\n", |_| ()).is_err());
        assert!(messages(b"-ERR\r\n", |_| ()).is_err());
        assert!(entries(b"*-1\r\n", |_, _| ()).is_err());
        assert!(
            entries(b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\ne\r\n$0\r\n\r\n", |_, _| ()).is_err()
        );
        assert!(sequence(b"1-1").is_err() && sequence(b"0-").is_err() && sequence(b"0-7").is_ok_and(|n| n == 7));
    }
}
