//! `/ws/publish`: answers in order, batches, references, acknowledgement modes, and frames good and bad.

use std::thread;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::*;

fn assert_error(answer: &Value, words: &str) {
    assert_eq!(answer["status"], "error", "{answer}");
    assert!(answer["message"].as_str().unwrap().contains(words), "{answer} does not say {words:?}");
}

#[test]
fn one_event_is_acknowledged_by_its_id() {
    let server = Server::start();
    let mut publisher = server.publisher();
    assert_eq!(publisher.ask(&tick("s", 0)), json!({"status": "ok", "event_id": id_of(1)}));
    let stored = server.get_json(&format!("/events/{}", id_of(1)));
    assert_eq!(stored["payload"], json!({"n": 0}), "an acknowledged event is at once visible");
}

#[test]
fn an_acknowledged_event_is_visible_to_every_query_at_once() {
    let server = Server::start();
    let mut publisher = server.publisher();
    for n in 0..100 {
        let id = text_of(&publisher.ask(&tick("s", n))["event_id"]);
        assert_eq!(server.get_json(&format!("/events/{id}"))["payload"]["n"], n);
        assert_eq!(server.get_json("/events?limit=1&session_id=s")[0]["id"], json!(id));
        assert_eq!(server.get_json("/stats")["total_events"], n + 1);
    }
}

