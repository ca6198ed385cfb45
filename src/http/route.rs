//! The route table: a row for each method of each path. It says which key a request needs, in which rate the request
//! counts, which methods a path has, and which parameters are known.

use hyper::Method;

use super::media::{OPEN_METRICS, TEXT};
use crate::auth::Scope;
use crate::web;
use crate::wire::cloud_event;
use crate::wire::request::STREAM_OPTIONS;

/// One method of one path.
#[derive(Debug)]
pub struct Route {
    pub method: Method,
    /// The path; a last segment in braces is a variable. The same path exists under [`PREFIX`].
    pub template: &'static str,
    pub endpoint: Endpoint,
    pub guard: Guard,
    /// Groups of the query parameters that are known. A name that ends with a dot stands for all names that begin with
    /// it.
    pub parameters: ParameterGroups,
    /// The status and the media types of an answer that is not a refusal. If there are several media types, the client
    /// chooses one. A test compares both with `docs/openapi.json`.
    pub status: u16,
    pub media_types: &'static [&'static str],
}

/// What answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    ListEvents,
    PublishEvents,
    DeleteEvents,
    EventStream,
    Event,
    ListSubscriptions,
    Explain,
    DeleteSubscription,
    Stats,
    Series,
    Metrics,
    WhoAmI,
    EventTypes,
    Health,
    Readiness,
    PublishSocket,
    SubscribeSocket,
    Home,
    /// One of the served files of [`web`].
    File,
    /// Redirects to `/docs`.
    ToDocs,
}

/// Which key a request needs, while authentication is on. The scope also says in which rate the request counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// None. It counts in no rate.
    Open,
    /// Any, in a header. It counts in the rate of those that read.
    AnyKey,
    /// One with this scope, in a header.
    Key(Scope),
    /// The same, but the key may also be the parameter `api_key`, because a browser cannot add a header to such a
    /// request.
    KeyInUrl(Scope),
}

