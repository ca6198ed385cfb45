//! The messages of subscribers, first and later ones: the order of keys, unknown keys and null for an absent key make no
//! difference, and the filters in the answer ask for the same.

use std::time::Duration;

use event_pipeline::event::{Seq, Timestamp};
use event_pipeline::record::{Epoch, Gap, Retained};
use event_pipeline::wire::filters::Filters;
use event_pipeline::wire::note::{Opening, filters_updated, subscribed};
use event_pipeline::wire::request::{FromSubscriber, Start, Subscribe};
use serde_json::{Map, Value};

use super::json::{self, Json};

/// The text of a message.
pub fn subscribe(data: &[u8]) {
    first(data);
    later(data);
}

fn first(data: &[u8]) {
    let asked = Subscribe::parse(data);
    let Ok(Value::Object(message)) = serde_json::from_slice(data) else { return assert!(asked.is_err()) };
    let of_message = Subscribe::of(&message);
    if asked != of_message {
        return assert!(asked.is_err() && has_a_key_twice(&Json::read(str::from_utf8(data).unwrap()).unwrap()));
    }
    let mut other: Map<String, Value> = message.clone().into_iter().rev().filter(|(_, v)| !v.is_null()).collect();
    other.insert("zz_of_no_meaning".to_owned(), Value::from(7));
    let other = Subscribe::of(&other);
    let Ok(asked) = asked else { return assert!(other.is_err()) };
    if asked.strict {
        return assert!(other.is_err());
    }
    let other = other.unwrap();
    assert_eq!(Subscribe { filters: asked.filters.clone(), ..other.clone() }, asked);
    assert_eq!(other.filters.filter, asked.filters.filter);

    let said = |key: &str| message.get(key).filter(|value| !value.is_null());
    let is_empty = |place: &Value| *place == "" || place.as_array().is_some_and(Vec::is_empty);
    let said_place = |key: &str| said(key).filter(|place| !is_empty(place));
    let time =
        |key: &str, read: fn(&str) -> _| said_place(key).map(|time| Result::unwrap(read(time.as_str().unwrap())));
    match &asked.start {
        Start::After(id) => assert_eq!(said("after").unwrap(), &**id),
        Start::Since(since) => assert_eq!(time("since", Timestamp::parse_floor), Some(*since)),
        Start::Last(count) => assert_eq!(said("last").unwrap().as_u64(), Some(*count as u64)),
        Start::Now => assert!(said_place("after").is_none() && said_place("since").is_none() && said("last").is_none()),
        Start::Position(place) => panic!("nobody can ask for {place:?}"),
    }
    assert_eq!(asked.until, time("until", Timestamp::parse_ceil));
    assert!(asked.speed.is_none_or(|speed| (0.01..=10_000.0).contains(&speed)));
    let is_sensible = |conflate: Duration| (10..=60_000).contains(&conflate.as_millis());
    assert!(asked.conflate.is_none_or(|conflate| is_sensible(conflate.interval)));
    if let Some(durable) = &asked.durable {
        assert_eq!(said(if durable.is_group { "group" } else { "name" }).unwrap(), &*durable.name);
        assert!((1..=100).contains(&durable.name.chars().count()));
        assert!((100..=3_600_000).contains(&durable.ack_wait.as_millis()));
    }

    let retained = Retained { oldest: Seq(3), newest: Seq(7), epoch: Epoch(0xe0) };
    let gap = match &asked.start {
        Start::After(id) => id.parse().ok().and_then(|event_pipeline::event::EventId(place)| {
            let gap = Gap::after(id, place, asked.epoch.as_deref(), &retained);
            let is_strange = place > Seq(7) || asked.epoch.as_ref().is_some_and(|epoch| epoch != "000000e0");
            let expected = match is_strange {
                true => Some(Gap::Unknown(id.clone())),
                false => (place < Seq(2)).then_some(Gap::MissingThrough(Seq(2))),
            };
            assert_eq!(gap, expected);
            gap
        }),
        _ => None,
    };
    let answer: Value = serde_json::from_str(&subscribed(1, &asked.filters, &Opening { retained, gap })).unwrap();
    echoes(&answer, &asked.filters);
}

fn later(data: &[u8]) {
    let message = serde_json::from_slice::<Value>(data).ok();
    let kind = message.as_ref().and_then(|message| message.get("type")?.as_str());
    let lenient = FromSubscriber::parse(data, false);
    match FromSubscriber::parse(data, true) {
        Ok(FromSubscriber::UpdateFilters(Err(_))) => assert_eq!(kind, Some("update_filters")),
        strict => assert_eq!(strict, lenient),
    }
    match lenient {
        Ok(FromSubscriber::Ping) => assert_eq!(kind, Some("ping")),
        Ok(FromSubscriber::Confirm(id)) => {
            assert_eq!(kind, Some("ack"));
            assert_eq!(message.unwrap()["id"], *id);
        }
        Ok(FromSubscriber::UpdateFilters(filters)) => {
            assert_eq!(kind, Some("update_filters"));
            if let Ok(filters) = filters {
                echoes(&serde_json::from_str(&filters_updated(&filters)).unwrap(), &filters);
            }
        }
        Ok(FromSubscriber::Auth(token)) => {
            assert_eq!(kind, Some("auth"));
            assert_eq!(message.unwrap()["token"], *token);
        }
        Ok(FromSubscriber::Other) => assert!(!matches!(kind, Some("ping" | "ack" | "update_filters" | "auth"))),
        Err(_) => assert!(matches!(kind, Some("ack" | "auth"))),
    }
}

/// Whether a key is repeated anywhere: a map has only the last of two equal keys.
fn has_a_key_twice(json: &Json<'_>) -> bool {
    match &json.value {
        json::Value::List(items) => items.iter().any(has_a_key_twice),
        json::Value::Object(members) => members
            .iter()
            .enumerate()
            .any(|(n, (key, value))| members[..n].iter().any(|(other, _)| other == key) || has_a_key_twice(value)),
        _ => false,
    }
}

/// The filters in an answer ask for the same.
fn echoes(answer: &Value, filters: &Filters) {
    let echoed = answer["filters"].as_object().unwrap();
    assert_eq!(echoed, filters.asked());
    assert_eq!(Filters::parse(echoed).as_ref(), Ok(filters));
}
