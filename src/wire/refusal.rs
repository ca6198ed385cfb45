//! Every refusal that a client can get, in one place: HTTP status, problem type, text, and whether to try again. What
//! only an operator needs to know is logged where it happens, and is not part of a refusal.

use std::borrow::Cow;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::frame::Violation;
use crate::event::{Mismatch, Rejection};
use crate::record::Failure;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    BadRequest(String),
    /// With why.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// With the name of the scope.
    #[error("The key does not allow this: it has no scope '{0}'")]
    ScopeMissing(&'static str),
    /// The key is for some events only. With why that does not go together with the request.
    #[error("{0}")]
    Pinned(Cow<'static, str>),
    #[error("No server of this name is here: it listens without authentication, so ALLOWED_HOSTS has to list the name")]
    Misdirected,
    #[error("Origin not allowed")]
    ForbiddenOrigin,
    #[error("{0}")]
    NotFound(&'static str),
    #[error("Method not allowed, use {0}")]
    MethodNotAllowed(String),
    /// With the media type that the answer would have.
    #[error("The answer would be {0}, which the Accept header of the request rules out")]
    NotAcceptable(&'static str),
    #[error("The request did not arrive in time")]
    TooSlow,
    #[error("The body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("Content type must be application/json, application/x-ndjson or one of CloudEvents")]
    UnsupportedMediaType,
    #[error("The body must not be compressed: a Content-Encoding is not understood")]
    UnsupportedCoding,
    /// With every problem found, at least one.
    #[error("{}", .0.first().map_or("", |problem| &*problem.msg))]
    Invalid(Vec<ValidationError>),
    #[error("This path is a WebSocket: connect over HTTP/1.1 with an Upgrade request")]
    UpgradeRequired,
    #[error("Rate limit exceeded, try again in {} s", .0.wait.as_secs().max(1))]
    RateLimited(RateLimited),
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("Reading the stored events failed, try again")]
    Unreadable,
    #[error("The server has as many connections as it takes, try again")]
    TooManyConnections,
    #[error("Too many large bodies are under way, try again")]
    TooManyBodies,
    #[error("Too many large pages are on their way, try again, or ask for fewer events with 'limit'")]
    TooManyPages,
    #[error(
        "This takes too long to read: ask for less, with a later start or with a filter on type, source, session or user"
    )]
    TooMuchToRead,
    #[error("The older events are still being counted, try again")]
    NotRolledUp,
    #[error("Server at subscriber capacity")]
    TooManySubscribers,
}

/// A client has used up its rate: `count` requests in each `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimited {
    /// How long until the next request is accepted.
    pub wait: Duration,
    pub count: u32,
    pub per: Duration,
}

/// One thing that is wrong in a request, and where: an item of the `detail` of a 422. (The whole body is a problem of
/// RFC 9457, which [`problem`] makes.)
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ValidationError {
    pub loc: Vec<Step>,
    pub msg: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
}

impl ValidationError {
    /// In a part of a request, such as its body: with the index of the event, if the part is an array, and with the
    /// field, if a single one is wrong.
    pub(super) fn at(
        part: &'static str,
        index: Option<usize>,
        field: Option<&'static str>,
        msg: String,
        kind: &'static str,
    ) -> Self {
        let mut loc = vec![Step::Name(part)];
        loc.extend(index.map(Step::Index));
        loc.extend(field.map(Step::Name));
        Self { loc, msg, kind }
    }
}

impl From<&Rejection> for ValidationError {
    fn from(rejection: &Rejection) -> Self {
        let Rejection { index, fault } = rejection;
        Self::at("body", *index, fault.field(), sentence(rejection), fault.kind())
    }
}

/// A step on the path to what is wrong: a name, or an index in an array.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Step {
    Name(&'static str),
    Index(usize),
}

