//! Numbers by their exact value, however they are spelled: filters compare these.

use std::cmp::Ordering;

/// The value of a JSON number: 0.DIGITS times ten to the power of `exponent`.
///
/// A double would take 18446744073709551615 for its neighbour, and 1e-400 for 0. A comparison computes nothing but
/// lengths, so it costs the length of the two texts, whatever their exponents. The order serves binary search; it is not
/// the order of the values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Decimal {
    is_negative: bool,
    exponent: i64,
    /// Without zeros at either end; the number zero has no digits.
    digits: Box<str>,
}

/// A filter's number with a larger exponent is refused. 10^18 leaves room in an `i64` to add the length of any text: so if
/// the exponent of a payload's number overflows, no filter has that number.
const EXPONENT_MAX: u64 = 1_000_000_000_000_000_000;

impl Decimal {
    /// The value of a JSON number; `None` if its exponent is beyond [`EXPONENT_MAX`].
    pub fn parse(number: &str) -> Option<Self> {
        let Spelled { is_negative, exponent, whole, fraction } = Spelled::of(number)?;
        let is_usable = exponent.unsigned_abs() <= EXPONENT_MAX;
        is_usable.then(|| Self { is_negative, exponent, digits: [whole, fraction].concat().into() })
    }

    /// The order of this number and one that is only spelled.
    pub fn cmp_spelled(&self, other: &Spelled<'_>) -> Ordering {
        let digits = self.digits.as_bytes();
        let (whole, fraction) = digits.split_at(digits.len().min(other.whole.len()));
        let by_digits = || whole.cmp(other.whole.as_bytes()).then_with(|| fraction.cmp(other.fraction.as_bytes()));
        (self.is_negative, self.exponent).cmp(&(other.is_negative, other.exponent)).then_with(by_digits)
    }
}

/// A [`Decimal`] that borrows its digits from the text that spells it.
pub(super) struct Spelled<'t> {
    is_negative: bool,
    exponent: i64,
    /// Followed by `fraction`, these are the digits.
    whole: &'t str,
    fraction: &'t str,
}

