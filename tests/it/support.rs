//! A server in a folder of its own, an HTTP client and a WebSocket client made of raw bytes.
//!
//! Whatever waits, waits under [`DEADLINE`] and panics with what it waited for.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take before the test gives up. Nothing here needs more than a fraction of it;
/// the rest is for a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const JSON: (&str, &str) = ("Content-Type", "application/json");
pub const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");
pub const ACCEPT_NDJSON: (&str, &str) = ("Accept", "application/x-ndjson");

/// A running server. Dropping it kills the process, and fails the test if anything above INFO was logged.
pub struct Server {
    pub addr: SocketAddr,
    folder: TempDir,
    settings: Vec<(String, String)>,
    process: Option<Process>,
    noise_allowed: bool,
}

impl Server {
    pub fn start() -> Server {
        Server::with(&[])
    }

    /// Starts with these environment variables on top of the usual ones.
    pub fn with(settings: &[(&str, &str)]) -> Server {
        Server::in_folder(tempfile::tempdir().unwrap(), settings)
    }

    /// Starts in a folder that was prepared by the test: the database is `data/events.db` in it.
    pub fn in_folder(folder: TempDir, settings: &[(&str, &str)]) -> Server {
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let process = Process::spawn(folder.path(), &settings, &[]);
        let addr = process.address();
        Server { addr, folder, settings, process: Some(process), noise_allowed: false }
    }

    /// For tests that make the server complain on purpose.
    pub fn allow_noise(&mut self) {
        self.noise_allowed = true;
    }

    pub fn db_path(&self) -> PathBuf {
        database(self.folder.path())
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").child.id()
    }

    /// Everything logged since the last start.
    pub fn log(&self) -> Vec<String> {
        self.process.as_ref().expect("the server runs").log.lines()
    }

    /// Waits for a log line that holds `word`.
    pub fn await_log(&self, word: &str) {
        self.process.as_ref().expect("the server runs").log.wait_for(word);
    }

    /// SIGTERM; the exit code must be 0.
    pub fn stop(&mut self) {
        self.signal("TERM");
        self.await_exit_0();
    }

    pub fn await_exit_0(&mut self) {
        let status = self.await_exit();
        assert_eq!(status.code(), Some(0), "the server ended with {status}");
    }

    pub fn await_exit(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the server runs");
        let status = process.await_exit();
        self.check_log(&process);
        status
    }

