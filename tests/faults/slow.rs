//! Clients that take their time on purpose: they say a byte now and then, or take nothing of what they asked for. Each
//! is given up when its time is over, however busy it looks, and costs little until then.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::hostile::{Bystanders, MIB, Memory, sockets};
use crate::support::*;

#[test]
fn who_sends_byte_by_byte_is_cut_off() {
    let server = Server::with(&[
        ("HEADER_TIMEOUT_SECONDS", "1"),
        ("BODY_TIMEOUT_SECONDS", "1"),
        ("SUBSCRIBE_TIMEOUT_SECONDS", "1"),
    ]);
    let mut bystanders = Bystanders::join(&server);
    let at_first = sockets(&server);
    let memory = Memory::of(&server);
    // How each begins, and what it then repeats byte by byte.
    let post = "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let kinds: [(Vec<u8>, &[u8]); 7] = [
        (b"".to_vec(), b"GET /health HTTP/1.1\r\nHost: x\r\nX: "),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n".to_vec(), b"X-Slow: 1\r\n"),
        // A connection that was served once is no better than a new one.
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
fn who_takes_nothing_is_given_up() {
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
    // Its answers are what this one does not take.
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

    // What the system had taken for them can still be read, and then it is over.
    let mut rest = Vec::new();
    let _ = stuck[1].stream().read_to_end(&mut rest);
    assert!(!rest.is_empty() && !rest.ends_with(b"\r\n0\r\n\r\n"), "an export broken off does not look complete");
    drop((stuck.drain(..), subscribers, publishers));
}

#[test]
fn who_lets_a_large_body_wait_does_not_keep_the_memory_that_others_need() {
    // Room for two of these bodies, and without a pace they could take longer than this test.
    let server = Server::with(&[("MAX_BODIES_BYTES", "16 MiB"), ("BODY_TIMEOUT_SECONDS", "600")]);
    let mut bystanders = Bystanders::join(&server);
    let head = "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n";
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
