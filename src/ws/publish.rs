//! `/ws/publish`: messages in, acknowledgements out, in the same order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::reader::Reader;
use super::{Beat, Pulse, goodbye, linger, write_all};
use crate::auth::Class;
use crate::doorbell::Wakes;
use crate::event::{EventTypes, Parser};
use crate::outbox::{Outbox, Taken};
use crate::pipeline::{PARSED_IN_PLACE_BYTES_MAX, Pipeline, Producer};
use crate::record::{AckLevel, Outcomes};
use crate::store::Receipt;
use crate::wire::Batch;
use crate::wire::answer::{Ack, AnswerWriter, Answered, Answers, ToPublisher};
use crate::wire::frame::{self, Decoder, Message, OpCode, Role};
use crate::wire::refusal::Ending;

/// Bytes that may wait for a publisher that does not read its answers. Almost all are bounded by what it may have in
/// flight; this is for references, which can be as long as a message.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// Serves one publisher until its socket ends.
pub async fn publish(
    mut stream: TcpStream,
    received: Bytes,
    peer: SocketAddr,
    pipeline: Arc<Pipeline>,
    producer: Option<Producer>,
    ack: Ack,
) {
    let socket = Socket {
        pipeline: &pipeline,
        peer,
        outbox: Arc::new(Outbox::new(WAITING_BYTES_MAX)),
        level: ack.level.unwrap_or_else(|| pipeline.store.usual_level()),
        in_flight: AtomicUsize::new(0),
        answered: Notify::new(),
    };
    let (read, write) = stream.split();
    let decoder = Decoder::new(Role::Server, pipeline.config.max_ws_message_bytes).with_received(&received);
    drop(received);
    let reader = Reader::new(read, decoder, &pipeline.bodies);
    let said_goodbye = {
        let reading = async {
            let ending = socket.read(reader, producer).await;
            socket.push(ToPublisher::End(ending), 0);
            std::future::pending().await
        };
        tokio::select! {
            biased;
            said_goodbye = socket.write(write, ack) => said_goodbye,
            () = reading => false,
        }
    };
    if said_goodbye {
        linger(stream).await;
    }
}

/// What a look at the buffer has come to.
enum Decoded {
    All,
    /// This message is next, and too large for the network thread. It has been counted in the rate.
    Large(String),
    Until(Ending),
}

/// Takes in one message, with the answer to it.
#[inline]
fn take_in(text: &str, parser: &mut Parser, types: &EventTypes, batch: &mut Batch, answers: &mut Answers) {
    let before = batch.len();
    let parsed = parser.parse(text, |event| batch.push(&event, types));
    if parsed.outcome.is_err() {
        batch.truncate(before);
    }
    batch.end_message(before);
    answers.note(&parsed);
}

struct Socket<'p> {
    pipeline: &'p Pipeline,
    peer: SocketAddr,
    outbox: Arc<Outbox<ToPublisher>>,
    /// How safe events are when they are acknowledged.
    level: AckLevel,
    /// Events and pongs, handed in or waiting, that have not left as answers.
    in_flight: AtomicUsize,
    /// Answers have left.
    answered: Notify,
}