    /// Sends a signal by its short name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status().unwrap();
        assert!(sent.success(), "kill -{name} failed");
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the server runs");
        process.child.kill().unwrap();
        process.await_exit();
        self.check_log(&process);
    }

    /// Starts again on the same file, on a new port. The server must have been stopped or killed.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "restart of a running server");
        let process = Process::spawn(self.folder.path(), &self.settings, &[]);
        self.addr = process.address();
        self.process = Some(process);
    }

    pub fn get(&self, target: &str) -> Response {
        self.call("GET", target, &[], b"")
    }

    /// The JSON of a `GET` that must be answered 200.
    pub fn get_json(&self, target: &str) -> Value {
        let response = self.get(target);
        assert_eq!(response.status, 200, "GET {target}: {}", response.text());
        response.json()
    }

    pub fn post(&self, body: impl AsRef<[u8]>) -> Response {
        self.call("POST", "/events", &[JSON], body.as_ref())
    }

    /// Publishes one event that must be accepted, and returns it as stored.
    pub fn publish(&self, body: &str) -> Value {
        let response = self.post(body);
        assert_eq!(response.status, 201, "{body} → {}", response.text());
        response.json()
    }

    /// Publishes a whole NDJSON body in one request and returns the ids.
    pub fn publish_lines(&self, lines: &[String]) -> Vec<String> {
        let response = self.call("POST", "/events", &[NDJSON], lines.join("\n").as_bytes());
        assert_eq!(response.status, 201, "{}", response.text());
        let ids: Vec<_> = response.json()["ids"].as_array().unwrap().iter().map(text_of).collect();
        assert_eq!(ids.len(), lines.len());
        ids
    }

    pub fn call(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        call(self.addr, method, target, headers, body)
    }

    /// Every stored event that the query leaves, oldest first, as the bytes of its line.
    pub fn stored_lines(&self, query: &str) -> Vec<String> {
        let response = self.call("GET", &format!("/events?{query}"), &[ACCEPT_NDJSON], b"");
        assert_eq!(response.status, 200, "{}", response.text());
        response.text().lines().map(str::to_string).collect()
    }

    pub fn stored(&self, query: &str) -> Vec<Value> {
        self.stored_lines(query).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Follows `Link: rel="next"` to the end.
    pub fn pages(&self, target: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let mut next = Some(target.to_string());
        while let Some(target) = next {
            let response = self.get(&target);
            assert_eq!(response.status, 200, "GET {target}: {}", response.text());
            next = response.next_page();
            let page = response.json();
            assert!(next.is_none() || !page.as_array().unwrap().is_empty(), "an empty page with a next one");
            events.extend(page.as_array().unwrap().iter().cloned());
        }
        events
    }

    /// Asks `/stats` until it is as wanted: for what becomes true a moment after the cause.
    pub fn await_stats(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        await_true(what, || wanted(&self.get_json("/stats")));
    }

    pub fn publisher(&self) -> Socket {
        Socket::open(self.addr, "/ws/publish")
    }

    /// A subscriber whose first message was accepted.
    pub fn subscriber(&self, first: &Value) -> Socket {
        let mut socket = Socket::open(self.addr, "/ws/subscribe");
        socket.send(&first.to_string());
        let answer = socket.json();
        assert_eq!(answer["status"], "subscribed", "{first} → {answer}");
        socket
    }

    fn check_log(&self, process: &Process) {
        if !self.noise_allowed && !thread::panicking() {
            let noise = process.log.noise();
            assert!(noise.is_empty(), "the server logged what nobody expected:\n{}", noise.join("\n"));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let _ = process.child.kill();
        process.await_exit();
        if thread::panicking() {
            let lines = process.log.lines();
            let tail = &lines[lines.len().saturating_sub(30)..];
            eprintln!("the server's last words:\n{}", tail.join("\n"));
        }
        self.check_log(&process);
    }
}

/// The database of a test folder: in a folder that the server makes.
pub fn database(folder: &Path) -> PathBuf {
    folder.join("data").join("events.db")
}

/// One life of the binary, with its log.
pub struct Process {
    pub child: Child,
    pub log: Log,
}

impl Process {
    /// Starts `serve` with nothing inherited from the environment of the test.
    pub fn spawn(folder: &Path, settings: &[(String, String)], arguments: &[&str]) -> Process {
        let mut child = command(folder)
            .env("DATABASE_PATH", database(folder))
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::drain(child.stderr.take().unwrap());
        Process { child, log }
    }

    /// The address it listens on, once it does.
    pub fn address(&self) -> SocketAddr {
        let line = self.log.wait_for("\"listening\"");
        let line: Value = serde_json::from_str(&line).unwrap();
        text_of(&line["fields"]["address"]).parse().unwrap()
    }

    pub fn await_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.log.join();
                return status;
            }
            thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        panic!("the server did not end:\n{}", self.log.lines().join("\n"));
    }
}

/// The binary with an empty environment but for the network and the log, working in `folder`.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_event-pipeline"));
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs([("HOST", "127.0.0.1"), ("PORT", "0"), ("LOG_FORMAT", "json"), ("RUST_BACKTRACE", "1")])
        .current_dir(folder);
    command
}

/// What a process writes to its standard error, read for its whole life so that it never blocks on it.
pub struct Log {
    shared: Arc<LogState>,
    drain: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct LogState {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Log {
    fn drain(source: impl Read + Send + 'static) -> Log {
        let shared = Arc::new(LogState::default());
        let state = Arc::clone(&shared);
        let drain = thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                state.lines.lock().unwrap().0.push(line);
                state.changed.notify_all();
            }
            state.lines.lock().unwrap().1 = true;
            state.changed.notify_all();
        });
        Log { shared, drain: Some(drain) }
    }

    pub fn lines(&self) -> Vec<String> {
        self.shared.lines.lock().unwrap().0.clone()
    }

    pub fn wait_for(&self, word: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut guard = self.shared.lines.lock().unwrap();
        loop {
            if let Some(line) = guard.0.iter().find(|line| line.contains(word)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!guard.1 && !left.is_zero(), "no log line with {word}:\n{}", guard.0.join("\n"));
            guard = self.shared.changed.wait_timeout(guard, left).unwrap().0;
        }
    }

    /// Warnings, errors, panics and whatever else is not a JSON line of the log.
    fn noise(&self) -> Vec<String> {
        let calm = |line: &String| {
            serde_json::from_str::<Value>(line)
                .is_ok_and(|line| matches!(line["level"].as_str(), Some("INFO" | "DEBUG" | "TRACE")))
        };
        self.lines().into_iter().filter(|line| !calm(line)).collect()
    }

    fn join(&mut self) {
        if let Some(drain) = self.drain.take() {
            drain.join().unwrap();
        }
    }
}

