//! Durable subscriptions: what is stored under a name, which connection receives it, how it is listed and deleted.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::support::*;

const PING_TEXT: &str = r#"{"type":"ping"}"#;

fn ack(event: u64) -> String {
    json!({"type": "ack", "id": id_of(event)}).to_string()
}

/// Confirms an event, and returns once the server has processed that.
fn confirm(socket: &mut Socket, event: u64) {
    socket.send(&ack(event));
    assert_eq!(socket.ask(PING_TEXT), json!({"type": "pong"}));
}

/// Subscribes, and returns the socket and the answer.
fn subscribed(server: &Server, first: &Value) -> (Socket, Value) {
    let mut socket = Socket::open(server.addr, "/ws/subscribe");
    let answer = socket.ask(&first.to_string());
    assert_eq!(answer["status"], "subscribed", "{first}: {answer}");
    (socket, answer)
}

/// Sends a first message that must be refused, and returns the message of the refusal.
fn refused(server: &Server, first: &Value) -> String {
    refused_with(server, first, 1008)
}

/// The same for a connection that ends with this close code.
fn refused_with(server: &Server, first: &Value, expected: u16) -> String {
    let mut socket = Socket::open(server.addr, "/ws/subscribe");
    socket.send(&first.to_string());
    let (words, code) = socket.read_to_close();
    assert_eq!((words.len(), code), (1, expected), "{first}: {words:?}");
    let answer: Value = serde_json::from_str(&words[0]).unwrap();
    assert_eq!(answer["status"], "error", "{first}");
    text_of(&answer["message"])
}

/// One subscription in `GET /subscriptions`.
fn listed(server: &Server, name: &str) -> Value {
    let all = server.get_json("/subscriptions");
    all.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}: {all}")).clone()
}

/// The filters and the position of a subscription in the database.
fn stored(server: &Server, name: &str) -> Option<(Value, u64)> {
    let database = rusqlite::Connection::open(server.db_path()).unwrap();
    let row = database.query_row("SELECT filters, position FROM subscriptions WHERE name = ?1", [name], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
    });
    row.ok().map(|(filters, position)| (serde_json::from_str(&filters).unwrap(), position as u64))
}

#[test]
fn confirmed_events_do_not_come_again_and_all_others_do() {
    let server = Server::start();
    server.publish(&tick("s", 0));
    let mut board = server.subscriber(&json!({"name": "board"}));
    server.publish_lines(&ticks("s", 10));
    assert_eq!(sequences(&board.collect(10)), (2..=11).collect::<Vec<_>>(), "a new name begins now");
    // A confirmation covers all events before it.
    confirm(&mut board, 7);
    for end in [drop as fn(Socket), Socket::reset] {
        end(board);
        board = server.subscriber(&json!({"name": "board"}));
        assert_eq!(sequences(&board.collect(4)), [8, 9, 10, 11]);
    }
    confirm(&mut board, 11);
    drop(board);
    let mut board = server.subscriber(&json!({"name": "board"}));
    server.publish(&tick("s", 0));
    assert_eq!(sequence(&board.json()["id"]), 12);
}

#[test]
fn a_new_subscription_may_start_in_the_past_and_a_known_one_continues_at_its_position() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 10));
    let mut board = server.subscriber(&json!({"name": "board", "after": id_of(4)}));
    assert_eq!(sequences(&board.collect(6)), [5, 6, 7, 8, 9, 10]);
    confirm(&mut board, 8);
    for start in [json!({"after": id_of(2)}), json!({"last": 5}), json!({"since": "2020-01-01T00:00:00Z"}), json!({})] {
        let mut first = start.clone();
        first["name"] = json!("board");
        assert_eq!(sequences(&server.subscriber(&first).collect(2)), [9, 10], "{start}");
    }
}

