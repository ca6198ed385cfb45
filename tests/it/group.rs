//! Consumer groups: each event goes to one member, the events of a session in order, and no event is lost when members leave.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Shutdown, TcpStream};
use std::thread;

use serde_json::{Value, json};

use crate::support::*;

/// A member of the group, and the events that it was sent, in order.
struct Member {
    socket: Socket,
    received: Vec<(u64, String)>,
}

impl Member {
    fn join(server: &Server) -> Member {
        Member::join_as(server, &json!({"group": "graders"}))
    }

    fn join_as(server: &Server, first: &Value) -> Member {
        Member { socket: server.subscriber(first), received: Vec::new() }
    }

    fn take(&mut self, event: &Value) {
        self.received.push((sequence(&event["id"]), text_of(&event["session_id"])));
    }

    /// Receives `count` events.
    fn receive(&mut self, count: usize) -> Vec<u64> {
        for event in self.socket.collect(count) {
            self.take(&event);
        }
        self.last(count)
    }

    /// Receives all waiting events. The second pong comes after the events that were there before the first.
    fn drain(&mut self) -> Vec<u64> {
        let before = self.received.len();
        for _ in 0..2 {
            self.socket.send(r#"{"type":"ping"}"#);
            loop {
                let message = self.socket.json();
                if message == json!({"type": "pong"}) {
                    break;
                }
                self.take(&message);
            }
        }
        self.last(self.received.len() - before)
    }

    fn last(&self, count: usize) -> Vec<u64> {
        self.received[self.received.len() - count..].iter().map(|(event, _)| *event).collect()
    }

    fn ack(&mut self, event: u64) {
        self.socket.send(&json!({"type": "ack", "id": id_of(event)}).to_string());
    }

    /// Sends a Close frame, and returns once the server has answered it. Events may come before that.
    fn leave(mut self) {
        self.socket.send_frame(CLOSE, &code_bytes(1000));
        assert_eq!(self.socket.read_to_close().1, 1000);
    }
}

/// The group in `GET /subscriptions`.
fn listed(server: &Server) -> Value {
    let all = server.get_json("/subscriptions");
    all.as_array().unwrap().iter().find(|one| one["name"] == "group:graders").expect("the group").clone()
}

/// Waits until `count` events are unconfirmed.
fn await_unconfirmed(server: &Server, count: usize) {
    await_true("the events in hand", || listed(server)["unconfirmed"] == count);
}

fn await_members(server: &Server, count: usize) {
    await_true("the members", || listed(server)["connected"] == count);
}

fn await_position(server: &Server, event: u64) {
    await_true("the position", || listed(server)["position"] == json!(id_of(event)));
}

/// The filters and the position of the group in the database.
fn stored(server: &Server) -> (Value, u64) {
    let database = rusqlite::Connection::open(server.db_path()).unwrap();
    let sql = "SELECT filters, position FROM subscriptions WHERE name = 'group:graders'";
    let (filters, position): (String, i64) = database.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    (serde_json::from_str(&filters).unwrap(), position as u64)
}

/// Publishes `count` events, to each session in turn.
fn publish(server: &Server, sessions: usize, count: usize) {
    server.publish_lines(&(0..count).map(|n| tick(&format!("s{}", n % sessions), n)).collect::<Vec<_>>());
}

/// Checks that a member was sent the events of each session in order, repeats aside.
fn assert_in_order(received: &[(u64, String)]) {
    let mut last = BTreeMap::<&str, u64>::new();
    for (event, session) in received {
        let before = last.insert(session, *event);
        assert!(before.is_none_or(|before| before < *event), "{before:?} then {event} of {session}");
    }
}

#[test]
fn each_event_goes_to_one_member_and_a_session_to_the_same_one() {
    let server = Server::start();
    let mut members = [(); 4].map(|()| Member::join(&server));
    publish(&server, 200, 600);
    await_unconfirmed(&server, 600);
    assert_eq!(listed(&server)["connected"], 4);
    let mut homes = BTreeMap::new();
    let mut all = Vec::new();
    for (n, member) in members.iter_mut().enumerate() {
        let received = member.drain();
        assert!(!received.is_empty(), "everyone gets some of 200 sessions");
        all.extend(received);
        assert_in_order(&member.received);
        for (_, session) in &member.received {
            assert_eq!(*homes.entry(session.clone()).or_insert(n), n, "{session} is with one member");
        }
    }
    all.sort_unstable();
    assert_eq!(all, (1..=600).collect::<Vec<_>>());

    // A member confirms only its own events.
    let mut left = 600;
    for member in &mut members {
        let count = member.received.len();
        let last = member.received[count - 1].0;
        member.ack(last);
        left -= count;
        await_unconfirmed(&server, left);
    }
    await_position(&server, 600);
    assert_eq!(listed(&server)["lag"], 0);
}

#[test]
fn a_member_cannot_confirm_events_that_it_does_not_have_in_hand() {
    let server = Server::start();
    let mut members = [(); 2].map(|()| Member::join(&server));
    publish(&server, 50, 50);
    await_unconfirmed(&server, 50);
    let [first, second] = &mut members;
    let (of_first, of_second) = (first.drain(), second.drain());
    for event in &of_first {
        second.ack(*event);
    }
    for id in ["nonsense".to_owned(), id_of(51)] {
        let answer = second.socket.ask(&json!({"type": "ack", "id": id}).to_string());
        assert_eq!(answer["status"], "error", "{id}");
    }
    // The server processes confirmations in order, so it has processed the ones before this one.
    second.ack(of_second[0]);
    await_true("the one confirmation", || listed(&server)["unconfirmed"] != 50);
    assert_eq!(listed(&server)["unconfirmed"], 49);
    first.ack(*of_first.last().unwrap());
    second.ack(*of_second.last().unwrap());
    await_position(&server, 50);
}

#[test]
fn a_session_stays_with_its_member_while_any_of_its_events_is_unconfirmed() {
    let server = Server::start();
    let mut first = Member::join(&server);
    publish(&server, 30, 30);
    assert_eq!(first.receive(30), (1..=30).collect::<Vec<_>>());
    let mut others = [(); 3].map(|()| Member::join(&server));
    publish(&server, 30, 60);
    assert_eq!(first.receive(60), (31..=90).collect::<Vec<_>>());
    first.ack(90);
    await_position(&server, 90);
    // Now the sessions may move, and with three new members some do.
    publish(&server, 30, 30);
    await_unconfirmed(&server, 30);
    let moved: usize = others.iter_mut().map(|member| member.drain().len()).sum();
    assert_eq!(moved + first.drain().len(), 30);
    assert!(moved > 0, "all 30 sessions stayed");
}

#[test]
fn the_events_of_a_member_that_leaves_go_to_others_before_later_events() {
    let server = Server::start();
    let mut published = 0;
    for resets in [false, true] {
        let mut leaving = Member::join(&server);
        publish(&server, 10, 50);
        assert_eq!(leaving.receive(50), (published + 1..=published + 50).collect::<Vec<_>>());
        let mut staying = Member::join(&server);
        leaving.ack(published + 20);
        if resets {
            // A reset may discard frames that were sent before it.
            await_unconfirmed(&server, 30);
            leaving.socket.reset();
        } else {
            leaving.leave();
        }
        publish(&server, 10, 20);
        let mut received = staying.receive(50);
        assert_in_order(&staying.received);
        received.sort_unstable();
        published += 70;
        assert_eq!(received, (published - 49..=published).collect::<Vec<_>>(), "only the unconfirmed come again");
        let last = staying.received[49].0;
        staying.ack(last);
        await_position(&server, published);
        staying.leave();
    }
}

#[test]
fn events_not_confirmed_in_time_go_to_another_member() {
    let server = Server::start();
    let asks = json!({"group": "graders", "ack_wait_ms": 1500});
    let mut hanging = Member::join_as(&server, &asks);
    publish(&server, 1, 5);
    assert_eq!(hanging.receive(5), [1, 2, 3, 4, 5]);
    let mut other = Member::join_as(&server, &asks);
    publish(&server, 1, 2);
    // They move only after the time is over. Until then, later events of the session also go to the member that hangs.
    assert_eq!(other.receive(7), [1, 2, 3, 4, 5, 6, 7]);
    // This confirmation is too late, as the member has nothing in hand. If it counted, these events would not come again.
    hanging.ack(5);
    hanging.leave();
    await_members(&server, 1);
    assert_eq!(listed(&server)["position"], Value::Null);
    other.leave();
    assert_eq!(Member::join(&server).receive(7), [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn an_empty_group_continues_after_the_last_confirmation() {
    let server = Server::start();
    publish(&server, 7, 100);
    let mut first = json!({"group": "graders", "after": id_of(0)});
    // A member joins at once, while the former group may still be ending, ...
    for confirmed in 0..100 {
        let mut member = Member::join_as(&server, &first);
        assert_eq!(member.receive(1), [confirmed + 1], "what was confirmed before the goodbye counts");
        member.ack(confirmed + 1);
        member.leave();
        first = json!({"group": "graders"});
    }
    // ... and one after a time without members.
    await_members(&server, 0);
    publish(&server, 7, 30);
    assert_eq!(listed(&server)["lag"], 30);
    assert_eq!(Member::join(&server).receive(30), (101..=130).collect::<Vec<_>>());
}

#[test]
fn members_that_join_and_leave_at_the_same_time_all_get_events() {
    let server = Server::start();
    drop(Member::join(&server));
    in_parallel(8, |n| {
        for round in 0..40 {
            let member = Member::join(&server);
            match (n + round) % 3 {
                0 => member.leave(),
                1 => member.socket.reset(),
                _ => drop(member),
            }
        }
    });
    await_members(&server, 0);
    publish(&server, 3, 3);
    assert_eq!(Member::join(&server).receive(3), [1, 2, 3]);
}

#[test]
fn a_restart_loses_no_event_and_repeats_only_unconfirmed_ones() {
    let mut server = Server::start();
    let mut members = [(); 3].map(|()| Member::join(&server));
    publish(&server, 30, 300);
    await_unconfirmed(&server, 300);
    // Events confirmed out of order count once all events before them are confirmed.
    let mut unconfirmed = BTreeSet::from_iter(1..=300);
    for member in &mut members {
        let received = member.drain();
        let confirmed = received.len() / 2;
        member.ack(received[confirmed - 1]);
        unconfirmed.retain(|event| !received[..confirmed].contains(event));
    }
    let first = *unconfirmed.first().unwrap();
    await_unconfirmed(&server, unconfirmed.len());
    await_position(&server, first - 1);
    server.signal("TERM");
    for member in &mut members {
        assert_eq!(member.socket.close_code(), 1001);
    }
    server.await_exit_0();
    server.restart();
    assert_eq!(listed(&server)["position"], json!(id_of(first - 1)));

    let mut member = Member::join(&server);
    assert_eq!(member.receive(301 - first as usize), (first..=300).collect::<Vec<_>>());
    member.ack(200);
    await_true("the position on disk", || stored(&server).1 == 200);
    member.ack(250);
    server.kill();
    server.restart();
    let mut member = Member::join(&server);
    let first = member.receive(1)[0];
    assert!([201, 251].contains(&first), "{first}");
    assert_eq!(member.receive(300 - first as usize), (first + 1..=300).collect::<Vec<_>>());
}

#[test]
fn members_with_a_full_window_do_not_delay_the_shutdown() {
    let mut server = Server::start();
    let mut member = Member::join(&server);
    for _ in 0..6 {
        publish(&server, 10, 1000);
    }
    // The window is full, so the rest is not read.
    assert_eq!(member.receive(4096), (1..=4096).collect::<Vec<_>>());
    member.drain();
    assert_eq!(listed(&server)["unconfirmed"], 4096);
    server.signal("TERM");
    assert_eq!(member.socket.close_code(), 1001);
    server.await_exit_0();
    server.restart();
    let mut member = Member::join(&server);
    assert_eq!(member.receive(4096), (1..=4096).collect::<Vec<_>>());
    member.ack(4096);
    assert_eq!(member.receive(1904), (4097..=6000).collect::<Vec<_>>());
}

#[test]
fn all_members_have_the_same_filters() {
    let mut server = Server::start();
    let of_a = json!({"group": "graders", "session_id": "a"});
    let of_b = json!({"group": "graders", "session_id": "b"});
    let mut first = Member::join_as(&server, &of_a);
    let mut socket = Socket::open(server.addr, "/ws/subscribe");
    socket.send(&of_b.to_string());
    let (words, code) = socket.read_to_close();
    assert_eq!((words.len(), code), (1, 1008), "{words:?}");
    assert!(words[0].contains("error") && words[0].contains("graders"), "{words:?}");

    let mut same = Member::join_as(&server, &of_a);
    let mut socket = Socket::open(server.addr, "/ws/subscribe");
    assert_eq!(socket.ask(r#"{"group":"graders"}"#)["filters"], json!({"session_id": "a"}));
    let answer = same.socket.ask(&json!({"type": "update_filters", "filters": {"session_id": "b"}}).to_string());
    assert_eq!(answer["status"], "error", "{answer}");
    server.publish_lines(&["b", "a"].map(|session| tick(session, 0)));
    await_unconfirmed(&server, 1);
    drop(socket);
    same.leave();
    assert_eq!(first.receive(1), [2]);
    first.ack(2);
    first.leave();
    await_members(&server, 0);

    // An empty group accepts other filters, and stores them even if no event is ever confirmed.
    let mut member = Member::join_as(&server, &of_b);
    assert_eq!(listed(&server)["filters"], json!({"session_id": "b"}));
    await_true("the filters on disk", || stored(&server).0 == json!({"session_id": "b"}));
    server.kill();
    server.restart();
    drop(member);
    member = Member::join(&server);
    server.publish_lines(&["a", "b"].map(|session| tick(session, 0)));
    assert_eq!(member.receive(1), [4]);
}

#[test]
fn an_event_larger_than_the_window_is_delivered() {
    let server = Server::with(&[("MAX_SUBSCRIBER_BYTES", "4096")]);
    let mut member = Member::join(&server);
    let payload = json!({"filler": "x".repeat(30_000)});
    for event in 1..=3 {
        server.publish(
            &json!({"event_type": "timer_tick", "source": "it", "session_id": "s", "payload": payload}).to_string(),
        );
        server.publish(&tick("s", 0));
        assert_eq!(member.receive(1), [2 * event - 1]);
        member.ack(2 * event - 1);
        assert_eq!(member.receive(1), [2 * event]);
    }
}

#[test]
fn groups_process_a_long_history() {
    let server = Server::start();
    for _ in 0..20 {
        publish(&server, 100, 1000);
    }
    let mut first = Member::join_as(&server, &json!({"group": "graders", "after": id_of(0)}));
    let mut second = Member::join(&server);
    /// Ends the readers, also those that wait for events that never come.
    struct EndAtEnd([TcpStream; 2]);
    impl Drop for EndAtEnd {
        fn drop(&mut self) {
            self.0.iter().for_each(|stream| stream.shutdown(Shutdown::Both).unwrap());
        }
    }
    let streams = [&first, &second].map(|member| member.socket.stream().try_clone().unwrap());
    thread::scope(|scope| {
        let _end = EndAtEnd(streams);
        for member in [&mut first, &mut second] {
            scope.spawn(move || {
                // Each event is confirmed by itself, as a worker would do.
                while let Received::Text(event) = member.socket.receive() {
                    let event: Value = serde_json::from_str(&event).unwrap();
                    member.take(&event);
                    member.ack(sequence(&event["id"]));
                }
            });
        }
        await_position(&server, 20_000);
    });
    for member in [&first, &second] {
        assert_in_order(&member.received);
    }
    // The events of a session that moves to a new member may come twice, and never not at all.
    let all: BTreeSet<_> = first.received.iter().chain(&second.received).map(|(event, _)| *event).collect();
    assert_eq!(all, (1..=20_000).collect());
}

/// What the test knows of the group, while members come and leave.
#[derive(Default)]
struct Known {
    seen: BTreeSet<u64>,
    /// For each session the last event that was received for the first time.
    last: BTreeMap<String, u64>,
    confirmed: BTreeSet<u64>,
}

impl Known {
    fn drain(&mut self, member: &mut Member) {
        let count = member.drain().len();
        for (event, session) in &member.received[member.received.len() - count..] {
            if self.seen.insert(*event) {
                let before = self.last.insert(session.clone(), *event);
                assert!(before.is_none_or(|before| before < *event), "{before:?} then {event} of {session}");
            }
        }
    }

    /// Confirms the events that a member received up to an index.
    fn confirm(&mut self, member: &mut Member, index: usize) {
        let event = member.received[index].0;
        member.ack(event);
        self.confirmed.extend(member.received[..=index].iter().map(|(event, _)| *event));
    }
}

#[test]
fn with_random_members_each_event_is_confirmed_and_sessions_stay_in_order() {
    let mut dice = Random::seeded();
    let mut server = Server::start();
    let asks = json!({"group": "graders", "ack_wait_ms": 100});
    let (mut members, mut known, mut published) = (vec![Member::join_as(&server, &asks)], Known::default(), 0);
    for _ in 0..600 {
        let chosen = dice.below(members.len().max(1) as u64) as usize;
        match dice.below(20) {
            0..=1 if members.len() < 6 => members.push(Member::join_as(&server, &asks)),
            2 if !members.is_empty() => members.remove(chosen).leave(),
            3 if !members.is_empty() => members.remove(chosen).socket.reset(),
            4..=8 => {
                let count = 1 + dice.below(30);
                let events = (0..count).map(|n| tick(&format!("s{}", dice.below(12)), n as usize));
                server.publish_lines(&events.collect::<Vec<_>>());
                published += count;
            }
            9..=18 if !members.is_empty() => {
                let member = &mut members[chosen];
                known.drain(member);
                // Often the last event, sometimes a much earlier one.
                let received = member.received.len() as u64;
                if received > 0 && dice.below(3) > 0 {
                    let back = if dice.below(2) == 0 { 0 } else { dice.below(received.min(40)) };
                    known.confirm(member, (received - 1 - back) as usize);
                }
            }
            19 if dice.below(10) == 0 => {
                members.clear();
                if dice.below(2) == 0 {
                    server.stop()
                } else {
                    server.kill()
                }
                server.restart();
            }
            _ => {}
        }
    }
    members.push(Member::join_as(&server, &asks));
    await_true("everything to be confirmed", {
        let state = std::cell::RefCell::new((members, &mut known));
        let server = &server;
        move || {
            let (members, known) = &mut *state.borrow_mut();
            for member in members {
                known.drain(member);
                if let Some(last) = member.received.len().checked_sub(1) {
                    known.confirm(member, last);
                }
            }
            listed(server)["position"] == json!(id_of(published))
        }
    });
    let all: BTreeSet<_> = (1..=published).collect();
    assert!(known.seen == all, "each event came to somebody");
    assert!(known.confirmed == all, "no position goes beyond what was confirmed");
}
