//! `/events/stream`: the bytes of Server-Sent Events, where a stream begins and ends, slow clients and clients that reconnect.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;

use crate::support::*;

#[test]
fn an_event_stream_has_the_form_that_browsers_read() {
    let server = Server::with(&[("CORS_ORIGINS", "*")]);
    let stored: Vec<_> = [tick("é \"q\"\n", 0), tick("s", 1)].iter().map(|body| server.publish(body)).collect();
    for prefix in ["", "/api/v1"] {
        let target = format!("{prefix}/events/stream?after={}", id_of(0));
        let mut wire = Wire::connect(server.addr);
        wire.send(request("GET", &target, &[("Accept", "text/event-stream")], b""));
        let head = wire.response_head().expect("an answer");
        assert_eq!(head.status, 200);
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store"),
            ("transfer-encoding", "chunked"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
            ("access-control-allow-origin", "*"),
        ] {
            assert_eq!(head.header(name), Some(value), "{name}");
        }
        assert_eq!(head.header("content-length"), None);

        let greeting = String::from_utf8(wire.chunk().expect("a chunk")).unwrap();
        let subscribed = greeting.strip_prefix("retry: 1000\nevent: subscribed\ndata: ").expect("a greeting");
        let subscribed: serde_json::Value =
            serde_json::from_str(subscribed.strip_suffix("\n\n").expect("its end")).unwrap();
        assert_eq!((&subscribed["status"], &subscribed["last_event_id"]), (&json!("subscribed"), &json!(id_of(2))));
        assert!(text_of(&subscribed["subscriber_id"]).starts_with("sub_") && subscribed["epoch"].is_string());

        let expected: String = (1..=2)
            .map(|n| format!("id: {}\ndata: {}\n\n", id_of(n), server.get(&format!("/events/{}", id_of(n))).text()))
            .collect();
        let mut text = String::new();
        while text.len() < expected.len() {
            text.push_str(&String::from_utf8(wire.chunk().expect("a chunk")).unwrap());
        }
        assert_eq!(text, expected);
    }
    assert_eq!(EventStream::open(server.addr, "last=1").event(), stored[1]);
}

#[test]
fn an_event_stream_starts_where_its_parameters_say() {
    let server = Server::start();
    server.publish_lines(&(0..500).map(|n| tick(["a", "b"][n % 2], n)).collect::<Vec<_>>());
    let since = |n: u64| encode(&timestamp(&server.get_json(&format!("/events/{}", id_of(n)))));
    let table = [
        (String::new(), None, vec![]),
        ("after=".to_string(), Some(String::new()), vec![]),
        (format!("after={}", id_of(497)), None, vec![498, 499, 500]),
        (format!("after={}", id_of(500)), None, vec![]),
        (format!("after={}", id_of(0)), None, (1..=500).collect()),
        (format!("since={}", since(498)), None, vec![499, 500]),
        ("since=2020-01-01T02:00:00%2B02:00".to_string(), None, (1..=500).collect()),
        ("last=0".to_string(), None, vec![]),
        ("last=3".to_string(), None, vec![498, 499, 500]),
        ("last=2&session_id=a".to_string(), None, vec![497, 499]),
        (format!("after={}&session_id=b&event_type=timer_tick,quiz_started", id_of(496)), None, vec![498, 500]),
        // A browser that reconnects cannot change its URL, so the header counts.
        (String::new(), Some(id_of(498)), vec![499, 500]),
        (format!("after={}", id_of(3)), Some(id_of(499)), vec![500]),
        (format!("after={}", id_of(499)), Some(id_of(497)), vec![498, 499, 500]),
        ("last=400".to_string(), Some(id_of(499)), vec![500]),
        ("since=2020-01-01T00:00:00Z&session_id=b".to_string(), Some(id_of(495)), vec![496, 498, 500]),
        ("latest_by=session_id".to_string(), Some(id_of(499)), vec![500]),
    ];
    let mut streams: Vec<_> = table
        .into_iter()
        .map(|(query, last_event_id, expected)| {
            let headers: Vec<_> = last_event_id.iter().map(|id| ("Last-Event-ID", id.as_str())).collect();
            (EventStream::resume(server.addr, &query, &headers), format!("{query} {last_event_id:?}"), expected)
        })
        .collect();
    server.publish_lines(&["a", "b"].map(|session| tick(session, 0)));
    for (stream, what, mut expected) in
        streams.iter_mut().map(|(stream, what, expected)| (stream, what, expected.clone()))
    {
        expected.extend(match () {
            () if what.contains("session_id=a") => vec![501],
            () if what.contains("session_id=b") => vec![502],
            () => vec![501, 502],
        });
        assert_eq!(stream.sequences(expected.len()), expected, "{what}");
    }
}

