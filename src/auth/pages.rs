//! Under which names the server may be addressed, and which web pages may use it.
//!
//! A page that a browser shows can send requests to every server that the browser reaches, also to one that listens on
//! the loopback address only. Its requests say where it comes from (`Origin`). A page whose own name is made to lead to
//! this server (DNS rebinding) counts as one of this server's own pages, but says that name (`Host`). So while nobody is
//! asked for a key, only known names are served.

use std::net::{IpAddr, Ipv6Addr};

use hyper::HeaderMap;
use hyper::header::ORIGIN;
use hyper::http::uri::Authority;

use crate::config::{Config, CorsOrigins, Hosts};
use crate::wire::Refusal;

#[derive(Debug)]
pub struct Pages {
    origins: Origins,
    /// `None`: every name, because clients need a key, which no foreign page has.
    hosts: Option<Hosts>,
    /// What the server's own pages are served over, where it is known: in front of a server without TLS there may be a proxy
    /// with it.
    is_tls: bool,
}

/// The origins whose pages may use the server, besides its own.
#[derive(Debug)]
enum Origins {
    Any,
    /// Those of this machine.
    Loopback,
    List(Vec<String>),
}

impl Pages {
    pub(super) fn new(config: &Config, is_authenticated: bool) -> Self {
        Self {
            origins: match &config.cors_origins {
                CorsOrigins::List(list) => Origins::List(list.clone()),
                CorsOrigins::Auto if !is_authenticated => Origins::Loopback,
                CorsOrigins::Auto | CorsOrigins::Any => Origins::Any,
            },
            hosts: (!is_authenticated).then(|| config.allowed_hosts.clone()),
            is_tls: config.serves_tls(),
        }
    }

    /// Whether every page may use the server, so that an answer is the same for each.
    pub fn are_any(&self) -> bool {
        matches!(self.origins, Origins::Any)
    }

    /// Checks the host that a request names. A request of HTTP/1.0 may name none; no browser sends such a request.
    ///
    /// # Errors
    /// `Misdirected`.
    pub fn check_host(&self, host: Option<&[u8]>) -> Result<(), Refusal> {
        let Some((Hosts::List(names), host)) = self.hosts.as_ref().zip(host) else { return Ok(()) };
        let is_known = str::from_utf8(host).is_ok_and(|host| {
            let name = name_of(host);
            is_loopback_name(name)
                || address_of(name).is_some()
                || names.iter().any(|known| known.eq_ignore_ascii_case(name))
        });
        is_known.then_some(()).ok_or(Refusal::Misdirected)
    }

    /// Whether a request may come from where it comes from: its `Origin` and the host that it names. A client that sends no
    /// `Origin` is no web page, and may.
    pub fn allows(&self, origin: Option<&[u8]>, host: Option<&[u8]>) -> bool {
        let Some(origin) = origin else { return true };
        let listed = || match &self.origins {
            Origins::Any => true,
            Origins::Loopback => {
                authority_of(origin).and_then(|host| str::from_utf8(host).ok()).is_some_and(is_loopback)
            }
            Origins::List(list) => list.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin)),
        };
        let own = if self.is_tls { origin.strip_prefix(b"https://") } else { authority_of(origin) };
        let is_own = own.zip(host).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host));
        is_own || listed()
    }

    /// Whether a browser may fetch something that is not for everybody. A page can have it fetched without an `Origin`, as a
    /// picture or a script, and needs no answer to keep the server busy or to measure how long it takes. Browsers say so
    /// (Fetch Metadata); other clients say nothing, and may. A person may follow a link from anywhere.
    pub fn allows_fetch(&self, headers: &HeaderMap, host: Option<&[u8]>) -> bool {
        let says = |name: &str, word: &str| headers.get(name).is_some_and(|value| value == word);
        let is_foreign = says("sec-fetch-site", "cross-site") || says("sec-fetch-site", "same-site");
        if self.are_any() || !is_foreign || (says("sec-fetch-mode", "navigate") && says("sec-fetch-dest", "document")) {
            return true;
        }
        match headers.get(ORIGIN) {
            Some(origin) => self.allows(Some(origin.as_bytes()), host),
            // Another page of this machine.
            None => {
                matches!(self.origins, Origins::Loopback)
                    && says("sec-fetch-site", "same-site")
                    && host.and_then(|host| str::from_utf8(host).ok()).is_some_and(is_loopback)
            }
        }
    }
}

