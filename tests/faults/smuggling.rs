//! Requests that a proxy could read differently than the server, and requests made to be too large. Bytes behind a request
//! with an ambiguous end must never be taken for a request.

use std::io::Write;
use std::time::Instant;

use super::hostile::{Bystanders, MIB, Memory, sockets};
use crate::support::*;

/// The request that every attack tries to smuggle: it would delete all events.
const SMUGGLED: &str = "DELETE /events HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// The statuses of all answers on one connection, which then must end by itself. The client of these tests cannot tell which
/// of the requests in the bytes an answer is for, so it does not check more.
fn answers(server: &Server, bytes: impl AsRef<[u8]>) -> Vec<u16> {
    let mut wire = Wire::connect(server.addr).unchecked();
    wire.send(bytes);
    let statuses: Vec<_> = std::iter::from_fn(|| wire.response()).map(|response| response.status).collect();
    wire.await_close();
    statuses
}

/// A request that publishes, with these additional headers and these bytes as its body.
fn post(headers: &str, body: &str) -> String {
    format!("POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n{body}")
}

/// A body in one chunk.
fn chunked(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len())
}

#[test]
fn a_request_with_an_ambiguous_end_is_refused_and_ends_its_connection() {
    let server = Server::with(&[("BODY_TIMEOUT_SECONDS", "3"), ("HEADER_TIMEOUT_SECONDS", "3")]);
    let mut bystanders = Bystanders::join(&server);
    let event = tick("smuggler", 0);
    let (length, chunks) = (event.len(), chunked(&event));
    let with_length = |header: &str| post(header, &event);
    let with_chunks = |header: &str| post(header, &chunks);
    let coded = |chunks: &str| post("Transfer-Encoding: chunked\r\n", chunks);
    let refused: Vec<(&str, String)> = vec![
        ("two lengths", with_length(&format!("Content-Length: {length}\r\nContent-Length: {}\r\n", length + 1))),
        ("a list of lengths", with_length(&format!("Content-Length: {length}, {}\r\n", length + 1))),
        ("a length with a sign", with_length(&format!("Content-Length: +{length}\r\n"))),
        ("a negative length", with_length("Content-Length: -1\r\n")),
        ("a length in hexadecimal", with_length("Content-Length: 0x5\r\n")),
        ("a length beyond 64 bits", with_length("Content-Length: 18446744073709551617\r\n")),
        ("an empty length", with_length("Content-Length: \r\n")),
        ("space before the colon", with_length(&format!("Content-Length : {length}\r\n"))),
        ("space before the colon of the coding", with_chunks("Transfer-Encoding : chunked\r\n")),
        ("a folded line", with_length(&format!("X: a\r\n Content-Length: {length}\r\nContent-Length: {length}\r\n"))),
        ("a folded coding", with_chunks("Transfer-Encoding:\r\n chunked\r\n")),
        ("a line without colon", with_length(&format!("Content-Length: {length}\r\nnonsense\r\n"))),
        ("an empty name", with_length(&format!("Content-Length: {length}\r\n: x\r\n"))),
        ("a name with a space", with_length(&format!("Content-Length: {length}\r\nX Y: x\r\n"))),
        ("a carriage return alone", with_length(&format!("X: a\rContent-Length: 1\r\nContent-Length: {length}\r\n"))),
        ("a zero byte", with_length(&format!("X: a\0b\r\nContent-Length: {length}\r\n"))),
        ("an unknown coding", with_chunks("Transfer-Encoding: xchunked\r\n")),
        ("another coding after chunked", with_chunks("Transfer-Encoding: chunked, identity\r\n")),
        (
            "another coding in a line after it",
            with_chunks("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        ),
        ("identity", with_chunks("Transfer-Encoding: identity\r\n")),
        ("a coding hidden by a control character", with_chunks("Transfer-Encoding: \x0bchunked\r\n")),
        ("a coding in quotes", with_chunks("Transfer-Encoding: \"chunked\"\r\n")),
        ("a coding in HTTP/1.0", with_chunks("Transfer-Encoding: chunked\r\n").replacen("HTTP/1.1", "HTTP/1.0", 1)),
        ("a length of no digits in a chunk", coded(&format!("zz\r\n{event}\r\n0\r\n\r\n"))),
        ("an empty length of a chunk", coded(&format!("\r\n{event}\r\n0\r\n\r\n"))),
        ("a chunk with a sign", coded(&format!("+{chunks}"))),
        ("a chunk of negative length", coded("-1\r\nx\r\n0\r\n\r\n")),
        ("a chunk in hexadecimal as in C", coded(&format!("0x{chunks}"))),
        ("a chunk beyond 64 bits", coded(&format!("10000000000000000\r\n{event}\r\n0\r\n\r\n"))),
        ("a chunk without its end of line", coded(&format!("{length:x}\r\n{event}0\r\n\r\n"))),
        ("a chunk ended by a line feed alone", coded(&format!("{length:x}\n{event}\n0\n\n"))),
        ("a chunk with a line feed in its extension", coded(&format!("{length:x};a\nb\r\n{event}\r\n0\r\n\r\n"))),
        ("a chunk with an extension without end", coded(&format!("{length:x};{}", "a".repeat(100_000)))),
        ("a name that is no token in the trailers", coded(&format!("{length:x}\r\n{event}\r\n0\r\nX Y: 1\r\n\r\n"))),
        ("an unknown version", with_length(&format!("Content-Length: {length}\r\n")).replacen("1.1", "1.7", 1)),
        ("a word too many", SMUGGLED.replacen("HTTP", "x HTTP", 1)),
        ("a control character in the path", SMUGGLED.replacen("/events", "/ev\x01ents", 1)),
    ];
    for (what, attack) in refused {
        let statuses = answers(&server, attack.clone() + SMUGGLED);
        println!("{what}: {statuses:?}");
        assert!(matches!(statuses[..], [400 | 411 | 413 | 431 | 501 | 505] | []), "{what}: {statuses:?}");
    }
    bystanders.are_served();
    assert_eq!(server.stored("").len(), bystanders.stored(), "nothing was stored, nothing deleted");
}

#[test]
fn the_body_of_a_refused_request_is_not_read_as_a_request() {
    let server = Server::start();
    let mut bystanders = Bystanders::join(&server);
    let length = SMUGGLED.len();
    let heads = [
        ("POST /nowhere HTTP/1.1", "", 404),
        ("POST /health HTTP/1.1", "", 405),
        ("GET /health HTTP/1.1", "", 200),
        ("DELETE /events?before= HTTP/1.1", "", 400),
        ("POST /events HTTP/1.1", "Content-Type: text/plain\r\n", 415),
        ("POST /events HTTP/1.1", "Content-Encoding: gzip\r\n", 415),
        ("POST /events HTTP/1.1", "Content-Type: application/json\r\n", 422),
        ("POST /events?ack=perhaps HTTP/1.1", "", 422),
        ("GET /ws/publish HTTP/1.1", "", 426),
    ];
    for (line, headers, status) in heads {
        for framed in [
            format!("Content-Length: {length}\r\n\r\n{SMUGGLED}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{}", chunked(SMUGGLED)),
            format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}"),
        ] {
            let mut wire = Wire::connect(server.addr).unchecked();
            wire.send(format!("{line}\r\nHost: localhost\r\n{headers}{framed}"));
            wire.send(request("GET", "/event-types", &[("Connection", "close")], b""));
            let statuses: Vec<_> = std::iter::from_fn(|| wire.response()).map(|response| response.status).collect();
            // Either the connection has ended, or the body was read and the next request is the one that was sent.
            assert!(statuses == [status] || statuses == [status, 200], "{line} {framed:?}: {statuses:?}");
        }
    }
    bystanders.are_served();
    assert_eq!(server.stored("").len(), bystanders.stored());
}

#[test]
fn odd_but_legal_requests_are_read_in_one_way() {
    let server = Server::start();
    let mut bystanders = Bystanders::join(&server);
    bystanders.are_served();
    let event = tick("ambiguous", 0);
    let length = event.len();
    // Both lengths: only the transfer coding counts, and the connection ends after it (RFC 9112, 6.3). So a proxy that
    // used the other length can send nothing behind it.
    for (headers, body) in [
        (format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), chunked(&event)),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n".to_owned(), chunked(&event)),
        // Extensions and trailers are ignored, and names have no case.
        (
            "TRANSFER-ENCODING: Chunked\r\nConnection: close\r\n".to_owned(),
            format!("{length:X};a=\"b\"\r\n{event}\r\n00\r\nX: y\r\nContent-Length: 9\r\n\r\n"),
        ),
    ] {
        assert_eq!(answers(&server, post(&headers, &body) + SMUGGLED), [201], "{headers}");
    }
    // The same length twice is one length (RFC 9110, 8.6).
    let twice = post(&format!("Content-Length: {length}\r\nContent-Length: {length}\r\nConnection: close\r\n"), &event);
    assert!(matches!(answers(&server, twice)[..], [201 | 400]));
    // Lines may end with a line feed alone (RFC 9112, 2.2), in the head only. Nothing else ends one, so a
    // second request cannot be hidden.
    let bare = format!(
        "POST /events HTTP/1.1\nHost: localhost\nConnection: close\nContent-Length: {length}\n\n{event}{SMUGGLED}"
    );
    assert_eq!(answers(&server, bare), [201]);
    // The server has one host, so it does not matter which one is named.
    let absolute = "GET http://elsewhere.example/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(answers(&server, absolute), [200]);
    let stored = server.stored("");
    assert!(stored.len() >= bystanders.stored() + 4, "nothing was deleted");
    bystanders.are_served();
}

