//! Peers that vanish without closing, as when a cable is pulled, and peers that hang. The server must find them by itself and
//! release their resources, and must not take a peer for gone that is only silent.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::{self, Command};
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use super::hostile::sockets;
use crate::support::*;

/// A network namespace that can be cut off from ours at once.
struct Elsewhere {
    /// Of the namespace, and of the near end of the link to it.
    name: String,
    /// Our address on that link.
    near: IpAddr,
}

impl Elsewhere {
    /// `None`, and a line on stderr, where namespaces cannot be made.
    fn lay(test: &str) -> Option<Elsewhere> {
        // Each run has four addresses of its own from the range for benchmarks (RFC 2544), so several runs do not collide.
        let (pid, [near, far]) = (process::id(), [1, 2].map(|host| 0xc612_0000 + process::id() % 0x4000 * 4 + host));
        let [near, far] = [near, far].map(|bits| IpAddr::V4(bits.into()));
        let cable = Elsewhere { name: format!("away{pid}"), near };
        let name = &cable.name;
        let why = match ip(&format!("netns add {name}")) {
            Ok(()) => None,
            Err(why) if why.is_empty() => Some("ip (apt-get install iproute2)".to_owned()),
            Err(why) => Some(format!("leave to make network namespaces, as root has it ({why})")),
        };
        if let Some(why) = why {
            skip(test, &why);
            return None;
        }
        for step in [
            format!("link add {name} type veth peer name far netns {name}"),
            format!("addr add {near}/30 dev {name}"),
            format!("link set {name} up"),
            format!("-n {name} addr add {far}/30 dev far"),
            format!("-n {name} link set far up"),
        ] {
            ip(&step).unwrap_or_else(|why| panic!("ip {step}: {why}"));
        }
        Some(cable)
    }

    /// Runs `body` in the namespace: its sockets belong there.
    fn within<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/var/run/netns/{}", self.name)).unwrap();
        let there = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            body()
        };
        thread::scope(|scope| scope.spawn(there).join().unwrap())
    }

    /// From now on nothing arrives at either end, and neither end is told.
    fn cut(&self) {
        ip(&format!("-n {} link set far down", self.name)).unwrap();
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // The far end is deleted with the near one, and the namespace with its last socket.
        let _ = ip(&format!("link del {}", self.name));
        let _ = ip(&format!("netns del {}", self.name));
    }
}

/// Runs `ip`. The error is its output, empty when there is no such program.
fn ip(arguments: &str) -> Result<(), String> {
    let ran = Command::new("ip").args(arguments.split(' ')).output().map_err(|_| String::new())?;
    match ran.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()),
    }
}

/// A publisher and a subscriber that only answer pings.
struct Quiet {
    publishing: TcpStream,
    answered: JoinHandle<Value>,
    /// Ends with an event. Returns the number of keep-alives before it.
    subscribed: JoinHandle<usize>,
}

impl Quiet {
    fn join(server: &Server) -> Quiet {
        let (mut publisher, mut subscriber) = (server.publisher(), server.subscriber(&json!({"session_id": "quiet"})));
        let publishing = publisher.stream().try_clone().unwrap();
        let keepalives = move || (0..).take_while(|_| subscriber.json() == json!({"type": "keepalive"})).count();
        Quiet { publishing, answered: thread::spawn(move || publisher.json()), subscribed: thread::spawn(keepalives) }
    }

    /// Checks that both are still served.
    fn speak(self) -> usize {
        send_all(&self.publishing, &[tick("quiet", 0)]);
        let answer = self.answered.join().unwrap();
        assert_eq!(answer["status"], "ok", "{answer}");
        self.subscribed.join().unwrap()
    }
}

