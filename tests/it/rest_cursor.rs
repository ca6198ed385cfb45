//! Cursors of `GET /events`: pages forward and back from an id, and long polls.

use std::thread;

use serde_json::{Value, json};

use crate::support::*;

fn page(server: &Server, query: &str) -> (Vec<u64>, Option<String>) {
    let response = server.get(&format!("/events?{query}"));
    assert_eq!(response.status, 200, "{query}: {}", response.text());
    (sequences(response.json().as_array().unwrap()), response.next_page())
}

#[test]
fn pages_lead_forward_from_an_id() {
    let server = Server::start();
    server.publish_lines(&(0..250).map(|n| tick(["a", "b"][n % 2], n)).collect::<Vec<_>>());
    let all: Vec<u64> = (1..=250).collect();
    for limit in [1, 7, 50, 125, 249, 250, 1000] {
        let whole = format!("/events?limit={limit}&after_id={}", id_of(0));
        assert_eq!(sequences(&server.pages(&whole)), all, "by {limit}");
    }
    assert_eq!(sequences(&server.pages(&format!("/api/v1/events?after_id={}", id_of(0)))), all, "the other prefix");
    let of_b: Vec<u64> = (101..=250).filter(|n| n % 2 == 0).collect();
    assert_eq!(sequences(&server.pages(&format!("/events?limit=9&session_id=b&after_id={}", id_of(100)))), of_b);

    let (first, next) = page(&server, &format!("limit=3&after_id={}&session_id=a", id_of(10)));
    assert_eq!(first, [11, 13, 15]);
    let next = next.expect("more remain");
    assert!(next.contains("session_id=a") && next.contains("limit=3"), "{next}");
    assert!(next.contains(&format!("after_id={}", id_of(15))) && !next.contains(&id_of(10)), "{next}");
    // A page that ends with the last event has no `Link`: a client that wants more asks again from there.
    assert_eq!(page(&server, &format!("limit=5&after_id={}", id_of(245))), ((246..=250).collect(), None));
    assert_eq!(page(&server, &format!("after_id={}", id_of(250))), (vec![], None));
    server.publish(&tick("a", 0));
    assert_eq!(page(&server, &format!("after_id={}", id_of(250))), (vec![251], None));
}

#[test]
fn pages_lead_back_from_an_id() {
    let server = Server::start();
    server.publish_lines(&(0..250).map(|n| tick(["a", "b"][n % 2], n)).collect::<Vec<_>>());
    for limit in [1, 40, 1000] {
        let back = format!("/events?limit={limit}&before_id={}", id_of(101));
        assert_eq!(sequences(&server.pages(&back)), (1..=100).rev().collect::<Vec<_>>(), "by {limit}");
    }
    assert_eq!(page(&server, &format!("limit=2&session_id=a&before_id={}", id_of(10))).0, [9, 7]);
    assert_eq!(page(&server, &format!("before_id={}", id_of(1))), (vec![], None));
    assert_eq!(page(&server, &format!("limit=2&before_id={}", id_of(0xffff))).0, [250, 249]);

    // Between two ids, in either direction.
    let between = format!("after_id={}&before_id={}", id_of(20), id_of(90));
    assert_eq!(sequences(&server.pages(&format!("/events?limit=11&{between}"))), (21..=89).collect::<Vec<_>>());
    assert_eq!(sequences(&server.stored(&between)), (21..=89).collect::<Vec<_>>());
    assert_eq!(sequences(&server.stored(&format!("limit=2&after_id={}", id_of(20)))), [21, 22]);
    for name in ["after_id", "before_id"] {
        for bad in ["nonsense", "17", "evt_", "evt_00000000000g", "evt_0000000000001", "EVT_000000000001"] {
            server.get(&format!("/events?{name}={bad}")).refusal(400);
            server.call("GET", &format!("/events?{name}={bad}"), &[ACCEPT_NDJSON], b"").refusal(400);
        }
    }
}

