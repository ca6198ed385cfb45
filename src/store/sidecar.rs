//! The sidecar: the file beside the database that is locked, so that no other server opens it. It also says what the
//! database cannot know of itself: what is synced, and the last number that a client was told.
//!
//! From this a start decides the epoch. Within one epoch an id is given once. A copy that replaces the database, or a
//! database that lost its end, gives ids again: then a new epoch begins, and a client that resumes with an old id gets
//! a gap.

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

/// The sidecar, and what it says at the moment: a statement that is written now and then, and after it a mark with the
/// last number, which is written with every commit of events.
#[derive(Debug)]
pub(crate) struct Sidecar {
    file: File,
    statement: Statement,
    /// Whether the disk has a statement that not everything is synced.
    has_noted_unsynced: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Statement {
    epoch: u32,
    /// The database had at least this many events.
    last_seq: u64,
    /// The id of the system's start (`boot_id`) in which it was written; empty if unknown.
    boot: String,
    /// Whether every acknowledged event was synced.
    is_synced: bool,
    /// Whether the server ended in order, everything synced.
    has_ended: bool,
    /// Whether events that clients were told of may be in the write-ahead log only, so that they are lost without it.
    #[serde(default)]
    needs_log: bool,
}

impl Sidecar {
    /// Compares the database with what the sidecar says of it, and begins another epoch if it is not the database of
    /// the last run: if it is another file, if it ends earlier than it did, or if the system went down and events were
    /// unsynced or the write-ahead log is missing since. `has_log` says whether there was a write-ahead log at start.
    ///
    /// # Errors
    /// What SQLite reports. A sidecar that cannot be read is no error.
    pub fn compare(
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
        let is_other = statement(&file).is_some_and(|before| {
            let lost_its_end = before.last_seq > last.0;
            // When the system goes down, the last marks may be lost, because they are not synced, but never a whole
            // log. If the log is missing, the database was replaced by a copy, which is one file and needs no log.
            let lost_its_log = before.needs_log && !has_log;
            let went_down =
                !before.has_ended && !is_same_boot(&before.boot, &boot) && (!before.is_synced || lost_its_log);
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
        let statement = Statement { epoch, last_seq: last.0, boot, is_synced, has_ended: false, needs_log: has_log };
        let mut sidecar = Self { file, statement, has_noted_unsynced: false };
        sidecar.has_noted_unsynced = sidecar.write(true) && !is_synced;
        Ok(sidecar)
    }

    pub fn epoch(&self) -> Epoch {
        Epoch(self.statement.epoch)
    }

    /// Notes the last number of a commit before a client is told of it, so that a start notices when an older file has
    /// replaced this one. This writes 12 bytes into the system's cache, which survive the process. The first note after
    /// the write-ahead log was emptied is synced, as commits are, so that a copy without a log is noticed after a power
    /// cut, too.
    pub fn note_committed(&mut self, last: Seq) {
        self.statement.last_seq = last.0;
        if self.statement.needs_log {
            self.write_at(STATEMENT_BYTES, &mark(last));
        } else {
            self.statement.needs_log = true;
            self.write(self.statement.is_synced);
        }
    }

    /// Notes that the write-ahead log may be empty from now on: everything is in the database, or about to be.
    pub fn note_log_may_be_emptied(&mut self) {
        if std::mem::take(&mut self.statement.needs_log) {
            // An empty log beside the former statement would look like one that was taken away.
            self.write(self.statement.is_synced);
        }
    }

    /// Notes that the server has ended in order.
    pub fn note_ended(&mut self) {
        self.statement.has_ended = true;
        // If the former statement, that not everything is synced, stayed on the disk, the next start might begin
        // another epoch.
        self.write(!self.statement.is_synced);
    }

    /// Notes on the disk that an event is about to be acknowledged before it is synced. Otherwise a start after a power
    /// cut would not know that acknowledged events may be lost.
    pub fn note_unsynced(&mut self) {
        self.statement.is_synced = false;
        self.has_noted_unsynced = self.has_noted_unsynced || self.write(true);
    }

    /// Whether a commit may be left unsynced: whether the disk has a statement that not everything is synced. Without
    /// it, a commit that a power cut tore would look like damage.
    pub fn may_leave_unsynced(&self) -> bool {
        self.has_noted_unsynced
    }

    /// Copies a sidecar as it is read after the next start of the system.
    #[cfg(test)]
    pub fn copy_to_another_boot(from: &Path, to: &Path) {
        let mut statement = statement(&File::open(from).expect("a file")).expect("a statement");
        statement.boot = "another".to_owned();
        let file = File::create(to).expect("a file");
        assert!(Self { file, statement, has_noted_unsynced: false }.write(false));
    }

    /// Writes the statement and the mark. Returns whether that was done, with a sync if wanted.
    fn write(&self, sync: bool) -> bool {
        let json = serde_json::to_string(&self.statement).expect("numbers and names");
        // It always has this length, and with the mark it is shorter than a sector, so a power cut does not leave half
        // of it. A killed process may leave half of it, which then does not match its checksum.
        let text = format!("{json:<STATEMENT_CHARS$} {:08x}\n", crc32c::crc32c(json.as_bytes()));
        let all = [text.as_bytes(), &mark(Seq(self.statement.last_seq))].concat();
        self.write_at(0, &all) && (!sync || self.file.sync_data().is_ok())
    }

    fn write_at(&self, at: usize, bytes: &[u8]) -> bool {
        let written = self.file.write_all_at(bytes, at as u64);
        if let Err(error) = &written {
            // On a full disk the former statement stays, which is still true.
            tracing::debug!(%error, "write the sidecar");
        }
        written.is_ok()
    }
}

/// Whether a broken frame in the middle of the write-ahead log cannot be from a power cut. A power cut tears only what
/// was not synced. That is nothing if the system has not gone down, and only the last commit if each commit was synced.
pub(super) fn rules_out_power_cut(file: &File, severed: &Severed) -> bool {
    statement(file)
        .is_some_and(|before| is_same_boot(&before.boot, &this_boot()) || (before.is_synced && severed.commits > 1))
}

/// The last number that a client was told, as the sidecar has it.
pub(super) fn last_noted(file: &File) -> Seq {
    statement(file).map_or(Seq::ZERO, |before| Seq(before.last_seq))
}

/// Whether the system has certainly not gone down between two starts of the server.
fn is_same_boot(one: &str, other: &str) -> bool {
    !one.is_empty() && one == other
}

/// Empty where it cannot be read, such as in a sandbox without `/proc/sys`.
fn this_boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The length of the statement with a space, its checksum and a line feed.
const STATEMENT_BYTES: usize = STATEMENT_CHARS + " 00000000\n".len();
/// The length to which the statement is padded.
const STATEMENT_CHARS: usize = 246;

/// The number of the last event, and its checksum.
fn mark(last: Seq) -> [u8; 12] {
    let mut mark = [0; 12];
    mark[..8].copy_from_slice(&last.0.to_le_bytes());
    let sum = crc32c::crc32c(&mark[..8]);
    mark[8..].copy_from_slice(&sum.to_le_bytes());
    mark
}

fn statement(file: &File) -> Option<Statement> {
    let mut text = [0; STATEMENT_BYTES];
    file.read_exact_at(&mut text, 0).ok()?;
    let (json, sum) = std::str::from_utf8(&text).ok()?.trim_end().rsplit_once(' ')?;
    let is_whole = u32::from_str_radix(sum, 16) == Ok(crc32c::crc32c(json.trim_end().as_bytes()));
    let mut statement: Statement = is_whole.then(|| serde_json::from_str(json).ok()).flatten()?;
    let mut marked = [0; 12];
    if file.read_exact_at(&mut marked, STATEMENT_BYTES as u64).is_ok() {
        let last = u64::from_le_bytes(marked[..8].try_into().expect("eight bytes"));
        // Sidecars of older versions have the statement alone.
        if marked == mark(Seq(last)) {
            statement.last_seq = statement.last_seq.max(last);
        }
    }
    Some(statement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_that_cannot_be_read_is_taken_for_another_one() {
        assert!(is_same_boot(&this_boot(), &this_boot()));
        assert!(!is_same_boot("", ""));
        assert!(!is_same_boot("", &this_boot()));
    }
}
