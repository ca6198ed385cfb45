//! Slow subscribers: what `on_lag` promises, checked event by event.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;

use serde_json::{Value, json};

use crate::subscribe::while_publishing;
use crate::support::*;

/// MAX_SUBSCRIBER_BYTES of these tests.
const BOUND: &str = "65536";
/// About the size of an event of these tests in its delivery.
const FILLER: usize = 2_000;

/// A server with a write timeout that is longer than a test lets a subscriber hang.
fn patient(subscriber_bytes_max: &str) -> Server {
    Server::with(&[
        ("MAX_SUBSCRIBER_BYTES", subscriber_bytes_max),
        ("WRITE_TIMEOUT_SECONDS", "600"),
        ("KEEPALIVE_SECONDS", "600"),
    ])
}

/// A subscriber whose socket is full after little data. By default the system would let its buffers grow to 32 MiB.
fn narrow(server: &Server, first: &Value) -> Socket {
    let subscriber = server.subscriber(first);
    socket2::SockRef::from(subscriber.stream()).set_recv_buffer_size(64 << 10).unwrap();
    subscriber
}

/// The n-th event, from 1: in session "a" if n is odd, else in "b". Every third event has `"third": true`.
fn event(n: u64) -> String {
    let session = if n % 2 == 1 { "a" } else { "b" };
    let payload = json!({"third": n.is_multiple_of(3), "filler": "x".repeat(FILLER)});
    json!({"event_type": "timer_tick", "source": "it", "session_id": session, "payload": payload}).to_string()
}

/// Publishes the events after one number and up to another, in one transaction.
fn publish(server: &Server, after: u64, through: u64) {
    let ids = server.publish_lines(&(after + 1..=through).map(event).collect::<Vec<_>>());
    assert_eq!(ids.last(), Some(&id_of(through)), "only this test publishes");
}

/// Publishes more than a socket and an outbox hold, in transactions of about a megabyte.
const FLOOD: u64 = 12_000;

fn flood(server: &Server) {
    flood_after(server, 0);
}

fn flood_after(server: &Server, after: u64) {
    for after in (after..FLOOD).step_by(500) {
        publish(server, after, FLOOD.min(after + 500));
    }
}

#[test]
fn a_subscriber_that_falls_behind_is_told_and_gets_every_event() {
    let server = patient(BOUND);
    let mut subscriber = narrow(&server, &json!({"signals": true}));
    flood(&server);

    let (mut last, mut is_behind, mut falls) = (0, false, 0);
    while last < FLOOD || is_behind {
        let message = subscriber.json();
        match message["type"].as_str() {
            None => {
                last += 1;
                assert_eq!(sequence(&message["id"]), last);
            }
            Some("fell_behind") => {
                assert!(!is_behind, "told twice after {last}");
                assert_eq!(message, json!({"type": "fell_behind", "after": id_of(last)}));
                (is_behind, falls) = (true, falls + 1);
            }
            Some(_) => {
                assert_eq!(message, json!({"type": "caught_up"}));
                assert!(is_behind, "who was not behind cannot catch up");
                is_behind = false;
            }
        }
    }
    assert!(falls > 0, "the flood was too small");
    publish(&server, FLOOD, FLOOD + 1);
    assert_eq!(sequence(&subscriber.json()["id"]), FLOOD + 1, "live again");
}

#[test]
fn without_signals_a_subscriber_gets_only_events() {
    let server = patient(BOUND);
    let mut subscribers = [json!({}), json!({"signals": false, "on_lag": "catch_up"}), json!({"after": id_of(0)})]
        .map(|first| narrow(&server, &first));
    flood(&server);
    for subscriber in &mut subscribers {
        for n in 1..=FLOOD {
            let message = subscriber.json();
            assert_eq!(sequence(&message["id"]), n, "{message}");
        }
    }
    publish(&server, FLOOD, FLOOD + 1);
    for subscriber in &mut subscribers {
        assert_eq!(sequence(&subscriber.json()["id"]), FLOOD + 1, "live again");
    }
}

