//! Media types: those that a client accepts, and what an event looks like in each.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::response::JSON;
use crate::wire::cloud_event;

/// The media types of an answer with metrics.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text";
pub(super) const TEXT: &str = "text/plain";

/// A media type or a media range without its parameters.
pub(super) fn essence(value: &[u8]) -> &[u8] {
    value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii()
}

/// Whether a client names this media type in `Accept`. A range such as `*/*` does not name it: it leaves the choice to the
/// server.
pub(super) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    names(headers, header::ACCEPT, media_type)
}

/// Whether the list in a header has this name, with a weight above 0.
pub(super) fn names(headers: &HeaderMap, list: HeaderName, name: &str) -> bool {
    let mut named = items(headers, list).filter(|item| essence(item).eq_ignore_ascii_case(name.as_bytes()));
    named.any(|item| weight(item) > 0.0)
}

/// How much a client wants an answer of this media type, from 0 (not acceptable) to 1: the weight of the most specific range
/// in which the type falls. A client that does not say what it takes takes everything (RFC 9110, 12.5.1).
pub(super) fn preference(headers: &HeaderMap, media_type: &str) -> f32 {
    let (of_type, _) = media_type.split_once('/').expect("a media type has a slash");
    let all_of_type = format!("{of_type}/*");
    let ranges: Vec<_> = items(headers, header::ACCEPT).filter(|range| !range.trim_ascii().is_empty()).collect();
    let found = [media_type, &all_of_type, "*/*"]
        .into_iter()
        .find_map(|name| ranges.iter().find(|range| essence(range).eq_ignore_ascii_case(name.as_bytes())).copied());
    if ranges.is_empty() { 1.0 } else { found.map_or(0.0, weight) }
}

fn items(headers: &HeaderMap, list: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers.get_all(list).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','))
}

/// The weight of an item of a list, from 0 to 1 (RFC 9110, 12.4.2); 1 if it has none, or one that cannot be read.
fn weight(item: &[u8]) -> f32 {
    let mut parameters = item.split(|b| *b == b';').skip(1).map(<[u8]>::trim_ascii);
    let weight = parameters.find_map(|parameter| {
        let (name, weight) = parameter.split_at_checked(2)?;
        name.eq_ignore_ascii_case(b"q=").then_some(weight)
    });
    let weight = weight.and_then(|weight| str::from_utf8(weight).ok()?.parse().ok());
    weight.filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or(1.0)
}

/// What events look like in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Own,
    CloudEvent,
}

impl Shape {
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let cloud_events = [cloud_event::MEDIA_TYPE, cloud_event::BATCH_MEDIA_TYPE];
        let is_cloud_event = cloud_events.into_iter().any(|media_type| accepts(headers, media_type));
        if is_cloud_event { Self::CloudEvent } else { Self::Own }
    }

    /// The media type of one event, or of a list.
    pub(super) fn media_type(self, is_list: bool) -> HeaderValue {
        match (self, is_list) {
            (Self::Own, _) => JSON,
            (Self::CloudEvent, false) => HeaderValue::from_static(cloud_event::MEDIA_TYPE),
            (Self::CloudEvent, true) => HeaderValue::from_static(cloud_event::BATCH_MEDIA_TYPE),
        }
    }

    /// Appends an event that has the form of a delivered one.
    pub(super) fn write(self, event: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Own => out.extend_from_slice(event),
            Self::CloudEvent => cloud_event::of_event(event, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_accepted_by_its_name_unless_its_weight_is_0() {
        let accepted = |accept: &'static str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            accepts(&headers, "application/x-ndjson")
        };
        for named in [
            "application/x-ndjson",
            "text/html, Application/X-NDJSON ; q=0.001",
            "application/x-ndjson;q=1",
            "application/x-ndjson;q=0, application/x-ndjson",
            "application/x-ndjson;q=",
        ] {
            assert!(accepted(named), "{named}");
        }
        for not in [
            "",
            "*/*",
            "application/*",
            "application/json",
            "application/x-ndjson;q=0",
            "application/x-ndjson; charset=utf-8 ; Q=0.000",
        ] {
            assert!(!accepted(not), "{not}");
        }
    }

    #[test]
    fn the_most_specific_range_decides_whether_a_type_is_acceptable() {
        let acceptable = |accept: &'static str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            preference(&headers, "text/html") > 0.0
        };
        assert!(preference(&HeaderMap::new(), "text/html") > 0.0);
        for taken in ["", "*/*", "text/*;q=0.1", "image/png, text/html", "text/html, */*;q=0", "text/html, text/*;q=0"]
        {
            assert!(acceptable(taken), "{taken}");
        }
        for not in ["image/png", "text/html;q=0, */*", "text/*;q=0, */*", "*/*;q=0", "text", "application/*"] {
            assert!(!acceptable(not), "{not}");
        }
    }
}
