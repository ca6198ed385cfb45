//! The HTTP interface: one route table under two prefixes, over HTTP/1.1 and HTTP/2, and the handshakes of the WebSockets,
//! over HTTP/1.1 only.
//!
//! hyper itself answers requests that are no HTTP: with a bare 400, 414 or 431, without our headers. It closes a connection
//! whose next request does not come complete within the header timeout; this also ends idle connections. A request with
//! both `Content-Length` and `Transfer-Encoding` is read by the latter alone and is the last of its connection (RFC 9112,
//! 6.3).
//!
//! From the top: [`serve`] → `h1`, `h2` → `connection` (checks and dispatch) → an endpoint (`events`, `publish`,
//! `event_stream`, `subscriptions`, `status`, `files`, `handshake`) → `request`, `response` and what they are made of.

mod body;
mod connection;
mod event_stream;
mod events;
mod export;
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
mod page;
mod parameters;
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

use tokio::time::{sleep, timeout};

use crate::pipeline::{Pipeline, Producer};
use crate::transport::Transport;
use connection::Connection;

pub use connection::no_slots_left;
pub use parameters::Parameters;
pub use publish::Form;
pub use route::{Endpoint, Guard, PREFIX, ROUTES, Route};

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