#[test]
fn a_gap_is_sent_in_a_header_of_a_page() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 10));
    let boundary = encode(&timestamp(&server.get_json(&format!("/events/{}", id_of(5)))));
    server.call("DELETE", &format!("/events?before={boundary}"), &[], b"");
    let gap = |query: &str, headers: &[(&str, &str)]| -> Option<Value> {
        let response = server.call("GET", &format!("/events?{query}"), headers, b"");
        assert_eq!(response.status, 200, "{query}: {}", response.text());
        assert!(response.header("access-control-expose-headers").unwrap().contains("Event-Gap"), "pages may read it");
        response.header("event-gap").map(|gap| serde_json::from_str(gap).unwrap())
    };
    let missing = json!({"missing_through": id_of(4)});
    for headers in [&[][..], &[ACCEPT_NDJSON]] {
        assert_eq!(gap(&format!("after_id={}", id_of(2)), headers), Some(missing.clone()));
        assert_eq!(gap(&format!("after_id={}", id_of(4)), headers), None);
        assert_eq!(gap(&format!("after_id={}", id_of(10)), headers), None);
        assert_eq!(gap(&format!("after_id={}", id_of(11)), headers), Some(json!({"unknown_cursor": id_of(11)})));
        assert_eq!(
            gap(&format!("after_id={}&epoch=00000000x", id_of(7)), headers),
            Some(json!({"unknown_cursor": id_of(7)}))
        );
        assert_eq!(gap("", headers), None);
    }
    assert_eq!(page(&server, &format!("after_id={}", id_of(2))).0, [5, 6, 7, 8, 9, 10]);
}

/// Sends a request without waiting for its answer.
fn ask(server: &Server, query: &str) -> Wire {
    let mut wire = Wire::connect(server.addr);
    wire.send(request("GET", &format!("/events?{query}"), &[], b""));
    wire
}

fn answered(wire: &mut Wire) -> Vec<u64> {
    let response = wire.response().expect("an answer");
    assert_eq!(response.status, 200, "{}", response.text());
    sequences(response.json().as_array().unwrap())
}

#[test]
fn a_long_poll_gets_stored_events_or_waits_for_new_ones() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 3));
    // If the server waited for it, this test would not end in time.
    assert_eq!(page(&server, &format!("after_id={}&wait=55s", id_of(1))), (vec![2, 3], None));
    let (first, next) = page(&server, &format!("limit=1&after_id={}&wait=55s", id_of(1)));
    assert_eq!(first, [2]);
    assert!(!next.expect("more remain").contains("wait"), "the rest is there: nobody waits for it");

    for wait in ["0", "0s", "1ms", "60ms"] {
        assert_eq!(page(&server, &format!("after_id={}&wait={wait}", id_of(3))), (vec![], None), "{wait}");
    }
    assert_eq!(page(&server, &format!("after_id={}&wait=", id_of(3))), (vec![], None), "empty means not at all");

    let payload = encode(r#"{"payload":{"n":77}}"#);
    let waiting = [
        (format!("after_id={}&wait=50s", id_of(3)), 4),
        (format!("after_id={}&wait=50000ms&session_id=s", id_of(3)), 5),
        (format!("after_id={}&wait=50&filter={payload}", id_of(2)), 6),
        (format!("after_id={}&wait=999999s&exclude_session_id=other", id_of(3)), 5),
    ];
    let mut wires = waiting.map(|(query, expected)| (ask(&server, &query), query, expected));
    // One by one, so that no two come together.
    for (event, sequence) in [tick("other", 0), tick("s", 1), tick("s", 77)].iter().zip(4..) {
        server.publish(event);
        for (wire, query, _) in wires.iter_mut().filter(|(_, _, expected)| *expected == sequence) {
            assert_eq!(answered(wire)[0], sequence, "{query}");
        }
    }
}

#[test]
fn a_long_poll_needs_a_cursor_and_a_valid_wait() {
    let server = Server::start();
    let after = id_of(0);
    for (query, what) in [
        ("wait=1s".to_string(), "no place"),
        (format!("wait=1s&before_id={after}"), "the wrong place"),
        (format!("after_id={after}&wait=soon"), "no time"),
        (format!("after_id={after}&wait=-1s"), "the past"),
        (format!("after_id={after}&wait=1m"), "an unknown unit"),
        (format!("after_id={after}&wait=1.5s"), "a fraction"),
    ] {
        let detail = server.get(&format!("/events?{query}")).refusal(422);
        assert_eq!(detail[0]["loc"], json!(["query", "wait"]), "{what}: {detail}");
    }
    server.get("/events?after_id=nonsense&wait=50s").refusal(400);
}

#[test]
fn an_empty_cursor_is_no_cursor() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 3));
    for query in ["after_id=", "before_id=", "after_id=&before_id=&epoch="] {
        assert_eq!(page(&server, query).0, [3, 2, 1], "{query}");
    }
}

