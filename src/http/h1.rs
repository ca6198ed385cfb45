//! HTTP/1.1, and the WebSockets that begin as one of its requests.

use std::pin::pin;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::time::sleep;

use super::body;
use super::connection::{BUFFER_BYTES_MAX, Connection};
use super::handshake::{Handshake, Purpose};
use super::head_timer::HeadTimer;
use super::io::HttpIo;
use crate::pipeline::Pipeline;
use crate::transport::Transport;
use crate::ws;

/// Serves one connection until it ends, first as HTTP and then, if it is upgraded, as a WebSocket.
pub(super) async fn serve(transport: Transport, connection: Connection) {
    let pipeline = connection.pipeline.clone();
    serve_http(HttpIo::http1(transport, connection.half_close.clone()), &connection, &pipeline).await;
    connection.deadlines.end().await;
    let Some((Handshake { upgrade, purpose }, producer)) = connection.into_handshake() else { return };
    let Ok(upgraded) = upgrade.await else { return };
    let parts = upgraded.downcast::<HttpIo>().expect("every connection is served on an HttpIo");
    let (mut transport, read) = (parts.io.into_transport(), parts.read_buf);
    let ahead = transport.take_ahead();
    let received = if ahead.is_empty() { read } else { [&read[..], &ahead].concat().into() };
    match purpose {
        Purpose::Publish(ack, caller, _slot) => {
            ws::publish(transport, received, caller, pipeline, producer, ack).await;
        }
        Purpose::Subscribe(caller, _slot) => {
            // A subscriber stores nothing, so it does not hold the store open.
            drop(producer);
            ws::subscribe(transport, received, caller, pipeline).await;
        }
        Purpose::Refuse(ending) => ws::refuse(transport, ending).await,
    }
}

/// Serves requests until there are no more, or until one has become a WebSocket. When the server shuts down, the request in
/// hand is finished.
async fn serve_http(io: HttpIo, connection: &Connection, pipeline: &Arc<Pipeline>) {
    let mut http = pin!(
        http1::Builder::new()
            .timer(HeadTimer::new(pipeline.config.header_timeout))
            // Some clients end their side after the request and want the answer; `HttpIo` finds those that are gone.
            .half_close(true)
            .header_read_timeout(pipeline.config.header_timeout)
            .max_buf_size(BUFFER_BYTES_MAX)
            .serve_connection(io, service_fn(|request| connection.answer(request)))
            .with_upgrades()
    );
    let shutdown = pipeline.shutdown();
    let ended = tokio::select! {
        biased;
        ended = http.as_mut() => ended,
        () = shutdown.begun() => {
            http.as_mut().graceful_shutdown();
            connection.release_store();
            // A client that has not sent the whole head of its first request is waited for only as long as a body is.
            tokio::select! {
                biased;
                ended = http.as_mut() => ended,
                () = sleep(body::grace(pipeline)), if !connection.has_request() => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        // Clients come and go as they like, so this asks nobody to act.
        tracing::debug!(peer = %connection.peer, %error, "connection ended early");
    }
}
