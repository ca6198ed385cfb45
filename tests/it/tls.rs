//! TLS: what a client over it gets, and what becomes of certificates that change, end, or cannot be used.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use event_pipeline::event::Timestamp;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use crate::support::h2::{
    END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, await_pong, frame as h2_frame, head, read_frame,
};
use crate::support::*;

/// A certificate for localhost, and its key.
struct Pair {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Pair {
    fn new() -> Pair {
        Pair::ending((2100, 1, 1))
    }

    fn ending((year, month, day): (i32, u8, u8)) -> Pair {
        let mut params = CertificateParams::new(["localhost", "127.0.0.1"].map(str::to_owned)).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, month, day);
        let key = KeyPair::generate().unwrap();
        Pair { certificate: params.self_signed(&key).unwrap().der().clone(), key: key.serialize_der() }
    }

    /// Writes both files so that a reader sees each as a whole.
    fn write(&self, folder: &Path) -> Files {
        let files = Files { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
        replace(&files.certificate, &pem("CERTIFICATE", &self.certificate));
        replace(&files.key, &pem("PRIVATE KEY", &self.key));
        files
    }

    /// A client that trusts this certificate only.
    fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn settings(&self) -> [(&str, &str); 2] {
        [("TLS_CERT", self.certificate.to_str().unwrap()), ("TLS_KEY", self.key.to_str().unwrap())]
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

/// A server with a certificate, and a client that trusts it.
struct Secured {
    server: Server,
    pair: Pair,
    client: Arc<ClientConfig>,
    files: Files,
}

impl Secured {
    fn start() -> Secured {
        Secured::with(&[])
    }

    fn with(settings: &[(&str, &str)]) -> Secured {
        let (folder, pair) = (tempfile::tempdir().unwrap(), Pair::new());
        let files = pair.write(folder.path());
        let client = pair.client(&["http/1.1"]);
        let server = Server::in_folder(folder, &[&files.settings()[..], settings].concat());
        Secured { server, pair, client, files }
    }

    fn wire(&self) -> Wire {
        Wire::secured(self.server.addr, &self.client)
    }

    fn call(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut wire = self.wire();
        wire.send(request(method, target, headers, body));
        wire.response().expect("an answer")
    }

    fn socket(&self, target: &str) -> Socket {
        Socket::over(self.wire(), target, &[]).ok().expect("a WebSocket")
    }
}

/// Whether server and client agree on TLS.
fn agrees(wire: &mut Wire) -> bool {
    let mut tcp = wire.stream().try_clone().unwrap();
    wire.tls().complete_io(&mut tcp).is_ok()
}

/// The certificate that a server shows to a new connection.
fn shown(server: &Server, client: &Arc<ClientConfig>) -> Option<CertificateDer<'static>> {
    let mut wire = Wire::secured(server.addr, client);
    assert!(agrees(&mut wire));
    Some(wire.tls().peer_certificates()?.first()?.clone())
}

#[test]
fn requests_sockets_and_event_streams_go_over_tls() {
    let secured = Secured::start();
    let mut stream = EventStream::over(secured.wire(), "/events/stream", &[]).ok().expect("an event stream");
    assert_eq!(stream.block().event.as_deref(), Some("subscribed"));
    let mut subscriber = secured.socket("/ws/subscribe");
    assert_eq!(subscriber.ask("{}")["status"], "subscribed");

    let answer = secured.call("POST", "/events", &[JSON], tick("s", 0).as_bytes());
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(answer.header("strict-transport-security"), Some("max-age=31536000"));
    let mut publisher = secured.socket("/ws/publish");
    // Larger than what one record holds, than what one read takes, and than what TLS keeps of one write.
    let filler = "x".repeat(60_000);
    let large = json!({"event_type": "timer_tick", "source": "it", "payload": {"filler": filler}}).to_string();
    for _ in 0..5 {
        for _ in 0..10 {
            publisher.send(&large);
        }
        acknowledged(&publisher.collect(10));
    }
    assert_eq!(stream.sequences(51), (1..=51).collect::<Vec<_>>());
    let delivered: Vec<Value> = subscriber.collect(51);
    assert_eq!(sequences(&delivered), (1..=51).collect::<Vec<_>>());
    assert_eq!(delivered[50]["payload"]["filler"], filler);

    let page = secured.call("GET", "/events?limit=100", &[], b"");
    assert_eq!(page.json().as_array().unwrap().len(), 51, "an answer of three megabytes");
    // Pages of the server's own are those over https.
    for (origin, allowed) in [("https://localhost", true), ("http://localhost.example", false)] {
        let answer = secured.call("POST", "/events", &[JSON, ("Origin", origin)], tick("s", 0).as_bytes());
        assert_eq!(answer.status == 201, allowed, "{origin}");
    }
}

#[test]
fn http_2_is_agreed_on_by_tls() {
    let secured = Secured::start();
    let mut wire = Wire::secured(secured.server.addr, &secured.pair.client(&["http/1.1", "h2"]));
    wire.send([PREFACE, &h2_frame(SETTINGS, 0, 0, b"")].concat());
    assert_eq!(read_frame(&mut wire).expect("settings").0, SETTINGS);
    assert_eq!(wire.tls().alpn_protocol(), Some(&b"h2"[..]), "the server prefers it");
    let request = head("GET", "/health", &[(":authority", "localhost")]);
    wire.send(h2_frame(HEADERS, END_HEADERS | END_STREAM, 1, &request));
    loop {
        let (kind, _, payload) = read_frame(&mut wire).expect("an answer");
        if kind == HEADERS {
            assert_eq!(payload[0], 0x88, "status 200");
            break;
        }
    }
    await_pong(&mut wire).expect("it stays open");
    // Without ALPN it is HTTP/1.1, also where the client would begin with the preface.
    let mut wire = Wire::secured(secured.server.addr, &secured.pair.client(&[]));
    wire.send(crate::support::request("GET", "/health", &[], b""));
    assert_eq!(wire.response().expect("an answer").status, 200);
    // With nothing in common there is no connection.
    let mut wire = Wire::secured(secured.server.addr, &secured.pair.client(&["spdy/1"]));
    let mut tcp = wire.stream().try_clone().unwrap();
    assert!(wire.tls().complete_io(&mut tcp).unwrap_err().to_string().contains("NoApplicationProtocol"));
}

#[test]
fn a_new_certificate_is_for_new_connections_and_nobody_loses_anything() {
    let Secured { server, pair, client, files } = Secured::start();
    let (stop, count) = (AtomicBool::new(false), 3);
    let publish = |session: usize| {
        let mut socket = Socket::over(Wire::secured(server.addr, &client), "/ws/publish", &[]).ok().unwrap();
        let mut kept = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            kept.extend(acknowledged(&[socket.ask(&tick(&format!("s{session}"), kept.len()))]));
        }
        kept
    };
    let mut kept = thread::scope(|scope| {
        let publishers: Vec<_> = (0..count).map(|session| scope.spawn(move || publish(session))).collect();
        assert_eq!(shown(&server, &client), Some(pair.certificate.clone()));
        for by_signal in [false, true] {
            let next = Pair::new();
            next.write(files.certificate.parent().unwrap());
            if by_signal {
                server.signal("HUP");
            }
            let trusting = next.client(&[]);
            await_true("the new certificate", || agrees(&mut Wire::secured(server.addr, &trusting)));
        }
        stop.store(true, Ordering::Relaxed);
        publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect::<Vec<_>>()
    });
    kept.sort_unstable();
    assert!(kept.len() > count, "they published meanwhile");
    assert_eq!(kept, (1..=kept.len() as u64).collect::<Vec<_>>(), "each is acknowledged once");
}

#[test]
fn a_bad_pair_changes_nothing_and_the_log_says_why() {
    let Secured { mut server, pair, client, files } = Secured::start();
    server.allow_noise();
    let good = fs::read_to_string(&files.certificate).unwrap();
    for (path, text, said) in [
        (&files.certificate, "nothing".to_owned(), "there is no certificate in it"),
        (&files.certificate, good.replace("\nMII", "\n!II"), "line 1: this is no PEM"),
        (&files.certificate, pem("CERTIFICATE", b"something else"), "line 1: this is no certificate"),
        (
            &files.certificate,
            pem("CERTIFICATE", &Pair::ending((2001, 1, 1)).certificate),
            "the certificate has ended at",
        ),
        (&files.key, String::new(), "there is no private key in it"),
        (&files.key, pem("PRIVATE KEY", &Pair::new().key), "does not belong to the certificate"),
        (&files.key, pem("PRIVATE KEY", b"something else"), "key.pem: "),
    ] {
        let former = fs::read_to_string(path).unwrap();
        replace(path, &text);
        server.signal("HUP");
        server.await_log(said);
        assert_eq!(shown(&server, &client), Some(pair.certificate.clone()), "{said}");
        replace(path, &former);
    }
}

#[test]
fn a_server_does_not_start_with_a_certificate_that_nobody_would_accept() {
    let folder = tempfile::tempdir().unwrap();
    let start = |settings: &[(&str, &str)]| {
        let run = Run::start(command(folder.path()).arg("serve").envs(settings.iter().copied()), "").finish();
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        run.stderr
    };
    let files = Pair::ending((2001, 1, 1)).write(folder.path());
    let said = start(&files.settings());
    assert!(said.contains("cert.pem, line 1: the certificate has ended at 2001-01-01"), "{said}");
    let [certificate, key] = files.settings();
    assert!(start(&[certificate]).contains("TLS_CERT is set and TLS_KEY is not: TLS needs both"));
    assert!(start(&[key]).contains("TLS_KEY is set and TLS_CERT is not: TLS needs both"));
    assert!(start(&[certificate, key, ("TLS_SELF_SIGNED", "true")]).contains("makes a certificate of its own"));
    assert!(start(&[("TLS_CERT", "/nowhere.pem"), key]).contains("TLS_CERT /nowhere.pem cannot be read"));
}

#[test]
fn a_certificate_that_ends_soon_is_warned_about() {
    let week = Timestamp(Timestamp::now().0 + 7 * 86_400_000_000).to_string();
    let mut ends = week[..10].split('-').map(|part| part.parse::<i32>().unwrap());
    let mut next = || ends.next().unwrap();
    let (year, month, day) = (next(), next() as u8, next() as u8);
    let folder = tempfile::tempdir().unwrap();
    let files = Pair::ending((year, month, day)).write(folder.path());
    let mut server = Server::in_folder(folder, &files.settings());
    server.allow_noise();
    server.await_log("the certificate ends soon");
}

#[test]
fn a_client_without_tls_is_told_that_this_port_speaks_it() {
    let secured = Secured::start();
    let mut wire = Wire::connect(secured.server.addr);
    wire.send(request("GET", "/health", &[], b""));
    let answer = wire.response().expect("an answer");
    assert_eq!(answer.refusal(400), "This port speaks TLS: use https:// or wss://");
    wire.await_close();
}

#[test]
fn a_handshake_that_is_not_finished_is_ended_and_keeps_no_slot() {
    let secured = Secured::with(&[("HEADER_TIMEOUT_SECONDS", "0.3"), ("MAX_CONNECTIONS", "2")]);
    let hello = {
        let mut hello = Vec::new();
        let name = "localhost".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&secured.client), name).unwrap();
        client.write_tls(&mut hello).unwrap();
        hello
    };
    // Nothing, a part, and a whole first message of a client that then says nothing more.
    for said in [0, hello.len() / 2, hello.len()] {
        let mut wire = Wire::connect(secured.server.addr);
        wire.send(&hello[..said]);
        wire.await_close();
    }
    for said in [0, hello.len() / 2, hello.len()] {
        let mut wire = Wire::connect(secured.server.addr);
        wire.send(&hello[..said]);
        wire.reset();
        let mut wire = Wire::connect(secured.server.addr);
        wire.send(&hello[..said]);
        wire.finish();
        wire.await_close();
    }
    await_true("both slots", || [secured.wire(), secured.wire()].iter_mut().all(agrees));
}

