//! Answers with the served files of [`web`]: interface documents, web pages and their assets.

use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderValue};
use serde_json::json;

use super::media::{names, preference};
use super::request::Request;
use super::response;
use super::route::without_prefix;
use crate::web;
use crate::wire::Refusal;

/// The content security policy of a web page. It loads only what comes from this server. Its scripts cannot turn text
/// into HTML or code, except through the Trusted Types policy of the template library.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types lit-html",
);

/// The answer to a request for a path that does not exist.
pub(super) const NOTHING_HERE: &str =
    "Nothing is at this path. /docs shows what there is, /openapi.json and /asyncapi.json describe it for programs";

/// A browser keeps a file, but asks each time whether it is still the same, so that no page of an older version is
/// shown after an upgrade.
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");

/// `GET /`: a page for a client that wants HTML more than JSON, as a browser does; JSON for every other.
pub(super) fn home(request: &Request<'_>) -> response::Result {
    let wants = |media_type| preference(request.headers(), media_type);
    let mut response = match wants(web::HTML) > wants(web::JSON) {
        true => file(request)?,
        false => response::json(
            json!({
                "service": "event-pipeline",
                "version": env!("CARGO_PKG_VERSION"),
                "docs": "/docs",
                "openapi": "/openapi.json",
                "asyncapi": "/asyncapi.json",
            })
            .to_string(),
        ),
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// A served file, in gzip for a client that accepts it. A `Range` is ignored, which a server may do (RFC 9110, 14.2).
pub(super) fn file(request: &Request<'_>) -> response::Result {
    let (path, headers) = (request.parts.uri.path(), request.headers());
    let file = web::file(without_prefix(path)).ok_or(Refusal::NotFound(NOTHING_HERE))?;
    if preference(headers, file.media_type) == 0.0 {
        return Err(Refusal::NotAcceptable(file.media_type));
    }
    let is_gzip = names(headers, header::ACCEPT_ENCODING, "gzip");
    let encoded = if is_gzip { file.gzip() } else { file.plain() };
    let mut response = match has_tag(headers, &encoded.tag) {
        true => response::empty(StatusCode::NOT_MODIFIED),
        false => {
            // JSON has no charset: it is always UTF-8 (RFC 8259, 11).
            let charset = if file.media_type.starts_with("text/") { "; charset=utf-8" } else { "" };
            let content_type = format!("{}{charset}", file.media_type);
            let content_type = HeaderValue::try_from(content_type).expect("media types are ASCII");
            let mut whole = response::new(StatusCode::OK, content_type, encoded.bytes.clone());
            if is_gzip {
                whole.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            whole
        }
    };
    let answered = response.headers_mut();
    if file.is_page() {
        answered.insert(header::CONTENT_SECURITY_POLICY, PAGE_POLICY);
    }
    answered.insert(header::ETAG, HeaderValue::try_from(&encoded.tag).expect("a tag is ASCII"));
    answered.insert(header::CACHE_CONTROL, REVALIDATE);
    answered.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    Ok(response)
}

/// Redirects `/docs/`, `/redoc` and `/redoc/` to `/docs`. People look there because the Python service and many others
/// have their documents there. The target is relative, so it works with and without the prefix `/api/v1`, and behind a
/// proxy that adds a prefix of its own.
pub(super) fn to_docs(request: &Request<'_>) -> response::Result {
    let is_folder = request.parts.uri.path().ends_with('/');
    let mut response = response::empty(StatusCode::TEMPORARY_REDIRECT);
    let target = HeaderValue::from_static(if is_folder { "../docs" } else { "docs" });
    response.headers_mut().insert(header::LOCATION, target);
    Ok(response)
}

/// Whether the client already has the file with this tag. A proxy may have turned the tag into a weak one (`W/`).
fn has_tag(headers: &HeaderMap, tag: &str) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let mut tags = tags.map(<[u8]>::trim_ascii);
    tags.any(|known| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == tag.as_bytes())
}
