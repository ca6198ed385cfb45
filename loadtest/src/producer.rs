//! One producer: sends as its flow allows, and reads every answer.

use tokio::select;

use crate::connection::Connection;
use crate::flow::Flow;
use crate::tracker::RequestTracker;

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
        let Self { mut connection, mut flow, window, mut tracker } = self;
        while !tracker.run.is_stopping() {
            while let Some((due, count)) = flow.take(window - tracker.in_flight()) {
                tracker.send(due, count, connection.out());
            }
            select! {
                biased;
                read = connection.exchange(|bytes, out| tracker.read(bytes, out)) => read?,
                () = flow.changed() => {}
            }
        }
        while tracker.in_flight() > 0 {
            connection.exchange(|bytes, out| tracker.read(bytes, out)).await?;
        }
        Ok(())
    }
}
