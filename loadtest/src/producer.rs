//! One producer: keeps its window full or keeps to its schedule, and checks every answer.

use std::collections::VecDeque;
use std::future::pending;
use std::rc::Rc;
use std::time::Instant;

use tokio::select;

use crate::answer::{self, Answer};
use crate::connection::{Connection, frames, responses};
use crate::events::Requests;
use crate::fanout::Deliveries;
use crate::pace::Schedule;
use crate::run::Run;

/// How answers come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    WebSocket,
    Http,
}

/// What a producer waits for before it sends, beside room in its window.
pub enum Flow {
    /// Nothing.
    Window,
    /// That subscribers have received what was sent before.
    Received(Rc<Deliveries>),
    /// The time at which a request is due. It may have to wait for room, and that wait counts.
    Due(Schedule),
}

impl Flow {
    /// Cancel safe.
    async fn changed(&mut self) {
        match self {
            Self::Window => pending().await,
            Self::Received(deliveries) => deliveries.progress().await,
            Self::Due(schedule) => schedule.changed().await,
        }
    }

    /// How many of at most `max` requests may be sent, and when they were due.
    fn take(&mut self, max: usize) -> Option<(Instant, usize)> {
        let max = match self {
            Self::Due(schedule) => return schedule.take(max),
            Self::Received(deliveries) => deliveries.room(max),
            Self::Window => max,
        };
        (max > 0).then(|| (Instant::now(), max))
    }
}

pub struct Producer {
    connection: Connection,
    flow: Flow,
    /// Most requests under way.
    window: usize,
    book: Book,
}

impl Producer {
    pub fn new(connection: Connection, flow: Flow, window: usize, book: Book) -> Self {
        Self { connection, flow, window, book }
    }

    /// Sends until the run stops, then waits for what is under way. Returns the sequence numbers of all its
    /// events in the order they were sent in, if the book keeps them.
    ///
    /// # Errors
    /// The connection was lost, or the server answered what is no answer.
    pub async fn run(self) -> anyhow::Result<Vec<u64>> {
        let Self { mut connection, mut flow, window, mut book } = self;
        while !book.run.is_stopping() {
            while let Some((due, count)) = flow.take(window - book.under_way()) {
                book.send(due, count, connection.out());
            }
            select! {
                biased;
                read = connection.exchange(|bytes, out| book.read(bytes, out)) => read?,
                () = flow.changed() => {}
            }
        }
        while book.under_way() > 0 {
            connection.exchange(|bytes, out| book.read(bytes, out)).await?;
        }
        Ok(book.ids.unwrap_or_default())
    }
}

/// What one producer has sent and what was answered.
pub struct Book {
    run: Rc<Run>,
    requests: Rc<Requests>,
    dialect: Dialect,
    /// Where there are subscribers, what is sent and acknowledged is noted for them.
    deliveries: Option<Rc<Deliveries>>,
    /// Requests.
    sent: u64,
    /// Requests.
    answered: u64,
    /// When the requests under way were due, and how many.
    due: VecDeque<(Instant, usize)>,
    /// The last sequence number acknowledged here.
    last: u64,
    /// Every sequence number acknowledged here, if they are to be compared with what is stored.
    ids: Option<Vec<u64>>,
}

impl Book {
    pub fn new(run: Rc<Run>, requests: Rc<Requests>, dialect: Dialect) -> Self {
        let (due, deliveries, ids) = Default::default();
        Self { run, requests, dialect, deliveries, sent: 0, answered: 0, due, last: 0, ids }
    }

    /// Notes for subscribers what is sent and acknowledged.
    pub fn with_deliveries(self, deliveries: Rc<Deliveries>) -> Self {
        Self { deliveries: Some(deliveries), ..self }
    }

    /// Keeps all sequence numbers.
    pub fn keeping_ids(self, keep: bool) -> Self {
        Self { ids: keep.then(Vec::new), ..self }
    }

    fn under_way(&self) -> usize {
        (self.sent - self.answered) as usize
    }

    fn send(&mut self, due: Instant, count: usize, out: &mut Vec<u8>) {
        self.requests.write(out, self.sent, count);
        self.due.push_back((due, count));
        if let Some(deliveries) = &self.deliveries {
            deliveries.sent(&self.requests, self.sent, count, due);
        }
        self.sent += count as u64;
    }

    /// Takes the answers out of what the server sent, and returns how many bytes are used up.
    fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> anyhow::Result<usize> {
        let before = self.answered;
        let used = match self.dialect {
            Dialect::WebSocket => frames(bytes, out, |text| self.answer(|visit| answer::of_socket(text, visit))),
            Dialect::Http => responses(bytes, |status, body| self.answer(|visit| answer::of_post(status, body, visit))),
        }?;
        let now = Instant::now();
        let (mut requests, events_each) = ((self.answered - before) as usize, self.requests.events_each() as u64);
        while requests > 0 {
            let (due, left) = self.due.front_mut().expect("no more answers than requests");
            let count = requests.min(*left);
            self.run.took(*due, now, count as u64 * events_each);
            requests -= count;
            *left -= count;
            if *left == 0 {
                self.due.pop_front();
            }
        }
        Ok(used)
    }

    /// One answer, whose ids are visited by what `read` is given.
    #[inline]
    fn answer(&mut self, read: impl FnOnce(&mut dyn FnMut(u64)) -> anyhow::Result<Answer>) -> anyhow::Result<()> {
        let events_each = self.requests.events_each();
        let mut event = self.answered * events_each as u64;
        let ledger = &mut *self.run.ledger.borrow_mut();
        let answer = read(&mut |sequence| {
            ledger.acknowledge(sequence);
            let last = self.last;
            if sequence <= last {
                ledger.violation(|| format!("on one connection, event {sequence} was answered after {last}"));
            }
            self.last = sequence;
            if let Some(deliveries) = &self.deliveries {
                deliveries.acknowledged(self.requests.keys(event), sequence);
            }
            if let Some(ids) = &mut self.ids {
                ids.push(sequence);
            }
            event += 1;
        })?;
        match answer {
            Answer::Ok(count) if count == events_each => self.run.acknowledged(count as u64),
            Answer::Ok(count) => ledger.violation(|| format!("{events_each} events were answered with {count} ids")),
            Answer::Refused(reason) => ledger.refuse(events_each, reason),
        }
        if self.answered == self.sent {
            anyhow::bail!("the server answered more often than it was asked");
        }
        self.answered += 1;
        Ok(())
    }
}
