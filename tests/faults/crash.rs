//! Kill the process at any instant: every acknowledged event is there, once, under the id it was given.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::support::*;

/// What the producers were told, across all lives of the server.
#[derive(Default)]
struct Told {
    /// Token of an event → the id it was acknowledged with.
    acknowledged: Mutex<HashMap<String, u64>>,
    count: AtomicU64,
}

impl Told {
    fn note(&self, token: String, id: &Value) {
        let before = self.acknowledged.lock().unwrap().insert(token, sequence(id));
        assert!(before.is_none(), "a token is published once");
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

fn tokened(token: &str) -> String {
    json!({"event_type": "timer_tick", "source": "crash", "session_id": token.split('/').next(), "payload": {"token": token}}).to_string()
}

/// Publishes one event a message without waiting, until the server dies.
fn publish_messages(server: &Server, name: &str, told: &Told) {
    let mut publisher = server.publisher();
    let messages: Vec<_> = (0..100_000).map(|n| tokened(&format!("{name}/{n}"))).collect();
    let stream = publisher.stream().try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| send_all(&stream, &messages));
        let mut n = 0;
        while let Said::Text(answer) = publisher.hear() {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["status"], "ok", "{answer}");
            told.note(format!("{name}/{n}"), &answer["event_id"]);
            n += 1;
        }
    });
}

/// Publishes arrays one after the other, until the server dies.
fn publish_arrays(server: &Server, name: &str, told: &Told) {
    let mut publisher = server.publisher();
    for array in 0.. {
        let tokens: Vec<_> = (0..20).map(|n| format!("{name}/{array}-{n}")).collect();
        let events: Vec<_> = tokens.iter().map(|token| tokened(token)).collect();
        publisher.send(&format!("[{}]", events.join(",")));
        let Said::Text(answer) = publisher.hear() else { return };
        let answer: Value = serde_json::from_str(&answer).unwrap();
        for (token, id) in tokens.into_iter().zip(answer["event_ids"].as_array().unwrap()) {
            told.note(token, id);
        }
    }
}

/// Publishes over HTTP, pipelined by four, until the server dies.
fn publish_requests(server: &Server, name: &str, told: &Told) {
    let mut wire = Wire::connect(server.addr);
    for group in 0.. {
        let tokens: Vec<_> = (0..4).map(|n| format!("{name}/{group}-{n}")).collect();
        wire.send(
            tokens
                .iter()
                .flat_map(|token| request("POST", "/events", &[JSON], tokened(token).as_bytes()))
                .collect::<Vec<_>>(),
        );
        for token in tokens {
            let Some(response) = wire.response() else { return };
            assert_eq!(response.status, 201, "{}", response.text());
            told.note(token, &response.json()["id"]);
        }
    }
}

/// Holds everything stored against everything told.
fn check(server: &Server, told: &Told) {
    let stored = server.stored("");
    let mut tokens: HashMap<String, u64> = HashMap::new();
    for (event, place) in stored.iter().zip(1..) {
        assert_eq!(sequence(&event["id"]), place, "ids are dense");
        let token = text_of(&event["payload"]["token"]);
        assert_eq!(tokens.insert(token, place), None, "an event is stored once");
    }
    for (token, id) in told.acknowledged.lock().unwrap().iter() {
        assert_eq!(tokens.get(token), Some(id), "{token} was acknowledged as {id}");
    }
    let timestamps: Vec<_> = stored.iter().map(timestamp).collect();
    assert!(timestamps.is_sorted_by(|a, b| a < b), "timestamps increase across the crash");

    let stats = server.get_json("/stats");
    assert_eq!(stats["total_events"], stored.len());
    let in_types: u64 = stats["by_type"].as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum();
    assert_eq!(in_types, stored.len() as u64);

    // The index answers as a scan would, for the sessions of this life and the first one.
    let sessions: HashSet<_> = stored.iter().map(|event| text_of(&event["session_id"])).collect();
    for session in sessions {
        let scanned: Vec<_> = stored.iter().filter(|event| event["session_id"] == json!(session)).cloned().collect();
        assert!(server.stored(&format!("session_id={session}")) == scanned, "session {session}");
    }
}

