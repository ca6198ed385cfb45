//! The HTTP interface: one route table under two prefixes, over HTTP/1.1 and HTTP/2, and the handshakes of the WebSockets,
//! over HTTP/1.1 only.
//!
//! hyper itself answers requests that are no HTTP: with a bare 400, 414 or 431, without our headers. It closes a connection
//! whose next request does not come complete within the header timeout; this also ends idle connections. A request with
//! both `Content-Length` and `Transfer-Encoding` is read by the latter alone and is the last of its connection (RFC 9112,
//! 6.3).
//!
//! From the top: [`serve`] → `h1`, `h2` → `connection` (checks and dispatch) → an endpoint (`events`, `publish`,
//! `event_stream`, `subscriptions`, `status`, `metrics`, `files`, `handshake`) → `request`, `response` and what they are made of.

mod audited;
mod body;
mod connection;
mod event_stream;
mod events;
mod export;
mod exposition;
mod files;
mod h1;
mod h2;
mod half_close;
mod handshake;
mod head_timer;
mod io;
mod large_page;
mod listing;
mod media;
mod metrics;
mod metrics_port;
mod page;
mod parameters;
mod process;
mod publish;
mod reading;
mod request;
mod response;
mod route;
mod series;
mod status;
mod subscriptions;

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use crate::pipeline::{Pipeline, Producer};
use crate::transport::{HandshakeError, Transport};
use crate::wire::Refusal;
use connection::Connection;

pub use connection::no_slots_left;
pub use metrics_port::serve_metrics_port;
pub use parameters::Parameters;
pub use publish::Form;
pub use route::{Endpoint, Guard, PREFIX, ROUTES, Route};

/// What every HTTP/2 client sends first (RFC 9113, 3.4). No method of HTTP/1.1 begins with `PRI`.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a preface of which only a part has come is not looked at again. Peeked bytes stay, so waiting for more of them
/// would return at once, again and again. Clients send the preface whole; one in pieces waits this much longer.
const PREFACE_PAUSE: Duration = Duration::from_millis(10);

/// How much of what a client sends without TLS is dropped before its connection is closed: more than any head.
const PLAIN_BYTES_MAX: usize = 1 << 20;

/// Serves one connection until it ends. With a configuration of TLS, client and server agree on that first.
pub async fn serve(transport: Transport, tls: Option<Arc<ServerConfig>>, pipeline: Arc<Pipeline>, producer: Producer) {
    let (shutdown, is_tls) = (pipeline.shutdown(), tls.is_some());
    let began = tokio::select! {
        biased;
        began = timeout(pipeline.config.header_timeout, begin(transport, tls)) => began,
        () = shutdown.begun() => return,
    };
    let (transport, is_http2) = match began {
        Ok(Ok(began)) => began,
        Ok(Err(HandshakeError::NotTls(transport))) => return tell_of_tls(*transport, &pipeline).await,
        Ok(Err(error)) => {
            tracing::debug!(%error, "connection ended before its first request");
            return;
        }
        Err(_) => return,
    };
    let connection = Connection::new(pipeline, transport.peer(), is_tls, producer);
    match is_http2 {
        // Boxed, so that the tasks of all other connections do not carry the memory of its future.
        true => Box::pin(h2::serve(transport, connection)).await,
        false => h1::serve(transport, connection).await,
    }
}

/// Agrees on TLS, if there is a configuration of it, and finds out whether the connection is HTTP/2.
async fn begin(transport: Transport, tls: Option<Arc<ServerConfig>>) -> Result<(Transport, bool), HandshakeError> {
    let Some(tls) = tls else {
        let is_http2 = is_http2(&transport).await.ok_or(HandshakeError::Gone)?;
        return Ok((transport, is_http2));
    };
    // Boxed, for the same reason.
    let mut transport = Box::pin(transport.secured(tls)).await?;
    let is_http2 = transport.agreed_on_http2();
    Ok((transport, is_http2))
}

/// Answers a client that does not speak TLS, in the only way that it may understand.
async fn tell_of_tls(mut transport: Transport, pipeline: &Pipeline) {
    let refusal = Refusal::BadRequest("This port speaks TLS: use https:// or wss://".to_owned());
    let answer = connection::refused_unread(&refusal, &pipeline.access);
    if transport.write_all(&answer).await.is_ok() {
        transport.linger_for_bytes(PLAIN_BYTES_MAX);
        // The connection is over whether this fails or not.
        let _ = transport.shutdown().await;
    }
}

/// Whether a connection begins with the preface of HTTP/2; `None` when the peer leaves before that is clear. The bytes stay
/// to be read, and it is one system call if they come together. Cancel-safe.
async fn is_http2(transport: &Transport) -> Option<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        match transport.peek(&mut first).await {
            Ok(0) | Err(_) => return None,
            Ok(n) if !PREFACE.starts_with(&first[..n]) => return Some(false),
            Ok(n) if n == PREFACE.len() => return Some(true),
            Ok(_) => sleep(PREFACE_PAUSE).await,
        }
    }
}
