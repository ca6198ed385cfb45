//! Numbers by their exact value, however they are spelled: what filters compare.

/// The value of a JSON number: 0.DIGITS times ten to the power of `exponent`.
///
/// A double would take 18446744073709551615 for its neighbour, and 1e-400 for 0. Nothing here is computed but lengths,
/// so a comparison costs the length of the two texts, whatever their exponents.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Decimal {
    is_negative: bool,
    /// Without zeros at either end; none at all is zero.
    digits: Box<str>,
    exponent: i64,
}

/// Beyond this a number is refused in a filter. It leaves room in an `i64` for the length of any text, so that an
/// exponent which overflows belongs to a number that no filter holds.
const EXPONENT_MAX: u64 = 1_000_000_000_000_000_000;

impl Decimal {
    /// The value of a text that is a number in JSON; `None` if its exponent is beyond all use.
    pub fn parse(number: &str) -> Option<Self> {
        let Spelled { is_negative, whole, fraction, exponent } = Spelled::of(number);
        let exponent = exponent.filter(|exponent| exponent.unsigned_abs() <= EXPONENT_MAX)?;
        Some(Self { is_negative, digits: [whole, fraction].concat().into(), exponent })
    }

    /// Whether a text that is a number in JSON has this value.
    pub fn is_spelled(&self, number: &str) -> bool {
        let Spelled { is_negative, whole, fraction, exponent } = Spelled::of(number);
        self.is_negative == is_negative
            && self.digits.strip_prefix(whole) == Some(fraction)
            && exponent == Some(self.exponent)
    }
}

/// A [`Decimal`] within the text that spells it.
struct Spelled<'t> {
    is_negative: bool,
    /// Together with `fraction`: the digits.
    whole: &'t str,
    fraction: &'t str,
    /// `None` if it is no `i64`.
    exponent: Option<i64>,
}

impl<'t> Spelled<'t> {
    fn of(number: &'t str) -> Self {
        let (is_negative, number) = number.strip_prefix('-').map_or((false, number), |number| (true, number));
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        // How far the point stands to the right of the first digit that is not 0.
        let (whole, digits, point) = match (whole, fraction) {
            ("", "") => return Self { is_negative: false, whole, fraction, exponent: Some(0) },
            ("", _) => {
                let digits = fraction.trim_start_matches('0');
                (whole, digits, -((fraction.len() - digits.len()) as i64))
            }
            (_, "") => (whole.trim_end_matches('0'), fraction, whole.len() as i64),
            _ => (whole, fraction, whole.len() as i64),
        };
        let exponent = exponent.parse::<i64>().ok().and_then(|exponent| exponent.checked_add(point));
        Self { is_negative, whole, fraction: digits, exponent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn are_equal(one: &str, other: &str) -> bool {
        let equal = Decimal::parse(one).expect(one).is_spelled(other);
        let other = Decimal::parse(other).expect(other);
        assert_eq!(other.is_spelled(one), equal, "{one} and {other:?}");
        assert_eq!(Decimal::parse(one).expect(one) == other, equal, "{one} and {other:?}");
        equal
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
    fn an_exponent_beyond_all_use_costs_its_length_and_is_equal_to_nothing() {
        let nines = "9".repeat(60_000);
        for number in [format!("1e{nines}"), format!("1e-{nines}"), "1e9223372036854775807".to_owned()] {
            assert_eq!(Decimal::parse(&number), None);
            assert!(!Decimal::parse("1").expect("a number").is_spelled(&number));
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