impl Socket<'_> {
    /// Reads until the socket ends, and says how. Everything complete that one read brought becomes one
    /// batch. While too much is unanswered nothing is read, and TCP slows the producer down. The store stays open until
    /// this returns.
    async fn read(&self, mut reader: Reader<'_>, _producer: Option<Producer>) -> Ending {
        let mut parser = self.pipeline.parser();
        let shutdown = self.pipeline.shutdown();
        let mut shutting_down = std::pin::pin!(shutdown.begun());
        let (pulse, interval) = (Pulse::new(self.pipeline), self.pipeline.config.keepalive_interval);
        let mut silence = std::pin::pin!(sleep(interval));
        loop {
            let (mut batch, mut answers) = (Batch::default(), Answers::default());
            let ending = loop {
                match self.decode(&mut reader, &mut parser, &mut batch, &mut answers) {
                    Decoded::All => break None,
                    Decoded::Large(text) => {
                        // Behind it only the rest of one read can wait, so the batch stays as small as any.
                        let types = self.pipeline.types.clone();
                        let parse = move || {
                            take_in(&text, &mut parser, &types, &mut batch, &mut answers);
                            (parser, batch, answers)
                        };
                        (parser, batch, answers) = self.pipeline.parse_beside(parse).await;
                    }
                    Decoded::Until(ending) => break Some(ending),
                }
            };
            if !answers.is_empty() {
                self.in_flight.fetch_add(answers.in_flight(), Ordering::Relaxed);
                if self.level == AckLevel::Queued {
                    self.pipeline.store.append(batch, Receipt::for_nobody()).await;
                    let bytes = answers.bytes();
                    self.push(ToPublisher::Answered(Answered { outcomes: Ok(Outcomes::Queued), answers }), bytes);
                } else {
                    let receipt = Receipt::for_socket(self.outbox.clone(), answers, self.level);
                    self.pipeline.store.append(batch, receipt).await;
                }
                reader.done();
            }
            if let Some(ending) = ending {
                return ending;
            }
            // The `select!` below prefers reading, so a producer that never pauses would never be told.
            if shutdown.has_begun() {
                return Ending::GoingAway;
            }
            while self.in_flight.load(Ordering::Relaxed) >= self.pipeline.config.max_in_flight {
                tokio::select! {
                    () = self.answered.notified() => {}
                    () = &mut shutting_down => return Ending::GoingAway,
                }
            }
            tokio::select! {
                biased;
                is_there = reader.more() => match is_there {
                    true => pulse.heard(),
                    // Gone without a word; answers still on their way may be read all the same.
                    false => return Ending::Gone,
                },
                () = &mut shutting_down => return Ending::GoingAway,
                // While the socket is not read, nobody is blamed for saying nothing.
                () = &mut silence => {
                    match pulse.feel() {
                        Beat::Something => {}
                        Beat::Nothing => self.push_frame(OpCode::Ping, b""),
                        Beat::Gone => return Ending::Silent,
                    }
                    silence.as_mut().reset(Instant::now() + interval);
                }
            }
        }
    }

    /// Everything complete in the buffer, up to a large message.
    fn decode(
        &self,
        reader: &mut Reader<'_>,
        parser: &mut Parser,
        batch: &mut Batch,
        answers: &mut Answers,
    ) -> Decoded {
        loop {
            let text = match reader.next() {
                Ok(None) => return Decoded::All,
                Ok(Some(Message::Text(text))) => Ok(text),
                Ok(Some(Message::Binary(bytes))) => str::from_utf8(bytes).map_err(|_| "Message is not valid UTF-8"),
                Ok(Some(Message::TooLarge)) => Err(reader.why_unread()),
                Ok(Some(Message::Ping(payload))) => {
                    self.push_frame(OpCode::Pong, payload);
                    continue;
                }
                Ok(Some(Message::Pong(_))) => continue,
                Ok(Some(Message::Close(close))) => {
                    return Decoded::Until(Ending::Asked(close.map(|(code, _)| code)));
                }
                Err(violation) => return Decoded::Until(Ending::Violated(violation)),
            };
            // What is no text counts in the rate, too.
            if let Err(refusal) = self.pipeline.access.check(Class::Publish, self.peer.ip()) {
                answers.error(refusal.to_string(), None);
                continue;
            }
            match text {
                Ok(large) if large.len() > PARSED_IN_PLACE_BYTES_MAX => return Decoded::Large(large.to_owned()),
                Ok(text) => take_in(text, parser, &self.pipeline.types, batch, answers),
                Err(why) => answers.error(why, None),
            }
        }
    }

    /// Writes answers as they become due, all that are due in one write unless they are long, until the socket ends.
    /// Returns whether it ended with a Close frame.
    async fn write(&self, mut write: WriteHalf<'_>, ack: Ack) -> bool {
        let patience = self.pipeline.config.write_timeout;
        let mut answers = AnswerWriter::new(ack);
        let (mut items, mut out, mut ending) = (Vec::new(), Vec::new(), None);
        loop {
            if let Some(ending) = ending
                && self.in_flight.load(Ordering::Relaxed) == 0
            {
                return goodbye(&mut write, ending, patience).await;
            }
            if self.outbox.take(&mut items).await == Taken::Overflowed {
                return false;
            }
            let mut due = items.drain(..).peekable();
            let mut answered_now = 0;
            while let Some(item) = due.next() {
                match item {
                    ToPublisher::Answered(answered) => {
                        answered_now += answered.answers.in_flight();
                        answers.write(&answered, &mut out);
                    }
                    ToPublisher::Frame(frame) => {
                        answered_now += 1;
                        out.extend_from_slice(&frame);
                    }
                    ToPublisher::End(how) => ending = Some(how),
                }
                let is_last = due.peek().is_none();
                if is_last {
                    answers.finish(&mut out);
                }
                if is_last || out.len() >= OUT_BYTES_KEPT {
                    if write_all(&mut write, &out, patience).await.is_err() {
                        return false;
                    }
                    out.clear();
                    out.shrink_to(OUT_BYTES_KEPT);
                    self.in_flight.fetch_sub(std::mem::take(&mut answered_now), Ordering::Relaxed);
                    self.answered.notify_one();
                }
            }
        }
    }

    /// It is in flight until it has left: a peer that takes no pongs is not read, so it cannot ask for more of them.
    fn push_frame(&self, opcode: OpCode, payload: &[u8]) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let mut frame = Vec::new();
        frame::unmasked(&mut frame, opcode, payload);
        // Those of a flood are mostly empty: what they cost is their place in the queue.
        let bytes = size_of::<ToPublisher>() + frame.len();
        self.push(ToPublisher::Frame(frame), bytes);
    }

    fn push(&self, item: ToPublisher, bytes: usize) {
        let mut wakes = Wakes::default();
        self.outbox.push(item, bytes, &mut wakes);
        wakes.wake_all();
    }
}

/// Room for answers that a socket keeps between writes. As soon as they take as much they are written.
const OUT_BYTES_KEPT: usize = 64 << 10;
