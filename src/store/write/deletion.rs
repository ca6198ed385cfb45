//! Applying deletions. A deletion of the oldest events moves a mark; one of chosen events deletes rows out of the
//! middle. The statistics stay those of the remaining events, and an idempotency key is deleted with the last of its
//! events.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension};

use super::position::Position;
use crate::event::{Field, Seq, Timestamp};
use crate::store::counts;
use crate::store::damage::is_damage;
use crate::store::holes::{self, Holes};
use crate::store::keys::KeyOfDeleted;
use crate::store::read::{self, Record};
use crate::store::rollups::{self, ByMinute};
use crate::store::schema::{self, meta};
use crate::store::segments;
use crate::store::shared::Shared;

/// One command names at most this many chosen events (`Reader::choose`). 512: at worst each touches a page of its own.
pub const CHOSEN_EVENTS_PER_COMMIT: usize = if cfg!(test) { 5 } else { 512 };

/// Bytes of payload after which one command names no further chosen event. All pages of these events go through the
/// write-ahead log, because they are overwritten. 512 KiB is half of what `FREE_SPACE_MIN_BYTES` leaves free by
/// default.
pub const CHOSEN_BYTES_PER_COMMIT: usize = if cfg!(test) { 2_048 } else { 512 << 10 };

/// Deletes everything up to an event, and returns how many events were deleted. It changes a
/// mark, the counts and the key of the last event; `tidying` removes the rows later. A deletion of everything takes the sum
/// of the statistics. Otherwise posting lists are counted.
///
/// # Errors
/// What SQLite reports, and damage of the statistics or of the lists' pages. A single damaged list costs a look at the
/// events of its segment.
pub fn through(
    connection: &Connection,
    shared: &Shared,
    position: &mut Position,
    through: Seq,
) -> rusqlite::Result<u64> {
    let numbers = position.oldest()..=through;
    if numbers.is_empty() {
        return Ok(0);
    }
    let record = shared.record_at(connection, position.deleted_through);
    // Only the key of the last deleted event may have events that stay, and those may be holes.
    let key = key_of_deleted(record, through)?;
    let deleted = match through == position.seq {
        true => {
            const ALL: &str = "SELECT coalesce(sum(count), 0) FROM event_stats";
            let all: i64 = connection.prepare_cached(ALL)?.query_row([], |row| row.get(0))?;
            connection.prepare_cached("DELETE FROM event_stats")?.execute([])?;
            all.max(0) as u64
        }
        false => {
            let counts = counts::by_type(record, Some(&shared.recent), numbers)?;
            const COUNT: &str = "UPDATE event_stats SET count = count - ?2 WHERE event_type = ?1";
            let mut count = connection.prepare_cached(COUNT)?;
            for (event_type, events) in &counts {
                count.execute((schema::Text(Some(event_type)), *events as i64))?;
            }
            counts.values().sum()
        }
    };
    meta::set(connection, meta::DELETED_THROUGH, through.0 as i64)?;
    position.deleted_through = through;
    key.map(|key| key.remove_if_last(shared.record_at(connection, through))).transpose()?;
    Ok(deleted)
}

/// Like [`KeyOfDeleted::find`], but a damaged key is noted and stays. The integrity check reports it, too.
fn key_of_deleted(record: Record<'_>, seq: Seq) -> rusqlite::Result<Option<KeyOfDeleted>> {
    match KeyOfDeleted::find(record, seq) {
        Err(error) if is_damage(&error) => {
            record.integrity.lock().note_error(&error);
            Ok(None)
        }
        found => found,
    }
}

/// Deletes events out of the middle, ascending, and returns how many of them were still there. Their numbers stay in
/// the posting lists and are noted as holes. Call it after the events of this transaction are in the statistics.
pub fn chosen(connection: &Connection, shared: &Shared, position: &Position, chosen: &[Seq]) -> rusqlite::Result<u64> {
    // With `ON`, SQLite also overwrites pages that become free. That costs a write for each.
    connection.pragma_update(None, "secure_delete", "ON")?;
    let deleted = delete_chosen(connection, shared, position.oldest(), chosen);
    connection.pragma_update(None, "secure_delete", schema::SECURE_DELETE)?;
    deleted
}

