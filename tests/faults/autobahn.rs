//! The Autobahn test suite: a WebSocket client with 517 cases, most of which break a rule of RFC 6455. It runs against
//! an echo server made of our own frame layer, and against `/ws/publish`. The latter answers a text that is no event
//! with an error instead of an echo: there a case ends as the tables below say.

use std::collections::BTreeMap;
use std::future::ready;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use event_pipeline::wire::decoder::{Decoder, Message};
use event_pipeline::wire::frame::{self, MESSAGE_BYTES_MAX, OpCode, Role};
use event_pipeline::wire::refusal::Ending;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;

use crate::support::*;

/// The number of a case → the suite's verdict on the case, and on how the connection was closed.
type Verdicts = BTreeMap<String, [String; 2]>;

/// Numbers of cases, which may end with `*`, and the verdicts that they must get.
type Expected = [(&'static [&'static str], [&'static str; 2])];

/// Cases that get another verdict than OK from every server of ours.
const NOT_OK: &Expected = &[
    // Compression, which the server does not negotiate.
    (&["12.*", "13.*"], ["UNIMPLEMENTED", "OK"]),
    // A single frame that arrives in pieces: the server refuses invalid text in it once the frame is complete, and not
    // before. The RFC asks for no more, and the length of a frame is bounded.
    (&["6.4.3", "6.4.4"], ["NON-STRICT", "OK"]),
    // The suite gives no verdict on frames after a Close frame, nor on a close code of 5000 or 65,535.
    (&["7.1.6", "7.13.*"], ["INFORMATIONAL", "INFORMATIONAL"]),
];

/// Cases in which the suite waits for an echo until it gives up. It then closes with a code of its own, gets the same
/// code back, and calls that code wrong.
const GIVEN_UP: &[&str] = &[
    "1.*", "6.5.*", "6.6.2", "6.6.5", "6.6.7", "6.6.9", "6.6.11", "6.7.*", "6.9.*", "6.11.1", "6.11.2", "6.11.3",
    "6.11.4", "6.22.*", "6.23.*", "7.1.1", "10.*",
];

/// The same, but here the connection ends normally.
const CLOSED: &[&str] = &["5.3", "5.4", "5.5", "5.6", "5.7", "5.8", "5.19", "5.20", "6.1.*", "6.2.*"];

/// Cases in which the suite receives something else than an echo before the end.
const NO_ECHO: &[&str] = &["3.2", "3.3", "3.4", "4.1.3", "4.1.4", "4.1.5", "4.2.3", "4.2.4", "4.2.5", "5.15", "9.*"];

/// The Python that has the suite, if `autobahn.sh` has installed it in the build folder. Tests do not install it
/// themselves, because that needs a network.
fn python() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("autobahn-venv");
    folder.join("ready").exists().then(|| folder.join("bin/python"))
}

/// Runs the suite against an address, with the cases that are in `cases` and not in `excluded`. Its timeouts are
/// multiplied by `patience`. `None` where the suite is not installed.
fn run(target: &str, cases: &[&str], excluded: &[&str], patience: f64) -> Option<Verdicts> {
    let Some(python) = python() else {
        skip("autobahn", "the suite (sh tests/faults/autobahn.sh target/autobahn-venv, with Python 2.7)");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let (specification, reports) = (folder.path().join("specification.json"), folder.path().join("reports"));
    let specification_text = json!({
        "outdir": reports,
        // After the Close frames the suite gives a second each for the end of the connection.
        "options": {"openHandshakeTimeout": 60, "closeHandshakeTimeout": 60, "serverConnectionDropTimeout": 60},
        "servers": [{"agent": "ours", "url": format!("ws://{target}")}],
        "cases": cases,
        "exclude-cases": excluded,
        "exclude-agent-cases": {},
    });
    std::fs::write(&specification, specification_text.to_string()).unwrap();
    let ran = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/autobahn_client.py"))
        .arg(&specification)
        .arg(patience.to_string())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let index: Value = serde_json::from_slice(&std::fs::read(reports.join("index.json")).unwrap()).unwrap();
    let cases = index["ours"].as_object().unwrap().iter();
    Some(cases.map(|(case, told)| (case.clone(), [&told["behavior"], &told["behaviorClose"]].map(text_of))).collect())
}

/// Starts a server that echoes every message through our own frame layer, and listens until the process ends.
fn start_echo() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(echo_on(stream));
            }
        });
    });
    addr
}

