//! Servers that speak another protocol: what a load has to know of one, and how it is measured.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::Context;
use tokio::time::timeout;

use crate::connection::{Connection, PATIENCE, Scratch};
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
use crate::target::{Subject, Target};
use crate::tracker::Dialect;
use crate::workload::{Driven, Publisher, Site, Workload};

/// A server of another kind, and a way to use it.
pub trait Driver {
    fn subject(&self) -> Subject;

    /// Starts it on a free port of this machine, with everything it stores in this folder.
    fn start(&self, folder: Folder) -> anyhow::Result<Target>;

    /// Creates the stream or subject that events are published to.
    async fn prepare(&self, target: &Target) -> anyhow::Result<()>;

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
    fn note(&self) -> Option<&'static str>;
}

/// Publishes to a server of another kind as the scenario does to ours: the same events, connections and windows.
/// Verifies the same: every event is acknowledged once and in order, and as many are stored.
pub async fn publish(driver: &impl Driver, publish: &Publish, common: &Common) -> anyhow::Result<Report> {
    let site = Site::empty(driver.start(common.target.folder()?)?);
    driver.prepare(&site.target).await?;
    let (ingress, _) = publish.ingress();
    let (count, window) = (ingress.connections, ingress.window);
    let mut publishers = Vec::new();
    for number in 0..count {
        let framing = Framing::Peer(driver.render(), number);
        let requests = Requests::render(&publish.events, 1, &framing, number, count);
        let connection = driver.producer(&site.target, number, &site.scratch).await?;
        publishers.push(Publisher::new(connection, requests.into(), driver.dialect(), window));
    }
    let driven = Workload::new(Operation::Acknowledgement, publishers).drive(&site, common).await?;
    let title = format!("one event a message, {count} connections × {} events in flight", grouped(window as f64));
    judged(driver, Report::of("publish", title, publish, common, &driven), &driven, site).await
}

/// Publishes to subscribers of a server of another kind as the scenario does to ours. Verifies that each gets all
/// events, byte by byte as they were sent, once and in order, and that as many are stored, if any are.
pub async fn fanout(driver: &impl Driver, fanout: &Fanout, common: &Common) -> anyhow::Result<Report> {
    let site = Site::empty(driver.start(common.target.folder()?)?);
    driver.prepare(&site.target).await?;
    let requests = Rc::new(Requests::render(&fanout.events, 1, &Framing::Peer(driver.render(), 0), 0, 1));
    let audience = Audience::new(FilterBy::All, fanout.subscribers);
    let names = fanout.events.names();
    let deliveries = Rc::new(Deliveries::new(0, names, &[audience], fanout.window, Some(requests.clone())));
    let mut connections = Vec::new();
    for number in 0..fanout.subscribers {
        let connection = driver.subscriber(&site.target, &site.scratch).await;
        connections.push(connection.with_context(|| format!("subscriber {number}"))?);
    }
    let connection = driver.producer(&site.target, 0, &site.scratch).await?;
    let publisher = Publisher::new(connection, requests, driver.dialect(), fanout.window as usize);
    let workload = Workload {
        subscribers: Some(Subscribers::of(deliveries, connections, Some(driver.receive()))),
        waits_for_subscribers: true,
        rate: common.profile(fanout.rate),
        ..Workload::new(Operation::Delivery, vec![publisher])
    };
    let driven = workload.drive(&site, common).await?;
    let title = format!("{} subscribers of everything, one producer", fanout.subscribers);
    let report = Report::of("fanout", title, fanout, common, &driven).noting(driver.note().map(str::to_owned));
    judged(driver, report, &driven, site).await
}

/// Compares what was acknowledged with how many events are stored, and ends the server.
async fn judged(driver: &impl Driver, report: Report, driven: &Driven, site: Site) -> anyhow::Result<Report> {
    if let Some(stored) = driver.stored(&site.target).await? {
        driven.run.verification.borrow_mut().check_stored(stored);
    }
    Ok(report.judged(&driven.run, site.stop()?))
}

/// Sends the bytes to send, and reads until `read` has found an answer.
///
/// # Errors
/// None comes for a while, or what `read` says.
pub async fn ask<T>(
    connection: &mut Connection,
    read: impl FnMut(&[u8], &mut Vec<u8>, &mut Option<T>) -> anyhow::Result<usize>,
) -> anyhow::Result<T> {
    timeout(PATIENCE, connection.answer(read)).await.context("the server does not answer")?
}

/// A program that is installed.
#[derive(Debug, Clone)]
pub struct Binary {
    pub path: PathBuf,
    pub version: String,
}

impl Binary {
    /// Finds a program by its name, and its version in what it says of itself.
    ///
    /// # Errors
    /// It is there and does not work.
    pub fn find(name: &str, version: fn(&str) -> Option<&str>) -> anyhow::Result<Option<Self>> {
        // Debian installs servers in /usr/sbin, which is not in every user's PATH.
        for path in [PathBuf::from(name), Path::new("/usr/sbin").join(name)] {
            let output = match Command::new(&path).arg("--version").output() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                output => output.with_context(|| format!("start {}", path.display()))?,
            };
            let text = String::from_utf8_lossy(&output.stdout);
            let version = version(text.trim()).with_context(|| format!("{name} says no version in {text:?}"))?;
            return Ok(Some(Self { version: version.to_owned(), path }));
        }
        Ok(None)
    }
}

/// The first two numbers of a version.
pub fn version_parts(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_not_there_are_not_found() {
        assert!(Binary::find("no-such-program", |_| None).expect("nothing").is_none());
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(["2.9.10", "2.10", "7"].map(version_parts), [(2, 9), (2, 10), (7, 0)]);
        assert!(version_parts("2.9.10") < version_parts("2.10.0"));
    }
}
