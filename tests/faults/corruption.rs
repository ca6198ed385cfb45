//! Damage: bits that flip in the database or its write-ahead log. Damaged events are named and never served, nothing
//! panics, the rest is served, and `check` and `repair` do what they promise.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::json;

use crate::support::*;

/// Flips one bit of a file.
fn flip(path: &Path, at: usize, bit: u32) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    std::fs::write(path, bytes).unwrap();
}

/// Where a text begins in a file.
fn offset_of(path: &Path, text: &str) -> usize {
    let bytes = std::fs::read(path).unwrap();
    bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap_or_else(|| panic!("no {text}"))
}

fn marked(n: usize) -> String {
    json!({"event_type": "timer_tick", "source": "it", "session_id": "s", "payload": {"mark": format!("<<{n}>>")}})
        .to_string()
}

fn run(server: &Server, arguments: &[&str]) -> Finished {
    Run::start(command(server.folder()).args(arguments), "").finish()
}

/// The damage that the server reports at the end of its integrity check.
fn damage(server: &Server) -> Vec<String> {
    let integrity = || server.get("/readiness").json()["integrity"].clone();
    await_true("the end of the check", || !matches!(integrity()["state"].as_str(), Some("checking" | "unchecked")));
    integrity()["damage"].as_array().unwrap().iter().map(text_of).collect()
}

#[test]
fn a_damaged_event_is_named_and_not_served_and_a_repair_saves_the_others() {
    let mut server = Server::start();
    for n in 1..=3 {
        server.publish(&marked(n));
    }
    server.publish(&json!({"event_type": "quiz_started", "source": "it", "session_id": "t"}).to_string());
    server.stop();
    flip(&server.db_path(), offset_of(&server.db_path(), "<<2>>") + 2, 0);
    server.allow_noise();
    server.restart();

    let named = "events: evt_000000000002 is damaged";
    assert_eq!(damage(&server), [named]);
    assert_eq!(server.get_json("/stats")["integrity"]["state"], "damaged");
    server.await_log(named);
    for target in ["/events/evt_000000000002", "/events?session_id=s", "/events"] {
        let response = server.get(target);
        assert_eq!(response.status, 500, "{target}: {}", response.text());
        assert_eq!(response.header("retry-after"), None, "trying again does not help");
        assert!(text_of(&response.json()["detail"]).contains("damaged"), "{target}: {}", response.text());
    }
    for id in ["evt_000000000001", "evt_000000000003"] {
        assert_eq!(server.get_json(&format!("/events/{id}"))["id"], id);
    }
    assert_eq!(sequences(&server.stored("session_id=t")), [4]);
    // Who comes to it is told and not left with a hole; who does not is served, and so is what is new.
    let mut through = server.subscriber(&json!({"after": id_of(1)}));
    assert_eq!(through.close_code(), 1011);
    let mut past = server.subscriber(&json!({"after": id_of(2)}));
    assert_eq!(sequence(&server.publish(&marked(5))["id"]), 5);
    assert_eq!((3..=5).map(|_| sequence(&past.json()["id"])).collect::<Vec<_>>(), [3, 4, 5]);

    let checked = run(&server, &["check", "data/events.db"]);
    assert_eq!((checked.code, checked.stdout.trim()), (Some(1), named));
    assert!(checked.stderr.contains("is damaged (1 findings)"), "{}", checked.stderr);
    let refused = run(&server, &["repair", "data/events.db", "--into", "data/new.db"]);
    assert_eq!(refused.code, Some(1), "while a server runs on it");
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    server.stop();
    let repaired = run(&server, &["repair", "data/events.db", "--into", "data/new.db"]);
    assert_eq!((repaired.code, &*repaired.stderr), (Some(0), ""));
    let [lost, counts, holes] = repaired.stdout.lines().collect::<Vec<_>>()[..] else { panic!("{}", repaired.stdout) };
    assert_eq!(lost, "evt_000000000002 is damaged and was left out");
    assert_eq!(counts, "data/new.db: 4 events, 0 idempotency keys, 0 durable subscriptions");
    assert_eq!(holes, "1 numbers between the first and the last have no event; 0 were deleted");
    let again = run(&server, &["repair", "data/events.db", "--into", "data/new.db"]);
    assert_eq!(again.code, Some(1), "a file that exists is not overwritten");

    put_in_place(&mut server);
    assert_eq!(damage(&server), [""; 0]);
    assert_eq!(sequences(&server.stored("")), [1, 3, 4, 5]);
    assert_eq!(sequences(&server.stored("session_id=s")), [1, 3, 5]);
    let (total, by_type) = reported_statistics(&server);
    assert_eq!((total, &by_type), (4, &statistics(&server.stored(""))));
    assert_eq!(sequence(&server.publish(&marked(6))["id"]), 6);
}

