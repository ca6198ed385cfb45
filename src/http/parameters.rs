//! The query parameters of a URL.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::RangeInclusive;

use hyper::http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Number, Value};

use super::route::{FILTER, PAYLOAD_PREFIX, STREAM, is_known};
use crate::event::{EventId, Filter, Object, Timestamp};
use crate::wire::Refusal;
use crate::wire::refusal::Step;
use crate::wire::request::{LAST_MAX, Subscribe};

/// The parameters of a URL, decoded, in their order. Of several with one name the last counts, and names that mean nothing
/// are ignored. Both are as in the Python service.
#[derive(Debug)]
pub struct Parameters<'u>(Vec<(Cow<'u, str>, Cow<'u, str>)>);

impl<'u> Parameters<'u> {
    pub fn of(uri: &'u Uri) -> Self {
        Self(form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Names and values, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// A name that occurs twice.
    pub(super) fn repeated(&self) -> Option<&str> {
        let mut seen = HashSet::new();
        self.iter().map(|(name, _)| name).find(|name| !seen.insert(*name))
    }

    /// The time of this name, if it is there and not empty, rounded by `read` to the microseconds of events.
    ///
    /// # Errors
    /// `BadRequest` when it is no time.
    pub(super) fn time<E: std::fmt::Display>(
        &self,
        name: &str,
        read: impl FnOnce(&str) -> Result<Timestamp, E>,
    ) -> Result<Option<Timestamp>, Refusal> {
        let Some(text) = self.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        read(&with_offset(text)).map(Some).map_err(|error| Refusal::BadRequest(format!("'{name}' is {error}")))
    }

    /// The whole number of this name, if it is there.
    ///
    /// # Errors
    /// `Invalid` when it is not within the range.
    pub(super) fn number(&self, name: &'static str, range: RangeInclusive<usize>) -> Result<Option<usize>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let number = number.filter(|number| range.contains(number));
        let what = || format!("'{name}' must be a number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| Refusal::parameter(name, what(), "out_of_range"))
    }

    /// The filter that the parameters ask for, as the JSON of a filter. `filter` is such JSON; each other parameter is one
    /// condition, and an empty one is none. In `event_type` and `source` commas separate several values.
    ///
    /// # Errors
    /// `Invalid` when `filter` is no JSON object; as a [`CONFLICT`] when it has a key twice, or a condition that another
    /// parameter has too.
    pub(super) fn asked(&self) -> Result<Map<String, Value>, Refusal> {
        let mut asked = self.get("filter").filter(|text| !text.is_empty()).map_or(Ok(Map::new()), filter)?;
        let twice = |name: &'static str| {
            Refusal::parameter("filter", format!("'filter' and '{name}' ask for the same field"), CONFLICT)
        };
        for name in FILTER.iter().copied().filter(|name| !matches!(*name, "filter" | PAYLOAD_PREFIX)) {
            let field = name.strip_prefix("exclude_");
            // For the type the key of a filter is older than lists for the others.
            let key = field.unwrap_or(name).replace("event_type", "event_types");
            let Some(value) = self.get(name).and_then(|text| values(&key, text)) else { continue };
            let conditions = if field.is_some() { inner(&mut asked, "exclude") } else { Some(&mut asked) };
            if conditions.is_none_or(|conditions| conditions.insert(key, value).is_some()) {
                return Err(twice(name));
            }
        }
        for (name, value) in &self.0 {
            let Some(key) = name.strip_prefix(PAYLOAD_PREFIX) else { continue };
            let value = Value::from(&**value);
            if inner(&mut asked, "payload").is_none_or(|payload| payload.insert(key.to_owned(), value).is_some()) {
                return Err(Refusal::parameter("payload", format!("'{name}' is asked for twice"), CONFLICT));
            }
        }
        Ok(asked)
    }

    /// The filter that the parameters ask for.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn filter(&self) -> Result<Filter, Refusal> {
        Filter::parse(&self.asked()?).map_err(|why| Refusal::parameter("filter", why, "invalid"))
    }

    /// The subscription that the parameters of an event stream ask for. A browser that connects again sends the id of the last
    /// event that it got in a header. It cannot change the URL, so the header counts.
    ///
    /// # Errors
    /// `BadRequest` for what is no time; `Invalid` for the rest.
    pub fn subscription(&self, last_event_id: Option<&str>) -> Result<Subscribe, Refusal> {
        let invalid = |why| Refusal::invalid(vec![Step::Name("query")], why, "invalid");
        // Browsers send an empty one for none.
        let last_event_id = last_event_id.filter(|id| !id.is_empty());
        let mut asked = self.asked()?;
        let text = |name| self.get(name).filter(|value| !value.is_empty());
        let until = self.time("until", Timestamp::parse_ceil)?.map(|time| time.to_string());
        match last_event_id.or(text("after")) {
            Some(after) => drop(asked.insert("after".to_owned(), after.into())),
            None => {
                let since = self.time("since", Timestamp::parse_floor)?.map(|time| time.to_string());
                asked.extend(since.map(|since| ("since".to_owned(), since.into())));
                let last = self.number("last", 0..=LAST_MAX as usize)?;
                asked.extend(last.map(|last| ("last".to_owned(), last.into())));
            }
        }
        asked.extend(until.map(|until| ("until".to_owned(), until.into())));
        for name in ["on_lag", "epoch"] {
            asked.extend(text(name).map(|value| (name.to_owned(), value.into())));
        }
        if let Some(speed) = text("speed") {
            // JSON has no infinity and no NaN: they stay texts, which are refused.
            let number = speed.parse().ok().and_then(Number::from_f64);
            asked.insert("speed".to_owned(), number.map_or(Value::from(speed), Value::from));
        }
        for name in ["signals", "strict"] {
            asked.extend(text(name).map(|value| (name.to_owned(), switch(value))));
        }
        match text("conflate") {
            Some(key) => {
                let interval = self.number("interval_ms", 0..=usize::MAX)?.map_or(Value::Null, Value::from);
                let skipped = text("skipped").map_or(Value::Null, switch);
                let conflate = serde_json::json!({ "key": key, "interval_ms": interval, "skipped": skipped });
                asked.insert("conflate".to_owned(), conflate);
            }
            None => {
                if let Some(name) = ["interval_ms", "skipped"].into_iter().find(|name| text(name).is_some()) {
                    return Err(Refusal::parameter(name, format!("'{name}' needs 'conflate'"), "missing"));
                }
            }
        }
        // A browser that connects again has had its snapshot.
        if let Some(key) = text("latest_by").filter(|_| last_event_id.is_none()) {
            asked.insert("snapshot".to_owned(), serde_json::json!({ "latest_by": key }));
        }
        let subscribe = Subscribe::of(&asked).map_err(invalid)?;
        if subscribe.strict {
            if let Some((name, _)) = self.iter().find(|(name, _)| !is_known(STREAM, name)) {
                return Err(invalid(format!("Unknown parameter '{name}'")));
            }
            if let Some(name) = self.repeated() {
                return Err(invalid(format!("'{name}' is there twice")));
            }
        }
        Ok(subscribe)
    }

    /// The same URL, but with another cursor.
    pub(super) fn with_cursor(&self, path: &str, cursor: &str, id: EventId) -> String {
        let mut url = format!("{path}?");
        for (name, value) in self.0.iter().filter(|(name, _)| name != cursor && name != "wait") {
            url.extend(utf8_percent_encode(name, RESERVED).chain(["="]));
            url.extend(utf8_percent_encode(value, RESERVED).chain(["&"]));
        }
        format!("{url}{cursor}={id}")
    }
}

/// The kind of problem of a condition that is there twice.
pub(super) const CONFLICT: &str = "conflict";

/// The JSON object that `filter=` holds.
fn filter(text: &str) -> Result<Map<String, Value>, Refusal> {
    let filter = Object::read(text.as_bytes(), &|_, _| true).ok();
    let Some(filter) = filter.filter(|filter| filter.members.keys().all(|key| Filter::is_key(key))) else {
        let keys = "event_types, source, session_id, user_id, payload and exclude";
        let what = format!("'filter' must be a JSON object with nothing but {keys}");
        return Err(Refusal::parameter("filter", what, "json_invalid"));
    };
    match filter.repeated_anywhere() {
        Some(key) => Err(Refusal::parameter("filter", format!("'filter' has '{key}' twice"), CONFLICT)),
        None => Ok(filter.members),
    }
}

/// The values that a parameter asks for in a field; `None` if it is empty. A type or a source has no comma, an id may have.
fn values(key: &str, text: &str) -> Option<Value> {
    let values = match key {
        "event_types" | "source" => text.split(',').map(Value::from).collect(),
        _ => Value::from(text),
    };
    (!text.is_empty()).then_some(values)
}

fn inner<'m>(asked: &'m mut Map<String, Value>, key: &str) -> Option<&'m mut Map<String, Value>> {
    asked.entry(key).or_insert_with(|| Map::new().into()).as_object_mut()
}

