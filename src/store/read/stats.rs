//! Counts of what is stored.

use rusqlite::Row;

use super::record::Record;
use crate::event::{Seq, Timestamp};
use crate::store::damage::within;
use crate::store::holes;
use crate::store::integrity::noting_damage;

/// What `GET /stats` reports of the stored events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    pub total_events: u64,
    pub events_last_hour: u64,
    /// Largest first.
    pub by_type: Vec<TypeStats>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStats {
    pub event_type: String,
    pub count: u64,
    pub last_seen: String,
}

impl Stats {
    /// Reads them all at one moment. Damaged rows are noted and left out; `GET /stats` reports the damage, too.
    pub fn read(record: Record<'_>, now: Timestamp) -> rusqlite::Result<Self> {
        let named = |error| within("event_stats", error);
        const SQL: &str = "SELECT event_type, count, last_seen FROM event_stats ORDER BY count DESC, event_type";
        let mut statement = record.connection.prepare_cached(SQL)?;
        let mut rows = statement.query([])?;
        let mut by_type = Vec::new();
        while let Some(Some(row)) = noting_damage(record.integrity, rows.next().map_err(named))? {
            by_type.extend(noting_damage(record.integrity, TypeStats::read(row).map_err(named))?);
        }
        let total_events = by_type.iter().map(|of_type| of_type.count).sum();
        let counted = noting_damage(record.integrity, last_hour(record, now))?;
        // If a damaged page hides the oldest event, deleted events before it would be counted, too.
        let events_last_hour = counted.unwrap_or(0).min(total_events);
        Ok(Self { total_events, events_last_hour, by_type })
    }
}

impl TypeStats {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { event_type: row.get(0)?, count: row.get::<_, i64>(1)? as u64, last_seen: row.get(2)? })
    }
}

fn last_hour(record: Record<'_>, now: Timestamp) -> rusqlite::Result<u64> {
    const HOUR_US: i64 = 3_600_000_000;
    let Some(retained) = record.retained(Seq::MAX)? else { return Ok(0) };
    // If the clock is behind the last event, the hour ends with that event. A damaged event has no time.
    let mut newest = Timestamp(0);
    noting_damage(record.integrity, record.event(*retained.end(), |event| newest = event.time))?;
    let first = record.first_later(&retained, Timestamp(now.0.max(newest.0) - HOUR_US))?;
    holes::count_events(record.connection, first..=*retained.end()).map_err(|error| within("holes", error))
}
