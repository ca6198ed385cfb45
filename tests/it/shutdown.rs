//! Shutdown: acknowledged events are stored, stored events are delivered, every client is told, exit code 0.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::support::*;

#[test]
fn a_shutdown_under_load_stores_and_delivers_everything_acknowledged() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start();
        let acknowledged = AtomicUsize::new(0);
        let mut subscriber = server.subscriber(&json!({}));
        let mut kept = Vec::new();
        let mut delivered = 0;
        thread::scope(|scope| {
            let (server, acknowledged) = (&server, &acknowledged);
            let sockets: Vec<_> =
                (0..3).map(|_| scope.spawn(move || publish_to_the_end(server, acknowledged))).collect();
            let requests = scope.spawn(move || post_to_the_end(server, acknowledged));
            let reader = scope.spawn(|| {
                let (words, code) = subscriber.read_to_close();
                assert_eq!(code, 1001, "a subscriber is told that the server goes away");
                let ids: Vec<Value> = words.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
                assert_eq!(sequences(&ids), (1..=ids.len() as u64).collect::<Vec<_>>());
                ids.len()
            });
            await_true("some acknowledgements", || acknowledged.load(Ordering::Relaxed) > 2000);
            server.signal(signal);
            for socket in sockets {
                kept.extend(socket.join().unwrap());
            }
            kept.extend(requests.join().unwrap());
            delivered = reader.join().unwrap();
        });
        server.await_exit_0();
        server.restart();
        let stored = sequences(&server.stored(""));
        assert_eq!(stored, (1..=stored.len() as u64).collect::<Vec<_>>());
        let last_kept = kept.iter().max().unwrap();
        assert!(*last_kept <= stored.len() as u64, "{last_kept} was acknowledged, {} are stored", stored.len());
        assert_eq!(delivered, stored.len(), "everything stored was delivered before the end");
    }
}

/// Publishes without a pause until the server closes the socket, which it must do with code 1001; returns the
/// acknowledged events.
fn publish_to_the_end(server: &Server, count: &AtomicUsize) -> Vec<u64> {
    let mut publisher = server.publisher();
    let messages: Vec<u8> =
        ticks("socket", 1_000).iter().flat_map(|tick| frame(0x80 | TEXT, tick.as_bytes())).collect();
    let mut stream = publisher.stream().try_clone().unwrap();
    let mut ids = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| while stream.write_all(&messages).is_ok() {});
        loop {
            match publisher.receive() {
                Received::Text(answer) => {
                    let answer: Value = serde_json::from_str(&answer).unwrap();
                    // A message that comes too late may be refused with a reason.
                    if answer["status"] == "ok" {
                        ids.push(sequence(&answer["event_id"]));
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
                said => {
                    assert_eq!(said, Received::Close(1001), "a producer is told that the server goes away");
                    let _ = publisher.stream().shutdown(std::net::Shutdown::Both);
                    return;
                }
            }
        }
    });
    ids
}

