//! A database of the Python service, in both its schemas, is upgraded in place at start; so are ours of former
//! formats.

use std::path::Path;

use rusqlite::{Connection, params};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schema {
    /// With `processed` and a table of subscriptions.
    Older,
    Newer,
}

/// A row of the old `events` table.
pub struct Row {
    id: String,
    event_type: &'static str,
    session_id: Option<&'static str>,
    user_id: Option<&'static str>,
    payload: String,
    timestamp: String,
}

fn row(
    id: &str,
    event_type: &'static str,
    session: Option<&'static str>,
    user: Option<&'static str>,
    payload: &str,
    timestamp: &str,
) -> Row {
    Row {
        id: id.into(),
        event_type,
        session_id: session,
        user_id: user,
        payload: payload.into(),
        timestamp: timestamp.into(),
    }
}

/// Writes a database as the Python service left it.
pub fn old_database(folder: &Path, schema: Schema, rows: &[Row]) {
    let path = database(folder);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut database = Connection::open(path).unwrap();
    let processed = if schema == Schema::Older { ", processed INTEGER DEFAULT 0" } else { "" };
    database
        .execute_batch(&format!(
            "CREATE TABLE events (id TEXT PRIMARY KEY, event_type TEXT NOT NULL, source TEXT NOT NULL, session_id TEXT, user_id TEXT,
                payload TEXT NOT NULL, timestamp TEXT NOT NULL{processed});
             CREATE INDEX idx_events_type ON events(event_type);
             CREATE INDEX idx_events_session ON events(session_id);
             CREATE INDEX idx_events_timestamp ON events(timestamp);
             CREATE INDEX idx_events_user ON events(user_id);
             CREATE TABLE event_stats (event_type TEXT PRIMARY KEY, count INTEGER DEFAULT 0, last_seen TEXT);
             INSERT INTO event_stats VALUES ('timer_tick', 4711, '2020-01-01T00:00:00'), ('quiz_started', 1, NULL);"
        ))
        .unwrap();
    if schema == Schema::Older {
        database
            .execute_batch(
                "CREATE TABLE subscriptions (id TEXT PRIMARY KEY, event_types TEXT, session_id TEXT, created_at TEXT);
                 INSERT INTO subscriptions VALUES ('sub_0badcafe', '[\"quiz_started\"]', NULL, '2025-01-01T00:00:00');",
            )
            .unwrap();
    }
    let transaction = database.transaction().unwrap();
    for row in rows {
        let insert = "INSERT INTO events (id, event_type, source, session_id, user_id, payload, timestamp) VALUES (?, ?, 'quiz_engine', ?, ?, ?, ?)";
        let values = params![row.id, row.event_type, row.session_id, row.user_id, row.payload, row.timestamp];
        transaction.prepare_cached(insert).unwrap().execute(values).unwrap();
    }
    transaction.commit().unwrap();
}

fn in_new_folder(schema: Schema, rows: &[Row]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    old_database(folder.path(), schema, rows);
    folder
}

/// Rows in no order, with every spelling of a timestamp that Python wrote, and where they belong in time.
pub fn rows() -> Vec<Row> {
    vec![
        row(
            "evt_9f1c22ab07de",
            "quiz_completed",
            Some("s1"),
            Some("u1"),
            r#"{"score": 0.90, "big": 18446744073709551617}"#,
            "2026-01-15T10:30:00.123458Z",
        ),
        row("evt_5c0000000002", "quiz_started", Some("s1"), Some("u1"), "{}", "2026-01-15T10:30:00.123456"),
        row(
            "evt_ffffffffffff",
            "timer_tick",
            None,
            None,
            r#"{"name": "Chlo\u00e9", "z": 1, "a": [1, 2]}"#,
            "2026-01-15T10:30:00",
        ),
        row(
            "evt_3b0000000001",
            "timer_tick",
            Some("s2"),
            None,
            r#"{"text": "a  b\u0000"}"#,
            "2026-01-15T12:30:00.123457+02:00",
        ),
        row("evt_0123456789ab", "timer_tick", Some("s2"), Some("u2"), r#"{"n":1E+2}"#, "2026-01-15T10:30:01+00:00"),
        row("evt_aaaaaaaaaaaa", "error_occurred", None, Some("u2"), r#"{"same": "time"}"#, "2026-01-15T10:30:01"),
        row("evt_1d1d1d1d1d1d", "legacy_type", Some("s1"), None, "{ }", "2019-06-01T00:00:00.5Z"),
    ]
}

/// The ids of [`rows`] in the order of their timestamps; the last two share one.
const IN_TIME: [&str; 5] =
    ["evt_1d1d1d1d1d1d", "evt_ffffffffffff", "evt_5c0000000002", "evt_3b0000000001", "evt_9f1c22ab07de"];
const AT_THE_SAME_TIME: [&str; 2] = ["evt_0123456789ab", "evt_aaaaaaaaaaaa"];

fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| text_of(&event["id"])).collect()
}

