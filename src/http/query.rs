//! What stands behind the `?` of a URL.

use std::borrow::Cow;

use hyper::http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::event::{EventId, Filter, Seq, Timestamp};
use crate::store::{Order, Query, Store};
use crate::wire::Refusal;

/// The parameters of a URL, decoded, in their order. Of several with one name the last counts; names
/// that mean nothing are left to their sender. Both are as the service this one replaces had it.
#[derive(Debug)]
pub(super) struct Parameters<'u>(Vec<(Cow<'u, str>, Cow<'u, str>)>);

impl<'u> Parameters<'u> {
    pub(super) fn of(uri: &'u Uri) -> Self {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect(),
        )
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// The time of this name, if it is there, rounded by `read` to the microseconds of events.
    ///
    /// # Errors
    /// `BadRequest` when it is no time.
    pub(super) fn time<E: std::fmt::Display>(
        &self,
        name: &str,
        read: impl FnOnce(&str) -> Result<Timestamp, E>,
    ) -> Result<Option<Timestamp>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        read(&with_offset(text)).map(Some).map_err(|error| Refusal::BadRequest(format!("'{name}' is {error}")))
    }

    /// The same URL, but with the page that begins before `before`.
    fn page_before(&self, path: &str, before: EventId) -> String {
        let mut url = format!("{path}?");
        for (name, value) in self.0.iter().filter(|(name, _)| name != "before_id") {
            url.extend(utf8_percent_encode(name, RESERVED).chain(["="]));
            url.extend(utf8_percent_encode(value, RESERVED).chain(["&"]));
        }
        url + "before_id=" + &before.to_string()
    }
}

/// Everything but what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return text.into();
    }
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned().into()
}

/// A `+` that was not escaped has become a space; before the six characters of an offset it can be nothing else.
fn with_offset(text: &str) -> Cow<'_, str> {
    const OFFSET_LEN: usize = "+01:00".len();
    match text.len().checked_sub(OFFSET_LEN).and_then(|at| text.split_at_checked(at)) {
        Some((time, offset)) if offset.starts_with(' ') => format!("{time}+{}", &offset[1..]).into(),
        _ => text.into(),
    }
}

/// Which events a `GET /events` asks for.
#[derive(Debug)]
pub(super) struct Listing {
    filter: Filter,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    before_id: Option<String>,
    after_id: Option<String>,
    pub(super) limit: Option<usize>,
}

/// Most events of one answer that is a JSON array.
pub(super) const LIMIT_MAX: usize = 1000;
/// As many if nobody says.
pub(super) const LIMIT_DEFAULT: usize = 100;

impl Listing {
    /// # Errors
    /// `BadRequest` for what is no time; `Invalid` for a limit that is not from 1 to `limit_max`.
    pub(super) fn of(parameters: &Parameters<'_>, limit_max: usize) -> Result<Self, Refusal> {
        let text = |name| parameters.get(name).filter(|value| !value.is_empty());
        let types = text("event_type").unwrap_or_default().split(',').filter(|name| !name.is_empty());
        let mut filter = Filter::default().with_types(types);
        filter.source = text("source").map(Into::into);
        filter.session_id = text("session_id").map(Into::into);
        filter.user_id = text("user_id").map(Into::into);
        let limit = parameters.get("limit").map(|text| limit(text, limit_max)).transpose()?;
        Ok(Self {
            filter,
            since: parameters.time("since", Timestamp::parse_floor)?,
            until: parameters.time("until", Timestamp::parse_ceil)?,
            before_id: parameters.get("before_id").map(str::to_owned),
            after_id: parameters.get("after_id").map(str::to_owned),
            limit,
        })
    }

    /// The reading of the record that this is. Blocks: ids are looked up.
    ///
    /// # Errors
    /// What SQLite reports; within, `BadRequest` when an id is none.
    pub(super) fn query(self, store: &Store, order: Order) -> rusqlite::Result<Result<Query, Refusal>> {
        let position = |name: &str, id: Option<String>| {
            let Some(id) = id else { return Ok(Ok(None)) };
            let bad = || Refusal::BadRequest(format!("'{name}' is not an event id"));
            store.position(&id).map(|seq| seq.map(Some).ok_or_else(bad))
        };
        let (before, after) = (position("before_id", self.before_id)?, position("after_id", self.after_id)?);
        let Self { filter, since, until, .. } = self;
        Ok(before
            .and_then(|before| Ok(Query { filter, after: after?.unwrap_or(Seq::ZERO), before, since, until, order })))
    }
}

