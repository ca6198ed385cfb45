//! Who may do what, and how often: the key, the origins, the rates, and the places of one address.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use governor::clock::Clock;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderValue};
use subtle::ConstantTimeEq;

use crate::config::{Config, CorsOrigins, Rate};
use crate::wire::Refusal;

/// The rules of access that the configuration sets, and what they have counted so far.
pub struct Access {
    required: bool,
    key: Box<[u8]>,
    origins: CorsOrigins,
    publish: Option<Limiter>,
    query: Option<Limiter>,
    admin: Option<Limiter>,
    places_max: usize,
    places: Arc<DashMap<IpAddr, usize>>,
}

/// What a request does, each with a rate of its own. On a WebSocket the handshake counts as one request, together with
/// a subscriber's first message; then each message of a publisher and each `update_filters` of a subscriber counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Publish,
    Query,
    Admin,
}

impl Access {
    pub fn new(config: &Config) -> Self {
        Self {
            required: config.require_auth,
            key: config.api_key.as_bytes().into(),
            origins: config.cors_origins.clone(),
            publish: config.rate_limit_publish.map(Limiter::new),
            query: config.rate_limit_query.map(Limiter::new),
            admin: config.rate_limit_admin.map(Limiter::new),
            places_max: config.max_ws_connections_per_ip,
            places: Arc::default(),
        }
    }

    /// Whether a request shows the key, in `X-API-Key`, in `Authorization: Bearer`, or, where the client
    /// cannot set headers, in its URL. With no key configured nobody can.
    ///
    /// # Errors
    /// `Unauthorized`.
    pub fn authorize(&self, headers: &HeaderMap, in_url: Option<&str>) -> Result<(), Refusal> {
        if !self.required {
            return Ok(());
        }
        let shown = [
            headers.get("x-api-key").map(HeaderValue::as_bytes),
            headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes())),
            in_url.map(str::as_bytes),
        ];
        // The time of the comparison tells the length of the key, and nothing else about it.
        let is_key = |shown: &[u8]| bool::from(shown.ct_eq(&self.key));
        let authorized = !self.key.is_empty() && shown.into_iter().flatten().any(is_key);
        authorized.then_some(()).ok_or(Refusal::Unauthorized)
    }

    /// Whether a page of this origin may talk to us. Who sends no `Origin` is not a page.
    pub fn origin_allowed(&self, origin: Option<&HeaderValue>) -> bool {
        origin.is_none_or(|origin| origin.to_str().is_ok_and(|origin| self.origins.allows(origin)))
    }

    /// Whether every page may talk to us, so that answers need not depend on who asks.
    pub fn any_origin_allowed(&self) -> bool {
        self.origins == CorsOrigins::Any
    }

    /// Counts a request of this client, before anybody looks at its key: wrong keys count like right ones, and cannot be
    /// tried faster. Costs nothing where no rate is configured.
    ///
    /// # Errors
    /// `RateLimited`, with the time to wait.
    #[inline]
    pub fn check(&self, class: Class, ip: IpAddr) -> Result<(), Refusal> {
        let limiter = match class {
            Class::Publish => &self.publish,
            Class::Query => &self.query,
            Class::Admin => &self.admin,
        };
        limiter.as_ref().map_or(Ok(()), |limiter| limiter.check(client(ip)))
    }

    /// A place for one more WebSocket of this client, or `None` when it has as many as it may.
    pub fn connection(&self, ip: IpAddr) -> Option<Place> {
        if self.places_max == 0 {
            return Some(Place(None));
        }
        let client = client(ip);
        let mut taken = self.places.entry(client).or_insert(0);
        if *taken >= self.places_max {
            return None;
        }
        *taken += 1;
        drop(taken);
        Some(Place(Some((self.places.clone(), client))))
    }
}

/// Never shows the key.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("required", &self.required).finish_non_exhaustive()
    }
}

/// One WebSocket's place among those of its client, given back when dropped.
#[derive(Debug)]
pub struct Place(Option<(Arc<DashMap<IpAddr, usize>>, IpAddr)>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((places, client)) = &self.0 {
            places.remove_if_mut(client, |_, taken| {
                *taken -= 1;
                *taken == 0
            });
        }
    }
}

/// Counts requests by client.
struct Limiter {
    rate: DefaultKeyedRateLimiter<IpAddr>,
    checks: AtomicUsize,
}

/// After so many requests those clients are forgotten that have been quiet for long enough. What is kept is
/// bounded by this and by the clients of one period of the rate.
const CHECKS_PER_SWEEP: usize = 4096;