/// A TCP connection with what was read and not yet taken.
pub struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Wire {
    pub fn connect(addr: SocketAddr) -> Wire {
        let stream = TcpStream::connect_timeout(&addr, DEADLINE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Wire { stream, unread: Vec::new() }
    }

    /// Writes what the peer takes: one that has closed already is no failure here, its answer tells.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if let Err(error) = self.stream.write_all(bytes.as_ref()) {
            assert!(is_hang_up(&error), "write: {error}");
        }
    }

    /// Ends the writing half.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads more; false when the peer has closed.
    fn fill(&mut self, what: &str) -> bool {
        let mut chunk = [0; 65536];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(n) => {
                    self.unread.extend_from_slice(&chunk[..n]);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_hang_up(&error) => return false,
                Err(error) => panic!("waiting for {what}: {error}; have {:?}", lossy(&self.unread)),
            }
        }
    }

    /// The next `n` bytes, or nothing when the peer closed before them.
    fn take(&mut self, n: usize, what: &str) -> Option<Vec<u8>> {
        while self.unread.len() < n {
            if !self.fill(what) {
                return None;
            }
        }
        let rest = self.unread.split_off(n);
        Some(std::mem::replace(&mut self.unread, rest))
    }

    /// The next line without its end, or nothing when the peer closed before it.
    fn line(&mut self, what: &str) -> Option<String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.take(end + 2, what)?;
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            if !self.fill(what) {
                return None;
            }
        }
    }

    /// Waits for the peer to close, throwing away what it still says.
    pub fn await_close(&mut self) {
        while self.fill("the peer to close") {
            self.unread.clear();
        }
    }

    /// The response to a request that was not `HEAD`; nothing when the peer closed instead.
    pub fn response(&mut self) -> Option<Response> {
        self.read_response(true)
    }

    pub fn head_response(&mut self) -> Option<Response> {
        self.read_response(false)
    }

    fn read_response(&mut self, with_body: bool) -> Option<Response> {
        let status_line = self.line("a status line")?;
        let mut words = status_line.splitn(3, ' ');
        assert!(words.next().unwrap().starts_with("HTTP/1."), "not a status line: {status_line}");
        let status: u16 = words.next().unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line("a header").expect("a whole head");
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("a header with a colon");
            headers.push((name.trim().to_ascii_lowercase(), value.trim().to_string()));
        }
        if status == 100 {
            return self.read_response(with_body);
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if with_body && status != 101 && status != 204 && status != 304 {
            response.body = self.body(&response);
        }
        Some(response)
    }

    fn body(&mut self, head: &Response) -> Vec<u8> {
        if head.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            let mut body = Vec::new();
            loop {
                let size = self.line("a chunk size").expect("a whole chunked body");
                let size = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16).unwrap();
                let chunk = self.take(size + 2, "a chunk").expect("a whole chunk");
                if size == 0 {
                    return body;
                }
                body.extend_from_slice(&chunk[..size]);
            }
        }
        if let Some(length) = head.header("content-length") {
            return self.take(length.parse().unwrap(), "a body").expect("a whole body");
        }
        while self.fill("a body that ends with the connection") {}
        std::mem::take(&mut self.unread)
    }
}

fn is_hang_up(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}

pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let name = name.to_ascii_lowercase();
        self.headers.iter().find(|(own, _)| *own == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("an answer in UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", lossy(&self.body)))
    }

    /// The target of `Link: <…>; rel="next"`, relative to this server.
    pub fn next_page(&self) -> Option<String> {
        let link = self.headers.iter().find(|(name, value)| name == "link" && value.contains("rel=\"next\""))?;
        let target = link.1.split_once('<').and_then(|(_, rest)| rest.split_once('>')).expect("<…>").0;
        let path = target.find("/events").expect("a link to /events");
        Some(target[path..].to_string())
    }

    /// A refusal as the contract wants it: this status, problem+json, and a `detail`, which is returned.
    pub fn refusal(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", lossy(&self.body));
        let content_type = self.header("content-type").expect("a content type");
        assert!(content_type.starts_with("application/problem+json"), "{content_type}");
        let problem = self.json();
        let detail = problem.get("detail").unwrap_or_else(|| panic!("no detail in {problem}")).clone();
        if status == 422 {
            let items = detail.as_array().unwrap_or_else(|| panic!("detail is no list: {detail}"));
            assert!(!items.is_empty(), "an empty detail");
            for item in items {
                assert!(item["loc"].is_array() && item["msg"].is_string() && item["type"].is_string(), "{item}");
            }
        } else {
            assert!(detail.is_string(), "detail is no string: {detail}");
        }
        detail
    }
}

