//! Which address a request comes from, if proxies stand between (`TRUSTED_PROXIES`).

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderName, HeaderValue};

use crate::config::Networks;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

#[derive(Debug)]
pub struct Proxies {
    trusted: Networks,
    ignored: AtomicU64,
}

impl Proxies {
    pub(super) fn new(trusted: Networks) -> Self {
        Self { trusted, ignored: AtomicU64::new(0) }
    }

    /// How many requests said where they come from without coming from a trusted proxy, or contradicted themselves.
    pub fn ignored(&self) -> u64 {
        self.ignored.load(Ordering::Relaxed)
    }

    /// Counts a request whose headers were ignored.
    pub(super) fn count(&self, is_ignored: bool) {
        self.ignored.fetch_add(u64::from(is_ignored), Ordering::Relaxed);
    }

    /// The address of the client: that of the connection or, behind trusted proxies, the last one in `Forwarded` (RFC 7239)
    /// or `X-Forwarded-For` that is not such a proxy's. Each proxy adds at the end whom it has the request from. So
    /// everything before the first address that is not trusted may be made up. And whether headers that say another address
    /// were ignored.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> (IpAddr, bool) {
        let forwarded = headers.contains_key(FORWARDED);
        let x_forwarded_for = headers.contains_key(&X_FORWARDED_FOR);
        if !forwarded && !x_forwarded_for {
            return (peer, false);
        }
        if !self.trusted.contains(peer) {
            return (peer, true);
        }
        let by_forwarded = || self.last_untrusted(peer, words(headers, &FORWARDED).rev().map(node_of_forwarded));
        let by_x_forwarded_for = || self.last_untrusted(peer, words(headers, &X_FORWARDED_FOR).rev().map(node));
        match (forwarded, x_forwarded_for) {
            (true, false) => (by_forwarded(), false),
            (false, true) => (by_x_forwarded_for(), false),
            // A proxy sets one of them, and hands on the other as the client has made it up.
            _ => match (by_forwarded(), by_x_forwarded_for()) {
                (one, other) if one == other => (one, false),
                _ => (peer, true),
            },
        }
    }

    /// `None` in the list: a proxy does not say whom it has the request from.
    fn last_untrusted(&self, peer: IpAddr, from_the_right: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut client = peer;
        for node in from_the_right {
            let Some(node) = node else { break };
            client = node;
            if !self.trusted.contains(node) {
                break;
            }
        }
        client
    }
}

/// The members of a list in all headers of a name.
fn words<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'h str> {
    let values: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
    values.into_iter().flat_map(|value| value.to_str().unwrap_or_default().split(','))
}

/// The node that a member of `Forwarded` is for, such as `for="[2001:db8::1]:80";proto=https`.
fn node_of_forwarded(member: &str) -> Option<IpAddr> {
    let parameters = member.split(';').filter_map(|parameter| parameter.split_once('='));
    let mut nodes = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    let (_, value) = nodes.next()?;
    node(value.trim().trim_matches('"'))
}

/// An address with or without a port, one of IPv6 with or without brackets. Other names, such as `unknown`, are none.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None if text.matches(':').count() == 1 => text.split_once(':')?.0,
        None => text,
    };
    address.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn check(peer: &str, headers: &[(&'static str, &'static str)], expected: &str, ignored: bool) {
        let trusted = Networks::parse("10.0.0.0/8, 192.0.2.7, 2001:db8::/32").unwrap();
        let proxies = Proxies::new(trusted);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let (client, is_ignored) = proxies.client(peer.parse().unwrap(), &map);
        assert_eq!((client, is_ignored), (expected.parse::<IpAddr>().unwrap(), ignored), "{peer} {headers:?}");
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_trusted_proxy() {
        let (xff, forwarded) = ("x-forwarded-for", "forwarded");
        check("10.0.0.1", &[], "10.0.0.1", false);
        check("198.51.100.1", &[(xff, "203.0.113.5")], "198.51.100.1", true);
        check("10.0.0.1", &[(xff, "203.0.113.5")], "203.0.113.5", false);
        check("::ffff:10.0.0.1", &[(xff, "203.0.113.5:4711")], "203.0.113.5", false);
        check("10.0.0.1", &[(xff, "1.1.1.1, 203.0.113.5, 10.9.9.9,192.0.2.7")], "203.0.113.5", false);
        check("10.0.0.1", &[(xff, "1.1.1.1"), (xff, "203.0.113.5")], "203.0.113.5", false);
        check("10.0.0.1", &[(xff, "10.0.0.2, 10.0.0.3")], "10.0.0.2", false);
        check("10.0.0.1", &[(xff, "203.0.113.5, unknown")], "10.0.0.1", false);
        check("10.0.0.1", &[(xff, "203.0.113.5, made up, 10.0.0.2")], "10.0.0.2", false);
        check("10.0.0.1", &[(forwarded, "for=203.0.113.5;proto=https")], "203.0.113.5", false);
        check("10.0.0.1", &[(forwarded, r#"For="[2001:db9::1]:80", by=x;for=10.0.0.2"#)], "2001:db9::1", false);
        check("10.0.0.1", &[(forwarded, "for=_hidden")], "10.0.0.1", false);
        check("2001:db8::1", &[(forwarded, "proto=https")], "2001:db8::1", false);
        check("10.0.0.1", &[(forwarded, "for=203.0.113.5"), (xff, "203.0.113.5")], "203.0.113.5", false);
        check("10.0.0.1", &[(forwarded, "for=1.1.1.1"), (xff, "203.0.113.5")], "10.0.0.1", true);
    }
}
