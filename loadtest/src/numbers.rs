//! Numbers as people read them.

/// A whole number with commas between thousands.
pub fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let first = digits.len() % 3;
    let groups = digits.as_bytes().iter().enumerate().flat_map(|(i, digit)| {
        let comma = i > 0 && i % 3 == first;
        comma.then_some(',').into_iter().chain([char::from(*digit)])
    });
    groups.collect()
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
