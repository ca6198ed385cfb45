//! Whether the disk has space for more events.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::checkpoint::Wal;
use crate::store::files::free_bytes;
use crate::store::schema::PAGE_BYTES;

/// What is known of the free space on the disk.
pub struct Space {
    folder: PathBuf,
    /// Bytes that are to stay free (`FREE_SPACE_MIN_BYTES`).
    pub free_bytes_min: u64,
    /// Events were refused for lack of space, and none was stored since.
    pub is_full: bool,
    /// When an operator was last warned that events are refused.
    warned: Option<Instant>,
}

/// An operator is warned at most once in 10 s: a nearly full disk has space for some batches and not for others, and
/// each change would be a line in the log.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(10);

impl Space {
    pub fn new(folder: PathBuf, free_bytes_min: u64) -> Self {
        Self { folder, free_bytes_min, is_full: false, warned: None }
    }

    /// Whether less is free than is to stay free.
    pub fn is_low(&self) -> bool {
        self.free_bytes() < self.free_bytes_min
    }

    /// Whether this many bytes of events can be stored and enough stays free. Pages in the write-ahead log count as
    /// used, because they are still to be moved into the database. `reusable_bytes` are free pages of the database.
    pub fn fits(&self, bytes: usize, reusable_bytes: u64, wal: &Wal) -> bool {
        let free = self.free_bytes();
        // Rows, their index and the pages around them come to less than twice the encoded events. The write-ahead log
        // takes this from the disk for a while and gives it back, so it may use most of what is to stay free; the
        // database takes it for good.
        let needed = 2 * bytes as u64;
        let in_wal = wal.pages_to_move() as u64 * PAGE_BYTES;
        free >= needed + self.free_bytes_min / 4 && free + reusable_bytes >= needed + in_wal + self.free_bytes_min
    }

    /// Whether an operator may be warned again.
    pub fn may_warn(&mut self) -> bool {
        let may = self.warned.is_none_or(|at| at.elapsed() > BETWEEN_WARNINGS);
        if may {
            self.warned = Some(Instant::now());
        }
        may
    }

    fn free_bytes(&self) -> u64 {
        // A file system that does not report its free space takes everything.
        free_bytes(&self.folder).unwrap_or(u64::MAX / 4)
    }
}
