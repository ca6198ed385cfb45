//! Numbers as people read them.

/// A whole number with commas between thousands.
pub fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let first = digits.len() % 3;
    let groups = digits.as_bytes().iter().enumerate().flat_map(|(i, digit)| {
        let comma = i > 0 && i % 3 == first;
        comma.then_some(',').into_iter().chain([char::from(*digit)])
    });
    let sign = (number <= -0.5).then_some('-');
    sign.into_iter().chain(groups).collect()
}

/// A number to three digits, or to the last before the point; thousands are apart.
pub fn written(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || size >= 99.95 {
        return grouped(value);
    }
    // One digit more for each power of ten below a hundred.
    let digits = (2.0 - size.log10().floor()).clamp(0.0, 8.0) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        for (number, text) in [
            (0.0, "0"),
            (999.4, "999"),
            (1_000.0, "1,000"),
            (12_345.0, "12,345"),
            (1e6, "1,000,000"),
            (-0.4, "0"),
            (-123.4, "-123"),
            (-1_234.0, "-1,234"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn numbers_are_written_to_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.000_123_4, "0.000123"),
            (0.5, "0.500"),
            (-7.304, "-7.30"),
            (12.34, "12.3"),
            (99.96, "100"),
            (-450.4, "-450"),
            (1_234_567.8, "1,234,568"),
        ] {
            assert_eq!(written(value), text);
        }
    }
}
