//! What a subscriber asks for and what it is told besides events, as values and as JSON.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::event::{Field, Filter, Object, Seq, Timestamp, means_any, only_known};
use crate::record::{Gap, Retained};

/// A subscriber's first message, or the parameters of an event stream's URL.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscribe {
    pub filters: Filters,
    pub start: Start,
    /// The epoch that the id of `start` comes from, if the client says so.
    pub epoch: Option<String>,
    /// The stream ends with what is stored before this time.
    pub until: Option<Timestamp>,
    /// Events come in their recorded rhythm, so many times faster.
    pub speed: Option<f64>,
    pub on_lag: OnLag,
    /// Whether the client understands notes on how its stream is served.
    pub signals: bool,
    pub conflate: Option<Conflate>,
    /// First the latest event of each value of this field.
    pub snapshot: Option<Field>,
    pub durable: Option<Durable>,
    /// Keys that mean nothing are refused, here and in later filters.
    pub strict: bool,
}

/// Filters, and how they were asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Filters {
    pub filter: Filter,
    asked: Map<String, Value>,
}

/// Where a subscription begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    Now,
    /// After the event of this id.
    After(String),
    /// After this place, which a durable subscription has come to.
    Place(Seq),
    /// After this time.
    Since(Timestamp),
    /// With the last so many events that pass.
    Last(usize),
}

/// What becomes of a subscriber that is too slow for the live stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnLag {
    /// It gets everything, from storage until it has caught up.
    #[default]
    CatchUp,
    /// It goes on live, and is told how many events it missed.
    Skip,
    /// It is disconnected, with close code 4008.
    Disconnect,
}

/// Only the latest event of each type and value of a field, once an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflate {
    pub key: Field,
    pub interval: Duration,
    /// Whether the client wants to know how many were left out.
    pub tells_skipped: bool,
}

/// A subscription that is remembered under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    pub name: String,
    /// Its members share the stream: each event goes to one of them.
    pub is_group: bool,
    /// An event that is not confirmed so long after it was sent goes to another member.
    pub ack_wait: Duration,
}

/// What a subscriber says later.
#[derive(Debug, Clone, PartialEq)]
pub enum FromSubscriber {
    Ping,
    /// New filters, or a sentence for the client why what it asked for are none.
    UpdateFilters(Result<Filters, String>),
    /// Everything up to the event of this id is done with.
    Confirm(String),
    /// Not understood, and therefore without effect.
    Other,
}

/// Most events of the past that `last` can ask for: they are looked for before the first is sent.
pub const LAST_MAX: u64 = 100_000;

/// Shorter intervals are no rest for a server, longer ones no live stream.
const CONFLATE_MS: RangeInclusive<u64> = 10..=60_000;
/// A hundred times slower or ten thousand times faster than life.
const SPEED: RangeInclusive<f64> = 0.01..=10_000.0;
/// Who needs an hour for an event asks for it; less than a tenth of a second is the network's jitter.
const ACK_WAIT_MS: RangeInclusive<u64> = 100..=3_600_000;
/// What an event may take if the group does not say: longer than a slow handler, shorter than a user's patience.
const ACK_WAIT_DEFAULT: Duration = Duration::from_secs(30);
const NAME_CHARS_MAX: usize = 100;

/// The keys of a first message besides those of its filter that are parameters of an event stream, too.
pub const STREAM_OPTIONS: [&str; 10] =
    ["after", "since", "last", "epoch", "until", "speed", "on_lag", "signals", "conflate", "strict"];
/// Those that are not: an event stream has `latest_by` for `snapshot`, and confirms nothing.
const OPTIONS_OF_MESSAGES: [&str; 4] = ["snapshot", "name", "group", "ack_wait_ms"];
/// Memory that filters may take: those for some 1,000 sessions and 1,000 users by UUID take half of it. There may be as
/// many filters as subscribers and durable subscriptions, and each of these is in memory.
pub const FILTERS_BYTES_MAX: usize = 512 << 10;

