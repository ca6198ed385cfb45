//! Overload: producers while nothing can be stored, 10,000 clients, 4,000 clients that come and go, and no file
//! descriptors left. Every event is acknowledged or refused with a reason, the memory of the server stays within its
//! bounds, and other clients are served.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::support::*;

const MIB: u64 = 1 << 20;

/// An event of about 4 KiB with a token.
fn tokened(token: &str) -> String {
    json!({"event_type": "timer_tick", "source": "load", "payload": {"token": token, "text": "x".repeat(4_000)}})
        .to_string()
}

/// The numbers of open files and of open sockets of a process.
fn open_files(pid: u32) -> (usize, usize) {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets: Vec<_> = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok()).collect();
    (targets.len(), targets.iter().filter(|target| target.to_string_lossy().starts_with("socket:")).count())
}

fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The outcome of each event, by its token.
#[derive(Default)]
struct Outcomes {
    acknowledged: Mutex<Vec<String>>,
    refused: Mutex<Vec<String>>,
    /// How long each acknowledgement took.
    took_ms: Mutex<Vec<u128>>,
}

impl Outcomes {
    fn post_until(&self, addr: SocketAddr, number: usize, is_over: &AtomicBool) {
        let mut wire = Wire::connect(addr);
        for n in 0.. {
            if is_over.load(Ordering::Relaxed) {
                return;
            }
            let (token, start) = (format!("post-{number}-{n}"), Instant::now());
            wire.send(request("POST", "/events", &[JSON], tokened(&token).as_bytes()));
            let answer = wire.response().expect("an answer to every request");
            if answer.status == 201 {
                self.acknowledged.lock().unwrap().push(token);
                self.took_ms.lock().unwrap().push(start.elapsed().as_millis());
            } else {
                answer.refusal(503);
                assert!(answer.header("retry-after").is_some(), "a refusal says when to come back");
                self.refused.lock().unwrap().push(token);
            }
        }
    }

    /// Sends all messages without waiting for answers.
    fn send_all_at_once(&self, server: &Server, number: usize, count: usize) {
        let mut publisher = server.publisher();
        let tokens: Vec<_> = (0..count).map(|n| format!("message-{number}-{n}")).collect();
        let messages: Vec<_> = tokens.iter().map(|token| tokened(token)).collect();
        for (answer, token) in publisher.pipeline(&messages).into_iter().zip(tokens) {
            let outcomes = match answer["status"].as_str() {
                Some("ok") => &self.acknowledged,
                _ => &self.refused,
            };
            outcomes.lock().unwrap().push(token);
        }
    }
}

