//! CloudEvents 1.0 over HTTP: published as one, as a batch and as headers, read as one and as a batch.

use serde_json::{Value, json};

use crate::support::*;

const ONE: (&str, &str) = ("Content-Type", "application/cloudevents+json");
const MANY: (&str, &str) = ("Content-Type", "application/cloudevents-batch+json");
const ACCEPT_ONE: (&str, &str) = ("Accept", "application/cloudevents+json");
const ACCEPT_MANY: (&str, &str) = ("Accept", "application/cloudevents-batch+json");

/// A payload that must come back byte for byte.
const PAYLOAD: &str = r#"{"n":1e400,"f":0.10,"b":18446744073709551617,"a":"\u0062\/\ud83d\ude00","b":-0,"é":{"x":[]}}"#;

/// The headers of a CloudEvent in binary mode. `more` replaces some of them; an empty value leaves one out.
fn binary<'h>(more: &[(&'h str, &'h str)]) -> Vec<(&'h str, &'h str)> {
    let minimal =
        [("ce-specversion", "1.0"), ("ce-id", "b"), ("ce-source", "quiz.web"), ("ce-type", "timer_tick"), JSON];
    let replaced = |name: &str| more.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
    let kept = minimal.into_iter().filter(|(name, _)| !replaced(name));
    kept.chain(more.iter().copied().filter(|(_, value)| !value.is_empty())).collect()
}