#[test]
fn positions_survive_a_restart() {
    let mut server = Server::start();
    let names = ["a", "b", "c"];
    let mut sockets = names.map(|name| server.subscriber(&json!({"name": name})));
    server.publish_lines(&ticks("s", 20));
    for (socket, confirmed) in sockets.iter_mut().zip([0, 13, 20]) {
        assert_eq!(socket.collect(20).len(), 20);
        if confirmed > 0 {
            confirm(socket, confirmed);
        }
    }
    for _ in 0..2 {
        server.stop();
        server.restart();
    }
    server.publish(&tick("s", 0));
    for (name, confirmed) in names.iter().zip([0, 13, 20]) {
        let mut socket = server.subscriber(&json!({"name": name}));
        let rest = socket.collect(21 - confirmed);
        assert_eq!(sequences(&rest), (confirmed as u64 + 1..=21).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn a_crash_loses_no_event_and_moves_no_position_beyond_a_confirmation() {
    let mut dice = Random::seeded();
    let mut server = Server::start();
    drop(server.subscriber(&json!({"name": "board"})));
    let (mut published, mut confirmed) = (0, 0);
    for life in 0..8 {
        server.publish_lines(&ticks("s", 200));
        published += 200;
        let mut board = server.subscriber(&json!({"name": "board"}));
        let events = board.collect(1 + dice.below(200) as usize);
        let first = sequence(&events[0]["id"]);
        assert!(first <= confirmed + 1, "{first} is the first, {confirmed} was confirmed last");
        assert_eq!(sequences(&events), (first..first + events.len() as u64).collect::<Vec<_>>());
        for event in sequences(&events) {
            if dice.below(3) == 0 {
                board.send(&ack(event));
                confirmed = confirmed.max(event);
            }
        }
        if life % 2 == 0 {
            // A subscription that has reached the disk exists again.
            confirmed = confirmed.max(first);
            board.send(&ack(confirmed));
            await_true("the position on disk", || stored(&server, "board").unwrap().1 == confirmed);
        }
        server.kill();
        server.restart();
        let position = listed(&server, "board")["position"].clone();
        let position = if position.is_null() { 0 } else { sequence(&position) };
        assert!(position <= confirmed, "{position} after {confirmed}");
        assert!(life % 2 != 0 || position == confirmed, "{position} after {confirmed}");
    }
    let mut board = server.subscriber(&json!({"name": "board"}));
    let first = sequence(&board.json()["id"]);
    assert_eq!(sequences(&board.collect((published - first) as usize)), (first + 1..=published).collect::<Vec<_>>());
}

#[test]
fn stored_filters_stay_until_new_ones_replace_them() {
    let mut server = Server::start();
    let comes_back = |server: &Server, expected: &Value| {
        let (mut socket, answer) = subscribed(server, &json!({"name": "board"}));
        assert_eq!(answer["filters"], *expected);
        let ids = server.publish_lines(&["a", "b", "c"].map(|session| tick(session, 0)));
        let event = socket.json();
        assert_eq!(event["session_id"], expected["session_id"]);
        confirm(&mut socket, sequence(&json!(ids[2])));
    };
    let filters = json!({"session_id": "a", "event_types": ["timer_tick"]});
    drop(server.subscriber(&json!({"name": "board", "session_id": "a", "event_types": ["timer_tick"]})));
    comes_back(&server, &filters);
    let filters = json!({"session_id": "b"});
    drop(server.subscriber(&json!({"name": "board", "session_id": "b"})));
    comes_back(&server, &filters);
    server.stop();
    server.restart();
    comes_back(&server, &filters);

    let (mut socket, _) = subscribed(&server, &json!({"name": "board"}));
    let filters = json!({"session_id": "c", "source": "it"});
    let update = json!({"type": "update_filters", "filters": filters}).to_string();
    assert_eq!(socket.ask(&update)["status"], "filters_updated");
    await_true("the filters on disk", || stored(&server, "board").unwrap().0 == filters);
    comes_back(&server, &filters);
    let last = listed(&server, "board")["position"].clone();
    await_true("the position on disk", || json!(id_of(stored(&server, "board").unwrap().1)) == last);
    server.kill();
    server.restart();
    comes_back(&server, &filters);
    assert_eq!(listed(&server, "board")["filters"], filters);
}

#[test]
fn a_new_connection_takes_over_the_subscription() {
    let server = Server::start();
    let mut first = server.subscriber(&json!({"name": "board"}));
    server.publish_lines(&ticks("s", 5));
    assert_eq!(first.collect(5).len(), 5);
    confirm(&mut first, 2);
    let mut second = server.subscriber(&json!({"name": "board"}));
    assert_eq!(first.close_code(), 4009);
    assert_eq!(sequences(&second.collect(3)), [3, 4, 5]);
    assert_eq!(listed(&server, "board")["connected"], 1);
    // A group and a subscription may have the same name and are independent.
    let mut member = server.subscriber(&json!({"group": "board"}));
    server.publish(&tick("s", 0));
    for socket in [&mut second, &mut member] {
        assert_eq!(sequence(&socket.json()["id"]), 6);
    }
}

#[test]
fn repeated_takeovers_under_load_lose_no_event() {
    let server = Server::start();
    drop(server.subscriber(&json!({"name": "board"})));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut publisher = server.publisher();
            for _ in 0..100 {
                acknowledged(&publisher.pipeline(&ticks("s", 50)));
            }
        });
        let (mut confirmed, mut former) = (0, None::<Socket>);
        for round in 0..40 {
            let mut socket = server.subscriber(&json!({"name": "board"}));
            if let Some(mut former) = former.take() {
                assert_eq!(former.read_to_close().1, 4009);
            }
            let events = sequences(&socket.collect(100));
            assert_eq!(events, (confirmed + 1..=confirmed + 100).collect::<Vec<_>>(), "round {round}");
            confirmed += 1 + round;
            // The pong may come after events that were on their way.
            socket.send(&ack(confirmed));
            await_true("the confirmation", || listed(&server, "board")["position"] == json!(id_of(confirmed)));
            former = Some(socket);
        }
    });
}