#[test]
fn upgraded_events_have_their_ids_in_the_order_of_their_times() {
    for schema in [Schema::Older, Schema::Newer] {
        let rows = rows();
        let server = Server::in_folder(in_new_folder(schema, &rows), &[]);
        let stored = server.stored("");
        let found = ids(&stored);
        assert_eq!(found[..5], IN_TIME, "{schema:?}");
        let mut same_time = found[5..].to_vec();
        same_time.sort();
        assert_eq!(same_time, AT_THE_SAME_TIME, "{schema:?}");

        let timestamps: Vec<_> = stored.iter().map(timestamp).collect();
        assert!(timestamps.is_sorted_by(|a, b| a < b), "strictly increasing: {timestamps:#?}");
        let expected = [
            "2019-06-01T00:00:00.500000Z",
            "2026-01-15T10:30:00.000000Z",
            "2026-01-15T10:30:00.123456Z",
            "2026-01-15T10:30:00.123457Z",
            "2026-01-15T10:30:00.123458Z",
            "2026-01-15T10:30:01.000000Z",
        ];
        assert_eq!(timestamps[..6], expected);

        for row in &rows {
            let response = server.get(&format!("/events/{}", row.id));
            assert_eq!(response.status, 200, "{}: {}", row.id, response.text());
            let (text, expected) = (response.text(), compact(&row.payload));
            assert_eq!(compact(&raw_field(&text, "payload")), expected, "payloads are kept as text");
            assert_eq!(raw_field(&text, "id"), json!(row.id).to_string());
            assert_eq!(raw_field(&text, "event_type"), json!(row.event_type).to_string());
            assert_eq!(raw_field(&text, "session_id"), json!(row.session_id).to_string());
            assert_eq!(raw_field(&text, "user_id"), json!(row.user_id).to_string());
            assert_eq!(raw_field(&text, "source"), "\"quiz_engine\"");
        }
    }
}

#[test]
fn queries_and_statistics_see_the_upgraded_events() {
    let server = Server::in_folder(in_new_folder(Schema::Older, &rows()), &[]);
    assert_eq!(ids(&server.stored("session_id=s1")), ["evt_1d1d1d1d1d1d", "evt_5c0000000002", "evt_9f1c22ab07de"]);
    assert_eq!(ids(&server.stored("session_id=s2&event_type=timer_tick")), ["evt_3b0000000001", "evt_0123456789ab"]);
    assert_eq!(ids(&server.stored("user_id=u1")), ["evt_5c0000000002", "evt_9f1c22ab07de"]);
    assert_eq!(ids(&server.stored("event_type=legacy_type")), ["evt_1d1d1d1d1d1d"]);
    assert_eq!(server.stored("source=quiz_engine").len(), 7);
    let range = "since=2026-01-15T10:30:00Z&until=2026-01-15T10:30:00.123458Z";
    assert_eq!(ids(&server.stored(range)), ["evt_5c0000000002", "evt_3b0000000001"]);
    let mut newest_first = ids(&server.stored(""));
    newest_first.reverse();
    assert_eq!(ids(&server.pages("/events?limit=2")), newest_first, "an old id is a cursor for pages");

    let stats = server.get_json("/stats");
    assert_eq!(stats["total_events"], 7, "what the Python service counted is not carried over");
    assert_eq!(stats["events_last_hour"], 0);
    let count = |name: &str| {
        stats["by_type"].as_array().unwrap().iter().find(|row| row["event_type"] == name).unwrap()["count"].clone()
    };
    assert_eq!(
        [
            count("timer_tick"),
            count("quiz_started"),
            count("quiz_completed"),
            count("error_occurred"),
            count("legacy_type")
        ],
        [3, 1, 1, 1, 1]
    );
    let last_seen = &stats["by_type"].as_array().unwrap()[0]["last_seen"];
    assert!(text_of(last_seen).starts_with("2026-01-15T10:30:01.00000"), "{last_seen}");
}

#[test]
fn subscribers_resume_with_an_id_of_the_python_service() {
    let server = Server::in_folder(in_new_folder(Schema::Newer, &rows()), &[]);
    for (place, id) in IN_TIME.iter().enumerate() {
        let mut subscriber = server.subscriber(&json!({"after": id}));
        let rest = ids(&subscriber.collect(6 - place));
        assert_eq!(rest[..4 - place], IN_TIME[place + 1..]);
    }
    let mut subscriber = server.subscriber(&json!({"last": 2, "session_id": "s1"}));
    assert_eq!(ids(&subscriber.collect(2)), ["evt_5c0000000002", "evt_9f1c22ab07de"]);
    let new = server.publish(&json!({"event_type": "timer_tick", "source": "it", "session_id": "s1"}).to_string());
    assert_eq!(subscriber.json(), new, "history joins live");
}