#[test]
fn overloading_producers_get_an_answer_to_every_event_within_the_memory_bound() {
    const QUEUE_BYTES: u64 = 4 * MIB;
    const POSTING: usize = 120;
    const SENDING: usize = 6;
    const MESSAGES: usize = 3_000;
    let mut server = Server::with(&[("MAX_QUEUE_SIZE", "64"), ("MAX_QUEUE_BYTES", "4194304"), ("MAX_IN_FLIGHT", "64")]);
    // On a slow machine the lock may last longer than the 5 s that the server waits: then it refuses for that reason.
    server.allow_noise();
    let (outcomes, is_over, health) = (Outcomes::default(), AtomicBool::new(false), AtomicUsize::new(0));
    let before = peak_bytes(server.pid());
    // Nothing is stored while another program holds the write lock, so any load is an overload.
    let mut database = rusqlite::Connection::open(server.db_path()).unwrap();
    let lock = database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    let peak = thread::scope(|scope| {
        let (server, outcomes, is_over, health) = (&server, &outcomes, &is_over, &health);
        for number in 0..POSTING {
            scope.spawn(move || outcomes.post_until(server.addr, number, is_over));
        }
        let sending: Vec<_> =
            (0..SENDING).map(|n| scope.spawn(move || outcomes.send_all_at_once(server, n, MESSAGES))).collect();
        // Some clients never read their answers.
        let unread: Vec<_> = (0..SENDING).map(|_| server.publisher()).collect();
        for socket in &unread {
            socket.stream().set_nonblocking(true).unwrap();
            let messages = frame(0x80 | TEXT, tokened("unread").as_bytes()).repeat(2_000);
            let _ = std::io::Write::write(&mut socket.stream(), &messages);
        }
        scope.spawn(move || {
            let mut wire = Wire::connect(server.addr);
            while !is_over.load(Ordering::Relaxed) {
                wire.send(request("GET", "/health", &[], b""));
                assert_eq!(wire.response().expect("an answer").status, 200);
                health.fetch_add(1, Ordering::Relaxed);
                thread::sleep(POLL);
            }
        });
        server.await_stats("a full queue", |stats| stats["router"]["queue_size"] == 64);
        await_true("refusals", || outcomes.refused.lock().unwrap().len() >= POSTING / 2);
        assert_eq!(server.get("/readiness").status, 503);
        drop(lock);
        sending.into_iter().for_each(|sending| sending.join().unwrap());
        await_true("acknowledged requests", || outcomes.took_ms.lock().unwrap().len() > POSTING);
        assert_eq!(server.get("/readiness").status, 200);
        let answered = health.load(Ordering::Relaxed);
        await_true("another answer of /health", || health.load(Ordering::Relaxed) > answered);
        let peak = peak_bytes(server.pid());
        is_over.store(true, Ordering::Relaxed);
        peak
    });

    let mut stored = HashSet::new();
    for event in server.stored("source=load") {
        let token = text_of(&event["payload"]["token"]);
        assert!(stored.insert(token.clone()) || token == "unread", "{token} is stored once");
    }
    let (acknowledged, refused) = (outcomes.acknowledged.into_inner().unwrap(), outcomes.refused.into_inner().unwrap());
    assert!(acknowledged.iter().all(|token| stored.contains(token)), "every acknowledged event is stored");
    assert!(!refused.iter().any(|token| stored.contains(token)), "no refused event is stored");
    stored.remove("unread");
    assert_eq!(stored.len(), acknowledged.len(), "every stored event was acknowledged");

    // The queue; 256 KiB a socket for one read, its events and their answers; and 32 MiB for SQLite's caches.
    let sockets = (POSTING + 2 * SENDING) as u64;
    let bound = QUEUE_BYTES + sockets * MIB / 4 + 32 * MIB;
    let offered = ((acknowledged.len() + refused.len()) * 4_100) as u64;
    let mut took = outcomes.took_ms.into_inner().unwrap();
    took.sort_unstable();
    println!(
        "{} acknowledged, {} refused; p50 {} ms, p99 {} ms; {} MiB more of at most {}, {} MiB offered",
        acknowledged.len(),
        refused.len(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        (peak - before) / MIB,
        bound / MIB,
        offered / MIB,
    );
    assert!(peak - before <= bound, "{} bytes more, {bound} are allowed", peak - before);
}

#[test]
fn large_bodies_beyond_the_memory_for_bodies_are_refused_with_503() {
    const BODIES_BYTES: u64 = 16 * MIB;
    const POSTING: usize = 48;
    const EVENTS: usize = 240;
    let mut server = Server::with(&[("MAX_BODIES_BYTES", "16777216"), ("MAX_QUEUE_BYTES", "1048576")]);
    server.allow_noise();
    let (refused, posted) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let before = peak_bytes(server.pid());
    let mut database = rusqlite::Connection::open(server.db_path()).unwrap();
    let lock = database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    thread::scope(|scope| {
        for number in 0..POSTING {
            let (server, refused, posted) = (&server, &refused, &posted);
            scope.spawn(move || {
                let mut wire = Wire::connect(server.addr);
                let body = vec![tokened(&format!("body-{number}")); EVENTS].join("\n");
                assert!(
                    body.len() as u64 * 7 * POSTING as u64 > 10 * BODIES_BYTES,
                    "the bodies take far more memory than there is for them"
                );
                loop {
                    wire.send(request("POST", "/events", &[NDJSON], body.as_bytes()));
                    // The connection stays usable: the server reads a refused body to its end.
                    let answer = wire.response().expect("an answer to every request");
                    if answer.status == 201 {
                        posted.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    let refusal = answer.refusal(503);
                    assert!(answer.header("retry-after").is_some(), "a refusal says when to come back");
                    if text_of(&refusal).contains("bodies") {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        await_true("refusals for want of memory", || refused.load(Ordering::Relaxed) >= POSTING);
        assert_eq!(server.get("/health").status, 200);
        drop(lock);
    });
    assert_eq!(posted.into_inner(), POSTING);
    let mut counts = HashMap::new();
    for event in server.stored("source=load") {
        *counts.entry(text_of(&event["payload"]["token"])).or_insert(0) += 1;
    }
    assert!(counts.len() == POSTING && counts.values().all(|count| *count == EVENTS), "once each: {counts:?}");

    // Besides the memory for bodies: 256 KiB a connection read ahead, and 64 MiB for SQLite's caches and the allocator.
    let (more, bound) = (peak_bytes(server.pid()) - before, BODIES_BYTES + POSTING as u64 * MIB / 4 + 64 * MIB);
    println!("{} refused; {} MiB more of at most {}", refused.into_inner(), more / MIB, bound / MIB);
    assert!(more <= bound, "{more} bytes more, {bound} are allowed");
}

#[test]
fn arrays_of_millions_of_tiny_elements_stay_within_the_memory_for_bodies() {
    const BODIES_BYTES: u64 = 64 * MIB;
    let server = Server::with(&[("MAX_BODIES_BYTES", "67108864")]);
    let before = peak_bytes(server.pid());
    for element in ["0", "[]", "{}"] {
        let body = format!("[{element}{}]", format!(",{element}").repeat((8 << 20) / (element.len() + 1)));
        let problems = server.post(body).refusal(422);
        assert_eq!(problems.as_array().map(Vec::len), Some(100), "{problems}");
    }
    // Besides the memory for bodies: 32 MiB that the allocator keeps for its threads.
    let (more, bound) = (peak_bytes(server.pid()) - before, BODIES_BYTES + 32 * MIB);
    assert!(more <= bound, "{} MiB more, {} are allowed", more / MIB, bound / MIB);
}

/// Stores 500 large events (2 MiB) this many times. Returns each status and the length of the write-ahead log after it.
fn store_large(server: &Server, times: usize) -> Vec<(u16, u64)> {
    let lines = vec![tokened("token"); 500].join("\n");
    let answers = (0..times).map(|_| {
        let stored = server.call("POST", "/events", &[NDJSON], lines.as_bytes());
        (stored.status, std::fs::metadata(server.db_path().with_extension("db-wal")).unwrap().len())
    });
    answers.collect()
}

/// All were stored, and the write-ahead log stayed below the 32 MiB that ARCHITECTURE.md says.
#[track_caller]
fn assert_wal_was_short(answers: &[(u16, u64)]) {
    const WAL_BYTES_MAX: u64 = 32 * MIB;
    assert!(answers.iter().all(|(status, _)| *status == 201), "{answers:?}");
    let longest = answers.iter().map(|(_, bytes)| *bytes).max().unwrap();
    println!("the write-ahead log grew to {} MiB", longest / MIB);
    assert!(longest < WAL_BYTES_MAX, "{longest} bytes");
}

#[test]
fn an_integrity_check_of_a_large_file_leaves_the_write_ahead_log_short() {
    let mut server = Server::with(&[("CHECK_AT_START", "false")]);
    // 50,000 events of 4 KiB: most of a segment, and 200 MiB for the integrity check to read.
    assert_wal_was_short(&store_large(&server, 100));
    server.stop();
    server.set("CHECK_AT_START", Some("true"));
    server.restart();
    // 70 MiB: twice what the write-ahead log may grow to.
    assert_wal_was_short(&store_large(&server, 35));
}

#[test]
fn readers_that_never_pause_leave_the_write_ahead_log_short() {
    const READERS: usize = 10;
    let server = Server::start();
    // Enough events that at any time some reader is in a transaction.
    server.publish_lines(&ticks("before", 20_000));
    let is_over = AtomicBool::new(false);
    let answers = thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut wire = Wire::connect(server.addr);
                while !is_over.load(Ordering::Relaxed) {
                    wire.send(request("GET", "/events?payload.x=nothing", &[], b""));
                    let answer = wire.response().expect("an answer");
                    assert_eq!((answer.status, answer.text()), (200, "[]".to_owned()));
                }
            });
        }
        // 70 MiB: twice what the write-ahead log may grow to.
        let answers = store_large(&server, 35);
        is_over.store(true, Ordering::Relaxed);
        answers
    });
    assert_wal_was_short(&answers);
}

/// Raises the limit of open files of this process to the maximum allowed, and returns it.
fn raise_open_files_limit() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    maximum.map_or(usize::MAX, |files| files as usize)
}

#[test]
fn ten_thousand_connected_clients_are_served() {
    let count = 10_000;
    if raise_open_files_limit() < count + 1_000 {
        return skip("ten_thousand_connected_clients_are_served", "11,000 open files (ulimit -H -n)");
    }
    let server = Server::with(&[("HEADER_TIMEOUT_SECONDS", "120")]);
    let (_, sockets) = open_files(server.pid());
    let clients: Vec<_> = (0..count).map(|_| TcpStream::connect(server.addr).unwrap()).collect();
    let mut subscribers: Vec<_> = (0..50).map(|_| server.subscriber(&json!({}))).collect();
    await_true("all clients to be accepted", || open_files(server.pid()).1 >= sockets + count + 50);
    let ids = server.publish_lines(&ticks("s", 20));
    for subscriber in &mut subscribers {
        let got: Vec<_> = subscriber.collect(20).iter().map(|event| text_of(&event["id"])).collect();
        assert_eq!(got, ids);
    }
    assert_eq!(server.get("/readiness").status, 200);
    drop((clients, subscribers));
    await_true("all sockets to be closed", || open_files(server.pid()).1 <= sockets + 1);
}

#[test]
fn four_thousand_clients_that_come_and_go_leave_nothing_behind() {
    type ShortConnection = fn(SocketAddr);
    const SHORT_CONNECTIONS: [ShortConnection; 5] = [
        |addr| drop(TcpStream::connect(addr).unwrap()),
        |addr| Wire::connect(addr).reset(),
        |addr| {
            let mut wire = Wire::connect(addr);
            wire.send("GET /ws/subscribe HTTP/1.1\r\nHost: localhost\r\nUpgrade: webs");
            wire.reset();
        },
        |addr| Socket::open(addr, "/ws/publish").reset(),
        |addr| {
            let mut subscriber = Socket::open(addr, "/ws/subscribe");
            subscriber.send("{}");
            subscriber.reset();
        },
    ];
    let server = Server::start();
    let (mut publisher, mut subscriber) = (server.publisher(), server.subscriber(&json!({})));
    server.stored("");
    let (_, sockets) = open_files(server.pid());
    let before = resident_bytes(server.pid());
    let is_over = AtomicBool::new(false);
    let exchanged = thread::scope(|scope| {
        let bystanders = scope.spawn(|| {
            let mut last = 0;
            while !is_over.load(Ordering::Relaxed) {
                last += 1;
                assert_eq!(acknowledged(&[publisher.ask(&tick("s", 0))]), [last]);
                assert_eq!(sequence(&subscriber.json()["id"]), last, "no gap and no repeat");
            }
            last
        });
        in_parallel(4, |thread| {
            for n in 0..1_000 {
                SHORT_CONNECTIONS[(n + thread) % SHORT_CONNECTIONS.len()](server.addr);
            }
        });
        is_over.store(true, Ordering::Relaxed);
        bystanders.join().unwrap()
    });
    assert!(exchanged > 0);
    server.await_stats("one subscriber", |stats| stats["router"]["active_subscribers"] == 1);
    // One more socket is that of the request for the statistics.
    await_true("the sockets to be closed", || open_files(server.pid()).1 <= sockets + 1);
    let after = resident_bytes(server.pid());
    assert!(after < before + 64 * MIB, "{before} bytes before, {after} afterwards");
}

#[test]
fn clients_beyond_the_open_files_limit_are_refused_with_503_and_the_others_are_served() {
    const FILES: usize = 200;
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -n {FILES} && exec \"$0\" serve")])
        .arg(env!("CARGO_BIN_EXE_event-pipeline"))
        .env_clear()
        .envs([("PATH", "/usr/bin:/bin"), ("HOST", "127.0.0.1"), ("PORT", "0"), ("LOG_FORMAT", "json")])
        .env("DATABASE_PATH", database(folder.path()));
    let process = Process::watch(&mut command);
    let addr = process.address();
    process.log.wait_for("open files are limited");

    let mut publisher = Socket::open(addr, "/ws/publish");
    let mut wires: Vec<_> = (0..20).map(|_| Wire::connect(addr)).collect();
    for wire in &mut wires {
        wire.send(request("GET", "/health", &[], b""));
        assert_eq!(wire.response().unwrap().status, 200);
    }
    // Twice as many clients as there are files. Those that got a slot are answered, the others are refused.
    let mut crowd: Vec<_> = (0..2 * FILES).map(|_| Wire::connect(addr)).collect();
    let refused = crowd.iter_mut().rev().take(FILES).map(|wire| wire.response());
    let refused: Vec<_> = refused.flatten().inspect(|answer| drop(answer.refusal(503))).collect();
    assert_eq!(refused.len(), FILES, "each is refused");
    let served = crowd.iter_mut().next().map(|wire| {
        wire.send(request("GET", "/nowhere", &[], b""));
        wire.response().expect("the first of the crowd has a slot")
    });
    let headers_of_all = served.unwrap().headers.into_iter();
    for (name, value) in headers_of_all.filter(|(name, _)| !matches!(name.as_str(), "date" | "content-length")) {
        assert_eq!(refused[0].header(&name), Some(value.as_str()), "a refusal has the headers of every answer");
    }
    assert_eq!(acknowledged(&[publisher.ask(&tick("s", 0))]), [1]);
    // More queries at once than there are threads for reading: each needs file descriptors.
    for wire in &mut wires {
        wire.send(request("GET", "/events", &[], b""));
    }
    for wire in &mut wires {
        let answer = wire.response().unwrap();
        assert_eq!((answer.status, answer.json().as_array().unwrap().len()), (200, 1));
    }
    drop(crowd);
    await_true("another client to be accepted", || {
        let mut wire = Wire::connect(addr);
        wire.send(request("GET", "/readiness", &[], b""));
        wire.response().is_some_and(|answer| answer.status == 200)
    });
    assert_eq!(process.log.noise(), [""; 0], "an expected overload logs no warnings");
}