#[test]
fn a_gap_is_sent_before_the_first_event_of_a_stream() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 10));
    let boundary = encode(&timestamp(&server.get_json(&format!("/events/{}", id_of(5)))));
    server.call("DELETE", &format!("/events?before={boundary}"), &[], b"");

    let mut stream = EventStream::open(server.addr, &format!("after={}", id_of(2)));
    assert_eq!(stream.note(), ("gap".to_string(), json!({"gap": {"missing_through": id_of(4)}, "type": "gap"})));
    assert_eq!(stream.sequences(6), [5, 6, 7, 8, 9, 10]);
    let mut whole = EventStream::open(server.addr, &format!("after={}", id_of(4)));
    assert_eq!(whole.sequences(6), [5, 6, 7, 8, 9, 10], "nothing is missing after the fourth");

    // An id that was never given out is from another epoch: the stream begins now.
    let unknown = json!({"gap": {"unknown_cursor": id_of(99)}, "type": "gap"});
    let mut ahead = EventStream::resume(server.addr, "", &[("Last-Event-ID", &id_of(99))]);
    assert_eq!(ahead.note(), ("gap".to_string(), unknown));
    let mut other_life = EventStream::open(server.addr, &format!("after={}&epoch=not-this-one", id_of(7)));
    assert_eq!(other_life.note().0, "gap");
    server.publish(&tick("s", 0));
    for mut stream in [stream, whole, ahead, other_life] {
        assert_eq!(stream.sequences(1), [11]);
    }
}

#[test]
fn an_idle_event_stream_sends_heartbeats() {
    let server = Server::with(&[("KEEPALIVE_SECONDS", "0.2")]);
    let mut stream = EventStream::open(server.addr, "session_id=s");
    for round in 1..=3 {
        let heartbeat = Block { comment: Some("keep-alive".to_string()), ..Block::default() };
        assert_eq!(stream.block(), heartbeat);
        assert_eq!(stream.block(), heartbeat);
        server.publish(&tick("other", 0));
        server.publish(&tick("s", 0));
        assert_eq!(sequence(&stream.event()["id"]), 2 * round);
    }
}

#[test]
fn conflation_and_snapshots_send_the_latest_event_of_each_key() {
    let server = Server::start();
    let mut conflated = EventStream::open(server.addr, "conflate=session_id&interval_ms=500&skipped=true&source=it");
    server.publish(&tick("a", 0));
    assert_eq!(conflated.sequences(1), [1], "nothing is held back that nothing came before");
    // One commit of a hundred events, within the interval or not: of each session only the last event is sent.
    server.publish_lines(&(0..100).map(|n| tick(["a", "b", "c", "c"][n % 4], n)).collect::<Vec<_>>());
    assert_eq!(conflated.sequences(3), [98, 99, 101]);
    assert_eq!(conflated.note(), ("skipped".to_string(), json!({"type": "skipped", "count": 97})));

    let mut snapshot = EventStream::open(server.addr, "latest_by=session_id");
    assert_eq!(snapshot.sequences(3), [98, 99, 101]);
    let mut some = EventStream::open(server.addr, "latest_by=session_id&session_id=b");
    assert_eq!(some.sequences(1), [99]);
    server.publish(&tick("b", 0));
    for mut stream in [conflated, snapshot, some] {
        assert_eq!(stream.sequences(1), [102]);
    }
}