/// What [`Refusal::slug`] returns, in the order of the alphabet.
pub const REASONS: [&str; 28] = [
    "bad-request",
    "body-compressed",
    "body-too-large",
    "damaged",
    "database-locked",
    "disk-full",
    "invalid",
    "method-not-allowed",
    "not-acceptable",
    "not-counted-yet",
    "not-found",
    "not-readable",
    "not-stored",
    "origin-not-allowed",
    "outside-of-key",
    "queue-full",
    "rate-limited",
    "request-too-slow",
    "scope-missing",
    "too-many-bodies",
    "too-many-connections",
    "too-many-pages",
    "too-many-subscribers",
    "too-much-to-read",
    "unauthorized",
    "unknown-host",
    "unsupported-media-type",
    "upgrade-required",
];

impl Refusal {
    /// The refusal of events, one or many of a body.
    pub fn of(rejections: &[Rejection]) -> Self {
        Self::Invalid(rejections.iter().map(ValidationError::from).collect())
    }

    /// A refusal with one problem.
    pub fn invalid(loc: Vec<Step>, msg: impl Into<String>, kind: &'static str) -> Self {
        Self::Invalid(vec![ValidationError { loc, msg: msg.into(), kind }])
    }

    /// The refusal of a query parameter.
    pub fn parameter(name: &'static str, msg: impl Into<String>, kind: &'static str) -> Self {
        Self::invalid(vec![Step::Name("query"), Step::Name(name)], msg, kind)
    }

    pub fn status(&self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::Unauthorized(_) => 401,
            Self::ForbiddenOrigin | Self::ScopeMissing(_) | Self::Pinned(_) => 403,
            Self::NotFound(_) => 404,
            Self::MethodNotAllowed(_) => 405,
            Self::NotAcceptable(_) => 406,
            Self::TooSlow => 408,
            Self::TooLarge(_) => 413,
            Self::UnsupportedMediaType | Self::UnsupportedCoding => 415,
            Self::Misdirected => 421,
            Self::Invalid(_) => 422,
            Self::UpgradeRequired => 426,
            Self::RateLimited(_) => 429,
            Self::Failed(Failure::Damaged) => 500,
            Self::Failed(Failure::StorageFull) => 507,
            Self::Failed(_)
            | Self::Unreadable
            | Self::TooManyConnections
            | Self::TooManyBodies
            | Self::TooManyPages
            | Self::TooMuchToRead
            | Self::NotRolledUp
            | Self::TooManySubscribers => 503,
        }
    }

    /// The last part of the problem type. `docs/openapi.json` lists all of them, with causes and remedies.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad-request",
            Self::Unauthorized(_) => "unauthorized",
            Self::ScopeMissing(_) => "scope-missing",
            Self::Pinned(_) => "outside-of-key",
            Self::Misdirected => "unknown-host",
            Self::ForbiddenOrigin => "origin-not-allowed",
            Self::NotFound(_) => "not-found",
            Self::MethodNotAllowed(_) => "method-not-allowed",
            Self::NotAcceptable(_) => "not-acceptable",
            Self::TooSlow => "request-too-slow",
            Self::TooLarge(_) => "body-too-large",
            Self::UnsupportedMediaType => "unsupported-media-type",
            Self::UnsupportedCoding => "body-compressed",
            Self::Invalid(_) => "invalid",
            Self::UpgradeRequired => "upgrade-required",
            Self::RateLimited(_) => "rate-limited",
            Self::Failed(Failure::QueueFull) => "queue-full",
            Self::Failed(Failure::StorageFull) => "disk-full",
            Self::Failed(Failure::Locked) => "database-locked",
            Self::Failed(Failure::Unavailable) => "not-stored",
            Self::Failed(Failure::Damaged) => "damaged",
            Self::Unreadable => "not-readable",
            Self::TooManyConnections => "too-many-connections",
            Self::TooManyBodies => "too-many-bodies",
            Self::TooManyPages => "too-many-pages",
            Self::TooMuchToRead => "too-much-to-read",
            Self::NotRolledUp => "not-counted-yet",
            Self::TooManySubscribers => "too-many-subscribers",
        }
    }

    /// The time after which the same request may succeed; `None` if it never will.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited(limited) => Some(limited.wait),
            Self::Failed(Failure::StorageFull) => Some(Duration::from_secs(30)),
            Self::TooMuchToRead => None,
            _ if self.status() == 503 => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The body, as `application/problem+json` (RFC 9457). The `detail` of a 422 is a list, because clients of the
    /// Python service expect one.
    pub fn problem(&self) -> Vec<u8> {
        let detail = match self {
            Self::Invalid(problems) => json!(problems),
            _ => self.to_string().into(),
        };
        Value::Object(problem(self.slug(), self.status(), detail)).to_string().into_bytes()
    }
}

