//! What is timed, and the percentiles of its latencies.

use std::fmt::{self, Display};

use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};

/// The histograms hold latencies from 1 µs to an hour, to three digits.
const NANOS: (u64, u64, u8) = (1_000, 3_600_000_000_000, 3);

/// Percentiles for each halving of the share above them: 50, 58, 64.6, 70.3, 75 …, enough for a smooth curve.
const STEPS_PER_HALF: f64 = 4.0;

/// What is counted and timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// An event, from when it was due to its acknowledgement.
    Acknowledgement,
    /// An event to one subscriber, from when it was due to its receipt there.
    Delivery,
    /// A query, from when it was due to its answer.
    Query,
    /// A connection, from its beginning until it is ready for use.
    Connection,
}

impl Operation {
    pub const ALL: [Self; 4] = [Self::Acknowledgement, Self::Delivery, Self::Query, Self::Connection];

    /// What a latency of this kind is called.
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// One of what is counted.
    pub fn unit(self) -> &'static str {
        self.words().1
    }

    /// Many of what is counted.
    pub fn units(self) -> &'static str {
        self.words().2
    }

    /// What has become of it when its latency ends.
    pub fn done(self) -> &'static str {
        self.words().3
    }

    fn words(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Acknowledgement => ("acknowledgement", "event", "events", "acknowledged"),
            Self::Delivery => ("delivery", "delivery", "deliveries", "delivered"),
            Self::Query => ("query", "query", "queries", "answered"),
            Self::Connection => ("connection", "connection", "connections", "connected"),
        }
    }
}

/// An empty histogram of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    let (low, high, digits) = NANOS;
    Histogram::new_with_bounds(low, high, digits).expect("bounds that make sense")
}

/// The same to two digits, in a thirtieth of the memory: for the many steps of a timeline.
pub fn coarse_histogram() -> Histogram<u32> {
    let (low, high, digits) = NANOS;
    Histogram::new_with_bounds(low, high, digits - 1).expect("bounds that make sense")
}

/// A percentile of a histogram of nanoseconds, in microseconds; 0 of an empty one.
pub fn micros<C: Counter>(histogram: &Histogram<C>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64 / 1e3
}

/// The distribution of one kind of latency, in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub of: Operation,
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
    /// Each percentile with its latency, both ascending; the last is 100.
    pub percentiles: Vec<(f64, f64)>,
    /// What they are from, in nanoseconds; `None` of a run that was read from a file, or where nothing was timed.
    #[serde(skip)]
    pub histogram: Option<Histogram<u64>>,
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(kind: Operation, histogram: &Histogram<u64>) -> Self {
        let at = |percentile| micros(histogram, percentile);
        let below = (0..).map(|step| 100.0 * (1.0 - 0.5_f64.powf(f64::from(step) / STEPS_PER_HALF)));
        // Up to the percentile above which a single latency lies.
        let told = below.take_while(|percentile| (1.0 - percentile / 100.0) * histogram.len() as f64 >= 1.0);
        Self {
            of: kind,
            count: histogram.len(),
            mean: histogram.mean() / 1e3,
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p99_9: at(99.9),
            max: at(100.0),
            percentiles: told
                .chain((!histogram.is_empty()).then_some(100.0))
                .map(|percentile| (percentile, at(percentile)))
                .collect(),
            histogram: (!histogram.is_empty()).then(|| histogram.clone()),
        }
    }
}

impl Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [("p50", self.p50), ("p90", self.p90), ("p99", self.p99), ("p99.9", self.p99_9), ("max", self.max)];
        for (i, (name, micros)) in named.into_iter().enumerate() {
            let gap = if i > 0 { "   " } else { "" };
            write!(f, "{gap}{name} {:.3} ms", micros / 1e3)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_ascend_to_the_greatest() {
        let mut histogram = histogram();
        (1..=1_000).for_each(|micros| histogram.saturating_record(micros * 1_000));
        let latency = Latency::of(Operation::Query, &histogram);
        let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.002;
        assert!(near(latency.p50, 500.0) && near(latency.p99, 990.0) && near(latency.max, 1_000.0), "{latency:?}");
        assert!(latency.percentiles.is_sorted(), "{latency:?}");
        let places = latency.percentiles.iter().map(|(percentile, _)| *percentile).collect::<Vec<_>>();
        assert!(places.starts_with(&[0.0]) && places.contains(&50.0) && places.contains(&75.0), "{places:?}");
        // One in a thousand lies above 99.9.
        assert!(places.last() == Some(&100.0) && places[places.len() - 2] > 99.8, "{places:?}");
    }

    #[test]
    fn nothing_measured_has_no_percentiles() {
        let latency = Latency::of(Operation::Delivery, &histogram());
        assert_eq!((latency.count, latency.max, latency.percentiles), (0, 0.0, Vec::new()));
    }
}
