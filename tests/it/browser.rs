//! The `EventSource` and the `WebSocket` of a real browser. Only a browser shows how it reconnects, when it gives up, and
//! what it lets a page of another origin see.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

/// The page: it opens the channels of its query and reports in order what happens on them.
///
/// For the `WebSocket`, the page does what every page has to do: it reconnects after the last event. For the
/// `EventSource`s, the browser does. Chromium tries again every `retry:` milliseconds while connections are refused, and
/// gives up only on an answer that is no event stream (`ended: 2`).
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>channels</title>
<script>
const { server, session, streams, sockets } = SETUP;

const waiting = [];
let sent = 0, sending = false;

async function report(what) {
  waiting.push(what);
  if (sending) return;
  sending = true;
  while (waiting.length > 0) {
    const reports = waiting.splice(0);
    await fetch("/", { method: "POST", body: JSON.stringify({ before: sent, reports }) });
    sent += reports.length;
  }
  sending = false;
}
addEventListener("error", event => report({ complaint: event.message }));
addEventListener("unhandledrejection", event => report({ complaint: String(event.reason) }));

for (const [channel, query] of Object.entries(streams)) {
  const source = new EventSource(`${server}/events/stream?session_id=${session}${query}`);
  source.onopen = () => report({ channel, opened: true });
  source.onmessage = event => report({ channel, id: event.lastEventId, text: event.data });
  source.onerror = () => report({ channel, ended: source.readyState });
}

for (const channel of sockets) {
  let after = "evt_000000000000";
  const open = () => {
    const socket = new WebSocket(`${server.replace("http", "ws")}/ws/subscribe`);
    socket.onopen = () => socket.send(JSON.stringify({ session_id: session, after }));
    socket.onmessage = ({ data }) => {
      const said = JSON.parse(data);
      if (said.status === "subscribed") return report({ channel, opened: true });
      if (said.type === "keepalive") return;
      after = said.id;
      report({ channel, id: said.id, text: data });
    };
    socket.onclose = ({ code }) => {
      report({ channel, ended: code });
      setTimeout(open, 100);
    };
  };
  open();
}
</script>
"#;

/// `EventSource.readyState` while the browser is going to reconnect.
const CONNECTING: u64 = 0;

/// The close codes that a page sees when the server has sent a Close frame at its end, and when the connection was lost.
const GOING_AWAY: u64 = 1001;
const ABNORMAL: u64 = 1006;

const SESSION: &str = "page";

/// What the page has reported about one channel.
#[derive(Clone, Default)]
struct Channel {
    opened: usize,
    /// For each end and each failure to open: the state of an `EventSource`, or the close code of a `WebSocket`.
    ended: Vec<u64>,
    events: Vec<String>,
}

#[derive(Default)]
struct Heard {
    reports: u64,
    channels: BTreeMap<String, Channel>,
    complaints: Vec<String>,
    /// The site must not answer any more.
    over: bool,
}

impl Heard {
    fn take(&mut self, batch: &Value) {
        if batch["before"] != self.reports {
            self.complaints.push(format!("{} reports came before {batch}", self.reports));
        }
        for report in batch["reports"].as_array().unwrap() {
            self.reports += 1;
            let Some(name) = report["channel"].as_str() else {
                self.complaints.push(report.to_string());
                continue;
            };
            let channel = self.channels.entry(name.to_string()).or_default();
            if let Some(text) = report["text"].as_str() {
                if !text.starts_with(&format!("{{\"id\":{},", report["id"])) {
                    self.complaints.push(format!("not the event's own id: {report}"));
                }
                channel.events.push(text.to_string());
            } else if let Some(how) = report["ended"].as_u64() {
                channel.ended.push(how);
            } else {
                channel.opened += 1;
            }
        }
    }
}

/// A headless browser with a profile of its own, which ends when this is dropped.
pub struct Chromium {
    process: Child,
    folder: TempDir,
}

