//! Filters: whether an event passes is computed from the contract, and compared with the filter itself, the index of a
//! segment, the hub that delivers, and the same filter in a URL.

use std::collections::BTreeSet;
use std::sync::Arc;

use event_pipeline::audience::Audience;
use event_pipeline::event::{Columns, Field, Filter, Limits, Parser, Seq, Timestamp, TimestampText};
use event_pipeline::http::Parameters;
use event_pipeline::hub::{FanOut, Hub};
use event_pipeline::store::segments::{Recent, Segment};
use event_pipeline::wire::Batch;
use event_pipeline::wire::committed::Commit;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::event::TYPES;
use super::json::{self, Json};

const LIMITS: Limits = Limits { payload_keys_max: 50, payload_bytes_max: 65_536 };

/// The first line is a filter, each of the others an event.
pub fn filter(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let Some(Ok(Value::Object(asked))) = lines.next().map(serde_json::from_str) else { return };
    let filter = match (Filter::parse(&asked), is_filter(&asked)) {
        (Ok(filter), true) => filter,
        (Err(_), false) => return,
        (parsed, is_filter) => panic!("{parsed:?}, but {is_filter}"),
    };
    let mut parser = Parser::new(TYPES.clone(), LIMITS);
    let mut batch = Batch::default();
    for line in lines {
        let before = batch.len();
        if parser.parse(line, |event| batch.push(&event, &TYPES)).result.is_err() {
            batch.truncate(before);
        }
    }
    let passing: Vec<_> = (0..batch.len()).filter(|index| passes(&asked, &batch.columns(*index))).collect();
    let by_itself: Vec<_> = (0..batch.len()).filter(|index| filter.matches(&batch.columns(*index))).collect();
    assert_eq!(by_itself, passing);
    for index in 0..batch.len() {
        let why = filter.mismatch(&batch.columns(index)).map(|why| why.to_string());
        assert_eq!(why.is_none(), passing.contains(&index), "{why:?}");
    }
    by_index(&filter, &batch, &passing);
    by_url(asked, &filter);
    by_hub(&filter, batch, &passing);
}

fn by_index(filter: &Filter, batch: &Batch, passing: &[usize]) {
    if !filter.is_indexed() {
        return;
    }
    let mut recent = Recent { open: Segment::new(0), full: Vec::new() };
    for index in 0..batch.len() {
        recent.note(Seq(1).plus(index), &batch.columns(index));
    }
    let [(0, found)] = &recent.select(filter)[..] else { panic!("there is one segment") };
    let found = found.iter().map(|offset| usize::from(*offset));
    let found: Vec<_> = found.filter(|index| !filter.has_rest() || filter.matches(&batch.columns(*index))).collect();
    assert_eq!(found, passing);
}

fn by_hub(filter: &Filter, mut batch: Batch, passing: &[usize]) {
    if batch.is_empty() {
        return;
    }
    let hub = Hub::new(Audience::default(), usize::MAX);
    let subscriber = hub.register(filter);
    for index in 0..batch.len() {
        batch.stamp(index, Seq(1).plus(index), &TimestampText::default().render(Timestamp(0)));
    }
    let through = Seq(batch.len() as u64);
    let commit = Commit { batches: vec![Arc::new(batch.committed(Seq(1)))], through };
    hub.deliver(&[Arc::new(commit)], &mut FanOut::default());
    let mut deliveries = Vec::new();
    subscriber.outbox().try_take(&mut deliveries);
    let delivered: Vec<_> =
        deliveries.iter().flat_map(|delivery| &*delivery.runs).flat_map(|run| run.range()).collect();
    assert_eq!(delivered, passing);
}

fn by_url(mut asked: Map<String, Value>, filter: &Filter) {
    asked.retain(|key, _| Filter::is_key(key));
    let text = Value::Object(asked).to_string();
    let url = format!("/events?filter={}", utf8_percent_encode(&text, NON_ALPHANUMERIC));
    // Longer filters do not fit into a URL.
    if let Ok(url) = url.parse() {
        assert_eq!(Parameters::of(&url).filter().as_ref(), Ok(filter));
    }
}

/// Whether an event can have a value as long as this.
fn fits(field: Field, value: &str) -> bool {
    value.chars().count() <= [64, 200, 200, 100][field as usize]
}

