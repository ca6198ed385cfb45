//! `/ws/subscribe`: filters in, events out.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::close::{linger, send_close};
use super::keepalive::{Due, Keepalive};
use super::reader::Reader;
use crate::auth::{Caller, Class};
use crate::doorbell::Wakes;
use crate::event::Seq;
use crate::group::Member;
use crate::outbox::{Outbox, Taken};
use crate::pipeline::{PARSED_IN_PLACE_BYTES_MAX, Pipeline, Subscriber, SubscriberSlot};
use crate::store;
use crate::stream::{Stream, StreamItem};
use crate::subscriptions::{OpenError, Subscription};
use crate::transport::{Transport, WriteHalf};
use crate::wire::Refusal;
use crate::wire::answer::error;
use crate::wire::decoder::{Decoder, Message};
use crate::wire::filters::{FILTERS_BYTES_MAX, Filters};
use crate::wire::frame::{self, OpCode, Role};
use crate::wire::note::{self, Opening};
use crate::wire::refusal::Ending;
use crate::wire::request::{FromSubscriber, Start, Subscribe};

/// Bytes of pongs and other small replies that may wait for a subscriber that does not read.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// Memory of the filters that a subscriber has sent and that are not in force yet: two of the largest. Beyond it the socket is
/// not read.
const CHANGING_BYTES_MAX: usize = 2 * FILTERS_BYTES_MAX;

/// After one read with more bytes of messages than this, the other connections of the thread are served first.
const READ_BYTES_MAX: usize = 4 << 10;

/// Serves one subscriber until its socket ends.
pub async fn subscribe(mut transport: Transport, received: Bytes, caller: Caller, pipeline: Arc<Pipeline>) {
    let sent_close = {
        let (read, mut write) = transport.split();
        let decoder = Decoder::new(Role::Server, pipeline.config.max_ws_message_bytes).with_received(&received);
        drop(received);
        let socket = SubscriberSocket {
            pipeline: &pipeline,
            caller,
            replies: Outbox::new(REPLY_BYTES_MAX),
            changing_bytes: AtomicUsize::new(0),
            changed: Notify::new(),
            keepalive: Keepalive::new(&pipeline.config),
        };
        match socket.serve(Reader::new(read, decoder, &pipeline.bodies), &mut write).await {
            Ok(ending) => send_close(&mut write, ending).await,
            Err(_) => false,
        }
    };
    if sent_close {
        linger(transport).await;
    }
}

struct SubscriberSocket<'p> {
    pipeline: &'p Arc<Pipeline>,
    caller: Caller,
    /// From the reading half to the writing half.
    replies: Outbox<Reply>,
    /// Memory of the filters that are not in force yet, bounded by [`CHANGING_BYTES_MAX`].
    changing_bytes: AtomicUsize,
    /// New filters are in force.
    changed: Notify,
    keepalive: Keepalive,
}

enum Reply {
    Frame(Vec<u8>),
    /// New filters, for the events after the last one that was committed when they came.
    Filters(Filters, Seq),
    End(Ending),
}

