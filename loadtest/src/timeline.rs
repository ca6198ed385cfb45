//! How a run went over time.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::latency::{coarse_histogram, micros};
use crate::usage::Usage;

/// The length of an interval, unless there would be too many.
pub const STEP: Duration = Duration::from_millis(250);

/// Most points: a plot has not many more columns of pixels.
const POINTS_MAX: u32 = 600;

/// One interval.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Point {
    /// When it ended, in seconds since the measured interval began.
    pub at: f64,
    /// Of what the run counts: what was over in the interval.
    pub per_second: f64,
    /// The latencies of what was due in it, to two digits.
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    /// Processors that the server used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_processors: Option<f64>,
    /// What the server held at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_memory_bytes: Option<u64>,
}

/// The latencies of what was due in each step, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Steps {
    pub length: Duration,
    pub latencies: Vec<Histogram<u32>>,
}

/// Intervals of equal length, of which the last one may be shorter.
pub struct Timeline {
    pub steps: Steps,
    /// At the beginning, and at the end of each interval.
    samples: Vec<Sample>,
}

struct Sample {
    at: Duration,
    counted: u64,
    cpu: Option<Duration>,
    memory_bytes: Option<u64>,
}

impl Timeline {
    pub fn new(step: Duration) -> Self {
        Self { steps: Steps { length: step, latencies: Vec::new() }, samples: Vec::new() }
    }

    /// Begins the measured interval, of this length, when a run has counted so many.
    pub fn begin(&mut self, length: Duration, counted: u64, server: Option<&Usage>) {
        // A multiple of the step, so that the points of two runs stand at the same times.
        let step = &mut self.steps.length;
        *step *= ((length.as_nanos() / step.as_nanos()) as u32).div_ceil(POINTS_MAX).max(1);
        self.sample(Duration::ZERO, counted, server);
    }

    /// When the next sample should be taken, since the beginning.
    pub fn next_sample(&self) -> Duration {
        let last = self.samples.last().map_or(Duration::ZERO, |sample| sample.at);
        // An interval whose end was missed becomes part of the next.
        self.steps.length * (self.step_of(last) as u32 + 1)
    }

    /// Notes what was counted and used until a time since the beginning.
    pub fn sample(&mut self, at: Duration, counted: u64, server: Option<&Usage>) {
        let (cpu, memory_bytes) = server.map(|usage| (usage.cpu, usage.memory_bytes)).unzip();
        self.samples.push(Sample { at, counted, cpu, memory_bytes });
    }

    /// Records the latency of `many` operations that were due at a time since the beginning.
    #[inline]
    pub fn took(&mut self, due: Duration, nanos: u64, many: u64) {
        let step = self.step_of(due);
        let latencies = &mut self.steps.latencies;
        if step >= latencies.len() {
            latencies.resize(step + 1, coarse_histogram());
        }
        latencies[step].saturating_record_n(nanos, many as u32);
    }

    fn step_of(&self, at: Duration) -> usize {
        at.div_duration_f64(self.steps.length) as usize
    }

    /// All points. The rest of the last interval is one if it is long enough to mean something.
    pub fn points(&self) -> Vec<Point> {
        let Steps { length, latencies } = &self.steps;
        let (mut points, mut step) = (Vec::new(), 0);
        for pair in self.samples.windows(2) {
            let [before, after] = pair else { continue };
            let elapsed = (after.at - before.at).as_secs_f64();
            if !points.is_empty() && after.at - before.at < *length / 2 {
                continue;
            }
            // A sample is taken a little later than it should be.
            let until = ((after.at.div_duration_f64(*length) + 0.1).floor() as usize).max(step + 1);
            let mut latency = coarse_histogram();
            for of_step in latencies.iter().take(until).skip(step) {
                latency.add(of_step).expect("all histograms have the same bounds");
            }
            step = until;
            let cpu = after.cpu.zip(before.cpu).map(|(after, before)| after.saturating_sub(before).as_secs_f64());
            points.push(Point {
                at: after.at.as_secs_f64(),
                per_second: (after.counted - before.counted) as f64 / elapsed,
                p50_us: micros(&latency, 50.0),
                p99_us: micros(&latency, 99.0),
                max_us: micros(&latency, 100.0),
                server_processors: cpu.map(|cpu| cpu / elapsed),
                server_memory_bytes: after.memory_bytes,
            });
        }
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_belong_to_the_time_at_which_something_was_due() {
        let millis = Duration::from_millis;
        let mut timeline = Timeline::new(millis(100));
        timeline.begin(millis(450), 0, None);
        assert_eq!(timeline.next_sample(), millis(100));
        timeline.took(millis(99), 5_000_000, 3);
        timeline.sample(millis(101), 10, None);
        timeline.took(millis(99), 900_000_000, 3);
        timeline.took(millis(250), 7_000_000, 1);
        // The end of the second interval was missed.
        timeline.sample(millis(301), 30, None);
        timeline.took(millis(301), 8_000_000, 1);
        timeline.sample(millis(400), 40, None);
        timeline.sample(millis(440), 41, None);
        let points = timeline.points();
        let told =
            points.iter().map(|point| ((point.at * 1e3) as u32, point.per_second as u32, (point.max_us / 1e4) as u32));
        assert_eq!(told.collect::<Vec<_>>(), [(101, 99, 90), (301, 100, 0), (400, 101, 0)]);
        assert_eq!(points.iter().map(|point| (point.p50_us / 1e3).round()).collect::<Vec<_>>(), [5.0, 7.0, 8.0]);
    }

    #[test]
    fn a_long_run_has_longer_steps() {
        let mut timeline = Timeline::new(STEP);
        timeline.begin(Duration::from_secs(3_600), 0, None);
        assert_eq!(timeline.next_sample(), STEP * 24);
    }
}
