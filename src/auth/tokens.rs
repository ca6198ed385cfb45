//! Tokens: JSON Web Tokens (RFC 7519) of an issuer that the operator trusts. A token says itself what its client may do, and
//! until when; the server keeps nothing of it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

use super::jwt_crypto;
use super::principal::{Grant, Holder, Scope};
use crate::config::Config;
use crate::event::{Field, Filter, Timestamp};
use crate::watch::Watch;

/// How much the clocks of an issuer and of this machine may differ. A token is accepted this much longer and earlier than
/// it says.
const LEEWAY_SECONDS: u64 = 30;

/// A shorter secret can be found by trying (RFC 7518, 3.2).
pub const JWT_SECRET_BYTES_MIN: usize = 32;

/// Verifies tokens.
pub struct Tokens {
    /// By `JWT_SECRET`.
    of_secret: Option<Verifier>,
    /// By the keys of the file, replaced as a whole.
    of_file: ArcSwap<Vec<Verifier>>,
    file: Option<(PathBuf, Watch)>,
    rules: Rules,
}

/// What every token must say.
struct Rules {
    audience: String,
    issuer: String,
}

struct Verifier {
    /// The `kid` of the tokens that it verifies, if it has one.
    id: Option<String>,
    key: DecodingKey,
    /// Its algorithm is that of the key. What the header of a token says chooses nothing.
    validation: Validation,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Why the keys of tokens cannot be used, in one line.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeysError {
    #[error("JWT_KEYS_FILE {0} cannot be read: {1}")]
    Unreadable(String, io::Error),
    #[error("JWT_KEYS_FILE {0}: {1}")]
    Invalid(String, String),
}

impl Tokens {
    /// # Errors
    /// The file of keys cannot be used.
    pub fn new(config: &Config) -> Result<Self, TokenKeysError> {
        jwt_crypto::install();
        let (issuer, audience) = (config.jwt_issuer.clone(), config.jwt_audience.clone());
        let rules = Rules { audience, issuer };
        let secret = config.jwt_secret.as_bytes();
        if (1..JWT_SECRET_BYTES_MIN).contains(&secret.len()) {
            tracing::warn!(
                bytes = secret.len(),
                "JWT_SECRET is short, so it can be found by trying: take 32 random bytes or more"
            );
        }
        let of_secret =
            (!secret.is_empty()).then(|| rules.verifier((None, Algorithm::HS256, DecodingKey::from_secret(secret))));
        let file = config.jwt_keys_file.clone().map(|path| (path.clone(), Watch::new([path])));
        let keys = file.as_ref().map_or(Ok(Vec::new()), |(path, _)| read(path))?;
        let of_file = ArcSwap::from_pointee(keys.into_iter().map(|key| rules.verifier(key)).collect());
        Ok(Self { of_secret, of_file, file, rules })
    }

    /// Reads the file of keys again, if it has changed.
    pub fn look(&self) {
        if self.file.as_ref().is_some_and(|(_, watch)| watch.has_changed()) {
            self.read_again();
        }
    }

    /// Reads the file of keys again. A connection that has shown a token keeps it until that ends. A bad file changes
    /// nothing.
    pub fn read_again(&self) {
        let Some((path, _)) = &self.file else { return };
        match read(path) {
            Ok(keys) => {
                let verifiers: Vec<_> = keys.into_iter().map(|key| self.rules.verifier(key)).collect();
                tracing::info!(keys = verifiers.len(), "read the keys of tokens again");
                self.of_file.store(Arc::new(verifiers));
            }
            Err(error) => tracing::error!(%error, "the keys of tokens are as before"),
        }
    }

    /// Whether any token can be verified.
    pub fn are_accepted(&self) -> bool {
        self.of_secret.is_some() || self.file.is_some()
    }

    /// What a token grants.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn verify(&self, token: &[u8]) -> Result<Grant, &'static str> {
        let header = decode_header(token).map_err(|_| NOT_UNDERSTOOD)?;
        let of_file = self.of_file.load();
        let verifiers = || self.of_secret.iter().chain(of_file.iter());
        let named = verifiers().any(|verifier| verifier.id.is_some() && verifier.id == header.kid);
        let mut why = UNKNOWN_KEY;
        for verifier in verifiers().filter(|verifier| match named {
            true => verifier.id == header.kid,
            // Without a name any key may be meant, but a name that nobody has means none of those that have names.
            false => header.kid.is_none() || verifier.id.is_none(),
        }) {
            match decode::<Claims>(token, &verifier.key, &verifier.validation) {
                Ok(verified) => {
                    let grant = verified.claims.grant()?;
                    // The library counts whole seconds.
                    return if grant.has_expired() { Err(TOKEN_EXPIRED) } else { Ok(grant) };
                }
                // What a key says that fits is worth more than that others do not fit.
                Err(error) => why = if why == UNKNOWN_KEY { sentence(&error) } else { why },
            }
        }
        Err(why)
    }
}