#[test]
fn a_connection_ends_with_a_word_within_tls() {
    let secured = Secured::start();
    let mut wire = secured.wire();
    wire.send(request("GET", "/health", &[("Connection", "close")], b""));
    assert_eq!(wire.response().expect("an answer").status, 200);
    // An end without `close_notify` would be an error here.
    wire.await_close();

    // A client that has ended its side gets its answer all the same.
    let mut wire = secured.wire();
    wire.send(request("GET", "/events", &[], b""));
    wire.finish_tls();
    assert_eq!(wire.response().expect("an answer").status, 200);
    wire.await_close();
    // One that waits for events, and has gone, is not waited for.
    for with_word in [true, false] {
        let mut stream = EventStream::over(secured.wire(), "/events/stream", &[]).ok().expect("an event stream");
        stream.block();
        let mut wire = stream.into_wire();
        if with_word {
            wire.finish_tls();
        } else {
            wire.finish();
        }
        await_true("the end of the subscriber", || {
            let stats = secured.call("GET", "/stats", &[], b"").json();
            stats["router"]["active_subscribers"] == 0
        });
    }
}

#[test]
fn a_client_that_takes_nothing_is_given_up() {
    let secured = Secured::with(&[("WRITE_TIMEOUT_SECONDS", "0.5")]);
    let mut hung = secured.socket("/ws/subscribe");
    assert_eq!(hung.ask("{}")["status"], "subscribed");
    let mut publisher = secured.socket("/ws/publish");
    let payload = json!({"filler": "x".repeat(60_000)});
    let large = json!({"event_type": "timer_tick", "source": "it", "payload": payload}).to_string();
    // More than the buffers of both systems hold.
    for _ in 0..50 {
        for _ in 0..10 {
            publisher.send(&large);
        }
        acknowledged(&publisher.collect(10));
    }
    await_true("the end of the subscriber", || {
        let stats = secured.call("GET", "/stats", &[], b"").json();
        stats["router"]["active_subscribers"] == 0
    });
}

