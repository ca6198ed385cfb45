//! The requests of one producer: what was sent, and a check of every answer.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Context;

use crate::answer::{self, Answer};
use crate::deliveries::Deliveries;
use crate::latency::Operation;
use crate::requests::Requests;
use crate::run::Run;
use crate::verification::AcknowledgedEvents;
use crate::wire::{frames, responses};

/// The requests of one producer, and what was answered.
pub struct RequestTracker {
    pub run: Rc<Run>,
    requests: Rc<Requests>,
    dialect: Dialect,
    /// In runs with subscribers: what is sent and acknowledged is noted here.
    pub deliveries: Option<Rc<Deliveries>>,
    /// In runs with queries: what is acknowledged is noted here.
    pub acknowledged: Option<Rc<AcknowledgedEvents>>,
    /// Counts of requests.
    sent: u64,
    answered: u64,
    /// When the requests in flight were due, and how many.
    due: VecDeque<(Instant, usize)>,
    /// The number of requests sent up to the end of each burst that is answered as one.
    bursts: VecDeque<u64>,
    /// The last sequence number acknowledged here.
    last: u64,
    /// Whether the latency of answers is recorded.
    is_timed: bool,
    /// Requests of the last read that were refused.
    refused: usize,
    /// Sequence numbers of the last read, if the deliveries need their due times; 0 for a refused event.
    recent: Vec<u64>,
}

impl RequestTracker {
    pub fn new(run: Rc<Run>, requests: Rc<Requests>, dialect: Dialect, is_timed: bool) -> Self {
        let (due, bursts, deliveries, acknowledged, recent) = Default::default();
        Self {
            run,
            requests,
            dialect,
            deliveries,
            acknowledged,
            sent: 0,
            answered: 0,
            due,
            bursts,
            last: 0,
            is_timed,
            refused: 0,
            recent,
        }
    }

    pub fn events_each(&self) -> usize {
        self.requests.events_each()
    }

    pub fn in_flight(&self) -> usize {
        (self.sent - self.answered) as usize
    }

    pub fn send(&mut self, due: Instant, count: usize, out: &mut Vec<u8>) {
        self.requests.write(out, self.sent, count);
        self.due.push_back((due, count));
        if let Some(deliveries) = &self.deliveries {
            deliveries.sent(&self.requests, self.sent, count, due);
        }
        self.sent += count as u64;
        if let Dialect::Peer { after_burst, .. } = self.dialect
            && !after_burst.is_empty()
        {
            out.extend_from_slice(after_burst);
            self.bursts.push_back(self.sent);
        }
    }

