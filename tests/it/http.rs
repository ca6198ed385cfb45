//! The HTTP interface: routes, shapes of answers, queries, and refusals.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::*;

#[test]
fn a_url_beyond_64_kib_is_answered_with_414() {
    let server = Server::start();
    let get = |target: &str, header: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nX: {header}\r\n\r\n");
    let status = |wire: &mut Wire, request: String| {
        wire.send(request);
        wire.response().expect("an answer").status
    };
    for letters in [65 << 10, 200_000, 1 << 20] {
        let long = "a".repeat(letters);
        for target in
            [format!("/{long}"), format!("/events?session_id={long}"), format!("/events/stream?user_id={long}")]
        {
            assert_eq!(status(&mut Wire::connect(server.addr), get(&target, "")), 414, "{letters}");
            // Also behind other requests of the connection.
            let mut wire = Wire::connect(server.addr);
            assert_eq!(status(&mut wire, get("/health", "")), 200);
            assert_eq!(status(&mut wire, get(&target, "")), 414, "{letters}");
        }
    }
    let long = "a".repeat(1 << 20);
    assert_eq!(status(&mut Wire::connect(server.addr), get("/health", &long)), 431, "a header is no URL");
    let longest = format!("/events?session_id={}", "a".repeat(60_000));
    assert_eq!(status(&mut Wire::connect(server.addr), get(&longest, "")), 422, "no event has such an id");
}

#[test]
fn every_route_exists_under_both_prefixes() {
    let server = Server::start();
    let id = text_of(&server.publish(&tick("s", 0))["id"]);
    let one = format!("/events/{id}");
    let routes = [
        ("POST", "/events", 201),
        ("GET", "/events", 200),
        ("GET", one.as_str(), 200),
        ("GET", "/stats", 200),
        ("GET", "/event-types", 200),
        ("GET", "/health", 200),
        ("GET", "/readiness", 200),
        ("DELETE", "/events", 200),
    ];
    for prefix in ["", "/api/v1"] {
        server.publish(&tick("s", 0));
        for (method, path, status) in routes {
            let body = if method == "POST" { tick("s", 1) } else { String::new() };
            // A deletion earlier in the loop has deleted the event.
            let status = if path == one && prefix == "/api/v1" { 404 } else { status };
            let response = server.call(method, &format!("{prefix}{path}"), &[JSON], body.as_bytes());
            assert_eq!(response.status, status, "{method} {prefix}{path}: {}", response.text());
        }
        Socket::open(server.addr, &format!("{prefix}/ws/publish"));
        Socket::open(server.addr, &format!("{prefix}/ws/subscribe"));
    }
}