#[test]
fn a_paced_replay_ends_with_a_complete_event() {
    let server = Server::start();
    server.publish_lines(&(0..300).map(|n| tick(["a", "b"][n % 2], n)).collect::<Vec<_>>());
    let until = |n: u64| encode(&timestamp(&server.get_json(&format!("/events/{}", id_of(n)))));
    let whole: Vec<u64> = (1..=300).collect();
    for (query, expected) in [
        (format!("after={}&until=9999-01-01T00:00:00Z&speed=10000", id_of(0)), whole.clone()),
        (format!("last=300&until={}&speed=0.01", until(4)), vec![1, 2, 3]),
        (format!("since=2020-01-01T00:00:00Z&until={}&session_id=b", until(9)), vec![2, 4, 6, 8]),
        (format!("after={}&until={}", id_of(20), until(10)), vec![]),
        (format!("after={}&until=2020-01-01T00:00:00Z", id_of(0)), vec![]),
    ] {
        let mut stream = EventStream::open(server.addr, &query);
        assert_eq!(stream.sequences(expected.len()), expected, "{query}");
        assert_eq!(stream.note(), ("complete".to_string(), json!({})), "{query}");
        assert_eq!(stream.receive(), StreamPart::End, "{query}");
        // The connection serves the next request.
        let mut wire = stream.into_wire();
        wire.send(request("GET", "/health", &[], b""));
        assert_eq!(wire.response().expect("an answer").json()["status"], "ok");
    }
    // A HEAD request has no body that could end.
    let mut wire = Wire::connect(server.addr);
    wire.send(request("HEAD", "/events/stream", &[], b""));
    assert_eq!(wire.head_response().expect("an answer").header("content-type"), Some("text/event-stream"));
    wire.send(request("GET", "/health", &[], b""));
    assert_eq!(wire.response().expect("an answer").json()["status"], "ok");
    server.await_stats("nobody to be subscribed", |stats| stats["router"]["active_subscribers"] == 0);
}

#[test]
fn invalid_stream_parameters_are_refused() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 3));
    // Only the head is read: a request that is accepted by mistake gets a stream without an end.
    let refused = |query: &str, headers: &[(&str, &str)], status: u16| match EventStream::ask(
        server.addr,
        &format!("/events/stream?{query}"),
        headers,
    ) {
        Ok(_) => panic!("{query} is accepted"),
        Err(refusal) => refusal.refusal(status),
    };
    for query in ["after=nonsense", "after=17", "since=yesterday", "last=1&until=yesterday"] {
        refused(query, &[], 400);
    }
    refused("", &[("Last-Event-ID", "nonsense")], 400);
    for query in [
        "last=-1",
        "last=x",
        "last=",
        "last=100001",
        "last=1&since=2020-01-01T00:00:00Z",
        "until=9999-01-01T00:00:00Z",
        "last=1&speed=0",
        "last=1&speed=fast",
        "last=1&speed=NaN",
        "last=1&speed=inf",
        "last=1&speed=100000",
        "on_lag=panic",
        "signals=maybe",
        "conflate=colour&interval_ms=100",
        "conflate=session_id",
        "conflate=session_id&interval_ms=5",
        "conflate=session_id&interval_ms=fast",
        "conflate=session_id&interval_ms=100&skipped=perhaps",
        "latest_by=colour",
        "latest_by=session_id&last=1",
        "latest_by=session_id&after=evt_000000000001",
        "latest_by=session_id&until=9999-01-01T00:00:00Z",
        "filter=x",
        "filter=%7B%22payload%22:7%7D",
    ] {
        let detail = refused(query, &[], 422);
        assert_eq!(detail[0]["loc"][0], "query", "{query}: {detail}");
    }
    for method in ["POST", "DELETE", "PUT"] {
        let refused = server.call(method, "/events/stream", &[], b"");
        refused.refusal(405);
        assert_eq!(refused.header("allow"), Some("GET, HEAD, OPTIONS"), "{method}");
    }
    assert_eq!(server.get_json("/stats")["router"]["active_subscribers"], 0, "who was refused took no place");
}

