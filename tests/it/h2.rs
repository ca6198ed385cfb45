//! HTTP/2 on the same port: the same answers, many at once on one connection, and the same time limits.
//!
//! Ordinary requests are sent with hyper's client, all others as frames made by hand.

use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::runtime::{self, Runtime};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::support::h2::{
    ACK, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RESET, SETTINGS, await_pong, connect, frame, head,
    read_frame,
};
use crate::support::interface::{self, check_body, check_head};
use crate::support::*;

/// One connection of HTTP/2.
struct Client {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
    ended: JoinHandle<hyper::Result<()>>,
    addr: std::net::SocketAddr,
}

type Asked<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8]);

impl Client {
    fn connect(server: &Server) -> Client {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (sender, ended) = runtime.block_on(async {
            let stream = TcpStream::connect(server.addr).await.unwrap();
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            (sender, tokio::spawn(connection))
        });
        Client { runtime, sender, ended, addr: server.addr }
    }

    fn call(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.call_all([(method, target, headers, body)]).remove(0)
    }

    /// Sends all requests at once. Returns the answers in the order of the requests.
    fn call_all<'a>(&mut self, all: impl IntoIterator<Item = Asked<'a>>) -> Vec<Response> {
        let mut answers = JoinSet::new();
        let _runtime = self.runtime.enter();
        for (n, (method, target, headers, body)) in all.into_iter().enumerate() {
            let mut request = hyper::Request::builder().method(method).uri(format!("http://{}{target}", self.addr));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
            let mut sender = self.sender.clone();
            let asked = interface::RequestLine { method: method.to_owned(), target: target.to_owned() };
            answers.spawn(async move {
                sender.ready().await.unwrap();
                let (head, body) = sender.send_request(request).await.unwrap().into_parts();
                let text = |value: &hyper::header::HeaderValue| value.to_str().unwrap().to_string();
                let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
                let body = body.collect().await.unwrap().to_bytes().to_vec();
                let response = Response { status: head.status.as_u16(), headers, body, asked: Some(asked) };
                let asked = response.asked.as_ref().unwrap();
                check_head(asked, &response);
                if asked.method != "HEAD" {
                    check_body(asked, &response);
                }
                (n, response)
            });
        }
        let answered = async { timeout(DEADLINE, answers.join_all()).await.expect("answers in time") };
        let mut answers = self.runtime.block_on(answered);
        answers.sort_by_key(|(n, _)| *n);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Waits until the server has ended the connection in order.
    fn await_end(self) {
        let ended = async { timeout(DEADLINE, self.ended).await.expect("an end in time") };
        self.runtime.block_on(ended).unwrap().expect("an orderly end");
    }
}

const AS_JSON: &[(&str, &str)] = &[JSON];

/// The head of the next answer, compressed.
fn answer(wire: &mut Wire) -> Vec<u8> {
    loop {
        let (kind, _, payload) = read_frame(wire).expect("an answer");
        if kind == HEADERS {
            return payload;
        }
    }
}

#[test]
fn http2_answers_equal_those_of_http1() {
    let server = Server::start();
    let mut client = Client::connect(&server);
    let id = text_of(&client.call("POST", "/events", &[JSON], tick("s", 0).as_bytes()).json()["id"]);
    let one = format!("/api/v1/events/{id}");
    let asked = [("Origin", "https://dashboard.example"), ("Access-Control-Request-Method", "POST")];
    let table: [Asked; 14] = [
        ("GET", "/events", &[], b""),
        ("GET", "/events", &[ACCEPT_NDJSON], b""),
        ("GET", "/events?limit=x", &[], b""),
        ("GET", &one, &[], b""),
        ("GET", "/events/evt_0000000000ff", &[], b""),
        ("GET", "/nowhere", &[], b""),
        ("GET", "/event-types", &[], b""),
        ("GET", "/health", &[], b""),
        ("DELETE", "/health", &[], b""),
        ("OPTIONS", "/events", &[], b""),
        ("OPTIONS", "/events", &asked, b""),
        ("POST", "/events", &[JSON], b"{}"),
        ("POST", "/events", &[("Content-Type", "text/plain")], b"{}"),
        ("GET", "/ws/publish", &[], b""),
    ];
    let of_2 = client.call_all(table);
    for ((method, target, headers, body), of_2) in table.into_iter().zip(of_2) {
        let of_1 = server.call(method, target, headers, body);
        assert_eq!((of_2.status, of_2.text()), (of_1.status, of_1.text()), "{method} {target}");
        for (name, value) in of_1.headers {
            // HTTP/2 has no such headers: its frames show where a body ends.
            if !matches!(name.as_str(), "connection" | "upgrade" | "transfer-encoding" | "content-length" | "date") {
                assert!(of_2.header(&name).is_some_and(|of_2| value.contains(of_2)), "{method} {target}: {name}");
            }
        }
    }
    let socket = client.call("GET", "/ws/subscribe", &[], b"");
    assert!(text_of(&socket.refusal(426)).contains("HTTP/1.1"), "it is said how to connect");
}