#[test]
fn new_events_follow_the_upgraded_ones_and_a_second_start_changes_nothing() {
    for schema in [Schema::Older, Schema::Newer] {
        let mut server = Server::in_folder(in_new_folder(schema, &rows()), &[]);
        let upgraded = server.stored_lines("");
        let new = server.publish(&tick("s1", 0));
        assert_eq!(sequence(&new["id"]), 8, "the eighth event of the log");
        let mut all = upgraded;
        all.push(server.get(&format!("/events/{}", id_of(8))).text());
        for end in [Server::stop, Server::kill] {
            end(&mut server);
            server.restart();
            assert_eq!(server.stored_lines(""), all, "{schema:?}");
        }
        assert_eq!(sequence(&server.publish(&tick("s1", 1))["id"]), 9);

        server.stop();
        let database = Connection::open(server.db_path()).unwrap();
        let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok");
        let events: i64 = database.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap();
        assert_eq!(events, 9);
        for table in ["subscriptions", "event_stats"] {
            database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0)).unwrap();
        }
    }
}

#[test]
fn upgraded_events_can_be_deleted() {
    let mut server = Server::in_folder(in_new_folder(Schema::Older, &rows()), &[]);
    let deleted = server.call("DELETE", "/events?before=2026-01-15T10:30:00.123457Z", &[], b"").json();
    assert_eq!(deleted, json!({"deleted": 3}));
    for _ in 0..2 {
        assert_eq!(ids(&server.stored(""))[..2], ["evt_3b0000000001", "evt_9f1c22ab07de"]);
        for gone in &IN_TIME[..3] {
            server.get(&format!("/events/{gone}")).refusal(404);
        }
        assert_eq!(server.get_json("/stats")["total_events"], 4);
        server.stop();
        server.restart();
    }
    assert_eq!(server.call("DELETE", "/events", &[], b"").json(), json!({"deleted": 4}));
    assert_eq!(sequence(&server.publish(&tick("s", 0))["id"]), 8);
}

#[test]
fn statistics_of_upgraded_events_count_the_last_hour() {
    let ago = |minutes: i64| {
        let time = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(minutes);
        time.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string()
    };
    let rows: Vec<_> = [1500_i64, 1400, 300, 120, 65, 55, 30, 5]
        .iter()
        .map(|minutes| {
            row(
                &format!("evt_{:012x}", 0xabcd_0000_0000_u64 + minutes.unsigned_abs()),
                "timer_tick",
                None,
                None,
                "{}",
                &ago(*minutes),
            )
        })
        .collect();
    let server = Server::in_folder(in_new_folder(Schema::Newer, &rows), &[]);
    assert_eq!(server.get_json("/stats")["events_last_hour"], 3, "not those of the whole day");
    server.publish(&tick("s", 0));
    assert_eq!(server.get_json("/stats")["events_last_hour"], 4);
}

#[test]
fn an_empty_database_is_upgraded_too() {
    for schema in [Schema::Older, Schema::Newer] {
        let mut server = Server::in_folder(in_new_folder(schema, &[]), &[]);
        assert_eq!(server.get_json("/stats")["by_type"], json!([]));
        assert_eq!(sequence(&server.publish(&tick("s", 0))["id"]), 1);
        server.stop();
        server.restart();
        assert_eq!(server.stored("").len(), 1);
    }
}

