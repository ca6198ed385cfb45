//! Connection churn: clients that connect and disconnect again and again.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use event_pipeline::wire::frame::{self, OpCode};
use serde::Serialize;
use tokio::time::{sleep, timeout};

use crate::connection::{Connection, PATIENCE, Scratch};
use crate::events::{Events, PayloadBytes};
use crate::latency::Operation;
use crate::numbers::grouped;
use crate::options::Common;
use crate::read_back;
use crate::report::Report;
use crate::run::Run;
use crate::schedule::Rate;
use crate::subscriber::subscribe;
use crate::target::Target;
use crate::tracker::Dialect;
use crate::workload::{Ingress, Site, Workload};

/// The events that are published meanwhile. No client subscribes to their sessions.
const EVENTS: Events =
    Events { sessions: 100, users: 100, skew: 0.0, payload_bytes: PayloadBytes(Some(40)), idempotency_keys: false };

/// Events of the producer in flight.
const WINDOW: u32 = 1_024;

/// The pause before something is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// How many reasons for failures are reported.
const FAILURES_TOLD: usize = 5;

/// Lets clients connect and disconnect while a producer publishes.
pub async fn storm(
    clients: usize,
    rate: u64,
    site: &Site,
    common: &Common,
    options: &impl Serialize,
) -> anyhow::Result<(Report, Rc<Run>)> {
    let target = &site.target;
    let subscribers = target.subscribers().await?;
    let (memory_before, files_before) = (target.memory()?, open_files(target));
    let ingress = Ingress::new(Dialect::WebSocket, 1, 1, WINDOW);
    let publishers = site.publishers(&ingress, &EVENTS, 0, 1).await?;
    let workload = Workload::new(Operation::Connection, publishers);
    let mut started = Workload { rate: common.profile(Rate(Some(rate))), ..workload }.start(site);
    let failures = Rc::new(RefCell::new(BTreeMap::new()));
    for number in 0..clients {
        let (run, scratch, failures) = (started.run.clone(), site.scratch.clone(), failures.clone());
        started.tasks.spawn(churn(number, run, target.clone(), scratch, failures));
    }
    let driven = started.measure(target, common).await?;

    let run = driven.run.clone();
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
    let mut failures = failures.take().into_iter().collect::<Vec<(String, u64)>>();
    failures.sort_unstable_by_key(|(_, count)| Reverse(*count));
    let title = format!("{} clients come and go, {} events/s meanwhile", clients, grouped(rate as f64));
    let megabytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / 1e6);
    let mut report = Report::of("connections", title, options, common, &driven)
        .exercised("clients connected", driven.measured.count(Operation::Connection))
        .result("failed attempts", "", failures.iter().map(|(_, count)| *count as f64).sum())
        .result_if_known("memory before", "MB", megabytes(memory_before))
        .result_if_known("memory after", "MB", megabytes(target.memory()?))
        .result_if_known("open files before", "", files_before)
        .result_if_known("open files after", "", open_files(target))
        .noting(failures.iter().take(FAILURES_TOLD).map(|(why, count)| {
            let count = grouped(*count as f64);
            format!("{count} attempts failed, over the whole run: {why}.")
        }));
    // Each client has one connection at a time.
    report.in_flight = clients as u64;
    report.read_back = read_back::check(site, &run).await?;
    Ok((report, run))
}

/// How many files the server has open, if it can be known.
fn open_files(target: &Target) -> Option<f64> {
    let files = std::fs::read_dir(format!("/proc/{}/fd", target.watched.as_ref()?.pid));
    Some(files.ok()?.count() as f64)
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
        let dial = target.dial(number);
        let mut connection = match self {
            Self::Subscribe | Self::SubscribeAndVanish => {
                subscribe(target, r#"{"session_id":"storm"}"#, dial, scratch).await?
            }
            Self::Request | Self::RequestAndVanish => {
                let mut connection = Connection::dial(target, dial, scratch).await?;
                request(&mut connection, target).await?;
                connection
            }
        };
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
                let head = target.heads.request("POST", "/events", "Content-Length: 100\r\n") + "{";
                connection.out().extend_from_slice(head.as_bytes());
                connection.send().await?;
                connection.vanish()
            }
        }
    }
}

/// Requests `/health`.
async fn request(connection: &mut Connection, target: &Target) -> anyhow::Result<()> {
    let (status, body) = connection.request(&target.heads.get("/health")).await?;
    ensure!(status == 200, "the server answered {status} {}", String::from_utf8_lossy(&body));
    Ok(())
}
