//! A client's WebSocket, which writes and reads messages in batches.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::stream::Stream;
use crate::wire::decoder::{Decoder, Message};
use crate::wire::frame::{self, MESSAGE_BYTES_MAX, OpCode, Role, Violation};
use crate::wire::refusal::Again;

/// A WebSocket after its handshake. A client that may have more unanswered messages than the sockets' buffers hold must
/// [`split`](Self::split) it, to read while it writes. Pings are answered by the next call that waits.
pub struct Socket {
    sender: Sender,
    receiver: Receiver,
}

impl Socket {
    /// `received` is what was read behind the response to the handshake.
    pub(super) fn new(stream: Stream, received: &[u8]) -> Self {
        let (read, write) = tokio::io::split(stream);
        let owed = OwedFrame::default();
        let decoder = Decoder::new(Role::Client, MESSAGE_BYTES_MAX).with_received(received);
        Self {
            sender: Sender { write, out: Vec::new(), written: 0, keys: MaskingKeys::new(), owed: owed.clone() },
            receiver: Receiver { read, decoder, end: None, keys: MaskingKeys::new(), owed },
        }
    }

    /// Writes one text message. Cancel-safe: the next call that writes also writes what is left of the message.
    pub async fn send(&mut self, text: &str) -> Result<(), Disconnected> {
        self.sender.queue(text);
        self.sender.flush().await
    }

    /// The next text message. Cancel-safe.
    ///
    /// # Errors
    /// How the connection ended, at each further call too.
    pub async fn next(&mut self) -> Result<String, Disconnected> {
        let mut next = None;
        while next.is_none() {
            self.receive(1, |text| next = Some(text.to_owned())).await?;
        }
        Ok(next.expect("the loop ends with a message"))
    }

    /// Waits for at least one text message, visits all that are there and returns their number. Cancel-safe.
    ///
    /// # Errors
    /// How the connection ended, at each further call too. All messages before the end have been visited.
    pub async fn receive_batch(&mut self, mut visit: impl FnMut(&str)) -> Result<usize, Disconnected> {
        loop {
            match self.receive(usize::MAX, &mut visit).await? {
                0 => {}
                count => return Ok(count),
            }
        }
    }

    /// Writes a Close frame, after which nothing more may be sent. What the server still sends, up to its own Close
    /// frame, can be received.
    pub async fn close(&mut self, code: u16, reason: &str) -> Result<(), Disconnected> {
        self.sender.close(code, reason).await
    }

    /// Both directions, each for a task of its own.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    async fn receive(&mut self, max: usize, visit: impl FnMut(&str)) -> Result<usize, Disconnected> {
        let received = self.receiver.receive(max, visit).await;
        // The server may no longer be there to take a pong or the echo of its Close frame, so an error of `received`
        // counts first.
        let replied = self.sender.flush_owed().await;
        received.and_then(|count| replied.map(|()| count))
    }
}

/// The writing direction of a [`Socket`]. [`queue`](Self::queue) collects messages, without an allocation for each, until
/// [`flush`](Self::flush) writes them together.
pub struct Sender {
    write: WriteHalf<Stream>,
    /// Whole frames, of which the first `written` bytes have left.
    out: Vec<u8>,
    written: usize,
    keys: MaskingKeys,
    owed: OwedFrame,
}

impl Sender {
    /// Adds a text message to those that the next [`flush`](Self::flush) writes.
    #[inline]
    pub fn queue(&mut self, text: &str) {
        frame::masked(&mut self.out, OpCode::Text, text.as_bytes(), self.keys.next());
    }

    /// How many bytes the next [`flush`](Self::flush) has to write.
    pub fn queued_bytes(&self) -> usize {
        self.out.len() - self.written
    }

    /// Writes all queued messages, and the reply to the last ping that the [`Receiver`] has met. Cancel-safe: what was
    /// not written stays queued.
    pub async fn flush(&mut self) -> Result<(), Disconnected> {
        self.out.append(&mut self.owed.lock());
        while self.written < self.out.len() {
            match self.write.write(&self.out[self.written..]).await? {
                0 => return Err(Disconnected::Lost("nothing can be written".into())),
                count => self.written += count,
            }
        }
        // TLS may hold records that did not leave yet.
        self.write.flush().await?;
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

    async fn flush_owed(&mut self) -> Result<(), Disconnected> {
        if self.owed.lock().is_empty() { Ok(()) } else { self.flush().await }
    }
}

/// The reading direction of a [`Socket`].
pub struct Receiver {
    read: ReadHalf<Stream>,
    decoder: Decoder,
    /// How the connection ended, once it has.
    end: Option<Disconnected>,
    keys: MaskingKeys,
    owed: OwedFrame,
}

impl Receiver {
    /// As [`Socket::receive_batch`], but it also returns, perhaps with 0, when the next [`Sender::flush`] has to answer
    /// a ping.
    pub async fn receive_batch(&mut self, visit: impl FnMut(&str)) -> Result<usize, Disconnected> {
        self.receive(usize::MAX, visit).await
    }

    async fn receive(&mut self, max: usize, mut visit: impl FnMut(&str)) -> Result<usize, Disconnected> {
        loop {
            let (mut count, mut pinged) = (0, false);
            while count < max {
                match self.decoder.next() {
                    Ok(Some(Message::Text(text))) => {
                        visit(text);
                        count += 1;
                    }
                    Ok(Some(Message::Ping(payload))) => {
                        owe(&self.owed, OpCode::Pong, payload, self.keys.next());
                        pinged = true;
                    }
                    Ok(Some(Message::Close(close))) => {
                        // RFC 6455, 7.1.5: 1005 stands for a Close frame without a code.
                        let (code, reason) = close.unwrap_or((1005, ""));
                        self.end = Some(Disconnected::Closed { code, reason: reason.into() });
                        let echo = close.map(|(code, _)| code.to_be_bytes());
                        owe(&self.owed, OpCode::Close, echo.as_ref().map_or(&[], |code| code), self.keys.next());
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
    /// The server sent a Close frame; the code is 1005 if the frame had none.
    #[error("the server closed the connection: {code} {reason}")]
    Closed { code: u16, reason: String },
    /// The connection ended without a Close frame.
    #[error("the connection was lost: {0}")]
    Lost(String),
    #[error("the server broke the protocol: {0}")]
    Violation(Violation),
}

impl Disconnected {
    /// Whether a new connection would end in the same way.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Closed { code, .. } if Again::after(*code) == Again::No)
    }
}

impl From<io::Error> for Disconnected {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

/// The control frame that the receiver owes the server. The sender writes it, as only it may write. One frame is enough:
/// RFC 6455, 5.5.3, asks for a pong to the last ping only.
type OwedFrame = Arc<Mutex<Vec<u8>>>;

fn owe(owed: &OwedFrame, opcode: OpCode, payload: &[u8], key: [u8; 4]) {
    let mut owed = owed.lock();
    owed.clear();
    frame::masked(&mut owed, opcode, payload, key);
}

/// Masking keys: xorshift from a random start. Masking keeps proxies from mistaking a payload for a request. The user of
/// this client chooses the payloads, so speed counts for more here than keys that cannot be predicted.
struct MaskingKeys(u64);

impl MaskingKeys {
    fn new() -> Self {
        // Xorshift would stay at zero for ever.
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
