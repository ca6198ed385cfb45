//! SIGKILL at any instant: every acknowledged event is stored once, under the id it was acknowledged with.

use std::collections::{HashMap, HashSet};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::faulty_disk::*;
use super::lives::*;
use super::producers::{Producer, Way};
use super::record::{Loss, Record};
use crate::support::*;

/// The acknowledgements of all producers, over all lives of the server.
#[derive(Default)]
struct Acknowledgements {
    /// Token of an event → the sequence number it was acknowledged with.
    by_token: Mutex<HashMap<String, u64>>,
    count: AtomicU64,
}

impl Acknowledgements {
    fn note(&self, token: String, id: &Value) {
        let before = self.by_token.lock().unwrap().insert(token, sequence(id));
        assert!(before.is_none(), "a token is published once");
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the producer with this name got an acknowledgement.
    fn has_any_of(&self, name: &str) -> bool {
        self.by_token.lock().unwrap().keys().any(|token| token.split('/').next() == Some(name))
    }
}

fn tokened(token: &str) -> String {
    json!({"event_type": "timer_tick", "source": "crash", "session_id": token.split('/').next(), "payload": {"token": token}}).to_string()
}

/// Publishes one event a message until the server dies, without waiting for answers.
fn publish_messages(server: &Server, name: &str, acknowledgements: &Acknowledgements) {
    let mut publisher = server.publisher();
    let messages: Vec<_> = (0..100_000).map(|n| tokened(&format!("{name}/{n}"))).collect();
    let stream = publisher.stream().try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| send_all(&stream, &messages));
        let mut n = 0;
        while let Received::Text(answer) = publisher.receive() {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["status"], "ok", "{answer}");
            acknowledgements.note(format!("{name}/{n}"), &answer["event_id"]);
            n += 1;
        }
    });
}

/// Publishes one array after the other until the server dies, each once the one before it is answered.
fn publish_arrays(server: &Server, name: &str, acknowledgements: &Acknowledgements) {
    let mut publisher = server.publisher();
    for array in 0.. {
        let tokens: Vec<_> = (0..20).map(|n| format!("{name}/{array}-{n}")).collect();
        let events: Vec<_> = tokens.iter().map(|token| tokened(token)).collect();
        publisher.send(&format!("[{}]", events.join(",")));
        let Received::Text(answer) = publisher.receive() else { return };
        let answer: Value = serde_json::from_str(&answer).unwrap();
        for (token, id) in tokens.into_iter().zip(answer["event_ids"].as_array().unwrap()) {
            acknowledgements.note(token, id);
        }
    }
}

/// Publishes over HTTP until the server dies, with four requests in a pipeline.
fn publish_requests(server: &Server, name: &str, acknowledgements: &Acknowledgements) {
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
            acknowledgements.note(token, &response.json()["id"]);
        }
    }
}

/// Checks everything that is stored against the acknowledgements.
fn check(server: &Server, acknowledgements: &Acknowledgements) {
    let stored = server.stored("");
    let mut tokens: HashMap<String, u64> = HashMap::new();
    for (event, place) in stored.iter().zip(1..) {
        assert_eq!(sequence(&event["id"]), place, "ids are dense");
        let token = text_of(&event["payload"]["token"]);
        assert_eq!(tokens.insert(token, place), None, "an event is stored once");
    }
    for (token, id) in acknowledgements.by_token.lock().unwrap().iter() {
        assert_eq!(tokens.get(token), Some(id), "{token} was acknowledged as {id}");
    }
    let timestamps: Vec<_> = stored.iter().map(timestamp).collect();
    assert!(timestamps.is_sorted_by(|a, b| a < b), "timestamps increase across the crash");

    let stats = server.get_json("/stats");
    assert_eq!(stats["total_events"], stored.len());
    let in_types: u64 = stats["by_type"].as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum();
    assert_eq!(in_types, stored.len() as u64);

    // A query through the index finds what a scan finds, for every session.
    let sessions: HashSet<_> = stored.iter().map(|event| text_of(&event["session_id"])).collect();
    for session in sessions {
        let scanned: Vec<_> = stored.iter().filter(|event| event["session_id"] == json!(session)).cloned().collect();
        assert!(server.stored(&format!("session_id={session}")) == scanned, "session {session}");
    }
}

