//! Apply: changing the database as ordered commands say. What a transaction changes follows from the database and the
//! commands alone: no clock, no randomness, no setting of this machine. So two databases to which the same commands are
//! applied in the same order have the same events, keys, names, positions, counts and statistics, however the commands
//! were grouped into transactions and whatever housekeeping came in between. Only damage makes them differ.

use rusqlite::Connection;

use super::deletion;
use super::housekeeping::LeftOut;
use super::insert::{Inserter, OfMinute, OfType};
use super::order::{Deleted, Ordered};
use super::position::Position;
use super::subscriptions::Changed;
use crate::store::rollups;
use crate::store::schema::{Text, meta};
use crate::store::shared::Shared;

/// What the commands of one transaction changed.
#[derive(Debug)]
pub struct Applied {
    pub position: Position,
    /// How many events are new.
    pub events: usize,
    /// How many events the deletion deleted; `None` if there was none, or it was left out.
    pub deleted: Option<u64>,
}

/// Applies ordered commands. Besides buffers it knows one fact of the file: whether a damaged row has a larger number than
/// the last event.
pub struct Applier {
    inserter: Inserter,
}

impl Applier {
    /// `is_last_largest`: false if a damaged row has a larger number. Then each event names its own number.
    pub fn new(is_last_largest: bool) -> Self {
        Self { inserter: Inserter::new(is_last_largest) }
    }

    /// Applies commands within a transaction, to a record that stands at `position`. It fills the blanks of each
    /// batch, and sets the outcomes of a batch that has keys and is not all new.
    ///
    /// # Errors
    /// Then the transaction must be rolled back. If `left_out` has grown, the caller may try again.
    pub fn apply(
        &mut self,
        connection: &Connection,
        shared: &Shared,
        position: Position,
        ordered: &mut Ordered,
        changed: &Changed,
        left_out: &mut LeftOut,
    ) -> rusqlite::Result<Applied> {
        let inserted = self.inserter.insert(connection, shared, position, &mut ordered.appends, left_out)?;
        let mut applied = Applied {
            position: Position { seq: inserted.last, time: inserted.last_time, ..position },
            events: (inserted.last.0 - position.seq.0) as usize,
            deleted: None,
        };
        const COUNT: &str = "INSERT INTO event_stats (event_type, count, last_seen) VALUES (?1, ?2, ?3) ON CONFLICT \
                             (event_type) DO UPDATE SET count = count + excluded.count, last_seen = excluded.last_seen";
        let mut count = connection.prepare_cached(COUNT)?;
        for OfType { name, events, last_seen, .. } in &inserted.by_type {
            count.execute((Text(Some(name)), *events as i64, last_seen.to_string()))?;
        }
        for OfMinute { minute, of, events } in &inserted.by_minute {
            rollups::add(connection, *minute, &inserted.by_type[*of].name, *events)?;
        }
        if let Some(deletion) = ordered.deletion.as_ref().filter(|_| !left_out.deletion) {
            if let (Deleted::Through(through), false) = (&deletion.what, left_out.rollups) {
                let record = shared.record_at(connection, position.deleted_through);
                let rolled_up = rollups::delete_through(record, &shared.recent, *through);
                left_out.note_damage_of(shared, |left_out| &mut left_out.rollups, rolled_up)?;
            }
            let deleted = delete(connection, shared, &mut applied.position, &deletion.what);
            // The events of the same transaction do not depend on it.
            applied.deleted = Some(left_out.note_damage_of(shared, |left_out| &mut left_out.deletion, deleted)?);
        }
        if ordered.subscriptions {
            changed.apply(connection)?;
        }
        Ok(applied)
    }
}

/// Deletes events, and returns how many there still were.
fn delete(connection: &Connection, shared: &Shared, position: &mut Position, what: &Deleted) -> rusqlite::Result<u64> {
    let before = position.deleted_through;
    let deleted = match what {
        Deleted::Through(through) => deletion::through(connection, shared, position, *through)?,
        Deleted::Chosen(chosen) => deletion::chosen(connection, shared, position, chosen)?,
    };
    if deleted > 0 || position.deleted_through > before {
        // The last row may be gone now, so the last number and time are stored.
        meta::set(connection, meta::LAST_SEQ, position.seq.0 as i64)?;
        meta::set(connection, meta::LAST_TIME_US, position.time.0)?;
    }
    // A damaged event may be counted under another type. Such a count is deleted with the last event of all. Whether
    // any event is left is read at the end of the table, because its beginning may be damaged.
    const EMPTY: &str = "DELETE FROM event_stats WHERE count <= 0 OR coalesce((SELECT max(seq) FROM events), 0) <= ?1";
    connection.prepare_cached(EMPTY)?.execute([position.deleted_through.0 as i64])?;
    const ROLLUPS: &str = "DELETE FROM rollups WHERE coalesce((SELECT max(seq) FROM events), 0) <= ?1";
    connection.prepare_cached(ROLLUPS)?.execute([position.deleted_through.0 as i64])?;
    Ok(deleted)
}
