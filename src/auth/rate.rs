//! How often one client may send requests (`RATE_LIMIT_…`). What a request needs a scope for decides in which rate it counts.
//! The handshake of a WebSocket counts as one request, together with a subscriber's first message. After that each message
//! of a publisher and each `update_filters` of a subscriber counts.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{Quota, RateLimiter};

use super::clients::Clients;
use super::counted::Counted;
use super::principal::Scope;
use crate::config::{Config, Rate};
use crate::wire::Refusal;
use crate::wire::refusal::RateLimited;

/// Counts the requests of each client.
pub struct Rates {
    publish: Option<Limiter>,
    query: Option<Limiter>,
    admin: Option<Limiter>,
}

impl Rates {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            publish: config.rate_limit_publish.map(Limiter::new),
            query: config.rate_limit_query.map(Limiter::new),
            admin: config.rate_limit_admin.map(Limiter::new),
        }
    }

    /// Counts a request of this client. One with a wrong key counts for its address. Costs nothing where no rate is
    /// configured.
    ///
    /// # Errors
    /// `RateLimited`, with the time to wait.
    #[inline]
    pub fn check(&self, scope: Scope, client: &Counted) -> Result<(), Refusal> {
        let limiter = match scope {
            Scope::Publish => &self.publish,
            Scope::Query | Scope::Subscribe | Scope::Metrics => &self.query,
            Scope::Admin => &self.admin,
        };
        limiter.as_ref().map_or(Ok(()), |limiter| limiter.check(client))
    }
}

impl fmt::Debug for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rates").finish_non_exhaustive()
    }
}

struct Limiter {
    allowed: Rate,
    rate: RateLimiter<Counted, Clients, DefaultClock>,
    checks: AtomicUsize,
}

/// After this many requests, clients whose rate is whole again are forgotten.
const CHECKS_PER_SWEEP: usize = 4096;

impl Limiter {
    /// A client may send all requests of a period at once. Then it gets them back one by one, evenly.
    fn new(allowed @ Rate { count, per }: Rate) -> Self {
        let one_per = (per / count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(one_per).expect("a period above zero").allow_burst(count);
        let rate = RateLimiter::new(quota, Clients::default(), DefaultClock::default());
        Self { allowed, rate, checks: AtomicUsize::new(0) }
    }

    fn check(&self, client: &Counted) -> Result<(), Refusal> {
        if self.checks.fetch_add(1, Ordering::Relaxed) % CHECKS_PER_SWEEP == CHECKS_PER_SWEEP - 1 {
            self.rate.retain_recent();
            self.rate.shrink_to_fit();
        }
        self.rate.check_key(client).map_err(|until| {
            let wait = until.wait_time_from(self.rate.clock().now());
            // `Retry-After` is in whole seconds, rounded up: a client that waits as long must not come too early.
            let wait = Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
            Refusal::RateLimited(RateLimited { wait, count: self.allowed.count.get(), per: self.allowed.per })
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn a_rate_is_used_up_for_one_client_and_one_kind_of_request() {
        let rate = Rate { count: 3.try_into().unwrap(), per: Duration::from_secs(3600) };
        let rates = Rates::new(&Config { rate_limit_query: Some(rate), ..Config::default() });
        let check = |scope, ip: &str| rates.check(scope, &Counted::address(ip.parse().unwrap()));
        for _ in 0..3 {
            assert_eq!(check(Scope::Query, "192.0.2.1"), Ok(()));
        }
        let Err(Refusal::RateLimited(RateLimited { wait, .. })) = check(Scope::Query, "::ffff:192.0.2.1") else {
            panic!("not limited")
        };
        assert!(wait > Duration::from_secs(1000) && wait <= Duration::from_secs(1200), "{wait:?}");
        assert_eq!(wait.subsec_nanos(), 0);
        assert_eq!(check(Scope::Query, "192.0.2.2"), Ok(()));
        assert_eq!(check(Scope::Publish, "192.0.2.1"), Ok(()));
    }

    #[test]
    fn a_client_that_has_been_quiet_is_forgotten() {
        let limiter = Limiter::new(Rate { count: 1_000_000.try_into().unwrap(), per: Duration::from_secs(1) });
        for n in 0..3 * CHECKS_PER_SWEEP {
            assert_eq!(limiter.check(&Counted::address(Ipv6Addr::from_bits((n as u128) << 64).into())), Ok(()));
        }
        assert!(limiter.rate.len() <= CHECKS_PER_SWEEP, "{} are kept", limiter.rate.len());
    }

    #[test]
    fn a_flood_of_addresses_fills_no_memory_and_takes_nothing_from_those_that_are_known() {
        let limiter = Limiter::new(Rate { count: 2.try_into().unwrap(), per: Duration::from_secs(3600) });
        let address = |n: u32| Counted::Address(std::net::Ipv4Addr::from(n).into());
        assert_eq!(limiter.check(&address(0)), Ok(()));
        let admitted = (1..200_000).filter(|n| limiter.check(&address(*n)).is_ok()).count();
        assert!((65_535..65_535 + 2 * 4096 + 1).contains(&admitted), "{admitted}");
        assert!(limiter.rate.len() <= 65_536 + 4096, "{} are kept", limiter.rate.len());
        assert_eq!(limiter.check(&address(0)), Ok(()), "its own rate");
        assert!(limiter.check(&address(0)).is_err() && limiter.check(&address(300_000)).is_err());
        for subject in 0..10 {
            assert_eq!(limiter.check(&Counted::Subject(subject.to_string().into())), Ok(()), "it has a token");
        }
    }
}
