//! The HTTP interface: one route table under two prefixes, and the handshakes of the WebSockets. HTTP/2 has the
//! same routes, but for the handshakes (see `h2`).
//!
//! Requests that are no HTTP are answered by hyper itself, with a bare 400, 414 or 431 and without our
//! headers; a connection whose next request does not come complete within the header timeout, which
//! also ends idle ones, is closed. A request with both `Content-Length` and `Transfer-Encoding` is
//! read by the latter alone and is the last of its connection (RFC 9112, 6.3).

mod answer;
mod body;
mod events;
mod export;
mod h2;
mod large_page;
mod live;
mod publish;
mod query;
mod socket;
mod subscriptions;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::auth::{Access, Class, Place};
use crate::event::{Parser, Timestamp};
use crate::pipeline::{Pipeline, Producer};
use crate::record::{AckLevel, Failure};
use crate::store::{self, Integrity, Progress, Store};
use crate::wire::Refusal;
use crate::wire::answer::Ack;
use crate::wire::refusal::Ending;
use crate::ws;
use answer::{Answer, Body, PROBLEM, Reader};
use h2::Protocol;
use large_page::{Deadlines, within_memory};
pub use publish::Form;
pub use query::Parameters;
use socket::{Socket, Watch};

/// What hyper may keep of one connection: the head of a request must fit, and bodies come in pieces of it. An
/// idle connection keeps less; ten thousand of the worst kind cost 640 MiB.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// How long a readiness probe waits; probes themselves often give up after a second or a few.
const READINESS_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves one connection until it ends, first as HTTP and then, if it is upgraded, as a WebSocket. When the
/// server shuts down, the request in hand is finished.
pub async fn serve(stream: TcpStream, peer: SocketAddr, pipeline: Arc<Pipeline>, producer: Producer) {
    let shutdown = pipeline.shutdown();
    let protocol = tokio::select! {
        biased;
        protocol = Protocol::of(&stream, pipeline.config.header_timeout) => protocol,
        () = shutdown.begun() => return,
    };
    let connection = Connection {
        parser: Mutex::new(pipeline.parser()),
        pipeline: pipeline.clone(),
        peer,
        producer: Mutex::new(Some(producer)),
        was_asked: AtomicBool::new(false),
        accepted: Mutex::new(None),
        watch: Watch::default(),
        deadlines: Deadlines::default(),
    };
    let socket = Socket::new(stream, pipeline.config.write_timeout, connection.watch.clone());
    match protocol {
        Protocol::Nothing => return,
        // Boxed, so that the other connections do not carry its room.
        Protocol::Http2 => return Box::pin(h2::serve(socket, connection)).await,
        Protocol::Http1 => {}
    }
    {
        let mut http = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                // Some clients end their side after the request and want the answer; `Socket` finds those that are
                // gone.
                .half_close(true)
                .header_read_timeout(pipeline.config.header_timeout)
                .max_buf_size(BUFFER_BYTES_MAX)
                .serve_connection(socket.with_first_lines(), service_fn(|request| connection.answer(request)))
                .with_upgrades()
        );
        let ended = tokio::select! {
            biased;
            ended = http.as_mut() => ended,
            () = shutdown.begun() => {
                http.as_mut().graceful_shutdown();
                connection.let_go();
                // A client that has not completed the head of its first request is not waited for.
                tokio::select! {
                    biased;
                    ended = http.as_mut() => ended,
                    () = sleep(body::grace(&pipeline)), if !connection.was_asked.load(Relaxed) => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            // Clients come and go as they like: nobody has to look at this.
            tracing::debug!(%peer, %error, "connection ended early");
        }
    }
    connection.deadlines.end().await;
    let Connection { accepted, producer, .. } = connection;
    let (Some(Accepted { upgrade, purpose }), producer) = (accepted.into_inner(), producer.into_inner()) else {
        return;
    };
    let Ok(upgraded) = upgrade.await else { return };
    let parts = upgraded.downcast::<Socket>().expect("every connection is served on a Socket");
    let ((stream, ahead), read) = (parts.io.into_parts(), parts.read_buf);
    let received = if ahead.is_empty() { read } else { [&read[..], &ahead].concat().into() };
    match purpose {
        Purpose::Publish(mode, _place) => ws::publish(stream, received, peer, pipeline, producer, mode).await,
        Purpose::Subscribe(_place) => {
            // It hands in nothing.
            drop(producer);
            ws::subscribe(stream, received, peer, pipeline).await;
        }
        Purpose::Refuse(ending) => ws::refuse(stream, ending).await,
    }
}

/// What the requests of one connection share.
struct Connection {
    pipeline: Arc<Pipeline>,
    peer: SocketAddr,
    parser: Mutex<Parser>,
    /// Holds the store open for the requests to come, until the server shuts down.
    producer: Mutex<Option<Producer>>,
    /// A whole head of a request has come.
    was_asked: AtomicBool,
    /// The handshake that was accepted, until hyper has let go of the stream.
    accepted: Mutex<Option<Accepted>>,
    watch: Watch,
    /// Ends the large pages that its client takes too slowly.
    deadlines: Deadlines,
}

struct Accepted {
    upgrade: OnUpgrade,
    purpose: Purpose,
}

/// What a WebSocket is for.
enum Purpose {
    Publish(Ack, Place),
    Subscribe(Place),
    Refuse(Ending),
}

/// Everything there is, by path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route<'p> {
    Events,
    Event(&'p str),
    Stream,
    Subscriptions,
    Subscription(&'p str),
    Stats,
    EventTypes,
    Health,
    Readiness,
    Publish,
    Subscribe,
}

/// Under `/subscriptions`, a question and not a name.
const EXPLAIN: &str = "explain";

impl<'p> Route<'p> {
    /// The same under both prefixes.
    fn of(path: &'p str) -> Option<Self> {
        let path = path.strip_prefix("/api/v1").unwrap_or(path);
        Some(match path {
            "/events" => Self::Events,
            "/events/stream" => Self::Stream,
            "/subscriptions" => Self::Subscriptions,
            "/stats" => Self::Stats,
            "/event-types" => Self::EventTypes,
            "/health" => Self::Health,
            "/readiness" => Self::Readiness,
            "/ws/publish" => Self::Publish,
            "/ws/subscribe" => Self::Subscribe,
            _ => {
                let last = |before| path.strip_prefix(before).filter(|last| !last.is_empty() && !last.contains('/'));
                last("/events/").map(Self::Event).or_else(|| last("/subscriptions/").map(Self::Subscription))?
            }
        })
    }

    fn methods(self) -> &'static str {
        match self {
            Self::Events => "GET, HEAD, POST, DELETE, OPTIONS",
            Self::Subscription(EXPLAIN) => "GET, HEAD, DELETE, OPTIONS",
            Self::Subscription(_) => "DELETE, OPTIONS",
            _ => "GET, HEAD, OPTIONS",
        }
    }

    fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Readiness | Self::EventTypes)
    }

    /// Browsers cannot add a header to what these are opened with.
    fn takes_key_in_url(self) -> bool {
        matches!(self, Self::Publish | Self::Subscribe | Self::Stream)
    }
}

