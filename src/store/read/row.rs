//! An event as a row of `events`, compared with its checksum.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::event::{Seq, Timestamp};
use crate::store::checksum;
use crate::store::damage::damaged;
use crate::wire::StoredEvent;

/// The statement that selects the events of a condition in SQL, with the columns that [`stored`] reads.
macro_rules! select_events {
    ($which:literal) => {
        concat!(
            "SELECT seq, time_us, event_type, source, session_id, user_id, payload, legacy_id, checksum ",
            "FROM events WHERE ",
            $which
        )
    };
}
pub(in crate::store) use select_events;

/// An event as it was stored, or an error that names it. Events up to `unchecked_through` have no checksum.
pub fn stored<'r>(row: &'r Row<'_>, unchecked_through: Seq) -> rusqlite::Result<StoredEvent<'r>> {
    let event = unverified(row).ok().filter(|event| match row.get_ref(8) {
        Ok(ValueRef::Integer(checksum)) => {
            let legacy_id = event.legacy_id.map(str::as_bytes);
            let scratch = &mut Vec::with_capacity(256 + event.payload.len());
            checksum == i64::from(checksum::of_event(scratch, event.seq, event.time, &event.columns(), legacy_id))
        }
        Ok(ValueRef::Null) => event.seq <= unchecked_through,
        _ => false,
    });
    event.ok_or_else(|| damaged(name_of_damaged(number(row).unwrap_or_default())))
}

/// The number of a row, damaged or not.
pub fn number(row: &Row<'_>) -> rusqlite::Result<Seq> {
    row.get::<_, i64>(0).map(|seq| Seq(seq as u64))
}

/// How a damaged event is named.
pub fn name_of_damaged(seq: Seq) -> String {
    format!("events: {} is damaged", seq.id())
}

/// The error that a row has a number that does not fit the rows beside it.
pub fn out_of_order(seq: Seq) -> rusqlite::Error {
    damaged(format!("events: {} is out of order", seq.id()))
}

fn unverified<'r>(row: &'r Row<'_>) -> rusqlite::Result<StoredEvent<'r>> {
    let text = |i: usize| Ok::<_, rusqlite::Error>(row.get_ref(i)?.as_str()?);
    let optional = |i: usize| Ok::<_, rusqlite::Error>(row.get_ref(i)?.as_str_or_null()?);
    Ok(StoredEvent {
        seq: number(row)?,
        time: Timestamp(row.get(1)?),
        event_type: text(2)?,
        source: text(3)?,
        session_id: optional(4)?,
        user_id: optional(5)?,
        payload: text(6)?,
        legacy_id: optional(7)?,
    })
}