#[test]
fn compressed_bodies_are_refused_without_unpacking() {
    let server = Server::start();
    let mut bystanders = Bystanders::join(&server);
    let event = tick("compressed", 0);
    let codings =
        ["gzip", "GZIP", "deflate", "br", "zstd", "compress", "x-gzip", "gzip, gzip", "identity, gzip", "made-up"];
    for coding in codings {
        for (content_type, body) in
            [("application/json", event.as_bytes()), ("application/x-ndjson", &b"\x1f\x8b\x08\x00"[..])]
        {
            let headers = [("Content-Type", content_type), ("Content-Encoding", coding)];
            let response = server.call("POST", "/events", &headers, body);
            assert!(text_of(&response.refusal(415)).contains("compressed"), "{coding}");
            assert_eq!(response.header("accept-encoding"), Some("identity"), "{coding}");
        }
    }
    let plain = server.call("POST", "/events", &[JSON, ("Content-Encoding", "identity")], event.as_bytes());
    assert_eq!(plain.status, 201);
    bystanders.are_served();
}

#[test]
fn heads_too_large_are_refused() {
    let server = Server::start();
    let mut bystanders = Bystanders::join(&server);
    let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    let many = |n: usize| (0..n).map(|n| format!("X-{n}: {n}\r\n")).collect::<String>();
    let refused = [
        ("many headers", get("/health", &many(200))),
        ("very many headers", get("/health", &many(20_000))),
        ("the same header", get("/health", &"Cookie: a=b\r\n".repeat(1000))),
        ("a long value", get("/health", &format!("X: {}\r\n", "x".repeat(1 << 20)))),
        ("a long name", get("/health", &format!("{}: x\r\n", "x".repeat(1 << 20)))),
        ("a long URL", get(&format!("/{}", "a".repeat(1 << 20)), "")),
        ("a long query", get(&format!("/events?session_id={}", "a".repeat(1 << 20)), "")),
        ("a long method", get("/health", "").replacen("GET", &"G".repeat(1 << 20), 1)),
    ];
    for (what, attack) in refused {
        let statuses = answers(&server, attack);
        assert!(matches!(statuses[..], [400 | 414 | 431]), "{what}: {statuses:?}");
        bystanders.are_served();
    }
    // A long request within the limits is served.
    let mut wire = Wire::connect(server.addr);
    for (target, status) in [("/events?limit=1&session=", 200), ("/nowhere/", 404), ("/events/", 404)] {
        wire.send(get(&format!("{target}{}", "a".repeat(8_000)), &many(80)));
        assert_eq!(wire.response().expect("an answer").status, status, "{target}");
    }
}

