//! A subscriber's socket once its first message is answered: events out, later messages in.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::keepalive::{Due, Keepalive};
use super::reader::Reader;
use crate::auth::{Caller, Notice, Scope};
use crate::doorbell::Wakes;
use crate::event::Seq;
use crate::group::Member;
use crate::outbox::{Outbox, Taken};
use crate::pipeline::{PARSED_IN_PLACE_BYTES_MAX, Pipeline, Subscriber, SubscriberSlot};
use crate::store;
use crate::stream::{Stream, StreamItem};
use crate::subscriptions::Subscription;
use crate::transport::WriteHalf;
use crate::wire::answer::error;
use crate::wire::decoder::Message;
use crate::wire::filters::{FILTERS_BYTES_MAX, Filters};
use crate::wire::frame::{self, OpCode};
use crate::wire::note;
use crate::wire::refusal::Ending;
use crate::wire::request::FromSubscriber;

/// Bytes of pongs and other small replies that may wait for a subscriber that does not read.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// Memory of the filters that a subscriber has sent and that are not in force yet. From two of the largest on, the socket is not
/// read, so at most three wait.
const CHANGING_BYTES_MAX: usize = 2 * FILTERS_BYTES_MAX;

/// After one read with more bytes of messages than this, the other connections of the thread are served first.
const YIELD_AFTER_BYTES: usize = 4 << 10;

/// What the reading half and the writing half of a subscriber's socket share.
pub(super) struct SubscriberSocket<'p> {
    pipeline: &'p Pipeline,
    caller: &'p Caller,
    slot: &'p SubscriberSlot,
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

impl<'p> SubscriberSocket<'p> {
    pub(super) fn new(pipeline: &'p Pipeline, caller: &'p Caller, slot: &'p SubscriberSlot) -> Self {
        Self {
            pipeline,
            caller,
            slot,
            replies: Outbox::new(REPLY_BYTES_MAX),
            changing_bytes: AtomicUsize::new(0),
            changed: Notify::new(),
            keepalive: Keepalive::new(&pipeline.config),
        }
    }

    /// Writes events while it reads later messages, until the socket ends, and returns how. `strict`: whether the
    /// first message asked for strict parsing. An error: the socket cannot be written, or the peer does not take its replies.
    pub(super) async fn serve(
        &self,
        reader: Reader<'_>,
        strict: bool,
        write: &mut WriteHalf<'_>,
        served: Served,
    ) -> io::Result<Ending> {
        let confirmed = served.confirmed();
        let reading = async {
            let ending = self.read(reader, strict, confirmed).await;
            self.reply(Reply::End(ending));
            std::future::pending().await
        };
        // A Close frame must not come inside another frame, so only the writing half ends the socket. The reading half passes
        // its ending to it and never ends itself.
        tokio::select! {
            biased;
            ending = self.write(write, served) => ending,
            ending = reading => ending,
        }
    }