impl Rules {
    fn verifier(&self, (id, algorithm, key): Key) -> Verifier {
        let mut validation = Validation::new(algorithm);
        let mut required = vec!["exp", "sub"];
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.validate_aud = !self.audience.is_empty();
        if !self.audience.is_empty() {
            validation.set_audience(&[&self.audience]);
            required.push("aud");
        }
        if !self.issuer.is_empty() {
            validation.set_issuer(&[&self.issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        Verifier { id, key, validation }
    }
}

const NOT_UNDERSTOOD: &str = "The token is not a JSON Web Token as this server understands it";
const TOKEN_EXPIRED: &str = "The token has expired";
const UNKNOWN_KEY: &str = "The token is not signed by a key that this server knows";

fn sentence(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm => UNKNOWN_KEY,
        ErrorKind::ExpiredSignature => TOKEN_EXPIRED,
        ErrorKind::ImmatureSignature => "The token is not valid yet",
        ErrorKind::InvalidAudience => "The token is for another audience",
        ErrorKind::InvalidIssuer => "The token is of another issuer",
        ErrorKind::MissingRequiredClaim(claim) if claim == "exp" => "The token has no 'exp': it would never end",
        ErrorKind::MissingRequiredClaim(claim) if claim == "sub" => "The token has no 'sub': it is nobody's",
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => "The token has no 'aud'",
        ErrorKind::MissingRequiredClaim(_) => "The token has no 'iss'",
        _ => NOT_UNDERSTOOD,
    }
}

/// The claims of a token that mean something here.
#[derive(Deserialize)]
struct Claims {
    // Those that are missing are refused with the name of the claim, once the signature is verified.
    #[serde(default)]
    sub: String,
    iss: Option<String>,
    #[serde(default)]
    exp: f64,
    #[serde(default)]
    scopes: OneOrMany,
    event_types: Option<OneOrMany>,
    session_id: Option<OneOrMany>,
    user_id: Option<OneOrMany>,
    source: Option<OneOrMany>,
    space: Option<String>,
}

/// One text, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl OneOrMany {
    fn list(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl Claims {
    fn grant(&self) -> Result<Grant, &'static str> {
        let space = self.space.as_deref().unwrap_or(&self.sub);
        if self.sub.is_empty() || [&self.sub, space].iter().any(|text| text.contains(char::is_control)) {
            return Err("The token's 'sub' or 'space' is empty or has control characters");
        }
        // `exp` is as large as it likes, and Rust's conversion stops at the largest time.
        let expires = Timestamp(((self.exp + LEEWAY_SECONDS as f64) * 1e6) as i64);
        // A list of OAuth is one text with spaces. Words that are no scopes are for other services.
        let words = self.scopes.list().iter().flat_map(|words| words.split_ascii_whitespace());
        let words: Vec<_> = words.collect();
        let scopes = Scope::ALL.into_iter().filter(|scope| words.contains(&scope.name())).collect();
        let fields = [
            (Field::Type, &self.event_types),
            (Field::Session, &self.session_id),
            (Field::User, &self.user_id),
            (Field::Source, &self.source),
        ];
        let pinned = |pins: Option<Filter>, (field, values): (Field, &Option<OneOrMany>)| match values {
            None => pins,
            // With an empty list there is no event for this client.
            Some(values) => Some(pins.unwrap_or_default().with(field, values.list().iter().map(String::as_str))),
        };
        let pins = fields.into_iter().fold(None, pinned);
        let holder = Holder::Subject { subject: self.sub.as_str().into(), issuer: self.iss.as_deref().map(Into::into) };
        Ok(Grant::new(holder, scopes, pins, space, Some(expires)))
    }
}

type Key = (Option<String>, Algorithm, DecodingKey);

/// A set of keys (JWKS, RFC 7517), one such key, or a public key in PEM.
fn read(path: &Path) -> Result<Vec<Key>, TokenKeysError> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| TokenKeysError::Unreadable(file.clone(), error))?;
    parse(&text).map_err(|why| TokenKeysError::Invalid(file, why))
}

