//! The file: who may read it, what other programs see in it, and what deletion leaves.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::subscribe::while_publishing;
use crate::support::*;

fn reader(server: &Server) -> Connection {
    Connection::open_with_flags(server.db_path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

fn number(database: &Connection, sql: &str) -> i64 {
    database.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

#[test]
fn only_their_owner_can_read_the_files_and_their_folder() {
    let mut server = Server::start();
    server.publish(&tick("s", 0));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = server.db_path().parent().unwrap().to_path_buf();
    for _ in 0..2 {
        assert_eq!(mode(&folder), 0o700);
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
        server.stop();
        server.restart();
    }
}

#[test]
fn other_programs_can_read_the_database_while_the_server_runs() {
    let server = Server::start();
    server.publish_lines(&(0..100).map(|n| tick(if n % 4 == 0 { "quarter" } else { "rest" }, n)).collect::<Vec<_>>());
    let database = reader(&server);
    let mode: String = database.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    for table in ["events", "subscriptions", "event_stats"] {
        let found = number(
            &database,
            &format!("SELECT count(*) FROM sqlite_master WHERE type IN ('table','view') AND name = '{table}'"),
        );
        assert_eq!(found, 1, "{table}");
    }
    assert_eq!(number(&database, "SELECT count(*) FROM events"), 100);
    assert_eq!(
        number(
            &database,
            "SELECT count(*) FROM events WHERE session_id = 'quarter' AND event_type = 'timer_tick' AND source = 'it'"
        ),
        25
    );
    assert_eq!(number(&database, "SELECT sum(json_extract(payload, '$.n')) FROM events WHERE user_id IS NULL"), 4950);
    assert_eq!(number(&database, "SELECT count FROM event_stats WHERE event_type = 'timer_tick'"), 100);

    // A reader that keeps its view open holds nobody up, and sees what was there when it began.
    database.execute_batch("BEGIN").unwrap();
    assert_eq!(number(&database, "SELECT count(*) FROM events"), 100);
    acknowledged(&server.publisher().pipeline(&ticks("late", 5000)));
    assert_eq!(number(&database, "SELECT count(*) FROM events"), 100);
    database.execute_batch("COMMIT").unwrap();
    assert_eq!(number(&database, "SELECT count(*) FROM events"), 5100);
}

#[test]
fn the_file_is_whole_after_a_stop() {
    let mut server = Server::start();
    server.publish_lines(&classroom());
    server.stop();
    let database = Connection::open(server.db_path()).unwrap();
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    assert_eq!(number(&database, "SELECT count(*) FROM events"), 6571);
    let wrong = "SELECT count(*) FROM (SELECT event_type, count(*) AS count FROM events GROUP BY event_type) AS counted \
                 FULL JOIN event_stats USING (event_type) WHERE counted.count IS NOT event_stats.count";
    assert_eq!(number(&database, wrong), 0, "the statistics are those of the rows");
}

#[test]
fn stored_events_survive_a_restart() {
    let mut server = Server::start();
    server.publish_lines(&classroom());
    let before = server.stored_lines("");
    let stats = server.get_json("/stats");
    for end in [Server::stop, Server::kill] {
        end(&mut server);
        server.restart();
        assert!(server.stored_lines("") == before);
        let again = server.get_json("/stats");
        assert_eq!((&again["total_events"], &again["by_type"]), (&stats["total_events"], &stats["by_type"]));
    }
    // A subscriber's cursor is good across it, too.
    let mut subscriber = server.subscriber(&json!({"after": id_of(6570)}));
    server.publish(&tick("s", 0));
    assert_eq!(sequences(&subscriber.collect(2)), [6571, 6572]);
}

#[test]
fn deleting_by_time_deletes_older_events_and_keeps_the_statistics_true() {
    let mut server = Server::start();
    server.publish_lines(&classroom());
    let mut left = server.stored("");
    for (cut, restart) in
        [(0, false), (1, false), (56, false), (2000, true), (1, false), (3000, false), (1500, true), (12, false)]
    {
        let before = encode(&timestamp(&left[cut]));
        let answer = server.call("DELETE", &format!("/events?before={before}"), &[], b"");
        assert_eq!(answer.json(), json!({"deleted": cut}));
        left.drain(..cut);
        if restart {
            server.stop();
            server.restart();
        }
        assert!(server.stored("") == left, "after {cut} more were deleted");
        assert_eq!(reported_statistics(&server), (left.len() as u64, statistics(&left)));
        assert_eq!(server.get_json("/stats")["events_last_hour"], left.len());
        let session = text_of(&left[0]["session_id"]);
        let expected: Vec<_> = left.iter().filter(|event| event["session_id"] == json!(session)).cloned().collect();
        assert!(server.stored(&format!("session_id={session}")) == expected, "session {session}");
    }
    let database = reader(&server);
    assert_eq!(number(&database, "SELECT count(*) FROM readable_events"), left.len() as i64);
    assert_eq!(number(&database, "SELECT sum(count) FROM event_stats"), left.len() as i64);
    await_true("the rows", || number(&database, "SELECT count(*) FROM events") == left.len() as i64);

    assert_eq!(server.call("DELETE", "/events", &[], b"").json(), json!({"deleted": left.len()}));
    assert_eq!(reported_statistics(&server), (0, BTreeMap::new()));
    assert_eq!(server.call("DELETE", "/events", &[], b"").json(), json!({"deleted": 0}));
    assert_eq!(sequence(&server.publish(&tick("s", 0))["id"]), 6572);
}

#[test]
fn deleting_by_time_takes_a_time_in_any_form() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 10));
    assert_eq!(
        server.call("DELETE", "/events?before=2020-01-01T02:00:00.5%2B02:00", &[], b"").json(),
        json!({"deleted": 0})
    );
    for bad in ["", "yesterday", "2026-13-01T00:00:00Z", "0"] {
        server.call("DELETE", &format!("/events?before={bad}"), &[], b"").refusal(400);
    }
    server.call("DELETE", "/events?before", &[], b"").refusal(400);
    assert_eq!(server.stored("").len(), 10, "what was refused deleted nothing");
    assert_eq!(
        server.call("DELETE", "/api/v1/events?before=9999-01-01T00:00:00Z", &[], b"").json(),
        json!({"deleted": 10})
    );
}

