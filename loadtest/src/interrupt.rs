//! Ctrl-C and SIGTERM: a measurement ends early, and is still verified and reported.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Signals within 500 ms are one: some programs signal a process and then its process group.
const SAME: Duration = Duration::from_millis(500);

/// A request to end early.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Rc<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether a measurement is under way, which can end early.
    measuring: Cell<bool>,
    /// When the first signal came.
    interrupted: Cell<Option<Instant>>,
    notify: Notify,
}

impl Interrupt {
    /// Does the work. The first signal ends the measurement that is under way in it. A signal without a measurement
    /// under way, and a second one, end the work itself: everything that it has started is dropped, and so ended.
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

    /// From now on the first signal ends only the measurement, which waits for [`requested`](Self::requested).
    pub fn allow_early_end(&self) {
        self.0.measuring.set(true);
    }

    /// Waits for a signal. Cancel safe.
    pub async fn requested(&self) {
        self.0.notify.notified().await;
    }

    /// Whether a signal came.
    pub fn was_requested(&self) -> bool {
        self.0.interrupted.get().is_some()
    }
}
