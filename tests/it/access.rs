//! Keys, origins, rates and slots, and the headers that every answer carries.

use event_pipeline::http::{Guard, ROUTES, Route};
use serde_json::{Value, json};

use crate::support::*;

const KEY: &str = "correct horse battery staple";
const WITH_KEY: (&str, &str) = ("X-API-Key", KEY);
const WRONG_KEYS: [&str; 6] =
    ["", "wrong", "correct horse battery stapl", "correct horse battery staple!", "Correct horse battery staple", "*"];

fn guarded() -> Server {
    Server::with(&[("REQUIRE_AUTH", "true"), ("API_KEY", KEY)])
}

#[test]
fn without_a_key_everything_but_the_open_paths_is_401() {
    let server = guarded();
    let guarded_calls = [
        ("GET", "/events"),
        ("POST", "/events"),
        ("DELETE", "/events"),
        ("GET", "/events/evt_000000000001"),
        ("GET", "/stats"),
        // 401 comes before validation, whatever else is wrong.
        ("GET", "/events?limit=0"),
        ("GET", "/events?since=nonsense"),
        ("DELETE", "/events?before="),
        ("HEAD", "/events"),
    ];
    for prefix in ["", "/api/v1"] {
        for (method, path) in guarded_calls {
            let response = server.call(method, &format!("{prefix}{path}"), &[], b"");
            assert_eq!(response.status, 401, "{method} {prefix}{path}");
            if method != "HEAD" {
                response.refusal(401);
            }
        }
        for path in ["/health", "/readiness", "/event-types"] {
            assert_eq!(server.get(&format!("{prefix}{path}")).status, 200, "{prefix}{path} is open");
        }
    }
    for body in ["", "not json", "{}", &tick("s", 0)] {
        server.post(body).refusal(401);
        server.call("POST", "/events", &[("Content-Type", "text/plain")], body.as_bytes()).refusal(401);
    }
    for wrong in WRONG_KEYS {
        server.call("GET", "/stats", &[("X-API-Key", wrong)], b"").refusal(401);
        server.call("GET", "/stats", &[("Authorization", &format!("Bearer {wrong}"))], b"").refusal(401);
        server.call("GET", &format!("/stats?api_key={}", encode(wrong)), &[], b"").refusal(401);
    }
    server.call("GET", "/stats", &[("Authorization", KEY)], b"").refusal(401);
    server.call("GET", "/stats", &[("Authorization", &format!("Basic {KEY}"))], b"").refusal(401);
    server.call("GET", &format!("/stats?api_key={}", encode(KEY)), &[], b"").refusal(401);

    let stats = server.call("GET", "/stats", &[WITH_KEY], b"").json();
    assert_eq!(stats["total_events"], 0, "nothing was let in");
}

/// What the route table says of each route is what the server does, and the contract lists each route.
#[test]
fn every_route_has_the_guard_and_the_methods_of_the_route_table() {
    let server = guarded();
    let contract = std::fs::read_to_string("docs/CONTRACT.md").unwrap();
    for Route { method, template, guard, .. } in &ROUTES {
        let listed = match template.starts_with("/ws/") {
            true => format!("## {}. `WS {template}`", if template.ends_with("publish") { 3 } else { 4 }),
            false => format!("`{method} {template}"),
        };
        assert!(contract.contains(&listed), "the contract has no {listed}");
        let path = template.replace("{id}", "evt_000000000001").replace("{name}", "desk").replace("{file}", "home.css");
        // With a bad time no stream is opened and nothing is deleted.
        let in_url = format!("{path}?until=x&before=x&api_key={}", encode(KEY));
        let status = |path: &str| server.call(method.as_str(), path, &[], b"").status;
        assert_eq!(status(&path) != 401, *guard == Guard::Open, "{method} {path}");
        assert_eq!(status(&in_url) != 401, !matches!(guard, Guard::Key(_) | Guard::AnyKey), "{method} {in_url}");
        let refused = server.call("PUT", &path, &[WITH_KEY], b"");
        refused.refusal(405);
        let allow = refused.header("allow").expect("a header of every 405");
        assert!(allow.split(", ").any(|allowed| allowed == method.as_str()), "{method} {path}: Allow: {allow}");
    }
}

