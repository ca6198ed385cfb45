//! Subscribers: they connect, subscribe, and check every event that they receive.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use event_pipeline::wire::frame::{self, OpCode};
use serde_json::{Value, json};
use tokio::select;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until};

use crate::answer::{self, Delivery};
use crate::connection::{Connection, Scratch};
use crate::deliveries::{Deliveries, Received, Way};
use crate::dial::Dial;
use crate::events::content;
use crate::latency::Operation;
use crate::run::Run;
use crate::target::Target;
use crate::tasks::Tasks;
use crate::wire::{frames, stream_events};

/// A small receive buffer for slow subscribers, so that unread events wait in the server and not in the system.
const RECEIVE_BUFFER_BYTES: u32 = 64 << 10;

/// Reads the bytes that a server of another kind sent to a subscriber: visits each event, with its number if it has
/// one, may append bytes to send, and returns how many bytes are used up.
pub type Receive = fn(&[u8], &mut Vec<u8>, &mut dyn FnMut(Option<u64>, &[u8])) -> anyhow::Result<usize>;

/// All subscribers of a run, subscribed.
pub struct Subscribers {
    pub deliveries: Rc<Deliveries>,
    connections: Vec<Connection>,
    receive: Option<Receive>,
    pub slowness: Rc<Slowness>,
}

/// How far slow subscribers fell behind, and how they caught up.
#[derive(Default)]
pub struct Slowness {
    /// Whether the server may cut them off.
    pub may_be_cut_off: Cell<bool>,
    /// Makes them read on early.
    pub resume: Notify,
    /// How often the server said that one gets its events from storage now.
    pub fell_behind: Cell<u64>,
    /// Events that the last of them was behind when it read on.
    pub missed: Cell<u64>,
    /// How many have what they had missed, and how long the last of them took.
    pub caught_up: Cell<(u32, Duration)>,
}

impl Subscribers {
    /// Connects all subscribers of these deliveries.
    ///
    /// # Errors
    /// The server refused a subscriber.
    pub async fn connect(deliveries: Rc<Deliveries>, target: &Target, scratch: &Scratch) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for (number, (filters, way)) in deliveries.asked().enumerate() {
            let connection = connect(target, filters, way, number, scratch).await;
            connections.push(connection.with_context(|| format!("subscriber {number}"))?);
        }
        Ok(Self::of(deliveries, connections, None))
    }

    /// Subscribers that are connected already. Those of a server of another kind have their own way to `receive`.
    pub fn of(deliveries: Rc<Deliveries>, connections: Vec<Connection>, receive: Option<Receive>) -> Self {
        Self { deliveries, connections, receive, slowness: Rc::default() }
    }

    /// Starts to receive.
    pub fn listen(self, run: &Rc<Run>, tasks: &mut Tasks) {
        let ways = self.deliveries.asked().map(|(_, way)| way).collect::<Vec<_>>();
        for ((number, connection), way) in self.connections.into_iter().enumerate().zip(ways) {
            let subscriber = Subscriber {
                number,
                way,
                is_dense: self.deliveries.is_dense(number),
                receive: self.receive,
                run: run.clone(),
                deliveries: self.deliveries.clone(),
                slowness: self.slowness.clone(),
                resumed: None,
                sequences: Vec::new(),
            };
            tasks.spawn_endless(subscriber.run(connection));
        }
    }
}

/// A connection that has subscribed in this way.
///
/// # Errors
/// The server refuses it.
pub async fn connect(
    target: &Target,
    filters: Value,
    way: Way,
    number: usize,
    scratch: &Scratch,
) -> anyhow::Result<Connection> {
    let mut filters = filters;
    let mut dial = target.dial(number);
    match way {
        Way::Stream => return open_stream(target, &filters, dial, scratch).await,
        Way::Slow { .. } => {
            dial.receive_buffer_bytes = Some(RECEIVE_BUFFER_BYTES);
            filters["signals"] = true.into();
        }
        Way::Conflated { interval_ms } => {
            filters["conflate"] = json!({ "key": "session_id", "interval_ms": interval_ms });
        }
        Way::Named => filters["name"] = format!("loadtest-{number}").into(),
        Way::Group => filters["group"] = "loadtest".into(),
        Way::Socket => {}
    }
    subscribe(target, &filters.to_string(), dial, scratch).await
}

/// A connection that has subscribed with this first message.
///
/// # Errors
/// The server's first answer is not `subscribed`.
pub async fn subscribe(
    target: &Target,
    first_message: &str,
    dial: Dial,
    scratch: &Scratch,
) -> anyhow::Result<Connection> {
    let connection = Connection::dial(target, dial, scratch).await?;
    let mut connection = connection.upgrade(target, "/ws/subscribe").await?;
    let answer = connection.message(first_message).await?;
    let answer: Value = serde_json::from_slice(&answer).context("the server's first answer")?;
    ensure!(answer["status"] == "subscribed", "the server answered {answer}");
    Ok(connection)
}

struct Subscriber {
    number: usize,
    way: Way,
    /// Whether it subscribes to everything, so that its numbers have no gaps.
    is_dense: bool,
    receive: Option<Receive>,
    run: Rc<Run>,
    deliveries: Rc<Deliveries>,
    slowness: Rc<Slowness>,
    /// When it read on after it had been slow, the newest event then, and how far behind it was.
    resumed: Option<(Instant, u64)>,
    /// The sequence numbers of the last read.
    sequences: Vec<u64>,
}

