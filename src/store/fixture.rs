//! For unit tests: stores with events in them, and damage to their files that SQLite does not notice.

use std::path::{Path, PathBuf};
use std::task::{Context, Poll, Waker};

use super::schema::{self, PAGE_BYTES};
use super::segments::SEGMENT_EVENTS;
use super::{Parts, Receipt, Store};
use crate::config::Config;
use crate::event::{Event, EventTypes, Seq};
use crate::wire::Batch;

/// A tick with an empty payload. Tests set the fields that matter: `Event { payload, ..tick() }`.
pub fn tick() -> Event<'static> {
    let event_type = EventTypes::builtin().get("timer_tick").expect("built in");
    Event { event_type, source: "s", session_id: None, user_id: None, payload: "{}", idempotency_key: None }
}

/// Hands in events as one batch, without waiting for them.
pub fn hand_in<'e>(store: &Store, events: impl IntoIterator<Item = Event<'e>>) {
    let (mut batch, types) = (Batch::default(), EventTypes::builtin());
    events.into_iter().for_each(|event| batch.push(&event, &types));
    store.try_append(batch, Receipt::synced().0).expect("space in the queue");
}

/// Hands in ticks of five sessions, without waiting for them.
pub fn hand_in_ticks(store: &Store, events: usize, idempotency_key: Option<&str>) {
    let payload = r#"{"n":"0123456789012345678901234567890123456789"}"#;
    let sessions = ["a", "b", "c", "d", "e"].into_iter().cycle().take(events);
    hand_in(store, sessions.map(|id| Event { session_id: Some(id), payload, idempotency_key, ..tick() }));
}

/// The database in a folder.
pub fn path(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("events.db")
}

/// Opens the database in a folder, or creates it.
pub fn open(folder: &tempfile::TempDir) -> (Store, Parts) {
    Store::open_parts(&Config::of_test(path(folder))).expect("open")
}

/// Ends a server in order.
pub fn close(store: &Store, parts: Parts) {
    store.close();
    drop(parts.finish());
}

/// A file with this many ticks of one session, none of which is in the index yet. One in a hundred has a key.
pub fn file_with(events: u64) -> (tempfile::TempDir, Config) {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, mut parts) = open(&folder);
    for n in 1..=events {
        hand_in_ticks(&store, 1, (n % 100 == 0).then(|| format!("key-{n}{}", "k".repeat(200))).as_deref());
        if n % 64 == 0 || n == events {
            while parts.write() {}
        }
    }
    close(&store, parts);
    let config = Config::of_test(path(&folder));
    (folder, config)
}

/// A record of three segments of ticks in five sessions, none of which is in the index yet.
pub fn three_segments(folder: &tempfile::TempDir) -> (Store, Parts) {
    let (store, mut parts) = open(folder);
    let sessions = ["0", "1", "2", "3", "4"].into_iter().cycle().take(3 * SEGMENT_EVENTS as usize);
    hand_in(&store, sessions.map(|id| Event { session_id: Some(id), ..tick() }));
    while parts.write() {}
    (store, parts)
}

/// Deletes events, and checks that each was there.
pub fn delete(store: &Store, parts: &mut Parts, seqs: Vec<Seq>) {
    let expected = seqs.len() as u64;
    let mut deletion = std::pin::pin!(store.delete_chosen(seqs));
    let mut context = Context::from_waker(Waker::noop());
    assert!(deletion.as_mut().poll(&mut context).is_pending());
    while parts.write() {}
    assert_eq!(deletion.poll(&mut context), Poll::Ready(Ok(expected)));
}

/// Deletes every event of three segments, except every fifth. Returns those that are left.
pub fn delete_most(store: &Store, parts: &mut Parts) -> Vec<Seq> {
    let (gone, left) = (1..=3 * SEGMENT_EVENTS).map(Seq).partition::<Vec<_>, _>(|seq| !seq.0.is_multiple_of(5));
    gone.chunks(7).for_each(|some| delete(store, parts, some.to_vec()));
    left
}

/// Writes another number over that of an event, within its row, as flipped bits do.
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

/// The leaves of a table in the order of its tree: where in the file each begins.
pub fn leaves(path: &Path, table: &str) -> Vec<usize> {
    let file = schema::open_reader(path).expect("undamaged");
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

/// Fills a page, counted from 1, with zeros, as a disk returns one that was never written.
pub fn wipe_page(bytes: &mut [u8], page: u32) {
    let end = page as usize * PAGE_BYTES as usize;
    bytes[end - PAGE_BYTES as usize..end].fill(0);
}

/// The file into which a repair writes.
pub fn new_file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("new.db")
}
