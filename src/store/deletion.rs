//! Deleting events: the oldest, a slice with each commit, or chosen ones out of the middle. Statistics stay true to
//! what remains, and keys go with their events. What is used up of numbers and times is for the writer to note.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension};

use super::Shared;
use super::damage::is_damage;
use super::holes::{self, Holes};
use super::keys::{self, Parting};
use super::read;
use super::segments;
use crate::event::{Field, Seq, Timestamp};

/// What one transaction deleted of the oldest events.
pub(super) struct Deleted {
    pub events: u64,
    /// Whether nothing is left of what is to be deleted.
    pub is_done: bool,
}

/// Events deleted in one commit: some 2 ms of work.
const EVENTS_PER_COMMIT: u64 = if cfg!(test) { 16 } else { 4_096 };

/// Events chosen out of the middle deleted in one commit: each touches a page of its own at worst.
pub(super) const CHOSEN_EVENTS_PER_COMMIT: usize = if cfg!(test) { 5 } else { 512 };

/// Bytes of payload that one commit deletes of chosen events, and an event: all their pages go through the log, for
/// they are overwritten. That is half of the room that is kept free for it where nothing else is configured.
pub(super) const CHOSEN_BYTES_PER_COMMIT: usize = if cfg!(test) { 2_048 } else { 512 << 10 };

/// Deletes a slice of the events from the oldest up to `last`, with the lists of segments that are gone.
pub(super) fn oldest(connection: &Connection, shared: &Shared, oldest: Seq, last: Seq) -> rusqlite::Result<Deleted> {
    let first = oldest.min(last.next());
    let through = last.min(Seq(first.0 + EVENTS_PER_COMMIT - 1));
    let mut events = 0;
    if first <= through {
        const COUNTS: &str = "UPDATE event_stats SET count = count - gone.n FROM (SELECT event_type AS type, count(*) \
                              AS n FROM events WHERE seq <= ?1 GROUP BY event_type) AS gone \
                              WHERE event_type = gone.type";
        connection.prepare_cached(COUNTS)?.execute([through.0 as i64])?;
        // The last key alone may keep some of its events: those of every key before it are all in this slice.
        let parting = part(connection, shared, through)?;
        events = connection.prepare_cached("DELETE FROM events WHERE seq <= ?1")?.execute([through.0 as i64])? as u64;
        keys::forget_through(connection, through)?;
        parting.map(|parting| parting.end(connection)).transpose()?;
    }
    shared.record(connection).begins_after(through)?;
    const ORPHANS: &str = "DELETE FROM event_index WHERE segment < ?1 AND (segment, kind, key) <= (SELECT segment, \
                           kind, key FROM (SELECT segment, kind, key FROM event_index ORDER BY segment, kind, key \
                           LIMIT ?2) ORDER BY segment DESC, kind DESC, key DESC LIMIT 1)";
    let kept_from = segments::segment_of(through.max(Seq(1)).next());
    let orphans = connection.prepare_cached(ORPHANS)?.execute((kept_from as i64, EVENTS_PER_COMMIT as i64))?;
    connection.prepare_cached("DELETE FROM holes WHERE segment < ?1")?.execute([kept_from as i64])?;
    Ok(Deleted { events, is_done: through == last && (orphans as u64) < EVENTS_PER_COMMIT })
}

/// Looks for the key of an event that is about to be deleted. A damaged key stays, and the check reports it.
fn part(connection: &Connection, shared: &Shared, seq: Seq) -> rusqlite::Result<Option<Parting>> {
    match Parting::of(connection, shared, seq) {
        Err(error) if is_damage(&error) => {
            shared.note_damage(&error);
            Ok(None)
        }
        parting => parting,
    }
}

