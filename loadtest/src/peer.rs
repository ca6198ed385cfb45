//! Servers that speak another protocol: what a load has to know of one, and how it is measured.

use std::rc::Rc;

use anyhow::Context;

use crate::connection::{Connection, Scratch};
use crate::deliveries::{Audience, Deliveries, FilterBy};
use crate::latency::Operation;
use crate::numbers::grouped;
use crate::options::Common;
use crate::process::Folder;
use crate::report::Report;
use crate::requests::{Framing, Requests};
use crate::scenario::fanout::Fanout;
use crate::scenario::publish::Publish;
use crate::subscriber::{Receive, Subscribers};
use crate::target::Target;
use crate::tracker::Dialect;
use crate::workload::{Driven, Publisher, Site, Workload};

/// A server of another kind, and a way to use it.
#[allow(async_fn_in_trait)] // Everything runs on one thread, so no future has to be `Send`.
pub trait Driver {
    /// Starts it on a free port of this machine, with everything it stores in this folder.
    fn start(&self, folder: Folder) -> anyhow::Result<Target>;

    /// Creates the stream or subject that events are published to, if it is not there by itself.
    async fn prepare(&self, _: &Target) -> anyhow::Result<()> {
        Ok(())
    }

    /// Renders a request: what is appended to, the number of the producer, the event.
    fn render(&self) -> fn(&mut Vec<u8>, usize, &[u8]);

    fn dialect(&self) -> Dialect;

    /// A connection that is ready to publish, of the producer with this number.
    async fn producer(&self, target: &Target, number: usize, scratch: &Scratch) -> anyhow::Result<Connection>;

    /// A connection that has subscribed to everything.
    async fn subscriber(&self, target: &Target, scratch: &Scratch) -> anyhow::Result<Connection>;

    fn receive(&self) -> Receive;

    /// How many events are stored; `None` where none are.
    async fn stored(&self, target: &Target) -> anyhow::Result<Option<u64>>;

    /// A remark for the comparison of its deliveries.
    fn note(&self) -> Option<&'static str> {
        None
    }
}

impl Publish {
    /// Publishes to a server of another kind as the scenario does to ours: the same events, connections and windows.
    /// Verifies the same: every event is acknowledged once and in order, and as many are stored.
    pub async fn measure_peer(&self, driver: &impl Driver, common: &Common) -> anyhow::Result<Report> {
        let site = Site::empty(driver.start(common.target.folder()?)?);
        driver.prepare(&site.target).await?;
        let (ingress, _) = self.ingress();
        let (count, window) = (ingress.connections, ingress.window);
        let mut publishers = Vec::new();
        for number in 0..count {
            let framing = Framing::Peer(driver.render(), number);
            let requests = Requests::render(&self.events, 1, &framing, number, count);
            let connection = driver.producer(&site.target, number, &site.scratch).await?;
            publishers.push(Publisher::new(connection, requests.into(), driver.dialect(), window));
        }
        let driven = Workload::new(Operation::Acknowledgement, publishers).drive(&site, common).await?;
        let title = format!("one event a message, {count} connections × {} events in flight", grouped(window as f64));
        judged(driver, Report::of("publish", title, self, common, &driven), &driven, site).await
    }
}

impl Fanout {
    /// Publishes to subscribers of a server of another kind as the scenario does to ours. Verifies that each gets all
    /// events, byte by byte as they were sent, once and in order, and that as many are stored, if any are.
    pub async fn measure_peer(&self, driver: &impl Driver, common: &Common) -> anyhow::Result<Report> {
        let site = Site::empty(driver.start(common.target.folder()?)?);
        driver.prepare(&site.target).await?;
        let requests = Rc::new(Requests::render(&self.events, 1, &Framing::Peer(driver.render(), 0), 0, 1));
        let audience = Audience::new(FilterBy::All, self.subscribers);
        let names = self.events.names();
        let deliveries = Rc::new(Deliveries::new(0, names, &[audience], self.window, Some(requests.clone())));
        let mut connections = Vec::new();
        for number in 0..self.subscribers {
            let connection = driver.subscriber(&site.target, &site.scratch).await;
            connections.push(connection.with_context(|| format!("subscriber {number}"))?);
        }
        let connection = driver.producer(&site.target, 0, &site.scratch).await?;
        let publisher = Publisher::new(connection, requests, driver.dialect(), self.window as usize);
        let workload = Workload {
            subscribers: Some(Subscribers::of(deliveries, connections, Some(driver.receive()))),
            waits_for_subscribers: true,
            rate: common.profile(self.rate),
            ..Workload::new(Operation::Delivery, vec![publisher])
        };
        let driven = workload.drive(&site, common).await?;
        let title = format!("{} subscribers of everything, one producer", self.subscribers);
        let report = Report::of("fanout", title, self, common, &driven).noting(driver.note().map(str::to_owned));
        judged(driver, report, &driven, site).await
    }
}

/// Compares what was acknowledged with how many events are stored, and ends the server.
async fn judged(driver: &impl Driver, report: Report, driven: &Driven, site: Site) -> anyhow::Result<Report> {
    if let Some(stored) = driver.stored(&site.target).await? {
        driven.run.verification.borrow_mut().check_stored(stored);
    }
    Ok(report.judged(&driven.run, site.stop()?))
}