#[test]
fn invalid_and_outdated_confirmations_change_nothing() {
    let server = Server::start();
    let mut board = server.subscriber(&json!({"name": "board"}));
    server.publish_lines(&ticks("s", 10));
    assert_eq!(board.collect(10).len(), 10);
    confirm(&mut board, 5);
    let ids =
        [id_of(11), id_of(0xffff_ffff_ffff), "nonsense".to_owned(), String::new(), "evt_".to_owned(), "5".to_owned()];
    for id in ids {
        let answer = board.ask(&json!({"type": "ack", "id": id}).to_string());
        assert_eq!(answer["status"], "error", "{id}: {answer}");
        assert!(!text_of(&answer["message"]).is_empty(), "{id}");
        assert_eq!(listed(&server, "board")["position"], json!(id_of(5)), "{id}");
    }
    for unusable in [json!({"type": "ack"}), json!({"type": "ack", "id": 9}), json!({"type": "ack", "id": null})] {
        assert_eq!(board.ask(&unusable.to_string())["status"], "error", "{unusable}");
        assert_eq!(listed(&server, "board")["position"], json!(id_of(5)), "{unusable}");
    }
    let before = listed(&server, "board");
    for ignored in [5, 3, 0] {
        confirm(&mut board, ignored);
        assert_eq!(listed(&server, "board"), before, "{ignored}, the time of the last confirmation included");
    }
    confirm(&mut board, 6);
    assert_eq!(sequences(&server.subscriber(&json!({"name": "board"})).collect(4)), [7, 8, 9, 10]);
}

#[test]
fn a_confirmation_without_a_name_stores_nothing_and_an_invalid_id_is_an_error() {
    let server = Server::start();
    let mut subscriber = server.subscriber(&json!({}));
    server.publish_lines(&ticks("s", 3));
    assert_eq!(subscriber.collect(3).len(), 3);
    for unusable in [ack(99), json!({"type": "ack", "id": "nonsense"}).to_string()] {
        assert_eq!(subscriber.ask(&unusable)["status"], "error", "{unusable}");
    }
    confirm(&mut subscriber, 2);
    assert_eq!(server.get_json("/subscriptions"), json!([]));
}