fn parse(text: &str) -> Result<Vec<Key>, String> {
    if text.trim_start().starts_with("-----BEGIN") {
        let pem = text.as_bytes();
        let of = |key: Result<DecodingKey, Error>, algorithm| Some(vec![(None, algorithm, key.ok()?)]);
        let read = of(DecodingKey::from_rsa_pem(pem), Algorithm::RS256)
            .or_else(|| of(DecodingKey::from_ec_pem(pem), Algorithm::ES256))
            .or_else(|| of(DecodingKey::from_ed_pem(pem), Algorithm::EdDSA));
        return read.ok_or_else(|| "it is no public key of RSA, P-256 or Ed25519 in PEM".to_owned());
    }
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("it is neither PEM nor JSON: {error}"))?;
    let keys = match json.get("keys") {
        Some(_) => serde_json::from_value::<JwkSet>(json).map(|set| set.keys),
        None => serde_json::from_value::<Jwk>(json).map(|key| vec![key]),
    };
    let keys = keys.map_err(|error| format!("it is no set of keys (JWKS): {error}"))?;
    if keys.is_empty() {
        return Err("it has no key".to_owned());
    }
    keys.iter().map(of_jwk).collect()
}

fn of_jwk(jwk: &Jwk) -> Result<Key, String> {
    let (algorithm, expected) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::OctetKey(_) => (Algorithm::HS256, KeyAlgorithm::HS256),
        _ => return Err(format!("the key {} is none for RS256, ES256, EdDSA or HS256", name(jwk))),
    };
    if jwk.common.key_algorithm.is_some_and(|known| known != expected) {
        return Err(format!("the key {} is for another algorithm than {algorithm:?}", name(jwk)));
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|error| format!("the key {}: {error}", name(jwk)))?;
    Ok((jwk.common.key_id.clone(), algorithm, key))
}

