//! An HTTP/1.1 client over a raw TCP connection. It checks each answer to a request that it has sent in one piece against
//! the interface documents.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;

use super::DEADLINE;
use super::interface::{RequestLine, check_body, check_head};

pub const JSON: (&str, &str) = ("Content-Type", "application/json");
pub const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");
pub const ACCEPT_NDJSON: (&str, &str) = ("Accept", "application/x-ndjson");

/// What bytes go through.
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => &tls.sock,
        }
    }

    fn read(&mut self, chunk: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.read(chunk),
            Stream::Tls(tls) => tls.read(chunk),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Stream::Plain(tcp) => tcp.write_all(bytes),
            Stream::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }
}

/// A connection, with the bytes that were read and not yet taken.
pub struct Wire {
    stream: Stream,
    read: Vec<u8>,
    /// How many bytes of `read` were taken.
    taken: usize,
    /// The requests that were sent whole, and are not answered yet.
    asked: VecDeque<RequestLine>,
    /// Whether what the peer sends is checked.
    pub is_checked: bool,
}

impl Wire {
    pub fn connect(addr: SocketAddr) -> Wire {
        Wire::over(TcpStream::connect_timeout(&addr, DEADLINE).unwrap())
    }

    /// Uses a connection that the test has made.
    pub fn over(stream: TcpStream) -> Wire {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let stream = Stream::Plain(stream);
        Wire { stream, read: Vec::new(), taken: 0, asked: VecDeque::new(), is_checked: true }
    }