#[test]
fn a_created_event_is_answered_byte_for_byte() {
    let server = Server::start();
    let full = r#"{ "payload" : {"b":1, "a":0.10} , "user_id":"u", "session_id":"s", "source":"it", "event_type":"timer_tick" }"#;
    let bare = r#"{"event_type":"quiz_started","source":"it"}"#;
    let nulls = r#"{"event_type":"quiz_started","source":"it","session_id":null,"user_id":null}"#;
    let table = [
        (full, r#""event_type":"timer_tick","source":"it","session_id":"s","user_id":"u","payload":{"b":1,"a":0.10}"#),
        (bare, r#""event_type":"quiz_started","source":"it","session_id":null,"user_id":null,"payload":{}"#),
        (nulls, r#""event_type":"quiz_started","source":"it","session_id":null,"user_id":null,"payload":{}"#),
    ];
    for ((body, middle), sequence) in table.into_iter().zip(1..) {
        let response = server.post(body);
        assert_eq!(response.status, 201, "{}", response.text());
        assert!(response.header("content-type").unwrap().starts_with("application/json"));
        let timestamp = timestamp(&response.json());
        let expected = format!(r#"{{"id":"{}",{middle},"timestamp":"{timestamp}"}}"#, id_of(sequence));
        assert_eq!(compact(&response.text()), expected);

        let again = server.get(&format!("/events/{}", id_of(sequence)));
        assert_eq!(again.text(), response.text(), "GET shows the same bytes");
        let listed = server.get("/events?limit=1");
        assert_eq!(listed.text(), format!("[{}]", response.text()), "and so does the list");
    }
}

#[test]
fn an_array_is_stored_in_one_transaction() {
    let server = Server::start();
    let body = format!("[{},{} , {}]", tick("a", 0), tick("b", 1), tick("a", 2));
    let response = server.post(&body);
    assert_eq!(response.status, 201, "{}", response.text());
    let ids: Vec<_> = (1..=3).map(id_of).collect();
    let expected = json!({"count": 3, "first_id": ids[0], "last_id": ids[2], "ids": ids});
    assert_eq!(compact(&response.text()), expected.to_string(), "also in the order of its keys");
    assert_eq!(sequences(&server.stored("session_id=a")), [1, 3]);
}

#[test]
fn ndjson_lines_are_stored_in_one_transaction() {
    let server = Server::start();
    let bodies = [
        format!("{}\n{}", tick("a", 0), tick("a", 1)),
        format!("{}\n{}\n", tick("a", 2), tick("a", 3)),
        format!("{}\r\n{}\r\n", tick("a", 4), tick("a", 5)),
    ];
    for (body, first) in bodies.iter().zip([1, 3, 5]) {
        let response = server.call("POST", "/events", &[NDJSON], body.as_bytes());
        assert_eq!(response.status, 201, "{}", response.text());
        let ids = [id_of(first), id_of(first + 1)];
        assert_eq!(response.json(), json!({"count": 2, "first_id": ids[0], "last_id": ids[1], "ids": ids}));
    }
    assert_eq!(sequences(&server.stored("")), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn one_bad_item_refuses_the_whole_batch_by_its_index() {
    let server = Server::start();
    let (good, bad) = (tick("s", 0), r#"{"event_type":"timer_tick","source":"not a source"}"#);
    let not_json = "{\"event_type\"";
    let bodies = [
        (JSON, format!("[{good},{good},{bad},{good}]"), 2),
        (JSON, format!("[{bad},{good}]"), 0),
        (JSON, format!("[{good},17]"), 1),
        (JSON, format!("[{good},[{good}]]"), 1),
        (NDJSON, format!("{good}\n{bad}\n{good}\n"), 1),
        (NDJSON, format!("{good}\n{good}\n{good}\n{not_json}\n"), 3),
    ];
    for (content_type, body, index) in bodies {
        let response = server.call("POST", "/events", &[content_type], body.as_bytes());
        let detail = response.refusal(422);
        let location = detail[0]["loc"].as_array().unwrap();
        assert!(location.contains(&json!(index)), "{body} → {detail} does not name index {index}");
    }
    assert_eq!(server.get_json("/stats")["total_events"], 0, "nothing of it is stored");

    // The contract does not say whether an empty batch is accepted. It stores nothing in either case.
    for (content_type, body) in [(JSON, "[]"), (NDJSON, "\n")] {
        let response = server.call("POST", "/events", &[content_type], body.as_bytes());
        assert!(matches!(response.status, 201 | 422), "{body:?}: {}", response.status);
    }
    assert_eq!(sequence(&server.publish(&good)["id"]), 1);
}

#[test]
fn unknown_paths_and_ids_are_404() {
    let server = Server::start();
    server.publish(&tick("s", 0));
    for id in
        ["evt_000000000000", "evt_000000000002", "evt_ffffffffffff", "evt_00000000000A", "evt_", "nonsense", "%00"]
    {
        assert_eq!(server.get(&format!("/events/{id}")).refusal(404), "Event not found", "{id}");
    }
    for path in [
        "/nowhere",
        "/events/evt_000000000001/more",
        "/api/v2/events",
        "/api/v1",
        "/event",
        "/ws",
        "/../etc/passwd",
        "//events",
    ] {
        server.get(path).refusal(404);
    }
}

#[test]
fn a_wrong_method_is_405_with_allow() {
    let server = Server::start();
    let table = [
        ("PUT", "/events", &["GET", "POST", "DELETE"][..]),
        ("PATCH", "/api/v1/events", &["GET", "POST", "DELETE"]),
        ("POST", "/events/evt_000000000001", &["GET"]),
        ("POST", "/stats", &["GET"]),
        ("DELETE", "/health", &["GET"]),
        ("POST", "/ws/publish", &["GET"]),
    ];
    for (method, path, allowed) in table {
        let response = server.call(method, path, &[], b"");
        response.refusal(405);
        let allow = response.header("allow").unwrap_or_else(|| panic!("{method} {path}: no Allow"));
        let told: BTreeSet<&str> = allow.split(',').map(str::trim).collect();
        assert!(allowed.iter().all(|method| told.contains(method)), "{method} {path}: Allow: {allow}");
        assert!(!told.contains(method), "{method} {path}: Allow: {allow}");
    }
}

#[test]
fn a_wrong_content_type_is_415() {
    let server = Server::start();
    for wrong in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", "nonsense"]
    {
        let response = server.call("POST", "/events", &[("Content-Type", wrong)], tick("s", 0).as_bytes());
        response.refusal(415);
    }
    for right in ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"] {
        let response = server.call("POST", "/events", &[("Content-Type", right)], tick("s", 0).as_bytes());
        assert_eq!(response.status, 201, "{right}: {}", response.text());
    }
}

#[test]
fn an_invalid_event_is_422() {
    let server = Server::start();
    let bodies = [
        "",
        " ",
        "{",
        "{}",
        "null",
        "17",
        "\"text\"",
        "true",
        "[1]",
        "{\"event_type\":\"timer_tick\"}",
        "{\"source\":\"it\"}",
        "not json",
        "{'event_type':'timer_tick','source':'it'}",
        "{\"event_type\":\"timer_tick\",\"source\":\"it\",}",
        "{\"event_type\":\"timer_tick\",\"source\":\"it\"} x",
        "{\"event_type\":\"timer_tick\",\"source\":\"it\"}{\"event_type\":\"timer_tick\",\"source\":\"it\"}",
        "{\"event_type\":\"timer_tick\" \"source\":\"it\"}",
        "{\"event_type\":\"timer_tick\",\"source\":\"it\"",
        "// a comment\n{\"event_type\":\"timer_tick\",\"source\":\"it\"}",
    ];
    for body in bodies {
        let response = server.post(body);
        assert_eq!(response.status, 422, "{body:?}: {}", response.text());
        response.refusal(422);
    }
    let detail = server.post(r#"{"source":"it"}"#).refusal(422);
    assert_eq!(detail[0]["loc"], json!(["body", "event_type"]), "the missing field is named");
    let detail = server.post(r#"{"event_type":"timer_tick","source":"it","session_id":5}"#).refusal(422);
    assert_eq!(detail[0]["loc"], json!(["body", "session_id"]), "the wrong field is named");
    assert_eq!(server.get_json("/stats")["total_events"], 0);
}

#[test]
fn a_body_over_the_limit_is_413() {
    let server = Server::with(&[("MAX_BODY_BYTES", "2000")]);
    let padded = |length: usize| {
        let event = tick("s", 0);
        format!("{event}{}", " ".repeat(length - event.len()))
    };
    assert_eq!(server.post(padded(2000)).status, 201);
    server.post(padded(2001)).refusal(413);

    let chunked = |body: &str| {
        let mut wire = Wire::connect(server.addr);
        let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        wire.send(format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
        wire.response().expect("an answer")
    };
    assert_eq!(chunked(&padded(2000)).status, 201);
    chunked(&padded(2001)).refusal(413);
}

#[test]
fn a_body_announced_too_long_is_refused_before_it_is_sent() {
    let server = Server::start();
    let mut wire = Wire::connect(server.addr);
    wire.send(
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n",
    );
    wire.response().expect("an answer").refusal(413);
}

#[test]
fn head_answers_like_get_without_a_body() {
    let server = Server::start();
    server.publish(&tick("s", 0));
    for path in ["/events", "/events/evt_000000000001", "/stats", "/health", "/readiness", "/event-types", "/nowhere"] {
        let get = server.get(path);
        let mut wire = Wire::connect(server.addr);
        wire.send(request("HEAD", path, &[], b""));
        let head = wire.head_response().expect("an answer");
        assert_eq!(head.status, get.status, "HEAD {path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "HEAD {path}");
        // The next answer starts where the head ended: there was no body.
        wire.send(request("GET", "/health", &[], b""));
        assert_eq!(wire.response().expect("an answer").json()["status"], "ok", "after HEAD {path}");
    }
}

#[test]
fn options_and_preflight_are_answered() {
    let server = Server::start();
    let plain = server.call("OPTIONS", "/events", &[], b"");
    assert!(matches!(plain.status, 200 | 204), "{}", plain.status);

    let asked = [
        ("Origin", "http://localhost:3000"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type, x-api-key"),
    ];
    for path in ["/events", "/api/v1/events"] {
        let preflight = server.call("OPTIONS", path, &asked, b"");
        assert!(matches!(preflight.status, 200 | 204), "{}", preflight.status);
        let origin = preflight.header("access-control-allow-origin").expect("an allowed origin");
        assert!(matches!(origin, "*" | "http://localhost:3000"), "{origin}");
        assert!(preflight.header("access-control-allow-methods").expect("allowed methods").contains("POST"));
        let headers = preflight.header("access-control-allow-headers").expect("allowed headers").to_lowercase();
        assert!(headers == "*" || (headers.contains("content-type") && headers.contains("x-api-key")), "{headers}");
    }
}

#[test]
fn a_connection_serves_many_requests() {
    let server = Server::start();
    let mut wire = Wire::connect(server.addr);
    for sequence in 1..=50 {
        wire.send(request("POST", "/events", &[JSON], tick("s", 0).as_bytes()));
        let response = wire.response().expect("an answer");
        assert_eq!(crate::support::sequence(&response.json()["id"]), sequence);
        wire.send(request("GET", "/nowhere", &[], b""));
        wire.response().expect("an answer").refusal(404);
        wire.send(request("POST", "/events", &[JSON], b"nonsense"));
        wire.response().expect("an answer").refusal(422);
    }
}

#[test]
fn http_1_0_and_expect_100_continue_are_served() {
    let server = Server::start();
    let mut wire = Wire::connect(server.addr);
    wire.send("GET /health HTTP/1.0\r\n\r\n");
    assert_eq!(wire.response().expect("an answer").status, 200, "HTTP/1.0 needs no Host");
    wire.await_close();

    let mut wire = Wire::connect(server.addr);
    wire.send(request("GET", "/health", &[("Connection", "close")], b""));
    assert_eq!(wire.response().expect("an answer").status, 200);
    wire.await_close();

    let mut wire = Wire::connect(server.addr);
    let whole = request("POST", "/events", &[JSON, ("Expect", "100-continue")], tick("s", 0).as_bytes());
    let (head, body) = whole.split_at(whole.len() - tick("s", 0).len());
    wire.send(head);
    assert_eq!(wire.take(25, "leave to go on").as_deref(), Some(b"HTTP/1.1 100 Continue\r\n\r\n".as_slice()));
    wire.send(body);
    assert_eq!(wire.response().expect("an answer").status, 201);
}

#[test]
fn clients_that_vanish_do_not_affect_others() {
    let server = Server::start();
    let event = request("POST", "/events", &[JSON], tick("vanishing", 0).as_bytes());
    let read = request("GET", "/events", &[ACCEPT_NDJSON], b"");
    server.publish_lines(&ticks("s", 20_000));
    in_parallel(4, |client| {
        for n in 0..50 {
            let mut wire = Wire::connect(server.addr);
            match (client + n) % 4 {
                0 => wire.send(&event),
                1 => wire.send(&event[..event.len() / 2]),
                2 => wire.send(event.repeat(20)),
                _ => wire.send(&read),
            }
            wire.reset();
            server.publish(&tick("staying", n));
        }
    });
    assert_eq!(server.stored("session_id=staying").len(), 200);
    // It is open how many events were stored whose clients did not wait. The record has no gap in any case.
    let all = sequences(&server.stored(""));
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let mut wire = Wire::connect(server.addr);
    let requests: Vec<u8> = (0..100)
        .flat_map(|n| match n % 4 {
            0..=1 => request("POST", "/events", &[JSON], tick("s", n).as_bytes()),
            2 => request("GET", "/events?limit=1", &[], b""),
            _ => request("POST", "/events", &[JSON], b"{}"),
        })
        .collect();
    wire.send(requests);
    for n in 0..100 {
        let response = wire.response().expect("an answer");
        match n % 4 {
            0..=1 => assert_eq!(response.json()["payload"]["n"], n),
            2 => assert_eq!(response.json()[0]["payload"]["n"], n - 1, "what was acknowledged is visible"),
            _ => assert_eq!(response.status, 422),
        }
    }
}

#[test]
fn ambiguous_requests_are_refused() {
    let server = Server::start();
    let event = tick("s", 0);
    let length = event.len();
    let heads = [
        ("both lengths", format!("Host: localhost\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n")),
        (
            "both lengths, the other way round",
            format!("Host: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
        ),
        ("two lengths", format!("Host: localhost\r\nContent-Length: {length}\r\nContent-Length: {}\r\n", length + 1)),
        ("no host", format!("Content-Length: {length}\r\n")),
        ("negative length", "Host: localhost\r\nContent-Length: -1\r\n".to_string()),
        ("unknown coding", "Host: localhost\r\nTransfer-Encoding: gzip\r\n".to_string()),
    ];
    for (what, head) in heads {
        let mut wire = Wire::connect(server.addr);
        wire.send(format!("POST /events HTTP/1.1\r\nContent-Type: application/json\r\n{head}\r\n{event}"));
        // After such a request it is unclear where the next one starts, so the connection must end.
        match wire.response() {
            Some(response) => assert!(matches!(response.status, 400 | 411 | 501), "{what}: {}", response.status),
            None => continue,
        }
        if what != "no host" {
            wire.await_close();
        }
    }
    assert_eq!(server.get_json("/stats")["total_events"], 0);
}

#[test]
fn bytes_that_are_not_http_are_refused() {
    let server = Server::start();
    let long = "x".repeat(1 << 20);
    let many: String = (0..5000).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let requests = [
        "nonsense\r\n\r\n".to_string(),
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03 looks like TLS\r\n\r\n".to_string(),
        "GET / HTTP/9.9\r\nHost: localhost\r\n\r\n".to_string(),
        format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: {long}\r\n\r\n"),
        format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
        "GET /health HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n".to_string(),
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n".to_string(),
    ];
    for request in requests {
        let mut wire = Wire::connect(server.addr);
        wire.send(&request);
        wire.finish();
        if let Some(response) = wire.response() {
            let what = &request[..request.len().min(60)];
            assert!((400..600).contains(&response.status), "{what}: {}", response.status);
        }
        server.get("/health");
    }
}

#[test]
fn slow_clients_time_out() {
    let server = Server::with(&[("HEADER_TIMEOUT_SECONDS", "0.4"), ("BODY_TIMEOUT_SECONDS", "0.4")]);
    let half_body = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"event";
    let half_chunk = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab";
    for part in ["", "GET /hea", "GET /health HTTP/1.1\r\nHost: localhost\r\n", half_body, half_chunk] {
        let mut wire = Wire::connect(server.addr);
        wire.send(part);
        if let Some(response) = wire.response() {
            assert_eq!(response.status, 408, "{part:?}");
        }
        wire.await_close();
    }
    server.publish(&tick("s", 0));
}

#[test]
fn slow_clients_do_not_delay_others() {
    let server = Server::start();
    let _silent: Vec<_> = (0..200)
        .map(|_| {
            let mut wire = Wire::connect(server.addr);
            wire.send(
                "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
            );
            wire
        })
        .collect();
    for sequence in 1..=20 {
        assert_eq!(crate::support::sequence(&server.publish(&tick("s", 0))["id"]), sequence);
    }
}

#[test]
fn many_connections_publish_at_once() {
    let server = Server::start();
    in_parallel(32, |connection| {
        let mut wire = Wire::connect(server.addr);
        for n in 0..50 {
            wire.send(request("POST", "/events", &[JSON], tick(&format!("c{connection}"), n).as_bytes()));
            assert_eq!(wire.response().expect("an answer").json()["payload"]["n"], n);
        }
    });
    assert_eq!(sequences(&server.stored("")), (1..=1600).collect::<Vec<_>>());
    for connection in 0..32 {
        let numbers: Vec<_> = server
            .stored(&format!("session_id=c{connection}"))
            .iter()
            .map(|event| event["payload"]["n"].as_u64())
            .collect();
        assert_eq!(numbers, (0..50).map(Some).collect::<Vec<_>>(), "each connection's events keep their order");
    }
}

#[test]
fn health_and_readiness_have_their_shapes() {
    let server = Server::start();
    let health = server.get_json("/health");
    assert_eq!(health["status"], "ok");
    assert_eq!(health["service"], "event-pipeline");
    assert!(health["version"].is_string(), "{health}");

    let readiness = server.get_json("/readiness");
    assert_eq!(readiness["ready"], true);
    assert_eq!(readiness["database"], "connected");
    assert!(readiness["router"].is_object(), "{readiness}");
}

#[test]
fn stats_have_their_shape() {
    let server = Server::start();
    let empty = server.get_json("/stats");
    assert_eq!(empty["total_events"], 0);
    assert_eq!(empty["events_last_hour"], 0);
    assert_eq!(empty["by_type"], json!([]));
    assert_eq!(empty["router"]["active_subscribers"], 0);
    assert!(empty["router"]["queue_size"].is_u64(), "{empty}");

    let _subscribers = [server.subscriber(&json!({})), server.subscriber(&json!({"session_id": "x"}))];
    let stored = server.publish(&tick("s", 0));
    server.await_stats("two subscribers", |stats| stats["router"]["active_subscribers"] == 2);
    let stats = server.get_json("/stats");
    assert_eq!(stats["by_type"], json!([{"event_type": "timer_tick", "count": 1, "last_seen": stored["timestamp"]}]));
    assert_eq!(stats["events_last_hour"], 1);
}

#[test]
fn event_types_can_be_added_and_not_removed() {
    let builtin = [
        "quiz_started",
        "quiz_completed",
        "quiz_timeout",
        "answer_submitted",
        "answer_changed",
        "question_viewed",
        "question_skipped",
        "timer_started",
        "timer_tick",
        "timer_warning",
        "mastery_updated",
        "learning_gap_detected",
        "session_created",
        "session_ended",
        "error_occurred",
    ];
    let server = Server::with(&[("EVENT_TYPES", "hand_raised=A student raised a hand")]);
    let types = server.get_json("/event-types");
    let types = types.as_object().unwrap();
    assert_eq!(types.len(), 16);
    assert!(builtin.iter().all(|name| types[*name].is_string()));
    assert_eq!(types["hand_raised"], "A student raised a hand");
    for name in builtin.iter().chain(&["hand_raised"]) {
        server.publish(&json!({"event_type": name, "source": "it"}).to_string());
    }
}
