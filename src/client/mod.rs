//! The client of the commands and the load test: HTTP requests, and WebSockets that write and read in batches.

mod address;
mod connection;
mod response;
mod socket;
mod stream;
mod trust;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use serde_json::{Map, Value};

use connection::Connection;

pub use address::Address;
pub use response::{Lines, Refused};
pub use socket::{Disconnected, Receiver, Sender, Socket};
pub use stream::{Security, Stream};
pub use trust::Trust;

/// The address of a server and the key to it. Each request and each WebSocket opens a connection of its own.
pub struct Client {
    address: Address,
    security: Security,
    api_key: Option<HeaderValue>,
}

impl Client {
    /// A client of the server at `http://host:port` or `https://host:port`, which may be followed by a path that prefixes
    /// all others. Nothing is connected yet.
    ///
    /// # Errors
    /// The address is not such a URL, the key has characters that a header cannot carry, or what is trusted cannot be
    /// found out.
    pub fn new(url: &str, api_key: Option<&str>, trust: &Trust) -> anyhow::Result<Self> {
        let address = Address::parse(url)?;
        Ok(Self {
            security: Security::new(&address, trust)?,
            address,
            api_key: api_key
                .map(HeaderValue::try_from)
                .transpose()
                .context("the API key does not fit into a header")?,
        })
    }

    /// The body of the response to `GET` of a path with its query, such as `/events?limit=5`.
    ///
    /// # Errors
    /// The server cannot be reached, the connection ended before the response did, or a [`Refused`].
    pub async fn get(&self, path: &str) -> anyhow::Result<Bytes> {
        let (mut connection, body) = self.request(path, &[], |status| status.is_success()).await?;
        let body = connection.drive(body.collect()).await.context("read the response")?;
        Ok(body.to_bytes())
    }

    /// As [`Client::get`], for a response that is read while it comes. `accept` is the media type to ask for.
    pub async fn lines(&self, path: &str, accept: &str) -> anyhow::Result<Lines> {
        let (connection, body) = self.request(path, &[(header::ACCEPT, accept)], |status| status.is_success()).await?;
        Ok(Lines::new(connection, body))
    }

    /// A WebSocket that publishes.
    ///
    /// # Errors
    /// The server cannot be reached, or a [`Refused`].
    pub async fn publisher(&self) -> anyhow::Result<Socket> {
        self.socket("/ws/publish").await
    }

    /// A WebSocket that has subscribed with this first message, and the server's answer to it. The server refuses
    /// unknown keys of the message (`strict`): with a misspelt filter it would deliver every event.
    ///
    /// # Errors
    /// The message is no JSON object, the server cannot be reached, a [`Refused`], or a [`Disconnected`] with the error
    /// message that the server sent before it.
    pub async fn subscriber(&self, first_message: &str) -> anyhow::Result<(Socket, String)> {
        let mut message: Map<String, Value> = serde_json::from_str(first_message).context("a first message in JSON")?;
        message.insert("strict".to_owned(), true.into());
        let mut socket = self.socket("/ws/subscribe").await?;
        socket.send(&Value::from(message).to_string()).await?;
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

    async fn socket(&self, path: &str) -> anyhow::Result<Socket> {
        let key = fastwebsockets::handshake::generate_key();
        let headers = [
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, &*key),
        ];
        let (connection, _) = self.request(path, &headers, |status| status == StatusCode::SWITCHING_PROTOCOLS).await?;
        let (stream, received) = connection.into_stream().await.context("upgrade")?;
        Ok(Socket::new(stream, &received))
    }

