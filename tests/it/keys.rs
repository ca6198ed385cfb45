//! Named keys: made on the command line, and what a client with one may see and do.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::*;

/// A server with the usual keys, and what its clients show.
struct Guarded {
    server: Server,
    publisher: String,
    reader: String,
    admin: String,
}

impl Guarded {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = Keys { file: folder.path().join("data/keys.toml") };
        let publisher = keys.add("timers", &["--scope", "publish"]);
        let reader = keys.add("reader", &["--scope", "subscribe,query"]);
        let admin = keys.add("admin", &["--scope", "publish,subscribe,query,admin"]);
        Self { server: Server::in_folder(folder, &[]), publisher, reader, admin }
    }

    fn keys(&self) -> Keys {
        Keys { file: self.server.folder().join("data/keys.toml") }
    }

    fn call(&self, key: &str, method: &str, path: &str, body: &str) -> Response {
        self.server.call(method, path, &[("X-API-Key", key), JSON], body.as_bytes())
    }

    fn get(&self, key: &str, path: &str) -> Response {
        self.call(key, "GET", path, "")
    }

    fn publish(&self, body: &str) -> Value {
        let answer = self.call(&self.admin, "POST", "/events", body);
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }

    fn socket(&self, key: &str, path: &str) -> Result<Socket, Response> {
        Socket::handshake(self.server.addr, path, &[("X-API-Key", key)])
    }

    fn subscriber(&self, key: &str, first: &Value) -> Socket {
        let mut socket = self.socket(key, "/ws/subscribe").ok().expect("a subscriber");
        assert_eq!(socket.ask(&first.to_string())["status"], "subscribed");
        socket
    }
}

/// The keys file, as `event-pipeline keys` changes it.
pub struct Keys {
    pub file: PathBuf,
}

impl Keys {
    fn run(&self, arguments: &[&str]) -> Finished {
        let folder = tempfile::tempdir().unwrap();
        Run::start(command(folder.path()).arg("keys").args(arguments).env("KEYS_FILE", &self.file), "").finish()
    }

    pub fn add(&mut self, name: &str, arguments: &[&str]) -> String {
        let run = self.run(&[&["add", name], arguments].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stdout.trim_end().to_owned()
    }

    fn revoke(&self, key: &str) {
        let run = self.run(&["revoke", id_of_key(key)]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
    }
}

fn id_of_key(key: &str) -> &str {
    key.split('_').nth(1).expect("an id")
}

fn event(session: &str, user: &str, event_type: &str, source: &str) -> String {
    json!({"event_type": event_type, "source": source, "session_id": session, "user_id": user, "payload": {}})
        .to_string()
}

#[test]
fn commands_at_the_same_time_change_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys { file: folder.path().join("keys.toml") };
    let names: Vec<_> = (0..8).map(|n| format!("key {n}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| assert_eq!(keys.run(&["add", name, "--scope", "query"]).code, Some(0)));
        }
    });
    let shown: Value = serde_json::from_str(&keys.run(&["list", "--json"]).stdout).unwrap();
    let made: BTreeSet<_> = shown["keys"].as_array().unwrap().iter().map(|key| text_of(&key["name"])).collect();
    assert_eq!(made, names.into_iter().collect());
}

