//! How a run went over time.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::latency::{histogram, micros};
use crate::usage::Usage;

/// The length of an interval, unless there would be too many.
pub const STEP: Duration = Duration::from_millis(250);

/// Most points: a plot has not many more columns of pixels.
const POINTS_MAX: u32 = 600;

/// One interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// When it ended, in seconds since the measured interval began.
    pub at: f64,
    /// Of what the run counts.
    pub per_second: f64,
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

/// Intervals of equal length, of which the last one may be shorter.
pub struct Timeline {
    start: Instant,
    step: Duration,
    /// When the interval is over.
    pub due: Instant,
    points: Vec<Point>,
    /// What belongs to the interval that is not over.
    latency: Histogram<u64>,
    /// What was counted, and what the server had used, when it began.
    counted: u64,
    server_cpu: Option<Duration>,
    began: Instant,
}

impl Timeline {
    /// Of a run whose count is `counted` when the measurement begins, at `start`, for `length`.
    pub fn new(start: Instant, length: Duration, step: Duration, counted: u64, server: Option<&Usage>) -> Self {
        // A multiple of the step, so that the points of two runs stand at the same times.
        let step = step * ((length.as_nanos() / step.as_nanos()) as u32).div_ceil(POINTS_MAX).max(1);
        Self {
            start,
            step,
            due: start + step,
            points: Vec::new(),
            latency: histogram(),
            counted,
            server_cpu: server.map(|usage| usage.cpu),
            began: start,
        }
    }

    /// Latencies of the interval that is not over.
    pub fn add(&mut self, latency: &Histogram<u64>) {
        self.latency.add(latency).expect("all histograms have the same bounds");
    }

    /// Ends the interval and begins the next.
    pub fn end(&mut self, now: Instant, counted: u64, server: Option<&Usage>) {
        let elapsed = (now - self.began).as_secs_f64();
        let used = server.zip(self.server_cpu).map(|(usage, before)| usage.cpu.saturating_sub(before));
        self.points.push(Point {
            at: (now - self.start).as_secs_f64(),
            per_second: (counted - self.counted) as f64 / elapsed,
            p50_us: micros(&self.latency, 50.0),
            p99_us: micros(&self.latency, 99.0),
            max_us: micros(&self.latency, 100.0),
            server_processors: used.map(|used| used.as_secs_f64() / elapsed),
            server_memory_bytes: server.map(|usage| usage.memory_bytes),
        });
        self.latency.reset();
        self.counted = counted;
        self.server_cpu = server.map(|usage| usage.cpu);
        self.began = now;
        // An interval whose end was missed becomes part of the next.
        self.due = self.start + self.step * ((now - self.start).div_duration_f64(self.step) as u32 + 1);
    }

    /// All points. The rest of the last interval is one if it is long enough to mean something.
    pub fn finish(mut self, now: Instant, counted: u64, server: Option<&Usage>) -> Vec<Point> {
        if self.points.is_empty() || now - self.began >= self.step / 2 {
            self.end(now, counted, server);
        }
        self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_point_covers_its_interval() {
        let start = Instant::now();
        let mut timeline = Timeline::new(start, Duration::from_secs(10), STEP, 100, None);
        let mut latency = histogram();
        latency.saturating_record_n(2_000_000, 50);
        timeline.add(&latency);
        assert_eq!(timeline.due, start + STEP);
        timeline.end(start + STEP, 150, None);
        let points = timeline.finish(start + STEP * 2, 150, None);
        let told = points.iter().map(|p| (p.at, p.per_second, p.p50_us.round(), p.p99_us.round())).collect::<Vec<_>>();
        // To three digits.
        assert_eq!(told, [(0.25, 200.0, 2_001.0, 2_001.0), (0.5, 0.0, 0.0, 0.0)]);
    }

    #[test]
    fn a_long_run_has_no_more_points_than_a_picture_has_columns() {
        let start = Instant::now();
        for seconds in [1, 60, 150, 151, 3_600, 86_400] {
            let length = Duration::from_secs(seconds);
            let step = Timeline::new(start, length, STEP, 0, None).step;
            let points = length.div_duration_f64(step);
            assert!(points <= f64::from(POINTS_MAX) && step >= STEP, "{seconds} s: {points}");
            assert!(seconds < 150 || points > f64::from(POINTS_MAX) / 2.0, "{seconds} s: {points}");
        }
    }
}
