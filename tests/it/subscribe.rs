//! `/ws/subscribe`: filters, history that continues live, filter changes under load, slow and vanishing subscribers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::*;

const PING_TEXT: &str = r#"{"type":"ping"}"#;

/// Runs `body` while another thread publishes without a pause. `message` makes the n-th event.
pub fn while_publishing(server: &Server, message: impl Fn(usize) -> String + Sync, body: impl FnOnce()) {
    struct StopAtEnd<'a>(&'a AtomicBool);
    impl Drop for StopAtEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = StopAtEnd(&stop);
        scope.spawn(|| {
            let mut publisher = server.publisher();
            let mut published = 0;
            while !stop.load(Ordering::Relaxed) {
                let batch: Vec<_> = (published..published + 50).map(&message).collect();
                acknowledged(&publisher.pipeline(&batch));
                published += batch.len();
            }
        });
        body();
    });
}

#[test]
fn the_answer_has_the_documented_fields() {
    let server = Server::start();
    server.publish(&tick("s", 0));
    let asked =
        json!({"event_types": ["timer_tick", "quiz_started"], "session_id": "s", "user_id": "u", "source": "it"});
    for asked in [json!({}), asked, json!({"session_id": "only"})] {
        let mut socket = Socket::open(server.addr, "/ws/subscribe");
        let answer = socket.ask(&asked.to_string());
        assert_eq!(answer["status"], "subscribed");
        let id = text_of(&answer["subscriber_id"]);
        let digits = id.strip_prefix("sub_").expect("sub_");
        assert!(digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        for (key, value) in asked.as_object().unwrap() {
            assert_eq!(answer["filters"][key], *value, "{answer}");
        }
        let beyond = answer["filters"].as_object().unwrap().iter().filter(|(key, _)| asked.get(key).is_none());
        assert!(beyond.clone().all(|(_, value)| value.is_null()), "not asked: {:?}", beyond.collect::<Vec<_>>());
        assert_eq!(answer["last_event_id"], id_of(1));
    }
}

#[test]
fn each_filter_and_each_pair_of_filters_passes_the_right_events() {
    let types = ["timer_tick", "quiz_started", "error_occurred"];
    let events: Vec<_> = (0..240)
        .map(|n| {
            json!({
                "event_type": types[n % 3],
                "source": format!("source{}", n % 2),
                "session_id": if n % 5 == 0 { Value::Null } else { json!(format!("session \"{}\" é", n % 5)) },
                "user_id": if n % 7 == 0 { Value::Null } else { json!(format!("user{}", n % 7)) },
            })
        })
        .collect();
    let last = json!({"event_type": "quiz_timeout", "source": "it"});
    let parts = [
        ("event_types", "event_type", json!(["quiz_started", "error_occurred"])),
        ("source", "source", json!("source1")),
        ("session_id", "session_id", json!("session \"3\" é")),
        ("user_id", "user_id", json!("user2")),
    ];

    let server = Server::start();
    let mut subscribers = Vec::new();
    for choice in 0..16 {
        let chosen: Vec<_> =
            parts.iter().enumerate().filter(|(n, _)| choice & (1 << n) != 0).map(|(_, part)| part).collect();
        let filter: Value = chosen.iter().map(|(key, _, value)| (key.to_string(), value.clone())).collect();
        let matches = |event: &Value| {
            chosen.iter().all(|(_, field, wanted)| match wanted.as_array() {
                Some(list) => list.contains(&event[*field]),
                None => event[*field] == *wanted,
            })
        };
        let expected: Vec<u64> = events.iter().zip(1..).filter(|(event, _)| matches(event)).map(|(_, n)| n).collect();
        subscribers.push((server.subscriber(&filter), filter, expected));
    }
    // Values that mean "any".
    for any in [
        json!({"event_types": [], "session_id": "", "user_id": "", "source": ""}),
        json!({"event_types": null, "session_id": null, "user_id": null, "source": null}),
        json!({"unknown_key": 17}),
    ] {
        subscribers.push((server.subscriber(&any), any, (1..=240).collect()));
    }

    server.publish_lines(&events.iter().map(Value::to_string).collect::<Vec<_>>());
    for (subscriber, filter, expected) in &mut subscribers {
        assert_eq!(sequences(&subscriber.collect(expected.len())), *expected, "{filter}");
        // A further event would arrive before the answer or before the next event.
        let answer = subscriber.ask(r#"{"type":"update_filters","filters":{}}"#);
        assert_eq!(answer, json!({"status": "filters_updated", "filters": {}}), "{filter}");
    }
    server.publish(&last.to_string());
    for (subscriber, filter, _) in &mut subscribers {
        assert_eq!(sequence(&subscriber.json()["id"]), 241, "{filter}");
    }
}

#[test]
fn delivered_events_are_stored() {
    let server = Server::start();
    let mut subscriber = server.subscriber(&json!({}));
    let mut publisher = server.publisher();
    for n in 0..100 {
        publisher.send(&tick("s", n));
        let delivered = subscriber.text();
        let id = text_of(&serde_json::from_str::<Value>(&delivered).unwrap()["id"]);
        assert_eq!(server.get(&format!("/events/{id}")).text(), delivered);
        publisher.json();
    }
}

#[test]
fn history_starts_at_the_requested_event_or_time() {
    let server = Server::start();
    server.publish_lines(&(0..500).map(|n| tick(["a", "b"][n % 2], n)).collect::<Vec<_>>());
    let all = server.stored("");
    let time = |n: usize| all[n - 1]["timestamp"].clone();
    let table = [
        (json!({}), vec![]),
        (json!({"after": id_of(497)}), vec![498, 499, 500]),
        (json!({"after": id_of(500)}), vec![]),
        (json!({"after": id_of(0)}), (1..=500).collect()),
        (json!({"since": time(498)}), vec![499, 500]),
        (json!({"since": time(500)}), vec![]),
        (json!({"since": "2020-01-01T02:00:00+02:00"}), (1..=500).collect()),
        (json!({"since": "2999-01-01T00:00:00Z"}), vec![]),
        (json!({"last": 0}), vec![]),
        (json!({"last": 1}), vec![500]),
        (json!({"last": 3}), vec![498, 499, 500]),
        (json!({"last": 100_000}), (1..=500).collect()),
        (json!({"last": 3, "session_id": "a"}), vec![495, 497, 499]),
        (json!({"after": id_of(494), "session_id": "b"}), vec![496, 498, 500]),
        (json!({"since": time(494), "event_types": ["timer_tick"], "session_id": "b"}), vec![496, 498, 500]),
        (json!({"last": 5, "session_id": "nobody"}), vec![]),
        (json!({"after": null, "since": null, "last": null}), vec![]),
    ];
    let mut subscribers: Vec<_> =
        table.into_iter().map(|(first, expected)| (server.subscriber(&first), first, expected)).collect();
    server.publish_lines(&["a", "b"].map(|session| tick(session, 0)));
    for (subscriber, first, expected) in &mut subscribers {
        let live: &[u64] = match first["session_id"].as_str() {
            Some("a") => &[501],
            Some("b") => &[502],
            Some(_) => &[],
            None => &[501, 502],
        };
        // A start in the future is valid, and the events of today come before it.
        let future = first["since"].as_str().is_some_and(|since| since.starts_with("2999"));
        if !future {
            expected.extend(live);
        }
        assert_eq!(sequences(&subscriber.collect(expected.len())), *expected, "{first}");
        subscriber.send(r#"{"type":"ping"}"#);
        if !future {
            assert_eq!(subscriber.json(), json!({"type": "pong"}), "{first}");
        }
    }
}

#[test]
fn last_counts_back_from_the_last_event_id_of_the_answer() {
    let server = Server::start();
    server.publish_lines(&(0..3000).map(|n| tick(["a", "b"][n % 2], n)).collect::<Vec<_>>());
    while_publishing(
        &server,
        |n| tick(["a", "b"][n % 2], n),
        || {
            in_parallel(8, |n| {
                for count in [1, 7, 500].into_iter().cycle().take(30) {
                    let (first, newest) = match n % 2 {
                        0 => {
                            let mut socket = Socket::open(server.addr, "/ws/subscribe");
                            let newest = sequence(&socket.ask(&json!({"last": count}).to_string())["last_event_id"]);
                            (sequences(&socket.collect(1))[0], newest)
                        }
                        _ => {
                            let target = format!("/events/stream?last={count}");
                            let mut stream = EventStream::ask(server.addr, &target, &[]).ok().expect("a stream");
                            let newest = sequence(&stream.note().1["last_event_id"]);
                            (stream.sequences(1)[0], newest)
                        }
                    };
                    assert_eq!(first, newest + 1 - count, "the last {count} up to {newest}");
                }
            });
        },
    );
}

#[test]
fn unknown_keys_of_a_strict_subscriber_are_refused() {
    let server = Server::start();
    server.publish(&tick("s", 0));
    // Without `strict`, a misspelt filter is ignored, and every event passes.
    let misspelt = json!({"event_type": ["quiz_started"], "last": 1});
    assert_eq!(sequences(&server.subscriber(&misspelt).collect(1)), [1]);
    let mut strict = misspelt.clone();
    strict["strict"] = json!(true);
    let options = [
        json!({"strict": 1}),
        json!({"conflate": {"key": "session_id", "interval_ms": 250, "skiped": true}}),
        json!({"conflate": {"key": "session_id", "interval_ms": 250, "skipped": 2}}),
        json!({"snapshot": {"latest_by": "session_id", "last": 5}}),
    ];
    for first in std::iter::once(&strict).chain(&options) {
        let mut socket = Socket::open(server.addr, "/ws/subscribe");
        socket.send(&first.to_string());
        let (words, code) = socket.read_to_close();
        assert!(words.len() == 1 && words[0].contains(r#""status":"error""#), "{first}: {words:?}");
        assert_eq!(code, 1008, "{first}");
    }
    assert!(EventStream::ask(server.addr, "/events/stream?last=0&last=1", &[]).is_ok(), "the last counts");
    for query in [
        "strict=true&sesion_id=s",
        "strict=1&event_types=timer_tick",
        "strict=1&session_id=s&last=1&session_id=t",
        "strict=0&strict=1",
        "skipped=2",
        "interval_ms=250",
    ] {
        let refused = EventStream::ask(server.addr, &format!("/events/stream?{query}"), &[]).err();
        refused.unwrap_or_else(|| panic!("{query} opens a stream")).refusal(422);
    }

    let mut subscriber = server.subscriber(&json!({"strict": true, "session_id": "s"}));
    // Without `filters` every event would pass.
    for rest in [r#","filters":{"sesion_id":"t"}"#, r#","filter":{"session_id":"t"}"#, r#","session_id":"t""#, ""] {
        let answer = subscriber.ask(&format!(r#"{{"type":"update_filters"{rest}}}"#));
        assert_eq!(answer["status"], "error", "{rest}");
    }
    server.publish_lines(&["t", "s"].map(|session| tick(session, 0)));
    assert_eq!(sequence(&subscriber.json()["id"]), 3, "the former filters stay");
}

#[test]
fn a_confirmation_with_an_invalid_id_gets_an_error() {
    let server = Server::start();
    server.publish(&tick("s", 0));
    for first in [json!({}), json!({"name": "worker"}), json!({"group": "workers"})] {
        let mut subscriber = server.subscriber(&first);
        let unusable = [
            json!({"type": "ack"}),
            json!({"type": "ack", "id": 5}),
            json!({"type": "ack", "id": null}),
            json!({"type": "ack", "id": "nonsense"}),
            json!({"type": "ack", "id": id_of(2)}),
            json!({"type": "ack", "event_id": id_of(1)}),
        ];
        for ack in unusable {
            let answer = subscriber.ask(&ack.to_string());
            assert_eq!(answer["status"], "error", "{first}: {ack}");
        }
        // A valid confirmation has no answer, whether or not it is stored.
        subscriber.send(&json!({"type": "ack", "id": id_of(1)}).to_string());
        assert_eq!(subscriber.ask(r#"{"type":"ping"}"#), json!({"type": "pong"}), "{first}");
    }
}

#[test]
fn history_continues_live_without_gap_or_repeat() {
    let server = Server::with(&[("MAX_SUBSCRIBER_BYTES", "65536")]);
    server.publish_lines(&(0..2000).map(|n| tick(["a", "b"][n % 2], n)).collect::<Vec<_>>());
    let starts =
        [json!({}), json!({"after": id_of(700)}), json!({"last": 1500}), json!({"since": "2020-01-01T00:00:00Z"})];
    let read = |n: usize| {
        let mut first = starts[n % 4].clone();
        let step = if n % 8 < 4 { 1 } else { 2 };
        if step == 2 {
            first["session_id"] = json!("a");
        }
        let ids = sequences(&server.subscriber(&first).collect(3000));
        for pair in ids.windows(2) {
            assert_eq!(pair[1], pair[0] + step, "{first}: a gap or a repeat");
        }
        match n % 4 {
            1 => assert_eq!(ids[0], 701, "{first}"),
            3 => assert_eq!(ids[0], 1, "{first}"),
            _ => assert!(ids[0] > 500 || step == 2, "{first} starts at {}", ids[0]),
        }
    };
    while_publishing(&server, |n| tick(["a", "b"][n % 2], n), || in_parallel(16, read));
}

#[test]
fn a_consumer_that_reconnects_repeatedly_gets_each_event_once() {
    let server = Server::start();
    while_publishing(
        &server,
        |n| tick("s", n),
        || {
            let mut last = 0;
            for round in 0..60 {
                let mut subscriber = server.subscriber(&json!({"after": id_of(last)}));
                for event in subscriber.collect(1 + round * 3) {
                    last += 1;
                    assert_eq!(sequence(&event["id"]), last);
                }
                if round % 2 == 0 {
                    subscriber.reset();
                }
            }
        },
    );
}

#[test]
fn filter_changes_under_load_lose_and_repeat_no_event() {
    let server = Server::start();
    let filters = [json!({"session_id": "a"}), json!({}), json!({"session_id": "a", "event_types": ["timer_tick"]})];
    while_publishing(
        &server,
        |n| tick(["a", "b", "c"][n % 3], n),
        || {
            let mut subscriber = server.subscriber(&filters[0]);
            let (mut current, mut changes, mut last, mut last_of_a) = (0, 0, None, None);
            while changes < 100 {
                // Many changes are on their way at the same time, in order.
                for change in changes..changes + 5 {
                    let next = &filters[(change + 1) % filters.len()];
                    subscriber.send(&json!({"type": "update_filters", "filters": next}).to_string());
                }
                let mut since_change = 0;
                let until = changes + 5;
                while changes < until || since_change < 60 {
                    let message = subscriber.json();
                    if message["status"] == "filters_updated" {
                        changes += 1;
                        current = changes % filters.len();
                        assert_eq!(message["filters"], filters[current]);
                        (last, since_change) = (None, 0);
                        continue;
                    }
                    since_change += 1;
                    let (sequence, of_a) = (sequence(&message["id"]), message["session_id"] == "a");
                    // Session "a" passes each of the filters, so all its events arrive.
                    if of_a {
                        assert!(last_of_a.is_none_or(|last| sequence == last + 3), "{last_of_a:?} then {sequence}");
                        last_of_a = Some(sequence);
                    }
                    // All events arrive while the filter passes all, and otherwise only those of "a".
                    if current == 1 {
                        assert!(last.is_none_or(|last| sequence == last + 1), "{last:?} then {sequence}");
                        last = Some(sequence);
                    } else {
                        assert!(of_a, "{message} under {}", filters[current]);
                    }
                }
            }
        },
    );
}

#[test]
fn new_filters_replace_all_former_ones() {
    let server = Server::start();
    let mut subscriber = server.subscriber(&json!({"session_id": "a", "event_types": ["quiz_started"]}));
    server.publish(&tick("a", 0));
    let filters = json!({"source": "it"});
    let update = json!({"type": "update_filters", "filters": filters}).to_string();
    assert_eq!(subscriber.ask(&update), json!({"status": "filters_updated", "filters": filters}));
    server.publish(&tick("b", 1));
    assert_eq!(sequence(&subscriber.json()["id"]), 2, "neither type nor session hold any longer");
}

#[test]
fn pings_are_answered_and_unknown_messages_ignored() {
    let server = Server::start();
    let mut subscriber = server.subscriber(&json!({}));
    let junk = [
        "",
        "not json",
        "{",
        "17",
        "null",
        "[]",
        "\"text\"",
        "{}",
        r#"{"type":"unheard_of"}"#,
        r#"{"type":17}"#,
        r#"{"type":null}"#,
        r#"{"type":"PING"}"#,
        r#"{"filters":{}}"#,
        r#"{"session_id":"x"}"#,
    ];
    for junk in junk {
        subscriber.send(junk);
        assert_eq!(subscriber.ask(r#"{"type":"ping"}"#), json!({"type": "pong"}), "after {junk:?}");
    }
    subscriber.send_frame(BINARY, b"\xff\x00");
    subscriber.send_frame(PING, b"frame");
    assert_eq!(subscriber.receive(), Received::Pong(b"frame".to_vec()));
    assert_eq!(subscriber.ask(r#"{ "type" : "ping", "extra": [1] }"#), json!({"type": "pong"}));
    server.publish(&tick("s", 0));
    assert_eq!(sequence(&subscriber.json()["id"]), 1);
}

#[test]
fn an_invalid_first_message_is_refused_with_a_message() {
    let server = Server::start();
    let mut witness = server.subscriber(&json!({}));
    let refused = [
        "not json",
        "",
        "17",
        "null",
        "[]",
        "\"text\"",
        r#"{"event_types":"timer_tick"}"#,
        r#"{"event_types":5}"#,
        r#"{"event_types":[5]}"#,
        r#"{"event_types":[null]}"#,
        r#"{"event_types":{"a":1}}"#,
        r#"{"event_types":true}"#,
        r#"{"session_id":5}"#,
        r#"{"session_id":true}"#,
        r#"{"user_id":1.5}"#,
        r#"{"user_id":false}"#,
        r#"{"source":0}"#,
        r#"{"source":true}"#,
        r#"{"after":"nonsense"}"#,
        r#"{"after":17}"#,
        r#"{"since":"yesterday"}"#,
        r#"{"since":17}"#,
        r#"{"last":-1}"#,
        r#"{"last":"5"}"#,
        r#"{"last":1.5}"#,
        r#"{"session_id":"\ud800"}"#,
        r#"{"payload":{"n":1,"n":2}}"#,
        r#"{"exclude":{"user_id":"u1","user_id":"u2"}}"#,
        r#"{"strict":true,"session_id":"s","session_id":"t"}"#,
    ];
    for (first, n) in refused.iter().zip(1..) {
        let mut socket = Socket::open(server.addr, "/ws/subscribe");
        socket.send(first);
        let (words, code) = socket.read_to_close();
        assert_eq!(words.len(), 1, "{first}: {words:?}");
        let answer: Value = serde_json::from_str(&words[0]).unwrap();
        assert_eq!(answer["status"], "error", "{first}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()), "{first}: {answer}");
        assert!((1000..5000).contains(&code) && code != 1005, "{first}: closed with {code}");

        server.publish(&tick("s", 0));
        assert_eq!(sequence(&witness.json()["id"]), n, "the others go on");
    }
}

#[test]
fn invalid_new_filters_are_refused_with_a_message() {
    let server = Server::start();
    let mut witness = server.subscriber(&json!({}));
    let refused = [
        r#"{"event_types":5}"#,
        r#"{"session_id":5}"#,
        r#"{"event_types":[1]}"#,
        r#"{"session_id":"s","session_id":"t"}"#,
        r#"{"exclude":{"payload":{"n":1,"n":2}}}"#,
    ];
    for (filters, n) in refused.iter().zip(1..) {
        let mut subscriber = server.subscriber(&json!({}));
        let answer = subscriber.ask(&format!(r#"{{"type":"update_filters","filters":{filters}}}"#));
        assert_eq!(answer["status"], "error", "{filters}: {answer}");
        server.publish(&tick("s", 0));
        assert_eq!(sequence(&witness.json()["id"]), n, "the others go on");
        // The contract leaves open whether the subscriber keeps its former filters or is closed.
        match subscriber.receive() {
            Received::Text(event) => assert!(event.contains(&id_of(n)), "{event}"),
            said => assert!(matches!(said, Received::Close(_)), "{said:?}"),
        }
    }
}

#[test]
fn bad_frames_close_the_socket_with_the_right_code() {
    let table: [(&str, Vec<u8>, u16); 5] = [
        ("unmasked", unmasked_frame(0x81, b"{}"), 1002),
        ("reserved bit", frame(0xc1, b"{}"), 1002),
        ("reserved opcode", frame(0x83, b"{}"), 1002),
        ("long control frame", frame(0x89, &[0; 126]), 1002),
        ("not UTF-8", frame(0x81, b"\xff"), 1007),
    ];
    let server = Server::start();
    for (what, bytes, expected) in table {
        let mut fresh = Socket::open(server.addr, "/ws/subscribe");
        fresh.send_raw(&bytes);
        assert_eq!(fresh.read_to_close().1, expected, "{what} as the first message");
        let mut subscriber = server.subscriber(&json!({}));
        subscriber.send_raw(&bytes);
        assert_eq!(subscriber.read_to_close().1, expected, "{what} later");
    }
    let mut subscriber = server.subscriber(&json!({}));
    subscriber.send_frame(CLOSE, &code_bytes(1000));
    assert_eq!(subscriber.close_code(), 1000, "a Close is echoed");
}

#[test]
fn a_subscriber_without_a_first_message_is_closed() {
    let server = Server::with(&[("SUBSCRIBE_TIMEOUT_SECONDS", "0.3")]);
    let mut silent = Socket::open(server.addr, "/ws/subscribe");
    let (_, code) = silent.read_to_close();
    assert!((1000..5000).contains(&code) && code != 1005, "closed with {code}");
    // A client that has subscribed in time may stay silent for ever.
    let mut subscriber = server.subscriber(&json!({}));
    let mut silent = Socket::open(server.addr, "/ws/subscribe");
    silent.read_to_close();
    server.publish(&tick("s", 0));
    assert_eq!(sequence(&subscriber.json()["id"]), 1);
}

#[test]
fn an_idle_subscriber_is_kept_alive() {
    let server = Server::with(&[("KEEPALIVE_SECONDS", "0.2")]);
    let mut subscriber = server.subscriber(&json!({}));
    for _ in 0..3 {
        assert_eq!(subscriber.json(), json!({"type": "keepalive"}));
    }
}

#[test]
fn a_subscriber_counts_from_its_first_message_and_is_refused_then_at_capacity() {
    let server = Server::with(&[("MAX_SUBSCRIBERS", "1")]);
    let mut silent = Socket::open(server.addr, "/ws/subscribe");
    let mut first = server.subscriber(&json!({}));
    assert_eq!(server.get_json("/stats")["router"]["active_subscribers"], 1);
    // The server sends nothing before the first message arrives.
    let answer = silent.ask("{}");
    assert_eq!(answer, json!({"status": "error", "message": "Server at subscriber capacity"}));
    assert_eq!(silent.close_code(), 1013);
    assert_eq!(first.ask(PING_TEXT), json!({"type": "pong"}));
}

#[test]
fn a_message_that_is_too_large_gets_an_error_and_the_stream_continues() {
    let server = Server::with(&[("MAX_WS_MESSAGE_BYTES", "1000")]);
    let mut subscriber = server.subscriber(&json!({"session_id": "a"}));
    let too_large = json!({"status": "error", "message": "Message too large"});
    assert_eq!(subscriber.ask(&"x".repeat(1_001)), too_large);
    server.publish(&tick("b", 0));
    let id = server.publish(&tick("a", 0))["id"].clone();
    assert_eq!(subscriber.json()["id"], id, "the filters stay");
}

/// Values of the usual size of ids, which no event of these tests has.
fn ids_of_nobody(n: usize) -> Vec<String> {
    (0..1_000).map(|i| format!("{i:05}-{n:0>100}")).collect()
}

#[test]
fn filters_beyond_their_bound_are_refused_and_affect_no_other_client() {
    let server = Server::start();
    let ids = ids_of_nobody(0);
    let within = json!({"session_id": ids});
    let beyond = json!({"session_id": ids, "user_id": ids, "exclude": {"session_id": ids, "user_id": ids}});
    let update = |filters: &Value| json!({"type": "update_filters", "filters": filters}).to_string();
    let is_refused = |answer: &Value| {
        assert_eq!(answer["status"], "error");
        assert!(text_of(&answer["message"]).contains("bytes"), "{answer}");
    };

    let mut subscriber = server.subscriber(&within);
    is_refused(&subscriber.ask(&update(&beyond)));
    assert_eq!(subscriber.ask(&update(&within))["status"], "filters_updated");

    let mut named = beyond.clone();
    named["name"] = "board".into();
    for first in [beyond, named] {
        let mut socket = Socket::open(server.addr, "/ws/subscribe");
        is_refused(&socket.ask(&first.to_string()));
        assert_eq!(socket.close_code(), 1008);
    }
    assert_eq!(server.get_json("/subscriptions"), json!([]), "no name keeps them");
}

#[test]
fn filter_changes_whose_answers_are_not_read_cost_little_memory_and_stay_in_order() {
    const UPDATES: usize = 600;
    let server = Server::with(&[("WRITE_TIMEOUT_SECONDS", "600"), ("KEEPALIVE_SECONDS", "600")]);
    let mut subscriber = server.subscriber(&json!({}));
    socket2::SockRef::from(subscriber.stream()).set_recv_buffer_size(64 << 10).unwrap();
    let before = peak_bytes(server.pid());
    let stream = subscriber.stream().try_clone().unwrap();
    let (done, flood) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for n in 0..UPDATES {
                let filters = json!({"user_id": n.to_string(), "session_id": ids_of_nobody(n)});
                send_all(&stream, &[json!({"type": "update_filters", "filters": filters}).to_string()]);
            }
            let _ = done.send(());
        });
        // The server reads all 70 MB, or stops reading until the client reads answers.
        let _ = flood.recv_timeout(Duration::from_secs(3));
        for n in 0..UPDATES {
            let answer = subscriber.json();
            assert_eq!(
                (&answer["status"], &answer["filters"]["user_id"]),
                (&json!("filters_updated"), &json!(n.to_string()))
            );
        }
    });
    let grown = peak_bytes(server.pid()) - before;
    assert!(grown < 64 << 20, "grown by {} MiB", grown >> 20);
}

#[test]
fn a_subscriber_beyond_the_limit_is_refused() {
    let server = Server::with(&[("MAX_SUBSCRIBERS", "2")]);
    let mut first = server.subscriber(&json!({}));
    let _second = server.subscriber(&json!({}));

    let mut third = Socket::open(server.addr, "/ws/subscribe");
    third.send("{}");
    let (words, _) = third.read_to_close();
    assert_eq!(words.len(), 1);
    let full: Value = serde_json::from_str(&words[0]).unwrap();
    assert_eq!(full, json!({"status": "error", "message": "Server at subscriber capacity"}));

    first.send_frame(CLOSE, &code_bytes(1000));
    first.close_code();
    server.await_stats("a free place", |stats| stats["router"]["active_subscribers"] == 1);
    server.subscriber(&json!({}));
}

#[test]
fn a_subscriber_that_never_reads_costs_little_memory_and_loses_no_event() {
    // The server would close a socket that takes no byte within the write timeout. This client starts to read before that.
    let server = Server::with(&[
        ("MAX_SUBSCRIBER_BYTES", "65536"),
        ("WRITE_TIMEOUT_SECONDS", "600"),
        ("KEEPALIVE_SECONDS", "600"),
    ]);
    let mut stuck = server.subscriber(&json!({}));
    let mut quick = server.subscriber(&json!({"event_types": ["quiz_started"]}));
    let filler = "x".repeat(400);
    let message = |n: usize| {
        let kind = if n.is_multiple_of(1000) { "quiz_started" } else { "timer_tick" };
        json!({"event_type": kind, "source": "it", "payload": {"n": n, "filler": filler}}).to_string()
    };
    let mut publisher = server.publisher();
    for batch in 0..50 {
        let messages: Vec<_> = (batch * 1000..(batch + 1) * 1000).map(message).collect();
        acknowledged(&publisher.pipeline(&messages));
        assert_eq!(quick.json()["payload"]["n"], batch * 1000, "the others are not delayed");
    }
    let resident = resident_bytes(server.pid());
    assert!(resident < 150 << 20, "{} MiB resident while a subscriber is 25 MB behind", resident >> 20);

    for n in 0..50_000 {
        let event = stuck.json();
        assert_eq!(event["payload"]["n"], n, "all of them, in order");
    }
    server.publish(&tick("s", 0));
    assert_eq!(sequence(&stuck.json()["id"]), 50_001, "and then live");
}

#[test]
fn a_subscriber_that_takes_no_byte_within_the_write_timeout_is_closed() {
    let server = Server::with(&[("MAX_SUBSCRIBER_BYTES", "65536"), ("WRITE_TIMEOUT_SECONDS", "0.5")]);
    let _stuck = server.subscriber(&json!({}));
    let filler = "x".repeat(60_000);
    let big = json!({"event_type": "timer_tick", "source": "it", "payload": {"filler": filler}}).to_string();
    let mut publisher = server.publisher();
    for _ in 0..10 {
        acknowledged(&publisher.pipeline(&vec![big.clone(); 50]));
    }
    server.await_stats("the stuck subscriber to be given up", |stats| stats["router"]["active_subscribers"] == 0);
}

#[test]
fn a_slow_subscriber_may_change_its_filters() {
    let server = Server::with(&[
        ("MAX_SUBSCRIBER_BYTES", "65536"),
        ("WRITE_TIMEOUT_SECONDS", "600"),
        ("KEEPALIVE_SECONDS", "600"),
    ]);
    let mut slow = server.subscriber(&json!({}));
    let filler = "x".repeat(2000);
    let message = |n: usize| {
        json!({"event_type": "timer_tick", "source": "it", "session_id": (["a", "b"][n % 2]), "payload": {"n": n, "filler": filler}}).to_string()
    };
    let mut publisher = server.publisher();
    acknowledged(&publisher.pipeline(&(0..10_000).map(message).collect::<Vec<_>>()));
    slow.send(r#"{"type":"update_filters","filters":{"session_id":"a"}}"#);
    acknowledged(&publisher.pipeline(&(10_000..12_000).map(message).collect::<Vec<_>>()));

    // All events arrive before the answer to the change, and only those of session "a" after it.
    let mut last = 0;
    loop {
        let message = slow.json();
        if message["status"] == "filters_updated" {
            break;
        }
        last += 1;
        assert_eq!(sequence(&message["id"]), last, "a gap before the change");
    }
    server.publish_lines(&["b", "a"].map(|session| tick(session, 0)));
    while last < 12_002 {
        // The odd events are those of "a", and the last one is too.
        last = if last >= 11_999 { 12_002 } else { last + 1 + last % 2 };
        assert_eq!(sequence(&slow.json()["id"]), last, "a gap after the change");
    }
}

#[test]
fn all_subscribers_are_removed_after_many_connect_and_vanish() {
    let server = Server::start();
    let storm = |storm: usize| {
        for round in 0..100 {
            let mut socket = Socket::open(server.addr, "/ws/subscribe");
            match (storm + round) % 5 {
                0 => drop(socket),
                1 => {
                    socket.send(r#"{"session_id":"s"}"#);
                    socket.reset();
                }
                2 => {
                    socket.ask("{}");
                    socket.collect(5);
                    socket.reset();
                }
                3 => {
                    socket.ask(r#"{"last":100}"#);
                    socket.send_frame(CLOSE, &code_bytes(1000));
                    socket.read_to_close();
                }
                _ => {
                    socket.send(r#"{"last":1000}"#);
                    socket.send_raw([0x81]);
                }
            }
        }
    };
    while_publishing(&server, |n| tick("s", n), || in_parallel(4, storm));
    server.await_stats("nobody to be subscribed", |stats| stats["router"]["active_subscribers"] == 0);
    let mut subscriber = server.subscriber(&json!({}));
    let stored = server.publish(&tick("s", 0));
    assert_eq!(subscriber.json(), stored);
}
