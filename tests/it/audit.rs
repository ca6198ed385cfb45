//! The audit: who has deleted, who was refused, and how the keys have changed, and no value of an event.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use ring::hmac;
use serde_json::{Value, json};

use crate::support::*;
use crate::tokens::{SECRET, token};

const API_KEY: &str = "0123456789abcdef0123456789abcdef";

/// A server that writes an audit, and the keys of its clients.
struct Audited {
    server: Server,
    reader: String,
    admin: String,
}

impl Audited {
    fn start(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("data/keys.toml");
        let reader = add(&keys, &["reader", "--scope", "subscribe,query"]);
        let admin = add(&keys, &["admin", "--scope", "publish,subscribe,query,admin"]);
        let path = folder.path().join("audit.jsonl");
        let path = [("AUDIT_FILE", path.to_str().unwrap()), ("API_KEY", API_KEY)];
        Self { server: Server::in_folder(folder, &[&path[..], settings].concat()), reader, admin }
    }

    fn path(&self) -> PathBuf {
        self.server.folder().join("audit.jsonl")
    }

    fn call(&self, key: &str, method: &str, path: &str, body: &str) -> Response {
        self.server.call(method, path, &[("X-API-Key", key), JSON], body.as_bytes())
    }

    /// The lines about this, once there are so many.
    fn lines(&self, what: &str, count: usize) -> Vec<Value> {
        let read = || lines(&self.path()).into_iter().filter(|line| line["what"] == what).collect::<Vec<_>>();
        await_true(&format!("{count} lines about {what}"), || read().len() >= count);
        assert_eq!(read().len(), count);
        read()
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may be on its way.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn add(file: &Path, arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut add = command(folder.path());
    let run = Run::start(add.args(["keys", "add"]).args(arguments).env("KEYS_FILE", file), "").finish();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    run.stdout.trim_end().to_owned()
}

fn id_of_key(key: &str) -> &str {
    key.split('_').nth(1).expect("an id")
}

#[test]
fn a_deletion_is_written_down_with_who_where_and_how_much_and_no_value() {
    let audited = Audited::start(&[("TRUSTED_PROXIES", "127.0.0.1")]);
    let publish = |session: &str| {
        let event =
            json!({"event_type": "timer_tick", "source": "s", "session_id": session, "payload": {"n": "Ada L"}});
        assert_eq!(audited.call(&audited.admin, "POST", "/events", &event.to_string()).status, 201);
    };
    ["7b-monday", "7b-monday", "8a"].into_iter().for_each(publish);
    let headers = [("X-API-Key", &*audited.admin), ("X-Forwarded-For", "203.0.113.5")];
    let path = "/events?session_id=7b-monday&payload.n=Ada%20L";
    assert_eq!(audited.server.call("DELETE", path, &headers, b"").json(), json!({"deleted": 2}));
    let line = &audited.lines("delete_events", 1)[0];
    assert_eq!(line["who"], format!("key:{}", id_of_key(&audited.admin)));
    assert_eq!((&line["from"], &line["result"], &line["deleted"]), (&json!("203.0.113.5"), &json!("done"), &json!(2)));
    let digits = std::fs::read_to_string(audited.path().with_extension("jsonl.key")).unwrap();
    let bytes: Vec<u8> = (0..32).map(|n| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).unwrap()).collect();
    let hash = |text: &str| {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &bytes), text.as_bytes());
        json!(tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let one = |value: &Value| value.as_array().map_or(value.clone(), |list| list[0].clone());
    assert_eq!(one(&line["filter"]["session_id"]), hash("7b-monday"));
    assert_eq!(one(&line["filter"]["payload"]["n"]), hash("Ada L"));

    assert_eq!(audited.call(API_KEY, "DELETE", "/events?before=2000-01-01T00:00:00Z", "").json()["deleted"], 0);
    let line = &audited.lines("delete_events", 2)[1];
    assert_eq!((&line["who"], &line["from"]), (&json!("API_KEY"), &json!("127.0.0.1")));
    assert_eq!((&line["filter"], &line["before"]), (&json!({}), &json!("2000-01-01T00:00:00.000000Z")));

    let first = json!({"name": "board"}).to_string();
    let key = [("X-API-Key", &*audited.admin)];
    let mut socket = Socket::handshake(audited.server.addr, "/ws/subscribe", &key).ok().expect("a subscriber");
    assert_eq!(socket.ask(&first)["status"], "subscribed");
    assert_eq!(audited.call(&audited.admin, "DELETE", "/subscriptions/board", "").status, 204);
    audited.call(&audited.admin, "DELETE", "/subscriptions/board", "").refusal(404);
    let lines = audited.lines("delete_subscription", 2);
    assert_eq!([&lines[0]["deleted"], &lines[1]["deleted"]], [&json!(1), &json!(0)]);
    assert_eq!((&lines[0]["name"], &lines[0]["space"]), (&json!("board"), &json!("admin")));

    let text = std::fs::read_to_string(audited.path()).unwrap();
    for never in ["7b-monday", "Ada", &audited.admin[12..55], API_KEY] {
        assert!(!text.contains(never), "{never} in {text}");
    }
    for file in [audited.path(), audited.path().with_extension("jsonl.key")] {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn refusals_are_one_line_a_minute_with_the_number_left_out() {
    let mut audited = Audited::start(&[]);
    for guess in 0..5 {
        audited.call(&format!("guess {guess}"), "GET", "/stats", "").refusal(401);
    }
    let line = &audited.lines("login", 1)[0];
    assert_eq!(
        (&line["who"], &line["from"], &line["result"]),
        (&json!("nobody"), &json!("127.0.0.1"), &json!("refused"))
    );
    for _ in 0..3 {
        audited.call(&audited.reader, "DELETE", "/events?session_id=Ada", "").refusal(403);
    }
    let line = &audited.lines("request", 1)[0];
    assert_eq!(line["who"], format!("key:{}", id_of_key(&audited.reader)));
    assert_eq!((&line["route"], &line["scope"]), (&json!("DELETE /events"), &json!("admin")));
    audited.server.stop();
    assert_eq!(audited.lines("login", 2)[1]["left_out"], 4, "what a minute left out is said at the end, too");
    assert_eq!(audited.lines("request", 2)[1]["left_out"], 2);
    assert!(audited.lines("delete_events", 0).is_empty());
}

#[test]
fn changes_of_the_keys_are_written_down() {
    let mut audited = Audited::start(&[]);
    let file = audited.server.folder().join("data/keys.toml");
    let start = &audited.lines("start", 1)[0];
    let ids = |keys: &[&str]| {
        let mut ids: Vec<_> = keys.iter().map(|key| id_of_key(key)).collect();
        ids.sort_unstable();
        json!(ids)
    };
    assert_eq!(start["keys"], ids(&[&audited.reader, &audited.admin]));
    let added = add(&file, &["third", "--scope", "query"]);
    let line = &audited.lines("keys", 1)[0];
    assert_eq!((&line["added"], &line["changed"], &line["revoked"]), (&ids(&[&added]), &json!([]), &json!([])));
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"third\"", "\"fourth\"")).unwrap();
    assert_eq!(audited.lines("keys", 2)[1]["changed"], ids(&[&added]));
    audited.server.allow_noise();
    std::fs::write(&file, "[[keys]]\nid = 7\n").unwrap();
    let line = &audited.lines("keys", 3)[2];
    assert!(line["result"] == "failed" && text_of(&line["why"]).contains("line 2"), "{line}");
    std::fs::write(&file, "").unwrap();
    assert_eq!(audited.lines("keys", 4)[3]["revoked"], ids(&[&audited.reader, &audited.admin, &added]));
}

#[test]
fn a_refused_renewal_is_written_down() {
    let audited = Audited::start(&[("JWT_SECRET", SECRET)]);
    let of = |claims: &Value| token(60, claims);
    let first = of(&json!({"iss": "https://school.example", "scopes": "publish"}));
    let key = [("X-API-Key", &*first)];
    let mut socket = Socket::handshake(audited.server.addr, "/ws/publish", &key).ok().expect("a publisher");
    let other = of(&json!({"sub": "bob", "scopes": "publish"}));
    assert_eq!(socket.ask(&json!({"type": "auth", "token": other}).to_string())["status"], "error");
    let line = &audited.lines("renewal", 1)[0];
    assert_eq!((&line["who"], &line["result"]), (&json!("sub:https://school.example/ada"), &json!("refused")));
    assert!(!line.to_string().contains(&other[40..80]), "{line}");
}

#[test]
fn a_full_disk_stops_no_request_and_what_is_lost_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    symlink("/dev/full", &path).unwrap();
    let mut server = Server::in_folder(folder, &[("AUDIT_FILE", path.to_str().unwrap())]);
    server.allow_noise();
    for _ in 0..3 {
        assert_eq!(server.call("DELETE", "/events", &[], b"").status, 200);
    }
    server.await_log("a line of AUDIT_FILE is lost");
    std::fs::remove_file(&path).unwrap();
    server.signal("HUP");
    await_true("the new file", || path.exists());
    assert_eq!(server.call("DELETE", "/events", &[], b"").status, 200);
    await_true("a line", || !lines(&path).is_empty());
    // The line of the start is lost, too.
    assert_eq!((&lines(&path)[0]["lost"], &lines(&path)[0]["who"]), (&json!(4), &json!("nobody")));
    assert_eq!(server.call("DELETE", "/events", &[], b"").status, 200);
    await_true("a line", || lines(&path).len() == 2);
    assert_eq!(lines(&path)[1]["lost"], Value::Null);
}

