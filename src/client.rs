//! A small client: HTTP over one kept connection, and WebSockets that write and read in batches. The
//! command line, the tests and the load tester reach a server only through it.

use std::borrow::Cow;
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::wire::decoder::{Decoder, Message};
use crate::wire::frame::{self, MESSAGE_BYTES_MAX, OpCode, Role, Violation};
use crate::wire::refusal::Again;

/// One server, and at most one HTTP connection to it, opened when first needed, kept between requests and
/// opened anew when the server has closed it. For more connections make more clients.
pub struct Client {
    /// `host:port`
    authority: String,
    /// What the path of every request begins with; no slash at its end.
    prefix: String,
    api_key: Option<HeaderValue>,
    connection: Option<Connection>,
}

impl Client {
    /// A client of the server at `http://host:port`, which may be followed by a path that prefixes all others.
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// The address is not such a URL, or the key has characters no header can carry.
    pub fn new(url: &str, api_key: Option<&str>) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
        ensure!(uri.scheme_str().is_none_or(|s| s == "http"), "{url:?} does not begin with http://");
        let host = uri.host().filter(|host| !host.is_empty()).with_context(|| format!("{url:?} names no host"))?;
        Ok(Self {
            authority: format!("{host}:{}", uri.port_u16().unwrap_or(80)),
            prefix: uri.path().trim_end_matches('/').into(),
            api_key: api_key
                .map(HeaderValue::try_from)
                .transpose()
                .context("the API key does not fit into a header")?,
            connection: None,
        })
    }

    /// `GET` of a path with its query, such as `/events?limit=5`.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.request(Method::GET, path, &[], "").await
    }

    /// `POST` of a body of this media type.
    pub async fn post(&mut self, path: &str, content_type: &str, body: impl Into<Bytes>) -> anyhow::Result<Answer> {
        self.request(Method::POST, path, &[("content-type", content_type)], body).await
    }

    /// `DELETE` of a path with its query.
    pub async fn delete(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.request(Method::DELETE, path, &[], "").await
    }

    /// Any request, answered whole. An error status is an answer like any other.
    ///
    /// # Errors
    /// The server cannot be reached or the connection ended before the answer did. A request that had begun
    /// to leave is not repeated: the server may have acted on it.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        self.stream(method, path, headers, body).await?.collect().await
    }

    /// Any request, its answer's body to be read in pieces as they come. Reading only a part closes the connection.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn stream(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Stream<'_>> {
        let mut request = self.head(method, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).with_context(|| format!("request {path}"))?;
        let mut connection = match self.connection.take() {
            Some(kept) => kept.renewed(&self.authority).await?,
            None => Connection::open(&self.authority).await?,
        };
        let response = connection.send(request).await.with_context(|| format!("request {path}"))?;
        let (head, body) = response.into_parts();
        let connection = Some(connection);
        let (status, headers, rest) = (head.status, head.headers, Vec::new());
        Ok(Stream { status, headers, body, connection, home: &mut self.connection, rest })
    }

    /// A WebSocket that publishes, with a query such as `?ack=batch` or none.
    ///
    /// # Errors
    /// The server cannot be reached, or a [`Refused`].
    pub async fn publisher(&self, query: &str) -> anyhow::Result<Socket> {
        self.socket(&format!("/ws/publish{query}")).await
    }

    /// A WebSocket that has subscribed with this first message, and the server's answer to it. The server refuses
    /// unknown keys of the message (`strict`).
    ///
    /// # Errors
    /// The message is no JSON object, the server cannot be reached, a [`Refused`], or a [`Disconnected`] with what the
    /// server said before.
    pub async fn subscriber(&self, first_message: &str) -> anyhow::Result<(Socket, String)> {
        let mut asked: Map<String, Value> = serde_json::from_str(first_message).context("a first message in JSON")?;
        // A filter whose name is misspelt would let everything through.
        asked.insert("strict".to_owned(), true.into());
        let mut socket = self.socket("/ws/subscribe").await?;
        socket.send(&Value::from(asked).to_string()).await?;
        let answer = socket.next().await?;
        let status: Value = serde_json::from_str(&answer).with_context(|| format!("answer {answer:?}"))?;
        if status["status"] == "subscribed" {
            return Ok((socket, answer));
        }
        let why = format!("subscribe: {}", status["message"].as_str().unwrap_or(&answer));
        loop {
            // The code in the Close frame tells whether to try again.
            if let Err(end) = socket.next().await {
                return Err(anyhow::Error::new(end).context(why));
            }
        }
    }

    /// A WebSocket on any path, on a connection of its own.
    ///
    /// # Errors
    /// The server cannot be reached, or a [`Refused`].
    pub async fn socket(&self, path: &str) -> anyhow::Result<Socket> {
        let request = self
            .head(Method::GET, path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, fastwebsockets::handshake::generate_key())
            .body(Full::default())
            .with_context(|| format!("request {path}"))?;
        let mut connection = Connection::open(&self.authority).await?;
        let response = connection.send(request).await.with_context(|| format!("request {path}"))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let body = connection.drive(response.into_body().collect()).await.context("read the answer")?;
            return Err(Refused::new(status, &body.to_bytes()).into());
        }
        let (stream, received) = connection.into_socket().await.context("upgrade")?;
        Ok(Socket::new(stream, &received))
    }

    fn head(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header(header::HOST, &self.authority);
        match &self.api_key {
            Some(key) => request.header("x-api-key", key),
            None => request,
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The answer itself if its status is a success.
    ///
    /// # Errors
    /// Its status and the reason its body gives.
    pub fn ok(self) -> Result<Self, Refused> {
        if self.status.is_success() { Ok(self) } else { Err(Refused::new(self.status, &self.body)) }
    }

    /// The body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("answer {:?}", self.text()))
    }
}

