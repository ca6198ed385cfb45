//! The reading half of a WebSocket. Long messages take their memory from that for bodies (`MAX_BODIES_BYTES`).

use tokio::io::AsyncReadExt;
use tokio::net::tcp::ReadHalf;
use tokio::time::{Instant, timeout, timeout_at};

use crate::budget::{self, Budget, Share};
use crate::wire::frame::{Decoder, Message, Violation};
use crate::wire::refusal::Ending;

/// What a socket is read with.
pub(super) struct Reader<'s> {
    decoder: Decoder,
    read: ReadHalf<'s>,
    /// Memory for everybody's bodies and messages.
    memory: &'s Budget,
    /// The share of the long message in hand.
    long: Option<Long>,
    /// Why a message in hand was given up.
    given_up: Option<&'static str>,
}

struct Long {
    _shares: Vec<Share>,
    /// Bytes of the message that the shares cover.
    bytes: usize,
    began: Instant,
    /// It has come as a whole.
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
    /// A message that is longer than [`budget::SMALL_BYTES_MAX`] and not complete takes a share of the memory, which it
    /// keeps until it is [`done`](Self::done). A message that gets no memory within [`budget::PATIENCE`], or that stalls,
    /// is given up: the rest of it is skipped.
    pub(super) async fn more(&mut self) -> bool {
        self.done();
        let (held, announced) = self.decoder.unfinished();
        if held <= budget::SMALL_BYTES_MAX {
            self.long = None;
        } else {
            self.make_room(held, announced).await;
        }
        if let Some(long) = &self.long {
            let deadline = long.began + budget::stall_max(held);
            match timeout_at(deadline, self.read.read_buf(self.decoder.space())).await {
                Ok(read) => return matches!(read, Ok(1..)),
                Err(_) => self.give_up("The message did not come in time"),
            }
        }
        matches!(self.read.read_buf(self.decoder.space()).await, Ok(1..))
    }

    /// Resolves when the peer is gone or has closed, with how. Cancel-safe: the messages that come meanwhile stay for
    /// [`next`](Self::next). Behind more of them than [`budget::SMALL_BYTES_MAX`] the end is not looked for.
    pub(super) async fn ended(&mut self) -> Ending {
        while !self.decoder.has_close() {
            if self.decoder.unfinished().0 > budget::SMALL_BYTES_MAX {
                return std::future::pending().await;
            }
            if !matches!(self.read.read_buf(self.decoder.space()).await, Ok(1..)) {
                return Ending::Gone;
            }
        }
        // Nobody waits for what was asked before it.
        loop {
            match self.decoder.next() {
                Ok(Some(Message::Close(close))) => return Ending::Asked(close.map(|(code, _)| code)),
                Ok(Some(_)) => {}
                Ok(None) => return Ending::Gone,
                Err(violation) => return Ending::Violated(violation),
            }
        }
    }

    /// What was made of the messages so far is where it belongs: one that was long gives its share of the memory back.
    /// To be called before something else is waited for, so that others need not wait as long for the memory.
    pub(super) fn done(&mut self) {
        if self.long.as_ref().is_some_and(|long| long.is_over) {
            // With its room for more the decoder gives back what the message lay in.
            self.decoder.space();
            self.long = None;
        }
    }

    /// Why the message that was skipped last was not read.
    pub(super) fn why_unread(&mut self) -> &'static str {
        self.given_up.take().unwrap_or("Message too large")
    }

    /// Takes memory for a message of which `held` bytes are here and `announced` bytes are known to come in all.
    async fn make_room(&mut self, held: usize, announced: usize) {
        let covered = self.long.as_ref().map_or(0, |long| long.bytes);
        if held <= covered {
            return;
        }
        // Fragments do not say how long their message gets: the share doubles each time.
        let expected = announced.max(2 * covered);
        let share = self.memory.take((expected - covered) * budget::BYTES_FOR_A_BYTE);
        match timeout(budget::PATIENCE, share).await {
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
