//! Servers that speak another protocol: what a load has to know of one, and how it is measured.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::Context;
use tokio::time::timeout;

use crate::connection::{Connection, Scratch};
use crate::deliveries::{Deliveries, FilterBy};
use crate::flow::Flow;
use crate::folder::Folder;
use crate::latency::Operation;
use crate::options::Common;
use crate::producer::Producer;
use crate::report::{Findings, Report, grouped};
use crate::requests::{Framing, Requests};
use crate::run::{PATIENCE, Run};
use crate::scenario::fanout::Fanout;
use crate::scenario::publish::Publish;
use crate::subscriber::{EventCheck, Receive, Subscribers};
use crate::target::{Subject, Target};
use crate::tasks::Tasks;
use crate::tracker::{Dialect, RequestTracker};

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
    let target = driver.start(common.target.folder()?)?;
    driver.prepare(&target).await?;
    let plan = publish.resolve();
    let scratch = Scratch::default();
    let mut ready = Vec::new();
    for number in 0..plan.connections {
        let framing = Framing::Peer(driver.render(), number);
        let requests = Requests::render(&publish.events, 1, &framing, number, plan.connections);
        ready.push((driver.producer(&target, number, &scratch).await?, requests));
    }

    let run = Run::new(Operation::Acknowledgement, 0);
    let mut tasks = Tasks::default();
    for (connection, requests) in ready {
        let tracker = RequestTracker::new(run.clone(), requests.into(), driver.dialect());
        tasks.spawn(Producer::new(connection, Flow::Window, plan.window, tracker).run());
    }
    let measured = tasks.measure(&run, common, &target).await?;
    tasks.finish(&run).await?;
    check_stored(driver, &target, &run).await?;
    let (connections, window) = (plan.connections, grouped(plan.window as f64));
    let title = format!("one event a message, {connections} connections × {window} events in flight");
    Ok(Report::new(Findings::new("publish", title, publish), &run, measured, target.stop()?))
}

/// Publishes to subscribers of a server of another kind as the scenario does to ours. Verifies that each gets all
/// events, byte by byte as they were sent, once and in order, and that as many are stored, if any are.
pub async fn fanout(driver: &impl Driver, fanout: &Fanout, common: &Common) -> anyhow::Result<Report> {
    let target = driver.start(common.target.folder()?)?;
    driver.prepare(&target).await?;
    let scratch = Scratch::default();
    let asking = [(FilterBy::All, fanout.subscribers)];
    let deliveries = Rc::new(Deliveries::new(0, &fanout.events, &asking, fanout.window, true));
    let mut connections = Vec::new();
    for number in 0..fanout.subscribers {
        let connection = driver.subscriber(&target, &scratch).await;
        connections.push(connection.with_context(|| format!("subscriber {number}"))?);
    }
    let connected = Subscribers::of_peer(deliveries.clone(), connections, driver.receive());
    let connection = driver.producer(&target, 0, &scratch).await?;
    let render = |framing| Rc::new(Requests::render(&fanout.events, 1, &framing, 0, 1));
    let (requests, events) = (render(Framing::Peer(driver.render(), 0)), render(Framing::Plain));

    let run = Run::new(Operation::Delivery, 0);
    let flow = Flow::to_subscribers(fanout.rate, &run, &deliveries)?;
    let tracker = RequestTracker::new(run.clone(), requests, driver.dialect()).with_deliveries(deliveries.clone());
    let mut tasks = Tasks::default();
    tasks.spawn(Producer::new(connection, flow, fanout.window as usize, tracker).run());
    connected.listen_and_check(&run, &mut tasks, |_| Some(is_next_of(events.clone())));
    let measured = tasks.measure(&run, common, &target).await?;
    tasks.finish(&run).await?;
    deliveries.check(&run).await;
    tasks.shutdown().await;
    check_stored(driver, &target, &run).await?;
    let title = format!("{} subscribers of everything, one producer", fanout.subscribers);
    let findings = Findings::new("fanout", title, fanout).at(fanout.rate).noting(driver.note().map(str::to_owned));
    Ok(Report::new(findings, &run, measured, target.stop()?))
}

/// Whether each event that comes is the next of these.
fn is_next_of(events: Rc<Requests>) -> EventCheck {
    let mut index = 0;
    Box::new(move |text| {
        let sent = events.get(index);
        index += 1;
        (text != sent).then(|| format!("which is not what was sent: {}", String::from_utf8_lossy(text)))
    })
}

async fn check_stored(driver: &impl Driver, target: &Target, run: &Run) -> anyhow::Result<()> {
    if let Some(stored) = driver.stored(target).await? {
        run.verification.borrow_mut().check_stored(stored);
    }
    Ok(())
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
    use crate::events::Events;

    #[test]
    fn events_are_compared_with_what_was_sent() {
        let events = Events { sessions: 3, users: 5, payload_bytes: 40 };
        let sent = Rc::new(Requests::render(&events, 1, &Framing::Plain, 0, 1));
        let mut check = is_next_of(sent.clone());
        assert_eq!([0, 1].map(|index| check(sent.get(index))), [None, None]);
        let expected = format!("which is not what was sent: {}", String::from_utf8_lossy(sent.get(3)));
        assert_eq!(check(sent.get(3)), Some(expected));
        assert_eq!(check(sent.get(3)), None);
    }

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