pub type ParameterGroups = &'static [&'static [&'static str]];

/// Every path also exists under this prefix, because the Python service had it.
pub const PREFIX: &str = "/api/v1";

/// `payload.quiz_id=demo` asks for a text; for numbers there is `filter`.
pub(super) const PAYLOAD_PREFIX: &str = "payload.";

/// The parameters that select events.
#[rustfmt::skip]
pub(super) const FILTER: &[&str] = &[
    "filter", "event_type", "source", "session_id", "user_id",
    "exclude_event_type", "exclude_source", "exclude_session_id", "exclude_user_id", PAYLOAD_PREFIX,
];

/// Options of an event stream that a subscriber's first message has under another name, or not at all.
pub(super) const STREAM_OPTIONS_IN_URLS: &[&str] = &["interval_ms", "skipped", "latest_by"];

pub(super) const STREAM: ParameterGroups = &[FILTER, &STREAM_OPTIONS, STREAM_OPTIONS_IN_URLS, KEY];
const LIST: ParameterGroups = &[FILTER, &["since", "until", "before_id", "after_id", "epoch", "limit", "wait"]];
const DELETE: ParameterGroups = &[FILTER, &["before"]];
const SERIES: ParameterGroups = &[&["since", "until", "interval", "event_type", "group_by"]];
const ACK: &[&str] = &["ack"];
const KEY: &[&str] = &["api_key"];

const QUERY: Guard = Guard::Key(Scope::Query);
const PUBLISH: Guard = Guard::Key(Scope::Publish);
const METRICS: Guard = Guard::Key(Scope::Metrics);
const ADMIN: Guard = Guard::Key(Scope::Admin);
const SUBSCRIBE_IN_URL: Guard = Guard::KeyInUrl(Scope::Subscribe);
const PUBLISH_IN_URL: Guard = Guard::KeyInUrl(Scope::Publish);

const JSON: &[&str] = &[web::JSON];
const EVENT: &[&str] = &["application/json", cloud_event::MEDIA_TYPE];
const EVENTS: &[&str] = &["application/json", "application/x-ndjson", cloud_event::BATCH_MEDIA_TYPE];
const EXPOSITION: &[&str] = &[OPEN_METRICS, TEXT];
const SSE: &[&str] = &["text/event-stream"];

/// If two rows match a request, the first one counts. So a fixed segment stands before a variable one.
#[rustfmt::skip]
pub static ROUTES: [Route; 25] = [
    row(Method::GET, "/events", Endpoint::ListEvents, QUERY, LIST, 200, EVENTS),
    row(Method::POST, "/events", Endpoint::PublishEvents, PUBLISH, &[ACK], 201, JSON),
    row(Method::DELETE, "/events", Endpoint::DeleteEvents, ADMIN, DELETE, 200, JSON),
    row(Method::GET, "/events/stream", Endpoint::EventStream, SUBSCRIBE_IN_URL, STREAM, 200, SSE),
    row(Method::GET, "/events/{id}", Endpoint::Event, QUERY, &[], 200, EVENT),
    row(Method::GET, "/subscriptions", Endpoint::ListSubscriptions, QUERY, &[], 200, JSON),
    row(Method::GET, "/subscriptions/explain", Endpoint::Explain, QUERY, &[&["event_id"]], 200, JSON),
    row(Method::DELETE, "/subscriptions/{name}", Endpoint::DeleteSubscription, ADMIN, &[&["space"]], 204, &[]),
    row(Method::GET, "/stats", Endpoint::Stats, QUERY, &[], 200, JSON),
    row(Method::GET, "/stats/series", Endpoint::Series, QUERY, SERIES, 200, JSON),
    row(Method::GET, "/metrics", Endpoint::Metrics, METRICS, &[], 200, EXPOSITION),
    row(Method::GET, "/whoami", Endpoint::WhoAmI, Guard::AnyKey, &[], 200, JSON),
    row(Method::GET, "/event-types", Endpoint::EventTypes, Guard::Open, &[], 200, JSON),
    row(Method::GET, "/health", Endpoint::Health, Guard::Open, &[], 200, JSON),
    row(Method::GET, "/readiness", Endpoint::Readiness, Guard::Open, &[], 200, JSON),
    row(Method::GET, "/ws/publish", Endpoint::PublishSocket, PUBLISH_IN_URL, &[ACK, KEY], 101, &[]),
    row(Method::GET, "/ws/subscribe", Endpoint::SubscribeSocket, SUBSCRIBE_IN_URL, &[KEY], 101, &[]),
    row(Method::GET, "/", Endpoint::Home, Guard::Open, &[], 200, &[web::JSON, web::HTML]),
    row(Method::GET, "/openapi.json", Endpoint::File, Guard::Open, &[], 200, JSON),
    row(Method::GET, "/asyncapi.json", Endpoint::File, Guard::Open, &[], 200, JSON),
    row(Method::GET, "/docs", Endpoint::File, Guard::Open, &[], 200, &[web::HTML]),
    row(Method::GET, "/docs/", Endpoint::ToDocs, Guard::Open, &[], 307, &[]),
    row(Method::GET, "/redoc", Endpoint::ToDocs, Guard::Open, &[], 307, &[]),
    row(Method::GET, "/redoc/", Endpoint::ToDocs, Guard::Open, &[], 307, &[]),
    row(Method::GET, "/assets/{file}", Endpoint::File, Guard::Open, &[], 200, &[web::CSS, web::SCRIPT]),
];

const fn row(
    method: Method,
    template: &'static str,
    endpoint: Endpoint,
    guard: Guard,
    parameters: ParameterGroups,
    status: u16,
    media_types: &'static [&'static str],
) -> Route {
    Route { method, template, endpoint, guard, parameters, status, media_types }
}

impl Route {
    /// Whether the path is one of this route, with the value of its variable, still percent-encoded.
    fn matches<'p>(&self, path: &'p str) -> Option<&'p str> {
        if !self.template.ends_with('}') {
            return (path == self.template).then_some("");
        }
        let (before, _) = self.template.split_once('{')?;
        path.strip_prefix(before).filter(|value| !value.is_empty() && !value.contains('/'))
    }
}

/// What the table says of a path and a method.
#[derive(Debug)]
pub(super) struct Target<'p> {
    path: &'p str,
    method: &'p Method,
    /// The route, and the value of its variable; `None` where the path has no such method, or does not exist.
    pub(super) route: Option<(&'static Route, &'p str)>,
}

impl<'p> Target<'p> {
    pub(super) fn of(path: &'p str, method: &'p Method) -> Self {
        let path = without_prefix(path);
        let mut routes = ROUTES.iter().filter(|route| route.method == *method);
        let route = routes.find_map(|route| Some((route, route.matches(path)?)));
        Self { path, method, route }
    }

    /// A request without a route is refused, but its key is checked first. It needs the scope that its method
    /// suggests.
    pub(super) fn guard(&self) -> Guard {
        if let Some((route, _)) = self.route {
            return route.guard;
        }
        let scope = match *self.method {
            Method::DELETE => Scope::Admin,
            Method::POST => Scope::Publish,
            _ => Scope::Query,
        };
        match self.routes_of_path().next().map(|route| route.guard) {
            Some(Guard::Open) => Guard::Open,
            Some(Guard::KeyInUrl(_)) => Guard::KeyInUrl(scope),
            Some(Guard::AnyKey | Guard::Key(_)) | None => Guard::Key(scope),
        }
    }

