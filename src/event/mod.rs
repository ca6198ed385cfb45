//! What an event is: its fields and their rules, its place in the order (`Seq`), its id, its time,
//! and the filter that selects it. No input or output, no clock.

mod decimal;
mod filter;
mod object;
mod parse;
mod time;
mod types;

pub use filter::{Field, Filter, Mismatch, says_nothing};
pub use object::{Object, only_known};
pub use parse::{Fault, Parsed, Parser, REJECTIONS_MAX, Rejection, is_key};
pub use time::{Timestamp, TimestampText};
pub use types::{EventType, EventTypes};

use std::fmt;
use std::str::FromStr;

/// An event as its producer sent it, every field checked against the contract's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    pub event_type: EventType,
    pub source: &'a str,
    pub session_id: Option<&'a str>,
    pub user_id: Option<&'a str>,
    /// The payload object, byte for byte as it came except for insignificant whitespace.
    pub payload: &'a str,
    /// Under which the event is stored once, however often it is sent.
    pub idempotency_key: Option<&'a str>,
}

/// What is stored of one event and looked at by filters, as UTF-8. The type is a name: history may hold
/// types that are not registered any more.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'b> {
    pub event_type: &'b [u8],
    pub source: &'b [u8],
    pub session_id: Option<&'b [u8]>,
    pub user_id: Option<&'b [u8]>,
    pub payload: &'b [u8],
}

impl<'b> Columns<'b> {
    /// The value of a field, if it has one.
    #[inline]
    pub fn field(&self, field: Field) -> Option<&'b [u8]> {
        match field {
            Field::Type => Some(self.event_type),
            Field::Source => Some(self.source),
            Field::Session => self.session_id,
            Field::User => self.user_id,
        }
    }
}

/// The limits on a payload that an operator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most keys of the payload object itself (nested objects are not counted).
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
/// Deepest nesting of a payload; the payload object itself is level 1.
pub const PAYLOAD_DEPTH_MAX: usize = 128;

/// The position of an event in commit order: 1 for the first event ever stored, never reused.
/// `Seq::ZERO` is the position before every event, the cursor of somebody who has seen nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    pub const ZERO: Seq = Seq(0);
    /// The largest number an id can spell: 12 hexadecimal digits.
    pub const MAX: Seq = Seq((1 << 48) - 1);

    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }

    /// The position `count` places further on.
    pub fn plus(self, count: usize) -> Seq {
        Seq(self.0 + count as u64)
    }

    /// The position before this one; that of `Seq::ZERO` is itself.
    pub fn prev(self) -> Seq {
        Seq(self.0.saturating_sub(1))
    }

    pub fn id(self) -> EventId {
        EventId(self)
    }
}

/// The public name of a [`Seq`]: `evt_` and 12 lower-case hexadecimal digits. Ids sort as their events do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub Seq);

impl EventId {
    /// Hexadecimal digits in an id.
    pub const DIGITS: usize = 12;

    /// The digits of the id, without `evt_`.
    #[inline]
    pub fn digits(self) -> [u8; Self::DIGITS] {
        let mut digits = [0; Self::DIGITS];
        let mut rest = self.0.0;
        for digit in digits.iter_mut().rev() {
            *digit = b"0123456789abcdef"[(rest & 15) as usize];
            rest >>= 4;
        }
        digits
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "evt_{:012x}", self.0.0)
    }
}

impl FromStr for EventId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let digits = text.strip_prefix("evt_").ok_or(NotAnId)?;
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() != Self::DIGITS || !digits.bytes().all(lower_hex) {
            return Err(NotAnId);
        }
        u64::from_str_radix(digits, 16).map(|n| EventId(Seq(n))).map_err(|_| NotAnId)
    }
}

/// The text is not `evt_` and 12 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event id is evt_ and 12 lower-case hexadecimal digits")]
pub struct NotAnId;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_spells_its_sequence_number() {
        let check = |seq: u64, text: &str| {
            assert_eq!(Seq(seq).id().to_string(), text);
            assert_eq!(text.parse(), Ok(EventId(Seq(seq))));
            assert_eq!(&Seq(seq).id().digits()[..], &text.as_bytes()[4..]);
        };
        check(1, "evt_000000000001");
        check(0xabc, "evt_000000000abc");
        check(Seq::MAX.0, "evt_ffffffffffff");
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in
            ["", "evt_", "evt_1", "evt_00000000000A", "evt_0000000000001", "sub_000000000001", "evt_+00000000001"]
        {
            assert_eq!(text.parse::<EventId>(), Err(NotAnId), "{text}");
        }
    }

    proptest! {
        #[test]
        fn ids_are_read_back_and_sort_as_their_numbers(one in 0..=Seq::MAX.0, other in 0..=Seq::MAX.0) {
            let (id, other_id) = (Seq(one).id(), Seq(other).id());
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(id.to_string().cmp(&other_id.to_string()), one.cmp(&other));
        }
    }
}
