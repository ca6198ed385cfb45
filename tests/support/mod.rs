//! A server in a temporary folder, HTTP and WebSocket clients that work with raw bytes, and helpers for events.
//!
//! Every wait ends after [`DEADLINE`] with a panic that names what it waited for.

mod event_stream;
pub mod h2;
mod http;
pub mod interface;
mod server;
mod tools;
mod websocket;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use serde_json::{Value, json};

pub use event_stream::*;
pub use http::*;
pub use server::*;
pub use tools::*;
pub use websocket::*;

/// How long a step may take before the test gives up. Each needs only a fraction of it; the rest is for a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Whether the event with a number passes a filter.
pub type Passes = fn(u64) -> bool;

/// A small valid event: a tick of a session, with a number in its payload.
pub fn tick(session: &str, n: usize) -> String {
    json!({"event_type": "timer_tick", "source": "it", "session_id": session, "payload": {"n": n}}).to_string()
}

pub fn ticks(session: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| tick(session, n)).collect()
}

/// The id of the event with a sequence number.
pub fn id_of(sequence: u64) -> String {
    format!("evt_{sequence:012x}")
}

/// The sequence number of an id.
pub fn sequence(id: &Value) -> u64 {
    let id = id.as_str().unwrap_or_else(|| panic!("{id} is no id"));
    let digits = id.strip_prefix("evt_").unwrap_or_else(|| panic!("{id} is no id"));
    let lower_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    assert!(digits.len() == 12 && lower_hex, "{id} is no id");
    u64::from_str_radix(digits, 16).unwrap()
}

/// The sequence numbers in answers, all of which must be ok.
pub fn acknowledged(answers: &[Value]) -> Vec<u64> {
    answers
        .iter()
        .map(|answer| {
            assert_eq!(answer["status"], "ok", "{answer}");
            sequence(&answer["event_id"])
        })
        .collect()
}

/// The sequence numbers of events.
pub fn sequences(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| sequence(&event["id"])).collect()
}

/// Checks the form of a timestamp and returns it.
pub fn timestamp(event: &Value) -> String {
    let text = text_of(&event["timestamp"]);
    let form: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(form, "0000-00-00T00:00:00.000000Z", "{text}");
    text
}

pub fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string")).to_string()
}

/// The count and the last timestamp of each type, computed from these events.
pub fn statistics(events: &[Value]) -> BTreeMap<String, (u64, String)> {
    let mut statistics = BTreeMap::new();
    for event in events {
        let entry = statistics.entry(text_of(&event["event_type"])).or_insert((0, String::new()));
        *entry = (entry.0 + 1, timestamp(event));
    }
    statistics
}

/// The total and the result of [`statistics`], as `GET /stats` reports them.
pub fn reported_statistics(server: &Server) -> (u64, BTreeMap<String, (u64, String)>) {
    let stats = server.get_json("/stats");
    let rows = stats["by_type"].as_array().unwrap().iter();
    let rows =
        rows.map(|row| (text_of(&row["event_type"]), (row["count"].as_u64().unwrap(), text_of(&row["last_seen"]))));
    (stats["total_events"].as_u64().unwrap(), rows.collect())
}

/// JSON text without insignificant whitespace.
pub fn compact(text: &str) -> String {
    let (mut out, mut in_string, mut escaped) = (String::new(), false, false);
    for c in text.chars() {
        if in_string {
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            in_string = c == '"';
        }
        out.push(c);
    }
    out
}

/// A value of a JSON object, in the bytes in which it was written.
pub fn raw_field(object: &str, name: &str) -> String {
    let fields: HashMap<String, &RawValue> =
        serde_json::from_str(object).unwrap_or_else(|error| panic!("{error} in {object}"));
    fields.get(name).unwrap_or_else(|| panic!("no {name} in {object}")).get().to_string()
}

/// The pause between two checks of a condition that gives no signal.
pub const POLL: Duration = Duration::from_millis(10);

/// Checks until `is_true`, for a condition that gives no signal.
pub fn await_true(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_true() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(POLL);
    }
}

/// Runs `body` with 0 to `count` - 1 in as many threads, and waits for all of them.
pub fn in_parallel(count: usize, body: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for n in 0..count {
            let body = &body;
            scope.spawn(move || body(n));
        }
    });
}

/// A generator of random numbers (xorshift64*). A test prints its seed, with which its run can be repeated.
pub struct Random(u64);

impl Random {
    /// Takes the seed from the environment variable `SEED`, or else from the clock, and prints it. A test runs on its own
    /// thread: its first round uses `SEED` itself, and each further round another seed derived from it.
    pub fn seeded() -> Random {
        thread_local!(static THROWN: Cell<u64> = const { Cell::new(0) });
        let nth = THROWN.replace(THROWN.get() + 1);
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
        let of_round = |seed: u64| seed.wrapping_add(nth.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = seed.map_or_else(clock, of_round) | 1;
        println!("repeat with SEED={seed}");
        Random(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % end
    }
}

/// The recorded class: the text of each event, in the order of the recording.
pub fn classroom() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/classroom.ndjson");
    let text = std::fs::read_to_string(path).unwrap();
    let events: Vec<_> = text.lines().map(|line| raw_field(line, "event")).collect();
    assert_eq!(events.len(), 6571, "the recording is whole");
    events
}
