//! Other programs on the same file: a second server, a reader with a long transaction, a writer, and programs that copy
//! the file. They delay clients for a bounded time, and the server reports them.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::*;

/// The `sqlite3` shell with the database open.
struct Shell {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Shell {
    fn open(test: &str, database: &Path) -> Option<Shell> {
        let spawned = Command::new("sqlite3").arg(database).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = spawned else {
            skip(test, "the sqlite3 shell (apt-get install sqlite3)");
            return None;
        };
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Some(Shell { child, stdin, stdout })
    }

    /// Runs commands and returns the lines that it prints.
    fn run(&mut self, commands: &str) -> Vec<String> {
        const END: &str = "that was all";
        writeln!(self.stdin, "{commands}\n.print {END}").unwrap();
        let lines = self.stdout.by_ref().lines().map(Result::unwrap);
        lines.take_while(|line| line != END).collect()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes of the write-ahead log on the disk.
fn log_bytes(server: &Server) -> u64 {
    std::fs::metadata(server.db_path().with_extension("db-wal")).unwrap().len()
}

fn router(server: &Server) -> Value {
    server.get_json("/stats")["router"].take()
}

fn big_events(count: usize) -> Vec<String> {
    let text = "x".repeat(60_000);
    let event = |n| json!({"event_type": "timer_tick", "source": "big", "payload": {"n": n, "text": text}}).to_string();
    (0..count).map(event).collect()
}

#[test]
fn a_second_server_on_the_same_file_is_refused() {
    let mut server = Server::start();
    server.publish(&tick("s", 0));
    let mut second = Process::spawn(server.folder(), &[], &[]);
    let status = second.await_exit();
    assert!(!status.success(), "the second server ended with {status}");
    let complaints = second.log.noise();
    assert!(complaints.len() == 1 && complaints[0].contains("events.db"), "one line names the file: {complaints:#?}");

    server.publish(&tick("s", 1));
    assert_eq!(server.stored("").len(), 2, "the first server serves on");
    // A lock does not outlive its process.
    server.kill();
    server.restart();
}

#[test]
fn a_program_that_reads_for_long_stops_nothing_and_is_reported() {
    let mut server = Server::start();
    server.allow_noise();
    let ids = server.publish_lines(&ticks("before", 10));
    let Some(mut reader) =
        Shell::open("a_program_that_reads_for_long_stops_nothing_and_is_reported", &server.db_path())
    else {
        return;
    };
    let count = "SELECT count(*) FROM events;";
    assert_eq!(reader.run(&format!("BEGIN; {count}")), ["10"]);
    assert_eq!(router(&server)["wal_held_since"], Value::Null);

    // More than 64 MiB of write-ahead log, from where on the server warns.
    let events = big_events(1_300);
    for lines in events.chunks(100) {
        server.publish_lines(lines);
    }
    assert_eq!(server.stored(&format!("after_id={}&source=big", ids[9])).len(), events.len());
    assert_eq!(reader.run(count), ["10"], "the reader sees the state of when its transaction began");
    server.await_stats("the log to be held", |stats| stats["router"]["wal_held_since"].is_string());
    let held = router(&server);
    assert_eq!(timestamp(&json!({"timestamp": held["wal_held_since"]})).len(), 27);
    let bytes = held["wal_bytes"].as_u64().unwrap();
    assert!(bytes > 64 << 20, "{held}");
    assert!(bytes.abs_diff(log_bytes(&server)) < 1 << 20, "{bytes} of {}", log_bytes(&server));
    server.await_log("keeps the write-ahead log from");
    let warnings = || server.log().iter().filter(|line| line.contains("keeps the write-ahead log from")).count();
    assert_eq!(warnings(), 1);

    // Without the reader the write-ahead log starts over with the next events.
    assert_eq!(reader.run(&format!("COMMIT; {count}")), ["1310"]);
    await_true("the log to start over", || {
        server.publish(&tick("after", 0));
        let router = router(&server);
        router["wal_held_since"].is_null() && router["wal_bytes"].as_u64().unwrap() < 8 << 20
    });
    server.await_log("the write-ahead log starts over");
    assert!(log_bytes(&server) <= 64 << 20, "the file is truncated");
    // Without further events it is emptied.
    server.await_stats("the log to be empty", |stats| stats["router"]["wal_bytes"] == 0);
    assert_eq!(log_bytes(&server), 0);

    // A second reader is reported as well.
    assert_eq!(reader.run("BEGIN; SELECT count(*) > 1310 FROM events;"), ["1"]);
    for lines in events[..200].chunks(100) {
        server.publish_lines(lines);
    }
    await_true("the log to be held again", || {
        server.publish(&tick("again", 0));
        router(&server)["wal_held_since"].is_string()
    });
    assert_eq!(warnings(), 1, "no warning of a write-ahead log of a few megabytes");
    drop(reader);
    // The server notices that the reader is gone although nothing is stored.
    server.await_stats("the log to be empty again", |stats| stats["router"]["wal_bytes"] == 0);
    server.await_stats("nobody to hold it", |stats| stats["router"]["wal_held_since"].is_null());
    assert_eq!(log_bytes(&server), 0);
}

#[test]
fn a_program_that_reads_does_not_delay_the_first_event_after_a_pause() {
    let server = Server::start();
    server.publish(&tick("s", 0));
    let test = "a_program_that_reads_does_not_delay_the_first_event_after_a_pause";
    let Some(mut reader) = Shell::open(test, &server.db_path()) else { return };
    reader.run("BEGIN; SELECT count(*) FROM events;");
    // An idle write-ahead log is emptied after 2 s, if nobody reads. A writer that waited for the reader would wait 5
    // s.
    let after_a_pause = |n| {
        server.publish(&tick("s", n));
        thread::sleep(Duration::from_millis(2_500));
        let start = Instant::now();
        server.publish(&tick("s", n));
        start.elapsed() < Duration::from_secs(3)
    };
    assert!(
        (0..3).any(after_a_pause),
        "none of three events was stored within 3 s, so the writer waits for the reader"
    );
}

/// The last program that closes a file removes its write-ahead log. A program learns from SQLite's locks whether it is the
/// last one, and the server must still have its locks, also if it found a file at its start.
#[test]
fn a_program_that_opens_and_closes_the_file_does_not_remove_the_write_ahead_log_of_a_server() {
    let mut server = Server::start();
    let mut stored = 0;
    for end in [Server::stop as fn(&mut Server), Server::kill, Server::kill] {
        server.publish(&tick("s", stored));
        let other = rusqlite::Connection::open(server.db_path()).unwrap();
        let count = other.query_row("SELECT count(*) FROM events", [], |row| row.get::<_, i64>(0));
        assert_eq!(count.unwrap(), stored as i64 + 1);
        drop(other);
        server.publish(&tick("s", stored + 1));
        stored += 2;
        assert!(log_bytes(&server) > 0, "the server writes to a log that still has its name");
        end(&mut server);
        server.restart();
        assert_eq!(server.stored("").len(), stored);
    }
}

#[test]
fn producers_wait_for_a_program_that_locks_the_file_and_are_then_refused() {
    let mut server = Server::start();
    server.allow_noise();
    let test = "producers_wait_for_a_program_that_locks_the_file_and_are_then_refused";
    let Some(mut writer) = Shell::open(test, &server.db_path()) else { return };
    let mut publisher = server.publisher();
    assert_eq!(acknowledged(&[publisher.ask(&tick("before", 0))]), [1]);

    // A short lock: requests take longer and succeed.
    writer.run("BEGIN IMMEDIATE;");
    thread::scope(|scope| {
        let posted = scope.spawn(|| server.post(tick("short", 0)));
        publisher.send(&tick("short", 1));
        server.await_stats("both to wait", |stats| stats["router"]["queue_size"] == 2);
        assert_eq!(server.stored("").len(), 1, "reading goes on");
        writer.run("COMMIT;");
        assert_eq!(posted.join().unwrap().status, 201);
        assert_eq!(publisher.json()["status"], "ok");
    });

    // A lock of more than 5 s, the longest that the writer waits: requests are refused.
    writer.run("BEGIN IMMEDIATE;");
    let told = "locked by another program";
    thread::scope(|scope| {
        let posted = scope.spawn(|| server.post(tick("long", 0)));
        let deleted = scope.spawn(|| server.call("DELETE", "/events?before=2020-01-01T00:00:00Z", &[], b""));
        publisher.send(&tick("long", 1));
        assert_eq!(server.get("/readiness").status, 503);
        assert_eq!(server.get("/health").status, 200);
        for refused in [posted, deleted] {
            let refused = refused.join().unwrap();
            assert!(text_of(&refused.refusal(503)).contains(told), "{}", refused.text());
            assert!(refused.header("retry-after").is_some());
        }
        let answer = publisher.json();
        assert!(answer["status"] == "error" && text_of(&answer["message"]).contains(told), "{answer}");
    });
    assert_eq!(server.stored("").len(), 3, "refused events are not stored, and reading goes on");
    writer.run("ROLLBACK;");

    // Once the lock is released, the same server stores again.
    assert_eq!(acknowledged(&publisher.pipeline(&ticks("long", 2))), [4, 5]);
    assert_eq!(server.get("/readiness").status, 200);
    server.await_log("another program writes");
    let noise: Vec<_> = server.log().into_iter().filter(|line| !line.contains("\"INFO\"")).collect();
    assert!(!noise.is_empty() && noise.iter().all(|line| line.contains("another program writes")), "{noise:#?}");
    server.stop();
}

#[test]
fn a_start_waits_for_a_program_that_locks_the_file_and_then_fails_naming_the_lock() {
    let mut server = Server::start();
    let test = "a_start_waits_for_a_program_that_locks_the_file_and_then_fails_naming_the_lock";
    let Some(mut writer) = Shell::open(test, &server.db_path()) else { return };
    let ids = server.publish_lines(&ticks("before", 10));
    server.kill();
    server.allow_noise();
    writer.run("BEGIN IMMEDIATE; UPDATE event_stats SET count = count + 1;");
    let (_, complaints) = server.try_restart().expect_err("a start beside a writer");
    assert!(complaints.len() == 1 && complaints[0].contains("locked by another program"), "{complaints:#?}");
    writer.run("ROLLBACK;");
    server.restart();
    let stored: Vec<_> = server.stored("").iter().map(|event| text_of(&event["id"])).collect();
    assert_eq!(stored, ids);
    assert_eq!(reported_statistics(&server), (10, statistics(&server.stored(""))));
}

#[test]
fn a_copy_of_the_file_made_under_load_is_sound_and_begins_another_epoch() {
    let server = Server::start();
    let test = "a_copy_of_the_file_made_under_load_is_sound_and_begins_another_epoch";
    let folders = ["VACUUM INTO '{}';", "BEGIN; SELECT count(*) FROM events;\n.backup {}\nCOMMIT;"].map(|recipe| {
        let folder = tempfile::tempdir().unwrap();
        let copy = database(folder.path());
        std::fs::create_dir(copy.parent().unwrap()).unwrap();
        (folder, recipe.replace("{}", copy.to_str().unwrap()))
    });
    let is_over = AtomicBool::new(false);
    let acknowledged_before = thread::scope(|scope| {
        let (server, is_over) = (&server, &is_over);
        for producer in 0..2 {
            scope.spawn(move || {
                let mut publisher = server.publisher();
                while !is_over.load(Ordering::Relaxed) {
                    acknowledged(&publisher.pipeline(&ticks(&format!("s{producer}"), 20)));
                }
            });
        }
        // No assertions before `is_over` is set: a panic would leave the producers running for ever.
        let copied = folders.each_ref().map(|(_, recipe)| {
            server.await_stats("events to copy", |stats| stats["total_events"].as_u64() > Some(2_000));
            let before = server.get_json("/stats")["total_events"].as_u64().unwrap();
            Shell::open(test, &server.db_path()).map(|mut shell| {
                shell.run(recipe);
                before
            })
        });
        is_over.store(true, Ordering::Relaxed);
        copied
    });
    let (original, epoch) = (server.stored_lines(""), server.get_json("/stats")["epoch"].take());
    for ((folder, recipe), before) in folders.into_iter().zip(acknowledged_before) {
        let Some(before) = before else { return };
        let copy = rusqlite::Connection::open(database(folder.path())).unwrap();
        let verdict: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok", "{recipe}");
        drop(copy);
        let copy = Server::in_folder(folder, &[]);
        let stored = copy.stored_lines("");
        assert!(stored.len() as u64 >= before, "{recipe}: {} of at least {before}", stored.len());
        assert!(original.starts_with(&stored), "{recipe}: the first {} events", stored.len());
        assert!(copy.stored("session_id=s1") == server.stored("session_id=s1")[..copy.stored("session_id=s1").len()]);
        assert_eq!(copy.get_json("/stats")["total_events"], stored.len());
        assert_ne!(copy.get_json("/stats")["epoch"], epoch, "{recipe}: its ids will mean other events");
        assert_eq!(sequence(&copy.publish(&tick("copy", 0))["id"]), stored.len() as u64 + 1);
    }
}

#[test]
fn durable_subscriptions_are_as_clients_were_answered_after_a_program_locked_the_file() {
    let mut server = Server::start();
    server.allow_noise();
    let mut board = server.subscriber(&json!({"name": "board"}));
    let mut member = server.subscriber(&json!({"group": "class"}));
    let other = rusqlite::Connection::open(server.db_path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    thread::scope(|scope| {
        let mut ghost = Socket::open(server.addr, "/ws/subscribe");
        ghost.send(&json!({"name": "ghost"}).to_string());
        for name in ["board", "group%3Aclass"] {
            let server = &server;
            scope.spawn(move || server.call("DELETE", &format!("/subscriptions/{name}"), &[], b"").refusal(503));
        }
        assert_eq!(ghost.read_to_close().1, 1011);
    });
    other.execute_batch("ROLLBACK").unwrap();

    // Subscribers of names whose deletion was refused go on undisturbed.
    server.publish(&tick("s", 0));
    for subscriber in [&mut board, &mut member] {
        assert_eq!(subscriber.json()["id"], id_of(1));
        subscriber.send(&json!({"type": "ack", "id": id_of(1)}).to_string());
    }
    let listed = || server.get_json("/subscriptions").as_array().unwrap().clone();
    await_true("both to be confirmed", || listed().iter().all(|one| one["position"] == id_of(1)));
    assert_eq!(listed().len(), 2, "{:?}", listed());
    // Storing a new name also stores every position that has changed.
    drop(server.subscriber(&json!({"name": "later"})));
    let mut names = other.prepare("SELECT name, position FROM subscriptions ORDER BY name").unwrap();
    let names = names.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let expected = ["board", "group:class", "later"].map(|name| (name.to_owned(), 1_i64));
    assert_eq!(names.map(Result::unwrap).collect::<Vec<(String, i64)>>(), expected);
}
