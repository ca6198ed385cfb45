//! Points in time: microseconds since 1970 in UTC, spelled in RFC 3339 with all six digits and `Z`.

use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::civil::{DateTime, date};
use jiff::tz::Offset;

const YEAR_0: DateTime = date(0, 1, 1).at(0, 0, 0, 0);
const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);

/// A point in time, in microseconds since 1970-01-01T00:00:00Z: the resolution in which events are stamped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Bytes of the one spelling that leaves the server: `2026-01-15T10:30:00.000000Z`.
    pub const LEN: usize = 27;

    /// Now, by the system clock.
    pub fn now() -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(since_1970.as_micros() as i64)
    }

    /// How long it is from now until this time; nothing if it has passed.
    pub fn from_now(self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(Self::now().0).max(0) as u64)
    }

    /// The last microsecond at or before a time, in any spelling: an exclusive lower bound.
    pub fn parse_floor(text: &str) -> Result<Self, NotATime> {
        nanoseconds(text).map(|ns| Self(ns.div_euclid(1000) as i64))
    }

    /// The first microsecond at or after a time, in any spelling: an exclusive upper bound.
    pub fn parse_ceil(text: &str) -> Result<Self, NotATime> {
        nanoseconds(text).map(|ns| Self((-(-ns).div_euclid(1000)) as i64))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&TimestampText::default().render(*self)).expect("digits are ASCII"))
    }
}

/// The text is not a time as RFC 3339 or Python's `isoformat` spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a time such as 2026-01-15T10:30:00Z, 2026-01-15T11:30:00.25+01:00, or in UTC 2026-01-15T10:30:00 or 2026-01-15"
)]
pub struct NotATime;

