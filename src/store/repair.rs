//! Saving what can be read of a damaged file into a new one: the events that match their checksums, their keys, and the
//! durable subscriptions. The index and the statistics are built again. The old file is only read.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};

use super::damage::is_damage;
use super::files::{beside, lock, private_file};
use super::keys::{self, select_keys};
use super::open::is_another_programs;
use super::rebuild::Rebuild;
use super::salvage::{Salvage, or_lost};
use super::schema::{self, meta};
use super::subscription::StoredSubscription;
use super::{migrate, read, sidecar, wal};
use crate::config::Durability;
use crate::event::Seq;

/// What a repair saved, and what it could not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// Events in the new file.
    pub events: u64,
    /// Events that were found damaged, by id. If there are very many, only the first.
    pub damaged: Vec<String>,
    /// Numbers without an event, between the first and the last that were given: deleted or lost.
    pub missing: u64,
    /// How many of these were deleted, as far as the old file shows.
    pub deleted: u64,
    pub keys: u64,
    pub subscriptions: u64,
    /// The broken frame of the write-ahead log, if there was one. What follows it is saved, too.
    pub broken_frame: Option<u64>,
}

/// Why there is no new file.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error("{0} exists: a repair overwrites no file")]
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

/// Saves what can be read of `from` into `into`, a new file.
///
/// # Errors
/// When nothing can be read or the new file cannot be written. There is no new file then.
pub fn repair(from: &Path, into: &Path) -> Result<Repaired, RepairError> {
    if into.exists() {
        return Err(RepairError::Exists(into.to_owned()));
    }
    if !from.exists() {
        return Err(RepairError::File(from.to_owned(), std::io::ErrorKind::NotFound.into()));
    }
    // A copy with mended definitions or a mended log goes there, and is removed at the end.
    let mended = beside(into, ".damaged");
    let files_of_copy = ["", "-wal", "-shm"].map(|end| beside(&mended, end));
    if let Some(there) = files_of_copy.iter().find(|file| file.exists()) {
        return Err(RepairError::Exists(there.clone()));
    }
    // No file is made beside the database of another program.
    if is_another_programs(from).map_err(|error| RepairError::Unreadable(from.to_owned(), error))? {
        return Err(RepairError::Foreign(from.to_owned()));
    }
    // Without the lock, what a server writes to the file meanwhile would be lost.
    let file = |error| RepairError::File(from.to_owned(), error);
    let held = lock(from).map_err(file)?.ok_or_else(|| RepairError::InUse(from.to_owned()))?;
    let severed = wal::examine(from).map_err(file)?;
    private_file(into).map_err(|error| RepairError::File(into.to_owned(), error))?;
    let saved = open_old(from, severed.is_some(), &mended).and_then(|old| {
        let saved = save(&old, into, sidecar::last_noted(&held));
        saved.map_err(|error| match is_damage(&error) {
            true => RepairError::Unreadable(from.to_owned(), error),
            false => RepairError::Write(into.to_owned(), error),
        })
    });
    for file in files_of_copy {
        let _ = std::fs::remove_file(file);
    }
    if saved.is_err() {
        for file in ["", "-wal", "-shm", "-journal"].map(|end| beside(into, end)) {
            let _ = std::fs::remove_file(file);
        }
    }
    saved.map(|repaired| Repaired { broken_frame: severed.map(|severed| severed.frame), ..repaired })
}

/// The old file, or a copy in which the damage that keeps SQLite from reading it is mended.
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
        // SQLite would stop at the broken frame. After it, the checksums of the rows show what is damaged.
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
    // In one transaction with a rollback journal, each page of a new file is written once.
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
    // No number is given twice, not even that of a lost event.
    let unchecked_through = Seq(noted(meta::UNCHECKED_THROUGH)? as u64);
    let deleted_through = Seq(noted(meta::DELETED_THROUGH)? as u64);
    let last_seen = or_lost(read::last_seen(old), None)?;
    let newest = or_lost(read::newest(old, unchecked_through, last_seen), read::Newest::default())?;
    let last = last_noted.max(newest.last(Seq(noted(meta::LAST_SEQ)? as u64), last_noted));
    let mut salvage = Salvage::new(old, Rebuild::new(new)?, unchecked_through, last_seen)?;
    salvage.run(deleted_through.next()..=last)?;
    if salvage.events == 0 {
        // Either everything is deleted, or the page is missing that leads to all others. In the second case this fails.
        old.query_row("SELECT count(*) FROM events", [], |row| row.get::<_, i64>(0))?;
    }
    salvage.finish()?;
    let Salvage { first, last_seq, last_time, has_legacy_ids, events, damaged, .. } = salvage;
    let mut repaired = Repaired { events, damaged, ..Repaired::default() };
    meta::set(new, meta::LAST_SEQ, last.max(last_seq).0 as i64)?;
    meta::set(new, meta::LAST_TIME_US, last_time.0.max(noted(meta::LAST_TIME_US)?))?;
    // Events that are lost before the first saved one count as deleted, because no row and no hole shows them.
    let before_first = first.map_or(last, Seq::prev);
    meta::set(new, meta::DELETED_THROUGH, before_first.0 as i64)?;
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

