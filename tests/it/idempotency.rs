//! Exactly-once publishing: keys in headers and in events, over HTTP and WebSockets; repeats, and other events under the
//! same key.

use std::sync::Mutex;

use serde_json::{Value, json};

use crate::support::*;

fn keyed(key: &str, n: usize) -> String {
    json!({"event_type": "timer_tick", "source": "it", "session_id": "s", "payload": {"n": n}, "idempotency_key": key})
        .to_string()
}

fn total(server: &Server) -> u64 {
    server.get_json("/stats")["total_events"].as_u64().unwrap()
}

fn with_key(server: &Server, key: &str, body: &str) -> Response {
    server.call("POST", "/events", &[JSON, ("Idempotency-Key", key)], body.as_bytes())
}

#[test]
fn a_repeat_gets_the_first_answer_and_stores_nothing() {
    let mut server = Server::start();
    let first = with_key(&server, "order-1", &tick("s", 1));
    assert_eq!((first.status, first.header("idempotent-replayed")), (201, None));
    server.publish(&tick("s", 2));
    for life in 0..2 {
        let again = with_key(&server, "order-1", &tick("s", 1));
        assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")), "life {life}");
        assert_eq!(again.text(), first.text());
        // The same key in the field: a header and a field with equal texts are one key.
        let field = server.call("POST", "/events", &[JSON], keyed("order-1", 1).as_bytes());
        assert_eq!((field.status, field.text()), (200, first.text()));
        assert_eq!(total(&server), 2);
        server.stop();
        server.restart();
    }
}

#[test]
fn another_event_under_the_same_key_is_refused() {
    let server = Server::start();
    assert_eq!(with_key(&server, "k", &tick("s", 1)).status, 201);
    let others = [
        tick("s", 2),
        tick("t", 1),
        tick("s", 1).replace("timer_tick", "quiz_started"),
        tick("s", 1).replace("\"it\"", "\"other\""),
        tick("s", 1).replace("{\"event_type\"", "{\"user_id\":\"u\",\"event_type\""),
        format!("[{}]", tick("s", 2)),
        format!("[{},{}]", tick("s", 1), tick("s", 1)),
    ];
    for other in others {
        let refused = with_key(&server, "k", &other);
        assert_eq!(refused.status, 422, "{other}");
        let detail = &refused.json()["detail"][0];
        assert_eq!(detail["loc"], json!(["header", "Idempotency-Key"]));
        assert_eq!(detail["msg"], "The idempotency key was used for another event");
    }
    let refused = server.call("POST", "/events", &[JSON], keyed("k", 2).as_bytes());
    assert_eq!((refused.status, &refused.json()["detail"][0]["loc"]), (422, &json!(["body", "idempotency_key"])));
    assert_eq!(total(&server), 1);
}

#[test]
fn a_request_with_many_events_is_repeated_as_a_whole() {
    let server = Server::start();
    let lines = ticks("s", 3).join("\n");
    let publish =
        |key: &str, body: &str| server.call("POST", "/events", &[NDJSON, ("Idempotency-Key", key)], body.as_bytes());
    let first = publish("batch", &lines);
    assert_eq!(first.status, 201);
    server.publish(&tick("s", 9));
    let again = publish("batch", &lines);
    assert_eq!((again.status, again.header("idempotent-replayed"), again.text()), (200, Some("true"), first.text()));
    for other in [ticks("s", 2).join("\n"), ticks("s", 4).join("\n"), ticks("t", 3).join("\n")] {
        assert_eq!(publish("batch", &other).status, 422, "{other}");
    }
    assert_eq!(total(&server), 4);
}

#[test]
fn in_an_array_each_event_may_have_its_key() {
    let server = Server::start();
    let post = |events: &[String]| server.post(format!("[{}]", events.join(",")));
    let first = post(&[keyed("a", 1), tick("s", 2), keyed("c", 3)]).json();
    assert_eq!(first["ids"], json!([id_of(1), id_of(2), id_of(3)]));
    // Some of the keys are known, others are new, and one event has no key.
    let mixed = post(&[keyed("b", 4), keyed("a", 1), tick("s", 5), keyed("c", 3), keyed("b", 4)]);
    assert_eq!((mixed.status, mixed.header("idempotent-replayed")), (201, None));
    let mixed = mixed.json();
    assert_eq!(mixed["ids"], json!([id_of(4), id_of(1), id_of(5), id_of(3), id_of(4)]));
    assert_eq!(mixed["count"], 5);
    // One event that differs from the one under its key has the whole array refused.
    let refused = post(&[keyed("new", 6), keyed("a", 7)]);
    assert_eq!(refused.status, 422);
    assert_eq!(refused.json()["detail"][0]["loc"], json!(["body", 1, "idempotency_key"]));
    let refused = post(&[keyed("twice", 6), keyed("twice", 7)]);
    assert_eq!((refused.status, total(&server)), (422, 5));
    assert_eq!(post(&[keyed("new", 7)]).json()["ids"], json!([id_of(6)]), "a refused array left no key behind");
    let both = server.call("POST", "/events", &[JSON, ("Idempotency-Key", "k")], keyed("a", 1).as_bytes());
    assert_eq!(both.status, 422);
}