/// Nanoseconds since 1970 of a time in RFC 3339, or in the forms that Python's `isoformat` writes besides: without an
/// offset (UTC), a date alone (its beginning), an offset with seconds. jiff's parser takes more forms (ISO 8601 basic, zone
/// names), so the shape is checked first.
fn nanoseconds(text: &str) -> Result<i128, NotATime> {
    let b = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| b.get(range).is_some_and(|s| s.iter().all(u8::is_ascii_digit));
    let at = |i: usize, allowed: &[u8]| b.get(i).is_some_and(|c| allowed.contains(c));
    if !(digits(0..4) && at(4, b"-") && digits(5..7) && at(7, b"-") && digits(8..10)) {
        return Err(NotATime);
    }
    if b.len() == DATE_LEN {
        return nanoseconds(&format!("{text}T00:00:00Z"));
    }
    let clock = at(10, b"Tt ") && digits(11..13) && at(13, b":") && digits(14..16) && at(16, b":") && digits(17..19);
    if !clock {
        return Err(NotATime);
    }
    let mut end = 19;
    if at(end, b".") {
        let fraction = b[end + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
        if !(1..=9).contains(&fraction) {
            return Err(NotATime);
        }
        end += 1 + fraction;
    }
    // As a local time, because jiff's `Timestamp` does not cover all of the years 0000 and 9999.
    let local: DateTime = text[..end].replace([' ', 't'], "T").parse().map_err(|_| NotATime)?;
    let east_seconds = match &b[end..] {
        [] | [b'Z' | b'z'] => 0,
        [b'+', offset @ ..] => seconds_of(offset)?,
        [b'-', offset @ ..] => -seconds_of(offset)?,
        _ => return Err(NotATime),
    };
    Ok(local.duration_since(EPOCH).as_nanos() - i128::from(east_seconds) * 1_000_000_000)
}

/// Bytes of `2026-01-15`.
const DATE_LEN: usize = 10;

/// The seconds of an offset without its sign: `01:00`, or `00:53:28` as local times had before there were zones.
fn seconds_of(offset: &[u8]) -> Result<i64, NotATime> {
    let is_number = |part: &[u8]| part.len() == 2 && part.iter().all(u8::is_ascii_digit);
    let parts: Vec<_> = offset.split(|b| *b == b':').collect();
    match parts[..] {
        [hours, minutes, ref seconds @ ..] if seconds.len() <= 1 && parts.iter().all(|part| is_number(part)) => {
            let (hours, minutes) = (number(hours), number(minutes));
            let seconds = seconds.first().map_or(0, |seconds| number(seconds));
            let is_offset = hours < 24 && minutes < 60 && seconds < 60;
            is_offset.then_some((hours * 60 + minutes) * 60 + seconds).ok_or(NotATime)
        }
        _ => Err(NotATime),
    }
}

fn number(digits: &[u8]) -> i64 {
    digits.iter().fold(0, |n, digit| n * 10 + i64::from(digit - b'0'))
}

/// Spells times. It keeps the last text: the events of one commit mostly share a second, so a batch costs one computation
/// of the calendar, and each follows a microsecond after the one before, which mostly changes one digit.
#[derive(Debug, Clone)]
pub struct TimestampText {
    last: Timestamp,
    second: i64,
    text: [u8; Timestamp::LEN],
}

impl Default for TimestampText {
    fn default() -> Self {
        Self { last: Timestamp(i64::MAX), second: i64::MIN, text: *b"0000-00-00T00:00:00.000000Z" }
    }
}

impl TimestampText {
    /// The 27 bytes of this time. A time outside the years 0 to 9999 has the date of the nearest time within them.
    #[inline]
    pub fn render(&mut self, time: Timestamp) -> [u8; Timestamp::LEN] {
        let is_next = self.last.0.checked_add(1) == Some(time.0);
        self.last = time;
        if is_next {
            for digit in self.text[20..26].iter_mut().rev() {
                if *digit < b'9' {
                    *digit += 1;
                    return self.text;
                }
                *digit = b'0';
            }
        }
        let (second, mut micros) = (time.0.div_euclid(1_000_000), time.0.rem_euclid(1_000_000));
        if second != self.second {
            self.render_second(second);
        }
        for digit in self.text[20..26].iter_mut().rev() {
            *digit = b'0' + (micros % 10) as u8;
            micros /= 10;
        }
        self.text
    }

    #[cold]
    fn render_second(&mut self, second: i64) {
        self.second = second;
        let time = match jiff::Timestamp::from_second(second) {
            Ok(time) => Offset::UTC.to_datetime(time),
            // It does not cover the last day of 9999. This costs more, and ends at the calendar's last second.
            Err(_) => EPOCH.saturating_add(SignedDuration::from_secs(second)),
        };
        let time = time.max(YEAR_0);
        let mut put = |at: usize, digits: usize, mut value: i16| {
            for digit in self.text[at..at + digits].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        };
        put(0, 4, time.year());
        put(5, 2, time.month().into());
        put(8, 2, time.day().into());
        put(11, 2, time.hour().into());
        put(14, 2, time.minute().into());
        put(17, 2, time.second().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_time_has_one_spelling() {
        let check = |micros: i64, text: &str| assert_eq!(Timestamp(micros).to_string(), text);
        check(0, "1970-01-01T00:00:00.000000Z");
        check(1_768_473_000_000_000, "2026-01-15T10:30:00.000000Z");
        check(951_782_399_999_999, "2000-02-28T23:59:59.999999Z");
        check(951_782_400_000_000, "2000-02-29T00:00:00.000000Z");
        check(-1, "1969-12-31T23:59:59.999999Z");
        check(-62_167_219_200_000_001, "0000-01-01T00:00:00.999999Z");
        check(i64::MIN, "0000-01-01T00:00:00.224192Z");
        check(253_402_207_200_999_999, "9999-12-30T22:00:00.999999Z");
        check(253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z");
        check(i64::MAX, "9999-12-31T23:59:59.775807Z");
    }

    #[test]
    fn a_time_after_another_is_spelled_as_it_is_alone() {
        for first in [-2, 0, 8, 98, 999_989, 999_998, 1_768_473_000_999_990] {
            let mut text = TimestampText::default();
            for micros in (first..first + 20).chain([first, first + 1, first + 1_000_001]) {
                assert_eq!(String::from_utf8_lossy(&text.render(Timestamp(micros))), Timestamp(micros).to_string());
            }
        }
    }

    #[test]
    fn a_time_is_read_as_rfc_3339_and_python_write_it_and_in_no_other_form() {
        for text in [
            "2026-01-15T10:30:00Z",
            "2026-01-15t11:30:00.0+01:00",
            "2026-01-15 10:30:00.000000000z",
            "2026-01-15T00:30:00-10:00",
            "2026-01-15T10:30:00",
            "2026-01-15 10:30:00.000",
            "2026-01-15T11:23:28+00:53:28",
        ] {
            assert_eq!(Timestamp::parse_floor(text), Ok(Timestamp(1_768_473_000_000_000)), "{text}");
        }
        assert_eq!(Timestamp::parse_floor("2026-01-15"), Timestamp::parse_floor("2026-01-15T00:00:00Z"));
        for text in [
            "",
            "now",
            "2026-01-1",
            "2026-02-30",
            "2026-01-15Z",
            "2026-01-15T",
            "2026-01-15T10:30Z",
            "2026-01-15T10:30",
            "2026-01-15T10:30:00 ",
            "2026-01-15T10:30:00+01:00:60",
            "2026-01-15T10:30:00+01:00:00:00",
            "2026-01-15T10:30:00+01:00:00Z",
            "20260115T103000Z",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-01-15T10:30:00.Z",
            "2026-01-15T10:30:00.1234567890Z",
            "2026-01-15T10:30:00Z[UTC]",
            "2026-01-15T10:30:00+0100",
            "2026-01-15T10:30:00+24:00",
            "2026-01-15T10:30:00+01:60",
            "1768473000",
        ] {
            assert_eq!(Timestamp::parse_floor(text), Err(NotATime), "{text}");
        }
    }

    #[test]
    fn a_bound_between_two_microseconds_separates_them() {
        let text = "1970-01-01T00:00:00.000001500Z";
        assert_eq!((Timestamp::parse_floor(text), Timestamp::parse_ceil(text)), (Ok(Timestamp(1)), Ok(Timestamp(2))));
        let exact = "1970-01-01T00:00:00.000001Z";
        assert_eq!((Timestamp::parse_floor(exact), Timestamp::parse_ceil(exact)), (Ok(Timestamp(1)), Ok(Timestamp(1))));
    }

    #[test]
    fn the_first_and_last_days_of_the_calendar_are_times() {
        for text in [
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999999Z",
            "0000-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59-23:59",
        ] {
            assert!(Timestamp::parse_ceil(text).is_ok(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_time_reads_back_as_it_was_spelled(micros in -62_167_219_200_000_000i64..253_402_300_800_000_000) {
            let time = Timestamp(micros);
            prop_assert_eq!(Timestamp::parse_floor(&time.to_string()), Ok(time));
        }
    }
}
