//! What the service manager is told that has started the server (`sd_notify(3)`), so that it knows when clients can
//! connect, and restarts a server whose writer hangs. Nothing happens where none listens.

use std::convert::Infallible;
use std::future::pending;

use sd_notify::NotifyState;
use tokio::time::sleep;

use crate::store::Store;

/// The server listens.
pub fn started() {
    tell(&[NotifyState::Ready]);
}

/// The server ends, and stores and delivers what it has in hand.
pub fn ending() {
    tell(&[NotifyState::Stopping]);
}

/// Feeds the watchdog, as often as the writer answers. A writer that hangs, such as in a sync of a disk that has stopped,
/// lets the watchdog run out. One that refuses events, such as on a full disk, is alive: a restart would mend nothing.
/// Cancel-safe.
pub async fn feed_watchdog(store: &Store) -> Infallible {
    let Some(runs_out_after) = sd_notify::watchdog_enabled() else { return pending().await };
    loop {
        let _ = store.probe().await;
        tell(&[NotifyState::Watchdog]);
        // Half of the time would do. A third leaves time for a writer that waits for another program's lock.
        sleep(runs_out_after / 3).await;
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "tell the service manager (NOTIFY_SOCKET)");
    }
}