#[test]
fn an_array_in_a_message_is_stored_whole_or_not_at_all() {
    let server = Server::start();
    let mut publisher = server.publisher();
    let good = tick("s", 0);
    let ids = [id_of(1), id_of(2), id_of(3)];
    assert_eq!(publisher.ask(&format!("[{good}, {good},{good}]")), json!({"status": "ok", "event_ids": ids}));

    for (bad, index) in [(r#"{"event_type":"nope","source":"it"}"#, "1"), ("17", "1"), ("null", "1"), ("[]", "1")] {
        assert_error(&publisher.ask(&format!("[{good},{bad},{good}]")), index);
    }
    // The contract does not say whether an empty array is accepted. It is answered and stores nothing.
    assert!(publisher.ask("[]")["status"].is_string());
    assert_eq!(publisher.ask(&good)["event_id"], id_of(4), "nothing of the bad arrays was stored");
}

#[test]
fn large_arrays_in_messages_are_stored_whole() {
    let server = Server::start();
    let mut publisher = server.publisher();
    let array = format!("[{}]", ticks("s", 5000).join(","));
    let ids: Vec<_> = (1..=5000).map(id_of).collect();
    assert_eq!(publisher.ask(&array), json!({"status": "ok", "event_ids": ids}));
    assert_eq!(server.get_json("/stats")["total_events"], 5000);
}

#[test]
fn a_reference_comes_back_with_its_acknowledgement() {
    let server = Server::start();
    let mut publisher = server.publisher();
    let references = [
        json!("abc"),
        json!(""),
        json!(17),
        json!(-0.5),
        json!({"x": [1, "ü"]}),
        json!([]),
        json!(true),
        json!("\"quoted\"\n"),
    ];
    for (reference, n) in references.iter().zip(1..) {
        let good = json!({"event_type": "timer_tick", "source": "it", "ref": reference}).to_string();
        assert_eq!(publisher.ask(&good), json!({"status": "ok", "event_id": id_of(n), "ref": reference}));
        let bad = json!({"event_type": "timer_tick", "source": "not a source", "ref": reference}).to_string();
        let answer = publisher.ask(&bad);
        assert_error(&answer, "source");
        assert_eq!(answer["ref"], *reference, "also in an error");
    }
    assert!(publisher.ask(&tick("s", 0)).get("ref").is_none(), "none asked, none given");
    assert!(server.stored_lines("").iter().all(|line| !line.contains("\"ref\"")), "a reference is not stored");
}

#[test]
fn errors_come_in_order_and_the_socket_stays_open() {
    let server = Server::start();
    let bad = [
        "not json",
        "",
        "{",
        "17",
        "null",
        "\"text\"",
        "{}",
        r#"{"event_type":"quiz_exploded","source":"it"}"#,
        r#"{"event_type":"timer_tick"}"#,
        r#"{"event_type":"timer_tick","source":"it","payload":null}"#,
        "[17]",
        r#"{"event_type":"timer_tick","source":"it","payload":{"a":NaN}}"#,
        "\u{0}",
    ];
    let messages: Vec<_> =
        (0..2000).map(|n| if n % 3 == 1 { bad[n / 3 % bad.len()].to_string() } else { tick("s", n) }).collect();
    let answers = server.publisher().pipeline(&messages);
    let mut next = 1;
    for (n, (answer, message)) in answers.iter().zip(&messages).enumerate() {
        if n % 3 == 1 {
            assert_error(answer, "");
            assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()), "{message:?} → {answer}");
        } else {
            assert_eq!(*answer, json!({"status": "ok", "event_id": id_of(next)}), "{message}");
            next += 1;
        }
    }
    let numbers: Vec<_> = server.stored("").iter().map(|event| event["payload"]["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..2000).filter(|n| n % 3 != 1).collect::<Vec<_>>());
}

#[test]
fn each_of_many_sockets_keeps_its_order() {
    let server = Server::start();
    in_parallel(8, |socket| {
        let answers = server.publisher().pipeline(&ticks(&format!("s{socket}"), 1500));
        assert!(acknowledged(&answers).is_sorted_by(|a, b| a < b));
    });
    assert_eq!(sequences(&server.stored("")), (1..=12_000).collect::<Vec<_>>());
    for socket in 0..8 {
        let stored = server.stored(&format!("session_id=s{socket}"));
        assert!(stored.iter().zip(0..).all(|(event, n)| event["payload"]["n"] == n), "socket {socket}");
        assert_eq!(stored.len(), 1500);
    }
}

#[test]
fn binary_frames_are_treated_as_text() {
    let server = Server::start();
    let mut publisher = server.publisher();
    publisher.send_frame(BINARY, tick("s", 0).as_bytes());
    assert_eq!(publisher.json(), json!({"status": "ok", "event_id": id_of(1)}));
    for no_json in [b"\x00\x01\x02".as_slice(), b"\xff\xfe", b""] {
        publisher.send_frame(BINARY, no_json);
        assert_error(&publisher.json(), "");
    }
    assert_eq!(publisher.ask(&tick("s", 1))["status"], "ok");
}

/// A valid event, filled up with whitespace to this many bytes.
fn padded(bytes: usize) -> String {
    let event = tick("s", 0);
    format!("{event}{}", " ".repeat(bytes - event.len()))
}

#[test]
fn a_message_too_large_is_answered_and_the_socket_stays_open() {
    let too_large = json!({"status": "error", "message": "Message too large"});
    for (settings, limit) in [(&[][..], 1 << 20), (&[("MAX_WS_MESSAGE_BYTES", "2000")], 2000)] {
        let server = Server::with(settings);
        let mut publisher = server.publisher();
        assert_eq!(publisher.ask(&padded(limit))["status"], "ok", "{limit} bytes are not too many");
        assert_eq!(publisher.ask(&padded(limit + 1)), too_large, "{limit} bytes and one are");
        assert_eq!(publisher.ask(&padded(4 * limit)), too_large);
        assert_eq!(publisher.ask(&tick("s", 1))["event_id"], id_of(2), "the socket lives");

        // Its answer comes in order, also when the message comes in fragments.
        let half = padded(limit + 100);
        let (first, second) = half.as_bytes().split_at(limit / 2);
        publisher.send_raw(
            [
                frame(0x80 | TEXT, tick("s", 2).as_bytes()),
                frame(TEXT, first),
                frame(0x80 | CONTINUATION, second),
                frame(0x80 | TEXT, tick("s", 3).as_bytes()),
            ]
            .concat(),
        );
        let answers = publisher.collect(3);
        assert_eq!([&answers[0]["status"], &answers[2]["status"]], ["ok", "ok"]);
        assert_eq!(answers[1], too_large);
    }
}

#[test]
fn long_messages_share_memory_and_a_stalled_one_gives_it_back() {
    let server = Server::with(&[("MAX_BODIES_BYTES", "1048576")]);
    let (mut stalled, mut other) = (server.publisher(), server.publisher());
    let message = frame(0x80 | TEXT, padded(160 << 10).as_bytes());
    // This takes all of the memory: each byte of a message may take seven.
    let (most, rest) = message.split_at(150 << 10);
    stalled.send_raw(most);
    assert_eq!(server.get("/health").status, 200, "what came before it was read");

    let refused = json!({"status": "error", "message": "Too many large messages are under way, try again"});
    other.send_raw(&message);
    assert_eq!(other.json(), refused);
    assert_eq!(other.ask(&tick("s", 0))["status"], "ok", "short ones need none of it");
    // Each attempt waits for 1 s.
    for attempt in 0.. {
        other.send_raw(&message);
        let answer = other.json();
        if answer["status"] == "ok" {
            break;
        }
        assert!(answer == refused && attempt < 60, "{answer}");
    }
    stalled.send_raw(rest);
    assert_eq!(stalled.json(), json!({"status": "error", "message": "The message did not come in time"}));
    assert_eq!(stalled.ask(&tick("s", 0))["status"], "ok", "the socket lives");
    stalled.send_raw(&message);
    assert_eq!(stalled.json()["status"], "ok");
}

#[test]
fn a_long_message_that_waits_for_its_answer_holds_no_memory() {
    let mut server = Server::with(&[("MAX_BODIES_BYTES", "1048576"), ("MAX_IN_FLIGHT", "1")]);
    // On a slow machine the test may hold the lock for longer than the server waits silently.
    server.allow_noise();
    let (mut waiting, mut other) = (server.publisher(), Socket::open(server.addr, "/ws/publish?ack=queued"));
    let database = Connection::open(server.db_path()).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Each message takes all of the memory.
    waiting.send(&padded(160 << 10));
    server.await_stats("it to be in the queue", |stats| stats["router"]["queue_size"] == 1);
    other.send(&padded(160 << 10));
    assert_eq!(other.json()["status"], "ok");
    database.execute_batch("COMMIT").unwrap();
    assert_eq!(waiting.json()["status"], "ok");
}

#[test]
fn a_message_beyond_16_mib_closes_the_socket() {
    let server = Server::start();
    let bytes = 16 << 20;
    let mut publisher = server.publisher();
    let edge = json!({"status": "error", "message": "Message too large"});
    assert_eq!(publisher.ask(&padded(bytes)), edge, "16 MiB themselves are survived");

    publisher.send(&padded(bytes + 1));
    assert_eq!(publisher.read_to_close().1, 1009);

    // The announced length is enough: the message need not be sent whole.
    let mut publisher = server.publisher();
    publisher.send_raw([0x81, 0xff, 0, 0, 0, 0x10, 0, 0, 0, 0, 1, 2, 3, 4]);
    assert_eq!(publisher.read_to_close().1, 1009);

    // Fragments are counted together.
    let mut publisher = server.publisher();
    let fragment = vec![b' '; 1 << 20];
    publisher.send_raw(frame(TEXT, &fragment));
    for _ in 0..16 {
        publisher.send_raw(frame(CONTINUATION, &fragment));
    }
    assert_eq!(publisher.read_to_close().1, 1009);
    server.publish(&tick("s", 0));
}

#[test]
fn one_acknowledgement_can_cover_a_batch() {
    let server = Server::start();
    let mut publisher = Socket::open(server.addr, "/ws/publish?ack=batch");
    let messages: Vec<_> =
        (0..3000).map(|n| if n % 100 == 50 { "nonsense".to_string() } else { tick("s", n) }).collect();
    let stream = publisher.stream().try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| send_all(&stream, &messages));
        let (mut stored, mut errors) = (0, 0);
        while stored < 2970 || errors < 30 {
            let answer = publisher.json();
            if answer["status"] == "error" {
                errors += 1;
                continue;
            }
            let count = answer["count"].as_u64().unwrap_or_else(|| panic!("{answer}"));
            stored += count;
            assert_eq!(answer, json!({"status": "ok", "count": count, "last_event_id": id_of(stored)}));
        }
        assert_eq!((stored, errors), (2970, 30));
    });
    assert_eq!(server.get_json("/stats")["total_events"], 2970);

    // An array counts its events.
    assert_eq!(
        publisher.ask(&format!("[{},{}]", tick("s", 0), tick("s", 1))),
        json!({"status": "ok", "count": 2, "last_event_id": id_of(2972)})
    );
}

