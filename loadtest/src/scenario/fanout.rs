//! The scenario `fanout`: how fast stored events reach their subscribers.

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::deliveries::{Audience, FilterBy, Way};
use crate::events::Events;
use crate::latency::Operation;
use crate::options::{Common, defaults};
use crate::report::Report;
use crate::requests::{Framing, Requests};
use crate::schedule::Rate;
use crate::target::Target;
use crate::workload::{Site, Workload};

/// Publish events on one connection and measure how fast they reach subscribers
///
/// Verifies that each subscriber gets every event that matches its filter exactly once, in order and as it was sent, and
/// that all of them are stored. At the rate max, new events are sent once earlier ones have arrived, so that live
/// delivery is measured and not the catching up of slow subscribers.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Fanout {
    /// Subscribers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub subscribers: u32,
    /// How they get their events
    #[arg(long, value_enum, default_value_t = Out::Ws)]
    pub out_via: Out,
    /// The filter of each subscriber: everything, or one session, user or type, which they take in turn
    #[arg(long, value_enum, default_value_t = FilterBy::All)]
    pub filter: FilterBy,
    /// Events a second, or max. At a rate, latency counts from when an event was due
    #[arg(long, value_name = "RATE", default_value = "max")]
    pub rate: Rate,
    /// Events that are published and not yet received or acknowledged
    #[arg(long, value_name = "N", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..))]
    pub window: u32,
    #[command(flatten)]
    #[serde(flatten)]
    pub events: Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Out {
    /// Over a WebSocket
    Ws,
    /// As an event stream (Server-Sent Events)
    Sse,
    /// Over a WebSocket, under a durable name each, and confirming what they got
    Names,
    /// Over a WebSocket, as the members of one group: each event goes to one of them, who confirms it
    Group,
}

impl Default for Fanout {
    fn default() -> Self {
        defaults()
    }
}

impl Fanout {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        self.measure_on(Target::new(&common.target.with_slots(self.subscribers as usize, 1)).await?, common).await
    }

    /// Measures a server that keeps the same contract.
    pub async fn measure_on(&self, target: Target, common: &Common) -> anyhow::Result<Report> {
        let site = Site::of(target).await?;
        let (way, via) = match self.out_via {
            Out::Ws => (Way::Socket, ""),
            Out::Sse => (Way::Stream, " as event streams"),
            Out::Names => (Way::Named, " under durable names"),
            Out::Group => (Way::Group, " as one group"),
        };
        let audience = Audience { by: self.filter, count: self.subscribers, way };
        let requests = Requests::render(&self.events, 1, &Framing::WebSocket, 0, 1);
        let workload = site.one_producer(requests, self.events.names(), &[audience], self.window).await?;
        let driven = Workload { rate: common.profile(self.rate), ..workload }.drive(&site, common).await?;
        let filter = match self.filter {
            FilterBy::All => "of everything".to_owned(),
            by => format!("of one {} each", format!("{by:?}").to_lowercase()),
        };
        let title = format!("{} subscribers {filter}{via}, one producer", self.subscribers);
        let mut report = Report::of("fanout", title, self, common, &driven);
        if let (Out::Names | Out::Group, Some(deliveries)) = (self.out_via, &driven.deliveries) {
            report = report
                .exercised("deliveries", driven.measured.count(Operation::Delivery))
                .exercised("confirmations", deliveries.confirmed.get());
        }
        report.finish(driven, site).await
    }
}
