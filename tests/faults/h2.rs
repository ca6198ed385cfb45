//! HTTP/2 attacks: frames that cost their sender nothing. (Floods of resets and windows of 0 bytes are in `tests/it/h2.rs`.)

use std::io::{ErrorKind, Write};
use std::time::Duration;

use super::hostile::{Bystanders, MIB, Memory, sockets};
use crate::support::h2::{
    END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RESET, SETTINGS, WINDOW_UPDATE, connect, frame, head, read_frame,
};
use crate::support::*;

const DATA: u8 = 0;
const PRIORITY: u8 = 2;
/// Not that of a WebSocket.
const MORE_HEADERS: u8 = 9;

/// Sends the same bytes again and again and reads nothing, until the server has closed the connection or does not read any
/// more, but at most `at_most` times.
fn flood(wire: &Wire, bytes: &[u8], at_most: usize) {
    let mut stream = wire.stream();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    for _ in 0..at_most {
        match stream.write_all(bytes) {
            Ok(()) => {}
            Err(error) if is_hang_up(&error) => return,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            Err(error) => panic!("write: {error}"),
        }
    }
}

#[test]
fn http2_floods_cost_no_memory() {
    let server =
        Server::with(&[("WRITE_TIMEOUT_SECONDS", "3"), ("HEADER_TIMEOUT_SECONDS", "3"), ("BODY_TIMEOUT_SECONDS", "3")]);
    let mut bystanders = Bystanders::join(&server);
    bystanders.are_served();
    let at_first = sockets(&server);
    let memory = Memory::of(&server);
    let get = head("GET", "/health", &[("host", "localhost")]);
    let post = frame(HEADERS, END_HEADERS, 1, &head("POST", "/events", &[("host", "localhost"), JSON_SMALL]));
    // The bytes that come once, and those that are repeated.
    let floods: [(&str, Vec<u8>, Vec<u8>); 10] = [
        ("continuations that are empty", frame(HEADERS, 0, 1, &get), frame(MORE_HEADERS, 0, 1, b"")),
        ("continuations", frame(HEADERS, 0, 1, &get), frame(MORE_HEADERS, 0, 1, &field("x-more", "and more"))),
        ("settings", vec![], frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])),
        ("settings that are empty", vec![], frame(SETTINGS, 0, 0, b"")),
        ("pings", vec![], frame(PING, 0, 0, b"and pong")),
        ("data that is empty", post.clone(), frame(DATA, 0, 1, b"")),
        ("data that is padding", post.clone(), frame(DATA, 8, 1, &[&[255][..], &[0; 255]].concat())),
        ("windows", vec![], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("priorities", vec![], (0..100).flat_map(|n| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 9])).collect()),
        ("frames of unknown kinds", vec![], frame(0xee, 0xff, 1, &[7; 1000])),
    ];
    in_parallel(floods.len(), |n| {
        let (_, once, again) = &floods[n];
        let mut wire = connect(&server);
        wire.send(once);
        flood(&wire, &again.repeat(1 + 65_536 / again.len()), 600);
    });
    memory.has_grown_less_than(32 * MIB);
    bystanders.are_served();
    await_true("the flooders to be gone", || sockets(&server) == at_first);
    assert_eq!(server.stored("").len(), bystanders.stored());
}

const JSON_SMALL: (&str, &str) = ("content-type", "application/json");

/// A header that is not added to the dynamic table (RFC 7541, 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

#[test]
fn http2_headers_that_decompress_beyond_their_limit_are_refused() {
    let server = Server::with(&[("HEADER_TIMEOUT_SECONDS", "3")]);
    let mut bystanders = Bystanders::join(&server);
    bystanders.are_served();
    let memory = Memory::of(&server);
    // A header of 4 KB that is added to the dynamic table (6.2.1), then a frame full of bytes that each stand for it (6.1):
    // 16 KB that would become 64 MB.
    let length = 4_000;
    let large =
        [&[0x40, 1, b'a', 0x7f, (length - 127) as u8 & 0x7f | 0x80, ((length - 127) >> 7) as u8], &[b'v'; 4_000][..]]
            .concat();
    let bomb = vec![0x80 | 62; 16_000];
    in_parallel(20, |_| {
        let mut wire = connect(&server);
        wire.send(frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &[head("GET", "/health", &[("host", "localhost")]), large.clone()].concat(),
        ));
        for stream in 1..20 {
            let bomb = [head("GET", "/health", &[("host", "localhost")]), bomb[..12_000].to_vec()].concat();
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * stream + 1, &bomb));
        }
        let mut refused = 0;
        wire.finish();
        while let Some((kind, _, payload)) = read_frame(&mut wire) {
            // The first request is served: 200 is field 8 of the fixed table.
            match kind {
                HEADERS if payload[0] != 0x80 | 8 => refused += 1,
                RESET | GOAWAY => refused += 1,
                _ => {}
            }
        }
        assert!(refused > 0, "not all of that can have been served");
    });
    memory.has_grown_less_than(32 * MIB);
    bystanders.are_served();
}
