//! The load test against servers that keep their promises and servers that do not: what it must notice.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use event_pipeline::wire::frame::{self, Decoder, Message, Role};
use serde_json::Value;

/// Every run has ended by then: also one that waits for answers that do not come.
const DEADLINE: Duration = Duration::from_secs(90);

/// What a server does wrong, at one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// It answers with the event before.
    AcknowledgesTwice,
    /// It answers with the event after, and then with this one.
    Swaps,
    /// It acknowledges and does not store.
    Loses,
    Refuses,
    HangsUp,
    /// It does not deliver to the first subscriber.
    SkipsDelivery,
    /// It delivers twice to the first subscriber.
    RepeatsDelivery,
}

/// The event.
const FAULTY: u64 = 100;

/// A server that stores nothing.
#[derive(Clone)]
struct Server {
    fault: Fault,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    events: u64,
    subscribers: Vec<TcpStream>,
}

impl Server {
    /// Serves until the test ends; returns its URL.
    fn start(fault: Fault) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let server = Self { fault, state: Arc::default() };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, stream) = (server.clone(), stream.expect("a connection"));
                thread::spawn(move || server.serve(stream));
            }
        });
        url
    }

    fn serve(&self, mut stream: TcpStream) {
        while let Some(head) = read_head(&mut stream) {
            let stored = self.state.lock().expect("no panic").events;
            let body = match head.split(' ').nth(1).expect("a path") {
                "/ws/publish" => return self.publish(stream),
                "/ws/subscribe" => return self.subscribe(stream),
                "/events?limit=1" => "[]".to_owned(),
                "/stats" => {
                    let lost = u64::from(self.fault == Fault::Loses && stored > 0);
                    format!(r#"{{"total_events":{}}}"#, stored - lost)
                }
                path => panic!("{path}"),
            };
            let length = body.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").expect("a reader");
        }
    }

    /// Answers and delivers what a publisher sends until it leaves.
    fn publish(&self, mut stream: TcpStream) {
        switch(&mut stream);
        let mut decoder = Decoder::new(Role::Server, 1 << 20);
        loop {
            let mut answers = Vec::new();
            let mut state = self.state.lock().expect("no panic");
            let before = state.events;
            let mut events = Vec::new();
            while let Some(message) = decoder.next().expect("frames without fault") {
                let Message::Text(text) = message else { panic!("{message:?}") };
                state.events += 1;
                if state.events == FAULTY && self.fault == Fault::HangsUp {
                    return;
                }
                self.answer(state.events, &mut answers);
                events.push(format!(r#"{{"id":"{}",{}"#, id(state.events), &text[1..]));
            }
            for (number, subscriber) in state.subscribers.iter_mut().enumerate() {
                let mut out = Vec::new();
                for (event, text) in (before + 1..).zip(&events) {
                    let copies = match (number, event, self.fault) {
                        (0, FAULTY, Fault::SkipsDelivery) => 0,
                        (0, FAULTY, Fault::RepeatsDelivery) => 2,
                        _ => 1,
                    };
                    (0..copies).for_each(|_| frame::text(&mut out, text.as_bytes()));
                }
                // They may leave before the publisher does.
                let _ = subscriber.write_all(&out);
            }
            drop(state);
            if stream.write_all(&answers).is_err() || !read_more(&mut stream, &mut decoder) {
                return;
            }
        }
    }

    fn answer(&self, event: u64, out: &mut Vec<u8>) {
        const NEXT: u64 = FAULTY + 1;
        let answered = match (self.fault, event) {
            (Fault::Refuses, FAULTY) => return frame::text(out, br#"{"status":"error","message":"Not today"}"#),
            (Fault::AcknowledgesTwice, FAULTY) | (Fault::Swaps, NEXT) => event - 1,
            (Fault::Swaps, FAULTY) => event + 1,
            _ => event,
        };
        frame::text(out, format!(r#"{{"status":"ok","event_id":"{}"}}"#, id(answered)).as_bytes());
    }

    fn subscribe(&self, mut stream: TcpStream) {
        switch(&mut stream);
        let mut decoder = Decoder::new(Role::Server, 1 << 20);
        assert!(read_more(&mut stream, &mut decoder), "a subscriber leaves before it has said what it wants");
        let mut answer = Vec::new();
        frame::text(&mut answer, br#"{"status":"subscribed"}"#);
        let mut state = self.state.lock().expect("no panic");
        stream.write_all(&answer).expect("a reader");
        state.subscribers.push(stream);
    }
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).expect("a head in ASCII"))
}

fn switch(stream: &mut TcpStream) {
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").expect("a reader");
}

fn read_more(stream: &mut TcpStream, decoder: &mut Decoder) -> bool {
    let mut bytes = [0; 16 << 10];
    let count = stream.read(&mut bytes).unwrap_or(0);
    bytes::BufMut::put_slice(decoder.space(), &bytes[..count]);
    count > 0
}

fn id(event: u64) -> String {
    format!("evt_{event:012x}")
}

/// Measures a server with this fault for a second.
fn measure(fault: Fault, options: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(options.split(' ')).args(["--json", "--seconds", "1", "--url", &Server::start(fault)]);
    let (ended, output) = mpsc::channel();
    thread::spawn(move || ended.send(command.output()));
    output.recv_timeout(DEADLINE).expect("the load test ends").expect("the load test starts")
}

/// Expects that the first violation begins so.
fn notices(fault: Fault, options: &str, expected: &str) {
    let output = measure(fault, options);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{fault:?}, {options}: {stderr}");
    assert!(stderr.starts_with(expected), "{fault:?}, {options}: {stderr}");
}

const PUBLISH: &str = "publish --connections 1 --window 8";
const FANOUT: &str = "fanout --subscribers 3 --window 8";
const BY_TYPE: &str = "fanout --subscribers 15 --filter type --window 8";

#[test]
fn an_honest_server_passes() {
    for options in ["publish --window 8", "publish --rate 500", FANOUT, "fanout --subscribers 3 --rate 100"] {
        let output = measure(Fault::None, options);
        assert_eq!(output.status.code(), Some(0), "{options}: {}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        let (events, p50) = (&report["events"]["count"], &report["latency_us"]["p50"]);
        assert!(events.as_u64() > Some(0) && p50.as_f64() > Some(0.0), "{options}: {report}");
        if let Some(subscribers) = report["options"]["subscribers"].as_u64() {
            assert!(report["deliveries"]["count"].as_u64() >= Some(subscribers), "{options}: {report}");
        }
    }
}

#[test]
fn broken_acknowledgements_are_noticed() {
    notices(Fault::AcknowledgesTwice, PUBLISH, "VIOLATION: event 99 was acknowledged twice\n");
    notices(Fault::Swaps, PUBLISH, "VIOLATION: on one connection, event 100 was answered after 101\n");
    notices(Fault::Refuses, PUBLISH, "VIOLATION: ");
}

#[test]
fn lost_events_and_connections_are_noticed() {
    let output = measure(Fault::Loses, PUBLISH);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains(" are stored\n"), "{stderr}");
    notices(Fault::HangsUp, PUBLISH, "loadtest: the server hung up\n");
}

#[test]
fn broken_deliveries_are_noticed() {
    notices(Fault::SkipsDelivery, FANOUT, "VIOLATION: subscriber 0 got event 101 after 99\n");
    notices(Fault::RepeatsDelivery, FANOUT, "VIOLATION: subscriber 0 got event 100 after 100\n");
}

#[test]
fn filtered_deliveries_are_compared_with_what_was_published() {
    // This server does not filter, so that most subscribers get more than they asked for.
    notices(Fault::None, BY_TYPE, "VIOLATION: subscriber 0 got ");
}