/// Deletes events out of the middle, ascending, and returns how many there still were. The index keeps their numbers,
/// which are noted as holes. No event is before `oldest`. Call it after the events of this transaction are in the
/// statistics.
pub(super) fn chosen(connection: &Connection, shared: &Shared, oldest: Seq, chosen: &[Seq]) -> rusqlite::Result<u64> {
    const FIND: &str = "SELECT time_us, event_type, session_id, user_id, source FROM events WHERE seq = ?1";
    let mut find = connection.prepare_cached(FIND)?;
    let mut delete = connection.prepare_cached("DELETE FROM events WHERE seq = ?1")?;
    let mut by_type = BTreeMap::<String, (u64, Timestamp)>::new();
    let mut lists = BTreeSet::<(u64, Field, String)>::new();
    let mut deleted = Vec::with_capacity(chosen.len());
    for seq in chosen {
        let found = find.query_row([seq.0 as i64], |row| {
            Ok((row.get(0)?, [row.get::<_, Option<String>>(1)?, row.get(2)?, row.get(3)?, row.get(4)?]))
        });
        let Some((time, values)) = found.optional()? else { continue };
        let parting = part(connection, shared, *seq)?;
        delete.execute([seq.0 as i64])?;
        parting.map(|parting| parting.end(connection)).transpose()?;
        let of_type = by_type.entry(values[0].clone().unwrap_or_default()).or_default();
        *of_type = (of_type.0 + 1, of_type.1.max(Timestamp(time)));
        let of_fields = Field::ALL.into_iter().zip(values);
        lists.extend(of_fields.filter_map(|(field, value)| Some((segments::segment_of(*seq), field, value?))));
        deleted.push(*seq);
    }
    for of_segment in deleted.chunk_by(|one, other| segments::segment_of(*one) == segments::segment_of(*other)) {
        let (segment, offsets) = (segments::segment_of(of_segment[0]), of_segment.iter().copied());
        let holes = holes::add(connection, segment, &offsets.map(segments::offset_of).collect::<Vec<_>>())?;
        for (_, field, key) in lists.iter().filter(|(of, ..)| *of == segment) {
            drop_if_emptied(connection, (&holes, oldest), segment, *field, key)?;
        }
    }
    for (event_type, (deleted, last_deleted)) in by_type {
        const COUNT: &str =
            "UPDATE event_stats SET count = count - ?2 WHERE event_type = ?1 RETURNING count, last_seen";
        let counted = connection
            .prepare_cached(COUNT)?
            .query_row((&event_type, deleted as i64), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)));
        // The newest of a type has to be searched for only where it was deleted and others are left.
        let is_another_newest =
            counted.optional()?.is_some_and(|(left, last_seen)| left > 0 && last_deleted.to_string() >= last_seen);
        if !is_another_newest {
            continue;
        }
        if let Some(newest) = read::newest_of_type(shared.record(connection), &shared.recent, &event_type, oldest)? {
            const LAST_SEEN: &str = "UPDATE event_stats SET last_seen = ?2 WHERE event_type = ?1";
            connection.prepare_cached(LAST_SEEN)?.execute((event_type, newest.to_string()))?;
        }
    }
    Ok(deleted.len() as u64)
}

