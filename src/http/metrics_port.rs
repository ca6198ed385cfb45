//! The second address (`METRICS_ADDRESS`), for what watches the server: `/metrics` and `/health`, and nothing else. It asks
//! for no key, because it shows no event, and an operator who sets it chooses who reaches it. It is served beside the network
//! threads, so it answers while these are busy.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::files::NOTHING_HERE;
use super::head_timer::HeadTimer;
use super::metrics::metrics;
use super::response::{self, Body, Readers};
use super::status;
use crate::pipeline::Pipeline;
use crate::transport::{Accepted, Listener};
use crate::wire::Refusal;

/// Clients at one time: some Prometheus servers and a person.
const CONNECTIONS_MAX: usize = 16;

/// A request has a short URL and the usual headers of a scraper. hyper takes no less than this.
const BUFFER_BYTES_MAX: usize = 8 << 10;

/// Serves this address until the server shuts down, and then what is in hand. Cancelling it ends all its connections.
pub async fn serve_metrics_port(listener: Listener, pipeline: Arc<Pipeline>) {
    let (mut connections, shutdown) = (JoinSet::new(), pipeline.shutdown());
    loop {
        tokio::select! {
            biased;
            () = shutdown.begun() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match connections.len() < CONNECTIONS_MAX {
                true => drop(connections.spawn(serve(accepted, pipeline.clone()))),
                false => accepted.refuse(&response::refused_unread(&Refusal::TooManyConnections, Readers::None)),
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(accepted: Accepted, pipeline: Arc<Pipeline>) {
    let Ok(transport) = accepted.into_transport() else { return };
    let (timeout, shutdown) = (pipeline.config.header_timeout, pipeline.shutdown());
    let mut http = pin!(
        http1::Builder::new()
            .timer(HeadTimer::new(timeout))
            .header_read_timeout(timeout)
            .max_buf_size(BUFFER_BYTES_MAX)
            .serve_connection(TokioIo::new(transport), service_fn(|request| answer(request, &pipeline)))
    );
    let ended = tokio::select! {
        biased;
        ended = http.as_mut() => ended,
        () = shutdown.begun() => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection to METRICS_ADDRESS ended early");
    }
}

async fn answer(request: Request<Incoming>, pipeline: &Arc<Pipeline>) -> Result<Response<Body>, Infallible> {
    let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
    let answered = match request.uri().path() {
        "/metrics" | "/health" if !is_get => Err(Refusal::MethodNotAllowed("GET, HEAD".to_owned())),
        "/metrics" => Ok(metrics(request.headers(), pipeline).await),
        "/health" => status::health(),
        _ => Err(Refusal::NotFound(NOTHING_HERE)),
    };
    let mut response = answered.unwrap_or_else(|refusal| response::refused(&refusal));
    // A web page has no use for it.
    response::show_to(response.headers_mut(), Readers::None);
    Ok(response)
}
