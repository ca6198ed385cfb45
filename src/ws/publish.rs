//! `/ws/publish`: messages in, acknowledgements out, in the same order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::close::{linger, send_close};
use super::keepalive::{Due, Keepalive};
use super::reader::Reader;
use crate::auth::{Caller, Notice, Principal, Scope};
use crate::doorbell::Wakes;
use crate::event::{EventTypes, Parser, Timestamp};
use crate::outbox::{Outbox, Taken};
use crate::pipeline::{PARSED_IN_PLACE_BYTES_MAX, Pipeline, Producer};
use crate::record::{AckLevel, Outcomes};
use crate::store::Receipt;
use crate::transport::{Transport, WriteHalf};
use crate::wire::answer::{Ack, AnswerWriter, Answered, Answers, ToPublisher, error};
use crate::wire::decoder::{Decoder, Message};
use crate::wire::frame::{self, OpCode, Role};
use crate::wire::note;
use crate::wire::refusal::{Ending, outside_of_key};
use crate::wire::request::renewal;
use crate::wire::{Batch, Refusal};

/// Bytes of answers that may wait for a publisher that does not read them. `MAX_IN_FLIGHT` bounds almost all of them; this is
/// for references (`ref`), which can be as long as a message.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// Serves one publisher until its socket ends.
pub async fn publish(
    mut transport: Transport,
    received: Bytes,
    caller: Caller,
    pipeline: Arc<Pipeline>,
    producer: Option<Producer>,
    ack: Ack,
) {
    let socket = PublisherSocket {
        pipeline: &pipeline,
        caller,
        outbox: Arc::new(Outbox::new(WAITING_BYTES_MAX)),
        level: ack.level.unwrap_or_else(|| pipeline.store.usual_level()),
        in_flight: AtomicUsize::new(0),
        answered: Notify::new(),
    };
    let (read, write) = transport.split();
    let decoder = Decoder::new(Role::Server, pipeline.config.max_ws_message_bytes).with_received(&received);
    drop(received);
    let reader = Reader::new(read, decoder, &pipeline.bodies);
    let sent_close = {
        let reading = async {
            let ending = socket.read(reader, producer).await;
            socket.push(ToPublisher::End(ending), 0);
            std::future::pending().await
        };
        tokio::select! {
            biased;
            sent_close = socket.write(write, ack) => sent_close,
            () = reading => false,
        }
    };
    if sent_close {
        linger(transport).await;
    }
}

/// Why decoding has stopped.
enum Stop {
    /// There are no more complete messages.
    Empty,
    /// The next message is this one, which is too large for the network thread. It has been counted in the rate.
    Large(String),
    End(Ending),
}

/// Adds the events of one message to the batch, and notes its answer. Returns the token of a message that has no event and
/// is to renew the client's.
#[inline]
fn take_in(
    text: &str,
    parser: &mut Parser,
    types: &EventTypes,
    principal: &Principal,
    batch: &mut Batch,
    answers: &mut Answers,
) -> Option<String> {
    let before = batch.len();
    let parsed = parser.parse(text, |event| batch.push(&event, types));
    if parsed.result.is_err() {
        batch.truncate(before);
        if let Some(token) = renewal(text) {
            return Some(token);
        }
    } else if let Some((index, why)) = principal.pins().and_then(|pins| batch.mismatch(before, pins)) {
        let index = parsed.result.as_ref().ok().and_then(|len| len.map(|_| index));
        answers.error("outside-of-key", outside_of_key(index, &why), parsed.reference);
        batch.truncate(before);
        batch.end_message(before);
        return None;
    }
    batch.end_message(before);
    answers.note(&parsed);
    None
}

struct PublisherSocket<'p> {
    pipeline: &'p Pipeline,
    caller: Caller,
    outbox: Arc<Outbox<ToPublisher>>,
    /// How safe events are when they are acknowledged.
    level: AckLevel,
    /// Events and pings that have come and whose answers have not left.
    in_flight: AtomicUsize,
    /// Answers have left.
    answered: Notify,
}

