//! Reading what is stored: filters, pages, limits, times.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::support::*;

#[test]
fn queries_combine_filters() {
    let server = Server::start();
    let types = ["timer_tick", "quiz_started", "error_occurred"];
    let mut events = Vec::new();
    for n in 0..120 {
        events.push(json!({
            "event_type": types[n % 3], "source": format!("source-{}", n % 2),
            "session_id": format!("session {}", n % 4), "user_id": format!("user&{}=ü+", n % 5),
        }));
    }
    server.publish_lines(&events.iter().map(Value::to_string).collect::<Vec<_>>());

    // Each filter is left out or set, in every combination.
    for choice in 0..16 {
        let mut query = Vec::new();
        let mut wanted: Vec<(&str, Vec<String>)> = Vec::new();
        let mut add = |bit: usize, field: &'static str, values: &[&str]| {
            if choice & (1 << bit) != 0 {
                let joined: Vec<_> = values.iter().map(|value| encode(value)).collect();
                query.push(format!("{field}={}", joined.join(",")));
                wanted.push((field, values.iter().map(ToString::to_string).collect()));
            }
        };
        add(0, "event_type", &["timer_tick", "error_occurred"]);
        add(1, "source", &["source-1"]);
        add(2, "session_id", &["session 3"]);
        add(3, "user_id", &["user&2=ü+"]);
        let matches = |event: &Value| wanted.iter().all(|(field, values)| values.contains(&text_of(&event[*field])));
        let expected: Vec<u64> =
            events.iter().zip(1..).filter(|(event, _)| matches(event)).map(|(_, sequence)| sequence).collect();
        let query = query.join("&");
        assert_eq!(sequences(&server.stored(&query)), expected, "{query}");
        let newest_first: Vec<u64> = expected.iter().rev().take(3).copied().collect();
        assert_eq!(sequences(server.get_json(&format!("/events?limit=3&{query}")).as_array().unwrap()), newest_first);
    }
    assert_eq!(server.get_json("/events?session_id=nobody"), json!([]));
    assert_eq!(server.stored_lines("session_id=nobody").len(), 0);
}