#[test]
fn http2_head_is_answered_without_a_body() {
    let server = Server::start();
    let mut client = Client::connect(&server);
    for path in ["/events", "/health", "/event-types", "/nowhere"] {
        let [get, head] = ["GET", "HEAD"].map(|method| client.call(method, path, &[], b""));
        assert_eq!((head.status, head.body.len()), (get.status, 0), "HEAD {path}");
        for name in ["content-type", "content-length"] {
            assert_eq!(head.header(name), get.header(name), "HEAD {path}");
        }
    }
}

#[test]
fn many_requests_share_an_http2_connection() {
    let server = Server::start();
    let mut client = Client::connect(&server);
    let events = ticks("s", 100);
    let published = client.call_all(events.iter().map(|event| ("POST", "/events", AS_JSON, event.as_bytes())));
    let mut stored: Vec<_> = published.iter().map(|answer| sequence(&answer.json()["id"])).collect();
    stored.sort_unstable();
    assert_eq!(stored, (1..=100).collect::<Vec<_>>());
    for answer in client.call_all(
        (0..300).map(|n| ("GET", if n % 2 == 0 { "/events" } else { "/stats" }, [].as_slice(), b"".as_slice())),
    ) {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[test]
fn http2_carries_large_bodies_both_ways() {
    let server = Server::with(&[("MAX_BODY_BYTES", "3000000")]);
    let mut client = Client::connect(&server);
    let lines = ticks("s", 20_000).join("\n");
    assert!(lines.len() > 1 << 20);
    let answers = client.call_all([("POST", "/events", [NDJSON].as_slice(), lines.as_bytes()); 4]);
    assert!(answers.iter().all(|answer| answer.status == 201));
    let exports = client.call_all([("GET", "/events", [ACCEPT_NDJSON].as_slice(), b"".as_slice()); 4]);
    for export in exports {
        let events: Vec<Value> = export.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(sequences(&events), (1..=80_000).collect::<Vec<_>>());
    }
    // A refused body ends its stream, and not the connection.
    for _ in 0..3 {
        client.call("POST", "/events", &[NDJSON], &vec![b' '; 3_000_001]).refusal(413);
    }
    assert_eq!(client.call("GET", "/stats", &[], b"").json()["total_events"], 80_000);
}

#[test]
fn the_http2_preface_may_come_byte_by_byte() {
    let server = Server::start();
    let send_slowly = |bytes: &[u8]| {
        let mut wire = Wire::connect(server.addr);
        for byte in bytes {
            wire.send([*byte]);
            thread::sleep(Duration::from_millis(15));
        }
        wire
    };
    let mut wire = send_slowly(PREFACE);
    assert_eq!(read_frame(&mut wire).expect("a frame").0, SETTINGS);

    let event = request("POST", "/events", &[JSON], tick("s", 0).as_bytes());
    let mut wire = send_slowly(&event[..5]);
    wire.send(&event[5..]);
    assert_eq!(wire.response().expect("an answer").status, 201, "POST begins like the preface");

    let mut wire = Wire::connect(server.addr);
    wire.send("PRI * HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(wire.response().expect("an answer").status, 404, "this does, too");
}

#[test]
fn an_idle_http2_connection_is_closed() {
    let server = Server::with(&[("HEADER_TIMEOUT_SECONDS", "0.3"), ("BODY_TIMEOUT_SECONDS", "1")]);
    for part in [&b"P"[..], b"PRI", &PREFACE[..23]] {
        let mut wire = Wire::connect(server.addr);
        wire.send(part);
        assert_eq!(wire.take(1, "the end"), None, "{part:?}");
    }
    let mut idle = Client::connect(&server);
    assert_eq!(idle.call("GET", "/health", &[], b"").status, 200);
    idle.await_end();

    let mut wire = connect(&server);
    await_pong(&mut wire).unwrap();
    // A connection with a request in hand is not idle; the body has a timeout of its own.
    wire.send(frame(HEADERS, END_HEADERS, 1, &head("POST", "/events", &[("host", "localhost")])));
    answer(&mut wire);
    let kinds: Vec<_> = std::iter::from_fn(|| read_frame(&mut wire)).map(|(kind, ..)| kind).collect();
    assert!(kinds.contains(&GOAWAY), "a word before the end: {kinds:?}");
}

#[test]
fn an_http2_peer_that_vanished_is_found_by_pings() {
    let server = Server::with(&[("KEEPALIVE_SECONDS", "0.1"), ("WRITE_TIMEOUT_SECONDS", "0.3")]);
    let mut wire = connect(&server);
    wire.send(frame(HEADERS, END_HEADERS, 1, &head("POST", "/events", &[("host", "localhost")])));
    let kinds: Vec<_> = std::iter::from_fn(|| read_frame(&mut wire)).map(|(kind, ..)| kind).collect();
    assert!(kinds.contains(&PING), "the server asks before it gives up: {kinds:?}");
}

#[test]
fn an_http2_peer_that_takes_nothing_is_closed() {
    let server = Server::with(&[("KEEPALIVE_SECONDS", "600"), ("WRITE_TIMEOUT_SECONDS", "0.3")]);
    server.publish(&tick("s", 0));
    let ask =
        |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &head("GET", "/events", &[("host", "localhost")]));
    // The first window takes no byte, the second takes one.
    for window in [0, 1] {
        let mut wire = connect(&server);
        wire.send(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, window]));
        wire.send([ask(1), ask(3)].concat());
        answer(&mut wire);
        while read_frame(&mut wire).is_some() {}
    }
}