/// Whether it is a filter by the contract.
fn is_filter(asked: &Map<String, Value>) -> bool {
    let values_are_well = |object: &Map<String, Value>| {
        Field::ALL.into_iter().all(|field| match object.get(field.name()) {
            None | Some(Value::Null) => true,
            Some(Value::String(one)) => one.is_empty() || field != Field::Type && fits(field, one),
            Some(Value::Array(list)) => {
                let is_well = |value: &str| !value.is_empty() && fits(field, value);
                list.len() <= 1_000 && list.iter().all(|value| value.as_str().is_some_and(is_well))
            }
            Some(_) => false,
        })
    };
    let is_scalar = |value: &Value| match value {
        Value::Array(_) | Value::Object(_) => false,
        Value::Number(number) => {
            number_of(number.as_str()).is_some_and(|(digits, exponent)| {
                // The number of digits before the decimal point.
                let place = exponent + digits.trim_start_matches('-').len() as i128;
                place.unsigned_abs() <= 1_000_000_000_000_000_000
            })
        }
        _ => true,
    };
    let payload_is_well = |object: &Map<String, Value>| match object.get("payload") {
        None | Some(Value::Null) => true,
        Some(Value::Object(keys)) => {
            let is_well = |value: &Value| match value {
                Value::Array(list) => (1..=1_000).contains(&list.len()) && list.iter().all(is_scalar),
                one => is_scalar(one),
            };
            keys.len() <= 20 && keys.values().all(is_well)
        }
        Some(_) => false,
    };
    let exclude_is_well = match asked.get("exclude") {
        None | Some(Value::Null) => true,
        Some(Value::Object(exclude)) => {
            let is_known = |key: &String| key == "payload" || Field::ALL.iter().any(|field| field.name() == key);
            exclude.keys().all(is_known) && values_are_well(exclude) && payload_is_well(exclude)
        }
        Some(_) => false,
    };
    exclude_is_well && values_are_well(asked) && payload_is_well(asked)
}

fn passes(asked: &Map<String, Value>, event: &Columns<'_>) -> bool {
    let none = Map::new();
    let exclude = asked.get("exclude").and_then(Value::as_object).unwrap_or(&none);
    let payload = Json::read(str::from_utf8(event.payload).unwrap()).expect("payloads are JSON");
    let is_wanted = |field: Field| {
        let wanted = values(asked.get(field.name()));
        wanted.is_empty() || event.field(field).is_some_and(|value| wanted.contains(value))
    };
    let is_excluded = |field: Field| {
        let unwanted = values(exclude.get(field.name()));
        event.field(field).is_some_and(|value| unwanted.contains(value))
    };
    let has = |(key, values): (&String, &Value)| {
        let values = values.as_array().map_or(std::slice::from_ref(values), |list| &list[..]);
        payload.get(key).is_some_and(|value| values.iter().any(|asked| is_equal(asked, value)))
    };
    let keys =
        |object: &Map<String, Value>| object.get("payload").and_then(Value::as_object).cloned().unwrap_or_default();
    Field::ALL.into_iter().all(|field| is_wanted(field) && !is_excluded(field))
        && keys(asked).iter().all(has)
        && !keys(exclude).iter().any(has)
}

/// The values of one condition; `None` if there is no condition.
fn values(asked: Option<&Value>) -> BTreeSet<&[u8]> {
    match asked {
        Some(Value::String(one)) if !one.is_empty() => [one.as_bytes()].into(),
        Some(Value::Array(list)) => list.iter().map(|value| value.as_str().unwrap().as_bytes()).collect(),
        _ => BTreeSet::new(),
    }
}

fn is_equal(asked: &Value, value: &Json<'_>) -> bool {
    match (asked, &value.value) {
        (Value::Null, json::Value::Null) => true,
        (Value::Bool(asked), json::Value::Bool(value)) => asked == value,
        (Value::String(asked), json::Value::Text(value)) => asked == value,
        (Value::Number(asked), json::Value::Number(value)) => {
            number_of(value).is_some_and(|value| Some(value) == number_of(asked.as_str()))
        }
        _ => false,
    }
}

/// A number as an integer without trailing zeros, times a power of ten; `None` if the exponent is out of range.
fn number_of(text: &str) -> Option<(String, i128)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let fraction = mantissa.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let sign = if mantissa.starts_with('-') { "-" } else { "" };
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).skip_while(|digit| *digit == '0').collect();
    let whole = digits.trim_end_matches('0');
    if whole.is_empty() {
        return Some((String::new(), 0));
    }
    let zeros = digits.len() - whole.len();
    Some((format!("{sign}{whole}"), exponent.parse::<i128>().ok()? - fraction as i128 + zeros as i128))
}