#[test]
fn a_hangup_opens_the_file_again_after_a_rotation() {
    let audited = Audited::start(&[]);
    let delete = || assert_eq!(audited.call(API_KEY, "DELETE", "/events", "").status, 200);
    delete();
    audited.lines("delete_events", 1);
    let moved = audited.path().with_extension("1");
    std::fs::rename(audited.path(), &moved).unwrap();
    delete();
    await_true("a line in the former file", || lines(&moved).len() == 3);
    audited.server.signal("HUP");
    await_true("the new file", || audited.path().exists());
    delete();
    audited.lines("delete_events", 1);
    assert_eq!(lines(&moved).len(), 3);
}

#[test]
fn a_file_that_cannot_be_written_ends_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("audit.jsonl");
    std::fs::write(damaged.with_extension("jsonl.key"), "short").unwrap();
    for (path, said) in [
        ("/nowhere/audit.jsonl", "AUDIT_FILE /nowhere/audit.jsonl cannot be written"),
        (damaged.to_str().unwrap(), "audit.jsonl.key, cannot be used: it has not 64 hexadecimal digits"),
    ] {
        let run = Run::start(command(folder.path()).arg("serve").env("AUDIT_FILE", path), "").finish();
        assert!(run.code == Some(2) && run.stderr.contains(said), "{:?} {}", run.code, run.stderr);
    }
}
