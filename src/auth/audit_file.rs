//! The file of the audit, the key of its hashes beside it, and the thread that writes it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use ring::hmac;
use rustix::fs::OFlags;
use serde_json::{Map, Value};

use super::key::random;
use super::repeats::{PERIOD, Repeats};

type Line = Map<String, Value>;

/// Lines that wait for the file. 4,096 are some 2 MB; beyond it they are counted and left out.
const LINES_MAX: usize = 4096;

/// How often the thread looks for periods of repeats that are over.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the end of the server waits for a file that takes no lines.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the audit cannot be written, in one line.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("AUDIT_FILE {0} cannot be written: {1}")]
    File(String, io::Error),
    #[error("the key of AUDIT_FILE, {0}, cannot be used: {1}")]
    Key(String, io::Error),
    #[error("no thread for AUDIT_FILE: {0}")]
    Thread(io::Error),
}

/// Where lines go.
pub(super) struct Lines {
    messages: Sender<Message>,
    /// Lines that could not be written, and that no line has told of yet.
    lost: Arc<AtomicU64>,
}

enum Message {
    Line(Line),
    Reopen,
    Close(Sender<()>),
}

impl Lines {
    /// Never waits.
    pub fn write(&self, line: Line) {
        if self.messages.try_send(Message::Line(line)).is_err() {
            lose(&self.lost, &"the file takes no lines");
        }
    }

    pub fn reopen(&self) {
        if self.messages.try_send(Message::Reopen).is_err() {
            tracing::error!("AUDIT_FILE is not opened again, because it takes no lines");
        }
    }

    /// Waits until everything is written, or gives up.
    pub fn close(&self) {
        let (done, closed) = bounded(0);
        let sent = self.messages.send_timeout(Message::Close(done), CLOSE_TIMEOUT).is_ok();
        // The thread drops its end when it has written all.
        if !sent || closed.recv_timeout(CLOSE_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("AUDIT_FILE takes no lines: the last ones are lost");
        }
    }
}

fn lose(lost: &AtomicU64, why: &dyn std::fmt::Display) {
    if lost.fetch_add(1, Ordering::Relaxed) == 0 {
        tracing::error!(%why, "a line of AUDIT_FILE is lost; the next one that can be written says how many");
    }
}

/// The open file, before its thread starts.
pub(super) struct AuditFile {
    path: PathBuf,
    file: File,
    repeats: Arc<Repeats>,
    lost: Arc<AtomicU64>,
    /// A line was written in part.
    is_torn: bool,
    is_synced: bool,
}

impl AuditFile {
    /// The file, and the key for hashes. Both are made if they are missing, and then only their owner can read them.
    pub fn open(path: &Path, key_path: &Path, repeats: Arc<Repeats>) -> Result<(Self, hmac::Key), AuditError> {
        let file = open(path).map_err(|error| AuditError::File(path.display().to_string(), error))?;
        let key = key(key_path).map_err(|error| AuditError::Key(key_path.display().to_string(), error))?;
        let (path, lost) = (path.to_owned(), Arc::default());
        let file = Self { path, file, repeats, lost, is_torn: false, is_synced: true };
        Ok((file, hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    pub fn start(self) -> Result<Lines, AuditError> {
        let (messages, received) = bounded(LINES_MAX);
        let lines = Lines { messages, lost: self.lost.clone() };
        let thread = std::thread::Builder::new().name("audit".into()).spawn(move || self.run(&received));
        thread.map(|_| lines).map_err(AuditError::Thread)
    }

    fn run(mut self, messages: &Receiver<Message>) {
        let mut looked = Instant::now();
        loop {
            match messages.recv_timeout(LOOK_INTERVAL) {
                Ok(Message::Line(line)) => self.write(line),
                Ok(Message::Reopen) => self.reopen(),
                Ok(Message::Close(_done)) => {
                    self.end_repeats(Duration::ZERO);
                    return self.sync();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if looked.elapsed() >= LOOK_INTERVAL {
                self.end_repeats(PERIOD);
                looked = Instant::now();
            }
            if messages.is_empty() {
                self.sync();
            }
        }
    }

    fn end_repeats(&mut self, age: Duration) {
        for line in self.repeats.end(age) {
            self.write(line);
        }
    }

    fn write(&mut self, mut line: Line) {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            line.insert("lost".into(), lost.into());
        }
        // After a part of a line, a line of its own.
        let begin = if self.is_torn { "\n" } else { "" };
        let text = format!("{begin}{}\n", Value::Object(line));
        let bytes = self.file.metadata().map(|file| file.len());
        match self.file.write_all(text.as_bytes()) {
            Ok(()) => {
                self.is_torn = false;
                self.is_synced = false;
                self.lost.fetch_sub(lost, Ordering::Relaxed);
                if lost > 0 {
                    tracing::warn!(lost, "AUDIT_FILE takes lines again");
                }
            }
            Err(error) => {
                self.is_torn = bytes.and_then(|bytes| self.file.set_len(bytes)).is_err();
                lose(&self.lost, &error);
            }
        }
    }

    fn sync(&mut self) {
        if !self.is_synced {
            self.is_synced = true;
            match self.file.sync_data() {
                // Pipes and devices have nothing to sync.
                Err(error) if error.kind() != io::ErrorKind::InvalidInput => {
                    tracing::error!(%error, "AUDIT_FILE cannot be synced");
                }
                _ => {}
            }
        }
    }

    fn reopen(&mut self) {
        self.sync();
        match open(&self.path) {
            Ok(file) => (self.file, self.is_torn) = (file, false),
            Err(error) => tracing::error!(%error, "AUDIT_FILE cannot be opened again: the former file is written on"),
        }
    }
}

/// A pipe without a reader, or with one that hangs, is an error and not something to wait for.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits() as i32;
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}

/// 32 bytes in hexadecimal digits.
fn key(path: &Path) -> io::Result<[u8; 32]> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let key = random()?;
            let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(file, "{digits}")?;
            file.sync_all()?;
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut text = String::new();
            File::open(path)?.take(1024).read_to_string(&mut text)?;
            let text = text.trim_end();
            let is_key = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let byte = |n: usize| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).expect("hexadecimal digits");
            match is_key {
                true => Ok(std::array::from_fn(byte)),
                false => Err(io::Error::new(io::ErrorKind::InvalidData, "it has not 64 hexadecimal digits")),
            }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(n: u64) -> Line {
        Line::from_iter([("n".to_owned(), json!(n))])
    }

    #[test]
    fn while_the_file_hangs_lines_are_counted_and_nobody_waits() {
        // No thread takes the lines, as if it hung in a write.
        let (messages, received) = bounded(2);
        let lines = Lines { messages, lost: Arc::default() };
        (0..5).for_each(|n| lines.write(line(n)));
        assert_eq!((received.len(), lines.lost.load(Ordering::Relaxed)), (2, 3));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let (mut file, _) = AuditFile::open(&path, &folder.path().join("key"), Arc::default()).unwrap();
        file.lost = lines.lost.clone();
        file.write(line(5));
        file.write(line(6));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"n\":5,\"lost\":3}\n{\"n\":6}\n");
        assert_eq!(lines.lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_key_stays_and_one_that_is_damaged_ends_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl.key");
        let made = key(&path).unwrap();
        assert_eq!(key(&path).unwrap(), made);
        std::fs::write(&path, "é".repeat(32)).unwrap();
        assert!(key(&path).is_err());
    }
}
