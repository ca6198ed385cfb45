//! Holding a whole file against itself: every row against its checksum, the index and the statistics against the
//! events, the numbers against what was deleted, and the pages against each other.
//!
//! Segment by segment, each in a short transaction of its own, so that a server that runs on the file is not
//! disturbed: a long one would keep the write-ahead log from starting over.

use std::collections::HashMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::damage::{damaged, is_damage};
use super::holes::Holes;
use super::keys::{self, select_keys};
use super::read::{self, kept};
use super::schema::{self, meta};
use super::segments::{self, Kind, SEGMENT_EVENTS, Segment};
use super::{Kept, wal};
use crate::event::{Seq, Timestamp};

/// Holds a whole file against itself and hands each damaged thing to `found`, by name. A server may run on it.
/// Returns how many events there were.
///
/// # Errors
/// When it cannot be opened or read for another reason than damage.
pub fn check(path: &Path, mut found: impl FnMut(String), mut progress: impl FnMut(u64)) -> rusqlite::Result<u64> {
    // A server that writes meanwhile may make a log look broken, but hardly twice at the same place.
    match wal::examine(path).and_then(|first| Ok((first, wal::examine(path)?))) {
        Ok((Some(first), Some(again))) if first.frame == again.frame => {
            let wal::Severed { frame, commits, .. } = again;
            found(format!("write-ahead log: frame {frame} is broken, {commits} commits behind it are dropped"));
        }
        Ok(_) => {}
        Err(error) => found(format!("write-ahead log: {error}")),
    }
    let connection = schema::open_reader(path)?;
    pages(&connection, Pages::All, &mut found)?;
    match schema::verify(&connection) {
        Err(error) if is_damage(&error) => {
            // Nothing that follows could be read.
            found(error.to_string());
            return Ok(0);
        }
        verified => verified?,
    }
    let mut check = Check {
        connection: &connection,
        found: &mut found,
        between: &mut |events| {
            progress(events);
            ControlFlow::Continue(())
        },
    };
    Ok(check.rows()?.expect("nothing ended it"))
}

/// How thoroughly the pages are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// `quick_check`, unless it takes so long that it would be a burden.
    Quick,
    /// `integrity_check`, which also holds SQLite's indexes against their tables.
    All,
}

/// A reading of a whole file.
pub(super) struct Check<'c> {
    pub connection: &'c Connection,
    /// Takes what is damaged, by name.
    pub found: &'c mut dyn FnMut(String),
    /// Is told between two transactions how many events were looked at so far, and may end it.
    pub between: &'c mut dyn FnMut(u64) -> ControlFlow<()>,
}

