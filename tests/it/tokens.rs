//! Tokens of an issuer: what a client with one may see and do, and when it ends.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use ring::hmac;
use serde_json::{Value, json};

use crate::support::*;

pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A token with these claims that ends in so many seconds.
pub fn token(seconds: i64, claims: &Value) -> String {
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
    assert_eq!(socket.json()["type"], "auth_expires");
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
fn an_open_socket_goes_on_with_another_token_that_says_the_same() {
    let server = Server::with(&[("JWT_SECRET", SECRET)]);
    let claims = json!({"scopes": ["publish", "subscribe"], "session_id": "a"});
    let [soon, later, latest] = [-5, 60, 120].map(|seconds| token(seconds, &claims));
    let open = |path: &str| {
        let offered = format!("event-pipeline, key.{soon}");
        Socket::handshake(server.addr, path, &[("Sec-WebSocket-Protocol", &offered)]).ok().expect("in time")
    };
    let auth = |token: &str| json!({"type": "auth", "token": token}).to_string();
    // It ends 30 s after its `exp`, the leeway, and that is how long before the end a client hears of it.
    let (mut subscriber, mut publisher) = (open("/ws/subscribe"), open("/ws/publish"));
    assert_eq!(subscriber.ask("{}")["status"], "subscribed");
    for socket in [&mut subscriber, &mut publisher] {
        let said = socket.json();
        assert!(said["type"] == "auth_expires" && said["in_ms"].as_u64() <= Some(25_000), "{said}");
        for (other, why) in [
            (json!({"scopes": ["publish", "subscribe"]}), "The token is not the same as before"),
            (json!({"scopes": ["publish"], "session_id": "a"}), "The token is not the same as before"),
            (json!({"scopes": ["publish", "subscribe"], "session_id": "b"}), "The token is not the same as before"),
            (json!({"scopes": ["publish", "subscribe"], "session_id": "a", "sub": "bob"}), "The token is not the same"),
            (json!({"scopes": ["publish", "subscribe"], "session_id": "a", "iss": "x"}), "The token is not the same"),
            (json!({"scopes": ["publish", "subscribe"], "session_id": "a", "space": "x"}), "The token is not the same"),
            (json!({"scopes": ["publish", "subscribe"], "session_id": "a", "exp": 7}), "The token has expired"),
        ] {
            let said = text_of(&socket.ask(&auth(&token(60, &other)))["message"]);
            assert!(said.starts_with(why), "{other}: {said}");
        }
        assert_eq!(socket.ask(&auth("a.b"))["status"], "error");
        // The order of a list is no difference.
        let turned = json!({"scopes": "subscribe publish", "session_id": ["a"]});
        for token in [&later, &token(120, &turned), &later, &latest] {
            let said = socket.ask(&auth(token));
            assert!(said["type"] == "auth_renewed" && said["in_ms"].as_u64() > Some(80_000), "{said}");
        }
    }
    assert_eq!(publisher.ask(&tick("a", 1))["status"], "ok");
    assert_eq!(subscriber.json()["session_id"], "a");
    // With an event type it is an event.
    let event = json!({"type": "auth", "token": later, "event_type": "timer_tick", "source": "x", "session_id": "a"});
    assert_eq!(publisher.ask(&event.to_string())["status"], "ok");
    assert_eq!(publisher.ask(r#"{"type":"auth"}"#)["status"], "error");
    assert_eq!(subscriber.json()["id"], id_of(2));
    assert_eq!(subscriber.ask(r#"{"type":"auth"}"#)["message"], "'auth' needs a 'token', in a string");
    // A token may end sooner than the one before it.
    for socket in [&mut subscriber, &mut publisher] {
        // The notice of the new end may come before the answer.
        socket.send(&auth(&token(-28, &claims)));
        let mut said = [(); 2].map(|()| text_of(&socket.json()["type"]));
        said.sort();
        assert_eq!(said, ["auth_expires", "auth_renewed"]);
        assert_eq!(socket.close_code(), 4001);
    }
}

#[test]
fn only_what_was_opened_with_a_token_can_be_renewed() {
    let server = Server::with(&[("JWT_SECRET", SECRET), ("API_KEY", "0123456789abcdef")]);
    let mut socket = Socket::handshake(server.addr, "/ws/publish", &[("X-API-Key", "0123456789abcdef")]).ok().unwrap();
    let token = token(60, &json!({"scopes": "publish"}));
    let said = socket.ask(&json!({"type": "auth", "token": token}).to_string());
    assert_eq!(said["message"], "Only what was opened with a token can go on with another");
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

#[test]
fn the_keys_of_tokens_are_read_again_when_their_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let write = |text: &str| {
        std::fs::write(file.with_extension("new"), text).unwrap();
        std::fs::rename(file.with_extension("new"), &file).unwrap();
    };
    let set = |secret: &str| {
        let key = json!({"kty": "oct", "alg": "HS256", "k": BASE64_URL_SAFE_NO_PAD.encode(secret)});
        json!({"keys": [key]}).to_string()
    };
    write(&set("another secret, which has signed nothing"));
    let mut server = Server::with(&[("JWT_KEYS_FILE", file.to_str().unwrap())]);
    let shown = token(60, &json!({"scopes": "query"}));
    call(&server, &shown, "GET", "/whoami", "").refusal(401);
    write(&set(SECRET));
    await_true("the new keys", || call(&server, &shown, "GET", "/whoami", "").status == 200);
    server.allow_noise();
    write("nonsense");
    server.await_log("the keys of tokens are as before");
    assert_eq!(call(&server, &shown, "GET", "/whoami", "").status, 200);
}