/// One request on a connection of its own.
pub fn call(addr: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut wire = Wire::connect(addr);
    wire.send(request(method, target, headers, body));
    let response = if method == "HEAD" { wire.head_response() } else { wire.response() };
    response.unwrap_or_else(|| panic!("no answer to {method} {target}"))
}

/// The bytes of one request, with `Host` and, for a body or a `POST`, `Content-Length`.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// Percent-encodes everything that is not plainly safe in a query.
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => (byte as char).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A WebSocket after its handshake.
pub struct Socket {
    wire: Wire,
}

/// What a server can say.
#[derive(Debug, PartialEq)]
pub enum Said {
    Text(String),
    Pong(Vec<u8>),
    /// The code, 1005 when the frame held none.
    Close(u16),
    /// The connection ended.
    End,
}

impl Socket {
    pub fn open(addr: SocketAddr, target: &str) -> Socket {
        Socket::handshake(addr, target, &[])
            .unwrap_or_else(|refusal| panic!("{target}: {} {}", refusal.status, refusal.text()))
    }

    /// Asks for an upgrade, with the key and the answer that RFC 6455 gives as its example.
    pub fn handshake(addr: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Result<Socket, Response> {
        let mut all = vec![
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        all.extend_from_slice(headers);
        let mut wire = Wire::connect(addr);
        wire.send(request("GET", target, &all, b""));
        let response = wire.response().expect("an answer to the handshake");
        if response.status != 101 {
            return Err(response);
        }
        assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(response.header("sec-websocket-extensions"), None, "nothing was offered");
        Ok(Socket { wire })
    }

    pub fn send(&mut self, text: &str) {
        self.send_frame(TEXT, text.as_bytes());
    }

    pub fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        self.wire.send(frame(0x80 | opcode, payload));
    }

    pub fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes);
    }

    pub fn stream(&self) -> &TcpStream {
        self.wire.stream()
    }

    pub fn hear(&mut self) -> Said {
        loop {
            let Some((opcode, payload)) = self.frame() else { return Said::End };
            match opcode {
                TEXT => return Said::Text(String::from_utf8(payload).expect("text in UTF-8")),
                PONG => return Said::Pong(payload),
                PING => self.send_frame(PONG, &payload),
                CLOSE if payload.is_empty() => return Said::Close(1005),
                CLOSE => return Said::Close(u16::from_be_bytes([payload[0], payload[1]])),
                other => panic!("a frame with opcode {other}"),
            }
        }
    }

    /// One frame; the server sends whole, unmasked ones.
    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let what = "a frame";
        let head = self.wire.take(2, what)?;
        assert_eq!(head[0] & 0xf0, 0x80, "a whole frame without reserved bits");
        assert_eq!(head[1] & 0x80, 0, "a server does not mask");
        let length = match head[1] {
            126 => u16::from_be_bytes(self.wire.take(2, what)?.try_into().unwrap()) as usize,
            127 => u64::from_be_bytes(self.wire.take(8, what)?.try_into().unwrap()) as usize,
            short => short as usize,
        };
        Some((head[0] & 0x0f, self.wire.take(length, what)?))
    }

    pub fn text(&mut self) -> String {
        match self.hear() {
            Said::Text(text) => text,
            other => panic!("{other:?} instead of a text message"),
        }
    }

    pub fn json(&mut self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// Sends one message and returns its answer.
    pub fn ask(&mut self, text: &str) -> Value {
        self.send(text);
        self.json()
    }

    /// The next `n` messages.
    pub fn collect(&mut self, n: usize) -> Vec<Value> {
        (0..n).map(|_| self.json()).collect()
    }

    /// Sends all messages without waiting, and returns as many answers.
    pub fn pipeline(&mut self, messages: &[String]) -> Vec<Value> {
        let stream = self.stream().try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || send_all(&stream, messages));
            self.collect(messages.len())
        })
    }

    /// Everything said up to the Close frame, and its code; after it the connection must end.
    pub fn last_words(&mut self) -> (Vec<String>, u16) {
        let mut words = Vec::new();
        loop {
            match self.hear() {
                Said::Text(text) => words.push(text),
                Said::Pong(_) => {}
                Said::Close(code) => {
                    self.send_frame(CLOSE, &code_bytes(if code == 1005 { 1000 } else { code }));
                    assert_eq!(self.hear(), Said::End, "after the Close frame");
                    return (words, code);
                }
                Said::End => panic!("the connection ended without a Close frame, after {words:?}"),
            }
        }
    }

    /// The code of the Close frame that must come next.
    pub fn close_code(&mut self) -> u16 {
        let (words, code) = self.last_words();
        assert!(words.is_empty(), "{words:?} before the Close frame");
        code
    }

    /// Drops the connection with a reset instead of an orderly end.
    pub fn reset(self) {
        socket2::SockRef::from(self.stream()).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// Writes messages as masked frames, many a write. Ends quietly when the server hangs up.
pub fn send_all(mut stream: &TcpStream, messages: &[String]) {
    for chunk in messages.chunks(256) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|message| frame(0x80 | TEXT, message.as_bytes())).collect();
        match stream.write_all(&bytes) {
            Ok(()) => {}
            Err(error) if is_hang_up(&error) => return,
            Err(error) => panic!("write: {error}"),
        }
    }
}