#[test]
fn at_random_moments_loses_nothing_acknowledged() {
    let mut dice = Dice::thrown();
    let mut server = Server::start();
    let told = Told::default();
    for life in 0..8 {
        let enough = told.count.load(Ordering::Relaxed) + dice.below(4000);
        thread::scope(|scope| {
            let (server, told) = (&server, &told);
            for socket in 0..3 {
                scope.spawn(move || publish_messages(server, &format!("message{life}{socket}"), told));
            }
            scope.spawn(move || publish_arrays(server, &format!("array{life}"), told));
            scope.spawn(move || publish_requests(server, &format!("request{life}"), told));
            await_true("enough acknowledgements", || told.count.load(Ordering::Relaxed) >= enough);
            server.signal("KILL");
        });
        server.kill();
        server.restart();
        check(&server, &told);
    }
    server.stop();
    let database = rusqlite::Connection::open(server.db_path()).unwrap();
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

#[test]
fn never_reuses_an_id() {
    let mut server = Server::start();
    let mut highest = 0;
    let mut publish = |server: &Server| {
        let ids: Vec<u64> = server.publish_lines(&ticks("s", 5)).iter().map(|id| sequence(&json!(id))).collect();
        assert_eq!(ids, (highest + 1..=highest + 5).collect::<Vec<_>>(), "dense, and never again");
        highest += 5;
    };
    publish(&server);
    for end in [Server::kill, Server::stop] {
        // Everything deleted.
        assert_eq!(server.call("DELETE", "/events", &[], b"").json()["deleted"], 5);
        end(&mut server);
        server.restart();
        assert_eq!(server.get_json("/events"), json!([]), "a deletion survives");
        publish(&server);
        // The newest survive, then nothing is left but the mark.
        let last = server.get_json("/events?limit=1")[0]["timestamp"].clone();
        let deleted = server.call("DELETE", &format!("/events?before={}", encode(&text_of(&last))), &[], b"").json();
        assert_eq!(deleted["deleted"], 4);
        end(&mut server);
        server.restart();
        assert_eq!(server.get_json("/events").as_array().unwrap().len(), 1);
        assert_eq!(server.call("DELETE", "/events", &[], b"").json()["deleted"], 1);
        end(&mut server);
        server.restart();
        end(&mut server);
        server.restart();
        publish(&server);
    }
}

#[test]
fn during_a_deletion_leaves_an_unbroken_rest() {
    let mut dice = Dice::thrown();
    let mut server = Server::start();
    let mut published = 0;
    for _ in 0..5 {
        server.publish_lines(&ticks("s", 4000));
        published += 4000;
        let before = server.stored("");
        let boundary = dice.below(before.len() as u64) as usize;
        let target = format!("/events?before={}", encode(&timestamp(&before[boundary])));
        let mut wire = Wire::connect(server.addr);
        wire.send(request("DELETE", &target, &[], b""));
        server.kill();
        server.restart();

        // A deletion that was never answered may have gone part of the way, from the oldest on, and no further.
        let after = server.stored("");
        let gone = before.len() - after.len();
        assert!(gone <= boundary && after == before[gone..], "{gone} are gone, {boundary} were to go");
        assert_eq!(server.get_json("/stats")["total_events"], after.len());
        assert_eq!(sequence(&after.last().unwrap()["id"]), published);
    }
}

#[test]
fn leaves_subscribers_a_place_to_go_on_from() {
    let mut server = Server::start();
    let mut seen = 0;
    for life in 0..4 {
        let told = Told::default();
        let mut subscriber = server.subscriber(&json!({"after": id_of(seen)}));
        thread::scope(|scope| {
            let (server, told) = (&server, &told);
            scope.spawn(move || publish_messages(server, &format!("life{life}"), told));
            for event in subscriber.collect(2000) {
                seen += 1;
                assert_eq!(sequence(&event["id"]), seen, "no gap and no repeat");
            }
            // All of that may have been stored in the life before.
            await_true("the producer of this life", || told.count.load(Ordering::Relaxed) > 0);
            server.signal("KILL");
        });
        // What still arrives was committed, and belongs to the sequence as well.
        while let Said::Text(event) = subscriber.hear() {
            seen += 1;
            assert_eq!(sequence(&serde_json::from_str::<Value>(&event).unwrap()["id"]), seen);
        }
        server.kill();
        server.restart();
        assert!(server.get_json("/stats")["total_events"].as_u64().unwrap() >= seen, "delivered is stored");
    }
}
