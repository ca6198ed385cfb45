//! A durable subscriber that confirms what it receives until the server is gone.

use serde_json::{Value, json};

use super::record::Record;
use crate::support::*;

pub struct Consumer {
    socket: Socket,
    name: &'static str,
}

impl Consumer {
    /// Resumes after the confirmed position of the name. A new name begins with the first retained event.
    pub fn open(server: &Server, name: &'static str, record: &Record) -> Consumer {
        let is_new = server.get_json("/subscriptions").as_array().unwrap().iter().all(|one| one["name"] != name);
        let first = if is_new { json!({"name": name, "after": id_of(0)}) } else { json!({"name": name}) };
        record.subscribed(name);
        Consumer { socket: server.subscriber(&first), name }
    }

    /// Confirms every `each`-th event.
    pub fn confirm(mut self, record: &Record, each: u64) {
        let mut last = 0;
        while let Received::Text(event) = self.socket.receive() {
            let event: Value = serde_json::from_str(&event).unwrap();
            if event["type"] == "keepalive" {
                continue;
            }
            let seq = sequence(&event["id"]);
            assert!(seq > last, "{seq} after {last}");
            last = seq;
            if seq.is_multiple_of(each) {
                record.confirmed(self.name, seq);
                self.socket.send(&json!({"type": "ack", "id": event["id"]}).to_string());
            }
        }
    }

    /// Confirms one event after the other until the server is gone, and waits after each until its confirmation is
    /// stored.
    pub fn confirm_one_by_one(mut self, server: &Server) {
        while let Received::Text(event) = self.socket.receive() {
            let event: Value = serde_json::from_str(&event).unwrap();
            self.socket.send(&json!({"type": "ack", "id": event["id"]}).to_string());
            // The position in the file: `GET /subscriptions` may show a later one that is not stored yet.
            let is_stored = || {
                let database =
                    rusqlite::Connection::open_with_flags(server.db_path(), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY);
                let position = database.and_then(|database| {
                    let sql = "SELECT position FROM subscriptions WHERE name = ?1";
                    database.query_row(sql, [self.name], |row| row.get::<_, i64>(0))
                });
                // Once the server is gone the file may be unreadable.
                position.is_err() || position.is_ok_and(|position| position as u64 >= sequence(&event["id"]))
            };
            await_true("a confirmation", || is_stored() || !server.is_running());
        }
    }
}