fn delete_chosen(connection: &Connection, shared: &Shared, oldest: Seq, chosen: &[Seq]) -> rusqlite::Result<u64> {
    const FIND: &str = "SELECT time_us, event_type, session_id, user_id, source FROM events WHERE seq = ?1";
    let record = shared.record_at(connection, oldest.prev());
    let mut find = connection.prepare_cached(FIND)?;
    let mut delete = connection.prepare_cached("DELETE FROM events WHERE seq = ?1")?;
    let mut by_type = BTreeMap::<String, (u64, Timestamp)>::new();
    let (mut rolled_up, not_rolled_up) = (ByMinute::new(), rollups::missing(connection)?);
    let mut lists = BTreeSet::<(u64, Field, String)>::new();
    let mut deleted = Vec::with_capacity(chosen.len());
    for seq in chosen.iter().filter(|seq| **seq >= oldest) {
        let found = find.query_row([seq.0 as i64], |row| {
            Ok((row.get(0)?, [row.get::<_, Option<String>>(1)?, row.get(2)?, row.get(3)?, row.get(4)?]))
        });
        let Some((time, values)) = found.optional()? else { continue };
        let key = key_of_deleted(record, *seq)?;
        delete.execute([seq.0 as i64])?;
        key.map(|key| key.remove_if_last(record)).transpose()?;
        let of_type = by_type.entry(values[0].clone().unwrap_or_default()).or_default();
        *of_type = (of_type.0 + 1, of_type.1.max(Timestamp(time)));
        if *seq > not_rolled_up {
            let of_minute =
                (rollups::minute_of(Timestamp(time)), values[0].as_deref().unwrap_or_default().as_bytes().into());
            *rolled_up.entry(of_minute).or_default() += 1;
        }
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
    rollups::subtract(connection, &rolled_up)?;
    for (event_type, (deleted, last_deleted)) in by_type {
        const COUNT: &str =
            "UPDATE event_stats SET count = count - ?2 WHERE event_type = ?1 RETURNING count, last_seen";
        let counted = connection
            .prepare_cached(COUNT)?
            .query_row((&event_type, deleted as i64), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)));
        // The newest event of a type is searched for only if it was deleted and others are left.
        let is_another_newest =
            counted.optional()?.is_some_and(|(left, last_seen)| left > 0 && last_deleted.to_string() >= last_seen);
        if !is_another_newest {
            continue;
        }
        if let Some(newest) = newest_of_type(record, shared, &event_type, oldest)? {
            const LAST_SEEN: &str = "UPDATE event_stats SET last_seen = ?2 WHERE event_type = ?1";
            connection.prepare_cached(LAST_SEEN)?.execute((event_type, newest.to_string()))?;
        }
    }
    Ok(deleted.len() as u64)
}

/// The time of the newest event of a type.
fn newest_of_type(
    record: Record<'_>,
    shared: &Shared,
    event_type: &str,
    oldest: Seq,
) -> rusqlite::Result<Option<Timestamp>> {
    // No list has the events of this transaction yet.
    const NEW: &str = "SELECT max(time_us) FROM events WHERE seq > ?1 AND event_type = ?2";
    let mut find = record.connection.prepare_cached(NEW)?;
    match find.query_row((record.last.0 as i64, event_type), |row| row.get(0))? {
        Some(time) => Ok(Some(Timestamp(time))),
        None => read::newest_of_type(record, &shared.recent, event_type, oldest),
    }
}