/// An answer whose body is still coming.
pub struct Stream<'a> {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    /// Goes home to the client when the body has ended.
    connection: Option<Connection>,
    home: &'a mut Option<Connection>,
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
}

impl Stream<'_> {
    /// The next piece of the body; `None` after the last.
    pub async fn chunk(&mut self) -> anyhow::Result<Option<Bytes>> {
        while let Some(connection) = &mut self.connection {
            match connection.drive(self.body.frame()).await {
                Some(frame) => {
                    if let Ok(data) = frame.context("read the answer")?.into_data() {
                        return Ok(Some(data));
                    }
                }
                None => *self.home = self.connection.take(),
            }
        }
        Ok(None)
    }

    /// Visits the lines that the next piece of the body completes, without their ends; `false` after the last.
    pub async fn lines(&mut self, mut visit: impl FnMut(&str)) -> anyhow::Result<bool> {
        let chunk = self.chunk().await?;
        self.rest.extend_from_slice(chunk.as_deref().unwrap_or(b"\n"));
        let complete = self.rest.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        let lines = str::from_utf8(&self.rest[..complete]).context("the answer is not UTF-8")?;
        lines.lines().filter(|line| !line.is_empty()).for_each(&mut visit);
        self.rest.drain(..complete);
        Ok(chunk.is_some())
    }

    /// The whole answer, once it has come.
    pub async fn collect(mut self) -> anyhow::Result<Answer> {
        let mut body = self.chunk().await?.unwrap_or_default();
        if let Some(second) = self.chunk().await? {
            let mut whole = Vec::from(body);
            whole.extend_from_slice(&second);
            while let Some(more) = self.chunk().await? {
                whole.extend_from_slice(&more);
            }
            body = whole.into();
        }
        Ok(Answer { status: self.status, headers: self.headers, body })
    }
}

/// The server answered, with an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server refused: {status}{}{detail}", if detail.is_empty() { "" } else { ": " })]
pub struct Refused {
    pub status: StatusCode,
    /// What the body says about it.
    pub detail: String,
}

impl Refused {
    fn new(status: StatusCode, body: &[u8]) -> Self {
        let detail = match serde_json::from_slice::<Value>(body) {
            Ok(mut problem) => match problem["detail"].take() {
                Value::String(detail) => detail,
                Value::Array(faults) => faults.iter().map(fault).collect::<Vec<_>>().join("; "),
                _ => problem.to_string(),
            },
            Err(_) => String::from_utf8_lossy(body).trim().into(),
        };
        Self { status, detail }
    }

