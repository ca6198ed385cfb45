//! Subscribers: they connect, subscribe, and check every event that they receive.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, bail};
use event_pipeline::wire::frame::{self, OpCode};

use crate::answer;
use crate::connection::{Connection, Scratch};
use crate::deliveries::{Deliveries, Received};
use crate::run::Run;
use crate::target::Target;
use crate::tasks::Tasks;
use crate::wire::frames;

/// Checks the text of each event that came in order, and returns what is wrong with it.
pub type EventCheck = Box<dyn FnMut(&[u8]) -> Option<String>>;

/// Reads the bytes that a server of another kind sent to a subscriber: visits each event, with its number if it has
/// one, may append bytes to send, and returns how many bytes are used up.
pub type Receive = fn(&[u8], &mut Vec<u8>, &mut dyn FnMut(Option<u64>, &[u8])) -> anyhow::Result<usize>;

/// All subscribers of a run, subscribed.
pub struct Subscribers {
    deliveries: Rc<Deliveries>,
    connections: Vec<Connection>,
    receive: Option<Receive>,
}

impl Subscribers {
    /// Connects all subscribers of these deliveries.
    ///
    /// # Errors
    /// The server refused a subscriber.
    pub async fn connect(deliveries: Rc<Deliveries>, target: &Target, scratch: &Scratch) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for (number, filters) in deliveries.filters().enumerate() {
            let connection = subscribe(target, &filters.to_string(), scratch).await;
            connections.push(connection.with_context(|| format!("subscriber {number}"))?);
        }
        Ok(Self { deliveries, connections, receive: None })
    }

    /// Subscribers of a server of another kind, which have subscribed to everything.
    pub fn of_peer(deliveries: Rc<Deliveries>, connections: Vec<Connection>, receive: Receive) -> Self {
        Self { deliveries, connections, receive: Some(receive) }
    }

    /// Starts to receive.
    pub fn listen(self, run: &Rc<Run>, tasks: &mut Tasks) {
        self.listen_and_check(run, tasks, |_| None);
    }

    /// The same, and `check` gives a subscriber, by its number, a check of each event.
    pub fn listen_and_check(
        self,
        run: &Rc<Run>,
        tasks: &mut Tasks,
        mut check: impl FnMut(usize) -> Option<EventCheck>,
    ) {
        for (number, connection) in self.connections.into_iter().enumerate() {
            let deliveries = self.deliveries.clone();
            let (dense, sequences) = (deliveries.is_dense(number), Vec::new());
            let (receive, check) = (self.receive, check(number));
            let subscriber = Subscriber { number, dense, receive, check, run: run.clone(), deliveries, sequences };
            tasks.spawn_endless(subscriber.run(connection));
        }
    }
}

/// A connection that has subscribed with this first message.
///
/// # Errors
/// The server's first answer is not `subscribed`.
pub async fn subscribe(target: &Target, first_message: &str, scratch: &Scratch) -> anyhow::Result<Connection> {
    subscribe_on(Connection::open(&target.authority, scratch).await?, target, first_message).await
}

/// The same on an open connection.
///
/// # Errors
/// The server's first answer is not `subscribed`.
pub async fn subscribe_on(connection: Connection, target: &Target, first_message: &str) -> anyhow::Result<Connection> {
    let mut connection = connection.upgrade(target, "/ws/subscribe").await?;
    frame::masked(connection.out(), OpCode::Text, first_message.as_bytes(), *b"mask");
    let subscribed = connection.answer(|bytes, out, subscribed| {
        frames(bytes, out, |text| {
            let answer: serde_json::Value = serde_json::from_slice(text).context("the server's first answer")?;
            if answer["status"] != "subscribed" {
                bail!("the server answered {answer}");
            }
            *subscribed = Some(());
            Ok(())
        })
    });
    subscribed.await?;
    Ok(connection)
}

struct Subscriber {
    number: usize,
    /// Whether it subscribes to everything, so that its numbers have no gaps.
    dense: bool,
    receive: Option<Receive>,
    check: Option<EventCheck>,
    run: Rc<Run>,
    deliveries: Rc<Deliveries>,
    /// The sequence numbers of the last read.
    sequences: Vec<u64>,
}

impl Subscriber {
    async fn run(mut self, mut connection: Connection) -> anyhow::Result<()> {
        loop {
            connection.exchange(|bytes, out| self.read(bytes, out)).await?;
        }
    }

    fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> anyhow::Result<usize> {
        let now = Instant::now();
        let Received { mut last, mut digest } = self.deliveries.received_by(self.number);
        self.sequences.clear();
        let mut got = |sequence: Option<u64>, text: &[u8]| {
            // Events without a number are numbered in the order in which they come.
            let sequence = sequence.unwrap_or(last + 1);
            if sequence <= last || (self.dense && sequence != last + 1) {
                let number = self.number;
                self.run.violation(|| format!("subscriber {number} got event {sequence} after {last}"));
            } else if let Some(wrong) = self.check.as_mut().and_then(|check| check(text)) {
                let number = self.number;
                self.run.violation(|| format!("subscriber {number} got event {sequence}, {wrong}"));
            }
            last = sequence;
            digest.add(sequence);
            self.sequences.push(sequence);
        };
        let used = match self.receive {
            Some(receive) => receive(bytes, out, &mut got),
            None => frames(bytes, out, |text| {
                if let Some(sequence) = answer::of_delivery(text)? {
                    got(Some(sequence), text);
                }
                Ok(())
            }),
        }?;
        self.deliveries.received(&self.run, self.number, &self.sequences, now, Received { last, digest });
        Ok(used)
    }
}
