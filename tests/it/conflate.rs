//! Conflation (only the latest event of each key), snapshots, and paced replay.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::subscribe::while_publishing;
use crate::support::*;

/// What a conflating subscriber received: events in order, and the number of events left out.
#[derive(Default)]
struct Conflated {
    events: Vec<Value>,
    skipped: u64,
}

impl Conflated {
    fn note(&mut self, message: Value) {
        if message["type"] == "skipped" {
            let count = message["count"].as_u64().unwrap();
            assert_eq!(message, json!({"type": "skipped", "count": count}));
            assert!(count > 0, "a message about no event");
            self.skipped += count;
            return;
        }
        let last = self.events.last().map_or(0, |event| sequence(&event["id"]));
        assert!(sequence(&message["id"]) > last, "{message} after {last}");
        self.events.push(message);
    }

    /// Reads until `accounted` events were received or left out.
    fn read(&mut self, subscriber: &mut Socket, accounted: usize) {
        while self.events.len() as u64 + self.skipped < accounted as u64 {
            self.note(subscriber.json());
        }
        assert_eq!(self.events.len() as u64 + self.skipped, accounted as u64);
    }
}

/// The last stored event of each type and value of a field.
fn latest(events: &[Value], key: &str) -> BTreeMap<(String, String), Value> {
    let key_of = |event: &Value| (event["event_type"].to_string(), event[key].to_string());
    events.iter().map(|event| (key_of(event), event.clone())).collect()
}

/// The n-th event: of two types, four sources and two users, in three sessions or none.
fn event(n: usize) -> String {
    json!({
        "event_type": (["timer_tick", "question_viewed"][n % 2]),
        "source": format!("source{}", n % 4),
        "session_id": if n.is_multiple_of(7) { Value::Null } else { json!(format!("s{}", n % 3)) },
        "user_id": (["u0", "u1"][n % 5 % 2]),
        "payload": {"n": n},
    })
    .to_string()
}

fn publish(server: &Server, numbers: std::ops::Range<usize>) {
    server.publish_lines(&numbers.map(event).collect::<Vec<_>>());
}

fn conflate(key: &str, interval_ms: u64) -> Value {
    json!({"conflate": {"key": key, "interval_ms": interval_ms, "skipped": true}})
}

const KEYS: [&str; 4] = ["session_id", "user_id", "event_type", "source"];

#[test]
fn the_last_event_of_each_key_always_arrives() {
    let server = Server::start();
    let mut subscribers = KEYS.map(|key| (key, server.subscriber(&conflate(key, 50)), Conflated::default()));
    let mut stored = 0;
    for burst in [1_000, 1, 500, 2_000, 3] {
        publish(&server, stored..stored + burst);
        stored += burst;
        let all = server.stored("");
        // No event follows the burst.
        for (key, subscriber, conflated) in &mut subscribers {
            conflated.read(subscriber, stored);
            assert_eq!(latest(&conflated.events, key), latest(&all, key), "{key} after {stored}");
        }
    }
    for (key, _, conflated) in &subscribers {
        assert!(conflated.skipped > 2_000, "{key}: only {} were left out", conflated.skipped);
    }
}

