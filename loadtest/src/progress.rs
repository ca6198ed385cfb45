//! What a person sees while a run is measured.

use std::io::{IsTerminal, stderr};
use std::time::Instant;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::latency::{Operation, micros};

/// What a person sees meanwhile.
pub struct Progress {
    bar: ProgressBar,
    /// When the rate was last shown, and the count then.
    shown: (Instant, u64),
}

impl Progress {
    /// Of a run that counts these from a moment on.
    pub fn new(counted: Operation, start: Instant) -> Self {
        // It draws only when asked to: a thread of its own would take time from the server.
        let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let template = format!("{{spinner}} {{elapsed:>4}}  {} {{msg}}", counted.units());
        let style = ProgressStyle::with_template(&template).expect("a valid template");
        Self { bar: ProgressBar::with_draw_target(None, target).with_style(style), shown: (start, 0) }
    }

    /// Shows the rate since the last time, and these latencies.
    pub fn show(&mut self, now: Instant, count: u64, latency: &Histogram<u64>) {
        if self.bar.is_hidden() {
            return;
        }
        let rate = (count - self.shown.1) as f64 / (now - self.shown.0).as_secs_f64();
        self.shown = (now, count);
        let [p50, p99, max] = [50.0, 99.0, 100.0].map(|percentile| micros(latency, percentile) / 1e3);
        self.bar.set_message(format!("{rate:>11.0}/s   p50 {p50:.3} ms   p99 {p99:.3} ms   max {max:.3} ms"));
        self.bar.tick();
    }

    pub fn clear(self) {
        self.bar.finish_and_clear();
    }
}
