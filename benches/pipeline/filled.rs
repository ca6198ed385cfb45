//! Records with many rows. They are filled once, and stay below the target folder for the next run.

use std::fs::File;
use std::path::{Path, PathBuf};

use event_pipeline::config::{Config, Durability};
use event_pipeline::store::Receipt;
use rusqlite::Connection;

use crate::workload::{self, Record, SEGMENT_EVENTS};

/// Most rows that a run may use.
const ROWS_MAX: &str = "BENCH_ROWS_MAX";
const ROWS_MAX_DEFAULT: usize = 10_000_000;
const ROWS: [usize; 3] = [1_000_000, 10_000_000, 100_000_000];

/// Rows while nothing is measured.
const ROWS_TESTED: usize = 2_000;

/// The numbers of rows for which there is a record.
pub fn sizes() -> Vec<usize> {
    if !std::env::args().any(|arg| arg == "--bench") {
        return vec![ROWS_TESTED];
    }
    let max = std::env::var(ROWS_MAX).ok();
    let max = max.map_or(ROWS_MAX_DEFAULT, |max| max.parse().unwrap_or_else(|_| panic!("{ROWS_MAX} is a number")));
    ROWS.into_iter().filter(|rows| *rows <= max).collect()
}

/// The file of a record with this number of rows. It must not be written to.
pub fn file(rows: usize) -> PathBuf {
    let folder: PathBuf = [env!("CARGO_TARGET_TMPDIR"), "filled"].iter().collect();
    std::fs::create_dir_all(&folder).expect("a target folder");
    let path = folder.join(format!("{rows}.db"));
    let fresh = Record::new();
    if !path.exists() || layout(&path) != layout(fresh.path()) {
        eprintln!("Storing {rows} events in {}, once", path.display());
        let unfinished = path.with_extension("unfinished");
        remove(&unfinished);
        fill(&unfinished, rows);
        std::fs::rename(&unfinished, &path).expect("the target folder takes files");
        remove(&unfinished);
    }
    path
}

/// A copy of such a file, for writing. Dropping it deletes the file.
pub struct Copy(PathBuf);

impl Copy {
    pub fn of(rows: usize) -> Self {
        let original = file(rows);
        let path = original.with_extension("copy");
        remove(&path);
        std::fs::copy(&original, &path).expect("room for a copy");
        // Synced now, so that the first measured sync does not wait for the copy.
        File::open(&path).and_then(|copy| copy.sync_all()).expect("a disk that works");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn fill(path: &Path, rows: usize) {
    let record =
        Record::with(Config { database_path: path.to_owned(), durability: Durability::Off, ..Config::default() });
    // Two batches fit the queue: one is encoded while the other is stored.
    const BATCH_EVENTS: usize = 4_096;
    let events = workload::school(SEGMENT_EVENTS);
    let (mut left, mut waiting) = (rows, None);
    for batch in events.chunks(BATCH_EVENTS).cycle() {
        let batch = &batch[..left.min(BATCH_EVENTS)];
        if batch.is_empty() {
            break;
        }
        left -= batch.len();
        let (receipt, answer) = Receipt::synced();
        record.store.try_append(workload::batch(batch), receipt).expect("room for two");
        if let Some(answer) = waiting.replace(answer) {
            answer.blocking_recv().expect("an answer").expect("stored");
        }
    }
    waiting.expect("at least one batch").blocking_recv().expect("an answer").expect("stored");
    // A segment is sealed once the next one has begun.
    record.wait_until_sealed((rows - 1) / SEGMENT_EVENTS);
}

/// What makes a file of another version unusable.
fn layout(path: &Path) -> (i64, Vec<String>) {
    let connection = Connection::open(path).expect("a database");
    let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a number");
    let mut statement = connection.prepare("SELECT coalesce(sql, name) FROM sqlite_schema ORDER BY name").expect("SQL");
    let tables = statement.query_map([], |row| row.get(0)).expect("a schema");
    (version, tables.collect::<Result<_, _>>().expect("text"))
}

/// Removes a database, SQLite's files beside it, and the sidecar.
fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        // Most of these files do not exist.
        let _ = std::fs::remove_file(file);
    }
}