    /// Whether the same request would be refused again.
    pub fn is_final(&self) -> bool {
        let passes = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
        !self.status.is_server_error() && !passes.contains(&self.status)
    }
}

/// One element of the `detail` of a 422: where, and what.
fn fault(fault: &Value) -> String {
    let place = fault["loc"].as_array().into_iter().flatten().map(|part| match part {
        Value::String(name) => name.clone(),
        other => other.to_string(),
    });
    format!("{}: {}", place.collect::<Vec<_>>().join("."), fault["msg"].as_str().unwrap_or_default())
}

/// A WebSocket. [`queue`](Self::queue) collects messages until [`flush`](Self::flush) writes them at once, and
/// [`recv_batch`](Self::recv_batch) visits all that one read brought; neither allocates per message. Whoever
/// has more unanswered than the sockets' buffers hold must [`split`](Self::split), to read while writing.
/// Pings are answered by the next call that waits.
pub struct Socket {
    sender: Sender,
    receiver: Receiver,
}

impl Socket {
    fn new(stream: TcpStream, received: &[u8]) -> Self {
        let (read, write) = stream.into_split();
        let reply = Arc::new(Mutex::new(Vec::new()));
        let decoder = Decoder::new(Role::Client, MESSAGE_BYTES_MAX).with_received(received);
        Self {
            sender: Sender { write, out: Vec::new(), written: 0, keys: Keys::new(), reply: reply.clone() },
            receiver: Receiver { read, decoder, end: None, keys: Keys::new(), reply },
        }
    }

    /// Adds a text message to what the next [`flush`](Self::flush) writes.
    pub fn queue(&mut self, text: &str) {
        self.sender.queue(text);
    }

    /// Writes what is queued. Cancel safe: what was not written stays queued.
    pub async fn flush(&mut self) -> Result<(), Disconnected> {
        self.sender.flush().await
    }

    /// Queues and writes one text message.
    pub async fn send(&mut self, text: &str) -> Result<(), Disconnected> {
        self.queue(text);
        self.flush().await
    }

    /// The next text message. Cancel safe.
    ///
    /// # Errors
    /// How the connection ended, at each further call too.
    pub async fn next(&mut self) -> Result<String, Disconnected> {
        let mut next = None;
        while next.is_none() {
            self.recv(1, |text| next = Some(text.to_owned())).await?;
        }
        Ok(next.expect("the loop ends with a message"))
    }

    /// Waits for at least one text message, visits all that are there and returns their number. Cancel safe.
    ///
    /// # Errors
    /// How the connection ended, at each further call too. What came before the end has been visited.
    pub async fn recv_batch(&mut self, mut visit: impl FnMut(&str)) -> Result<usize, Disconnected> {
        loop {
            match self.recv(usize::MAX, &mut visit).await? {
                0 => {}
                count => return Ok(count),
            }
        }
    }

    /// Writes what is queued and a close frame, the last thing that may be sent. What the server still sends,
    /// up to its own close frame, can be received.
    pub async fn close(&mut self, code: u16, reason: &str) -> Result<(), Disconnected> {
        self.sender.close(code, reason).await
    }

    /// Both directions apart, for tasks of their own.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    async fn recv(&mut self, max: usize, visit: impl FnMut(&str)) -> Result<usize, Disconnected> {
        let received = self.receiver.recv(max, visit).await;
        // A pong, or the echo of the server's close frame, which nobody may be there to take.
        let replied = self.sender.flush_reply().await;
        received.and_then(|count| replied.map(|()| count))
    }
}

/// The writing direction of a [`Socket`].
pub struct Sender {
    write: OwnedWriteHalf,
    /// Whole frames, of which the first `written` bytes are gone.
    out: Vec<u8>,
    written: usize,
    keys: Keys,
    reply: Reply,
}