#[test]
fn options_that_cannot_be_durable_are_refused_with_a_message() {
    let server = Server::start();
    let long = "x".repeat(101);
    for key in ["name", "group"] {
        for name in
            [json!(""), json!(long), json!("a b"), json!("ä"), json!("a:b"), json!("a/b"), json!(5), json!(["a"])]
        {
            let words = refused(&server, &json!({key: name}));
            assert!(words.contains(key), "{name}: {words}");
        }
        let not_together = [
            json!({"conflate": {"key": "session_id", "interval_ms": 100}}),
            json!({"snapshot": {"latest_by": "session_id"}}),
            json!({"after": id_of(0), "until": "2030-01-01T00:00:00Z"}),
            json!({"on_lag": "skip"}),
        ];
        for mut first in not_together {
            first[key] = json!("board");
            refused(&server, &first);
        }
    }
    refused(&server, &json!({"name": "a", "group": "a"}));
    refused(&server, &json!({"group": "a", "speed": 2}));
    for wait in [json!(99), json!(3_600_001), json!("1000"), json!(-1)] {
        refused(&server, &json!({"group": "a", "ack_wait_ms": wait}));
    }
    assert_eq!(server.get_json("/subscriptions"), json!([]), "nothing was kept");
    for name in [&long[1..], "A-Z_a.z-09", "."] {
        drop(server.subscriber(&json!({"name": name})));
        listed(&server, name);
    }
}

#[test]
fn the_number_of_stored_names_is_limited() {
    let server = Server::with(&[("MAX_SUBSCRIPTIONS", "2")]);
    drop(server.subscriber(&json!({"name": "a"})));
    drop(server.subscriber(&json!({"group": "b"})));
    for first in [json!({"name": "c"}), json!({"group": "c"}), json!({"name": "b"})] {
        // Later there may be room for it.
        let words = refused_with(&server, &first, 1013);
        assert!(words.contains("as many"), "{words}");
    }
    // Known names are accepted, and subscribers without a name.
    drop(server.subscriber(&json!({"name": "a"})));
    drop(server.subscriber(&json!({"group": "b"})));
    drop(server.subscriber(&json!({})));
    assert_eq!(server.call("DELETE", "/subscriptions/a", &[], b"").status, 204);
    drop(server.subscriber(&json!({"name": "c"})));
    refused_with(&server, &json!({"name": "a"}), 1013);
}

#[test]
fn the_list_shows_the_position_of_each_subscription() {
    let mut server = Server::start();
    assert_eq!(server.get_json("/subscriptions"), json!([]));
    let filter = json!({"name": "of-a", "session_id": "a"});
    let mut of_a = server.subscriber(&filter);
    let mut all = server.subscriber(&json!({"name": "all"}));
    let fresh = listed(&server, "all");
    assert_eq!((&fresh["position"], &fresh["lag"]), (&Value::Null, &json!(0)), "{fresh}");
    server.publish_lines(&(0..30).map(|n| tick(["a", "b", "c"][n % 3], n)).collect::<Vec<_>>());
    assert_eq!((of_a.collect(10).len(), all.collect(30).len()), (10, 30));
    confirm(&mut of_a, 13);
    confirm(&mut all, 29);
    let check = |server: &Server, connected: usize| {
        let list = server.get_json("/subscriptions");
        let names: Vec<_> = list.as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
        assert_eq!(names, ["all", "of-a"], "in order");
        for (one, (filters, position, lag)) in
            list.as_array().unwrap().iter().zip([(json!({}), 29, 1), (json!({"session_id": "a"}), 13, 5)])
        {
            assert_eq!(
                (&one["filters"], &one["position"], &one["lag"]),
                (&filters, &json!(id_of(position)), &json!(lag))
            );
            assert_eq!((&one["connected"], &one["unconfirmed"]), (&json!(connected), &json!(0)), "{one}");
            timestamp(&json!({"timestamp": one["last_seen"]}));
        }
        list
    };
    check(&server, 1);
    drop((of_a, all));
    await_true("the end of both", || {
        server.get_json("/subscriptions").as_array().unwrap().iter().all(|one| one["connected"] == 0)
    });
    let before = check(&server, 0);
    server.stop();
    server.restart();
    assert_eq!(check(&server, 0), before, "a restart forgets nothing of it");
}

