//! Ctrl-C and SIGTERM: what is being measured ends early, and is still verified and told.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Signals that come so soon after one another are one: some programs tell a process and then its group.
const SAME: Duration = Duration::from_millis(500);

/// The wish to end early.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Rc<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether somebody measures, who can end early.
    measuring: Cell<bool>,
    /// When the first signal came.
    interrupted: Cell<Option<Instant>>,
    notify: Notify,
}

impl Interrupt {
    /// Does the work. A signal ends the measurement that goes on in it; one that finds no measurement, and a
    /// second one, end the work itself: what it has started is dropped, and so ended.
    ///
    /// # Errors
    /// The work failed or was ended.
    pub async fn guard<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let Self(state) = self;
        state.measuring.set(false);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut work = pin!(work);
        loop {
            select! {
                done = &mut work => return done,
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            match state.interrupted.get() {
                Some(first) if first.elapsed() < SAME => continue,
                Some(_) => bail!("interrupted again, before everything was verified"),
                None => state.interrupted.set(Some(Instant::now())),
            }
            if !state.measuring.get() {
                bail!("interrupted before anything was measured");
            }
            state.notify.notify_one();
        }
    }

    /// From now on a signal does not end everything: whoever measures waits for [`wished`](Self::wished).
    pub fn measuring(&self) {
        self.0.measuring.set(true);
    }

    /// Waits for a signal. Cancel safe.
    pub async fn wished(&self) {
        self.0.notify.notified().await;
    }

    /// Whether a signal came.
    pub fn came(&self) -> bool {
        self.0.interrupted.get().is_some()
    }
}