impl Subscriber {
    async fn run(mut self, mut connection: Connection) -> anyhow::Result<()> {
        let Way::Slow { from, to, bytes_per_second } = self.way else {
            return self.read(&mut connection, None).await;
        };
        let lost = self.read_slowly(&mut connection, from, to, bytes_per_second).await;
        // It may have been cut off, which is for the check at the end to judge.
        self.deliveries.lost(self.number, lost.err().map_or_else(String::new, |error| format!("{error:#}")));
        pending().await
    }

    async fn read_slowly(
        &mut self,
        connection: &mut Connection,
        from: Duration,
        to: Duration,
        rate: u32,
    ) -> anyhow::Result<()> {
        let start = self.run.start;
        select! {
            lost = self.read(connection, None) => lost?,
            () = sleep_until((start + from).into()) => {}
        }
        let slowness = self.slowness.clone();
        select! {
            lost = self.read(connection, Some(rate)) => lost?,
            () = sleep_until((start + to).into()) => {}
            () = slowness.resume.notified() => {}
        }
        let last = self.deliveries.received_by(self.number).last;
        let newest = self.deliveries.newest() + self.run.counted(Operation::Acknowledgement);
        self.resumed = Some((Instant::now(), newest));
        slowness.missed.set(slowness.missed.get().max(newest.saturating_sub(last)));
        self.read(connection, None).await
    }

    /// Reads until the connection is lost, with a rate at most that many bytes a second. Cancel safe.
    async fn read(&mut self, connection: &mut Connection, rate: Option<u32>) -> anyhow::Result<()> {
        if rate == Some(0) {
            return pending().await;
        }
        // Bytes of an unfinished message are read again.
        let mut held = 0;
        loop {
            let mut new = 0;
            let read = connection.exchange(|bytes, out| {
                let used = self.take(bytes, out)?;
                (new, held) = (bytes.len() - held, bytes.len() - used);
                Ok(used)
            });
            read.await?;
            if let Some(rate) = rate {
                sleep(Duration::from_secs_f64(new as f64 / f64::from(rate))).await;
            }
        }
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> anyhow::Result<usize> {
        let Self { number, way, is_dense, run, deliveries, sequences, .. } = self;
        let (number, now) = (*number, Instant::now());
        let Received { mut last, mut digest } = deliveries.received_by(number);
        sequences.clear();
        let mut got = |delivery: Delivery| {
            let Delivery { sequence, content } = delivery;
            // There is no order between the sessions of a group.
            if sequence <= last && *way != Way::Group || (*is_dense && sequence != last + 1) {
                run.violation(|| format!("subscriber {number} got event {sequence} after {last}"));
            }
            if matches!(way, Way::Conflated { .. }) && !deliveries.shown(number, delivery) {
                run.violation(|| format!("subscriber {number} got event {sequence}, which is not as it was sent"));
            }
            last = sequence;
            digest.add(sequence, content);
            sequences.push(sequence);
        };
        let used = match (self.receive, &way) {
            (Some(receive), _) => {
                // Events without a number are numbered in the order in which they come.
                let mut next = deliveries.received_by(number).last;
                receive(bytes, out, &mut |sequence, text| {
                    next = sequence.unwrap_or(next + 1);
                    got(Delivery { sequence: next, content: content(text) });
                })
            }
            (None, Way::Stream) => stream_events(bytes, |text| {
                answer::of_delivery(text)?.into_iter().for_each(&mut got);
                Ok(())
            }),
            (None, _) => frames(bytes, out, |text| {
                match answer::of_delivery(text)? {
                    Some(delivery) => got(delivery),
                    None if text.starts_with(br#"{"type":"fell_behind""#) => {
                        self.slowness.fell_behind.set(self.slowness.fell_behind.get() + 1);
                    }
                    None => {}
                }
                Ok(())
            }),
        }?;
        if let (Way::Named | Way::Group, Some(last)) = (&way, sequences.last()) {
            let confirmation = format!(r#"{{"type":"ack","id":"evt_{last:012x}"}}"#);
            frame::masked(out, OpCode::Text, confirmation.as_bytes(), *b"mask");
            deliveries.confirmed.set(deliveries.confirmed.get() + 1);
        }
        deliveries.received(run, number, sequences, now, Received { last, digest });
        if let Some((since, newest)) = self.resumed
            && last >= newest
        {
            self.resumed = None;
            let (count, longest) = self.slowness.caught_up.get();
            self.slowness.caught_up.set((count + 1, longest.max(since.elapsed())));
        }
        Ok(used)
    }
}

/// A connection on which an event stream has begun.
///
/// # Errors
/// The server answers anything else.
async fn open_stream(target: &Target, filters: &Value, dial: Dial, scratch: &Scratch) -> anyhow::Result<Connection> {
    let text = |value: &Value| value.as_str().or_else(|| value[0].as_str()).unwrap_or_default().to_owned();
    let filters = filters.as_object().into_iter().flatten().map(|(name, value)| {
        // The parameter of several types has the name of one.
        let name = if name == "event_types" { "event_type" } else { name };
        format!("{name}={}", text(value))
    });
    let query = filters.collect::<Vec<_>>().join("&");
    Connection::dial(target, dial, scratch).await?.stream(target, &format!("/events/stream?{query}")).await
}