#[test]
fn an_invalid_key_is_refused() {
    let server = Server::start();
    for (key, status) in [("x".repeat(200), 201), ("x".repeat(201), 422), ("ü".repeat(200), 201), (String::new(), 422)]
    {
        assert_eq!(with_key(&server, &key, &tick("s", 1)).status, status, "{} bytes", key.len());
        let field = server.call("POST", "/events", &[JSON], keyed(&key, 1).as_bytes());
        assert_eq!(field.status, if status == 201 { 200 } else { 422 });
    }
    for bad in ["7", "[]", "{}", "true"] {
        let event = keyed("k", 1).replace("\"k\"", bad);
        let refused = server.post(&event);
        assert_eq!((refused.status, &refused.json()["detail"][0]["loc"]), (422, &json!(["body", "idempotency_key"])));
    }
    server.publish(&keyed("k", 1).replace("\"k\"", "null"));
}

#[test]
fn on_a_websocket_repeats_are_answered_in_the_order_of_messages() {
    let server = Server::start();
    let mut subscriber = server.subscriber(&json!({}));
    let mut socket = server.publisher();
    let messages = [
        keyed("a", 1),
        tick("s", 2),
        keyed("a", 1),
        keyed("a", 2),
        format!("[{},{}]", keyed("b", 3), keyed("a", 1)),
        format!("[{},{}]", keyed("c", 4), keyed("b", 5)),
        keyed("c", 6).replace("\"source\"", "\"ref\":\"r\",\"source\""),
        keyed("c", 7).replace("\"source\"", "\"ref\":\"r\",\"source\""),
    ];
    let answers = socket.pipeline(&messages);
    let used = "The idempotency key was used for another event";
    assert_eq!(answers[0], json!({"status": "ok", "event_id": id_of(1)}));
    assert_eq!(answers[1], json!({"status": "ok", "event_id": id_of(2)}));
    assert_eq!(answers[2], json!({"status": "ok", "event_id": id_of(1), "replayed": true}));
    assert_eq!(answers[3], json!({"status": "error", "message": used}));
    assert_eq!(answers[4], json!({"status": "ok", "event_ids": [id_of(3), id_of(1)], "replayed": 1}));
    assert_eq!(answers[5], json!({"status": "error", "message": format!("Event 1: {used}")}));
    assert_eq!(answers[6], json!({"status": "ok", "event_id": id_of(4), "ref": "r"}));
    assert_eq!(answers[7], json!({"status": "error", "message": used, "ref": "r"}));
    // Only new events are delivered, and their bytes are the stored ones.
    for n in 1..=4 {
        let delivered = subscriber.text();
        assert_eq!(delivered, server.get(&format!("/events/{}", id_of(n))).text());
    }
    server.publish(&tick("s", 8));
    assert_eq!(sequence(&subscriber.json()["id"]), 5);
}

#[test]
fn of_many_simultaneous_repeats_one_is_stored() {
    let server = Server::start();
    let answers = Mutex::new(Vec::new());
    in_parallel(8, |_| {
        let mut socket = server.publisher();
        let ids = (0..50).map(|n| text_of(&socket.ask(&keyed(&format!("key-{n}"), n))["event_id"])).collect::<Vec<_>>();
        answers.lock().unwrap().push(ids);
    });
    let answers = answers.into_inner().unwrap();
    assert!(answers.iter().all(|ids| *ids == answers[0]), "everybody was told of the same events");
    assert_eq!(total(&server), 50);
}