/// The members that every problem has. Its `type` is a relative URL: the description of the problem type on `/docs`.
pub fn problem(slug: &str, status: u16, detail: Value) -> Map<String, Value> {
    let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let members = [
        ("type", format!("/docs#/problems/{slug}").into()),
        ("title", title.into()),
        ("status", status.into()),
        ("detail", detail),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Why the key of a client does not allow it to publish an event; in an array with the index of the event.
pub fn outside_of_key(index: Option<usize>, why: &Mismatch<'_>) -> String {
    let of_event = index.map_or_else(String::new, |index| format!("Event {index}: "));
    format!("{of_event}The key is for other events only: {why}")
}

/// The text for a client; in an array it names the index of the event.
pub fn sentence(rejection: &Rejection) -> String {
    match rejection.index {
        Some(index) => format!("Event {index}: {}", rejection.fault),
        None => rejection.fault.to_string(),
    }
}

/// Every code that the server closes a WebSocket with, and whether the client should connect again. `docs/CONTRACT.md`
/// has the same table for other clients.
pub const CLOSE_CODES: [(u16, Again); 13] = [
    (1000, Again::No),
    (1001, Again::Yes),
    (1002, Again::No),
    (1007, Again::No),
    (1008, Again::No),
    (1009, Again::No),
    (1011, Again::Yes),
    (1013, Again::Yes),
    (4001, Again::No),
    (4002, Again::Yes),
    (4008, Again::Yes),
    (4009, Again::No),
    (4010, Again::No),
];

/// Whether a client whose WebSocket was closed should connect again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Yes,
    /// The same would happen again, or it would undo the takeover or the deletion by another client.
    No,
}

impl Again {
    /// Whether to connect again after this code. After a code that is not ours, such as that of a proxy, it is worth a try.
    pub fn after(code: u16) -> Self {
        CLOSE_CODES.iter().find(|(known, _)| *known == code).map_or(Self::Yes, |(_, again)| *again)
    }
}

/// Why a WebSocket is closed; it decides the code and the reason of the Close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The peer closed it, with this code if it gave one.
    Asked(Option<u16>),
    /// The connection is broken, so no Close frame can be sent.
    Gone,
    /// The peer broke a rule of the protocol.
    Violated(Violation),
    GoingAway,
    NoFirstMessage,
    /// The peer sends nothing, not even an answer to pings.
    Silent,
    /// The first message cannot be served: it is invalid, or its start takes too long to find.
    NotUnderstood,
    Capacity,
    TooManyConnections,
    /// The stream has an end, and everything up to it was sent.
    Complete,
    /// The subscriber was too slow, and had asked for this with `on_lag`.
    TooSlow,
    /// The key that the client has shown is revoked or has expired.
    Unauthorized,
    /// Another connection goes on with the durable subscription.
    TakenOver,
    /// The durable subscription was deleted.
    Deleted,
    Failed,
}

impl Ending {
    /// The code of the Close frame; `None` if no such frame is sent.
    pub fn code(self) -> Option<u16> {
        self.close().map(|(code, _)| code)
    }

    /// The reason in the Close frame.
    pub fn reason(self) -> String {
        self.close().map_or(String::new(), |(_, reason)| reason.into_owned())
    }