#[test]
fn deletion_does_not_disturb_subscribers_or_cursors() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 10));
    let mut live = server.subscriber(&json!({}));
    server.call("DELETE", "/events", &[], b"");
    server.publish_lines(&ticks("s", 2));
    assert_eq!(sequences(&live.collect(2)), [11, 12]);
    // A cursor into what is gone goes on with what is left.
    let mut late = server.subscriber(&json!({"after": id_of(3)}));
    assert_eq!(sequences(&late.collect(2)), [11, 12]);
}

#[test]
fn deleting_works_while_the_disk_is_nearly_full() {
    // No tmpfs has 1,024 GiB free, which is what the server is told to keep free.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let before = Process::spawn(folder.path(), &[], &[]);
    let lines = ticks("s", 40_000).join("\n");
    let stored = call(before.address(), "POST", "/events", &[NDJSON], lines.as_bytes());
    assert_eq!(stored.status, 201, "{}", stored.text());
    drop(before);

    let mut server = Server::in_folder(folder, &[("FREE_SPACE_MIN_BYTES", "1024 GiB")]);
    server.allow_noise();
    let middle = encode(&timestamp(&server.get_json(&format!("/events/{}", id_of(20_001)))));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut wire = Wire::connect(server.addr);
                while !is_over.load(Ordering::Relaxed) {
                    wire.send(request("POST", "/events", &[JSON], tick("s", 0).as_bytes()));
                    assert_eq!(wire.response().expect("an answer").status, 507);
                    wire.send(request("GET", "/readiness", &[], b""));
                    assert_eq!(wire.response().expect("an answer").status, 503);
                }
            });
        }
        let deleted = ["?event_type=timer_tick&before=", "?before=", ""].map(|what| {
            let before = if what.is_empty() { "" } else { &middle };
            server.call("DELETE", &format!("/events{what}{before}"), &[], b"")
        });
        is_over.store(true, Ordering::Relaxed);
        let told = deleted.map(|deleted| (deleted.status, deleted.text()));
        let expected = [20_000, 0, 20_000].map(|count| (200, json!({"deleted": count}).to_string()));
        assert_eq!(told, expected);
    });
}

