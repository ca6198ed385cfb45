//! Acknowledgement levels: what an acknowledgement waits for and says, and the counts of each level.

use serde_json::{Value, json};

use crate::support::*;

fn acknowledged_at(server: &Server, level: &str) -> u64 {
    server.get_json("/stats")["router"]["acknowledged"][level].as_u64().unwrap()
}

#[test]
fn an_http_answer_names_the_level_that_was_reached() {
    // The configured durability, the level asked for, and the level reached.
    let table = [
        ("full", None, 201, None, "synced"),
        ("full", Some("synced"), 201, Some("synced"), "synced"),
        ("full", Some("stored"), 201, Some("stored"), "stored"),
        ("full", Some("queued"), 202, Some("queued"), "queued"),
        ("normal", None, 201, None, "stored"),
        ("normal", Some("stored"), 201, Some("stored"), "stored"),
        ("normal", Some("synced"), 201, Some("synced"), "synced"),
        ("off", None, 201, None, "stored"),
        // A server that never syncs cannot reach `synced`, and its answer says so.
        ("off", Some("synced"), 201, Some("stored"), "stored"),
    ];
    for (durability, asked, status, told, counted) in table {
        let server = Server::with(&[("DURABILITY", durability)]);
        let target = asked.map_or("/events".to_owned(), |asked| format!("/events?ack={asked}"));
        let answer = server.call("POST", &target, &[JSON], tick("s", 0).as_bytes());
        assert_eq!((answer.status, answer.header("ack-level")), (status, told), "{durability} {asked:?}");
        if status == 202 {
            assert_eq!(answer.json(), json!({"status": "queued", "count": 1}));
        }
        server.await_stats("the event to be stored", |stats| stats["total_events"] == 1);
        for level in ["queued", "stored", "synced"] {
            let expected = u64::from(level == counted);
            assert_eq!(acknowledged_at(&server, level), expected, "{durability} {asked:?}: {level}");
        }
    }
}

#[test]
fn an_unknown_level_is_refused() {
    let server = Server::start();
    for word in ["", "soon", "each", "none", "Stored", "stored,synced"] {
        let refused = server.call("POST", &format!("/events?ack={word}"), &[JSON], tick("s", 0).as_bytes());
        assert_eq!((refused.status, &refused.json()["detail"][0]["loc"]), (422, &json!(["query", "ack"])), "{word}");
        let both = format!("/ws/publish?ack={word}");
        let is_known = matches!(word, "each" | "none");
        assert_eq!(Socket::handshake(server.addr, &both, &[]).is_ok(), is_known, "{word}");
    }
    assert_eq!(server.get_json("/stats")["total_events"], 0);
}

#[test]
fn a_websocket_is_told_the_level_if_it_asked_for_one() {
    let server = Server::start();
    let ask = |ack: &str, message: &str| Socket::open(server.addr, &format!("/ws/publish?ack={ack}")).ask(message);
    let with_ref = tick("s", 0).replace("\"source\"", "\"ref\":5,\"source\"");
    let array = format!("[{},{}]", tick("s", 0), tick("s", 1));
    assert_eq!(ask("each", &tick("s", 0)), json!({"status": "ok", "event_id": id_of(1)}));
    assert_eq!(ask("synced", &tick("s", 0)), json!({"status": "ok", "event_id": id_of(2), "ack": "synced"}));
    assert_eq!(ask("stored", &with_ref), json!({"status": "ok", "event_id": id_of(3), "ack": "stored", "ref": 5}));
    assert_eq!(ask("each,stored", &array), json!({"status": "ok", "event_ids": [id_of(4), id_of(5)], "ack": "stored"}));
    assert_eq!(
        ask("batch,stored", &array),
        json!({"status": "ok", "count": 2, "last_event_id": id_of(7), "ack": "stored"})
    );
    assert_eq!(ask("queued", &with_ref), json!({"status": "ok", "ack": "queued", "ref": 5}));
    assert_eq!(ask("queued", &array), json!({"status": "ok", "count": 2, "ack": "queued"}));
    assert_eq!(ask("queued,batch", &array), json!({"status": "ok", "count": 2, "ack": "queued"}));
    server.await_stats("everything to be stored", |stats| stats["total_events"] == 12);
    let mut refused = Socket::open(server.addr, "/ws/publish?ack=queued");
    assert_eq!(refused.ask("{}")["status"], "error", "what is no event is told at once");
}

#[test]
fn events_acknowledged_as_stored_survive_a_kill() {
    let mut server = Server::start();
    let mut heard = 0;
    for level in ["stored", "synced"] {
        let mut socket = Socket::open(server.addr, &format!("/ws/publish?ack={level}"));
        heard += socket.pipeline(&ticks(level, 500)).len() as u64;
        server.kill();
        server.restart();
        assert_eq!(server.get_json("/stats")["total_events"], heard, "{level}");
    }
}

#[test]
fn producers_that_ask_for_stored_and_synced_share_commits() {
    let server = Server::start();
    in_parallel(4, |n| {
        let level = ["stored", "synced", "queued", "each"][n];
        let mut socket = Socket::open(server.addr, &format!("/ws/publish?ack={level}"));
        let answers = socket.pipeline(&ticks(level, 500));
        assert!(answers.iter().all(|answer| answer["status"] == "ok"));
        // A commit is synced for all of its producers if one asks for it.
        let told = |answer: &Value| answer["ack"].as_str().map(str::to_owned);
        let expected: &[Option<&str>] =
            [&[Some("stored"), Some("synced")][..], &[Some("synced")], &[Some("queued")], &[None]][n];
        assert!(answers.iter().all(|answer| expected.contains(&told(answer).as_deref())), "{:?}", answers[0]);
    });
    server.await_stats("everything to be stored", |stats| stats["total_events"] == 2_000);
    assert_eq!(server.get_json("/stats")["router"]["queued_and_lost"], 0);
}