#[test]
fn a_damaged_event_that_the_writer_meets_does_not_end_the_server() {
    let mut server = Server::start();
    let of_session = |session: &str, n: usize| marked(n).replace("\"s\"", &format!("\"{session}\""));
    let keyed = |server: &Server, n: usize| {
        let key = format!("key-{n}");
        server.call("POST", "/events", &[JSON, ("Idempotency-Key", &key)], of_session("t", n).as_bytes()).status
    };
    server.publish(&of_session("s", 1));
    assert_eq!((keyed(&server, 2), keyed(&server, 3)), (201, 201));
    server.publish(&of_session("s", 4));
    server.publish(&json!({"event_type": "quiz_started", "source": "it", "payload": {"mark": "<<5>>"}}).to_string());
    server.stop();
    // A key from before format 4, whose repeats are judged by the event itself.
    let former = "UPDATE idempotency_keys SET digest = NULL, checksum = NULL WHERE key = 'key-2'";
    assert_eq!(rusqlite::Connection::open(server.db_path()).unwrap().execute(former, []).unwrap(), 1);
    for mark in ["<<2>>", "<<3>>", "<<5>>"] {
        flip(&server.db_path(), offset_of(&server.db_path(), mark) + 2, 0);
    }
    server.allow_noise();
    server.restart();

    assert_eq!(server.get("/stats").status, 200, "the newest event is damaged, and here is where that is told");
    for n in [2, 3] {
        assert_eq!(keyed(&server, n), 500, "a repeat of event {n}");
    }
    let message = of_session("t", 2).replacen('{', "{\"idempotency_key\":\"key-2\",", 1);
    let answer = server.publisher().ask(&message);
    assert_eq!(answer["status"], "error");
    assert!(text_of(&answer["message"]).contains("damaged"), "{answer}");
    // The newest of its type goes, and the next one is damaged.
    let delete = |what: &str| server.call("DELETE", &format!("/events?{what}"), &[], b"");
    assert_eq!(delete("event_type=timer_tick&session_id=s").json(), json!({"deleted": 2}));
    let refused = delete("session_id=t");
    assert_eq!(refused.status, 500, "which events these are cannot be read: {}", refused.text());
    assert_eq!(damage(&server).len(), 3);
    assert_eq!(server.publish(&marked(6))["id"], id_of(6));
    assert_eq!(server.call("DELETE", "/events", &[], b"").json(), json!({"deleted": 4}));
}