impl Subscribe {
    /// # Errors
    /// A sentence for the client.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let Ok(message) = Object::read(text, &|depth, key| depth > 0 || is_known(key)) else {
            return Err("The first message must be a JSON object with the filters".to_owned());
        };
        let subscribe = Self::of(&message.members)?;
        // Old clients may say something twice beside their filters, as they may say what means nothing.
        no_repeats(message.repeated_within.or(message.repeated.filter(|_| subscribe.strict)), "The first message")?;
        Ok(subscribe)
    }

    /// # Errors
    /// A sentence for the client.
    pub fn of(message: &Map<String, Value>) -> Result<Self, String> {
        let text = |key: &str| match given(message, key).filter(|text| !means_any(text)) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(format!("'{key}' must be a string")),
        };
        let strict = flag(message, "strict")?;
        if strict {
            only_known(message, is_known, "The first message")?;
        }
        let time = |key: &str, read: fn(&str) -> Result<Timestamp, _>| match message
            .get(key)
            .filter(|time| !means_any(time))
        {
            None => Ok(None),
            Some(Value::String(text)) => read(text).map(Some).map_err(|error| format!("'{key}' is {error}")),
            Some(_) => Err(format!("'{key}' must be a time in a string")),
        };
        let mut starts = Vec::new();
        starts.extend(text("after")?.map(|id| Start::After(id.to_owned())));
        starts.extend(time("since", Timestamp::parse_floor)?.map(Start::Since));
        starts.extend(number(message, "last", 0..=LAST_MAX)?.map(|count| Start::Last(count as usize)));
        if starts.len() > 1 {
            return Err("Only one of 'after', 'since' and 'last' can say where to start".to_owned());
        }
        let speed = match given(message, "speed") {
            None => None,
            Some(speed) => {
                let known = speed.as_f64().filter(|speed| SPEED.contains(speed));
                Some(known.ok_or(format!("'speed' must be a number from {} to {}", SPEED.start(), SPEED.end()))?)
            }
        };
        let on_lag = match text("on_lag")? {
            None | Some("catch_up") => OnLag::CatchUp,
            Some("skip") => OnLag::Skip,
            Some("disconnect") => OnLag::Disconnect,
            Some(_) => return Err("'on_lag' must be catch_up, skip or disconnect".to_owned()),
        };
        let subscribe = Self {
            filters: Filters::parse(message)?.within_bounds()?,
            start: starts.pop().unwrap_or(Start::Now),
            epoch: text("epoch")?.map(str::to_owned),
            until: time("until", Timestamp::parse_ceil)?,
            speed,
            on_lag,
            signals: flag(message, "signals")?,
            conflate: Conflate::parse(message)?,
            snapshot: snapshot(message)?,
            durable: Durable::parse(message)?,
            strict,
        };
        subscribe.is_sensible().map(|()| subscribe)
    }

    /// Refuses what cannot be meant together.
    fn is_sensible(&self) -> Result<(), String> {
        let starts = self.start != Start::Now;
        let confirms = self.durable.is_some();
        let excluding = [
            (self.snapshot.is_some() && starts, "A snapshot starts now: leave out 'after', 'since' and 'last'"),
            (self.snapshot.is_some() && self.until.is_some(), "A snapshot has no 'until'"),
            (self.snapshot.is_some() && self.speed.is_some(), "A snapshot has no 'speed'"),
            (self.until.is_some() && !starts, "'until' needs 'after', 'since' or 'last'"),
            (confirms && self.conflate.is_some(), "What is conflated cannot be confirmed: leave out 'name' or 'group'"),
            (confirms && self.snapshot.is_some(), "A durable subscription has no 'snapshot'"),
            (confirms && self.until.is_some(), "A durable subscription has no 'until'"),
            (confirms && self.on_lag == OnLag::Skip, "A durable subscription skips nothing: leave out 'on_lag'"),
            (self.is_group() && self.speed.is_some(), "A group has no 'speed'"),
        ];
        match excluding.into_iter().find(|(is_so, _)| *is_so) {
            Some((_, why)) => Err(why.to_owned()),
            None => Ok(()),
        }
    }

    fn is_group(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.is_group)
    }
}

/// A value that is there and says something.
fn given<'m>(message: &'m Map<String, Value>, key: &str) -> Option<&'m Value> {
    message.get(key).filter(|value| !value.is_null())
}

