//! The scenario `connections`: what being connected costs, and coming and going.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use event_pipeline::wire::frame::{self, OpCode};
use serde::Serialize;
use serde_json::json;
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::answer::{self, Answer};
use crate::connection::{Connection, Dial, Scratch, frames, responses};
use crate::events::{Events, Framing, Requests};
use crate::latency::Kind;
use crate::machine;
use crate::pace::{Pace, Rhythm};
use crate::producer::{Book, Dialect, Flow, Producer};
use crate::report::{Findings, Report, grouped};
use crate::run::{Common, Measured, PATIENCE, Run};
use crate::subscriber::subscribe_on;
use crate::target::Target;
use crate::tasks::Tasks;

/// Addresses of this machine that connections come from: each has some 28,000 ports, and a port is not free again at
/// once.
const SOURCES: usize = 32;

/// Whoever is not connected by then is not let in.
const CONNECTED_WITHIN: Duration = Duration::from_secs(120);

/// How finely it is told how connecting goes.
const STEP: Duration = Duration::from_millis(50);

/// Events of one message to the subscribers that idle.
const EVENTS_EACH: usize = 1_000;

/// Keys of what is published while clients come and go: nobody asks for them.
const EVENTS: Events = Events { sessions: 100, users: 100, payload_bytes: 40 };

/// What is published then and not answered.
const WINDOW: usize = 1_024;

/// Before something is tried again that nothing announces.
const PAUSE: Duration = Duration::from_millis(50);

/// Connect many subscribers and let them idle; let clients come and go
///
/// Two measurements. The first one opens connections as fast as it goes, each a subscriber of a session of its own,
/// lets them idle for --seconds, and tells what they cost. Verifies that an event of its session reaches each of them
/// then, and nothing else does. The second one, asked for with --storm, opens and closes connections for --seconds:
/// subscribers and HTTP requests, half of which vanish instead of leaving, while a producer publishes. Verifies that
/// the server forgets them all. Its settings MAX_SUBSCRIBERS and MAX_CONNECTIONS are raised as needed.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Connections {
    /// Subscribers that idle, each with a connection of its own; they stay through the storm
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(..=500_000))]
    idle: u32,
    /// How many of them connect at one time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// Clients that connect and leave, again and again
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    storm: u32,
    /// Events a second that are published meanwhile
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: u64,
}

impl Connections {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Vec<Report>> {
        ensure!(self.idle > 0 || self.storm > 0, "there is nothing to do without --idle and --storm");
        let (idle, storm) = (self.idle as usize, self.storm as usize);
        // Who has left may still have its place for a moment.
        let coming = 2 * storm;
        machine::ensure_open_files(idle + coming)?;
        let target = Rc::new(Target::new(&common.target.with_places(idle + coming, coming)).await?);
        let stored = target.stored().await?;
        let mut measurements = Vec::new();
        let mut idlers = Vec::new();
        if idle > 0 {
            let (measurement, connected) = self.idle(&target, common).await?;
            measurements.push(measurement);
            idlers = connected;
        }
        if storm > 0 && !common.interrupt.came() {
            measurements.push(self.storm(&target, common).await?);
        }
        drop(idlers);
        let acknowledged =
            measurements.iter().map(|Measurement { run, .. }| run.ledger.borrow().acknowledged).sum::<u64>();
        let stored = target.stored().await? - stored;
        let target = Rc::into_inner(target).context("somebody is still connected")?;
        let stopped = target.stop()?;
        let reports = measurements.into_iter().map(|Measurement { findings, run, measured }| {
            if stored != acknowledged {
                let violation = || format!("{acknowledged} events were acknowledged, {stored} are stored");
                run.ledger.borrow_mut().violation(violation);
            }
            Report::new(findings, &run, measured, stopped.clone())
        });
        Ok(reports.collect())
    }