#[test]
fn the_key_is_accepted_in_either_header() {
    let server = guarded();
    let bearer = format!("Bearer {KEY}");
    for header in [WITH_KEY, ("Authorization", bearer.as_str())] {
        let body = tick("s", 0);
        assert_eq!(server.call("POST", "/events", &[JSON, header], body.as_bytes()).status, 201);
        assert_eq!(server.call("GET", "/events", &[header], b"").status, 200);
        assert_eq!(server.call("DELETE", "/api/v1/events", &[header], b"").status, 200);
        server.call("GET", "/events?limit=0", &[header], b"").refusal(422);
    }
}

#[test]
fn a_websocket_without_the_key_is_refused_at_the_handshake() {
    let server = guarded();
    let bearer = format!("Bearer {KEY}");
    let query = format!("api_key={}", encode(KEY));
    for path in ["/ws/publish", "/ws/subscribe", "/api/v1/ws/publish", "/api/v1/ws/subscribe"] {
        let refused = |target: &str, headers: &[(&str, &str)]| {
            let refusal = Socket::handshake(server.addr, target, headers).err();
            refusal.unwrap_or_else(|| panic!("{target} {headers:?} was let in")).refusal(401);
        };
        refused(path, &[]);
        for wrong in WRONG_KEYS {
            refused(path, &[("X-API-Key", wrong)]);
            refused(&format!("{path}?api_key={}", encode(wrong)), &[]);
        }
        Socket::handshake(server.addr, path, &[WITH_KEY]).ok().expect("the key in a header");
        Socket::handshake(server.addr, path, &[("Authorization", &bearer)]).ok().expect("the key as bearer");
        Socket::open(server.addr, &format!("{path}?{query}"));
    }
    let mut publisher = Socket::open(server.addr, &format!("/ws/publish?ack=each&{query}"));
    assert_eq!(publisher.ask(&tick("s", 0))["status"], "ok");
}