    /// Sends a `GET`, and returns its connection and the body of the response, which has not been read yet. A response
    /// whose status is not a wanted one is read and becomes a [`Refused`].
    async fn request(
        &self,
        path: &str,
        headers: &[(HeaderName, &str)],
        is_wanted: impl FnOnce(StatusCode) -> bool,
    ) -> anyhow::Result<(Connection, Incoming)> {
        let mut request =
            Request::get(format!("{}{path}", self.address.prefix)).header(header::HOST, &self.address.authority);
        if let Some(key) = &self.api_key {
            request = request.header("x-api-key", key);
        }
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Empty::new()).with_context(|| format!("request {path}"))?;
        let mut connection = Connection::open(&self.address.authority, &self.security).await?;
        let (head, body) = connection.send(request).await.with_context(|| format!("request {path}"))?.into_parts();
        if is_wanted(head.status) {
            return Ok((connection, body));
        }
        let body = connection.drive(body.collect()).await.context("read the response")?;
        Err(Refused::new(head.status, &body.to_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::decoder::Decoder;
    use crate::wire::frame::{self, MESSAGE_BYTES_MAX, OpCode, Role};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    /// Runs a client against a server that follows a script, until both have ended.
    async fn play(script: impl AsyncFnOnce(TcpListener), act: impl AsyncFnOnce(Client)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/prefix/", listener.local_addr().expect("an address"));
        let client = Client::new(&url, Some("key"), &Trust::System).expect("a URL");
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
    fn a_key_fits_into_a_header() {
        assert!(Client::new("http://localhost", Some("line\nbreak"), &Trust::System).is_err());
    }

    #[tokio::test]
    async fn each_request_has_a_connection_of_its_own_and_an_error_status_is_an_error() {
        let script = async |listener: TcpListener| {
            let mut first = accept(&listener).await;
            let get = head(&mut first).await;
            assert!(get.starts_with("GET /prefix/stats HTTP/1.1\r\n") && get.contains("x-api-key: key\r\n"), "{get}");
            answer(&mut first, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            let mut second = accept(&listener).await;
            head(&mut second).await;
            answer(&mut second, "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        };
        play(script, async |client| {
            assert_eq!(client.get("/stats").await.expect("a response"), "{}");
            let error = client.get("/stats").await.expect_err("an error status");
            let refused: &Refused = error.downcast_ref().expect("the server's own refusal");
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        })
        .await;
    }

    #[tokio::test]
    async fn lines_are_whole_wherever_the_body_is_split() {
        let script = async |listener: TcpListener| {
            let mut stream = accept(&listener).await;
            head(&mut stream).await;
            answer(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            for chunk in ["a", "b\nc", "\n\n", "de\nf", "g"] {
                answer(&mut stream, &format!("{:x}\r\n{chunk}\r\n", chunk.len())).await;
            }
            answer(&mut stream, "0\r\n\r\n").await;
        };
        play(script, async |client| {
            let mut response = client.lines("/events", "application/x-ndjson").await.expect("a response");
            let mut lines = Vec::new();
            while response.read(|line| lines.push(line.to_owned())).await.expect("a whole body") {}
            assert_eq!(lines, ["ab", "c", "de", "fg"]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_refused_handshake_shows_the_reason() {
        let script = async |listener: TcpListener| {
            let mut stream = accept(&listener).await;
            let request = head(&mut stream).await;
            assert!(request.starts_with("GET /prefix/ws/publish HTTP/1.1\r\n"), "{request}");
            let body = r#"{"detail":"Invalid API key"}"#;
            answer(&mut stream, &format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
                .await;
        };
        play(script, async |client| {
            let error = client.publisher().await.err().expect("a refusal");
            let refused = error.downcast_ref::<Refused>().expect("the server's own refusal");
            assert_eq!((refused.status, &*refused.detail), (StatusCode::UNAUTHORIZED, "Invalid API key"));
        })
        .await;
        let error = Client::new("http://127.0.0.1:1", None, &Trust::System)
            .expect("a URL")
            .publisher()
            .await
            .err()
            .expect("nobody");
        assert!(format!("{error:#}").starts_with("connect to 127.0.0.1:1: Connection refused"), "{error:#}");
    }

    /// Reads `count` messages of the client, control frames included.
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
    async fn a_socket_answers_pings_and_reports_how_it_ended() {
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
                socket.receive_batch(|text| batch.push(text.to_owned())).await.expect("two messages");
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
    async fn a_refused_subscription_shows_the_reason_and_whether_to_connect_again() {
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
            let (mut sender, mut receiver) = client.publisher().await.expect("a socket").split();
            sender.queue("a");
            sender.queue("b");
            assert!(sender.queued_bytes() > 0);
            sender.flush().await.expect("the server reads");
            assert_eq!(sender.queued_bytes(), 0);
            let end = receiver.receive_batch(|text| panic!("{text}")).await;
            assert_eq!(end, Err(Disconnected::Lost("the server hung up".into())));
        })
        .await;
    }
}
