//! Peers that vanish without a word, as when a cable is pulled, and peers that hang. The server must find them by itself
//! and let go of what they cost, and must not take somebody for gone who only has nothing to say.

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

/// A network of its own that can be cut off from ours at once.
struct Elsewhere {
    /// Of the network, and of the near end of the cable to it.
    name: String,
    /// Our address on that cable.
    near: IpAddr,
}

impl Elsewhere {
    /// Nothing, and a loud line, where networks cannot be made.
    fn lay(test: &str) -> Option<Elsewhere> {
        // Several runs of the tests get along: a network of four addresses out of those that are for such purposes.
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

    /// Does something there: what it connects belongs there.
    fn within<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/var/run/netns/{}", self.name)).unwrap();
        let there = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            body()
        };
        thread::scope(|scope| scope.spawn(there).join().unwrap())
    }

    /// From now on nothing arrives at either end, and nobody is told.
    fn cut(&self) {
        ip(&format!("-n {} link set far down", self.name)).unwrap();
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // The far end goes with the near one, and the namespace with its last socket.
        let _ = ip(&format!("link del {}", self.name));
        let _ = ip(&format!("netns del {}", self.name));
    }
}

/// Runs `ip`; an error is what it says, and empty when there is no such program.
fn ip(arguments: &str) -> Result<(), String> {
    let ran = Command::new("ip").args(arguments.split(' ')).output().map_err(|_| String::new())?;
    match ran.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()),
    }
}

/// Two who connect and then have nothing to say but that they are there: their pings are answered.
struct Quiet {
    publishing: TcpStream,
    answered: JoinHandle<Value>,
    /// Ends with an event, and then tells how often it was kept alive before.
    subscribed: JoinHandle<usize>,
}

impl Quiet {
    fn join(server: &Server) -> Quiet {
        let (mut publisher, mut subscriber) = (server.publisher(), server.subscriber(&json!({"session_id": "quiet"})));
        let publishing = publisher.stream().try_clone().unwrap();
        let keepalives = move || (0..).take_while(|_| subscriber.json() == json!({"type": "keepalive"})).count();
        Quiet { publishing, answered: thread::spawn(move || publisher.json()), subscribed: thread::spawn(keepalives) }
    }

    /// They are still there and served.
    fn speak(self) -> usize {
        send_all(&self.publishing, &[tick("quiet", 0)]);
        let answer = self.answered.join().unwrap();
        assert_eq!(answer["status"], "ok", "{answer}");
        self.subscribed.join().unwrap()
    }
}

#[test]
fn who_hangs_is_told_goodbye_and_who_answers_pings_stays() {
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
    let (words, code) = mute_subscriber.last_words();
    assert!(words.iter().all(|word| word == r#"{"type":"keepalive"}"#), "{words:?}");
    assert_eq!(code, 1011);
    assert!(quiet.speak() > 10, "as long as it took to give up the mute");
}

#[test]
fn who_vanishes_is_found() {
    let Some(elsewhere) = Elsewhere::lay("half_open::who_vanishes_is_found") else { return };
    let near = elsewhere.near.to_string();
    // Two servers, so that it is seen what finds whom: pings, or bytes that nobody takes.
    let by_pings = Server::with(&[
        ("HOST", near.as_str()),
        ("KEEPALIVE_SECONDS", "0.5"),
        ("PING_TIMEOUT_SECONDS", "5"),
        ("WRITE_TIMEOUT_SECONDS", "600"),
    ]);
    let by_bytes = Server::with(&[
        ("HOST", near.as_str()),
        ("KEEPALIVE_SECONDS", "600"),
        ("WRITE_TIMEOUT_SECONDS", "3"),
        ("HEADER_TIMEOUT_SECONDS", "3"),
        ("BODY_TIMEOUT_SECONDS", "3"),
    ]);
    let with_heartbeat =
        Server::with(&[("HOST", near.as_str()), ("KEEPALIVE_SECONDS", "0.5"), ("WRITE_TIMEOUT_SECONDS", "3")]);
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
            b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{".to_vec(),
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
            // Something that those who followed the second one do not take.
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
