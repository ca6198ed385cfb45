//! Where the record ends, as far as its rows are whole: what a start and a repair go on from.

use rusqlite::Connection;

use super::row::{number, select_events, stored};
use crate::event::{Seq, Timestamp};
use crate::wire::StoredEvent;

/// The newest event that is whole, and the damaged rows behind it. If a damaged row were believed, a flipped bit in the
/// last time would have every later event stamped centuries ahead, and one in the last number would have numbers given
/// twice or left out.
#[derive(Default)]
pub struct Newest {
    pub seq: Seq,
    pub time: Option<Timestamp>,
    /// The numbers that damaged rows behind it have.
    pub damaged: Vec<Seq>,
}

/// Finds the newest event. One without a checksum counts as whole if the statistics ([`last_seen`]) know of none later.
pub fn newest(
    connection: &Connection,
    unchecked_through: Seq,
    last_seen: Option<Timestamp>,
) -> rusqlite::Result<Newest> {
    let mut damaged = Vec::new();
    let mut statement = connection.prepare(select_events!("true ORDER BY seq DESC"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match stored(row, unchecked_through) {
            Ok(StoredEvent { seq, time, .. })
                if seq > unchecked_through || last_seen.is_none_or(|last_seen| time <= last_seen) =>
            {
                return Ok(Newest { seq, time: Some(time), damaged });
            }
            _ => damaged.push(number(row)?),
        }
    }
    Ok(Newest { damaged, ..Newest::default() })
}

impl Newest {
    /// The last number that was given. Numbers up to `noted`, which `meta` has, were given in any case. Numbers after
    /// `witnessed`, which the sidecar has, were not, unless that is 0 because the sidecar is of another epoch. Numbers are
    /// dense: at most as many follow the last whole event as there are damaged rows behind it. The number that a damaged
    /// row itself has counts only if it is one of these.
    pub fn last(&self, noted: Seq, witnessed: Seq) -> Seq {
        let behind = self.damaged.len();
        let dense = self.seq.plus(behind);
        let last = if witnessed == Seq::ZERO { dense } else { dense.min(witnessed).max(self.seq) };
        let end = noted.max(self.seq).plus(behind);
        self.damaged.iter().copied().filter(|seq| *seq <= end).fold(last.max(noted), Seq::max)
    }
}

/// The time of the newest event as the statistics have it: a second source for it where events have no checksum.
pub fn last_seen(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    const SQL: &str = "SELECT max(last_seen) FROM event_stats";
    let last_seen: Option<String> = connection.query_row(SQL, [], |row| row.get(0))?;
    Ok(last_seen.and_then(|last_seen| Timestamp::parse_floor(&last_seen).ok()))
}
