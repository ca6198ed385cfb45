//! The fields of an event, and the longest values they may have.

use super::types::{EventType, NAME_CHARS_MAX};

/// An event as its producer sent it, every field checked against the contract's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    pub event_type: EventType,
    pub source: &'a str,
    pub session_id: Option<&'a str>,
    pub user_id: Option<&'a str>,
    /// The payload object, byte for byte as the producer sent it. Only one with line breaks has its whitespace removed.
    pub payload: &'a str,
    /// An event with this key is stored once, however often it is sent.
    pub idempotency_key: Option<&'a str>,
}

/// The stored fields of one event that filters look at, as UTF-8. The type is a name, because stored events may have
/// types that are no longer registered.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'b> {
    pub event_type: &'b [u8],
    pub source: &'b [u8],
    pub session_id: Option<&'b [u8]>,
    pub user_id: Option<&'b [u8]>,
    pub payload: &'b [u8],
}

impl<'b> Columns<'b> {
    /// The value of a field; `None` if the event has none.
    #[inline]
    pub fn field(&self, field: Field) -> Option<&'b [u8]> {
        match field {
            Field::Type => Some(self.event_type),
            Field::Session => self.session_id,
            Field::User => self.user_id,
            Field::Source => Some(self.source),
        }
    }
}

/// A field that filters select by and the record is indexed by. Its number is stored: it is the `kind` of a posting list
/// in `event_index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    Type = 0,
    Session = 1,
    User = 2,
    Source = 3,
}

impl Field {
    /// By number.
    pub const ALL: [Field; 4] = [Field::Type, Field::Session, Field::User, Field::Source];

    /// Its key in a filter. The plural of the type dates from when only types could be listed.
    pub fn name(self) -> &'static str {
        ["event_types", "session_id", "user_id", "source"][self as usize]
    }

    /// Characters of the longest value that an event may have.
    pub(super) fn chars_max(self) -> usize {
        match self {
            Field::Type => NAME_CHARS_MAX,
            Field::Source => SOURCE_CHARS_MAX,
            Field::Session | Field::User => REFERENCE_CHARS_MAX,
        }
    }
}

/// The limits on a payload that an operator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most keys of the payload object itself; keys of objects within it are not counted.
    pub payload_keys_max: usize,
    /// Most bytes of the payload as sent, in UTF-8.
    pub payload_bytes_max: usize,
}

/// Longest `source`, in characters (all of them ASCII).
pub const SOURCE_CHARS_MAX: usize = 100;
/// Longest `session_id` and `user_id`, in Unicode characters.
pub const REFERENCE_CHARS_MAX: usize = 200;
/// Longest idempotency key, in Unicode characters.
pub const KEY_CHARS_MAX: usize = 200;
/// Longest `ref` of a message, in bytes of JSON: the server keeps it in memory until the answer is sent.
pub(super) const REF_BYTES_MAX: usize = 256;
/// Deepest nesting of a payload; the payload object itself is level 1.
pub const PAYLOAD_DEPTH_MAX: usize = 128;