#[test]
fn a_payload_that_is_not_json_does_not_stop_an_upgrade() {
    let odd = |id: &str, payload: &str, second: u8| {
        row(id, "timer_tick", Some("odd"), None, payload, &format!("2026-01-15T10:30:0{second}"))
    };
    let rows = [
        odd("evt_000000000a01", r#"{"score": NaN}"#, 1),
        odd("evt_000000000a02", "not json", 2),
        odd("evt_000000000a03", "", 3),
        odd("evt_000000000a04", r#"{"fine": true}"#, 4),
        odd("evt_000000000a05", "[1, 2]", 5),
    ];
    let mut server = Server::in_folder(in_new_folder(Schema::Newer, &rows), &[]);
    // Worth a warning to the operator.
    server.allow_noise();
    let expected: Vec<_> = (1..=5).map(|n| format!("evt_000000000a0{n}")).collect();
    assert_eq!(ids(&server.stored("session_id=odd")), expected, "every line parses");
    assert_eq!(server.get_json("/events").as_array().unwrap().len(), 5, "and so does the list");
    assert_eq!(server.get_json("/events/evt_000000000a04")["payload"], json!({"fine": true}));
}

#[test]
fn a_large_history_is_upgraded_whole() {
    let count = 140_000;
    let session = |n: usize| ["a", "b", "c", "d"][n * n % 7 % 4];
    let start: jiff::Timestamp = "2025-03-01T00:00:00Z".parse().unwrap();
    // Spread over the file in another order than that of time.
    let rows: Vec<_> = (0..count)
        .map(|n| n * 7919 % count)
        .map(|n| {
            let time = start + jiff::SignedDuration::from_millis(n as i64 * 10);
            let id = format!("evt_{:012x}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16);
            row(
                &id,
                "timer_tick",
                Some(session(n)),
                None,
                &format!(r#"{{"n": {n}}}"#),
                &time.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string(),
            )
        })
        .collect();
    let mut server = Server::in_folder(in_new_folder(Schema::Older, &rows), &[]);
    for _ in 0..2 {
        let numbers = |events: Vec<Value>| {
            events.iter().map(|event| event["payload"]["n"].as_u64().unwrap() as usize).collect::<Vec<_>>()
        };
        assert!(numbers(server.stored("")) == (0..count).collect::<Vec<_>>());
        let of_b: Vec<_> = (0..count).filter(|n| session(*n) == "b").collect();
        assert!(!of_b.is_empty() && numbers(server.stored("session_id=b")) == of_b);
        for row in rows.iter().step_by(20_011) {
            assert_eq!(
                compact(&raw_field(&server.get(&format!("/events/{}", row.id)).text(), "payload")),
                compact(&row.payload)
            );
        }
        server.stop();
        server.restart();
    }
}

/// What the tables of earlier formats were: `holes` and `idempotency_keys` came with format 2.
const FORMAT_1: &str = "
    CREATE TABLE events (seq INTEGER PRIMARY KEY, time_us INTEGER NOT NULL, event_type TEXT NOT NULL,
        source TEXT NOT NULL, session_id TEXT, user_id TEXT, payload TEXT NOT NULL, legacy_id TEXT);
    CREATE TABLE event_index (segment INTEGER NOT NULL, kind INTEGER NOT NULL, key TEXT NOT NULL, offsets BLOB NOT NULL,
        PRIMARY KEY (segment, kind, key)) WITHOUT ROWID;
    CREATE TABLE event_stats (event_type TEXT PRIMARY KEY, count INTEGER NOT NULL, last_seen TEXT NOT NULL)
        WITHOUT ROWID;
    CREATE TABLE subscriptions (name TEXT PRIMARY KEY, filters TEXT NOT NULL, position INTEGER NOT NULL,
        last_seen TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    PRAGMA application_id = 0x4576506c;
    PRAGMA user_version = 1;";
const FORMAT_2: &str = "
    CREATE TABLE idempotency_keys (seq INTEGER PRIMARY KEY, count INTEGER NOT NULL, key TEXT NOT NULL UNIQUE);
    CREATE TABLE holes (segment INTEGER PRIMARY KEY, count INTEGER NOT NULL);
    PRAGMA user_version = 2;";

/// Two segments of events of seven sessions, the first sealed; only its lists of sessions matter here.
fn fill_former(database: &Connection) {
    let transaction = database.unchecked_transaction().unwrap();
    for seq in 1..=EVENTS_BEFORE {
        let row = (seq as i64, seq as i64 * 1_000, format!("s{}", seq % 7), format!("{{\"n\":{seq}}}"));
        let sql = "INSERT INTO events VALUES (?1, ?2, 'timer_tick', 'it', ?3, NULL, ?4, NULL)";
        transaction.execute(sql, row).unwrap();
    }
    for session in 0..7 {
        let offsets = (1..=65_536u64).filter(|seq| seq % 7 == session).map(|seq| seq - 1);
        let mut blob = vec![0];
        let mut next = 0;
        for offset in offsets {
            blob.push((offset - next) as u8);
            next = offset + 1;
        }
        let row = (format!("s{session}"), blob);
        transaction.execute("INSERT INTO event_index VALUES (0, 1, ?1, ?2)", row).unwrap();
    }
    let mut whole = vec![1];
    whole.resize(1 + 65_536 / 8, 0xff);
    for (kind, key) in [(0, "timer_tick"), (3, "it")] {
        transaction.execute("INSERT INTO event_index VALUES (0, ?1, ?2, ?3)", (kind, key, &whole)).unwrap();
    }
    let last_seen = "1970-01-01T00:01:05.636000Z";
    transaction
        .execute("INSERT INTO event_stats VALUES ('timer_tick', ?1, ?2)", (EVENTS_BEFORE as i64, last_seen))
        .unwrap();
    transaction.execute("INSERT INTO subscriptions VALUES ('kept', '{}', 65630, ?1)", [last_seen]).unwrap();
    transaction.execute("INSERT INTO meta VALUES ('sealed_before', 1)", []).unwrap();
    transaction.commit().unwrap();
}

const EVENTS_BEFORE: u64 = 65_636;

#[test]
fn files_of_formats_1_and_2_are_brought_to_the_newest_format() {
    for formats in [&[FORMAT_1][..], &[FORMAT_1, FORMAT_2]] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let file = Connection::open(database(folder.path())).unwrap();
        formats.iter().for_each(|format| file.execute_batch(format).unwrap());
        fill_former(&file);
        drop(file);

        let mut server = Server::in_folder(folder, &[]);
        let of_session = |server: &Server| sequences(&server.stored("session_id=s3"));
        let expected: Vec<u64> = (1..=EVENTS_BEFORE).filter(|seq| seq % 7 == 3).collect();
        assert_eq!(of_session(&server), expected);
        let keyed = |server: &Server| {
            server.call("POST", "/events", &[JSON, ("Idempotency-Key", "k")], tick("t", 0).as_bytes()).status
        };
        assert_eq!((keyed(&server), keyed(&server)), (201, 200));
        let mut kept = server.subscriber(&json!({"name": "kept"}));
        let came: Vec<u64> = (0..7).map(|_| sequence(&kept.json()["id"])).collect();
        assert_eq!(came, (65_631..=65_637).collect::<Vec<_>>());
        server.await_stats("the check", |stats| stats["integrity"]["state"] == "sound");

        // A second start finds it as it should be, and so does whoever reads the file.
        server.stop();
        let checked = Run::start(command(server.folder()).args(["check", "data/events.db"]), "").finish();
        assert_eq!((checked.code, &*checked.stderr), (Some(0), ""), "{}", checked.stdout);
        assert_eq!(checked.stdout, "data/events.db is sound: 65637 events\n");
        let file = Connection::open(server.db_path()).unwrap();
        let version: i64 = file.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        assert_eq!(version, 6);
        drop(file);
        server.restart();
        assert_eq!(of_session(&server), expected);
    }
}

#[test]
fn stored_filters_that_a_client_may_not_send_any_more_are_still_served() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let file = Connection::open(database(folder.path())).unwrap();
    file.execute_batch(FORMAT_1).unwrap();
    let many: Vec<_> = (0..1_000).map(|n| format!("s{n}{}", "x".repeat(190))).collect();
    let kept = [
        ("large", json!({"session_id": many, "exclude": {"user_id": many}}).to_string()),
        ("number", r#"{"payload":{"n":[1e-99999999999999999999,7]}}"#.to_owned()),
        ("nothing", r#"{"payload":{"n":1e-99999999999999999999}}"#.to_owned()),
    ];
    for (name, filters) in &kept {
        let sql = "INSERT INTO subscriptions VALUES (?1, ?2, 0, '2026-01-01T00:00:00.000000Z')";
        file.execute(sql, params![name, filters]).unwrap();
    }
    drop(file);

    let mut server = Server::in_folder(folder, &[]);
    for _ in 0..2 {
        let before = server.stored("").len() as u64;
        for (session, n) in [("s0", 0), (many[7].as_str(), 0), ("s0", 7)] {
            server.publish(&tick(session, n));
        }
        let listed = server.get_json("/subscriptions");
        let names: Vec<_> = listed.as_array().unwrap().iter().map(|one| text_of(&one["name"])).collect();
        assert_eq!(names, ["large", "nothing", "number"]);
        for (name, expected) in [("large", before + 2), ("number", before + 3)] {
            let mut socket = server.subscriber(&json!({"name": name}));
            let id = text_of(&socket.json()["id"]);
            assert_eq!(id, id_of(expected), "{name}");
            socket.send(&json!({"type": "ack", "id": id}).to_string());
            assert_eq!(socket.ask(r#"{"type":"ping"}"#), json!({"type": "pong"}), "{name}");
        }
        let mut socket = server.subscriber(&json!({"name": "nothing"}));
        assert_eq!(socket.ask(r#"{"type":"ping"}"#), json!({"type": "pong"}), "it gets nothing");
        for (name, filters) in &kept {
            let mut socket = Socket::open(server.addr, "/ws/subscribe");
            socket.send(&filters.replacen('{', &format!("{{\"name\":\"{name}\","), 1));
            let (words, code) = socket.read_to_close();
            assert_eq!((words.len(), code), (1, 1008), "{name}: {words:?}");
            assert!(["512", "exponent", "524288"].iter().any(|word| words[0].contains(word)), "{name}: {}", words[0]);
        }
        server.stop();
        server.restart();
    }
}

/// What the last server of format 3 left behind: 69 events, the others of its 65,636 chosen to be deleted; a sealed
/// segment and an open one; two keys, of which one is that of a request with three events; a durable subscription.
const FORMAT_3: &[u8] = include_bytes!("golden/format-3.db");

/// What the last server of format 4 left behind: 76 events. The first 100 of its 65,640 were deleted by their age, the others
/// were chosen to be deleted. It has a sealed segment and an open one, and the key of a request with three events. It was
/// written again by `VACUUM`, which leaves out free pages.
const FORMAT_4: &[u8] = include_bytes!("golden/format-4.db");

/// What the last server of format 5 left behind: 68 events of two minutes. The first 49 of its 130 were deleted by their age,
/// and others were chosen to be deleted. Written again by `VACUUM`.
const FORMAT_5: &[u8] = include_bytes!("golden/format-5.db");

/// The statements that make a file of the newest format one of an earlier format again, as the documents have them.
fn way_back_to(format: usize) -> String {
    let document = include_str!("../../docs/formats.md");
    let steps: Vec<_> = document.split("```sql\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    // The first leads to format 5, the next to format 4.
    steps[..=5 - format].concat()
}

#[test]
fn a_repair_saves_everything_of_a_file_of_an_earlier_format() {
    let saved = [
        (FORMAT_3, "69 events, 2 idempotency keys, 1 durable subscriptions"),
        (FORMAT_4, "76 events, 2 idempotency keys, 0 durable subscriptions"),
        (FORMAT_5, "68 events, 1 idempotency keys, 0 durable subscriptions"),
    ];
    for (format, saved) in saved {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("old.db"), format).unwrap();
        let run = |arguments: &[&str]| Run::start(command(folder.path()).args(arguments), "").finish();
        let repaired = run(&["repair", "old.db", "--into", "new.db"]);
        assert_eq!((repaired.code, repaired.stdout.lines().next()), (Some(0), Some(&*format!("new.db: {saved}"))));
        assert_eq!(run(&["check", "new.db"]).code, Some(0));
        assert!(std::fs::read(folder.path().join("old.db")).unwrap() == format, "the old file stays as it is");
    }
}

#[test]
fn a_file_of_format_4_knows_at_once_up_to_where_it_is_deleted_and_there_is_a_way_back() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(database(folder.path()), FORMAT_4).unwrap();
    let checked = Run::start(command(folder.path()).args(["check", "data/events.db"]), "").finish();
    assert_eq!((checked.code, &*checked.stdout), (Some(0), "data/events.db is sound: 76 events\n"), "as it is");

    let mut server = Server::in_folder(folder, &[]);
    let number = |server: &Server, sql: &str| -> i64 {
        Connection::open(server.db_path()).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let deleted_through = "SELECT value FROM meta WHERE key = 'deleted_through'";
    assert_eq!((number(&server, "PRAGMA user_version"), number(&server, deleted_through)), (6, 100));
    let stored = sequences(&server.stored(""));
    assert_eq!((stored.len(), stored[0]), (76, 101));
    let of_s1: Vec<u64> = stored.iter().copied().filter(|n| n % 3 == 1 && *n <= 65_636).chain([65_640]).collect();
    assert_eq!(sequences(&server.stored("session_id=s1")), of_s1);

    // Everything before the request's second event: its key is known as long as any event of it is.
    let line = |n| {
        format!(r#"{{"event_type":"quiz_completed","source":"golden","session_id":"asked","payload":{{"n": {n}}}}}"#)
    };
    let lines = (0..3).map(line).collect::<Vec<_>>().join("\n");
    let repeat = |server: &Server| {
        let answer = server.call("POST", "/events", &[NDJSON, ("Idempotency-Key", "request")], lines.as_bytes());
        (answer.status, answer.json()["ids"][0].clone())
    };
    let second = encode(&timestamp(&server.get_json(&format!("/events/{}", id_of(65_638)))));
    let deleted = server.call("DELETE", &format!("/events?before={second}"), &[], b"").json();
    assert_eq!(deleted, json!({"deleted": 73}));
    assert_eq!(repeat(&server), (200, json!(id_of(65_637))));
    assert_eq!(number(&server, deleted_through), 65_637);
    server.stop();
    let checked = Run::start(command(server.folder()).args(["check", "data/events.db"]), "").finish();
    assert_eq!((checked.code, &*checked.stdout), (Some(0), "data/events.db is sound: 3 events\n"));

    Connection::open(server.db_path()).unwrap().execute_batch(&way_back_to(4)).unwrap();
    assert_eq!(number(&server, "PRAGMA user_version"), 4);
    assert_eq!(number(&server, "SELECT min(seq) FROM events"), 65_638);
    assert_eq!(number(&server, "SELECT count(*) FROM meta WHERE key = 'deleted_through'"), 0);
    let checked = Run::start(command(server.folder()).args(["check", "data/events.db"]), "").finish();
    assert_eq!((checked.code, &*checked.stdout), (Some(0), "data/events.db is sound: 3 events\n"));
    server.restart();
    assert_eq!(sequences(&server.stored("")), [65_638, 65_639, 65_640]);
    assert_eq!(repeat(&server), (200, json!(id_of(65_637))));
}

#[test]
fn the_events_of_a_file_of_format_5_are_counted_by_minute_and_there_is_a_way_back() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(database(folder.path()), FORMAT_5).unwrap();
    let checked = |folder: &Path| {
        let checked = Run::start(command(folder).args(["check", "data/events.db"]), "").finish();
        assert_eq!((checked.code, &*checked.stdout), (Some(0), "data/events.db is sound: 68 events\n"));
    };
    checked(folder.path());
    let mut server = Server::in_folder(folder, &[]);
    let counted = |server: &Server| {
        let asked = "since=2026-01-15T00:00:00Z&until=2026-01-16T00:00:00Z&interval=1m&group_by=event_type";
        let counted = server.get(&format!("/stats/series?{asked}"));
        (counted.status == 200).then(|| counted.json())
    };
    await_true("the counts", || counted(&server).is_some());
    let rows = counted(&server).unwrap();
    let rows: Vec<_> = rows.as_array().unwrap().iter().filter(|row| row["count"] != 0).cloned().collect();
    let row = |time, event_type, count| json!({"time": format!("2026-01-15T{time}:00.000000Z"), "event_type": event_type, "count": count});
    let expected = [
        row("10:31", "answer_submitted", 13),
        row("10:31", "timer_tick", 25),
        row("12:45", "answer_submitted", 10),
        row("12:45", "timer_tick", 20),
    ];
    assert_eq!(rows, expected);
    server.stop();
    checked(server.folder());
    let number = |sql: &str| -> i64 {
        Connection::open(server.db_path()).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(number("SELECT value FROM meta WHERE key = 'not_rolled_up'"), 0);
    Connection::open(server.db_path()).unwrap().execute_batch(&way_back_to(5)).unwrap();
    assert_eq!(number("PRAGMA user_version"), 5);
    assert_eq!(number("SELECT count(*) FROM sqlite_schema WHERE name = 'rollups'"), 0);
    checked(server.folder());
    server.restart();
    await_true("the counts", || counted(&server).is_some());
}

#[test]
fn a_file_of_format_3_is_opened_with_its_keys_and_holes_and_there_is_a_way_back() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(database(folder.path()), FORMAT_3).unwrap();
    let checked = Run::start(command(folder.path()).args(["check", "data/events.db"]), "").finish();
    assert_eq!((checked.code, &*checked.stdout), (Some(0), "data/events.db is sound: 69 events\n"), "as it is");
    let columns = |path: &Path| {
        let sql = "SELECT tables.name, columns.name, columns.type, columns.\"notnull\", columns.pk FROM sqlite_schema AS tables \
                   JOIN pragma_table_xinfo(tables.name) AS columns WHERE tables.type = 'table' ORDER BY tables.name, columns.cid";
        let file = Connection::open(path).unwrap();
        let mut statement = file.prepare(sql).unwrap();
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
        statement.query_map([], row).unwrap().collect::<Result<Vec<(String, String, String, bool, i64)>, _>>().unwrap()
    };
    let format_3 = columns(&database(folder.path()));

    let mut server = Server::in_folder(folder, &[]);
    let number = |server: &Server, sql: &str| -> i64 {
        Connection::open(server.db_path()).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(number(&server, "PRAGMA user_version"), 6);
    await_true("the holes", || number(&server, "SELECT count(*) FROM holes WHERE offsets IS NULL") == 0);
    assert_eq!(number(&server, "SELECT length(offsets) FROM holes WHERE segment = 0"), 1 + 65_536 / 8);
    let of_s1: Vec<u64> = (0..=64).filter(|n| n % 3 == 1).map(|n| n * 1_024 + 5).collect();
    assert_eq!(sequences(&server.stored("session_id=s1")), of_s1);
    assert_eq!(server.stored("session_id=gone").len(), 0);
    assert_eq!(server.get_json("/subscriptions")[0]["position"], id_of(65_630));

    let lines = |what: &str| {
        let line = |n| {
            format!(
                r#"{{"event_type":"quiz_completed","source":"golden","session_id":"asked","payload":{{"n": {n}}}}}"#
            )
        };
        (0..3).map(line).collect::<Vec<_>>().join("\n").replace("asked", what)
    };
    let repeat = |server: &Server, what: &str| {
        let answer = server.call("POST", "/events", &[NDJSON, ("Idempotency-Key", "request")], lines(what).as_bytes());
        (answer.status, answer.json()["ids"].clone())
    };
    let known = (200, json!([id_of(1), id_of(2), id_of(3)]));
    assert_eq!(repeat(&server, "asked"), known);
    for n in 0..2 {
        let filter = json!({"session_id": "asked", "payload": {"n": n}}).to_string();
        let deleted = server.call("DELETE", &format!("/events?filter={}", encode(&filter)), &[], b"");
        assert_eq!(deleted.json(), json!({"deleted": 1}));
        assert_eq!(repeat(&server, "asked"), known, "what was deleted is remembered");
        assert_eq!(repeat(&server, "other").0, 422);
    }
    server.await_stats("the check", |stats| stats["integrity"]["state"] == "sound");
    server.stop();
    let checked = Run::start(command(server.folder()).args(["check", "data/events.db"]), "").finish();
    assert_eq!((checked.code, &*checked.stdout), (Some(0), "data/events.db is sound: 67 events\n"));
    let repaired = Run::start(command(server.folder()).args(["repair", "--into", "data/new.db"]), "").finish();
    assert_eq!(
        repaired.stdout.lines().next(),
        Some("data/new.db: 67 events, 2 idempotency keys, 1 durable subscriptions")
    );

    Connection::open(server.db_path()).unwrap().execute_batch(&way_back_to(3)).unwrap();
    assert_eq!(number(&server, "PRAGMA user_version"), 3);
    assert_eq!(columns(&server.db_path()), format_3);
    assert_eq!(
        number(&server, "SELECT count(*) FROM idempotency_keys"),
        1,
        "format 3 cannot judge a repeat of the other"
    );
    server.restart();
    assert_eq!(sequences(&server.stored("session_id=s1")), of_s1);
}

#[test]
fn the_holes_of_the_open_segment_of_a_file_of_format_3_are_counted() {
    let mut server = Server::start();
    let event = |n: usize| {
        let user = if (10..60).contains(&n) || n > 95 { "gone" } else { "kept" };
        json!({"event_type": "quiz_started", "source": "it", "user_id": user}).to_string()
    };
    server.publish_lines(&(0..100).map(event).collect::<Vec<_>>());
    assert_eq!(server.call("DELETE", "/events?user_id=gone", &[], b"").json(), json!({"deleted": 54}));
    server.stop();
    Connection::open(server.db_path()).unwrap().execute_batch(&way_back_to(3)).unwrap();
    server.restart();
    let kept = |server: &Server| {
        let stats = server.get_json("/stats");
        [&stats["total_events"], &stats["events_last_hour"]].map(|count| count.as_u64().unwrap())
    };
    assert_eq!(kept(&server), [46, 46]);
    // The next ones follow on those that are gone, and are not taken for such.
    server.publish_lines(&(0..10).map(event).collect::<Vec<_>>());
    assert_eq!(kept(&server), [56, 56]);
}

#[test]
fn check_and_repair_refuse_a_file_of_another_format_or_program_and_leave_it_unchanged() {
    let folder = in_new_folder(Schema::Newer, &rows());
    let data = folder.path().join("data");
    std::fs::rename(database(folder.path()), data.join("python.db")).unwrap();
    let formats = [FORMAT_1, FORMAT_2];
    let former = Connection::open(data.join("former.db")).unwrap();
    formats.iter().for_each(|format| former.execute_batch(format).unwrap());
    drop(former);
    Connection::open(data.join("foreign.db")).unwrap().execute_batch("CREATE TABLE notes (text)").unwrap();
    std::fs::write(data.join("empty.db"), "").unwrap();
    let before = std::fs::read(data.join("foreign.db")).unwrap();

    let run = |arguments: &[&str]| Run::start(command(folder.path()).args(arguments), "").finish();
    let (another, none) = ("start the server on it once", "not a file of the event pipeline");
    for (name, word) in [("python", another), ("former", another), ("foreign", none), ("empty", none)] {
        let file = format!("data/{name}.db");
        let checked = run(&["check", &file]);
        assert_eq!((checked.code, &*checked.stdout), (Some(1), ""), "{name}: {}", checked.stderr);
        assert!(checked.stderr.contains(word) && !checked.stderr.contains("damage"), "{}", checked.stderr);
        let repaired = run(&["repair", &file, "--into", "data/new.db"]);
        assert_eq!((repaired.code, &*repaired.stdout), (Some(1), ""), "{name}");
        assert!(!data.join("new.db").exists());
    }
    assert_eq!(std::fs::read(data.join("foreign.db")).unwrap(), before);
    assert!(!data.join("foreign.db.lock").exists());
}