#[test]
fn keys_are_made_listed_and_revoked_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = Keys { file: folder.path().join("new/keys.toml") };
    assert_eq!(keys.run(&["list"]).stdout, "There is no key.\n");
    let key =
        keys.add("class 7b", &["--scope", "subscribe,query", "--session", "s1", "--session", "s2", "--expires", "90d"]);
    let text = std::fs::read_to_string(&keys.file).unwrap();
    let secret = &key[12..55];
    assert!(!text.contains(secret) && text.contains(id_of_key(&key)), "{text}");
    let shown: Value = serde_json::from_str(&keys.run(&["list", "--json"]).stdout).unwrap();
    let shown = &shown["keys"][0];
    assert_eq!(shown["name"], "class 7b");
    assert_eq!(shown["scopes"], json!(["subscribe", "query"]));
    assert_eq!(shown["only_for"], json!({"session_id": ["s1", "s2"]}));
    assert_eq!(shown["space"], "class 7b");
    assert!(text_of(&shown["expires"]) > text_of(&shown["created"]));
    assert!(keys.run(&["list"]).stdout.contains("session_id=s1,s2"));
    for (arguments, said) in [
        (&["add", "x"][..], "--scope"),
        (&["add", "x", "--scope", "everything"], "not one of publish, subscribe, query, admin, metrics"),
        (&["add", "x", "--scope", "query", "--expires", "2020-01-01"], "would have expired already"),
        (&["add", "x", "--scope", "query", "--expires", "soon"], "nor a time from now such as 12h or 90d"),
        (&["add", "", "--scope", "query"], "is not 1 to 100 characters"),
        (&["add", "x", "--scope", "query", "--user", ""], "is for an empty value, which no event has"),
        (&["revoke", "nobody"], "has no key \"nobody\""),
    ] {
        let run = keys.run(arguments);
        assert!(run.code != Some(0) && run.stderr.contains(said), "{arguments:?}: {}", run.stderr);
    }
    assert_eq!(std::fs::read_to_string(&keys.file).unwrap(), text, "nothing was changed");
    // The file behind a link is changed, and the link stays one.
    let link = folder.path().join("link.toml");
    std::os::unix::fs::symlink(&keys.file, &link).unwrap();
    Keys { file: link.clone() }.revoke(&key);
    assert!(link.is_symlink());
    assert_eq!(keys.run(&["list"]).stdout, "There is no key.\n");
    std::fs::write(&keys.file, "[[keys]]\nid = 7\n").unwrap();
    for arguments in [&["list"][..], &["add", "x", "--scope", "query"], &["revoke", "x"]] {
        let run = keys.run(arguments);
        assert!(run.code == Some(1) && run.stderr.contains("line 2"), "{}", run.stderr);
    }
    let started = Run::start(command(folder.path()).arg("serve").env("KEYS_FILE", &keys.file), "").finish();
    assert!(started.code == Some(2) && started.stderr.contains("line 2"), "{}", started.stderr);
}

#[test]
fn a_keys_file_switches_authentication_on_and_a_setting_overrules_it() {
    let Guarded { server, reader, .. } = Guarded::start();
    server.get("/stats").refusal(401);
    assert_eq!(server.call("GET", "/stats", &[("X-API-Key", &reader)], b"").status, 200);
    let mut server = server;
    server.set("REQUIRE_AUTH", Some("false"));
    server.stop();
    server.restart();
    assert_eq!(server.get("/stats").status, 200);
    let folder = tempfile::tempdir().unwrap();
    let named = Run::start(command(folder.path()).arg("serve").env("KEYS_FILE", "none.toml"), "").finish();
    assert!(named.code == Some(2) && named.stderr.contains("none.toml cannot be read"), "{}", named.stderr);
    // The other key does not switch it on.
    assert_eq!(Server::with(&[("API_KEY", "k")]).get("/stats").status, 200);
}

#[test]
fn a_key_opens_what_its_scopes_say_and_nothing_else() {
    let guarded = Guarded::start();
    let requests = [
        ("POST", "/events", "publish"),
        ("GET", "/events", "query"),
        ("GET", "/events/evt_000000000001", "query"),
        ("GET", "/events/stream?until=x", "subscribe"),
        ("DELETE", "/events?before=x", "admin"),
        ("GET", "/subscriptions", "query"),
        ("GET", "/subscriptions/explain", "query"),
        ("DELETE", "/subscriptions/none", "admin"),
        ("GET", "/stats", "query"),
    ];
    for (key, scopes) in [
        (&guarded.publisher, &["publish"][..]),
        (&guarded.reader, &["subscribe", "query"]),
        (&guarded.admin, &["publish", "subscribe", "query", "admin"]),
    ] {
        for (method, path, scope) in requests {
            // 403 comes before validation.
            let answer = guarded.call(key, method, path, "nonsense");
            assert_eq!(answer.status != 403, scopes.contains(&scope), "{method} {path}: {}", answer.text());
            if answer.status == 403 {
                assert_eq!(answer.json()["type"], "/docs#/problems/scope-missing");
            }
        }
        for (path, scope) in [("/ws/publish", "publish"), ("/ws/subscribe", "subscribe")] {
            let refused = guarded.socket(key, path).err().map(|answer| answer.status);
            assert_eq!(refused, (!scopes.contains(&scope)).then_some(403), "{path}");
        }
        assert_eq!(guarded.get(key, "/whoami").json()["scopes"], json!(scopes));
    }
}

