//! What servers of another kind send: lines and texts of a known length, found without copying them.

use anyhow::anyhow;
use memchr::memchr;

/// Most bytes of one line; the longest is what NATS says of itself.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Why no reply could be read.
#[derive(Debug)]
pub enum Fault {
    /// The rest is still to come.
    Incomplete,
    /// It is not what was expected.
    Wrong(anyhow::Error),
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        Self::Wrong(error)
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
        let mut reader = Reader { bytes: &bytes[used..], at: 0 };
        match read(&mut reader) {
            Ok(()) => used += reader.at,
            Err(Fault::Incomplete) => return Ok(used),
            Err(Fault::Wrong(error)) => return Err(error),
        }
    }
}

/// Reads a reply piece by piece.
pub struct Reader<'a> {
    /// The reply, and what follows it.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next line, without its end.
    #[inline]
    pub fn line(&mut self) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.at..];
        match memchr(b'\n', &rest[..rest.len().min(LINE_BYTES_MAX)]) {
            Some(end) => {
                self.at += end + 1;
                Ok(rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]))
            }
            None if rest.len() < LINE_BYTES_MAX => Err(Fault::Incomplete),
            None => Err(self.unexpected()),
        }
    }

    /// The next `length` bytes, which end a line.
    #[inline]
    pub fn text(&mut self, length: u64) -> Result<&'a [u8], Fault> {
        let end = self.at.saturating_add(length as usize);
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

    /// That this is not what was expected.
    #[cold]
    pub fn unexpected(&self) -> Fault {
        let start = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(100)]);
        Fault::Wrong(anyhow!("the server sent what was not expected: {start:?}"))
    }
}

/// A number of up to 18 digits.
#[inline]
pub fn number(digits: &[u8]) -> Option<u64> {
    let is_number = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_does_not_end_is_an_error() {
        let line = |bytes: &[u8]| replies(bytes, |reader| reader.line().map(drop));
        assert_eq!(line(&[b'x'; LINE_BYTES_MAX - 1]).expect("half a line"), 0);
        assert!(line(&[b'x'; LINE_BYTES_MAX]).is_err());
    }
}
