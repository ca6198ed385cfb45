//! WebSocket clients that break the protocol, or that do harm within its rules.
//!
//! | illegal input | closed with |
//! |---|---|
//! | reserved bits, which only an extension may set | 1002 |
//! | reserved opcodes | 1002 |
//! | frames without a mask | 1002 |
//! | control frames in fragments | 1002 |
//! | control frames of more than 125 bytes | 1002 |
//! | a continuation without a message | 1002 |
//! | a message inside a message | 1002 |
//! | lengths not in their shortest form, or with the top bit set | 1002 |
//! | text that is not UTF-8: whole, across fragments, or before its last fragment | 1007 |
//! | close codes that no endpoint may send | 1002 |
//! | half a close code | 1002 |
//! | a close reason that is not UTF-8 | 1007 |
//! | messages of more than 16 MiB, announced or added up | 1009 |
//! | anything after a Close frame: it is not read | the Close frame's own |

use std::io::Write;

use serde_json::json;

use super::hostile::{Bystanders, MIB, Memory, sockets};
use crate::support::*;

const LAST: u8 = 0x80;

/// The table above: each kind of input, its close code, and examples.
fn classes() -> [(&'static str, u16, Vec<Vec<u8>>); 14] {
    let event = tick("illegal", 0);
    let event = event.as_bytes();
    let text = |payload: &[u8]| frame(LAST | TEXT, payload);
    let begin = |payload: &[u8]| frame(TEXT, payload);
    let go_on = |payload: &[u8]| frame(CONTINUATION, payload);
    let end = |payload: &[u8]| frame(LAST | CONTINUATION, payload);
    let close = |code: u16, reason: &[u8]| frame(LAST | CLOSE, &[&code_bytes(code), reason].concat());
    let head = |bytes: &[u8]| [bytes, &[1, 2, 3, 4]].concat();
    let controls = [CLOSE, PING, PONG];
    let crab = "🦀".as_bytes();
    let unpaired = b"\xed\xa0\x80";
    [
        (
            "reserved bits",
            1002,
            [0x40, 0x20, 0x10, 0x70]
                .into_iter()
                .flat_map(|bits| [TEXT, BINARY, PING, PONG, CLOSE].map(|opcode| frame(LAST | bits | opcode, b"")))
                .chain([[begin(b"{"), frame(LAST | 0x40 | CONTINUATION, b"}")].concat()])
                .collect(),
        ),
        ("reserved opcodes", 1002, [3, 4, 5, 6, 7, 11, 12, 13, 14, 15].map(|opcode| frame(LAST | opcode, b"")).into()),
        (
            "no mask",
            1002,
            [TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE].map(|opcode| unmasked_frame(LAST | opcode, b"")).into(),
        ),
        ("control frames in fragments", 1002, controls.map(|opcode| frame(opcode, &code_bytes(1000))).into()),
        (
            "control frames too long",
            1002,
            controls.into_iter().flat_map(|opcode| [126, 70_000].map(|n| frame(LAST | opcode, &vec![3; n]))).collect(),
        ),
        ("continuation of nothing", 1002, vec![end(event), go_on(event), end(b"")]),
        (
            "message inside a message",
            1002,
            [TEXT, BINARY]
                .into_iter()
                .flat_map(|opcode| [0, LAST].map(|last| [begin(b"{"), frame(last | opcode, event)].concat()))
                .collect(),
        ),
        (
            "lengths",
            1002,
            vec![
                head(&[LAST | TEXT, 0xfe, 0, 125]),
                head(&[LAST | TEXT, 0xfe, 0, 0]),
                head(&[LAST | TEXT, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
                head(&[LAST | TEXT, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]),
                head(&[LAST | BINARY, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            ],
        ),
        (
            "text not UTF-8",
            1007,
            vec![
                text(b"\xff"),
                text(b"{\"a\":\"\xc0\xaf\"}"),
                text(unpaired),
                text(b"\xf4\x90\x80\x80"),
                text(&crab[..3]),
                [begin(&crab[..2]), end(&crab[3..])].concat(),
                [begin(&crab[..3]), end(b"")].concat(),
                // The message never ends.
                [begin(b"fine so far"), go_on(b"\xff")].concat(),
                [begin(&unpaired[..1]), go_on(&unpaired[1..])].concat(),
            ],
        ),
        (
            "close codes",
            1002,
            [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 65_535]
                .map(|code| close(code, b""))
                .into(),
        ),
        ("half a close code", 1002, vec![frame(LAST | CLOSE, b"\x03")]),
        ("close reason not UTF-8", 1007, vec![close(1000, b"\xff"), close(1001, &crab[..3]), close(3000, unpaired)]),
        (
            "messages too long",
            1009,
            vec![
                head(&[LAST | TEXT, 0xff, 0, 0, 0, 0, 1, 0, 0, 1]),
                head(&[LAST | BINARY, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
                [begin(b"{"), head(&[CONTINUATION, 0xff, 0, 0, 0, 0, 1, 0, 0, 0])].concat(),
            ],
        ),
        (
            "anything after a Close frame",
            3000,
            vec![
                [close(3000, b""), text(event)].concat(),
                [close(3000, b""), frame(LAST | PING, b"?")].concat(),
                [close(3000, b""), close(4000, b"")].concat(),
                [close(3000, b"enough"), vec![0xff; 1000]].concat(),
                [begin(b"{"), close(3000, b""), end(b"}")].concat(),
            ],
        ),
    ]
}

#[test]
fn each_kind_of_illegal_frame_is_closed_with_its_code() {
    let server = Server::start();
    let mut bystanders = Bystanders::join(&server);
    for (class, code, examples) in classes() {
        for (n, bytes) in examples.iter().enumerate() {
            let sockets = [
                ("publishing", server.publisher()),
                ("a first message", Socket::open(server.addr, "/ws/subscribe")),
                ("a subscriber", server.subscriber(&json!({"session_id": "illegal"}))),
            ];
            for (place, mut socket) in sockets {
                socket.send_raw(bytes);
                let (words, closed_with) = socket.read_to_close();
                assert!(words.is_empty(), "{class}, {n}, {place}: {words:?}");
                assert_eq!(closed_with, code, "{class}, {n}, {place}");
            }
        }
        bystanders.are_served();
    }
    assert_eq!(server.stored("").len(), bystanders.stored(), "nothing of that was an event");
    server.await_stats("nobody to be left", |stats| stats["router"]["active_subscribers"] == 1);
}

#[test]
fn a_flood_of_pings_ends_a_socket_that_reads_no_pongs() {
    let server = Server::with(&[("WRITE_TIMEOUT_SECONDS", "2")]);
    let mut bystanders = Bystanders::join(&server);
    bystanders.are_served();
    let at_first = sockets(&server);
    let memory = Memory::of(&server);
    // The smallest and the largest ping: each costs an item in a queue.
    for payload in [&b""[..], &[7; 125]] {
        let flood = frame(LAST | PING, payload).repeat(10_000);
        let mut flooders =
            vec![Socket::open(server.addr, "/ws/subscribe"), server.subscriber(&json!({"session_id": "flood"}))];
        flooders.extend((0..10).map(|_| server.publisher()));
        in_parallel(flooders.len(), |n| {
            while flooders[n].stream().write_all(&flood).is_ok() {
                memory.has_grown_less_than(64 * MIB);
            }
        });
        bystanders.are_served();
    }
    await_true("the flooders to be gone", || sockets(&server) == at_first);
}

#[test]
fn fragments_without_end_cost_no_memory() {
    let server = Server::start();
    let mut bystanders = Bystanders::join(&server);
    bystanders.are_served();
    let memory = Memory::of(&server);
    let event = tick("fragments", 0);
    let [first, second] = [&event.as_bytes()[..10], &event.as_bytes()[10..]];

    // A million empty fragments, and pings between them, are legal and do no harm.
    let mut publisher = server.publisher();
    publisher.send_raw(frame(TEXT, first));
    let empty = frame(CONTINUATION, b"").repeat(10_000);
    for n in 0..100_u8 {
        publisher.send_raw([empty.clone(), frame(LAST | PING, &[n])].concat());
        assert_eq!(publisher.receive(), Received::Pong(vec![n]));
    }
    memory.has_grown_less_than(8 * MIB);
    publisher.send_raw(frame(LAST | CONTINUATION, second));
    assert_eq!(publisher.json()["status"], "ok");
    bystanders.are_served();

    // So is a message of many small fragments, up to the largest size of a message.
    let filler = frame(CONTINUATION, b" ").repeat(10_000);
    publisher.send_raw(frame(TEXT, event.as_bytes()));
    for _ in 0..100 {
        publisher.send_raw(&filler);
    }
    publisher.send_raw(frame(LAST | CONTINUATION, b""));
    assert_eq!(publisher.json()["status"], "ok");
    // Parsing a text takes several times its length, on a thread of its own.
    memory.has_grown_less_than(32 * MIB);

    // Fragments without end are not stored beyond that, and at 16 MiB the socket is closed.
    let memory = Memory::of(&server);
    for mut socket in [server.publisher(), server.subscriber(&json!({"session_id": "flood"}))] {
        socket.send_raw(frame(TEXT, b""));
        let some = frame(CONTINUATION, &[b' '; 1000]).repeat(1000);
        for _ in 0..17 {
            memory.has_grown_less_than(16 * MIB);
            socket.send_raw(&some);
        }
        assert_eq!(socket.close_code(), 1009);
    }
    bystanders.are_served();
}

#[test]
fn an_announced_length_alone_costs_no_memory() {
    let server = Server::start();
    let mut bystanders = Bystanders::join(&server);
    bystanders.are_served();
    let memory = Memory::of(&server);
    // The longest allowed message, of which a few bytes come.
    let beginning = [&[LAST | TEXT, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 1, 2, 3, 4][..], &[0; 100]].concat();
    let announcers: Vec<_> = (0..1000)
        .map(|n| {
            let mut socket = match n % 2 {
                0 => server.publisher(),
                _ => server.subscriber(&json!({"session_id": "announcer"})),
            };
            socket.send_raw(&beginning);
            socket
        })
        .collect();
    bystanders.are_served();
    memory.has_grown_less_than(64 * MIB);
    drop(announcers);
}

#[test]
fn websocket_compression_is_not_negotiated() {
    let server = Server::start();
    let offers = [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "x-webkit-deflate-frame, permessage-bzip2",
    ];
    for offer in offers {
        for path in ["/ws/publish", "/ws/subscribe"] {
            // The test's handshake fails when the server accepts an extension.
            let mut socket = Socket::handshake(server.addr, path, &[("Sec-WebSocket-Extensions", offer)]).ok().unwrap();
            // This bit could stand for a text of 16 MiB compressed to a few bytes.
            socket.send_raw(frame(LAST | 0x40 | TEXT, &[0xaa, 0x56, 0x4a, 0x2d]));
            assert_eq!(socket.close_code(), 1002, "{offer} {path}");
        }
    }
}