impl Sender {
    /// As [`Socket::queue`].
    #[inline]
    pub fn queue(&mut self, text: &str) {
        frame::masked(&mut self.out, OpCode::Text, text.as_bytes(), self.keys.next());
    }

    /// How many bytes the next [`flush`](Self::flush) has to write.
    pub fn queued_bytes(&self) -> usize {
        self.out.len() - self.written
    }

    /// As [`Socket::flush`]. It also answers the last ping that the [`Receiver`] met.
    pub async fn flush(&mut self) -> Result<(), Disconnected> {
        self.out.append(&mut self.reply.lock());
        while self.written < self.out.len() {
            match self.write.write(&self.out[self.written..]).await? {
                0 => return Err(Disconnected::Lost("nothing can be written".into())),
                count => self.written += count,
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// As [`Socket::close`].
    pub async fn close(&mut self, code: u16, reason: &str) -> Result<(), Disconnected> {
        let payload = [&code.to_be_bytes(), reason.as_bytes()].concat();
        frame::masked(&mut self.out, OpCode::Close, &payload, self.keys.next());
        self.flush().await
    }

    async fn flush_reply(&mut self) -> Result<(), Disconnected> {
        if self.reply.lock().is_empty() { Ok(()) } else { self.flush().await }
    }
}

/// The reading direction of a [`Socket`].
pub struct Receiver {
    read: OwnedReadHalf,
    decoder: Decoder,
    /// How the connection ended, once it has.
    end: Option<Disconnected>,
    keys: Keys,
    reply: Reply,
}

impl Receiver {
    /// As [`Socket::recv_batch`], but it also returns, perhaps with 0, when there is a ping to be answered
    /// by the next [`Sender::flush`].
    pub async fn recv_batch(&mut self, visit: impl FnMut(&str)) -> Result<usize, Disconnected> {
        self.recv(usize::MAX, visit).await
    }

    async fn recv(&mut self, max: usize, mut visit: impl FnMut(&str)) -> Result<usize, Disconnected> {
        loop {
            let (mut count, mut pinged) = (0, false);
            while count < max {
                match self.decoder.next() {
                    Ok(Some(Message::Text(text))) => {
                        visit(text);
                        count += 1;
                    }
                    Ok(Some(Message::Ping(payload))) => {
                        reply(&self.reply, OpCode::Pong, payload, self.keys.next());
                        pinged = true;
                    }
                    Ok(Some(Message::Close(close))) => {
                        // 1005 is what the protocol says for a close frame without a code.
                        let (code, reason) = close.unwrap_or((1005, ""));
                        self.end = Some(Disconnected::Closed { code, reason: reason.into() });
                        let echo = close.map(|(code, _)| code.to_be_bytes());
                        reply(&self.reply, OpCode::Close, echo.as_ref().map_or(&[], |code| code), self.keys.next());
                    }
                    Ok(Some(Message::Binary(_) | Message::Pong(_) | Message::TooLarge)) => {}
                    Ok(None) => break,
                    Err(violation) => self.end = Some(Disconnected::Violation(violation)),
                }
            }
            if count > 0 || pinged {
                return Ok(count);
            }
            if let Some(end) = &self.end {
                return Err(end.clone());
            }
            if self.read.read_buf(self.decoder.space()).await? == 0 {
                self.end = Some(Disconnected::Lost("the server hung up".into()));
            }
        }
    }
}

/// How a WebSocket ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disconnected {
    /// With a close frame; 1005 stands for one without a code.
    #[error("the server closed the connection: {code} {reason}")]
    Closed { code: u16, reason: String },
    /// Without one.
    #[error("the connection was lost: {0}")]
    Lost(String),
    #[error("the server broke the protocol: {0}")]
    Violation(Violation),
}

impl Disconnected {
    /// Whether there is no use in connecting again.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Closed { code, .. } if Again::after(*code) == Again::No)
    }
}

impl From<io::Error> for Disconnected {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

/// The frame that the receiver owes the server, left for the sender, which alone may write. Only the last
/// ping needs its pong, so this is one frame and not a queue.
type Reply = Arc<Mutex<Vec<u8>>>;

fn reply(reply: &Reply, opcode: OpCode, payload: &[u8], key: [u8; 4]) {
    let mut reply = reply.lock();
    reply.clear();
    frame::masked(&mut reply, opcode, payload, key);
}

/// Masking keys: xorshift from a random start. They keep proxies from mistaking a payload for a request, and
/// we choose the payloads ourselves, so speed counts for more here than unpredictability.
struct Keys(u64);

impl Keys {
    fn new() -> Self {
        // The generator would stand still at zero.
        Self(RandomState::new().hash_one(()) | 1)
    }

