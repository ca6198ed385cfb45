//! The load test against fake servers: it must pass an honest one, and notice every broken promise of the others.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use event_pipeline::wire::decoder::{Decoder, Message};
use event_pipeline::wire::frame::{self, OpCode, Role};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use serde_json::value::RawValue;

/// Every run ends within 90 s, also one that waits 20 s for answers that do not come.
const DEADLINE: Duration = Duration::from_secs(90);

/// What a fake server does wrong, most of them at one event.
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
    /// It delivers every event to every subscriber.
    IgnoresFilters,
    /// It delivers another text than the one that was sent.
    AltersDelivery,
    /// It cuts the second subscriber off.
    CutsOff,
    /// It delivers nothing.
    DeliversNothing,
    /// It refuses every subscriber, and closes at once.
    IsFull,
    /// It counts subscribers that have left.
    NeverForgets,
    /// Its answers leave out the newest event.
    HidesNewest,
    /// Its answers leave out this event, if it is not the newest.
    LeavesOut,
    /// It gives events of other sessions too.
    MixesSessions,
    /// It gives events of before the time too.
    MistakesTimes,
    /// Its statistics of the types do not come to the sum.
    Miscounts,
    /// It refuses requests with 503 once it has stored 100 events.
    TurnsAway,
    /// It does so, but stores their events.
    StoresAndTurnsAway,
    /// It answers `/health` with 500.
    IsUnwell,
    /// It answers nothing for 3 s.
    Stalls,
    /// It takes 20 ms for each read of a socket.
    IsSlow,
    /// It closes each connection that subscribes, and answers `/health` only once.
    TurnsVisitorsAway,
    /// It sends dashboards every event.
    ConflatesNothing,
    /// It does not show dashboards the last event of a session.
    ShowsNotTheLast,
    /// It never says that a subscriber fell behind.
    NeverFallsBehind,
    /// It gives an event to every member of a group.
    IgnoresGroups,
    /// It stores another text than the one that was sent.
    StoresAltered,
    /// It counts an event that it does not store.
    StoresNothing,
}

/// The event at which it does so.
const FAULTY: u64 = 100;

/// How long a server stalls: longer than the run lasts.
const STALL: Duration = Duration::from_secs(3);

/// A server that stores in memory.
#[derive(Clone)]
struct Server {
    fault: Fault,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The events as they were sent, without the brace that they begin with.
    events: Vec<String>,
    subscribers: Vec<Subscriber>,
    /// How many of them are connected.
    connected: u64,
    /// How often it was asked for its health.
    checks: u64,
}

