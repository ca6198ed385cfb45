//! What a subscriber asks for: its first message, or the parameters of an event stream's URL, and its later messages.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::filters::{Filters, no_repeats};
use crate::event::{Field, Filter, Object, Seq, Timestamp, means_any, only_known};

/// A subscriber's first message, or the parameters of an event stream's URL.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscribe {
    pub filters: Filters,
    pub start: Start,
    /// The epoch of the id in `start`, if the client says it.
    pub epoch: Option<String>,
    /// The stream ends with the last event stored before this time.
    pub until: Option<Timestamp>,
    /// Paced replay: events come in the rhythm in which they were stored, this many times faster.
    pub speed: Option<f64>,
    pub on_lag: OnLag,
    /// Whether the client wants notes on how its stream is served.
    pub signals: bool,
    pub conflate: Option<Conflate>,
    /// The stream begins with the latest event of each value of this field.
    pub snapshot: Option<Field>,
    pub durable: Option<Durable>,
    /// Unknown keys are refused, here and in later filters.
    pub strict: bool,
}

/// Where a subscription begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    Now,
    /// After the event of this id.
    After(String),
    /// After this position, the confirmed one of a durable subscription.
    Position(Seq),
    /// After this time.
    Since(Timestamp),
    /// With the last passing events, this many of them.
    Last(usize),
}

/// What happens to a subscriber that is too slow for the live stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnLag {
    /// It gets everything, from storage until it has caught up.
    #[default]
    CatchUp,
    /// It stays live, and is told how many events it missed.
    Skip,
    /// It is disconnected, with close code 4008.
    Disconnect,
}

/// Conflation: once an interval, only the latest event of each type and value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflate {
    pub key: Field,
    pub interval: Duration,
    /// Whether the client wants to know how many were left out.
    pub tells_skipped: bool,
}

/// A durable subscription or a consumer group, stored under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    pub name: String,
    /// Whether its members share the stream: each event goes to one of them.
    pub is_group: bool,
    /// If a member does not confirm an event for this long, the event goes to another one.
    pub ack_wait: Duration,
}

/// A later message of a subscriber.
#[derive(Debug, Clone, PartialEq)]
pub enum FromSubscriber {
    Ping,
    /// New filters, or a sentence for the client that says why they are refused.
    UpdateFilters(Result<Filters, String>),
    /// The subscriber has processed everything up to the event with this id.
    Confirm(String),
    /// A token that ends later than the one with which the socket was opened.
    Auth(String),
    /// A message without a meaning; it is ignored.
    Other,
}

/// Most stored events that `last` can ask for: all of them are searched for before the first is sent.
pub const LAST_MAX: u64 = 100_000;

/// Allowed intervals of conflation: with less than 10 ms the server saves nothing, with more than a minute the stream is
/// not live.
const CONFLATE_MS: RangeInclusive<u64> = 10..=60_000;
/// Allowed speeds of paced replay: from a hundred times slower to ten thousand times faster than the events were stored.
const SPEED: RangeInclusive<f64> = 0.01..=10_000.0;
/// Allowed times to confirm an event: an hour for a slow job; less than 100 ms is the network's jitter.
const ACK_WAIT_MS: RangeInclusive<u64> = 100..=3_600_000;
/// The time to confirm an event if the group does not say one: longer than a slow handler takes, and a user still waits.
const ACK_WAIT_DEFAULT: Duration = Duration::from_secs(30);
const NAME_CHARS_MAX: usize = 100;

/// The keys of a first message besides those of its filter that are parameters of an event stream, too.
pub const STREAM_OPTIONS: [&str; 10] =
    ["after", "since", "last", "epoch", "until", "speed", "on_lag", "signals", "conflate", "strict"];
/// The keys that an event stream does not have: it has `latest_by` instead of `snapshot`, and confirms nothing.
const OPTIONS_OF_MESSAGES: [&str; 4] = ["snapshot", "name", "group", "ack_wait_ms"];