fn number(message: &Map<String, Value>, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, String> {
    let Some(value) = given(message, key) else { return Ok(None) };
    let number = value.as_u64().filter(|number| range.contains(number));
    number.map(Some).ok_or(format!("'{key}' must be a number from {} to {}", range.start(), range.end()))
}

fn flag(message: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match given(message, key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(format!("'{key}' must be true or false")),
    }
}

/// Whether a key of the first message means something.
fn is_known(key: &str) -> bool {
    Filter::is_key(key) || STREAM_OPTIONS.contains(&key) || OPTIONS_OF_MESSAGES.contains(&key)
}

/// Refuses a key that is there twice: only one of the two can count, and the other said something else.
fn no_repeats(repeated: Option<String>, what: &str) -> Result<(), String> {
    repeated.map_or(Ok(()), |key| Err(format!("{what} has the key '{key}' twice")))
}

/// The field that a key of a message names.
fn field(name: &Value, fields: &[(&str, Field)], what: &str) -> Result<Field, String> {
    let known = fields.iter().find(|(known, _)| name.as_str() == Some(known));
    let names = || fields.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
    known.map(|(_, field)| *field).ok_or_else(|| format!("{what} must be one of {}", names()))
}

const KEYS: &[(&str, Field)] =
    &[("session_id", Field::Session), ("user_id", Field::User), ("event_type", Field::Type), ("source", Field::Source)];

fn snapshot(message: &Map<String, Value>) -> Result<Option<Field>, String> {
    match given(message, "snapshot") {
        None => Ok(None),
        Some(Value::Object(asked)) => {
            only_known(asked, |key| key == "latest_by", "'snapshot'")?;
            field(asked.get("latest_by").unwrap_or(&Value::Null), KEYS, "'snapshot': 'latest_by'").map(Some)
        }
        Some(_) => Err("'snapshot' must be an object with 'latest_by'".to_owned()),
    }
}

impl Conflate {
    fn parse(message: &Map<String, Value>) -> Result<Option<Self>, String> {
        let asked = match given(message, "conflate") {
            None => return Ok(None),
            Some(Value::Object(asked)) => asked,
            Some(_) => return Err("'conflate' must be an object with 'key' and 'interval_ms'".to_owned()),
        };
        only_known(asked, |key| matches!(key, "key" | "interval_ms" | "skipped"), "'conflate'")?;
        let key = field(asked.get("key").unwrap_or(&Value::Null), KEYS, "'conflate': 'key'")?;
        let interval_ms = number(asked, "interval_ms", CONFLATE_MS)?.ok_or("'conflate' needs 'interval_ms'")?;
        let interval = Duration::from_millis(interval_ms);
        Ok(Some(Self { key, interval, tells_skipped: flag(asked, "skipped")? }))
    }
}

impl Durable {
    fn parse(message: &Map<String, Value>) -> Result<Option<Self>, String> {
        let (key, is_group) = match (given(message, "name"), given(message, "group")) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err("A subscription has a 'name' or belongs to a 'group', not both".to_owned());
            }
            (Some(_), None) => ("name", false),
            (None, Some(_)) => ("group", true),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let name = message[key].as_str().filter(|name| (1..=NAME_CHARS_MAX).contains(&name.len()));
        let name = name
            .filter(|name| name.chars().all(allowed))
            .ok_or(format!("'{key}' must be 1 to {NAME_CHARS_MAX} characters of A-Z, a-z, 0-9, '_', '.' and '-'"))?;
        let ack_wait = number(message, "ack_wait_ms", ACK_WAIT_MS)?.map_or(ACK_WAIT_DEFAULT, Duration::from_millis);
        Ok(Some(Self { name: name.to_owned(), is_group, ack_wait }))
    }
}

impl Filters {
    /// # Errors
    /// A sentence for the client.
    pub fn parse(message: &Map<String, Value>) -> Result<Self, String> {
        Ok(Self::new(Filter::parse(message)?, message))
    }

