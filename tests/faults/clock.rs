//! The system clock is set back and forward under load: times increase, the time of an event is an exact cursor, and
//! every timeout follows the monotonic clock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::*;

const KEEPALIVE: &str = r#"{"type":"keepalive"}"#;
const HOUR: i64 = 3_600;
const YEAR: i64 = 365 * 24 * HOUR;

/// A server with a system clock of its own, which [`set_clock`] sets. `None` without libfaketime.
fn start(test: &str, settings: &[(&str, &str)]) -> Option<Server> {
    let Some(library) = libfaketime() else {
        skip(test, "libfaketime (apt-get install faketime)");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    set_clock(folder.path(), 0);
    let (library, clock) = (library.to_str().unwrap().to_owned(), clock(folder.path()).to_str().unwrap().to_owned());
    let mut all = vec![
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock.as_str()),
        ("FAKETIME_NO_CACHE", "1"),
        // Setting the system clock of a real machine does not change the monotonic clock either.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    all.extend(settings);
    let mut server = Server::in_folder(folder, &all);
    server.allow_noise();
    Some(server)
}

fn libfaketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.map(|entry| entry.unwrap().path());
    folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|library| library.is_file())
}

fn clock(folder: &Path) -> PathBuf {
    folder.join("clock")
}

/// Sets the clock of the server in this folder to `ahead` seconds after the true time.
fn set_clock(folder: &Path, ahead: i64) {
    let new = folder.join("new-clock");
    std::fs::write(&new, format!("{ahead:+}\n")).unwrap();
    std::fs::rename(new, clock(folder)).unwrap();
}

/// How far a clock is behind that shows 1970, as one does that has lost its battery: in seconds, negative.
fn at_the_epoch() -> i64 {
    -(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64)
}

/// Warnings and errors in the log.
fn warnings(server: &Server) -> Vec<String> {
    let lines = server.log().into_iter();
    lines
        .filter(|line| !["INFO", "DEBUG"].iter().any(|level| line.contains(&format!("\"level\":\"{level}\""))))
        .collect()
}

/// Clients of several kinds, each in a thread, and how much each has done.
#[derive(Default)]
struct Traffic {
    stopped: AtomicBool,
    messages: AtomicU64,
    requests: AtomicU64,
    polled: AtomicU64,
    streamed: AtomicU64,
    conflated: AtomicU64,
    keepalives: AtomicU64,
    /// Idempotency key → the id that the event got.
    keyed: Mutex<BTreeMap<String, Value>>,
    /// The events that a polling client got, which asks for events after the last time it saw.
    seen: Mutex<Vec<Value>>,
}