impl Chromium {
    /// Opens a page. `None` if there is no browser.
    pub fn open(url: &str) -> Option<Chromium> {
        let program = chromium()?;
        let folder = tempfile::tempdir().unwrap();
        let process = Command::new(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
            .args(["--disable-sync", "--disable-breakpad", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .arg(url)
            // No proxy, and no settings of the user who runs the tests.
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs([("HOME", folder.path()), ("TMPDIR", folder.path())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(said_in(folder.path())).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        Some(Chromium { process, folder })
    }

    /// A connection to the page by which it can be asked (the browser's debugging protocol).
    pub fn debugger(&self) -> Socket {
        let noted = self.folder.path().join("profile/DevToolsActivePort");
        let port = || fs::read_to_string(&noted).ok()?.lines().next()?.parse().ok();
        await_true("the browser's debugging port", || port().is_some());
        let address = (Ipv4Addr::LOCALHOST, port().unwrap()).into();
        let page = || {
            let mut wire = Wire::connect(address).unchecked();
            wire.send(request("GET", "/json/list", &[], b""));
            let pages = wire.response().expect("a list of pages").json();
            let page = pages.as_array().unwrap().iter().find(|page| page["type"] == "page")?;
            Some(format!("/devtools/page/{}", text_of(&page["id"])))
        };
        await_true("the browser's page", || page().is_some());
        Socket::over(Wire::connect(address).unchecked(), &page().unwrap(), &[]).ok().expect("a debugger")
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // A browser has many processes, all in one process group.
        kill_group(&mut self.process);
        if thread::panicking() {
            let said = fs::read_to_string(said_in(self.folder.path())).unwrap_or_default();
            // Without a desktop, Chromium logs many errors about D-Bus.
            let said: Vec<_> = said.lines().filter(|line| !line.contains(":dbus/")).collect();
            eprintln!("the browser's last words:\n{}", said[said.len().saturating_sub(30)..].join("\n"));
        }
    }
}

/// A browser with the page open, and the site that serves the page. Both end when this is dropped.
struct Browser {
    chromium: Option<Chromium>,
    site: SocketAddr,
    channels: usize,
    heard: Arc<Mutex<Heard>>,
    serving: Option<JoinHandle<()>>,
}

impl Browser {
    /// Opens `streams`, each with the rest of its query, and `sockets`. `None` if there is no browser.
    fn open(server: &Server, streams: &[(&str, &str)], sockets: &[&str]) -> Option<Browser> {
        chromium()?;
        let streams: BTreeMap<_, _> = streams.iter().copied().collect();
        let channels = streams.len() + sockets.len();
        let url = format!("http://{}", server.addr);
        let setup = json!({"server": url, "session": SESSION, "streams": streams, "sockets": sockets});
        let page = PAGE.replace("SETUP", &setup.to_string());

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let site = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let collected = Arc::clone(&heard);
        let serving = thread::spawn(move || serve(&listener, &page, &collected));
        let chromium = Chromium::open(&format!("http://{site}/"));
        Some(Browser { chromium, site, channels, heard, serving: Some(serving) })
    }

    /// Waits until each channel is `wanted`.
    fn await_each(&self, what: &str, wanted: impl Fn(&Channel) -> bool) {
        await_true(what, || {
            let heard = self.heard.lock().unwrap();
            let all = heard.channels.len() == self.channels && heard.channels.values().all(&wanted);
            let complaints = heard.complaints.clone();
            drop(heard);
            assert!(complaints.is_empty(), "{complaints:?}");
            all
        });
    }

    fn forget_ends(&self) {
        self.heard.lock().unwrap().channels.values_mut().for_each(|channel| channel.ended.clear());
    }

    fn channels(&self) -> BTreeMap<String, Channel> {
        self.heard.lock().unwrap().channels.clone()
    }

    /// Waits for the last stored event of the session, and compares the events of each channel with the stored ones.
    fn check_whole(&self, server: &Server) {
        let stored = server.stored_lines(&format!("session_id={SESSION}"));
        let last = stored.last().expect("stored events");
        self.await_each("the last event", |channel| channel.events.contains(last));
        for (name, channel) in self.channels() {
            for (n, (came, is)) in channel.events.iter().zip(&stored).enumerate() {
                assert_eq!(came, is, "{name}: event {n} of the session");
            }
            assert_eq!(channel.events.len(), stored.len(), "{name}");
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.chromium = None;
        if thread::panicking() {
            for (name, channel) in self.channels() {
                let (events, last) = (channel.events.len(), channel.events.last());
                eprintln!("{name}: opened {}, ended {:?}, {events} events to {last:?}", channel.opened, channel.ended);
            }
        }
        self.heard.lock().unwrap().over = true;
        let _ = TcpStream::connect(self.site);
        let _ = self.serving.take().expect("dropped once").join();
    }
}

fn said_in(folder: &Path) -> PathBuf {
    folder.join("stderr")
}

/// The browser. Without one the tests are skipped, except where nothing may be skipped (`CI` is set).
fn chromium() -> Option<PathBuf> {
    let found = program("chromium");
    if found.is_none() {
        skip("a browser's view", "Chromium (apt-get install chromium)");
    }
    found
}

/// Answers each `GET` with the page and notes each `POST`, until a connection comes after the end.
fn serve(listener: &TcpListener, page: &str, heard: &Mutex<Heard>) {
    thread::scope(|scope| {
        for stream in listener.incoming().map_while(Result::ok) {
            if heard.lock().unwrap().over {
                return;
            }
            // The connections of a killed browser may end with a reset.
            scope.spawn(move || answer_all(&stream, page, heard));
        }
    });
}

fn answer_all(stream: &TcpStream, page: &str, heard: &Mutex<Heard>) -> io::Result<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let answer = if first.starts_with("POST") {
            heard.lock().unwrap().take(&serde_json::from_slice(&body).unwrap());
            ""
        } else {
            page
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n", answer.len());
        writer.write_all([head.as_bytes(), answer.as_bytes()].concat().as_slice())?;
    }
}

/// Publishes events of this session and of another, one after the other, until the server ends.
fn publish_to_the_end(server: &Server) {
    let mut publisher = server.publisher();
    for n in 0.. {
        publisher.send(&tick([SESSION, "other"][n % 2], n));
        // An event that comes too late may get an error.
        let Received::Text(_) = publisher.receive() else { return };
    }
}

/// Ends the server of a test that fails, as the test waits for the thread that publishes until then.
struct EndOnPanic<'a>(&'a Server);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.signal("KILL");
        }
    }
}

#[test]
fn a_browser_resumes_across_restarts_without_gap_or_repeat() {
    // The server has its own loopback address, so that its port is still free when it restarts: other tests take free ports
    // of 127.0.0.1 all the time. Process ids have 22 bits.
    let own = Ipv4Addr::from_bits(0x7f80_0000 | std::process::id()).to_string();
    let mut server = Server::with(&[("HOST", &own)]);
    // With `after=` in the URL, the browser sends two start points when it reconnects.
    let streams = [("stream", ""), ("stream with a start", "&after=evt_000000000000")];
    let Some(browser) = Browser::open(&server, &streams, &["socket"]) else { return };
    browser.await_each("its opening", |channel| channel.opened == 1);

    for end in ["TERM", "KILL"] {
        let before = server.stored(&format!("session_id={SESSION}")).len();
        thread::scope(|scope| {
            let _end = EndOnPanic(&server);
            scope.spawn(|| publish_to_the_end(&server));
            browser.await_each("events while more are published", |channel| channel.events.len() > before + 200);
            browser.forget_ends();
            server.signal(end);
        });
        match end {
            "TERM" => server.await_exit_0(),
            _ => server.kill(),
        }
        // The first end is that of the connection, and the next one that of a failed attempt to reconnect.
        browser.await_each("a vain attempt to come back", |channel| channel.ended.len() > 1);
        for (name, channel) in browser.channels() {
            match (name.as_str(), end) {
                ("socket", "TERM") => assert_eq!(channel.ended[0], GOING_AWAY),
                ("socket", _) => assert_eq!(channel.ended[0], ABNORMAL),
                _ => assert!(channel.ended.iter().all(|state| *state == CONNECTING), "{name} was given up"),
            }
        }
        server.restart_in_place();
    }
    server.publish_lines(&ticks(SESSION, 100));
    browser.check_whole(&server);
}

#[test]
fn five_streams_of_one_page_all_receive() {
    let server = Server::start();
    // A browser opens six HTTP/1.1 connections to one host, so a seventh stream would wait for ever. The sixth one is left
    // for other requests of the page. HTTP/2 has no such limit, but browsers use it only over TLS.
    let streams = ["1", "2", "3", "4", "5"].map(|name| (name, ""));
    let Some(browser) = Browser::open(&server, &streams, &[]) else { return };
    browser.await_each("its opening", |channel| channel.opened == 1);
    server.publish_lines(&ticks(SESSION, 100));
    browser.check_whole(&server);
}