#[test]
fn a_shutdown_tells_clients_over_tls() {
    let mut secured = Secured::start();
    let mut publisher = secured.socket("/ws/publish");
    acknowledged(&[publisher.ask(&tick("s", 0))]);
    let mut subscriber = secured.socket("/ws/subscribe");
    assert_eq!(subscriber.ask("{}")["status"], "subscribed");
    let mut silent = TcpStream::connect(secured.server.addr).unwrap();
    silent.write_all(&[22, 3, 1]).unwrap();
    secured.server.signal("TERM");
    assert_eq!([publisher.close_code(), subscriber.close_code()], [1001, 1001]);
    assert_eq!(silent.read(&mut [0]).unwrap_or(0), 0, "who has said nothing is not waited for");
    secured.server.await_exit_0();
}

#[test]
fn a_server_makes_a_certificate_for_a_trial() {
    let server = Server::with(&[("TLS_SELF_SIGNED", "true")]);
    server.await_log("\"listening\"");
    let greeting = server.log().into_iter().find(|line| line.contains("\"listening\"")).unwrap();
    let greeting: Value = serde_json::from_str(&greeting).unwrap();
    let greeting = &greeting["fields"];
    let url = text_of(&greeting["url"]);
    assert!(url.starts_with("https://localhost:"), "{url}");
    assert_eq!(text_of(&greeting["fingerprint"]).len(), 32 * 3 - 1);
    let ask = |arguments: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        Run::start(command(folder.path()).args(["stats", "--url", &url]).args(arguments), "").finish()
    };
    assert_eq!(ask(&["--insecure"]).code, Some(0));
    let refused = ask(&[]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("--ca names"), "{}", refused.stderr);
}

