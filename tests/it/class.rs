//! A recorded class of 56 students and 16 exam timers, replayed into the server.

use std::collections::BTreeMap;
use std::thread;

use serde_json::{Value, json};

use crate::support::*;

/// The delivered event, for a published one and the sequence number that it got.
fn rendered(published: &str, sequence: u64, timestamp: &str) -> String {
    let fields: Value = serde_json::from_str(published).unwrap();
    format!(
        r#"{{"id":"{}","event_type":{},"source":{},"session_id":{},"user_id":{},"payload":{},"timestamp":"{timestamp}"}}"#,
        id_of(sequence),
        fields["event_type"],
        fields["source"],
        fields["session_id"],
        fields["user_id"],
        raw_field(published, "payload"),
    )
}

/// The sequence numbers of the recording's events, by the value of a field. Events without the field are left out.
fn by_field(class: &[String], field: &str) -> BTreeMap<String, Vec<u64>> {
    let mut places: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (event, sequence) in class.iter().zip(1..) {
        let event: Value = serde_json::from_str(event).unwrap();
        if let Some(value) = event[field].as_str() {
            places.entry(value.to_string()).or_default().push(sequence);
        }
    }
    places
}

#[test]
fn a_class_is_acknowledged_stored_and_delivered_exactly_once_in_order() {
    let server = Server::start();
    let class = classroom();
    let mut subscriber = server.subscriber(&json!({}));

    let delivered = thread::scope(|scope| {
        let reader = scope.spawn(|| (0..class.len()).map(|_| subscriber.text()).collect::<Vec<_>>());
        let answers = server.publisher().pipeline(&class);
        let in_order: Vec<u64> = (1..=class.len() as u64).collect();
        assert_eq!(acknowledged(&answers), in_order);
        reader.join().unwrap()
    });

    let mut last_timestamp = String::new();
    for ((delivered, published), sequence) in delivered.iter().zip(&class).zip(1..) {
        let event: Value = serde_json::from_str(delivered).unwrap();
        let timestamp = timestamp(&event);
        assert!(timestamp > last_timestamp, "{timestamp} after {last_timestamp}");
        assert_eq!(*delivered, rendered(published, sequence, &timestamp));
        last_timestamp = timestamp;
    }
    assert_eq!(server.stored_lines(""), delivered, "what is stored is what was delivered");

    // The subscriber gets nothing more.
    subscriber.send(r#"{"type":"ping"}"#);
    assert_eq!(subscriber.json(), json!({"type": "pong"}));
}

#[test]
fn a_class_is_found_by_type_session_user_and_source() {
    let server = Server::start();
    let class = classroom();
    acknowledged(&server.publisher().pipeline(&class));

    for field in ["event_type", "session_id", "user_id", "source"] {
        for (value, expected) in by_field(&class, field) {
            let query = format!("{field}={}", encode(&value));
            assert_eq!(sequences(&server.stored(&query)), expected, "{query}, oldest first");
            let newest_first: Vec<u64> = expected.iter().rev().copied().collect();
            let found = sequences(&server.pages(&format!("/events?limit=1000&{query}")));
            assert_eq!(found, newest_first, "{query}, newest first");
        }
    }

    let types = by_field(&class, "event_type");
    assert_eq!(types.len(), 15, "the recording has every registered type");
    let all = server.stored("");
    let mut by_type: Vec<_> = types
        .iter()
        .map(|(name, places)| {
            let last = &all[*places.last().unwrap() as usize - 1];
            json!({"event_type": name, "count": places.len(), "last_seen": last["timestamp"]})
        })
        .collect();
    let stats = server.get_json("/stats");
    assert_eq!(stats["total_events"], 6571);
    assert_eq!(stats["events_last_hour"], 6571);
    let counts: Vec<_> = stats["by_type"].as_array().unwrap().iter().map(|row| row["count"].as_u64()).collect();
    assert!(counts.is_sorted_by(|a, b| a >= b), "largest first: {counts:?}");
    let mut told = stats["by_type"].as_array().unwrap().clone();
    by_type.sort_by_key(|row| text_of(&row["event_type"]));
    told.sort_by_key(|row| text_of(&row["event_type"]));
    assert_eq!(told, by_type);
}

#[test]
fn filters_select_the_same_events_live_and_in_queries() {
    let server = Server::start();
    let class = classroom();
    let filters =
        [("event_type", "event_types"), ("session_id", "session_id"), ("user_id", "user_id"), ("source", "source")]
            .into_iter()
            .flat_map(|(field, key)| {
                by_field(&class, field).into_iter().map(move |(value, places)| (key, value, places))
            });
    let mut subscribers: Vec<_> = filters
        .map(|(key, value, places)| {
            let filter = if key == "event_types" { json!({key: [value]}) } else { json!({key: value}) };
            (server.subscriber(&filter), filter, places)
        })
        .collect();
    assert!(subscribers.len() > 140, "a subscriber for each type, session, user and source");

    acknowledged(&server.publisher().pipeline(&class));
    for (subscriber, filter, expected) in &mut subscribers {
        assert_eq!(sequences(&subscriber.collect(expected.len())), *expected, "{filter}");
        subscriber.send(r#"{"type":"ping"}"#);
        assert_eq!(subscriber.json(), json!({"type": "pong"}), "{filter}: more than matches");
    }
}

#[test]
fn a_class_is_stored_from_one_body() {
    let server = Server::start();
    let class = classroom();
    let ids = server.publish_lines(&class);
    assert_eq!(ids, (1..=class.len() as u64).map(id_of).collect::<Vec<_>>());
    for (stored, published) in server.stored_lines("").iter().zip(&class) {
        assert_eq!(raw_field(stored, "payload"), raw_field(published, "payload"));
    }
}