#[test]
fn a_kill_at_a_random_moment_loses_nothing_acknowledged() {
    let mut dice = Random::seeded();
    let mut server = Server::start();
    let acknowledgements = Acknowledgements::default();
    // At most eight lives: each check reads everything that all lives before have stored.
    for life in 0..rounds(8).min(8) {
        let enough = acknowledgements.count.load(Ordering::Relaxed) + dice.below(4000);
        thread::scope(|scope| {
            let (server, acknowledgements) = (&server, &acknowledgements);
            for socket in 0..3 {
                scope.spawn(move || publish_messages(server, &format!("message{life}{socket}"), acknowledgements));
            }
            scope.spawn(move || publish_arrays(server, &format!("array{life}"), acknowledgements));
            scope.spawn(move || publish_requests(server, &format!("request{life}"), acknowledgements));
            let names = ["message{life}0", "message{life}1", "message{life}2", "array{life}", "request{life}"];
            let names = names.map(|name| name.replace("{life}", &life.to_string()));
            await_true("acknowledgements for each", || names.iter().all(|name| acknowledgements.has_any_of(name)));
            await_true("enough acknowledgements", || acknowledgements.count.load(Ordering::Relaxed) >= enough);
            server.signal("KILL");
        });
        server.kill();
        server.restart();
        check(&server, &acknowledgements);
    }
    server.stop();
    let database = rusqlite::Connection::open(server.db_path()).unwrap();
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

#[test]
fn an_id_is_never_used_again_after_a_kill_or_a_stop() {
    let mut server = Server::start();
    let mut highest = 0;
    let mut publish = |server: &Server| {
        let ids: Vec<u64> = server.publish_lines(&ticks("s", 5)).iter().map(|id| sequence(&json!(id))).collect();
        assert_eq!(ids, (highest + 1..=highest + 5).collect::<Vec<_>>(), "dense, and never again");
        highest += 5;
    };
    publish(&server);
    for end in [Server::kill, Server::stop] {
        // Everything is deleted.
        assert_eq!(server.call("DELETE", "/events", &[], b"").json()["deleted"], 5);
        end(&mut server);
        server.restart();
        assert_eq!(server.get_json("/events"), json!([]), "a deletion survives the restart");
        publish(&server);
        // First the newest event survives, then only the high-water mark is left.
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
fn a_kill_during_a_deletion_leaves_the_newest_events_without_a_gap() {
    let mut dice = Random::seeded();
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

        // A deletion that was never answered may have deleted some of the events from the oldest on, and no others.
        let after = server.stored("");
        let gone = before.len() - after.len();
        assert!(gone <= boundary && after == before[gone..], "{gone} events are gone, {boundary} were to be deleted");
        assert_eq!(server.get_json("/stats")["total_events"], after.len());
        assert_eq!(sequence(&after.last().unwrap()["id"]), published);
    }
}

#[test]
fn subscribers_resume_after_a_kill_without_gap_or_repeat() {
    let mut server = Server::start();
    let mut seen = 0;
    for life in 0..4 {
        let acknowledgements = Acknowledgements::default();
        let mut subscriber = server.subscriber(&json!({"after": id_of(seen)}));
        thread::scope(|scope| {
            let (server, acknowledgements) = (&server, &acknowledgements);
            scope.spawn(move || publish_messages(server, &format!("life{life}"), acknowledgements));
            for event in subscriber.collect(2000) {
                seen += 1;
                assert_eq!(sequence(&event["id"]), seen, "no gap and no repeat");
            }
            // All events received so far may have been stored in the life before.
            await_true("the producer of this life", || acknowledgements.count.load(Ordering::Relaxed) > 0);
            server.signal("KILL");
        });
        // Events that still arrive after the kill were committed before it, and continue without a gap.
        while let Received::Text(event) = subscriber.receive() {
            seen += 1;
            assert_eq!(sequence(&serde_json::from_str::<Value>(&event).unwrap()["id"]), seen);
        }
        server.kill();
        server.restart();
        assert!(server.get_json("/stats")["total_events"].as_u64().unwrap() >= seen, "every delivered event is stored");
    }
}

/// Kills at the first, second, third … change of the files after the producers begin to publish.
#[test]
fn a_kill_at_each_change_of_a_file_loses_nothing_acknowledged() {
    let test = "a_kill_at_each_change_of_a_file_loses_nothing_acknowledged";
    let mut lives = None;
    for nth in 1..=rounds(40) {
        if nth % LIVES_OF_A_FILE == 1 {
            lives = Lives::begin(test, KILLS, "full", tempfile::tempdir().unwrap());
        }
        let Some(lives) = &mut lives else { return };
        let name = if nth % 3 == 0 { "keyed" } else { "plain" };
        let producers = lives.producers(&[WAYS[nth as usize % 4]], name, &[None, Some("stored"), Some("synced")]);
        lives.end_at(nth, CHANGE, "");
        lives.publish(producers, 100_000, |_| ());
        lives.next(Loss::Nothing);
    }
}

#[test]
fn a_kill_while_clients_publish_delete_and_confirm_loses_nothing_acknowledged() {
    let test = "a_kill_while_clients_publish_delete_and_confirm_loses_nothing_acknowledged";
    for durability in ["full", "normal", "off"] {
        let mut lives = None;
        for round in 0..rounds(15) {
            if round % LIVES_OF_A_FILE == 0 {
                lives = Lives::begin(test, KILLS, durability, tempfile::tempdir().unwrap());
            }
            let Some(lives) = &mut lives else { return };
            lives.live(&[None, Some("stored"), Some("synced"), Some("queued")], Loss::Nothing);
        }
    }
}

#[test]
fn a_kill_during_deletions_deletes_no_other_events() {
    let test = "a_kill_during_deletions_deletes_no_other_events";
    let Some(mut lives) = Lives::begin(test, KILLS, "full", tempfile::tempdir().unwrap()) else { return };
    for nth in 1..=rounds(20) {
        // A deletion by filter deletes at most 512 events in a commit: these take several.
        let producers = lives.producers(&[Way::Lines], "plain", &[None]);
        lives.publish(producers, 1_500, |_| ());
        lives.server.kill();
        lives.server.restart();
        lives.record.check(&lives.server, Loss::Nothing);
        let producers = lives.producers(&[Way::Messages], "keyed", &[None]);
        let session = (nth % 3 != 0).then(|| lives.dice.below(7));
        let boundary = lives.record.known() - 1 - lives.dice.below(500) as usize;
        let wire = Wire::connect(lives.server.addr);
        lives.end_at(nth * 3, CHANGE, "");
        lives.publish(producers, 100_000, |record| record.delete(wire, session, boundary));
        lives.next(Loss::Nothing);
    }
}

#[test]
fn a_kill_while_a_segment_is_sealed_leaves_an_index_that_agrees_with_the_rows() {
    let test = "a_kill_while_a_segment_is_sealed_leaves_an_index_that_agrees_with_the_rows";
    let full = nearly_full_segment(2_000);
    let session = |n| session_of(2_000, n);
    for nth in 1..=rounds(12) {
        let Some(mut lives) = Lives::begin(test, KILLS, "full", copy_of(&full)) else { return };
        for _ in 0..2 {
            let producers = lives.producers(&[Way::Messages, Way::Requests], "plain", &[None]);
            // The kills fall between the last commits before the segment is full and the last slice of its posting
            // lists.
            lives.end_at(nth * 23, CHANGE, "");
            lives.publish(producers, 100_000, |_| ());
            lives.next(Loss::Nothing);
            for n in [0, 1, 1_499, 1_999] {
                let wanted = format!("\"session_id\":\"{}\"", session(n));
                let scanned: Vec<_> = lives.record.lines().filter(|line| line.contains(&wanted)).cloned().collect();
                assert_eq!(lives.server.stored_lines(&format!("session_id={}", session(n))), scanned);
            }
        }
    }
}

#[test]
fn a_kill_during_a_checkpoint_loses_nothing_acknowledged() {
    let test = "a_kill_during_a_checkpoint_loses_nothing_acknowledged";
    let mut lives = None;
    for round in 1..=rounds(16) {
        if round % 4 == 1 {
            lives = Lives::begin(test, KILLS, "full", tempfile::tempdir().unwrap());
        }
        let Some(lives) = &mut lives else { return };
        let producers = lives.producers(&WAYS, "large", &[None]);
        // Only a checkpoint writes to the database file itself. The first one comes after about 140 of these events.
        let nth = if round % 2 == 0 { round / 2 } else { lives.dice.below(900) };
        lives.end_at(nth, CHANGE, "events.db");
        lives.publish(producers, 150, |_| ());
        if lives.disk.fired() == 0 {
            lives.server.signal("TERM");
        }
        lives.next(Loss::Nothing);
    }
}

/// Kills at the first, second, third … change that a start makes, until a start completes before its kill.
#[test]
fn a_kill_during_a_start_leaves_a_file_that_starts() {
    let test = "a_kill_during_a_start_leaves_a_file_that_starts";
    let Some(mut lives) = Lives::begin(test, KILLS, "full", tempfile::tempdir().unwrap()) else { return };
    let mut starts = 0;
    for nth in 1.. {
        let producers = lives.producers(&WAYS, "keyed", &[None]);
        lives.end_at(20, CHANGE, "");
        lives.publish(producers, 100_000, |_| ());
        lives.server.await_exit();
        lives.end_at(nth, CHANGE, "");
        let has_started = lives.disk.survives_start(&mut lives.server);
        if !has_started {
            lives.server.restart();
        }
        lives.record.check(&lives.server, Loss::Nothing);
        starts = nth;
        if has_started {
            break;
        }
    }
    assert!(starts > 5, "a start changes more than that");
}

#[test]
fn a_kill_while_the_file_is_created_leaves_a_file_that_starts() {
    let test = "a_kill_while_the_file_is_created_leaves_a_file_that_starts";
    kill_during_starts(test, KILLS, |_| (), |server, record| record.check(server, Loss::Nothing));
}

#[test]
fn a_kill_during_an_upgrade_keeps_every_event() {
    let test = "a_kill_during_an_upgrade_keeps_every_event";
    kill_during_starts(test, KILLS, python_database, |server, record| {
        record.adopt(server);
        must_hold_the_python_events(server);
    });
}

/// The confirmed position of the one durable subscription.
fn position(server: &Server) -> u64 {
    let position = &server.get_json("/subscriptions")[0]["position"];
    if position.is_null() { 0 } else { sequence(position) }
}

#[test]
fn a_kill_delivers_confirmed_events_again_and_leaves_none_out() {
    let test = "a_kill_delivers_confirmed_events_again_and_leaves_none_out";
    let Some(mut lives) = Lives::begin(test, KILLS, "full", tempfile::tempdir().unwrap()) else { return };
    let (mut confirmed, mut before) = (0, 0);
    for round in 0..rounds(15) {
        let producers = lives.producers(&[Way::Messages], "plain", &[None]);
        let first = json!({"name": "mail", "after": id_of(0)});
        let mut subscriber = lives.server.subscriber(&if round == 0 { first } else { json!({"name": "mail"}) });
        let stored = position(&lives.server);
        assert!(stored <= confirmed && stored >= before, "{stored}: {confirmed} was confirmed, {before} stored");
        before = stored;
        // Confirmations within 200 ms share a write. Slow syncs make each life longer than that, however fast the disk
        // is.
        lives.disk.syncs_take(10_000);
        let nth = 200 + lives.dice.below(800);
        lives.end_at(nth, CHANGE, "");
        lives.publish(producers, 100_000, |_| {
            let mut next = stored + 1;
            while let Received::Text(event) = subscriber.receive() {
                let event: Value = serde_json::from_str(&event).unwrap();
                assert_eq!(sequence(&event["id"]), next, "neither a gap nor a repeat within a life");
                if next.is_multiple_of(5) {
                    subscriber.send(&json!({"type": "ack", "id": event["id"]}).to_string());
                    confirmed = next.max(confirmed);
                }
                next += 1;
            }
        });
        lives.next(Loss::Nothing);
    }
    assert!(before > 0, "confirmations are stored");
}

/// Uses `strace` instead of the shim: it kills at the n-th write that the kernel sees.
#[test]
fn a_kill_at_a_write_that_strace_counts_loses_nothing_acknowledged() {
    let test = "a_kill_at_a_write_that_strace_counts_loses_nothing_acknowledged";
    if program("strace").is_none() {
        return skip(test, "strace (apt-get install strace)");
    }
    let mut server = Server::start();
    let mut record = Record::new("full");
    record.check(&server, Loss::Nothing);
    for nth in [1, 2, 7, 20, 63] {
        let inject = format!("inject=pwrite64:signal=KILL:when={nth}");
        let mut strace = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=pwrite64", "-e", &inject, "-p", &server.pid().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/status", server.pid());
        await_true("strace", || !std::fs::read_to_string(&status).unwrap().contains("TracerPid:\t0\n"));
        let producer = Producer::open(&server, WAYS[nth % 4], &format!("keyed{nth}"), None);
        assert_eq!(producer.publish(&record, 100_000), Vec::<String>::new());
        server.await_exit();
        strace.wait().unwrap();
        server.restart();
        record.check(&server, Loss::Nothing);
    }
}