/// A masked frame. `first` is the first byte: final bit, reserved bits, opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = head(first, 0x80, payload.len());
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame as a client must not send it: without a mask.
pub fn unmasked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(first, 0, payload.len());
    bytes.extend_from_slice(payload);
    bytes
}

fn head(first: u8, mask_bit: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(mask_bit | length as u8),
        126..=65535 => {
            bytes.push(mask_bit | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(mask_bit | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes
}

/// The payload of a Close frame.
pub fn code_bytes(code: u16) -> [u8; 2] {
    code.to_be_bytes()
}

/// A small valid event: a tick of a session, numbered in its payload.
pub fn tick(session: &str, n: usize) -> String {
    json!({"event_type": "timer_tick", "source": "it", "session_id": session, "payload": {"n": n}}).to_string()
}

pub fn ticks(session: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| tick(session, n)).collect()
}

/// The id of the event at a place in the log.
pub fn id_of(sequence: u64) -> String {
    format!("evt_{sequence:012x}")
}

/// The place in the log that an id stands for.
pub fn sequence(id: &Value) -> u64 {
    let id = id.as_str().unwrap_or_else(|| panic!("{id} is no id"));
    let digits = id.strip_prefix("evt_").unwrap_or_else(|| panic!("{id} is no id"));
    let lower_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    assert!(digits.len() == 12 && lower_hex, "{id} is no id");
    u64::from_str_radix(digits, 16).unwrap()
}

/// The sequence numbers of ok answers.
pub fn acknowledged(answers: &[Value]) -> Vec<u64> {
    answers
        .iter()
        .map(|answer| {
            assert_eq!(answer["status"], "ok", "{answer}");
            sequence(&answer["event_id"])
        })
        .collect()
}

/// The sequence numbers of events.
pub fn sequences(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| sequence(&event["id"])).collect()
}

/// Checks the form of a timestamp and returns it.
pub fn timestamp(event: &Value) -> String {
    let text = text_of(&event["timestamp"]);
    let form: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(form, "0000-00-00T00:00:00.000000Z", "{text}");
    text
}

pub fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string")).to_string()
}

/// JSON text without the whitespace that means nothing.
pub fn compact(text: &str) -> String {
    let (mut out, mut in_string, mut escaped) = (String::new(), false, false);
    for c in text.chars() {
        if in_string {
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            in_string = c == '"';
        }
        out.push(c);
    }
    out
}

/// A value of a JSON object as the bytes it was written in.
pub fn raw_field(object: &str, name: &str) -> String {
    let fields: std::collections::HashMap<String, &serde_json::value::RawValue> =
        serde_json::from_str(object).unwrap_or_else(|error| panic!("{error} in {object}"));
    fields.get(name).unwrap_or_else(|| panic!("no {name} in {object}")).get().to_string()
}

/// Between two looks at something that cannot be awaited otherwise.
const POLL: Duration = Duration::from_millis(10);

/// Looks until `is_true`, for what nothing announces.
pub fn await_true(what: &str, is_true: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_true() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(POLL);
    }
}

/// Runs `body` with 0 to `count` - 1 in as many threads, and waits for all of them.
pub fn in_parallel(count: usize, body: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for n in 0..count {
            let body = &body;
            scope.spawn(move || body(n));
        }
    });
}

/// A small generator of numbers (xorshift64*), so that a printed seed is enough to repeat a run.
pub struct Dice(u64);

impl Dice {
    /// Takes the seed from the environment variable `SEED`, else from the clock, and prints it.
    pub fn thrown() -> Dice {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = seed.unwrap_or_else(clock) | 1;
        println!("repeat with SEED={seed}");
        Dice(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % end
    }
}

/// The recorded class: each event as its own text, in the order of the recording.
pub fn classroom() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/classroom.ndjson");
    let text = std::fs::read_to_string(path).unwrap();
    let events: Vec<_> = text.lines().map(|line| raw_field(line, "event")).collect();
    assert_eq!(events.len(), 6571, "the recording is whole");
    events
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned()
}
