//! The promise that somebody who handed in events hears what became of them.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::doorbell::{Home, Wakes};
use crate::outbox::Outbox;
use crate::wire::Failure;
use crate::wire::answer::{Answered, Answers, ToPublisher};
use crate::wire::batch::Committed;

/// Resolves exactly once: with the committed batch, with the failure, or, when it is dropped because
/// whoever held it died, as unavailable. Nobody waits for ever.
#[derive(Debug)]
pub struct Receipt(Option<To>);

#[derive(Debug)]
enum To {
    One(Home, oneshot::Sender<Result<Arc<Committed>, Failure>>),
    Socket(Arc<Outbox<ToPublisher>>, Answers),
}

impl Receipt {
    /// For a single request of the task that asks.
    pub fn new() -> (Self, oneshot::Receiver<Result<Arc<Committed>, Failure>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Some(To::One(Home::here(), sender))), receiver)
    }

    /// For a socket that answers many messages: the answers go into its outbox, in the order in which
    /// their batches were handed in.
    pub fn for_socket(outbox: Arc<Outbox<ToPublisher>>, answers: Answers) -> Self {
        Self(Some(To::Socket(outbox, answers)))
    }

    pub(super) fn resolve(mut self, outcome: Result<&Arc<Committed>, Failure>, wakes: &mut Wakes) {
        self.settle(outcome, wakes);
    }

    fn settle(&mut self, outcome: Result<&Arc<Committed>, Failure>, wakes: &mut Wakes) {
        match self.0.take() {
            None => {}
            Some(To::One(home, sender)) => {
                let outcome = outcome.cloned();
                // Whoever asked may be gone.
                wakes.call(home, move || drop(sender.send(outcome)));
            }
            Some(To::Socket(outbox, answers)) => {
                let bytes = answers.bytes();
                let answered = Answered { outcome: outcome.map(|batch| batch.first()), answers };
                outbox.push(ToPublisher::Answered(answered), bytes, wakes);
            }
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.0.is_some() {
            let mut wakes = Wakes::default();
            self.settle(Err(Failure::Unavailable), &mut wakes);
            wakes.wake_all();
        }
    }
}
