//! A request that may be answered, as handlers get it.

use std::sync::Arc;

use hyper::Version;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;

use super::half_close::{HalfClose, HalfCloseGuard};
use super::large_page::Deadlines;
use super::parameters::Parameters;
use super::route::Route;
use crate::auth::Caller;
use crate::pipeline::Pipeline;
use crate::wire::Refusal;

/// A request that has shown its key and has a route.
pub(super) struct Request<'c> {
    pub(super) pipeline: &'c Arc<Pipeline>,
    pub(super) parts: &'c Parts,
    pub(super) route: &'static Route,
    /// The value of the variable in its path, decoded; empty where the path has none.
    pub(super) variable: String,
    pub(super) caller: Caller,
    pub(super) half_close: &'c HalfClose,
    /// Ends large answers that the client takes too slowly.
    pub(super) deadlines: &'c Deadlines,
}

impl Request<'_> {
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub(super) fn parameters(&self) -> Parameters<'_> {
        Parameters::of(&self.parts.uri)
    }

    /// To be held while the answer is read from storage.
    pub(super) fn guard_half_close(&self) -> HalfCloseGuard {
        self.half_close.guard()
    }
}

/// The host that a request names. It names one, once (RFC 9112, 3.2); only one of HTTP/1.0 may name none. HTTP/2 has a field
/// of its own for it, and a `Host` has to agree with it (RFC 9113, 8.3.1).
pub(super) fn host(parts: &Parts) -> Result<Option<&[u8]>, Refusal> {
    let authority = parts.uri.authority().filter(|_| parts.version == Version::HTTP_2);
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    let named = match (host, authority) {
        (Some(host), Some(authority)) => host.eq_ignore_ascii_case(authority.as_str().as_bytes()),
        (None, None) => parts.version == Version::HTTP_10,
        _ => true,
    };
    match named && hosts.next().is_none() {
        true => Ok(host.or(authority.map(|authority| authority.as_str().as_bytes()))),
        false => Err(Refusal::BadRequest("A request has one Host header".to_owned())),
    }
}
