//! One connection, from its first byte.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::connection::Connection;
use super::{h1, h2};
use crate::pipeline::{Pipeline, Producer};
use crate::transport::Transport;

/// What every HTTP/2 client sends first (RFC 9113, 3.4). No method of HTTP/1.1 begins with `PRI`.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a preface of which only a part has come is not looked at again. Peeked bytes stay, so waiting for more of them
/// would return at once, again and again. Clients send the preface whole; one in pieces waits this much longer.
const PREFACE_PAUSE: Duration = Duration::from_millis(10);

/// Serves one connection until it ends.
pub async fn serve(transport: Transport, pipeline: Arc<Pipeline>, producer: Producer) {
    let shutdown = pipeline.shutdown();
    let is_http2 = tokio::select! {
        biased;
        is_http2 = timeout(pipeline.config.header_timeout, is_http2(&transport)) => is_http2.ok().flatten(),
        () = shutdown.begun() => return,
    };
    let connection = Connection::new(pipeline, transport.peer(), producer);
    match is_http2 {
        // Boxed, so that the tasks of all other connections do not carry the memory of its future.
        Some(true) => Box::pin(h2::serve(transport, connection)).await,
        Some(false) => h1::serve(transport, connection).await,
        None => {}
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