impl PublisherSocket<'_> {
    /// Reads until the socket ends, and returns how. The complete messages of one read become one batch. While too much is
    /// unanswered nothing is read, and TCP slows the producer down. The store stays open until this returns.
    async fn read(&self, mut reader: Reader<'_>, _producer: Option<Producer>) -> Ending {
        let mut parser = self.pipeline.parser();
        let shutdown = self.pipeline.shutdown();
        let mut shutting_down = std::pin::pin!(shutdown.begun());
        let mut notice = std::pin::pin!(self.caller.principal.notice(None));
        let (keepalive, interval) = (Keepalive::new(&self.pipeline.config), self.pipeline.config.keepalive_interval);
        let mut interval_over = std::pin::pin!(sleep(interval));
        loop {
            let (mut batch, mut answers) = (Batch::default(), Answers::default());
            let ending = loop {
                match self.decode(&mut reader, &mut parser, &mut batch, &mut answers) {
                    Stop::Empty => break None,
                    Stop::Large(text) => {
                        // Only the rest of one read can wait behind it, so the batch does not grow larger than others.
                        let (types, principal) = (self.pipeline.types.clone(), self.caller.principal.clone());
                        let parse = move || {
                            let token = take_in(&text, &mut parser, &types, &principal, &mut batch, &mut answers);
                            (parser, batch, answers, token)
                        };
                        let token;
                        (parser, batch, answers, token) = self.pipeline.parse_beside(parse).await;
                        self.renew(token);
                    }
                    Stop::End(ending) => break Some(ending),
                }
            };
            if !answers.is_empty() {
                self.in_flight.fetch_add(answers.in_flight(), Ordering::Relaxed);
                answers.reasons().for_each(|reason| self.pipeline.refusals.note(reason));
                batch.set_space(self.caller.principal.space());
                if self.level == AckLevel::Queued {
                    self.pipeline.store.append(batch, Receipt::for_nobody()).await;
                    let bytes = answers.bytes();
                    self.push(ToPublisher::Answered(Answered { outcomes: Ok(Outcomes::Queued), answers }), bytes);
                } else {
                    let (outbox, bytes) = (self.outbox.clone(), answers.bytes());
                    let receipt = Receipt::new(self.level, move |stored, wakes| {
                        let outcomes = stored.map(|stored| stored.outcomes);
                        outbox.push(ToPublisher::Answered(Answered { outcomes, answers }), bytes, wakes);
                    });
                    self.pipeline.store.append(batch, receipt).await;
                }
                reader.done();
            }
            if let Some(ending) = ending {
                return ending;
            }
            // The `select!` below prefers reading, so a producer that never pauses would not learn of the shutdown.
            if shutdown.has_begun() {
                return Ending::GoingAway;
            }
            if self.caller.principal.is_over() {
                return Ending::Unauthorized;
            }
            while self.in_flight.load(Ordering::Relaxed) >= self.pipeline.config.max_in_flight {
                tokio::select! {
                    () = self.answered.notified() => {}
                    () = &mut shutting_down => return Ending::GoingAway,
                    heard = &mut notice => match self.pass_on(heard) {
                        Ok(told) => notice.set(self.caller.principal.notice(Some(told))),
                        Err(ending) => return ending,
                    },
                }
            }
            tokio::select! {
                biased;
                is_there = reader.more() => match is_there {
                    true => keepalive.received(),
                    // It has sent no Close frame; answers on their way may be read all the same.
                    false => return Ending::Gone,
                },
                () = &mut shutting_down => return Ending::GoingAway,
                heard = &mut notice => match self.pass_on(heard) {
                    Ok(told) => notice.set(self.caller.principal.notice(Some(told))),
                    Err(ending) => return ending,
                },
                // This runs only while the socket is read: otherwise it is not the peer that is silent.
                () = &mut interval_over => {
                    match keepalive.interval_over() {
                        Due::Nothing => {}
                        Due::Ping => self.push_frame(OpCode::Ping, b""),
                        Due::End => return Ending::Silent,
                    }
                    interval_over.as_mut().reset(Instant::now() + interval);
                }
            }
        }
    }

    /// Decodes the complete messages in the buffer, up to a large one.
    fn decode(&self, reader: &mut Reader<'_>, parser: &mut Parser, batch: &mut Batch, answers: &mut Answers) -> Stop {
        loop {
            let text = match reader.next() {
                Ok(None) => return Stop::Empty,
                Ok(Some(Message::Text(text))) => Ok(text),
                Ok(Some(Message::Binary(bytes))) => str::from_utf8(bytes).map_err(|_| "Message is not valid UTF-8"),
                Ok(Some(Message::TooLarge)) => Err(reader.why_unread()),
                Ok(Some(Message::Ping(payload))) => {
                    self.push_frame(OpCode::Pong, payload);
                    continue;
                }
                Ok(Some(Message::Pong(_))) => continue,
                Ok(Some(Message::Close(close))) => {
                    return Stop::End(Ending::Asked(close.map(|(code, _)| code)));
                }
                Err(violation) => return Stop::End(Ending::Violated(violation)),
            };
            // A message that is no text counts in the rate, too.
            if let Err(refusal) = self.pipeline.access.rates.check(Scope::Publish, &self.caller.counted) {
                answers.error(refusal.slug(), refusal.to_string(), None);
                continue;
            }
            match text {
                Ok(large) if large.len() > PARSED_IN_PLACE_BYTES_MAX => return Stop::Large(large.to_owned()),
                Ok(text) => {
                    self.renew(take_in(text, parser, &self.pipeline.types, &self.caller.principal, batch, answers));
                }
                Err(why) => answers.error("invalid", why, None),
            }
        }
    }

    /// Writes answers as they become due, all that are due in one write unless they are long, until the socket ends. Returns
    /// whether it ended with a Close frame.
    async fn write(&self, mut write: WriteHalf<'_>, ack: Ack) -> bool {
        let mut answers = AnswerWriter::new(ack);
        let (mut items, mut out, mut ending) = (Vec::new(), Vec::new(), None);
        loop {
            if let Some(ending) = ending
                && self.in_flight.load(Ordering::Relaxed) == 0
            {
                return send_close(&mut write, ending).await;
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
                        if let Err(failure) = &answered.outcomes {
                            self.pipeline.refusals.note(Refusal::Failed(*failure).slug());
                        }
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
                if is_last || out.len() >= OUT_BYTES_MAX {
                    if write.write_all(&out).await.is_err() {
                        return false;
                    }
                    out.clear();
                    out.shrink_to(OUT_BYTES_MAX);
                    self.in_flight.fetch_sub(std::mem::take(&mut answered_now), Ordering::Relaxed);
                    self.answered.notify_one();
                }
            }
        }
    }

    /// Tells the client when its rights end. Returns that time, or that the socket ends because they have ended.
    fn pass_on(&self, notice: Notice) -> Result<Timestamp, Ending> {
        match notice {
            Notice::Expires(at) => {
                self.push_frame(OpCode::Text, note::auth_expires(at.from_now()).as_bytes());
                Ok(at)
            }
            Notice::Over => Err(Ending::Unauthorized),
        }
    }

    /// Goes on with another token, if a message has brought one, and says until when. As with a ping, the answer may come
    /// before those to events.
    fn renew(&self, token: Option<String>) {
        let Some(token) = token else { return };
        let said = match self.pipeline.access.keys.renew(&self.caller, &token) {
            Ok(at) => note::auth_renewed(at.from_now()),
            Err(why) => error(why, None),
        };
        self.push_frame(OpCode::Text, said.as_bytes());
    }

    /// The frame counts as in flight until it has left: a peer that takes no pongs is not read, so it cannot ask for more.
    fn push_frame(&self, opcode: OpCode, payload: &[u8]) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let mut frame = Vec::new();
        frame::unmasked(&mut frame, opcode, payload);
        // The frames of a flood are mostly empty, so most of their cost is the item in the queue.
        let bytes = size_of::<ToPublisher>() + frame.len();
        self.push(ToPublisher::Frame(frame), bytes);
    }

    fn push(&self, item: ToPublisher, bytes: usize) {
        let mut wakes = Wakes::default();
        self.outbox.push(item, bytes, &mut wakes);
        wakes.wake_all();
    }
}

/// Answers are written as soon as they take this many bytes, and a socket keeps at most as much memory for them between
/// writes.
const OUT_BYTES_MAX: usize = 64 << 10;
