//! Erasure: no byte of chosen events is in the files once their deletion is answered, wherever SQLite has moved their rows.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::*;

const USERS: u64 = 6;

/// Events of mixed lengths, each with marks of its own, and what was deleted of them.
struct Record {
    dice: Random,
    /// The user of each event, from the first one on.
    users: Vec<u64>,
    /// Numbers of the events that were chosen and deleted.
    gone: BTreeSet<u64>,
    /// Everything up to this number is deleted by time.
    deleted_through: u64,
}

impl Record {
    fn new() -> Self {
        Self { dice: Random::seeded(), users: Vec::new(), gone: BTreeSet::new(), deleted_through: 0 }
    }

    fn publish(&mut self, server: &Server, events: usize) {
        let dice = &mut self.dice;
        let mut lines = Vec::new();
        for seq in (self.users.len() as u64 + 1..).take(events) {
            let user = dice.below(USERS);
            // Most rows are shorter than a page; some are longer.
            let text = "x".repeat(if dice.below(40) == 0 { 9_000 } else { 50 + dice.below(1_150) } as usize);
            let mut event = json!({"event_type": "quiz_started", "source": "it", "user_id": format!("user-{user}"),
                                   "payload": {"mark": format!("<M{seq:07}>"), "text": text}});
            if dice.below(2) == 0 {
                event["idempotency_key"] = json!(format!("<K{seq:07}>{}", "k".repeat(dice.below(150) as usize)));
            }
            lines.push(event.to_string());
            self.users.push(user);
        }
        lines.chunks(200).for_each(|lines| drop(server.publish_lines(lines)));
    }

    /// Deletes the events before a random one, and does not wait until their rows are removed.
    fn delete_oldest(&mut self, server: &Server) {
        let left: Vec<_> =
            (self.deleted_through + 1..=self.users.len() as u64).filter(|n| !self.gone.contains(n)).collect();
        let first_left = left[self.dice.below(left.len() as u64 / 3 + 1) as usize];
        let time = timestamp(&server.get_json(&format!("/events/{}", id_of(first_left))));
        let answer = server.call("DELETE", &format!("/events?before={}", encode(&time)), &[], b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.deleted_through = first_left - 1;
    }

    fn choose(&mut self, user: u64) {
        let numbers = (1..).zip(&self.users).filter(|(seq, of)| **of == user && *seq > self.deleted_through);
        self.gone.extend(numbers.map(|(seq, _)| seq));
    }

    fn delete_user(&mut self, server: &Server, user: u64) {
        self.choose(user);
        let answer = server.call("DELETE", &target(user), &[], b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Checks that the files have nothing of the chosen events.
    fn check(&self, server: &Server, when: &str) {
        for end in ["db", "db-wal"] {
            let bytes = std::fs::read(server.db_path().with_extension(end)).unwrap_or_default();
            let marks = bytes.windows(10).filter(|mark| matches!(mark, [b'<', b'M' | b'K', .., b'>']));
            let numbers = marks.filter_map(|mark| std::str::from_utf8(&mark[2..9]).ok()?.parse().ok());
            let left: BTreeSet<u64> = numbers.filter(|seq| self.gone.contains(seq)).collect();
            assert!(left.is_empty(), "{when}: of {} deleted events, these are in the {end}: {left:?}", self.gone.len());
        }
    }
}

fn target(user: u64) -> String {
    format!("/events?user_id=user-{user}")
}

#[test]
fn no_byte_of_chosen_events_is_in_the_files_whichever_users_were_deleted_before() {
    let mut server = Server::start();
    let mut record = Record::new();
    for round in 0..8 {
        record.publish(&server, 600);
        for user in 1..USERS {
            record.delete_user(&server, user);
            record.check(&server, &format!("round {round}, user {user}"));
        }
        // What changes pages that had such bytes does not bring them back.
        record.publish(&server, 100);
        record.check(&server, &format!("round {round}, after other events"));
    }
    server.stop();
    record.check(&server, "after a stop");
    server.restart();
    assert_eq!(server.stored("").len() as u64, server.get_json("/stats")["total_events"].as_u64().unwrap());
}

#[test]
fn no_byte_of_chosen_events_is_in_the_files_when_the_rows_of_others_are_being_removed_and_the_server_is_killed() {
    let mut server = Server::start();
    let mut record = Record::new();
    for round in 0..12 {
        record.publish(&server, 700);
        for user in 1..USERS {
            let when = format!("round {round}, user {user}");
            for _ in 0..record.dice.below(4) {
                record.delete_oldest(&server);
            }
            if record.dice.below(3) == 0 {
                // Killed in the middle of the deletion, perhaps before its first commit. The client asks again.
                let mut wire = Wire::connect(server.addr);
                wire.send(request("DELETE", &target(user), &[], b""));
                if record.dice.below(2) == 0 {
                    server.get("/stats");
                }
                server.kill();
                server.restart();
            }
            record.delete_user(&server, user);
            record.check(&server, &when);
        }
    }
    server.kill();
    server.restart();
    record.check(&server, "after the last kill");
    let left = (record.deleted_through + 1..=record.users.len() as u64).filter(|seq| !record.gone.contains(seq));
    assert_eq!(sequences(&server.stored("")), left.collect::<Vec<_>>(), "all others are there");
    server.stop();
    let database = rusqlite::Connection::open(server.db_path()).unwrap();
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

#[test]
fn no_byte_of_chosen_events_is_in_the_files_while_the_disk_has_no_space_for_events() {
    let mut server = Server::start();
    let mut record = Record::new();
    record.publish(&server, 3_000);
    record.delete_oldest(&server);
    server.stop();
    server.allow_noise();
    server.set("FREE_SPACE_MIN_BYTES", Some("1024 GiB"));
    server.restart();
    assert_eq!(server.post(tick("s", 0)).status, 507);
    for user in 0..USERS {
        record.delete_user(&server, user);
        record.check(&server, &format!("user {user}"));
    }
}

#[test]
fn what_an_earlier_version_left_goes_with_the_next_deletion_of_chosen_events() {
    let mut server = Server::start();
    let mut record = Record::new();
    record.publish(&server, 2_000);
    server.stop();
    // Rows that are stored and deleted again without `secure_delete` are in free pages and in unused parts of others.
    let copies = "INSERT INTO events (seq, time_us, event_type, source, payload) \
                  SELECT seq + 2000, time_us, event_type, source, replace(payload, '<M', '<C') FROM events";
    let database = rusqlite::Connection::open(server.db_path()).unwrap();
    database
        .execute_batch(&format!("PRAGMA secure_delete = OFF; {copies}; DELETE FROM events WHERE seq > 2000"))
        .unwrap();
    drop(database);
    assert!(count_in(&server, b"<C") > 1_900, "the copies are there");
    server.restart();
    // Also if it deletes nothing.
    record.delete_user(&server, USERS);
    assert_eq!((count_in(&server, b"<C"), count_in(&server, b"<M")), (0, 2_000));
}

/// How many different marks of a kind are in the database.
fn count_in(server: &Server, kind: &[u8; 2]) -> usize {
    let bytes = std::fs::read(server.db_path()).unwrap();
    let marks = bytes.windows(10).filter(|mark| mark.starts_with(kind) && mark.ends_with(b">"));
    marks.map(<[u8]>::to_vec).collect::<BTreeSet<_>>().len()
}