#[test]
fn a_takeover_or_deletion_closes_the_socket_after_a_whole_event() {
    let server = Server::with(&[("WRITE_TIMEOUT_SECONDS", "600"), ("KEEPALIVE_SECONDS", "600")]);
    let payload = json!({"filler": "x".repeat(60_000)});
    let event = json!({"event_type": "timer_tick", "source": "it", "payload": payload}).to_string();
    for expected in [4009, 4010] {
        let mut former = server.subscriber(&json!({"name": "board"}));
        socket2::SockRef::from(former.stream()).set_recv_buffer_size(64 << 10).unwrap();
        // Far more than the buffers of the system hold.
        for _ in 0..10 {
            server.publish_lines(&vec![event.clone(); 50]);
        }
        let other = match expected {
            4009 => Some(server.subscriber(&json!({"name": "board"}))),
            _ => {
                assert_eq!(server.call("DELETE", "/subscriptions/board", &[], b"").status, 204);
                None
            }
        };
        let (events, code) = former.read_to_close();
        assert_eq!(code, expected);
        assert!(events.len() < 500, "it was served to the end");
        let ids: Vec<Value> = events.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let first = sequence(&ids[0]["id"]);
        assert_eq!(sequences(&ids), (first..first + ids.len() as u64).collect::<Vec<_>>());
        drop(other);
    }
}

#[test]
fn two_connections_that_open_a_new_name_at_once_begin_at_the_same_event() {
    let server = Server::start();
    let rare = json!({"event_type": "timer_tick", "source": "it", "payload": {"rare": true}}).to_string();
    let mut expected = vec![sequence(&server.publish(&rare)["id"])];
    server.publish_lines(&ticks("s", 20_000));
    for round in 0..5 {
        let name = format!("board{round}");
        // The first connection has to search all events for its start. The second needs no search and is ready before.
        let firsts = [
            json!({"name": name, "last": 100_000, "payload": {"rare": true}}),
            json!({"name": name, "payload": {"rare": true}}),
        ];
        let mut sockets = [(); 2].map(|()| Socket::open(server.addr, "/ws/subscribe"));
        for (socket, first) in sockets.iter_mut().zip(firsts) {
            socket.send(&first.to_string());
        }
        let mut events = [Vec::new(), Vec::new()];
        for socket in &mut sockets {
            assert_eq!(socket.json()["status"], "subscribed");
        }
        let position = listed(&server, &name)["position"].clone();
        let position = if position.is_null() { 0 } else { sequence(&position) };
        let last = sequence(&server.publish(&rare)["id"]);
        expected.push(last);
        let mut served = 0;
        for (socket, events) in sockets.iter_mut().zip(&mut events) {
            loop {
                match socket.receive() {
                    Received::Text(event) => events.push(serde_json::from_str(&event).unwrap()),
                    said => {
                        assert_eq!(said, Received::Close(4009));
                        break;
                    }
                }
                if sequences(events).last() == Some(&last) {
                    let after_position = expected.iter().copied().filter(|event| *event > position);
                    assert_eq!(sequences(events), after_position.collect::<Vec<_>>(), "after {position}");
                    served += 1;
                    break;
                }
            }
        }
        assert_eq!(served, 1, "one of them took over");
    }
}

#[test]
fn a_name_opened_during_its_deletion_is_listed_only_if_it_is_stored() {
    let server = Server::with(&[("NETWORK_THREADS", "4")]);
    for round in 0..50 {
        let name = format!("board{round}");
        drop(server.subscriber(&json!({"name": name})));
        thread::scope(|scope| {
            let opening = scope.spawn(|| server.subscriber(&json!({"name": name})));
            scope.spawn(|| {
                assert_eq!(server.call("DELETE", &format!("/subscriptions/{name}"), &[], b"").status, 204);
            });
            // Whether the subscription is deleted depends on timing, and both are right.
            drop(opening.join().unwrap());
        });
        let all = server.get_json("/subscriptions");
        let is_there = all.as_array().unwrap().iter().any(|one| one["name"] == name);
        assert_eq!(stored(&server, &name).is_some(), is_there, "round {round}");
    }
}

