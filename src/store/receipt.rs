//! The promise that the producer of a batch hears what became of it.

use std::fmt;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::doorbell::{TaskThread, Wakes};
use crate::record::{AckLevel, Failure, Outcomes};
use crate::wire::committed::Committed;

/// Resolves exactly once: with the committed batch, with a failure, or, when it is dropped because the thread that has
/// it died, as unavailable. So no producer waits for ever.
pub struct Receipt {
    /// How safe the events are to be before it resolves.
    level: AckLevel,
    resolve: Option<Resolve>,
}

/// Answers the producer. Tasks that are to be woken for that are added to the wakes.
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
        let resolve = move |outcome, wakes: &mut Wakes| wakes.call(thread, move || answer(sender, outcome));
        (Self::new(level, resolve), receiver)
    }

    /// For a producer that was already answered, with the level *queued*.
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

/// Answers a client. A client that has disconnected needs no answer.
pub(super) fn answer<T>(reply: oneshot::Sender<T>, outcome: T) {
    let _ = reply.send(outcome);
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
