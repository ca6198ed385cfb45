//! One producer: keeps its window full or keeps to its schedule, and checks every answer.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::pending;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context;
use tokio::select;

use crate::answer::{self, Answer};
use crate::connection::{Connection, frames, responses};
use crate::deliveries::Deliveries;
use crate::events::Requests;
use crate::latency::Kind;
use crate::pace::{Pace, Rate, Rhythm, Schedule};
use crate::run::Run;
use crate::score::Cues;
use crate::visible::Visible;

/// How answers come.
#[derive(Debug, Clone, Copy)]
pub enum Dialect {
    WebSocket,
    Http,
    /// That of a server of another kind.
    Foreign {
        answers: Answers,
        /// What is sent after each burst of requests.
        after_burst: &'static [u8],
    },
}

/// Visits the answers in what a server of another kind sent, may append to what is to be sent, and returns how
/// many bytes are used up.
pub type Answers = fn(&[u8], &mut Vec<u8>, &mut dyn FnMut(Outcome) -> anyhow::Result<()>) -> anyhow::Result<usize>;

/// What a server of another kind answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The event was stored under this number.
    Stored(u64),
    /// The event was passed on. It has no number, and is given that of its place.
    PassedOn,
    /// The same for all events of a burst.
    BurstPassedOn,
    Refused(String),
}

/// What a producer waits for before it sends, beside room in its window.
pub enum Flow {
    /// Nothing.
    Window,
    /// That subscribers have received what was sent before.
    Received(Rc<Deliveries>),
    /// The time at which a request is due. It may have to wait for room, and that wait counts.
    Due(Schedule),
    /// The same, where each producer has a rhythm of its own.
    Cued(Rc<Cues>),
}

impl Flow {
    /// Of the one producer of a run with subscribers: at a rate, or as fast as they receive.
    pub fn to_subscribers(rate: Rate, run: &Run, deliveries: &Rc<Deliveries>) -> anyhow::Result<Self> {
        Ok(match rate {
            Rate(None) => Self::Received(deliveries.clone()),
            Rate(Some(rate)) => Self::Due(Pace::start(run.start, Rhythm::steady(rate))?.schedule(0, 1)),
        })
    }

    /// Waits until there may be more to send. Cancel safe.
    pub async fn changed(&mut self) {
        match self {
            Self::Window => pending().await,
            Self::Received(deliveries) => deliveries.progress().await,
            Self::Due(schedule) => schedule.changed().await,
            Self::Cued(cues) => cues.changed().await,
        }
    }