    /// Connects everybody and lets them idle.
    async fn idle(&self, target: &Rc<Target>, common: &Common) -> anyhow::Result<(Measurement, Vec<Connection>)> {
        let run = Run::in_phases(Kind::Connection, target.newest().await?, STEP, &[]);
        let memory = memory(target)?;
        let crowd = Rc::new(Crowd {
            run: run.clone(),
            target: target.clone(),
            scratch: Scratch::default(),
            size: self.idle as usize,
            begun: Cell::new(0),
            connected: RefCell::default(),
        });
        let mut tasks = Tasks::default();
        (0..self.at_once).for_each(|_| tasks.spawn_endless(crowd.clone().gather()));
        let connecting = Common { seconds: CONNECTED_WITHIN.as_secs(), ..common.clone() };
        let measured = tasks.measure(&run, &connecting, target).await?;
        tasks.finish(&run).await?;
        tasks.shutdown().await;
        let mut connected = crowd.connected.take();
        let count = connected.len();
        ensure!(
            count == crowd.size,
            "only {count} of {} subscribers are connected, within {CONNECTED_WITHIN:?}",
            crowd.size
        );
        connected.sort_unstable_by_key(|(number, _)| *number);

        let mut notes = vec![format!(
            "All {} subscribers were connected within {:.2} s.",
            grouped(count as f64),
            measured.elapsed.as_secs_f64()
        )];
        let usage = || target.watched.as_ref().map(|watched| watched.usage()).transpose();
        let (before, since) = (usage()?, Instant::now());
        select! {
            () = sleep(Duration::from_secs(common.seconds)) => {}
            () = common.interrupt.wished() => {}
        }
        let idled = since.elapsed().as_secs_f64();
        if let (Some(before), Some(after), Some(memory)) = (before, usage()?, memory) {
            let processors = (after.cpu - before.cpu).as_secs_f64() / idled;
            notes.push(format!("In {idled:.1} s of idling the server used {:.2} % of a processor.", processors * 1e2));
            let (all, each) = (after.memory_bytes, after.memory_bytes.saturating_sub(memory) / count as u64);
            notes.push(format!(
                "The server held {:.1} MB, {:.1} MB before they came: {} bytes for each.",
                all as f64 / 1e6,
                memory as f64 / 1e6,
                grouped(each as f64)
            ));
        }
        let (reached, connections) = wake(connected, &run, target, &crowd.scratch).await?;
        notes.push(match reached {
            Some(longest) => {
                format!("Then an event for each of them reached it within {:.1} ms.", longest.as_secs_f64() * 1e3)
            }
            None => "Then not all of them got the event that was for them.".to_owned(),
        });
        let title = format!("{} subscribers connect, {} at a time, and idle", grouped(count as f64), self.at_once);
        let findings = Findings::new("connections", title, self).noting(notes);
        Ok((Measurement { findings, run, measured }, connections))
    }

    /// Lets clients come and go.
    async fn storm(&self, target: &Rc<Target>, common: &Common) -> anyhow::Result<Measurement> {
        let scratch = Scratch::default();
        let subscribers = target.subscribers().await?;
        let connection = Connection::web_socket(target, "/ws/publish", &scratch).await?;
        let requests = Rc::new(Requests::render(&EVENTS, 1, &Framing::WebSocket, 0, 1));
        let (memory_before, files_before) = (memory(target)?, open_files(target));

        let run = Run::new(Kind::Connection, target.newest().await?);
        let flow = Flow::Due(Pace::start(run.start, Rhythm::steady(self.rate))?.schedule(0, 1));
        let mut tasks = Tasks::default();
        let book = Book::new(run.clone(), requests, Dialect::WebSocket);
        tasks.spawn(Producer::new(connection, flow, WINDOW, book).run());
        let failures = Rc::new(RefCell::new(BTreeMap::new()));
        for number in 0..self.storm as usize {
            let (run, target, scratch, failures) = (run.clone(), target.clone(), scratch.clone(), failures.clone());
            tasks.spawn(come_and_go(number, run, target, scratch, failures));
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
                let violation = || format!("the server counts {left} subscribers that left {PATIENCE:?} ago");
                run.ledger.borrow_mut().violation(violation);
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
        let title = format!("{} clients come and go, {} events/s meanwhile", self.storm, grouped(self.rate as f64));
        let findings = Findings::new("connections", title, self).noting(notes);
        Ok(Measurement { findings, run, measured })
    }
}

/// Reasons for failures that are told.
const FAILURES_TOLD: usize = 5;

/// One of the two.
struct Measurement {
    findings: Findings,
    run: Rc<Run>,
    measured: Measured,
}

/// What the server holds, if it can be known.
fn memory(target: &Target) -> anyhow::Result<Option<u64>> {
    target.watched.as_ref().map(|watched| Ok(watched.usage()?.memory_bytes)).transpose()
}

/// How many files the server has open, if it can be known.
fn open_files(target: &Target) -> Option<usize> {
    let files = std::fs::read_dir(format!("/proc/{}/fd", target.watched.as_ref()?.pid));
    Some(files.ok()?.count())
}

/// A connection from one of this machine's many addresses, where the server is on it too.
async fn dial(number: usize, target: &Target, scratch: &Scratch) -> anyhow::Result<Connection> {
    let server = target.authority.parse::<SocketAddr>().ok();
    let is_here = server.is_some_and(|server| server.is_ipv4() && server.ip().is_loopback());
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + (number % SOURCES) as u8));
    let dial = Dial { source: is_here.then_some(source), ..Dial::default() };
    Connection::dial(&target.authority, dial, scratch).await
}