    /// Agrees on TLS with a server that calls itself localhost. What goes wrong in the handshake is met by the first read.
    pub fn secured(addr: SocketAddr, config: &Arc<ClientConfig>) -> Wire {
        let wire = Wire::connect(addr);
        let Stream::Plain(tcp) = wire.stream else { unreachable!("it is secured once") };
        let name = ServerName::try_from("localhost").unwrap();
        let tls = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), tcp);
        Wire { stream: Stream::Tls(Box::new(tls)), ..wire }
    }

    /// What TLS has agreed on.
    pub fn tls(&mut self) -> &mut ClientConnection {
        match &mut self.stream {
            Stream::Tls(tls) => &mut tls.conn,
            Stream::Plain(_) => panic!("it is not TLS"),
        }
    }

    /// Ends the writing half within TLS, and leaves TCP as it is.
    pub fn finish_tls(&mut self) {
        self.tls().send_close_notify();
        let Stream::Tls(tls) = &mut self.stream else { unreachable!() };
        tls.flush().unwrap();
    }

    /// For a peer that is another server than ours: what it sends is not checked.
    pub fn unchecked(self) -> Wire {
        Wire { is_checked: false, ..self }
    }

    /// Writes as much as the peer takes. A peer that has closed already is not a failure here: its answer shows why.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if self.is_checked {
            self.asked.extend(requests(bytes.as_ref()));
        }
        if let Err(error) = self.stream.write_all(bytes.as_ref()) {
            assert!(is_hang_up(&error), "write: {error}");
        }
    }

    /// Ends the writing half.
    pub fn finish(&self) {
        let _ = self.stream.tcp().shutdown(std::net::Shutdown::Write);
    }

    /// Ends the connection with a TCP reset.
    pub fn reset(self) {
        socket2::SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    pub fn stream(&self) -> &TcpStream {
        self.stream.tcp()
    }

    /// Reads more. Returns false when the peer has closed.
    fn fill(&mut self, what: &str) -> bool {
        self.read.drain(..std::mem::take(&mut self.taken));
        let mut chunk = [0; 65536];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(n) => {
                    self.read.extend_from_slice(&chunk[..n]);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_hang_up(&error) => return false,
                Err(error) => panic!("waiting for {what}: {error}; have {:?}", lossy(&self.read)),
            }
        }
    }

    /// The next `n` bytes; `None` when the peer has closed before.
    pub fn take(&mut self, n: usize, what: &str) -> Option<Vec<u8>> {
        while self.read.len() - self.taken < n {
            if !self.fill(what) {
                return None;
            }
        }
        self.taken += n;
        Some(self.read[self.taken - n..self.taken].to_vec())
    }

    /// The next line without its end; `None` when the peer has closed before.
    fn line(&mut self, what: &str) -> Option<String> {
        loop {
            if let Some(end) = self.read[self.taken..].windows(2).position(|pair| pair == b"\r\n") {
                let line = self.take(end + 2, what)?;
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            if !self.fill(what) {
                return None;
            }
        }
    }

    /// Waits for the peer to close, and discards what it still sends.
    pub fn await_close(&mut self) {
        while self.fill("the peer to close") {
            self.taken = self.read.len();
        }
    }

    /// The response to a request other than `HEAD`; `None` when the peer has closed instead.
    pub fn response(&mut self) -> Option<Response> {
        self.read_response(true)
    }

    pub fn head_response(&mut self) -> Option<Response> {
        self.read_response(false)
    }

    /// The head of a response; `None` when the peer has closed instead.
    pub fn response_head(&mut self) -> Option<Response> {
        let status_line = self.line("a status line")?;
        let mut words = status_line.splitn(3, ' ');
        assert!(words.next().unwrap().starts_with("HTTP/1."), "not a status line: {status_line}");
        let status: u16 = words.next().unwrap().parse().unwrap();
        let mut headers: Vec<(String, String)> = Vec::new();
        loop {
            let line = self.line("a header").expect("a whole head");
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("a header with a colon");
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
            match headers.iter_mut().find(|(own, _)| *own == name) {
                Some((_, list)) => list.push_str(&format!(", {value}")),
                None => headers.push((name, value.to_string())),
            }
        }
        if status == 100 {
            return self.response_head();
        }
        let response = Response { status, headers, body: Vec::new(), asked: self.asked.pop_front() };
        if let Some(asked) = &response.asked {
            check_head(asked, &response);
        }
        Some(response)
    }

    fn read_response(&mut self, with_body: bool) -> Option<Response> {
        let mut response = self.response_head()?;
        if with_body && !matches!(response.status, 101 | 204 | 304) {
            response.body = self.body(&response);
            if let Some(asked) = &response.asked {
                check_body(asked, &response);
            }
        }
        Some(response)
    }

    /// The next chunk of a chunked body, which is empty at the end; `None` when the body was broken off.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.line("a chunk size")?;
        let size = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16).unwrap();
        let mut chunk = self.take(size + 2, "a chunk")?;
        chunk.truncate(size);
        Some(chunk)
    }

    /// The body that belongs to a head.
    pub fn body(&mut self, head: &Response) -> Vec<u8> {
        if head.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            let mut body = Vec::new();
            loop {
                let chunk = self.chunk().expect("a whole chunked body");
                if chunk.is_empty() {
                    return body;
                }
                body.extend_from_slice(&chunk);
            }
        }
        if let Some(length) = head.header("content-length") {
            return self.take(length.parse().unwrap(), "a body").expect("a whole body");
        }
        while self.fill("a body that ends with the connection") {}
        self.read.split_off(std::mem::take(&mut self.taken))
    }
}

pub fn is_hang_up(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}

pub struct Response {
    pub status: u16,
    /// Names in lower case. The values of a header that came several times are one list.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What it answers, where the client knows that.
    pub asked: Option<RequestLine>,
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

    /// Checks that this is a refusal as in the contract: this status, problem+json, and a `detail`, which is returned.
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

/// The requests whose first lines are in these bytes. A request that comes in pieces is not seen.
fn requests(bytes: &[u8]) -> Vec<RequestLine> {
    let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok());
    let asked = lines.filter_map(|line| {
        let (rest, target) = line.strip_suffix(" HTTP/1.1\r")?.rsplit_once(' ')?;
        // A body before it may end without a line break.
        let method = &rest[rest.rfind(|c: char| !c.is_ascii_uppercase()).map_or(0, |at| at + 1)..];
        let is_whole = !method.is_empty() && target.starts_with('/');
        is_whole.then(|| RequestLine { method: method.to_owned(), target: target.to_owned() })
    });
    asked.collect()
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

/// Percent-encodes every character that is not safe in a query.
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => (byte as char).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned()
}