#[test]
fn deleting_a_subscription_closes_its_connection_and_frees_its_name() {
    let mut server = Server::start();
    let mut board = server.subscriber(&json!({"name": "board", "session_id": "a"}));
    let mut members = [(); 2].map(|()| server.subscriber(&json!({"group": "board"})));
    server.publish_lines(&ticks("a", 5));
    assert_eq!(board.collect(5).len(), 5);
    assert_eq!(server.call("DELETE", "/subscriptions/board", &[], b"").status, 204);
    assert_eq!(board.close_code(), 4010);
    assert_eq!(server.call("DELETE", "/subscriptions/group%3Aboard", &[], b"").status, 204);
    for member in &mut members {
        assert_eq!(member.read_to_close().1, 4010);
    }
    assert_eq!(server.get_json("/subscriptions"), json!([]));
    for unknown in ["/subscriptions/board", "/subscriptions/group:board", "/subscriptions/%ff"] {
        server.call("DELETE", unknown, &[], b"").refusal(404);
    }
    server.kill();
    server.restart();
    assert_eq!(server.get_json("/subscriptions"), json!([]), "it is deleted on disk");

    for first in [json!({"name": "board"}), json!({"group": "board"})] {
        let (mut socket, answer) = subscribed(&server, &first);
        assert_eq!(answer["filters"], json!({}));
        let id = server.publish(&tick("b", 0))["id"].clone();
        assert_eq!(socket.json()["id"], id, "{first}");
    }
}

#[test]
fn a_deleted_subscription_is_not_restored_by_late_confirmations() {
    let mut dice = Random::seeded();
    let mut server = Server::start();
    server.publish_lines(&ticks("s", 20_000));
    for round in 0..20 {
        let name = format!("board{round}");
        let mut board = server.subscriber(&json!({"name": name, "after": id_of(0), "session_id": "nobody"}));
        let (confirmed, enough) = (AtomicU64::new(0), 1 + dice.below(200));
        thread::scope(|scope| {
            // Confirmations follow each other until the deletion, so that it always comes between two of them.
            scope.spawn(|| {
                for event in 1..=20_000 {
                    board.send(&ack(event));
                    board.send(PING_TEXT);
                    confirmed.store(event, Ordering::Relaxed);
                    match board.receive() {
                        Received::Text(_) => {}
                        said => return assert_eq!(said, Received::Close(4010)),
                    }
                }
            });
            await_true("some confirmations", || confirmed.load(Ordering::Relaxed) >= enough);
            assert_eq!(server.call("DELETE", &format!("/subscriptions/{name}"), &[], b"").status, 204);
        });
    }
    assert_eq!(server.get_json("/subscriptions"), json!([]));
    server.stop();
    server.restart();
    assert_eq!(server.get_json("/subscriptions"), json!([]), "nothing wrote it again");
}

#[test]
fn events_deleted_before_their_confirmation_are_reported_as_a_gap() {
    let server = Server::start();
    let mut board = server.subscriber(&json!({"name": "board"}));
    server.publish_lines(&ticks("s", 10));
    let time = text_of(&board.collect(10)[3]["timestamp"]);
    confirm(&mut board, 3);
    server.call("DELETE", &format!("/events?before={}", encode(&time)), &[], b"");
    let (mut board, answer) = subscribed(&server, &json!({"name": "board"}));
    assert_eq!(answer["gap"], Value::Null, "all that is gone was confirmed");
    assert_eq!(sequences(&board.collect(7)), (4..=10).collect::<Vec<_>>());
    server.call("DELETE", "/events", &[], b"");
    let (mut board, answer) = subscribed(&server, &json!({"name": "board"}));
    assert_eq!(answer["gap"], json!({"missing_through": id_of(10)}));
    server.publish(&tick("s", 0));
    assert_eq!(sequence(&board.json()["id"]), 11);
}