#[test]
fn a_browser_may_show_its_key_in_the_url() {
    const KEY: &str = "a key & a half, & more";
    let server = Server::with(&[("REQUIRE_AUTH", "true"), ("API_KEY", KEY)]);
    let refused = |query: &str, headers: &[(&str, &str)]| {
        let refusal = EventStream::ask(server.addr, &format!("/events/stream?{query}"), headers).err();
        let refusal = refusal.unwrap_or_else(|| panic!("{query} was let in"));
        refusal.refusal(401);
        assert_eq!(refusal.header("www-authenticate"), Some("Bearer"));
    };
    refused("", &[]);
    refused("api_key=", &[]);
    refused("api_key=wrong", &[]);
    refused("key=a+key+%26+a+half", &[]);
    // 401 comes before validation.
    refused("last=x", &[]);
    refused("after=nonsense", &[("X-API-Key", "wrong")]);

    let mut streams = [
        EventStream::open(server.addr, &format!("api_key={}", encode(KEY))),
        EventStream::resume(server.addr, "", &[("X-API-Key", KEY)]),
        EventStream::resume(server.addr, "", &[("Authorization", &format!("Bearer {KEY}"))]),
    ];
    assert_eq!(server.call("POST", "/events", &[JSON, ("X-API-Key", KEY)], tick("s", 0).as_bytes()).status, 201);
    for stream in &mut streams {
        assert_eq!(stream.sequences(1), [1]);
    }
}

#[test]
fn an_event_stream_without_a_free_slot_is_503() {
    let server = Server::with(&[("MAX_SUBSCRIBERS", "2"), ("KEEPALIVE_SECONDS", "0.05")]);
    let stream = EventStream::open(server.addr, "");
    let _socket = server.subscriber(&json!({}));
    let refused = server.get("/events/stream");
    refused.refusal(503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let mut full = Socket::open(server.addr, "/ws/subscribe");
    full.send("{}");
    assert_eq!(full.read_to_close().1, 1013, "they are counted together");

    drop(stream);
    server.await_stats("a free place", |stats| stats["router"]["active_subscribers"] == 1);
    let mut stream = EventStream::open(server.addr, "");
    server.publish(&tick("s", 0));
    assert_eq!(sequence(&stream.event()["id"]), 1);
}

#[test]
fn a_closed_event_stream_gives_its_slot_back_at_once() {
    // Nothing is written to the stream, so no failed write can show that the client is gone.
    let server = Server::with(&[("MAX_SUBSCRIBERS", "1"), ("KEEPALIVE_SECONDS", "600")]);
    let is_free = || server.await_stats("a free place", |stats| stats["router"]["active_subscribers"] == 0);
    drop(EventStream::open(server.addr, ""));
    is_free();
    EventStream::open(server.addr, "").into_wire().reset();
    is_free();
    // A client that ends its own side has ended the stream.
    let mut half_closed = EventStream::open(server.addr, "").into_wire();
    half_closed.finish();
    is_free();
    half_closed.await_close();
    // Pipelined requests do not hide the end.
    let mut hasty = EventStream::open(server.addr, "").into_wire();
    hasty.send(request("GET", "/health", &[], b"").repeat(3));
    drop(hasty);
    is_free();
    // This many do hide it. A stream without an end is given up then: requests behind it are never answered.
    let mut hastier = EventStream::open(server.addr, "").into_wire();
    hastier.send(request("GET", "/health", &[], b"").repeat(200));
    is_free();
    let mut stream = EventStream::open(server.addr, "");
    server.publish(&tick("s", 0));
    assert_eq!(stream.sequences(1), [1]);
}

#[test]
fn requests_pipelined_behind_a_paced_replay_are_answered_after_it() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 3));
    let target = format!("/events/stream?after={}&until=9999-01-01T00:00:00Z", id_of(0));
    let mut wire = Wire::connect(server.addr);
    wire.send([request("GET", &target, &[], b""), request("GET", "/health", &[], b"").repeat(200)].concat());
    assert_eq!(complete_stream(&wire.response().expect("a film")), [1, 2, 3]);
    for _ in 0..200 {
        assert_eq!(wire.response().expect("an answer").json()["status"], "ok");
    }
}

