//! One socket of the load: whole batches out, whole frames or responses in.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use anyhow::{Context as _, anyhow, bail, ensure};
use event_pipeline::wire::frame::{self, OpCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};

use crate::target::Target;

/// Most bytes of one read. All connections read into the same memory, which so stays in the cache.
const READ_BYTES_MAX: usize = 256 << 10;

/// Most bytes of one message or response.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Room to read into, shared by all connections of the one thread.
#[derive(Clone)]
pub struct Scratch(Rc<RefCell<Vec<u8>>>);

impl Default for Scratch {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(vec![0; READ_BYTES_MAX])))
    }
}

/// How a connection is opened where what the system chooses will not do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dial {
    /// The address it comes from.
    pub source: Option<IpAddr>,
    /// What the system keeps of what is not read, roughly.
    pub receive_buffer_bytes: Option<u32>,
}

impl Dial {
    async fn connect(self, authority: &str) -> io::Result<TcpStream> {
        let Self { source, receive_buffer_bytes } = self;
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        for address in lookup_host(authority).await? {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            receive_buffer_bytes.map_or(Ok(()), |bytes| socket.set_recv_buffer_size(bytes))?;
            if let Some(source) = source {
                // Otherwise a port that was used lately is not given out again, though its peer is another.
                socket.set_reuseaddr(true)?;
                socket.bind((source, 0).into())?;
            }
            match socket.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// A connection. It writes and reads only while somebody waits in [`exchange`](Self::exchange).
pub struct Connection {
    stream: TcpStream,
    scratch: Scratch,
    /// What is to be sent, of which `written` bytes are gone.
    out: Vec<u8>,
    written: usize,
    /// The beginning of what has not come as a whole.
    rest: Vec<u8>,
    /// Whether that was left over by a handshake, and may be whole.
    left_over: bool,
}

impl Connection {
    /// A connection to `host:port`.
    pub async fn open(authority: &str, scratch: &Scratch) -> anyhow::Result<Self> {
        Self::dial(authority, Dial::default(), scratch).await
    }

    /// The same in a way of its own.
    pub async fn dial(authority: &str, dial: Dial, scratch: &Scratch) -> anyhow::Result<Self> {
        let stream = dial.connect(authority).await.with_context(|| format!("connect to {authority}"))?;
        // Batches are made here, on purpose; what is written is meant to leave.
        stream.set_nodelay(true)?;
        Ok(Self { stream, scratch: scratch.clone(), out: Vec::new(), written: 0, rest: Vec::new(), left_over: false })
    }

    /// A WebSocket, after its handshake.
    pub async fn web_socket(target: &Target, path: &str, scratch: &Scratch) -> anyhow::Result<Self> {
        Self::open(&target.authority, scratch).await?.upgrade(target, path).await
    }

    /// Makes the handshake that turns it into a WebSocket.
    pub async fn upgrade(self, target: &Target, path: &str) -> anyhow::Result<Self> {
        let mut connection = self;
        let (prefix, headers) = (&target.prefix, target.headers());
        connection.out().extend_from_slice(
            format!(
                "GET {prefix}{path} HTTP/1.1\r\n{headers}Connection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bG9hZHRlc3QtLWNsaWVudA==\r\n\r\n"
            )
            .as_bytes(),
        );
        let mut answered = false;
        while !answered {
            connection
                .exchange(|bytes, _| {
                    let Some(end) = end_of_head(bytes) else { return Ok(0) };
                    let switched = bytes.starts_with(b"HTTP/1.1 101 ");
                    ensure!(switched, "{path}: the server answered {}", refusal(&bytes[..end], &bytes[end..]));
                    answered = true;
                    Ok(end)
                })
                .await?;
        }
        connection.left_over = !connection.rest.is_empty();
        Ok(connection)
    }

    /// What is to be sent; appending to it is all it takes.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Writes what is to be sent, as far as the server takes it, until something could be read: then `take`
    /// gets all that is there, may append to what is to be sent, and says how much it has used up.
    /// The rest comes again with the next read. Cancel safe.
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

    /// Sends what is to be sent, and waits for nothing else.
    pub async fn send(&mut self) -> anyhow::Result<()> {
        poll_fn(|cx| {
            self.poll_write(cx)?;
            if self.out.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    /// Leaves in order: sends what is to be sent, and reads on until the server has hung up.
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

    /// Leaves without a word: the server's system is told that there is nobody any more.
    pub fn vanish(self) -> anyhow::Result<()> {
        self.stream.set_zero_linger().context("vanish")
    }

    /// Writes what the server takes now, and sees to it that we are woken when it takes more.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> anyhow::Result<()> {
        while self.written < self.out.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out[self.written..]) {
                Poll::Ready(count) => self.written += count.context("write")?,
                Poll::Pending => return Ok(()),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }
}

/// Visits the text messages in what a server's socket sent, answers pings, and returns how many bytes are
/// used up. Messages in fragments are for other clients.
///
/// # Errors
/// A close frame, anything that a text message or a control frame is not, or what `visit` says.
#[inline]
pub fn frames(
    bytes: &[u8],
    out: &mut Vec<u8>,
    mut visit: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    const TEXT: u8 = 0x80 | OpCode::Text as u8;
    const PING: u8 = 0x80 | OpCode::Ping as u8;
    const PONG: u8 = 0x80 | OpCode::Pong as u8;
    const CLOSE: u8 = 0x80 | OpCode::Close as u8;
    let mut used = 0;
    loop {
        let frame = &bytes[used..];
        let (head, length) = match *frame {
            [_, length @ 0..=125, ..] => (2, usize::from(length)),
            [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
            [_, 127, a, b, c, d, e, f, g, h, ..] => (10, u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize),
            [_, 128..=255, ..] => bail!("the server sent a masked frame"),
            _ => return Ok(used),
        };
        ensure!(length <= MESSAGE_BYTES_MAX, "the server announced a message of {length} bytes");
        let Some(payload) = frame.get(head..head + length) else { return Ok(used) };
        used += head + length;
        match frame[0] {
            TEXT => visit(payload)?,
            PING => frame::masked(out, OpCode::Pong, payload, *b"mask"),
            PONG => {}
            CLOSE => bail!("the server closed the socket: {}", close_reason(payload)),
            first => bail!("the server sent a frame that begins with {first:#04x}"),
        }
    }
}

/// What is worth telling of a response: its status and its body.
fn refusal(head: &[u8], body: &[u8]) -> String {
    let status = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    [status, body].map(String::from_utf8_lossy).join(" ")
}

fn close_reason(payload: &[u8]) -> String {
    match payload {
        [high, low, reason @ ..] => {
            format!("{} {}", u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason))
        }
        _ => "without a code".to_owned(),
    }
}

/// Visits the responses, status and body, in what an HTTP server sent, and returns how many bytes are used up.
///
/// # Errors
/// A response without `Content-Length`, or what `visit` says.
pub fn responses(bytes: &[u8], mut visit: impl FnMut(u16, &[u8]) -> anyhow::Result<()>) -> anyhow::Result<usize> {
    let mut used = 0;
    while let Some(head) = end_of_head(&bytes[used..]) {
        let head = &bytes[used..used + head];
        let head_text = || String::from_utf8_lossy(head);
        let mut lines = head.split(|b| *b == b'\n');
        let status = lines.next().and_then(|line| number(line.get(9..12)?));
        let length = lines.find_map(|line| {
            let (name, value) = line.split_at_checked(15)?;
            if name.eq_ignore_ascii_case(b"content-length:") { number(value) } else { None }
        });
        let (Some(status), Some(length)) = (status, length) else {
            bail!("no status or no Content-Length in {:?}", head_text());
        };
        ensure!(length <= MESSAGE_BYTES_MAX, "the server announced a body of {length} bytes");
        let Some(body) = bytes.get(used + head.len()..used + head.len() + length) else { break };
        used += head.len() + length;
        visit(status as u16, body)?;
    }
    Ok(used)
}

fn number(text: &[u8]) -> Option<usize> {
    str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Where the blank line after a head ends.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the bytes in two pieces, cut at each place, and expects the same in the end.
    fn in_two_pieces(bytes: &[u8], expected: &[&str], take: impl Fn(&[u8], &mut Vec<String>) -> usize) {
        for cut in 0..=bytes.len() {
            let mut seen = Vec::new();
            let used = take(&bytes[..cut], &mut seen);
            let used = used + take(&bytes[used..], &mut seen);
            assert_eq!(
                (used, &*seen),
                (bytes.len(), &*expected.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn frames_are_whole_wherever_they_are_cut() {
        let (long, longer) = ("x".repeat(126), "y".repeat(70_000));
        let mut bytes = Vec::new();
        for text in ["", "short", &long] {
            frame::text(&mut bytes, text.as_bytes());
        }
        frame::unmasked(&mut bytes, OpCode::Pong, b"never mind");
        let take = |bytes: &[u8], seen: &mut Vec<String>| {
            let mut out = Vec::new();
            frames(bytes, &mut out, |text| {
                seen.push(String::from_utf8_lossy(text).into_owned());
                Ok(())
            })
            .expect("frames")
        };
        in_two_pieces(&bytes, &["", "short", &long], take);
        bytes.clear();
        frame::text(&mut bytes, longer.as_bytes());
        let mut seen = Vec::new();
        assert_eq!((take(&bytes[..70_000], &mut seen), take(&bytes, &mut seen)), (0, bytes.len()));
        assert_eq!(seen, [longer]);
    }

    #[test]
    fn pings_are_answered_and_faults_are_told() {
        let (mut bytes, mut out, mut pong) = (Vec::new(), Vec::new(), Vec::new());
        frame::unmasked(&mut bytes, OpCode::Ping, b"there?");
        assert_eq!(frames(&bytes, &mut out, |_| panic!()).expect("a frame"), bytes.len());
        frame::masked(&mut pong, OpCode::Pong, b"there?", *b"mask");
        assert_eq!(out, pong);

        let check = |bytes: &[u8], fault: &str| {
            let error = frames(bytes, &mut Vec::new(), |_| Ok(())).expect_err(fault);
            assert_eq!(error.to_string(), fault);
        };
        bytes.clear();
        frame::close(&mut bytes, 1001, "going away");
        check(&bytes, "the server closed the socket: 1001 going away");
        check(&pong, "the server sent a masked frame");
        check(&[0x01, 0], "the server sent a frame that begins with 0x01");
        check(&[0x81, 127, 0, 0, 1, 0, 0, 0, 0, 0], "the server announced a message of 1099511627776 bytes");
    }

    #[test]
    fn responses_are_whole_wherever_they_are_cut() {
        let bytes = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\nx: y\r\n\r\n{}\
            HTTP/1.1 503 Service Unavailable\r\nA: B\r\nContent-Length:0\r\n\r\n";
        in_two_pieces(bytes, &["201 {}", "503 "], |bytes, seen| {
            responses(bytes, |status, body| {
                seen.push(format!("{status} {}", String::from_utf8_lossy(body)));
                Ok(())
            })
            .expect("responses")
        });
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(responses(chunked, |_, _| Ok(())).is_err());
    }
}
