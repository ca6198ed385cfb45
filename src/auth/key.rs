//! The key (`API_KEY`).

use std::fmt;

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderValue};
use subtle::ConstantTimeEq;

use super::principal::Principal;
use crate::wire::Refusal;

pub struct Key {
    required: bool,
    /// If it is empty, every client is refused.
    key: Box<[u8]>,
}

impl Key {
    pub(super) fn new(required: bool, key: &str) -> Self {
        Self { required, key: key.as_bytes().into() }
    }

    /// Decides what the client of a request may do. It shows the key in `X-API-Key`, in `Authorization: Bearer`, or, where
    /// a client cannot set headers, in its URL.
    ///
    /// # Errors
    /// `Unauthorized`.
    pub fn authorize(&self, headers: &HeaderMap, in_url: Option<&str>) -> Result<Principal, Refusal> {
        if !self.required {
            return Ok(Principal::Everything);
        }
        let shown = [
            headers.get("x-api-key").map(HeaderValue::as_bytes),
            headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes())),
            in_url.map(str::as_bytes),
        ];
        // The time that the comparison takes depends on the length of the key, and on nothing else of it.
        let is_key = |shown: &[u8]| bool::from(shown.ct_eq(&self.key));
        let authorized = !self.key.is_empty() && shown.into_iter().flatten().any(is_key);
        authorized.then_some(Principal::Everything).ok_or(Refusal::Unauthorized)
    }
}

/// Never shows the key.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("required", &self.required).finish_non_exhaustive()
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

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_key_is_accepted_in_either_header_and_in_the_url() {
        let key = Key::new(true, "secret");
        let check = |list: &[_], in_url, expected: bool| {
            assert_eq!(key.authorize(&headers(list), in_url).is_ok(), expected, "{list:?} {in_url:?}");
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
    fn an_empty_key_lets_nobody_in_where_a_key_is_required() {
        let closed = Key::new(true, "");
        assert_eq!(closed.authorize(&headers(&[("x-api-key", "")]), Some("")), Err(Refusal::Unauthorized));
        let open = Key::new(false, "secret");
        assert_eq!(open.authorize(&HeaderMap::new(), None), Ok(Principal::Everything));
    }
}
