//! One producer: sends as its flow allows, and reads every answer.

use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::select;

use crate::connection::Connection;
use crate::deliveries::Deliveries;
use crate::latency::Operation;
use crate::run::Run;
use crate::schedule::Due;
use crate::tracker::RequestTracker;

/// What a producer waits for before it sends, besides its window.
pub enum Flow {
    /// Nothing: as fast as answers come (a closed loop).
    Window,
    /// Subscribers have received the events sent before.
    Received(Rc<Deliveries>),
    /// The time at which a request is due (an open loop). A wait for the window counts as latency.
    Due(Arc<Due>),
}

impl Flow {
    /// Waits until more may be sent, or no more will be. Cancel safe.
    pub async fn changed(&self) {
        match self {
            Self::Window => pending().await,
            Self::Received(deliveries) => deliveries.progress().await,
            Self::Due(due) => due.changed().await,
        }
    }

    /// How many of at most `max` requests may be sent, and when they were due.
    pub fn take(&self, run: &Run, max: usize) -> Option<(Instant, usize)> {
        let max = match self {
            Self::Due(due) => return due.take(max),
            _ if run.is_stopping() => 0,
            Self::Received(deliveries) => deliveries.room(max),
            Self::Window => max,
        };
        (max > 0).then(|| (Instant::now(), max))
    }

    /// Waits for the next request that may be sent, of a client that sends one at a time: when it was due. `None` once
    /// nothing more will be.
    pub async fn next(&self, run: &Run) -> Option<Instant> {
        loop {
            if let Some((due, _)) = self.take(run, 1) {
                return Some(due);
            }
            if run.has_given_up() {
                self.abandon(run, Operation::Query, 1);
            }
            if self.is_over(run) {
                return None;
            }
            select! {
                () = self.changed() => {}
                () = run.changed() => {}
            }
        }
    }

    /// Records that what is due will never be sent: it has waited until now at least. Returns how much it was.
    fn abandon(&self, run: &Run, kind: Operation, each: usize) -> u64 {
        let Self::Due(due) = self else { return 0 };
        let (now, mut all) = (Instant::now(), 0);
        while let Some((due, count)) = due.take(usize::MAX) {
            run.took(kind, due, now, (count * each) as u64);
            all += (count * each) as u64;
        }
        all
    }

    /// Whether nothing more will be sent: in an open loop everything that was due before the end is.
    pub fn is_over(&self, run: &Run) -> bool {
        run.is_stopping()
            && match self {
                Self::Due(due) => due.is_over(),
                Self::Window | Self::Received(_) => true,
            }
    }
}

pub struct Producer {
    connection: Connection,
    flow: Flow,
    /// Most requests under way.
    window: usize,
    tracker: RequestTracker,
}

impl Producer {
    pub fn new(connection: Connection, flow: Flow, window: usize, tracker: RequestTracker) -> Self {
        Self { connection, flow, window, tracker }
    }

    /// Sends until the run stops, then waits for what is under way.
    ///
    /// # Errors
    /// The connection was lost, or the server answered what is no answer.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { mut connection, flow, window, mut tracker } = self;
        let run = tracker.run.clone();
        loop {
            if run.has_given_up() {
                let abandoned = flow.abandon(&run, Operation::Acknowledgement, tracker.events_each());
                run.abandoned.set(run.abandoned.get() + abandoned);
            }
            while let Some((due, count)) = flow.take(&run, window - tracker.in_flight()) {
                tracker.send(due, count, connection.out());
            }
            if tracker.in_flight() == 0 && flow.is_over(&run) {
                return Ok(());
            }
            select! {
                biased;
                read = connection.exchange(|bytes, out| tracker.read(bytes, out)) => read?,
                () = flow.changed() => {}
                () = run.changed() => {}
            }
        }
    }
}
