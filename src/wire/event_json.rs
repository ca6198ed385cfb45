//! The JSON of a delivered event. It is the same bytes whether the event is delivered live or read back.

use crate::event::{Columns, EventId, Seq, Timestamp, TimestampText};

/// An event read back from storage.
#[derive(Debug, Clone, Copy)]
pub struct StoredEvent<'r> {
    pub seq: Seq,
    pub time: Timestamp,
    pub event_type: &'r str,
    pub source: &'r str,
    pub session_id: Option<&'r str>,
    pub user_id: Option<&'r str>,
    pub payload: &'r str,
    /// Its id in the Python service, if it was stored there.
    pub legacy_id: Option<&'r str>,
}

impl StoredEvent<'_> {
    pub fn columns(&self) -> Columns<'_> {
        Columns {
            event_type: self.event_type.as_bytes(),
            source: self.source.as_bytes(),
            session_id: self.session_id.map(str::as_bytes),
            user_id: self.user_id.map(str::as_bytes),
            payload: self.payload.as_bytes(),
        }
    }

    /// Appends the JSON of its delivery.
    pub fn write_json(&self, out: &mut Vec<u8>, time: &mut TimestampText) {
        match self.legacy_id {
            None => {
                out.extend_from_slice(SKELETON[0]);
                out.extend_from_slice(&self.seq.id().digits());
            }
            Some(id) => {
                out.extend_from_slice(SKELETON[0].strip_suffix(b"\"evt_").expect("the skeleton begins with an id"));
                let quoted = JsonString::of(id);
                let mut text = Vec::with_capacity(quoted.len());
                quoted.write(&mut text);
                out.extend_from_slice(&text[..text.len() - 1]);
            }
        }
        out.extend_from_slice(SKELETON[1]);
        JsonString::of(self.event_type).write_inside(out);
        out.extend_from_slice(SKELETON[2]);
        JsonString::of(self.source).write_inside(out);
        for (label, value) in [(SKELETON[3], self.session_id), (SKELETON[4], self.user_id)] {
            out.extend_from_slice(label);
            match value {
                Some(text) => JsonString::of(text).write(out),
                None => out.extend_from_slice(NULL),
            }
        }
        out.extend_from_slice(SKELETON[5]);
        out.extend_from_slice(self.payload.as_bytes());
        out.extend_from_slice(SKELETON[6]);
        out.extend_from_slice(&time.render(self.time));
        out.extend_from_slice(SKELETON[7]);
    }
}

pub(super) const NULL: &[u8] = b"null";

/// The JSON between the values of a delivered event. The contract has the keys and their order.
pub(super) const SKELETON: [&[u8]; 8] = [
    br#"{"id":"evt_"#,
    br#"","event_type":""#,
    br#"","source":""#,
    br#"","session_id":"#,
    br#","user_id":"#,
    br#","payload":"#,
    br#","timestamp":""#,
    br#""}"#,
];

/// Bytes of a delivered event besides the values of its fields.
pub(super) const SKELETON_LEN: usize = {
    let (mut len, mut i) = (EventId::DIGITS + Timestamp::LEN, 0);
    while i < SKELETON.len() {
        len += SKELETON[i].len();
        i += 1;
    }
    len
};

/// A string to be written as JSON.
pub(super) struct JsonString<'t> {
    pub text: &'t str,
    /// Bytes that its escapes add.
    pub escapes: usize,
}

impl<'t> JsonString<'t> {
    #[inline]
    pub fn of(text: &'t str) -> Self {
        let extra = |b: u8| match b {
            b'"' | b'\\' => 1,
            0..0x20 => 5,
            _ => 0,
        };
        Self { text, escapes: text.bytes().map(extra).sum() }
    }

    /// Bytes of the JSON string with its quotes.
    #[inline]
    pub fn len(&self) -> usize {
        self.text.len() + self.escapes + 2
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        self.write_inside(out);
        out.push(b'"');
    }

    fn write_inside(&self, out: &mut Vec<u8>) {
        if self.escapes == 0 {
            return out.extend_from_slice(self.text.as_bytes());
        }
        for &byte in self.text.as_bytes() {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                0..0x20 => {
                    let digit = |n: u8| b"0123456789abcdef"[n as usize];
                    out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
                }
                _ => out.push(byte),
            }
        }
    }
}
