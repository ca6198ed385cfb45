//! The scenario `slow-consumer`: subscribers that do not keep up, their cost for the others, and their catching up.

use std::time::Duration;

use clap::Args;
use event_pipeline::config::Config;
use serde::Serialize;

use crate::deliveries::{Audience, FilterBy, Way};
use crate::events::Events;
use crate::machine;
use crate::numbers::grouped;
use crate::options::Common;
use crate::report::Report;
use crate::requests::{Framing, Requests};
use crate::schedule::Rate;
use crate::subscriber::Slowness;
use crate::workload::{Site, Workload};

/// Let some subscribers hang for a third of the time, and measure the effect on the others
///
/// A third of the time all keep up; in the next one the slow ones hang, or read little; then they read on. Verifies
/// that all get every event exactly once and in order: the slow ones too, from the server's storage.
#[derive(Args, Debug, Clone, Serialize)]
pub struct SlowConsumer {
    /// Subscribers that keep up; they are measured
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    fast: u32,
    /// Subscribers that do not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    slow: u32,
    /// What each slow one reads a second while it is slow; by default it hangs
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    slow_bytes_per_second: u32,
    /// Events a second, or max: as fast as the fast ones receive them
    #[arg(long, value_name = "RATE", default_value = "20000")]
    rate: Rate,
    /// Events that are published and not yet received by all fast ones or acknowledged
    #[arg(long, value_name = "N", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    #[command(flatten)]
    #[serde(flatten)]
    events: Events,
}

impl SlowConsumer {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let all = (self.fast + self.slow) as usize;
        machine::ensure_open_files(all)?;
        let site = Site::new(&common.target.with_slots(all, 1)).await?;
        let (warm, third) = (common.warm_up(), Duration::from_secs(common.seconds) / 3);
        let phases = vec![warm + third, warm + 2 * third];
        let bytes_per_second = self.slow_bytes_per_second;
        let slow = Way::Slow { from: phases[0], to: phases[1], bytes_per_second };
        let audiences =
            [Audience::new(FilterBy::All, self.fast), Audience { by: FilterBy::All, count: self.slow, way: slow }];
        let requests = Requests::render(&self.events, 1, &Framing::WebSocket, 0, 1);
        let workload = site.one_producer(requests, self.events.names(), &audiences, self.window).await?;
        let workload = Workload { rate: common.profile(self.rate), phases, ..workload };
        let started = workload.start(&site);
        // The server may cut off a subscriber that takes nothing for this long.
        let patience = match common.target.setting("WRITE_TIMEOUT_SECONDS").map(str::parse) {
            Some(Ok(seconds)) => Duration::from_secs_f64(seconds),
            _ => Config::default().write_timeout,
        };
        started.slowness.may_be_cut_off.set(self.slow_bytes_per_second == 0 && third >= patience);
        let driven = started.measure(&site.target, common).await?;

        let slowness = match self.slow_bytes_per_second {
            0 => "hang".to_owned(),
            bytes => format!("read {} bytes/s", grouped(f64::from(bytes))),
        };
        let title = format!("{} subscribers that keep up, {} that {slowness} for a while", self.fast, self.slow);
        let mut report = Report::of("slow-consumer", title, self, common, &driven);
        for (name, latency) in ["before", "meanwhile", "afterwards"].iter().zip(&driven.measured.phases) {
            report = report.result(&format!("{name} p99"), "ms", latency.p99 / 1e3);
        }
        let Slowness { fell_behind, missed, caught_up, .. } = &*driven.slowness;
        let cut_off = driven.deliveries.as_ref().map(|deliveries| deliveries.cut_off()).unwrap_or_default();
        let report = report
            .exercised("times that one fell behind", fell_behind.get() + cut_off.len() as u64)
            .result("behind at most", "events", missed.get() as f64)
            .result("caught up", "subscribers", f64::from(caught_up.get().0))
            .result("caught up within", "ms", caught_up.get().1.as_secs_f64() * 1e3)
            .result("cut off", "subscribers", cut_off.len() as f64)
            .noting(cut_off.first().map(|why| format!("The first was cut off with: {why}.")));
        report.finish(driven, site).await
    }
}
