//! The proxies of the documents, in front of a real server: WebSockets, event streams, and whose address the server sees.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use socket2::{Domain, Socket as Plain, Type};

use crate::support::*;

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// Another address than that of the proxy.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The blocks of this language in the document, with the server's address in place of the usual one.
fn snippets(language: &str, server: SocketAddr) -> Vec<String> {
    let document = fs::read_to_string("docs/access.md").unwrap();
    let fence = format!("```{language}\n");
    let blocks = document.split(&fence).skip(1).map(|block| block.split("```").next().unwrap());
    blocks.map(|block| block.replace("127.0.0.1:8001", &server.to_string())).collect()
}

fn server() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let audit = folder.path().join("audit.jsonl");
    let settings = [
        ("AUDIT_FILE", audit.to_str().unwrap()),
        ("TRUSTED_PROXIES", "127.0.0.1"),
        ("REQUIRE_AUTH", "true"),
        ("API_KEY", KEY),
    ];
    Server::in_folder(folder, &settings)
}

/// An address where nothing else listens: process ids have 22 bits.
fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::from_bits(0x7f80_0000 | std::process::id()), port).into()
}

fn connect(proxy: SocketAddr) -> Wire {
    let socket = Plain::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((CLIENT, 0)).into()).unwrap();
    socket.connect(&proxy.into()).unwrap();
    Wire::over(socket.into())
}

/// What clients do, through a proxy.
fn use_through(proxy: SocketAddr, server: &Server) {
    let key = ("X-API-Key", KEY);
    let socket = |path| Socket::over(connect(proxy), path, &[key]).ok().expect("a WebSocket");
    let mut subscriber = socket("/ws/subscribe");
    assert_eq!(subscriber.ask("{}")["status"], "subscribed");
    let mut stream = connect(proxy);
    stream.send(request("GET", "/events/stream", &[key], b""));
    let head = stream.response_head().expect("an answer");
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let mut publisher = socket("/ws/publish");
    for n in 0..3 {
        let stored = publisher.ask(&tick("s", n))["event_id"].clone();
        assert_eq!(subscriber.json()["id"], stored);
        let mut streamed = String::new();
        // The event comes at once, and not with what follows it.
        while !streamed.contains(&text_of(&stored)) {
            streamed += &String::from_utf8_lossy(&stream.chunk().expect("an open stream"));
        }
    }

    let large = json!({"event_type": "timer_tick", "source": "s", "payload": {"text": "x".repeat(60_000)}});
    let large = json!(vec![large; 30]).to_string();
    let mut wire = connect(proxy);
    wire.send(request("POST", "/events", &[key, JSON], large.as_bytes()));
    assert_eq!(wire.response().expect("an answer").status, 201, "a body of {} bytes", large.len());

    // What a client says of itself counts for nothing.
    let made_up = [key, ("X-Forwarded-For", "203.0.113.5"), ("Forwarded", "for=203.0.113.6")];
    wire.send(request("DELETE", "/events?session_id=s", &made_up, b""));
    assert_eq!(wire.response().expect("an answer").json(), json!({"deleted": 3}));
    let audit = || fs::read_to_string(server.folder().join("audit.jsonl")).unwrap();
    await_true("the line of the deletion", || audit().contains("delete_events"));
    let line = audit().lines().find(|line| line.contains("delete_events")).unwrap().to_owned();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["from"], &line["who"]), (&json!(CLIENT.to_string()), &json!("API_KEY")));
}

#[test]
fn nginx_as_documented_serves_websockets_streams_and_the_address_of_the_client() {
    // Debian has it where only root looks.
    let of_debian = PathBuf::from("/usr/sbin/nginx");
    let Some(nginx) = program("nginx").or(Some(of_debian).filter(|path| path.is_file())) else {
        return skip("nginx_as_documented", "nginx (apt-get install nginx)");
    };
    let (server, folder, at) = (server(), tempfile::tempdir().unwrap(), address(8101));
    let [map, location] = &snippets("nginx", server.addr)[..] else { panic!("two snippets") };
    let path = |name: &str| folder.path().join(name).display().to_string();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = temporary.map(|name| format!("{name}_temp_path {};\n", path(name))).concat();
    let text = format!(
        "daemon off; master_process off; pid {}; error_log stderr;\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}{map}server {{\nlisten {at};\n{location}}}\n}}\n",
        path("pid")
    );
    let _proxy = start(&nginx, "nginx.conf", &text, folder.path(), at, |command, file| {
        command.arg("-e").arg("stderr").arg("-c").arg(file);
    });
    use_through(at, &server);
}

#[test]
fn caddy_as_documented_serves_websockets_streams_and_the_address_of_the_client() {
    let Some(caddy) = program("caddy") else {
        return skip("caddy_as_documented", "caddy (apt-get install caddy)");
    };
    let (server, folder, at) = (server(), tempfile::tempdir().unwrap(), address(8102));
    let [site] = &snippets("caddyfile", server.addr)[..] else { panic!("one snippet") };
    // Without a name of its own, for which it would get a certificate.
    let site = site.replace("events.school.example {", &format!("http://:{} {{\nbind {}", at.port(), at.ip()));
    let text = format!("{{\nadmin off\n}}\n{site}");
    let _proxy = start(&caddy, "Caddyfile", &text, folder.path(), at, |command, file| {
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
    });
    use_through(at, &server);
}

fn start(
    program: &Path,
    name: &str,
    configuration: &str,
    folder: &Path,
    at: SocketAddr,
    arguments: impl FnOnce(&mut Command, &Path),
) -> Proxy {
    let file = folder.join(name);
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new(program);
    arguments(&mut command, &file);
    let command = command.env("HOME", folder).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    let proxy = Proxy(command.spawn().unwrap());
    await_true("the proxy", || TcpStream::connect(at).is_ok());
    proxy
}