#[test]
fn thousands_of_confirmations_need_only_a_few_commits() {
    const ACKS: u64 = 5_000;
    let server = Server::start();
    let mut board = server.subscriber(&json!({"name": "board"}));
    server.publish_lines(&ticks("s", ACKS as usize));
    assert_eq!(board.collect(ACKS as usize).len(), ACKS as usize);
    // SQLite counts transactions at this offset of the -shm file.
    let commits = || {
        let (mut index, mut count) = (server.db_path().into_os_string(), [0; 4]);
        index.push("-shm");
        File::open(index).unwrap().read_exact_at(&mut count, 8).unwrap();
        u32::from_ne_bytes(count)
    };
    let before = commits();
    let acks: Vec<_> = (1..=ACKS).map(ack).collect();
    send_all(board.stream(), &acks);
    await_true("the last position on disk", || stored(&server, "board").unwrap().1 == ACKS);
    let commits = u64::from(commits().wrapping_sub(before));
    // With a commit for each confirmation there would be as many. One commit every 200 ms stays far below until the deadline.
    assert!((1..ACKS / 10).contains(&commits), "{commits} commits");
}

#[test]
fn explain_shows_which_subscribers_get_an_event_and_why_others_do_not() {
    let server = Server::start();
    let mut live = Vec::new();
    for first in [json!({}), json!({"session_id": "b"}), json!({"name": "board", "source": "it"})] {
        let (socket, answer) = subscribed(&server, &first);
        live.push((socket, answer["subscriber_id"].clone()));
    }
    drop(server.subscriber(&json!({"name": "away", "event_types": ["quiz_started"]})));
    drop(server.subscriber(&json!({"group": "graders", "session_id": "a"})));
    await_true("the two to be gone", || {
        server.get_json("/subscriptions").as_array().unwrap().iter().filter(|one| one["connected"] != 0).count() == 1
    });
    let id = text_of(&server.publish(&tick("a", 0))["id"]);
    let ask = || server.get_json(&format!("/subscriptions/explain?event_id={id}"));
    // A subscriber that has left disappears a moment after its name.
    await_true("the live ones", || ask()["subscribers"].as_array().unwrap().len() == 3);
    let explained = ask();
    assert_eq!(explained["event_id"], json!(id));
    let subscribers = explained["subscribers"].as_array().unwrap();
    for (one, ((_, subscriber_id), (name, matched))) in
        subscribers.iter().zip(live.iter().zip([(Value::Null, true), (Value::Null, false), (json!("board"), true)]))
    {
        assert_eq!((&one["subscriber_id"], &one["name"], &one["matched"]), (subscriber_id, &name, &json!(matched)));
        assert_eq!(one.get("why").is_some(), !matched, "{one}");
    }
    assert!(text_of(&subscribers[1]["why"]).contains("session_id"), "{explained}");
    let durable = explained["durable"].as_array().unwrap();
    let verdicts: Vec<_> = durable.iter().map(|one| (text_of(&one["name"]), one["matched"] == true)).collect();
    assert_eq!(verdicts, [("away".into(), false), ("board".into(), true), ("group:graders".into(), true)]);
    assert!(text_of(&durable[0]["why"]).contains("event_type"), "{explained}");

    server.get(&format!("/subscriptions/explain?event_id={}", id_of(2))).refusal(404);
    server.get("/subscriptions/explain?event_id=nonsense").refusal(404);
    for target in ["/subscriptions/explain", "/subscriptions/explain?event_id="] {
        server.get(target).refusal(422);
    }
}

#[test]
fn many_subscriptions_are_served_at_the_same_time() {
    let server = Server::start();
    in_parallel(8, |n| {
        let mut socket = server.subscriber(&json!({"name": format!("n{n}"), "session_id": format!("s{n}")}));
        server.publish_lines(&ticks(&format!("s{n}"), 50));
        let last = sequence(&socket.collect(50)[49]["id"]);
        confirm(&mut socket, last);
    });
    assert_eq!(server.get_json("/subscriptions").as_array().unwrap().len(), 8);
    for one in server.get_json("/subscriptions").as_array().unwrap() {
        assert_eq!(one["lag"], 0, "{one}");
    }
}
