//! Connection churn: clients that connect and disconnect again and again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::bail;
use event_pipeline::wire::frame::{self, OpCode};
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::measurement::{Measurement, dial, memory};
use crate::connection::{Connection, Scratch};
use crate::events::Events;
use crate::flow::Flow;
use crate::latency::Operation;
use crate::options::Common;
use crate::producer::Producer;
use crate::report::{Findings, grouped};
use crate::requests::{Framing, Requests};
use crate::run::{PATIENCE, Run};
use crate::subscriber::subscribe_on;
use crate::target::Target;
use crate::tasks::Tasks;
use crate::tracker::{Dialect, RequestTracker};
use crate::wire::responses;

/// The events that are published meanwhile. No client subscribes to their sessions.
const EVENTS: Events = Events { sessions: 100, users: 100, payload_bytes: 40 };

/// Events of the producer in flight.
const WINDOW: usize = 1_024;

/// The pause before something is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// How many reasons for failures are reported.
const FAILURES_TOLD: usize = 5;

/// Lets clients connect and disconnect while a producer publishes.
pub async fn storm(
    clients: usize,
    rate: u64,
    target: &Rc<Target>,
    common: &Common,
    options: &impl Serialize,
) -> anyhow::Result<Measurement> {
    let scratch = Scratch::default();
    let subscribers = target.subscribers().await?;
    let connection = Connection::web_socket(target, "/ws/publish", &scratch).await?;
    let requests = Rc::new(Requests::render(&EVENTS, 1, &Framing::WebSocket, 0, 1));
    let (memory_before, files_before) = (memory(target)?, open_files(target));

    let run = Run::new(Operation::Connection, target.newest().await?);
    let flow = Flow::at_rate(rate, &run)?;
    let mut tasks = Tasks::default();
    let tracker = RequestTracker::new(run.clone(), requests, Dialect::WebSocket);
    tasks.spawn(Producer::new(connection, flow, WINDOW, tracker).run());
    let failures = Rc::new(RefCell::new(BTreeMap::new()));
    for number in 0..clients {
        let (run, target, scratch, failures) = (run.clone(), target.clone(), scratch.clone(), failures.clone());
        tasks.spawn(churn(number, run, target, scratch, failures));
    }
    let measured = tasks.measure(&run, common, target).await?;
    tasks.finish(&run).await?;
    tasks.shutdown().await;

    let gone = async {
        while target.subscribers().await? > subscribers {
            sleep(PAUSE).await;
        }
        anyhow::Ok(())
    };
    match timeout(PATIENCE, gone).await {
        Ok(gone) => gone?,
        Err(_) => {
            let left = target.subscribers().await? - subscribers;
            run.violation(|| format!("the server counts {left} subscribers that left {PATIENCE:?} ago"));
        }
    }
    let mut notes = Vec::new();
    if let (Some(before), Some(after)) = (memory_before, memory(target)?) {
        let [before, after] = [before, after].map(|bytes| bytes as f64 / 1e6);
        notes.push(format!("The server held {after:.1} MB when they were gone, {before:.1} MB before they came."));
    }
    if let (Some(before), Some(after)) = (files_before, open_files(target)) {
        notes.push(format!("It had {after} open files then, {before} before."));
    }
    let failures = failures.borrow();
    let mut failures = failures.iter().collect::<Vec<_>>();
    failures.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(**count));
    notes.extend(failures.iter().take(FAILURES_TOLD).map(|(why, count)| {
        let count = grouped(**count as f64);
        format!("{count} attempts failed, over the whole run: {why}.")
    }));
    let title = format!("{} clients come and go, {} events/s meanwhile", clients, grouped(rate as f64));
    let findings = Findings::new("connections", title, options).noting(notes);
    Ok(Measurement { findings, run, measured })
}

/// How many files the server has open, if it can be known.
fn open_files(target: &Target) -> Option<usize> {
    let files = std::fs::read_dir(format!("/proc/{}/fd", target.watched.as_ref()?.pid));
    Some(files.ok()?.count())
}

/// What a client does on one connection.
#[derive(Debug, Clone, Copy)]
enum ChurnStep {
    /// Subscribes, and closes the WebSocket.
    Subscribe,
    /// Subscribes, and resets the connection.
    SubscribeAndVanish,
    /// Sends a request and reads its answer.
    Request,
    /// The same, and resets the connection in the middle of the next request.
    RequestAndVanish,
}

impl ChurnStep {
    const ALL: [Self; 4] = [Self::Subscribe, Self::SubscribeAndVanish, Self::Request, Self::RequestAndVanish];
}

/// Connects and disconnects until the run stops, and counts the reasons of failures.
async fn churn(
    number: usize,
    run: Rc<Run>,
    target: Rc<Target>,
    scratch: Scratch,
    failures: Rc<RefCell<BTreeMap<String, u64>>>,
) -> anyhow::Result<()> {
    for visit in (number..).map(|visit| ChurnStep::ALL[visit % ChurnStep::ALL.len()]) {
        if run.is_stopping() {
            break;
        }
        if let Err(error) = visit.run(number, &run, &target, &scratch).await {
            *failures.borrow_mut().entry(format!("{error:#}")).or_default() += 1;
            sleep(PAUSE).await;
        }
    }
    Ok(())
}

impl ChurnStep {
    async fn run(self, number: usize, run: &Run, target: &Target, scratch: &Scratch) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut connection = dial(number, target, scratch).await?;
        match self {
            Self::Subscribe | Self::SubscribeAndVanish => {
                connection = subscribe_on(connection, target, r#"{"session_id":"storm"}"#).await?;
            }
            Self::Request | Self::RequestAndVanish => request(&mut connection, target).await?,
        }
        run.count(Operation::Connection, 1);
        run.took(Operation::Connection, begun, Instant::now(), 1);
        match self {
            Self::Subscribe => {
                frame::masked(connection.out(), OpCode::Close, &1_000_u16.to_be_bytes(), *b"mask");
                connection.leave().await
            }
            Self::Request => Ok(()),
            Self::SubscribeAndVanish => connection.vanish(),
            Self::RequestAndVanish => {
                let (prefix, headers) = (&target.prefix, target.headers());
                let head = format!("POST {prefix}/events HTTP/1.1\r\n{headers}Content-Length: 100\r\n\r\n{{");
                connection.out().extend_from_slice(head.as_bytes());
                connection.send().await?;
                connection.vanish()
            }
        }
    }
}

/// Requests `/health`.
async fn request(connection: &mut Connection, target: &Target) -> anyhow::Result<()> {
    let (prefix, headers) = (&target.prefix, target.headers());
    let request = format!("GET {prefix}/health HTTP/1.1\r\n{headers}\r\n");
    connection.out().extend_from_slice(request.as_bytes());
    let answered = connection.answer(|bytes, _, answer| {
        responses(bytes, |status, body| {
            if status != 200 {
                bail!("the server answered {status} {}", String::from_utf8_lossy(body));
            }
            *answer = Some(());
            Ok(())
        })
    });
    answered.await
}