#[test]
fn a_request_head_without_end_costs_bounded_memory() {
    let server = Server::start();
    let mut bystanders = Bystanders::join(&server);
    bystanders.are_served();
    let (memory, at_first) = (Memory::of(&server), sockets(&server));
    let post = "POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let endless = [
        (String::new(), "a"),
        ("GET /".to_owned(), "a"),
        ("GET /health HTTP/1.1\r\nX: ".to_owned(), "a"),
        ("GET /health HTTP/1.1\r\n".to_owned(), "X: a\r\n"),
        (format!("{post}1;"), "a"),
        (format!("{post}0\r\n"), "X: a\r\n"),
    ];
    in_parallel(endless.len() * 8, |n| {
        let (first, again) = &endless[n % endless.len()];
        let wire = Wire::connect(server.addr);
        let mut stream = wire.stream();
        let mut sent = stream.write_all(first.as_bytes());
        let again = again.repeat(10_000 / again.len());
        // For 1 s the rest is read and dropped, so that the answer arrives; then the connection is closed.
        let begun = Instant::now();
        while sent.is_ok() {
            assert!(begun.elapsed() < DEADLINE, "a head without end is taken for ever");
            sent = stream.write_all(again.as_bytes());
        }
        let error = sent.unwrap_err();
        assert!(is_hang_up(&error), "{error}");
    });
    memory.has_grown_less_than(32 * MIB);
    await_true("their sockets to be closed", || sockets(&server) == at_first);
    bystanders.are_served();
}

#[test]
fn paths_with_dot_segments_lead_nowhere() {
    let server = Server::start();
    let paths = [
        "/../../../../etc/passwd",
        "/events/../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/events/..%2f..%2f..%2fetc%2fpasswd",
        "/api/v1/../../etc/passwd",
        "/..\\..\\windows\\win.ini",
        "/....//....//etc/passwd",
        "//etc/passwd",
        "/file:///etc/passwd",
        "/data/events.db",
        "/events.db",
        "/.env",
        "/events/%00",
        "/events/evt_000000000001%00.json",
        "/%c0%ae%c0%ae/etc/passwd",
        "/events/%",
        "/subscriptions/%2e%2e",
    ];
    let mut wire = Wire::connect(server.addr);
    for path in paths {
        for method in ["GET", "DELETE"] {
            wire.send(request(method, path, &[], b""));
            let response = wire.response().expect("the connection survives");
            assert!(matches!(response.status, 404 | 405), "{method} {path}: {}", response.status);
            response.refusal(response.status);
        }
    }
}