/// Which of these words are in the database, its log, or another file beside it.
fn traces<'w>(server: &Server, words: &'w [String]) -> Vec<&'w str> {
    let files = std::fs::read_dir(server.db_path().parent().unwrap()).unwrap();
    let bytes: Vec<_> = files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    let text = String::from_utf8_lossy(&bytes);
    let is_there = |word: &&str| text.contains(word);
    words.iter().map(String::as_str).filter(is_there).collect()
}

fn delete_user(server: &Server, user: &str) -> Value {
    let answer = server.call("DELETE", &format!("/events?user_id={user}"), &[], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn deleting_a_user_leaves_no_trace_of_the_name_in_the_files() {
    const SEGMENT: usize = 65_536;
    const USERS: usize = 400;
    let server = Server::start();
    let event = |n: usize| {
        let user = format!("learner-{:03}-of-our-school", n * 7 % USERS);
        // Payloads name their users, too, and some are longer than a page.
        let payload = json!({"by": user, "text": if n % 500 == 3 { "x".repeat(9_000) } else { String::new() }});
        json!({"event_type": "answer_changed", "source": "it", "session_id": format!("s{}", n % 9_000),
               "user_id": user, "payload": payload})
        .to_string()
    };
    let publish = |from: usize, to: usize| {
        for from in (from..to).step_by(8_192) {
            server.publish_lines(&(from..to.min(from + 8_192)).map(event).collect::<Vec<_>>());
        }
    };
    let await_sealed = |segments: i64| {
        let sealed =
            || number(&reader(&server), "SELECT coalesce(max(value), 0) FROM meta WHERE key = 'sealed_before'");
        await_true("the segment to be in the index", || sealed() == segments);
    };
    // Each user has events in a sealed segment and in the open one.
    publish(0, SEGMENT + 6_000);
    await_sealed(1);
    let gone: Vec<_> = (0..USERS).step_by(40).map(|n| format!("learner-{n:03}-of-our-school")).collect();
    assert_eq!(traces(&server, &gone), gone, "they can be found where they are");
    for user in &gone {
        let stored = server.stored(&format!("user_id={user}")).len();
        assert_eq!(delete_user(&server, user), json!({"deleted": stored}));
    }
    assert_eq!(traces(&server, &gone), [""; 0]);

    // When the open segment is sealed later, its lists do not have the deleted users either.
    let after = |n: usize| event(n).replace("-of-our-school", "-of-another-school");
    for from in (SEGMENT + 6_000..2 * SEGMENT + 1).step_by(8_192) {
        server.publish_lines(&(from..(from + 8_192).min(2 * SEGMENT + 1)).map(after).collect::<Vec<_>>());
    }
    await_sealed(2);
    assert_eq!(traces(&server, &gone), [""; 0]);
    let lists = "SELECT count(*) FROM event_index WHERE segment = 1 AND kind = 2 AND key LIKE '%-of-our-school'";
    assert_eq!(number(&reader(&server), lists), (USERS - gone.len()) as i64, "the others are in the index");
}

#[test]
fn traces_of_a_deletion_leave_the_write_ahead_log_once_no_other_program_reads_it() {
    let mut server = Server::start();
    for life in ["this server", "the next one"] {
        let users = [format!("a-learner-who-leaves-{}", life.replace(' ', "-"))];
        let event = json!({"event_type": "quiz_started", "source": "it", "user_id": users[0]}).to_string();
        // What is stored from here on stays in the log, whatever was moved out of it before.
        let other = reader(&server);
        other.execute_batch("BEGIN").unwrap();
        assert_eq!(number(&other, "SELECT count(*) FROM events"), 0);
        server.publish(&event);
        assert_eq!(delete_user(&server, &users[0]), json!({"deleted": 1}), "nobody waits for another program");
        // The log alone is looked at meanwhile: this process would lose its locks on another file when it closes that.
        let is_in_log = |server: &Server| {
            let log = std::fs::read(server.db_path().with_extension("db-wal")).unwrap();
            String::from_utf8_lossy(&log).contains(&users[0])
        };
        assert!(is_in_log(&server), "it may read on");
        if life == "the next one" {
            server.stop();
            server.restart();
            assert!(is_in_log(&server), "also beside another server");
        }
        other.execute_batch("COMMIT").unwrap();
        await_true(&format!("the log to be truncated by {life}"), || {
            // A server that is never idle does it, too.
            assert_eq!(server.get("/readiness").status, 200);
            traces(&server, &users).is_empty()
        });
    }
}

/// An idle log is truncated anyway: here others publish all the time.
#[test]
fn traces_of_a_deletion_have_left_the_write_ahead_log_when_it_is_answered() {
    let server = Server::start();
    let users: Vec<_> = (0..10).map(|n| format!("learner-{n}-who-leaves")).collect();
    while_publishing(
        &server,
        |n| tick("s", n),
        || {
            for user in &users {
                let event = json!({"event_type": "quiz_started", "source": "it", "user_id": user}).to_string();
                server.publish(&event);
                assert_eq!(traces(&server, &users), [user]);
                assert_eq!(delete_user(&server, user), json!({"deleted": 1}));
                assert_eq!(traces(&server, &users), [""; 0]);
            }
        },
    );
}

/// Bytes of the write-ahead log's file.
fn log_bytes(server: &Server) -> u64 {
    std::fs::metadata(server.db_path().with_extension("db-wal")).unwrap().len()
}

fn await_tidied(server: &Server) {
    server.await_stats("an idle log to be moved", |stats| stats["router"]["wal_pages"] == 0);
}

#[test]
fn an_idle_write_ahead_log_is_moved_and_its_file_is_kept_for_the_next_events() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 2_000));
    let kept = log_bytes(&server);
    await_tidied(&server);
    assert_eq!(log_bytes(&server), kept, "the file stays");
    server.publish_lines(&ticks("s", 1_000));
    assert_eq!(log_bytes(&server), kept, "it is overwritten");
    let bytes = server.get_json("/stats")["router"]["wal_bytes"].as_u64().unwrap();
    assert!((1..kept).contains(&bytes), "{bytes} of {kept}: the log has started over");
}

