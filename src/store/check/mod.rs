//! The integrity check. It compares every row with its checksum, the index and the statistics with the events, and the
//! missing numbers with what was deleted. It also checks whether the pages fit together.
//!
//! It checks one segment after the other, each in several short transactions, so that it does not disturb a server that
//! runs on the file: a long transaction would keep the write-ahead log from starting over.

mod facts;
mod minutes;
mod pages;
mod rows;
mod segment;

use std::ops::ControlFlow;
use std::path::Path;

use rusqlite::Connection;

pub use self::pages::{Pages, pages};
pub use self::rows::Rows;
use super::damage::is_damage;
use super::error::Error;
use super::migrate::python;
use super::{schema, wal};

/// Why a file was not checked, or not to its end.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CheckError {
    #[error("it is not a file of the event pipeline")]
    NotOurs,
    #[error("it is of an earlier format or of the Python service: start the server on it once, which upgrades it")]
    Former,
    #[error("it was written by a newer version (format {0}, this one knows {known})", known = schema::VERSION)]
    Newer(i64),
    #[error(transparent)]
    Unreadable(#[from] Error),
}

impl From<rusqlite::Error> for CheckError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Unreadable(error.into())
    }
}

/// Checks a whole file, and calls `found` with the name of each damaged thing. A server may run on the file. Returns
/// how many events there were.
///
/// # Errors
/// When it is of another format or program, or cannot be opened or read for another reason than damage.
pub fn check(path: &Path, mut found: impl FnMut(String), mut progress: impl FnMut(u64)) -> Result<u64, CheckError> {
    let mut is_severed = false;
    // While a server writes, its log may look broken, but hardly twice at the same frame.
    match wal::examine(path).and_then(|first| Ok((first, wal::examine(path)?))) {
        Ok((Some(first), Some(again))) if first.frame == again.frame => {
            let wal::Severed { frame, commits, .. } = again;
            is_severed = true;
            found(format!("write-ahead log: frame {frame} is broken, {commits} commits behind it are dropped"));
        }
        Ok(_) => {}
        Err(error) => found(format!("write-ahead log: {error}")),
    }
    let connection = schema::open_reader(path)?;
    match can_be_verified(&connection) {
        // The format may be stated after the damage.
        _ if is_severed => {}
        Err(CheckError::Unreadable(error)) if error.is_damage() => {}
        can_be => can_be?,
    }
    pages(&connection, Pages::All, &mut found)?;
    match schema::verify(&connection) {
        Err(error) if is_damage(&error) => {
            // The rest of the check could read nothing.
            found(error.to_string());
            return Ok(0);
        }
        verified => verified?,
    }
    let mut rows = Rows {
        source: &connection,
        found: &mut found,
        between: &mut |events| {
            progress(events);
            ControlFlow::Continue(())
        },
    };
    Ok(rows.check()?.expect("`between` never ends it"))
}

