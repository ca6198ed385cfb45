//! The promise that somebody who handed in events hears what became of them.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::doorbell::{TaskThread, Wakes};
use crate::outbox::Outbox;
use crate::record::{AckLevel, Failure, Outcomes};
use crate::wire::answer::{Answered, Answers, ToPublisher};
use crate::wire::committed::Committed;

/// Resolves exactly once: with the committed batch, with the failure, or, when it is dropped because
/// whoever held it died, as unavailable. Nobody waits for ever.
#[derive(Debug)]
pub struct Receipt {
    /// How safe the events are to be before it resolves.
    level: AckLevel,
    to: Option<To>,
}

#[derive(Debug)]
enum To {
    One(TaskThread, oneshot::Sender<Result<Stored, Failure>>),
    Socket(Arc<Outbox<ToPublisher>>, Answers),
}

/// A batch that is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its new events.
    pub batch: Arc<Committed>,
    /// What became of each that was handed in.
    pub outcomes: Outcomes,
}

impl Receipt {
    /// For a single request of the task that asks, once its events are synced.
    pub fn new() -> (Self, oneshot::Receiver<Result<Stored, Failure>>) {
        Self::at(AckLevel::Synced)
    }

    /// For a single request of the task that asks.
    pub fn at(level: AckLevel) -> (Self, oneshot::Receiver<Result<Stored, Failure>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { level, to: Some(To::One(TaskThread::current(), sender)) }, receiver)
    }

    /// For a socket that answers many messages: the answers go into its outbox, in the order in which
    /// their batches were handed in.
    pub fn for_socket(outbox: Arc<Outbox<ToPublisher>>, answers: Answers, level: AckLevel) -> Self {
        Self { level, to: Some(To::Socket(outbox, answers)) }
    }

    /// For nobody: whoever handed in the events was told that they wait.
    pub fn for_nobody() -> Self {
        Self { level: AckLevel::Queued, to: None }
    }

    /// How safe the events are to be before it resolves.
    pub(super) fn level(&self) -> AckLevel {
        self.level
    }

    pub(super) fn resolve(mut self, outcome: Result<Stored, Failure>, wakes: &mut Wakes) {
        self.settle(outcome, wakes);
    }

    fn settle(&mut self, outcome: Result<Stored, Failure>, wakes: &mut Wakes) {
        match self.to.take() {
            None => {}
            Some(To::One(home, sender)) => {
                wakes.call(home, move || tell(sender, outcome));
            }
            Some(To::Socket(outbox, answers)) => {
                let bytes = answers.bytes();
                let answered = Answered { outcomes: outcome.map(|stored| stored.outcomes), answers };
                outbox.push(ToPublisher::Answered(answered), bytes, wakes);
            }
        }
    }
}

/// Answers a client. One that has gone away needs no answer.
pub(super) fn tell<T>(reply: oneshot::Sender<T>, answer: T) {
    let _ = reply.send(answer);
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.to.is_some() {
            let mut wakes = Wakes::default();
            self.settle(Err(Failure::Unavailable), &mut wakes);
            wakes.wake_all();
        }
    }
}
