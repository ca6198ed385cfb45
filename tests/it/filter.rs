//! Filters: queries, exports, streams, subscriptions and deletions select the same events by them.

use serde_json::{Value, json};

use crate::support::*;

const TYPES: [&str; 4] = ["timer_tick", "quiz_started", "error_occurred", "answer_submitted"];
const SOURCES: [&str; 3] = ["web", "app.v-2", "timer"];
const SESSIONS: [Option<&str>; 5] = [None, Some("s1"), Some("s,1"), Some("é \"q\"&+%"), Some("s1,s,1")];
const USERS: [Option<&str>; 4] = [Some("u1"), None, Some("u,2"), Some("ü")];
/// Payloads in every spelling that a producer may use.
const PAYLOADS: [&str; 16] = [
    "{}",
    r#"{"quiz_id":"demo","n":1}"#,
    r#"{"n":1.0,"quiz_id":"exam"}"#,
    r#"{"quiz_id":7,"on":true}"#,
    r#"{"quiz_id":"7","on":false,"z":null}"#,
    r#"{"quiz_id":null,"n":"1"}"#,
    r#"{"deep":{"quiz_id":"demo","n":1}}"#,
    r#"{"quiz_id":["demo"],"n":[1]}"#,
    r#"{"quiz\u005fid":"d\u0065mo","n":10e-1}"#,
    r#"{"n":0.10,"quiz_id":"exam, demo"}"#,
    r#"{"n":-7,"on":true,"quiz_id":"é"}"#,
    r#"{"n":18446744073709551615}"#,
    r#"{"n":2,"n":1}"#,
    r#"{"n":1,"n":2}"#,
    r#"{"on":"true","z":0}"#,
    r#"{"z":-0.0,"":"empty key","on":""}"#,
];

/// Events in which the values of any two fields are combined in several ways.
fn varied(count: usize) -> Vec<String> {
    (0..count)
        .map(|n| {
            let (kind, source) = (TYPES[n % 4], SOURCES[n / 2 % 3]);
            let (session, user) = (json!(SESSIONS[n / 3 % 5]), json!(USERS[n / 5 % 4]));
            let payload = PAYLOADS[n * 7 % 16];
            format!(
                r#"{{"event_type":"{kind}","source":"{source}","session_id":{session},"user_id":{user},"payload":{payload}}}"#
            )
        })
        .collect()
}

/// The meaning of a filter, in the simplest code.
fn passes(filter: &Value, event: &Value) -> bool {
    const FIELDS: [(&str, &str); 4] =
        [("event_types", "event_type"), ("source", "source"), ("session_id", "session_id"), ("user_id", "user_id")];
    let says_nothing = |asked: &Value| asked.is_null() || *asked == json!("") || *asked == json!([]);
    let asked = |filter: &Value| -> Vec<(Value, Value)> {
        let fields = FIELDS.iter().map(|(key, field)| (filter[*key].clone(), event[*field].clone()));
        let mut asked: Vec<_> = fields.filter(|(asked, _)| !says_nothing(asked)).collect();
        for (key, asked_of_it) in filter["payload"].as_object().into_iter().flatten() {
            // Null is a value; an absent key is not equal to it.
            let own = event["payload"].get(key).cloned().unwrap_or(json!({"no": "such key"}));
            asked.push((asked_of_it.clone(), own));
        }
        asked
    };
    asked(filter).iter().all(|(asked, own)| is_one_of(asked, own))
        && !asked(&filter["exclude"]).iter().any(|(asked, own)| is_one_of(asked, own))
}

fn is_one_of(asked: &Value, own: &Value) -> bool {
    let is_equal = |asked: &Value| match (asked, own) {
        (Value::Number(asked), Value::Number(own)) => asked.as_f64() == own.as_f64(),
        _ => asked == own,
    };
    asked.as_array().map_or_else(|| is_equal(asked), |list| list.iter().any(is_equal))
}