/// Removes a list whose last event is deleted: the key, which may name a person, goes with it. A segment that is not
/// sealed yet has none, and such a list is left out when it is.
fn drop_if_emptied(
    connection: &Connection,
    (holes, oldest): (&Holes, Seq),
    segment: u64,
    field: Field,
    key: &str,
) -> rusqlite::Result<()> {
    const FIND: &str = "SELECT offsets FROM event_index WHERE segment = ?1 AND kind = ?2 AND key = ?3";
    let place = (segment as i64, field as i64, key);
    let mut find = connection.prepare_cached(FIND)?;
    let mut rows = find.query(place)?;
    let Some(row) = rows.next()? else { return Ok(()) };
    if holes.leave_none_of(row.get_ref(0)?.as_blob()?, segment, oldest) {
        drop(rows);
        const DROP: &str = "DELETE FROM event_index WHERE segment = ?1 AND kind = ?2 AND key = ?3";
        connection.prepare_cached(DROP)?.execute(place)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::config::Config;
    use crate::event::{Event, EventTypes, Filter};
    use crate::record::Failure;
    use crate::store::fixture::{hand_in, tick};
    use crate::store::segments::SEGMENT_EVENTS;
    use crate::store::{Parts, Query, Receipt, Store, schema};
    use crate::wire::Batch;

    fn append(store: &Store, numbers: std::ops::RangeInclusive<u64>) {
        let user_of = |n| match n {
            2 | 20 => "both",
            3 => "early",
            _ => "other",
        };
        hand_in(store, numbers.map(|n| Event { user_id: Some(user_of(n)), ..tick() }));
    }

    fn finish(parts: &mut Parts, deletion: impl Future<Output = Result<u64, Failure>>) -> u64 {
        let (mut deletion, mut context) = (pin!(deletion), Context::from_waker(Waker::noop()));
        assert!(deletion.as_mut().poll(&mut context).is_pending());
        while parts.write() {}
        let Poll::Ready(Ok(deleted)) = deletion.poll(&mut context) else { panic!("it is not done") };
        deleted
    }

    #[test]
    fn the_key_of_a_list_goes_with_its_last_event_when_the_others_went_by_their_age() {
        for is_sealed in [true, false] {
            let folder = tempfile::tempdir().expect("a folder");
            let config = Config::of_test(folder.path().join("events.db"));
            let (store, mut parts) = Store::open_parts(&config).expect("open");
            let seal = |parts: &mut Parts| {
                append(&store, SEGMENT_EVENTS + 1..=SEGMENT_EVENTS + 1);
                while parts.write() | parts.seal() {}
            };
            append(&store, 1..=SEGMENT_EVENTS);
            while parts.write() {}
            if is_sealed {
                seal(&mut parts);
            }
            let mut tenth = None;
            let query = Query { after: Seq(9), ..Query::default() };
            let scanned = store.reader().scan(&query, |event| {
                tenth = Some(event.time);
                ControlFlow::Break(())
            });
            assert_eq!(scanned, Ok(Some(Seq(10))));
            assert_eq!(finish(&mut parts, store.delete(tenth, Filter::default())), 9);
            assert_eq!(finish(&mut parts, store.delete_these(vec![Seq(20)])), 1);
            if !is_sealed {
                seal(&mut parts);
            }
            let file = schema::open_reader(&config.database_path).expect("whole");
            let mut keys = file.prepare("SELECT key FROM event_index WHERE kind = 2 ORDER BY key").expect("a table");
            let keys = keys.query_map([], |row| row.get(0)).expect("read").collect::<rusqlite::Result<Vec<String>>>();
            // A deletion by time alone looks at no list that is stored already.
            let expected: &[&str] = if is_sealed { &["early", "other"] } else { &["other"] };
            assert_eq!(keys.expect("read"), expected, "sealed before: {is_sealed}");
        }
    }

    #[test]
    fn one_commit_deletes_few_large_events() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config::of_test(folder.path().join("events.db"));
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        let payload = &format!(r#"{{"x":"{}"}}"#, "x".repeat(CHOSEN_BYTES_PER_COMMIT / 2));
        hand_in(&store, (0..3).map(|_| Event { payload, ..tick() }));
        while parts.write() {}
        let choose = |after| store.reader().choose(Filter::default(), Seq(after), Seq(3), None);
        assert_eq!(choose(0), Ok((vec![Seq(1), Seq(2)], Some(Seq(2)))));
        assert_eq!(choose(2), Ok((vec![Seq(3)], None)));
    }

    #[test]
    fn a_key_goes_with_the_last_of_its_events_also_when_one_was_damaged() {
        let orders = [[1, 2, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
        for (damaged, order) in (1..=3).flat_map(|damaged| orders.map(|order| (damaged, order))) {
            let folder = tempfile::tempdir().expect("a folder");
            let config = Config::of_test(folder.path().join("events.db"));
            let (store, mut parts) = Store::open_parts(&config).expect("open");
            let (mut batch, types) = (Batch::default(), EventTypes::builtin());
            (0..3).for_each(|_| batch.push(&tick(), &types));
            batch.set_key("request");
            store.try_append(batch, Receipt::new().0).expect("room");
            while parts.write() {}
            // The key as format 3 left it.
            let file = schema::open_writer(&config.database_path).expect("whole");
            file.execute_batch("UPDATE idempotency_keys SET digest = NULL, checksum = NULL").expect("written");
            let flipped = file.execute("UPDATE events SET payload = '[}' WHERE seq = ?1", [damaged as i64]);
            assert_eq!(flipped, Ok(1));
            let keys = || file.query_row("SELECT count(*) FROM idempotency_keys", [], |row| row.get::<_, i64>(0));
            for seq in order {
                assert_eq!(keys(), Ok(1), "event {damaged} is damaged, {seq} of {order:?} goes next");
                assert_eq!(finish(&mut parts, store.delete_these(vec![Seq(seq)])), 1);
            }
            assert_eq!(keys(), Ok(0), "event {damaged} is damaged, deleted in the order {order:?}");
            assert_eq!(store.integrity().damage, [format!("events: {} is damaged", Seq(damaged).id())]);
        }
    }

    #[test]
    fn a_deletion_that_comes_to_a_damaged_number_is_refused_and_not_half_done() {
        use crate::store::fixture::{file_with, renumber};
        for (seq, to) in [(1, 100), (130, 130 + 8_192), (200, 200 + 8_192)] {
            let (_folder, config) = file_with(200);
            renumber(&config.database_path, seq, to);
            let (store, mut parts) = Store::open_parts(&config).expect("open");
            let (mut deletion, mut context) =
                (pin!(store.delete(None, Filter::default())), Context::from_waker(Waker::noop()));
            assert!(deletion.as_mut().poll(&mut context).is_pending());
            while parts.write() {}
            let answer = deletion.poll(&mut context);
            let file = schema::open_reader(&config.database_path).expect("whole");
            let left: i64 = file.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).expect("read");
            match answer {
                Poll::Ready(Ok(200)) => assert_eq!(left, 0, "{seq} is {to}"),
                refused => {
                    assert_eq!(refused, Poll::Ready(Err(Failure::Damaged)), "{seq} is {to}");
                    assert!(left > 0 && store.reader().scan(&Query::default(), |_| ControlFlow::Continue(())).is_err());
                }
            }
        }
    }

    #[test]
    fn with_the_last_event_all_statistics_go_also_those_of_a_damaged_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config::of_test(folder.path().join("events.db"));
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        append(&store, 1..=3);
        while parts.write() {}
        let file = schema::open_writer(&config.database_path).expect("whole");
        assert_eq!(file.execute("UPDATE events SET event_type = 'timer_tock' WHERE seq = 2", []), Ok(1));
        let by_type = || store.reader().stats(Timestamp::now()).expect("read").by_type;
        assert_eq!(finish(&mut parts, store.delete(None, Filter::default())), 3);
        assert_eq!(by_type(), []);
        // As an earlier version left it.
        let left = "INSERT INTO event_stats (event_type, count, last_seen) VALUES ('timer_tick', 1, 'then')";
        assert_eq!(file.execute(left, []), Ok(1));
        assert_eq!(finish(&mut parts, store.delete(None, Filter::default())), 0);
        assert_eq!(by_type(), []);
        append(&store, 4..=4);
        while parts.write() {}
        assert_eq!(by_type().iter().map(|of_type| of_type.count).collect::<Vec<_>>(), [1]);
    }
}
