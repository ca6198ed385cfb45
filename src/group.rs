//! Consumer groups: one stream, shared by members. Each event goes to one member. The events of a session go to the same
//! member, in order, as long as any of them is unconfirmed.
//!
//! A group with members has one task, its dispatcher, which reads the stream, keeps the [`Ledger`] of which member has which
//! event in hand, and fills the members' outboxes. All dispatchers run on a thread of their own, so their work delays no
//! other connection.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::doorbell::{Doorbell, Wakes};
use crate::event::{Field, Seq};
use crate::feed::{Chunk, Feed};
use crate::ledger::{Ledger, Limits, MemberId};
use crate::outbox::{Outbox, Taken};
use crate::wire::committed::Run;
use crate::wire::refusal::Ending;

/// A group that has members.
#[derive(Debug, Clone)]
pub struct Group {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Request>,
    confirmations: mpsc::Sender<(MemberId, Seq)>,
}

#[derive(Debug)]
struct Shared {
    membership: Mutex<Membership>,
    unconfirmed: AtomicUsize,
    outbox_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Membership {
    members: usize,
    /// The last member has left, or the group was ended. No member can join any more.
    has_ended: bool,
    /// Why the group was ended.
    ending: Option<Ending>,
}

#[derive(Debug)]
enum Request {
    Join(MemberId, Arc<Outbox<Bytes>>),
    Leave(MemberId),
    End,
}

/// Most confirmations that wait for the dispatcher. Beyond that, the sockets that send them are not read.
const CONFIRMATIONS_WAITING_MAX: usize = 1_024;

/// Most unconfirmed events of a group. With more, a member that hangs would hold more of them back.
const WINDOW_EVENTS: usize = 4_096;

/// What a dispatcher reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Everything up to this event is confirmed.
    Confirmed(Seq),
    /// The last member has left, or the stream has ended.
    Over,
}

/// A member of a group. It leaves when this is dropped: the events that it has in hand go to other members.
#[derive(Debug)]
pub struct Member {
    id: MemberId,
    group: Group,
    outbox: Arc<Outbox<Bytes>>,
}

impl Group {
    /// Starts a group with its first member. The caller has to run the dispatcher, which reports its progress.
    pub fn start(
        feed: Feed,
        report: impl Fn(Progress) + Send + 'static,
        ack_wait: Duration,
        window_bytes: usize,
        first: MemberId,
    ) -> (Self, Member, Dispatcher) {
        let (requests, received) = mpsc::unbounded_channel();
        let (confirmations, confirmed) = mpsc::channel(CONFIRMATIONS_WAITING_MAX);
        let (membership, unconfirmed) = (Mutex::default(), AtomicUsize::new(0));
        let shared = Arc::new(Shared { membership, unconfirmed, outbox_bytes_max: 2 * window_bytes });
        let group = Self { shared: shared.clone(), requests, confirmations };
        let member = group.join(first).expect("it has not ended yet");
        let limits = Limits { window_events: WINDOW_EVENTS, window_bytes, ack_wait };
        let distributor = Distributor::new(feed.position(), limits);
        let dispatcher = Dispatcher {
            shared,
            requests: received,
            confirmed,
            feed,
            distributor,
            outboxes: HashMap::new(),
            report: Box::new(report),
        };
        (group, member, dispatcher)
    }

    /// Adds a member; `None` when the group has ended.
    pub fn join(&self, id: MemberId) -> Option<Member> {
        let mut membership = self.shared.membership.lock();
        if membership.has_ended {
            return None;
        }
        membership.members += 1;
        let outbox = Arc::new(Outbox::new(self.shared.outbox_bytes_max));
        // The dispatcher is gone when the server is ending. Then it cannot close the member's outbox.
        if self.requests.send(Request::Join(id, outbox.clone())).is_err() {
            outbox.close();
        }
        Some(Member { id, group: self.clone(), outbox })
    }

    /// The numbers of members and of unconfirmed events.
    pub fn counts(&self) -> (usize, usize) {
        (self.shared.membership.lock().members, self.shared.unconfirmed.load(Ordering::Relaxed))
    }

    /// Whether the group has ended, so that no member can join.
    pub fn has_ended(&self) -> bool {
        self.shared.membership.lock().has_ended
    }

    /// Ends the group, as its subscription was deleted.
    pub fn end(&self) {
        let mut membership = self.shared.membership.lock();
        (membership.has_ended, membership.ending) = (true, Some(Ending::Deleted));
        let _ = self.requests.send(Request::End);
    }
}