#[test]
fn commands_speak_tls() {
    let secured = Secured::start();
    let url = format!("https://localhost:{}", secured.server.addr.port());
    let ca = secured.files.certificate.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], input: &str| {
        let mut command = command(folder.path());
        let run = Run::start(command.args(arguments).args(["--url", &url, "--ca", ca]), input).finish();
        assert_eq!(run.code, Some(0), "{arguments:?}: {}", run.stderr);
        run.stdout
    };
    let events = ticks("s", 1_000).join("\n");
    run(&["publish", "-"], &events);
    assert_eq!(run(&["query", "--all", "--json"], "").lines().count(), 1_000);
    assert!(run(&["stats"], "").contains("1,000") || run(&["stats", "--json"], "").contains("1000"));
    let other = Pair::new().write(folder.path());
    let ca = other.certificate.to_str().unwrap();
    let refused = Run::start(command(folder.path()).args(["stats", "--url", &url, "--ca", ca]), "").finish();
    assert!(refused.code == Some(1) && refused.stderr.contains("its certificate is not trusted"), "{}", refused.stderr);
}

#[test]
fn openssl_agrees_on_tls_1_2_and_1_3_and_on_nothing_older() {
    let Some(openssl) = program("openssl") else { return skip("tls::openssl", "openssl") };
    let secured = Secured::start();
    let (address, ca) = (secured.server.addr.to_string(), secured.files.certificate.to_str().unwrap());
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(&openssl);
        command.args([
            "s_client",
            "-connect",
            &address,
            "-CAfile",
            ca,
            "-servername",
            "localhost",
            "-quiet",
            "-verify_return_error",
        ]);
        let input = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        Run::start(command.args(arguments), input).finish()
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let run = ask(&[version, "-alpn", "http/1.1"]);
        assert!(run.stdout.starts_with("HTTP/1.1 200 OK"), "{version}: {}\n{}", run.stdout, run.stderr);
    }
    for version in ["-tls1", "-tls1_1"] {
        let run = ask(&[version, "-cipher", "DEFAULT@SECLEVEL=0"]);
        assert!(run.code != Some(0) && run.stdout.is_empty(), "{version}: {}", run.stdout);
        assert!(run.stderr.contains("alert protocol version") || run.stderr.contains("alert"), "{}", run.stderr);
    }
}
