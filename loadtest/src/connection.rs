//! One socket of the load: whole batches out, whole frames or responses in.

use std::cell::RefCell;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use event_pipeline::client::Stream;
use event_pipeline::wire::frame::{self, OpCode};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use crate::dial::Dial;
use crate::target::Target;
use crate::wire::{end_of_head, first_frame, refusal, responses};

/// 20 s after a request, a server that has not answered will not answer: it waits 5 s for a lock at most.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Most bytes of one read. All connections read into the same memory, so that it stays in the processor's cache.
const READ_BYTES_MAX: usize = 256 << 10;

/// The memory to read into, shared by all connections of the one thread.
#[derive(Clone)]
pub struct Scratch(Rc<RefCell<Vec<u8>>>);

impl Default for Scratch {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(vec![0; READ_BYTES_MAX])))
    }
}

/// A connection. It writes and reads only while [`exchange`](Self::exchange) is awaited.
pub struct Connection {
    stream: Stream,
    scratch: Scratch,
    /// The bytes to send, of which `written` are sent.
    out: Vec<u8>,
    written: usize,
    /// The beginning of a message that has not arrived completely.
    rest: Vec<u8>,
    /// Whether `rest` was left over by the handshake, and may hold complete messages.
    left_over: bool,
}

impl Connection {
    /// A connection to a server.
    pub async fn open(target: &Target, scratch: &Scratch) -> anyhow::Result<Self> {
        Self::dial(target, Dial::default(), scratch).await
    }

    /// The same with options.
    pub async fn dial(target: &Target, dial: Dial, scratch: &Scratch) -> anyhow::Result<Self> {
        let Target { authority, security, .. } = target;
        let connect = async { security.over(dial.connect(authority).await?).await };
        let stream = connect.await.with_context(|| format!("connect to {authority}"))?;
        Ok(Self { stream, scratch: scratch.clone(), out: Vec::new(), written: 0, rest: Vec::new(), left_over: false })
    }

    /// A WebSocket, after its handshake.
    pub async fn web_socket(target: &Target, path: &str, scratch: &Scratch) -> anyhow::Result<Self> {
        Self::open(target, scratch).await?.upgrade(target, path).await
    }

    /// Makes the handshake that turns it into a WebSocket.
    pub async fn upgrade(self, target: &Target, path: &str) -> anyhow::Result<Self> {
        let mut connection = self;
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bG9hZHRlc3QtLWNsaWVudA==\r\n";
        connection.out().extend_from_slice(target.heads.request("GET", path, upgrade).as_bytes());
        connection.begin(path, b"HTTP/1.1 101 ", b"").await?;
        Ok(connection)
    }

    /// Begins an event stream, and waits until it has subscribed.
    ///
    /// # Errors
    /// The server answers anything else.
    pub async fn stream(mut self, target: &Target, path: &str) -> anyhow::Result<Self> {
        let head = target.heads.request("GET", path, "Accept: text/event-stream\r\n");
        self.out().extend_from_slice(head.as_bytes());
        self.begin(path, b"HTTP/1.1 200 ", b"\nevent: subscribed\n").await?;
        Ok(self)
    }

    /// Waits for the head of an answer that begins so, and for this in what follows it.
    async fn begin(&mut self, path: &str, status: &[u8], first: &[u8]) -> anyhow::Result<()> {
        let begun = self.answer(|bytes, _, answer| {
            let Some(end) = end_of_head(bytes) else { return Ok(0) };
            ensure!(bytes.starts_with(status), "{path}: the server answered {}", refusal(&bytes[..end], &bytes[end..]));
            if memmem::find(&bytes[end..], first).is_none() {
                return Ok(0);
            }
            *answer = Some(());
            Ok(end)
        });
        begun.await?;
        self.left_over = !self.rest.is_empty();
        Ok(())
    }

    /// Sends a message on a WebSocket, and waits for the next one that comes.
    ///
    /// # Errors
    /// None comes for [`PATIENCE`], or the connection is lost.
    pub async fn message(&mut self, text: &str) -> anyhow::Result<Vec<u8>> {
        frame::masked(self.out(), OpCode::Text, text.as_bytes(), *b"mask");
        self.reply().await
    }

    /// Sends the bytes to send, and waits for the next message that comes on a WebSocket.
    ///
    /// # Errors
    /// None comes for [`PATIENCE`], or the connection is lost.
    pub async fn reply(&mut self) -> anyhow::Result<Vec<u8>> {
        let answered = self.ask(|bytes, out, answer| {
            // What follows it is left to be read later.
            first_frame(bytes, out, |text| *answer = Some(text.to_vec()))
        });
        let answer = answered.await?;
        self.left_over = !self.rest.is_empty();
        Ok(answer)
    }