/// Whether a file is of a format whose rows can be checked.
fn can_be_verified(connection: &Connection) -> Result<(), CheckError> {
    let (version, is_ours) = (schema::version(connection)?, schema::is_ours(connection)?);
    if python::wrote(connection)? {
        return Err(CheckError::Former);
    }
    if !is_ours && (schema::is_foreign(connection)? || schema::is_empty(connection)?) {
        return Err(CheckError::NotOurs);
    }
    match version {
        version if (1..*schema::VERIFIED.start()).contains(&version) => Err(CheckError::Former),
        version if version > schema::VERSION => Err(CheckError::Newer(version)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::task::{Context, Waker};

    use super::*;
    use crate::config::Config;
    use crate::event::{Event, EventTypes, Field, Filter, Seq, Timestamp, TimestampText};
    use crate::sim::random::Random;
    use crate::store::fixture::{self, close, delete, wipe_page};
    use crate::store::read::EVENTS_PER_LOOK_AT_CLOCK;
    use crate::store::schema::meta;
    use crate::store::segments::SEGMENT_EVENTS;
    use crate::store::subscription::StoredSubscription;
    use crate::store::{Parts, Query, Store, TypeStats, repair};

    fn open(path: &Path) -> Result<(Store, Parts), crate::store::OpenError> {
        Store::open_parts(&Config::of_test(path))
    }

    fn append(store: &Store, parts: &mut Parts, numbers: std::ops::Range<u64>) {
        hand_in(store, numbers);
        settle(parts);
    }

    fn settle(parts: &mut Parts) {
        while parts.write() | parts.seal() {}
    }

    fn hand_in(store: &Store, numbers: std::ops::Range<u64>) {
        let types = EventTypes::builtin();
        for n in numbers {
            let (session, user) = (format!("session-{}", n % 5), format!("user-{n}"));
            let event = Event {
                event_type: types.get(if n % 3 == 0 { "quiz_started" } else { "timer_tick" }).expect("built in"),
                source: "quiz.web",
                session_id: Some(&session),
                user_id: (n % 2 == 0).then_some(&user),
                payload: &format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(n as usize % 70)),
                idempotency_key: (n % 7 == 0).then_some(&user),
            };
            fixture::hand_in(store, [event]);
        }
    }

    /// A file with sealed and open segments, keys, a durable subscription, and holes.
    fn filled(path: &Path) -> (Store, Parts) {
        let (store, mut parts) = open(path).expect("a new file");
        append(&store, &mut parts, 0..200);
        let (name, filters, last_seen) = ("n".into(), "{}".into(), "then".into());
        store.save_soon(StoredSubscription { name, filters, position: Seq(7), last_seen });
        delete(&store, &mut parts, vec![Seq(40), Seq(41), Seq(101)]);
        (store, parts)
    }

    /// Hands a deletion to the writer.
    fn begin<T>(deletion: impl Future<Output = T>) {
        let mut deletion = std::pin::pin!(deletion);
        assert!(deletion.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    /// Checks every row of a file as its server does, and calls `between` between two transactions.
    fn check_rows(store: &Store, mut between: impl FnMut(u64)) -> (Option<u64>, Vec<String>) {
        let mut found = Vec::new();
        let mut rows = Rows {
            source: &store.shared.pool,
            found: &mut |what| found.push(what),
            between: &mut |events| {
                between(events);
                ControlFlow::Continue(())
            },
        };
        let events = rows.check().expect("read");
        (events, found)
    }

    fn found(path: &Path) -> (Result<u64, CheckError>, Vec<String>) {
        let mut found = Vec::new();
        let events = check(path, |what| found.push(what), |_| {});
        (events, found)
    }

    /// What a client can read, and whether each reading came to its end.
    #[derive(Debug, PartialEq)]
    struct Contents {
        /// Everything, and what the index finds of two sessions and a type.
        events: Vec<(Vec<String>, bool)>,
        rest: Option<(Vec<TypeStats>, Vec<StoredSubscription>)>,
    }

    fn contents(store: &Store) -> Contents {
        let sessions = ["session-1", "session-4"].map(|session| Filter::default().with(Field::Session, [session]));
        let filters = [Filter::default(), Filter::default().with_types(["quiz_started"])].into_iter().chain(sessions);
        let events = filters.map(|filter| {
            let mut events = Vec::new();
            let read = store.reader().scan(&Query { filter, ..Query::default() }, |event| {
                let mut json = Vec::new();
                event.write_json(&mut json, &mut TimestampText::default());
                events.push(String::from_utf8(json).expect("UTF-8"));
                ControlFlow::Continue(())
            });
            (events, read.is_ok())
        });
        let events = events.collect();
        let stats = store.reader().stats(Timestamp(i64::MAX / 2));
        let rest = stats.and_then(|stats| Ok((stats.by_type, store.reader().durable_subscriptions()?)));
        Contents { events, rest: rest.ok() }
    }

    #[test]
    fn the_check_of_an_undamaged_file_finds_nothing_and_a_repair_loses_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, new) = (folder.path().join("a.db"), folder.path().join("b.db"));
        let (store, parts) = filled(&path);
        assert_eq!(found(&path), (Ok(197), vec![]), "while a server runs on it");
        close(&store, parts);
        assert_eq!(found(&path), (Ok(197), vec![]));
        let repaired = repair(&path, &new).expect("repaired");
        assert_eq!((repaired.events, repaired.missing, repaired.deleted), (197, 3, 3));
        assert_eq!((repaired.keys, repaired.subscriptions, repaired.damaged.len()), (29, 1, 0));
        assert_eq!(found(&new), (Ok(197), vec![]));
        let (before, after) = (open(&path).expect("undamaged").0, open(&new).expect("undamaged").0);
        assert_eq!(contents(&before), contents(&after));
        assert_ne!(before.epoch(), after.epoch());
        assert_eq!(before.committed(), after.committed());
    }

    #[test]
    fn each_transaction_of_a_check_is_short() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = open(&folder.path().join("a.db")).expect("a new file");
        let events = 3 * SEGMENT_EVENTS;
        append(&store, &mut parts, 0..events + 1);
        let mut came_to = vec![0];
        assert_eq!(check_rows(&store, |events| came_to.push(events)), (Some(events + 1), vec![]));
        let rows = EVENTS_PER_LOOK_AT_CLOCK as u64;
        assert!(came_to.is_sorted_by(|before, then| *then <= before + rows), "{came_to:?}");
        // Of a segment there are the types, the sessions, the users of every other event, and the source.
        let lists = 2 + 5 + SEGMENT_EVENTS / 2 + 1;
        // The last transaction for events, or for lists, finds no more of them, and keys there are few.
        let of_segment = (SEGMENT_EVENTS / rows + 1) + 1 + (lists / rows + 1);
        // The open segment has two, for its event and for its keys, and nothing comes after the last transaction of
        // all.
        assert_eq!(came_to.len() as u64 - 1, 3 * of_segment + 1);
    }

    /// The time of the first event after a number.
    fn time_after(store: &Store, after: Seq) -> Option<Timestamp> {
        let mut time = None;
        let query = Query { after, ..Query::default() };
        let read = store.reader().scan(&query, |event| {
            time = Some(event.time);
            ControlFlow::Break(())
        });
        read.map(|_| time).expect("read")
    }

    #[test]
    fn a_check_reports_no_damage_while_events_are_stored_sealed_and_deleted() {
        let mut disturbed = 0;
        for seed in 0..60 {
            let mut random = Random(seed);
            let folder = tempfile::tempdir().expect("a folder");
            let (store, mut parts) = open(&folder.path().join("a.db")).expect("a new file");
            let mut next = 5 * SEGMENT_EVENTS + random.below(SEGMENT_EVENTS);
            hand_in(&store, 0..next);
            // The last segments are sealed meanwhile, or not at all.
            for _ in 0..random.below(60) {
                parts.write();
                parts.seal();
            }
            let mut came_to = 0;
            let (_, found) = check_rows(&store, |events| {
                disturbed += u64::from(events < came_to);
                came_to = events;
                for _ in 0..random.below(3) {
                    match random.below(20) {
                        0..=3 => {
                            let first = next;
                            next += random.below(5);
                            hand_in(&store, first..next);
                        }
                        4 | 5 => {
                            let near = random.below(next);
                            begin(store.delete_chosen(random.some(&[1, 2, 3, 9, 10].map(|n| Seq(near + n)), 2)));
                        }
                        6 => {
                            if let Some(time) = time_after(&store, Seq(random.below(events + 2))) {
                                begin(store.delete(Some(time), Filter::default()));
                            }
                        }
                        7 | 8 => _ = parts.seal(),
                        _ => _ = parts.write(),
                    }
                }
            });
            assert_eq!(found, Vec::<String>::new(), "seed {seed}");
            settle(&mut parts);
            let (events, found) = check_rows(&store, |_| {});
            assert_eq!(
                (events, found),
                (Some(store.reader().count(&Query::default()).expect("read")), vec![]),
                "seed {seed}"
            );
        }
        assert!(disturbed > 0, "no segment was checked again");
    }

    #[test]
    fn damage_is_reported_once_even_if_the_check_of_its_segment_begins_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.db");
        let (store, mut parts) = open(&path).expect("a new file");
        append(&store, &mut parts, 0..2 * SEGMENT_EVENTS);
        let damage = "UPDATE events SET checksum = checksum + 1 WHERE seq = 3;
            DELETE FROM events WHERE seq = 5;
            DELETE FROM event_index WHERE segment = 0 AND kind = 1 AND key = 'session-1'";
        schema::open_writer(&path).and_then(|file| file.execute_batch(damage)).expect("written");
        let (mut found_after, mut doomed) = (Vec::new(), Seq(SEGMENT_EVENTS));
        for last_disturbance in [0, 3, u64::MAX] {
            let mut transactions = 0_u64;
            let (_, mut found) = check_rows(&store, |_| {
                transactions += 1;
                // One in each check of the segment: its second transaction finds that it is disturbed.
                if transactions <= last_disturbance && !transactions.is_multiple_of(2) {
                    doomed = doomed.prev();
                    begin(store.delete_chosen(vec![doomed]));
                    settle(&mut parts);
                }
            });
            assert_eq!(found.remove(0), "events: evt_000000000003 is damaged");
            found_after.push(found);
        }
        let unfit = |missing: u64, deleted: u64| {
            let id = Seq(1).id();
            [
                format!("events: {missing} are missing from {id} on in their segment, {deleted} were deleted"),
                "event_index: of segment 0 0 lists are wrong and 1 are missing".to_owned(),
            ]
        };
        assert_eq!(found_after[0], unfit(1, 0));
        assert_eq!(found_after[1], unfit(3, 2));
        // Every check of the segment was disturbed, so only checksums and the order of the rows were checked.
        assert_eq!(found_after[2], [""; 0]);
    }

    /// A file of which damaged copies are made.
    struct Original {
        folder: tempfile::TempDir,
        /// Where the copies go.
        copy: PathBuf,
        whole: Vec<u8>,
        before: Contents,
    }

    /// A file as [`filled`] makes it, that no server has open.
    fn original() -> Original {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, copy) = (folder.path().join("a.db"), folder.path().join("copy.db"));
        let (store, parts) = filled(&path);
        close(&store, parts);
        let whole = std::fs::read(&path).expect("a file");
        let before = contents(&open(&path).expect("undamaged").0);
        Original { folder, copy, whole, before }
    }

    /// Writes a damaged copy, as if nothing had ever been beside it.
    fn put(copy: &Path, damaged: &[u8]) {
        for end in ["-wal", "-shm", ".lock"] {
            let _ = std::fs::remove_file(crate::store::files::beside(copy, end));
        }
        std::fs::write(copy, damaged).expect("written");
    }

    fn were_stored(events: &[String], before: &Contents) -> bool {
        events.iter().all(|event| before.events[0].0.contains(event))
    }

    #[test]
    fn every_flipped_bit_is_noticed_or_without_effect_and_none_is_served_as_data() {
        let Original { folder: _folder, copy, whole, before } = original();
        let (mut noticed, mut harmless, mut refused) = (0, 0, 0);
        // With a prime stride all offsets within a page come up, and each bit of a byte.
        for (turn, at) in (0..whole.len()).step_by(61).enumerate() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (turn % 8);
            put(&copy, &damaged);
            let (checked, damage) = found(&copy);
            let is_noticed = checked.is_err() || !damage.is_empty();
            let after = match open(&copy) {
                Ok((store, _parts)) => contents(&store),
                Err(_) => {
                    refused += 1;
                    continue;
                }
            };
            for (events, is_complete) in &after.events {
                assert!(were_stored(events, &before), "byte {at}: an event that was never stored: {events:?}");
                assert!(*is_complete || is_noticed, "byte {at}: a reading fails and the check finds nothing");
            }
            if is_noticed {
                noticed += 1;
            } else {
                harmless += 1;
                assert!(after == before, "byte {at}: something else is read and the check finds nothing");
            }
        }
        println!("{noticed} noticed, {refused} not opened, {harmless} without effect");
        assert!(noticed > 100 && refused > 10, "most of so small a file is unused, but not all");
    }

    #[test]
    fn a_flipped_bit_in_the_definition_of_a_table_is_refused_or_noticed_or_without_effect() {
        let Original { folder, copy, whole, before } = original();
        let new = folder.path().join("new.db");
        let (mut refused, mut saved, mut noticed, mut harmless) = (0, 0, 0, 0);
        // The first page holds nothing else, after a header of 100 bytes.
        for (turn, at) in (100..4_096).step_by(3).enumerate() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (turn % 8);
            let around = String::from_utf8_lossy(&damaged[at - 20..(at + 20).min(4_096)]).into_owned();
            put(&copy, &damaged);
            match open(&copy) {
                Err(crate::store::OpenError::Damaged(..)) => {
                    refused += 1;
                    let (checked, damage) = found(&copy);
                    assert!(checked.is_err() || !damage.is_empty(), "byte {at}: the check finds nothing");
                    let _ = std::fs::remove_file(&new);
                    let repaired = repair(&copy, &new);
                    saved += usize::from(repaired.is_ok_and(|repaired| repaired.events == 197));
                }
                Err(error) => panic!("byte {at}, {around:?}: {error}"),
                // Only the check of all pages finds that the root of a tree is wrong.
                Ok((store, _parts)) if !found(&copy).1.is_empty() => {
                    noticed += 1;
                    for (events, _) in &contents(&store).events {
                        assert!(
                            were_stored(events, &before),
                            "byte {at}, {around:?}: an event that was never stored: {events:?}"
                        );
                    }
                }
                Ok((store, mut parts)) => {
                    harmless += 1;
                    assert!(contents(&store) == before, "byte {at}, {around:?}: something else is read");
                    append(&store, &mut parts, 200..201);
                    close(&store, parts);
                }
            }
        }
        println!("{refused} refused ({saved} of them saved whole), {noticed} noticed, {harmless} without effect");
        // The others are pages that SQLite cannot read, or that have no root page of the events.
        assert!(refused > 100 && harmless > 100 && saved > refused * 9 / 10);
    }

    #[test]
    fn a_repair_loses_only_the_event_whose_time_is_damaged_among_events_without_checksums() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.db");
        let (store, parts) = filled(&path);
        close(&store, parts);
        let file = schema::open_writer(&path).expect("undamaged");
        // Up to number 100 as in a file from before format 3; one time is centuries late, one days, one early.
        meta::set(&file, meta::UNCHECKED_THROUGH, 100).expect("written");
        file.execute_batch(
            "UPDATE events SET checksum = NULL WHERE seq <= 100;
            UPDATE events SET time_us = time_us + (1 << 52) WHERE seq IN (50, 100);
            UPDATE events SET time_us = time_us + (1 << 40) WHERE seq = 60;
            UPDATE events SET time_us = time_us - (1 << 40) WHERE seq = 70;",
        )
        .expect("written");
        drop(file);
        let new = folder.path().join("new.db");
        let repaired = repair(&path, &new).expect("repaired");
        assert_eq!(repaired.damaged, [50, 60, 70, 100].map(|seq| Seq(seq).id().to_string()));
        assert_eq!((repaired.events, found(&new)), (193, (Ok(193), vec![])));
    }

    #[test]
    fn a_repair_saves_the_readable_events_whichever_page_is_lost() {
        let Original { folder, copy, whole, before } = original();
        const ROOT: &str = "SELECT rootpage FROM sqlite_schema WHERE name = 'events'";
        let connection = schema::open_reader(&folder.path().join("a.db")).expect("undamaged");
        let root: u32 = connection.query_row(ROOT, [], |row| row.get(0)).expect("a table");
        for page in 2..=(whole.len() / 4_096) as u32 {
            let mut damaged = whole.clone();
            wipe_page(&mut damaged, page);
            put(&copy, &damaged);
            let new = folder.path().join("new.db");
            for file in ["new.db", "new.db.lock"] {
                let _ = std::fs::remove_file(folder.path().join(file));
            }
            let repaired = match repair(&copy, &new) {
                Ok(repaired) => repaired,
                Err(error) => {
                    // Without the root no event is found.
                    assert!(page == root && !new.exists(), "page {page}: {error}");
                    continue;
                }
            };
            assert_eq!(found(&new), (Ok(repaired.events), vec![]), "page {page}");
            let (after, is_complete) = contents(&open(&new).expect("undamaged").0).events.swap_remove(0);
            assert!(is_complete && were_stored(&after, &before), "page {page}");
            // A leaf holds some twenty events.
            assert!(after.len() as u64 == repaired.events && after.len() >= 150, "page {page}: {}", after.len());
        }
    }

    #[test]
    fn damage_in_a_small_table_is_reported_and_hides_no_other_damage() {
        const NO_TEXT: &str =
            "UPDATE event_stats SET event_type = CAST(X'F4' AS TEXT) WHERE event_type = 'quiz_started'";
        const ROOT: &str = "SELECT rootpage FROM sqlite_schema WHERE name = 'holes'";
        for (named, damage) in [("holes: ", ""), ("event_stats: ", NO_TEXT)] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("a.db");
            let (store, parts) = filled(&path);
            close(&store, parts);
            let file = schema::open_writer(&path).expect("undamaged");
            file.execute_batch(&format!("UPDATE events SET payload = '[}}' WHERE seq = 3; {damage}")).expect("written");
            let root: u32 = file.query_row(ROOT, [], |row| row.get(0)).expect("a table");
            drop(file);
            if damage.is_empty() {
                let mut bytes = std::fs::read(&path).expect("a file");
                wipe_page(&mut bytes, root);
                put(&path, &bytes);
            }
            let (events, damage) = found(&path);
            assert_eq!(events, Ok(196), "{damage:?}");
            // What SQLite reports of a page comes before.
            let found = |of: &str| damage.iter().filter(|what| what.starts_with(of)).collect::<Vec<_>>();
            assert_eq!(found(named).len(), 1, "{damage:?}");
            assert_eq!(found("events: "), ["events: evt_000000000003 is damaged"]);

            let (store, _parts) = open(&path).expect("what is damaged is not needed");
            let stats = store.reader().stats(Timestamp::now()).expect("the rest of it");
            let types = stats.by_type.iter().map(|of_type| &*of_type.event_type).collect::<Vec<_>>();
            assert_eq!(types.contains(&"quiz_started"), named == "holes: ", "{types:?}");
            assert!(types.contains(&"timer_tick"), "{types:?}");
            let damage = store.integrity().damage;
            assert!(damage.len() == 1 && damage[0].starts_with(named), "{damage:?}");
        }
    }
}
