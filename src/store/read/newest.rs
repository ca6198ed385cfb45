//! Where the undamaged record ends: a start and a repair go on from there.

use rusqlite::Connection;

use super::row::{number, select_events, stored};
use crate::event::{Seq, Timestamp};
use crate::wire::StoredEvent;

/// The newest undamaged event, and the damaged rows after it. If a damaged row were believed, a flipped bit in the last
/// time would stamp every later event centuries ahead, and one in the last number would give numbers twice or leave
/// some out.
#[derive(Default)]
pub struct Newest {
    pub seq: Seq,
    pub time: Option<Timestamp>,
    /// The numbers that damaged rows after it show.
    pub damaged: Vec<Seq>,
}

/// Finds the newest undamaged event. One without a checksum counts as undamaged if it is not later than the newest
/// event of the statistics ([`last_seen`]).
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
    /// The last number that was given. Numbers up to `stored`, which `meta` has, were given in any case. Numbers after
    /// `noted`, which the sidecar has, were not given, unless `noted` is 0 because no sidecar could be read. Numbers
    /// are dense: at most as many follow the last undamaged event as there are damaged rows after it. The number that a
    /// damaged row shows counts only if it is one of these.
    pub fn last(&self, stored: Seq, noted: Seq) -> Seq {
        let after = self.damaged.len();
        let dense = self.seq.plus(after);
        let last = if noted == Seq::ZERO { dense } else { dense.min(noted).max(self.seq) };
        let end = stored.max(self.seq).plus(after);
        self.damaged.iter().copied().filter(|seq| *seq <= end).fold(last.max(stored), Seq::max)
    }
}

/// The time of the newest event according to the statistics: a second source for it, where events have no checksum.
pub fn last_seen(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    const SQL: &str = "SELECT max(last_seen) FROM event_stats";
    let last_seen: Option<String> = connection.query_row(SQL, [], |row| row.get(0))?;
    Ok(last_seen.and_then(|last_seen| Timestamp::parse_floor(&last_seen).ok()))
}
