//! Saving what can be read of a damaged file into a new one: events that match their checksums, their index and
//! statistics built anew, and what hangs on them. The old file is only read.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};
use serde_json::value::RawValue;

use super::damage::is_damage;
use super::files::{beside, lock, private_file};
use super::keys::{self, select_keys};
use super::open::is_another_programs;
use super::rebuild::Rebuild;
use super::schema::{self, meta};
use super::{Kept, epoch, migrate, read, wal};
use crate::config::Durability;
use crate::event::{Columns, Seq, Timestamp};
use crate::wire::StoredEvent;

/// What a repair saved, and what it could not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// Events in the new file.
    pub events: u64,
    /// Events that were found damaged, by id; of very many only the first.
    pub damaged: Vec<String>,
    /// Numbers without an event, between the first and the last that were given: deleted or lost.
    pub missing: u64,
    /// As many of them were deleted, as far as the old file can tell.
    pub deleted: u64,
    pub keys: u64,
    pub subscriptions: u64,
    /// Where the write-ahead log was broken, if it was; what came behind is saved too.
    pub broken_frame: Option<u64>,
}

/// Why there is no new file.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error("{0} exists: the new file is made, not overwritten")]
    Exists(PathBuf),
    #[error("{0} was written by another version or program: let a server of this version open it first")]
    NotOurs(PathBuf),
    #[error("{0} is a database of another program")]
    Foreign(PathBuf),
    #[error("{0}: nothing can be read of it ({1})")]
    Unreadable(PathBuf, rusqlite::Error),
    #[error("{0} is in use by a server")]
    InUse(PathBuf),
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    #[error("write {0}: {1}")]
    Write(PathBuf, rusqlite::Error),
}

/// Of so many damaged events the ids are told.
const NAMED_MAX: usize = 20;

/// Saves what can be read of `from` into `into`, a new file.
///
/// # Errors
/// When nothing can be read or the new file cannot be written; there is none then.
pub fn repair(from: &Path, into: &Path) -> Result<Repaired, RepairError> {
    if into.exists() {
        return Err(RepairError::Exists(into.to_owned()));
    }
    if !from.exists() {
        return Err(RepairError::File(from.to_owned(), std::io::ErrorKind::NotFound.into()));
    }
    // Nothing is made beside it then.
    if is_another_programs(from).map_err(|error| RepairError::Unreadable(from.to_owned(), error))? {
        return Err(RepairError::Foreign(from.to_owned()));
    }
    // Whoever writes to the file meanwhile would write for nothing.
    let file = |error| RepairError::File(from.to_owned(), error);
    let held = lock(from).map_err(file)?.ok_or_else(|| RepairError::InUse(from.to_owned()))?;
    let severed = wal::examine(from).map_err(file)?;
    private_file(into).map_err(|error| RepairError::File(into.to_owned(), error))?;
    let mended = beside(into, ".damaged");
    let saved = open_old(from, severed.is_some(), &mended).and_then(|old| {
        let saved = save(&old, into, epoch::last_noted(&held));
        saved.map_err(|error| match is_damage(&error) {
            true => RepairError::Unreadable(from.to_owned(), error),
            false => RepairError::Write(into.to_owned(), error),
        })
    });
    for file in ["", "-wal", "-shm"].map(|end| beside(&mended, end)) {
        let _ = std::fs::remove_file(file);
    }
    if saved.is_err() {
        for file in ["", "-wal", "-shm", "-journal"].map(|end| beside(into, end)) {
            let _ = std::fs::remove_file(file);
        }
    }
    saved.map(|repaired| Repaired { broken_frame: severed.map(|severed| severed.frame), ..repaired })
}

