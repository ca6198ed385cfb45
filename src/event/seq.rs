//! Sequence numbers, and the ids that spell them.

use std::fmt;
use std::str::FromStr;

/// The sequence number of an event: 1 for the first event ever stored, dense in commit order, never reused.
/// [`Seq::ZERO`] is the position before every event: the cursor of a client that has seen none.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    pub const ZERO: Seq = Seq(0);
    /// The largest number an id can spell: 12 hexadecimal digits.
    pub const MAX: Seq = Seq((1 << 48) - 1);

    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }

    /// The number `count` events further on.
    pub fn plus(self, count: usize) -> Seq {
        Seq(self.0 + count as u64)
    }

    /// The number before this one; before [`Seq::ZERO`] there is none, and it stays.
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
        let [high, low] = [self.0.0 >> 32, self.0.0].map(|number| spell(number as u32));
        let mut digits = [0; Self::DIGITS];
        digits[..4].copy_from_slice(&high[4..]);
        digits[4..].copy_from_slice(&low);
        digits
    }
}

/// The 8 hexadecimal digits of a number, computed together: each has a byte of one word.
#[inline]
fn spell(number: u32) -> [u8; 8] {
    let mut word = u64::from(number);
    word = (word | word << 16) & 0x0000_ffff_0000_ffff;
    word = (word | word << 8) & 0x00ff_00ff_00ff_00ff;
    word = (word | word << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = (word + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    let to_letter = u64::from(b'a' - b'9' - 1);
    (word + 0x3030_3030_3030_3030 + letters * to_letter).to_be_bytes()
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
    fn a_text_of_another_shape_is_not_an_id() {
        for text in
            ["", "evt_", "evt_1", "evt_00000000000A", "evt_0000000000001", "sub_000000000001", "evt_+00000000001"]
        {
            assert_eq!(text.parse::<EventId>(), Err(NotAnId), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_id_reads_back_and_sorts_as_its_number(one in 0..=Seq::MAX.0, other in 0..=Seq::MAX.0) {
            let (id, other_id) = (Seq(one).id(), Seq(other).id());
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(id.to_string().cmp(&other_id.to_string()), one.cmp(&other));
        }
    }
}
