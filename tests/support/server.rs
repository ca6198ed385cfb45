//! The binary as a process: a server in a temporary folder, or a command that runs to its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

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

    /// Starts with these environment variables in addition to the usual ones.
    pub fn with(settings: &[(&str, &str)]) -> Server {
        Server::in_folder(tempfile::tempdir().unwrap(), settings)
    }

    /// Starts in a folder that the test has prepared. The database is `data/events.db` in it.
    pub fn in_folder(folder: TempDir, settings: &[(&str, &str)]) -> Server {
        let mut server = Server::not_started(folder, settings);
        server.restart();
        server
    }

    /// A server that has not been started yet.
    pub fn not_started(folder: TempDir, settings: &[(&str, &str)]) -> Server {
        let settings = settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let addr = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        Server { addr, folder, settings, process: None, noise_allowed: false }
    }

    /// Allows warnings and errors in the log, for tests that cause them on purpose.
    pub fn allow_noise(&mut self) {
        self.noise_allowed = true;
    }

    /// Forbids warnings and errors again, from the next start on.
    pub fn forbid_noise(&mut self) {
        self.noise_allowed = false;
    }

    /// Changes a setting, or restores the usual value, from the next start on.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        self.settings.retain(|(set, _)| set != name);
        self.settings.extend(value.map(|value| (name.to_string(), value.to_string())));
    }

    pub fn db_path(&self) -> PathBuf {
        database(self.folder.path())
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").child.0.id()
    }

    /// The log since the last start.
    pub fn log(&self) -> Vec<String> {
        self.process.as_ref().expect("the server runs").log.lines()
    }

    /// Waits for a log line with `word`.
    pub fn await_log(&self, word: &str) {
        self.process.as_ref().expect("the server runs").log.wait_for(word);
    }

    /// Sends SIGTERM. The exit code must be 0.
    pub fn stop(&mut self) {
        self.signal("TERM");
        self.await_exit_0();
    }

    pub fn await_exit_0(&mut self) {
        let status = self.await_exit();
        assert_eq!(status.code(), Some(0), "the server ended with {status}");
    }

    /// Waits for the end of the process. Nothing but SIGKILL may end it otherwise than by an exit code: not even a fault of
    /// the disk that a test put below it.
    pub fn await_exit(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the server runs");
        let status = process.await_exit();
        assert!(matches!(status.signal(), None | Some(9)), "the server ended with {status}");
        self.check_log(&process);
        status
    }

    /// Sends a signal by its short name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status().unwrap();
        assert!(sent.success(), "kill -{name} failed");
    }

    /// Whether the process is still running.
    pub fn is_running(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        status.is_ok_and(|status| !status.contains(") Z "))
    }

    /// Sends SIGKILL, and waits for the end of the process.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the server runs");
        process.child.kill();
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

    /// Starts again. If the server ends before it listens, the error has its exit status and its warnings and errors.
    pub fn try_restart(&mut self) -> Result<(), (ExitStatus, Vec<String>)> {
        assert!(self.process.is_none(), "restart of a running server");
        let mut process = Process::spawn(self.folder.path(), &self.settings, &[]);
        let Some(addr) = process.try_address() else {
            let status = process.await_exit();
            self.check_log(&process);
            return Err((status, process.log.noise()));
        };
        (self.addr, self.process) = (addr, Some(process));
        Ok(())
    }

    /// Starts again on the same file and the same port, for clients that reconnect by themselves.
    pub fn restart_in_place(&mut self) {
        self.settings.retain(|(name, _)| name != "PORT");
        self.settings.push(("PORT".to_string(), self.addr.port().to_string()));
        self.restart();
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

    /// Publishes one event, which must be accepted, and returns the stored event.
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

    /// Every stored event that matches the query, oldest first, as the bytes of its line.
    pub fn stored_lines(&self, query: &str) -> Vec<String> {
        let response = self.call("GET", &format!("/events?{query}"), &[ACCEPT_NDJSON], b"");
        assert_eq!(response.status, 200, "{query}: {}", response.text());
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
            assert!(next.as_ref() != Some(&target), "a page leads to itself: {target}");
            let page = response.json();
            assert!(next.is_none() || !page.as_array().unwrap().is_empty(), "an empty page with a next one");
            events.extend(page.as_array().unwrap().iter().cloned());
        }
        events
    }

    /// Reads `/stats` until it is `wanted`, for values that change a moment after their cause.
    pub fn await_stats(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        await_true(what, || wanted(&self.get_json("/stats")));
    }

    pub fn publisher(&self) -> Socket {
        Socket::open(self.addr, "/ws/publish")
    }

    /// Publishes 500 events of 60,000 bytes: more than fits between the server and a client that does not read.
    pub fn publish_30_mb(&self) {
        let payload = json!({"filler": "x".repeat(60_000)});
        let big = json!({"event_type": "timer_tick", "source": "it", "payload": payload}).to_string();
        let mut publisher = self.publisher();
        for _ in 0..10 {
            acknowledged(&publisher.pipeline(&vec![big.clone(); 50]));
        }
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
        process.child.kill();
        process.await_exit();
        if thread::panicking() {
            let lines = process.log.lines();
            let told: Vec<_> = lines.iter().filter(|line| !line.contains("\"setting\"")).map(String::as_str).collect();
            eprintln!("the server's last words:\n{}", told[told.len().saturating_sub(30)..].join("\n"));
        }
        self.check_log(&process);
    }
}