    /// Those of an `update_filters`.
    fn parse_update(mut message: Object, strict: bool) -> Result<Self, String> {
        if strict {
            only_known(&message.members, |key| matches!(key, "type" | "filters"), "'update_filters'")?;
        }
        no_repeats(message.repeated_within.or(message.repeated.filter(|_| strict)), "'update_filters'")?;
        match message.members.get_mut("filters").map(Value::take) {
            None if strict => Err("'update_filters' needs 'filters'".to_owned()),
            None | Some(Value::Null) => Self::parse(&Map::new()),
            Some(Value::Object(filters)) => {
                if strict {
                    only_known(&filters, Filter::is_key, "'filters'")?;
                }
                Self::parse(&filters)?.within_bounds()
            }
            Some(_) => Err("'filters' must be an object".to_owned()),
        }
    }

    /// Filters that were kept, perhaps by a version that took more for a filter than this one.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse_stored(kept: &Map<String, Value>) -> Result<Self, String> {
        Ok(Self::new(Filter::parse_stored(kept)?, kept))
    }

    fn new(filter: Filter, message: &Map<String, Value>) -> Self {
        let asked = message.iter().filter(|(key, _)| Filter::is_key(key));
        Self { filter, asked: asked.map(|(key, value)| (key.clone(), value.clone())).collect() }
    }

    /// The same, but no larger than a subscription may have them.
    ///
    /// # Errors
    /// A sentence for the client.
    fn within_bounds(self) -> Result<Self, String> {
        match self.bytes() > FILTERS_BYTES_MAX {
            true => {
                Err(format!("The filters take more than {FILTERS_BYTES_MAX} bytes of memory: ask for fewer values"))
            }
            false => Ok(self),
        }
    }

    /// Memory that they take: as they were asked for, and as much again to compare events with.
    pub fn bytes(&self) -> usize {
        2 * self.asked.iter().map(|(key, value)| size_of::<String>() + key.len() + bytes_of(value)).sum::<usize>()
    }

    /// How they were asked for.
    pub fn asked(&self) -> &Map<String, Value> {
        &self.asked
    }
}

fn bytes_of(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            Value::String(text) => text.len(),
            Value::Array(list) => list.iter().map(bytes_of).sum(),
            Value::Object(object) => {
                object.iter().map(|(key, value)| size_of::<String>() + key.len() + bytes_of(value)).sum()
            }
        }
}

impl FromSubscriber {
    /// `strict` is what the subscriber's first message said.
    ///
    /// # Errors
    /// A sentence for the client, when it confirms without an id.
    pub fn parse(text: &[u8], strict: bool) -> Result<Self, String> {
        // Of new filters, what means nothing is ignored.
        let is_read = |depth: usize, key: &str| match depth {
            0 => key == "filters",
            1 => Filter::is_key(key),
            _ => true,
        };
        let Ok(message) = Object::read(text, &is_read) else { return Ok(Self::Other) };
        match message.members.get("type").and_then(Value::as_str) {
            Some("ping") => Ok(Self::Ping),
            Some("ack") => match message.members.get("id") {
                Some(Value::String(id)) => Ok(Self::Confirm(id.clone())),
                _ => Err("A confirmation needs an 'id': the id of an event, in a string".to_owned()),
            },
            Some("update_filters") => Ok(Self::UpdateFilters(Filters::parse_update(message, strict))),
            _ => Ok(Self::Other),
        }
    }
}

impl Gap {
    /// As it is told to clients.
    pub fn json(&self) -> Value {
        match self {
            Self::MissingThrough(last) => serde_json::json!({ "missing_through": last.id().to_string() }),
            Self::Unknown(id) => serde_json::json!({ "unknown_cursor": id }),
        }
    }
}

/// What a subscriber is told of where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    pub retained: Retained,
    pub gap: Option<Gap>,
}

/// The first answer to a subscriber.
pub fn subscribed(subscriber: u32, filters: &Filters, opening: &Opening) -> String {
    let Retained { oldest, newest, epoch } = opening.retained;
    let id = |seq: Seq, is_there: bool| if is_there { seq.id().to_string().into() } else { Value::Null };
    let mut answer = serde_json::json!({
        "status": "subscribed",
        "subscriber_id": subscriber_id(subscriber),
        "filters": filters.asked,
        "last_event_id": id(newest, newest > Seq::ZERO),
        "oldest_id": id(oldest, oldest <= newest),
        "epoch": epoch.to_string(),
    });
    if let Some(gap) = &opening.gap {
        answer["gap"] = gap.json();
    }
    answer.to_string()
}