struct Subscriber {
    stream: TcpStream,
    /// The text that an event must contain, such as `"session_id":"a"`.
    filter: String,
    /// Whether it shares its events with other members of a group.
    is_member: bool,
    /// Whether it wants to be told when it falls behind.
    wants_signals: bool,
    /// What waits for the next update, by what tells the session, if it wants the latest only.
    pending: Option<BTreeMap<String, (u64, String)>>,
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
            let target = head.split(' ').nth(1).expect("a path");
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            if self.fault == Fault::TurnsVisitorsAway && ["/ws/subscribe", "/health"].contains(&path) {
                let mut state = self.state.lock().expect("no panic");
                state.checks += 1;
                if state.checks > 1 {
                    return;
                }
            }
            let (status, body) = match path {
                "/ws/publish" => return self.publish(stream),
                "/ws/subscribe" => return self.subscribe(stream),
                "/health" if self.fault == Fault::IsUnwell && self.state.lock().expect("no panic").events.len() > 9 => {
                    ("500 Internal Server Error", String::new())
                }
                "/health" => ("200 OK", r#"{"status":"ok","service":"fake","version":"1"}"#.to_owned()),
                "/events" if head.starts_with("POST") => match self.post(&head, &mut stream) {
                    Some(Ok(answer)) => ("201 Created", answer),
                    Some(Err(why)) => ("503 Service Unavailable", why),
                    None => return,
                },
                "/events" => ("200 OK", self.list(query)),
                "/stats" => ("200 OK", self.stats()),
                path => panic!("{path}"),
            };
            let length = body.len();
            // The client may be gone.
            if write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").is_err() {
                return;
            }
        }
    }

    /// Stores events and delivers them; returns the number of the first.
    fn store(&self, events: &[&str]) -> u64 {
        let mut state = self.state.lock().expect("no panic");
        let first = state.events.len() as u64 + 1;
        let members = state.subscribers.iter().filter(|subscriber| subscriber.is_member).count() as u64;
        for (number, subscriber) in state.subscribers.iter_mut().enumerate() {
            let mut out = Vec::new();
            for (event, text) in (first..).zip(events) {
                let copies = match (number, event, self.fault) {
                    _ if subscriber.is_member && event % members != number as u64 => 0,
                    (0, FAULTY, Fault::SkipsDelivery) => 0,
                    (0, FAULTY, Fault::RepeatsDelivery) => 2,
                    _ if text.contains(&subscriber.filter) || self.fault == Fault::IgnoresFilters => 1,
                    _ => 0,
                };
                let text = match self.fault {
                    Fault::AltersDelivery if event == FAULTY => {
                        delivered(event, &text.replace("payload\":{", "payload\":{ "))
                    }
                    Fault::CutsOff if (number, event) == (1, FAULTY) => {
                        let _ = subscriber.stream.shutdown(Shutdown::Both);
                        continue;
                    }
                    Fault::DeliversNothing => continue,
                    _ => delivered(event, text),
                };
                if event == FAULTY && subscriber.wants_signals && self.fault != Fault::NeverFallsBehind {
                    frame::text(&mut out, br#"{"type":"fell_behind","after":"evt_000000000001"}"#);
                }
                if let Some(pending) = &mut subscriber.pending {
                    let (_, session) = text.split_once(r#""session_id":""#).expect("a session");
                    pending.insert(session[..session.find('"').expect("its end")].to_owned(), (event, text.clone()));
                    continue;
                }
                (0..copies).for_each(|_| frame::text(&mut out, text.as_bytes()));
            }
            // Subscribers may leave before the publisher does.
            let _ = subscriber.stream.write_all(&out);
        }
        state.events.extend(events.iter().map(|text| text[1..].to_owned()));
        first
    }

    /// Answers what a publisher sends until it leaves.
    fn publish(&self, mut stream: TcpStream) {
        switch(&mut stream);
        let mut decoder = Decoder::new(Role::Server, 1 << 20);
        loop {
            let (mut answers, mut singles) = (Vec::new(), Vec::new());
            if self.fault == Fault::IsSlow {
                thread::sleep(Duration::from_millis(20));
            }
            while let Some(message) = decoder.next().expect("frames without fault") {
                let Message::Text(text) = message else { panic!("{message:?}") };
                match serde_json::from_str::<Vec<&RawValue>>(text) {
                    Ok(events) => self.answer_all(&events, &mut answers),
                    Err(_) => singles.push(text.to_owned()),
                }
            }
            let first = self.store(&singles.iter().map(String::as_str).collect::<Vec<_>>());
            for event in (first..).take(singles.len()) {
                match self.fault {
                    Fault::HangsUp if event == FAULTY => return,
                    Fault::Stalls if event == FAULTY => thread::sleep(STALL),
                    _ => {}
                }
                self.answer(event, &mut answers);
            }
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

    /// Stores an array and answers it.
    fn answer_all(&self, events: &[&RawValue], out: &mut Vec<u8>) {
        let first = self.store(&events.iter().map(|event| event.get()).collect::<Vec<_>>());
        let ids = (first..).take(events.len()).map(id).collect::<Vec<_>>();
        frame::text(out, serde_json::json!({ "status": "ok", "event_ids": ids }).to_string().as_bytes());
    }

    /// Stores an event or lines of them, if they come as a whole.
    fn post(&self, head: &str, stream: &mut TcpStream) -> Option<Result<String, String>> {
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
        let mut body = vec![0; length.parse().expect("a number")];
        stream.read_exact(&mut body).ok()?;
        let body = String::from_utf8(body).expect("UTF-8");
        let events = body.lines().collect::<Vec<_>>();
        let is_full = self.state.lock().expect("no panic").events.len() as u64 >= FAULTY;
        if is_full && self.fault == Fault::TurnsAway {
            return Some(Err("Full".to_owned()));
        }
        let first = self.store(&events);
        if is_full && self.fault == Fault::StoresAndTurnsAway {
            return Some(Err("Full".to_owned()));
        }
        Some(Ok(if head.contains("x-ndjson") {
            let ids = (first..).take(events.len()).map(|event| format!(r#""{}""#, id(event))).collect::<Vec<_>>();
            format!(r#"{{"count":{},"ids":[{}]}}"#, ids.len(), ids.join(","))
        } else {
            format!(r#"{{"id":"{}",{}"#, id(first), &events[0][1..])
        }))
    }

    /// The newest 100 events that match, or those after a cursor.
    fn list(&self, query: &str) -> String {
        let parameter = |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
        let limit = parameter("limit").map_or(100, |limit| limit.parse().expect("a number"));
        let state = self.state.lock().expect("no panic");
        let row = |event: u64, text: &str| match self.fault {
            Fault::StoresAltered if event == FAULTY => {
                delivered(event, &format!("{{{text}").replace("loadtest", "somebody"))
            }
            _ => delivered(event, &format!("{{{text}")),
        };
        let session = parameter("session_id").filter(|_| self.fault != Fault::MixesSessions);
        let session = session.map(|session| format!(r#""session_id":"{session}""#)).unwrap_or_default();
        let since = parameter("since").filter(|_| self.fault != Fault::MistakesTimes).unwrap_or_default();
        let before = parameter("before_id").map_or_else(|| id(u64::MAX >> 16), str::to_owned);
        let events = state.events.iter().enumerate().rev().map(|(before, text)| (before as u64 + 1, text));
        let matching = events
            .filter(|(event, _)| self.fault != Fault::StoresNothing || *event != FAULTY)
            .filter(|(event, text)| id(*event) < before && *time(*event) > *since && text.contains(&session))
            .skip(usize::from(self.fault == Fault::HidesNewest && limit > 1))
            .enumerate()
            .filter(|(place, (event, _))| self.fault != Fault::LeavesOut || *place == 0 || *event != FAULTY)
            .take(limit);
        let rows = matching.map(|(_, (event, text))| row(event, text));
        format!("[{}]", rows.collect::<Vec<_>>().join(","))
    }

    fn stats(&self) -> String {
        let state = self.state.lock().expect("no panic");
        let (stored, subscribers) = (state.events.len() as u64, state.connected);
        let total = stored - u64::from(self.fault == Fault::Loses && stored > 0);
        let of_type = total - u64::from(self.fault == Fault::Miscounts && stored > 0);
        let router = format!(r#"{{"active_subscribers":{subscribers}}}"#);
        format!(r#"{{"total_events":{total},"by_type":[{{"event_type":"a","count":{of_type}}}],"router":{router}}}"#)
    }

    fn subscribe(&self, mut stream: TcpStream) {
        if self.fault == Fault::IsFull {
            let mut out = SWITCH.to_vec();
            frame::text(&mut out, br#"{"status":"error","message":"Full"}"#);
            frame::close(&mut out, 1013, "Full");
            // All of it is one read, and then the end.
            stream.write_all(&out).and_then(|()| stream.shutdown(Shutdown::Write)).expect("a reader");
            let _ = stream.read_to_end(&mut Vec::new());
            return;
        }
        switch(&mut stream);
        let mut decoder = Decoder::new(Role::Server, 1 << 20);
        assert!(read_more(&mut stream, &mut decoder), "a subscriber leaves before it has said what it wants");
        let Ok(Some(Message::Text(request))) = decoder.next() else { panic!("a subscriber says nothing") };
        let request: Value = serde_json::from_str(request).expect("JSON");
        let filter = match (&request["session_id"], &request["user_id"], &request["event_types"][0]) {
            (Value::String(session), ..) => format!(r#""session_id":"{session}""#),
            (_, Value::String(user), _) => format!(r#""user_id":"{user}""#),
            (_, _, Value::String(event_type)) => format!(r#""event_type":"{event_type}""#),
            _ => String::new(),
        };
        let mut answer = Vec::new();
        frame::text(&mut answer, br#"{"status":"subscribed"}"#);
        {
            let mut state = self.state.lock().expect("no panic");
            stream.write_all(&answer).expect("a reader");
            let interval = request["conflate"]["interval_ms"].as_u64();
            let interval = interval.filter(|_| self.fault != Fault::ConflatesNothing);
            state.subscribers.push(Subscriber {
                stream: stream.try_clone().expect("another handle"),
                filter,
                is_member: request["group"].is_string() && self.fault != Fault::IgnoresGroups,
                wants_signals: request["signals"] == true,
                pending: interval.map(|_| BTreeMap::new()),
            });
            state.connected += 1;
            if let Some(interval) = interval {
                let (server, number) = (self.clone(), state.subscribers.len() - 1);
                thread::spawn(move || server.update(number, Duration::from_millis(interval)));
            }
        }
        self.attend(&mut stream, decoder);
        self.state.lock().expect("no panic").connected -= u64::from(self.fault != Fault::NeverForgets);
    }

    /// Sends a subscriber the latest of each session, again and again.
    fn update(&self, number: usize, interval: Duration) {
        loop {
            thread::sleep(interval);
            let mut state = self.state.lock().expect("no panic");
            let subscriber = &mut state.subscribers[number];
            let mut latest =
                subscriber.pending.take().into_iter().flatten().map(|(_, event)| event).collect::<Vec<_>>();
            latest.sort();
            if self.fault == Fault::ShowsNotTheLast {
                latest.pop();
            }
            let mut out = Vec::new();
            latest.iter().for_each(|(_, text)| frame::text(&mut out, text.as_bytes()));
            subscriber.pending = Some(BTreeMap::new());
            if subscriber.stream.write_all(&out).is_err() {
                return;
            }
        }
    }

    /// Answers a subscriber until it leaves.
    fn attend(&self, stream: &mut TcpStream, mut decoder: Decoder) {
        while read_more(stream, &mut decoder) {
            while let Ok(Some(message)) = decoder.next() {
                // Nothing may come between the bytes of what is delivered meanwhile.
                let _state = self.state.lock().expect("no panic");
                let mut answer = Vec::new();
                match message {
                    Message::Text(r#"{"type":"ping"}"#) => frame::text(&mut answer, br#"{"type":"pong"}"#),
                    Message::Close(_) => {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                    _ => {}
                }
                let _ = stream.write_all(&answer);
            }
        }
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

const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

fn switch(stream: &mut TcpStream) {
    stream.write_all(SWITCH).expect("a reader");
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

/// An event as it is delivered, of its text as it was sent.
fn delivered(event: u64, sent: &str) -> String {
    let fields = sent.strip_prefix('{').and_then(|sent| sent.strip_suffix('}')).expect("an object");
    let user = if fields.contains(r#""user_id""#) { "" } else { r#","user_id":null"# };
    let (before, payload) = fields.split_once(r#","payload""#).expect("a payload");
    format!(r#"{{"id":"{}",{before}{user},"payload"{payload},"timestamp":"{}"}}"#, id(event), time(event))
}

/// An event's timestamp.
fn time(event: u64) -> String {
    format!("2026-11-24T10:00:{:02}.{:06}Z", event / 1_000_000, event % 1_000_000)
}

/// Measures a server with this fault for a second.
fn measure(fault: Fault, options: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(options.split(' ')).args(["--json", "--url", &Server::start(fault)]);
    if !options.contains("--seconds") {
        command.args(["--seconds", "1"]);
    }
    let (ended, output) = mpsc::channel();
    thread::spawn(move || ended.send(command.output()));
    output.recv_timeout(DEADLINE).expect("the load test ends").expect("the load test starts")
}

/// Expects of each that what is said first begins so, and holds what comes after a `…`. All at once: they mostly wait.
fn must_notice(cases: &[(Fault, &str, &str)]) {
    let check = |(fault, options, expected): &(Fault, &str, &str)| {
        let output = measure(*fault, options);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{fault:?}, {options}: {stderr}");
        let (start, rest) = expected.split_once('…').unwrap_or((expected, ""));
        assert!(stderr.starts_with(start) && stderr.contains(rest), "{fault:?}, {options}: {stderr}");
    };
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || check(case));
        }
    });
}

const PUBLISH: &str = "publish --connections 1 --window 8";
const FANOUT: &str = "fanout --subscribers 3 --window 8";
const QUERY: &str = "query --readers 2 --rate 500 --stored 1000 --query-rate 200";
const MIXED: &str = "mixed --http 2 --ws 1 --ndjson 1 --subscribers 8 --readers 1 --sessions 3 --users 3 --rate 1500";
const SPIKE: &str = "spike --spike-seconds 1 --seconds 4 --http 2 --ws 1 --ndjson 1 --subscribers 8 --readers 1 \
    --sessions 3 --users 3 --rate 1500";
const SOAK: &str = "soak --http 0 --ws 2 --ndjson 0 --subscribers 4 --readers 1 --sessions 3 --users 3 --rate 500";
const CLASSES: &str = "classroom --classes 2 --dashboards 1 --overviews 1 --connections 3 --speed 50";
const OVERVIEW: &str = "classroom --classes 2 --dashboards 0 --overviews 1 --speed max --window 2";
const SLOW: &str = "slow-consumer --fast 1 --slow 1 --rate 500";
const OVERLOAD: &str = "overload --ws 1 --window 8 --http 2 --batch 3";
const IDLE: &str = "connections --idle 20 --at-once 3";
const STORM: &str = "connections --idle 0 --storm 3";
const DASHBOARD: &str = "dashboard --sessions 20 --ticks 20 --dashboards 2 --interval-ms 200";
const NAMES: &str = "fanout --subscribers 3 --window 8 --out-via names";
const GROUP: &str = "fanout --subscribers 3 --window 8 --out-via group";
const BY_TYPE: &str = "fanout --subscribers 15 --filter type --window 8";

#[test]
fn an_honest_server_passes() {
    let publish = ["publish --window 8", "publish --rate 500"];
    let fanout = [FANOUT, BY_TYPE, NAMES, GROUP, "fanout --subscribers 3 --rate 100"];
    let others = [QUERY, MIXED, SOAK, CLASSES, OVERVIEW, SLOW, DASHBOARD];
    let check = |options: &str| {
        let output = measure(Fault::None, options);
        // So many at once may be too much for the machine.
        let is_verified = matches!(output.status.code(), Some(0 | 3));
        assert!(is_verified, "{options}: {}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        let (events, p50) = (&report["events"]["count"], &report["latency_us"]["p50"]);
        assert!(events.as_u64() > Some(0) && p50.as_f64() > Some(0.0), "{options}: {report}");
        if let Some(subscribers) = report["options"]["subscribers"].as_u64() {
            assert!(report["deliveries"]["count"].as_u64() >= Some(subscribers), "{options}: {report}");
            assert!(!options.contains("via") || report["exercised"][1]["what"] == "confirmations", "{report}");
        }
    };
    thread::scope(|scope| {
        for options in publish.into_iter().chain(fanout).chain(others) {
            scope.spawn(move || check(options));
        }
    });
}

#[test]
fn an_interrupted_run_is_verified_and_reported() {
    for (fault, code) in [(Fault::None, 0), (Fault::Loses, 1)] {
        let url = Server::start(fault);
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.args(["publish", "--rate", "100", "--seconds", "600", "--json", "--url", &url]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the load test starts");
        let pid = Pid::from_child(&child);
        // At 100 events/s, 300 events are due only after the measurement has begun.
        wait_for_events(&url, 300);
        kill_process(pid, Signal::INT).expect("it runs");
        let output = child.wait_with_output().expect("the load test ends");
        assert_eq!(output.status.code(), Some(code), "{fault:?}: {}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert!(report["seconds"].as_f64() < Some(600.0) && report["events"]["count"].as_u64() > Some(0), "{report}");
        assert_eq!(report["notes"][0], "Ended early, by a signal.");
    }
}

/// Waits until so many events were delivered.
fn wait_for_events(url: &str, count: usize) {
    let authority = url.strip_prefix("http://").expect("a URL");
    let mut stream = TcpStream::connect(authority).expect("a server");
    stream.write_all(b"GET /ws/subscribe HTTP/1.1\r\n\r\n").expect("a server");
    read_head(&mut stream).expect("an answer");
    let mut request = Vec::new();
    frame::masked(&mut request, OpCode::Text, b"{}", *b"mask");
    stream.write_all(&request).expect("a server");
    let (mut decoder, mut received) = (Decoder::new(Role::Client, 1 << 20), 0);
    while received < count {
        assert!(read_more(&mut stream, &mut decoder), "the server hung up");
        while decoder.next().expect("frames without fault").is_some() {
            received += 1;
        }
    }
}

#[test]
fn broken_acknowledgements_are_noticed() {
    must_notice(&[
        (Fault::AcknowledgesTwice, PUBLISH, "VIOLATION: event 99 was acknowledged twice\n"),
        (Fault::AcknowledgesTwice, CLASSES, "VIOLATION: "),
        (Fault::Swaps, PUBLISH, "VIOLATION: on one connection, event 100 was answered after 101\n"),
        (Fault::Refuses, PUBLISH, "VIOLATION: "),
        (Fault::Refuses, SOAK, "VIOLATION: "),
        (Fault::HangsUp, PUBLISH, "loadtest: the server hung up\n"),
    ]);
}

#[test]
fn events_that_are_not_stored_as_they_were_sent_are_noticed() {
    must_notice(&[
        (Fault::Loses, PUBLISH, "VIOLATION: … are stored\n"),
        (Fault::Loses, OVERVIEW, "VIOLATION: "),
        (Fault::Loses, SPIKE, "VIOLATION: "),
        (Fault::StoresAltered, PUBLISH, "VIOLATION: event 100 is not stored as it was sent: {"),
        (Fault::StoresAltered, FANOUT, "VIOLATION: event 100 is not stored as it was sent: {"),
        (Fault::StoresNothing, PUBLISH, "VIOLATION: event 100 was acknowledged, and is not stored\n"),
        (Fault::StoresNothing, FANOUT, "VIOLATION: event 100 was acknowledged, and is not stored\n"),
    ]);
}

#[test]
fn broken_deliveries_are_noticed() {
    let full = r#"loadtest: subscriber 0: the server answered {"status":"error","message":"Full"}"#;
    must_notice(&[
        (Fault::IsFull, FANOUT, full),
        (Fault::SkipsDelivery, FANOUT, "VIOLATION: subscriber 0 got event 101 after 99\n"),
        (Fault::SkipsDelivery, MIXED, "VIOLATION: subscriber 0 got event 101 after 99\n"),
        (Fault::SkipsDelivery, OVERVIEW, "VIOLATION: subscriber 0 got event 101 after 99\n"),
        (Fault::SkipsDelivery, NAMES, "VIOLATION: subscriber 0 got event 101 after 99\n"),
        (Fault::RepeatsDelivery, FANOUT, "VIOLATION: subscriber 0 got event 100 after 100\n"),
        (Fault::RepeatsDelivery, SOAK, "VIOLATION: subscriber 0 got event 100 after 100\n"),
        (Fault::RepeatsDelivery, OVERVIEW, "VIOLATION: subscriber 0 got event 100 after 100\n"),
        (Fault::AltersDelivery, FANOUT, "VIOLATION: subscriber 0 got "),
        (Fault::AltersDelivery, MIXED, "VIOLATION: subscriber 0 got "),
        (Fault::AltersDelivery, OVERVIEW, "VIOLATION: subscriber 0 got "),
        (Fault::AltersDelivery, GROUP, "VIOLATION: subscriber 0 got "),
    ]);
}

#[test]
fn deliveries_to_the_wrong_subscriber_and_lost_subscribers_are_noticed() {
    must_notice(&[
        (Fault::IgnoresGroups, GROUP, "VIOLATION: subscriber 0 got "),
        (Fault::IgnoresFilters, BY_TYPE, "VIOLATION: subscriber 0 got "),
        (Fault::IgnoresFilters, MIXED, "VIOLATION: subscriber 2 got "),
        // A dashboard gets the events of the other class too.
        (Fault::IgnoresFilters, CLASSES, "VIOLATION: subscriber 0 got "),
        (Fault::IgnoresFilters, IDLE, "VIOLATION: subscriber "),
        (Fault::DeliversNothing, IDLE, "VIOLATION: subscriber 0 got 0 events, not the 1 it asked for\n"),
        (Fault::NeverForgets, STORM, "VIOLATION: the server counts "),
        // The event before the cut may have been in flight.
        (Fault::CutsOff, SLOW, "VIOLATION: subscriber 1 was cut off after event 9"),
        (Fault::SkipsDelivery, SLOW, "VIOLATION: subscriber 0 got event 101 after 99\n"),
        (Fault::ShowsNotTheLast, DASHBOARD, "VIOLATION: subscriber 0 was not shown the last event of every session\n"),
    ]);
}

#[test]
fn false_answers_are_noticed() {
    let ask = |what: &str| format!("{QUERY} --ask {what}");
    must_notice(&[
        (Fault::HidesNewest, &ask("latest"), "VIOLATION: /events?limit=100: event "),
        (Fault::HidesNewest, &ask("session --sessions 2"), "VIOLATION: /events?session_id=session-00000"),
        (Fault::LeavesOut, &ask("older"), "VIOLATION: /events?before_id=evt_0000000000"),
        (Fault::MixesSessions, &ask("session"), "VIOLATION: /events?session_id=session-00"),
        (Fault::MistakesTimes, &ask("since"), "VIOLATION: /events?since=2026-11-24T10:00:00.00"),
        (Fault::Miscounts, &ask("stats"), "VIOLATION: /stats: the statistics count "),
        (Fault::HidesNewest, MIXED, "VIOLATION: /events?"),
        (Fault::LeavesOut, SPIKE, "VIOLATION: /events?"),
    ]);
}

#[test]
fn idle_connections_and_churn_are_reported_and_checked() {
    let output = measure(Fault::None, &format!("{IDLE} --storm 3"));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let reports = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>();
    let [idle, storm] = &*reports else { panic!("two reports: {text}") };
    assert_eq!((idle["connections"]["count"].as_u64(), idle["acknowledged"].as_u64()), (Some(20), Some(20)), "{idle}");
    assert!(storm["connections"]["count"].as_u64() > Some(4), "{storm}");
    assert_eq!((&idle["latency_us"]["of"], &storm["latency_us"]["of"]), (&"connection".into(), &"connection".into()));
}

#[test]
fn an_overloaded_server_may_refuse_what_it_does_not_store() {
    let output = measure(Fault::TurnsAway, OVERLOAD);
    let report = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{report} {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&report).expect("one JSON object");
    let refused = &report["exercised"][0];
    assert!(refused["what"] == "events refused with 503" && refused["count"].as_u64() > Some(0), "{report}");
    must_notice(&[
        (Fault::StoresAndTurnsAway, OVERLOAD, "VIOLATION: … are stored\n"),
        (Fault::IsUnwell, OVERLOAD, "VIOLATION: /health was answered 500 after "),
    ]);
}

#[test]
fn a_run_in_which_nothing_was_exercised_shows_nothing() {
    must_notice(&[
        (Fault::TurnsVisitorsAway, STORM, "NOT EXERCISED: no clients connected"),
        (Fault::ConflatesNothing, DASHBOARD, "NOT EXERCISED: no events conflated away"),
        (Fault::NeverFallsBehind, SLOW, "NOT EXERCISED: no times that one fell behind"),
        (Fault::None, OVERLOAD, "NOT EXERCISED: no events refused with 503"),
        (Fault::None, "publish --rate 1 --batch 1000", "NOT EXERCISED: no events"),
    ]);
}

#[test]
fn what_was_due_before_the_end_counts_however_late_it_is_answered() {
    let output = measure(Fault::Stalls, "publish --connections 2 --rate 500");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let longest = report["latency_us"]["max"].as_f64().expect("a number") / 1e6;
    assert!((STALL.as_secs_f64() - 1.0..STALL.as_secs_f64() + 2.0).contains(&longest), "{report}");
    assert_eq!(report["loop"], "open");
}

#[test]
fn a_rate_that_is_not_reached_is_not_success() {
    let slow = measure(Fault::IsSlow, "publish --connections 1 --window 1 --rate 500");
    let stderr = String::from_utf8_lossy(&slow.stderr);
    assert!(stderr.starts_with("RATE MISSED: 500 events/s were asked for\n"), "{stderr}");
    assert_eq!(slow.status.code(), Some(3), "{stderr}");
    // Requests of many events are as rare as the rate says.
    let batches = measure(Fault::None, "publish --rate 2000 --batch 500 --seconds 2");
    assert_eq!(batches.status.code(), Some(0), "{}", String::from_utf8_lossy(&batches.stderr));
    let report: Value = serde_json::from_slice(&batches.stdout).expect("one JSON object");
    let count = report["events"]["count"].as_u64().expect("a number");
    assert!((3_500..=4_500).contains(&count), "{report}");
}