#[test]
fn an_empty_key_lets_nobody_in() {
    let mut server = Server::with(&[("REQUIRE_AUTH", "true"), ("API_KEY", "")]);
    // The operator gets a warning.
    server.allow_noise();
    for headers in [
        &[][..],
        &[("X-API-Key", "")],
        &[("X-API-Key", "x")],
        &[("Authorization", "Bearer ")],
        &[("Authorization", "Bearer")],
    ] {
        server.call("GET", "/events", headers, b"").refusal(401);
        assert_eq!(Socket::handshake(server.addr, "/ws/publish", headers).err().expect("a refusal").status, 401);
        assert_eq!(
            Socket::handshake(server.addr, "/ws/publish?api_key=", headers).err().expect("a refusal").status,
            401
        );
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn no_key_is_required_by_default() {
    let server = Server::with(&[("API_KEY", KEY)]);
    server.publish(&tick("s", 0));
    assert_eq!(server.call("GET", "/events", &[("X-API-Key", "wrong")], b"").status, 200);
    server.publisher();
}

#[test]
fn the_key_is_never_logged() {
    let server = guarded();
    server.call("GET", "/stats", &[WITH_KEY], b"");
    Socket::open(server.addr, &format!("/ws/publish?api_key={}", encode(KEY)));
    assert!(server.log().iter().all(|line| !line.contains(KEY) && !line.contains(&encode(KEY))));
}

#[test]
fn every_answer_carries_the_security_headers() {
    let server = Server::with(&[("MAX_BODY_BYTES", "5000"), ("RATE_LIMIT_ADMIN", "1/hour")]);
    let locked = guarded();
    server.publish(&tick("s", 0));
    let long = tick(&"x".repeat(6000), 0);
    let preflight = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST")];
    let answers = [
        (200, server.get("/health")),
        (200, server.get("/events")),
        (200, server.call("GET", "/events", &[ACCEPT_NDJSON], b"")),
        (200, server.call("HEAD", "/events", &[], b"")),
        (201, server.post(tick("s", 0))),
        (400, server.get("/events?since=yesterday")),
        (401, locked.get("/events")),
        (404, server.get("/nowhere")),
        (404, server.get("/events/evt_ffffffffffff")),
        (405, server.call("PUT", "/events", &[], b"")),
        (413, server.post(&long)),
        (415, server.call("POST", "/events", &[("Content-Type", "text/plain")], b"x")),
        (422, server.post("{}")),
        (422, server.get("/events?limit=0")),
        (200, server.call("DELETE", "/events", &[], b"")),
        (429, server.call("DELETE", "/events", &[], b"")),
    ];
    let preflight = server.call("OPTIONS", "/events", &preflight, b"");
    let answers = answers.into_iter().chain([(preflight.status, preflight)]);
    for (status, answer) in answers {
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{status}");
        assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{status}");
        assert_eq!(answer.header("x-xss-protection"), Some("1; mode=block"), "{status}");
        assert_eq!(answer.header("referrer-policy"), Some("strict-origin-when-cross-origin"), "{status}");
        let policy = answer.header("content-security-policy").unwrap_or_else(|| panic!("no policy at {status}"));
        assert!(policy.contains("default-src 'self'"), "{status}: {policy}");
    }
}

#[test]
fn with_authentication_every_origin_is_allowed_by_default() {
    let server = guarded();
    let origin = ("Origin", "https://anywhere.example");
    for answer in [
        server.call("GET", "/events", &[origin, WITH_KEY], b""),
        server.call("POST", "/events", &[JSON, origin, WITH_KEY], b"{}"),
        server.call("GET", "/nowhere", &[origin, WITH_KEY], b""),
    ] {
        let allowed = answer.header("access-control-allow-origin").expect("an allowed origin");
        assert!(matches!(allowed, "*" | "https://anywhere.example"), "{allowed}");
    }
    Socket::handshake(server.addr, "/ws/subscribe", &[origin, WITH_KEY]).ok().expect("any origin");
}

#[test]
fn without_authentication_only_pages_of_this_machine_may_use_the_server() {
    let server = Server::start();
    let own = format!("http://{}", server.addr);
    for (origin, is_allowed) in [
        (&*own, true),
        ("http://localhost:3000", true),
        ("https://app.localhost", true),
        ("http://[::1]:8080", true),
        ("https://anywhere.example", false),
        ("http://localhost.anywhere.example", false),
        ("http://192.0.2.7", false),
        ("null", false),
    ] {
        let origin = ("Origin", origin);
        let read = server.call("GET", "/stats", &[origin], b"");
        assert_eq!(read.status, 200, "a client that is no browser may say anything");
        let shown_to = read.header("access-control-allow-origin");
        assert_eq!(shown_to.is_some(), is_allowed, "{origin:?}: {shown_to:?}");
        let status = |method, path| server.call(method, path, &[JSON, origin], tick("s", 0).as_bytes()).status;
        assert_eq!(status("POST", "/events"), if is_allowed { 201 } else { 403 }, "{origin:?}");
        assert_eq!(status("DELETE", "/events?session_id=none"), if is_allowed { 200 } else { 403 }, "{origin:?}");
        for path in ["/ws/publish", "/ws/subscribe"] {
            let refused = Socket::handshake(server.addr, path, &[origin]).err();
            assert_eq!(refused.map(|answer| answer.status), (!is_allowed).then_some(403), "{origin:?} {path}");
        }
    }
}

/// What browsers say of the fetches of a page that have no `Origin`, such as `<img>` and `<script>`.
#[test]
fn without_authentication_a_foreign_page_has_nothing_fetched() {
    let server = Server::start();
    let fetch = |server: &Server, site: &str, mode: &str, dest: &str, path: &str| {
        let headers = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", dest)];
        let mut wire = Wire::connect(server.addr);
        wire.send(request("GET", path, &headers, b""));
        wire.response_head().expect("an answer").status
    };
    for path in ["/events", "/events/stream", "/stats", "/subscriptions", "/events/evt_000000000001", "/nowhere"] {
        for dest in ["image", "script", "empty", "iframe", "object"] {
            assert_eq!(fetch(&server, "cross-site", "no-cors", dest, path), 403, "{path} as {dest}");
        }
        assert_eq!(
            fetch(&server, "cross-site", "navigate", "iframe", path),
            403,
            "{path}: a frame is no page of its own"
        );
    }
    for (site, mode, dest) in [
        ("cross-site", "navigate", "document"),
        ("none", "navigate", "document"),
        ("same-origin", "cors", "empty"),
        ("same-site", "no-cors", "script"),
    ] {
        assert_eq!(fetch(&server, site, mode, dest, "/stats"), 200, "{site} {mode} {dest}");
    }
    for path in ["/health", "/readiness", "/docs", "/openapi.json", "/event-types"] {
        assert_eq!(fetch(&server, "cross-site", "no-cors", "script", path), 200, "{path} is open");
    }
    let from = |origin| [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "cors"), ("Origin", origin)];
    assert_eq!(server.call("GET", "/stats", &from("http://localhost:3000"), b"").status, 200);
    server.call("GET", "/stats", &from("https://anywhere.example"), b"").refusal(403);
    let listed = Server::with(&[("CORS_ORIGINS", "https://a.example")]);
    assert_eq!(listed.call("GET", "/stats", &from("https://a.example"), b"").status, 200);
    assert_eq!(fetch(&listed, "same-site", "no-cors", "image", "/stats"), 403, "nobody knows whose it is");
    let open = Server::with(&[("CORS_ORIGINS", "*")]);
    assert_eq!(fetch(&open, "cross-site", "no-cors", "image", "/stats"), 200, "every page may");
}

#[test]
fn without_authentication_a_request_names_a_known_host() {
    let call = |server: &Server, host: &str, path: &str| {
        let mut wire = Wire::connect(server.addr);
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        wire.response().expect("an answer")
    };
    let open = Server::with(&[("ALLOWED_HOSTS", "pipeline.school.example")]);
    for known in ["localhost:8001", "a.localhost", "192.0.2.7", "[::1]:1", "Pipeline.school.example:443"] {
        assert_eq!(call(&open, known, "/stats").status, 200, "{known}");
    }
    for foreign in ["evil.example", "pipeline.school.example.evil.example", "localhost@evil.example", ""] {
        for path in ["/stats", "/", "/docs", "/event-types", "/nowhere", "/events/stream"] {
            call(&open, foreign, path).refusal(421);
        }
        for path in ["/health", "/readiness"] {
            assert_eq!(call(&open, foreign, path).status, 200, "{path}: a health check may name any host");
        }
    }
    let preflight =
        [("Host", "evil.example"), ("Origin", "http://evil.example"), ("Access-Control-Request-Method", "DELETE")];
    let mut wire = Wire::connect(open.addr);
    let lines = preflight.map(|(name, value)| format!("{name}: {value}\r\n")).concat();
    wire.send(format!("OPTIONS /events HTTP/1.1\r\n{lines}\r\n"));
    wire.response().expect("an answer").refusal(421);
    assert_eq!(call(&Server::with(&[("ALLOWED_HOSTS", "*")]), "evil.example", "/stats").status, 200);
    assert_eq!(call(&guarded(), "evil.example", "/stats").status, 401, "a page has no key");
}

#[test]
fn a_server_that_other_machines_reach_asks_for_a_key_or_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    for host in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
        let run = Run::start(command(folder.path()).arg("serve").env("HOST", host), "").finish();
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        for mends in ["\n  event-pipeline keys add NAME", "\n  ALLOW_UNAUTHENTICATED=true event-pipeline serve"] {
            assert!(run.stderr.contains(mends), "{}", run.stderr);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was opened");
    }
    for setting in [("ALLOW_UNAUTHENTICATED", "true"), ("REQUIRE_AUTH", "true")] {
        drop(Server::with(&[("HOST", "0.0.0.0"), setting]));
    }
    drop(Server::with(&[("HOST", "::ffff:127.0.0.1")]));
}