/// The session that a subscriber asks for.
fn session(number: usize) -> String {
    format!("idle-{number:06}")
}

/// Subscribers that gather.
struct Crowd {
    run: Rc<Run>,
    target: Rc<Target>,
    scratch: Scratch,
    size: usize,
    /// How many have begun to connect.
    begun: Cell<usize>,
    connected: RefCell<Vec<(usize, Connection)>>,
}

impl Crowd {
    /// Connects one after the other, as long as somebody is missing. Goes on for ever.
    async fn gather(self: Rc<Self>) -> anyhow::Result<()> {
        self.run.begun().await;
        while self.begun.get() < self.size {
            let number = self.begun.replace(self.begun.get() + 1);
            let connection = self.connect(number).await.with_context(|| format!("subscriber {number}"))?;
            let mut connected = self.connected.borrow_mut();
            connected.push((number, connection));
            if connected.len() == self.size {
                self.run.complete();
            }
        }
        pending().await
    }

    async fn connect(&self, number: usize) -> anyhow::Result<Connection> {
        let begun = Instant::now();
        let connection = dial(number, &self.target, &self.scratch).await?;
        let asks = json!({ "session_id": session(number) }).to_string();
        let connection = subscribe_on(connection, &self.target, &asks).await?;
        self.run.count(Kind::Connection, 1);
        self.run.took(Kind::Connection, begun, Instant::now(), 1);
        Ok(connection)
    }
}

/// Publishes an event for each subscriber and sees that each gets its own. Returns how long the last one waited, if all
/// got theirs, and those who did.
async fn wake(
    subscribers: Vec<(usize, Connection)>,
    run: &Rc<Run>,
    target: &Target,
    scratch: &Scratch,
) -> anyhow::Result<(Option<Duration>, Vec<Connection>)> {
    let count = subscribers.len();
    let mut publisher = Connection::web_socket(target, "/ws/publish", scratch).await?;
    let mut waiting = JoinSet::new();
    let begun = Instant::now();
    for (number, connection) in subscribers {
        let run = run.clone();
        waiting.spawn_local(async move {
            let connection = listen(number, connection, &run).await.with_context(|| format!("subscriber {number}"))?;
            anyhow::Ok((Instant::now(), connection))
        });
    }
    let numbers = (0..count).collect::<Vec<_>>();
    for numbers in numbers.chunks(EVENTS_EACH) {
        publish(&mut publisher, numbers, run).await?;
    }
    let (mut last, mut reached) = (begun, Vec::new());
    let all = async {
        while let Some(ended) = waiting.join_next().await {
            let (at, connection) = ended.context("a task panicked")??;
            last = last.max(at);
            reached.push(connection);
        }
        anyhow::Ok(())
    };
    match timeout(PATIENCE, all).await {
        Ok(all) => {
            all?;
            Ok((Some(last - begun), reached))
        }
        Err(_) => {
            let missing = count - reached.len();
            let violation = || format!("{missing} of {count} subscribers did not get the event of their session");
            run.ledger.borrow_mut().violation(violation);
            Ok((None, reached))
        }
    }
}

