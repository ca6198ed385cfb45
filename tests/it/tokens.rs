//! Tokens of an issuer: what a client with one may see and do, and when it ends.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use ring::hmac;
use serde_json::{Value, json};

use crate::support::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A token with these claims that ends in so many seconds.
fn token(seconds: i64, claims: &Value) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let mut all = json!({"sub": "ada", "exp": now + seconds});
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let message = format!("{}.{}", encode(br#"{"alg":"HS256","typ":"JWT"}"#), encode(all.to_string().as_bytes()));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), message.as_bytes());
    format!("{message}.{}", encode(signature.as_ref()))
}

fn call(server: &Server, token: &str, method: &str, path: &str, body: &str) -> Response {
    server.call(method, path, &[("Authorization", &format!("Bearer {token}")), JSON], body.as_bytes())
}

#[test]
fn a_token_switches_authentication_on_and_does_what_it_says() {
    let server = Server::with(&[("JWT_SECRET", SECRET)]);
    server.get("/stats").refusal(401);
    let all = token(60, &json!({"scopes": ["publish", "subscribe", "query"], "session_id": "a"}));
    let shown = call(&server, &all, "GET", "/whoami", "").json();
    assert_eq!((&shown["subject"], &shown["key"], &shown["space"]), (&json!("ada"), &Value::Null, &json!("ada")));
    assert_eq!(shown["only_for"], json!({"session_id": ["a"]}));
    assert_eq!(call(&server, &all, "POST", "/events", &tick("a", 0)).status, 201);
    call(&server, &all, "POST", "/events", &tick("b", 0)).refusal(403);
    call(&server, &all, "DELETE", "/events", "").refusal(403);
    let other = token(60, &json!({"sub": "bob", "scopes": "query", "session_id": ["b", "c"]}));
    assert_eq!(call(&server, &other, "GET", "/events", "").json(), json!([]));
    call(&server, &other, "GET", &format!("/events/{}", id_of(1)), "").refusal(404);

    // A socket of a browser: the token is a subprotocol. It ends with the token, after the leeway of 30 s.
    let short = token(-28, &json!({"scopes": "subscribe"}));
    let offered = format!("event-pipeline, key.{short}");
    let mut socket =
        Socket::handshake(server.addr, "/ws/subscribe", &[("Sec-WebSocket-Protocol", &offered)]).ok().expect("in time");
    assert_eq!(socket.ask("{}")["status"], "subscribed");
    assert_eq!(socket.close_code(), 4001);
    assert_eq!(call(&server, &short, "GET", "/whoami", "").refusal(401), "The token has expired");
    let at = all.len() - 10;
    let other = if all[at..].starts_with('x') { "y" } else { "x" };
    let forged = format!("{}{other}{}", &all[..at], &all[at + 1..]);
    let said = call(&server, &forged, "GET", "/whoami", "").refusal(401);
    assert_eq!(said, "The token is not signed by a key that this server knows");
    assert!(!server.log().join("\n").contains(&all[..40]), "no token is logged");
}

#[test]
fn requests_of_one_connection_have_each_its_own_token() {
    let server = Server::with(&[("JWT_SECRET", SECRET)]);
    let mut wire = Wire::connect(server.addr);
    let (ada, bob) = (token(60, &json!({"scopes": "query"})), token(60, &json!({"sub": "bob"})));
    for (shown, subject) in [(&ada, "ada"), (&ada, "ada"), (&bob, "bob"), (&ada, "ada")] {
        wire.send(request("GET", "/whoami", &[("Authorization", &format!("Bearer {shown}"))], b""));
        assert_eq!(wire.response().expect("an answer").json()["subject"], subject);
    }
    wire.send(request("GET", "/whoami", &[], b""));
    wire.response().expect("an answer").refusal(401);
}

#[test]
fn keys_of_tokens_that_cannot_be_used_end_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, r#"{"keys": []}"#).unwrap();
    for (path, said) in
        [(&*file.to_string_lossy(), "jwks.json: it has no key"), ("none.json", "none.json cannot be read")]
    {
        let run = Run::start(command(folder.path()).arg("serve").env("JWT_KEYS_FILE", path), "").finish();
        assert!(run.code == Some(2) && run.stderr.contains(said), "{}", run.stderr);
    }
}