/// Filters, and the parameters of a URL that mean the same, if there are any.
fn table() -> Vec<(Value, Option<String>)> {
    let in_json = [
        json!({"event_types": ["timer_tick"]}),
        json!({"source": "timer"}),
        json!({"source": ["timer"]}),
        json!({"session_id": ["s1", "é \"q\"&+%", "nobody", "s1"]}),
        json!({"user_id": ["ü", "u1"]}),
        json!({"user_id": ["ü"], "session_id": ["s1", "s,1"], "source": ["web", "timer"], "event_types": ["timer_tick"]}),
        json!({"event_types": [], "session_id": "", "user_id": null, "source": [], "payload": {}, "exclude": {}}),
        json!({"exclude": {"source": ["web", "timer"]}}),
        json!({"exclude": {"event_types": ["timer_tick"], "user_id": ["u1", "ü"]}}),
        json!({"exclude": {"payload": {"on": [true, false]}}}),
        json!({"exclude": {"payload": {"quiz_id": null, "n": 1}}}),
        json!({"payload": {"quiz_id": ["demo", "exam, demo"]}, "exclude": {"payload": {"n": 1}, "session_id": "s1"}}),
        json!({"payload": {"n": 1}}),
        json!({"payload": {"n": 1.0}}),
        json!({"payload": {"n": "1"}}),
        json!({"payload": {"n": 0.1}}),
        json!({"payload": {"n": [-7, u64::MAX]}}),
        json!({"payload": {"z": 0}}),
        json!({"payload": {"z": null}}),
        json!({"payload": {"on": true}}),
        json!({"payload": {"on": [false, "true"]}}),
        json!({"payload": {"quiz_id": [7, "demo", null]}}),
        json!({"payload": {"quiz_id": "7", "on": false, "z": null}}),
        json!({"payload": {"": "empty key"}}),
        json!({"payload": {"deep": "demo"}}),
        json!({"event_types": ["timer_tick", "quiz_started"], "payload": {"n": 1}, "exclude": {"source": "web"}}),
        json!({"session_id": "s1", "exclude": {"session_id": "s1"}}),
        json!({"event_types": ["quiz_timeout"]}),
    ];
    let with_json = |filter: &str, more: &str| format!("filter={}&{more}", encode(filter));
    let plain = str::to_string;
    let in_both = [
        (json!({"event_types": ["timer_tick", "error_occurred"]}), plain("event_type=timer_tick,error_occurred")),
        (json!({"event_types": ["timer_tick", "error_occurred"]}), plain("event_type=error_occurred,timer_tick")),
        (json!({"source": ["web", "app.v-2"]}), plain("source=web,app.v-2")),
        (json!({"session_id": "s1"}), plain("session_id=s1")),
        // An id may have a comma; it is still one value.
        (json!({"session_id": "s,1"}), plain("session_id=s,1")),
        (json!({"session_id": "s1,s,1"}), plain("session_id=s1%2Cs%2C1")),
        (json!({"user_id": "u,2"}), plain("user_id=u,2")),
        (json!({"session_id": "é \"q\"&+%"}), plain("session_id=%C3%A9+%22q%22%26%2B%25&user_id=")),
        (
            json!({"exclude": {"event_types": ["timer_tick", "quiz_started"]}}),
            plain("exclude_event_type=timer_tick,quiz_started"),
        ),
        (
            json!({"exclude": {"source": ["web"], "session_id": "s,1"}}),
            plain("exclude_source=web&exclude_session_id=s,1"),
        ),
        (json!({"exclude": {"user_id": "u,2"}, "source": ["timer"]}), plain("exclude_user_id=u,2&source=timer")),
        (json!({"payload": {"quiz_id": "demo"}}), plain("payload.quiz_id=demo")),
        // A parameter is always a text.
        (json!({"payload": {"quiz_id": "7"}}), plain("payload.quiz_id=7")),
        (json!({"payload": {"quiz_id": "exam, demo"}}), plain("payload.quiz_id=exam,+demo")),
        (json!({"payload": {"": "empty key"}}), plain("payload.=empty%20key")),
        // In a payload, an empty text and null are values.
        (json!({"payload": {"on": ""}}), plain("payload.on=")),
        (
            json!({"payload": {"on": ["", true], "z": [null, 0]}}),
            with_json(r#"{"payload":{"on":["",true],"z":[null,0]}}"#, ""),
        ),
        (json!({"payload": {"quiz_id": "demo", "n": 1}}), with_json(r#"{"payload":{"n":1}}"#, "payload.quiz_id=demo")),
        (
            json!({"event_types": ["timer_tick"], "source": ["web"], "exclude": {"session_id": "s1", "payload": {"n": 1}}}),
            with_json(
                r#"{"source":["web"],"exclude":{"payload":{"n":1}}}"#,
                "event_type=timer_tick&exclude_session_id=s1",
            ),
        ),
    ];
    let in_json = in_json.into_iter().map(|filter| (filter, None));
    in_json.chain(in_both.map(|(filter, query)| (filter, Some(query)))).collect()
}

/// The messages to a subscriber whose stream has a start and an end, up to the Close frame.
fn history(server: &Server, first: &Value) -> Vec<u64> {
    let (words, code) = server.subscriber(first).read_to_close();
    assert_eq!(code, 1000, "{first}");
    sequences(&words.iter().map(|text| serde_json::from_str(text).unwrap()).collect::<Vec<Value>>())
}

/// A time later than all events here.
const LATER: &str = "9999-01-01T00:00:00Z";

#[test]
fn every_interface_passes_the_same_events_through_a_filter() {
    let server = Server::start();
    let table = table();
    let mut live: Vec<_> = table.iter().map(|(filter, _)| server.subscriber(filter)).collect();
    server.publish_lines(&varied(240));
    let stored = server.stored("");

    let mut sizes = Vec::new();
    for ((filter, plain), live) in table.iter().zip(&mut live) {
        let passing: Vec<_> = stored.iter().filter(|event| passes(filter, event)).cloned().collect();
        let expected = sequences(&passing);
        let newest_first: Vec<_> = expected.iter().rev().copied().collect();
        sizes.push(expected.len());
        let in_json = format!("filter={}", encode(&filter.to_string()));
        for query in [Some(&in_json), plain.as_ref()].into_iter().flatten() {
            assert_eq!(sequences(&server.pages(&format!("/events?limit=7&{query}"))), newest_first, "{query}");
            assert_eq!(server.stored(query), passing, "{query} as lines");
            let stream = format!("/api/v1/events/stream?after={}&until={LATER}&{query}", id_of(0));
            assert_eq!(complete_stream(&server.get(&stream)), expected, "{query} as a stream");
        }
        let mut first = filter.clone();
        first["after"] = json!(id_of(0));
        first["until"] = json!(LATER);
        assert_eq!(history(&server, &first), expected, "{filter} as history");
        assert_eq!(sequences(&live.collect(expected.len())), expected, "{filter} live");
        // Further events would have come before this answer.
        let answer = live.ask(r#"{"type":"update_filters","filters":{}}"#);
        assert_eq!(answer, json!({"status": "filters_updated", "filters": {}}), "{filter}");
    }
    // If all or none of the events passed each filter, the test would not notice a wrong server.
    let telling = sizes.iter().filter(|size| (1..240).contains(*size)).count();
    assert_eq!((telling, sizes.len()), (sizes.len() - 4, table.len()), "{sizes:?}");
}

#[test]
fn a_deletion_deletes_exactly_the_events_that_pass() {
    let mut server = Server::start();
    let mut last = 0;
    for (n, (filter, plain)) in table().into_iter().enumerate() {
        server.call("DELETE", "/events", &[], b"");
        server.publish_lines(&varied(160));
        last += 160;
        let stored = server.stored("");
        // A deletion refuses an empty condition; another test has that.
        let is_empty = |query: &String| query.ends_with("user_id=");
        if plain.as_ref().is_some_and(is_empty) || stored.iter().all(|event| passes(&filter, event)) {
            continue;
        }
        // Half of the deletions have a time, too.
        let before = (n % 2 == 1).then(|| timestamp(&stored[97]));
        let is_meant =
            |event: &Value| passes(&filter, event) && before.as_ref().is_none_or(|before| timestamp(event) < *before);
        let (meant, left): (Vec<_>, Vec<_>) = stored.iter().cloned().partition(is_meant);
        let mut query = plain.unwrap_or_else(|| format!("filter={}", encode(&filter.to_string())));
        if let Some(before) = &before {
            query = format!("before={}&{query}", encode(before));
        }
        let answer = server.call("DELETE", &format!("/events?{query}"), &[], b"");
        assert_eq!(answer.json(), json!({"deleted": meant.len()}), "{query}");
        check_rest(&server, &left, &query);
        if n % 8 == 0 {
            let end = if n % 16 == 0 { Server::stop } else { Server::kill };
            end(&mut server);
            server.restart();
            check_rest(&server, &left, &format!("{query}, after a restart"));
        }
        last += 1;
        assert_eq!(sequence(&server.publish(&tick("s", 0))["id"]), last, "{query}: an id is not given twice");
    }
}

/// Compares every answer about the record with the events that must be left in it.
fn check_rest(server: &Server, left: &[Value], when: &str) {
    assert_eq!(server.stored(""), left, "{when}");
    assert_eq!(reported_statistics(server), (left.len() as u64, statistics(left)), "{when}");
    assert_eq!(server.get_json("/stats")["events_last_hour"], left.len(), "{when}");
    let of = |query: &str, is_wanted: &dyn Fn(&Value) -> bool| {
        let wanted: Vec<_> = left.iter().filter(|event| is_wanted(event)).cloned().collect();
        assert_eq!(server.stored(query), wanted, "{query} {when}");
    };
    of("event_type=quiz_started", &|event| event["event_type"] == "quiz_started");
    of("session_id=s,1", &|event| event["session_id"] == "s,1");
    of("user_id=u1", &|event| event["user_id"] == "u1");
    of("source=app.v-2&user_id=u,2", &|event| event["source"] == "app.v-2" && event["user_id"] == "u,2");
}

fn delete(server: &Server, query: &str) -> Response {
    server.call("DELETE", &format!("/events?{query}"), &[], b"")
}

#[test]
fn after_the_newest_events_are_deleted_storing_goes_on() {
    let mut server = Server::start();
    server.publish_lines(&(0..30).map(|n| tick(if n < 20 { "old" } else { "new" }, n)).collect::<Vec<_>>());
    let middle = encode(&timestamp(&server.get_json(&format!("/events/{}", id_of(18)))));
    let mut live = server.subscriber(&json!({}));
    let mut behind = server.subscriber(&json!({"after": id_of(25)}));
    assert_eq!(sequences(&behind.collect(5)), [26, 27, 28, 29, 30]);

    assert_eq!(delete(&server, "session_id=new").json(), json!({"deleted": 10}));
    assert_eq!(delete(&server, "session_id=new").json(), json!({"deleted": 0}));
    let last_kept = server.get_json(&format!("/events/{}", id_of(20)));
    assert_eq!(server.get_json("/stats")["by_type"][0]["last_seen"], last_kept["timestamp"]);
    server.get(&format!("/events/{}", id_of(30))).refusal(404);
    assert_eq!(server.get_json("/events?limit=1")[0], last_kept);
    // The end of the record has no events now, and times are still found.
    assert_eq!(delete(&server, &format!("before={middle}")).json(), json!({"deleted": 17}));
    assert_eq!(sequences(&server.stored(&format!("since={middle}"))), (19..=20).collect::<Vec<_>>());
    server.kill();
    server.restart();
    assert_eq!(server.get_json("/stats")["total_events"], 3);
    assert_eq!(server.get_json("/stats")["events_last_hour"], 3);
    assert_eq!(delete(&server, &format!("before={LATER}&session_id=new")).json(), json!({"deleted": 0}));
    let cursor = timestamp(&last_kept);
    let next = server.publish(&tick("new", 0));
    assert_eq!(sequence(&next["id"]), 31);
    assert!(timestamp(&next) > cursor, "times go on, too");
    assert_eq!(server.stored("session_id=new"), std::slice::from_ref(&next));
    assert_eq!(delete(&server, &format!("before={LATER}")).json(), json!({"deleted": 4}));
    assert_eq!(sequence(&server.publish(&tick("new", 0))["id"]), 32);

    // Whoever was connected has lost its server, and nothing else.
    assert_eq!(live.receive(), Received::End);
}

#[test]
fn statistics_stay_correct_while_events_are_stored_and_deleted() {
    let server = Server::start();
    for round in 0..40 {
        server.publish_lines(&ticks(&format!("doomed-{round}"), 20));
        in_parallel(4, |n| match n {
            0 => assert_eq!(delete(&server, &format!("session_id=doomed-{round}")).json(), json!({"deleted": 20})),
            _ => drop(server.publish(&tick("kept", n))),
        });
        let stored = server.stored("");
        assert_eq!(stored.len(), 3 * (round + 1));
        assert_eq!(reported_statistics(&server), (stored.len() as u64, statistics(&stored)), "round {round}");
    }
}

#[test]
fn an_invalid_filter_is_refused_in_every_interface() {
    let server = Server::start();
    server.publish_lines(&varied(10));
    let many: Vec<_> = (0..=1000).map(|n| n.to_string()).collect();
    let keys: serde_json::Map<_, _> = (0..=20).map(|n| (n.to_string(), json!(n))).collect();
    let no_filters = [
        json!({"event_types": "timer_tick"}),
        json!({"event_types": [1]}),
        json!({"session_id": ["s1", 1]}),
        json!({"event_types": ["t".repeat(65)]}),
        json!({"source": "s".repeat(101)}),
        json!({"session_id": "é".repeat(201)}),
        json!({"user_id": ["u1", "u".repeat(201)]}),
        json!({"exclude": {"user_id": "u".repeat(201)}}),
        json!({"source": 7}),
        json!({"session_id": [null]}),
        json!({"session_id": {"is": "s1"}}),
        json!({"user_id": many}),
        json!({"user_id": true}),
        json!({"payload": ["quiz_id"]}),
        json!({"payload": {"quiz_id": {}}}),
        json!({"payload": {"quiz_id": [["demo"]]}}),
        json!({"payload": keys}),
        json!({"exclude": {"event_type": ["timer_tick"]}}),
        json!({"exclude": {"sesion_id": "s1"}}),
        json!({"exclude": {"exclude": {}}}),
        json!({"exclude": {"source": 7}}),
        json!({"exclude": {"payload": {"quiz_id": {}}}}),
    ];
    for filter in &no_filters {
        check_no_filter(&server, &format!("filter={}", encode(&filter.to_string())));
        let mut socket = Socket::open(server.addr, "/ws/subscribe");
        socket.send(&filter.to_string());
        let (words, code) = socket.read_to_close();
        assert!(words.len() == 1 && words[0].contains(r#""status":"error""#), "{filter}: {words:?}");
        assert_eq!(code, 1008, "{filter}");
    }
    // These a deletion refuses as empty conditions (400).
    for filter in [json!({"payload": {"quiz_id": []}}), json!({"exclude": []})] {
        server.get(&format!("/events?filter={}", encode(&filter.to_string()))).refusal(422);
    }
    // Mistakes that only a URL can have.
    for text in ["x", "[]", "7", "null", "\"s1\"", "{", r#"{"sesion_id":"s1"}"#, r#"{"event_type":["timer_tick"]}"#] {
        check_no_filter(&server, &format!("filter={}", encode(text)));
    }
    let source = encode(r#"{"source":"web"}"#);
    for twice in [
        format!("filter={source}&source=timer"),
        format!("filter={}&exclude_user_id=u1", encode(r#"{"exclude":{"user_id":"u,2"}}"#)),
        format!("filter={}&payload.n=1", encode(r#"{"payload":{"n":1}}"#)),
        "payload.n=1&payload.n=2".to_string(),
    ] {
        check_not_read(&server, &twice);
        delete(&server, &twice).refusal(400);
    }
    assert_eq!(server.stored("").len(), 10, "nothing was deleted");
}

fn check_no_filter(server: &Server, query: &str) {
    check_not_read(server, query);
    let detail = delete(server, query).refusal(422);
    assert_eq!(detail[0]["loc"][0], "query", "{query}: {detail}");
}

fn check_not_read(server: &Server, query: &str) {
    let target = format!("/events?{query}");
    let stream = EventStream::ask(server.addr, &format!("/events/stream?{query}"), &[]);
    for response in [
        server.get(&target),
        server.call("GET", &target, &[ACCEPT_NDJSON], b""),
        stream.err().unwrap_or_else(|| panic!("{query} opens a stream")),
    ] {
        let detail = response.refusal(422);
        assert_eq!(detail[0]["loc"][0], "query", "{query}: {detail}");
    }
}

#[test]
fn a_deletion_with_unclear_parameters_is_refused() {
    let server = Server::start();
    server.publish_lines(&varied(10));
    for unclear in [
        "session=s1",
        "event_types=timer_tick",
        "Session_id=s1",
        "since=2020-01-01T00:00:00Z",
        "until=9999-01-01T00:00:00Z",
        "limit=1",
        "before_id=evt_000000000005",
        "after_id=evt_000000000005",
        "session_id=s1&sesion_id=s1",
        "session_id=",
        "session_id",
        "event_type=&session_id=s1",
        "event_type=,",
        "source=,,&session_id=s1",
        "exclude_event_type=,",
        "exclude_source=",
        "exclude_source=web,",
        "session_id=s1&session_id=",
        "session_id=s1&session_id=s,1",
        "before=9999-01-01T00:00:00Z&before=2020-01-01T00:00:00Z",
        "filter=",
        "filter=%7B%7D",
        "before=",
        "before=&session_id=s1",
        "before=yesterday&session_id=s1",
        "=",
        "payload.n=1&payload.n=2",
        "payload.n=&payload.n=1",
        "payload.n",
        "session_id=s1&payload.n",
        "user_id=u1&filter=%7B%22user_id%22:%22u2%22%7D",
        "payload.n=1&filter=%7B%22payload%22:%7B%22n%22:2%7D%7D",
        "exclude_user_id=u1&filter=%7B%22exclude%22:%7B%22user_id%22:%22u2%22%7D%7D",
    ] {
        let detail = delete(&server, unclear).refusal(400);
        assert!(!detail.as_str().unwrap().is_empty(), "{unclear}");
        assert_eq!(server.stored("").len(), 10, "{unclear}");
    }
    let empty = [
        json!({"session_id": ""}),
        json!({"event_types": []}),
        json!({"event_types": ""}),
        json!({"user_id": null, "payload": {}, "exclude": {}}),
        json!({"source": "web", "session_id": ""}),
        json!({"source": "web", "session_id": null}),
        json!({"source": "web", "session_id": []}),
        json!({"source": "web", "session_id": [""]}),
        json!({"source": "web", "session_id": ["s1", ""]}),
        json!({"source": "web", "payload": {}}),
        json!({"source": "web", "payload": null}),
        json!({"source": "web", "exclude": {}}),
        json!({"source": "web", "exclude": {"user_id": ""}}),
        json!({"source": "web", "exclude": {"user_id": ["u1", ""]}}),
        json!({"source": "web", "exclude": {"payload": {}}}),
        json!({"source": "web", "payload": ""}),
        json!({"source": "web", "payload": {"n": []}}),
        json!({"source": "web", "exclude": []}),
    ];
    for empty in empty {
        delete(&server, &format!("filter={}", encode(&empty.to_string()))).refusal(400);
    }
    for twice in [
        r#"{"source":"web","exclude":{"user_id":"u1"},"exclude":{"user_id":["u2"]}}"#,
        r#"{"user_id":"","user_id":"u1"}"#,
        r#"{"source":"web","source":"web"}"#,
        r#"{"source":"web","exclude":{"user_id":"u1","user_id":"u2"}}"#,
        r#"{"source":"web","exclude":{"payload":{"n":1,"n":2}}}"#,
        r#"{"payload":{"n":1,"\u006e":1.5}}"#,
    ] {
        let query = format!("filter={}", encode(twice));
        delete(&server, &query).refusal(400);
        check_not_read(&server, &query);
    }
    assert_eq!(server.stored("").len(), 10, "nothing was deleted");
}

#[test]
fn an_empty_condition_means_any_event_in_every_interface() {
    let server = Server::start();
    server.publish_lines(&varied(20));
    let all = server.stored("");
    let every: Vec<_> = (1..=20).collect();
    for query in [
        "event_type=&source=&session_id=&user_id=&since=&until=",
        "event_type&source&since",
        "exclude_event_type=&exclude_source=&exclude_session_id=&exclude_user_id=&filter=",
    ] {
        assert_eq!(server.stored(query), all, "{query}");
        assert_eq!(
            sequences(server.get_json(&format!("/events?after_id={}&{query}", id_of(0))).as_array().unwrap()),
            every
        );
        let stream = format!("/events/stream?after={}&until={LATER}&{}", id_of(0), query.replace("&until=", ""));
        assert_eq!(complete_stream(&server.get(&stream)), every, "{query} as a stream");
    }
    for nothing in [Value::Null, json!(""), json!([])] {
        let mut filter = json!({});
        for key in ["event_types", "source", "session_id", "user_id"] {
            filter[key] = nothing.clone();
            filter["exclude"][key] = nothing.clone();
        }
        assert_eq!(server.stored(&format!("filter={}", encode(&filter.to_string()))), all, "{filter}");
        let mut first = filter.clone();
        (first["after"], first["until"], first["since"]) = (json!(id_of(0)), json!(LATER), nothing.clone());
        assert_eq!(history(&server, &first), every, "{first}");
        first["until"] = nothing;
        assert_eq!(sequences(&server.subscriber(&first).collect(20)), every, "{first}");
    }
}

#[test]
fn an_empty_value_in_a_list_is_refused() {
    let server = Server::start();
    for query in ["event_type=,", "event_type=timer_tick,,quiz_started", "source=web,", "exclude_source=,web"] {
        server.get(&format!("/events?{query}")).refusal(422);
        server.call("GET", &format!("/events?{query}"), &[ACCEPT_NDJSON], b"").refusal(422);
        EventStream::ask(server.addr, &format!("/events/stream?{query}"), &[]).err().unwrap().refusal(422);
    }
    for key in ["event_types", "source", "session_id", "user_id"] {
        for filter in [json!({key: [""]}), json!({key: ["a", ""]}), json!({"exclude": {key: ["", "a"]}})] {
            server.get(&format!("/events?filter={}", encode(&filter.to_string()))).refusal(422);
            let mut socket = Socket::open(server.addr, "/ws/subscribe");
            socket.send(&filter.to_string());
            let (words, code) = socket.read_to_close();
            assert!(words[0].contains(r#""status":"error""#) && code == 1008, "{filter}: {words:?}");
        }
    }
}

#[test]
fn numbers_of_a_payload_are_compared_digit_by_digit() {
    let server = Server::start();
    let numbers = ["18446744073709551615", "18446744073709551616", "1e-400", "0", "1e400", "10e399", "1e401", "0.10"];
    let event = |number: &&str| format!(r#"{{"event_type":"timer_tick","source":"it","payload":{{"n":{number}}}}}"#);
    server.publish_lines(&numbers.iter().map(event).collect::<Vec<_>>());
    let asked = |number: &str| format!("filter={}", encode(&format!(r#"{{"payload":{{"n":{number}}}}}"#)));
    let table: [(&str, &[u64]); 6] = [
        ("1844674407370955161.5e1", &[1]),
        ("18446744073709551616", &[2]),
        ("1e-400", &[3]),
        ("-0", &[4]),
        ("1e400", &[5, 6]),
        ("0.1", &[8]),
    ];
    for (number, expected) in table {
        assert_eq!(sequences(&server.stored(&asked(number))), expected, "{number}");
        let first = format!(r#"{{"payload":{{"n":{number}}},"last":9,"until":"{LATER}"}}"#);
        let mut socket = Socket::open(server.addr, "/ws/subscribe");
        socket.send(&first);
        let (words, _) = socket.read_to_close();
        let events = words[1..].iter().map(|text| serde_json::from_str(text).unwrap()).collect::<Vec<Value>>();
        assert_eq!(sequences(&events), expected, "{number} over a WebSocket");
    }
    assert_eq!(delete(&server, &asked("18446744073709551615")).json(), json!({"deleted": 1}));
    assert_eq!(delete(&server, &asked("0")).json(), json!({"deleted": 1}));
    assert_eq!(sequences(&server.stored("")), [2, 3, 5, 6, 7, 8]);
    // A large exponent costs no time.
    let beyond = asked(&format!("1e{}", "9".repeat(1_000)));
    server.get(&format!("/events?{beyond}")).refusal(422);
}

#[test]
fn a_filter_finds_a_single_event_anywhere_in_the_record() {
    let server = Server::start();
    // More events than one read looks at, and more than one segment has.
    let (count, rare) = (71_000, [11, 65_537, 70_999]);
    let event = |n: usize| {
        let is_rare = rare.contains(&(n as u64 + 1));
        json!({"event_type": TYPES[n % 2], "source": "it", "payload": {"n": n, "rare": is_rare}}).to_string()
    };
    for chunk in (0..count).map(event).collect::<Vec<_>>().chunks(20_000) {
        server.publish_lines(chunk);
    }
    let filters = [
        (json!({"payload": {"rare": true}}), rare.to_vec()),
        (json!({"payload": {"rare": true}, "event_types": ["timer_tick"]}), rare.to_vec()),
        (json!({"payload": {"n": [0, 70_000]}, "exclude": {"event_types": ["quiz_started"]}}), vec![1, 70_001]),
        (json!({"payload": {"rare": "true"}}), vec![]),
    ];
    for (filter, expected) in &filters {
        let query = format!("filter={}", encode(&filter.to_string()));
        let newest_first: Vec<_> = expected.iter().rev().copied().collect();
        for limit in [1, 2, 100] {
            assert_eq!(sequences(&server.pages(&format!("/events?limit={limit}&{query}"))), newest_first, "{filter}");
            let forward = format!("/events?limit={limit}&after_id={}&{query}", id_of(0));
            assert_eq!(sequences(&server.pages(&forward)), *expected, "{filter}, oldest first");
        }
        assert_eq!(sequences(&server.stored(&query)), *expected, "{filter} as lines");
        for start in [json!({"after": id_of(0)}), json!({"last": 3})] {
            let mut first = filter.clone();
            first["until"] = json!(LATER);
            first.as_object_mut().unwrap().extend(start.as_object().unwrap().clone());
            assert_eq!(history(&server, &first), *expected, "{first}");
        }
        let stream = format!("/events/stream?last=3&until={LATER}&{query}");
        assert_eq!(complete_stream(&server.get(&stream)), *expected, "{filter} as a stream");
    }
    let query = format!("filter={}", encode(&filters[0].0.to_string()));
    assert_eq!(delete(&server, &query).json(), json!({"deleted": 3}));
    assert_eq!(server.get_json("/stats")["events_last_hour"], count - 3);
    assert!(server.pages(&format!("/events?{query}")).is_empty());
}