/// Whether a host, with or without a port, is this machine.
fn is_loopback(host: &str) -> bool {
    let name = name_of(host);
    is_loopback_name(name) || address_of(name).is_some_and(|address| address.to_canonical().is_loopback())
}

/// Host and port of the origin of a web page. Other origins, such as `null` and those of browser extensions, have none.
fn authority_of(origin: &[u8]) -> Option<&[u8]> {
    origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"))
}

/// The name in the value of a `Host` header: without its port, and without the dot that an absolute name may end with.
/// Empty if the value is no host.
fn name_of(host: &str) -> &str {
    let Ok(authority) = host.parse::<Authority>() else { return "" };
    // The parser takes a user in front of the host, which a browser never sends here.
    let name = if host.contains('@') { "" } else { authority.host() };
    let name = name.strip_suffix('.').unwrap_or(name);
    &host[..name.len()]
}

/// Whether a name always leads to the machine itself (RFC 6761, 6.3).
fn is_loopback_name(name: &str) -> bool {
    let name = name.as_bytes();
    let is =
        |suffix: &[u8]| name.len() >= suffix.len() && name[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix);
    name.eq_ignore_ascii_case(b"localhost") || is(b".localhost")
}

/// The address that stands in place of a name, one of IPv6 in brackets.
fn address_of(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => name.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(cors_origins: CorsOrigins, hosts: &[&str], is_authenticated: bool) -> Pages {
        let allowed_hosts = Hosts::List(hosts.iter().map(|host| (*host).to_owned()).collect());
        Pages::new(&Config { cors_origins, allowed_hosts, ..Config::default() }, is_authenticated)
    }

    #[test]
    fn without_a_key_only_known_names_are_served() {
        let open = pages(CorsOrigins::Any, &["pipeline.school.example"], false);
        let check = |host: &str, expected: bool| {
            assert_eq!(open.check_host(Some(host.as_bytes())).is_ok(), expected, "{host}");
        };
        for known in [
            "localhost",
            "LOCALHOST:8001",
            "localhost.",
            "a.b.localhost:1",
            "127.0.0.1",
            "192.0.2.7:8001",
            "[::1]",
            "[2001:db8::1]:80",
            "pipeline.school.example:8001",
            "Pipeline.School.Example.",
        ] {
            check(known, true);
        }
        for foreign in [
            "",
            "evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "school.example",
            "a.pipeline.school.example",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil.example@localhost",
            "[::1",
            "::1",
            "localhost:8001:1",
            "localhost/",
        ] {
            check(foreign, false);
        }
        assert!(open.check_host(Some(b"\xff")).is_err() && open.check_host(None).is_ok());
        assert!(pages(CorsOrigins::Any, &[], true).check_host(Some(b"evil.example")).is_ok());
    }

    #[test]
    fn pages_of_the_server_itself_and_those_listed_may_use_it() {
        let check = |pages: &Pages, origin: &str, host: &str, expected: bool| {
            assert_eq!(pages.allows(Some(origin.as_bytes()), Some(host.as_bytes())), expected, "{origin} {host}");
        };
        let listed = pages(CorsOrigins::List(vec!["https://school.example".into()]), &[], true);
        check(&listed, "https://school.example", "pipeline", true);
        check(&listed, "https://pipeline:8001", "PIPELINE:8001", true);
        check(&listed, "http://school.example", "pipeline", false);
        check(&listed, "https://school.example.evil.example", "pipeline", false);
        check(&listed, "http://pipeline:8002", "pipeline:8001", false);
        check(&listed, "http://localhost", "pipeline:8001", false);
        check(&listed, "null", "pipeline", false);
        assert!(listed.allows(None, None), "no web page");
        let tls = Config { tls_self_signed: true, cors_origins: CorsOrigins::List(Vec::new()), ..Config::default() };
        let tls = Pages::new(&tls, true);
        check(&tls, "https://pipeline:8001", "pipeline:8001", true);
        check(&tls, "http://pipeline:8001", "pipeline:8001", false);
        let open = pages(CorsOrigins::Auto, &[], false);
        for own in ["http://localhost:3000", "https://app.localhost", "http://127.0.0.1:1", "http://[::1]:3000"] {
            check(&open, own, "localhost:8001", true);
        }
        for foreign in
            ["null", "https://evil.example", "http://localhost.evil.example", "http://192.0.2.7", "file://localhost"]
        {
            check(&open, foreign, "localhost:8001", false);
        }
        check(&pages(CorsOrigins::Auto, &[], true), "null", "x", true);
    }
}
