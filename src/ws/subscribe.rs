//! `/ws/subscribe`: filters in, events out.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::reader::Reader;
use super::{Beat, Pulse, goodbye, linger, write_all, write_slices};
use crate::auth::Class;
use crate::doorbell::Wakes;
use crate::event::Seq;
use crate::feed::{Said, Stream};
use crate::group::Member;
use crate::outbox::{Outbox, Taken};
use crate::pipeline::{PARSED_IN_PLACE_BYTES_MAX, Pipeline, Subscriber, SubscriberPlace};
use crate::store;
use crate::subscriptions::{Denied, Subscription};
use crate::wire::Refusal;
use crate::wire::answer::error;
use crate::wire::frame::{self, Decoder, Message, OpCode, Role};
use crate::wire::refusal::Ending;
use crate::wire::subscription::{self, Filters, FromSubscriber, Opening, Start, Subscribe};

/// Bytes of pongs and other small replies that may wait for a subscriber that does not read.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// Memory of the filters that a subscriber has asked for and that are not in force yet: two of the largest. Beyond it
/// the socket is not read.
const CHANGING_BYTES_MAX: usize = 2 * subscription::FILTERS_BYTES_MAX;

/// After more than this of a subscriber's messages in one read, it is the others' turn.
const HEARD_BYTES_MAX: usize = 4 << 10;

/// Serves one subscriber until its socket ends.
pub async fn subscribe(mut stream: TcpStream, received: Bytes, peer: SocketAddr, pipeline: Arc<Pipeline>) {
    let said_goodbye = {
        let (read, mut write) = stream.split();
        let decoder = Decoder::new(Role::Server, pipeline.config.max_ws_message_bytes).with_received(&received);
        drop(received);
        let socket = Socket {
            pipeline: &pipeline,
            peer,
            replies: Outbox::new(REPLY_BYTES_MAX),
            changing_bytes: AtomicUsize::new(0),
            changed: Notify::new(),
            pulse: Pulse::new(&pipeline),
        };
        match socket.serve(Reader::new(read, decoder, &pipeline.bodies), &mut write).await {
            Ok(ending) => goodbye(&mut write, ending, pipeline.config.write_timeout).await,
            Err(_) => false,
        }
    };
    if said_goodbye {
        linger(stream).await;
    }
}

struct Socket<'p> {
    pipeline: &'p Arc<Pipeline>,
    peer: SocketAddr,
    /// What the reading half wants to be said, for the writing half to say it in its place.
    replies: Outbox<Reply>,
    /// Memory of the filters that were asked for and are not in force, bounded by [`CHANGING_BYTES_MAX`].
    changing_bytes: AtomicUsize,
    /// New filters are in force.
    changed: Notify,
    pulse: Pulse,
}

enum Reply {
    Frame(Vec<u8>),
    /// Filters to be changed to, after the event that was the last when they were asked for.
    Filters(Filters, Seq),
    End(Ending),
}