impl Connection {
    /// The server shuts down: from now on only publishing requests in hand hold the store open. An export whose client
    /// takes it slowly does not.
    fn let_go(&self) {
        self.producer.lock().take();
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        self.was_asked.store(true, Relaxed);
        let (parts, body) = request.into_parts();
        let reader = self.reader(&parts.headers);
        let answered = match self.route(parts, body).await {
            Ok(whole) => within_memory(whole, None, &self.pipeline, &self.deadlines).await,
            refused => refused,
        };
        let mut response = answered.unwrap_or_else(|refusal| answer::refused(&refusal));
        answer::add_common(response.headers_mut(), reader);
        Ok(response)
    }

    /// Which page's origin may read the answer.
    fn reader(&self, headers: &HeaderMap) -> Reader {
        let access = &self.pipeline.access;
        match headers.get(header::ORIGIN) {
            _ if access.any_origin_allowed() => Reader::Anyone,
            Some(origin) if access.origin_allowed(Some(origin)) => Reader::Only(origin.clone()),
            _ => Reader::Nobody,
        }
    }

    /// Checks a request in this order: valid HTTP, rate, key, `Origin`, path, method, and then what its route checks.
    /// The rate comes before the key, so that guessing keys is limited, too.
    async fn route(&self, parts: Parts, body: Incoming) -> Answer {
        let Self { pipeline, peer, parser, .. } = self;
        let access = &pipeline.access;
        check_host(&parts)?;
        if is_preflight(&parts) {
            return self.preflight(&parts.headers);
        }
        let route = Route::of(parts.uri.path());
        // hyper leaves out the body of an answer to HEAD.
        let method = if parts.method == Method::HEAD { &Method::GET } else { &parts.method };
        if let Some(class) = class(route, method) {
            access.check(class, peer.ip())?;
            let parameters = route.filter(|route| route.takes_key_in_url()).map(|_| Parameters::of(&parts.uri));
            access.authorize(&parts.headers, parameters.as_ref().and_then(|parameters| parameters.get("api_key")))?;
        }
        // Browsers send some requests of a page without a preflight, such as a `POST` without a content type.
        if changes_something(method) && !access.origin_allowed(parts.headers.get(header::ORIGIN)) {
            return Err(Refusal::ForbiddenOrigin);
        }
        let route = route.ok_or(Refusal::NotFound("Not Found"))?;
        match (route, method) {
            (Route::Events, &Method::POST) => {
                let _open = self.producer.lock().clone().ok_or(Failure::Unavailable)?;
                publish::publish(pipeline, parser, &parts, body, &self.deadlines).await
            }
            (Route::Events, &Method::GET) => {
                let (watched, deadlines) = (self.watch.of_reading(), &self.deadlines);
                events::list(pipeline, &parts.headers, &parts.uri, watched, deadlines).await
            }
            (Route::Events, &Method::DELETE) => events::delete(&pipeline.store, &parts.uri).await,
            (Route::Event(id), &Method::GET) => events::one(&pipeline.store, &parts.headers, id).await,
            (Route::Stream, &Method::GET) => {
                live::stream(pipeline, &parts.headers, &parts.uri, self.watch.of_reading()).await
            }
            (Route::Subscriptions, &Method::GET) => {
                let _watched = self.watch.of_reading();
                subscriptions::list(pipeline, &self.deadlines).await
            }
            (Route::Subscription(EXPLAIN), &Method::GET) => {
                subscriptions::explain(pipeline, &parts.uri, &self.deadlines).await
            }
            (Route::Subscription(name), &Method::DELETE) => subscriptions::delete(pipeline, name).await,
            (Route::Stats, &Method::GET) => self.stats().await,
            (Route::EventTypes, &Method::GET) => Ok(answer::json(self.event_types())),
            (Route::Health, &Method::GET) => Ok(answer::json(HEALTH)),
            (Route::Readiness, &Method::GET) => Ok(self.readiness().await),
            (Route::Publish | Route::Subscribe, &Method::GET) => self.handshake(route == Route::Publish, &parts),
            (_, &Method::OPTIONS) => {
                let mut response = answer::no_content();
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(route.methods()));
                Ok(response)
            }
            _ => Err(Refusal::MethodNotAllowed(route.methods())),
        }
    }

    fn preflight(&self, headers: &HeaderMap) -> Answer {
        match self.pipeline.access.origin_allowed(headers.get(header::ORIGIN)) {
            true => Ok(answer::preflight(headers)),
            false => Err(Refusal::ForbiddenOrigin),
        }
    }

    /// Accepts a WebSocket: the stream goes to it once the 101 has left.
    fn handshake(&self, publishes: bool, parts: &Parts) -> Answer {
        let access = &self.pipeline.access;
        let request = Request::from_parts(parts.clone(), ());
        let upgrade = parts.extensions.get::<OnUpgrade>().cloned();
        let Some(upgrade) = upgrade.filter(|_| fastwebsockets::upgrade::is_upgrade_request(&request)) else {
            return Err(Refusal::UpgradeRequired);
        };
        if !access.origin_allowed(parts.headers.get(header::ORIGIN)) {
            return Err(Refusal::ForbiddenOrigin);
        }
        let ack = Parameters::of(&parts.uri).get("ack").map(Ack::parse).transpose().map_err(Refusal::BadRequest)?;
        let (response, _) = fastwebsockets::upgrade::upgrade(request).map_err(|error| match error {
            fastwebsockets::WebSocketError::InvalidSecWebsocketVersion => Refusal::UpgradeRequired,
            _ => Refusal::BadRequest("A WebSocket handshake has a Sec-WebSocket-Key".to_owned()),
        })?;
        let purpose = match access.connection(self.peer.ip()) {
            None => Purpose::Refuse(Ending::TooManyConnections),
            Some(place) if publishes => Purpose::Publish(ack.unwrap_or_default(), place),
            Some(place) => Purpose::Subscribe(place),
        };
        *self.accepted.lock() = Some(Accepted { upgrade, purpose });
        Ok(response.map(|_| Body::Whole(http_body_util::Full::default())))
    }

    async fn stats(&self) -> Answer {
        let stats = reading(&self.pipeline.store, |reader| reader.stats(Timestamp::now())).await?;
        let by_type = stats.by_type.iter().map(|of_type| {
            serde_json::json!({
                "event_type": of_type.event_type,
                "count": of_type.count,
                "last_seen": of_type.last_seen,
            })
        });
        let stats = serde_json::json!({
            "total_events": stats.total_events,
            "events_last_hour": stats.events_last_hour,
            "by_type": by_type.collect::<Vec<_>>(),
            "epoch": self.pipeline.store.epoch().to_string(),
            "integrity": self.integrity(),
            "router": self.router(),
        });
        Ok(answer::json(stats.to_string()))
    }

    fn router(&self) -> Value {
        let Pipeline { store, config, .. } = &*self.pipeline;
        let at = |level: AckLevel| (level.name().to_owned(), store.counts().at(level).into());
        let acknowledged: Map<String, Value> = AckLevel::ALL.into_iter().map(at).collect();
        serde_json::json!({
            "active_subscribers": self.pipeline.subscribers(),
            "queue_size": store.queue_len(),
            "max_queue_size": config.max_queue_size,
            "wal_pages": store.log().pages_to_move(),
            "wal_bytes": store.log().bytes(),
            "wal_held_since": store.log().held_since().map(|since| since.to_string()),
            "acknowledged": acknowledged,
            "queued_and_lost": store.counts().queued_and_lost(),
        })
    }

    /// What is known of the database's soundness.
    fn integrity(&self) -> Value {
        let Integrity { progress, events, damage } = self.pipeline.store.integrity();
        let state = match progress {
            _ if !damage.is_empty() => "damaged",
            Progress::Off => "unchecked",
            Progress::Running => "checking",
            Progress::Done => "sound",
        };
        serde_json::json!({ "state": state, "checked_events": events, "damage": damage })
    }

    fn event_types(&self) -> String {
        let types = self.pipeline.types.iter().map(|(name, description)| (name.to_owned(), description.into()));
        Value::Object(types.collect::<Map<_, _>>()).to_string()
    }

    /// Whether an event would be accepted now. The refusal is a problem with the members of the answer.
    async fn readiness(&self) -> Response<Body> {
        let (ready, database, detail) = match self.pipeline.shutdown().has_begun() {
            true => (false, "connected", "The server is shutting down".to_owned()),
            false => match timeout(READINESS_TIMEOUT, self.pipeline.store.check()).await {
                Ok(Ok(())) => (true, "connected", String::new()),
                Ok(Err(failure @ Failure::QueueFull)) => (false, "connected", failure.to_string()),
                Ok(Err(failure)) => (false, "unavailable", failure.to_string()),
                Err(_) => (false, "unavailable", "The database did not answer in time".to_owned()),
            },
        };
        let mut body = serde_json::json!({ "ready": ready, "database": database, "integrity": self.integrity(),
            "router": self.router() });
        if ready {
            return answer::json(body.to_string());
        }
        body["title"] = "Service Unavailable".into();
        body["status"] = 503.into();
        body["detail"] = detail.into();
        let mut response = answer::answer(StatusCode::SERVICE_UNAVAILABLE, PROBLEM, body.to_string());
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }
}