    /// Reads the later messages of the subscriber until the socket ends, and returns how.
    async fn read(&self, mut reader: Reader<'_>, strict: bool, confirmed: Confirmed) -> Ending {
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
                        parsed(self.pipeline, message, move |message| FromSubscriber::parse(message, strict)).await
                    }
                    Err(why) => Err(why),
                };
                match request {
                    Ok(FromSubscriber::Ping) => self.reply(Reply::Frame(text(note::PONG))),
                    Ok(FromSubscriber::UpdateFilters(filters)) => {
                        reader.done();
                        match (self.pipeline.access.rates.check(Scope::Subscribe, &self.caller.counted), filters) {
                            (Err(refusal), _) => self.refuse(&refusal.to_string()),
                            (Ok(()), _) if matches!(confirmed, Confirmed::Member(_)) => {
                                self.refuse("The filters of a group do not change while it has members");
                            }
                            (Ok(()), Ok(filters)) => self.change(filters).await,
                            // The former filters stay.
                            (Ok(()), Err(why)) => self.refuse(&why),
                        }
                    }
                    Ok(FromSubscriber::Confirm(id)) => self.confirm(id, &confirmed).await,
                    Ok(FromSubscriber::Auth(token)) => self.renew(&token),
                    Ok(FromSubscriber::Other) => {}
                    Err(why) => self.refuse(&why),
                }
            }
            // Messages that mean nothing count in no rate, and a socket that is never empty would have the thread for as many
            // reads as tokio allows in a row.
            if read_bytes > YIELD_AFTER_BYTES {
                yield_now().await;
            }
            match reader.more().await {
                true => self.keepalive.received(),
                false => return Ending::Gone,
            }
        }
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

    /// Goes on with another token, and says until when.
    fn renew(&self, token: &str) {
        let access = &self.pipeline.access;
        let renewed = access.rates.check(Scope::Subscribe, &self.caller.counted).map_err(|refusal| refusal.to_string());
        match renewed.and_then(|()| access.keys.renew(self.caller, token).map_err(str::to_owned)) {
            Ok(at) => self.reply(Reply::Frame(text(&note::auth_renewed(at.from_now())))),
            Err(why) => self.refuse(&why),
        }
    }

    /// Confirms everything up to an event.
    async fn confirm(&self, id: String, confirmed: &Confirmed) {
        let store = &self.pipeline.store;
        match store.seq_of(id).await {
            Ok(Some(seq)) if seq <= store.committed() => match confirmed {
                Confirmed::Nothing => {}
                Confirmed::Subscription(subscription) => subscription.confirm(seq),
                Confirmed::Member(member) => member.confirm(seq).await,
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
    async fn write(&self, write: &mut WriteHalf<'_>, served: Served) -> io::Result<Ending> {
        let interval = self.pipeline.config.keepalive_interval;
        let mut replies = Vec::new();
        let mut changing = VecDeque::<Filters>::new();
        let Served { mut source, subscription, taken_over, mut ended } = served;
        let mut taken_over = std::pin::pin!(async {
            match taken_over {
                Some(taken_over) => taken_over.await.unwrap_or(Ending::TakenOver),
                None => std::future::pending().await,
            }
        });
        let mut interval_over = std::pin::pin!(sleep_until(Instant::now() + interval));
        let mut notice = std::pin::pin!(self.caller.principal.notice(None));
        loop {
            tokio::select! {
                biased;
                ending = &mut taken_over => return Ok(ending),
                ending = &mut ended => return Ok(ending.unwrap_or(Ending::Failed)),
                heard = &mut notice => match heard {
                    Notice::Expires(at) => {
                        write.write_all(&text(&note::auth_expires(at.from_now()))).await?;
                        notice.set(self.caller.principal.notice(Some(at)));
                    }
                    Notice::Over => return Ok(Ending::Unauthorized),
                },
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
                        let name = subscription.as_ref().map(|subscription| subscription.name().name.to_owned());
                        let space = self.caller.principal.space().into();
                        self.slot.update(Subscriber { filter: filters.filter.clone(), name, space });
                        if let Some(subscription) = &subscription {
                            subscription.change_filters(&filters);
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

/// What a subscriber is served with.
pub(super) struct Served {
    pub(super) source: Source,
    /// The durable subscription or the group, if it asked for one.
    pub(super) subscription: Option<Arc<Subscription>>,
    /// Resolves when another connection takes the durable subscription over.
    pub(super) taken_over: Option<oneshot::Receiver<Ending>>,
    /// Resolves when the connection is ended from outside.
    pub(super) ended: oneshot::Receiver<Ending>,
}

impl Served {
    fn confirmed(&self) -> Confirmed {
        match (&self.source, &self.subscription) {
            (Source::Member(member), _) => Confirmed::Member(member.clone()),
            (Source::Stream(_), Some(subscription)) => Confirmed::Subscription(subscription.clone()),
            (Source::Stream(_), None) => Confirmed::Nothing,
        }
    }
}

/// What the confirmations of a subscriber move on.
enum Confirmed {
    /// A subscription without a name has no confirmed position.
    Nothing,
    Subscription(Arc<Subscription>),
    Member(Arc<Member>),
}

/// Where the events of a subscriber come from.
pub(super) enum Source {
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

/// Parses a message, a large one outside the network thread.
pub(super) async fn parsed<T: Send + 'static>(
    pipeline: &Pipeline,
    text: &[u8],
    parse: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> T {
    if text.len() <= PARSED_IN_PLACE_BYTES_MAX {
        return parse(text);
    }
    let text = text.to_vec();
    pipeline.parse_beside(move || parse(&text)).await
}

pub(super) fn text(message: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    frame::text(&mut frame, message.as_bytes());
    frame
}

pub(super) fn pong(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame::unmasked(&mut frame, OpCode::Pong, payload);
    frame
}
