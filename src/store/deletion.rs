//! Deleting events: the oldest, a slice with each commit, or chosen ones out of the middle. Statistics stay true to
//! what remains, and keys go with their events. What is used up of numbers and times is for the writer to note.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension};

use super::segments::{self, Kind};
use super::{Shared, keys, read};
use crate::event::{Seq, Timestamp};

/// What one transaction deleted.
pub(super) struct Deleted {
    pub events: u64,
    /// Whether nothing is left of what is to be deleted.
    pub is_done: bool,
}

/// Events deleted in one commit: some 2 ms of work.
const EVENTS_PER_COMMIT: u64 = if cfg!(test) { 16 } else { 4_096 };

/// Events chosen out of the middle deleted in one commit: each touches a page of its own at worst.
pub(super) const CHOSEN_EVENTS_PER_COMMIT: usize = if cfg!(test) { 5 } else { 512 };

/// Deletes a slice of the events up to `last`, the oldest first, with the lists of segments that are gone.
pub(super) fn oldest(connection: &Connection, last: Seq) -> rusqlite::Result<Deleted> {
    let first: Option<i64> =
        connection.prepare_cached("SELECT min(seq) FROM events")?.query_row([], |row| row.get(0))?;
    let first = first.map_or(last.next(), |first| Seq(first as u64));
    let through = last.min(Seq(first.0 + EVENTS_PER_COMMIT - 1));
    let mut events = 0;
    if first <= through {
        const COUNTS: &str = "UPDATE event_stats SET count = count - gone.n FROM (SELECT event_type AS type, count(*) \
                              AS n FROM events WHERE seq <= ?1 GROUP BY event_type) AS gone \
                              WHERE event_type = gone.type";
        connection.prepare_cached(COUNTS)?.execute([through.0 as i64])?;
        events = connection.prepare_cached("DELETE FROM events WHERE seq <= ?1")?.execute([through.0 as i64])? as u64;
        keys::forget_through(connection, through)?;
    }
    const ORPHANS: &str = "DELETE FROM event_index WHERE segment < ?1 AND (segment, kind, key) <= (SELECT segment, \
                           kind, key FROM (SELECT segment, kind, key FROM event_index ORDER BY segment, kind, key \
                           LIMIT ?2) ORDER BY segment DESC, kind DESC, key DESC LIMIT 1)";
    let kept_from = segments::segment_of(through.max(Seq(1)).next());
    let orphans = connection.prepare_cached(ORPHANS)?.execute((kept_from as i64, EVENTS_PER_COMMIT as i64))?;
    connection.prepare_cached("DELETE FROM holes WHERE segment < ?1")?.execute([kept_from as i64])?;
    Ok(Deleted { events, is_done: through == last && (orphans as u64) < EVENTS_PER_COMMIT })
}

/// Deletes events out of the middle. The index keeps their numbers, which then lead nowhere. `newest` knows the
/// events of this transaction by type, which no list has yet.
pub(super) fn chosen(
    connection: &Connection,
    shared: &Shared,
    chosen: &[Seq],
    newest: impl Fn(&str) -> Option<Timestamp>,
) -> rusqlite::Result<Deleted> {
    const FIND: &str = "SELECT event_type, session_id, user_id, source FROM events WHERE seq = ?1";
    let mut find = connection.prepare_cached(FIND)?;
    let mut delete = connection.prepare_cached("DELETE FROM events WHERE seq = ?1")?;
    const HOLE: &str = "INSERT INTO holes (segment, count) VALUES (?1, 1) \
                        ON CONFLICT (segment) DO UPDATE SET count = count + 1";
    let mut hole = connection.prepare_cached(HOLE)?;
    let mut by_type = BTreeMap::<String, u64>::new();
    let mut lists = BTreeSet::<(u64, Kind, String)>::new();
    for seq in chosen {
        let values = find.query_row([seq.0 as i64], |row| {
            Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, Option<String>>(3)?])
        });
        let Some(values) = values.optional()? else { continue };
        delete.execute([seq.0 as i64])?;
        keys::forget(connection, *seq)?;
        hole.execute([segments::segment_of(*seq) as i64])?;
        let [event_type, ..] = &values;
        *by_type.entry(event_type.clone().unwrap_or_default()).or_default() += 1;
        let of_kinds = Kind::ALL.into_iter().zip(values);
        lists.extend(of_kinds.filter_map(|(kind, value)| Some((segments::segment_of(*seq), kind, value?))));
    }
    for (segment, kind, key) in &lists {
        drop_if_emptied(connection, *segment, *kind, key)?;
    }
    let events = by_type.values().sum();
    for (event_type, deleted) in by_type {
        let newest = match newest(&event_type) {
            Some(newest) => Some(newest),
            None => read::newest_of_type(connection, shared, &event_type)?,
        };
        const COUNT: &str =
            "UPDATE event_stats SET count = count - ?2, last_seen = coalesce(?3, last_seen) WHERE event_type = ?1";
        let last_seen = newest.map(|time| time.to_string());
        connection.prepare_cached(COUNT)?.execute((event_type, deleted as i64, last_seen))?;
    }
    Ok(Deleted { events, is_done: true })
}

/// Removes a list whose last event is deleted: the key, which may name a person, goes with it. A segment that is not
/// sealed yet has none; [`is_emptied`] is asked when it is.
fn drop_if_emptied(connection: &Connection, segment: u64, kind: Kind, key: &str) -> rusqlite::Result<()> {
    const FIND: &str = "SELECT offsets FROM event_index WHERE segment = ?1 AND kind = ?2 AND key = ?3";
    let place = (segment as i64, kind as i64, key);
    let mut find = connection.prepare_cached(FIND)?;
    let mut rows = find.query(place)?;
    let Some(row) = rows.next()? else { return Ok(()) };
    if is_emptied(connection, segment, row.get_ref(0)?.as_blob()?)? {
        drop(rows);
        const DROP: &str = "DELETE FROM event_index WHERE segment = ?1 AND kind = ?2 AND key = ?3";
        connection.prepare_cached(DROP)?.execute(place)?;
    }
    Ok(())
}

/// Whether no event of a list is left. Deletions go from the oldest to the newest, so a look at the newest mostly
/// tells. A damaged list is not, for the check to find.
pub(super) fn is_emptied(connection: &Connection, segment: u64, offsets: &[u8]) -> rusqlite::Result<bool> {
    let Some(offsets) = segments::newest_first(offsets) else { return Ok(false) };
    let mut is_there = connection.prepare_cached("SELECT 1 FROM events WHERE seq = ?1")?;
    for offset in offsets {
        if is_there.exists([segments::first_of(segment).plus(offset.into()).0 as i64])? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether events of a segment were chosen to be deleted.
pub(super) fn has_holes(connection: &Connection, segment: u64) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM holes WHERE segment = ?1")?.exists([segment as i64])
}