fn limit(text: &str, max: usize) -> Result<usize, Refusal> {
    let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number
        .filter(|n| (1..=max).contains(n))
        .ok_or_else(|| Refusal::parameter("limit", format!("'limit' must be a number from 1 to {max}"), "out_of_range"))
}

/// The value of a `Link` header that leads to the events before `before`.
pub(super) fn next_page(path: &str, parameters: &Parameters<'_>, before: Seq) -> String {
    format!("<{}>; rel=\"next\"", parameters.page_before(path, before.id()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

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
        assert_eq!(Parameters::of(&"/events".parse().unwrap()).names().count(), 0);
    }

    #[test]
    fn a_listing_takes_every_filter() {
        let uri = uri("event_type=b,a,,b&source=s&session_id=x%26y&user_id=&limit=7&since=2026-01-15T10:30:00Z");
        let listing = Listing::of(&Parameters::of(&uri), LIMIT_MAX).unwrap();
        assert_eq!(listing.filter.event_types(), ["a".into(), "b".into()]);
        assert_eq!(listing.filter.source.as_deref(), Some("s"));
        assert_eq!(listing.filter.session_id.as_deref(), Some("x&y"));
        assert_eq!(listing.filter.user_id, None, "empty means any");
        assert_eq!((listing.limit, listing.until), (Some(7), None));
        assert_eq!(listing.since.unwrap().to_string(), "2026-01-15T10:30:00.000000Z");
    }

    #[test]
    fn limits_are_whole_numbers_in_their_range() {
        for (text, expected) in [("1", Some(1)), ("1000", Some(1000)), ("007", Some(7))] {
            assert_eq!(limit(text, LIMIT_MAX).ok(), expected, "{text}");
        }
        for text in ["", "0", "1001", "-1", "+1", " 1", "1.5", "1e2", "99999999999999999999", "ten"] {
            let Err(Refusal::Invalid(problem)) = limit(text, LIMIT_MAX) else { panic!("{text}") };
            assert_eq!(problem.kind, "out_of_range");
        }
        assert_eq!(limit("18446744073709551615", usize::MAX).unwrap(), usize::MAX);
    }

    #[test]
    fn times_may_have_lost_their_plus() {
        let read = |query: &str| Parameters::of(&uri(query)).time("since", Timestamp::parse_floor);
        let expected = Ok(Some(Timestamp::parse_floor("2026-01-15T10:30:00Z").unwrap()));
        for time in ["2026-01-15T11:30:00+01:00", "2026-01-15T11:30:00%2B01:00", "2026-01-15T11:30:00.000%2001:00"] {
            assert_eq!(read(&format!("since={time}")), expected, "{time}");
        }
        assert_eq!(read("since=2026-01-15+10:30:00Z"), expected);
        assert_eq!(read("until=x"), Ok(None));
        for bad in ["since=", "since", "since=+01:00", "since=%C3%BC%C3%BC%C3%BC%C3%BC", "since=2026-01-15T10:30:00"] {
            assert!(matches!(read(bad), Err(Refusal::BadRequest(_))), "{bad}");
        }
    }

    #[test]
    fn the_next_page_keeps_what_was_asked() {
        let check = |query: &str, expected: &str| {
            let link = next_page("/api/v1/events", &Parameters::of(&uri(query)), Seq(0xabc));
            assert_eq!(link, format!("</api/v1/events?{expected}before_id=evt_000000000abc>; rel=\"next\""));
        };
        check("", "");
        check("limit=5&before_id=evt_000000000fff", "limit=5&");
        check("session_id=a b%26%22%3E+ü".replace(' ', "+").as_str(), "session_id=a%20b%26%22%3E%20%C3%BC&");
        check(
            "since=2026-01-15T11:30:00+01:00&event_type=a,b",
            "since=2026-01-15T11%3A30%3A00%2001%3A00&event_type=a%2Cb&",
        );
    }
}