    /// Takes the answers out of what the server sent, and returns how many bytes are used up.
    pub fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> anyhow::Result<usize> {
        let before = self.answered;
        let used = match self.dialect {
            Dialect::WebSocket => frames(bytes, out, |text| self.answer(|visit| answer::of_socket(text, visit))),
            Dialect::Http => responses(bytes, |status, body| self.answer(|visit| answer::of_post(status, body, visit))),
            Dialect::Peer { answers, .. } => answers(bytes, out, &mut |outcome| self.outcome(outcome)),
        }?;
        let now = Instant::now();
        let refused = std::mem::take(&mut self.refused);
        let (mut requests, events_each) = ((self.answered - before) as usize, self.requests.events_each());
        let mut recent = self.recent.drain(..);
        while requests > 0 {
            let (due, left) = self.due.front_mut().expect("no more answers than requests");
            let count = requests.min(*left);
            // Where refusals are expected there is one request at a time, and a refusal has no latency.
            if self.is_timed && refused == 0 {
                self.run.took(Operation::Acknowledgement, *due, now, (count * events_each) as u64);
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

    /// Takes one answer: `read` visits the ids in it.
    #[inline]
    fn answer(&mut self, read: impl FnOnce(&mut dyn FnMut(u64)) -> anyhow::Result<Answer>) -> anyhow::Result<()> {
        let events_each = self.requests.events_each();
        let mut event = self.answered * events_each as u64;
        let verification = &mut *self.run.verification.borrow_mut();
        let recent = self.recent.len();
        let asks_when_due = self.deliveries.as_ref().is_some_and(|deliveries| deliveries.asks_when_due());
        let answer = read(&mut |sequence| {
            let keys = self.requests.keys(event);
            verification.acknowledge(sequence, keys.content);
            let last = self.last;
            if sequence <= last {
                verification.violation(|| format!("on one connection, event {sequence} was answered after {last}"));
            }
            self.last = sequence;
            if let Some(deliveries) = &self.deliveries {
                deliveries.acknowledged(keys, sequence);
            }
            if let Some(acknowledged) = &self.acknowledged {
                acknowledged.add(keys, sequence);
            }
            if asks_when_due {
                self.recent.push(sequence);
            }
            event += 1;
        })?;
        match answer {
            Answer::Ok(count) if count == events_each => self.run.count(Operation::Acknowledgement, count as u64),
            Answer::Ok(count) => {
                verification.violation(|| format!("{events_each} events were answered with {count} ids"))
            }
            Answer::Refused(reason) => {
                verification.refuse(events_each, reason);
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

/// How answers come.
#[derive(Debug, Clone, Copy)]
pub enum Dialect {
    WebSocket,
    Http,
    /// That of a server of another kind.
    Peer {
        answers: Answers,
        /// What is sent after each burst of requests.
        after_burst: &'static [u8],
    },
}

/// Reads the bytes that a server of another kind sent to a producer: visits each answer, may append bytes to send, and
/// returns how many bytes are used up.
pub type Answers = fn(&[u8], &mut Vec<u8>, &mut dyn FnMut(Outcome) -> anyhow::Result<()>) -> anyhow::Result<usize>;

/// What a server of another kind answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The event was stored under this number.
    Stored(u64),
    /// The event was passed on. It gets the number after the last one.
    PassedOn,
    /// All events of a burst were passed on.
    BurstPassedOn,
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Events, PayloadBytes};
    use crate::requests::Framing;

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

    fn tracker(after_burst: &'static [u8]) -> RequestTracker {
        let events =
            Events { sessions: 3, users: 5, skew: 0.0, payload_bytes: PayloadBytes(Some(40)), idempotency_keys: false };
        let framing = Framing::Peer(|out, producer, _| out.push(b'0' + producer as u8), 7);
        let requests = Requests::render(&events, 1, &framing, 7, 8);
        let run = Run::new(Operation::Acknowledgement, 0);
        RequestTracker::new(run, Rc::new(requests), Dialect::Peer { answers: letters, after_burst }, true)
    }

    fn acknowledged(tracker: &RequestTracker) -> (u64, u64, Vec<String>) {
        let verification = tracker.run.verification.borrow();
        (verification.acknowledged, verification.refused, verification.violations())
    }

    #[test]
    fn a_burst_is_answered_as_one() {
        let (mut tracker, mut out) = (tracker(b"!"), Vec::new());
        tracker.send(Instant::now(), 3, &mut out);
        tracker.send(Instant::now(), 2, &mut out);
        assert_eq!(out, b"777!77!");
        assert_eq!(tracker.read(b"b", &mut out).expect("an answer"), 1);
        assert_eq!((tracker.in_flight(), acknowledged(&tracker)), (2, (3, 0, Vec::new())));
        tracker.read(b"b", &mut out).expect("an answer");
        assert_eq!((tracker.in_flight(), acknowledged(&tracker)), (0, (5, 0, Vec::new())));
        assert!(tracker.read(b"b", &mut out).is_err());
    }

    #[test]
    fn answers_of_other_servers_are_checked_like_ours() {
        let (mut tracker, mut out) = (tracker(b""), Vec::new());
        tracker.send(Instant::now(), 5, &mut out);
        tracker.read(b"12r", &mut out).expect("answers");
        tracker.read(b"1p", &mut out).expect("answers");
        let told = [
            "event 1 was acknowledged twice",
            "on one connection, event 1 was answered after 2",
            "event 2 was acknowledged twice",
            "1 events were refused, the first with: no",
        ];
        assert_eq!(acknowledged(&tracker), (4, 1, told.map(str::to_owned).to_vec()));
        assert!(tracker.read(b"9", &mut out).is_err());
    }
}