/// How a subscriber is called.
pub fn subscriber_id(subscriber: u32) -> String {
    format!("sub_{subscriber:08x}")
}

/// What a subscriber is told about how it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// It was too slow for the live stream: after this event storage serves it.
    FellBehind(Seq),
    /// What follows is live.
    CaughtUp,
    /// It was too slow: so many events that pass, up to this one, are left out.
    Lagged {
        missed: u64,
        last: Seq,
    },
    /// So many events were replaced by later ones since the last time.
    Skipped(u64),
    Gap(Gap),
}

impl Note {
    /// Its `type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::FellBehind(_) => "fell_behind",
            Self::CaughtUp => "caught_up",
            Self::Lagged { .. } => "lagged",
            Self::Skipped(_) => "skipped",
            Self::Gap(_) => "gap",
        }
    }

    /// The message.
    pub fn json(&self) -> String {
        let name = self.name();
        match self {
            Self::FellBehind(after) => format!(r#"{{"type":"{name}","after":"{}"}}"#, after.id()),
            Self::CaughtUp => format!(r#"{{"type":"{name}"}}"#),
            Self::Lagged { missed, last } => {
                format!(r#"{{"type":"{name}","missed":{missed},"last_event_id":"{}"}}"#, last.id())
            }
            Self::Skipped(count) => format!(r#"{{"type":"{name}","count":{count}}}"#),
            Self::Gap(gap) => format!(r#"{{"type":"{name}","gap":{}}}"#, gap.json()),
        }
    }
}

/// From here on only events that pass the new filters follow.
pub fn filters_updated(filters: &Filters) -> String {
    serde_json::json!({ "status": "filters_updated", "filters": filters.asked }).to_string()
}

pub const PONG: &str = r#"{"type":"pong"}"#;
pub const KEEPALIVE: &str = r#"{"type":"keepalive"}"#;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_subscriber_says_what_it_wants() {
        let parse = |text: &str| Subscribe::parse(text.as_bytes());
        let any = parse("{}").expect("an empty filter");
        assert_eq!((any.filters.filter.is_any(), any.start), (true, Start::Now));
        let nothing = r#"{"event_types":[],"session_id":"","user_id":null,"after":null}"#;
        assert!(parse(nothing).expect("empty and null mean any").filters.filter.is_any());
        let some = parse(r#"{"event_types":["b","a","b"],"user_id":"u","last":5}"#).expect("a filter");
        assert_eq!(some.filters.filter.wanted(Field::Type), Some(&["a".into(), "b".into()][..]));
        assert_eq!(some.start, Start::Last(5));
        for bad in [
            "",
            "[]",
            "7",
            r#"{"event_types":"a"}"#,
            r#"{"event_types":[1]}"#,
            r#"{"session_id":7}"#,
            r#"{"source":[1]}"#,
            r#"{"last":-1}"#,
            r#"{"last":100001}"#,
            r#"{"since":"yesterday"}"#,
            r#"{"after":1}"#,
            r#"{"after":"evt_000000000001","last":1}"#,
            r#"{"conflate":{"key":"source","interval_ms":250,"skiped":true}}"#,
            r#"{"conflate":{"key":"source","interval_ms":250,"skipped":2}}"#,
            r#"{"snapshot":{"latest_by":"source","event_types":["a"]}}"#,
            r#"{"strict":1}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_empty_time_means_no_bound() {
        for nothing in ["null", r#""""#, "[]"] {
            let message = format!(r#"{{"since":{nothing},"until":{nothing}}}"#);
            let asked = Subscribe::parse(message.as_bytes()).expect(nothing);
            assert_eq!((asked.start, asked.until), (Start::Now, None), "{nothing}");
        }
    }

    #[test]
    fn an_empty_cursor_or_epoch_is_none() {
        for nothing in ["null", r#""""#, "[]"] {
            let message = format!(r#"{{"after":{nothing},"epoch":{nothing}}}"#);
            let asked = Subscribe::parse(message.as_bytes()).expect(nothing);
            assert_eq!((asked.start, asked.epoch), (Start::Now, None), "{nothing}");
        }
    }

    #[test]
    fn every_unknown_key_of_a_strict_message_is_refused() {
        let misspelt = r#"{"event_type":["timer_tick"]}"#;
        assert!(Subscribe::parse(misspelt.as_bytes()).expect("ignored").filters.filter.is_any());
        let strict = misspelt.replacen('{', r#"{"strict":true,"#, 1);
        let refused = "The first message has the unknown key 'event_type'".to_owned();
        assert_eq!(Subscribe::parse(strict.as_bytes()), Err(refused));
        for (rest, refused) in [
            (r#","filters":{"event_type":["timer_tick"]}"#, "'filters' has the unknown key 'event_type'"),
            (r#","filter":{"session_id":"s"}"#, "'update_filters' has the unknown key 'filter'"),
            (r#","filters":{"session_id":"s"},"user_id":"u""#, "'update_filters' has the unknown key 'user_id'"),
            ("", "'update_filters' needs 'filters'"),
        ] {
            let update = format!(r#"{{"type":"update_filters"{rest}}}"#);
            let parse = |strict| FromSubscriber::parse(update.as_bytes(), strict);
            assert!(matches!(parse(false), Ok(FromSubscriber::UpdateFilters(Ok(_)))), "{update}");
            assert_eq!(parse(true), Ok(FromSubscriber::UpdateFilters(Err(refused.to_owned()))), "{update}");
        }
    }

    /// What is listed is read, or it would be accepted and change nothing. That what is read is listed,
    /// `what_a_subscriber_spells_is_understood` shows: a strict message that has it would be refused.
    #[test]
    fn every_option_is_read_and_in_the_contract() {
        let contract = std::fs::read_to_string("docs/CONTRACT.md").expect("the contract");
        let section = contract.split("\n## ").find(|section| section.starts_with("4. ")).expect("a section");
        for option in STREAM_OPTIONS.into_iter().chain(OPTIONS_OF_MESSAGES) {
            let mut message = serde_json::json!({ "strict": true, option: ["no", "option"] });
            if option == "ack_wait_ms" {
                message["name"] = "n".into();
            }
            let refused = Subscribe::parse(message.to_string().as_bytes()).expect_err(option);
            assert!(refused.starts_with(&format!("'{option}' must be ")), "{option}: {refused}");
            assert!(section.contains(&format!("\"{option}\"")), "{option} is not in section 4");
        }
    }

    #[test]
    fn what_is_said_twice_within_the_filters_is_refused() {
        let first = |text: &str| Subscribe::parse(text.as_bytes());
        let update = |text: &str, strict| {
            let message = format!(r#"{{"type":"update_filters","filters":{text}}}"#);
            match FromSubscriber::parse(message.as_bytes(), strict) {
                Ok(FromSubscriber::UpdateFilters(filters)) => filters,
                other => panic!("{other:?}"),
            }
        };
        for (text, key) in [
            (r#"{"payload":{"n":1,"n":2}}"#, "n"),
            (r#"{"payload":{"n":1,"\u006e":1}}"#, "n"),
            (r#"{"exclude":{"user_id":"u","user_id":["v"]}}"#, "user_id"),
            (r#"{"exclude":{"payload":{"a":1,"a":1}},"session_id":"s"}"#, "a"),
        ] {
            assert_eq!(first(text), Err(format!("The first message has the key '{key}' twice")), "{text}");
            for strict in [false, true] {
                assert_eq!(update(text, strict), Err(format!("'update_filters' has the key '{key}' twice")), "{text}");
            }
        }
        let refused = "The first message has the key 'key' twice".to_owned();
        assert_eq!(first(r#"{"conflate":{"key":"source","interval_ms":250,"key":"user_id"}}"#), Err(refused));
        let of_filters = r#"{"session_id":"s","session_id":"t"}"#;
        assert_eq!(update(of_filters, false), Err("'update_filters' has the key 'session_id' twice".to_owned()));
        let beside = br#"{"type":"update_filters","filters":{"source":"a"},"filters":{"source":"b"}}"#;
        let of_b = Filters::parse(serde_json::json!({"source":"b"}).as_object().expect("an object"));
        assert_eq!(FromSubscriber::parse(beside, false), Ok(FromSubscriber::UpdateFilters(of_b)));
        let refused = Err("'update_filters' has the key 'filters' twice".to_owned());
        assert_eq!(FromSubscriber::parse(beside, true), Ok(FromSubscriber::UpdateFilters(refused)));
    }

    #[test]
    fn of_what_is_said_twice_beside_the_filters_the_last_counts_unless_they_are_strict() {
        let first = |text: &str| Subscribe::parse(text.as_bytes());
        for twice in [
            r#"{"session_id":"s","session_id":"t"}"#,
            r#"{"last":5,"session_id":"t","last":null}"#,
            r#"{"session_id":"t","hello":1,"hello":{"a":1,"a":1}}"#,
        ] {
            assert_eq!(first(twice), first(r#"{"session_id":"t"}"#), "{twice}");
            let strict = twice.replacen('{', r#"{"strict":true,"#, 1);
            assert!(first(&strict).is_err(), "{strict}");
        }
        assert!(first(r#"{"strict":true,"session_id":"t"}"#).is_ok());
        let ignored = br#"{"type":"update_filters","filters":{"hello":1,"hello":{"a":1,"a":1}}}"#;
        let any = Filters::parse(&Map::new());
        assert_eq!(FromSubscriber::parse(ignored, false), Ok(FromSubscriber::UpdateFilters(any)));
    }

    #[test]
    fn what_a_subscriber_says_later_has_a_meaning_or_none() {
        let parse = |text: &str| FromSubscriber::parse(text.as_bytes(), false);
        assert_eq!(parse(r#"{"type":"ping"}"#), Ok(FromSubscriber::Ping));
        assert_eq!(parse(r#"{"type":"ack","id":"x"}"#), Ok(FromSubscriber::Confirm("x".to_owned())));
        for unusable in ["", r#","id":5"#, r#","id":null"#, r#","id":["x"]"#, r#","event_id":"x""#] {
            assert!(parse(&format!(r#"{{"type":"ack"{unusable}}}"#)).is_err(), "{unusable}");
        }
        for other in ["", "hello", "[]", "{}", r#"{"type":7}"#, r#"{"type":"dance"}"#] {
            assert_eq!(parse(other), Ok(FromSubscriber::Other), "{other}");
        }
        for unusable in ["[]", r#"{"source":1}"#] {
            let update = parse(&format!(r#"{{"type":"update_filters","filters":{unusable}}}"#));
            assert!(matches!(update, Ok(FromSubscriber::UpdateFilters(Err(_)))), "{update:?}");
        }
        let updated = parse(r#"{"type":"update_filters","filters":{"source":"s","x":1}}"#);
        let Ok(FromSubscriber::UpdateFilters(Ok(filters))) = updated else { panic!("{updated:?}") };
        assert_eq!(filters_updated(&filters), r#"{"status":"filters_updated","filters":{"source":"s"}}"#);
    }

    fn filters() -> impl Strategy<Value = Filters> {
        let values = || prop::collection::vec("[a-cä]{1,3}", 0..4).prop_map(Value::from);
        let fields = || prop::collection::vec((prop::sample::select(Field::ALL.to_vec()), values()), 0..4);
        (fields(), fields(), prop::collection::btree_map(".{0,4}", any::<f64>(), 0..3)).prop_map(
            |(wanted, not, payload)| {
                let object = |fields: Vec<(Field, Value)>| -> Map<String, Value> {
                    fields.into_iter().map(|(field, values)| (field.name().to_owned(), values)).collect()
                };
                let mut asked = object(wanted);
                asked.insert("exclude".to_owned(), object(not).into());
                asked.insert("payload".to_owned(), serde_json::json!(payload));
                Filters::parse(&asked).expect("filters")
            },
        )
    }

    fn time() -> impl Strategy<Value = Timestamp> {
        (0..4_000_000_000_000_000i64).prop_map(Timestamp)
    }

    fn subscribe() -> impl Strategy<Value = Subscribe> {
        let start = prop_oneof![
            Just(Start::Now),
            "evt_[0-9a-f]{12}".prop_map(Start::After),
            time().prop_map(Start::Since),
            (0..=LAST_MAX as usize).prop_map(Start::Last),
        ];
        let on_lag = prop::sample::select(vec![OnLag::CatchUp, OnLag::Skip, OnLag::Disconnect]);
        let field = || prop::sample::select(Field::ALL.to_vec());
        let conflate = (field(), CONFLATE_MS, any::<bool>()).prop_map(|(key, millis, tells_skipped)| Conflate {
            key,
            interval: Duration::from_millis(millis),
            tells_skipped,
        });
        let durable = ("[A-Za-z0-9_.-]{1,100}", any::<bool>(), ACK_WAIT_MS)
            .prop_map(|(name, is_group, millis)| Durable { name, is_group, ack_wait: Duration::from_millis(millis) });
        (
            (filters(), start, prop::option::of("[0-9a-f]{8}"), prop::option::weighted(0.2, time()), on_lag),
            (prop::option::weighted(0.2, SPEED), any::<bool>(), prop::option::weighted(0.2, conflate)),
            (prop::option::weighted(0.2, field()), prop::option::weighted(0.3, durable), any::<bool>()),
        )
            .prop_map(|(first, (speed, signals, conflate), (snapshot, durable, strict))| {
                let (filters, start, epoch, until, on_lag) = first;
                Subscribe { filters, start, epoch, until, speed, on_lag, signals, conflate, snapshot, durable, strict }
            })
            .prop_filter("sensible", |subscribe| subscribe.is_sensible().is_ok())
    }

    /// As a client spells it.
    fn spelled(subscribe: &Subscribe) -> String {
        let name_of = |field: Field| KEYS.iter().find(|(_, known)| *known == field).expect("a key of each").0;
        let mut message = subscribe.filters.asked().clone();
        let mut say = |key: &str, value: Value| drop(message.insert(key.to_owned(), value));
        match &subscribe.start {
            Start::Now | Start::Place(_) => {}
            Start::After(id) => say("after", (**id).into()),
            Start::Since(time) => say("since", time.to_string().into()),
            Start::Last(count) => say("last", (*count).into()),
        }
        say("epoch", subscribe.epoch.clone().into());
        say("until", subscribe.until.map(|time| time.to_string()).into());
        say("speed", subscribe.speed.into());
        say("signals", subscribe.signals.into());
        say("strict", subscribe.strict.into());
        let on_lag = match subscribe.on_lag {
            OnLag::CatchUp => "catch_up",
            OnLag::Skip => "skip",
            OnLag::Disconnect => "disconnect",
        };
        say("on_lag", on_lag.into());
        if let Some(Conflate { key, interval, tells_skipped }) = subscribe.conflate {
            let interval = interval.as_millis() as u64;
            say(
                "conflate",
                serde_json::json!({ "key": name_of(key), "interval_ms": interval, "skipped": tells_skipped }),
            );
        }
        say("snapshot", subscribe.snapshot.map_or(Value::Null, |key| serde_json::json!({ "latest_by": name_of(key) })));
        if let Some(Durable { name, is_group, ack_wait }) = &subscribe.durable {
            say(if *is_group { "group" } else { "name" }, (**name).into());
            say("ack_wait_ms", (ack_wait.as_millis() as u64).into());
        }
        Value::Object(message).to_string()
    }

    proptest! {
        #[test]
        fn what_a_subscriber_spells_is_understood(subscribe in subscribe()) {
            prop_assert_eq!(Subscribe::parse(spelled(&subscribe).as_bytes()), Ok(subscribe));
        }

        #[test]
        fn filters_are_told_as_they_were_asked_for(filters in filters()) {
            let told: Value = serde_json::from_str(&filters_updated(&filters)).expect("JSON");
            let told = Filters::parse(told["filters"].as_object().expect("an object"));
            prop_assert_eq!(told.as_ref(), Ok(&filters));
            let update = serde_json::json!({ "type": "update_filters", "filters": filters.asked() }).to_string();
            let update = FromSubscriber::parse(update.as_bytes(), true);
            prop_assert_eq!(update, Ok(FromSubscriber::UpdateFilters(Ok(filters))));
        }
    }
}
