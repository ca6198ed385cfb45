//! What producers were told, and whether it is true of the file. Every acknowledged event is stored once, under its id and
//! as it was sent. Ids are dense, apart from deleted events. Times increase. Statistics and the segment index agree with
//! the rows. SQLite finds the file sound.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::support::*;

const TYPES: [&str; 3] = ["timer_tick", "answer_submitted", "question_viewed"];
const SESSIONS: u64 = 7;

/// An event that follows from its token, so that what is stored can be held against what was sent.
pub fn event_of(token: &str) -> Value {
    let hash = token
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let (type_of, session, user, len) = (hash % 3, hash / 3 % SESSIONS, hash / 64 % 5, hash / 4096 % 300);
    // Large events fill the write-ahead log up to a checkpoint.
    let len = if token.starts_with("large") { 30_000 + len } else { len };
    json!({
        "event_type": TYPES[type_of as usize],
        "source": "faults",
        "session_id": format!("session{session}"),
        "user_id": format!("user{user}"),
        "payload": {"token": token, "filler": "x".repeat(len as usize)},
    })
}

/// The message that publishes the event of a token. Some tokens are idempotency keys, too.
pub fn message_of(token: &str) -> String {
    let mut event = event_of(token);
    if token.starts_with("keyed") {
        event["idempotency_key"] = token.into();
    }
    event.to_string()
}

/// The parts of a line of `GET /events`.
struct Line<'l> {
    seq: u64,
    /// What the producer sent.
    event: &'l str,
    time: &'l str,
}

fn parts(line: &str) -> Line<'_> {
    let (id, rest) = line.strip_prefix("{\"id\":\"evt_").and_then(|rest| rest.split_once("\",")).expect("an id first");
    let (event, time) = rest.rsplit_once(",\"timestamp\":\"").expect("a timestamp last");
    Line { seq: u64::from_str_radix(id, 16).expect("an id"), event, time }
}

/// What a producer was told of an event.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub id: u64,
    pub is_synced: bool,
}

/// What one life of the server may have taken away from what was acknowledged in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    Nothing,
    /// The last events that were not acknowledged as synced.
    Unsynced,
}

#[derive(Default)]
pub struct Record {
    /// Whether an acknowledgement means synced where the producer asks for no level.
    pub syncs: bool,
    /// Every event that was stored at the last check, as a line.
    known: Vec<String>,
    /// The highest number that was given out up to the last check.
    last: u64,
    /// By token, since the last check.
    told: Mutex<HashMap<String, Told>>,
    /// Deletions since the last check: the lines that they were to delete, oldest first, and whether they were answered.
    deletions: Mutex<Vec<(Vec<String>, bool)>>,
    /// By name, the newest event that was confirmed in any life.
    confirmed: Mutex<HashMap<&'static str, u64>>,
    pub count: AtomicU64,
    /// How many events were acknowledged in all lives.
    pub total: u64,
    epoch: Option<String>,
}

impl Record {
    pub fn new(durability: &str) -> Record {
        Record { syncs: durability == "full", ..Record::default() }
    }