#[test]
fn a_hanging_peer_gets_a_close_frame_and_a_peer_that_answers_pings_stays() {
    let server = Server::with(&[("KEEPALIVE_SECONDS", "0.5"), ("PING_TIMEOUT_SECONDS", "5")]);
    let quiet = Quiet::join(&server);
    let (mut mute_subscriber, mute_publisher) = (server.subscriber(&json!({})), server.publisher());

    let mut heard = Vec::new();
    mute_publisher.stream().read_to_end(&mut heard).unwrap();
    let reason = "No answer to a ping";
    let goodbye = heard.split_off(heard.len() - 2 - 2 - reason.len());
    assert_eq!(goodbye[2..], [&code_bytes(1011), reason.as_bytes()].concat());
    assert_eq!(heard, [0x80 | PING, 0].repeat(10), "a ping each half second, for five seconds");

    server.await_stats("the mute subscriber to be given up", |stats| stats["router"]["active_subscribers"] == 1);
    let (words, code) = mute_subscriber.read_to_close();
    assert!(words.iter().all(|word| word == r#"{"type":"keepalive"}"#), "{words:?}");
    assert_eq!(code, 1011);
    assert!(quiet.speak() > 10, "as long as it took to give up the mute");
}

#[test]
fn a_vanished_peer_is_found() {
    let Some(elsewhere) = Elsewhere::lay("half_open::a_vanished_peer_is_found") else { return };
    let near = elsewhere.near.to_string();
    // Two servers, to tell apart what finds a peer: unanswered pings, or bytes that it does not take.
    let by_pings = Server::with(&[
        ("HOST", near.as_str()),
        ("ALLOW_UNAUTHENTICATED", "true"),
        ("KEEPALIVE_SECONDS", "0.5"),
        ("PING_TIMEOUT_SECONDS", "5"),
        ("WRITE_TIMEOUT_SECONDS", "600"),
    ]);
    let by_bytes = Server::with(&[
        ("HOST", near.as_str()),
        ("ALLOW_UNAUTHENTICATED", "true"),
        ("KEEPALIVE_SECONDS", "600"),
        ("WRITE_TIMEOUT_SECONDS", "3"),
        ("HEADER_TIMEOUT_SECONDS", "3"),
        ("BODY_TIMEOUT_SECONDS", "3"),
    ]);
    let with_heartbeat = Server::with(&[
        ("HOST", near.as_str()),
        ("ALLOW_UNAUTHENTICATED", "true"),
        ("KEEPALIVE_SECONDS", "0.5"),
        ("WRITE_TIMEOUT_SECONDS", "3"),
    ]);
    let servers = [&by_pings, &by_bytes, &with_heartbeat];
    let at_first = servers.map(|server| sockets(server) + 2);
    by_bytes.publish_lines(&ticks("s", 50_000));
    let quiet = servers.map(Quiet::join);

    let gone = elsewhere.within(|| {
        let quiet = (by_pings.publisher(), by_pings.subscriber(&json!({})));
        let followers = (by_bytes.subscriber(&json!({})), EventStream::open(by_bytes.addr, ""));
        let quiet_reader = EventStream::open(with_heartbeat.addr, "");
        let requests = [
            request("GET", "/events", &[ACCEPT_NDJSON], b""),
            b"GET /heal".to_vec(),
            b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{".to_vec(),
            request("GET", "/health", &[], b""),
        ];
        let requests = requests.map(|request| {
            let mut wire = Wire::connect(by_bytes.addr);
            wire.send(request);
            wire
        });
        (quiet, followers, quiet_reader, requests)
    });
    let more = [2, 6, 1];
    for ((server, at_first), more) in servers.into_iter().zip(at_first).zip(more) {
        await_true("those who are to vanish", || sockets(server) == at_first + more);
    }
    elsewhere.cut();

    for (server, at_first) in servers.into_iter().zip(at_first) {
        await_true("those who vanished to be found", || {
            // An event that the subscribers of the second server do not take.
            if server.addr == by_bytes.addr {
                server.publish(&tick("s", 0));
            }
            sockets(server) == at_first
        });
        server.await_stats("one to subscribe", |stats| stats["router"]["active_subscribers"] == 1);
    }
    for quiet in quiet {
        quiet.speak();
    }
    drop(gone);
}