fn switch(text: &str) -> Value {
    match text {
        "true" | "1" => true.into(),
        "false" | "0" => false.into(),
        other => other.into(),
    }
}

/// All characters but those that RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Puts back the `+` of an offset, which was decoded to a space because the client did not escape it. A space between a
/// time of day and an offset can be nothing else.
fn with_offset(text: &str) -> Cow<'_, str> {
    const OFFSETS: [&str; 2] = ["+01:00", "+00:53:28"];
    let splits = OFFSETS.iter().filter_map(|offset| text.split_at_checked(text.len().checked_sub(offset.len())?));
    let mut lost = splits.filter(|(time, offset)| time.contains(':') && offset.starts_with(' '));
    match lost.next() {
        Some((time, offset)) => format!("{time}+{}", &offset[1..]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::route::STREAM_OPTIONS_IN_URLS;
    use super::*;
    use crate::event::Seq;
    use crate::wire::request::STREAM_OPTIONS;

    fn uri(query: &str) -> Uri {
        format!("/events?{query}").parse().unwrap()
    }

    #[test]
    fn parameters_are_decoded() {
        let uri = uri("a=1&b=x%20y+z&c=%C3%BC&a=2&d&&=e&f=g=h&%66%66=%2B&bad=%zz%FF");
        let parameters = Parameters::of(&uri);
        let check = |name, expected| assert_eq!(parameters.get(name), expected, "{name}");
        check("a", Some("2"));
        check("b", Some("x y z"));
        check("c", Some("ü"));
        check("d", Some(""));
        check("", Some("e"));
        check("f", Some("g=h"));
        check("ff", Some("+"));
        check("bad", Some("%zz\u{fffd}"));
        check("absent", None);
        assert_eq!(Parameters::of(&"/events".parse().unwrap()).iter().count(), 0);
    }

    #[test]
    fn limits_are_whole_numbers_in_their_range() {
        let limit = |text: &str, max| Parameters::of(&uri(&format!("limit={text}"))).number("limit", 1..=max);
        for (text, expected) in [("1", 1), ("1000", 1000), ("007", 7)] {
            assert_eq!(limit(text, 1000), Ok(Some(expected)), "{text}");
        }
        for text in ["", "0", "1001", "-1", "+1", "%201", "1.5", "1e2", "99999999999999999999", "ten"] {
            let Err(Refusal::Invalid(problems)) = limit(text, 1000) else { panic!("{text}") };
            assert_eq!(problems[0].kind, "out_of_range");
        }
        assert_eq!(limit("18446744073709551615", usize::MAX), Ok(Some(usize::MAX)));
    }

    #[test]
    fn parameters_and_json_make_one_filter() {
        let filter = |query: &str| Parameters::of(&uri(query)).filter();
        let json = |text: &str| Filter::parse(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(
            filter("event_type=a&exclude_user_id=u,v&payload.quiz_id=demo%2Cx&payload.n=7"),
            Ok(json(r#"{"event_types":["a"],"exclude":{"user_id":"u,v"},"payload":{"quiz_id":"demo,x","n":"7"}}"#))
        );
        assert_eq!(
            filter("filter=%7B%22session_id%22:[%22a%22,%22b%22],%22payload%22:%7B%22n%22:7%7D%7D&source=x,y"),
            Ok(json(r#"{"session_id":["a","b"],"payload":{"n":7},"source":["x","y"]}"#))
        );
        for bad in [
            "filter=x",
            "filter=[]",
            "filter=%7B%22sesion_id%22:1%7D",
            "filter=%7B%22source%22:%22x%22%7D&source=y",
            "filter=%7B%22exclude%22:7%7D&exclude_source=y",
            "payload.n=1&payload.n=2",
            "event_type=,",
            "event_type=a,,b",
            "source=a,",
            "exclude_source=,a",
        ] {
            assert!(matches!(filter(bad), Err(Refusal::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn a_stream_refuses_options_that_change_nothing() {
        let asked = |query: &str| Parameters::of(&uri(query)).subscription(None);
        for well in [
            "skipped=&interval_ms=",
            "strict=false&sesion_id=s1",
            "source=a&source=b",
            "strict=1&payload.x=1&filter=%7B%7D&api_key=k",
        ] {
            assert!(asked(well).is_ok(), "{well}: {:?}", asked(well));
        }
        for bad in [
            "skipped=2",
            "skipped=true",
            "interval_ms=250",
            "strict=2",
            "strict=true&sesion_id=s1",
            "source=a&strict=true&source=b",
        ] {
            assert!(matches!(asked(bad), Err(Refusal::Invalid(_))), "{bad}");
        }
        let all = "conflate=source&interval_ms=250&skipped=1&since=&last=&until=&speed=&on_lag=skip&signals=0&strict=1";
        assert!(asked(all).is_err(), "'last' is a number");
        assert!(asked(&all.replace("&last=", "&epoch=&after=&latest_by=")).is_ok());
    }

    /// Each option of the route table changes the subscription, and the contract lists the same options.
    #[test]
    fn every_option_of_a_stream_is_read_and_in_the_contract() {
        let asked = |query: &str| Parameters::of(&uri(query)).subscription(None);
        for (without, with) in [
            ("", "after=evt_000000000001"),
            ("", "since=2026-01-15T10:30:00Z"),
            ("", "last=1"),
            ("", "epoch=00000007"),
            ("last=1", "last=1&until=2026-01-15T10:30:00Z"),
            ("", "speed=2"),
            ("", "on_lag=skip"),
            ("", "signals=true"),
            ("", "latest_by=source"),
            ("", "conflate=source&interval_ms=250"),
            ("conflate=source&interval_ms=250", "conflate=source&interval_ms=500"),
            ("conflate=source&interval_ms=250", "conflate=source&interval_ms=250&skipped=true"),
        ] {
            let strict = |query: &str| asked(&format!("strict=true&{query}")).unwrap();
            assert_ne!(strict(without), strict(with), "{with}");
        }
        assert_ne!(asked("strict=true"), asked(""));
        let contract = std::fs::read_to_string("docs/CONTRACT.md").unwrap();
        let row = contract.lines().find(|line| line.starts_with("| `GET /events/stream?")).unwrap();
        let told: BTreeSet<_> = row.split('`').filter_map(|words| words.strip_suffix('=')).collect();
        let listed = STREAM_OPTIONS.iter().chain(STREAM_OPTIONS_IN_URLS).copied();
        assert_eq!(told, listed.collect());
    }

    #[test]
    fn times_may_have_lost_their_plus() {
        let read = |query: &str| Parameters::of(&uri(query)).time("since", Timestamp::parse_floor);
        let expected = Ok(Some(Timestamp::parse_floor("2026-01-15T10:30:00Z").unwrap()));
        for time in ["2026-01-15T11:30:00+01:00", "2026-01-15T11:30:00%2B01:00", "2026-01-15T11:30:00.000%2001:00"] {
            assert_eq!(read(&format!("since={time}")), expected, "{time}");
        }
        for time in ["2026-01-15T11:23:28+00:53:28", "2026-01-15+11:23:28%2B00:53:28", "2026-01-15+11:23:28.0+00:53:28"]
        {
            assert_eq!(read(&format!("since={time}")), expected, "{time}");
        }
        assert_eq!(read("since=2026-01-15+10:30:00Z"), expected);
        assert_eq!(read("since=2026-01-15+10:30:00"), expected, "without an offset");
        for nothing in ["until=x", "since=", "since"] {
            assert_eq!(read(nothing), Ok(None), "{nothing}");
        }
        for bad in ["since=+01:00", "since=%C3%BC%C3%BC%C3%BC%C3%BC", "since=2026-01-15T10:30"] {
            assert!(matches!(read(bad), Err(Refusal::BadRequest(_))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_page_asks_for_what_the_one_before_asked_for(asked in prop::collection::vec((".{1,8}", ".{0,12}"), 0..6)) {
            let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let pair = |(name, value): &(String, String)| format!("{}={}", encoded(name), encoded(value));
            let query: Vec<_> = asked.iter().map(pair).collect();
            let first = uri(&query.join("&"));
            let next: Uri = Parameters::of(&first).with_cursor("/events", "after_id", Seq(7).id()).parse().unwrap();
            let (first, next) = (Parameters::of(&first), Parameters::of(&next));
            for (name, value) in asked.iter().rev() {
                prop_assert_eq!(first.get(name), asked.iter().rfind(|(other, _)| other == name).map(|(_, v)| &**v));
                prop_assert!(matches!(&**name, "after_id" | "wait") || next.get(name) == first.get(name), "{}", value);
            }
            prop_assert_eq!(next.get("after_id"), Some("evt_000000000007"));
        }
    }
}