impl Socket<'_> {
    /// Everything between the handshake and the Close frame. An error: the peer can no longer be written to.
    async fn serve(&self, mut reader: Reader<'_>, write: &mut WriteHalf<'_>) -> io::Result<Ending> {
        let patience = self.pipeline.config.write_timeout;
        let opened = match self.first_message(&mut reader, write).await? {
            // A subscriber counts from its first message on. At capacity it is refused in answer to that.
            Ok(request) => match self.pipeline.place() {
                Some(place) => self.open(&place, request, &mut reader).await.map(|opened| (place, opened)),
                None => Err(Declined::Refused(Ending::Capacity.reason(), Ending::Capacity)),
            },
            Err(declined) => Err(declined),
        };
        let (place, (served, opening, filters, strict)) = match opened {
            Ok(opened) => opened,
            Err(Declined::Refused(why, ending)) => {
                write_all(write, &text(&error(&why, None)), patience).await?;
                return Ok(ending);
            }
            Err(Declined::Ended(ending)) => return Ok(ending),
        };
        write_all(write, &text(&subscription::subscribed(place.id(), &filters, &opening)), patience).await?;
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
        // Whatever ends the stream, the writing half hears of it between two frames: a Close frame within another one
        // would be taken for a part of that.
        tokio::select! {
            biased;
            ending = self.write(write, served, &place) => ending,
            ending = reading => ending,
        }
    }

    /// Finds what is to be served, and where it begins.
    async fn open(
        &self,
        place: &SubscriberPlace,
        request: Subscribe,
        reader: &mut Reader<'_>,
    ) -> Result<(Served, Opening, Filters, bool), Declined> {
        loop {
            if let Some(opened) = self.try_open(place, request.clone(), reader).await? {
                return Ok(opened);
            }
        }
    }

    /// `None` when another connection has opened or deleted the durable subscription meanwhile: then try again.
    async fn try_open(
        &self,
        place: &SubscriberPlace,
        mut request: Subscribe,
        reader: &mut Reader<'_>,
    ) -> Result<Option<(Served, Opening, Filters, bool)>, Declined> {
        let failed = |error: store::Error| {
            if error.took_too_long() {
                return Declined::Refused(Refusal::TooMuchToRead.to_string(), Ending::NotUnderstood);
            }
            tracing::error!(%error, "find where a subscription starts");
            Declined::Ended(Ending::Failed)
        };
        let Pipeline { store, hub, subscriptions, config, searches, .. } = &**self.pipeline;
        let known = request.durable.as_ref().and_then(|durable| subscriptions.find(durable));
        if let Some(known) = &known {
            request.start = Start::Place(known.position());
            if request.filters.asked().is_empty() {
                request.filters = known.filters();
            }
        }
        let shutdown = self.pipeline.shutdown();
        let opened = tokio::select! {
            biased;
            opened = Stream::open(store, hub, &request, config.max_subscriber_bytes, searches) => opened.map_err(failed)?,
            // A search goes on for seconds, and only for as long as somebody waits for it. A subscription that is known
            // searches for nothing, and what its client confirms before it leaves is heard.
            ending = reader.ended(), if known.is_none() => return Err(Declined::Ended(ending)),
            () = shutdown.begun() => return Err(Declined::Ended(Ending::GoingAway)),
        };
        let (stream, opening) = opened.map_err(|why| Declined::Refused(why, Ending::NotUnderstood))?;
        let position = stream.position();
        let mut served = Served { source: Source::Stream(Box::new(stream)), durable: None, taken_over: None };
        if let Some(durable) = &request.durable {
            let opened = subscriptions.open(durable, &request.filters, position, known.as_ref()).await;
            let Some(subscription) = opened? else { return Ok(None) };
            if durable.is_group {
                let member = subscriptions.join(&subscription, &request, place.id())?;
                served.source = Source::Member(Arc::new(member));
            } else {
                served.taken_over = Some(subscription.take_over(&request.filters));
            }
            served.durable = Some(subscription);
        }
        let name = served.durable.as_ref().map(|durable| durable.name().to_owned());
        place.tell(Subscriber { filter: request.filters.filter.clone(), name });
        Ok(Some((served, opening, request.filters, request.strict)))
    }

    /// The filters, in time. From then on the subscriber is served to the end of the stream.
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
                        write_all(write, &pong(payload), self.pipeline.config.write_timeout).await?;
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

    /// Reads what the subscriber says later, until the socket ends, and says how.
    async fn read(
        &self,
        mut reader: Reader<'_>,
        strict: bool,
        durable: Option<&Subscription>,
        member: Option<&Member>,
    ) -> Ending {
        loop {
            let mut heard_bytes = 0;
            loop {
                let heard = match reader.next() {
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
                let said = match heard {
                    Ok(message) => {
                        heard_bytes += message.len();
                        self.parsed(message, move |message| FromSubscriber::parse(message, strict)).await
                    }
                    Err(why) => Err(why),
                };
                match said {
                    Ok(FromSubscriber::Ping) => self.reply(Reply::Frame(text(subscription::PONG))),
                    Ok(FromSubscriber::UpdateFilters(filters)) => {
                        reader.done();
                        match (self.pipeline.access.check(Class::Query, self.peer.ip()), filters) {
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
            // What means nothing counts in no rate, and a socket that is never empty would have the thread for as many
            // reads as tokio allows in a row.
            if heard_bytes > HEARD_BYTES_MAX {
                yield_now().await;
            }
            match reader.more().await {
                true => self.pulse.heard(),
                false => return Ending::Gone,
            }
        }
    }

    /// What a message says. A large one is read beside the network thread, whatever it turns out to be.
    async fn parsed<T: Send + 'static>(&self, text: &[u8], parse: impl FnOnce(&[u8]) -> T + Send + 'static) -> T {
        if text.len() <= PARSED_IN_PLACE_BYTES_MAX {
            return parse(text);
        }
        let text = text.to_vec();
        self.pipeline.parse_beside(move || parse(&text)).await
    }

    /// Hands new filters to the writing half, once those before them are within [`CHANGING_BYTES_MAX`].
    async fn change(&self, filters: Filters) {
        while self.changing_bytes.load(Ordering::Relaxed) >= CHANGING_BYTES_MAX {
            self.changed.notified().await;
        }
        self.changing_bytes.fetch_add(filters.bytes(), Ordering::Relaxed);
        self.reply(Reply::Filters(filters, self.pipeline.store.committed()));
    }

    /// Takes note that a client is done with everything up to an event.
    async fn confirm(&self, id: String, durable: Option<&Subscription>, member: Option<&Member>) {
        let store = &self.pipeline.store;
        match store.seq_of(id).await {
            Ok(Some(seq)) if seq <= store.committed() => match (member, durable) {
                (Some(member), _) => member.confirm(seq).await,
                (None, Some(durable)) => durable.confirm(seq),
                // Nothing is kept for a subscription without a name.
                (None, None) => {}
            },
            Ok(Some(_)) => self.refuse("An event that is yet to come cannot be confirmed"),
            Ok(None) => self.refuse("'id' is not an event id"),
            Err(error) => {
                // The event is sent again one day.
                tracing::error!(%error, "find a confirmed event");
            }
        }
    }

    /// Writes events, replies and keep-alives until the socket ends, and says how.
    async fn write(&self, write: &mut WriteHalf<'_>, served: Served, place: &SubscriberPlace) -> io::Result<Ending> {
        let patience = self.pipeline.config.write_timeout;
        let silence = self.pipeline.config.keepalive_interval;
        let mut replies = Vec::new();
        let mut changing = VecDeque::<Filters>::new();
        let Served { mut source, durable, taken_over } = served;
        let mut taken_over = std::pin::pin!(async {
            match taken_over {
                Some(taken_over) => taken_over.await.unwrap_or(Ending::TakenOver),
                None => std::future::pending().await,
            }
        });
        let mut keepalive = std::pin::pin!(sleep_until(Instant::now() + silence));
        loop {
            tokio::select! {
                biased;
                ending = &mut taken_over => return Ok(ending),
                taken = self.replies.take(&mut replies) => {
                    if taken == Taken::Overflowed {
                        return Err(io::ErrorKind::QuotaExceeded.into());
                    }
                    for reply in replies.drain(..) {
                        match reply {
                            Reply::Frame(frame) => write_all(write, &frame, patience).await?,
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
                    Ok(Said::Events(mut frames)) => write_slices(write, &mut frames, patience).await?,
                    Ok(Said::Note(note)) => write_all(write, &text(&note.json()), patience).await?,
                    Ok(Said::FilterChanged) => {
                        let filters = changing.pop_front().expect("one change is announced for each asked for");
                        write_all(write, &text(&subscription::filters_updated(&filters)), patience).await?;
                        self.changing_bytes.fetch_sub(filters.bytes(), Ordering::Relaxed);
                        self.changed.notify_one();
                        let name = durable.as_ref().map(|durable| durable.name().to_owned());
                        place.tell(Subscriber { filter: filters.filter.clone(), name });
                        if let Some(durable) = &durable {
                            durable.change_filters(&filters);
                        }
                    }
                    Ok(Said::Ended(ending)) => return Ok(ending),
                    Err(error) => {
                        tracing::error!(%error, "read events for a subscriber");
                        return Ok(Ending::Failed);
                    }
                },
                // Only who is sent nothing is pinged. Whether the others are there shows in what they take; a
                // ping would wait behind that.
                () = &mut keepalive => {
                    let mut frames = text(subscription::KEEPALIVE);
                    match self.pulse.feel() {
                        Beat::Something => {}
                        Beat::Nothing => frame::unmasked(&mut frames, OpCode::Ping, b""),
                        Beat::Gone => return Ok(Ending::Silent),
                    }
                    write_all(write, &frames, patience).await?;
                }
            }
            keepalive.as_mut().reset(Instant::now() + silence);
        }
    }

    /// Says that what the subscriber asked for is not done. Nothing else changes.
    fn refuse(&self, why: &str) {
        self.reply(Reply::Frame(text(&error(why, None))));
    }

    fn reply(&self, reply: Reply) {
        // Small as they are, it is mostly their places in the queue that cost.
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
    /// For the client in words, and how its connection ends.
    Refused(String, Ending),
    Ended(Ending),
}

impl From<Denied> for Declined {
    fn from(denied: Denied) -> Self {
        Self::Refused(denied.to_string(), denied.ending())
    }
}

/// What a subscriber is served.
struct Served {
    source: Source,
    durable: Option<Arc<Subscription>>,
    /// Resolves when somebody else is served it.
    taken_over: Option<oneshot::Receiver<Ending>>,
}

/// Where its events come from.
enum Source {
    /// Its own way through the record.
    Stream(Box<Stream>),
    /// What the others of its group do not get.
    Member(Arc<Member>),
}

impl Source {
    /// As [`Stream::next`].
    async fn next(&mut self) -> store::Result<Said> {
        match self {
            Self::Stream(stream) => stream.next().await,
            Self::Member(member) => Ok(match member.next().await {
                Ok(frames) => Said::Events(frames),
                Err(ending) => Said::Ended(ending),
            }),
        }
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
