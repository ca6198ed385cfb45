//! What a transaction does besides the ordered commands. It changes nothing that a client can see.

use rusqlite::Connection;

use super::position::Position;
use crate::store::damage::is_damage;
use crate::store::integrity::noting_damage;
use crate::store::shared::Shared;

/// A kind of housekeeping: work that is done in slices, each in a transaction that may also apply commands.
pub trait Housekeeping {
    /// Whether there is something to do now. Then the writer does not wait for commands, unless the disk is full.
    fn is_due(&self) -> bool;

    /// What it does in the transaction. It may be called again after a rollback, so it changes only what `after_commit`
    /// confirms.
    ///
    /// # Errors
    /// Damage that ends the transaction. It has set its flag in `left_out`, and skips that work when it is called again.
    fn in_transaction(&mut self, turn: &mut Turn<'_>) -> rusqlite::Result<()>;

    /// What it does after the commit.
    fn after_commit(&mut self, shared: &Shared);
}

/// The transaction of one turn.
pub struct Turn<'t> {
    pub connection: &'t Connection,
    pub shared: &'t Shared,
    /// Where the record stands after the commands of this transaction.
    pub position: Position,
    /// How many events the commands have stored.
    pub events: usize,
    /// If so, only what frees space is done.
    pub is_disk_full: bool,
    pub left_out: &'t mut LeftOut,
}

/// Parts of a transaction that met damage. Once SQLite itself has met damage in a transaction, it refuses every further
/// write in it and its commit, even after a rollback to a savepoint. So the whole transaction is rolled back and begins
/// again without these parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// All messages with idempotency keys. Their outcome is `Damaged`.
    pub keys: bool,
    /// The deletion. Its client gets `Damaged`.
    pub deletion: bool,
    /// Where the holes of segments are. The next start finds those of a former format again. Posting lists with only deleted
    /// events are stored meanwhile.
    pub holes: bool,
    /// Removing the rows of deleted events, until the next deletion or start.
    pub tidying: bool,
    /// Rolling up older events, until the next start; and taking deleted ones out of the rollups.
    pub rollups: bool,
}

impl LeftOut {
    /// Passes the result of a part on. If it is damage, notes it and sets the flag, so that the next try leaves the part
    /// out.
    pub fn note_damage_of<T>(
        &mut self,
        shared: &Shared,
        flag: fn(&mut Self) -> &mut bool,
        result: rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        result.inspect_err(|error| {
            if is_damage(error) {
                shared.note_damage(error);
                *flag(self) = true;
            }
        })
    }

    /// The result of a part that goes on without what is damaged: `None` after damage that only a checksum revealed. The
    /// damage is noted.
    ///
    /// # Errors
    /// Damage that SQLite itself met. Sets the flag, so that the next try leaves the part out. And what is no damage.
    pub fn despite_damage<T>(
        &mut self,
        (connection, shared): (&Connection, &Shared),
        flag: fn(&mut Self) -> &mut bool,
        result: rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        let result = noting_damage(&shared.integrity, result)?;
        if result.is_none() {
            // Changes nothing. SQLite refuses every write, this one too, as damage if it has met some itself.
            connection.execute_batch("DELETE FROM meta WHERE false").inspect_err(|_| *flag(self) = true)?;
        }
        Ok(result)
    }
}