#[test]
fn one_list_of_origins_applies_to_cors_and_websockets() {
    for list in [
        "https://a.example,https://b.example:8443",
        " https://a.example , https://b.example:8443 ",
        r#"["https://a.example","https://b.example:8443"]"#,
    ] {
        let server = Server::with(&[("CORS_ORIGINS", list)]);
        for origin in ["https://a.example", "https://b.example:8443"] {
            let headers = [("Origin", origin), ("Access-Control-Request-Method", "GET")];
            for answer in
                [server.call("GET", "/events", &headers[..1], b""), server.call("OPTIONS", "/events", &headers, b"")]
            {
                assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
                let vary = answer.header("vary").expect("an answer that depends on the origin says so");
                assert!(vary.to_lowercase().contains("origin"), "{vary}");
            }
            Socket::handshake(server.addr, "/ws/subscribe", &[headers[0]]).ok().expect(origin);
        }
        for origin in [
            "https://evil.example",
            "http://a.example",
            "https://a.example:444",
            "https://a.example.evil.example",
            "null",
            "*",
            "",
        ] {
            let headers = [("Origin", origin), ("Access-Control-Request-Method", "GET")];
            for answer in
                [server.call("GET", "/events", &headers[..1], b""), server.call("OPTIONS", "/events", &headers, b"")]
            {
                assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}");
            }
            for path in ["/ws/publish", "/ws/subscribe"] {
                let refusal = Socket::handshake(server.addr, path, &[headers[0]]).err();
                refusal.unwrap_or_else(|| panic!("{origin} was let in")).refusal(403);
            }
        }
        // A client that is no browser sends no origin.
        Socket::open(server.addr, "/ws/subscribe");
    }
}

