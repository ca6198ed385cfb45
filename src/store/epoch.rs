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
use crate::record::Epoch;

/// The file beside the database, and what it says at the moment: a word that is written now and then, and behind it a
/// mark that is written with every commit of events.
#[derive(Debug)]
pub(crate) struct Witness {
    file: File,
    testimony: Testimony,
    /// Whether the disk holds the word that not everything is synced.
    has_noted_unsynced: bool,
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
    /// Whether clients were told of events that may be in the write-ahead log only: without a log they are lost.
    #[serde(default)]
    needs_log: bool,
}

impl Witness {
    /// Looks whether the database is the one that was left behind, and gives it another epoch if it is not: it
    /// is a file of its own, it ends earlier than it did, or the system went down while not everything was synced or
    /// before an older file was put in its place. `has_log` says whether there was a write-ahead log at start.
    ///
    /// # Errors
    /// What SQLite reports. What the file beside it cannot tell stands in nobody's way.
    pub fn hear(
        file: File,
        connection: &Connection,
        path: &Path,
        last: Seq,
        has_log: bool,
        durability: Durability,
    ) -> rusqlite::Result<Self> {
        let boot = this_boot();
        let inode = std::fs::metadata(path).map_or(0, |metadata| metadata.ino()) as i64;
        let (mut epoch, known_inode) =
            (meta::get(connection, meta::EPOCH)? as u32, meta::get(connection, meta::INODE)?);
        let is_other = testimony(&file).is_some_and(|before| {
            let lost_its_end = before.last_seq > last.0;
            // When the system goes down the latest marks may be lost, which were not synced, but never a whole log.
            // Where it is missing, a copy of one file, which needs no log, was put in the place of the database.
            let lost_its_log = before.needs_log && !has_log;
            let went_down = !before.has_ended && before.boot != boot && (!before.is_synced || lost_its_log);
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
        let testimony = Testimony { epoch, last_seq: last.0, boot, is_synced, has_ended: false, needs_log: has_log };
        let mut witness = Self { file, testimony, has_noted_unsynced: false };
        witness.has_noted_unsynced = witness.tell(true) && !is_synced;
        Ok(witness)
    }

    pub fn epoch(&self) -> Epoch {
        Epoch(self.testimony.epoch)
    }

    /// Notes the number of the last commit before a client is told of it, so that an older file in the place of this
    /// one is noticed. This writes 12 bytes into the system's cache, which survive the process. The first note after
    /// the log was emptied is synced, as commits are, so that a copy without a log is noticed after a power cut, too.
    pub fn has_come_to(&mut self, last: Seq) {
        self.testimony.last_seq = last.0;
        if self.testimony.needs_log {
            self.write(WORD_BYTES, &mark(last));
        } else {
            self.testimony.needs_log = true;
            self.tell(self.testimony.is_synced);
        }
    }

    /// From now on the log may be empty: everything is in the database, or about to be.
    pub fn may_lose_log(&mut self) {
        if std::mem::take(&mut self.testimony.needs_log) {
            // An empty log beside the former word would look like one that was taken away.
            self.tell(self.testimony.is_synced);
        }
    }

    /// The server has ended in order.
    pub fn has_ended(&mut self) {
        self.testimony.has_ended = true;
        // Its former word, that not everything is synced, would begin another epoch.
        self.tell(!self.testimony.is_synced);
    }

    /// Notes on the disk that a client is about to be told of an event that is not synced. Without this the start after
    /// a power cut would not know that acknowledged events may be lost.
    pub fn note_unsynced(&mut self) {
        self.testimony.is_synced = false;
        self.has_noted_unsynced = self.has_noted_unsynced || self.tell(true);
    }

    /// Whether a commit may be left unsynced: once the disk holds the word that not everything is synced. Before that a
    /// commit which a power cut tore would look like damage, whatever is in it.
    pub fn may_leave_unsynced(&self) -> bool {
        self.has_noted_unsynced
    }

    /// Copies what stands in one such file into another, as it is read after the next start of the system.
    #[cfg(test)]
    pub fn copy_to_another_boot(from: &Path, to: &Path) {
        let mut testimony = testimony(&File::open(from).expect("a file")).expect("a word");
        testimony.boot = "another".to_owned();
        let file = File::create(to).expect("a file");
        assert!(Self { file, testimony, has_noted_unsynced: false }.tell(false));
    }

    /// Writes the word and the mark. Returns whether that was done, with a sync if wanted.
    fn tell(&self, sync: bool) -> bool {
        let word = serde_json::to_string(&self.testimony).expect("numbers and names");
        // Always as long, and with the mark less than a sector, so that no power cut leaves half a word; half of one
        // that a killed process leaves is none.
        let text = format!("{word:<TESTIMONY_CHARS$} {:08x}\n", crc32c::crc32c(word.as_bytes()));
        let told = [text.as_bytes(), &mark(Seq(self.testimony.last_seq))].concat();
        self.write(0, &told) && (!sync || self.file.sync_data().is_ok())
    }

    fn write(&self, at: usize, bytes: &[u8]) -> bool {
        let written = self.file.write_all_at(bytes, at as u64);
        if let Err(error) = &written {
            // A disk that is full keeps the former word, which is as true.
            tracing::debug!(%error, "note how far the database has come");
        }
        written.is_ok()
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

/// The word, its checksum, and what is between them and at their end.
const WORD_BYTES: usize = TESTIMONY_CHARS + " 00000000\n".len();
const TESTIMONY_CHARS: usize = 246;

/// The number of the last event, and its checksum.
fn mark(last: Seq) -> [u8; 12] {
    let mut mark = [0; 12];
    mark[..8].copy_from_slice(&last.0.to_le_bytes());
    let sum = crc32c::crc32c(&mark[..8]);
    mark[8..].copy_from_slice(&sum.to_le_bytes());
    mark
}

fn testimony(file: &File) -> Option<Testimony> {
    let mut text = [0; WORD_BYTES];
    file.read_exact_at(&mut text, 0).ok()?;
    let (word, sum) = std::str::from_utf8(&text).ok()?.trim_end().rsplit_once(' ')?;
    let is_whole = u32::from_str_radix(sum, 16) == Ok(crc32c::crc32c(word.trim_end().as_bytes()));
    let mut testimony: Testimony = is_whole.then(|| serde_json::from_str(word).ok()).flatten()?;
    let mut marked = [0; 12];
    if file.read_exact_at(&mut marked, WORD_BYTES as u64).is_ok() {
        let last = u64::from_le_bytes(marked[..8].try_into().expect("eight bytes"));
        // Files of older versions have the word alone.
        if marked == mark(Seq(last)) {
            testimony.last_seq = testimony.last_seq.max(last);
        }
    }
    Some(testimony)
}
