//! Answers as hyper sends them: bodies, problems, and the headers that every answer has.

use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use crate::wire::Refusal;
use crate::wire::refusal::RateLimited;

/// The bytes of an answer. Usually all of them are there (left), and nothing is allocated for it. Exports, event streams and
/// large pages make them piece by piece (right).
pub(super) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, BrokenOff>>;

/// An answer did not reach its end.
#[derive(Debug, thiserror::Error)]
#[error("reading the stored events failed, they were not taken in time, or the key has ended")]
pub(super) struct BrokenOff;

/// What becomes of a request.
pub(super) type Result = std::result::Result<Response<Body>, Refusal>;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
pub(super) const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

pub(super) fn new(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Left(Full::new(body.into())));
    *response.status_mut() = status;
    *response.headers_mut() = COMMON.clone();
    if content_type != JSON {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    response
}

/// An answer whose body is made piece by piece.
pub(super) fn streamed(
    content_type: HeaderValue,
    body: impl hyper::body::Body<Data = Bytes, Error = BrokenOff> + Send + 'static,
) -> Response<Body> {
    new(StatusCode::OK, content_type, Bytes::new()).map(|_| Body::Right(body.boxed_unsync()))
}

pub(super) fn json(body: impl Into<Bytes>) -> Response<Body> {
    new(StatusCode::OK, JSON, body)
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = new(status, JSON, Bytes::new());
    response.headers_mut().remove(header::CONTENT_TYPE);
    response
}

/// A refusal, with the headers that belong to its status.
pub(super) fn refused(refusal: &Refusal) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.status()).expect("the table holds real statuses");
    let mut response = new(status, PROBLEM, refusal.problem());
    let headers = response.headers_mut();
    if let Some(wait) = refusal.retry_after() {
        headers.insert(header::RETRY_AFTER, wait.as_secs().max(1).into());
    }
    match refusal {
        Refusal::Unauthorized(_) => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Refusal::RateLimited(RateLimited { wait, count, per }) => {
            // As in draft-ietf-httpapi-ratelimit-headers-10.
            let fields = [
                ("ratelimit-policy", format!("\"default\";q={count};w={}", per.as_secs())),
                ("ratelimit", format!("\"default\";r=0;t={}", wait.as_secs())),
            ];
            for (name, value) in fields {
                headers.insert(name, HeaderValue::try_from(value).expect("ASCII"));
            }
        }
        Refusal::MethodNotAllowed(allowed) => {
            headers.insert(header::ALLOW, HeaderValue::try_from(allowed).expect("methods are ASCII"));
        }
        Refusal::UnsupportedCoding => {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        Refusal::UpgradeRequired => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        // The rest of the body is not read, so no further request can be found behind it.
        Refusal::TooSlow | Refusal::TooLarge(_) => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// A refusal as the bytes of an HTTP/1.1 answer, for a connection that is closed before anything is read from it.
pub(super) fn refused_unread(refusal: &Refusal, readers: Readers) -> Vec<u8> {
    let (mut response, body) = (refused(refusal), refusal.problem());
    let status = response.status();
    let headers = response.headers_mut();
    show_to(headers, readers);
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

/// The headers that an answer begins with. To copy the map costs less than to put it together.
static COMMON: LazyLock<HeaderMap> = LazyLock::new(|| {
    let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, JSON)]);
    add_common(&mut headers);
    headers
});

/// What browsers are told with every answer.
static EVERYWHERE: [(HeaderName, HeaderValue); 7] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::X_XSS_PROTECTION, HeaderValue::from_static("1; mode=block")),
    (header::REFERRER_POLICY, HeaderValue::from_static("strict-origin-when-cross-origin")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'self'")),
    (
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(
            "Link, Retry-After, RateLimit, RateLimit-Policy, Idempotent-Replayed, Event-Gap, Ack-Level",
        ),
    ),
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
];

/// Adds the headers of every answer, as all web pages may read it.
pub(super) fn add_common(headers: &mut HeaderMap) {
    headers.extend(EVERYWHERE.iter().cloned());
}

/// The web pages that may read an answer.
pub(super) enum Readers {
    All,
    /// Those of this origin. A page of another one would get another answer.
    Origin(HeaderValue),
    None,
}

/// Says which web pages may read an answer.
pub(super) fn show_to(headers: &mut HeaderMap, readers: Readers) {
    match readers {
        Readers::All => return,
        Readers::Origin(origin) => headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin),
        Readers::None => headers.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN),
    };
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}

/// Allows a page to send the headers that its browser asks for, with these methods. A browser never adds the key by itself,
/// so a page that does not know the key gains nothing from any header or method.
pub(super) fn preflight(asked: &HeaderMap, methods: &str) -> Response<Body> {
    /// Seconds after which a browser asks again, a day. Most ask after two hours whatever a server says.
    const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");
    const HEADERS: HeaderValue =
        HeaderValue::from_static("Authorization, Content-Type, X-API-Key, Idempotency-Key, Last-Event-ID");
    let mut response = empty(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    let methods = HeaderValue::from_str(methods).expect("methods are ASCII");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.unwrap_or(HEADERS));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    headers.append(header::VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
    response
}