#[test]
fn a_request_from_a_forbidden_origin_changes_nothing() {
    let server = Server::with(&[("CORS_ORIGINS", "https://a.example")]);
    let (allowed, evil) = (("Origin", "https://a.example"), ("Origin", "https://evil.example"));
    let event = tick("s", 0);
    // Without a content type a browser sends this without a preflight.
    for headers in [&[][..], &[JSON], &[NDJSON], &[("Content-Type", "application/cloudevents+json")]] {
        server.call("POST", "/api/v1/events", &[headers, &[evil]].concat(), event.as_bytes()).refusal(403);
    }
    server.call("POST", "/events", &[("Origin", "null")], event.as_bytes()).refusal(403);
    server.call("POST", "/nowhere", &[evil], b"").refusal(403);
    assert_eq!(server.get_json("/stats")["total_events"], 0);
    assert_eq!(server.call("POST", "/events", &[allowed], event.as_bytes()).status, 201);
    assert_eq!(server.call("POST", "/events", &[], event.as_bytes()).status, 201, "other clients send no origin");

    server.subscriber(&json!({"name": "grader"})).reset();
    server.call("DELETE", "/events", &[evil], b"").refusal(403);
    server.call("DELETE", "/subscriptions/grader", &[evil], b"").refusal(403);
    assert_eq!(
        server.call("GET", "/events", &[evil], b"").json().as_array().unwrap().len(),
        2,
        "reading changes nothing"
    );
    assert_eq!(server.get_json("/subscriptions").as_array().unwrap().len(), 1);
    assert_eq!(server.call("DELETE", "/subscriptions/grader", &[allowed], b"").status, 204);
    assert_eq!(server.call("DELETE", "/events", &[allowed], b"").json()["deleted"], 2);
}