impl SubscriberSocket<'_> {
    /// Everything between the handshake and the Close frame. An error: the peer can no longer be written to.
    async fn serve(&self, mut reader: Reader<'_>, write: &mut WriteHalf<'_>) -> io::Result<Ending> {
        let opened = match self.first_message(&mut reader, write).await? {
            // A subscriber takes its slot with its first message. Without a free slot that is answered with a refusal.
            Ok(request) => match self.pipeline.subscriber_slot() {
                Some(slot) => self.open(&slot, request, &mut reader).await.map(|opened| (slot, opened)),
                None => Err(Declined::Refused(Ending::Capacity.reason(), Ending::Capacity)),
            },
            Err(declined) => Err(declined),
        };
        let (slot, (served, opening, filters, strict)) = match opened {
            Ok(opened) => opened,
            Err(Declined::Refused(why, ending)) => {
                write.write_all(&text(&error(&why, None))).await?;
                return Ok(ending);
            }
            Err(Declined::Ended(ending)) => return Ok(ending),
        };
        write.write_all(&text(&note::subscribed(slot.id(), &filters, &opening))).await?;
        let durable = served.durable.clone();
        let member = match &served.source {
            Source::Stream(_) => None,
            Source::Member(member) => Some(member.clone()),
        };
        let reading = async {
            let ending = self.read(reader, strict, durable.as_deref(), member.as_deref()).await;
            self.reply(Reply::End(ending));
            std::future::pending().await
        };
        // The writing half learns of every ending between two frames: a Close frame within another frame would be read as a
        // part of that.
        tokio::select! {
            biased;
            ending = self.write(write, served, &slot) => ending,
            ending = reading => ending,
        }
    }

    /// Finds the source of the events, and where it begins.
    async fn open(
        &self,
        slot: &SubscriberSlot,
        request: Subscribe,
        reader: &mut Reader<'_>,
    ) -> Result<(Served, Opening, Filters, bool), Declined> {
        loop {
            if let Some(opened) = self.try_open(slot, request.clone(), reader).await? {
                return Ok(opened);
            }
        }
    }

    /// `None` when another connection has opened or deleted the durable subscription meanwhile: then it is tried again.
    async fn try_open(
        &self,
        slot: &SubscriberSlot,
        mut request: Subscribe,
        reader: &mut Reader<'_>,
    ) -> Result<Option<(Served, Opening, Filters, bool)>, Declined> {
        let failed = |error: store::Error| {
            if error.took_too_long() {
                return Refusal::TooMuchToRead.into();
            }
            tracing::error!(%error, "find where a subscription starts");
            Declined::Ended(Ending::Failed)
        };
        let Pipeline { store, hub, subscriptions, config, searches, .. } = &**self.pipeline;
        let known = request.durable.as_ref().and_then(|durable| subscriptions.find(durable));
        if let Some(known) = &known {
            request.start = Start::Position(known.position());
            if request.filters.asked().is_empty() {
                request.filters = known.filters();
            }
        }
        request.filters.filter = self.caller.principal.narrow(request.filters.filter)?;
        let shutdown = self.pipeline.shutdown();
        let opened = tokio::select! {
            biased;
            opened = Stream::open(store, hub, &request, config.max_subscriber_bytes, searches) => opened.map_err(failed)?,
            // A search may go on for seconds, and ends with its client. A known subscription searches for nothing, and what
            // its client has confirmed before it left still counts.
            ending = reader.ended(), if known.is_none() => return Err(Declined::Ended(ending)),
            () = shutdown.begun() => return Err(Declined::Ended(Ending::GoingAway)),
        };
        let (stream, opening) = opened.map_err(|why| Declined::Refused(why, Ending::NotUnderstood))?;
        let position = stream.position();
        let mut served =
            Served { source: Source::Stream(Box::new(stream)), durable: None, taken_over: None, ended: None };
        if let Some(durable) = &request.durable {
            let opened = subscriptions.open(durable, &request.filters, position, known.as_ref()).await;
            let Some(subscription) = opened? else { return Ok(None) };
            if durable.is_group {
                let member = subscriptions.join(&subscription, &request, slot.id())?;
                served.source = Source::Member(Arc::new(member));
            } else {
                served.taken_over = Some(subscription.take_over(&request.filters));
            }
            served.durable = Some(subscription);
        }
        let name = served.durable.as_ref().map(|durable| durable.name().to_owned());
        served.ended = Some(slot.register(Subscriber { filter: request.filters.filter.clone(), name }));
        Ok(Some((served, opening, request.filters, request.strict)))
    }

    /// Waits for the first message, for `SUBSCRIBE_TIMEOUT_SECONDS` at most.
    async fn first_message(
        &self,
        reader: &mut Reader<'_>,
        write: &mut WriteHalf<'_>,
    ) -> io::Result<Result<Subscribe, Declined>> {
        let deadline = Instant::now() + self.pipeline.config.subscribe_timeout;
        let shutdown = self.pipeline.shutdown();
        let mut shutting_down = std::pin::pin!(shutdown.begun());
        loop {
            while let Some(message) = reader.next().transpose() {
                let text = match message {
                    Err(violation) => return Ok(Err(Declined::Ended(Ending::Violated(violation)))),
                    Ok(Message::Text(text)) => text.as_bytes(),
                    Ok(Message::Binary(bytes)) => bytes,
                    Ok(Message::TooLarge) => {
                        let why = reader.why_unread().to_owned();
                        return Ok(Err(Declined::Refused(why, Ending::NotUnderstood)));
                    }
                    Ok(Message::Close(close)) => {
                        return Ok(Err(Declined::Ended(Ending::Asked(close.map(|(code, _)| code)))));
                    }
                    Ok(Message::Ping(payload)) => {
                        write.write_all(&pong(payload)).await?;
                        continue;
                    }
                    Ok(Message::Pong(_)) => continue,
                };
                let request = self.parsed(text, Subscribe::parse).await;
                reader.done();
                return Ok(request.map_err(|why| Declined::Refused(why, Ending::NotUnderstood)));
            }
            let ending = tokio::select! {
                biased;
                is_there = timeout_at(deadline, reader.more()) => match is_there {
                    Ok(true) => continue,
                    Ok(false) => Ending::Gone,
                    Err(_) => Ending::NoFirstMessage,
                },
                () = &mut shutting_down => Ending::GoingAway,
            };
            return Ok(Err(Declined::Ended(ending)));
        }
    }

    /// Reads the later messages of the subscriber until the socket ends, and returns how.
    async fn read(
        &self,
        mut reader: Reader<'_>,
        strict: bool,
        durable: Option<&Subscription>,
        member: Option<&Member>,
    ) -> Ending {
        loop {
            let mut read_bytes = 0;
            loop {
                let message = match reader.next() {
                    Ok(None) => break,
                    Ok(Some(Message::Text(text))) => Ok(text.as_bytes()),
                    Ok(Some(Message::Binary(bytes))) => Ok(bytes),
                    Ok(Some(Message::Ping(payload))) => {
                        self.reply(Reply::Frame(pong(payload)));
                        continue;
                    }
                    Ok(Some(Message::Pong(_))) => continue,
                    Ok(Some(Message::TooLarge)) => Err(reader.why_unread().to_owned()),
                    Ok(Some(Message::Close(close))) => return Ending::Asked(close.map(|(code, _)| code)),
                    Err(violation) => return Ending::Violated(violation),
                };
                let request = match message {
                    Ok(message) => {
                        read_bytes += message.len();
                        self.parsed(message, move |message| FromSubscriber::parse(message, strict)).await
                    }
                    Err(why) => Err(why),
                };
                match request {
                    Ok(FromSubscriber::Ping) => self.reply(Reply::Frame(text(note::PONG))),
                    Ok(FromSubscriber::UpdateFilters(filters)) => {
                        reader.done();
                        match (self.pipeline.access.rates.check(Class::Query, self.caller.ip), filters) {
                            (Err(refusal), _) => self.refuse(&refusal.to_string()),
                            (Ok(()), _) if member.is_some() => {
                                self.refuse("The filters of a group do not change while it has members");
                            }
                            (Ok(()), Ok(filters)) => self.change(filters).await,
                            // The former filters stay.
                            (Ok(()), Err(why)) => self.refuse(&why),
                        }
                    }
                    Ok(FromSubscriber::Confirm(id)) => self.confirm(id, durable, member).await,
                    Ok(FromSubscriber::Other) => {}
                    Err(why) => self.refuse(&why),
                }
            }
            // Messages that mean nothing count in no rate, and a socket that is never empty would have the thread for as many
            // reads as tokio allows in a row.
            if read_bytes > READ_BYTES_MAX {
                yield_now().await;
            }
            match reader.more().await {
                true => self.keepalive.received(),
                false => return Ending::Gone,
            }
        }
    }

    /// Parses a message, a large one outside the network thread.
    async fn parsed<T: Send + 'static>(&self, text: &[u8], parse: impl FnOnce(&[u8]) -> T + Send + 'static) -> T {
        if text.len() <= PARSED_IN_PLACE_BYTES_MAX {
            return parse(text);
        }
        let text = text.to_vec();
        self.pipeline.parse_beside(move || parse(&text)).await
    }

    /// Hands new filters to the writing half, once those before them are within [`CHANGING_BYTES_MAX`].
    async fn change(&self, mut filters: Filters) {
        filters.filter = match self.caller.principal.narrow(filters.filter) {
            Ok(filter) => filter,
            Err(refusal) => return self.refuse(&refusal.to_string()),
        };
        while self.changing_bytes.load(Ordering::Relaxed) >= CHANGING_BYTES_MAX {
            self.changed.notified().await;
        }
        self.changing_bytes.fetch_add(filters.bytes(), Ordering::Relaxed);
        self.reply(Reply::Filters(filters, self.pipeline.store.committed()));
    }

    /// Confirms everything up to an event.
    async fn confirm(&self, id: String, durable: Option<&Subscription>, member: Option<&Member>) {
        let store = &self.pipeline.store;
        match store.seq_of(id).await {
            Ok(Some(seq)) if seq <= store.committed() => match (member, durable) {
                (Some(member), _) => member.confirm(seq).await,
                (None, Some(durable)) => durable.confirm(seq),
                // A subscription without a name has no confirmed position.
                (None, None) => {}
            },
            Ok(Some(_)) => self.refuse("An event that is yet to come cannot be confirmed"),
            Ok(None) => self.refuse("'id' is not an event id"),
            Err(error) => {
                // The event stays unconfirmed, and is sent again later.
                tracing::error!(%error, "find a confirmed event");
            }
        }
    }

    /// Writes events, replies and keep-alives until the socket ends, and returns how.
    async fn write(&self, write: &mut WriteHalf<'_>, served: Served, slot: &SubscriberSlot) -> io::Result<Ending> {
        let interval = self.pipeline.config.keepalive_interval;
        let mut replies = Vec::new();
        let mut changing = VecDeque::<Filters>::new();
        let Served { mut source, durable, taken_over, ended } = served;
        let mut taken_over = std::pin::pin!(or_never(taken_over, Ending::TakenOver));
        let mut ended = std::pin::pin!(or_never(ended, Ending::Failed));
        let mut interval_over = std::pin::pin!(sleep_until(Instant::now() + interval));
        loop {
            tokio::select! {
                biased;
                ending = &mut taken_over => return Ok(ending),
                ending = &mut ended => return Ok(ending),
                taken = self.replies.take(&mut replies) => {
                    if taken == Taken::Overflowed {
                        return Err(io::ErrorKind::QuotaExceeded.into());
                    }
                    for reply in replies.drain(..) {
                        match reply {
                            Reply::Frame(frame) => write.write_all(&frame).await?,
                            Reply::Filters(filters, last) => {
                                if let Source::Stream(stream) = &mut source {
                                    stream.change_filter(filters.filter.clone(), last);
                                    changing.push_back(filters);
                                }
                            }
                            Reply::End(ending) => return Ok(ending),
                        }
                    }
                }
                said = source.next() => match said {
                    Ok(StreamItem::Events(mut frames)) => write.write_slices(&mut frames).await?,
                    Ok(StreamItem::Note(note)) => write.write_all(&text(&note.json())).await?,
                    Ok(StreamItem::FilterChanged) => {
                        let filters = changing.pop_front().expect("one change is announced for each asked for");
                        write.write_all(&text(&note::filters_updated(&filters))).await?;
                        self.changing_bytes.fetch_sub(filters.bytes(), Ordering::Relaxed);
                        self.changed.notify_one();
                        let name = durable.as_ref().map(|durable| durable.name().to_owned());
                        slot.update(Subscriber { filter: filters.filter.clone(), name });
                        if let Some(durable) = &durable {
                            durable.change_filters(&filters);
                        }
                    }
                    Ok(StreamItem::Ended(ending)) => return Ok(ending),
                    Err(error) => {
                        tracing::error!(%error, "read events for a subscriber");
                        return Ok(Ending::Failed);
                    }
                },
                // Only a peer to which nothing is sent gets pings. Whether another one is there shows in what it takes, and a
                // ping would wait behind that.
                () = &mut interval_over => {
                    let mut frames = text(note::KEEPALIVE);
                    match self.keepalive.interval_over() {
                        Due::Nothing => {}
                        Due::Ping => frame::unmasked(&mut frames, OpCode::Ping, b""),
                        Due::End => return Ok(Ending::Silent),
                    }
                    write.write_all(&frames).await?;
                }
            }
            interval_over.as_mut().reset(Instant::now() + interval);
        }
    }

    /// Answers a message with an error. Nothing else changes.
    fn refuse(&self, why: &str) {
        self.reply(Reply::Frame(text(&error(why, None))));
    }

    fn reply(&self, reply: Reply) {
        // Replies are small, so most of their cost is the item in the queue.
        let bytes = match &reply {
            Reply::Frame(frame) => size_of::<Reply>() + frame.len(),
            // The memory of filters is bounded by `CHANGING_BYTES_MAX`.
            Reply::Filters(..) => size_of::<Reply>(),
            Reply::End(_) => 0,
        };
        let mut wakes = Wakes::default();
        self.replies.push(reply, bytes, &mut wakes);
        wakes.wake_all();
    }
}