/// Removes a posting list whose last event is deleted, and with it the value, which may name a person. A segment that
/// is not sealed yet has no stored lists; when it is sealed, such a list is left out.
fn drop_if_emptied(
    connection: &Connection,
    (holes, oldest): (&Holes, Seq),
    segment: u64,
    field: Field,
    key: &str,
) -> rusqlite::Result<()> {
    const FIND: &str = "SELECT offsets FROM event_index WHERE segment = ?1 AND kind = ?2 AND key = ?3";
    let list = (segment as i64, field as i64, key);
    let mut find = connection.prepare_cached(FIND)?;
    let mut rows = find.query(list)?;
    let Some(row) = rows.next()? else { return Ok(()) };
    if holes.leave_none_of(row.get_ref(0)?.as_blob()?, segment, oldest) {
        drop(rows);
        const DROP: &str = "DELETE FROM event_index WHERE segment = ?1 AND kind = ?2 AND key = ?3";
        connection.prepare_cached(DROP)?.execute(list)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::event::{Event, EventTypes, Filter};
    use crate::record::Failure;
    use crate::store::fixture::{close, hand_in, open, path, tick};
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
    fn a_key_of_which_only_deleted_events_are_left_is_free_whichever_way_they_were_deleted() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = open(&folder);
        let request = |parts: &mut Parts| {
            let (mut batch, types) = (Batch::default(), EventTypes::builtin());
            (0..3).for_each(|_| batch.push(&tick(), &types));
            batch.set_key("request");
            let (receipt, mut answer) = Receipt::synced();
            store.try_append(batch, receipt).expect("space");
            while parts.write() {}
            answer.try_recv().expect("an answer").expect("a commit").batch.len()
        };
        assert_eq!((request(&mut parts), request(&mut parts)), (3, 0));
        append(&store, 4..=4);
        while parts.write() {}
        let fourth = time_of(&store, 4);
        assert_eq!(finish(&mut parts, store.delete_chosen(vec![Seq(3)])), 1);
        assert_eq!(finish(&mut parts, store.delete(Some(fourth), Filter::default())), 2);
        assert_eq!(request(&mut parts), 3, "no event of the first request is left");
    }

    #[test]
    fn numbers_are_not_given_again_where_the_statistics_count_too_few_events() {
        let folder = tempfile::tempdir().expect("a folder");
        for life in 1..=2 {
            let (store, mut parts) = open(&folder);
            append(&store, 1..=4);
            while parts.write() {}
            let file = schema::open_writer(&path(&folder)).expect("undamaged");
            assert_eq!(file.execute("UPDATE event_stats SET count = -2", []), Ok(1));
            assert_eq!(finish(&mut parts, store.delete(None, Filter::default())), 0);
            close(&store, parts);
            let (store, parts) = open(&folder);
            assert_eq!(store.committed(), Seq(4 * life));
            close(&store, parts);
        }
    }

    #[test]
    fn a_deletion_counts_the_rows_where_a_posting_list_is_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = open(&folder);
        append(&store, 1..=3 * SEGMENT_EVENTS);
        while parts.write() | parts.seal() {}
        let file = schema::open_writer(&path(&folder)).expect("undamaged");
        assert_eq!(file.execute("DELETE FROM event_index WHERE segment = 0 AND kind = 0", []), Ok(1));
        let time = time_of(&store, 2 * SEGMENT_EVENTS);
        assert_eq!(finish(&mut parts, store.delete(Some(time), Filter::default())), 2 * SEGMENT_EVENTS - 1);
        let stats = store.reader().stats(Timestamp::now()).expect("read");
        assert_eq!(stats.total_events, SEGMENT_EVENTS + 1);
        let named = ["event_index: the lists of segment 0 have not all of its events"];
        assert_eq!(store.integrity().damage, named);
    }

    fn time_of(store: &Store, seq: u64) -> Timestamp {
        let mut time = None;
        let query = Query { after: Seq(seq - 1), ..Query::default() };
        let scanned = store.reader().scan(&query, |event| {
            time = Some(event.time);
            ControlFlow::Break(())
        });
        assert_eq!(scanned, Ok(Some(Seq(seq))));
        time.expect("shown")
    }

    #[test]
    fn a_posting_list_is_removed_with_its_last_event_when_the_others_were_deleted_by_time() {
        for is_sealed in [true, false] {
            let folder = tempfile::tempdir().expect("a folder");
            let (store, mut parts) = open(&folder);
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
            assert_eq!(finish(&mut parts, store.delete_chosen(vec![Seq(20)])), 1);
            if !is_sealed {
                seal(&mut parts);
            }
            let file = schema::open_reader(&path(&folder)).expect("undamaged");
            let mut keys = file.prepare("SELECT key FROM event_index WHERE kind = 2 ORDER BY key").expect("a table");
            let keys = keys.query_map([], |row| row.get(0)).expect("read").collect::<rusqlite::Result<Vec<String>>>();
            // A deletion by time alone looks at no list that is stored already.
            let expected: &[&str] = if is_sealed { &["early", "other"] } else { &["other"] };
            assert_eq!(keys.expect("read"), expected, "sealed before: {is_sealed}");
        }
    }

    #[test]
    fn one_commit_deletes_only_as_many_events_as_its_bound_in_bytes_allows() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = open(&folder);
        let payload = &format!(r#"{{"x":"{}"}}"#, "x".repeat(CHOSEN_BYTES_PER_COMMIT / 2));
        hand_in(&store, (0..3).map(|_| Event { payload, ..tick() }));
        while parts.write() {}
        let choose = |after| store.reader().choose(Filter::default(), Seq(after), Seq(3), None);
        assert_eq!(choose(0), Ok((vec![Seq(1), Seq(2)], Some(Seq(2)))));
        assert_eq!(choose(2), Ok((vec![Seq(3)], None)));
    }

    #[test]
    fn an_idempotency_key_is_deleted_with_its_last_event_even_if_one_was_damaged() {
        let orders = [[1, 2, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
        for (damaged, order) in (1..=3).flat_map(|damaged| orders.map(|order| (damaged, order))) {
            let folder = tempfile::tempdir().expect("a folder");
            let (store, mut parts) = open(&folder);
            let (mut batch, types) = (Batch::default(), EventTypes::builtin());
            (0..3).for_each(|_| batch.push(&tick(), &types));
            batch.set_key("request");
            store.try_append(batch, Receipt::synced().0).expect("space in the queue");
            while parts.write() {}
            // The key as format 3 left it.
            let file = schema::open_writer(&path(&folder)).expect("undamaged");
            file.execute_batch("UPDATE idempotency_keys SET digest = NULL, checksum = NULL").expect("written");
            let flipped = file.execute("UPDATE events SET payload = '[}' WHERE seq = ?1", [damaged as i64]);
            assert_eq!(flipped, Ok(1));
            let keys = || file.query_row("SELECT count(*) FROM idempotency_keys", [], |row| row.get::<_, i64>(0));
            for seq in order {
                assert_eq!(keys(), Ok(1), "event {damaged} is damaged, {seq} of {order:?} goes next");
                assert_eq!(finish(&mut parts, store.delete_chosen(vec![Seq(seq)])), 1);
            }
            assert_eq!(keys(), Ok(0), "event {damaged} is damaged, deleted in the order {order:?}");
            assert_eq!(store.integrity().damage, [format!("events: {} is damaged", Seq(damaged).id())]);
        }
    }

    #[test]
    fn deleted_events_are_not_read_when_the_deletion_met_a_damaged_number() {
        use crate::store::fixture::{file_with, renumber};
        for (seq, to) in [(1, 100), (130, 130 + 8_192), (200, 200 + 8_192)] {
            let (_folder, config) = file_with(200);
            renumber(&config.database_path, seq, to);
            let (store, mut parts) = Store::open_parts(&config).expect("open");
            assert_eq!(finish(&mut parts, store.delete(None, Filter::default())), 200, "{seq} is {to}");
            let shown = store.reader().scan(&Query::default(), |event| panic!("{:?}", event.seq));
            assert_eq!(shown, Ok(None), "{seq} is {to}");
            append(&store, 1..=3);
            while parts.write() {}
            let count = store.reader().count(&Query::default());
            assert_eq!(count, Ok(3), "{seq} is {to}");
        }
    }

    #[test]
    fn statistics_are_empty_after_the_last_event_is_deleted_even_if_one_was_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = open(&folder);
        append(&store, 1..=3);
        while parts.write() {}
        let file = schema::open_writer(&path(&folder)).expect("undamaged");
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
