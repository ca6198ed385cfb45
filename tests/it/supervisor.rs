//! The server under a service manager: what it tells systemd, and the files in `deploy`.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::*;

/// The socket on which a service manager listens.
struct ServiceManager {
    socket: UnixDatagram,
}

/// The server feeds the watchdog three times within this.
const WATCHDOG: Duration = Duration::from_millis(300);

impl ServiceManager {
    /// Starts a server under it.
    fn with_server() -> (Self, Server) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let micros = WATCHDOG.as_micros().to_string();
        let settings = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", &micros)];
        let server = Server::in_folder(folder, &settings);
        (Self { socket }, server)
    }

    fn next(&self) -> Option<String> {
        let mut message = [0; 256];
        let len = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..len]).trim().to_owned())
    }

    fn await_message(&self, wanted: &str) {
        while self.next().unwrap_or_else(|| panic!("no {wanted}")) != wanted {}
    }
}

#[test]
fn a_service_manager_hears_when_the_server_listens_that_it_is_alive_and_when_it_ends() {
    let (manager, mut server) = ServiceManager::with_server();
    assert_eq!(manager.next().as_deref(), Some("READY=1"));
    for _ in 0..3 {
        assert_eq!(manager.next().as_deref(), Some("WATCHDOG=1"));
    }
    server.signal("TERM");
    manager.await_message("STOPPING=1");
    server.await_exit_0();
}

#[test]
fn the_watchdog_is_not_fed_while_the_writer_hangs_in_a_sync() {
    let test = "the_watchdog_is_not_fed_while_the_writer_hangs_in_a_sync";
    if program("strace").is_none() {
        return skip(test, "strace (apt-get install strace)");
    }
    let (manager, server) = ServiceManager::with_server();
    manager.await_message("WATCHDOG=1");
    let traced = server.folder().join("traced");
    let mut strace = Command::new("strace")
        .args(["-f", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=1000000000", "-o"])
        .arg(&traced)
        .args(["-p", &server.pid().to_string()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let is_traced =
        || !std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap().contains("TracerPid:\t0\n");
    await_true("strace", is_traced);
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| server.post(tick("exam-08", 1)));
        let hangs = || std::fs::read_to_string(&traced).unwrap_or_default().contains("fdatasync");
        await_true("a sync", hangs);
        // What was answered before.
        manager.socket.set_nonblocking(true).unwrap();
        while manager.next().is_some() {}
        manager.socket.set_nonblocking(false).unwrap();
        manager.socket.set_read_timeout(Some(3 * WATCHDOG)).unwrap();
        assert!(manager.next().is_none_or(|_| manager.next().is_none()), "the writer hangs, and the watchdog is fed");
        manager.socket.set_read_timeout(Some(DEADLINE)).unwrap();
        strace.kill().unwrap();
        strace.wait().unwrap();
        assert_eq!(publisher.join().unwrap().status, 201);
        manager.await_message("WATCHDOG=1");
    });
}

/// Asks with `event-pipeline health` a server on this port.
fn health(folder: &Path, port: u16, arguments: &[&str]) -> Finished {
    let mut command = command(folder);
    Run::start(command.arg("health").args(arguments).args(["--port", &port.to_string()]), "").finish()
}

#[test]
fn health_tells_by_its_exit_code_whether_the_server_answers_and_would_store() {
    let mut server = Server::with(&[("REQUIRE_AUTH", "true"), ("API_KEY", "a-key-that-health-does-not-need")]);
    let (folder, port) = (server.folder().to_owned(), server.addr.port());
    let asked = health(&folder, port, &[]);
    assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "ok\n"), "{}", asked.stderr);
    // An address that no client connects to means every one.
    for host in ["0.0.0.0", "127.0.0.1"] {
        let asked = health(&folder, port, &["--ready", "--host", host]);
        assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "ready\n"), "{}", asked.stderr);
    }
    server.allow_noise();
    let lock = rusqlite::Connection::open(server.db_path()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let asked = health(&folder, port, &["--ready"]);
    assert_eq!(asked.code, Some(1));
    assert!(asked.stderr.contains("The database did not answer in time"), "{}", asked.stderr);
    assert_eq!(health(&folder, port, &[]).code, Some(0), "it answers all the same");
    drop(lock);
    server.stop();
    let asked = health(&folder, port, &[]);
    assert_eq!(asked.code, Some(1));
    assert!(asked.stderr.contains("Connection refused"), "{}", asked.stderr);
}

/// Runs a tool of the system, and returns what it wrote to both outputs.
fn run_tool(tool: &str, arguments: &[&str], stdin: &str) -> String {
    let mut command = Command::new(tool);
    let finished = Run::start(command.args(arguments), stdin).finish();
    let output = finished.stdout + &finished.stderr;
    assert_eq!(finished.code, Some(0), "{tool} {arguments:?}: {output}");
    output
}

#[test]
fn the_unit_for_systemd_is_correct_and_lets_the_server_do_little_else_than_serve() {
    let test = "the_unit_for_systemd_is_correct_and_lets_the_server_do_little_else_than_serve";
    if program("systemd-analyze").is_none() {
        return skip(test, "systemd-analyze (apt-get install systemd)");
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("event-pipeline.service");
    let text = std::fs::read_to_string("deploy/systemd/event-pipeline.service").unwrap();
    // The program is not installed here.
    std::fs::write(&unit, text.replace("/usr/bin/event-pipeline", env!("CARGO_BIN_EXE_event-pipeline"))).unwrap();
    let unit = unit.to_str().unwrap();
    assert_eq!(run_tool("systemd-analyze", &["verify", "--man=no", unit], ""), "");
    // At most 2.0 of 10.
    run_tool("systemd-analyze", &["security", "--offline=true", "--threshold=20", unit], "");
}

#[test]
fn there_is_a_manual_page_for_each_command_and_the_shell_understands_the_completions() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let run = |arguments: &[&str]| {
        let finished = Run::start(command(folder.path()).args(arguments), "").finish();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        finished.stdout
    };
    run(&["man", pages.to_str().unwrap()]);
    for (page, words) in [("event-pipeline.1", "COMMANDS"), ("event-pipeline-serve.1", "DATABASE_PATH")] {
        assert!(std::fs::read_to_string(pages.join(page)).unwrap().contains(words), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert!(script.contains("database-path"), "{shell}: {script}");
        if shell == "bash" {
            run_tool("bash", &["-n"], &script);
        }
    }
}