impl Member {
    /// Waits for frames and takes all that are there. An error says how the membership ended. Cancel-safe.
    pub async fn next(&self) -> Result<Vec<Bytes>, Ending> {
        let mut frames = Vec::new();
        match self.outbox.take(&mut frames).await {
            Taken::Items => Ok(frames),
            Taken::Overflowed => Err(Ending::TooSlow),
            Taken::Closed => Err(self.group.shared.membership.lock().ending.unwrap_or(Ending::GoingAway)),
        }
    }

    /// Confirms an event and everything that the member was sent before it.
    pub async fn confirm(&self, seq: Seq) {
        // Sending fails only when the group has ended, which needs no confirmation.
        let _ = self.group.confirmations.send((self.id, seq)).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.group.shared.membership.lock().members -= 1;
        let _ = self.group.requests.send(Request::Leave(self.id));
    }
}

/// Runs the dispatchers that it receives, until no more can come and all have ended.
pub async fn run(mut started: mpsc::UnboundedReceiver<Dispatcher>) {
    let mut running = JoinSet::new();
    let (closing, _) = watch::channel(());
    let mut open = Some(closing);
    let serve = async {
        loop {
            tokio::select! {
                dispatcher = started.recv(), if open.is_some() => match (dispatcher, &open) {
                    (Some(dispatcher), Some(closing)) => drop(running.spawn(dispatcher.run(closing.subscribe()))),
                    _ => open = None,
                },
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended {
                        // The other groups go on.
                        tracing::error!(%error, "a group's task panicked");
                    }
                }
                else => return,
            }
        }
    };
    tokio::select! {
        biased;
        () = Doorbell::answer() => {}
        () = serve => {}
    }
}

/// The task of one group.
pub struct Dispatcher {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedReceiver<Request>,
    confirmed: mpsc::Receiver<(MemberId, Seq)>,
    feed: Feed,
    distributor: Distributor,
    outboxes: HashMap<MemberId, Arc<Outbox<Bytes>>>,
    report: Box<dyn Fn(Progress) + Send>,
}

/// Closes all outboxes however the dispatcher ends, even in a panic or without having run, so that no member waits for it.
impl Drop for Dispatcher {
    fn drop(&mut self) {
        {
            let mut membership = self.shared.membership.lock();
            membership.has_ended = true;
            if std::thread::panicking() {
                membership.ending.get_or_insert(Ending::Failed);
            }
        }
        self.outboxes.values().for_each(|outbox| outbox.close());
        // No member can join any more, but some may have joined just before.
        while let Ok(request) = self.requests.try_recv() {
            if let Request::Join(_, outbox) = request {
                outbox.close();
            }
        }
        (self.report)(Progress::Over);
    }
}

impl Dispatcher {
    /// `closing` ends when the server shuts down.
    async fn run(mut self, closing: watch::Receiver<()>) {
        if let Some(ending) = self.distribute(closing).await {
            self.shared.membership.lock().ending.get_or_insert(ending);
        }
    }