fn structured(id: &str, more: &str) -> String {
    format!(r#"{{"specversion":"1.0","id":"{id}","source":"quiz.web","type":"timer_tick"{more}}}"#)
}

/// Publishes a CloudEvent that must be accepted. Returns the stored event, with its payload as text.
fn accepted(server: &Server, headers: &[(&str, &str)], body: &str) -> Value {
    let response = server.call("POST", "/events", headers, body.as_bytes());
    assert_eq!(response.status, 201, "{headers:?} {body}: {}", response.text());
    let text = response.text();
    // A JSON parser may not be able to represent its numbers.
    let payload = raw_field(&text, "payload");
    let shown = text.replace(&format!(r#","payload":{payload},"#), &format!(r#","payload":{},"#, json!(payload)));
    let event: Value = serde_json::from_str(&shown).unwrap();
    let stored = server.get(&format!("/events/{}", text_of(&event["id"])));
    assert_eq!(stored.text(), text, "the answer is the stored event");
    event
}

#[test]
fn one_cloud_event_becomes_an_event() {
    let server = Server::start();
    let more = format!(
        r#","sessionid":"s-17","userid":"u \"é\"","subject":"not this","data":{PAYLOAD},"datacontenttype":"application/json; charset=utf-8","time":"1999-01-01T00:00:00Z","traceparent":"00-1","dataschema":"https://example.com/s""#
    );
    for (n, content_type) in
        ["application/cloudevents+json", "Application/CloudEvents+JSON; charset=UTF-8"].iter().enumerate()
    {
        let body = structured(&format!("a{n}"), &more);
        let event = accepted(&server, &[("Content-Type", content_type)], &body);
        assert_eq!(event["event_type"], "timer_tick");
        assert_eq!(event["source"], "quiz.web");
        assert_eq!(event["session_id"], "s-17");
        assert_eq!(event["user_id"], "u \"é\"");
        assert_eq!(event["payload"], PAYLOAD);
        assert_eq!(event["id"], id_of(n as u64 + 1), "the id is ours");
        assert!(timestamp(&event).as_str() > "2020", "the time is that of the commit");
        let keys: Vec<_> = event.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 7, "{keys:?}");
    }
    for (n, (more, session, user, payload)) in [
        ("", Value::Null, Value::Null, "{}"),
        (r#","subject":"t""#, json!("t"), Value::Null, "{}"),
        (r#","sessionid":null,"subject":"t","data":null"#, json!("t"), Value::Null, "{}"),
        (r#","userid":"v","data":{"n":1},"data_base64":null"#, Value::Null, json!("v"), r#"{"n":1}"#),
        (r#","datacontenttype":"application/vnd.quiz+json","data":{}"#, Value::Null, Value::Null, "{}"),
    ]
    .into_iter()
    .enumerate()
    {
        let event = accepted(&server, &[ONE], &structured(&format!("b{n}"), more));
        assert_eq!(
            (&event["session_id"], &event["user_id"], &event["payload"]),
            (&session, &user, &json!(payload)),
            "{more}"
        );
    }
}

#[test]
fn a_batch_of_cloud_events_is_stored_whole_or_not_at_all() {
    let server = Server::start();
    let mut subscriber = server.subscriber(&json!({}));
    let batch = |more: [&str; 3]| {
        let events: Vec<_> = more.iter().zip(0..).map(|(more, n)| structured(&format!("c{n}"), more)).collect();
        format!(" [{}]\n", events.join(",\n"))
    };
    for (wrong, loc) in [
        (r#","type":null"#, json!(["body", 1, "type"])),
        (r#","specversion":"0.3""#, json!(["body", 1, "specversion"])),
        (r#","type":"unheard_of""#, json!(["body", 1, "event_type"])),
        (r#","data":[1]"#, json!(["body", 1, "payload"])),
    ] {
        let refusal = server.call("POST", "/events", &[MANY], batch(["", wrong, ""]).as_bytes()).refusal(422);
        assert_eq!(refusal[0]["loc"], loc, "{wrong}: {refusal}");
        assert!(text_of(&refusal[0]["msg"]).starts_with("Event 1: "), "{refusal}");
    }
    assert_eq!(server.get_json("/stats")["total_events"], 0);

    let right = batch([r#","sessionid":"x""#, &format!(r#","data":{PAYLOAD}"#), r#","userid":"u","data":{"left":8}"#]);
    let response = server.call("POST", "/api/v1/events", &[MANY], right.as_bytes());
    assert_eq!(response.status, 201, "{}", response.text());
    let ids = json!([id_of(1), id_of(2), id_of(3)]);
    assert_eq!(response.json(), json!({"count": 3, "first_id": ids[0], "last_id": ids[2], "ids": ids}));
    let lines = server.stored_lines("");
    assert_eq!(raw_field(&lines[1], "payload"), PAYLOAD);
    for line in lines {
        assert_eq!(subscriber.text(), line, "subscribers get it as any event");
    }
    let alone = server.call("POST", "/events", &[MANY], format!("[{}]", structured("d", "")).as_bytes());
    assert_eq!((alone.status, &alone.json()["count"]), (201, &json!(1)), "a batch of one is a batch");
}

#[test]
fn a_binary_cloud_event_becomes_an_event() {
    let server = Server::start();
    let headers = [
        ("ce-id", "a4"),
        ("ce-type", "quiz_completed"),
        ("ce-sessionid", "Euro%20%E2%82%AC%20%22x%22"),
        ("CE-UserID", "\"u 1\""),
        ("ce-subject", "not this"),
        ("ce-time", "1999-01-01T00:00:00Z"),
        ("ce-traceparent", "00-1"),
    ];
    let event = accepted(&server, &binary(&headers), PAYLOAD);
    assert_eq!(event["event_type"], "quiz_completed");
    assert_eq!((&event["session_id"], &event["user_id"]), (&json!("Euro € \"x\""), &json!("u 1")));
    assert_eq!(raw_field(&server.stored_lines("")[0], "payload"), PAYLOAD);

    for (n, (more, body, session)) in [
        ([("ce-subject", "t"), ("Content-Type", "")], "", json!("t")),
        ([("ce-subject", ""), ("Content-Type", "application/vnd.quiz+json; v=1")], "{}", Value::Null),
        ([("ce-subject", "€"), ("Content-Type", "application/json")], " null ", json!("€")),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("e{n}");
        let event = accepted(&server, &binary(&[more[0], more[1], ("ce-id", &id)]), body);
        assert_eq!((&event["session_id"], &event["payload"]), (&session, &json!("{}")), "{more:?}");
    }
}

#[test]
fn events_are_read_as_cloud_events() {
    let server = Server::start();
    server.publish_lines(&[
        format!(r#"{{"event_type":"quiz_started","source":"quiz.web","session_id":"s \"é\"","user_id":"u","payload":{PAYLOAD}}}"#),
        r#"{"event_type":"timer_tick","source":"it"}"#.to_string(),
        tick("s", 7),
    ]);
    let own: Vec<_> = server.stored_lines("");
    let expected: Vec<String> = own
        .iter()
        .map(|own| {
            let (of, optional) = (|name: &str| raw_field(own, name), |name: &str, key: &str| match raw_field(own, key) {
                null if null == "null" => String::new(),
                value => format!(r#""{name}":{value},"#),
            });
            format!(
                r#"{{"specversion":"1.0","id":{},"type":{},"source":{},"time":{},{}{}"datacontenttype":"application/json","data":{}}}"#,
                of("id"),
                of("event_type"),
                of("source"),
                of("timestamp"),
                optional("sessionid", "session_id"),
                optional("userid", "user_id"),
                of("payload"),
            )
        })
        .collect();
    let newest_first: Vec<_> = expected.iter().rev().cloned().collect();
    let weighed = ("Accept", "text/html;q=0.5, Application/CloudEvents+JSON; charset=utf-8");
    for accept in [ACCEPT_ONE, ACCEPT_MANY, weighed] {
        for (place, expected) in (1..).zip(&expected) {
            let one = server.call("GET", &format!("/events/{}", id_of(place)), &[accept], b"");
            assert_eq!((one.status, one.text()), (200, expected.clone()), "{accept:?}");
            assert_eq!(one.header("content-type"), Some("application/cloudevents+json"), "{accept:?}");
            assert!(one.header("vary").is_some_and(|vary| vary.contains("Accept")), "caches keep them apart");
        }
        let all = server.call("GET", "/api/v1/events", &[accept], b"");
        assert_eq!(all.text(), format!("[{}]", newest_first.join(",")), "{accept:?}");
        assert_eq!(all.header("content-type"), Some("application/cloudevents-batch+json"), "{accept:?}");
        assert!(all.header("vary").is_some_and(|vary| vary.contains("Accept")));
        server.call("GET", &format!("/events/{}", id_of(9)), &[accept], b"").refusal(404);
        server.call("GET", "/events?limit=0", &[accept], b"").refusal(422);
    }
    // Filters, cursors and pages are the same as for events.
    let page = server.call("GET", &format!("/events?limit=1&after_id={}", id_of(1)), &[ACCEPT_MANY], b"");
    assert_eq!(page.text(), format!("[{}]", expected[1]));
    let next = page.next_page().expect("more remain");
    assert_eq!(server.call("GET", &next, &[ACCEPT_MANY], b"").text(), format!("[{}]", expected[2]));
    assert_eq!(server.call("GET", "/events?session_id=nobody", &[ACCEPT_ONE], b"").text(), "[]");

    for accept in ["*/*", "application/json", "application/*", "application/cloudevents"] {
        let plain = server.call("GET", &format!("/events/{}", id_of(1)), &[("Accept", accept)], b"");
        assert_eq!(plain.text(), own[0], "{accept}");
        assert!(plain.header("vary").is_some_and(|vary| vary.contains("Accept")), "{accept}");
    }
}

#[test]
fn cloud_events_of_one_server_can_be_published_to_another() {
    let (server, other) = (Server::start(), Server::start());
    let events = classroom();
    server.publish_lines(&events[..900]);
    let batch = server.call("GET", "/events?limit=1000&after_id=evt_000000000000", &[ACCEPT_MANY], b"");
    let copied = other.call("POST", "/events", &[MANY], &batch.body);
    assert_eq!((copied.status, &copied.json()["count"]), (201, &json!(900)));
    let without_time = |line: &String| line.rsplit_once(",\"timestamp\":").unwrap().0.to_string();
    let of = |server: &Server| server.stored_lines("").iter().map(without_time).collect::<Vec<_>>();
    assert!(of(&server) == of(&other));
}

/// Checks the location and the kind of the problem with which a request is refused.
fn check_refused(server: &Server, headers: &[(&str, &str)], body: &[u8], loc: Value, kind: &str) {
    let detail = server.call("POST", "/events", headers, body).refusal(422);
    let told = (&detail[0]["loc"], &detail[0]["type"]);
    assert_eq!(told, (&loc, &json!(kind)), "{headers:?} {}: {detail}", String::from_utf8_lossy(body));
}

#[test]
fn an_invalid_cloud_event_is_refused_with_the_attribute_at_fault() {
    let server = Server::start();
    let check = |more: &str, name: &str, kind: &str| {
        let body = structured("f", &format!(",{more}"));
        check_refused(&server, &[ONE], body.as_bytes(), json!(["body", name]), kind);
        let many = format!("[{},{body}]", structured("g", ""));
        check_refused(&server, &[MANY], many.as_bytes(), json!(["body", 1, name]), kind);
    };
    for name in ["specversion", "id", "source", "type"] {
        check(&format!(r#""{name}":null"#), name, "missing");
        check(&format!(r#""{name}":"""#), name, "string_too_short");
        check(&format!(r#""{name}":7"#), name, "wrong_type");
    }
    for name in ["subject", "time", "dataschema"] {
        check(&format!(r#""{name}":"""#), name, "string_too_short");
    }
    for name in ["sessionid", "userid", "subject", "datacontenttype"] {
        check(&format!(r#""{name}":{{}}"#), name, "wrong_type");
    }
    check(r#""specversion":"1.0.2""#, "specversion", "enum");
    check(r#""datacontenttype":"text/plain""#, "datacontenttype", "enum");
    check(r#""data_base64":"e30=""#, "data_base64", "extra_forbidden");
    // The rest is checked like any event, and problems have the names of our fields.
    for (more, name) in [
        (r#""type":"unheard_of""#.to_string(), "event_type"),
        (r#""source":"https://example.com/quiz""#.to_string(), "source"),
        (format!(r#""sessionid":"{}""#, "x".repeat(201)), "session_id"),
        (format!(r#""userid":"{}""#, "x".repeat(201)), "user_id"),
        (r#""data":[1]"#.to_string(), "payload"),
        (r#""data":"text""#.to_string(), "payload"),
        (format!(r#""data":{{"x":"{}"}}"#, "x".repeat(70_000)), "payload"),
    ] {
        let detail =
            server.call("POST", "/events", &[ONE], structured("h", &format!(",{more}")).as_bytes()).refusal(422);
        assert_eq!(detail[0]["loc"], json!(["body", name]), "{name}: {detail}");
    }
    for (body, kind) in [("", "json_invalid"), ("{", "json_invalid"), ("[]", "object_type"), ("7", "object_type")] {
        check_refused(&server, &[ONE], body.as_bytes(), json!(["body"]), kind);
    }
    for (body, kind) in [("", "json_invalid"), ("[{", "json_invalid"), ("{}", "list_type"), ("[]", "too_short")] {
        check_refused(&server, &[MANY], body.as_bytes(), json!(["body"]), kind);
    }
    check_refused(&server, &[MANY], b"[7]", json!(["body", 0]), "object_type");
    for form in [ONE, MANY] {
        server.call("POST", "/events", &[form], b"\"\xff\"").refusal(400);
    }
    assert_eq!(server.get_json("/stats")["total_events"], 0);
}

#[test]
fn all_problems_of_a_batch_of_cloud_events_are_listed_in_order() {
    let server = Server::start();
    let told = |headers: &[(&str, &str)], body: &str| -> Vec<(Value, String)> {
        let detail = server.call("POST", "/events", headers, body.as_bytes()).refusal(422);
        let problems = detail.as_array().expect("a list").iter();
        problems.map(|problem| (problem["loc"].clone(), text_of(&problem["type"]).to_string())).collect()
    };
    let expected = |problems: &[(Value, &str)]| -> Vec<_> {
        problems.iter().map(|(loc, kind)| (loc.clone(), kind.to_string())).collect()
    };
    let batch = [
        structured("a", r#","type":"unheard_of""#),
        structured("b", r#","specversion":"0.3""#),
        structured("c", ""),
        "7".to_string(),
        // Problems by the rules of CloudEvents and by ours together. A missing attribute is listed once.
        structured("", r#","type":null,"source":"a b","data":[1]"#),
        structured("d", r#","data":7"#),
    ];
    let of_batch = expected(&[
        (json!(["body", 0, "event_type"]), "enum"),
        (json!(["body", 1, "specversion"]), "enum"),
        (json!(["body", 3]), "object_type"),
        (json!(["body", 4, "id"]), "string_too_short"),
        (json!(["body", 4, "type"]), "missing"),
        (json!(["body", 4, "source"]), "string_pattern_mismatch"),
        (json!(["body", 4, "payload"]), "wrong_type"),
        (json!(["body", 5, "payload"]), "wrong_type"),
    ]);
    assert_eq!(told(&[MANY], &format!("[{}]", batch.join(","))), of_batch);
    let both = structured("e", r#","specversion":"2","data":7"#);
    let of_one = expected(&[(json!(["body", "specversion"]), "enum"), (json!(["body", "payload"]), "wrong_type")]);
    assert_eq!(told(&[ONE], &both), of_one);
    let of_headers = expected(&[(json!(["header", "id"]), "missing"), (json!(["body", "event_type"]), "enum")]);
    assert_eq!(told(&binary(&[("ce-id", ""), ("ce-type", "unheard_of")]), "{}"), of_headers);
    // Of very many problems the first are listed.
    let many = told(&[MANY], &format!("[{}]", [&batch[..2]; 60].concat().join(",")));
    assert_eq!(many.len(), 100);
    assert_eq!(many[99], (json!(["body", 99, "specversion"]), "enum".to_string()));
    assert_eq!(server.get_json("/stats")["total_events"], 0);
}

#[test]
fn invalid_cloud_event_headers_are_refused_by_name() {
    let server = Server::start();
    let check = |header: (&str, &str), name: &str, kind: &str| {
        check_refused(&server, &binary(&[header]), b"{}", json!(["header", name]), kind);
    };
    for name in ["id", "source", "type"] {
        check((&format!("ce-{name}"), ""), name, "missing");
        check((&format!("ce-{name}"), "\"\""), name, "string_too_short");
        check((&format!("ce-{name}"), "%ff"), name, "string_unicode");
    }
    check(("ce-specversion", "0.3"), "specversion", "enum");
    check(("ce-userid", "%C0%A0"), "userid", "string_unicode");
    check(("ce-time", "\"\""), "time", "string_too_short");
    for media in ["text/plain", "application/x-ndjson", "application/octet-stream"] {
        check(("Content-Type", media), "datacontenttype", "enum");
    }
    for (header, name) in [(("ce-type", "unheard_of"), "event_type"), (("ce-source", "a%20b"), "source")] {
        let detail = server.call("POST", "/events", &binary(&[header]), b"{}").refusal(422);
        assert_eq!(detail[0]["loc"], json!(["body", name]), "{detail}");
    }
    for body in ["{", "NaN", "{} {}", r#"{},"event_type":"quiz_started""#] {
        check_refused(&server, &binary(&[]), body.as_bytes(), json!(["body"]), "json_invalid");
    }
    let detail = server.call("POST", "/events", &binary(&[]), b"[1]").refusal(422);
    assert_eq!(detail[0]["loc"], json!(["body", "payload"]), "{detail}");
    server.call("POST", "/events", &binary(&[]), b"{\"x\":\"\xff\"}").refusal(400);
    let mut wire = Wire::connect(server.addr);
    let bad = request("POST", "/events", &binary(&[("ce-userid", "u")]), b"{}");
    let place = bad.windows(3).position(|part| part == b"u\r\n").expect("the user's header");
    wire.send([&bad[..place], b"\xff", &bad[place + 1..]].concat());
    wire.response().expect("an answer").refusal(400);

    // Without `ce-specversion` it is no CloudEvent, whatever its other headers are.
    let plain = server.call("POST", "/events", &binary(&[("ce-specversion", "")]), tick("s", 0).as_bytes());
    assert_eq!(plain.status, 201, "{}", plain.text());
    server.call("POST", "/events", &[("Content-Type", "application/cloudevents+xml")], b"<event/>").refusal(415);
    assert_eq!(server.get_json("/stats")["total_events"], 1);
}