#[test]
fn a_key_is_shown_in_every_way_and_a_typo_is_told_apart() {
    let guarded = Guarded::start();
    let (server, key) = (&guarded.server, &guarded.reader);
    let bearer = format!("Bearer {key}");
    assert_eq!(server.call("GET", "/stats", &[("Authorization", &bearer)], b"").status, 200);
    let stream = server.call("GET", &format!("/events/stream?until=x&api_key={key}"), &[], b"");
    assert_eq!(stream.status, 400, "the time is wrong, and not the key");
    let offered = format!("key.{key}, event-pipeline");
    let mut wire = Wire::connect(server.addr);
    let upgrade = [
        ("Connection", "upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", &offered),
    ];
    wire.send(request("GET", "/ws/subscribe", &upgrade, b""));
    let opened = wire.response_head().expect("an answer");
    assert_eq!((opened.status, opened.header("sec-websocket-protocol")), (101, Some("event-pipeline")));
    let wrong = mistyped(key);
    let protocol = format!("key.{wrong}");
    assert_eq!(
        Socket::handshake(server.addr, "/ws/subscribe", &[("Sec-WebSocket-Protocol", &protocol)]).err().unwrap().status,
        401
    );

    let said = |key: &str| text_of(&guarded.get(key, "/stats").refusal(401));
    for mistyped in [&key[..key.len() - 1], &wrong, &format!("{key}x"), "ep_"] {
        assert!(said(mistyped).contains("mistyped"), "{mistyped}: {}", said(mistyped));
    }
    guarded.keys().revoke(key);
    await_true("the end of the key", || guarded.get(key, "/stats").status == 401);
    assert_eq!(said(key), "Missing or wrong API key");
    let log = server.log().join("\n");
    assert!(!log.contains(&key[12..55]), "no secret is logged");
}

