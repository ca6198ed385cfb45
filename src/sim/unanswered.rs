//! Batches whose producers wait for an answer.

use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::event::ModelEvent;
use super::server::Server;
use crate::event::Seq;
use crate::record::Failure;
use crate::store::{Order, Query, Store, Stored};
use crate::wire::committed::Commit;

/// A batch in the queue, with what waits for its answer.
pub struct Unanswered {
    pub events: Vec<ModelEvent>,
    /// If its only event repeats another: which one.
    pub repeats: Option<Seq>,
    /// The events and KiB that it takes in the queue.
    pub cost: (usize, usize),
    pub answer: Answer,
    pub observer: Arc<Observer>,
}

type Answer = oneshot::Receiver<Result<Stored, Failure>>;

impl Unanswered {
    pub fn new(
        events: Vec<ModelEvent>,
        repeats: Option<Seq>,
        cost: (usize, usize),
        mut answer: Answer,
        server: &Server,
    ) -> Self {
        let (store, commits) = (server.store.clone(), server.parts.commits.clone());
        let observer = Arc::new(Observer { store, commits, saw: Mutex::new(None) });
        let waker = Waker::from(observer.clone());
        assert!(pin!(&mut answer).poll(&mut Context::from_waker(&waker)).is_pending());
        Self { events, repeats, cost, answer, observer }
    }

    pub fn must_be_unavailable(mut self) {
        assert!(matches!(self.answer.try_recv(), Ok(Err(Failure::Unavailable))));
    }
}

/// The waker of a producer. The writer wakes it in the middle of its step, and it notes what can be seen then.
pub struct Observer {
    store: Store,
    commits: Receiver<Arc<Commit>>,
    pub saw: Mutex<Option<Saw>>,
}

pub struct Saw {
    pub committed: Seq,
    /// The newest event that a query finds.
    pub newest: Option<Seq>,
    /// Commits that wait for the fan-out.
    pub commits: usize,
}

impl Wake for Observer {
    fn wake(self: Arc<Self>) {
        let query = Query { order: Order::NewestFirst, ..Query::default() };
        let newest = self.store.reader().scan(&query, |_| ControlFlow::Break(())).expect("read");
        *self.saw.lock() = Some(Saw { committed: self.store.committed(), newest, commits: self.commits.len() });
    }
}