    /// How many of at most `max` requests may be sent, and when they were due.
    pub fn take(&mut self, max: usize) -> Option<(Instant, usize)> {
        let max = match self {
            Self::Due(schedule) => return schedule.take(max),
            Self::Cued(cues) => return cues.take(max),
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

    /// Sends until the run stops, then waits for what is under way.
    ///
    /// # Errors
    /// The connection was lost, or the server answered what is no answer.
    pub async fn run(self) -> anyhow::Result<()> {
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
        Ok(())
    }
}

/// What one producer has sent and what was answered.
pub struct Book {
    run: Rc<Run>,
    requests: Rc<Requests>,
    dialect: Dialect,
    /// Where there are subscribers, what is sent and acknowledged is noted for them.
    deliveries: Option<Rc<Deliveries>>,
    /// Where there are queries, what is acknowledged is noted for them.
    visible: Option<Rc<Visible>>,
    /// Requests.
    sent: u64,
    /// Requests.
    answered: u64,
    /// When the requests under way were due, and how many.
    due: VecDeque<(Instant, usize)>,
    /// The number of requests sent up to the end of each burst that is answered as one.
    bursts: VecDeque<u64>,
    /// The last sequence number acknowledged here.
    last: u64,
    /// Every sequence number acknowledged here, if they are to be compared with what is stored.
    ids: Option<Ids>,
    /// Whether it is of interest how long answers take.
    timed: bool,
    /// Requests of the last read that were refused.
    refused: usize,
    /// Sequence numbers of the last read, if subscribers ask when they were due; 0 for one that was refused.
    recent: Vec<u64>,
}

/// The sequence numbers of one producer's events in the order they were sent in.
pub type Ids = Rc<RefCell<Vec<u64>>>;

impl Book {
    pub fn new(run: Rc<Run>, requests: Rc<Requests>, dialect: Dialect) -> Self {
        let (due, bursts, deliveries, visible, ids, recent) = Default::default();
        Self {
            run,
            requests,
            dialect,
            deliveries,
            visible,
            sent: 0,
            answered: 0,
            due,
            bursts,
            last: 0,
            ids,
            timed: true,
            refused: 0,
            recent,
        }
    }

    /// Notes for subscribers what is sent and acknowledged.
    pub fn with_deliveries(self, deliveries: Rc<Deliveries>) -> Self {
        Self { deliveries: Some(deliveries), ..self }
    }

    /// Notes for queries what is acknowledged.
    pub fn with_visible(self, visible: Rc<Visible>) -> Self {
        Self { visible: Some(visible), ..self }
    }

    /// Tells nobody how long answers take.
    pub fn untimed(self) -> Self {
        Self { timed: false, ..self }
    }

    /// Keeps all sequence numbers.
    pub fn keeping(self, ids: Ids) -> Self {
        Self { ids: Some(ids), ..self }
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
        if let Dialect::Foreign { after_burst, .. } = self.dialect
            && !after_burst.is_empty()
        {
            out.extend_from_slice(after_burst);
            self.bursts.push_back(self.sent);
        }
    }

    /// Takes the answers out of what the server sent, and returns how many bytes are used up.
    fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> anyhow::Result<usize> {
        let before = self.answered;
        let used = match self.dialect {
            Dialect::WebSocket => frames(bytes, out, |text| self.answer(|visit| answer::of_socket(text, visit))),
            Dialect::Http => responses(bytes, |status, body| self.answer(|visit| answer::of_post(status, body, visit))),
            Dialect::Foreign { answers, .. } => answers(bytes, out, &mut |outcome| self.outcome(outcome)),
        }?;
        let now = Instant::now();
        let refused = std::mem::take(&mut self.refused);
        let (mut requests, events_each) = ((self.answered - before) as usize, self.requests.events_each());
        let mut recent = self.recent.drain(..);
        while requests > 0 {
            let (due, left) = self.due.front_mut().expect("no more answers than requests");
            let count = requests.min(*left);
            // Where refusals are no fault there is one request at a time, and a refusal is no latency.
            if self.timed && refused == 0 {
                self.run.took(Kind::Acknowledgement, *due, now, (count * events_each) as u64);
            }
            if let Some(deliveries) = &self.deliveries {
                let sequences = recent.by_ref().take(count * events_each).filter(|sequence| *sequence > 0);
                sequences.for_each(|sequence| deliveries.was_due(&self.run, sequence, *due));
            }
            requests -= count;
            *left -= count;
            if *left == 0 {
                self.due.pop_front();
            }
        }
        Ok(used)
    }

    /// One answer of a server of another kind.
    fn outcome(&mut self, outcome: Outcome) -> anyhow::Result<()> {
        let sequence = match outcome {
            Outcome::Stored(sequence) => sequence,
            Outcome::PassedOn => self.last + 1,
            Outcome::BurstPassedOn => {
                let end = self.bursts.pop_front().context("the server answered more often than it was asked")?;
                return (self.answered..end).try_for_each(|_| self.outcome(Outcome::PassedOn));
            }
            Outcome::Refused(reason) => return self.answer(|_| Ok(Answer::Refused(reason))),
        };
        self.answer(|visit| {
            visit(sequence);
            Ok(Answer::Ok(1))
        })
    }

    /// One answer, whose ids are visited by what `read` is given.
    #[inline]
    fn answer(&mut self, read: impl FnOnce(&mut dyn FnMut(u64)) -> anyhow::Result<Answer>) -> anyhow::Result<()> {
        let events_each = self.requests.events_each();
        let mut event = self.answered * events_each as u64;
        let ledger = &mut *self.run.ledger.borrow_mut();
        let recent = self.recent.len();
        let asks_when_due = self.deliveries.as_ref().is_some_and(|deliveries| deliveries.asks_when_due());
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
            if let Some(visible) = &self.visible {
                visible.acknowledged(self.requests.keys(event), sequence);
            }
            if let Some(ids) = &self.ids {
                ids.borrow_mut().push(sequence);
            }
            if asks_when_due {
                self.recent.push(sequence);
            }
            event += 1;
        })?;
        match answer {
            Answer::Ok(count) if count == events_each => self.run.count(Kind::Acknowledgement, count as u64),
            Answer::Ok(count) => ledger.violation(|| format!("{events_each} events were answered with {count} ids")),
            Answer::Refused(reason) => {
                ledger.refuse(events_each, reason);
                self.refused += 1;
            }
        }
        if asks_when_due {
            self.recent.resize(recent + events_each, 0);
        }
        if self.answered == self.sent {
            anyhow::bail!("the server answered more often than it was asked");
        }
        self.answered += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Events, Framing};

