//! Clients that are slow on purpose: they send single bytes, or take nothing of their answers. Each is closed when its time
//! is over, however busy it looks, and costs little until then.

use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::hostile::{Bystanders, MIB, Memory, sockets};
use crate::support::*;

#[test]
fn a_client_that_sends_byte_by_byte_is_cut_off() {
    let server = Server::with(&[
        ("HEADER_TIMEOUT_SECONDS", "1"),
        ("BODY_TIMEOUT_SECONDS", "1"),
        ("SUBSCRIBE_TIMEOUT_SECONDS", "1"),
    ]);
    let mut bystanders = Bystanders::join(&server);
    let at_first = sockets(&server);
    let memory = Memory::of(&server);
    // How each client begins, and what it then repeats byte by byte.
    let post = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let kinds: [(Vec<u8>, &[u8]); 7] = [
        (b"".to_vec(), b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n".to_vec(), b"X-Slow: 1\r\n"),
        // A connection that was served once has no more time than a new one.
        ([request("GET", "/health", &[], b""), b"GET /".to_vec()].concat(), b"a"),
        (format!("{post}Content-Length: 60000\r\n\r\n").into_bytes(), b" "),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\n").into_bytes(), b"1\r\n \r\n"),
        (h2::PREFACE[..5].to_vec(), &h2::PREFACE[5..]),
        (websocket_request(), &frame(TEXT, b"")),
    ];
    let mut clients: Vec<_> = (0..kinds.len() * 30)
        .map(|n| {
            let mut wire = Wire::connect(server.addr);
            wire.send(&kinds[n % kinds.len()].0);
            (n % kinds.len(), wire, 0)
        })
        .collect();
    let begun = Instant::now();
    let mut rounds = 0;
    while !clients.is_empty() {
        clients.retain_mut(|(kind, wire, sent)| {
            let bytes = kinds[*kind].1;
            let byte = bytes[*sent % bytes.len()];
            *sent += 1;
            wire.stream().write_all(&[byte]).is_ok()
        });
        rounds += 1;
        assert!(begun.elapsed() < DEADLINE, "{} clients go on after {rounds} rounds", clients.len());
        thread::sleep(Duration::from_millis(50));
        if rounds % 10 == 0 {
            bystanders.are_served();
        }
    }
    memory.has_grown_less_than(32 * MIB);
    await_true("their sockets to be closed", || sockets(&server) == at_first);
    bystanders.are_served();
    assert_eq!(server.stored("").len(), bystanders.stored());
}

/// A handshake for `/ws/subscribe`.
fn websocket_request() -> Vec<u8> {
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    request("GET", "/ws/subscribe", &headers, b"")
}

#[test]
fn a_client_that_takes_nothing_is_closed() {
    let server = Server::with(&[("WRITE_TIMEOUT_SECONDS", "2"), ("MAX_SUBSCRIBER_BYTES", "65536")]);
    let filler = "x".repeat(1000);
    let big = json!({"event_type": "timer_tick", "source": "past", "payload": {"filler": filler}}).to_string();
    for _ in 0..3 {
        server.publish_lines(&vec![big.clone(); 10_000]);
    }
    let mut bystanders = Bystanders::join(&server);
    bystanders.are_served();
    let at_first = sockets(&server);
    let memory = Memory::of(&server);

    let wire = |bytes: Vec<u8>| {
        let mut wire = Wire::connect(server.addr);
        wire.send(bytes);
        wire
    };
    let mut stuck: Vec<_> = (0..8)
        .flat_map(|_| {
            [
                wire(request("GET", "/events?limit=1000", &[], b"").repeat(50)),
                wire(request("GET", "/events", &[ACCEPT_NDJSON], b"")),
                wire(request("GET", &format!("/events/stream?after={}", id_of(0)), &[], b"")),
            ]
        })
        .collect();
    let subscribers: Vec<_> = (0..8).map(|_| server.subscriber(&json!({"after": id_of(0)}))).collect();
    // This client does not take its answers.
    let message = frame(0x80 | TEXT, b"no event, and an answer that says so in words").repeat(1000);
    let publishers: Vec<_> = (0..8).map(|_| server.publisher()).collect();
    in_parallel(publishers.len(), |n| {
        let mut stream = publishers[n].stream();
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        loop {
            match stream.write_all(&message) {
                Ok(()) => {}
                Err(error) if is_hang_up(&error) => return,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
                Err(error) => panic!("write: {error}"),
            }
        }
    });
    bystanders.are_served();
    memory.has_grown_less_than(96 * MIB);
    await_true("those who take nothing to be given up", || sockets(&server) == at_first);
    bystanders.are_served();

    // The bytes in the kernel's buffers can still be read, and then the connection is closed.
    let mut rest = Vec::new();
    let _ = stuck[1].stream().read_to_end(&mut rest);
    assert!(!rest.is_empty() && !rest.ends_with(b"\r\n0\r\n\r\n"), "an export broken off does not look complete");
    drop((stuck.drain(..), subscribers, publishers));
}

#[test]
fn a_stalled_large_body_gives_its_memory_back() {
    // There is memory for two of these bodies. Without a least pace they could take longer than this test.
    let server = Server::with(&[("MAX_BODIES_BYTES", "16 MiB"), ("BODY_TIMEOUT_SECONDS", "600")]);
    let mut bystanders = Bystanders::join(&server);
    let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n";
    let begun = " ".repeat(40_000);
    let announced = format!("{head}Content-Length: 1000000\r\n\r\n{begun}");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{begun}\r\n", begun.len());
    let stalled: Vec<_> = (0..40)
        .map(|n| {
            let mut wire = Wire::connect(server.addr);
            wire.send(if n % 2 == 0 { &announced } else { &chunked });
            wire
        })
        .collect();
    bystanders.are_served();
    let large = vec![tick("large", 0); 5_000].join("\n");
    await_true("memory for somebody who sends", || {
        let answer = server.call("POST", "/events", &[NDJSON], large.as_bytes());
        if answer.status != 201 {
            answer.refusal(503);
        }
        answer.status == 201
    });
    bystanders.are_served();
    drop(stalled);
}

#[test]
fn untaken_large_pages_share_a_bounded_memory() {
    let server = Server::with(&[("MAX_PAGES_BYTES", "16 MiB"), ("WRITE_TIMEOUT_SECONDS", "600")]);
    let filler = "x".repeat(60_000);
    let big = json!({"event_type": "timer_tick", "source": "past", "payload": {"filler": filler}}).to_string();
    server.publish_lines(&vec![big; 200]);
    let mut bystanders = Bystanders::join(&server);
    bystanders.are_served();
    assert_eq!(server.get("/events?limit=1000").status, 200);
    let memory = Memory::of(&server);

    // With a flow-control window of 0 every answer waits in the server.
    let ask = |stream: u32| {
        let head = h2::head("GET", "/events?limit=1000", &[("host", "localhost")]);
        h2::frame(h2::HEADERS, h2::END_HEADERS | h2::END_STREAM, stream, &head)
    };
    let mut wires: Vec<_> = (0..2)
        .map(|_| {
            let mut wire = h2::connect(&server);
            wire.send(h2::frame(h2::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
            wire.send((0..100).flat_map(|n| ask(2 * n + 1)).collect::<Vec<_>>());
            wire
        })
        .collect();
    // Each request gets the head of an answer, either a page or a refusal.
    for wire in &mut wires {
        let mut answers = 0;
        while answers < 100 {
            let (kind, ..) = h2::read_frame(wire).expect("a frame");
            answers += usize::from(kind == h2::HEADERS);
        }
    }
    memory.has_grown_less_than(64 * MIB);
    let refused = server.get("/events?limit=1000");
    assert!(text_of(&refused.refusal(503)).contains("pages"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert_eq!(server.get("/events?limit=1").json().as_array().unwrap().len(), 1, "small pages need none of it");
    bystanders.are_served();
    drop(wires);
    await_true("memory for others", || server.get("/events?limit=1000").status == 200);
}

#[test]
fn an_untaken_large_page_gives_its_memory_back_whatever_else_its_client_takes() {
    let server = Server::with(&[("MAX_PAGES_BYTES", "4 MiB"), ("WRITE_TIMEOUT_SECONDS", "4")]);
    let filler = "x".repeat(60_000);
    let big = json!({"event_type": "timer_tick", "source": "past", "payload": {"filler": filler}}).to_string();
    server.publish_lines(&vec![big; 100]);
    let ask = |stream: u32, path: &str| {
        let head = h2::head("GET", path, &[("host", "localhost")]);
        h2::frame(h2::HEADERS, h2::END_HEADERS | h2::END_STREAM, stream, &head)
    };
    let mut wire = h2::connect(&server);
    wire.send(h2::frame(h2::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    wire.send(ask(1, "/events?limit=1000"));
    while h2::read_frame(&mut wire).expect("a frame").0 != h2::HEADERS {}
    server.get("/events?limit=1000").refusal(503);
    let (wire, stream) = (RefCell::new(wire), Cell::new(3));
    await_true("memory for others", || {
        // The client takes an answer from time to time, so its connection does not count as stuck.
        let mut wire = wire.borrow_mut();
        wire.send(ask(stream.get(), "/health"));
        wire.send(h2::frame(h2::WINDOW_UPDATE, 0, stream.get(), &1_000_u32.to_be_bytes()));
        stream.set(stream.get() + 2);
        server.get("/events?limit=1000").status == 200
    });
    let mut wire = wire.into_inner();
    wire.send(h2::frame(h2::WINDOW_UPDATE, 0, 1, &(1_u32 << 20).to_be_bytes()));
    while h2::read_frame(&mut wire).expect("the connection goes on").0 != h2::RESET {}
}

/// An HTTP/2 connection that takes nothing of the answers to these requests, once each has begun.
fn untaken(server: &Server, request: &[Vec<u8>]) -> Wire {
    let mut wire = h2::connect(server);
    wire.send(h2::frame(h2::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    // By then the server has read more than 64 KiB of the request.
    h2::await_pong(&mut wire).expect("a pong");
    wire.send(request.concat());
    while h2::read_frame(&mut wire).expect("a frame").0 != h2::HEADERS {}
    wire
}

#[test]
fn every_untaken_large_answer_counts_in_the_memory_for_pages() {
    let server = Server::with(&[("MAX_PAGES_BYTES", "128 KiB"), ("WRITE_TIMEOUT_SECONDS", "600")]);
    let filler = "x".repeat(65_500);
    server.publish(&json!({"event_type": "timer_tick", "source": "past", "payload": {"f": filler}}).to_string());
    let sessions: Vec<_> = (0..600).map(|n| format!("{n:0>180}")).collect();
    let _durable = server.subscriber(&json!({"name": "many", "session_id": sessions}));
    let explain = format!("/subscriptions/explain?event_id={}", id_of(1));
    for path in [&format!("/events/{}", id_of(1)), "/subscriptions", &explain] {
        let head = h2::head("GET", path, &[("host", "localhost")]);
        let wire = untaken(&server, &[h2::frame(h2::HEADERS, h2::END_HEADERS | h2::END_STREAM, 1, &head)]);
        let refused = server.get(path);
        assert!(text_of(&refused.refusal(503)).contains("pages"), "{path}: {}", refused.text());
        drop(wire);
        await_true("memory for others", || server.get(path).status == 200);
    }
}

#[test]
fn a_large_answer_to_a_publisher_takes_its_memory_before_anything_is_stored() {
    const DATA: u8 = 0;
    let server = Server::with(&[("MAX_PAGES_BYTES", "128 KiB"), ("WRITE_TIMEOUT_SECONDS", "600")]);
    let headers = [("content-type", "application/x-ndjson"), ("idempotency-key", "all")];
    let body = r#"{"event_type":"timer_tick","source":"a"}
"#
    .repeat(4_000);
    let ask = || server.call("POST", "/events", &headers, body.as_bytes()).status;
    let head = h2::head("POST", "/events", &[&[("host", "localhost")], &headers[..]].concat());
    let mut request = vec![h2::frame(h2::HEADERS, h2::END_HEADERS, 1, &head)];
    request.extend(body.as_bytes().chunks(16 << 10).map(|piece| h2::frame(DATA, 0, 1, piece)));
    request.push(h2::frame(DATA, h2::END_STREAM, 1, b""));
    let wire = untaken(&server, &request);
    let refused = server.call("POST", "/events", &headers[..1], body.as_bytes());
    assert!(text_of(&refused.refusal(503)).contains("pages"), "{}", refused.text());
    assert_eq!(server.get_json("/stats")["total_events"], 4_000, "only what is answered is stored");
    drop(wire);
    await_true("memory for others", || ask() == 200);
}

/// Whether the server has sent nothing yet.
fn is_unanswered(wire: &Wire) -> bool {
    let stream = wire.stream();
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Publishes enough events for a search that takes several steps.
fn many_events(server: &Server) {
    for _ in 0..8 {
        server.publish_lines(&ticks("s", 50_000));
    }
}

/// Sends searches that find nothing, one after the other, without waiting for answers.
fn searches(server: &Server, path: &str, count: usize) -> Vec<Wire> {
    let filter = encode(r#"{"payload":{"n":"nothing"}}"#);
    let ask = |_| {
        let mut wire = Wire::connect(server.addr);
        wire.send(request("GET", &format!("{path}filter={filter}"), &[], b""));
        wire
    };
    (0..count).map(ask).collect()
}

#[test]
fn long_searches_do_not_block_short_reads() {
    let server = Server::with(&[("NETWORK_THREADS", "1")]);
    many_events(&server);
    let mut searching = searches(&server, "/events?", 12);
    // The short read runs after the first step of each search, and before the last step of any.
    assert_eq!(server.get("/events?limit=1").json().as_array().unwrap().len(), 1);
    assert!(searching.iter().all(is_unanswered), "a short reading does not wait for a long one's end");
    for wire in &mut searching {
        assert_eq!(wire.response().expect("an answer").text(), "[]");
    }
    // Only one searches for its start at a time. If all threads that read did, most would have ended before the short read.
    let searching = searches(&server, "/events/stream?last=1&", 24);
    assert_eq!(server.get("/events?limit=1").json().as_array().unwrap().len(), 1);
    let unanswered = searching.iter().filter(|wire| is_unanswered(wire)).count();
    assert!(unanswered > 12, "a short reading waited for most of the searches: only {unanswered} are unanswered");
}

#[test]
fn a_search_for_the_start_of_an_event_stream_ends_with_the_server() {
    let mut server = Server::with(&[("NETWORK_THREADS", "1"), ("READ_TIMEOUT_SECONDS", "600")]);
    many_events(&server);
    let mut searching = searches(&server, "/events/stream?last=1&", 24);
    assert_eq!(server.get("/health").status, 200, "what came before it was read");
    server.signal("TERM");
    let answers = searching.iter_mut().map(|wire| wire.response().expect("an answer"));
    let ended = answers.filter(|answer| answer.status == 200 && answer.text().is_empty()).count();
    assert!(ended > 12, "the shutdown waited for most of the searches: only {ended} ended at once");
    server.await_exit_0();
}

#[test]
fn large_bodies_do_not_wait_for_long_searches() {
    let server = Server::with(&[("NETWORK_THREADS", "1"), ("READ_TIMEOUT_SECONDS", "600")]);
    many_events(&server);
    // Six searches for each thread that reads.
    let searching = searches(&server, "/events/stream?last=100000&", 24);
    let large = ticks("large", 2_000);
    assert!(large.join("\n").len() > 64 << 10, "as much is parsed beside the network thread");
    server.publish_lines(&large);
    let unanswered = searching.iter().filter(|wire| is_unanswered(wire)).count();
    assert!(unanswered > 12, "a body would have waited for most of the searches: only {unanswered} are unanswered");
}

#[test]
fn a_search_for_the_start_of_a_websocket_ends_with_its_client_and_with_the_server() {
    let mut server = Server::with(&[("NETWORK_THREADS", "1"), ("READ_TIMEOUT_SECONDS", "600")]);
    many_events(&server);
    let first = json!({"last": 1, "payload": {"n": "nothing"}}).to_string();
    let search = |more: &[u8]| {
        let mut socket = Socket::open(server.addr, "/ws/subscribe");
        socket.send_raw([&frame(0x80 | TEXT, first.as_bytes()), more].concat());
        socket
    };
    let ping = frame(0x80 | TEXT, br#"{"type":"ping"}"#);
    let mut closing = search(&[ping, frame(0x80 | CLOSE, &code_bytes(1000))].concat());
    assert_eq!(closing.close_code(), 1000, "nothing else is said to who has closed");
    let mut leaving = search(b"");
    leaving.stream().shutdown(Shutdown::Write).unwrap();
    assert_eq!(leaving.receive(), Received::End, "nothing is said to who has left");

    let searching: Vec<_> = (0..24).map(|_| search(b"")).collect();
    assert_eq!(server.get("/health").status, 200, "what came before it was read");
    server.signal("TERM");
    let words = searching.into_iter().map(|mut socket| socket.read_to_close());
    let silent = words.filter(|(words, code)| words.is_empty() && *code == 1001).count();
    assert!(silent > 12, "the shutdown waited for most of the searches: only {silent} ended at once");
    server.await_exit_0();
}

#[test]
fn a_search_that_takes_too_long_is_refused_with_a_reason() {
    let server = Server::with(&[("READ_TIMEOUT_SECONDS", "0.01")]);
    many_events(&server);
    for wire in &mut searches(&server, "/events/stream?last=100000&", 8) {
        let answer = wire.response_head().expect("an answer");
        assert_eq!((answer.status, answer.header("retry-after")), (503, None), "the same takes as long again");
    }
    let mut subscriber = Socket::open(server.addr, "/ws/subscribe");
    subscriber.send(&json!({"last": 100_000, "payload": {"n": "nothing"}}).to_string());
    let (words, code) = subscriber.read_to_close();
    assert!(code == 1008 && words.len() == 1 && words[0].contains("takes too long"), "{code}: {words:?}");
    // Pages and exports read in steps, and go on for as long as they need.
    assert_eq!(searches(&server, "/events?", 1)[0].response().expect("an answer").text(), "[]");
    let filter = encode(r#"{"payload":{"n":"nothing"}}"#);
    assert_eq!(server.stored_lines(&format!("filter={filter}")), [""; 0]);
}