fn name(jwk: &Jwk) -> &str {
    jwk.common.key_id.as_deref().unwrap_or("without a kid")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
    use ring::{digest, hmac};
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn encoded(bytes: impl AsRef<[u8]>) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// A token with this header and these claims, signed by `sign`.
    fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
        let message = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
        let signature = encoded(sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    fn by_secret(secret: &[u8]) -> impl FnOnce(&[u8]) -> Vec<u8> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        move |message| hmac::sign(&key, message).as_ref().to_vec()
    }

    fn now() -> i64 {
        Timestamp::now().0 / 1_000_000
    }

    fn tokens(config: Config) -> Tokens {
        Tokens::new(&config).unwrap()
    }

    fn of_secret() -> Tokens {
        tokens(Config { jwt_secret: SECRET.into(), ..Config::default() })
    }

    #[test]
    fn a_token_grants_what_its_claims_say() {
        let check = |claims: Value, expected: Result<(&[Scope], Option<Filter>, &str), &str>| {
            let mut all = json!({"sub": "ada", "exp": now() + 60});
            all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
            let shown = token(&json!({"alg": "HS256"}), &all, by_secret(SECRET.as_bytes()));
            let granted = of_secret().verify(shown.as_bytes());
            let granted =
                granted.as_ref().map(|grant| (&*grant.scopes, grant.pins.clone(), &*grant.space)).map_err(|why| *why);
            assert_eq!(granted, expected, "{claims}");
        };
        let session = |values: &[&str]| Some(Filter::default().with(Field::Session, values.iter().copied()));
        check(json!({}), Ok((&[], None, "ada")));
        check(json!({"scopes": ["publish", "files:read"]}), Ok((&[Scope::Publish], None, "ada")));
        check(json!({"scopes": "subscribe openid query"}), Ok((&[Scope::Subscribe, Scope::Query], None, "ada")));
        check(json!({"session_id": "s", "space": ""}), Ok((&[], session(&["s"]), "")));
        check(json!({"session_id": ["s", "t"]}), Ok((&[], session(&["s", "t"]), "ada")));
        check(json!({"session_id": []}), Ok((&[], session(&[]), "ada")));
        check(json!({"session_id": null}), Ok((&[], None, "ada")));
        check(json!({"session_id": 7}), Err(NOT_UNDERSTOOD));
        check(json!({"scopes": {"publish": true}}), Err(NOT_UNDERSTOOD));
        check(json!({"sub": ""}), Err("The token's 'sub' or 'space' is empty or has control characters"));
        check(json!({"sub": "a\u{1f}b"}), Err("The token's 'sub' or 'space' is empty or has control characters"));
        check(json!({"exp": now() - 60}), Err("The token has expired"));
        check(json!({"exp": now() - 10}), Ok((&[], None, "ada")));
        check(json!({"nbf": now() + 60}), Err("The token is not valid yet"));
        check(json!({"nbf": now() + 10}), Ok((&[], None, "ada")));
    }

    #[test]
    fn what_a_token_must_have_is_required() {
        let shown = |claims: &Value| token(&json!({"alg": "HS256"}), claims, by_secret(SECRET.as_bytes()));
        let refused = |tokens: &Tokens, claims: Value| tokens.verify(shown(&claims).as_bytes()).unwrap_err();
        assert_eq!(refused(&of_secret(), json!({"sub": "ada"})), "The token has no 'exp': it would never end");
        assert_eq!(refused(&of_secret(), json!({"exp": now() + 60})), "The token has no 'sub': it is nobody's");
        let (jwt_audience, jwt_issuer) = ("pipeline".to_owned(), "school".to_owned());
        let strict = tokens(Config { jwt_secret: SECRET.into(), jwt_audience, jwt_issuer, ..Config::default() });
        let with = |more: Value| {
            let mut all = json!({"sub": "ada", "exp": now() + 60, "aud": ["other", "pipeline"], "iss": "school"});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            all
        };
        assert!(strict.verify(shown(&with(json!({}))).as_bytes()).is_ok());
        assert_eq!(refused(&strict, with(json!({"aud": "other"}))), "The token is for another audience");
        assert_eq!(refused(&strict, with(json!({"aud": null}))), "The token has no 'aud'");
        assert_eq!(refused(&strict, with(json!({"iss": "elsewhere"}))), "The token is of another issuer");
        assert_eq!(refused(&strict, with(json!({"iss": null}))), "The token has no 'iss'");
    }

    #[test]
    fn the_algorithm_is_that_of_the_key() {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let ed = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
        let point = ec.public_key().as_ref();
        let (x, y, ed_x) = (encoded(&point[1..33]), encoded(&point[33..]), encoded(ed.public_key()));
        let set = json!({"keys": [
            {"kty": "EC", "crv": "P-256", "kid": "ec", "x": x, "y": y},
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "x": ed_x},
        ]});
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        std::fs::write(&path, set.to_string()).unwrap();
        let tokens = tokens(Config { jwt_keys_file: Some(path), ..Config::default() });
        let claims = json!({"sub": "ada", "exp": now() + 60, "scopes": "query"});
        let by_ec = |message: &[u8]| ec.sign(&random, message).unwrap().as_ref().to_vec();
        let by_ed = |message: &[u8]| ed.sign(message).as_ref().to_vec();
        let check = |shown: String, is_right: bool| {
            assert_eq!(tokens.verify(shown.as_bytes()).is_ok(), is_right, "{shown}");
        };
        check(token(&json!({"alg": "ES256", "kid": "ec"}), &claims, by_ec), true);
        check(token(&json!({"alg": "ES256"}), &claims, by_ec), true);
        check(token(&json!({"alg": "EdDSA", "kid": "ed"}), &claims, by_ed), true);
        check(token(&json!({"alg": "EdDSA"}), &claims, by_ed), true);
        check(token(&json!({"alg": "EdDSA", "kid": "ec"}), &claims, by_ed), false);
        check(token(&json!({"alg": "ES256", "kid": "another"}), &claims, by_ec), false);
        check(token(&json!({"alg": "ES256", "kid": "ed"}), &claims, by_ec), false);
        // A public key is no secret, and no signature is none.
        check(token(&json!({"alg": "HS256", "kid": "ec"}), &claims, by_secret(point)), false);
        check(token(&json!({"alg": "HS256"}), &claims, by_secret(ed.public_key().as_ref())), false);
        check(token(&json!({"alg": "none"}), &claims, |_| Vec::new()), false);
        check(token(&json!({"alg": "ES256", "kid": "ec"}), &claims, |_| Vec::new()), false);
        check(token(&json!({"alg": "ES256", "kid": "ec"}), &claims, |_| vec![0; 64]), false);
        let sha = |message: &[u8]| digest::digest(&digest::SHA256, message).as_ref().to_vec();
        check(token(&json!({"alg": "ES256", "kid": "ec"}), &claims, sha), false);
        for nothing in ["", "..", "a.b.c", "e30.e30.", "ep_x.y.z"] {
            check(nothing.to_owned(), false);
        }
    }

    #[test]
    fn a_file_of_keys_is_understood_or_refused_with_what_is_wrong() {
        let refused = |text: &str| parse(text).err().unwrap();
        assert!(refused("-----BEGIN NONSENSE-----").contains("no public key of RSA, P-256 or Ed25519"));
        assert!(refused("nonsense").starts_with("it is neither PEM nor JSON: "));
        assert_eq!(refused(r#"{"keys": []}"#), "it has no key");
        assert!(refused(r#"{"keys": 7}"#).starts_with("it is no set of keys (JWKS): "));
        assert_eq!(refused(r#"{"keys": [{}]}"#), "the key without a kid is none for RS256, ES256, EdDSA or HS256");
        let p384 = json!({"kty": "EC", "crv": "P-384", "kid": "big", "x": "AA", "y": "AA"});
        assert_eq!(refused(&p384.to_string()), "the key big is none for RS256, ES256, EdDSA or HS256");
        let ps = json!({"kty": "RSA", "alg": "PS256", "n": "AQAB", "e": "AQAB"});
        assert_eq!(refused(&ps.to_string()), "the key without a kid is for another algorithm than RS256");
    }
}