/// The old file, or a copy of it without what keeps SQLite from reading it.
fn open_old(from: &Path, is_severed: bool, mended: &Path) -> Result<Connection, RepairError> {
    let unreadable = |error| RepairError::Unreadable(from.to_owned(), error);
    let old = schema::open_unread(from).map_err(unreadable)?;
    let version = schema::version(&old).map_err(unreadable)?;
    let is_ours = schema::is_of(&old, schema::VERIFIED).and_then(|it_is| Ok(it_is || !schema::is_foreign(&old)?));
    if !schema::VERIFIED.contains(&version) || !is_ours.map_err(unreadable)? {
        return Err(RepairError::NotOurs(from.to_owned()));
    }
    let is_former = version < schema::VERSION;
    match schema::verify(&old) {
        Ok(()) if !is_severed && !is_former => return Ok(old),
        Err(error) if !is_damage(&error) => return Err(unreadable(error)),
        _ => drop(old),
    }
    let file = |error| RepairError::File(mended.to_owned(), error);
    let [log, log_of_copy] = [from, mended].map(|database| beside(database, "-wal"));
    std::fs::copy(from, mended).map_err(file)?;
    if is_severed {
        // SQLite would stop at the broken frame; rows have checksums of their own.
        wal::mend(&log, &log_of_copy).map_err(file)?;
    } else if log.exists() {
        std::fs::copy(log, log_of_copy).map_err(file)?;
    }
    let mut copy = schema::open_writer(mended).map_err(unreadable)?;
    if schema::verify(&copy).is_err() {
        schema::redefine(&copy).map_err(unreadable)?;
    } else if is_former {
        migrate::to_newest(&mut copy).map_err(unreadable)?;
    }
    Ok(copy)
}

fn save(old: &Connection, into: &Path, last_noted: Seq) -> rusqlite::Result<Repaired> {
    let mut new = schema::open_writer(into)?;
    schema::prepare(&new, Durability::Full)?;
    // In one transaction with a rollback journal, the pages of a new file are written once.
    new.pragma_update(None, "journal_mode", "DELETE")?;
    migrate::to_newest(&mut new)?;
    let transaction = new.transaction()?;
    let repaired = fill(old, &transaction, last_noted)?;
    transaction.commit()?;
    new.pragma_update(None, "journal_mode", "WAL")?;
    Ok(repaired)
}

fn fill(old: &Connection, new: &Connection, last_noted: Seq) -> rusqlite::Result<Repaired> {
    let noted = |key| or_lost(meta::get(old, key), 0);
    // Numbers are never given twice, also those of events that are lost.
    let unchecked_through = Seq(noted(meta::UNCHECKED_THROUGH)? as u64);
    let last_seen = or_lost(read::last_seen(old), None)?;
    let newest = or_lost(read::newest(old, unchecked_through, last_seen), read::Newest::default())?;
    let last = last_noted.max(newest.last(Seq(noted(meta::LAST_SEQ)? as u64), last_noted));
    let mut salvage = Salvage {
        old,
        rebuild: Rebuild::new(new)?,
        unchecked_through,
        unproven: VecDeque::new(),
        unproven_end: first_checked_time(old, unchecked_through)?,
        last_seen,
        first: None,
        last_seq: Seq::ZERO,
        last_time: Timestamp(i64::MIN),
        has_legacy_ids: false,
        found: 0,
        repaired: Repaired::default(),
    };
    salvage.run(Seq(1)..=last)?;
    if salvage.repaired.events == 0 {
        // Empty, or without the page that leads to all others.
        old.query_row("SELECT count(*) FROM events", [], |row| row.get::<_, i64>(0))?;
    }
    let Salvage { rebuild, first, last_seq, last_time, has_legacy_ids, mut repaired, .. } = salvage;
    rebuild.finish()?;
    meta::set(new, meta::LAST_SEQ, last.max(last_seq).0 as i64)?;
    meta::set(new, meta::LAST_TIME_US, last_time.0.max(noted(meta::LAST_TIME_US)?))?;
    if has_legacy_ids {
        new.execute_batch(schema::LEGACY_INDEX)?;
    }
    if let Some(first) = first {
        repaired.missing = last_seq.0 + 1 - first.0 - repaired.events;
    }
    let deleted = old.query_row("SELECT coalesce(sum(count), 0) FROM holes", [], |row| row.get::<_, i64>(0));
    repaired.deleted = or_lost(deleted, 0)? as u64;
    repaired.keys = save_keys(old, new)?;
    repaired.subscriptions = save_subscriptions(old, new)?;
    Ok(repaired)
}

/// What was read, or something else where damage stood in the way.
fn or_lost<T>(read: rusqlite::Result<T>, otherwise: T) -> rusqlite::Result<T> {
    match read {
        Err(error) if is_damage(&error) => Ok(otherwise),
        read => read,
    }
}

/// The events on their way.
struct Salvage<'c> {
    old: &'c Connection,
    rebuild: Rebuild<'c>,
    unchecked_through: Seq,
    /// Events without a checksum, until it is known whether their times can be right.
    unproven: VecDeque<Unproven>,
    /// The time of the first event with a checksum, which all of them precede.
    unproven_end: Timestamp,
    /// The time of the newest event as the statistics have it.
    last_seen: Option<Timestamp>,
    first: Option<Seq>,
    last_seq: Seq,
    last_time: Timestamp,
    has_legacy_ids: bool,
    /// Events that could be read, taken over or not.
    found: u64,
    repaired: Repaired,
}