#[test]
fn a_subscriber_that_starts_in_the_past_is_told_where_live_begins() {
    let server = patient(BOUND);
    publish(&server, 0, 300);
    for (first, start) in [(json!({"after": id_of(0)}), 0), (json!({"last": 3}), 297), (json!({"last": 0}), 300)] {
        let mut asked = first.clone();
        asked["signals"] = true.into();
        let mut subscriber = server.subscriber(&asked);
        for n in start + 1..=300 {
            assert_eq!(sequence(&subscriber.json()["id"]), n, "{first}");
        }
        assert_eq!(subscriber.json(), json!({"type": "caught_up"}), "{first}");
    }
}

/// Reads the events after `last` up to `through`, and the `caught_up` signal among them. Returns the event before the
/// signal.
fn read_to_live(subscriber: &mut Socket, mut last: u64, through: u64) -> u64 {
    let mut before_live = None;
    while last < through || before_live.is_none() {
        let message = subscriber.json();
        match message["type"].is_null() {
            true => {
                last += 1;
                assert_eq!(sequence(&message["id"]), last);
            }
            false => {
                assert_eq!(message, json!({"type": "caught_up"}), "after {last}");
                assert_eq!(before_live.replace(last), None, "told twice");
            }
        }
    }
    before_live.unwrap()
}

#[test]
fn caught_up_comes_after_all_events_stored_before_the_answer() {
    let server = patient(BOUND);
    flood(&server);
    let starts = [json!({"after": id_of(0)}), json!({"last": FLOOD}), json!({"since": "2020-01-01T00:00:00Z"})];
    let mut subscribers = starts.map(|mut first| {
        first["signals"] = true.into();
        narrow(&server, &first)
    });
    // No subscriber reads yet, so that each has much more history to receive than the server reads ahead.
    publish(&server, FLOOD, FLOOD + 500);
    for subscriber in &mut subscribers {
        let before_live = read_to_live(subscriber, 0, FLOOD + 500);
        assert!(before_live >= FLOOD, "{before_live} of the {FLOOD} events that were stored came before");
    }
    publish(&server, FLOOD + 500, FLOOD + 501);
    for subscriber in &mut subscribers {
        assert_eq!(sequence(&subscriber.json()["id"]), FLOOD + 501, "live");
    }
}

#[test]
fn caught_up_comes_once_among_events_that_arrive_in_a_steady_stream() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 300));
    while_publishing(
        &server,
        |n| tick("s", n),
        || {
            in_parallel(4, |_| {
                for _ in 0..20 {
                    let mut subscriber = Socket::open(server.addr, "/ws/subscribe");
                    let answer = subscriber.ask(&json!({"last": 200, "signals": true}).to_string());
                    let answered = sequence(&answer["last_event_id"]);
                    let before_live = read_to_live(&mut subscriber, answered - 200, answered + 100);
                    assert!(before_live >= answered, "{before_live} of {answered} came before");
                }
            });
        },
    );
}

/// Bytes that a client has sent and the server has not read, in the buffers of both sockets.
fn unread_bytes(client: &TcpStream) -> u64 {
    let spelled = |addr: SocketAddr| match addr.ip() {
        IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), addr.port()),
        IpAddr::V6(_) => unreachable!("these tests listen on 127.0.0.1"),
    };
    let (here, there) = (spelled(client.local_addr().unwrap()), spelled(client.peer_addr().unwrap()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let waiting = |of: &str, with: &str, queue: usize| {
        let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row[1] == of && row[2] == with).expect("a connection");
        u64::from_str_radix(row[4].split(':').nth(queue).unwrap(), 16).unwrap()
    };
    waiting(&here, &there, 0) + waiting(&there, &here, 1)
}

