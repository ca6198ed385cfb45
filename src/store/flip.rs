//! For tests: files, and damage to them that SQLite does not notice.

use std::path::{Path, PathBuf};

use super::schema::{self, PAGE_BYTES};
use super::{Receipt, Store};
use crate::config::Config;
use crate::event::Event;
use crate::wire::Batch;

/// A file with so many ticks in five sessions, none of which is in the index yet; of each hundred one has a key.
pub fn file_with(events: u64) -> (tempfile::TempDir, Config) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config::of_test(folder.path().join("events.db"));
    let (store, mut parts) = Store::open_parts(&config).expect("open");
    for n in 1..=events {
        append(&store, &config, 1, (n % 100 == 0).then(|| format!("key-{n}{}", "k".repeat(200))).as_deref());
        if n % 64 == 0 || n == events {
            while parts.write() {}
        }
    }
    store.close();
    drop(parts.finish());
    (folder, config)
}

/// Hands in ticks, without waiting for them.
pub fn append(store: &Store, config: &Config, events: usize, idempotency_key: Option<&str>) {
    let event_type = config.event_types.get("timer_tick").expect("built in");
    let mut batch = Batch::default();
    for n in 0..events {
        let (source, user_id, payload) = ("s", None, r#"{"n":"0123456789012345678901234567890123456789"}"#);
        let session_id = Some(["a", "b", "c", "d", "e"][n % 5]);
        batch.push(&Event { event_type, source, session_id, user_id, payload, idempotency_key }, &config.event_types);
    }
    store.try_append(batch, Receipt::new().0).expect("room");
}

/// Writes another number over that of an event, in the place where the row is, as flipped bits do.
pub fn renumber(path: &Path, seq: u64, to: u64) {
    let mut bytes = std::fs::read(path).expect("a file");
    let mut found = 0;
    for page in leaves(path, "events") {
        let page = &mut bytes[page..page + PAGE_BYTES as usize];
        let two = |page: &[u8], at: usize| usize::from(u16::from_be_bytes([page[at], page[at + 1]]));
        for cell in 0..two(page, 3) {
            let after_varint = |mut at: usize| {
                while page[at] >= 0x80 {
                    at += 1;
                }
                at + 1
            };
            let from = after_varint(two(page, 8 + 2 * cell));
            let end = after_varint(from);
            if page[from..end].iter().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f)) == seq {
                found += 1;
                for (nth, byte) in page[from..end].iter_mut().rev().enumerate() {
                    *byte = *byte & 0x80 | (to >> (7 * nth)) as u8 & 0x7f;
                }
            }
        }
    }
    assert_eq!(found, 1, "rows of event {seq}");
    std::fs::write(path, bytes).expect("written");
}

/// Where the leaves of a table are in a file, in the order of its tree.
pub fn leaves(path: &Path, table: &str) -> Vec<usize> {
    let file = schema::open_reader(path).expect("whole");
    let sql = "SELECT pageno FROM dbstat WHERE name = ?1 AND pagetype = 'leaf' ORDER BY path";
    let mut pages = file.prepare(sql).expect("a table");
    let pages = pages.query_map([table], |row| row.get::<_, i64>(0)).expect("read");
    pages.map(|page| (page.expect("read") as usize - 1) * PAGE_BYTES as usize).collect()
}

/// Copies a page of a file over another one, as a misdirected write does.
pub fn copy_page(path: &Path, from: usize, to: usize) {
    let mut bytes = std::fs::read(path).expect("a file");
    bytes.copy_within(from..from + PAGE_BYTES as usize, to);
    std::fs::write(path, bytes).expect("written");
}

/// Where a repair is to write.
pub fn beside(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("new.db")
}