impl Traffic {
    fn is_on(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    fn publish_messages(&self, server: &Server) {
        let mut publisher = server.publisher();
        while self.is_on() {
            acknowledged(&publisher.pipeline(&ticks("messages", 20)));
            self.messages.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends each request twice: the server recognises the second one by its key.
    fn publish_requests(&self, server: &Server) {
        let mut wire = Wire::connect(server.addr);
        for n in 0.. {
            if !self.is_on() {
                return;
            }
            let key = format!("key-{n}");
            let mut ids = [201, 200].map(|status| {
                wire.send(request(
                    "POST",
                    "/events",
                    &[JSON, ("Idempotency-Key", &key)],
                    tick("requests", n).as_bytes(),
                ));
                let answer = wire.response().unwrap();
                assert_eq!(answer.status, status, "{}", answer.text());
                answer.json()["id"].take()
            });
            assert_eq!(ids[0], ids[1], "{key}");
            self.keyed.lock().unwrap().insert(key, ids[0].take());
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Polls for events after the last one seen: each event arrives exactly once.
    fn poll(&self, server: &Server) {
        let mut query = String::new();
        while self.is_on() {
            let new = server.stored(&query);
            let Some(last) = new.last() else { continue };
            query = format!("since={}", timestamp(last));
            let mut seen = self.seen.lock().unwrap();
            let before = seen.len() as u64;
            assert_eq!(sequences(&new), (before + 1..=before + new.len() as u64).collect::<Vec<_>>(), "after {before}");
            seen.extend(new);
            self.polled.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn stream(&self, mut stream: EventStream) {
        let mut last = 0;
        while let StreamPart::Block(block) = stream.receive() {
            if block.data.is_some() {
                assert_eq!(sequence(&block.json()["id"]), last + 1, "no gap and no repeat");
                last += 1;
                self.streamed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn conflate(&self, mut subscriber: Socket) {
        let mut last = 0;
        while let Received::Text(event) = subscriber.receive() {
            if event == KEEPALIVE {
                continue;
            }
            let event: Value = serde_json::from_str(&event).unwrap();
            assert!(sequence(&event["id"]) > last, "{event} after {last}");
            last = sequence(&event["id"]);
            self.conflated.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn idle(&self, mut subscriber: Socket) {
        while let Received::Text(word) = subscriber.receive() {
            assert_eq!(word, KEEPALIVE);
            self.keepalives.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until each client has done at least three things more.
    fn await_progress(&self, when: &str) {
        let all = [
            ("messages", &self.messages),
            ("requests", &self.requests),
            ("polls", &self.polled),
            ("streamed events", &self.streamed),
            ("conflated events", &self.conflated),
            ("keep-alives", &self.keepalives),
        ];
        let before = all.map(|(_, count)| count.load(Ordering::Relaxed));
        for ((what, count), before) in all.iter().zip(before) {
            await_true(&format!("{what} {when}"), || count.load(Ordering::Relaxed) > before + 2);
        }
    }
}

fn check_times(all: &[Value]) {
    assert_eq!(sequences(all), (1..=all.len() as u64).collect::<Vec<_>>(), "ids are dense");
    for pair in all.windows(2) {
        assert!(timestamp(&pair[0]) < timestamp(&pair[1]), "{} and then {}", pair[0], pair[1]);
    }
}

#[test]
fn times_increase_and_are_exact_cursors_while_the_clock_steps() {
    let settings = [("KEEPALIVE_SECONDS", "0.2"), ("SUBSCRIBE_TIMEOUT_SECONDS", "1")];
    let test = "times_increase_and_are_exact_cursors_while_the_clock_steps";
    let Some(mut server) = start(test, &settings) else { return };
    let traffic = Traffic::default();
    let steps = [
        ("a second back", -1),
        ("forward to the true time", 0),
        ("hours back", -5 * HOUR),
        ("at the epoch", at_the_epoch()),
        ("a century ahead", 100 * YEAR),
        ("back at the true time", 0),
    ];
    let at_steps = thread::scope(|scope| {
        let (server, traffic) = (&server, &traffic);
        let stream = EventStream::open(server.addr, "since=1970-01-01T00:00:00Z");
        let conflating = server.subscriber(&json!({"conflate": {"key": "session_id", "interval_ms": 20}}));
        let idle = server.subscriber(&json!({"session_id": "nobody"}));
        scope.spawn(|| traffic.stream(stream));
        scope.spawn(|| traffic.conflate(conflating));
        scope.spawn(|| traffic.idle(idle));
        let clients = [
            scope.spawn(|| traffic.poll(server)),
            scope.spawn(|| traffic.publish_messages(server)),
            scope.spawn(|| traffic.publish_requests(server)),
        ];
        let at_steps = steps.map(|(step, ahead)| {
            let seen = traffic.seen.lock().unwrap().len();
            set_clock(server.folder(), ahead);
            let mut silent_client = Socket::open(server.addr, "/ws/subscribe");
            traffic.await_progress(step);
            assert_eq!(silent_client.read_to_close().1, 1008, "{step}: a silent_client connection is closed in time");
            seen.max(1)
        });
        traffic.stopped.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
        server.signal("KILL");
        at_steps
    });
    let complaints = warnings(&server);
    assert!(complaints.iter().all(|line| line.contains("the clock is behind")), "{complaints:#?}");
    server.kill();

    // The restarted server has a clock an hour behind the end of the last run.
    set_clock(server.folder(), -HOUR);
    server.restart();
    let all = server.stored("");
    let new = server.publish(&tick("after", 0));
    let last = timestamp(all.last().unwrap());
    assert!(timestamp(&new) > last, "{new} after {last}");
    assert_eq!(sequences(&server.stored(&format!("since={last}"))), [all.len() as u64 + 1]);
    let lines = server.stored_lines("");
    let all: Vec<_> = all.into_iter().chain([new]).collect();
    check_times(&all);
    let seen = traffic.seen.into_inner().unwrap();
    assert!(all.starts_with(&seen), "the polling client saw what is stored");

    // The times of random events, and of the events around each step, are exact cursors.
    let mut dice = Random::seeded();
    let random = (0..8).map(|_| dice.below(all.len() as u64) as usize);
    for place in random.chain(at_steps.iter().flat_map(|place| [place - 1, *place])) {
        let time = timestamp(&all[place]);
        assert!(server.stored_lines(&format!("since={time}")) == lines[place + 1..], "since event {}", place + 1);
        assert!(server.stored_lines(&format!("until={time}")) == lines[..place], "until event {}", place + 1);
        let mut stream = EventStream::open(server.addr, &format!("since={time}&until={last}"));
        let of_stream = (place + 1..all.len() - 2).map(|n| n as u64 + 1).take(5).collect::<Vec<_>>();
        assert_eq!(stream.sequences(of_stream.len()), of_stream);
    }
    for (key, id) in traffic.keyed.into_inner().unwrap().iter().step_by(7) {
        let n = key.strip_prefix("key-").unwrap().parse().unwrap();
        let again = server.call("POST", "/events", &[JSON, ("Idempotency-Key", key)], tick("requests", n).as_bytes());
        assert_eq!((again.status, &again.json()["id"]), (200, id), "{key}");
    }
    let newest: BTreeMap<_, _> = all.iter().map(|event| (event["session_id"].to_string(), event)).collect();
    let mut newest: Vec<_> = newest.into_values().cloned().collect();
    newest.sort_by_key(|event| sequence(&event["id"]));
    let mut dashboard = server.subscriber(&json!({"snapshot": {"latest_by": "session_id"}}));
    assert_eq!(dashboard.collect(newest.len()), newest);

    let place = dice.below(all.len() as u64) as usize;
    let target = format!("/events?before={}", timestamp(&all[place]));
    assert_eq!(server.call("DELETE", &target, &[], b"").json(), json!({"deleted": place}));
    assert!(server.stored_lines("") == lines[place..], "what is left after {target}");
    // Times are not given out again, even if every event that had one is deleted.
    server.call("DELETE", "/events", &[], b"");
    server.kill();
    set_clock(server.folder(), at_the_epoch());
    server.restart();
    let new = server.publish(&tick("after", 1));
    assert!(timestamp(&new) > timestamp(all.last().unwrap()), "{new}");
}

#[test]
fn a_clock_behind_the_last_event_is_logged_once_and_the_last_hour_counts_back_from_that_event() {
    let test = "a_clock_behind_the_last_event_is_logged_once_and_the_last_hour_counts_back_from_that_event";
    let Some(server) = start(test, &[]) else { return };
    let last_hour = || server.get_json("/stats")["events_last_hour"].as_u64().unwrap();
    let clock = |ahead| set_clock(server.folder(), ahead);
    server.publish_lines(&ticks("s", 3));
    clock(2 * HOUR);
    assert_eq!(last_hour(), 0);
    server.publish_lines(&ticks("s", 2));
    assert_eq!(last_hour(), 2);
    assert_eq!(warnings(&server), [""; 0]);
    for (episode, ahead) in [(1, -HOUR), (2, at_the_epoch())] {
        let before = last_hour();
        clock(ahead);
        assert_eq!(last_hour(), before, "the last hour is counted back from the last event, not from the clock");
        server.publish(&tick("s", 0));
        server.publish(&tick("s", 1));
        assert_eq!(last_hour(), before + 2);
        // The log line may be written after the answer is sent.
        let lines_with = |what: &str| server.log().iter().filter(|line| line.contains(what)).count();
        await_true("a warning in the log", || lines_with("the clock is behind") == episode);
        clock(2 * HOUR);
        server.publish(&tick("s", 2));
        await_true("the end of the episode in the log", || lines_with("has passed the last event") == episode);
        assert_eq!(warnings(&server).len(), episode, "{:#?}", warnings(&server));
    }
}

/// Of the connection that the key has opened, too, which waits by the monotonic clock.
#[test]
fn a_key_ends_by_the_system_clock_when_it_is_set_forward() {
    let name = "a_key_ends_by_the_system_clock_when_it_is_set_forward";
    let Some(server) = start(name, &[("REQUIRE_AUTH", "true")]) else { return };
    let mut add = command(server.folder());
    // The socket looks at the clock again 30 s before the end, which is in 6 s.
    let add = add.args(["keys", "add", "short", "--scope", "subscribe", "--expires", "36s"]);
    let key = Run::start(add, "").finish().stdout.trim_end().to_owned();
    let key = [("X-API-Key", &*key)];
    let who = || server.call("GET", "/whoami", &key, b"");
    await_true("the key", || who().status == 200);
    let mut socket = Socket::handshake(server.addr, "/ws/subscribe", &key).ok().expect("a subscriber");
    assert_eq!(socket.ask("{}")["status"], "subscribed");
    set_clock(server.folder(), HOUR);
    assert_eq!(who().refusal(401), "The API key has expired");
    assert_eq!(socket.read_to_close().1, 4001);
    set_clock(server.folder(), 0);
    assert_eq!(who().status, 200, "the clock is right again");
}