/// Publishes an event of the session of each of these.
async fn publish(publisher: &mut Connection, numbers: &[usize], run: &Run) -> anyhow::Result<()> {
    let event = |number: &usize| json!({ "event_type": "session_created", "source": "loadtest", "session_id": session(*number), "payload": {} });
    let events = numbers.iter().map(event).collect::<Vec<_>>();
    frame::masked(publisher.out(), OpCode::Text, json!(events).to_string().as_bytes(), *b"mask");
    let mut answered = false;
    while !answered {
        let read = publisher.exchange(|bytes, out| {
            frames(bytes, out, |text| {
                let ledger = &mut *run.ledger.borrow_mut();
                answered = true;
                match answer::of_socket(text, |sequence| ledger.acknowledge(sequence))? {
                    Answer::Ok(count) if count == events.len() => {}
                    Answer::Ok(count) => {
                        ledger.violation(|| format!("{} events were answered with {count} ids", events.len()))
                    }
                    Answer::Refused(reason) => ledger.refuse(events.len(), reason),
                }
                Ok(())
            })
        });
        read.await?;
    }
    Ok(())
}

/// Waits for the event of its session, and sees that nothing else comes before the answer to what it asks then.
async fn listen(number: usize, mut connection: Connection, run: &Run) -> anyhow::Result<Connection> {
    let (mut event, mut done) = (None, false);
    let own = format!(r#""session_id":"{}""#, session(number));
    while !done {
        let read = connection.exchange(|bytes, out| {
            let mut asks = false;
            let used = frames(bytes, out, |text| {
                let Some(sequence) = answer::of_delivery(text)? else {
                    done |= text == br#"{"type":"pong"}"#;
                    return Ok(());
                };
                let text = String::from_utf8_lossy(text);
                if event.is_some() || !text.contains(&own) {
                    run.ledger.borrow_mut().violation(|| format!("subscriber {number} got another's event: {text}"));
                }
                (event, asks) = (Some(sequence), true);
                Ok(())
            })?;
            if asks {
                frame::masked(out, OpCode::Text, br#"{"type":"ping"}"#, *b"mask");
            }
            Ok(used)
        });
        read.await?;
    }
    Ok(connection)
}

/// What a client does between coming and going.
#[derive(Debug, Clone, Copy)]
enum Visit {
    /// Subscribes, and closes the socket.
    Subscribe,
    /// Subscribes, and is gone.
    SubscribeAndVanish,
    /// Sends a request and takes its answer.
    Request,
    /// The same, and is gone in the middle of the next one.
    RequestAndVanish,
}

impl Visit {
    const ALL: [Self; 4] = [Self::Subscribe, Self::SubscribeAndVanish, Self::Request, Self::RequestAndVanish];
}

/// Comes and goes until the run stops; counts why it could not, if it could not.
async fn come_and_go(
    number: usize,
    run: Rc<Run>,
    target: Rc<Target>,
    scratch: Scratch,
    failures: Rc<RefCell<BTreeMap<String, u64>>>,
) -> anyhow::Result<()> {
    for visit in (number..).map(|visit| Visit::ALL[visit % Visit::ALL.len()]) {
        if run.is_stopping() {
            break;
        }
        if let Err(error) = visit.pay(number, &run, &target, &scratch).await {
            *failures.borrow_mut().entry(format!("{error:#}")).or_default() += 1;
            sleep(PAUSE).await;
        }
    }
    Ok(())
}

impl Visit {
    async fn pay(self, number: usize, run: &Run, target: &Target, scratch: &Scratch) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut connection = dial(number, target, scratch).await?;
        match self {
            Self::Subscribe | Self::SubscribeAndVanish => {
                connection = subscribe_on(connection, target, r#"{"session_id":"storm"}"#).await?;
            }
            Self::Request | Self::RequestAndVanish => request(&mut connection, target).await?,
        }
        run.count(Kind::Connection, 1);
        run.took(Kind::Connection, begun, Instant::now(), 1);
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

/// Asks whether the server is well.
async fn request(connection: &mut Connection, target: &Target) -> anyhow::Result<()> {
    let (prefix, headers) = (&target.prefix, target.headers());
    let request = format!("GET {prefix}/health HTTP/1.1\r\n{headers}\r\n");
    connection.out().extend_from_slice(request.as_bytes());
    let mut answered = false;
    while !answered {
        let read = connection.exchange(|bytes, _| {
            responses(bytes, |status, body| {
                if status != 200 {
                    bail!("the server answered {status} {}", String::from_utf8_lossy(body));
                }
                answered = true;
                Ok(())
            })
        });
        read.await?;
    }
    Ok(())
}
