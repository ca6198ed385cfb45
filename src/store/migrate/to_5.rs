//! Format 5 says in `meta` up to which event the record is deleted. In earlier formats the first row showed that.

use rusqlite::Connection;

use crate::event::Seq;
use crate::store::damage::ignoring_damage;
use crate::store::read;
use crate::store::schema::meta;

pub fn run(connection: &Connection) -> rusqlite::Result<()> {
    // The view is defined anew: from now on it leaves out deleted events.
    connection.execute_batch("DROP VIEW IF EXISTS readable_events")?;
    let unchecked_through = meta::seq(connection, meta::UNCHECKED_THROUGH)?;
    // The number that is stored here is believed for ever, so it must not be a damaged one. If a page of the oldest
    // events is damaged, nothing counts as deleted: reads begin with the first event that they find, as in format 4.
    let deleted_through = ignoring_damage(before_first(connection, unchecked_through))?.unwrap_or_default();
    meta::set(connection, meta::DELETED_THROUGH, deleted_through.0 as i64)
}

/// The number before the first event. Numbers are dense, so the damaged rows before the first undamaged event have the
/// numbers right before its own.
fn before_first(connection: &Connection, unchecked_through: Seq) -> rusqlite::Result<Seq> {
    const EVENTS: &str = "SELECT seq, time_us, event_type, source, session_id, user_id, payload, legacy_id, checksum \
                          FROM events ORDER BY seq";
    let mut statement = connection.prepare(EVENTS)?;
    let (mut rows, mut damaged) = (statement.query([])?, 0);
    while let Some(row) = rows.next()? {
        match read::stored(row, unchecked_through) {
            Ok(event) => return Ok(Seq(event.seq.0.saturating_sub(damaged + 1))),
            Err(_) => damaged += 1,
        }
    }
    match damaged {
        0 => meta::seq(connection, meta::LAST_SEQ),
        _ => Ok(Seq::ZERO),
    }
}