impl Subscribe {
    /// Parses the first message.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let Ok(message) = Object::read(text, &|depth, key| depth > 0 || is_known(key)) else {
            return Err("The first message must be a JSON object with the filters".to_owned());
        };
        let subscribe = Self::of(&message.members)?;
        // Old clients may repeat a key beside their filters, as they may have unknown keys.
        no_repeats(message.repeated_within.or(message.repeated.filter(|_| subscribe.strict)), "The first message")?;
        Ok(subscribe)
    }

    /// What a JSON object asks for.
    pub fn of(message: &Map<String, Value>) -> Result<Self, String> {
        let text = |key: &str| match stated(message, key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(format!("'{key}' must be a string")),
        };
        let strict = flag(message, "strict")?;
        if strict {
            only_known(message, is_known, "The first message")?;
        }
        let time = |key: &str, read: fn(&str) -> Result<Timestamp, _>| match stated(message, key) {
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
        subscribe.check_options().map(|()| subscribe)
    }

    /// Refuses options that exclude each other.
    fn check_options(&self) -> Result<(), String> {
        let (starts, confirms) = (self.start != Start::Now, self.durable.is_some());
        let is_group = self.durable.as_ref().is_some_and(|durable| durable.is_group);
        let excluding = [
            (self.snapshot.is_some() && starts, "A snapshot starts now: leave out 'after', 'since' and 'last'"),
            (self.snapshot.is_some() && self.until.is_some(), "A snapshot has no 'until'"),
            (self.snapshot.is_some() && self.speed.is_some(), "A snapshot has no 'speed'"),
            (self.until.is_some() && !starts, "'until' needs 'after', 'since' or 'last'"),
            (confirms && self.conflate.is_some(), "What is conflated cannot be confirmed: leave out 'name' or 'group'"),
            (confirms && self.snapshot.is_some(), "A durable subscription has no 'snapshot'"),
            (confirms && self.until.is_some(), "A durable subscription has no 'until'"),
            (confirms && self.on_lag == OnLag::Skip, "A durable subscription skips nothing: leave out 'on_lag'"),
            (is_group && self.speed.is_some(), "A group has no 'speed'"),
        ];
        match excluding.into_iter().find(|(is_so, _)| *is_so) {
            Some((_, why)) => Err(why.to_owned()),
            None => Ok(()),
        }
    }
}

/// A text or a time that is there and does not mean "any".
fn stated<'m>(message: &'m Map<String, Value>, key: &str) -> Option<&'m Value> {
    message.get(key).filter(|value| !means_any(value))
}

/// A value that is there and is not null.
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

/// Whether the first message may have a key.
fn is_known(key: &str) -> bool {
    Filter::is_key(key) || STREAM_OPTIONS.contains(&key) || OPTIONS_OF_MESSAGES.contains(&key)
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

impl FromSubscriber {
    /// Parses a later message; `strict` is that of the subscriber's first message.
    ///
    /// # Errors
    /// A sentence for the client, when it confirms without an id, or renews without a token.
    pub fn parse(text: &[u8], strict: bool) -> Result<Self, String> {
        // Unknown keys of new filters are ignored.
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
            Some("auth") => match message.members.get("token") {
                Some(Value::String(token)) => Ok(Self::Auth(token.clone())),
                _ => Err("'auth' needs a 'token', in a string".to_owned()),
            },
            Some("update_filters") => Ok(Self::UpdateFilters(Filters::parse_update(message, strict))),
            _ => Ok(Self::Other),
        }
    }
}

/// The token of a publisher's message that is no event and renews its token: `{"type":"auth","token":…}` without an
/// `event_type`.
pub fn renewal(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Auth {
        r#type: String,
        token: String,
        event_type: Option<IgnoredAny>,
    }
    let auth: Auth = serde_json::from_str(text).ok()?;
    (auth.r#type == "auth" && auth.event_type.is_none()).then_some(auth.token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::note::filters_updated;
    use proptest::prelude::*;

    #[test]
    fn a_first_message_is_parsed_or_refused() {
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

    /// Every listed option is read: otherwise it would be accepted without effect. That every option that is read is listed,
    /// `a_first_message_reads_back_as_it_was_spelled` shows: a strict message with it would be refused.
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
    fn a_key_that_is_repeated_within_the_filters_is_refused() {
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
    fn of_a_key_repeated_beside_the_filters_the_last_counts_unless_the_message_is_strict() {
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
    fn a_later_message_is_understood_or_ignored() {
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
            .prop_filter("options that exclude each other", |subscribe| subscribe.check_options().is_ok())
    }

    /// The first message, as a client spells it.
    fn spelled(subscribe: &Subscribe) -> String {
        let name_of = |field: Field| KEYS.iter().find(|(_, known)| *known == field).expect("a key of each").0;
        let mut message = subscribe.filters.asked().clone();
        let mut say = |key: &str, value: Value| drop(message.insert(key.to_owned(), value));
        match &subscribe.start {
            Start::Now | Start::Position(_) => {}
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
        fn a_first_message_reads_back_as_it_was_spelled(subscribe in subscribe()) {
            prop_assert_eq!(Subscribe::parse(spelled(&subscribe).as_bytes()), Ok(subscribe));
        }

        #[test]
        fn filters_are_answered_as_they_were_asked_for(filters in filters()) {
            let told: Value = serde_json::from_str(&filters_updated(&filters)).expect("JSON");
            let told = Filters::parse(told["filters"].as_object().expect("an object"));
            prop_assert_eq!(told.as_ref(), Ok(&filters));
            let update = serde_json::json!({ "type": "update_filters", "filters": filters.asked() }).to_string();
            let update = FromSubscriber::parse(update.as_bytes(), true);
            prop_assert_eq!(update, Ok(FromSubscriber::UpdateFilters(Ok(filters))));
        }
    }
}