/// The 503 for a client that connects when the server is full, as bytes: nothing of its request is read.
pub fn no_places_left(access: &Access) -> Vec<u8> {
    let reader = if access.any_origin_allowed() { Reader::Anyone } else { Reader::Nobody };
    answer::unread(&Refusal::TooManyConnections, reader)
}

const HEALTH: &str =
    concat!(r#"{"status":"ok","service":"event-pipeline","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#);

/// The rate that a request counts in; `None` for the paths that are open without a key.
fn class(route: Option<Route<'_>>, method: &Method) -> Option<Class> {
    match (route, method) {
        (Some(route), _) if route.is_open() => None,
        (_, &Method::DELETE) => Some(Class::Admin),
        (Some(Route::Publish), _) | (_, &Method::POST) => Some(Class::Publish),
        _ => Some(Class::Query),
    }
}

/// All but what HTTP calls safe (RFC 9110, 9.2.1).
fn changes_something(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// A request names its host, once (RFC 9112, 3.2). HTTP/2 has a place of its own for it, with which a `Host` agrees
/// (RFC 9113, 8.3.1).
fn check_host(parts: &Parts) -> Result<(), Refusal> {
    let authority = parts.uri.authority().filter(|_| parts.version == Version::HTTP_2);
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let named = match (hosts.next(), authority) {
        (Some(host), Some(authority)) => host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()),
        (None, None) => parts.version == Version::HTTP_10,
        _ => true,
    };
    match named && hosts.next().is_none() {
        true => Ok(()),
        false => Err(Refusal::BadRequest("A request has one Host header".to_owned())),
    }
}

/// A browser asks whether a page may send something. It never shows a key with it.
fn is_preflight(parts: &Parts) -> bool {
    let has = |name| parts.headers.contains_key(name);
    parts.method == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Reads the record where it may block.
///
/// # Errors
/// `TooMuchToRead` when it takes too long; `Damaged` or `Unreadable` when SQLite reports an error, which is logged here.
async fn reading<T: Send + 'static>(
    store: &Store,
    read: impl FnOnce(&store::Reader) -> store::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    store.reading_in_time(read).await.map_err(|error| unreadable(&error))
}

/// What SQLite says is for the operator.
fn unreadable(error: &store::Error) -> Refusal {
    if error.took_too_long() {
        return Refusal::TooMuchToRead;
    }
    tracing::error!(%error, "read stored events");
    if error.is_damage() { Refusal::Failed(Failure::Damaged) } else { Refusal::Unreadable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_routes_under_both_prefixes() {
        let check = |path: &str, expected| {
            assert_eq!(Route::of(path), expected, "{path}");
            assert_eq!(Route::of(&format!("/api/v1{path}")), expected, "/api/v1{path}");
        };
        check("/events", Some(Route::Events));
        check("/events/evt_000000000001", Some(Route::Event("evt_000000000001")));
        check("/ws/subscribe", Some(Route::Subscribe));
        for nothing in ["", "/", "/events/", "/events/a/b", "//events", "/event", "/ws", "/Events", "/stats/"] {
            check(nothing, None);
        }
        assert_eq!(Route::of("/api/v1/api/v1/events"), None);
        assert_eq!(Route::of("/api/v1events"), None);
    }
}