    /// A server that says of each event what became of it, in one letter.
    fn letters(
        bytes: &[u8],
        _: &mut Vec<u8>,
        visit: &mut dyn FnMut(Outcome) -> anyhow::Result<()>,
    ) -> anyhow::Result<usize> {
        for letter in bytes {
            visit(match letter {
                b'b' => Outcome::BurstPassedOn,
                b'p' => Outcome::PassedOn,
                b'r' => Outcome::Refused("no".to_owned()),
                digit => Outcome::Stored(u64::from(digit - b'0')),
            })?;
        }
        Ok(bytes.len())
    }

    fn book(after_burst: &'static [u8]) -> Book {
        let events = Events { sessions: 3, users: 5, payload_bytes: 40 };
        let framing = Framing::Foreign(|out, producer, _| out.push(b'0' + producer as u8), 7);
        let requests = Requests::render(&events, 1, &framing, 7, 8);
        let run = Run::new(Kind::Acknowledgement, 0);
        Book::new(run, Rc::new(requests), Dialect::Foreign { answers: letters, after_burst })
    }

    fn acknowledged(book: &Book) -> (u64, u64, Vec<String>) {
        let ledger = book.run.ledger.borrow();
        (ledger.acknowledged, ledger.refused, ledger.violations())
    }

    #[test]
    fn a_burst_is_answered_as_one() {
        let (mut book, mut out) = (book(b"!"), Vec::new());
        book.send(Instant::now(), 3, &mut out);
        book.send(Instant::now(), 2, &mut out);
        assert_eq!(out, b"777!77!");
        assert_eq!(book.read(b"b", &mut out).expect("an answer"), 1);
        assert_eq!((book.under_way(), acknowledged(&book)), (2, (3, 0, Vec::new())));
        book.read(b"b", &mut out).expect("an answer");
        assert_eq!((book.under_way(), acknowledged(&book)), (0, (5, 0, Vec::new())));
        assert!(book.read(b"b", &mut out).is_err());
    }

    #[test]
    fn answers_of_other_servers_are_checked_like_ours() {
        let (mut book, mut out) = (book(b""), Vec::new());
        book.send(Instant::now(), 5, &mut out);
        book.read(b"12r", &mut out).expect("answers");
        book.read(b"1p", &mut out).expect("answers");
        let told = [
            "event 1 was acknowledged twice",
            "on one connection, event 1 was answered after 2",
            "event 2 was acknowledged twice",
            "1 events were refused, the first with: no",
        ];
        assert_eq!(acknowledged(&book), (4, 1, told.map(str::to_owned).to_vec()));
        assert!(book.read(b"9", &mut out).is_err());
    }
}