    fn close(self) -> Option<(u16, Cow<'static, str>)> {
        let (code, reason) = match self {
            Self::Gone => return None,
            Self::Asked(code) => (code.unwrap_or(1000), ""),
            Self::Violated(violation) => return Some((violation.close_code(), violation.to_string().into())),
            Self::GoingAway => (1001, "Server is shutting down"),
            Self::NoFirstMessage => (1008, "No filters received in time"),
            // 1011 for a silent peer too, because after 1011 clients connect again.
            Self::Silent => (1011, "No answer to a ping"),
            Self::Failed => (1011, "Internal error, reconnect"),
            Self::NotUnderstood => (1008, "The message was not understood"),
            Self::Capacity => (1013, "Server at subscriber capacity"),
            Self::Complete => (1000, "Everything was sent"),
            Self::Unauthorized => (4001, "The key was revoked or has expired"),
            Self::TooManyConnections => (4002, "Too many connections from this address"),
            Self::TooSlow => (4008, "Too slow for the live stream"),
            Self::TakenOver => (4009, "Another connection goes on with this subscription"),
            Self::Deleted => (4010, "The subscription was deleted"),
        };
        Some((code, reason.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_has_a_code_of_the_table() {
        let endings = [
            Ending::Asked(None),
            Ending::Unauthorized,
            Ending::GoingAway,
            Ending::NoFirstMessage,
            Ending::Silent,
            Ending::NotUnderstood,
            Ending::Capacity,
            Ending::TooManyConnections,
            Ending::Complete,
            Ending::TooSlow,
            Ending::TakenOver,
            Ending::Deleted,
            Ending::Failed,
        ];
        let codes = endings.iter().filter_map(|ending| ending.code()).chain([1002, 1007, 1009]);
        let mut codes: Vec<_> = codes.collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes, CLOSE_CODES.map(|(code, _)| code), "1002, 1007 and 1009 are those of violations");
        assert_eq!(Again::after(1006), Again::Yes);
    }

    /// Clients look up a problem by its type. So each type has a description with the right status, and each
    /// description has a type.
    #[test]
    fn every_problem_type_is_described() {
        let refusals = [
            Refusal::BadRequest(String::new()),
            Refusal::Unauthorized("Missing or wrong API key"),
            Refusal::ScopeMissing("…"),
            Refusal::Pinned("".into()),
            Refusal::Misdirected,
            Refusal::ForbiddenOrigin,
            Refusal::NotFound(""),
            Refusal::MethodNotAllowed(String::new()),
            Refusal::NotAcceptable(""),
            Refusal::TooSlow,
            Refusal::TooLarge(0),
            Refusal::UnsupportedMediaType,
            Refusal::UnsupportedCoding,
            Refusal::Invalid(Vec::new()),
            Refusal::UpgradeRequired,
            Refusal::RateLimited(RateLimited { wait: Duration::ZERO, count: 1, per: Duration::ZERO }),
            Refusal::Failed(Failure::QueueFull),
            Refusal::Failed(Failure::StorageFull),
            Refusal::Failed(Failure::Locked),
            Refusal::Failed(Failure::Unavailable),
            Refusal::Failed(Failure::Damaged),
            Refusal::Unreadable,
            Refusal::TooManyConnections,
            Refusal::TooManyBodies,
            Refusal::TooManyPages,
            Refusal::TooMuchToRead,
            Refusal::NotRolledUp,
            Refusal::TooManySubscribers,
        ];
        let mut slugs: Vec<_> = refusals.iter().map(Refusal::slug).collect();
        slugs.sort_unstable();
        assert_eq!(slugs, REASONS);
        let types = refusals.iter().map(|refusal| (refusal.slug().to_owned(), u64::from(refusal.status())));
        // A readiness check has a problem of its own.
        let mut types: Vec<_> = types.chain([("not-ready".to_owned(), 503)]).collect();
        let text = std::fs::read_to_string("docs/openapi.json").expect("the document");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        let described = document["x-problem-types"].as_array().expect("a list").iter();
        let described = described.map(|row| (row["slug"].as_str(), row["status"].as_u64()));
        let mut described: Vec<_> = described.filter_map(|(slug, status)| Some((slug?.to_owned(), status?))).collect();
        types.sort();
        described.sort();
        assert_eq!(types, described);
        for row in document["x-problem-types"].as_array().expect("a list") {
            let sentence = row["detail"].as_str().expect("a sentence");
            let refusal = refusals.iter().find(|refusal| row["slug"] == refusal.slug());
            let parts: Vec<_> = sentence.split('…').collect();
            let said = refusal.map_or(String::new(), |refusal| refusal.to_string());
            let (begin, end) = (parts[0], parts[parts.len() - 1]);
            assert!(said.starts_with(begin) && said.ends_with(end), "{said:?} is not {sentence:?}");
        }
    }
}