/// Holds the pages against each other. Returns whether it came to the end: the connection's progress handler may stop
/// it.
///
/// # Errors
/// What SQLite reports, other than damage.
pub(super) fn pages(connection: &Connection, pages: Pages, mut found: impl FnMut(String)) -> rusqlite::Result<bool> {
    let pragmas: &[&str] = match pages {
        // Only its index tells where a key is, and it is small enough to be held against its table.
        Pages::Quick => &["PRAGMA quick_check", "PRAGMA integrity_check('idempotency_keys')"],
        Pages::All => &["PRAGMA integrity_check"],
    };
    for pragma in pragmas {
        let looked = connection.prepare(pragma).and_then(|mut statement| {
            statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()
        });
        match looked {
            Ok(lines) => lines.into_iter().filter(|line| line != "ok").for_each(&mut found),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => return Ok(false),
            Err(error) if is_damage(&error) => found(format!("{pragma}: {error}")),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// What of the events comes out of the walk.
#[derive(Default)]
struct Tally {
    events: u64,
    by_type: HashMap<String, (u64, Timestamp)>,
    last: Option<(Seq, Timestamp)>,
    /// Some could not be read: what they counted for is not known.
    has_gaps: bool,
    /// The file is of an older format, whose keys and holes have no checksums.
    is_former: bool,
}

impl Check<'_> {
    /// Looks at every row. Returns how many events there were, or `None` if it was ended.
    ///
    /// # Errors
    /// What SQLite reports, other than damage.
    pub fn rows(&mut self) -> rusqlite::Result<Option<u64>> {
        if let Err(error) = Kept::all(self.connection) {
            self.damage(error)?;
        }
        let unchecked_through = match self.marks() {
            Ok(unchecked_through) => unchecked_through,
            Err(error) => {
                self.damage(error)?;
                Seq::ZERO
            }
        };
        let is_former = schema::version(self.connection)? < schema::VERSION;
        let (mut tally, mut began_with, mut number) = (Tally { is_former, ..Tally::default() }, None, 0);
        loop {
            let transaction = self.connection.unchecked_transaction()?;
            let looked = (|| {
                let deletions = deletions(&transaction)?;
                let is_undisturbed = *began_with.get_or_insert(deletions) == deletions;
                let Some(kept) = kept(&transaction, Seq::MAX)? else {
                    self.statistics(&transaction, is_undisturbed.then_some(&tally))?;
                    return Ok(true);
                };
                number = segments::segment_of(*kept.start()).max(number);
                self.segment(&transaction, number, &kept, unchecked_through, &mut tally)?;
                let is_last = number >= segments::segment_of(*kept.end());
                if is_last {
                    self.statistics(&transaction, is_undisturbed.then_some(&tally))?;
                }
                Ok(is_last)
            })();
            drop(transaction);
            match looked {
                Ok(true) => return Ok(Some(tally.events)),
                Ok(false) => {}
                Err(error) if is_damage(&error) => {
                    // Where even the ends of the table cannot be found there is nothing to go on with.
                    (self.found)(format!("events: the rest cannot be read ({error})"));
                    return Ok(Some(tally.events));
                }
                Err(error) => return Err(error),
            }
            number += 1;
            if (self.between)(tally.events).is_break() {
                return Ok(None);
            }
        }
    }

    fn marks(&self) -> rusqlite::Result<Seq> {
        for mark in [meta::LAST_SEQ, meta::LAST_TIME_US, meta::EPOCH, meta::INODE] {
            meta::get(self.connection, mark)?;
        }
        meta::get(self.connection, meta::UNCHECKED_THROUGH).map(|seq| Seq(seq as u64))
    }

    /// The events of one segment, and its lists.
    fn segment(
        &mut self,
        connection: &Connection,
        number: u64,
        kept: &RangeInclusive<Seq>,
        unchecked_through: Seq,
        tally: &mut Tally,
    ) -> rusqlite::Result<()> {
        let began = tally.last.is_none();
        let whole = segments::first_of(number)..=segments::first_of(number + 1).prev();
        let numbers = *whole.start().max(kept.start())..=*whole.end().min(kept.end());
        let mut present = vec![false; SEGMENT_EVENTS as usize];
        let (mut segment, mut rows_seen) = (Segment::new(number), 0);
        const SQL: &str = read::select_events!("seq BETWEEN ?1 AND ?2 ORDER BY seq");
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query([numbers.start().0 as i64, numbers.end().0 as i64])?;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => {
                    tally.has_gaps = true;
                    self.damage(error)?;
                    return Ok(());
                }
            };
            rows_seen += 1;
            let event = match read::stored(row, unchecked_through) {
                Ok(event) => event,
                Err(error) => {
                    tally.has_gaps = true;
                    self.damage(error)?;
                    continue;
                }
            };
            if !numbers.contains(&event.seq)
                || tally.last.is_some_and(|(seq, time)| event.seq <= seq || event.time <= time)
            {
                (self.found)(format!("events: {} is out of order", event.seq.id()));
                continue;
            }
            present[(event.seq.0 - whole.start().0) as usize] = true;
            segment.note(event.seq, &event.columns());
            tally.last = Some((event.seq, event.time));
            tally.events += 1;
            match tally.by_type.get_mut(event.event_type) {
                Some(of_type) => *of_type = (of_type.0 + 1, event.time),
                None => drop(tally.by_type.insert(event.event_type.to_owned(), (1, event.time))),
            }
        }

        if !tally.is_former {
            let from = if began { Seq::ZERO } else { *whole.start() };
            self.keys(connection, from..=*whole.end())?;
            self.holes(connection, number, &numbers, &present, tally)?;
        }
        const HOLES: &str = "SELECT coalesce((SELECT count FROM holes WHERE segment = ?1), 0)";
        let deleted: i64 = connection.prepare_cached(HOLES)?.query_row([number as i64], |row| row.get(0))?;
        let missing = numbers.end().0 as i64 + 1 - numbers.start().0 as i64 - rows_seen;
        // What was deleted beyond the ends is counted too.
        if missing > deleted || (numbers == whole && missing < deleted) {
            let id = numbers.start().id();
            (self.found)(format!(
                "events: {missing} are missing from {id} on in their segment, {deleted} were deleted"
            ));
        }
        if (number as i64) < meta::get(connection, meta::SEALED_BEFORE)? {
            self.lists(connection, &segment, &present)?;
        }
        Ok(())
    }

    /// The keys of some events, each against its checksum.
    fn keys(&mut self, connection: &Connection, numbers: RangeInclusive<Seq>) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(select_keys!("WHERE seq BETWEEN ?1 AND ?2"))?;
        let mut rows = statement.query([numbers.start().0 as i64, numbers.end().0 as i64])?;
        loop {
            let kept = match rows.next() {
                Ok(Some(row)) => keys::Kept::read(row).map(drop),
                Ok(None) => return Ok(()),
                Err(error) => return self.damage(error),
            };
            kept.or_else(|error| self.damage(error))?;
        }
    }

    /// The holes of a segment, against the numbers without an event.
    fn holes(
        &mut self,
        connection: &Connection,
        number: u64,
        numbers: &RangeInclusive<Seq>,
        present: &[bool],
        tally: &Tally,
    ) -> rusqlite::Result<()> {
        let holes = match Holes::of(connection, number) {
            Ok(holes) => holes.and_then(|holes| holes.offsets),
            Err(error) => return self.damage(error),
        };
        let Some(holes) = holes.filter(|_| !tally.has_gaps) else { return Ok(()) };
        let is_there = |hole: &&u16| present.get(usize::from(**hole)).is_some_and(|is_there| *is_there);
        let wrong = holes.iter().filter(is_there).count();
        if wrong > 0 {
            let id = numbers.start().id();
            (self.found)(format!("holes: {wrong} of the segment of {id} have their events"));
        }
        Ok(())
    }

    /// The lists of a segment, against those of its events.
    fn lists(&mut self, connection: &Connection, segment: &Segment, present: &[bool]) -> rusqlite::Result<()> {
        let (mut right, mut wrong) = (0, 0);
        const SQL: &str = "SELECT kind, key, offsets, checksum FROM event_index WHERE segment = ?1";
        let mut statement = connection.prepare_cached(SQL)?;
        let mut rows = statement.query([segment.number() as i64])?;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => {
                    self.damage(error)?;
                    return Ok(());
                }
            };
            let list =
                Kind::of_number(row.get(0)?).ok_or_else(|| damaged("event_index: no such kind")).and_then(|kind| {
                    let key = row.get_ref(1)?.as_bytes()?;
                    Ok((kind, key, read::list(row, 2, segment.number(), kind, key)?))
                });
            match list {
                Ok((kind, key, mut offsets)) => {
                    // Lists keep the numbers of events that were deleted.
                    offsets.retain(|offset| present.get(usize::from(*offset)).is_some_and(|is_there| *is_there));
                    let events = segment.list(kind, key).unwrap_or_default();
                    let is_right = *offsets == *events;
                    right += usize::from(is_right && !events.is_empty());
                    wrong += usize::from(!is_right);
                }
                Err(error) => self.damage(error)?,
            }
        }
        let lacking = segment.lists().saturating_sub(right + wrong);
        if wrong + lacking > 0 {
            let number = segment.number();
            (self.found)(format!("event_index: of segment {number} {wrong} lists are wrong and {lacking} are missing"));
        }
        Ok(())
    }

    /// The statistics, against all events if none was deleted since the walk began.
    fn statistics(&mut self, connection: &Connection, tally: Option<&Tally>) -> rusqlite::Result<()> {
        let Some(tally) = tally.filter(|tally| !tally.has_gaps) else { return Ok(()) };
        let mut statement =
            connection.prepare("SELECT event_type, count, last_seen FROM event_stats WHERE count > 0")?;
        let told = statement.query_map([], |row| Ok((row.get(0)?, (row.get::<_, i64>(1)? as u64, row.get(2)?))))?;
        let told: HashMap<String, (u64, String)> = told.collect::<rusqlite::Result<_>>()?;
        let counted = tally.by_type.iter().map(|(of, (count, last))| (of.clone(), (*count, last.to_string())));
        if told != counted.collect() {
            (self.found)("event_stats: the statistics are not those of the events".to_owned());
        }
        Ok(())
    }

    /// Tells of damage, and gives back any other error.
    fn damage(&mut self, error: rusqlite::Error) -> rusqlite::Result<()> {
        if is_damage(&error) {
            (self.found)(error.to_string());
            Ok(())
        } else {
            Err(error)
        }
    }
}

