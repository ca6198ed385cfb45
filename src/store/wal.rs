//! Reading a write-ahead log before SQLite does. SQLite reads a log up to the first frame whose checksum is wrong, and
//! drops the rest silently. That is right for the torn end that a power cut leaves. But with a damaged byte in the
//! middle, every commit after it would be lost.
//!
//! The format is described in "The Write-Ahead Log" of <https://www.sqlite.org/fileformat2.html>.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::files::has_content;

/// A log with undamaged commits after its first broken frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Severed {
    /// The broken frame, counted from 1; 0 is the log's own header.
    pub frame: u64,
    /// Where it begins.
    len: u64,
    /// Commits after the broken frame that can be read, and that SQLite would drop.
    pub commits: u64,
}

impl Severed {
    /// Cuts the log off at the broken frame, so that nothing follows what is written next.
    ///
    /// # Errors
    /// When the log cannot be changed.
    pub fn drop_end(self, database: &Path) -> std::io::Result<()> {
        let log = OpenOptions::new().write(true).open(beside(database))?;
        log.set_len(self.len)?;
        log.sync_all()
    }
}

const HEADER_LEN: usize = 32;
pub const FRAME_HEADER_LEN: usize = 24;
/// The last bit says in which byte order checksums are computed.
const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;

/// The log of a database.
fn beside(database: &Path) -> PathBuf {
    super::files::beside(database, "-wal")
}

/// Whether a database has a log with something in it.
pub fn is_there(database: &Path) -> bool {
    has_content(&beside(database))
}

/// Syncs the log of a database.
///
/// # Errors
/// When it cannot be opened or synced.
pub fn sync(database: &Path) -> std::io::Result<()> {
    File::open(beside(database))?.sync_data()
}

/// Looks for undamaged commits after a broken frame that have something the database does not have. (A log that has
/// started over still has old frames after its new ones. Their pages were moved into the database.) Returns `None` if
/// there are none, or no log.
///
/// # Errors
/// When a file cannot be read.
pub fn examine(database: &Path) -> std::io::Result<Option<Severed>> {
    let file = match File::open(beside(database)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut log = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; HEADER_LEN];
    if !fill(&mut log, &mut header)? {
        return Ok(None);
    }
    let is_big_endian = word(&header, 0) & 1 == 1;
    let sum = checksum([0, 0], &header[..24], is_big_endian);
    let is_header_whole = word(&header, 0) & !1 == MAGIC && sum == pair(&header, 24);
    let page_len = page_len(&header);

    let (mut salt, mut before) = (is_header_whole.then(|| pair(&header, 16)), pair(&header, 24));
    let mut broken = (!is_header_whole).then_some(Severed { frame: 0, len: 0, commits: 0 });
    let mut frame = vec![0; FRAME_HEADER_LEN + page_len];
    let (mut number, mut at) = (0, HEADER_LEN as u64);
    // The last version of each page after the broken frame, by its place in the log, and the pages of a commit that is
    // not complete yet.
    let (mut pages, mut uncommitted) = (HashMap::new(), Vec::new());
    while fill(&mut log, &mut frame)? {
        number += 1;
        // Frames of another round of the log are older.
        let is_of_this_round = *salt.get_or_insert_with(|| pair(&frame, 8)) == pair(&frame, 8);
        let sum = checksum(checksum(before, &frame[..8], is_big_endian), &frame[FRAME_HEADER_LEN..], is_big_endian);
        // The checksum of the next frame continues the one that this frame states, right or wrong.
        before = pair(&frame, 16);
        let is_whole = is_of_this_round && sum == before;
        match &mut broken {
            None if !is_whole => broken = Some(Severed { frame: number, len: at, commits: 0 }),
            Some(severed) if is_whole => {
                uncommitted.push((word(&frame, 0), at + FRAME_HEADER_LEN as u64));
                if word(&frame, 4) != 0 {
                    severed.commits += 1;
                    pages.extend(uncommitted.drain(..));
                }
            }
            _ => {}
        }
        at += frame.len() as u64;
    }
    let Some(severed) = broken.filter(|severed| severed.commits > 0) else { return Ok(None) };
    let has_news = has_other(&log.into_inner(), &File::open(database)?, &pages, page_len)?;
    Ok(has_news.then_some(severed))
}