#[test]
fn too_many_sockets_from_one_address_are_closed_with_4002() {
    let server = Server::with(&[("MAX_WS_CONNECTIONS_PER_IP", "2")]);
    let mut publisher = server.publisher();
    let subscriber = server.subscriber(&json!({}));
    for path in ["/ws/publish", "/ws/subscribe"] {
        assert_eq!(Socket::open(server.addr, path).read_to_close().1, 4002, "{path}");
    }
    // A client can claim any forwarded address, so the limit ignores it.
    let mut pretender =
        Socket::handshake(server.addr, "/ws/publish", &[("X-Forwarded-For", "203.0.113.7")]).ok().expect("a handshake");
    assert_eq!(pretender.read_to_close().1, 4002);

    assert_eq!(publisher.ask(&tick("s", 0))["status"], "ok", "those inside go on");
    assert_eq!(server.get("/health").status, 200, "and HTTP is not counted");
    subscriber.reset();
    await_true("a free place", || {
        let mut socket = server.publisher();
        socket.send(&tick("s", 1));
        matches!(socket.receive(), Received::Text(_))
    });
}

#[test]
fn each_class_of_requests_has_its_own_rate() {
    let server = Server::with(&[
        ("RATE_LIMIT_PUBLISH", "3/minute"),
        ("RATE_LIMIT_QUERY", "2/minute"),
        ("RATE_LIMIT_ADMIN", "1/minute"),
    ]);
    let call = |method: &str, path: &str| {
        let body = if method == "POST" { tick("s", 0) } else { String::new() };
        server.call(method, path, &[JSON, ("X-Forwarded-For", "203.0.113.7")], body.as_bytes())
    };
    for (method, path, allowed) in [("POST", "/events", 3), ("GET", "/events", 2), ("DELETE", "/events", 1)] {
        for _ in 0..allowed {
            let response = call(method, path);
            assert!(matches!(response.status, 200 | 201), "{method}: {}", response.text());
        }
        for path in [path, &format!("/api/v1{path}")] {
            let response = call(method, path);
            response.refusal(429);
            let wait: u64 = response.header("retry-after").expect("Retry-After").parse().unwrap();
            assert!((1..=60).contains(&wait), "{method}: {wait} s");
        }
    }
    for _ in 0..10 {
        assert_eq!(server.get("/health").status, 200, "health is not limited");
        assert_eq!(server.get("/readiness").status, 200, "nor is readiness");
    }
}

#[test]
fn rates_are_unlimited_by_default() {
    let server = Server::start();
    for _ in 0..300 {
        server.publish(&tick("s", 0));
    }
}

