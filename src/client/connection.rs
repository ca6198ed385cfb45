//! The connection of one HTTP request.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::stream::{Security, Stream};

/// A connection for one request. It makes progress only inside [`Connection::drive`]: no task runs beside it.
pub(super) struct Connection {
    requests: http1::SendRequest<Empty<Bytes>>,
    exchange: http1::Connection<TokioIo<Stream>, Empty<Bytes>>,
    /// The exchange must not be polled again after it has ended.
    has_ended: bool,
}

impl Connection {
    pub(super) async fn open(authority: &str, security: &Security) -> anyhow::Result<Self> {
        let open = async {
            let stream = security.over(TcpStream::connect(authority).await?).await?;
            let (requests, exchange) = http1::handshake(TokioIo::new(stream)).await?;
            anyhow::Ok(Self { requests, exchange, has_ended: false })
        };
        open.await.with_context(|| format!("connect to {authority}"))
    }

    pub(super) async fn send(&mut self, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let response = self.requests.send_request(request);
        self.drive(response).await
    }

    /// Waits for a future that depends on this connection, such as one that reads the response.
    pub(super) async fn drive<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|context| {
            // An error of the exchange reaches `future` too, so it is not looked at here.
            let _ = self.poll_exchange(context);
            future.as_mut().poll(context)
        })
        .await
    }

    /// The stream and the bytes that were read behind the response, after the server has switched to another
    /// protocol.
    pub(super) async fn into_stream(mut self) -> hyper::Result<(Stream, Bytes)> {
        poll_fn(|context| self.poll_exchange(context)).await?;
        let parts = self.exchange.into_parts();
        Ok((parts.io.into_inner(), parts.read_buf))
    }

    fn poll_exchange(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        if self.has_ended {
            return Poll::Ready(Ok(()));
        }
        let polled = self.exchange.poll_without_shutdown(context);
        self.has_ended = polled.is_ready();
        polled
    }
}