#[test]
fn the_number_of_left_out_events_is_sent_only_on_request() {
    let server = Server::start();
    let asked = [
        json!({"key": "event_type", "interval_ms": 10}),
        json!({"key": "event_type", "interval_ms": 10, "skipped": false}),
        json!({"key": "event_type", "interval_ms": 10, "skipped": null}),
    ];
    let mut subscribers = asked.map(|conflate| server.subscriber(&json!({"conflate": conflate})));
    publish(&server, 0..1_000);
    for subscriber in &mut subscribers {
        let mut last = 0;
        while last < 1_000 {
            last = sequence(&subscriber.json()["id"]);
        }
        assert_eq!(subscriber.ask(r#"{"type":"ping"}"#), json!({"type": "pong"}), "nothing but events");
    }
}

#[test]
fn each_key_arrives_at_most_once_an_interval() {
    const INTERVAL: Duration = Duration::from_millis(100);
    const EVENTS: usize = 2_000;
    let server = Server::start();
    let start = Instant::now();
    let mut subscriber = server.subscriber(&conflate("session_id", INTERVAL.as_millis() as u64));
    let mut publisher = server.publisher();
    let mut conflated = Conflated::default();
    for n in 0..EVENTS / 10 {
        acknowledged(&publisher.pipeline(&(0..10).map(|i| tick("s", n * 10 + i)).collect::<Vec<_>>()));
    }
    conflated.read(&mut subscriber, EVENTS);
    // One event arrives at once, and one at the end of each interval. On a slow machine more intervals pass.
    let most = 1 + start.elapsed().as_millis() / INTERVAL.as_millis();
    assert!(conflated.events.len() as u128 <= most, "{} in {:?}", conflated.events.len(), start.elapsed());
}

#[test]
fn history_is_conflated() {
    let server = Server::start();
    for part in 0..10 {
        publish(&server, part * 1_000..(part + 1) * 1_000);
    }
    let all = server.stored("");
    for key in KEYS {
        let mut first = conflate(key, 50);
        first["after"] = id_of(0).into();
        let mut live = server.subscriber(&first);
        first["until"] = "2999-01-01T00:00:00Z".into();
        let (words, code) = server.subscriber(&first).read_to_close();
        assert_eq!(code, 1000, "{key}");
        let mut conflated = Conflated::default();
        words.iter().for_each(|word| conflated.note(serde_json::from_str(word).unwrap()));
        assert_eq!(conflated.events.len() as u64 + conflated.skipped, 10_000, "{key}");
        assert!(conflated.events.len() < 1_000, "{key}: {} came", conflated.events.len());
        assert_eq!(latest(&conflated.events, key), latest(&all, key), "{key}");

        let mut conflated = Conflated::default();
        conflated.read(&mut live, 10_000);
        assert_eq!(latest(&conflated.events, key), latest(&all, key), "{key}");
    }
}

#[test]
fn only_events_that_pass_the_filter_replace_earlier_ones() {
    let server = Server::start();
    let mut first = conflate("session_id", 20);
    first["event_types"] = json!(["timer_tick"]);
    first["payload"] = json!({"n": (0..500).collect::<Vec<_>>()});
    let mut subscriber = server.subscriber(&first);
    publish(&server, 0..1_000);
    let passing: Vec<_> = server.stored("event_type=timer_tick").into_iter().take(250).collect();
    let mut conflated = Conflated::default();
    conflated.read(&mut subscriber, 250);
    assert_eq!(latest(&conflated.events, "session_id"), latest(&passing, "session_id"));
}

/// An interval, in milliseconds, that is longer than any test.
const EVER: u64 = 60_000;

#[test]
fn events_held_back_are_sent_before_new_filters_and_before_the_end() {
    let mut server = Server::start();
    let held_back = |server: &Server, first: Value| {
        let mut subscriber = server.subscriber(&first);
        let first = server.publish(&tick("a", 0));
        assert_eq!(subscriber.json(), first, "the first at once");
        subscriber
    };
    let mut subscriber = held_back(&server, conflate("session_id", EVER));
    let (_, b) = (server.publish(&tick("a", 1)), server.publish(&tick("b", 2)));
    let a = server.publish(&tick("a", 3));
    subscriber.send(r#"{"type":"update_filters","filters":{"session_id":"b"}}"#);
    assert_eq!(subscriber.collect(2), [b, a]);
    assert_eq!(subscriber.json(), json!({"type": "skipped", "count": 1}));
    assert_eq!(subscriber.json(), json!({"status": "filters_updated", "filters": {"session_id": "b"}}));

    server.publish(&tick("a", 4));
    let last = server.publish(&tick("b", 5));
    server.stop();
    let (words, code) = subscriber.read_to_close();
    let words: Vec<Value> = words.iter().map(|word| serde_json::from_str(word).unwrap()).collect();
    assert_eq!((words, code), (vec![last], 1001));
}

#[test]
fn events_beyond_the_memory_bound_are_sent_before_the_interval_is_over() {
    let server = Server::with(&[("MAX_SUBSCRIBER_BYTES", "65536")]);
    let mut subscriber = server.subscriber(&conflate("session_id", EVER));
    let filler = "x".repeat(1_000);
    let message = |n: usize| {
        let payload = json!({"filler": filler});
        json!({"event_type": "timer_tick", "source": "it", "session_id": n.to_string(), "payload": payload}).to_string()
    };
    server.publish_lines(&(0..1_000).map(message).collect::<Vec<_>>());
    // All but about the last 64 KiB arrive, although the interval is far from over.
    for n in 1..=900 {
        assert_eq!(sequence(&subscriber.json()["id"]), n);
    }
}

#[test]
fn invalid_conflation_snapshot_and_speed_are_refused_with_a_message() {
    let server = Server::start();
    server.publish(&tick("s", 0));
    let rule = r#""conflate":{"key":"session_id","interval_ms":250}"#;
    let refused = [
        (r#"{"conflate":true}"#.to_owned(), "conflate"),
        (r#"{"conflate":{}}"#.to_owned(), "key"),
        (r#"{"conflate":{"key":"session_id"}}"#.to_owned(), "interval_ms"),
        (r#"{"conflate":{"interval_ms":250}}"#.to_owned(), "key"),
        (r#"{"conflate":{"key":"payload","interval_ms":250}}"#.to_owned(), "key"),
        (r#"{"conflate":{"key":"id","interval_ms":250}}"#.to_owned(), "key"),
        (r#"{"conflate":{"key":["session_id"],"interval_ms":250}}"#.to_owned(), "key"),
        (r#"{"conflate":{"key":"session_id","interval_ms":9}}"#.to_owned(), "interval_ms"),
        (r#"{"conflate":{"key":"session_id","interval_ms":60001}}"#.to_owned(), "interval_ms"),
        (r#"{"conflate":{"key":"session_id","interval_ms":-1}}"#.to_owned(), "interval_ms"),
        (r#"{"conflate":{"key":"session_id","interval_ms":"250"}}"#.to_owned(), "interval_ms"),
        (r#"{"conflate":{"key":"session_id","interval_ms":250.5}}"#.to_owned(), "interval_ms"),
        (r#"{"conflate":{"key":"session_id","interval_ms":250,"skipped":1}}"#.to_owned(), "skipped"),
        (format!(r#"{{"name":"n",{rule}}}"#), "conflated"),
        (format!(r#"{{"group":"g",{rule}}}"#), "conflated"),
        (r#"{"snapshot":true}"#.to_owned(), "snapshot"),
        (r#"{"snapshot":{}}"#.to_owned(), "latest_by"),
        (r#"{"snapshot":{"latest_by":"payload"}}"#.to_owned(), "latest_by"),
        (r#"{"snapshot":{"latest_by":"session_id"},"last":1}"#.to_owned(), "snapshot"),
        (r#"{"snapshot":{"latest_by":"session_id"},"after":"evt_000000000001"}"#.to_owned(), "snapshot"),
        (r#"{"snapshot":{"latest_by":"session_id"},"until":"2999-01-01T00:00:00Z"}"#.to_owned(), "snapshot"),
        (r#"{"snapshot":{"latest_by":"session_id"},"name":"n"}"#.to_owned(), "snapshot"),
        (r#"{"until":"2999-01-01T00:00:00Z"}"#.to_owned(), "until"),
        (r#"{"last":1,"until":"soon"}"#.to_owned(), "until"),
        (r#"{"last":1,"until":17}"#.to_owned(), "until"),
        (r#"{"last":1,"speed":0}"#.to_owned(), "speed"),
        (r#"{"last":1,"speed":-1}"#.to_owned(), "speed"),
        (r#"{"last":1,"speed":0.001}"#.to_owned(), "speed"),
        (r#"{"last":1,"speed":10001}"#.to_owned(), "speed"),
        (r#"{"last":1,"speed":"2"}"#.to_owned(), "speed"),
        (r#"{"group":"g","last":1,"speed":2}"#.to_owned(), "speed"),
    ];
    for (first, word) in refused {
        let mut socket = Socket::open(server.addr, "/ws/subscribe");
        let answer = socket.ask(&first);
        assert_eq!(answer["status"], "error", "{first}: {answer}");
        assert!(text_of(&answer["message"]).contains(word), "{first}: {answer}");
        assert_eq!(socket.close_code(), 1008, "{first}");
    }
}

fn snapshot(field: &str) -> Value {
    json!({"snapshot": {"latest_by": field}})
}

#[test]
fn the_snapshot_of_an_empty_database_is_empty() {
    let server = Server::start();
    let mut subscriber = server.subscriber(&snapshot("session_id"));
    let first = server.publish(&tick("s", 0));
    assert_eq!(subscriber.json(), first);
}

#[test]
fn a_snapshot_joins_live_without_gap_or_repeat() {
    const SESSIONS: u64 = 50;
    let server = Server::start();
    let session = |n: u64| format!("s{}", n % SESSIONS);
    // The n-th event, from 1, is of session n modulo 50, also if the other publisher adds it.
    server.publish_lines(&(1..=SESSIONS).map(|n| tick(&session(n), n as usize)).collect::<Vec<_>>());
    let cases: [(Value, Passes); 4] = [
        (json!({}), |_| true),
        (json!({"session_id": ["s3", "s7", "nobody"]}), |n| matches!(n % SESSIONS, 3 | 7)),
        (json!({"exclude": {"session_id": ["s0", "s1"]}}), |n| n % SESSIONS > 1),
        (json!({"event_types": ["quiz_started"]}), |_| false),
    ];
    while_publishing(
        &server,
        |n| tick(&session(n as u64 + 1), n),
        || {
            for round in 0..40 {
                let (filter, passes) = &cases[round % cases.len()];
                let mut first = filter.clone();
                first["snapshot"] = json!({"latest_by": "session_id"});
                first["signals"] = true.into();
                let mut subscriber = Socket::open(server.addr, "/ws/subscribe");
                let answer = subscriber.ask(&first.to_string());
                let last = sequence(&answer["last_event_id"]);
                // The latest events of the sessions are the last ones of all.
                let latest = (last - SESSIONS + 1..=last).filter(|n| passes(*n));
                let later = (last + 1..last + 200).filter(|n| passes(*n));
                let mut is_live = false;
                for n in latest.chain(later) {
                    let mut message = subscriber.json();
                    if message["type"] == "caught_up" {
                        assert!(!is_live, "caught_up twice");
                        (is_live, message) = (true, subscriber.json());
                    }
                    assert_eq!(sequence(&message["id"]), n, "{first} at {last}");
                }
            }
        },
    );
}

/// The n-th of the events of three segments: in sessions that end early or late, or in none.
fn aged(n: usize) -> String {
    let session = match n {
        _ if n % 10 == 3 => Value::Null,
        _ if n.is_multiple_of(1_000) => json!(format!("rare{}", n / 1_000)),
        0..70_000 => json!(format!("early{}", n % 7)),
        _ => json!(format!("s{}", n % 97)),
    };
    let user = if n.is_multiple_of(2) { json!(format!("u{}", n / 30_000)) } else { Value::Null };
    let kind = if n % 50_000 < 5 { "quiz_started" } else { "timer_tick" };
    json!({"event_type": kind, "source": format!("source{}", n % 3), "session_id": session, "user_id": user,
        "payload": {"k": n % 1_009}})
    .to_string()
}

#[test]
fn a_snapshot_over_sealed_segments_matches_a_scan() {
    let server = Server::start();
    for part in 0..20 {
        server.publish_lines(&(part * 9_000..(part + 1) * 9_000).map(aged).collect::<Vec<_>>());
    }
    // The list whose key sorts last is written last: once it is there, the table has the whole segment.
    let database = Connection::open_with_flags(server.db_path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let sealed = "SELECT count(*) FROM event_index WHERE kind = 3 AND CAST(key AS TEXT) = 'source2'";
    await_true("two segments in the table", || {
        database.query_row(sealed, [], |row| row.get::<_, i64>(0)).unwrap() == 2
    });

    type Passes = fn(&Value) -> bool;
    let filters: [(Value, Passes); 6] = [
        (json!({}), |_| true),
        (json!({"event_types": ["quiz_started"]}), |event| event["event_type"] == "quiz_started"),
        (json!({"user_id": ["u0", "u2"]}), |event| event["user_id"] == "u0" || event["user_id"] == "u2"),
        (json!({"payload": {"k": 5}}), |event| event["payload"]["k"] == 5),
        (json!({"source": "source1", "exclude": {"session_id": "s5"}}), |event| {
            event["source"] == "source1" && event["session_id"] != "s5"
        }),
        (json!({"session_id": "early3", "payload": {"k": [1, 2, 3]}}), |event| {
            event["session_id"] == "early3" && (1..=3).any(|k| event["payload"]["k"] == k)
        }),
    ];
    let compare = |stored: &[Value]| {
        for (filter, passes) in &filters {
            for field in KEYS {
                let mut latest = BTreeMap::new();
                for event in stored.iter().filter(|event| passes(event) && !event[field].is_null()) {
                    latest.insert(text_of(&event[field]), sequence(&event["id"]));
                }
                let expected: Vec<_> = BTreeSet::from_iter(latest.into_values()).into_iter().collect();
                let mut first = filter.clone();
                (first["snapshot"], first["signals"]) = (json!({"latest_by": field}), true.into());
                let mut subscriber = server.subscriber(&first);
                assert_eq!(sequences(&subscriber.collect(expected.len())), expected, "{first}");
                assert_eq!(subscriber.json(), json!({"type": "caught_up"}), "{first}: that is all");
            }
        }
    };
    let stored = server.stored("");
    compare(&stored);
    // The beginning of the first segment is deleted, and some chosen events of the others.
    let before = encode(&timestamp(&stored[30_000]));
    assert_eq!(server.call("DELETE", &format!("/events?before={before}"), &[], b"").status, 200);
    assert_eq!(server.call("DELETE", "/events?session_id=s7", &[], b"").status, 200);
    let stored = server.stored("");
    assert_eq!(sequence(&stored[0]["id"]), 30_001);
    compare(&stored);
}

/// Far enough apart that events sent without pacing would arrive clearly too early.
const DISTANCE: Duration = Duration::from_millis(400);

#[test]
fn a_paced_replay_keeps_the_rhythm_of_the_stored_events() {
    let server = Server::start();
    let before = server.publish(&tick("a", 0));
    publish(&server, 0..3);
    // The events are stored at these intervals.
    thread::sleep(DISTANCE);
    publish(&server, 3..6);
    thread::sleep(DISTANCE);
    publish(&server, 6..9);
    let after = server.publish(&tick("a", 1));
    let stored = server.stored("");
    let recorded = between(&stored[1], &stored[9]);
    assert!(recorded > DISTANCE);

    // `since` and `until` are exclusive.
    let film = json!({"since": before["timestamp"], "until": after["timestamp"]});
    let play = |speed: f64, more: Value| {
        let mut asked = film.clone();
        asked["speed"] = json!(speed);
        more.as_object().unwrap().iter().for_each(|(key, value)| asked[key] = value.clone());
        // No event arrives before this, and each is due relative to the first one that arrived: on a slow machine the
        // replay takes longer, never less.
        let start = Instant::now();
        let (words, code) = server.subscriber(&asked).read_to_close();
        assert_eq!(code, 1000, "{asked}");
        let events: Vec<Value> = words.iter().map(|word| serde_json::from_str(word).unwrap()).collect();
        (events, start.elapsed())
    };
    for speed in [0.8, 1.0, 2.0, 10_000.0] {
        let (events, took) = play(speed, json!({}));
        assert_eq!(events, stored[1..10], "speed {speed}");
        assert!(took >= recorded.div_f64(speed), "speed {speed}: {recorded:?} took {took:?}");
    }
    let (events, _) = play(10.0, json!({"event_types": ["question_viewed"]}));
    let viewed: Vec<_> = stored[1..10].iter().filter(|event| event["event_type"] == "question_viewed").collect();
    assert_eq!(events.iter().collect::<Vec<_>>(), viewed);
    let (events, _) = play(10.0, json!({"event_types": ["quiz_timeout"]}));
    assert!(events.is_empty(), "{events:?}");
}

#[test]
fn each_event_of_a_paced_replay_arrives_when_it_is_due() {
    let server = Server::start();
    for n in 0..4 {
        server.publish(&tick("a", n));
        thread::sleep(DISTANCE / 2);
    }
    let stored = server.stored("");
    let start = Instant::now();
    let mut subscriber = server.subscriber(&json!({"after": id_of(0), "speed": 0.5}));
    for event in &stored {
        assert_eq!(subscriber.json(), *event);
        let due = between(&stored[0], event) * 2;
        assert!(start.elapsed() >= due, "{event} came after {:?} instead of {due:?}", start.elapsed());
    }
    // Without an end the replay continues live.
    let next = server.publish(&tick("a", 4));
    assert_eq!(subscriber.json(), next);
}

/// How much later than another an event was stored, which is less than a day.
fn between(first: &Value, later: &Value) -> Duration {
    const DAY: u64 = 86_400_000_000;
    let micros = |event: &Value| {
        let text = timestamp(event);
        let part = |from: usize, to: usize| text[from..to].parse::<u64>().unwrap();
        ((part(11, 13) * 60 + part(14, 16)) * 60 + part(17, 19)) * 1_000_000 + part(20, 26)
    };
    Duration::from_micros((micros(later) + DAY - micros(first)) % DAY)
}
