//! Which life of the database this is. Ids count up within one life; a copy put in its place, or a database that
//! lost its end, gives ids out again. Then the epoch is another one, and who resumes with an old id is told.
//!
//! What the database cannot know of itself stands in the file beside it that keeps other servers out.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::schema::meta;
use super::wal::Severed;
use crate::config::Durability;
use crate::event::Seq;
use crate::wire::subscription::Epoch;

/// The file beside the database, and what it says at the moment.
#[derive(Debug)]
pub(super) struct Witness {
    file: File,
    testimony: Testimony,
    /// Whether the disk holds the word that not everything is synced.
    admits_unsynced: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Testimony {
    epoch: u32,
    /// The database had come at least so far.
    last_seq: u64,
    /// Which start of the system that was.
    boot: String,
    /// Whether every acknowledged event was synced.
    is_synced: bool,
    /// Whether the server ended in order, everything synced.
    has_ended: bool,
}

impl Witness {
    /// Looks whether the database is the one that was left behind, and gives it another epoch if it is not: it
    /// is a file of its own, it ends earlier than it did, or the system went down while not everything was synced.
    ///
    /// # Errors
    /// What SQLite reports. What the file beside it cannot tell stands in nobody's way.
    pub fn hear(
        file: File,
        connection: &Connection,
        path: &Path,
        last: Seq,
        durability: Durability,
    ) -> rusqlite::Result<Self> {
        let boot = this_boot();
        let inode = std::fs::metadata(path).map_or(0, |metadata| metadata.ino()) as i64;
        let (mut epoch, known_inode) =
            (meta::get(connection, meta::EPOCH)? as u32, meta::get(connection, meta::INODE)?);
        let is_other = testimony(&file).is_some_and(|before| {
            let lost_its_end = before.last_seq > last.0;
            let went_down = !before.is_synced && !before.has_ended && before.boot != boot;
            // A database that forgot its last epoch has lost what was stored in it, too.
            before.epoch != epoch || lost_its_end || went_down
        });
        if epoch == 0 || known_inode != inode || is_other {
            let former = epoch;
            while epoch == former || epoch == 0 {
                epoch = RandomState::new().hash_one(former) as u32;
            }
            if former != 0 {
                tracing::info!(epoch = %Epoch(epoch), former = %Epoch(former), "the database begins a new epoch");
            }
            meta::set(connection, meta::EPOCH, epoch.into())?;
            meta::set(connection, meta::INODE, inode)?;
        }
        let is_synced = durability == Durability::Full;
        let testimony = Testimony { epoch, last_seq: last.0, boot, is_synced, has_ended: false };
        let mut witness = Self { file, testimony, admits_unsynced: false };
        let is_kept = witness.tell() && witness.file.sync_data().is_ok();
        witness.admits_unsynced = is_kept && !is_synced;
        Ok(witness)
    }

    pub fn epoch(&self) -> Epoch {
        Epoch(self.testimony.epoch)
    }

    /// The database has come so far. Costs one write of some hundred bytes, so it is for now and then.
    pub fn note(&mut self, last: Seq, has_ended: bool) {
        if self.testimony.last_seq != last.0 || self.testimony.has_ended != has_ended {
            (self.testimony.last_seq, self.testimony.has_ended) = (last.0, has_ended);
            self.tell();
        }
    }

    /// From now on something is acknowledged before it is synced. Returns whether the disk holds that word: without
    /// it nobody would know, after a power cut, that something may be lost.
    pub fn is_not_synced(&mut self) -> bool {
        self.testimony.is_synced = false;
        self.admits_unsynced = self.admits_unsynced || self.tell();
        self.admits_unsynced
    }

    /// Returns whether it is written, and synced where that matters.
    fn tell(&mut self) -> bool {
        let word = serde_json::to_string(&self.testimony).expect("numbers and names");
        // Always as long, and less than a sector, so that no power cut leaves half a word; half of one that a killed
        // process leaves is none.
        let text = format!("{word:<TESTIMONY_CHARS$} {:08x}\n", crc32c::crc32c(word.as_bytes()));
        // A disk that is full keeps the former word, which is as true.
        let told = self.file.write_all_at(text.as_bytes(), 0).and_then(|()| self.file.set_len(text.len() as u64));
        // Where not every commit is synced, this must not be younger than the database either.
        let kept = told.and_then(|()| if self.testimony.is_synced { Ok(()) } else { self.file.sync_data() });
        if let Err(error) = &kept {
            tracing::debug!(%error, "note how far the database has come");
        }
        kept.is_ok()
    }
}

/// Whether a broken frame in the middle of the write-ahead log cannot have come from a power cut. That tears what
/// was not synced: nothing, if the system has not gone down, and only the last commit, if each was synced.
pub(super) fn rules_out_power_cut(file: &File, severed: &Severed) -> bool {
    testimony(file).is_some_and(|before| before.boot == this_boot() || (before.is_synced && severed.commits > 1))
}

/// How far the database had come at least, as the file beside it knows.
pub(super) fn last_noted(file: &File) -> Seq {
    testimony(file).map_or(Seq::ZERO, |before| Seq(before.last_seq))
}

fn this_boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

const TESTIMONY_CHARS: usize = 246;

fn testimony(file: &File) -> Option<Testimony> {
    let mut text = vec![0; 1_024];
    let len = file.read_at(&mut text, 0).ok()?;
    let (word, sum) = std::str::from_utf8(&text[..len]).ok()?.trim_end().rsplit_once(' ')?;
    let is_whole = u32::from_str_radix(sum, 16) == Ok(crc32c::crc32c(word.trim_end().as_bytes()));
    is_whole.then(|| serde_json::from_str(word).ok()).flatten()
}