#[test]
fn a_client_that_half_closes_after_a_query_is_answered() {
    let server = Server::start();
    let ids = server.publish_lines(&ticks("s", 5_000));
    for headers in [&[][..], &[ACCEPT_NDJSON]] {
        let mut wire = Wire::connect(server.addr);
        wire.send(request("GET", &format!("/events?limit=1000&after_id={}", id_of(0)), headers, b""));
        wire.finish();
        let answer = wire.response().expect("an answer");
        assert_eq!(answer.text().matches("\"id\"").count(), 1_000, "{headers:?}");
        wire.await_close();
    }
    assert_eq!(ids.len(), 5_000);
}

#[test]
fn an_event_stream_that_nobody_reads_is_closed() {
    let server = Server::with(&[("MAX_SUBSCRIBER_BYTES", "65536"), ("WRITE_TIMEOUT_SECONDS", "0.5")]);
    let mut stuck = EventStream::open(server.addr, "");
    server.publish_30_mb();
    server.await_stats("the stuck reader to be given up", |stats| stats["router"]["active_subscribers"] == 0);
    let mut last = 0;
    loop {
        match stuck.receive() {
            StreamPart::Block(block) => {
                last += 1;
                assert_eq!(sequence(&block.json()["id"]), last);
            }
            end => {
                assert_eq!(end, StreamPart::BrokenOff, "nobody is told that this was all");
                break;
            }
        }
    }
    // The client can resume after its last event, as a browser does by itself.
    let mut again = EventStream::resume(server.addr, "", &[("Last-Event-ID", &id_of(last))]);
    assert_eq!(sequence(&again.event()["id"]), last + 1);
}

#[test]
fn a_slow_event_stream_is_served_as_its_on_lag_says() {
    let server = Server::with(&[
        ("MAX_SUBSCRIBER_BYTES", "65536"),
        ("WRITE_TIMEOUT_SECONDS", "600"),
        ("KEEPALIVE_SECONDS", "600"),
    ]);
    let mut patient = EventStream::open(server.addr, "signals=1");
    let mut hasty = EventStream::open(server.addr, "on_lag=skip");
    let mut proud = EventStream::open(server.addr, "on_lag=disconnect");
    server.publish_30_mb();
    server.publish(&tick("last", 0));

    let (mut last, mut notes) = (0, Vec::new());
    while last < 501 || notes.len() < 2 {
        let block = patient.block();
        match &block.event {
            Some(note) => notes.push(note.clone()),
            None => {
                last += 1;
                assert_eq!(sequence(&block.json()["id"]), last, "a gap");
            }
        }
    }
    assert_eq!(notes[..2], ["fell_behind", "caught_up"]);

    let (mut last, mut missed) = (0, 0);
    while last < 501 {
        let block = hasty.block();
        let (told, place) = match block.event.as_deref() {
            Some("lagged") => (block.json()["missed"].as_u64().unwrap(), sequence(&block.json()["last_event_id"])),
            None => (1, sequence(&block.json()["id"])),
            Some(note) => panic!("{note} is news to it"),
        };
        missed += if block.event.is_some() { told } else { 0 };
        assert_eq!(place, last + told, "what is left out is counted");
        last = place;
    }
    assert!(missed > 0, "30 MB do not fit into sockets");

    let mut last = 0;
    loop {
        match proud.receive() {
            StreamPart::Block(block) if block.event.is_none() => {
                last += 1;
                assert_eq!(sequence(&block.json()["id"]), last);
            }
            StreamPart::Block(block) => {
                assert_eq!(block.event.as_deref(), Some("too_slow"));
                break;
            }
            end => panic!("{end:?} without a reason"),
        }
    }
    assert_eq!(proud.receive(), StreamPart::End);
    assert!(last < 501);
}