#[test]
fn a_consumer_that_polls_gets_every_event_once() {
    let server = Server::start();
    thread::scope(|scope| {
        let server = &server;
        scope.spawn(move || {
            let mut publisher = server.publisher();
            for batch in 0..40 {
                acknowledged(&publisher.pipeline(&(0..25).map(|n| tick("s", batch * 25 + n)).collect::<Vec<_>>()));
            }
        });
        let mut wire = Wire::connect(server.addr);
        let mut last = 0;
        while last < 1000 {
            let query = format!("/events?limit=1000&after_id={}&wait=50s", id_of(last));
            wire.send(request("GET", &query, &[], b""));
            for place in answered(&mut wire) {
                assert_eq!(place, last + 1, "a gap or a repeat");
                last = place;
            }
        }
    });
}

#[test]
fn many_long_polls_may_wait_at_once() {
    let server = Server::start();
    server.publish(&tick("first", 0));
    let mut wires: Vec<_> =
        (0..300).map(|n| ask(&server, &format!("after_id={}&wait=50s&session_id=s{n}", id_of(1)))).collect();
    let mut everybody: Vec<_> = (0..50).map(|_| ask(&server, &format!("after_id={}&wait=50s", id_of(1)))).collect();
    server.publish(&tick("somebody", 0));
    for wire in &mut everybody {
        assert_eq!(answered(wire), [2]);
    }
    server.publish_lines(&(0..300).map(|n| tick(&format!("s{n}"), n)).collect::<Vec<_>>());
    for (wire, place) in wires.iter_mut().zip(3..) {
        assert_eq!(answered(wire), [place]);
    }
    assert_eq!(server.get_json("/stats")["router"]["active_subscribers"], 0, "who has an answer has no place any more");
}

#[test]
fn a_long_poll_is_answered_even_when_its_outbox_overflows() {
    let server = Server::with(&[("MAX_SUBSCRIBER_BYTES", "64 KiB")]);
    server.publish(&tick("first", 0));
    let mut publisher = server.publisher();
    let mut last = 1;
    let filler = "x".repeat(8_000);
    let large = json!({"event_type": "timer_tick", "source": "s", "payload": {"filler": filler}}).to_string();
    // It is up to the scheduler whether an outbox overflows before its waiter wakes, so this is tried often.
    for _ in 0..100 {
        let mut wires: Vec<_> = (0..8).map(|_| ask(&server, &format!("after_id={}&wait=55s", id_of(last)))).collect();
        server.await_stats("everybody to wait", |stats| stats["router"]["active_subscribers"] == 8);
        acknowledged(&publisher.pipeline(&vec![large.clone(); 60]));
        for wire in &mut wires {
            assert_eq!(answered(wire).first(), Some(&(last + 1)));
        }
        last += 60;
    }
}

#[test]
fn a_long_poll_takes_a_subscriber_slot_until_it_is_answered() {
    let server = Server::with(&[("MAX_SUBSCRIBERS", "2"), ("KEEPALIVE_SECONDS", "600")]);
    server.publish(&tick("s", 0));
    let waiting = format!("after_id={}&wait=55s", id_of(1));
    let count = |count: usize| {
        server.await_stats("as many subscribers", |stats| stats["router"]["active_subscribers"] == count);
    };
    let mut wires = [ask(&server, &waiting), ask(&server, &waiting)];
    count(2);
    let refused = server.get(&format!("/events?{waiting}"));
    refused.refusal(503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    server.get("/events/stream").refusal(503);
    for nothing in ["0", "0ms"] {
        let query = format!("after_id={}&wait={nothing}", id_of(1));
        assert!(page(&server, &query).0.is_empty(), "who does not wait needs no place");
    }
    assert_eq!(page(&server, &format!("after_id={}&wait=55s", id_of(0))).0, [1], "what is there is not waited for");

    // A request ends when its client is gone or has ended its side.
    let [first, second] = &mut wires;
    first.finish();
    count(1);
    first.await_close();
    let mut third = ask(&server, &waiting);
    count(2);
    server.publish(&tick("s", 0));
    assert_eq!((answered(second), answered(&mut third)), (vec![2], vec![2]));
    count(0);
    drop(ask(&server, &format!("after_id={}&wait=55s", id_of(2))));
    count(0);
}

#[test]
fn a_shutdown_ends_long_polls() {
    // There is one thread, so the first request is being answered once a later one has its answer.
    let mut server = Server::with(&[("SHUTDOWN_TIMEOUT_SECONDS", "600"), ("NETWORK_THREADS", "1")]);
    server.publish(&tick("s", 0));
    let mut wires: Vec<_> = (0..20).map(|_| ask(&server, &format!("after_id={}&wait=55s", id_of(1)))).collect();
    for _ in 0..3 {
        server.get_json("/stats");
    }
    server.signal("TERM");
    for wire in &mut wires {
        assert!(answered(wire).is_empty());
        wire.await_close();
    }
    server.await_exit_0();
}