#[test]
fn a_key_is_stored_as_long_as_its_event() {
    let mut server = Server::start();
    let ids = |body: &str, server: &Server| server.post(body).json()["ids"].clone();
    for n in 0..6 {
        server.publish(&keyed(&format!("k{n}"), n));
    }
    let before = text_of(&server.get_json(&format!("/events/{}", id_of(3)))["timestamp"]);
    assert_eq!(server.call("DELETE", &format!("/events?before={before}"), &[], b"").json(), json!({"deleted": 2}));
    assert_eq!(
        server.call("DELETE", "/events?filter=%7B%22payload%22:%7B%22n%22:4%7D%7D", &[], b"").json(),
        json!({"deleted": 1})
    );
    server.stop();
    server.restart();
    let all = (0..6).map(|n| keyed(&format!("k{n}"), n)).collect::<Vec<_>>().join(",");
    assert_eq!(ids(&format!("[{all}]"), &server), json!([id_of(7), id_of(8), id_of(3), id_of(4), id_of(9), id_of(6)]));
    assert_eq!(server.call("DELETE", "/events", &[], b"").json(), json!({"deleted": 6}));
    assert_eq!(ids(&format!("[{all}]"), &server)[0], id_of(10));
}

/// Deletes the event of session `s` with this number in its payload.
fn delete_number(server: &Server, n: usize) {
    let filter = json!({"session_id": "s", "payload": {"n": n}}).to_string();
    let deleted = server.call("DELETE", &format!("/events?filter={}", encode(&filter)), &[], b"");
    assert_eq!(deleted.json(), json!({"deleted": 1}));
}

#[test]
fn the_key_of_a_request_is_stored_until_the_last_of_its_events_is_deleted() {
    let mut server = Server::start();
    let publish = |server: &Server, lines: &[String]| {
        server.call("POST", "/events", &[NDJSON, ("Idempotency-Key", "batch")], lines.join("\n").as_bytes())
    };
    let lines = ticks("s", 4);
    let first = publish(&server, &lines);
    assert_eq!(first.status, 201);
    let is_known = |server: &Server| {
        let again = publish(server, &lines);
        assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")));
        assert_eq!(again.text(), first.text(), "with the ids of those that are deleted");
        for other in [ticks("t", 4), ticks("s", 3), ticks("s", 5)] {
            assert_eq!(publish(server, &other).status, 422, "{other:?}");
        }
    };
    delete_number(&server, 0);
    is_known(&server);
    delete_number(&server, 3);
    is_known(&server);
    // One is deleted as the oldest event.
    let last = text_of(&server.get_json(&format!("/events/{}", id_of(3)))["timestamp"]);
    assert_eq!(server.call("DELETE", &format!("/events?before={last}"), &[], b"").json(), json!({"deleted": 1}));
    is_known(&server);
    server.stop();
    server.restart();
    is_known(&server);
    assert_eq!(total(&server), 1);
    delete_number(&server, 2);
    let anew = publish(&server, &lines);
    assert_eq!((anew.status, &anew.json()["first_id"]), (201, &json!(id_of(5))));
}

#[test]
fn an_event_repeated_after_a_crash_is_stored_once() {
    let mut server = Server::start();
    let mut dice = Random::seeded();
    for round in 0..6 {
        // The connection breaks before the answer is read, so the producer does not know the outcome.
        let mut socket = server.publisher();
        let events: Vec<_> = (0..200).map(|n| keyed(&format!("r{round}-{n}"), n)).collect();
        send_all(socket.stream(), &events);
        let heard = dice.below(200) as usize;
        acknowledged(&socket.collect(heard));
        server.kill();
        server.restart();
        let answers = server.publisher().pipeline(&events);
        let mut seqs = acknowledged(&answers);
        seqs.dedup();
        assert_eq!(seqs.len(), 200);
        assert!(answers[..heard].iter().all(|answer| answer["replayed"] == true), "what was acknowledged is known");
        assert_eq!(total(&server), (round + 1) * 200);
    }
}

#[test]
fn a_repeated_cloud_event_is_stored_once() {
    let server = Server::start();
    let event = json!({"specversion": "1.0", "id": "7", "source": "it", "type": "timer_tick", "data": {"n": 1}});
    let publish = |event: &Value| {
        let headers = [("Content-Type", "application/cloudevents+json")];
        server.call("POST", "/events", &headers, event.to_string().as_bytes())
    };
    assert_eq!(publish(&event).status, 201);
    let again = publish(&event);
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")));
    let mut other = event.clone();
    other["data"]["n"] = 2.into();
    assert_eq!(publish(&other).status, 422);
    other["id"] = "8".into();
    assert_eq!(publish(&other).status, 201);
}
