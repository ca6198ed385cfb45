//! Tokens: what nobody has signed grants nothing, whatever it looks like; what is signed grants no more than its claims say.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use event_pipeline::auth::{Holder, Tokens};
use event_pipeline::config::Config;
use ring::hmac;
use serde_json::Value;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A token, a line break, and the claims of one that is signed.
pub fn token(data: &[u8]) {
    let config = Config { jwt_secret: String::from_utf8_lossy(SECRET).into(), ..Config::default() };
    let tokens = Tokens::new(&config).unwrap();
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    assert!(tokens.verify(&data[..end]).is_err(), "nobody has signed it");

    let claims = data.get(end + 1..).unwrap_or_default();
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let message = format!("{}.{}", encode(br#"{"alg":"HS256"}"#), encode(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), message.as_bytes());
    let Ok(grant) = tokens.verify(format!("{message}.{}", encode(signature.as_ref())).as_bytes()) else { return };
    // A text that means nothing here may hold any bytes.
    let claims: Value = serde_json::from_str(&String::from_utf8_lossy(claims)).expect("granted for JSON");
    let Holder::Subject { subject, issuer } = &grant.holder else { panic!("a token has no id") };
    assert_eq!(claims["sub"], **subject);
    assert_eq!(claims["iss"].as_str(), issuer.as_deref());
    assert_eq!(&*grant.space, claims["space"].as_str().unwrap_or(subject));
    assert!(!grant.has_expired() && claims["exp"].as_f64().is_some_and(|exp| exp > 1.7e9));
    let scopes = claims["scopes"].to_string();
    assert!(grant.scopes.iter().all(|scope| scopes.contains(scope.name())), "{scopes}");
    let is_pinned = ["event_types", "session_id", "user_id", "source"].iter().any(|claim| !claims[claim].is_null());
    assert_eq!(grant.pins.is_some(), is_pinned, "{claims}");
}
