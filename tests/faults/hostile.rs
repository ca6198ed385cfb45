//! What the tests of hostile clients have in common: somebody who must not suffer, and what an attack costs.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::support::*;

/// A producer and a subscriber that were there before. Whatever others do, they are served.
pub struct Bystanders {
    publisher: Socket,
    subscriber: Socket,
    spoken: usize,
}

impl Bystanders {
    pub fn join(server: &Server) -> Bystanders {
        let subscriber = server.subscriber(&json!({"source": "bystander"}));
        Bystanders { publisher: server.publisher(), subscriber, spoken: 0 }
    }

    /// Publishes an event and receives it, and nothing else before.
    pub fn are_served(&mut self) {
        let n = self.spoken;
        self.spoken += 1;
        let event = json!({"event_type": "timer_tick", "source": "bystander", "payload": {"n": n}});
        let answer = self.publisher.ask(&event.to_string());
        assert_eq!(answer["status"], "ok", "{answer}");
        let mut delivered = self.subscriber.json();
        while delivered["type"] == "keepalive" {
            delivered = self.subscriber.json();
        }
        assert_eq!([&delivered["id"], &delivered["payload"]["n"]], [&answer["event_id"], &json!(n)]);
    }

    /// How many events they stored.
    pub fn stored(&self) -> usize {
        self.spoken
    }
}

/// Watches what of the server is in memory.
pub struct Memory<'s> {
    server: &'s Server,
    at_first: u64,
}

impl Memory<'_> {
    pub fn of(server: &Server) -> Memory<'_> {
        Memory { server, at_first: resident_bytes(server.pid()) }
    }

    pub fn has_grown_less_than(&self, bytes: u64) {
        let grown = resident_bytes(self.server.pid()).saturating_sub(self.at_first);
        assert!(grown < bytes, "{} MiB grew by {} MiB", self.at_first >> 20, grown >> 20);
    }
}

pub const MIB: u64 = 1 << 20;

/// How many sockets the server has open.
pub fn sockets(server: &Server) -> usize {
    let is_socket =
        |file: &Path| fs::read_link(file).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
    let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    open.filter(|file| file.as_ref().is_ok_and(|file| is_socket(&file.path()))).count()
}
