//! What the requests of one connection share, and how each of them is checked and answered.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;

use super::files::{self, NOTHING_HERE};
use super::half_close::HalfClose;
use super::handshake::{self, Handshake};
use super::large_page::{Deadlines, within_memory};
use super::parameters::Parameters;
use super::request::{Request, host};
use super::response::{self, Body, Readers};
use super::route::{self, Endpoint, Guard, Target};
use super::{event_stream, events, metrics, publish, series, status, subscriptions};
use crate::auth::{Access, Caller, Counted, Principal, Scope, Verified};
use crate::event::Parser;
use crate::pipeline::{Pipeline, Producer};
use crate::record::Failure;
use crate::wire::Refusal;

/// What hyper may keep of one connection: the head of a request must fit, and bodies come in pieces of it. An idle
/// connection keeps less; ten thousand connections of the worst kind cost 640 MiB.
pub(super) const BUFFER_BYTES_MAX: usize = 64 << 10;

/// A year. Other names of the domain are not the server's to decide for.
const ONLY_TLS: HeaderValue = HeaderValue::from_static("max-age=31536000");

pub(super) struct Connection {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) peer: SocketAddr,
    /// Whether it is TLS.
    is_tls: bool,
    parser: Mutex<Parser>,
    verified: Mutex<Verified>,
    /// Holds the store open for the requests to come, until the server shuts down.
    producer: Mutex<Option<Producer>>,
    /// The whole head of a request has come.
    has_request: AtomicBool,
    /// The handshake that was accepted, until hyper has let go of the connection.
    handshake: Mutex<Option<Handshake>>,
    pub(super) half_close: HalfClose,
    pub(super) deadlines: Deadlines,
}

impl Connection {
    pub(super) fn new(pipeline: Arc<Pipeline>, peer: SocketAddr, is_tls: bool, producer: Producer) -> Self {
        Self {
            parser: Mutex::new(pipeline.parser()),
            verified: Mutex::default(),
            pipeline,
            peer,
            is_tls,
            producer: Mutex::new(Some(producer)),
            has_request: AtomicBool::new(false),
            handshake: Mutex::new(None),
            half_close: HalfClose::default(),
            deadlines: Deadlines::default(),
        }
    }