#[cfg(test)]
thread_local! {
    /// How many numbers this thread has parsed.
    pub(super) static PARSED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl<'t> Spelled<'t> {
    /// Parses a JSON number, at the cost of its length; `None` if its exponent does not fit into an `i64`.
    pub fn of(number: &'t str) -> Option<Self> {
        #[cfg(test)]
        PARSED.set(PARSED.get() + 1);
        let (is_negative, number) = number.strip_prefix('-').map_or((false, number), |number| (true, number));
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        // How far the point stands to the right of the first digit that is not 0.
        let (whole, digits, point) = match (whole, fraction) {
            ("", "") => return Some(Self { is_negative: false, exponent: 0, whole, fraction }),
            ("", _) => {
                let digits = fraction.trim_start_matches('0');
                (whole, digits, -((fraction.len() - digits.len()) as i64))
            }
            (_, "") => (whole.trim_end_matches('0'), fraction, whole.len() as i64),
            _ => (whole, fraction, whole.len() as i64),
        };
        let exponent = exponent.parse::<i64>().ok()?.checked_add(point)?;
        Some(Self { is_negative, exponent, whole, fraction: digits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn are_equal(one: &str, other: &str) -> bool {
        let [decimal, other_decimal] = [one, other].map(|number| Decimal::parse(number).expect(number));
        let [spelled, other_spelled] = [one, other].map(|number| Spelled::of(number).expect(number));
        let order = decimal.cmp(&other_decimal);
        assert_eq!(decimal.cmp_spelled(&other_spelled), order, "{one} and {other}");
        assert_eq!(other_decimal.cmp_spelled(&spelled), order.reverse(), "{one} and {other}");
        order.is_eq()
    }

    #[test]
    fn numbers_are_equal_by_value() {
        for (one, other) in [
            ("1", "1.0"),
            ("1", "10e-1"),
            ("100", "1E+2"),
            ("0.10", "1e-1"),
            ("-0", "0.0e999999999999999999999"),
            ("0", "-0.000"),
            ("1e400", "0.001e403"),
            ("-120.0500", "-12005e-2"),
            ("18446744073709551615", "1844674407370955161.5e1"),
            ("7e0000000000000000000000000002", "700"),
        ] {
            assert!(are_equal(one, other), "{one} is {other}");
        }
        for (one, other) in [
            ("18446744073709551615", "18446744073709551616"),
            ("9007199254740993", "9007199254740992.0"),
            ("1e-400", "0"),
            ("1e400", "1e401"),
            ("1", "-1"),
            ("1", "10"),
            ("1", "11"),
            ("1.1", "11"),
            ("0.1", "0.01"),
            ("0.1", "0.1000000000000000055511151231257827021181583404541015625"),
        ] {
            assert!(!are_equal(one, other), "{one} is not {other}");
        }
    }

    #[test]
    fn a_number_with_an_exponent_out_of_range_is_equal_to_nothing() {
        let nines = "9".repeat(60_000);
        for number in [format!("1e{nines}"), format!("1e-{nines}"), "1e9223372036854775807".to_owned()] {
            assert_eq!(Decimal::parse(&number), None);
            let one = Decimal::parse("1").expect("a number");
            assert!(Spelled::of(&number).is_none_or(|spelled| one.cmp_spelled(&spelled).is_ne()));
        }
        assert!(are_equal("1e999999999999999999", "10e999999999999999998"));
        let zeros = "0".repeat(60_000);
        assert!(are_equal(&format!("1{zeros}"), "1e60000"));
        assert!(are_equal(&format!("0.{zeros}1"), "1e-60001"));
    }

    /// Digits times ten to the power of an exponent, spelled with the point moved to the left (or the right) and zeros
    /// behind the fraction.
    fn spelled(is_negative: bool, digits: &str, exponent: i64, left: i64, zeros: usize) -> String {
        let sign = if is_negative { "-" } else { "" };
        let padded = "0".repeat((left + 1 - digits.len() as i64).max(0) as usize) + digits;
        let (whole, fraction) = padded.split_at(padded.len() - left.max(0) as usize);
        let (whole, fraction) =
            (whole.to_owned() + &"0".repeat(-left.min(0) as usize), fraction.to_owned() + &"0".repeat(zeros));
        let point = if fraction.is_empty() { "" } else { "." };
        format!("{sign}{whole}{point}{fraction}e{}", exponent + left)
    }

    proptest! {
        #[test]
        fn the_decimal_point_and_trailing_zeros_do_not_change_the_value(
            (is_negative, digits, exponent) in (any::<bool>(), "[1-9][0-9]{0,30}", -1_000i64..1_000),
            (left, zeros) in (-40i64..70, 0usize..5),
            (other_left, other_zeros) in (-40i64..70, 0usize..5),
        ) {
            let one = spelled(is_negative, &digits, exponent, left, zeros);
            let other = spelled(is_negative, &digits, exponent, other_left, other_zeros);
            prop_assert!(are_equal(&one, &other), "{one} is {other}");
            let next = spelled(is_negative, &digits, exponent + 1, other_left, other_zeros);
            prop_assert!(!are_equal(&one, &next), "{one} is not {next}");
            let negated = spelled(!is_negative, &digits, exponent, other_left, other_zeros);
            prop_assert!(!are_equal(&one, &negated), "{one} is not {negated}");
        }

        #[test]
        fn whole_numbers_are_equal_if_they_are_the_same(one: i128, other: i128, near in -2i128..3) {
            prop_assert_eq!(are_equal(&one.to_string(), &other.to_string()), one == other);
            let near = one.saturating_add(near);
            prop_assert_eq!(are_equal(&one.to_string(), &format!("{near}.0")), one == near);
        }

        #[test]
        fn fixed_points_are_equal_if_they_are_the_same_thousandths(one in -3_000i64..3_000, other in -3_000i64..3_000) {
            let text = |n: i64| format!("{}{}.{:03}", if n < 0 { "-" } else { "" }, n.abs() / 1_000, n.abs() % 1_000);
            prop_assert_eq!(are_equal(&text(one), &text(other)), one == other);
            prop_assert_eq!(are_equal(&text(one), &format!("{other}e-3")), one == other);
        }

        #[test]
        fn a_double_that_is_spelled_out_is_itself(number in any::<f64>().prop_filter("JSON", |n| n.is_finite())) {
            let (plain, scientific) = (format!("{number}"), format!("{number:e}"));
            prop_assert!(are_equal(&plain, &scientific), "{plain} is {scientific}");
        }
    }
}
