//! The commands, end to end: `publish`, `replay`, `tail`, `query` and `stats` against a running server.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::*;

/// Starts a command of the binary as a client of the server.
pub fn start(server: &Server, arguments: &[&str], stdin: &str) -> Run {
    let url = format!("http://{}", server.addr);
    let mut command = command(server.folder());
    Run::start(command.args(arguments).args(["--url", &url]), stdin)
}

/// Runs a command that must succeed, and returns the lines it printed.
fn run(server: &Server, arguments: &[&str]) -> Vec<String> {
    lines(start(server, arguments, "").finish())
}

fn lines(finished: Finished) -> Vec<String> {
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished.stdout.lines().map(str::to_string).collect()
}

fn recording() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/classroom.ndjson").to_str().unwrap().to_string()
}

#[test]
fn a_class_is_replayed_and_followed_live() {
    let server = Server::start();
    let everything = start(&server, &["tail", "--json", "--since", "2020-01-01T00:00:00Z", "--count", "6571"], "");
    let answers = start(
        &server,
        &["tail", "--json", "--since", "1d", "--count", "289", "--type", "answer_submitted,answer_changed"],
        "",
    );
    server.await_stats("two tails", |stats| stats["router"]["active_subscribers"] == 2);
    run(&server, &["replay", &recording(), "--speed", "max"]);

    let stored = server.stored_lines("");
    assert_eq!(stored.len(), 6571);
    assert_eq!(lines(everything.finish()), stored);
    assert_eq!(lines(answers.finish()), server.stored_lines("event_type=answer_submitted,answer_changed"));
    for (stored, published) in stored.iter().zip(classroom()) {
        assert_eq!(raw_field(stored, "payload"), raw_field(&published, "payload"));
    }

    assert_eq!(run(&server, &["query", "--all", "--json"]), stored);
    let newest: Vec<_> = stored.iter().rev().take(100).cloned().collect();
    assert_eq!(run(&server, &["query", "--json"]), newest);
    let of_one = run(&server, &["query", "--all", "--json", "--user", "student-120", "--type", "question_viewed"]);
    assert_eq!(of_one, server.stored_lines("user_id=student-120&event_type=question_viewed"));
    let stats: Value = serde_json::from_str(&run(&server, &["stats", "--json"]).join("\n")).unwrap();
    assert_eq!(stats["total_events"], 6571);
    let table = run(&server, &["stats"]).join("\n");
    assert!(table.contains("6571") && table.contains("timer_tick") && table.contains("5559"), "{table}");
}

#[test]
fn events_are_published_from_flags_files_and_pipes() {
    let server = Server::start();
    let payload = r#"{"b":0.10,"a":"é"}"#;
    let ids = run(
        &server,
        &[
            "publish",
            "--type",
            "quiz_started",
            "--source",
            "quiz_engine",
            "--session",
            "s1",
            "--user",
            "u1",
            "--payload",
            payload,
        ],
    );
    assert_eq!(ids, [id_of(1)]);
    let stored = &server.stored_lines("session_id=s1&user_id=u1&source=quiz_engine&event_type=quiz_started")[0];
    assert_eq!(raw_field(stored, "payload"), payload);

    let file = server.folder().join("events.ndjson");
    std::fs::write(&file, ticks("file", 3000).join("\n")).unwrap();
    assert_eq!(run(&server, &["publish", file.to_str().unwrap()]), (2..=3001).map(id_of).collect::<Vec<_>>());

    let piped = start(&server, &["publish", "-"], &ticks("pipe", 50).join("\n")).finish();
    assert_eq!(lines(piped).len(), 50);
    assert_eq!(server.stored("session_id=pipe").len(), 50);
}

#[test]
fn refused_events_are_named_and_the_command_fails() {
    let server = Server::start();
    let events = [tick("s", 0), r#"{"event_type":"quiz_exploded","source":"it"}"#.to_string(), tick("s", 1)];
    let refused = start(&server, &["publish", "-"], &events.join("\n")).finish();
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("quiz_exploded") && refused.stderr.contains("2"), "{}", refused.stderr);
    assert_eq!(server.stored("session_id=s").len(), 2, "the others were published");

    let broken = server.folder().join("broken.ndjson");
    std::fs::write(&broken, "{\"offset_ms\":0,\"event\":{}}\nnot a recording\n").unwrap();
    let refused = start(&server, &["replay", broken.to_str().unwrap(), "--speed", "max"], "").finish();
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("line 2"), "{}", refused.stderr);
}

#[test]
fn a_tail_starts_at_the_requested_event_and_filters() {
    let server = Server::start();
    server.publish_lines(&(0..20).map(|n| tick(["a", "b"][n % 2], n)).collect::<Vec<_>>());
    let all = server.stored_lines("");
    let of_b = server.stored_lines("session_id=b");
    let middle = id_of(10);
    assert_eq!(run(&server, &["tail", "--json", "--last", "3", "--count", "3"]), all[17..]);
    assert_eq!(run(&server, &["tail", "--json", "--after", &middle, "--count", "10"]), all[10..]);
    assert_eq!(run(&server, &["tail", "--json", "--session", "b", "--last", "4", "--count", "4"]), of_b[6..]);
    let for_people = run(&server, &["tail", "--source", "it", "--last", "5", "--count", "5"]);
    assert_eq!(for_people.len(), 5, "one event a line");
    assert!(for_people.iter().all(|line| line.contains("timer_tick")), "{for_people:#?}");
}

