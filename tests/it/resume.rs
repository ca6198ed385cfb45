//! Resuming after an event id, on every route: the retained range, gaps, and the epoch that an id is from.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cli::start;
use crate::subscribe::while_publishing;
use crate::support::*;

/// Subscribes, and returns the socket and the answer.
fn subscribe(server: &Server, first: &Value) -> (Socket, Value) {
    let mut socket = Socket::open(server.addr, "/ws/subscribe");
    let answer = socket.ask(&first.to_string());
    assert_eq!(answer["status"], "subscribed", "{first} → {answer}");
    (socket, answer)
}

fn epoch(server: &Server) -> String {
    let epoch = text_of(&subscribe(server, &json!({})).1["epoch"]);
    assert!(epoch.len() == 8 && epoch.bytes().all(|byte| byte.is_ascii_hexdigit()), "{epoch}");
    epoch
}

fn publish(server: &Server, count: usize) {
    server.publish_lines(&ticks("s", count));
}

/// Deletes the events before this sequence number.
fn delete_before(server: &Server, sequence: u64) {
    let event = server.get_json(&format!("/events/{}", id_of(sequence)));
    let target = format!("/events?before={}", encode(&timestamp(&event)));
    assert_eq!(server.call("DELETE", &target, &[], b"").status, 200);
}

#[test]
fn the_answer_shows_the_retained_range() {
    let server = Server::start();
    let kept = |first: &Value| {
        let (_, answer) = subscribe(&server, first);
        assert!(answer.get("gap").is_none(), "{answer}");
        (answer["oldest_id"].clone(), answer["last_event_id"].clone())
    };
    let now = json!({});
    assert_eq!(kept(&now), (Value::Null, Value::Null));
    publish(&server, 10);
    assert_eq!(kept(&now), (json!(id_of(1)), json!(id_of(10))));
    delete_before(&server, 5);
    assert_eq!(kept(&now), (json!(id_of(5)), json!(id_of(10))));
    assert_eq!(kept(&json!({"session_id": "nobody"})), (json!(id_of(5)), json!(id_of(10))), "whatever the filter");
    server.call("DELETE", "/events", &[], b"");
    assert_eq!(kept(&now), (Value::Null, json!(id_of(10))));
    publish(&server, 1);
    assert_eq!(kept(&now), (json!(id_of(11)), json!(id_of(11))));
}

#[test]
fn deleted_events_after_a_cursor_are_reported_and_the_rest_arrives() {
    let server = Server::start();
    publish(&server, 10);
    delete_before(&server, 5);
    let missing = json!({"missing_through": id_of(4)});
    let epoch = epoch(&server);
    let cases = [
        (json!({"after": id_of(0)}), Some(&missing), 5),
        (json!({"after": id_of(3)}), Some(&missing), 5),
        (json!({"after": id_of(3), "epoch": epoch}), Some(&missing), 5),
        (json!({"after": id_of(4)}), None, 5),
        (json!({"after": id_of(7)}), None, 8),
        (json!({"after": id_of(10)}), None, 11),
        (json!({"after": id_of(10), "epoch": epoch}), None, 11),
        (json!({"last": 100}), None, 5),
        (json!({"since": "2020-01-01T00:00:00Z"}), None, 5),
        (json!({"epoch": epoch}), None, 11),
    ];
    let mut subscribers = cases.map(|(first, gap, start)| {
        let (socket, answer) = subscribe(&server, &first);
        assert_eq!(answer.get("gap"), gap, "{first}");
        (socket, first, start)
    });
    publish(&server, 1);
    for (socket, first, start) in &mut subscribers {
        for n in *start..=11 {
            assert_eq!(sequence(&socket.json()["id"]), n, "{first}");
        }
    }

    server.call("DELETE", "/events", &[], b"");
    let (mut socket, answer) = subscribe(&server, &json!({"after": id_of(3)}));
    assert_eq!(answer["gap"], json!({"missing_through": id_of(11)}), "everything");
    publish(&server, 1);
    assert_eq!(sequence(&socket.json()["id"]), 12);
}