/// The end of a kept log is from before it started over: SQLite does not read it any more, but its bytes are there.
#[test]
fn traces_of_a_deletion_do_not_stay_behind_the_end_of_a_kept_write_ahead_log() {
    let mut server = Server::start();
    let gone = ["a-learner-who-leaves".to_owned()];
    for life in ["the same", "killed", "killed in a deletion"] {
        server.publish_lines(&ticks("s", 500));
        let event = json!({"event_type": "quiz_started", "source": "it", "user_id": gone[0]}).to_string();
        server.publish(&event);
        await_tidied(&server);
        // One commit, and the log has started over in front of the event.
        server.publish(&tick("s", 0));
        let log = std::fs::read(server.db_path().with_extension("db-wal")).unwrap();
        assert!(String::from_utf8_lossy(&log).contains(&gone[0]), "{life}: the end is still there");
        assert!(server.get_json("/stats")["router"]["wal_bytes"].as_u64().unwrap() < log.len() as u64 / 2);
        match life {
            "the same" => {}
            "killed" => {
                server.kill();
                server.restart();
            }
            _ => {
                // The first thing that the deletion does after its commit is to wait for the erasure.
                let mut wire = Wire::connect(server.addr);
                wire.send(request("DELETE", &format!("/events?user_id={}", gone[0]), &[], b""));
                server.await_stats("the deletion", |stats| stats["total_events"].as_u64() == Some(3 * 501));
                server.kill();
                server.restart();
                await_true("the next server to truncate the log", || traces(&server, &gone).is_empty());
                continue;
            }
        }
        assert_eq!(delete_user(&server, &gone[0]), json!({"deleted": 1}), "{life}");
        assert_eq!(traces(&server, &gone), [""; 0], "{life}");
    }
}

#[test]
fn a_query_over_many_segments_finds_what_a_scan_finds() {
    let mut server = Server::start();
    // Every seventh event belongs to one session, and a rare one turns up once in 40,000.
    let count = 150_000;
    let session = |n: usize| match n {
        n if n % 40_000 == 123 => "rare".to_string(),
        n if n.is_multiple_of(7) => "seventh".to_string(),
        n => format!("own-{n}"),
    };
    let events: Vec<_> = (0..count).map(|n| tick(&session(n), n)).collect();
    for chunk in events.chunks(30_000) {
        server.publish_lines(chunk);
    }
    let check = |server: &Server, first: usize| {
        let expected =
            |wanted: &str| (first..count).filter(|n| session(*n) == wanted).map(|n| n as u64 + 1).collect::<Vec<_>>();
        for wanted in ["rare", "seventh", "own-65536", "own-131071", "nobody"] {
            let (expected, query) = (expected(wanted), format!("session_id={wanted}"));
            assert!(sequences(&server.stored(&query)) == expected, "{wanted} oldest first");
            let newest: Vec<_> = expected.iter().rev().take(1000).copied().collect();
            assert!(
                sequences(server.get_json(&format!("/events?limit=1000&{query}")).as_array().unwrap()) == newest,
                "{wanted}"
            );
        }
        assert_eq!(server.get_json("/stats")["total_events"], count - first);
    };
    check(&server, 0);
    for (end, first) in [(Server::stop as fn(&mut Server), 1000), (Server::kill, 70_001), (Server::stop, 131_072)] {
        let boundary = server.get_json(&format!("/events/{}", id_of(first as u64 + 1)));
        server.call("DELETE", &format!("/events?before={}", encode(&timestamp(&boundary))), &[], b"");
        check(&server, first);
        end(&mut server);
        server.restart();
        check(&server, first);
    }
}