#[test]
fn ndjson_reads_stream_oldest_first_without_a_limit() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 12_000));
    let response = server.call("GET", "/events", &[ACCEPT_NDJSON], b"");
    assert!(response.header("content-type").unwrap().starts_with("application/x-ndjson"));
    assert!(response.text().ends_with("}\n"), "every line is ended");
    let lines = server.stored_lines("");
    assert_eq!(lines.len(), 12_000);
    for (line, n) in lines.iter().zip(0..) {
        assert!(line.starts_with(&format!(r#"{{"id":"{}","#, id_of(n + 1))), "{line}");
        assert_eq!(raw_field(line, "payload"), format!(r#"{{"n":{n}}}"#));
    }
    let few = server.stored("limit=1500");
    assert_eq!(few.len(), 1500, "a limit of any size is heeded");
}

#[test]
fn pages_lead_to_the_end_without_a_repeat() {
    let server = Server::start();
    let events: Vec<_> = (0..2350).map(|n| tick(if n % 5 == 0 { "fifth" } else { "other" }, n)).collect();
    server.publish_lines(&events);
    let all: Vec<u64> = (1..=2350).rev().collect();
    let fifths: Vec<u64> = all.iter().filter(|n| (*n - 1) % 5 == 0).copied().collect();

    for limit in [1000, 470, 999] {
        assert_eq!(sequences(&server.pages(&format!("/events?limit={limit}"))), all);
        assert_eq!(sequences(&server.pages(&format!("/events?limit={limit}&session_id=fifth"))), fifths);
    }
    assert_eq!(sequences(&server.pages("/api/v1/events?limit=500")), all, "under the other prefix too");
    assert_eq!(server.get_json("/events").as_array().unwrap().len(), 100, "the default limit");

    // New events do not move the pages.
    let first = server.get("/events?limit=1000");
    server.publish(&tick("late", 0));
    let second = server.get(&first.next_page().unwrap()).json();
    assert_eq!(sequences(second.as_array().unwrap()), (351..=1350).rev().collect::<Vec<_>>());

    // A bound holds on every page, and a page that ends exactly at the last event has no next one.
    let since = timestamp(&server.get_json(&format!("/events/{}", id_of(100))));
    let until = timestamp(&server.get_json(&format!("/events/{}", id_of(201))));
    let range = format!("since={}&until={}", encode(&since), encode(&until));
    assert_eq!(sequences(&server.pages(&format!("/events?limit=30&{range}"))), (101..=200).rev().collect::<Vec<_>>());
    assert_eq!(sequences(&server.stored(&range)), (101..=200).collect::<Vec<_>>());
    assert!(server.get(&format!("/events?limit=100&{range}")).next_page().is_none());
    assert!(server.get(&format!("/events?limit=99&{range}")).next_page().is_some());
}

#[test]
fn a_limit_is_between_1_and_1000() {
    let server = Server::start();
    server.publish_lines(&ticks("s", 1001));
    for limit in [1, 2, 999, 1000] {
        let page = server.get_json(&format!("/events?limit={limit}"));
        assert_eq!(page.as_array().unwrap().len(), limit);
    }
    for limit in ["0", "1001", "-1", "abc", "1.5", "99999999999999999999", "1e2"] {
        let detail = server.get(&format!("/events?limit={limit}")).refusal(422);
        assert_eq!(detail[0]["loc"], json!(["query", "limit"]), "limit={limit}");
    }
}

/// The same instant, written by hand in other ways.
fn written(instant: Timestamp, offset_hours: i8, digits: usize) -> String {
    let zoned = instant.to_zoned_datetime(jiff::tz::TimeZone::fixed(jiff::tz::offset(offset_hours)));
    let seconds = zoned.strftime("%Y-%m-%dT%H:%M:%S");
    let nanoseconds = format!("{:09}", zoned.subsec_nanosecond());
    let fraction = if digits == 0 { String::new() } else { format!(".{}", &nanoseconds[..digits]) };
    let sign = if offset_hours < 0 { '-' } else { '+' };
    format!("{seconds}{fraction}{sign}{:02}:00", offset_hours.abs())
}

#[test]
fn time_bounds_are_exclusive_in_every_spelling() {
    let server = Server::start();
    let ids = server.publish_lines(&ticks("s", 5));
    let third = timestamp(&server.get_json(&format!("/events/{}", ids[2])));
    let instant: Timestamp = third.parse().unwrap();

    let lower = third.to_lowercase();
    let same = [
        written(instant, 0, 6),
        written(instant, 0, 9),
        written(instant, 5, 6),
        written(instant, -8, 9),
        third.clone(),
        lower,
    ];
    for time in same {
        check_bounds(&server, &time, &[4, 5], &[1, 2]);
    }
    // A nanosecond beside the event is before or after it.
    let nanosecond = jiff::SignedDuration::from_nanos(1);
    check_bounds(&server, &written(instant - nanosecond, 0, 9), &[3, 4, 5], &[1, 2]);
    check_bounds(&server, &written(instant + nanosecond, 0, 9), &[4, 5], &[1, 2, 3]);
    check_bounds(&server, &written(instant + nanosecond, 3, 9), &[4, 5], &[1, 2, 3]);
    // Whole seconds, tenths and the ends of time.
    for digits in 0..=5 {
        let early = written(instant - jiff::SignedDuration::from_hours(1), 2, digits);
        check_bounds(&server, &early, &[1, 2, 3, 4, 5], &[]);
        let late = written(instant + jiff::SignedDuration::from_hours(1), -2, digits);
        check_bounds(&server, &late, &[], &[1, 2, 3, 4, 5]);
    }
    check_bounds(&server, "0001-01-01T00:00:00Z", &[1, 2, 3, 4, 5], &[]);
    check_bounds(&server, "1969-12-31T23:59:59.999999999Z", &[1, 2, 3, 4, 5], &[]);
    check_bounds(&server, "9999-12-31T23:59:59.999999Z", &[], &[1, 2, 3, 4, 5]);
}

fn check_bounds(server: &Server, time: &str, after: &[u64], before: &[u64]) {
    let time = encode(time);
    assert_eq!(sequences(&server.stored(&format!("since={time}"))), after, "since={time}");
    assert_eq!(sequences(&server.stored(&format!("until={time}"))), before, "until={time}");
}

#[test]
fn times_are_read_as_python_writes_them() {
    let server = Server::start();
    let ids = server.publish_lines(&ticks("s", 5));
    let third: Timestamp = timestamp(&server.get_json(&format!("/events/{}", ids[2]))).parse().unwrap();
    // Without an offset it is UTC; a date alone is its beginning.
    let naive = written(third, 0, 6).trim_end_matches("+00:00").to_owned();
    for time in [&naive, &naive.replace('T', " "), &format!("{naive}+00:00"), &format!("{naive}+00:00:00")] {
        check_bounds(&server, time, &[4, 5], &[1, 2]);
    }
    let tomorrow = third + jiff::SignedDuration::from_hours(24);
    check_bounds(&server, &tomorrow.to_string()[..10], &[], &[1, 2, 3, 4, 5]);
    let yesterday = third - jiff::SignedDuration::from_hours(24);
    check_bounds(&server, &yesterday.to_string()[..10], &[1, 2, 3, 4, 5], &[]);
    let since = json!({"since": naive});
    assert_eq!(sequences(&server.subscriber(&since).collect(2)), [4, 5]);
    let deleted = server.call("DELETE", &format!("/events?before={}", encode(&naive)), &[], b"");
    assert_eq!(deleted.json(), json!({"deleted": 2}));
}

#[test]
fn bad_times_are_refused() {
    let server = Server::start();
    let bad = [
        "yesterday",
        "2026-02-30",
        "2026-01-15T10:30",
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-01-15T25:00:00Z",
        "2026-01-15T10:61:00Z",
        "2026-01-15T10:30:00+99:99",
        "2026-01-15T10:30:00.Z",
        "2026-01-15T10:30:00Zjunk",
        "17",
        "0000-00-00T00:00:00Z",
        "2026-01-15T10:30:00.12345678901234567890123Z0",
    ];
    for time in bad {
        for name in ["since", "until"] {
            server.get(&format!("/events?{name}={}", encode(time))).refusal(400);
        }
    }
    // Times that the calendar knows and this world does not are refused or heeded, and harm nothing.
    for time in ["9999-12-31T23:59:59.999999999-23:59", "0001-01-01T00:00:00+23:59", "2016-12-31T23:59:60Z"] {
        let response = server.get(&format!("/events?since={}", encode(time)));
        assert!(matches!(response.status, 200 | 400), "{time}: {}", response.status);
    }
}

/// Draws a query, and the sequence numbers that a scan of `stored` finds for it, oldest first.
fn drawn_query(dice: &mut Random, stored: &[Value]) -> (String, Vec<u64>) {
    let mut parts = Vec::new();
    let mut found: Vec<&Value> = stored.iter().collect();
    for field in ["event_type", "session_id", "user_id", "source"] {
        if dice.below(2) == 0 {
            continue;
        }
        // Mostly a value that exists.
        let value = stored[dice.below(stored.len() as u64) as usize][field].as_str().unwrap_or("nobody").to_string();
        parts.push(format!("{field}={}", encode(&value)));
        found.retain(|event| event[field] == json!(value));
    }
    for bound in ["since", "until"] {
        if dice.below(3) != 0 {
            continue;
        }
        let time = timestamp(&stored[dice.below(stored.len() as u64) as usize]);
        parts.push(format!("{bound}={}", encode(&time)));
        found.retain(|event| if bound == "since" { timestamp(event) > time } else { timestamp(event) < time });
    }
    (parts.join("&"), found.iter().map(|event| sequence(&event["id"])).collect())
}

#[test]
fn random_queries_are_answered_as_a_scan_would_answer_them() {
    let mut dice = Random::seeded();
    let mut server = Server::start();
    let types = ["timer_tick", "quiz_started", "error_occurred", "answer_changed"];
    for round in 0..6 {
        let events: Vec<_> = (0..700)
            .map(|_| {
                let session = dice.below(40);
                json!({
                    "event_type": types[dice.below(4) as usize],
                    "source": format!("source{}", dice.below(3)),
                    "session_id": if session == 0 { Value::Null } else { json!(format!("session {session}")) },
                    "user_id": format!("user{}", dice.below(15)),
                })
                .to_string()
            })
            .collect();
        for chunk in events.chunks(100) {
            server.publish_lines(chunk);
        }
        let mut stored = server.stored("");
        for _ in 0..60 {
            let (query, expected) = drawn_query(&mut dice, &stored);
            assert_eq!(sequences(&server.stored(&query)), expected, "{query}, oldest first");
            let limit = 1 + dice.below(50);
            let newest_first: Vec<_> = expected.iter().rev().copied().collect();
            assert_eq!(sequences(&server.pages(&format!("/events?limit={limit}&{query}"))), newest_first, "{query}");
        }
        if round % 2 == 0 {
            let gone = dice.below(stored.len() as u64) as usize;
            let before = encode(&timestamp(&stored[gone]));
            assert_eq!(server.call("DELETE", &format!("/events?before={before}"), &[], b"").json()["deleted"], gone);
            stored.drain(..gone);
        }
        if round % 3 == 0 {
            server.kill();
            server.restart();
        }
        assert_eq!(server.stored(""), stored);
    }
}

/// An event with so much in its payload.
fn large(n: usize, bytes: usize) -> String {
    let filler = "x".repeat(bytes);
    json!({"event_type": "timer_tick", "source": "it", "payload": {"n": n, "filler": filler}}).to_string()
}

#[test]
fn a_page_ends_at_four_mebibytes_but_never_before_an_event() {
    const MAX: usize = 4 << 20;
    let server = Server::with(&[("MAX_PAYLOAD_BYTES", "6000000")]);
    for batch in 0..3 {
        server.publish_lines(&(0..70).map(|n| large(batch * 70 + n, 60_000)).collect::<Vec<_>>());
    }
    for n in 210..213 {
        server.publish(&large(n, 5_000_000));
    }
    for (query, expected) in [
        ("limit=1000".to_string(), (1..=213).rev().collect::<Vec<u64>>()),
        (format!("limit=1000&source=it&after_id={}", id_of(0)), (1..=213).collect()),
        (format!("limit=50&after_id={}", id_of(100)), (101..=213).collect()),
    ] {
        let (mut next, mut got, mut pages) = (Some(format!("/events?{query}")), Vec::new(), 0);
        while let Some(target) = next {
            let page = server.get(&target);
            let events = sequences(page.json().as_array().unwrap());
            assert!(page.body.len() <= MAX || events.len() == 1, "{} bytes in {}", page.body.len(), events.len());
            next = page.next_page();
            got.extend(events);
            pages += 1;
        }
        assert_eq!(got, expected, "{query}");
        assert!(pages <= 10, "{pages} pages: they are as large as they may be");
    }
    let cloud = server.call("GET", "/events?limit=1000", &[("Accept", "application/cloudevents-batch+json")], b"");
    assert!(cloud.status == 200 && cloud.next_page().is_some());
}