    fn told(&self) -> MutexGuard<'_, HashMap<String, Told>> {
        self.told.lock().unwrap()
    }

    pub fn note(&self, token: &str, id: &Value, is_synced: bool) {
        let told = Told { id: sequence(id), is_synced };
        let before = self.told().insert(token.to_string(), told);
        assert!(before.is_none_or(|before| before.id == told.id), "{token} was {before:?} and is {told:?}");
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// A client subscribed under a name.
    pub fn subscribed(&self, name: &'static str) {
        self.confirmed.lock().unwrap().entry(name).or_insert(0);
    }

    pub fn confirmed(&self, name: &'static str, seq: u64) {
        let mut confirmed = self.confirmed.lock().unwrap();
        let before = confirmed.entry(name).or_insert(0);
        *before = (*before).max(seq);
    }

    /// Whether a file that may be damaged has everything that was acknowledged since the last check; `None` if it is damaged.
    pub fn keeps(&self, server: &Server) -> Option<bool> {
        let mut stored = HashMap::new();
        let mut after = 0;
        loop {
            let page = server.get(&format!("/events?limit=1000&after_id={}", id_of(after)));
            if page.status != 200 {
                page.refusal(503);
                return None;
            }
            let page = page.json();
            let Some(last) = page.as_array().unwrap().last() else { break };
            after = sequence(&last["id"]);
            for event in page.as_array().unwrap() {
                let token = event["payload"]["token"].as_str()?;
                if event["payload"] != event_of(token)["payload"] {
                    return None;
                }
                stored.insert(token.to_string(), sequence(&event["id"]));
            }
        }
        Some(self.told().iter().all(|(token, told)| stored.get(token) == Some(&told.id)))
    }

    /// Takes over what a server has stored that was not published here.
    pub fn adopt(&mut self, server: &Server) {
        self.known = server.stored_lines("");
        self.last = self.known.last().map_or(0, |line| parts(line).seq);
        self.check(server, Loss::Nothing);
    }

    /// Every event that was stored at the last check.
    pub fn lines(&self) -> impl Iterator<Item = &String> {
        self.known.iter()
    }

    /// How many events were stored at the last check.
    pub fn known(&self) -> usize {
        self.known.len()
    }

    /// Asks for a deletion of some of the known events, and notes whether it is answered.
    pub fn delete(&self, mut wire: Wire, session: Option<u64>, before: usize) {
        let Some(boundary) = self.known.get(before) else { return };
        let session = session.map(|session| format!("session{session}"));
        let is_doomed = |line: &&String| {
            session.as_ref().is_none_or(|session| line.contains(&format!("\"session_id\":\"{session}\"")))
        };
        let doomed: Vec<_> = self.known[..before].iter().filter(is_doomed).cloned().collect();
        let mut target = format!("/events?before={}", encode(parts(boundary).time.trim_end_matches("\"}")));
        if let Some(session) = session {
            target += &format!("&session_id={session}");
        }
        let count = doomed.len();
        self.deletions.lock().unwrap().push((doomed, false));
        wire.send(request("DELETE", &target, &[], b""));
        if let Some(response) = wire.response() {
            assert_eq!((response.status, response.json()), (200, json!({"deleted": count})));
            self.deletions.lock().unwrap().last_mut().unwrap().1 = true;
        }
    }

    /// Notes that a deletion of every event was acknowledged. Numbers go on.
    pub fn forget_all(&mut self, server: &Server) {
        assert_eq!(server.get_json("/events"), json!([]));
        let told = std::mem::take(self.told.get_mut().unwrap());
        self.known.clear();
        self.last = told.values().map(|told| told.id).fold(self.last, u64::max);
    }

    /// Checks a server that has just started against what it promised in its last life.
    pub fn check(&mut self, server: &Server, loss: Loss) {
        let lines = server.stored_lines("");
        let told = std::mem::take(self.told.get_mut().unwrap());
        self.total += told.len() as u64;

        // Known events are stored, unless they were deleted.
        let mut left = std::mem::take(&mut self.known);
        for (doomed, is_answered) in self.deletions.get_mut().unwrap().drain(..) {
            // A deletion that was not answered has deleted some events, from the oldest on.
            let kept =
                doomed.iter().position(|line| lines.binary_search_by_key(&parts(line).seq, |l| parts(l).seq).is_ok());
            let gone = kept.unwrap_or(doomed.len());
            let may_be_lost = loss == Loss::Unsynced && !self.syncs;
            assert!(
                gone == doomed.len() || !is_answered || may_be_lost,
                "{gone} of {} events are deleted",
                doomed.len()
            );
            let mut gone = doomed[..gone].iter().peekable();
            left.retain(|line| gone.next_if_eq(&line).is_none());
            assert_eq!(gone.next(), None, "only one deletion takes an event");
        }
        let (old, new) = lines.split_at(lines.partition_point(|line| parts(line).seq <= self.last));
        if *old != left {
            let differs = old.iter().zip(&left).position(|(one, other)| one != other);
            panic!("{} events are left of {}, from {differs:?} on others", old.len(), left.len());
        }
        let mut time = left.last().map_or("", |line| parts(line).time);

        // New events are dense, and each is as it was sent.
        let mut tokens = HashMap::new();
        for (line, seq) in new.iter().zip(self.last + 1..) {
            let line = parts(line);
            assert_eq!(line.seq, seq, "ids are dense");
            assert!(line.time > time, "{} is not after {time}", line.time);
            time = line.time;
            let sent = format!("{{{}}}", line.event);
            let event: Value = serde_json::from_str(&sent).unwrap();
            let token = text_of(&event["payload"]["token"]);
            assert!(sent == event_of(&token).to_string().as_str(), "{token} is as it was sent");
            assert_eq!(tokens.insert(token, seq), None, "an event is stored once");
        }
        let last = self.last + new.len() as u64;
        let mut is_short = false;
        for (token, told) in &told {
            let stored = tokens.get(token);
            let may_be_lost = loss == Loss::Unsynced && !told.is_synced && told.id > last;
            is_short |= stored.is_none();
            assert!(stored == Some(&told.id) || may_be_lost, "{token}: {told:?}, stored as {stored:?}");
        }

        // Ids mean the same for as long as the epoch is the same.
        let stats = server.get_json("/stats");
        let epoch = text_of(&stats["epoch"]);
        if let Some(before) = &self.epoch {
            assert!(!is_short || *before != epoch, "ids were lost, and the epoch {epoch} stays");
            assert!(loss != Loss::Nothing || *before == epoch, "nothing was lost, and the epoch is another one");
        }
        self.epoch = Some(epoch);

        // Statistics and posting lists agree with the rows.
        assert_eq!(stats["total_events"], lines.len());
        let by_type: HashMap<_, _> =
            stats["by_type"].as_array().unwrap().iter().map(|row| (text_of(&row["event_type"]), row)).collect();
        for field in ["event_type", "session_id"] {
            let values: Vec<_> = match field {
                "event_type" => TYPES.iter().map(ToString::to_string).collect(),
                _ => (0..SESSIONS).map(|session| format!("session{session}")).collect(),
            };
            for value in values {
                let wanted = format!("\"{field}\":\"{value}\"");
                let scanned: Vec<_> =
                    lines.iter().filter(|line| line[..200.min(line.len())].contains(&wanted)).cloned().collect();
                assert!(server.stored_lines(&format!("{field}={value}")) == scanned, "the index knows {value}");
                if field == "event_type" {
                    let row = by_type.get(&value);
                    let counted = row.map_or(0, |row| row["count"].as_u64().unwrap());
                    assert_eq!(counted, scanned.len() as u64, "{value} is counted");
                    if let (Some(row), Some(last)) = (row, scanned.last()) {
                        assert_eq!(text_of(&row["last_seen"]), parts(last).time.trim_end_matches("\"}"), "{value}");
                    }
                }
            }
        }
        // Confirmations may be lost, and are neither invented nor ahead of the events.
        let confirmed = self.confirmed.get_mut().unwrap();
        for one in server.get_json("/subscriptions").as_array().unwrap() {
            let position = if one["position"].is_null() { 0 } else { sequence(&one["position"]) };
            let Some(confirmed) = confirmed.get_mut(one["name"].as_str().unwrap()) else { continue };
            assert!(position <= *confirmed && position <= last, "{one}: {confirmed} was confirmed, {last} is stored");
            *confirmed = position;
        }
        let database = Connection::open_with_flags(server.db_path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok");

        (self.known, self.last) = (lines, last);
        *self.count.get_mut() = 0;
        self.repeat(server, &told, &tokens);
    }

    /// Publishes again some of what has keys: it is told the id that it has.
    fn repeat(&mut self, server: &Server, told: &HashMap<String, Told>, stored: &HashMap<String, u64>) {
        let keyed = stored.iter().filter(|(token, _)| token.starts_with("keyed")).take(20);
        let again: Vec<_> = keyed.map(|(token, seq)| (message_of(token), *seq)).collect();
        if again.is_empty() {
            return;
        }
        let mut publisher = server.publisher();
        for (message, seq) in again {
            let answer = publisher.ask(&message);
            assert_eq!(answer, json!({"status": "ok", "event_id": id_of(seq), "replayed": true}), "{told:?}");
        }
    }
}
