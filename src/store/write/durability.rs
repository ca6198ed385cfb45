//! Which commits are synced, and what the sidecar says of them.

use rusqlite::Connection;

use super::position::Position;
use crate::config::Durability;
use crate::record::AckLevel;
use crate::store::schema::meta;
use crate::store::sidecar::Sidecar;

pub struct Syncing {
    durability: Durability,
    pub sidecar: Sidecar,
    /// Whether commits are synced at the moment.
    syncs: bool,
    /// Whether something may be committed that is not synced yet: true at start, because the server before may have
    /// been killed between the two.
    has_unsynced: bool,
}

impl Syncing {
    pub fn new(durability: Durability, sidecar: Sidecar) -> Self {
        Self { durability, sidecar, syncs: durability != Durability::Off, has_unsynced: true }
    }

    /// Makes the next commit a synced one if a producer in it asks for that, or if it has anything else that a client
    /// waits for. Returns how safe the commit will be. A synced commit also syncs the unsynced ones before it.
    pub fn prepare(
        &mut self,
        connection: &Connection,
        mut levels: impl ExactSizeIterator<Item = AckLevel>,
        others_wait: bool,
    ) -> rusqlite::Result<AckLevel> {
        let has_events = levels.len() > 0;
        let wanted =
            levels.any(|level| level == AckLevel::Synced) || (others_wait && self.durability == Durability::Full);
        if !wanted && has_events {
            self.sidecar.note_unsynced();
        }
        // At `off` nothing is synced, because a synced commit would be no safer than the unsynced ones before it. At
        // the other durabilities every commit is synced, also one of confirmations or posting lists alone, until the
        // sidecar says that not all are.
        let syncs = (wanted || !self.sidecar.may_leave_unsynced()) && self.durability != Durability::Off;
        if syncs != self.syncs && self.durability != Durability::Off {
            connection.pragma_update(None, "synchronous", if syncs { "FULL" } else { "NORMAL" })?;
            self.syncs = syncs;
        }
        Ok(if syncs { AckLevel::Synced } else { AckLevel::Stored })
    }

    /// The last statement of a transaction that stored no event. Repeats alone write nothing, and SQLite does not sync
    /// a commit that wrote nothing: their producers would get the level *synced* for events that are not synced. So
    /// something is written.
    pub fn in_transaction(&self, connection: &Connection) -> rusqlite::Result<()> {
        match self.syncs && self.has_unsynced {
            true => meta::touch(connection),
            false => Ok(()),
        }
    }

    /// Call it before any client is answered.
    pub fn after_commit(&mut self, before: &Position, position: &Position) {
        self.has_unsynced = !self.syncs;
        if position.seq > before.seq {
            self.sidecar.note_committed(position.seq);
        }
    }

    /// Whether commits are synced at the moment.
    pub fn syncs(&self) -> bool {
        self.syncs
    }

    #[cfg(test)]
    pub fn has_unsynced(&self) -> bool {
        self.has_unsynced
    }
}