#[test]
fn a_shutdown_ends_event_streams_in_order() {
    // If the server waited for one of them, it would end too late for this test.
    let mut server = Server::with(&[("SHUTDOWN_TIMEOUT_SECONDS", "600"), ("KEEPALIVE_SECONDS", "600")]);
    server.publish_lines(&ticks("s", 10));
    let queries = ["", "session_id=nobody", "last=10", "conflate=session_id&interval_ms=60000", "last=10&speed=0.01"];
    let mut streams = queries.map(|query| EventStream::open(server.addr, query));
    assert_eq!(streams[2].sequences(10), (1..=10).collect::<Vec<_>>());
    server.signal("TERM");
    for (stream, query) in streams.iter_mut().zip(queries) {
        loop {
            match stream.receive() {
                StreamPart::Block(block) => assert_eq!(block.event, None, "{query}"),
                end => {
                    assert_eq!(end, StreamPart::End, "{query}");
                    break;
                }
            }
        }
    }
    server.await_exit_0();
}

/// Publishes until the server ends.
fn publish_to_the_end(server: &Server, published: &AtomicUsize) {
    let mut publisher = server.publisher();
    let messages = ticks("s", 50_000);
    let stream = publisher.stream().try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| send_all(&stream, &messages));
        while let Received::Text(_) = publisher.receive() {
            published.fetch_add(1, Ordering::Relaxed);
        }
        let _ = publisher.stream().shutdown(std::net::Shutdown::Both);
    });
}

#[test]
fn a_browser_that_reconnects_gets_every_event_once() {
    let mut server = Server::start();
    let mut last = 0;
    let read_on = |stream: &mut EventStream, last: &mut u64, count: usize| {
        for event in stream.sequences(count) {
            assert_eq!(event, *last + 1, "a gap or a repeat");
            *last = event;
        }
    };
    for signal in ["TERM", "KILL", "TERM", "KILL"] {
        let published = AtomicUsize::new(0);
        thread::scope(|scope| {
            let (server, published) = (&server, &published);
            scope.spawn(move || publish_to_the_end(server, published));
            let came_back = last;
            // The first stream is dropped in the middle, the second one is open when the server ends.
            for count in [300, 500] {
                let at = id_of(last);
                let url = format!("after={}", id_of(came_back));
                let mut stream = EventStream::resume(server.addr, &url, &[("Last-Event-ID", &at)]);
                read_on(&mut stream, &mut last, count);
                if count == 300 {
                    continue;
                }
                server.signal(signal);
                loop {
                    match stream.receive() {
                        StreamPart::Block(block) => {
                            assert_eq!(sequence(&block.json()["id"]), last + 1, "a gap or a repeat");
                            last += 1;
                        }
                        end => {
                            assert!(signal == "KILL" || end == StreamPart::End, "{signal}: {end:?}");
                            break;
                        }
                    }
                }
            }
        });
        match signal {
            "TERM" => server.await_exit_0(),
            _ => server.kill(),
        }
        server.restart();
    }
    let stored = server.stored("");
    let mut stream = EventStream::open(server.addr, &format!("after={}", id_of(last)));
    let rest = stored.len() - last as usize;
    read_on(&mut stream, &mut last, rest);
    server.publish(&tick("s", 0));
    read_on(&mut stream, &mut last, 1);
}

#[test]
fn all_event_streams_get_the_same_events() {
    let server = Server::start();
    let mut streams: Vec<_> = (0..60)
        .map(|n| {
            let query = if n % 2 == 0 { format!("session_id=s{}", n % 3) } else { "exclude_session_id=s0".to_string() };
            (EventStream::open(server.addr, &query), n)
        })
        .collect();
    let sessions: Vec<usize> = (0..300).map(|n| n * 7 % 3).collect();
    server.publish_lines(&sessions.iter().zip(0..).map(|(of, n)| tick(&format!("s{of}"), n)).collect::<Vec<_>>());
    for (stream, n) in &mut streams {
        let passes = |of: &usize| if *n % 2 == 0 { *of == *n % 3 } else { *of != 0 };
        let expected: Vec<u64> =
            sessions.iter().zip(1..).filter(|(of, _)| passes(of)).map(|(_, place)| place).collect::<Vec<_>>();
        assert_eq!(stream.sequences(expected.len()), expected);
    }
}
