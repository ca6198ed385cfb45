//! What an event may be: payloads are returned byte for byte, invalid events are refused with a reason, limits are exact.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::json;

use crate::support::*;

fn with_payload(payload: &str) -> String {
    format!(r#"{{"event_type":"timer_tick","source":"it","session_id":"s","payload":{payload}}}"#)
}

fn with_field(name: &str, value: &str) -> String {
    let mut fields = vec![("event_type", "\"timer_tick\""), ("source", "\"it\"")];
    fields.retain(|(own, _)| *own != name);
    fields.push((name, value));
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// An object with this number of levels: `{"a":{"a":…{}}}`.
fn nested(levels: usize) -> String {
    format!("{}{{}}{}", r#"{"a":"#.repeat(levels - 1), "}".repeat(levels - 1))
}

/// An object whose single key holds arrays, with this number of levels in all.
fn nested_arrays(levels: usize) -> String {
    format!("{{\"a\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1))
}

/// An object of exactly this number of bytes, most of them in two-byte characters.
fn payload_of(bytes: usize) -> String {
    let text = bytes - r#"{"k":""}"#.len();
    format!(r#"{{"k":"{}{}"}}"#, "ü".repeat(text / 2), "x".repeat(text % 2))
}

fn payload_with_keys(keys: usize) -> String {
    let fields: Vec<_> = (0..keys).map(|n| format!(r#""k{n}":{n}"#)).collect();
    format!("{{{}}}", fields.join(","))
}

#[test]
fn a_payload_is_returned_byte_for_byte() {
    let payloads = [
        r#"{}"#.to_string(),
        r#"{"name":"Chloé Žluťoučký 学生 😀 עברית"}"#.to_string(),
        r#"{"null":"\u0000","escapes":"\"\\\/\b\f\n\r\t\u001f\u00e9\u2028"}"#.to_string(),
        r#"{"pair":"\ud83d\ude00","upper":"\uD83D\uDE00"}"#.to_string(),
        r#"{"\u006bey":"escaped key","":"empty key"}"#.to_string(),
        r#"{"int":18446744073709551616,"min":-9223372036854775809,"long":123456789012345678901234567890123456789012345678901234567890}"#.to_string(),
        r#"{"big":1e400,"small":1E-400,"minus":-1.5e+999,"zero":-0,"zeros":-0.0}"#.to_string(),
        r#"{"tenth":0.10,"one":1.0,"exp":1e2,"exp2":1E+2,"long":0.1000000000000000055511151231257827021181583404541015625}"#.to_string(),
        r#"{"z":1,"a":2,"m":{"z":1,"a":2}}"#.to_string(),
        r#"{"twice":1,"twice":2}"#.to_string(),
        r#"{"list":[[],[null,true,false,[{}]],{}],"text":"{[,:]}"}"#.to_string(),
        r#"{"html":"<script>&amp;</script>","sql":"'; DROP TABLE events; --"}"#.to_string(),
        nested(30),
        nested_arrays(30),
        nested(120),
        payload_of(65_536),
    ];
    let server = Server::start();
    let mut subscriber = server.subscriber(&json!({}));
    let mut publisher = server.publisher();
    let mut expected = Vec::new();
    for payload in payloads {
        let posted = server.post(with_payload(&payload));
        assert_eq!(posted.status, 201, "{payload} → {}", posted.text());
        assert_eq!(raw_field(&posted.text(), "payload"), payload, "in the answer");
        publisher.send(&with_payload(&payload));
        assert_eq!(publisher.json()["status"], "ok", "{payload}");
        expected.extend([payload.clone(), payload]);
    }
    let stored = server.stored_lines("session_id=s");
    assert_eq!(stored.len(), expected.len());
    for (line, payload) in stored.iter().zip(&expected) {
        assert_eq!(raw_field(line, "payload"), *payload, "stored");
        assert_eq!(subscriber.text(), *line, "delivered");
    }
}

#[test]
fn only_insignificant_whitespace_of_a_payload_may_be_removed() {
    let server = Server::start();
    let payload = "{ \"a b\" :\t[ 1 , \"two  spaces\" ,\r\n{ } ] ,\n \"c\" : \" {  } \" }";
    let response = server.post(with_payload(payload));
    assert_eq!(response.status, 201, "{}", response.text());
    assert_eq!(compact(&raw_field(&response.text(), "payload")), compact(payload));
}

#[test]
fn a_body_that_is_not_json_is_refused_with_a_reason() {
    let values = [
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "undefined",
        "01",
        "-01",
        "+1",
        ".5",
        "1.",
        "1e",
        "1e+",
        "0x10",
        "-",
        "--1",
        "1_000",
        r#""\ud800""#,
        r#""\udc00""#,
        r#""\ude00\ud83d""#,
        r#""\ud83dx""#,
        r#""\ud83d\u0041""#,
        r#""\x41""#,
        r#""\u12G4""#,
        r#""\u123""#,
        "\"raw \u{1} control\"",
        "\"raw \n newline\"",
        "\"raw \t tab\"",
        "'single'",
        "\"open",
        "[1,]",
        "[,1]",
        "[1 2]",
        r#"{"a":1,}"#,
        r#"{"a"}"#,
        r#"{a:1}"#,
        r#"{1:1}"#,
        r#"{"a":1 "b":2}"#,
        "tru",
        "True",
        "nul",
        "None",
        "/* c */ 1",
        "\u{feff}1",
        "",
    ];
    let server = Server::start();
    let mut publisher = server.publisher();
    let mut taken = Vec::new();
    for value in values {
        let body = with_payload(&format!(r#"{{"a":{value}}}"#));
        let (response, answer) = (server.post(&body), publisher.ask(&body));
        if response.status == 201 || answer["status"] == "ok" {
            taken.push(value);
            continue;
        }
        response.refusal(422);
        assert!(!text_of(&answer["message"]).is_empty(), "{body} → {answer}");
    }
    assert!(taken.is_empty(), "taken for JSON: {taken:?}");
    for (field, value) in [("session_id", r#""\ud800""#), ("user_id", r#""x\udfff""#), ("payload", r#"{"\ud800":1}"#)] {
        server.post(with_field(field, value)).refusal(422);
    }
    assert_eq!(server.get_json("/stats")["total_events"], 0);
    assert_eq!(publisher.ask(&tick("s", 0))["status"], "ok", "the socket lives");
}

#[test]
fn a_payload_may_nest_128_levels_deep() {
    let server = Server::start();
    let mut publisher = server.publisher();
    // The contract does not say whether the event around the payload is one of the 128 levels; up to 126 it does not matter.
    for payload in [nested(126), nested_arrays(126)] {
        assert_eq!(server.post(with_payload(&payload)).status, 201);
        assert_eq!(publisher.ask(&with_payload(&payload))["status"], "ok");
    }
    for levels in [129, 130, 1000, 100_000] {
        // The deepest payloads are too long as well, and are refused for one of the two reasons.
        let payloads = [nested(levels), nested_arrays(levels)].map(|payload| with_payload(&payload));
        let wholes = [nested(levels), "[".repeat(levels), r#"{"a":"#.repeat(levels)];
        for body in payloads.iter().chain(&wholes) {
            server.post(body).refusal(422);
            assert_eq!(publisher.ask(body)["status"], "error");
        }
    }
    // An ignored field may be a little deeper, because the limit is the payload's, but not without bound.
    for levels in [1000, 100_000] {
        let body = with_field("ignored", &nested(levels));
        server.post(&body).refusal(422);
        assert_eq!(publisher.ask(&body)["status"], "error");
    }
    assert_eq!(server.get_json("/stats")["total_events"], 4);
}

#[test]
fn a_body_that_is_not_utf8_is_400() {
    let server = Server::start();
    let [before, after] = [br#"{"event_type":"timer_tick","source":"it","payload":{"a":""#.as_slice(), br#""}}"#];
    let broken: [&[u8]; 7] =
        [b"\xff", b"\xc3", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xf0\x9f\x98"];
    for bytes in broken {
        let body = [before, bytes, after].concat();
        server.post(&body).refusal(400);
        let lines = [tick("s", 0).as_bytes(), b"\n", &body, b"\n"].concat();
        server.call("POST", "/events", &[NDJSON], &lines).refusal(400);
        let array = [b"[".as_slice(), &body, b"]"].concat();
        server.post(&array).refusal(400);
    }
    assert_eq!(server.get_json("/stats")["total_events"], 0);
}

#[test]
fn a_field_of_the_wrong_type_is_refused() {
    let strings = ["5", "1.5", "true", "[]", "{}", r#"["x"]"#];
    let server = Server::start();
    let mut publisher = server.publisher();
    let mut refused = Vec::new();
    for field in ["event_type", "source", "session_id", "user_id"] {
        refused.extend(strings.map(|value| (field, value)));
    }
    refused.extend([("event_type", "null"), ("source", "null")]);
    refused.extend(["null", "[]", r#""{}""#, "5", "true", "[{}]"].map(|value| ("payload", value)));
    for (field, value) in refused {
        let body = with_field(field, value);
        let detail = server.post(&body).refusal(422);
        assert!(detail[0]["loc"].as_array().unwrap().contains(&json!(field)), "{body} → {detail}");
        assert_eq!(publisher.ask(&body)["status"], "error", "{body}");
    }
}

#[test]
fn an_event_type_must_be_registered_by_exactly_its_name() {
    let server = Server::start();
    let mut publisher = server.publisher();
    for name in ["quiz_exploded", "Quiz_Started", "quiz_started ", " quiz_started", "quiz", ""] {
        let body = json!({"event_type": name, "source": "it"}).to_string();
        let detail = server.post(&body).refusal(422);
        assert!(detail[0]["msg"].as_str().unwrap().contains(name), "{detail} does not name {name}");
        let answer = publisher.ask(&body);
        assert_eq!(answer["status"], "error");
        assert!(answer["message"].as_str().unwrap().contains(name), "{answer} does not name {name}");
    }
}

#[test]
fn every_problem_of_a_body_is_in_one_answer() {
    let server = Server::start();
    let many_faults = json!({"event_type": "quiz_exploded", "source": "a b", "session_id": 7, "user_id": "u".repeat(201),
        "payload": [], "idempotency_key": ""});
    let all = ["event_type", "source", "session_id", "user_id", "payload", "idempotency_key"];
    let places = |detail: &serde_json::Value| {
        detail.as_array().unwrap().iter().map(|problem| problem["loc"].clone()).collect::<Vec<_>>()
    };
    let detail = server.post(many_faults.to_string()).refusal(422);
    assert_eq!(places(&detail), all.map(|field| json!(["body", field])));
    for known in ["quiz_started", "timer_tick", "error_occurred"] {
        assert!(text_of(&detail[0]["msg"]).contains(known), "{detail} does not name {known}");
    }

    // In an array and in lines each problem has the index of its event; the valid events among them are not stored.
    let well = tick("s", 0);
    let items = [&well, &many_faults.to_string(), "7", &well, "{}"];
    let mut expected = all.map(|field| json!(["body", 1, field])).to_vec();
    expected.extend([json!(["body", 2]), json!(["body", 4, "event_type"]), json!(["body", 4, "source"])]);
    assert_eq!(places(&server.post(format!("[{}]", items.join(","))).refusal(422)), expected);
    let lines = server.call("POST", "/events", &[NDJSON], items.join("\n").as_bytes());
    assert_eq!(places(&lines.refusal(422)), expected);
    assert_eq!(server.get_json("/stats")["total_events"], 0);

    // The answer has the first 100 problems.
    for body in [format!("[{}]", ["{}"; 1_000].join(",")), ["{}"; 1_000].join("\n")] {
        let headers = if body.starts_with('[') { &[JSON][..] } else { &[NDJSON] };
        let detail = server.call("POST", "/events", headers, body.as_bytes()).refusal(422);
        assert_eq!(places(&detail).len(), 100);
        assert_eq!(detail[99]["loc"], json!(["body", 49, "source"]));
    }
    // A WebSocket gets one sentence, about the first problem.
    let answer = server.publisher().ask(&many_faults.to_string());
    assert!(text_of(&answer["message"]).starts_with("Unknown event type 'quiz_exploded'"), "{answer}");
}

/// Sends the body over HTTP and over a WebSocket, and checks that both answer the same.
fn check(server: &Server, publisher: &mut Socket, what: &str, body: &str, accepted: bool) {
    let response = server.post(body);
    assert_eq!(response.status, if accepted { 201 } else { 422 }, "{what}: {}", response.text());
    let answer = publisher.ask(body);
    assert_eq!(answer["status"], if accepted { "ok" } else { "error" }, "{what}: {answer}");
    if !accepted {
        response.refusal(422);
    }
}

#[test]
fn each_limit_allows_its_maximum_and_refuses_one_more() {
    let server = Server::start();
    let mut publisher = server.publisher();
    let mut check = |what: &str, body: &str, accepted| check(&server, &mut publisher, what, body, accepted);

    for source in ["a", "quiz_engine", "A.b-C_d.9", "-", ".", &"s".repeat(100)] {
        check(source, &with_field("source", &json!(source).to_string()), true);
    }
    for source in ["", " ", "a b", "é", "a/b", "a\n", "a\0", "ａ", &"s".repeat(101)] {
        check(source, &with_field("source", &json!(source).to_string()), false);
    }
    for field in ["session_id", "user_id"] {
        for letter in ["x", "é", "学", "😀", "\u{0}", "\"", "\u{301}"] {
            let edge = json!(letter.repeat(200)).to_string();
            check(&format!("{field} of 200 {letter:?}"), &with_field(field, &edge), true);
            let beyond = json!(letter.repeat(201)).to_string();
            check(&format!("{field} of 201 {letter:?}"), &with_field(field, &beyond), false);
        }
        // Escapes count as the characters they stand for.
        check("200 escaped", &with_field(field, &format!("\"{}\"", "\\u00e9".repeat(200))), true);
        check("200 escaped pairs", &with_field(field, &format!("\"{}\"", "\\ud83d\\ude00".repeat(200))), true);
        check("201 escaped pairs", &with_field(field, &format!("\"{}\"", "\\ud83d\\ude00".repeat(201))), false);
    }
    check("50 keys", &with_payload(&payload_with_keys(50)), true);
    check("51 keys", &with_payload(&payload_with_keys(51)), false);
    check("keys below the top", &with_payload(&format!("{{\"a\":{}}}", payload_with_keys(500))), true);
    check("65,536 bytes", &with_payload(&payload_of(65_536)), true);
    check("65,537 bytes", &with_payload(&payload_of(65_537)), false);
}

#[test]
fn payload_limits_are_configurable() {
    let server = Server::with(&[("MAX_PAYLOAD_KEYS", "2"), ("MAX_PAYLOAD_BYTES", "100")]);
    let mut publisher = server.publisher();
    let mut check =
        |what: &str, payload: &str, accepted| check(&server, &mut publisher, what, &with_payload(payload), accepted);
    check("2 keys", &payload_with_keys(2), true);
    check("3 keys", &payload_with_keys(3), false);
    check("100 bytes", &payload_of(100), true);
    check("101 bytes", &payload_of(101), false);
}

#[test]
fn session_and_user_ids_may_have_every_character() {
    let server = Server::start();
    let ids = [
        "x",
        "",
        " ",
        "a b&c=d+e%41",
        "学生 😀",
        "\"quoted\" \\ back",
        "\u{0}\n\t",
        "'; --",
        "e\u{301}",
        "é",
        "\u{feff}",
        "null",
    ];
    for id in ids {
        let stored = server
            .publish(&json!({"event_type": "timer_tick", "source": "it", "session_id": id, "user_id": id}).to_string());
        assert_eq!((&stored["session_id"], &stored["user_id"]), (&json!(id), &json!(id)));
        if id.is_empty() {
            // An empty condition means "any", so no filter selects the empty id.
            continue;
        }
        for field in ["session_id", "user_id"] {
            let found = server.stored(&format!("{field}={}", encode(id)));
            assert_eq!(found, std::slice::from_ref(&stored), "{field} {id:?}");
        }
    }
    // One character spelled in two ways is the same id.
    let escaped = server.publish(&with_field("session_id", r#""\u5b66\u751f""#));
    let plain = server.publish(&with_field("session_id", r#""学生""#));
    assert_eq!(server.stored(&format!("session_id={}", encode("学生"))), [escaped, plain]);
}

#[test]
fn unknown_fields_of_an_event_are_ignored() {
    let server = Server::start();
    let body = r#"{"id":"evt_ffffffffffff","timestamp":"1999-01-01T00:00:00Z","event_type":"timer_tick","processed":true,
        "source":"it","extra":{"deep":[1,2,{"x":null}]},"sequence":99,"Payload":5}"#;
    let stored = server.publish(body);
    assert_eq!(sequence(&stored["id"]), 1);
    assert!(timestamp(&stored).as_str() > "2020", "{stored}");
    assert_eq!(stored["payload"], json!({}));
    let keys: Vec<_> = stored.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["id", "event_type", "source", "session_id", "user_id", "payload", "timestamp"]);
}

/// JSON in spellings that a parser might normalize.
fn any_json() -> impl Strategy<Value = String> {
    let number = "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?";
    let text = "\"([a-zé学😀 /<>&']|\\\\[\"\\\\/bfnrt]|\\\\u00[0-9a-fA-F]{2}|\\\\ud83d\\\\ude[0-7][0-9a-f]){0,12}\"";
    let leaf = prop_oneof![number, text, Just("null".to_string()), Just("true".to_string()), Just("false".to_string())];
    leaf.prop_recursive(6, 40, 6, move |inner| {
        let member = (text, inner.clone()).prop_map(|(key, value)| format!("{key}:{value}"));
        prop_oneof![
            prop::collection::vec(inner, 0..6).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(","))),
        ]
    })
}

#[test]
fn any_payload_is_returned_as_it_was_sent() {
    let mut runner = TestRunner::deterministic();
    let payloads: Vec<_> =
        (0..2000).map(|_| format!("{{\"any\":{}}}", any_json().new_tree(&mut runner).unwrap().current())).collect();
    let server = Server::start();
    let messages: Vec<_> = payloads.iter().map(|payload| with_payload(payload)).collect();
    let answers = server.publisher().pipeline(&messages);
    for (answer, message) in answers.iter().zip(&messages) {
        assert_eq!(answer["status"], "ok", "{message} → {answer}");
    }
    for (line, payload) in server.stored_lines("").iter().zip(&payloads) {
        assert_eq!(raw_field(line, "payload"), *payload);
    }
}