#[test]
fn connected_clients_are_served_while_accepting_pauses_for_want_of_file_descriptors() {
    let mut server = Server::start();
    server.allow_noise();
    let limit = |files: usize| {
        let mut prlimit = Command::new("prlimit");
        let set = prlimit.args([format!("--pid={}", server.pid()), format!("--nofile={files}:")]).status().unwrap();
        assert!(set.success(), "prlimit");
    };
    let (mut publisher, mut subscriber) = (server.publisher(), server.subscriber(&json!({})));
    let mut wires: Vec<_> = (0..12).map(|_| Wire::connect(server.addr)).collect();
    for wire in &mut wires {
        wire.send(request("GET", "/health", &[], b""));
        assert_eq!(wire.response().unwrap().status, 200);
    }
    // The limit falls to the number of files that are open: no further file can be opened.
    limit(open_files(server.pid()).0);
    let mut waiting = Wire::connect(server.addr);
    waiting.send(request("GET", "/health", &[], b""));
    server.await_log("\"accept\"");
    for n in 1..=50 {
        assert_eq!(acknowledged(&[publisher.ask(&tick("s", 0))]), [n]);
        assert_eq!(sequence(&subscriber.json()["id"]), n);
    }
    let mut refused = 0;
    for wire in &mut wires {
        wire.send(request("GET", "/events", &[], b""));
    }
    for wire in &mut wires {
        let answer = wire.response().expect("an answer");
        if answer.status != 200 {
            answer.refusal(503);
            refused += 1;
        }
        wire.send(request("GET", "/health", &[], b""));
        assert_eq!(wire.response().unwrap().status, 200);
    }
    println!("{refused} of {} queries could not be answered", wires.len());
    limit(1_000);
    assert_eq!(waiting.response().expect("an answer, once there are file descriptors").status, 200);
    assert_eq!(server.stored("").len(), 50);
    assert_eq!(server.get_json("/stats")["total_events"], 50);
}
