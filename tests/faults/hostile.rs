//! Shared by the tests of hostile clients: bystanders that must be served all the time, and the memory of the server.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::support::*;

/// A well-behaved producer and subscriber, connected before an attack. They must be served throughout.
pub struct Bystanders {
    publisher: Socket,
    subscriber: Socket,
    published: usize,
}

impl Bystanders {
    pub fn join(server: &Server) -> Bystanders {
        let subscriber = server.subscriber(&json!({"source": "bystander"}));
        Bystanders { publisher: server.publisher(), subscriber, published: 0 }
    }

    /// Publishes an event, and checks that the subscriber receives it next.
    pub fn are_served(&mut self) {
        let n = self.published;
        self.published += 1;
        let event = json!({"event_type": "timer_tick", "source": "bystander", "payload": {"n": n}});
        let answer = self.publisher.ask(&event.to_string());
        assert_eq!(answer["status"], "ok", "{answer}");
        let mut delivered = self.subscriber.json();
        while delivered["type"] == "keepalive" {
            delivered = self.subscriber.json();
        }
        assert_eq!([&delivered["id"], &delivered["payload"]["n"]], [&answer["event_id"], &json!(n)]);
    }

    /// How many events they have stored.
    pub fn stored(&self) -> usize {
        self.published
    }
}

/// The resident memory of a server, compared with what it was when this was made.
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