#[test]
fn an_http2_request_names_one_host() {
    let server = Server::start();
    let table: [(&[(&str, &str)], bool); 6] = [
        (&[(":authority", "x:1")], true),
        (&[("host", "x:1")], true),
        (&[(":authority", "x:1"), ("host", "X:1")], true),
        (&[], false),
        (&[(":authority", "x:1"), ("host", "y:1")], false),
        (&[("host", "x:1"), ("host", "x:1")], false),
    ];
    for (hosts, right) in table {
        let mut wire = connect(&server);
        wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/health", hosts)));
        // 200 and 400 are the fields 8 and 12 of HPACK's fixed table.
        assert_eq!(answer(&mut wire)[0], 0x80 | if right { 8 } else { 12 }, "{hosts:?}");
    }
}

#[test]
fn a_flood_of_resets_ends_its_http2_connection() {
    let server = Server::with(&[("LOG_LEVEL", "debug")]);
    server.publish_lines(&ticks("s", 20_000));
    let path = "/events?limit=1000&source=it";
    let ask = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &head("GET", path, &[("host", "localhost")]));
    let take_back = |stream| frame(RESET, 0, stream, &8_u32.to_be_bytes());
    let streams = |round: u32| (0..100).map(move |n| (round * 100 + n) * 2 + 1);

    // Reset before the server has seen the requests.
    let mut wire = connect(&server);
    wire.send(streams(0).flat_map(|stream| [ask(stream), take_back(stream)].concat()).collect::<Vec<_>>());
    let last = std::iter::from_fn(|| read_frame(&mut wire)).last().expect("a word before the end");
    assert_eq!(last.0, GOAWAY);

    // Reset while the server works on them.
    let mut wire = connect(&server);
    let rounds = (0..1000).take_while(|round| {
        wire.send(streams(*round).flat_map(ask).collect::<Vec<_>>());
        let heard = await_pong(&mut wire);
        wire.send(streams(*round).flat_map(take_back).collect::<Vec<_>>());
        heard.and_then(|()| await_pong(&mut wire)).is_some()
    });
    let rounds = rounds.count();
    assert!(rounds < 1000, "nobody may go on like this");
    server.await_log("Flooded");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_shutdown_ends_http2_connections_in_order() {
    let mut server = Server::start();
    let mut client = Client::connect(&server);
    let idle = Client::connect(&server);
    assert_eq!(client.call("POST", "/events", &[JSON], tick("s", 0).as_bytes()).status, 201);
    // A request in hand is finished.
    let mut wire = connect(&server);
    wire.send(frame(HEADERS, END_HEADERS, 1, &head("POST", "/events", &[("host", "localhost")])));
    await_pong(&mut wire).unwrap();
    server.signal("TERM");
    client.await_end();
    idle.await_end();
    wire.send(frame(0, END_STREAM, 1, tick("s", 1).as_bytes()));
    let mut answered = false;
    while let Some((kind, flags, payload)) = read_frame(&mut wire) {
        match kind {
            PING if flags & ACK == 0 => wire.send(frame(PING, ACK, 0, &payload)),
            HEADERS => answered = true,
            _ => {}
        }
    }
    assert!(answered);
    server.await_exit_0();
    server.restart();
    assert_eq!(server.get_json("/stats")["total_events"], 2);
}
