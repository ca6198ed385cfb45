//! Subscribers that connect and idle.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use event_pipeline::wire::frame::{self, OpCode};
use serde::Serialize;
use serde_json::json;
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::measurement::{Measurement, dial, memory};
use crate::answer::{self, Answer};
use crate::connection::{Connection, Scratch};
use crate::latency::Operation;
use crate::options::Common;
use crate::report::{Findings, grouped};
use crate::run::{PATIENCE, Run};
use crate::subscriber::subscribe_on;
use crate::target::Target;
use crate::tasks::Tasks;
use crate::wire::frames;

/// 120 s: a subscriber that is not connected by then counts as refused. 10,000 take less than a second.
const CONNECTED_WITHIN: Duration = Duration::from_secs(120);

/// The resolution of the report on how connecting went.
const STEP: Duration = Duration::from_millis(50);

/// Events of one message to the subscribers that idle.
const EVENTS_EACH: usize = 1_000;

/// Connects all subscribers and lets them idle.
pub async fn idle(
    size: usize,
    at_once: u32,
    target: &Rc<Target>,
    common: &Common,
    options: &impl Serialize,
) -> anyhow::Result<(Measurement, Vec<Connection>)> {
    let run = Run::in_phases(Operation::Connection, target.newest().await?, STEP, &[]);
    let memory = memory(target)?;
    let ramp = Rc::new(Ramp {
        run: run.clone(),
        target: target.clone(),
        scratch: Scratch::default(),
        size,
        begun: Cell::new(0),
        connected: RefCell::default(),
    });
    let mut tasks = Tasks::default();
    (0..at_once).for_each(|_| tasks.spawn_endless(ramp.clone().connect_missing()));
    let connecting = Common { seconds: CONNECTED_WITHIN.as_secs(), ..common.clone() };
    let measured = tasks.measure(&run, &connecting, target).await?;
    tasks.finish(&run).await?;
    tasks.shutdown().await;
    let mut connected = ramp.connected.take();
    let count = connected.len();
    ensure!(count == ramp.size, "only {count} of {} subscribers are connected, within {CONNECTED_WITHIN:?}", ramp.size);
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
        () = common.interrupt.requested() => {}
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
    let (reached, connections) = wake(connected, &run, target, &ramp.scratch).await?;
    notes.push(match reached {
        Some(longest) => {
            format!("Then an event for each of them reached it within {:.1} ms.", longest.as_secs_f64() * 1e3)
        }
        None => "Then not all of them got the event that was for them.".to_owned(),
    });
    let title = format!("{} subscribers connect, {} at a time, and idle", grouped(count as f64), at_once);
    let findings = Findings::new("connections", title, options).noting(notes);
    Ok((Measurement { findings, run, measured }, connections))
}

/// The session that a subscriber subscribes to.
fn session(number: usize) -> String {
    format!("idle-{number:06}")
}

/// The ramp-up: how many subscribers are connected.
struct Ramp {
    run: Rc<Run>,
    target: Rc<Target>,
    scratch: Scratch,
    size: usize,
    /// How many have begun to connect.
    begun: Cell<usize>,
    connected: RefCell<Vec<(usize, Connection)>>,
}

impl Ramp {
    /// Connects one subscriber after the other until all are connected. Never ends.
    async fn connect_missing(self: Rc<Self>) -> anyhow::Result<()> {
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
        self.run.count(Operation::Connection, 1);
        self.run.took(Operation::Connection, begun, Instant::now(), 1);
        Ok(connection)
    }
}

/// Publishes an event for each subscriber and checks that each receives its own. Returns how long the last one waited,
/// if all received theirs, and the connections of those that did.
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
            run.violation(|| format!("{missing} of {count} subscribers did not get the event of their session"));
            Ok((None, reached))
        }
    }
}

/// Publishes an event for each of these subscribers.
async fn publish(publisher: &mut Connection, numbers: &[usize], run: &Run) -> anyhow::Result<()> {
    let event = |number: &usize| json!({ "event_type": "session_created", "source": "loadtest", "session_id": session(*number), "payload": {} });
    let events = numbers.iter().map(event).collect::<Vec<_>>();
    frame::masked(publisher.out(), OpCode::Text, json!(events).to_string().as_bytes(), *b"mask");
    let answered = publisher.answer(|bytes, out, answered| {
        frames(bytes, out, |text| {
            let verification = &mut *run.verification.borrow_mut();
            *answered = Some(());
            match answer::of_socket(text, |sequence| verification.acknowledge(sequence))? {
                Answer::Ok(count) if count == events.len() => {}
                Answer::Ok(count) => {
                    verification.violation(|| format!("{} events were answered with {count} ids", events.len()))
                }
                Answer::Refused(reason) => verification.refuse(events.len(), reason),
            }
            Ok(())
        })
    });
    answered.await
}

/// Waits for the event of its session, then sends a ping message, and checks that nothing else comes before the answer.
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
                    run.violation(|| format!("subscriber {number} got another's event: {text}"));
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
