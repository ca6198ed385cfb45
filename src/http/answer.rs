//! Answers as hyper sends them: bodies, problems, and the headers that every answer has.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use crate::wire::Refusal;

/// The bytes of an answer.
pub(super) enum Body {
    /// There already, as almost always: nothing is allocated for it.
    Whole(Full<Bytes>),
    /// Produced piece by piece, by an export, a live stream or a large page.
    Streamed(UnsyncBoxBody<Bytes, BrokenOff>),
}

/// An answer did not reach its end.
#[derive(Debug, thiserror::Error)]
#[error("reading the stored events failed, or they were not taken in time")]
pub(super) struct BrokenOff;

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Streamed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Streamed(body) => body.size_hint(),
        }
    }
}

pub(super) type Answer = Result<Response<Body>, Refusal>;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
pub(super) const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

pub(super) fn answer(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Full::new(body.into())));
    *response.status_mut() = status;
    // Room for the common headers too, so that the map grows once.
    response.headers_mut().reserve(EVERYWHERE.len() + 4);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// An answer whose body is produced piece by piece.
pub(super) fn streamed(
    content_type: HeaderValue,
    body: impl hyper::body::Body<Data = Bytes, Error = BrokenOff> + Send + 'static,
) -> Response<Body> {
    answer(StatusCode::OK, content_type, Bytes::new()).map(|_| Body::Streamed(body.boxed_unsync()))
}

pub(super) fn json(body: impl Into<Bytes>) -> Response<Body> {
    answer(StatusCode::OK, JSON, body)
}

pub(super) fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::Whole(Full::default()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// A refusal, with the headers that belong to its status.
pub(super) fn refused(refusal: &Refusal) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.status()).expect("the table holds real statuses");
    let mut response = answer(status, PROBLEM, refusal.problem());
    let headers = response.headers_mut();
    if let Some(wait) = refusal.retry_after() {
        headers.insert(header::RETRY_AFTER, wait.as_secs().max(1).into());
    }
    match refusal {
        Refusal::Unauthorized => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Refusal::MethodNotAllowed(allowed) => {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        Refusal::UnsupportedCoding => {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        Refusal::UpgradeRequired => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        // The rest of the body is not read, so no further request can follow it.
        Refusal::TooSlow | Refusal::TooLarge(_) => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// A refusal as the bytes of an HTTP/1.1 answer, for a connection that is closed unread.
pub(super) fn unread(refusal: &Refusal, reader: Reader) -> Vec<u8> {
    let (mut response, body) = (refused(refusal), refusal.problem());
    let status = response.status();
    let headers = response.headers_mut();
    add_common(headers, reader);
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut bytes = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for (name, value) in &*headers {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    bytes
}

/// What browsers are told with every answer.
static EVERYWHERE: [(HeaderName, HeaderValue); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::X_XSS_PROTECTION, HeaderValue::from_static("1; mode=block")),
    (header::REFERRER_POLICY, HeaderValue::from_static("strict-origin-when-cross-origin")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'self'")),
    (
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("Link, Retry-After, Idempotent-Replayed, Event-Gap, Ack-Level"),
    ),
];

/// Which origin may read an answer.
pub(super) enum Reader {
    Anyone,
    /// This one; another would be told something else.
    Only(HeaderValue),
    Nobody,
}

pub(super) fn add_common(headers: &mut HeaderMap, reader: Reader) {
    for (name, value) in &EVERYWHERE {
        headers.insert(name, value.clone());
    }
    match reader {
        Reader::Anyone => {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            return;
        }
        Reader::Only(origin) => {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
        Reader::Nobody => {}
    }
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}

/// Allows a page to send what its browser asks for. Keys are never sent by a browser of its own accord,
/// so there is nothing that a header or a method could abuse.
pub(super) fn preflight(asked: &HeaderMap) -> Response<Body> {
    /// Browsers ask again after this at the latest; most after two hours.
    const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");
    const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, DELETE, OPTIONS");
    const HEADERS: HeaderValue =
        HeaderValue::from_static("Authorization, Content-Type, X-API-Key, Idempotency-Key, Last-Event-ID");
    let mut response = no_content();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.unwrap_or(HEADERS));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    headers.append(header::VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
    response
}

/// A media type without its parameters.
pub(super) fn media_type(value: &[u8]) -> &[u8] {
    value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii()
}