/// What a deletion changes for good: where the events begin, and how many were chosen out of the middle.
fn deletions(connection: &Connection) -> rusqlite::Result<(Option<i64>, i64)> {
    const SQL: &str = "SELECT (SELECT min(seq) FROM events), (SELECT coalesce(sum(count), 0) FROM holes)";
    connection.prepare_cached(SQL)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// After each transaction the check rests this many times as long as it took: a fifth of a core is its share.
pub(super) const REST: u32 = 4;

/// A check of the pages that had to give way is tried again so much later.
pub(super) const TRY_AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::config::{Config, Durability};
    use crate::event::{Event, Field, Filter, TimestampText};
    use crate::store::{Parts, Query, Receipt, Store, TypeStats, repair};
    use crate::wire::Batch;

    fn config(path: &Path) -> Config {
        Config {
            database_path: path.to_owned(),
            durability: Durability::Off,
            free_space_min_bytes: 0,
            ..Config::default()
        }
    }

    fn open(path: &Path) -> Result<(Store, Parts), crate::store::OpenError> {
        Store::open_parts(&config(path))
    }

    fn append(store: &Store, parts: &mut Parts, numbers: std::ops::Range<u64>) {
        let types = Config::default().event_types;
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
            let mut batch = Batch::default();
            batch.push(&event, &types);
            store.try_append(batch, Receipt::new().0).expect("room");
        }
        while parts.write() | parts.seal() {}
    }

    /// A file with sealed and open segments, keys, a durable subscription, and holes.
    fn filled(path: &Path) -> (Store, Parts) {
        let (store, mut parts) = open(path).expect("a new file");
        append(&store, &mut parts, 0..200);
        store.keep(Kept { name: "n".into(), filters: "{}".into(), position: Seq(7), last_seen: "then".into() });
        {
            let mut chosen = std::pin::pin!(store.delete_these(vec![Seq(40), Seq(41), Seq(101)]));
            let mut context = Context::from_waker(Waker::noop());
            assert!(chosen.as_mut().poll(&mut context).is_pending());
            while parts.write() {}
            assert_eq!(chosen.poll(&mut context), Poll::Ready(Ok(3)));
        }
        (store, parts)
    }

    fn finish((store, parts): (Store, Parts)) {
        store.close();
        drop(parts.finish());
    }

    fn found(path: &Path) -> (rusqlite::Result<u64>, Vec<String>) {
        let mut found = Vec::new();
        let events = check(path, |what| found.push(what), |_| {});
        (events, found)
    }

    /// What a client can read, and whether each reading came to its end.
    #[derive(Debug, PartialEq)]
    struct Told {
        /// Everything, and what the index finds of two sessions and a type.
        events: Vec<(Vec<String>, bool)>,
        rest: Option<(Vec<TypeStats>, Vec<Kept>)>,
    }

    fn told(store: &Store) -> Told {
        let sessions = ["session-1", "session-4"].map(|session| Filter::default().with(Field::Session, [session]));
        let filters = [Filter::default(), Filter::default().with_types(["quiz_started"])].into_iter().chain(sessions);
        let events = filters.map(|filter| {
            let mut events = Vec::new();
            let read = store.scan(&Query { filter, ..Query::default() }, |event| {
                let mut json = Vec::new();
                event.write_json(&mut json, &mut TimestampText::default());
                events.push(String::from_utf8(json).expect("UTF-8"));
                ControlFlow::Continue(())
            });
            (events, read.is_ok())
        });
        let events = events.collect();
        let stats = store.stats(Timestamp(i64::MAX / 2));
        let rest = stats.and_then(|stats| Ok((stats.by_type, store.kept_subscriptions()?)));
        Told { events, rest: rest.ok() }
    }

    #[test]
    fn a_file_that_is_whole_is_sound_and_a_repair_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, new) = (folder.path().join("a.db"), folder.path().join("b.db"));
        let parts = filled(&path);
        assert_eq!(found(&path), (Ok(197), vec![]), "while a server runs on it");
        finish(parts);
        assert_eq!(found(&path), (Ok(197), vec![]));
        let repaired = repair(&path, &new).expect("repaired");
        assert_eq!((repaired.events, repaired.missing, repaired.deleted), (197, 3, 3));
        assert_eq!((repaired.keys, repaired.subscriptions, repaired.damaged.len()), (29, 1, 0));
        assert_eq!(found(&new), (Ok(197), vec![]));
        let (before, after) = (open(&path).expect("whole").0, open(&new).expect("whole").0);
        assert_eq!(told(&before), told(&after));
        assert_ne!(before.epoch(), after.epoch());
        assert_eq!(before.committed(), after.committed());
    }

    /// Writes a damaged copy, as if nothing had ever been beside it.
    fn put(copy: &Path, damaged: &[u8]) {
        for end in ["-wal", "-shm", ".lock"] {
            let _ = std::fs::remove_file(crate::store::files::beside(copy, end));
        }
        std::fs::write(copy, damaged).expect("written");
    }

    fn are_true(events: &[String], truth: &Told) -> bool {
        events.iter().all(|event| truth.events[0].0.contains(event))
    }

    #[test]
    fn no_flipped_bit_is_served_as_data_or_goes_unnoticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, copy) = (folder.path().join("a.db"), folder.path().join("copy.db"));
        finish(filled(&path));
        let whole = std::fs::read(&path).expect("a file");
        let before = told(&open(&path).expect("whole").0);
        let (mut noticed, mut harmless, mut refused) = (0, 0, 0);
        // A prime stride passes all places within a page; each bit has its turn.
        for (turn, at) in (0..whole.len()).step_by(61).enumerate() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (turn % 8);
            put(&copy, &damaged);
            let (checked, damage) = found(&copy);
            let is_noticed = checked.is_err() || !damage.is_empty();
            let after = match open(&copy) {
                Ok((store, _parts)) => told(&store),
                Err(_) => {
                    refused += 1;
                    continue;
                }
            };
            for (events, is_complete) in &after.events {
                assert!(are_true(events, &before), "byte {at}: an event that was never stored: {events:?}");
                assert!(*is_complete || is_noticed, "byte {at}: a reading fails and the check is content");
            }
            if is_noticed {
                noticed += 1;
            } else {
                harmless += 1;
                assert!(after == before, "byte {at}: something else is told and the check is content");
            }
        }
        println!("{noticed} noticed, {refused} not opened, {harmless} without effect");
        assert!(noticed > 100 && refused > 10, "most of so small a file is unused, but not all");
    }

    #[test]
    fn a_flipped_bit_in_the_definition_of_a_table_is_refused_or_noticed_or_without_effect() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, copy) = (folder.path().join("a.db"), folder.path().join("copy.db"));
        finish(filled(&path));
        let whole = std::fs::read(&path).expect("a file");
        let before = told(&open(&path).expect("whole").0);
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
                    assert!(checked.is_err() || !damage.is_empty(), "byte {at}: the check is content");
                    let _ = std::fs::remove_file(&new);
                    let repaired = repair(&copy, &new);
                    saved += usize::from(repaired.is_ok_and(|repaired| repaired.events == 197));
                }
                Err(error) => panic!("byte {at}, {around:?}: {error}"),
                // The root of a tree is only known to be wrong once all pages are held against each other.
                Ok((store, _parts)) if !found(&copy).1.is_empty() => {
                    noticed += 1;
                    for (events, _) in &told(&store).events {
                        assert!(
                            are_true(events, &before),
                            "byte {at}, {around:?}: an event that was never stored: {events:?}"
                        );
                    }
                }
                Ok((store, mut parts)) => {
                    harmless += 1;
                    assert!(told(&store) == before, "byte {at}, {around:?}: something else is told");
                    append(&store, &mut parts, 200..201);
                    finish((store, parts));
                }
            }
        }
        println!("{refused} refused ({saved} of them saved whole), {noticed} noticed, {harmless} without effect");
        // What is not is a page that SQLite cannot take apart, or has no number of the tree of events.
        assert!(refused > 100 && harmless > 100 && saved > refused * 9 / 10);
    }

    #[test]
    fn one_bad_time_among_events_without_checksums_costs_only_its_event() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.db");
        finish(filled(&path));
        let file = schema::open_writer(&path).expect("whole");
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
    fn what_is_readable_of_a_damaged_file_is_saved() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, copy) = (folder.path().join("a.db"), folder.path().join("copy.db"));
        finish(filled(&path));
        let whole = std::fs::read(&path).expect("a file");
        let before = told(&open(&path).expect("whole").0);
        const ROOT: &str = "SELECT rootpage FROM sqlite_schema WHERE name = 'events'";
        let connection = schema::open_reader(&path).expect("whole");
        let root: i64 = connection.query_row(ROOT, [], |row| row.get(0)).expect("a table");
        for page in 1..whole.len() / 4_096 {
            // A page that was never written, as a disk may return it.
            let mut damaged = whole.clone();
            damaged[page * 4_096..(page + 1) * 4_096].fill(0);
            put(&copy, &damaged);
            let new = folder.path().join("new.db");
            for file in ["new.db", "new.db.lock"] {
                let _ = std::fs::remove_file(folder.path().join(file));
            }
            let repaired = match repair(&copy, &new) {
                Ok(repaired) => repaired,
                Err(error) => {
                    // Without the root no event is found.
                    assert!(page as i64 + 1 == root && !new.exists(), "page {page}: {error}");
                    continue;
                }
            };
            assert_eq!(found(&new), (Ok(repaired.events), vec![]), "page {page}");
            let (after, is_complete) = told(&open(&new).expect("whole").0).events.swap_remove(0);
            assert!(is_complete && are_true(&after, &before), "page {page}");
            // A leaf holds some twenty events.
            assert!(after.len() as u64 == repaired.events && after.len() >= 150, "page {page}: {}", after.len());
        }
    }
}
