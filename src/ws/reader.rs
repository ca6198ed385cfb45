//! The reading half of a WebSocket. Long messages take their memory from that for bodies (`MAX_BODIES_BYTES`).

use tokio::time::{Instant, timeout, timeout_at};

use crate::budget::{self, Budget, Reservation};
use crate::transport::ReadHalf;
use crate::wire::decoder::{Decoder, Message};
use crate::wire::frame::Violation;
use crate::wire::refusal::Ending;

/// Reads the messages of one WebSocket.
pub(super) struct Reader<'s> {
    decoder: Decoder,
    read: ReadHalf<'s>,
    /// The memory that all bodies and messages share.
    memory: &'s Budget,
    /// The long message that is coming in.
    long: Option<Long>,
    /// Why it was given up.
    given_up: Option<&'static str>,
}

struct Long {
    _shares: Vec<Reservation>,
    /// Bytes of the message that the shares cover.
    bytes: usize,
    began: Instant,
    /// All of it has come.
    is_over: bool,
}

impl<'s> Reader<'s> {
    pub(super) fn new(read: ReadHalf<'s>, decoder: Decoder, memory: &'s Budget) -> Self {
        Self { decoder, read, memory, long: None, given_up: None }
    }

    /// As [`Decoder::next`].
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<Message<'_>>, Violation> {
        let next = self.decoder.next();
        if let Some(long) = &mut self.long {
            long.is_over |= matches!(next, Ok(Some(Message::Text(_) | Message::Binary(_) | Message::TooLarge)));
        }
        next
    }

    /// Reads more, once there are no more messages. False when the peer is gone. Cancel-safe.
    ///
    /// A message that is longer than [`budget::SMALL_BYTES_MAX`] and not complete takes a part of the memory, and keeps it
    /// until it is [`done`](Self::done). A message that gets no memory within [`budget::WAIT_MAX`], or that stalls,
    /// is given up: the rest of it is skipped.
    pub(super) async fn more(&mut self) -> bool {
        self.done();
        let (held, announced) = self.decoder.unfinished();
        if held <= budget::SMALL_BYTES_MAX {
            self.long = None;
        } else {
            self.take_memory(held, announced).await;
        }
        if let Some(long) = &self.long {
            let deadline = long.began + budget::stall_max(held);
            match timeout_at(deadline, self.read.read(self.decoder.space())).await {
                Ok(is_there) => return is_there,
                Err(_) => self.give_up("The message did not come in time"),
            }
        }
        self.read.read(self.decoder.space()).await
    }

    /// Resolves when the peer is gone or has closed, with how. Cancel-safe: the messages that come meanwhile stay for
    /// [`next`](Self::next). Behind more of them than [`budget::SMALL_BYTES_MAX`] the end is not looked for.
    pub(super) async fn ended(&mut self) -> Ending {
        while !self.decoder.has_close() {
            if self.decoder.unfinished().0 > budget::SMALL_BYTES_MAX {
                return std::future::pending().await;
            }
            if !self.read.read(self.decoder.space()).await {
                return Ending::Gone;
            }
        }
        // The client waits for no answer to messages before its Close frame.
        loop {
            match self.decoder.next() {
                Ok(Some(Message::Close(close))) => return Ending::Asked(close.map(|(code, _)| code)),
                Ok(Some(_)) => {}
                Ok(None) => return Ending::Gone,
                Err(violation) => return Ending::Violated(violation),
            }
        }
    }

    /// The messages so far are done with: a long one gives its memory back. To be called before the socket waits for
    /// something, so that others wait less long for the memory.
    pub(super) fn done(&mut self) {
        if self.long.as_ref().is_some_and(|long| long.is_over) {
            // When the decoder makes space for more bytes it frees the memory of the message.
            self.decoder.space();
            self.long = None;
        }
    }

    /// Why the last message was skipped.
    pub(super) fn why_unread(&mut self) -> &'static str {
        self.given_up.take().unwrap_or("Message too large")
    }

    /// Takes memory for a message of which `held` bytes are here and `announced` bytes are known to come in all.
    async fn take_memory(&mut self, held: usize, announced: usize) {
        let covered = self.long.as_ref().map_or(0, |long| long.bytes);
        if held <= covered {
            return;
        }
        // A fragment does not say how long its message gets, so the memory doubles each time.
        let expected = announced.max(2 * covered);
        let share = self.memory.reserve((expected - covered) * budget::MEMORY_PER_BYTE);
        match timeout(budget::WAIT_MAX, share).await {
            Ok(share) => {
                let long = self.long.get_or_insert_with(|| Long {
                    _shares: Vec::new(),
                    bytes: 0,
                    began: Instant::now(),
                    is_over: false,
                });
                long._shares.push(share);
                long.bytes = expected;
            }
            Err(_) => self.give_up("Too many large messages are under way, try again"),
        }
    }

    fn give_up(&mut self, why: &'static str) {
        self.decoder.give_up();
        (self.long, self.given_up) = (None, Some(why));
    }
}