/// The database of a test folder. The server creates its folder.
pub fn database(folder: &Path) -> PathBuf {
    folder.join("data").join("events.db")
}

/// One run of the binary, with its log.
pub struct Process {
    child: Held,
    pub log: Log,
}

impl Process {
    /// Starts `serve` without the environment of the test.
    pub fn spawn(folder: &Path, settings: &[(String, String)], arguments: &[&str]) -> Process {
        let mut command = command(folder);
        command.envs(settings.iter().map(|(name, value)| (name, value))).args(arguments);
        Process::watch(command.env("DATABASE_PATH", database(folder)))
    }

    /// Starts a server with a command that the test has prepared.
    pub fn watch(command: &mut Command) -> Process {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::drain(child.stderr.take().unwrap());
        Process { child: Held(child), log }
    }

    /// Waits for the address on which the server listens.
    pub fn address(&self) -> SocketAddr {
        self.try_address().unwrap_or_else(|| panic!("the server did not start:\n{}", self.log.lines().join("\n")))
    }

    /// The same, or `None` if the server has ended before it listened.
    pub fn try_address(&self) -> Option<SocketAddr> {
        let line: Value = serde_json::from_str(&self.log.find("\"listening\"")?).unwrap();
        Some(text_of(&line["fields"]["address"]).parse().unwrap())
    }

    pub fn await_exit(&mut self) -> ExitStatus {
        let status = self.child.await_exit();
        self.log.join();
        status.unwrap_or_else(|| panic!("the server did not end:\n{}", self.log.lines().join("\n")))
    }
}

/// A process that is killed at the end of its test.
struct Held(Child);

impl Held {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Its exit status; `None` if it did not end in time and was killed.
    fn await_exit(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status);
            }
            thread::sleep(POLL);
        }
        self.kill();
        None
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills a process that leads a process group, and every other process of the group.
pub fn kill_group(leader: &mut Child) {
    let group = format!("-{}", leader.id());
    let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    let _ = leader.wait();
}

/// The binary in `folder`, with an environment that only sets the network and the log.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_event-pipeline"));
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs([("HOST", "127.0.0.1"), ("PORT", "0"), ("LOG_FORMAT", "json"), ("RUST_BACKTRACE", "1")])
        .current_dir(folder);
    command
}

/// How much memory a process uses (resident set).
pub fn resident_bytes(pid: u32) -> u64 {
    memory(pid, "VmRSS:")
}

/// The most memory that it has used so far.
pub fn peak_bytes(pid: u32) -> u64 {
    memory(pid, "VmHWM:")
}

fn memory(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A command of the binary that runs to its end by itself.
pub struct Run {
    child: Held,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
}

pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn start(command: &mut Command, stdin: &str) -> Run {
        fn read(mut source: impl Read + Send + 'static) -> JoinHandle<String> {
            thread::spawn(move || {
                let mut text = String::new();
                source.read_to_string(&mut text).expect("output in UTF-8");
                text
            })
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut input, stdin) = (child.stdin.take().unwrap(), stdin.to_string());
        // The command may end without reading all of its input.
        thread::spawn(move || input.write_all(stdin.as_bytes()));
        let (stdout, stderr) = (read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap()));
        Run { child: Held(child), stdout, stderr }
    }

    pub fn finish(mut self) -> Finished {
        let status = self.child.await_exit();
        let (stdout, stderr) = (self.stdout.join().unwrap(), self.stderr.join().unwrap());
        let status = status.unwrap_or_else(|| panic!("the command does not end:\n{stdout}\n{stderr}"));
        Finished { code: status.code(), stdout, stderr }
    }
}

/// The standard error of a process. A thread reads it until the process ends, so that the process never blocks on it.
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
        self.find(word).unwrap_or_else(|| panic!("no log line with {word}:\n{}", self.lines().join("\n")))
    }

    /// Waits for the first line with a word; `None` if the log ends without one.
    pub fn find(&self, word: &str) -> Option<String> {
        let deadline = Instant::now() + DEADLINE;
        let mut guard = self.shared.lines.lock().unwrap();
        loop {
            if let Some(line) = guard.0.iter().find(|line| line.contains(word)) {
                return Some(line.clone());
            }
            if guard.1 {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no log line with {word} yet:\n{}", guard.0.join("\n"));
            guard = self.shared.changed.wait_timeout(guard, left).unwrap().0;
        }
    }

    /// Warnings, errors, and lines that are not JSON, such as panics. That the disk of this machine is slow is no fault of
    /// the server.
    pub fn noise(&self) -> Vec<String> {
        let calm = |line: &String| {
            serde_json::from_str::<Value>(line)
                .is_ok_and(|line| matches!(line["level"].as_str(), Some("INFO" | "DEBUG" | "TRACE")))
                || line.contains("the disk is slow: a sync took")
        };
        self.lines().into_iter().filter(|line| !calm(line)).collect()
    }

    fn join(&mut self) {
        if let Some(drain) = self.drain.take() {
            drain.join().expect("reading lines does not panic");
        }
    }
}