#[test]
fn handshakes_and_new_filters_count_in_the_rates() {
    let server = Server::with(&[("RATE_LIMIT_PUBLISH", "4/hour"), ("RATE_LIMIT_QUERY", "3/hour")]);
    let limited = |path: &str| {
        let refusal = Socket::handshake(server.addr, path, &[]).err();
        let refusal = refusal.unwrap_or_else(|| panic!("{path} was let in"));
        refusal.refusal(429);
        assert!(refusal.header("retry-after").is_some(), "{path}");
    };
    let [mut publisher, _] = [server.publisher(), server.publisher()];
    for _ in 0..2 {
        assert_eq!(publisher.ask(&tick("s", 0))["status"], "ok");
    }
    assert_eq!(publisher.ask(&tick("s", 0))["status"], "error", "its messages are counted with the handshakes");
    limited("/ws/publish");
    limited("/api/v1/ws/publish");

    let mut subscriber = server.subscriber(&json!({"after": id_of(2)}));
    let update = |session: &str| json!({"type": "update_filters", "filters": {"session_id": session}}).to_string();
    for session in ["a", "b"] {
        assert_eq!(subscriber.ask(&update(session))["status"], "filters_updated");
    }
    let refused = subscriber.ask(&update("c"));
    assert_eq!(refused["status"], "error", "{refused}");
    assert!(text_of(&refused["message"]).starts_with("Rate limit exceeded"), "{refused}");
    limited("/ws/subscribe");
    server.get("/events").refusal(429);
    assert_eq!(subscriber.ask(r#"{"type":"ping"}"#)["type"], "pong", "it goes on, with the former filters");
}

#[test]
fn refused_messages_count_in_the_rates() {
    let server = Server::with(&[
        ("RATE_LIMIT_PUBLISH", "5/hour"),
        ("RATE_LIMIT_QUERY", "4/hour"),
        ("MAX_WS_MESSAGE_BYTES", "1000"),
    ]);
    let is_limited = |answer: &Value| text_of(&answer["message"]).starts_with("Rate limit exceeded");
    let mut publisher = server.publisher();
    for n in 0..3 {
        publisher.send(&"x".repeat(1001));
        publisher.send_frame(BINARY, b"\xff");
        for (answer, refused) in publisher.collect(2).iter().zip(["Message too large", "Message is not valid UTF-8"]) {
            match n {
                0..2 => assert_eq!(answer["message"], refused),
                _ => assert!(is_limited(answer), "{answer}"),
            }
        }
    }
    assert!(is_limited(&publisher.ask(&tick("s", 0))));

    let mut subscriber = server.subscriber(&json!({}));
    for n in 0..4 {
        let answer = subscriber.ask(r#"{"type":"update_filters","filters":7}"#);
        assert_eq!(answer["status"], "error");
        assert_eq!(is_limited(&answer), n == 3, "{answer}");
    }
}

#[test]
fn wrong_keys_count_for_their_address_and_lock_nobody_out() {
    let server = Server::with(&[
        ("REQUIRE_AUTH", "true"),
        ("API_KEY", KEY),
        ("RATE_LIMIT_PUBLISH", "5/hour"),
        ("RATE_LIMIT_QUERY", "5/hour"),
        ("RATE_LIMIT_ADMIN", "5/hour"),
    ]);
    for (method, path) in [("GET", "/stats"), ("POST", "/events"), ("DELETE", "/events")] {
        for guess in 0..5 {
            server.call(method, path, &[("X-API-Key", &format!("guess {guess}"))], b"").refusal(401);
        }
        for path in [path, "/nowhere", "/events/stream"] {
            server.call(method, path, &[("X-API-Key", "guess")], b"").refusal(429);
        }
    }
    assert_eq!(Socket::handshake(server.addr, "/ws/publish", &[]).err().expect("a refusal").status, 429);
    assert_eq!(server.get("/health").status, 200);
    // A client with the key has a rate of its own, also at the same address.
    for left in (0..7).rev() {
        let answer = server.call("GET", "/stats", &[WITH_KEY], b"");
        if left > 1 {
            assert_eq!(answer.status, 200);
        } else {
            answer.refusal(429);
            assert_eq!(answer.header("ratelimit-policy"), Some("\"default\";q=5;w=3600"));
            let wait = answer.header("retry-after").expect("a time to wait");
            assert_eq!(answer.header("ratelimit"), Some(&*format!("\"default\";r=0;t={wait}")));
        }
    }
}

#[test]
fn behind_trusted_proxies_each_client_has_its_own_rate() {
    let with = |proxies: &str| Server::with(&[("RATE_LIMIT_QUERY", "2/hour"), ("TRUSTED_PROXIES", proxies)]);
    let from = |server: &Server, header, client: &str| server.call("GET", "/events", &[(header, client)], b"").status;
    let behind = with("127.0.0.0/8, 10.0.0.0/8");
    for (header, network) in [("X-Forwarded-For", "203.0.113"), ("Forwarded", "198.51.100")] {
        let spell = |client: &str| if header == "Forwarded" { format!("for={client}") } else { client.to_owned() };
        for n in 1..=2 {
            let client = spell(&format!("{network}.{n}"));
            assert_eq!([(); 3].map(|()| from(&behind, header, &client)), [200, 200, 429]);
        }
        let made_up = format!("{}, {}", spell("192.0.2.1"), spell(&format!("{network}.1")));
        assert_eq!(from(&behind, header, &made_up), 429, "what the client says of itself counts for nothing");
    }
    let direct = with("10.0.0.0/8");
    let statuses = ["203.0.113.1", "203.0.113.2", "203.0.113.3"].map(|client| from(&direct, "X-Forwarded-For", client));
    assert_eq!(statuses, [200, 200, 429], "a client that is no proxy is not believed");
    let open = Server::start();
    assert_eq!(from(&open, "X-Forwarded-For", "203.0.113.1"), 200);
    assert_eq!(open.get("/stats").json()["router"]["forwarded_ignored"], 1);
}