    /// Sends a request over HTTP, and waits for its answer: its status and its body.
    ///
    /// # Errors
    /// None comes for [`PATIENCE`], the connection is lost, or more comes than was asked for.
    pub async fn request(&mut self, head: &str) -> anyhow::Result<(u16, Vec<u8>)> {
        self.out().extend_from_slice(head.as_bytes());
        let answered = self.ask(|bytes, _, answer| {
            responses(bytes, |status, body| {
                ensure!(answer.is_none(), "the server answered more often than it was asked");
                *answer = Some((status, body.to_vec()));
                Ok(())
            })
        });
        answered.await
    }

    /// Sends the bytes to send, and reads until `read` has set an answer.
    ///
    /// # Errors
    /// None comes for [`PATIENCE`], the connection is lost, or what `read` says.
    pub async fn ask<T>(
        &mut self,
        read: impl FnMut(&[u8], &mut Vec<u8>, &mut Option<T>) -> anyhow::Result<usize>,
    ) -> anyhow::Result<T> {
        timeout(PATIENCE, self.answer(read)).await.context("the server does not answer")?
    }

    /// The bytes to send: append to them.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Writes the bytes to send, as far as the server takes them, until something was read. Then `take` gets everything
    /// that was read, may append bytes to send, and returns how many bytes it has used up. It gets the rest again with
    /// the next read. Cancel safe.
    ///
    /// # Errors
    /// The connection was lost, or what `take` says.
    pub async fn exchange(
        &mut self,
        mut take: impl FnMut(&[u8], &mut Vec<u8>) -> anyhow::Result<usize>,
    ) -> anyhow::Result<()> {
        poll_fn(|cx| {
            self.poll_write(cx)?;
            let Self { stream, scratch, out, rest, left_over, .. } = &mut *self;
            if mem::take(left_over) {
                let used = take(rest, out)?;
                rest.drain(..used);
                if used > 0 {
                    return Poll::Ready(Ok(()));
                }
            }
            let scratch = &mut *scratch.0.borrow_mut();
            let held = rest.len();
            scratch.resize(scratch.len().max(held * 2), 0);
            let mut space = ReadBuf::new(&mut scratch[held..]);
            ready!(Pin::new(stream).poll_read(cx, &mut space)).context("read")?;
            let read = space.filled().len();
            if read == 0 {
                Err(anyhow!("the server hung up"))?;
            }
            scratch[..held].copy_from_slice(rest);
            let all = &scratch[..held + read];
            let used = take(all, out)?;
            rest.clear();
            rest.extend_from_slice(&all[used..]);
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Exchanges until `read` has set an answer.
    async fn answer<T>(
        &mut self,
        mut read: impl FnMut(&[u8], &mut Vec<u8>, &mut Option<T>) -> anyhow::Result<usize>,
    ) -> anyhow::Result<T> {
        let mut answer = None;
        loop {
            self.exchange(|bytes, out| read(bytes, out, &mut answer)).await?;
            if let Some(answer) = answer.take() {
                return Ok(answer);
            }
        }
    }

    /// Sends the bytes to send, without reading.
    pub async fn send(&mut self) -> anyhow::Result<()> {
        poll_fn(|cx| {
            self.poll_write(cx)?;
            if self.out.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    /// Disconnects in order: sends the bytes to send, and reads until the server has closed.
    ///
    /// # Errors
    /// The connection was lost instead.
    pub async fn leave(mut self) -> anyhow::Result<()> {
        poll_fn(|cx| {
            self.poll_write(cx)?;
            loop {
                let scratch = &mut *self.scratch.0.borrow_mut();
                let mut space = ReadBuf::new(scratch);
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space)).context("read")?;
                if space.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
        })
        .await
    }

    /// Disconnects with a reset: the server's system learns that the peer is gone, and no close frame is sent.
    pub fn vanish(self) -> anyhow::Result<()> {
        self.stream.tcp().set_zero_linger().context("vanish")
    }

    /// Writes what the server takes now. The task is woken when it takes more.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> anyhow::Result<()> {
        while self.written < self.out.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out[self.written..]) {
                Poll::Ready(count) => self.written += count.context("write")?,
                Poll::Pending => return Ok(()),
            }
        }
        // TLS may hold records that did not leave yet.
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(flushed) => flushed.context("write")?,
            Poll::Pending => return Ok(()),
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }
}