#[test]
fn acknowledgements_can_be_left_out() {
    let server = Server::start();
    let mut publisher = Socket::open(server.addr, "/ws/publish?ack=none");
    send_all(publisher.stream(), &ticks("s", 2000));
    server.await_stats("2,000 unacknowledged events", |stats| stats["total_events"] == 2000);
    publisher.send_frame(PING, b"anything said?");
    assert_eq!(publisher.receive(), Received::Pong(b"anything said?".to_vec()), "no acknowledgement came before");
}

#[test]
fn each_event_can_be_acknowledged_by_itself() {
    let server = Server::start();
    let mut publisher = Socket::open(server.addr, "/api/v1/ws/publish?ack=each");
    assert_eq!(publisher.ask(&tick("s", 0)), json!({"status": "ok", "event_id": id_of(1)}));
    // The contract names three ways; another one is refused before or at the upgrade.
    match Socket::handshake(server.addr, "/ws/publish?ack=sometimes", &[]) {
        Err(refusal) => assert!((400..500).contains(&refusal.status), "{}", refusal.status),
        Ok(mut socket) => drop(socket.read_to_close()),
    }
}

#[test]
fn pings_are_answered_with_their_bytes() {
    let server = Server::start();
    let mut publisher = server.publisher();
    for payload in [b"".as_slice(), b"ping", &[0xff; 125]] {
        publisher.send_frame(PING, payload);
        assert_eq!(publisher.receive(), Received::Pong(payload.to_vec()));
    }
    publisher.send_frame(PONG, b"nobody asked");
    assert_eq!(publisher.ask(&tick("s", 0))["status"], "ok");
}