/// Saves the undamaged idempotency keys by which a repeat can be recognised: a key with a digest if any of its events
/// is left, a key without one if all of them are.
fn save_keys(old: &Connection, new: &Connection) -> rusqlite::Result<u64> {
    const LEFT: &str = "SELECT count(*) FROM events WHERE seq >= ?1 AND seq < ?1 + ?2";
    let mut left = new.prepare(LEFT)?;
    let mut saved = 0;
    let looked = (|| {
        let mut statement = old.prepare(select_keys!("ORDER BY seq"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let key = match keys::StoredKey::read(row) {
                Err(error) if is_damage(&error) => continue,
                key => key?,
            };
            let left: i64 = left.query_row([key.first.0 as i64, key.count as i64], |row| row.get(0))?;
            if left > 0 && (key.digest.is_some() || left as u64 == key.count) {
                match key.store(new) {
                    // The key is stored twice.
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
    let rows = or_lost(StoredSubscription::rows(old), Vec::new())?;
    let whole: Vec<_> = rows.into_iter().flatten().collect();
    whole.iter().try_for_each(|subscription| subscription.store(new))?;
    Ok(whole.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixture::{close, copy_page, file_with, hand_in, leaves, new_file, open, path, renumber, tick};

    #[test]
    fn the_statistics_show_whether_the_time_of_a_last_event_without_checksum_is_damaged() {
        const LAST: u64 = 20;
        // What happened to the file, and the events that a repair leaves out.
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
            let (store, mut parts) = open(&folder);
            (0..LAST).for_each(|_| hand_in(&store, [tick()]));
            while parts.write() {}
            close(&store, parts);
            // As in a file from before format 3, to which nothing was added.
            let file = schema::open_writer(&path(&folder)).expect("undamaged");
            meta::set(&file, meta::UNCHECKED_THROUGH, LAST as i64).expect("written");
            file.execute_batch(&format!("UPDATE events SET checksum = NULL; {damage}")).expect("written");
            drop(file);
            let repaired = repair(&path(&folder), &new_file(&folder)).expect("repaired");
            let expected: Vec<_> = expected.iter().map(|seq| Seq(*seq).id().to_string()).collect();
            assert_eq!(repaired.damaged, expected, "{damage}");
            assert_eq!(repaired.events, LAST - expected.len() as u64, "{damage}");
        }
    }

    #[test]
    fn a_repair_removes_and_overwrites_no_file_that_was_there() {
        let (folder, config) = file_with(20);
        let new = new_file(&folder);
        let old = beside(&new, ".damaged");
        std::fs::rename(&config.database_path, &old).expect("renamed");
        let before = std::fs::read(&old).expect("a file");
        assert!(matches!(repair(&old, &new), Err(RepairError::Exists(there)) if there == old));
        assert_eq!(std::fs::read(&old).expect("still there"), before);
        assert_eq!(repair(&old, &new.with_extension("saved")).expect("repaired").events, 20);
    }

    #[test]
    fn a_repair_loses_only_the_event_whose_number_is_damaged_and_names_it() {
        for (seq, to) in [(1, 100), (60, 90), (200, 200 + 8_192), (200, 72), (200, 240), (300, 300 + 8_192), (300, 172)]
        {
            let (folder, config) = file_with(300);
            renumber(&config.database_path, seq, to);
            let repaired = repair(&config.database_path, &new_file(&folder)).expect("repaired");
            assert_eq!((repaired.events, repaired.damaged.len()), (299, 1), "{seq} is {to}: {repaired:?}");
            let new = schema::open_reader(&new_file(&folder)).expect("undamaged");
            assert_eq!(meta::get(&new, meta::LAST_SEQ), Ok(300), "{seq} is {to}");
        }
    }

    #[test]
    fn a_repair_loses_only_the_events_of_a_leaf_that_another_one_overwrote() {
        let (folder, config) = file_with(600);
        let (whole, copy) = (std::fs::read(&config.database_path).expect("a file"), folder.path().join("copy.db"));
        let leaves = leaves(&config.database_path, "events");
        assert!(leaves.len() > 5);
        let chosen = [0, 1, 2, leaves.len() / 2, leaves.len() - 2, leaves.len() - 1].map(|nth| leaves[nth]);
        for (from, to) in chosen.into_iter().flat_map(|from| chosen.map(|to| (from, to))) {
            std::fs::write(&copy, &whole).expect("written");
            copy_page(&copy, from, to);
            let _ = std::fs::remove_file(new_file(&folder));
            let repaired = repair(&copy, &new_file(&folder)).expect("repaired");
            let in_leaf = u64::from(u16::from_be_bytes([whole[to + 3], whole[to + 4]]));
            let lost = if from == to { 0 } else { in_leaf };
            assert_eq!(repaired.events, 600 - lost, "the leaf at {from} written over that at {to}: {repaired:?}");
        }
    }

    #[test]
    fn a_key_that_is_stored_twice_does_not_stop_a_repair() {
        let (folder, config) = file_with(6_000);
        let leaves = leaves(&config.database_path, "idempotency_keys");
        copy_page(&config.database_path, leaves[1], leaves[2]);
        let repaired = repair(&config.database_path, &new_file(&folder)).expect("repaired");
        assert_eq!(repaired.events, 6_000);
        assert!(repaired.keys > 0 && repaired.keys < 60, "{repaired:?}");
    }
}