    /// Distributes the stream until it ends or the last member has left. Returns how it ends for the remaining members.
    async fn distribute(&mut self, mut closing: watch::Receiver<()>) -> Option<Ending> {
        let mut wakes = Wakes::default();
        loop {
            let deadline = self.distributor.ledger.next_deadline();
            let needs_events = self.distributor.needs_events();
            let chunk = async {
                match needs_events {
                    true => self.feed.next().await,
                    // Unconfirmed events come again after a restart, so a shutdown waits for no confirmation.
                    false => {
                        self.feed.ended().await;
                        Ok(Chunk::End)
                    }
                }
            };
            tokio::select! {
                biased;
                request = self.requests.recv() => match request {
                    Some(Request::Join(id, outbox)) => {
                        self.distributor.ledger.join(id);
                        self.outboxes.insert(id, outbox);
                    }
                    Some(Request::Leave(id)) => {
                        // What the member confirmed before it left counts, also for a next group under this name.
                        while let Ok((id, seq)) = self.confirmed.try_recv() {
                            self.distributor.ledger.confirm(id, seq);
                        }
                        self.report_position();
                        self.distributor.ledger.leave(id);
                        self.outboxes.remove(&id);
                        let mut membership = self.shared.membership.lock();
                        if membership.members == 0 {
                            membership.has_ended = true;
                            return None;
                        }
                    }
                    Some(Request::End) | None => return None,
                },
                Some((id, seq)) = self.confirmed.recv() => {
                    self.distributor.ledger.confirm(id, seq);
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => {
                    self.distributor.ledger.expire(Instant::now());
                }
                chunk = chunk => match chunk {
                    Ok(Chunk::Events(runs)) => self.distributor.push(runs, self.feed.position()),
                    Ok(Chunk::FilterChanged | Chunk::FellBehind | Chunk::CaughtUp | Chunk::Lagged { .. }) => {}
                    Ok(Chunk::Complete | Chunk::TooSlow | Chunk::End) => return Some(Ending::GoingAway),
                    Err(error) => {
                        tracing::error!(%error, "read events for a group");
                        return Some(Ending::Failed);
                    }
                },
                // With a full window the group would never come to the end of the stream.
                _ = closing.changed(), if !self.distributor.needs_events() => return Some(Ending::GoingAway),
            }
            for (member, frame) in self.distributor.assign(Instant::now()) {
                if let Some(outbox) = self.outboxes.get(&member) {
                    // The last event of a window may exceed it, and must not overflow the outbox.
                    let bytes = frame.len().min(self.shared.outbox_bytes_max / 2);
                    outbox.push(frame, bytes, &mut wakes);
                }
            }
            wakes.wake_all();
            self.shared.unconfirmed.store(self.distributor.ledger.unconfirmed(), Ordering::Relaxed);
            self.report_position();
        }
    }

    fn report_position(&mut self) {
        if self.distributor.advance() {
            (self.report)(Progress::Confirmed(self.distributor.position));
        }
    }
}

/// Puts the events of a stream into the ledger as far as there is room, and those of the ledger into frames for the members.
/// It has no tasks and no clock, so a test can drive it.
pub(crate) struct Distributor {
    pub(crate) ledger: Ledger<Bytes>,
    /// Events that were read and for which the ledger has no room yet.
    waiting: VecDeque<(Run, usize)>,
    /// The stream was read up to this event.
    read: Seq,
    /// Everything up to this event is confirmed.
    pub(crate) position: Seq,
    keys: SessionHash,
}

/// The sessions come from clients, so the hash is seeded, but not in tests, where each run has to be the same.
#[cfg(not(test))]
type SessionHash = foldhash::fast::RandomState;
#[cfg(test)]
type SessionHash = foldhash::fast::FixedState;

impl Distributor {
    pub(crate) fn new(position: Seq, limits: Limits) -> Self {
        let (ledger, keys) = (Ledger::new(position, limits), SessionHash::default());
        Self { ledger, waiting: VecDeque::new(), read: position, position, keys }
    }

    /// Whether more of the stream has to be read.
    pub(crate) fn needs_events(&self) -> bool {
        self.waiting.is_empty() && self.ledger.has_room()
    }

    /// Adds events that were read. With them, the stream was read up to `read`.
    pub(crate) fn push(&mut self, runs: Vec<Run>, read: Seq) {
        self.waiting.extend(runs.into_iter().flat_map(|run| run.range().map(move |index| (run.clone(), index))));
        self.read = self.read.max(read);
    }

    /// The frames that have to be sent now, each with its member.
    pub(crate) fn assign(&mut self, now: Instant) -> Vec<(MemberId, Bytes)> {
        while self.ledger.has_room()
            && let Some((run, index)) = self.waiting.pop_front()
        {
            let (batch, seq) = (run.batch(), run.batch().seq(index));
            // Events without a session need no order among each other.
            let key = match batch.columns(index).field(Field::Session) {
                Some(session) => self.keys.hash_one(session),
                None => self.keys.hash_one(seq),
            };
            // A copy: a slice would keep the whole batch in memory until the event is confirmed.
            let frame = Bytes::copy_from_slice(&batch.frames_between(index, index + 1));
            let bytes = frame.len();
            self.ledger.offer(seq, key, frame, bytes);
        }
        self.ledger.assign(now).into_iter().map(|assignment| (assignment.member, assignment.item)).collect()
    }

    /// Updates the position. Returns whether it has changed.
    pub(crate) fn advance(&mut self) -> bool {
        if self.waiting.is_empty() {
            self.ledger.read_through(self.read);
        }
        let before = std::mem::replace(&mut self.position, self.ledger.position());
        self.position > before
    }
}