#[test]
fn fragments_are_put_together() {
    let server = Server::start();
    let mut publisher = server.publisher();
    let event = tick("Žluťoučký 😀", 7);
    // Cut after every byte: inside characters, with empty fragments, and with a ping between them.
    for opcode in [TEXT, BINARY] {
        publisher.send_raw(frame(opcode, b""));
        for byte in event.as_bytes() {
            publisher.send_raw(frame(CONTINUATION, &[*byte]));
        }
        publisher.send_frame(PING, b"between");
        publisher.send_raw(frame(0x80 | CONTINUATION, b""));
        assert_eq!(publisher.receive(), Received::Pong(b"between".to_vec()));
        assert_eq!(publisher.json()["status"], "ok");
    }
    // The bytes of one frame may come one by one.
    for byte in frame(0x80 | TEXT, event.as_bytes()) {
        publisher.send_raw([byte]);
    }
    assert_eq!(publisher.json()["status"], "ok");
    assert_eq!(server.stored(&format!("session_id={}", encode("Žluťoučký 😀"))).len(), 3);
}

#[test]
fn bad_frames_close_the_socket_with_the_right_code() {
    let half_a_character = "é".as_bytes().split_at(1).0;
    let event = tick("s", 0);
    let table: Vec<(&str, Vec<u8>, u16)> = vec![
        ("unmasked text", unmasked_frame(0x81, event.as_bytes()), 1002),
        ("unmasked ping", unmasked_frame(0x89, b""), 1002),
        ("unmasked close", unmasked_frame(0x88, &code_bytes(1000)), 1002),
        ("first reserved bit", frame(0xc1, event.as_bytes()), 1002),
        ("second reserved bit", frame(0xa1, event.as_bytes()), 1002),
        ("third reserved bit", frame(0x91, event.as_bytes()), 1002),
        ("reserved bit on a ping", frame(0xc9, b""), 1002),
        ("reserved bit on a continuation", [frame(TEXT, b"{"), frame(0xc0, b"}")].concat(), 1002),
        ("reserved opcode 3", frame(0x83, b""), 1002),
        ("reserved opcode 7", frame(0x87, b"x"), 1002),
        ("reserved opcode 11", frame(0x8b, b""), 1002),
        ("reserved opcode 15", frame(0x8f, b"x"), 1002),
        ("ping of 126 bytes", frame(0x89, &[0; 126]), 1002),
        ("pong of 126 bytes", frame(0x8a, &[0; 126]), 1002),
        ("close of 126 bytes", frame(0x88, &[code_bytes(1000).as_slice(), &[b'x'; 124]].concat()), 1002),
        ("ping in fragments", frame(PING, b"x"), 1002),
        ("close in fragments", frame(CLOSE, &code_bytes(1000)), 1002),
        ("continuation of nothing", frame(0x80, b"x"), 1002),
        ("first fragment of nothing", frame(0x00, b"x"), 1002),
        ("text inside a text", [frame(TEXT, b"{"), frame(0x81, event.as_bytes())].concat(), 1002),
        ("binary inside a text", [frame(TEXT, b"{"), frame(0x82, b"x")].concat(), 1002),
        ("close of one byte", frame(0x88, b"\x03"), 1002),
        ("close code 0", frame(0x88, &code_bytes(0)), 1002),
        ("close code 999", frame(0x88, &code_bytes(999)), 1002),
        ("close code 1004", frame(0x88, &code_bytes(1004)), 1002),
        ("close code 1005", frame(0x88, &code_bytes(1005)), 1002),
        ("close code 1006", frame(0x88, &code_bytes(1006)), 1002),
        ("close code 1015", frame(0x88, &code_bytes(1015)), 1002),
        ("close code 2999", frame(0x88, &code_bytes(2999)), 1002),
        ("close code 5000", frame(0x88, &code_bytes(5000)), 1002),
        ("close reason not UTF-8", frame(0x88, &[code_bytes(1000).as_slice(), b"\xff\xff"].concat()), 1007),
        ("text not UTF-8", frame(0x81, b"{\"a\":\"\xff\"}"), 1007),
        ("surrogate in UTF-8", frame(0x81, b"\"\xed\xa0\x80\""), 1007),
        ("text that ends inside a character", frame(0x81, half_a_character), 1007),
        ("fragments that end inside a character", [frame(TEXT, b"a"), frame(0x80, half_a_character)].concat(), 1007),
        ("length with its top bit set", [&[0x81, 0xff, 0x80][..], &[0; 11]].concat(), 1002),
    ];
    let server = Server::start();
    for (what, bytes, expected) in table {
        let mut publisher = server.publisher();
        let good = frame(0x80 | TEXT, event.as_bytes());
        publisher.send_raw([good, bytes].concat());
        let (words, code) = publisher.read_to_close();
        // An announced length that no message may have is both too large and malformed.
        let either = what == "length with its top bit set" && code == 1009;
        assert!(code == expected || either, "{what}: closed with {code}, not {expected}");
        assert_eq!(words.len(), 1, "{what}: the good message before it is answered: {words:?}");
        assert!(words[0].contains("\"ok\""), "{what}: {words:?}");
    }
    server.publish(&event);
}