impl Salvage<'_> {
    /// Takes over every event of these numbers that can be read.
    fn run(&mut self, numbers: RangeInclusive<Seq>) -> rusqlite::Result<()> {
        let mut next = *numbers.start();
        while next <= *numbers.end() {
            // From one to the next through the leaves, as long as they hang together; else by number, which
            // finds what another way leads to.
            next = self.read("seq >= ?1 AND ?2 > 0 ORDER BY seq", next, *numbers.end())?;
            while next <= *numbers.end() {
                let before = self.found;
                self.read("seq = ?1 AND ?2 > 0", next, next)?;
                next = next.next();
                if self.found > before {
                    break;
                }
            }
        }
        self.prove(0)
    }

    /// Takes over what one way leads to. Returns the number from which on it leads no further, or astray: only that of
    /// a row that matches its checksum is believed, and only if none is left out on the way to it.
    fn read(&mut self, which: &str, from: Seq, to: Seq) -> rusqlite::Result<Seq> {
        let sql = format!(read::select_events!("{}"), which);
        let mut next = from;
        let looked = (|| {
            let mut statement = self.old.prepare_cached(&sql)?;
            let mut rows = statement.query([from.0 as i64, to.0 as i64])?;
            while let Some(row) = rows.next()? {
                let seq = Seq(row.get::<_, i64>(0)? as u64);
                let stored = read::stored(row, self.unchecked_through);
                if stored.is_ok() {
                    if seq < next || self.is_any_between(next, seq)? {
                        return Ok(());
                    }
                    next = seq.next();
                }
                match stored {
                    Ok(event) if seq <= self.unchecked_through => {
                        let is_json = serde_json::from_str::<&RawValue>(event.payload);
                        match is_json.is_ok_and(|json| json.get().starts_with('{')) {
                            true => self.unproven.push_back(Unproven::of(&event)),
                            false => self.name(seq),
                        }
                        self.prove(WITNESSES)?;
                        self.found += 1;
                    }
                    Ok(event) => {
                        self.prove(0)?;
                        match event.time > self.last_time {
                            true => self.take(seq, event.time, &event.columns(), event.legacy_id.map(str::as_bytes))?,
                            false => self.name(seq),
                        }
                        self.found += 1;
                    }
                    Err(error) if is_damage(&error) => self.name(seq),
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })();
        or_lost(looked, ())?;
        Ok(next)
    }

    /// Whether a number of those from `next` up to `seq` leads to a row, each by a way of its own: a leaf in the place of
    /// another leads past those between them. Deleted ones cost a look each, except at the beginning.
    fn is_any_between(&self, next: Seq, seq: Seq) -> rusqlite::Result<bool> {
        if self.found == 0 && seq > next {
            // The oldest are deleted mostly, which may be very many: a look at the neighbour must do.
            return or_lost(read::is_any_of(self.old, seq.prev()..=seq.prev()), true);
        }
        for seq in (next.0..seq.0).map(Seq) {
            if or_lost(read::is_any_of(self.old, seq..=seq), true)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes over an event.
    fn take(
        &mut self,
        seq: Seq,
        time: Timestamp,
        columns: &Columns<'_>,
        legacy_id: Option<&[u8]>,
    ) -> rusqlite::Result<()> {
        self.rebuild.event(seq, time, columns, legacy_id)?;
        self.has_legacy_ids |= legacy_id.is_some();
        self.first = self.first.or(Some(seq));
        (self.last_seq, self.last_time) = (seq, time);
        self.repaired.events += 1;
        Ok(())
    }

    /// Decides on the events without a checksum, the first ones first, until `left` of them wait. Times increase with
    /// the numbers, so an event that is later than most of those behind it has a damaged time. Believed, it would cost
    /// all of them.
    ///
    /// Behind the last event there is none. The statistics bear witness there, as if one event more came behind it, just
    /// later than they say. They have no checksum either: where they are damaged, one event is lost at most.
    fn prove(&mut self, left: usize) -> rusqlite::Result<()> {
        while self.unproven.len() > left
            && let Some(Unproven { seq, time, texts: [event_type, source, session_id, user_id, payload, legacy_id] }) =
                self.unproven.pop_front()
        {
            let end = self.last_seen.map(|Timestamp(last_seen)| Timestamp(last_seen.saturating_add(1)));
            let behind =
                self.unproven.iter().map(|later| later.time).chain(end).filter(|later| *later > self.last_time);
            let (earlier, later): (Vec<_>, Vec<_>) = behind.partition(|later| *later <= time);
            let is_in_order = time > self.last_time && time < self.unproven_end;
            match is_in_order && earlier.len() <= later.len() {
                true => {
                    let columns = Columns {
                        event_type: event_type.as_deref().unwrap_or_default(),
                        source: source.as_deref().unwrap_or_default(),
                        session_id: session_id.as_deref(),
                        user_id: user_id.as_deref(),
                        payload: payload.as_deref().unwrap_or_default(),
                    };
                    self.take(seq, time, &columns, legacy_id.as_deref())?;
                }
                false => self.name(seq),
            }
        }
        Ok(())
    }

    fn name(&mut self, seq: Seq) {
        let id = seq.id().to_string();
        // More than one way may lead to it.
        if self.repaired.damaged.len() < NAMED_MAX && !self.repaired.damaged.contains(&id) {
            self.repaired.damaged.push(id);
        }
    }
}

/// Events with whose times that of the one before them is compared: more than are likely to be damaged side by side.
const WITNESSES: usize = 16;

/// An event without a checksum.
struct Unproven {
    seq: Seq,
    time: Timestamp,
    texts: [Option<Box<[u8]>>; 6],
}

impl Unproven {
    fn of(event: &StoredEvent<'_>) -> Self {
        let StoredEvent { seq, time, event_type, source, session_id, user_id, payload, legacy_id } = *event;
        let texts = [Some(event_type), Some(source), session_id, user_id, Some(payload), legacy_id];
        Self { seq, time, texts: texts.map(|text| text.map(|text| text.as_bytes().into())) }
    }
}

/// The time of the first whole event behind those without checksums, or the end of time.
fn first_checked_time(old: &Connection, unchecked_through: Seq) -> rusqlite::Result<Timestamp> {
    let looked = (|| {
        let mut statement = old.prepare(read::select_events!("seq > ?1 ORDER BY seq"))?;
        let mut rows = statement.query([unchecked_through.0 as i64])?;
        while let Some(row) = rows.next()? {
            if let Ok(event) = read::stored(row, unchecked_through) {
                return Ok(Some(event.time));
            }
        }
        Ok(None)
    })();
    Ok(or_lost(looked, None)?.unwrap_or(Timestamp(i64::MAX)))
}

/// Saves the keys that are whole and have events left: some if the key has a digest, which recognises a repeat, else
/// all of them, by which a repeat has to be recognised.
fn save_keys(old: &Connection, new: &Connection) -> rusqlite::Result<u64> {
    const LEFT: &str = "SELECT count(*) FROM events WHERE seq >= ?1 AND seq < ?1 + ?2";
    let mut left = new.prepare(LEFT)?;
    let mut saved = 0;
    let looked = (|| {
        let mut statement = old.prepare(select_keys!("ORDER BY seq"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let kept = match keys::Kept::read(row) {
                Err(error) if is_damage(&error) => continue,
                kept => kept?,
            };
            let left: i64 = left.query_row([kept.first.0 as i64, kept.count as i64], |row| row.get(0))?;
            if left > 0 && (kept.digest.is_some() || left as u64 == kept.count) {
                match kept.store(new) {
                    // It is there twice.
                    Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => continue,
                    stored => stored?,
                }
                saved += 1;
            }
        }
        Ok(())
    })();
    or_lost(looked, ())?;
    Ok(saved)
}

fn save_subscriptions(old: &Connection, new: &Connection) -> rusqlite::Result<u64> {
    let rows = or_lost(Kept::rows(old), Vec::new())?;
    let whole: Vec<_> = rows.into_iter().flatten().collect();
    whole.iter().try_for_each(|kept| kept.store(new))?;
    Ok(whole.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::event::Event;
    use crate::store::flip::{beside, copy_page, file_with, leaves, renumber};
    use crate::store::{Receipt, Store};
    use crate::wire::Batch;

    #[test]
    fn the_statistics_bear_witness_to_the_time_of_a_last_event_without_checksum() {
        const LAST: u64 = 20;
        // What happened to the file, and what a repair leaves out: the statistics are wrong only where they stand alone.
        let cases: [(&str, &[u64]); 6] = [
            ("", &[]),
            ("UPDATE events SET time_us = time_us + (1 << 52) WHERE seq = 20", &[LAST]),
            ("UPDATE events SET time_us = time_us + 1 WHERE seq = 20", &[LAST]),
            ("UPDATE events SET time_us = time_us + (1 << 52) WHERE seq IN (3, 20)", &[3, LAST]),
            ("UPDATE event_stats SET last_seen = '1999-01-01T00:00:00.000000Z'", &[]),
            ("UPDATE event_stats SET last_seen = 'damaged'", &[]),
        ];
        for (damage, expected) in cases {
            let folder = tempfile::tempdir().expect("a folder");
            let config = Config::of_test(folder.path().join("events.db"));
            let (store, mut parts) = Store::open_parts(&config).expect("open");
            let event_type = config.event_types.get("timer_tick").expect("built in");
            let (source, session_id, user_id, payload, idempotency_key) = ("s", None, None, "{}", None);
            for _ in 0..LAST {
                let mut batch = Batch::default();
                let event = Event { event_type, source, session_id, user_id, payload, idempotency_key };
                batch.push(&event, &config.event_types);
                store.try_append(batch, Receipt::new().0).expect("room");
            }
            while parts.write() {}
            store.close();
            drop(parts.finish());
            // As in a file from before format 3, to which nothing was added.
            let file = schema::open_writer(&config.database_path).expect("whole");
            meta::set(&file, meta::UNCHECKED_THROUGH, LAST as i64).expect("written");
            file.execute_batch(&format!("UPDATE events SET checksum = NULL; {damage}")).expect("written");
            drop(file);
            let repaired = repair(&config.database_path, &folder.path().join("new.db")).expect("repaired");
            let expected: Vec<_> = expected.iter().map(|seq| Seq(*seq).id().to_string()).collect();
            assert_eq!(repaired.damaged, expected, "{damage}");
            assert_eq!(repaired.events, LAST - expected.len() as u64, "{damage}");
        }
    }

    #[test]
    fn a_damaged_number_costs_its_event_alone_and_is_named() {
        for (seq, to) in [(1, 100), (60, 90), (200, 200 + 8_192), (200, 72), (200, 240), (300, 300 + 8_192), (300, 172)]
        {
            let (folder, config) = file_with(300);
            renumber(&config.database_path, seq, to);
            let repaired = repair(&config.database_path, &beside(&folder)).expect("repaired");
            assert_eq!((repaired.events, repaired.damaged.len()), (299, 1), "{seq} is {to}: {repaired:?}");
            let new = schema::open_reader(&beside(&folder)).expect("whole");
            assert_eq!(meta::get(&new, meta::LAST_SEQ), Ok(300), "{seq} is {to}");
        }
    }

    #[test]
    fn a_leaf_in_the_place_of_another_costs_the_events_of_that_one_alone() {
        let (folder, config) = file_with(600);
        let (whole, copy) = (std::fs::read(&config.database_path).expect("a file"), folder.path().join("copy.db"));
        let leaves = leaves(&config.database_path, "events");
        assert!(leaves.len() > 5);
        let chosen = [0, 1, 2, leaves.len() / 2, leaves.len() - 2, leaves.len() - 1].map(|nth| leaves[nth]);
        for (from, to) in chosen.into_iter().flat_map(|from| chosen.map(|to| (from, to))) {
            std::fs::write(&copy, &whole).expect("written");
            copy_page(&copy, from, to);
            let _ = std::fs::remove_file(beside(&folder));
            let repaired = repair(&copy, &beside(&folder)).expect("repaired");
            let in_leaf = u64::from(u16::from_be_bytes([whole[to + 3], whole[to + 4]]));
            let lost = if from == to { 0 } else { in_leaf };
            assert_eq!(repaired.events, 600 - lost, "the leaf at {from} in the place of that at {to}: {repaired:?}");
        }
    }

    #[test]
    fn a_key_that_is_there_twice_does_not_stop_a_repair() {
        let (folder, config) = file_with(6_000);
        let leaves = leaves(&config.database_path, "idempotency_keys");
        copy_page(&config.database_path, leaves[1], leaves[2]);
        let repaired = repair(&config.database_path, &beside(&folder)).expect("repaired");
        assert_eq!(repaired.events, 6_000);
        assert!(repaired.keys > 0 && repaired.keys < 60, "{repaired:?}");
    }
}
