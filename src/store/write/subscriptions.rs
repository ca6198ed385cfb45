//! Changes of durable subscriptions that wait to be stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::command::Reply;
use super::order::Ordered;
use crate::record::Failure;
use crate::store::receipt::answer;
use crate::store::shared::Shared;
use crate::store::subscription::StoredSubscription;

/// Confirmations within 200 ms share a commit. A crash may lose this much of them, and then events are delivered again.
const INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 200 });

/// After a full disk or a locked database has refused confirmations, the next try comes after this.
const INTERVAL_WHEN_REFUSED: Duration = Duration::from_secs(if cfg!(test) { 3_600 } else { 1 });

/// Durable subscriptions as they are to be stored: the last state of each, or `None` for one that is removed. In order
/// of their names, because they are applied in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed(pub BTreeMap<Arc<str>, Option<StoredSubscription>>);

impl Changed {
    pub fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        for (name, state) in &self.0 {
            match state {
                Some(state) => state.store(connection)?,
                None => {
                    connection.prepare_cached("DELETE FROM subscriptions WHERE name = ?1")?.execute([&**name])?;
                }
            }
        }
        Ok(())
    }
}

/// Changes on their way to the database.
#[derive(Default)]
pub struct Changes {
    pub changed: Changed,
    /// The latest moment at which they are to be stored.
    pub due: Option<Instant>,
    replies: Vec<Reply<()>>,
}

impl Changes {
    /// Changes can be taken. They are due at once if a client waits for the reply, else within [`INTERVAL`].
    pub fn announce(&mut self, reply: Option<Reply<()>>) {
        let latest = Instant::now() + if reply.is_some() { Duration::ZERO } else { INTERVAL };
        self.due = Some(self.due.map_or(latest, |due| due.min(latest)));
        self.replies.extend(reply);
    }

    pub fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// What waits is due now, because the server ends.
    pub fn make_due(&mut self) {
        self.due = self.due.map(|_| Instant::now());
    }

    /// Whether a client waits for a reply.
    pub fn is_awaited(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Has the next transaction apply the changes that were made until now, if it is time.
    pub fn order(&mut self, shared: &Shared, ordered: &mut Ordered) {
        ordered.subscriptions = self.is_due();
        if ordered.subscriptions {
            self.changed.0.extend(std::mem::take(&mut *shared.changed_subscriptions.lock()));
        }
    }

    pub fn after_commit(&mut self) {
        let Self { replies, .. } = std::mem::take(self);
        replies.into_iter().for_each(|reply| answer(reply, Ok(())));
    }

    /// They could not be stored. Clients that wait get the failure. The changes stay and are tried again later.
    pub fn refuse(&mut self, failure: Failure) {
        self.replies.drain(..).for_each(|reply| answer(reply, Err(failure)));
        self.due = self.due.map(|_| Instant::now() + INTERVAL_WHEN_REFUSED);
    }
}