#[test]
fn lengths_written_too_long_are_read_or_refused() {
    // RFC 6455 requires the shortest form and does not say what to do with another: read it or close with 1002.
    let server = Server::start();
    let event = tick("s", 0);
    let short = frame(0x81, event.as_bytes());
    let (mask_and_payload, length) = (&short[2..], event.len() as u8);
    let long_forms = [vec![0x81, 0xfe, 0, length], vec![0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, length]];
    for head in long_forms {
        let mut publisher = server.publisher();
        publisher.send_raw([head.as_slice(), mask_and_payload].concat());
        match publisher.receive() {
            Received::Text(text) => assert!(text.contains("\"ok\""), "{text}"),
            said => assert_eq!(said, Received::Close(1002)),
        }
    }
}

#[test]
fn a_close_frame_is_echoed_after_the_answers() {
    let server = Server::start();
    for (payload, code) in [
        (code_bytes(1000).to_vec(), 1000),
        (code_bytes(1001).to_vec(), 1001),
        ([&code_bytes(3000)[..], "bye é".as_bytes()].concat(), 3000),
    ] {
        let mut publisher = server.publisher();
        send_all(publisher.stream(), &ticks("s", 100));
        publisher.send_frame(CLOSE, &payload);
        let (words, echoed) = publisher.read_to_close();
        assert_eq!(words.len(), 100, "everything sent before the Close is answered");
        assert_eq!(echoed, code);
    }
    let mut publisher = server.publisher();
    publisher.send_frame(CLOSE, b"");
    assert!(matches!(publisher.close_code(), 1005 | 1000), "an empty Close is answered by an empty or a normal one");
}