    /// Answers a request.
    pub(super) async fn answer(&self, request: hyper::Request<Incoming>) -> Result<Response<Body>, Infallible> {
        self.has_request.store(true, Relaxed);
        let (parts, body) = request.into_parts();
        let readers = self.readers(&parts.headers);
        let answered = match self.check(parts, body).await {
            Ok(whole) => within_memory(whole, None, &self.pipeline, &self.deadlines).await,
            refused => refused,
        };
        let mut response = answered.unwrap_or_else(|refusal| {
            self.pipeline.refusals.note(refusal.slug());
            response::refused(&refusal)
        });
        response::show_to(response.headers_mut(), readers);
        // Not with a certificate for localhost: it would cut browsers off from all other servers there, too.
        if self.is_tls && !self.pipeline.config.tls_self_signed {
            response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, ONLY_TLS);
        }
        Ok(response)
    }

    /// Whether the whole head of a request has come.
    pub(super) fn has_request(&self) -> bool {
        self.has_request.load(Relaxed)
    }

    /// The server shuts down: from now on only requests in hand that publish hold the store open. An export does not, so a
    /// client that takes it slowly delays nothing.
    pub(super) fn release_store(&self) {
        self.producer.lock().take();
    }

    /// What follows after the connection has been HTTP: the handshake, and what holds the store open.
    pub(super) fn into_handshake(self) -> Option<(Handshake, Option<Producer>)> {
        Some((self.handshake.into_inner()?, self.producer.into_inner()))
    }

    /// The web pages that may read the answer.
    fn readers(&self, headers: &HeaderMap) -> Readers {
        let pages = &self.pipeline.access.pages;
        if pages.are_any() {
            // The answer is the same for each origin.
            return Readers::All;
        }
        // To the server's own pages the browser shows the answer anyway.
        match headers.get(header::ORIGIN) {
            Some(origin) if pages.allows(Some(origin.as_bytes()), None) => Readers::Origin(origin.clone()),
            _ => Readers::None,
        }
    }

    /// Checks a request in this order: valid HTTP, host, key, rate, scope, `Origin`, path, method. Its endpoint checks the
    /// rest.
    async fn check(&self, parts: Parts, body: Incoming) -> response::Result {
        let access = &self.pipeline.access;
        let pages = &access.pages;
        let host = host(&parts)?;
        let origin = parts.headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
        if is_preflight(&parts) {
            pages.check_host(host)?;
            return match pages.allows(origin, host) {
                true => Ok(response::preflight(&parts.headers, &route::all_methods())),
                false => Err(Refusal::ForbiddenOrigin),
            };
        }
        // hyper leaves out the body of an answer to HEAD.
        let method = if parts.method == Method::HEAD { &Method::GET } else { &parts.method };
        let target = Target::of(parts.uri.path(), method);
        // A prober may call the server by any name, and sees no event.
        if !target.is_probe() {
            pages.check_host(host)?;
        }
        let caller = match target.guard() {
            Guard::Open => {
                let from = self.peer.ip();
                Caller { counted: Counted::address(from), from, principal: Principal::Anonymous }
            }
            Guard::AnyKey => self.admit(&parts.headers, None, Scope::Query)?,
            guard @ (Guard::Key(scope) | Guard::KeyInUrl(scope)) => {
                let parameters = matches!(guard, Guard::KeyInUrl(_)).then(|| Parameters::of(&parts.uri));
                let in_url = parameters.as_ref().and_then(|parameters| parameters.get("api_key"));
                let caller = self.admit(&parts.headers, in_url, scope)?;
                access.may(&caller, scope, || target.name())?;
                caller
            }
        };
        // Browsers send some requests of a page without a preflight, such as a `POST` without a content type.
        let is_foreign_change = changes_something(method) && !pages.allows(origin, host);
        if is_foreign_change || (target.guard() != Guard::Open && !pages.allows_fetch(&parts.headers, host)) {
            return Err(Refusal::ForbiddenOrigin);
        }
        let Some((route, variable)) = target.route else {
            return no_route(&target, method);
        };
        let request = Request {
            pipeline: &self.pipeline,
            parts: &parts,
            route,
            variable: percent_decode_str(variable).decode_utf8_lossy().into_owned(),
            caller,
            half_close: &self.half_close,
            deadlines: &self.deadlines,
        };
        self.dispatch(&request, body).await
    }

    fn admit(&self, headers: &HeaderMap, key_in_url: Option<&str>, scope: Scope) -> Result<Caller, Refusal> {
        self.pipeline.access.admit(self.peer.ip(), headers, key_in_url, &mut self.verified.lock(), scope)
    }

    async fn dispatch(&self, request: &Request<'_>, body: Incoming) -> response::Result {
        if request.route.endpoint == Endpoint::PublishEvents {
            let _open = self.producer.lock().clone().ok_or(Failure::Unavailable)?;
            return publish::publish(request, &self.parser, body).await;
        }
        // hyper moves the future of every answer. Boxed, the larger ones make that of a publication no larger.
        Box::pin(self.dispatch_others(request)).await
    }

    async fn dispatch_others(&self, request: &Request<'_>) -> response::Result {
        let pipeline = &self.pipeline;
        match request.route.endpoint {
            Endpoint::PublishEvents => unreachable!("it has a body"),
            Endpoint::ListEvents => events::list(request).await,
            Endpoint::DeleteEvents => events::delete(request).await,
            Endpoint::EventStream => event_stream::open(request).await,
            Endpoint::Event => events::one(request).await,
            Endpoint::ListSubscriptions => subscriptions::list(request).await,
            Endpoint::Explain => subscriptions::explain(request).await,
            Endpoint::DeleteSubscription => subscriptions::delete(request).await,
            Endpoint::Stats => status::stats(request).await,
            Endpoint::Series => series::series(request).await,
            Endpoint::Metrics => {
                request.caller.principal.sees_all()?;
                Ok(metrics::metrics(request.headers(), pipeline).await)
            }
            Endpoint::WhoAmI => Ok(status::who_am_i(request)),
            Endpoint::EventTypes => status::event_types(pipeline),
            Endpoint::Home => files::home(request),
            Endpoint::File => files::file(request),
            Endpoint::ToDocs => files::to_docs(request),
            Endpoint::Health => status::health(),
            Endpoint::Readiness => status::readiness(pipeline).await,
            Endpoint::PublishSocket | Endpoint::SubscribeSocket => {
                let (response, handshake) = handshake::accept(request)?;
                *self.handshake.lock() = Some(handshake);
                Ok(response)
            }
        }
    }
}

/// The 503 for a client that connects when the server is full, as bytes: nothing of its request is read.
pub fn no_slots_left(access: &Access) -> Vec<u8> {
    refused_unread(&Refusal::TooManyConnections, access)
}

/// A refusal as bytes, for a client whose request is not read.
pub(super) fn refused_unread(refusal: &Refusal, access: &Access) -> Vec<u8> {
    let readers = if access.pages.are_any() { Readers::All } else { Readers::None };
    response::refused_unread(refusal, readers)
}

/// What a request gets whose path does not exist or has no such method.
fn no_route(target: &Target<'_>, method: &Method) -> response::Result {
    let allow = target.allow().ok_or(Refusal::NotFound(NOTHING_HERE))?;
    if *method != Method::OPTIONS {
        return Err(Refusal::MethodNotAllowed(allow));
    }
    let mut response = response::empty(StatusCode::NO_CONTENT);
    response.headers_mut().insert(header::ALLOW, HeaderValue::try_from(allow).expect("methods are ASCII"));
    Ok(response)
}

/// All methods but those that HTTP calls safe (RFC 9110, 9.2.1).
fn changes_something(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// With a preflight a browser asks whether a page may send a request. It never shows the key with it.
fn is_preflight(parts: &Parts) -> bool {
    let has = |name| parts.headers.contains_key(name);
    parts.method == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}
