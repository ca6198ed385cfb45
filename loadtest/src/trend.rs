//! Whether a value grows over time, or only varies.

/// The straight line nearest to some points.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend {
    /// Of the values.
    pub mean: f64,
    /// From the beginning to the end of the line.
    pub growth: f64,
    /// How far the values lie from the line, as a standard deviation.
    pub noise: f64,
    /// From the first point to the last.
    pub length: f64,
}

impl Trend {
    /// Of values at times; `None` of fewer than three or all at one time.
    pub fn of(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        let (first, last) = (points.first()?.0, points.last()?.0);
        if points.len() < 3 || last <= first {
            return None;
        }
        let mean_of = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
        let (time, mean) = (mean_of(|(time, _)| *time), mean_of(|(_, value)| *value));
        let variance = points.iter().map(|(t, _)| (t - time).powi(2)).sum::<f64>();
        let slope = points.iter().map(|(t, value)| (t - time) * (value - mean)).sum::<f64>() / variance;
        let distance = |(t, value): &(f64, f64)| value - mean - slope * (t - time);
        let noise = (points.iter().map(|point| distance(point).powi(2)).sum::<f64>() / count).sqrt();
        Some(Self { mean, growth: slope * (last - first), noise, length: last - first })
    }

    /// Whether the growth is more than twice the noise, and more than 1 % of the mean.
    pub fn is_real(&self) -> bool {
        self.growth.abs() > (2.0 * self.noise).max(0.01 * self.mean.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend(values: impl Fn(f64) -> f64) -> Trend {
        let points = (0..100).map(|n| (f64::from(n), values(f64::from(n)))).collect::<Vec<_>>();
        Trend::of(&points).expect("enough points")
    }

    #[test]
    fn growth_is_distinguished_from_noise() {
        let tremble = |t: f64| if t % 2.0 == 0.0 { 5.0 } else { -5.0 };
        let steady = trend(|t| 100.0 + tremble(t));
        assert!(!steady.is_real() && (steady.noise - 5.0).abs() < 0.1, "{steady:?}");
        let growing = trend(|t| 100.0 + t + tremble(t));
        assert!(growing.is_real() && (growing.growth - 99.0).abs() < 1.0, "{growing:?}");
        assert!(trend(|t| 100.0 - t).is_real());
        // Without noise, but less than 1 %.
        assert!(!trend(|t| 1_000.0 + t / 50.0).is_real());
        assert!(!trend(|_| 0.0).is_real());
    }

    #[test]
    fn too_few_points_have_no_trend() {
        assert_eq!(Trend::of(&[]), None);
        assert_eq!(Trend::of(&[(1.0, 1.0), (2.0, 2.0)]), None);
        assert_eq!(Trend::of(&[(1.0, 1.0); 3]), None);
    }
}