#[test]
fn an_unknown_cursor_is_reported_and_the_stream_is_live() {
    let server = Server::start();
    publish(&server, 10);
    let epoch = epoch(&server);
    let other = format!("{:08x}", !u32::from_str_radix(&epoch, 16).unwrap());
    let cases = [
        json!({"after": id_of(11)}),
        json!({"after": id_of(11), "epoch": epoch}),
        json!({"after": id_of(0xffff_ffff_ffff)}),
        json!({"after": id_of(5), "epoch": other}),
        json!({"after": id_of(10), "epoch": "of another server"}),
    ];
    let mut subscribers = cases.map(|first| {
        let (socket, answer) = subscribe(&server, &first);
        assert_eq!(answer["gap"], json!({"unknown_cursor": first["after"]}), "{first}");
        assert_eq!(answer["epoch"], epoch);
        (socket, first)
    });
    publish(&server, 2);
    for (socket, first) in &mut subscribers {
        assert_eq!(sequences(&socket.collect(2)), [11, 12], "{first}");
    }
}

#[test]
fn the_epoch_survives_restarts_and_crashes() {
    for durability in ["full", "normal"] {
        let mut server = Server::with(&[("DURABILITY", durability)]);
        let epoch_of_all = epoch(&server);
        for end in [Server::stop, Server::kill, Server::kill, Server::stop] {
            publish(&server, 100);
            end(&mut server);
            server.restart();
            assert_eq!(epoch(&server), epoch_of_all, "{durability}");
        }
        // A deletion does not change the epoch: deleted events are reported as a gap.
        server.call("DELETE", "/events", &[], b"");
        server.kill();
        server.restart();
        assert_eq!(epoch(&server), epoch_of_all, "{durability}");
        assert_ne!(epoch(&Server::start()), epoch_of_all, "another database");
    }
}

/// A copy of the database of a stopped server, which is then one file.
fn backup(server: &Server) -> PathBuf {
    let copy = server.db_path().with_extension("backup");
    fs::copy(server.db_path(), &copy).unwrap();
    let log = server.db_path().with_extension("db-wal");
    assert!(fs::metadata(log).map_or(0, |log| log.len()) == 0, "everything is in the one file");
    copy
}

#[test]
fn a_restored_backup_begins_a_new_epoch() {
    let restores: [fn(&Server, PathBuf); 2] = [
        // Another file is put under the same name.
        |server, backup| fs::rename(backup, server.db_path()).unwrap(),
        // The same file gets the old bytes: only the sidecar shows the difference.
        |server, backup| fs::write(server.db_path(), fs::read(backup).unwrap()).unwrap(),
    ];
    for (restore, end) in restores.into_iter().zip([Server::stop, Server::kill]) {
        let mut server = Server::start();
        publish(&server, 10);
        server.stop();
        let copy = backup(&server);
        server.restart();
        let before = epoch(&server);
        publish(&server, 10);
        let cursor = json!({"after": id_of(15), "epoch": before});
        assert!(subscribe(&server, &cursor).1.get("gap").is_none());
        server.stop();

        restore(&server, copy);
        server.restart();
        let after = epoch(&server);
        assert_ne!(after, before, "ids are given out again");
        // As many events are published again, so that the cursor without its epoch would look valid.
        publish(&server, 10);
        let (mut socket, answer) = subscribe(&server, &cursor);
        assert_eq!(answer["gap"], json!({"unknown_cursor": id_of(15)}));
        publish(&server, 1);
        assert_eq!(sequence(&socket.json()["id"]), 21);

        end(&mut server);
        server.restart();
        assert_eq!(epoch(&server), after, "once");
    }
}