    /// Its method and its path in the table, without what a client has put into it.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.method, self.route.map_or("", |(route, _)| route.template))
    }

    /// Whether it is a request of what watches the server, such as a load balancer or Prometheus.
    pub(super) fn is_probe(&self) -> bool {
        let probes = |endpoint| matches!(endpoint, Endpoint::Health | Endpoint::Readiness | Endpoint::Metrics);
        self.route.is_some_and(|(route, _)| probes(route.endpoint))
    }

    /// The methods of the path, as `Allow` lists them; `None` if it does not exist.
    pub(super) fn allow(&self) -> Option<String> {
        self.routes_of_path().next()?;
        Some(methods(self.routes_of_path()))
    }

    fn routes_of_path(&self) -> impl Iterator<Item = &'static Route> {
        ROUTES.iter().filter(|route| route.matches(self.path).is_some())
    }
}

/// A path as the route table has it.
pub(super) fn without_prefix(path: &str) -> &str {
    path.strip_prefix(PREFIX).unwrap_or(path)
}

/// Whether a parameter is known.
pub(super) fn is_known(parameters: ParameterGroups, name: &str) -> bool {
    parameters.iter().copied().flatten().any(|known| match known.ends_with('.') {
        true => name.starts_with(known),
        false => name == *known,
    })
}

/// The methods that any path has.
pub(super) fn all_methods() -> String {
    methods(ROUTES.iter())
}

/// HEAD goes with GET, and OPTIONS with everything.
fn methods(routes: impl Iterator<Item = &'static Route>) -> String {
    let mut methods = Vec::new();
    for route in routes {
        let of_route: &[&str] = if route.method == Method::GET { &["GET", "HEAD"] } else { &[route.method.as_str()] };
        methods.extend(of_route.iter().filter(|method| !methods.contains(*method)).copied().collect::<Vec<_>>());
    }
    methods.push("OPTIONS");
    methods.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_routes_under_both_prefixes() {
        let check = |path: &str, expected: Option<(Endpoint, &str)>| {
            for path in [path, &format!("{PREFIX}{path}")] {
                let found =
                    Target::of(path, &Method::GET).route.map(|(route, value)| (route.endpoint, value.to_owned()));
                assert_eq!(found, expected.map(|(endpoint, value)| (endpoint, value.to_owned())), "{path}");
            }
        };
        check("/events", Some((Endpoint::ListEvents, "")));
        check("/events/evt_000000000001", Some((Endpoint::Event, "evt_000000000001")));
        check("/events/stream", Some((Endpoint::EventStream, "")));
        check("/subscriptions/explain", Some((Endpoint::Explain, "")));
        check("/ws/subscribe", Some((Endpoint::SubscribeSocket, "")));
        for nothing in ["", "/events/", "/events/a/b", "//events", "/event", "/ws", "/Events", "/stats/"] {
            check(nothing, None);
        }
        for nothing in ["/api/v1/api/v1/events", "/api/v1events"] {
            let target = Target::of(nothing, &Method::GET);
            assert!(target.route.is_none() && target.allow().is_none(), "{nothing}");
        }
    }

    #[test]
    fn allow_lists_the_methods_of_a_path() {
        for (path, expected) in [
            ("/events", "GET, HEAD, POST, DELETE, OPTIONS"),
            ("/events/stream", "GET, HEAD, OPTIONS"),
            ("/subscriptions/explain", "GET, HEAD, DELETE, OPTIONS"),
            ("/subscriptions/x", "DELETE, OPTIONS"),
        ] {
            assert_eq!(Target::of(path, &Method::PUT).allow().as_deref(), Some(expected), "{path}");
        }
        assert_eq!(all_methods(), "GET, HEAD, POST, DELETE, OPTIONS");
    }

    #[test]
    fn a_request_without_a_route_still_needs_the_key_of_its_path() {
        let guard = |method, path| Target::of(path, &method).guard();
        assert_eq!(guard(Method::DELETE, "/nowhere"), Guard::Key(Scope::Admin));
        assert_eq!(guard(Method::PUT, "/events"), Guard::Key(Scope::Query));
        assert_eq!(guard(Method::DELETE, "/health"), Guard::Open);
        assert_eq!(guard(Method::POST, "/events/stream"), Guard::KeyInUrl(Scope::Publish));
    }
}