    #[inline]
    fn next(&mut self) -> [u8; 4] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) as u32).to_ne_bytes()
    }
}

/// One HTTP connection. It makes progress only while somebody waits for something on it: no task runs beside.
struct Connection {
    requests: http1::SendRequest<Full<Bytes>>,
    /// `None` once the connection has ended.
    exchange: Option<Exchange>,
    /// What it left: the socket, with bytes that were read and not used.
    left: Option<Parts>,
}

type Exchange = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;
type Parts = http1::Parts<TokioIo<TcpStream>>;

impl Connection {
    async fn open(authority: &str) -> anyhow::Result<Self> {
        let open = async {
            let stream = TcpStream::connect(authority).await?;
            // Batches are made here, on purpose; what is written is meant to leave.
            stream.set_nodelay(true)?;
            let (requests, exchange) = http1::handshake(TokioIo::new(stream)).await?;
            anyhow::Ok(Self { requests, exchange: Some(exchange), left: None })
        };
        open.await.with_context(|| format!("connect to {authority}"))
    }

    /// The same connection, ready for a request, or another one when the server has closed it meanwhile.
    async fn renewed(mut self, authority: &str) -> anyhow::Result<Self> {
        match drive(&mut self.exchange, &mut self.left, self.requests.ready()).await {
            Ok(()) => Ok(self),
            Err(_) => Self::open(authority).await,
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let response = self.requests.send_request(request);
        self.drive(response).await
    }

    /// Waits for something that the connection brings about.
    async fn drive<T>(&mut self, future: impl Future<Output = T>) -> T {
        drive(&mut self.exchange, &mut self.left, future).await
    }

    /// The bare socket and what was read beyond the answer, after the server has agreed to another protocol.
    async fn into_socket(mut self) -> hyper::Result<(TcpStream, Bytes)> {
        let parts = match (self.left, self.exchange.take()) {
            (Some(left), _) => left,
            (None, exchange) => exchange.expect("a connection that has not ended").without_shutdown().await?,
        };
        Ok((parts.io.into_inner(), parts.read_buf))
    }
}

async fn drive<T>(exchange: &mut Option<Exchange>, left: &mut Option<Parts>, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    poll_fn(|cx| {
        // How the exchange ends is of no interest: whoever waits for something on it is told.
        if exchange.as_mut().is_some_and(|exchange| exchange.poll_without_shutdown(cx).is_ready()) {
            *left = exchange.take().map(Exchange::into_parts);
        }
        future.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    /// A client, and a server that follows a script; both must come to their ends.
    async fn play(script: impl AsyncFnOnce(TcpListener), act: impl AsyncFnOnce(Client)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/prefix/", listener.local_addr().expect("an address"));
        let client = Client::new(&url, Some("key")).expect("a URL");
        let both = async { tokio::join!(script(listener), act(client)) };
        timeout(Duration::from_secs(20), both).await.expect("the script and the client do not come to an end");
    }

    async fn accept(listener: &TcpListener) -> TcpStream {
        listener.accept().await.expect("a connection").0
    }

    /// Reads up to the end of a request's head.
    async fn head(stream: &mut TcpStream) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push(stream.read_u8().await.expect("more of the head").into());
        }
        head
    }

    async fn answer(stream: &mut TcpStream, text: &str) {
        stream.write_all(text.as_bytes()).await.expect("the client reads");
    }

    const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

    #[test]
    fn a_url_names_a_host() {
        for good in ["http://localhost:8001", "http://[::1]:8001/api/v1", "http://example", "127.0.0.1:8001"] {
            assert!(Client::new(good, None).is_ok(), "{good}");
        }
        for bad in ["", "/events", "https://localhost", "http://", "http://a b"] {
            assert!(Client::new(bad, None).is_err(), "{bad}");
        }
        assert!(Client::new("http://localhost", Some("line\nbreak")).is_err());
    }

    #[test]
    fn a_refusal_tells_its_detail() {
        let check = |body: &str, text: &str| {
            let refused = Refused::new(StatusCode::BAD_REQUEST, body.as_bytes());
            assert_eq!(refused.to_string(), format!("the server refused: 400 Bad Request{text}"));
        };
        check(r#"{"detail":"Bad time"}"#, ": Bad time");
        check(
            r#"{"detail":[{"loc":["body",3,"source"],"msg":"is missing","type":"missing"},{"loc":[],"msg":"odd"}]}"#,
            ": body.3.source: is missing; : odd",
        );
        check("no JSON\n", ": no JSON");
        check("", "");
    }

    #[tokio::test]
    async fn a_connection_is_kept_and_replaced_when_closed() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let script = async |listener: TcpListener| {
            let mut first = accept(&listener).await;
            let get = head(&mut first).await;
            assert!(get.starts_with("GET /prefix/stats HTTP/1.1\r\n") && get.contains("x-api-key: key\r\n"), "{get}");
            answer(&mut first, ok).await;
            head(&mut first).await;
            answer(&mut first, ok).await;
            drop(first);
            let mut second = accept(&listener).await;
            head(&mut second).await;
            answer(&mut second, "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        };
        play(script, async |mut client| {
            for _ in 0..2 {
                assert_eq!(client.get("/stats").await.expect("an answer").text(), "{}");
            }
            // The socket is told of its end before a new one is asked for.
            if let Some(exchange) = &mut client.connection.as_mut().expect("a kept connection").exchange {
                poll_fn(|cx| exchange.poll_without_shutdown(cx)).await.expect("an orderly end");
            }
            let answer = client.delete("/events").await.expect("an answer on a new connection");
            let refused = answer.ok().expect_err("an error status");
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        })
        .await;
    }

    #[tokio::test]
    async fn lines_are_whole_wherever_the_body_is_cut() {
        let script = async |listener: TcpListener| {
            let mut stream = accept(&listener).await;
            head(&mut stream).await;
            answer(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            for chunk in ["a", "b\nc", "\n\n", "de\nf", "g"] {
                answer(&mut stream, &format!("{:x}\r\n{chunk}\r\n", chunk.len())).await;
            }
            answer(&mut stream, "0\r\n\r\n").await;
        };
        play(script, async |mut client| {
            let mut stream = client.stream(Method::GET, "/events", &[], "").await.expect("an answer");
            let mut lines = Vec::new();
            while stream.lines(|line| lines.push(line.to_owned())).await.expect("a whole body") {}
            assert_eq!(lines, ["ab", "c", "de", "fg"]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_refused_handshake_tells_why() {
        let script = async |listener: TcpListener| {
            let mut stream = accept(&listener).await;
            let request = head(&mut stream).await;
            assert!(request.starts_with("GET /prefix/ws/publish?ack=batch HTTP/1.1\r\n"), "{request}");
            let body = r#"{"detail":"Invalid API key"}"#;
            answer(&mut stream, &format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
                .await;
        };
        play(script, async |client| {
            let error = client.publisher("?ack=batch").await.err().expect("a refusal");
            let refused = error.downcast_ref::<Refused>().expect("the server's own refusal");
            assert_eq!((refused.status, &*refused.detail), (StatusCode::UNAUTHORIZED, "Invalid API key"));
        })
        .await;
        let error = Client::new("http://127.0.0.1:1", None).expect("a URL").publisher("").await.err().expect("nobody");
        assert!(format!("{error:#}").starts_with("connect to 127.0.0.1:1: Connection refused"), "{error:#}");
    }

    /// Reads frames of the client until it has as many messages, control frames included.
    async fn frames(stream: &mut TcpStream, count: usize) -> Vec<String> {
        let mut decoder = Decoder::new(Role::Server, MESSAGE_BYTES_MAX);
        let mut messages = Vec::new();
        while messages.len() < count {
            match decoder.next().expect("a frame without fault") {
                Some(message) => messages.push(format!("{message:?}")),
                None => assert_ne!(stream.read_buf(decoder.space()).await.expect("more frames"), 0),
            }
        }
        messages
    }

    #[tokio::test]
    async fn a_socket_answers_pings_and_tells_how_it_ended() {
        let script = async |listener: TcpListener| {
            let mut stream = accept(&listener).await;
            head(&mut stream).await;
            // The first frames come in one piece with the handshake.
            let mut out = Vec::from(SWITCH);
            frame::text(&mut out, br#"{"status":"subscribed"}"#);
            frame::text(&mut out, b"one");
            frame::unmasked(&mut out, OpCode::Ping, b"there?");
            stream.write_all(&out).await.expect("the client reads");
            let said = [r#"Text("{\"strict\":true}")"#, "Pong([116, 104, 101, 114, 101, 63])"];
            assert_eq!(frames(&mut stream, 2).await, said);

            out.clear();
            frame::text(&mut out, b"two");
            frame::text(&mut out, b"three");
            frame::close(&mut out, 4001, "Invalid API key");
            stream.write_all(&out).await.expect("the client reads");
            assert_eq!(frames(&mut stream, 1).await, [r#"Close(Some((4001, "")))"#]);
        };
        play(script, async |client| {
            let (mut socket, answer) = client.subscriber("{}").await.expect("a subscription");
            assert_eq!(answer, r#"{"status":"subscribed"}"#);
            assert_eq!(socket.next().await.as_deref(), Ok("one"));
            let mut batch = Vec::new();
            while batch.len() < 2 {
                socket.recv_batch(|text| batch.push(text.to_owned())).await.expect("two messages");
            }
            assert_eq!(batch, ["two", "three"]);
            let end = Disconnected::Closed { code: 4001, reason: "Invalid API key".into() };
            for _ in 0..2 {
                assert_eq!(socket.next().await, Err(end.clone()));
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_refused_subscription_tells_why_and_whether_to_come_again() {
        for (code, is_final) in [(1008, true), (1013, false), (4002, false), (4010, true)] {
            let script = async |listener: TcpListener| {
                let mut stream = accept(&listener).await;
                head(&mut stream).await;
                let mut out = Vec::from(SWITCH);
                frame::text(&mut out, br#"{"status":"error","message":"not now"}"#);
                frame::close(&mut out, code, "why");
                stream.write_all(&out).await.expect("the client reads");
                frames(&mut stream, 2).await;
            };
            play(script, async |client| {
                let error = client.subscriber("{}").await.err().expect("a refusal");
                let end: &Disconnected = error.downcast_ref().expect("how it ended");
                assert_eq!(end.is_final(), is_final, "{code}");
                assert_eq!(format!("{error:#}"), format!("subscribe: not now: {end}"));
            })
            .await;
        }
        let refused = |status| Refused { status, detail: String::new() }.is_final();
        assert!(refused(StatusCode::UNAUTHORIZED) && !refused(StatusCode::TOO_MANY_REQUESTS));
    }

    #[tokio::test]
    async fn a_lost_connection_is_not_a_closed_one() {
        let script = async |listener: TcpListener| {
            let mut stream = accept(&listener).await;
            head(&mut stream).await;
            answer(&mut stream, SWITCH).await;
            assert_eq!(frames(&mut stream, 2).await, [r#"Text("a")"#, r#"Text("b")"#]);
        };
        play(script, async |client| {
            let (mut sender, mut receiver) = client.publisher("").await.expect("a socket").split();
            sender.queue("a");
            sender.queue("b");
            assert!(sender.queued_bytes() > 0);
            sender.flush().await.expect("the server reads");
            assert_eq!(sender.queued_bytes(), 0);
            let end = receiver.recv_batch(|text| panic!("{text}")).await;
            assert_eq!(end, Err(Disconnected::Lost("the server hung up".into())));
        })
        .await;
    }
}