/// Why there is no subscription.
enum Declined {
    /// A sentence for the client, and how its connection ends.
    Refused(String, Ending),
    Ended(Ending),
}

impl From<Refusal> for Declined {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.to_string(), Ending::NotUnderstood)
    }
}

impl From<OpenError> for Declined {
    fn from(denied: OpenError) -> Self {
        Self::Refused(denied.to_string(), denied.ending())
    }
}

/// What a subscriber is served with.
struct Served {
    source: Source,
    durable: Option<Arc<Subscription>>,
    /// Resolves when another connection takes the durable subscription over.
    taken_over: Option<oneshot::Receiver<Ending>>,
    /// Resolves when the connection is ended from outside.
    ended: Option<oneshot::Receiver<Ending>>,
}

/// Where the events of a subscriber come from.
enum Source {
    /// A stream of its own.
    Stream(Box<Stream>),
    /// Its part of the stream of its group.
    Member(Arc<Member>),
}

impl Source {
    /// As [`Stream::next`].
    async fn next(&mut self) -> store::Result<StreamItem> {
        match self {
            Self::Stream(stream) => stream.next().await,
            Self::Member(member) => Ok(match member.next().await {
                Ok(frames) => StreamItem::Events(frames),
                Err(ending) => StreamItem::Ended(ending),
            }),
        }
    }
}

/// Waits for an ending, without end where there is nothing to wait for.
async fn or_never(ending: Option<oneshot::Receiver<Ending>>, if_dropped: Ending) -> Ending {
    match ending {
        Some(ending) => ending.await.unwrap_or(if_dropped),
        None => std::future::pending().await,
    }
}

fn text(message: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    frame::text(&mut frame, message.as_bytes());
    frame
}

fn pong(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame::unmasked(&mut frame, OpCode::Pong, payload);
    frame
}
