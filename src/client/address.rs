//! Where a server is.

use std::net::Ipv6Addr;

use anyhow::{Context, bail, ensure};
use hyper::Uri;

/// The parts of a URL such as `https://host:port/prefix`. Without a scheme it is `http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub is_tls: bool,
    /// A name or an IP address, one of IPv6 without brackets.
    pub host: String,
    /// `host:port`, as connections and the header `Host` need it.
    pub authority: String,
    /// What the path of every request begins with; no slash at its end.
    pub prefix: String,
}

impl Address {
    /// # Errors
    /// It is no such URL.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
        let is_tls = match uri.scheme_str() {
            None | Some("http") => false,
            Some("https") => true,
            Some(_) => bail!("{url:?} does not begin with http:// or https://"),
        };
        let named = uri.authority().filter(|named| !named.host().is_empty());
        let named = named.with_context(|| format!("{url:?} names no host"))?;
        ensure!(!named.as_str().contains('@'), "{url:?} names a user: a key is shown with --api-key");
        ensure!(uri.query().is_none(), "{url:?} has a query");
        let (named, behind) = named.as_str().split_at(named.host().len());
        let port = match behind.strip_prefix(':') {
            None if behind.is_empty() => {
                if is_tls {
                    443
                } else {
                    80
                }
            }
            digits => {
                let port = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
                port.and_then(|port| port.parse::<u16>().ok())
                    .filter(|port| *port > 0)
                    .with_context(|| format!("{url:?} has no port from 1 to 65535 behind its host"))?
            }
        };
        let (host, is_host) = match named.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(address) => (address, address.parse::<Ipv6Addr>().is_ok()),
            None => (named, named.split('.').all(is_label)),
        };
        ensure!(is_host, "{url:?} has a host that is no name and no IP address");
        Ok(Self {
            is_tls,
            host: host.to_owned(),
            authority: format!("{named}:{port}"),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// Whether it is a part of a name. Names of containers have `_` in them, which the host names of the DNS have not.
fn is_label(label: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !label.is_empty() && label.bytes().all(is_inner) && !label.starts_with('-') && !label.ends_with('-')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_understood_or_refused() {
        for (url, is_tls, host, authority, prefix) in [
            ("http://localhost:8001", false, "localhost", "localhost:8001", ""),
            ("127.0.0.1:8001", false, "127.0.0.1", "127.0.0.1:8001", ""),
            ("http://event_pipeline", false, "event_pipeline", "event_pipeline:80", ""),
            ("https://a.example/api/v1/", true, "a.example", "a.example:443", "/api/v1"),
            ("https://[::1]:8443", true, "::1", "[::1]:8443", ""),
        ] {
            let expected = (is_tls, host, authority, prefix);
            let Address { is_tls, host, authority, prefix } = &Address::parse(url).unwrap();
            assert_eq!((*is_tls, &**host, &**authority, &**prefix), expected, "{url}");
        }
        for bad in [
            "",
            "/events",
            "ftp://localhost",
            "http://",
            "http://a b",
            "http://host:b",
            "http://host:",
            "http://host:0",
            "http://host:65536",
            "http://host:+1",
            "http://a..b",
            "http://-a",
            "http://[::1",
            "http://[x]",
            "http://user@host",
            "http://host?x=1",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
