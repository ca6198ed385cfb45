//! What a transaction does besides the ordered commands. It changes nothing that a client can see.

use rusqlite::Connection;

use super::position::Position;
use crate::store::damage::is_damage;
use crate::store::shared::Shared;

/// A kind of housekeeping: work that is done in slices, each in a transaction that may also apply commands.
pub trait Housekeeping {
    /// Whether there is something to do now. Then the writer does not wait for commands.
    fn is_due(&self) -> bool;

    /// The part in the transaction. After a rollback it is called again in another transaction, and what it did before
    /// is undone.
    ///
    /// # Errors
    /// Damage that ends the transaction. It has set the mark in `left_out` for the part that met the damage, and leaves
    /// this part out when it is called again.
    fn in_transaction(&mut self, turn: &mut Turn<'_>) -> rusqlite::Result<()>;

    /// The part after the commit.
    fn after_commit(&mut self, shared: &Shared);
}

/// The transaction of one turn.
pub struct Turn<'t> {
    pub connection: &'t Connection,
    pub shared: &'t Shared,
    /// Where the record stands after the commands of this transaction.
    pub position: Position,
    /// How many events these have stored.
    pub events: usize,
    /// Only what frees space is done.
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
    /// Where the holes of segments are. The next start finds them again.
    pub holes: bool,
    /// Removing the rows of deleted events, until the next deletion or start.
    pub tidying: bool,
}

impl LeftOut {
    /// Runs a part of the transaction. If it meets damage, the damage is noted, and the part is left out from now on.
    pub fn unless_damaged<T>(
        &mut self,
        shared: &Shared,
        mark: fn(&mut Self) -> &mut bool,
        part: rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        part.inspect_err(|error| {
            if is_damage(error) {
                shared.note_damage(error);
                *mark(self) = true;
            }
        })
    }
}

/// Succeeds if the transaction can go on after damage: if only a checksum revealed the damage.
///
/// # Errors
/// The damage, if SQLite itself met it: then it refuses even the statement below, which changes nothing.
pub fn go_on_after(damage: rusqlite::Error, connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("DELETE FROM meta WHERE false").map_err(|_| damage)
}