/// Subscribes and blocks the writes to the subscriber before its first event: it asks for more pongs than its socket
/// holds, and for fewer than its outbox holds. The server must have one network thread.
fn choke(server: &Server, first: &Value) -> (Socket, Value) {
    let stream = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    // Small TCP segments also keep the server's send buffer small: together some 150 KB fit.
    stream.set_tcp_mss(536).unwrap();
    stream.set_recv_buffer_size(4 << 10).unwrap();
    stream.connect(&server.addr.into()).unwrap();
    let mut subscriber = Socket::over(Wire::over(stream.into()), "/ws/subscribe", &[]).ok().expect("a handshake");
    let answer = subscriber.ask(&first.to_string());
    assert_eq!(subscriber.ask(r#"{"type":"ping"}"#), json!({"type": "pong"}), "it is live before it is asked anything");
    subscriber.send_raw(frame(0x80 | PING, &[0; 125]).repeat(3_000));
    await_true("the pings to be read", || unread_bytes(subscriber.stream()) == 0);
    assert_eq!(server.get("/health").status, 200, "the same thread has done with them");
    (subscriber, answer)
}

#[test]
fn a_subscriber_that_falls_behind_before_its_first_event_is_told_where_it_started() {
    for stored in [0, 7] {
        // A subscriber that gets its first events before it blocks does not fall behind before them. Then the test tries again.
        let is_met = (0..50).any(|_| fall_behind_before_the_first_event(stored));
        assert!(is_met, "each of them has had an event first");
    }
}

/// Tries once. Returns whether both subscribers fell behind before their first event.
fn fall_behind_before_the_first_event(stored: u64) -> bool {
    let server = Server::with(&[
        ("MAX_SUBSCRIBER_BYTES", BOUND),
        ("NETWORK_THREADS", "1"),
        ("WRITE_TIMEOUT_SECONDS", "600"),
        ("KEEPALIVE_SECONDS", "600"),
    ]);
    if stored > 0 {
        publish(&server, 0, stored);
    }
    let firsts: [(Value, Passes); 2] = [
        (json!({"signals": true}), |_| true),
        (json!({"signals": true, "payload": {"third": true}}), |n| n.is_multiple_of(3)),
    ];
    let subscribers = firsts.map(|(first, passes)| (choke(&server, &first), passes));
    publish(&server, stored, 500);
    publish(&server, 500, 1_000);
    subscribers.into_iter().all(|((mut subscriber, answer), passes)| {
        assert_eq!(answer["last_event_id"], json!((stored > 0).then(|| id_of(stored))));
        socket2::SockRef::from(subscriber.stream()).set_recv_buffer_size(1 << 20).unwrap();
        let told = loop {
            match subscriber.receive() {
                Received::Pong(_) => {}
                said => break said,
            }
        };
        let Received::Text(told) = told else { panic!("{told:?}") };
        let told: Value = serde_json::from_str(&told).unwrap();
        if told.get("id").is_some() {
            return false;
        }
        let after = sequence(&told["after"]);
        assert_eq!(told, json!({"type": "fell_behind", "after": id_of(after)}));
        let first = (stored + 1..=1_000).find(|n| passes(*n)).unwrap();
        assert!((stored..first).contains(&after), "{after} is not from {stored} on and before {first}");
        for n in (first..=1_000).filter(|n| passes(*n)) {
            assert_eq!(sequence(&subscriber.json()["id"]), n, "the first is {first}");
        }
        assert_eq!(subscriber.json(), json!({"type": "caught_up"}));
        true
    })
}

/// A subscriber with `on_lag` skip, and whether the n-th event passes its filter.
type Skipping = (Socket, fn(u64) -> bool);

fn skipping(server: &Server) -> [Skipping; 4] {
    let cases: [(Value, Passes); 4] = [
        (json!({}), |_| true),
        (json!({"session_id": "a"}), |n| n % 2 == 1),
        (json!({"payload": {"third": true}}), |n| n.is_multiple_of(3)),
        (json!({"session_id": "b", "exclude": {"payload": {"third": true}}}), |n| n % 2 == 0 && !n.is_multiple_of(3)),
    ];
    cases.map(|(mut first, matches)| {
        first["on_lag"] = "skip".into();
        (narrow(server, &first), matches)
    })
}

/// Reads the events after one number and up to another. Each must arrive or be counted as missed. Returns how many were
/// missed.
fn account((subscriber, matches): &mut Skipping, after: u64, through: u64) -> usize {
    let matches = *matches;
    let matching = |after: u64, through: u64| (after + 1..=through).filter(move |n| matches(*n));
    let (mut place, mut delivered, mut missed) = (after, 0, 0);
    while delivered + missed < matching(after, through).count() {
        let message = subscriber.json();
        if message["type"] == "lagged" {
            let last = sequence(&message["last_event_id"]);
            assert!(last > place && last <= through, "{message} after {place}");
            let left_out = matching(place, last).count();
            assert_eq!(message, json!({"type": "lagged", "missed": left_out, "last_event_id": id_of(last)}));
            (place, missed) = (last, missed + left_out);
        } else {
            let next = matching(place, through).next();
            assert_eq!(Some(sequence(&message["id"])), next, "the next that matches after {place}");
            (place, delivered) = (sequence(&message["id"]), delivered + 1);
        }
    }
    assert_eq!(delivered + missed, matching(after, through).count());
    missed
}

#[test]
fn a_skipping_subscriber_that_hangs_is_told_exactly_how_many_events_it_missed() {
    let server = patient(BOUND);
    let mut subscribers = skipping(&server);
    flood(&server);
    for subscriber in &mut subscribers {
        assert!(account(subscriber, 0, FLOOD) > 0, "the flood was too small");
    }
    publish(&server, FLOOD, FLOOD + 6);
    for subscriber in &mut subscribers {
        assert_eq!(account(subscriber, FLOOD, FLOOD + 6), 0, "live again");
    }
}

#[test]
fn a_skipping_subscriber_that_hangs_repeatedly_is_told_exactly_how_many_events_it_missed() {
    let server = patient(BOUND);
    let mut subscribers = skipping(&server);
    // Each subscriber waits for an event, so that all are live before the flood.
    publish(&server, 0, 4);
    for subscriber in &mut subscribers {
        assert_eq!(account(subscriber, 0, 4), 0, "nothing is too much yet");
    }
    let mut dice = Random::seeded();
    let mut ends = vec![4, 2_004];
    while ends[ends.len() - 1] < FLOOD {
        // Some transactions are far above the bound, and some below it.
        let most = if dice.below(3) == 0 { 500 } else { 10 };
        ends.push(ends[ends.len() - 1] + 1 + dice.below(most));
    }
    let end = ends[ends.len() - 1];
    thread::scope(|scope| {
        for subscriber in &mut subscribers {
            // Whether a subscriber is too slow depends on the machine.
            scope.spawn(move || account(subscriber, 4, end));
        }
        ends.windows(2).for_each(|pair| publish(&server, pair[0], pair[1]));
    });
    publish(&server, end, end + 6);
    for subscriber in &mut subscribers {
        assert_eq!(account(subscriber, end, end + 6), 0, "live again");
    }
}

#[test]
fn a_commit_beyond_max_subscriber_bytes_disconnects_no_fast_subscriber() {
    let server = patient(BOUND);
    let mut subscribers =
        ["catch_up", "skip", "disconnect"].map(|on_lag| server.subscriber(&json!({"on_lag": on_lag, "signals": true})));
    let mut last = 0;
    // The first event shows that all subscribers are live. The transactions after it have some 1 MB each.
    for through in [1, 501, 1_001] {
        publish(&server, last, through);
        for subscriber in &mut subscribers {
            for n in last + 1..=through {
                let message = subscriber.json();
                assert_eq!(sequence(&message["id"]), n, "{message}");
            }
        }
        last = through;
    }
}

#[test]
fn on_lag_disconnect_closes_the_socket_and_the_subscriber_can_resume() {
    let server = patient(BOUND);
    let mut subscriber = narrow(&server, &json!({"on_lag": "disconnect", "signals": true}));
    let mut witness = server.subscriber(&json!({}));
    publish(&server, 0, 1);
    assert_eq!(sequence(&subscriber.json()["id"]), 1);
    flood_after(&server, 1);
    let (words, code) = subscriber.read_to_close();
    assert_eq!(code, 4008);
    let mut last = 1;
    for word in words {
        let event: Value = serde_json::from_str(&word).unwrap();
        assert_eq!(sequence(&event["id"]), last + 1, "{word}");
        last += 1;
    }
    assert!(last < FLOOD, "the flood was too small");
    let mut again = server.subscriber(&json!({"after": id_of(last)}));
    for n in last + 1..=FLOOD {
        assert_eq!(sequence(&again.json()["id"]), n, "nothing was lost");
    }
    for n in 1..=FLOOD {
        assert_eq!(sequence(&witness.json()["id"]), n, "nobody else noticed");
    }
}

#[test]
fn an_invalid_on_lag_is_refused_with_a_message() {
    let server = Server::start();
    for first in [
        r#"{"on_lag":"hurry"}"#,
        r#"{"on_lag":1}"#,
        r#"{"on_lag":["skip"]}"#,
        r#"{"signals":1}"#,
        r#"{"signals":"true"}"#,
        r#"{"on_lag":"skip","name":"n"}"#,
        r#"{"on_lag":"skip","group":"g"}"#,
    ] {
        let mut socket = Socket::open(server.addr, "/ws/subscribe");
        let answer = socket.ask(first);
        assert_eq!(answer["status"], "error", "{first}: {answer}");
        let named = ["on_lag", "signals"].iter().any(|key| text_of(&answer["message"]).contains(key));
        assert!(named, "{first}: {answer}");
        assert_eq!(socket.close_code(), 1008, "{first}");
    }
}

const MANY: u64 = 2_000_000;
const PER_BODY: u64 = 10_000;
const WARM_UP_BODIES: u64 = 40;

/// How much the server's memory may grow while the subscriber hangs. The subscriber has 256 KiB in its outbox and one page of
/// 256 KiB that could not be written; the buffers of the socket are not memory of the process. The rest is what storing the
/// events costs: the lists of the segments that are being filled and sealed, the caches of SQLite, request bodies. Keeping
/// 36 bytes for each event would exceed it.
const GROWTH_MAX: u64 = 64 << 20;

#[test]
fn a_subscriber_that_stops_reading_costs_bounded_memory_and_gets_all_two_million_events() {
    let server = patient("262144");
    let mut stuck = narrow(&server, &json!({"signals": true}));
    // Events are numbered within a body, so that every body is the same and is built only once.
    let mut body = String::new();
    for n in 0..PER_BODY {
        writeln!(
            body,
            r#"{{"event_type":"timer_tick","source":"it","session_id":"s{}","payload":{{"n":{n}}}}}"#,
            n % 30
        )
        .unwrap();
    }
    let request = request("POST", "/events", &[NDJSON], body.as_bytes());
    let mut wire = Wire::connect(server.addr);
    let mut publish = |bodies: u64| {
        for _ in 0..bodies {
            wire.send(&request);
            let response = wire.response().expect("an answer");
            assert_eq!(response.status, 201);
            assert!(response.body.starts_with(format!(r#"{{"count":{PER_BODY},"#).as_bytes()));
        }
    };
    // Enough events to seal some segments and warm every cache, while the subscriber hangs already.
    let mut before = 0;
    for _ in 0..WARM_UP_BODIES {
        publish(1);
        before = before.max(resident_bytes(server.pid()));
    }
    let mut most = before;
    for _ in WARM_UP_BODIES..MANY / PER_BODY {
        publish(1);
        most = most.max(resident_bytes(server.pid()));
    }
    let growth = most - before;
    println!("{} MiB before, {} KiB more at most", before >> 20, growth >> 10);
    assert!(growth < GROWTH_MAX, "{} MiB grew by {} MiB", before >> 20, growth >> 20);

    let (mut last, mut is_behind) = (0, false);
    let mut expected = String::new();
    while last < MANY || is_behind {
        // The two million messages are searched as text: parsing them would take longer than sending them.
        let message = stuck.text();
        if let Some(rest) = message.strip_prefix(r#"{"id":""#) {
            expected.clear();
            write!(expected, "evt_{:012x}", last + 1).unwrap();
            assert!(rest.starts_with(&expected), "{message} after {last}");
            expected.clear();
            write!(expected, r#""payload":{{"n":{}}},"#, last % PER_BODY).unwrap();
            assert!(rest.contains(&expected), "{message} after {last}");
            last += 1;
        } else if message.contains("caught_up") {
            assert!(is_behind, "{message} after {last}");
            is_behind = false;
        } else {
            assert!(!is_behind, "{message} after {last}");
            assert_eq!(message, json!({"type": "fell_behind", "after": id_of(last)}).to_string());
            is_behind = true;
        }
    }
    server.publish(&tick("s", 0));
    assert_eq!(sequence(&stuck.json()["id"]), MANY + 1, "and then live");
}
