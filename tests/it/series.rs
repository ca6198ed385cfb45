//! Counts over time: `GET /stats/series`.

use serde_json::{Value, json};

use crate::support::*;

fn counted(server: &Server, asked: &str) -> Vec<Value> {
    let answer = server.get(&format!("/stats/series?{asked}"));
    assert_eq!(answer.status, 200, "{asked}: {}", answer.text());
    answer.json().as_array().unwrap().clone()
}

fn sum(rows: &[Value], event_type: Option<&str>) -> u64 {
    let of = rows.iter().filter(|row| event_type.is_none_or(|wanted| row["event_type"] == wanted));
    of.map(|row| row["count"].as_u64().unwrap()).sum()
}

#[test]
fn a_recorded_class_is_counted_by_each_interval_and_type() {
    let server = Server::start();
    server.publish_lines(&classroom());
    for interval in ["10s", "1m", "1h", "1d"] {
        let rows = counted(&server, &format!("interval={interval}"));
        assert_eq!(sum(&rows, None), 6_571, "{interval}");
        assert!(rows.iter().all(|row| row.get("event_type").is_none()));
        let times: Vec<_> = rows.iter().map(|row| row["time"].as_str().unwrap()).collect();
        assert!(times.is_sorted() && times.last().unwrap().ends_with(".000000Z"), "{times:?}");
        let grouped = counted(&server, &format!("interval={interval}&group_by=event_type"));
        assert_eq!((sum(&grouped, None), sum(&grouped, Some("timer_tick"))), (6_571, 5_559), "{interval}");
        let chosen = counted(&server, &format!("interval={interval}&event_type=answer_submitted,answer_changed"));
        assert_eq!((sum(&chosen, None), chosen.len()), (289, rows.len()), "{interval}");
    }
    assert_eq!(counted(&server, "since=2020-01-01T00:00:00Z&until=2020-01-01T00:03:00Z"), {
        let row = |minute| json!({"time": format!("2020-01-01T00:0{minute}:00.000000Z"), "count": 0});
        [row(0), row(1), row(2)]
    });
    assert_eq!(counted(&server, "since=2020-01-01T00:00:59Z&until=2020-01-01T00:01:01Z").len(), 2);
    assert!(counted(&server, "since=2020-01-02T00:00:00Z&until=2020-01-01T00:00:00Z").is_empty());

    let deleted = server.call("DELETE", "/events?event_type=timer_tick", &[], b"").json();
    assert_eq!(deleted, json!({"deleted": 5_559}));
    for interval in ["10s", "1h"] {
        assert_eq!(sum(&counted(&server, &format!("interval={interval}")), None), 6_571 - 5_559, "{interval}");
    }
    server.call("DELETE", "/events", &[], b"");
    assert_eq!(sum(&counted(&server, "interval=1d"), None), 0);
}

#[test]
fn counts_survive_a_kill() {
    let mut server = Server::start();
    for round in 1..=3 {
        server.publish_lines(&ticks("s", 700));
        server.kill();
        server.restart();
        for interval in ["10s", "1d"] {
            assert_eq!(sum(&counted(&server, &format!("interval={interval}")), None), 700 * round, "{interval}");
        }
    }
}

#[test]
fn a_series_that_cannot_be_counted_is_refused_with_the_reason() {
    let server = Server::start();
    for (asked, status, words) in [
        ("interval=5m", 422, "10s, 1m, 1h, 1d"),
        ("interval=", 422, "10s, 1m, 1h, 1d"),
        ("group_by=", 422, "event_type"),
        ("group_by=session_id", 422, "event_type"),
        ("since=yesterday", 400, "'since'"),
        ("interval=1m&since=1926-01-01T00:00:00Z", 422, "at most 11000"),
        ("interval=10s&since=2020-01-01T00:00:00Z&until=2020-01-01T01:00:20Z", 422, "at most 361"),
        ("interval=10s&since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59Z", 422, "at most 361"),
    ] {
        let answer = server.get(&format!("/stats/series?{asked}"));
        assert_eq!(answer.status, status, "{asked}: {}", answer.text());
        assert!(answer.text().contains(words), "{asked}: {}", answer.text());
    }
    assert_eq!(
        server.get("/stats/series?interval=1d&since=1996-12-01T00:00:00Z").status,
        200,
        "thirty years by the day"
    );
}