async fn echo_on(stream: TcpStream) {
    let upgrade = Mutex::new(None);
    let handshake = service_fn(|request: Request<Incoming>| {
        *upgrade.lock().unwrap() = request.extensions().get::<OnUpgrade>().cloned();
        ready(fastwebsockets::upgrade::upgrade(request).map(|(response, _)| response))
    });
    http1::Builder::new().serve_connection(TokioIo::new(stream), handshake).with_upgrades().await.unwrap();
    let upgrade = upgrade.into_inner().unwrap().expect("a handshake");
    let parts = upgrade.await.unwrap().downcast::<TokioIo<TcpStream>>().unwrap();
    let mut stream = parts.io.into_inner();
    let mut decoder = Decoder::new(Role::Server, MESSAGE_BYTES_MAX).with_received(&parts.read_buf);
    let mut out = Vec::new();
    let ending = loop {
        let said = match decoder.next() {
            Ok(Some(Message::Text(text))) => Some((OpCode::Text, text.as_bytes())),
            Ok(Some(Message::Binary(bytes))) => Some((OpCode::Binary, bytes)),
            Ok(Some(Message::Ping(payload))) => Some((OpCode::Pong, payload)),
            Ok(Some(Message::Pong(_))) => continue,
            Ok(Some(Message::TooLarge)) => unreachable!("nothing is sent that is too large"),
            Ok(Some(Message::Close(close))) => break Ending::Asked(close.map(|(code, _)| code)),
            Err(violation) => break Ending::Violated(violation),
            Ok(None) => None,
        };
        if let Some((opcode, payload)) = said {
            frame::unmasked(&mut out, opcode, payload);
            continue;
        }
        if stream.write_all(&out).await.is_err() {
            return;
        }
        out.clear();
        if !matches!(stream.read_buf(decoder.space()).await, Ok(1..)) {
            return;
        }
    };
    frame::close(&mut out, ending.code().expect("the peer is there"), &ending.reason());
    // The suite may be gone or still sending. Errors here are none of ours: the suite counts what it did not expect.
    let _ = stream.write_all(&out).await;
    let _ = stream.shutdown().await;
    let mut rest = [0; 4096];
    while matches!(stream.read(&mut rest).await, Ok(1..)) {}
}

/// The verdicts that are not as expected.
fn surprises(verdicts: &Verdicts, expected: &Expected) -> Vec<String> {
    let is_of = |case: &str, pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => case.starts_with(start),
        None => case == pattern,
    };
    let expected = |case: &str| {
        let line = expected.iter().find(|(patterns, _)| patterns.iter().any(|pattern| is_of(case, pattern)));
        line.map_or(["OK", "OK"], |(_, expected)| *expected)
    };
    let wrong = verdicts.iter().filter(|(case, how)| **how != expected(case));
    wrong.map(|(case, how)| format!("{case}: {how:?} instead of {:?}", expected(case))).collect()
}

#[test]
fn the_autobahn_suite_passes_on_an_echo_of_the_frame_layer() {
    let Some(verdicts) = run(&start_echo().to_string(), &["*"], &[], 60.0) else { return };
    assert_eq!(surprises(&verdicts, NOT_OK), [""; 0]);
    assert_eq!(verdicts.len(), 517, "the suite is whole");
}

#[test]
fn publishing_ends_every_autobahn_case_as_expected() {
    // A keep-alive would be an unexpected message in some cases.
    let server = Server::with(&[("KEEPALIVE_SECONDS", "600")]);
    let (mut publisher, mut subscriber) = (server.publisher(), server.subscriber(&json!({})));
    let target = format!("{}/ws/publish", server.addr);
    // These cases wait for echoes that never come, so their timeouts are a tenth of the usual ones.
    let in_vain = [GIVEN_UP, CLOSED].concat();
    let runs = thread::scope(|scope| {
        let hasty = scope.spawn(|| run(&target, &in_vain, &[], 0.1));
        [run(&target, &["*"], &in_vain, 60.0), hasty.join().unwrap()]
    });
    let [Some(mut verdicts), Some(in_vain)] = runs else { return };
    verdicts.extend(in_vain);
    let no_echo = [(GIVEN_UP, ["FAILED", "WRONG CODE"]), (CLOSED, ["FAILED", "OK"]), (NO_ECHO, ["FAILED", "OK"])];
    assert_eq!(surprises(&verdicts, &[&no_echo, NOT_OK].concat()), [""; 0]);
    assert_eq!(verdicts.len(), 517, "the suite is whole");

    // Other clients were served all the time, and no message of the suite was stored as an event.
    assert_eq!(publisher.ask(&tick("s", 0))["event_id"], id_of(1));
    assert_eq!(sequence(&subscriber.json()["id"]), 1);
}