fn post_to_the_end(server: &Server, count: &AtomicUsize) -> Vec<u64> {
    let mut wire = Wire::connect(server.addr);
    let mut ids = Vec::new();
    loop {
        wire.send(request("POST", "/events", &[JSON], tick("request", 0).as_bytes()));
        let Some(response) = wire.response() else { return ids };
        if response.status != 201 {
            response.refusal(503);
            return ids;
        }
        ids.push(sequence(&response.json()["id"]));
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn idle_connections_learn_of_the_shutdown_and_do_not_delay_it() {
    let mut server = Server::start();
    let mut sockets = [server.publisher(), server.subscriber(&json!({})), Socket::open(server.addr, "/ws/subscribe")];
    let mut kept_alive = Wire::connect(server.addr);
    kept_alive.send(request("GET", "/health", &[], b""));
    assert_eq!(kept_alive.response().unwrap().status, 200);
    let mut silent = Wire::connect(server.addr);
    server.signal("TERM");
    for socket in &mut sockets {
        assert_eq!(socket.close_code(), 1001);
    }
    kept_alive.await_close();
    silent.await_close();
    server.await_exit_0();
}

#[test]
fn a_shutdown_cuts_unfinished_requests_and_closes_all_other_connections() {
    let mut server = Server::with(&[("SHUTDOWN_TIMEOUT_SECONDS", "4")]);
    let mut idle = server.subscriber(&json!({}));
    let mut half_a_head = Wire::connect(server.addr);
    half_a_head.send("POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Le");
    let mut half_a_body = Wire::connect(server.addr);
    half_a_body.send("POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n");
    let proceed = "HTTP/1.1 100 Continue\r\n\r\n";
    assert_eq!(half_a_body.take(proceed.len(), "the server to wait for the body").unwrap(), proceed.as_bytes());
    half_a_body.send(r#"{"event_type":"#);

    server.signal("TERM");
    assert_eq!(idle.close_code(), 1001);
    half_a_body.response().expect("an answer").refusal(503);
    half_a_head.await_close();
    server.await_exit_0();
}

#[test]
fn untaken_answers_do_not_keep_other_connections_from_an_orderly_end() {
    let mut server = Server::with(&[("SHUTDOWN_TIMEOUT_SECONDS", "2")]);
    server.allow_noise();
    server.publish_30_mb();
    let untaken = [ACCEPT_NDJSON, ("Accept", "text/event-stream")].map(|accept| {
        let target = if accept == ACCEPT_NDJSON { "/events" } else { "/events/stream?last=500" };
        let mut wire = Wire::connect(server.addr);
        wire.send(request("GET", target, &[accept], b""));
        assert_eq!(wire.response_head().expect("an answer").status, 200);
        wire
    });
    let mut idle = server.subscriber(&json!({}));
    server.signal("TERM");
    assert_eq!(idle.close_code(), 1001);
    server.await_log("left behind");
    let left = server.log().into_iter().find(|line| line.contains("left behind")).unwrap();
    assert!(left.contains(r#""producers_left":false"#), "a reader does not hold the store open: {left}");
    server.await_exit_0();
    drop(untaken);
}

#[test]
fn a_shutdown_waits_only_so_long_for_a_stuck_subscriber() {
    let settings =
        [("SHUTDOWN_TIMEOUT_SECONDS", "1"), ("MAX_SUBSCRIBER_BYTES", "65536"), ("WRITE_TIMEOUT_SECONDS", "600")];
    let mut server = Server::with(&settings);
    server.allow_noise();
    let _stuck = stuck_subscriber(&server);
    server.signal("TERM");
    server.await_exit_0();
    server.restart();
    assert_eq!(server.get_json("/stats")["total_events"], 500);
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let settings =
        [("SHUTDOWN_TIMEOUT_SECONDS", "600"), ("MAX_SUBSCRIBER_BYTES", "65536"), ("WRITE_TIMEOUT_SECONDS", "600")];
    let mut server = Server::with(&settings);
    server.allow_noise();
    let _stuck = stuck_subscriber(&server);
    let mut idle = server.subscriber(&json!({"session_id": "nobody"}));
    server.signal("TERM");
    assert_eq!(idle.close_code(), 1001, "the first signal was heard");
    server.signal("TERM");
    // Whatever the exit code is, the server ends, and acknowledged events are stored.
    server.await_exit();
    server.restart();
    assert_eq!(server.get_json("/stats")["total_events"], 500);
}

/// A subscriber that reads none of the 30 MB that are sent to it.
fn stuck_subscriber(server: &Server) -> Socket {
    let stuck = server.subscriber(&json!({}));
    server.publish_30_mb();
    stuck
}

#[test]
fn a_stopped_server_starts_again_at_once() {
    let mut server = Server::start();
    for round in 1..=5 {
        assert_eq!(sequence(&server.publish(&tick("s", 0))["id"]), round);
        assert_eq!(server.get_json("/readiness")["ready"], true);
        server.stop();
        server.restart();
    }
}