/// The blocks of an event stream with an end, without the first one.
fn stream(server: &Server, query: &str, headers: &[(&str, &str)]) -> Vec<String> {
    let response = server.call("GET", &format!("/events/stream?{query}"), headers, b"");
    assert_eq!(response.status, 200, "{query}: {}", response.text());
    let text = response.text();
    let mut blocks: Vec<_> = text.split_terminator("\n\n").map(str::to_owned).collect();
    let first = blocks.remove(0);
    assert!(first.starts_with("retry: 1000\nevent: subscribed\n"), "{first}");
    blocks
}

#[test]
fn event_streams_and_pages_report_gaps() {
    let server = Server::start();
    publish(&server, 10);
    delete_before(&server, 5);
    let epoch = epoch(&server);
    let until = "until=2999-01-01T00:00:00Z";
    let (missing, unknown) = (json!({"missing_through": id_of(4)}), |n| json!({"unknown_cursor": id_of(n)}));
    // The cursor, other parameters, the expected gap, and the first event up to the tenth that is delivered.
    let cases = [
        (2, String::new(), Some(missing.clone()), 5),
        (4, String::new(), None, 5),
        (8, format!("&epoch={epoch}"), None, 9),
        (8, "&epoch=00000000".to_owned(), Some(unknown(8)), 11),
        (11, String::new(), Some(unknown(11)), 11),
    ];
    for (cursor, more, gap, start) in cases {
        let what = format!("after {cursor}{more}");
        let cursor = id_of(cursor);
        let expected = |name: &str, gap: &Value| format!("event: {name}\ndata: {}", json!({"type": name, "gap": gap}));
        let queries = [
            stream(&server, &format!("after={cursor}&{until}{more}"), &[]),
            stream(&server, &format!("{until}{more}"), &[("Last-Event-ID", cursor.as_str())]),
        ];
        for blocks in queries {
            let mut blocks = blocks.iter();
            if let Some(gap) = &gap {
                assert_eq!(blocks.next(), Some(&expected("gap", gap)), "{what}");
            }
            for n in start..=10 {
                let block = blocks.next().unwrap_or_else(|| panic!("{what}: no {n}"));
                assert!(block.starts_with(&format!("id: {}\ndata: ", id_of(n))), "{what}: {block}");
            }
            assert_eq!(blocks.collect::<Vec<_>>(), ["event: complete\ndata: {}"], "{what}");
        }
        for headers in [&[][..], &[ACCEPT_NDJSON]] {
            let response = server.call("GET", &format!("/events?after_id={cursor}{more}"), headers, b"");
            assert_eq!(response.status, 200, "{what}");
            let told = response.header("event-gap").map(|gap| serde_json::from_str::<Value>(gap).unwrap());
            assert_eq!(told, gap, "{what}");
        }
    }
    let newest = server.get("/events?limit=3");
    assert_eq!(newest.header("event-gap"), None, "who has no cursor misses nothing");
}

#[test]
fn a_tail_reports_the_events_that_it_cannot_show() {
    let server = Server::start();
    publish(&server, 10);
    delete_before(&server, 5);
    let tail =
        |after: u64, count: &str| start(&server, &["tail", "--json", "--after", &id_of(after), "--count", count], "");
    let told = |run: Run| {
        let finished = run.finish();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        (finished.stderr, finished.stdout.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let stored = server.stored_lines("");
    let gap = format!("event-pipeline: events up to {} are deleted and cannot be shown\n", id_of(4));
    assert_eq!(told(tail(2, "6")), (gap, stored.clone()));
    assert_eq!(told(tail(4, "6")), (String::new(), stored));

    // No one else learns where the tail begins, so events are published until it has shown one.
    while_publishing(
        &server,
        |n| tick("s", n),
        || {
            let (complaint, shown) = told(tail(0xffff_ffff_ffff, "1"));
            assert_eq!(complaint.lines().count(), 1, "{complaint}");
            assert!(complaint.contains("evt_ffffffffffff"), "{complaint}");
            let first: Value = serde_json::from_str(&shown[0]).unwrap();
            assert!(sequence(&first["id"]) > 10, "{first}");
        },
    );
}
