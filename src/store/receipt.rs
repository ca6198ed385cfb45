//! The promise that somebody who handed in events hears what became of them.

use std::fmt;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::doorbell::{TaskThread, Wakes};
use crate::record::{AckLevel, Failure, Outcomes};
use crate::wire::committed::Committed;

/// Resolves exactly once: with the committed batch, with the failure, or, when it is dropped because its holder died, as
/// unavailable. So no producer waits for ever.
pub struct Receipt {
    /// How safe the events are to be before it resolves.
    level: AckLevel,
    resolve: Option<Resolve>,
}

/// Tells the producer. Tasks that have to learn of it are added to the wakes.
type Resolve = Box<dyn FnOnce(Result<Stored, Failure>, &mut Wakes) + Send>;

/// A batch that is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its new events.
    pub batch: Arc<Committed>,
    /// What became of each that was handed in.
    pub outcomes: Outcomes,
}

impl Receipt {
    /// Calls `resolve` on the writer's thread, in the order in which the batches were handed in. It must not block.
    pub fn new(level: AckLevel, resolve: impl FnOnce(Result<Stored, Failure>, &mut Wakes) + Send + 'static) -> Self {
        Self { level, resolve: Some(Box::new(resolve)) }
    }

    /// For a single request of the calling task, once its events are synced.
    pub fn synced() -> (Self, oneshot::Receiver<Result<Stored, Failure>>) {
        Self::at(AckLevel::Synced)
    }

    /// For a single request of the calling task.
    pub fn at(level: AckLevel) -> (Self, oneshot::Receiver<Result<Stored, Failure>>) {
        let (sender, receiver) = oneshot::channel();
        let thread = TaskThread::current();
        let resolve = move |outcome, wakes: &mut Wakes| wakes.call(thread, move || tell(sender, outcome));
        (Self::new(level, resolve), receiver)
    }

    /// For a producer that was told already that its events wait.
    pub fn for_nobody() -> Self {
        Self { level: AckLevel::Queued, resolve: None }
    }

    pub(super) fn level(&self) -> AckLevel {
        self.level
    }

    pub(super) fn resolve(mut self, outcome: Result<Stored, Failure>, wakes: &mut Wakes) {
        if let Some(resolve) = self.resolve.take() {
            resolve(outcome, wakes);
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("level", &self.level).finish_non_exhaustive()
    }
}

/// Answers a client. One that has gone away needs no answer.
pub(super) fn tell<T>(reply: oneshot::Sender<T>, answer: T) {
    let _ = reply.send(answer);
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(resolve) = self.resolve.take() {
            let mut wakes = Wakes::default();
            resolve(Err(Failure::Unavailable), &mut wakes);
            wakes.wake_all();
        }
    }
}