#[test]
fn every_value_is_found_in_a_sealed_segment() {
    let mut server = Server::start();
    // Small batches, so that the index of the full segment is written in many slices.
    let event = |n: usize| {
        json!({
            "event_type": (["timer_tick", "quiz_started", "error_occurred"][n % 3]),
            "source": format!("source{}", n * 31 % 40),
            "session_id": format!("session{}", n * 7 % 499),
            "user_id": format!("user{}", n * 11 % 307),
        })
    };
    let events: Vec<_> = (0..70_000).map(event).collect();
    let messages: Vec<_> = events.chunks(500).map(|chunk| Value::from(chunk).to_string()).collect();
    assert!(server.publisher().pipeline(&messages).iter().all(|answer| answer["status"] == "ok"));

    let mut places: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for (event, place) in events.iter().zip(1..) {
        for field in ["event_type", "source", "session_id", "user_id"] {
            places.entry((field, event[field].as_str().unwrap())).or_default().push(id_of(place));
        }
    }
    assert_eq!(places.len(), 3 + 40 + 499 + 307);
    server.kill();
    server.restart();
    for ((field, value), expected) in &places {
        let lines = server.stored_lines(&format!("{field}={value}"));
        let found: Vec<_> = lines.iter().map(|line| raw_field(line, "id").trim_matches('"').to_string()).collect();
        assert!(found == *expected, "{field} {value}: {} found, {} expected", found.len(), expected.len());
    }
}

#[test]
fn a_database_of_another_program_is_refused_in_one_line() {
    type Prepare = fn(&Path);
    let prepare: [(&str, Prepare); 4] = [
        ("not SQLite", |path| {
            std::fs::write(path, "this is not a database, and long enough to have a header".repeat(200)).unwrap()
        }),
        ("another program's", |path| {
            Connection::open(path)
                .unwrap()
                .execute_batch(
                    "CREATE TABLE events(day TEXT, attendance INTEGER); INSERT INTO events VALUES('monday', 3);",
                )
                .unwrap();
        }),
        ("another program's, which is using it", |path| {
            let attendance = Connection::open(path).unwrap();
            attendance.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE attendance(day TEXT);").unwrap();
            attendance.execute_batch("PRAGMA wal_checkpoint; INSERT INTO attendance VALUES('monday');").unwrap();
            // It stays open for as long as the test runs, as a program would have it.
            std::mem::forget(attendance);
        }),
        ("a folder", |path| std::fs::create_dir(path).unwrap()),
    ];
    for (what, prepare) in prepare {
        let folder = tempfile::tempdir().unwrap();
        let path = database(folder.path());
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        prepare(&path);
        let around = || {
            let entries = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
            let state = |path: PathBuf| {
                (std::fs::metadata(&path).unwrap().permissions().mode(), std::fs::read(&path).ok(), path)
            };
            let mut files: Vec<_> = entries.map(state).collect();
            files.sort();
            files
        };
        if path.is_file() {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        }
        let before = around();
        let mut process = Process::spawn(folder.path(), &[], &[]);
        let status = process.await_exit();
        let complaints = process.log.noise();
        assert!(!status.success(), "{what}: {status}");
        assert!(
            complaints.len() == 1 && complaints[0].contains("events.db"),
            "{what}: one line names the file: {complaints:#?}"
        );
        if path.is_file() {
            assert!(around() == before, "{what}: nothing in the folder is changed, and nothing is new");
        }
    }
}
