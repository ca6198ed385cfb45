//! The scenario `dashboard`: the cost of keeping dashboards of ticking sessions up to date.

use clap::Args;
use serde::Serialize;

use crate::deliveries::{Audience, FilterBy, Way};
use crate::events::{Keys, Names, content, session};
use crate::latency::Operation;
use crate::options::Common;
use crate::report::Report;
use crate::requests::{Framing, Requests};
use crate::schedule::Rate;
use crate::workload::{Site, Workload};

/// Let sessions tick, and keep dashboards up to date
///
/// The CPU that an event costs is the metric to look at: run it with an interval and with --interval-ms 0, which is the
/// plain stream. An interval spares something only where sessions tick more often, as they do by default. Verifies that
/// ids only grow, that each event is shown as it was sent, and that in the end every dashboard shows the last tick of
/// every session.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Dashboard {
    /// Sessions, each with a timer that ticks
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
    /// How often each ticks in a second
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    ticks: u32,
    /// Dashboards that show all of them
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    dashboards: u32,
    /// Between two updates of a dashboard; 0 sends every event
    #[arg(long, value_name = "N", default_value_t = 250)]
    interval_ms: u64,
}

impl Dashboard {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let site = Site::new(&common.target.with_slots(self.dashboards as usize, 1)).await?;
        let ticks = (0..self.sessions).map(|number| {
            let sent = format!(
                r#""event_type":"timer_tick","source":"loadtest","session_id":"{}","user_id":"teacher","payload":{{"remaining":3600}}"#,
                session(number)
            );
            let keys = Keys { event_type: 0, session: number, user: 0, content: content(sent.as_bytes()) };
            (format!("{{{sent}}}").into_bytes(), keys)
        });
        let requests = Requests::of_events(ticks, 1, &Framing::WebSocket, 0);
        let names = Names { sessions: (0..self.sessions).map(session).collect(), ..Names::default() };
        let way = match self.interval_ms {
            0 => Way::Socket,
            interval_ms => Way::Conflated { interval_ms },
        };
        let audience = Audience { by: FilterBy::All, count: self.dashboards, way };
        let workload = site.one_producer(requests, names, &[audience], self.sessions).await?;
        let rate = common.profile(Rate(Some(u64::from(self.sessions) * u64::from(self.ticks))));
        let workload = Workload { counted: Operation::Acknowledgement, rate, ..workload };
        let driven = workload.drive(&site, common).await?;

        let stream = match self.interval_ms {
            0 => "every event".to_owned(),
            interval => format!("the latest every {interval} ms"),
        };
        let ticks = if self.ticks == 1 { String::new() } else { format!(" {} times a second", self.ticks) };
        let title = format!("{} sessions that tick{ticks}, {} dashboards, {stream}", self.sessions, self.dashboards);
        let shown = driven.run.counted(Operation::Delivery);
        let mut report = Report::of("dashboard", title, self, common, &driven).exercised("events shown", shown).result(
            "shown on each dashboard",
            "events",
            shown as f64 / f64::from(self.dashboards),
        );
        if let (1.., Some(deliveries)) = (self.interval_ms, &driven.deliveries) {
            report = report.exercised("events conflated away", deliveries.conflated());
        }
        report.finish(driven, site).await
    }
}