#[test]
fn damage_where_keys_are_stored_refuses_events_with_keys_and_no_others() {
    let keyed = |server: &Server, n: usize| {
        let key = format!("key-{n}");
        server.call("POST", "/events", &[JSON, ("Idempotency-Key", &key)], marked(n).as_bytes())
    };
    for tree in ["idempotency_keys", "sqlite_autoindex_idempotency_keys_1"] {
        let mut server = Server::start();
        assert_eq!(keyed(&server, 1).status, 201);
        server.stop();
        let file = rusqlite::Connection::open(server.db_path()).unwrap();
        let sql = "SELECT rootpage, (SELECT * FROM pragma_page_size) FROM sqlite_schema WHERE name = ?1";
        let (page, len): (u32, u32) = file.query_row(sql, [tree], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        drop(file);
        let mut bytes = std::fs::read(server.db_path()).unwrap();
        bytes[((page - 1) * len) as usize..(page * len) as usize].fill(0);
        std::fs::write(server.db_path(), bytes).unwrap();
        server.allow_noise();

        let mut last = 1;
        for life in 0..2 {
            server.restart();
            let mut publisher = server.publisher();
            for n in 2..5 {
                let refused = keyed(&server, n);
                assert_eq!(refused.status, 500, "{tree}, life {life}: {}", refused.text());
                assert!(text_of(&refused.json()["detail"]).contains("damaged"), "{}", refused.text());
                assert_eq!(server.publish(&marked(n))["id"], id_of(last + 1), "{tree}, life {life}");
                let answer = publisher.ask(&marked(n).replacen('{', "{\"idempotency_key\":\"k\",", 1));
                assert_eq!(answer["status"], "error", "{answer}");
                assert!(text_of(&answer["message"]).contains("damaged"), "{answer}");
                assert_eq!(publisher.ask(&marked(n))["event_id"], id_of(last + 2), "{tree}, life {life}");
                last += 2;
            }
            assert!(!damage(&server).is_empty());
            assert_eq!(server.stored("").len() as u64, last);
            drop(publisher);
            server.stop();
        }
        let repaired = run(&server, &["repair", "data/events.db", "--into", "data/new.db"]);
        assert_eq!(repaired.code, Some(0), "{}", repaired.stderr);
        put_in_place(&mut server);
        assert_eq!(server.stored("").len() as u64, last);
        assert_eq!(keyed(&server, 2).status, 201);
    }
}

#[test]
fn the_time_of_a_damaged_last_event_is_not_trusted_at_start() {
    let mut server = Server::start();
    let before = timestamp(&server.publish(&marked(1)));
    server.publish(&marked(2));
    server.stop();
    let flipped = "UPDATE events SET time_us = time_us + (1 << 52) WHERE seq = 2";
    assert_eq!(rusqlite::Connection::open(server.db_path()).unwrap().execute(flipped, []).unwrap(), 1);
    server.allow_noise();
    server.restart();
    server.await_log("events: evt_000000000002 is damaged");
    let after = timestamp(&server.publish(&marked(3)));
    // Bit 52 of the microseconds is 142 years.
    assert_eq!(after[..2], before[..2], "{before} and {after}");
    assert_eq!(damage(&server), ["events: evt_000000000002 is damaged"]);
}

#[test]
fn a_damaged_write_ahead_log_stops_the_start_and_a_repair_saves_what_comes_behind() {
    let mut server = Server::start();
    let ids: Vec<_> = (1..=100).map(|n| text_of(&server.publish(&marked(n))["id"])).collect();
    server.kill();
    let log = server.folder().join("data/events.db-wal");
    flip(&log, offset_of(&log, "<<60>>") + 2, 1);

    let mut refused = Process::spawn(server.folder(), &[], &[]);
    assert_eq!(refused.await_exit().code(), Some(1));
    let complaints = refused.log.noise();
    assert!(
        complaints.len() == 1 && complaints[0].contains("write-ahead log") && complaints[0].contains("later commits"),
        "{complaints:#?}"
    );
    let checked = run(&server, &["check"]);
    assert_eq!(checked.code, Some(1));
    assert!(checked.stdout.starts_with("write-ahead log: frame "), "{}", checked.stdout);

    repair_in_place(&mut server);
    let saved: Vec<_> = server.stored("").iter().map(|event| text_of(&event["id"])).collect();
    // The later versions of that page are whole.
    assert_eq!(saved, ids);
}

#[test]
fn a_damaged_definition_of_a_table_stops_the_start_and_a_repair_saves_everything() {
    let mut server = Server::start();
    let ids: Vec<_> = (1..=100).map(|n| text_of(&server.publish(&marked(n))["id"])).collect();
    server.stop();
    flip(&server.db_path(), offset_of(&server.db_path(), "last_seen TEXT NOT NULL\n) WITHOUT ROWID"), 1);

    let mut refused = Process::spawn(server.folder(), &[], &[]);
    assert_eq!(refused.await_exit().code(), Some(1));
    let complaints = refused.log.noise();
    let named = "tables: event_stats.last_seen is damaged";
    assert!(complaints.len() == 1 && complaints[0].contains(named), "{complaints:#?}");
    let checked = run(&server, &["check"]);
    assert_eq!((checked.code, checked.stdout.trim()), (Some(1), named));
    repair_in_place(&mut server);
    let saved: Vec<_> = server.stored("").iter().map(|event| text_of(&event["id"])).collect();
    assert_eq!(saved, ids);
    assert_eq!(reported_statistics(&server), (100, statistics(&server.stored(""))));
}

/// Puts the repaired file in the place of the damaged one, and starts the server on it.
fn put_in_place(server: &mut Server) {
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(server.folder().join(format!("data/events.db{end}")));
    }
    std::fs::rename(server.folder().join("data/new.db"), server.db_path()).unwrap();
    server.restart();
}

/// Repairs a file, which is sound then, and starts the server on it.
fn repair_in_place(server: &mut Server) {
    let repaired = run(server, &["repair", "--into", "data/new.db"]);
    assert_eq!(repaired.code, Some(0), "{}", repaired.stderr);
    let checked = run(server, &["check", "data/new.db"]);
    assert_eq!(checked.code, Some(0), "{}{}", checked.stdout, checked.stderr);
    put_in_place(server);
}