impl Limiter {
    /// A client may spend its whole rate at once; it then comes back evenly.
    fn new(Rate { count, per }: Rate) -> Self {
        let one_per = (per / count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(one_per).expect("a period above zero").allow_burst(count);
        Self { rate: RateLimiter::keyed(quota), checks: AtomicUsize::new(0) }
    }

    fn check(&self, client: IpAddr) -> Result<(), Refusal> {
        if self.checks.fetch_add(1, Ordering::Relaxed) % CHECKS_PER_SWEEP == CHECKS_PER_SWEEP - 1 {
            self.rate.retain_recent();
            self.rate.shrink_to_fit();
        }
        self.rate.check_key(&client).map_err(|until| {
            let wait = until.wait_time_from(self.rate.clock().now());
            // Retry-After is in whole seconds; a client that heeds it must not come too early.
            Refusal::RateLimited(Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)))
        })
    }
}

/// Whom an address stands for. An IPv6 client commonly has 2^64 of them, so its network counts.
fn client(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn access(config: Config) -> Access {
        Access::new(&config)
    }

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_key_opens_in_each_of_its_places() {
        let access = access(Config { require_auth: true, api_key: "secret".into(), ..Config::default() });
        let check = |list: &[_], in_url, expected: bool| {
            assert_eq!(access.authorize(&headers(list), in_url).is_ok(), expected, "{list:?} {in_url:?}");
        };
        check(&[("x-api-key", "secret")], None, true);
        check(&[("authorization", "Bearer secret")], None, true);
        check(&[("authorization", "bearer  secret")], None, true);
        check(&[], Some("secret"), true);
        check(&[("x-api-key", "wrong"), ("authorization", "Bearer secret")], None, true);
        check(&[], None, false);
        check(&[("x-api-key", "")], None, false);
        check(&[("x-api-key", "secre")], Some("secret2"), false);
        check(&[("authorization", "Basic secret")], None, false);
        check(&[("authorization", "Bearersecret")], None, false);
        check(&[("authorization", "secret")], None, false);
    }

    #[test]
    fn without_a_key_nobody_is_let_in_where_one_is_asked_for() {
        let closed = access(Config { require_auth: true, ..Config::default() });
        assert_eq!(closed.authorize(&headers(&[("x-api-key", "")]), Some("")), Err(Refusal::Unauthorized));
        let open = access(Config { api_key: "secret".into(), ..Config::default() });
        assert_eq!(open.authorize(&HeaderMap::new(), None), Ok(()));
    }

    #[test]
    fn origins_are_those_of_the_list() {
        let listed = CorsOrigins::List(vec!["https://school.example".into()]);
        let access = access(Config { cors_origins: listed, ..Config::default() });
        let allowed = |origin| access.origin_allowed(Some(&HeaderValue::from_static(origin)));
        assert!(allowed("https://school.example"));
        assert!(!allowed("http://school.example"));
        assert!(!allowed("https://school.example.evil.example"));
        assert!(!allowed("null"));
        assert!(access.origin_allowed(None));
        assert!(!access.any_origin_allowed());
    }

    #[test]
    fn a_rate_ends_for_one_client_and_one_class() {
        let rate = Rate { count: 3.try_into().unwrap(), per: Duration::from_secs(3600) };
        let access = access(Config { rate_limit_query: Some(rate), ..Config::default() });
        let check = |class, ip: &str| access.check(class, ip.parse().unwrap());
        for _ in 0..3 {
            assert_eq!(check(Class::Query, "192.0.2.1"), Ok(()));
        }
        let Err(Refusal::RateLimited(wait)) = check(Class::Query, "::ffff:192.0.2.1") else { panic!("not limited") };
        assert!(wait > Duration::from_secs(1000) && wait <= Duration::from_secs(1200), "{wait:?}");
        assert_eq!(wait.subsec_nanos(), 0);
        assert_eq!(check(Class::Query, "192.0.2.2"), Ok(()));
        assert_eq!(check(Class::Publish, "192.0.2.1"), Ok(()));
    }

    #[test]
    fn who_has_been_quiet_is_forgotten() {
        let limiter = Limiter::new(Rate { count: 1_000_000.try_into().unwrap(), per: Duration::from_secs(1) });
        for n in 0..3 * CHECKS_PER_SWEEP {
            assert_eq!(limiter.check(Ipv6Addr::from_bits((n as u128) << 64).into()), Ok(()));
        }
        assert!(limiter.rate.len() <= CHECKS_PER_SWEEP, "{} are kept", limiter.rate.len());
    }

    #[test]
    fn places_are_counted_by_client_and_given_back() {
        let access = access(Config { max_ws_connections_per_ip: 2, ..Config::default() });
        let place = |ip: &str| access.connection(ip.parse().unwrap());
        let first = place("2001:db8::1");
        let second = place("2001:db8::2");
        assert!(first.is_some() && second.is_some());
        assert!(place("2001:db8::3").is_none(), "the network has two");
        assert!(place("2001:db8:0:1::1").is_some());
        drop(first);
        let third = place("2001:db8::3");
        assert!(third.is_some());
        drop((second, third));
        assert!(access.places.is_empty());
        let unlimited = Access::new(&Config::default());
        assert!((0..100).all(|_| unlimited.connection("192.0.2.1".parse().unwrap()).is_some()));
    }
}
