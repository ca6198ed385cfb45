//! What a `GET /events` asks for.

use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::parameters::Parameters;
use crate::auth::Principal;
use crate::event::{Filter, Seq, Timestamp};
use crate::record::Gap;
use crate::store::{self, Order, Query, Reader};
use crate::wire::Refusal;

/// The events that a `GET /events` asks for.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    filter: Filter,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    before_id: Option<String>,
    after_id: Option<String>,
    /// The epoch that the cursor is from, if the client says so.
    epoch: Option<String>,
    pub(super) limit: Option<usize>,
    /// How long to wait for the first event.
    pub(super) wait: Option<Duration>,
}

/// Most events of one answer that is a JSON array.
pub(super) const LIMIT_MAX: usize = 1000;
/// Without `limit`.
pub(super) const LIMIT_DEFAULT: usize = 100;
/// The longest `wait`: proxies commonly give up on an answer after a minute.
const WAIT_MAX: Duration = Duration::from_secs(55);

impl Listing {
    /// # Errors
    /// `BadRequest` for a bad time; `Invalid` for a limit that is not from 1 to `limit_max`, and for a bad filter;
    /// `Unauthorized` where the principal may see no event.
    pub(super) fn of(parameters: &Parameters<'_>, principal: &Principal, limit_max: usize) -> Result<Self, Refusal> {
        let text = |name| parameters.get(name).filter(|text| !text.is_empty()).map(str::to_owned);
        let (before_id, after_id) = (text("before_id"), text("after_id"));
        let wait = parameters.get("wait").filter(|wait| !wait.is_empty()).map(wait).transpose()?;
        if wait.is_some() && after_id.is_none() {
            return Err(Refusal::parameter(
                "wait",
                "'wait' needs 'after_id': what to wait for the successor of",
                "missing",
            ));
        }
        Ok(Self {
            filter: principal.narrow(parameters.filter()?)?,
            since: parameters.time("since", Timestamp::parse_floor)?,
            until: parameters.time("until", Timestamp::parse_ceil)?,
            before_id,
            after_id,
            epoch: text("epoch"),
            limit: parameters.number("limit", 1..=limit_max)?,
            wait,
        })
    }

    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The order of a page: after a cursor the events that follow it, without one the newest first.
    pub(super) fn order(&self) -> Order {
        if self.after_id.is_some() { Order::OldestFirst } else { Order::NewestFirst }
    }

    /// The query that finds these events, and the gap behind the cursor if there is one. Blocks: ids are looked up.
    ///
    /// # Errors
    /// What SQLite reports; in the inner result `BadRequest` for a bad id.
    pub(super) fn query(self, reader: &Reader, order: Order) -> store::Result<Result<(Query, Option<Gap>), Refusal>> {
        let position = |name: &str, id: &Option<String>| {
            let Some(id) = id else { return Ok(Ok(None)) };
            let bad = || Refusal::BadRequest(format!("'{name}' is not an event id"));
            reader.seq_of(id).map(|seq| seq.map(Some).ok_or_else(bad))
        };
        let (before, after) = (position("before_id", &self.before_id)?, position("after_id", &self.after_id)?);
        let (before, after) = match before.and_then(|before| Ok((before, after?))) {
            Ok(cursors) => cursors,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let gap = match after.zip(self.after_id.as_ref()) {
            None => None,
            Some((seq, id)) => Gap::after(id, seq, self.epoch.as_deref(), &reader.extent()?),
        };
        let Self { filter, since, until, .. } = self;
        Ok(Ok((Query { filter, after: after.unwrap_or(Seq::ZERO), before, since, until, order }, gap)))
    }
}

/// A time to wait: `30s`, `500ms`, or a number of seconds. Longer ones become [`WAIT_MAX`].
fn wait(text: &str) -> Result<Duration, Refusal> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let wait = number.parse().ok().and_then(|number| match unit {
        "" | "s" => Some(Duration::from_secs(number)),
        "ms" => Some(Duration::from_millis(number)),
        _ => None,
    });
    let wait =
        wait.ok_or_else(|| Refusal::parameter("wait", "'wait' must be a time such as 30s or 500ms", "invalid"))?;
    Ok(wait.min(WAIT_MAX))
}

/// The value of a `Link` header that leads to the events after the last one of a page.
pub(super) fn next_page(path: &str, parameters: &Parameters<'_>, order: Order, last: Seq) -> String {
    let cursor = match order {
        Order::NewestFirst => "before_id",
        Order::OldestFirst => "after_id",
    };
    format!("<{}>; rel=\"next\"", parameters.with_cursor(path, cursor, last.id()))
}

/// The events behind a cursor that are gone, as JSON.
const EVENT_GAP: HeaderName = HeaderName::from_static("event-gap");

/// Tells the client of a gap.
pub(super) fn add_gap(headers: &mut HeaderMap, gap: Option<Gap>) {
    // The server gave out no id that does not fit into a header.
    headers.extend(gap.and_then(|gap| HeaderValue::try_from(gap.json().to_string()).ok()).map(|gap| (EVENT_GAP, gap)));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use hyper::http::Uri;

    use super::*;

    #[test]
    fn a_listing_has_each_condition_of_its_url() {
        let query = "event_type=b,a,b&source=s&session_id=x%26y&user_id=&limit=7&since=2026-01-15T10:30:00Z";
        let uri: Uri = format!("/events?{query}").parse().unwrap();
        let listing = Listing::of(&Parameters::of(&uri), &Principal::Everything, LIMIT_MAX).unwrap();
        let asked = serde_json::json!({"event_types": ["a", "b"], "source": "s", "session_id": "x&y"});
        assert_eq!(listing.filter, Filter::parse(asked.as_object().unwrap()).unwrap(), "an empty user means any");
        assert_eq!((listing.limit, listing.until), (Some(7), None));
        assert_eq!(listing.since.unwrap().to_string(), "2026-01-15T10:30:00.000000Z");
    }

    #[test]
    fn a_wait_is_a_number_with_or_without_a_unit() {
        for (text, expected) in [("30s", 30_000), ("500ms", 500), ("2", 2_000), ("0", 0), ("99999s", 55_000)] {
            assert_eq!(wait(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        for text in ["", "s", "1m", "-1s", "1.5s", "99999999999999999999s"] {
            assert!(wait(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_link_to_the_next_page_keeps_the_parameters() {
        let check = |query: &str, expected: &str| {
            let uri: Uri = format!("/events?{query}").parse().unwrap();
            let link = next_page("/api/v1/events", &Parameters::of(&uri), Order::NewestFirst, Seq(0xabc));
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
