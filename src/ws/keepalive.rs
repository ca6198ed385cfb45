//! Whether a peer that sends nothing is still there. It may have vanished without closing, or hang; pings find out.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::config::Config;

/// Counts the keep-alive intervals in which nothing has come. It is looked at once an interval, by a timer that is there
/// anyway, so what arrives costs an atomic store and no look at a clock.
pub(super) struct Keepalive {
    /// Intervals that have ended since something came.
    silent: AtomicU32,
    /// Pings in a row that may go unanswered.
    pings_max: u32,
}

/// What is due after an interval.
pub(super) enum Due {
    /// Nothing: something has come.
    Nothing,
    Ping,
    /// The end of the connection: no ping was answered.
    End,
}

impl Keepalive {
    pub(super) fn new(config: &Config) -> Self {
        let pings_max = config.ping_timeout.div_duration_f64(config.keepalive_interval).ceil();
        Self { silent: AtomicU32::new(0), pings_max: pings_max as u32 }
    }

    /// Something has come.
    pub(super) fn received(&self) {
        self.silent.store(0, Ordering::Relaxed);
    }

    /// An interval is over.
    pub(super) fn interval_over(&self) -> Due {
        match self.silent.fetch_add(1, Ordering::Relaxed) {
            0 => Due::Nothing,
            pings if pings <= self.pings_max => Due::Ping,
            _ => Due::End,
        }
    }
}