#[test]
fn a_producer_that_reads_no_answers_is_slowed_and_loses_nothing() {
    let server = Server::start();
    let mut deaf = server.publisher();
    // The answers are long enough to fill the kernel's buffers.
    let reference = "r".repeat(200);
    let message = |n| json!({"event_type": "timer_tick", "source": "it", "session_id": "deaf", "payload": {"n": n}, "ref": reference});
    let messages: Vec<_> = (0..60_000).map(|n| message(n).to_string()).collect();
    let stream = deaf.stream().try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| send_all(&stream, &messages));
        // Other sockets are served meanwhile.
        let mut other = server.publisher();
        for n in 0..200 {
            assert_eq!(other.ask(&tick("other", n))["status"], "ok");
            server.publish(&tick("other", n));
        }
        let answers = deaf.collect(messages.len());
        assert!(acknowledged(&answers).is_sorted_by(|a, b| a < b));
    });
    let stored = server.stored("session_id=deaf");
    assert_eq!(stored.len(), messages.len());
    assert!(stored.iter().zip(0..).all(|(event, n)| event["payload"]["n"] == n));
}

#[test]
fn a_full_queue_slows_producers_and_loses_nothing() {
    let server = Server::with(&[("MAX_QUEUE_SIZE", "1"), ("MAX_IN_FLIGHT", "2")]);
    in_parallel(8, |client| {
        if client < 4 {
            acknowledged(&server.publisher().pipeline(&ticks(&format!("s{client}"), 300)));
            return;
        }
        for n in 0..50 {
            let response = server.post(tick("http", n));
            if response.status != 201 {
                response.refusal(503);
                assert!(response.header("retry-after").is_some(), "503 says when to come back");
            }
        }
    });
    for socket in 0..4 {
        assert_eq!(server.stored(&format!("session_id=s{socket}")).len(), 300);
    }
    // A batch larger than the queue is accepted or refused, and does not wait without end.
    let array = format!("[{}]", ticks("array", 3).join(","));
    assert!(matches!(server.post(&array).status, 201 | 413 | 503));
    assert!(server.publisher().ask(&array)["status"].is_string());
}

#[test]
fn an_invalid_handshake_is_refused() {
    let server = Server::start();
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    let key = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let requests = [
        ("a plain GET", vec![]),
        ("no key", [&upgrade[..], &[("Sec-WebSocket-Version", "13")]].concat()),
        ("no version", [&upgrade[..], &[key]].concat()),
        ("another version", [&upgrade[..], &[key, ("Sec-WebSocket-Version", "8")]].concat()),
        ("another protocol", vec![("Connection", "Upgrade"), ("Upgrade", "h2c"), key, ("Sec-WebSocket-Version", "13")]),
    ];
    for path in ["/ws/publish", "/ws/subscribe"] {
        for (what, headers) in &requests {
            let response = server.call("GET", path, headers, b"");
            assert!(matches!(response.status, 400 | 426), "{what}: {}", response.status);
            response.refusal(response.status);
        }
    }
}

#[test]
fn random_bytes_do_not_affect_other_sockets() {
    let server = Server::start();
    let mut dice = Random::seeded();
    let mut witness = server.publisher();
    for round in 0..300 {
        let mut publisher = server.publisher();
        let mut bytes = frame(0x80 | TEXT, tick("s", round).as_bytes());
        match dice.below(3) {
            0 => bytes = (0..dice.below(400)).map(|_| dice.below(256) as u8).collect(),
            1 => bytes.truncate(dice.below(bytes.len() as u64) as usize),
            _ => {
                let at = dice.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << dice.below(8);
            }
        }
        publisher.send_raw(&bytes);
        if dice.below(2) == 0 {
            publisher.reset();
        }
        assert_eq!(witness.ask(&tick("witness", round))["status"], "ok", "round {round}");
    }
    assert_eq!(server.stored("session_id=witness").len(), 300);
}