#[test]
fn a_revoked_or_expired_key_closes_its_connections_and_others_notice_nothing() {
    let guarded = Guarded::start();
    let mut keys = guarded.keys();
    let short = keys.add("short", &["--scope", "subscribe", "--expires", "3s"]);
    let replaced = keys.add("reader", &["--scope", "subscribe,query"]);
    await_true("the new keys", || guarded.get(&replaced, "/stats").status == 200);
    let mut polling = Wire::connect(guarded.server.addr);
    polling.send(request(
        "GET",
        &format!("/events?after_id={}&wait=30s", id_of(0)),
        &[("X-API-Key", &guarded.reader)],
        b"",
    ));
    await_true("the long poll", || guarded.get(&guarded.admin, "/stats").json()["router"]["active_subscribers"] == 1);
    let mut expiring = guarded.subscriber(&short, &json!({}));
    let mut revoked = guarded.subscriber(&guarded.reader, &json!({"name": "desk"}));
    let mut revoked_publisher = guarded.socket(&guarded.publisher, "/ws/publish").ok().unwrap();
    let mut idle = guarded.socket(&guarded.reader, "/ws/subscribe").ok().unwrap();
    let mut stream = Wire::connect(guarded.server.addr);
    stream.send(request("GET", "/events/stream", &[("X-API-Key", &guarded.reader)], b""));
    assert_eq!(stream.response_head().unwrap().status, 200);
    let mut staying = guarded.subscriber(&guarded.admin, &json!({}));
    let body = tick("s", 7);
    let mut slow = Wire::connect(guarded.server.addr);
    let whole = request("POST", "/events", &[("X-API-Key", &guarded.publisher), JSON], body.as_bytes());
    slow.send(&whole[..whole.len() - 1]);

    keys.revoke(&guarded.reader);
    keys.revoke(&guarded.publisher);
    assert_eq!(expiring.json()["type"], "auth_expires");
    for socket in [&mut revoked, &mut revoked_publisher, &mut idle, &mut expiring] {
        assert_eq!(socket.close_code(), 4001);
    }
    while stream.chunk().is_some_and(|chunk| !chunk.is_empty()) {}
    slow.send(&whole[whole.len() - 1..]);
    assert_eq!(slow.response().expect("an answer").refusal(401), "The API key was revoked or has expired");
    assert_eq!(polling.response().expect("an answer").refusal(401), "The API key was revoked or has expired");
    for key in [&guarded.reader, &guarded.publisher, &short] {
        guarded.get(key, "/whoami").refusal(401);
    }
    assert_eq!(guarded.get(&short, "/whoami").refusal(401), "The API key has expired");
    // The other key of the same name goes on under the same names.
    let mut again = guarded.subscriber(&replaced, &json!({"name": "desk"}));
    let id = guarded.publish(&tick("s", 0))["id"].clone();
    assert_eq!(staying.json()["id"], id);
    assert_eq!(again.json()["id"], id);

    // A file that cannot be used changes nothing.
    let mut guarded = guarded;
    guarded.server.allow_noise();
    let good = std::fs::read_to_string(&keys.file).unwrap();
    std::fs::write(&keys.file, "nonsense").unwrap();
    await_true("a complaint", || guarded.server.log().iter().any(|line| line.contains("the keys are as before")));
    assert_eq!(guarded.get(&replaced, "/whoami").status, 200);
    std::fs::remove_file(&keys.file).unwrap();
    guarded.server.signal("HUP");
    await_true("another complaint", || guarded.server.log().iter().any(|line| line.contains("cannot be read")));
    // A pipe that nobody writes to is not waited for.
    assert!(std::process::Command::new("mkfifo").arg(&keys.file).status().unwrap().success());
    await_true("a third one", || guarded.server.log().iter().any(|line| line.contains("it is no regular file")));
    std::fs::remove_file(&keys.file).unwrap();
    assert_eq!(guarded.get(&replaced, "/whoami").status, 200);
    std::fs::write(&keys.file, good).unwrap();
    assert_eq!(staying.ask(r#"{"type":"ping"}"#)["type"], "pong", "it was open all the time");
}

/// The events of a class that a key for some of them sees, in every way in which events are read.
#[test]
fn a_key_for_some_events_sees_and_changes_no_others() {
    let guarded = Guarded::start();
    let mut keys = guarded.keys();
    for session in ["a", "b", "c"] {
        for user in ["u", "v"] {
            for (event_type, source) in [("timer_tick", "timer"), ("quiz_started", "engine")] {
                guarded.publish(&event(session, user, event_type, source));
            }
        }
    }
    guarded.publish(r#"{"event_type":"timer_tick","source":"timer","payload":{}}"#);
    let ids = |events: &[Value]| -> BTreeSet<String> { events.iter().map(|event| text_of(&event["id"])).collect() };
    for (flags, field, values) in [
        (&["--session", "a", "--session", "b"][..], "session_id", &["a", "b"][..]),
        (&["--user", "u"], "user_id", &["u"]),
        (&["--type", "quiz_started"], "event_type", &["quiz_started"]),
        (&["--source", "timer"], "source", &["timer"]),
        (&["--session", "nobody"], "session_id", &["nobody"]),
    ] {
        let scopes = ["--scope", "publish,subscribe,query,admin"];
        let key = keys.add(&format!("only {values:?}"), &[&scopes, flags].concat());
        await_true("the key", || guarded.get(&key, "/whoami").status == 200);
        let all: Vec<Value> = guarded.get(&guarded.admin, "/events?limit=1000").json().as_array().unwrap().clone();
        let is_seen = |event: &Value| values.contains(&event[field].as_str().unwrap_or_default());
        let seen: Vec<Value> = all.iter().filter(|event| is_seen(event)).cloned().collect();
        // The forms of a filter, with what passes it.
        type Passes = fn(&Value) -> bool;
        let filters: [(&str, Passes); 6] = [
            ("", |_| true),
            ("&session_id=b", |event| event["session_id"] == "b"),
            ("&event_type=timer_tick,quiz_started", |_| true),
            ("&exclude_user_id=v", |event| event["user_id"] != "v"),
            ("&filter=%7B%22source%22%3A%5B%22timer%22%2C%22x%22%5D%7D", |event| event["source"] == "timer"),
            ("&payload.none=1", |_| false),
        ];
        for (filter, passes) in filters {
            let expected = ids(&seen.iter().filter(|event| passes(event)).cloned().collect::<Vec<_>>());
            let page = guarded.get(&key, &format!("/events?limit=1000{filter}")).json();
            assert_eq!(ids(page.as_array().unwrap()), expected, "{flags:?} {filter}");
            let waited =
                guarded.get(&key, &format!("/events?limit=1000&after_id={}&wait=1ms{filter}", id_of(0))).json();
            assert_eq!(ids(waited.as_array().unwrap()), expected, "{flags:?} {filter}: a long poll");
            let headers = [("X-API-Key", &*key), ("Accept", "application/x-ndjson")];
            let export =
                guarded.server.call("GET", &format!("/events?{}", filter.trim_start_matches('&')), &headers, b"");
            let lines: Vec<Value> = export.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(ids(&lines), expected, "{flags:?} {filter}: an export");
            let url = format!("/events/stream?last=1000&until=9999-01-01T00:00:00Z{filter}");
            let stream = guarded.get(&key, &url).text();
            let streamed: BTreeSet<_> =
                stream.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect();
            assert_eq!(streamed, expected, "{flags:?} {filter}: an event stream");
        }
        for event in &all {
            let status = guarded.get(&key, &format!("/events/{}", text_of(&event["id"]))).status;
            assert_eq!(status, if is_seen(event) { 200 } else { 404 }, "{flags:?} {event}");
            let url = format!("/subscriptions/explain?event_id={}", text_of(&event["id"]));
            assert_eq!(guarded.get(&key, &url).status, if is_seen(event) { 200 } else { 404 }, "{flags:?}: explain");
        }
        guarded.get(&key, "/stats").refusal(403);

        // Live, from a first message and after new filters, and to publish.
        let mut subscriber = guarded.subscriber(&key, &json!({"session_id": "a"}));
        assert_eq!(subscriber.ask(r#"{"type":"update_filters","filters":{}}"#)["status"], "filters_updated");
        let mut publisher = guarded.socket(&key, "/ws/publish").ok().unwrap();
        for (session, user, event_type, source) in [
            ("c", "v", "timer_tick", "engine"),
            ("a", "u", "quiz_started", "timer"),
            ("nobody", "w", "timer_warning", "x"),
        ] {
            let event = event(session, user, event_type, source);
            let parsed: Value = serde_json::from_str(&event).unwrap();
            let good = json!([{"event_type": "quiz_started", "source": "timer", "session_id": "a", "user_id": "u", "payload": {}}]);
            let (http, ws) = (guarded.call(&key, "POST", "/events", &event), publisher.ask(&event));
            let mut many = good.as_array().unwrap().clone();
            many.push(parsed.clone());
            let array = guarded.call(&key, "POST", "/events", &json!(many).to_string());
            if is_seen(&parsed) {
                assert_eq!((http.status, text_of(&ws["status"])), (201, "ok".into()), "{flags:?} {event}");
                assert_eq!(subscriber.json()["id"], http.json()["id"]);
                assert_eq!(subscriber.json()["id"], ws["event_id"]);
            } else {
                http.refusal(403);
                assert_eq!(http.json()["type"], "/docs#/problems/outside-of-key", "{flags:?} {event}");
                assert!(text_of(&ws["message"]).starts_with("The key is for other events only: "), "{ws}");
                assert!(array.status == 403, "{flags:?}: an array fails whole");
            }
            if array.status == 201 {
                for id in array.json()["ids"].as_array().unwrap() {
                    assert_eq!(subscriber.json()["id"], *id);
                }
            } else {
                let named = if is_seen(&good[0]) { "Event 1: " } else { "Event 0: " };
                assert!(text_of(&array.refusal(403)).starts_with(named), "{}", array.text());
            }
        }
        assert_eq!(subscriber.ask(r#"{"type":"ping"}"#)["type"], "pong", "it has heard of nothing else");
        // An event without the field is not in what it is for.
        guarded.call(&key, "POST", "/events", r#"{"event_type":"bell","source":"nowhere","payload":{}}"#).refusal(422);
    }

    let erasing = keys.add("eraser", &["--scope", "admin,query", "--session", "a"]);
    await_true("the key", || guarded.get(&erasing, "/whoami").status == 200);
    let before = guarded.get(&guarded.admin, "/events?limit=1000").json().as_array().unwrap().len();
    let of_a = guarded.get(&guarded.admin, "/events?limit=1000&session_id=a").json().as_array().unwrap().len();
    assert_eq!(guarded.call(&erasing, "DELETE", "/events?session_id=b", "").json()["deleted"], 0);
    assert_eq!(guarded.call(&erasing, "DELETE", "/events", "").json()["deleted"], of_a);
    let left = guarded.get(&guarded.admin, "/events?limit=1000").json().as_array().unwrap().len();
    assert_eq!(left, before - of_a, "a deletion without a filter deletes what the key is for");
}

#[test]
fn names_and_idempotency_keys_belong_to_a_space() {
    let guarded = Guarded::start();
    let mut keys = guarded.keys();
    let scopes = ["--scope", "publish,subscribe,query"];
    let (one, other) = (keys.add("one", &scopes), keys.add("other", &scopes));
    let twin = keys.add("twin", &[&scopes[..], &["--space", "one"]].concat());
    let narrow = keys.add("narrow", &[&scopes[..], &["--space", "one", "--session", "s"]].concat());
    await_true("the keys", || guarded.get(&narrow, "/whoami").status == 200);

    let publish = |key: &str, n| {
        let headers = [("X-API-Key", key), ("Idempotency-Key", "k"), JSON];
        guarded.server.call("POST", "/events", &headers, tick("s", n).as_bytes())
    };
    let first = publish(&one, 1);
    assert_eq!((first.status, publish(&other, 2).status, publish(&guarded.admin, 3).status), (201, 201, 201));
    for replay in [publish(&one, 1), publish(&twin, 1), publish(&narrow, 1)] {
        assert_eq!((replay.status, replay.json()["id"].clone()), (200, first.json()["id"].clone()));
    }
    publish(&one, 2).refusal(422);
    let with_key = |n| tick("s", n).replacen('{', r#"{"idempotency_key":"k","#, 1);
    let mut publisher = guarded.socket(&twin, "/ws/publish").ok().unwrap();
    assert_eq!(publisher.ask(&with_key(2))["status"], "error", "the key was used for another event");

    let mut desk = guarded.subscriber(&one, &json!({"name": "desk", "session_id": "s"}));
    let _others = guarded.subscriber(&other, &json!({"name": "desk"}));
    let shown = |key: &str| {
        let list = guarded.get(key, "/subscriptions").json();
        let names = list.as_array().unwrap().iter().map(|one| (text_of(&one["name"]), text_of(&one["space"])));
        names.collect::<Vec<_>>()
    };
    let (of_one, of_other) = (("desk".to_owned(), "one".to_owned()), ("desk".to_owned(), "other".to_owned()));
    assert_eq!((shown(&one), shown(&other)), (vec![of_one.clone()], vec![of_other.clone()]));
    assert_eq!(shown(&guarded.admin), [of_one, of_other]);
    guarded.subscriber(&twin, &json!({"name": "desk"}));
    assert_eq!(desk.close_code(), 4009, "the same name in the same space");

    // Members of a group share one stream.
    let _wide = guarded.subscriber(&one, &json!({"group": "graders"}));
    let mut joining = guarded.socket(&narrow, "/ws/subscribe").ok().unwrap();
    let refused = joining.ask(r#"{"group":"graders"}"#);
    assert!(text_of(&refused["message"]).contains("cannot join"), "{refused}");

    // What a key lets through of a name is its own: the next client of that name gets all of it again.
    let with_name = json!({"name": "all"});
    drop(guarded.subscriber(&one, &with_name));
    drop(guarded.subscriber(&narrow, &with_name));
    let mut all = guarded.subscriber(&one, &with_name);
    let elsewhere = guarded.publish(&tick("elsewhere", 0))["id"].clone();
    assert_eq!(all.json()["id"], elsewhere);
    let lag = |key: &str| {
        let list = guarded.get(key, "/subscriptions").json();
        list.as_array().unwrap().iter().find(|shown| shown["name"] == "all").unwrap()["lag"].clone()
    };
    assert_eq!((lag(&one), lag(&narrow)), (json!(1), json!(0)), "for a key there are no other events");

    // Only its own space is explained.
    let explain = |key: &str| guarded.get(key, &format!("/subscriptions/explain?event_id={}", id_of(1))).json();
    let count = |answer: &Value, of: &str| answer[of].as_array().unwrap().len();
    assert_eq!((count(&explain(&other), "subscribers"), count(&explain(&other), "durable")), (1, 1));

    // Neither a slash nor the character between a space and a key leads into another space.
    let inside = keys.add("inside", &["--scope", "publish,admin,query", "--space", ""]);
    await_true("the key", || guarded.get(&inside, "/whoami").status == 200);
    let deep = keys.add("deep", &["--scope", "admin,query", "--space", "o", "--session", "s"]);
    await_true("the key", || guarded.get(&deep, "/whoami").status == 200);
    guarded.call(&deep, "DELETE", "/subscriptions/ther%2Fdesk", "").refusal(404);
    guarded.call(&inside, "DELETE", "/subscriptions/other%2Fdesk", "").refusal(404);
    let squatted = json!({"event_type": "timer_tick", "source": "s", "payload": {}, "idempotency_key": "one\u{1f}new"});
    assert_eq!(guarded.call(&inside, "POST", "/events", &squatted.to_string()).status, 201);
    let headers = [("X-API-Key", &*one), ("Idempotency-Key", "new"), JSON];
    assert_eq!(guarded.server.call("POST", "/events", &headers, tick("s", 9).as_bytes()).status, 201);

    guarded.call(&guarded.admin, "DELETE", "/subscriptions/desk", "").refusal(404);
    assert_eq!(guarded.call(&guarded.admin, "DELETE", "/subscriptions/desk?space=other", "").status, 204);
    assert_eq!(shown(&other), []);

    // A restart changes nothing of it, nor does a key that was not there then.
    let Guarded { mut server, admin, .. } = guarded;
    server.stop();
    server.restart();
    let list = server.call("GET", "/subscriptions", &[("X-API-Key", &admin)], b"").json();
    assert!(list.as_array().unwrap().iter().all(|shown| shown["space"] == "one"), "{list}");
}

/// Another key, of which the last character differs.
fn mistyped(key: &str) -> String {
    let last = if key.ends_with('x') { "y" } else { "x" };
    format!("{}{last}", &key[..key.len() - 1])
}

/// Wrong keys of every kind, as fast as four connections send them, beside a producer with the right one.
#[test]
fn a_flood_of_wrong_keys_takes_nothing_from_a_producer() {
    let guarded = Guarded::start();
    let typo = mistyped(&guarded.publisher);
    let unknown = Guarded::start().publisher;
    let request = |key: &str| request("POST", "/events", &[("X-API-Key", key), JSON], tick("s", 0).as_bytes());
    let flood = [request("guess"), request(&typo), request(&unknown), request(&"k".repeat(8_000))];
    let address = guarded.server.addr;
    std::thread::scope(|scope| {
        for wrong in &flood {
            scope.spawn(move || {
                for _ in 0..10 {
                    let mut wire = Wire::connect(address);
                    for _ in 0..100 {
                        wire.send(wrong);
                        assert_eq!(wire.response().expect("an answer").status, 401);
                    }
                }
            });
        }
        let mut publisher = guarded.socket(&guarded.publisher, "/ws/publish").ok().unwrap();
        for _ in 0..10 {
            let answers = publisher.pipeline(&ticks("s", 200));
            assert!(answers.iter().all(|answer| answer["status"] == "ok"));
        }
    });
    let stored = guarded.get(&guarded.reader, "/stats").json()["total_events"].clone();
    assert_eq!(stored, 2_000);
}