/// The lines of an export as far as they came, and whether it came to its end.
fn export(server: &Server, query: &str) -> (Vec<String>, bool) {
    let mut stream = TcpStream::connect(server.addr).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!(
        "GET /events?{query} HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let Some((head, mut rest)) = answer.split_once("\r\n\r\n") else { return (Vec::new(), false) };
    if !head.starts_with("HTTP/1.1 200") {
        return (Vec::new(), false);
    }
    let mut body = String::new();
    let is_complete = loop {
        let Some((len, chunk)) = rest.split_once("\r\n") else { break false };
        let len = usize::from_str_radix(len, 16).unwrap();
        if len == 0 {
            break true;
        }
        let Some(text) = chunk.get(..len) else { break false };
        body += text;
        rest = chunk.get(len + 2..).unwrap_or("");
    };
    let whole = body.rfind('\n').map_or("", |end| &body[..end]);
    (whole.lines().map(str::to_string).collect(), is_complete)
}

/// What clients get out of a server, and whether all of it came to its end.
fn told(server: &Server) -> (Vec<Vec<String>>, bool) {
    let queries = ["", "session_id=s1", "session_id=s3", "user_id=u7", "event_type=quiz_started"];
    let (events, complete): (Vec<_>, Vec<_>) = queries.iter().map(|query| export(server, query)).unzip();
    let stats = server.get("/stats");
    let mut complete = complete.iter().all(|complete| *complete);
    let mut told = events;
    complete &= stats.status == 200;
    if stats.status == 200 {
        told.push(vec![stats.json()["by_type"].to_string()]);
    }
    (told, complete)
}

#[test]
fn no_flipped_bit_of_a_file_is_served_as_data() {
    let mut dice = Random::seeded();
    let mut server = Server::start();
    let events: Vec<String> = (0..600)
        .map(|n| {
            let event_type = if n % 10 == 0 { "quiz_started" } else { "timer_tick" };
            let payload = json!({"n": n, "text": "y".repeat(n % 90)});
            json!({"event_type": event_type, "source": "it", "session_id": format!("s{}", n % 5),
                "user_id": format!("u{}", n % 11), "payload": payload})
            .to_string()
        })
        .collect();
    server.publish_lines(&events);
    assert_eq!(damage(&server), [""; 0]);
    let (before, complete) = told(&server);
    assert!(complete && before[0].len() == 600);
    let whole: BTreeSet<&String> = before[0].iter().collect();
    server.stop();
    let bytes = std::fs::read(server.db_path()).unwrap();
    server.allow_noise();

    let (mut noticed, mut refused, mut harmless) = (0, 0, 0);
    for _ in 0..50 {
        let (at, bit) = (dice.below(bytes.len() as u64) as usize, dice.below(8) as u32);
        let place = format!("bit {bit} of byte {at}");
        for end in ["-wal", "-shm", ".lock"] {
            let _ = std::fs::remove_file(server.folder().join(format!("data/events.db{end}")));
        }
        std::fs::write(server.db_path(), &bytes).unwrap();
        flip(&server.db_path(), at, bit);
        if let Err((_, complaints)) = server.try_restart() {
            refused += 1;
            // The check behind the start may log something after it.
            let in_words = complaints.iter().any(|line| line.starts_with("event-pipeline: "));
            assert!(in_words && !complaints.concat().contains("panicked"), "{place}: {complaints:#?}");
            continue;
        }
        let damage = damage(&server);
        let (after, complete) = told(&server);
        for line in after.iter().take(5).flatten() {
            assert!(whole.contains(line), "{place}: served what was never stored: {line}");
        }
        assert!(complete || !damage.is_empty(), "{place}: a reading fails, and nothing is told");
        if damage.is_empty() {
            harmless += 1;
            assert_eq!(after, before, "{place}: something else is served, and nothing is told");
        } else {
            noticed += 1;
        }
        let panicked = server.log().iter().any(|line| line.contains("panicked"));
        assert!(!panicked, "{place}: {:#?}", server.log());
        server.kill();
    }
    println!("{noticed} noticed, {refused} not started, {harmless} without effect");
}

#[test]
fn damage_beside_the_events_refuses_no_start_and_hides_nothing_else() {
    let mut server = Server::start();
    server.publish(&marked(1));
    server.publish(&json!({"event_type": "quiz_started", "source": "it"}).to_string());
    ["grader", "board"].into_iter().for_each(|name| drop(server.subscriber(&json!({"name": name}))));
    server.stop();
    // Bytes that are no text, and a position that was never confirmed.
    let flips = "UPDATE event_stats SET last_seen = CAST(X'B230' AS TEXT) WHERE event_type = 'timer_tick';
        UPDATE subscriptions SET position = position + 1 WHERE name = 'grader'";
    rusqlite::Connection::open(server.db_path()).unwrap().execute_batch(flips).unwrap();
    server.allow_noise();
    server.restart();

    let damage = damage(&server);
    assert_eq!(damage.len(), 2, "{damage:?}");
    assert!(damage[0].starts_with("event_stats: ") && damage[1].starts_with("subscriptions: "), "{damage:?}");
    server.await_log("grader");
    let names = || {
        let all = server.get_json("/subscriptions");
        all.as_array().unwrap().iter().map(|one| text_of(&one["name"])).collect::<Vec<_>>()
    };
    assert_eq!(names(), ["board"]);
    let (total, by_type) = reported_statistics(&server);
    assert_eq!((total, by_type.len()), (1, 1), "the others cannot be told");
    assert_eq!(server.publish(&marked(3))["id"], id_of(3));
    drop(server.subscriber(&json!({"name": "grader"})));
    assert_eq!(names(), ["board", "grader"]);
}
