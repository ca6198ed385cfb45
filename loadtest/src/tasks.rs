//! The tasks of one run: none may end while it is measured, and those that send must end after it.

use std::pin::pin;

use anyhow::{Context, bail};
use tokio::select;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;

use crate::connection::PATIENCE;
use crate::options::Common;
use crate::run::{Interval, Run};
use crate::schedule::Clock;
use crate::target::Target;

/// All tasks of one run, each on this thread.
#[derive(Default)]
pub struct Tasks {
    /// They end after the run does.
    senders: JoinSet<anyhow::Result<()>>,
    /// They never end by themselves.
    listeners: JoinSet<anyhow::Result<()>>,
}

impl Tasks {
    /// Starts a task that ends once the run stops and its requests are answered.
    pub fn spawn(&mut self, task: impl Future<Output = anyhow::Result<()>> + 'static) {
        self.senders.spawn_local(task);
    }

    /// Starts a task that goes on until [`shutdown`](Self::shutdown).
    pub fn spawn_endless(&mut self, task: impl Future<Output = anyhow::Result<()>> + 'static) {
        self.listeners.spawn_local(task);
    }

    /// Lets the tasks warm up and measures them.
    ///
    /// # Errors
    /// A task ended, or what [`Run::measure`] says.
    pub async fn measure(
        &mut self,
        run: &Run,
        common: &Common,
        target: &Target,
        clock: &Clock,
    ) -> anyhow::Result<Interval> {
        select! {
            interval = run.measure(common, target, clock) => interval,
            error = self.failed() => Err(error),
        }
    }

    /// Waits until a task ends, which none does before the run stops, and says why. Cancel safe.
    async fn failed(&mut self) -> anyhow::Error {
        let ended = select! {
            Some(ended) = self.senders.join_next() => ended,
            Some(ended) = self.listeners.join_next() => ended,
            else => std::future::pending().await,
        };
        match why(ended) {
            Err(error) => error,
            Ok(()) => unreachable!("no task ends before the run stops"),
        }
    }

    /// Waits for the answers to everything that was due. Missing answers are a violation.
    ///
    /// # Errors
    /// A task failed.
    pub async fn finish(&mut self, run: &Run) -> anyhow::Result<()> {
        let Self { senders, listeners } = self;
        let answered = async {
            while let Some(ended) = senders.join_next().await {
                why(ended)?;
            }
            anyhow::Ok(())
        };
        let mut answered = pin!(answered);
        // A server that is slower than the rate may have as much before it as it has done.
        for (patience, is_last) in [(PATIENCE.max(run.length()), false), (PATIENCE, true)] {
            select! {
                ended = timeout(patience, &mut answered) => match ended {
                    Ok(ended) => return ended,
                    Err(_) if is_last => run.violation(|| format!("some requests are not answered after {patience:?}")),
                    Err(_) => run.give_up(),
                },
                Some(ended) = listeners.join_next() => {
                    why(ended)?;
                    bail!("a task that goes on for ever has ended");
                }
            }
        }
        Ok(())
    }

    /// Ends all tasks that are left.
    pub async fn shutdown(mut self) {
        self.senders.shutdown().await;
        self.listeners.shutdown().await;
    }
}

fn why(ended: Result<anyhow::Result<()>, JoinError>) -> anyhow::Result<()> {
    ended.context("a task panicked")?
}