#[test]
fn every_command_works_with_the_api_key() {
    let server = Server::with(&[("REQUIRE_AUTH", "true"), ("API_KEY", "open sesame, please")]);
    let commands =
        [&["publish", "--type", "timer_tick"][..], &["query"], &["stats"], &["tail", "--last", "1", "--count", "1"]];
    for arguments in commands {
        let refused = start(&server, arguments, "").finish();
        assert_eq!(refused.code, Some(1), "{arguments:?}: {}", refused.stderr);
        assert_eq!(refused.stderr.trim_end().lines().count(), 1, "{arguments:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("give a key or a token with --api-key"), "{arguments:?}: {}", refused.stderr);
        run(&server, &[arguments, &["--api-key", "open sesame, please"]].concat());
    }
}

#[test]
fn failures_are_one_line_and_usage_is_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let finish = |arguments: &[&str]| Run::start(command(folder.path()).args(arguments), "").finish();
    // No server listens on the port of a closed listener.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{nobody}");
    for arguments in [&["stats"][..], &["query"], &["tail"], &["publish", "--type", "timer_tick"]] {
        let failed = finish(&[arguments, &["--url", &url]].concat());
        assert_eq!(failed.code, Some(1), "{arguments:?}: {}", failed.stderr);
        assert_eq!(failed.stderr.trim_end().lines().count(), 1, "{arguments:?}: {}", failed.stderr);
        assert!(failed.stderr.contains(&nobody.port().to_string()), "{arguments:?}: {}", failed.stderr);
    }
    for arguments in [&["dance"][..], &["stats", "--faster"], &["replay"], &["query", "--since", "yesterday"]] {
        assert_eq!(finish(arguments).code, Some(2), "{arguments:?}");
    }
    let help = finish(&["--help"]);
    assert_eq!(help.code, Some(0));
    for command in ["serve", "publish", "tail", "query", "stats", "replay", "check", "repair", "config"] {
        assert!(help.stdout.contains(command), "{command} is not in the help");
        if command == "config" {
            continue;
        }
        let help = finish(&[command, "--help"]);
        assert!(help.code == Some(0) && help.stdout.len() > 300, "{command} --help is worth reading");
    }
    let version = finish(&["--version"]);
    assert_eq!(version.stdout.trim(), format!("event-pipeline {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(json!(version.code), 0);
}

#[test]
fn a_tail_that_lost_an_empty_server_shows_the_events_published_meanwhile() {
    let mut server = Server::start();
    let home = server.addr;
    let tails: Vec<_> = [&["--count", "8"][..], &["--count", "8", "--last", "5"], &["--count", "8", "--since", "1d"]]
        .iter()
        .map(|more| start(&server, &[&["tail", "--json"], *more].concat(), ""))
        .collect();
    server.await_stats("three tails", |stats| stats["router"]["active_subscribers"] == 3);
    server.stop();
    // The server runs on another port, so that the tails cannot reconnect.
    server.restart();
    assert_ne!(server.addr, home);
    server.publish_lines(&ticks("s", 8));
    let stored = server.stored_lines("");
    server.stop();
    server.addr = home;
    server.restart_in_place();
    for tail in tails {
        assert_eq!(lines(tail.finish()), stored);
    }
}

#[test]
fn a_tail_with_an_empty_history_shows_the_events_published_meanwhile() {
    let mut server = Server::start();
    let home = server.addr;
    server.publish_lines(&ticks("other", 3));
    let tail = start(&server, &["tail", "--json", "--session", "s", "--last", "2", "--count", "4"], "");
    server.await_stats("a tail", |stats| stats["router"]["active_subscribers"] == 1);
    server.stop();
    server.restart();
    assert_ne!(server.addr, home);
    server.publish_lines(&ticks("s", 4));
    let stored = server.stored_lines("session_id=s");
    server.stop();
    server.addr = home;
    server.restart_in_place();
    assert_eq!(lines(tail.finish()), stored);
}

#[test]
fn a_filter_and_an_option_that_ask_for_the_same_field_are_refused() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 3));
    let conflict = ["--filter", r#"{"session_id":"t"}"#, "--session", "s"];
    for command in [&["tail", "--last", "1", "--count", "1"][..], &["query"]] {
        let refused = start(&server, &[command, &conflict].concat(), "").finish();
        assert_ne!(refused.code, Some(0), "{command:?}: {}", refused.stdout);
        assert!(refused.stderr.contains("session_id"), "{}", refused.stderr);
        let nothing = ["--session", "", "--type", "", "--source", "", "--user", "", "--filter", "{}"];
        assert!(!run(&server, &[command, &nothing].concat()).is_empty(), "an empty value means any");
    }
}

#[test]
fn a_filter_with_an_unknown_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for command_name in ["tail", "query"] {
        let mut command = command(folder.path());
        let finished = Run::start(command.args([command_name, "--filter", r#"{"sesion_id":"s"}"#]), "").finish();
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        assert!(finished.stderr.contains("sesion_id"), "{}", finished.stderr);
    }
}
