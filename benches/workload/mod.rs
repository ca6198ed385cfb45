//! The input of the benches, the same in every run: events, batches, commits, and a record to store them in.

// Each bench is a crate of its own and uses a part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use event_pipeline::config::Config;
use event_pipeline::event::{EventTypes, Field, Filter, Limits, Parser, Seq, Timestamp, TimestampText};
use event_pipeline::store::{Receipt, Running, Store};
use event_pipeline::wire::Batch;
use event_pipeline::wire::committed::Commit;
use event_pipeline::wire::frame::{OpCode, masked};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tempfile::TempDir;

/// Sessions and users of [`school`], as many as the load test has. With so many, two neighbouring events share none.
pub const SESSIONS: u32 = 2_000;
pub const USERS: u32 = 5_000;

/// Events that one read of a busy socket brings.
pub const BATCH_EVENTS: usize = 300;

/// Events in one segment of the index, which is sealed once it is full.
pub const SEGMENT_EVENTS: usize = 65_536;

/// The events of a recorded class, as their producers sent them: text of every length and kind.
pub fn class() -> Vec<String> {
    const RECORDING: &str = include_str!("../../data/classroom.ndjson");
    let event = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line of the recording");
        line["event"].to_string()
    };
    RECORDING.lines().map(event).collect()
}

/// Events of a whole school, over many sessions and users: for what depends on the number of keys.
pub fn school(len: usize) -> Vec<String> {
    let types: Vec<String> = EventTypes::builtin().iter().map(|(name, _)| name.to_owned()).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let one = |_| {
        let event_type = &types[random.below(types.len() as u32) as usize];
        let (session_id, user_id) = (session_id(random.below(SESSIONS)), user_id(random.below(USERS)));
        let text: String = (0..29).map(|_| char::from(b'a' + random.below(26) as u8)).collect();
        event(event_type, &session_id, &user_id, &text)
    };
    (0..len).map(one).collect()
}

/// An event with a session and a user that no other event has.
pub fn stranger(number: usize) -> String {
    event("quiz_started", &format!("session-{number:08x}"), &format!("user-{number:08x}"), "hello")
}

fn event(event_type: &str, session_id: &str, user_id: &str, text: &str) -> String {
    format!(
        r#"{{"event_type":"{event_type}","source":"quiz-engine","session_id":"{session_id}","user_id":"{user_id}","payload":{{"text":"{text}"}}}}"#
    )
}

pub fn session_id(number: u32) -> String {
    format!("session-{number:06}")
}

pub fn user_id(number: u32) -> String {
    format!("user-{number:06}")
}

/// The filter of a subscriber to one of the school's sessions.
pub fn own_session(number: u32) -> Filter {
    Filter::default().with(Field::Session, [session_id(number % SESSIONS)])
}

/// A random number generator (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * u64::from(bound)) >> 32) as u32
    }
}

pub fn types() -> Arc<EventTypes> {
    Arc::new(EventTypes::builtin())
}

pub fn parser() -> Parser {
    Parser::new(types(), Limits { payload_keys_max: 50, payload_bytes_max: 65_536 })
}

/// A masking key.
pub const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The events as a client sends them: one masked frame each.
pub fn frames(events: &[String]) -> Vec<u8> {
    let mut stream = Vec::new();
    events.iter().for_each(|text| masked(&mut stream, OpCode::Text, text.as_bytes(), MASK));
    stream
}

/// Events, encoded.
pub fn batch<'t>(events: impl IntoIterator<Item = &'t String>) -> Batch {
    let (mut parser, mut batch) = (parser(), Batch::default());
    let types = parser.types().clone();
    for text in events {
        parser.parse(text, |event| batch.push(&event, &types)).result.expect("a valid event");
    }
    batch
}

/// Events with an idempotency key each, encoded; the keys begin with number `first` of a series without order.
pub fn keyed(events: &[String], first: usize) -> Batch {
    let (mut parser, mut batch) = (parser(), Batch::default());
    let types = parser.types().clone();
    for (n, text) in events.iter().enumerate() {
        // splitmix64: as far apart as the keys that clients make up.
        let mut key = ((first + n) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let key = format!("{:016x}-{:016x}", key ^ (key >> 31), key);
        let (before, text) = (batch.len(), format!("{},\"idempotency_key\":\"{key}\"}}", &text[..text.len() - 1]));
        parser.parse(&text, |event| batch.push(&event, &types)).result.expect("a valid event");
        batch.end_message(before);
    }
    batch
}

/// Fills the blanks, as the writer does.
pub fn stamp(batch: &mut Batch, first: Seq) {
    let mut time = TimestampText::default();
    (0..batch.len())
        .for_each(|i| batch.stamp(i, first.plus(i), &time.render(Timestamp(1_768_473_000_000_000 + i as i64))));
}

/// One transaction of these events, in batches as reads of a socket bring them.
pub fn commit(events: &[String]) -> Commit {
    let mut first = Seq(1);
    let batches = events.chunks(BATCH_EVENTS).map(|chunk| {
        let mut batch = batch(chunk);
        stamp(&mut batch, first);
        let committed = Arc::new(batch.committed(first));
        first = first.plus(chunk.len());
        committed
    });
    Commit { batches: batches.collect(), through: Seq(events.len() as u64) }
}

/// An open record without subscribers. Dropping it closes it in order.
pub struct Record {
    pub store: Store,
    threads: Vec<JoinHandle<()>>,
    path: PathBuf,
    /// Deletes the files once the record is closed.
    folder: Option<TempDir>,
}

impl Record {
    /// An empty record; dropping it deletes its files.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut record = Self::at(&folder.path().join("events.db"));
        record.folder = Some(folder);
        record
    }

    /// The record in this file. Dropping it does not delete the file.
    pub fn at(path: &Path) -> Self {
        Self::with(Config { database_path: path.to_owned(), ..Config::default() })
    }

    pub fn with(config: Config) -> Self {
        // The check would run beside the bench and be measured with it.
        let config = Config { check_at_start: false, ..config };
        let (store, Running { commits, mut threads, .. }) = Store::open(&config).expect("a database of ours");
        threads.push(std::thread::spawn(move || commits.iter().for_each(drop)));
        Self { store, threads, path: config.database_path, folder: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stores a batch, in a transaction of its own unless another thread stores one at the same time.
    pub fn store(&self, batch: Batch) {
        let (receipt, answer) = Receipt::synced();
        self.store.try_append(batch, receipt).expect("an empty queue");
        answer.blocking_recv().expect("an answer").expect("stored");
    }

    /// Waits until the index has all lists of this number of segments.
    pub fn wait_until_sealed(&self, segments: usize) {
        let connection = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("a database");
        let sealed = || {
            let noted =
                connection.query_row("SELECT value FROM meta WHERE key = 'sealed_before'", [], |row| row.get(0));
            noted.optional().expect("a number").unwrap_or(0i64)
        };
        // The store has no signal for it, because only benches wait for it.
        while sealed() < segments as i64 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.store.close();
        for thread in self.threads.drain(..) {
            thread.join().expect("no panic");
        }
    }
}
