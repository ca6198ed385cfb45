//! A recording made from a database: it can be played, and tells nobody's name.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use rusqlite::Connection;
use serde_json::Value;

fn loadtest(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().expect("it starts");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_recording_of_a_database_keeps_times_and_shapes_and_no_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (database, recording) = (path("events.db"), path("day.ndjson"));
    // What a server has is read through this view alone.
    let connection = Connection::open(&database).expect("a database");
    connection
        .execute_batch(
            r#"CREATE TABLE readable_events (seq INTEGER PRIMARY KEY, id, event_type, source, session_id, user_id, payload, timestamp);
            INSERT INTO readable_events (event_type, source, session_id, user_id, payload, timestamp) VALUES
                ('quiz_started', 'quiz', 'maths', 'ada', '{"title":"Sums"}', '2026-11-30T08:00:00.250000Z'),
                ('timer_tick', 'timer', 'maths', NULL, '{"left":30}', '2026-11-30T08:00:01.000000Z'),
                ('timer_tick', 'timer', NULL, NULL, '{}', '2026-11-30T08:00:01.500000Z'),
                ('timer_tick', 'timer', 'art', 'ada', '{"left":9}', '2026-11-30T08:00:00.900000Z'),
                ('timer_tick', 'timer', 'late', 'bob', '{}', '2026-12-01T08:00:00.000000Z');"#,
        )
        .expect("rows");
    let (done, told) = loadtest(&["record", &database, &recording, "--until", "2026-12-01"]);
    assert!(done && told.contains("3 events of 0.8 s") && told.contains("1 without a session left out"), "{told}");
    let text = std::fs::read_to_string(&recording).expect("a recording");
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>();
    let offsets = lines.iter().map(|line| line["offset_ms"].as_u64().expect("a number")).collect::<Vec<_>>();
    assert_eq!(offsets, [0, 750, 750]);
    assert_eq!(lines[0]["event"]["payload"], serde_json::json!({ "title": "xxxx" }));
    assert_eq!(lines[0]["event"]["user_id"], lines[2]["event"]["user_id"]);
    let sessions =
        lines.iter().map(|line| line["event"]["session_id"].as_str().expect("an id")).collect::<HashSet<_>>();
    assert_eq!(sessions.len(), 2);
    assert!(["\"maths\"", "\"ada\"", "Sums", ":30}"].iter().all(|name| !text.contains(name)), "{text}");
    // Nothing is written over.
    let (done, told) = loadtest(&["record", &database, &recording]);
    assert!(!done && told.contains("create "), "{told}");
    let (done, told) = loadtest(&["record", &database, &path("none.ndjson"), "--since", "2027"]);
    assert!(!done && told.contains("has no events with a session") && Path::new(&recording).exists(), "{told}");
}
