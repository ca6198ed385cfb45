//! The scenario `fanout`: how fast stored events reach their subscribers.

use std::rc::Rc;

use clap::{Args, Parser};
use serde::Serialize;

use crate::connection::{Connection, Scratch};
use crate::deliveries::{Deliveries, FilterBy};
use crate::events::Events;
use crate::flow::Flow;
use crate::latency::Operation;
use crate::options::Common;
use crate::producer::Producer;
use crate::report::{Findings, Report};
use crate::requests::{Framing, Requests};
use crate::run::Run;
use crate::schedule::Rate;
use crate::subscriber::Subscribers;
use crate::target::Target;
use crate::tasks::Tasks;
use crate::tracker::{Dialect, RequestTracker};

/// Publish events on one connection and measure how fast they reach subscribers
///
/// Verifies that each subscriber gets every event that matches its filter exactly once and in order, and that all of
/// them are stored. At the rate max, new events are sent once earlier ones have arrived, so that live delivery is
/// measured and not the catching up of slow subscribers.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Fanout {
    /// Subscribers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub subscribers: u32,
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

impl Default for Fanout {
    fn default() -> Self {
        #[derive(Parser)]
        struct Defaults {
            #[command(flatten)]
            fanout: Fanout,
        }
        Defaults::parse_from([""]).fanout
    }
}

impl Fanout {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        self.measure_on(Target::new(&common.target).await?, common).await
    }

    /// Measures a server that keeps the same contract.
    pub async fn measure_on(&self, target: Target, common: &Common) -> anyhow::Result<Report> {
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        let scratch = Scratch::default();
        let asking = [(self.filter, self.subscribers)];
        let deliveries = Rc::new(Deliveries::new(newest, &self.events, &asking, self.window, true));
        let connected = Subscribers::connect(deliveries.clone(), &target, &scratch).await?;
        let connection = Connection::web_socket(&target, "/ws/publish", &scratch).await?;
        let requests = Rc::new(Requests::render(&self.events, 1, &Framing::WebSocket, 0, 1));

        let run = Run::new(Operation::Delivery, newest);
        let flow = Flow::to_subscribers(self.rate, &run, &deliveries)?;
        let tracker =
            RequestTracker::new(run.clone(), requests, Dialect::WebSocket).with_deliveries(deliveries.clone());
        let mut tasks = Tasks::default();
        tasks.spawn(Producer::new(connection, flow, self.window as usize, tracker).run());
        connected.listen(&run, &mut tasks);
        let measured = tasks.measure(&run, common, &target).await?;
        tasks.finish(&run).await?;
        deliveries.check(&run).await;
        tasks.shutdown().await;
        run.check_stored(&target, stored).await?;
        let filter = match self.filter {
            FilterBy::All => "of everything".to_owned(),
            by => format!("of one {} each", format!("{by:?}").to_lowercase()),
        };
        let title = format!("{} subscribers {filter}, one producer", self.subscribers);
        Ok(Report::new(Findings::new("fanout", title, self).at(self.rate), &run, measured, target.stop()?))
    }
}