/// Whether a database has another version of one of these pages. `pages` says where each lies in the log.
fn has_other(log: &File, database: &File, pages: &HashMap<u32, u64>, page_len: usize) -> std::io::Result<bool> {
    let (mut logged, mut moved) = (vec![0; page_len], vec![0; page_len]);
    for (number, at_in_log) in pages {
        log.read_exact_at(&mut logged, *at_in_log)?;
        let at = u64::from(number.saturating_sub(1)) * page_len as u64;
        match database.read_exact_at(&mut moved, at) {
            Ok(()) if moved == logged => {}
            Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(error),
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// Writes the content of a log again, and syncs it, before SQLite reads it. If the server before ended with a failed
/// sync, the content may be in the system's memory only, and every later sync takes it for written: events that are
/// stored later would be lost with it. No other program may write to the log meanwhile.
///
/// # Errors
/// When it cannot be read, written or synced.
pub fn settle(database: &Path) -> std::io::Result<()> {
    let log = match OpenOptions::new().read(true).write(true).open(beside(database)) {
        Ok(log) => log,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let (mut piece, mut at) = (vec![0; 1 << 20], 0);
    loop {
        match log.read_at(&mut piece, at)? {
            0 => break,
            len => {
                log.write_all_at(&piece[..len], at)?;
                at += len as u64;
            }
        }
    }
    if at > 0 { log.sync_data() } else { Ok(()) }
}

/// Copies a log and corrects its checksums, so that SQLite takes every frame of this round, damaged ones too. For a
/// repair, which compares the rows in them with their own checksums.
///
/// # Errors
/// When a file cannot be read or written.
pub fn mend(path: &Path, into: &Path) -> std::io::Result<()> {
    let mut log = std::fs::read(path)?;
    if log.len() < HEADER_LEN {
        return std::fs::write(into, log);
    }
    let page_len = page_len(&log);
    let (header, frames) = log.split_at_mut(HEADER_LEN);
    let is_big_endian = word(header, 0) & 1 == 1;
    if pair(header, 24) != checksum([0, 0], &header[..24], is_big_endian) {
        // As SQLite writes it. The salts are those of the first frame.
        header[..4].copy_from_slice(&(MAGIC | u32::from(is_big_endian)).to_be_bytes());
        header[4..8].copy_from_slice(&VERSION.to_be_bytes());
        header[8..12].copy_from_slice(&(page_len as u32).to_be_bytes());
        header[16..24].copy_from_slice(frames.get(8..16).unwrap_or(&[0; 8]));
    }
    let mut sum = checksum([0, 0], &header[..24], is_big_endian);
    put(&mut header[24..], sum);
    let is_of_this_round = |frame: &[u8]| frame[8..16] == header[16..24];
    let frame_len = FRAME_HEADER_LEN + page_len;
    let in_use = frames.chunks_exact(frame_len).rposition(is_of_this_round).map_or(0, |last| last + 1);
    for frame in frames.chunks_exact_mut(frame_len).take(in_use) {
        frame[8..16].copy_from_slice(&header[16..24]);
        sum = checksum(checksum(sum, &frame[..8], is_big_endian), &frame[FRAME_HEADER_LEN..], is_big_endian);
        put(&mut frame[16..24], sum);
    }
    std::fs::write(into, log)
}

/// The length of a page as the header states it. If that is impossible, the length in our files.
fn page_len(header: &[u8]) -> usize {
    let stated = word(header, 8) as usize;
    let is_possible = stated.is_power_of_two() && (512..=65_536).contains(&stated);
    if is_possible { stated } else { super::schema::PAGE_BYTES as usize }
}

fn put(bytes: &mut [u8], [a, b]: [u32; 2]) {
    bytes[..4].copy_from_slice(&a.to_be_bytes());
    bytes[4..8].copy_from_slice(&b.to_be_bytes());
}

/// Reads all of `bytes`, unless the log ends before.
fn fill(log: &mut impl Read, bytes: &mut [u8]) -> std::io::Result<bool> {
    match log.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn pair(bytes: &[u8], at: usize) -> [u32; 2] {
    [word(bytes, at), word(bytes, at + 4)]
}

fn checksum([mut a, mut b]: [u32; 2], bytes: &[u8], is_big_endian: bool) -> [u32; 2] {
    let read = |bytes: &[u8]| {
        let bytes = bytes.try_into().expect("four bytes");
        if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    for words in bytes.chunks_exact(8) {
        a = a.wrapping_add(read(&words[..4])).wrapping_add(b);
        b = b.wrapping_add(read(&words[4..])).wrapping_add(a);
    }
    [a, b]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    /// A database and its log of several commits, as they are while it is open.
    fn files(commits: u64) -> (Vec<u8>, Vec<u8>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("some.db");
        let database = Connection::open(&path).expect("open");
        database.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0").expect("settings");
        database.execute_batch("CREATE TABLE t (x)").expect("a commit");
        for _ in 1..commits {
            database.execute_batch("INSERT INTO t VALUES (randomblob(5000))").expect("a commit");
        }
        (std::fs::read(&path).expect("a file"), std::fs::read(beside(&path)).expect("its log"))
    }

    fn log(commits: u64) -> Vec<u8> {
        files(commits).1
    }

    /// How many rows SQLite finds with this log.
    fn rows(log: &[u8]) -> i64 {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("some.db");
        std::fs::write(&path, files(1).0).expect("written");
        std::fs::write(beside(&path), log).expect("written");
        mend(&beside(&path), &beside(&path)).expect("mended");
        let database = Connection::open(&path).expect("open");
        database.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap_or(0)
    }

    /// What is found of a log beside a database that has nothing of it.
    fn examined(log: &[u8]) -> Option<Severed> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("some.db");
        std::fs::write(&path, files(1).0).expect("written");
        std::fs::write(beside(&path), log).expect("written");
        let severed = examine(&path).expect("readable");
        if let Some(severed) = severed {
            severed.drop_end(&path).expect("writable");
            assert_eq!(examine(&path).expect("readable"), None, "nothing follows the end any more");
        }
        severed
    }

    #[test]
    fn a_log_with_a_torn_end_is_not_severed() {
        let log = log(5);
        let frame_len = FRAME_HEADER_LEN + 4_096;
        let frames = (log.len() - HEADER_LEN) / frame_len;
        assert!(frames >= 10);
        assert_eq!((examined(&log), rows(&log)), (None, 4));
        assert_eq!(examined(&[]), None);
        for len in [10, HEADER_LEN, HEADER_LEN + 7, HEADER_LEN + 3 * frame_len + 100] {
            assert_eq!(examined(&log[..len]), None, "{len}");
        }
        // The last frame is torn: nothing undamaged follows it.
        let mut torn = log.clone();
        *torn.last_mut().expect("not empty") ^= 1;
        assert_eq!(examined(&torn), None);
    }

    #[test]
    fn commits_after_a_flipped_bit_are_found() {
        let log = log(5);
        let last_frame = log.len() - FRAME_HEADER_LEN - 4_096;
        for at in (0..last_frame).step_by(997).chain([0, 5, 9, 13, 17, 21, 25, 29]) {
            // The sequence of checkpoints and the version are only under the header's checksum.
            let mut damaged = log.clone();
            damaged[at] ^= 0x10;
            let severed = examined(&damaged);
            assert!(severed.is_some_and(|severed| (1..=5).contains(&severed.commits)), "{at}: {severed:?}");
            // The text of a row is damaged, or a page of the tree; what follows is readable.
            let in_text = at > HEADER_LEN + 5 * (FRAME_HEADER_LEN + 4_096);
            assert!(!in_text || rows(&damaged) >= 1, "{at}");
        }
    }

    #[test]
    fn commits_that_were_moved_into_the_database_are_not_reported_as_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("some.db");
        let (database, mut log) = files(5);
        std::fs::write(&path, database).expect("written");
        std::fs::write(beside(&path), &log).expect("written");
        let connection = Connection::open(&path).expect("open");
        connection.execute_batch("SELECT * FROM t; PRAGMA wal_checkpoint(PASSIVE)").expect("moved");
        // The first frame of the next round, half of it on the disk.
        log[HEADER_LEN + 2_000..HEADER_LEN + 4_000].fill(7);
        std::fs::write(beside(&path), &log).expect("written");
        assert_eq!(examine(&path).expect("readable"), None);
    }

    #[test]
    fn frames_from_before_the_log_started_over_do_not_count() {
        let (mut newer, older) = (log(2), log(5));
        // As after a checkpoint: the log starts over in place, in front of the former round's end.
        newer.extend_from_slice(&older[newer.len()..]);
        assert_eq!(examined(&newer), None);
    }
}
