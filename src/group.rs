//! Consumer groups: one stream, shared by members. Each event goes to one of them, those of a session in order
//! to the same one as long as any of them is unconfirmed.
//!
//! A group with members has one task, its dispatcher, which reads the stream, keeps the [`Ledger`] of who has
//! what in hand, and fills the members' outboxes. All dispatchers share a thread of their own: what they do
//! costs no other connection anything.

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
    commands: mpsc::UnboundedSender<Command>,
    confirmations: mpsc::Sender<(MemberId, Seq)>,
}

#[derive(Debug)]
struct Shared {
    roll: Mutex<Roll>,
    unconfirmed: AtomicUsize,
    outbox_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Roll {
    members: usize,
    /// The last member has left, or the group was ended: nobody can join any more.
    has_ended: bool,
    /// Why it was ended.
    ending: Option<Ending>,
}

#[derive(Debug)]
enum Command {
    Join(MemberId, Arc<Outbox<Bytes>>),
    Leave(MemberId),
    End,
}

/// Confirmations that may wait for the dispatcher before their sockets are read no further.
const CONFIRMATIONS_WAITING_MAX: usize = 1_024;

/// Events that a group may have unconfirmed: with more, a member that hangs would hold more of them back.
const WINDOW_EVENTS: usize = 4_096;

/// How a dispatcher's work becomes known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Everything up to this event is confirmed.
    Confirmed(Seq),
    /// The last member has left, or the stream has ended.
    Over,
}

/// A member's place in its group, given up when dropped: what it has in hand goes to others.
#[derive(Debug)]
pub struct Member {
    id: MemberId,
    group: Group,
    outbox: Arc<Outbox<Bytes>>,
}

impl Group {
    /// A group with its first member, and the task that is to be run for it. What is confirmed is reported.
    pub fn start(
        feed: Feed,
        report: impl Fn(Progress) + Send + 'static,
        ack_wait: Duration,
        window_bytes: usize,
        first: MemberId,
    ) -> (Self, Member, Dispatcher) {
        let (commands, orders) = mpsc::unbounded_channel();
        let (confirmations, confirmed) = mpsc::channel(CONFIRMATIONS_WAITING_MAX);
        let (roll, unconfirmed) = (Mutex::default(), AtomicUsize::new(0));
        let shared = Arc::new(Shared { roll, unconfirmed, outbox_bytes_max: 2 * window_bytes });
        let group = Self { shared: shared.clone(), commands, confirmations };
        let member = group.join(first).expect("nobody has ended it yet");
        let limits = Limits { window_events: WINDOW_EVENTS, window_bytes, ack_wait };
        let sharing = Sharing::new(feed.position(), limits);
        let dispatcher =
            Dispatcher { shared, orders, confirmed, feed, sharing, outboxes: HashMap::new(), report: Box::new(report) };
        (group, member, dispatcher)
    }

    /// One member more, or nothing when the group has ended meanwhile.
    pub fn join(&self, id: MemberId) -> Option<Member> {
        let mut roll = self.shared.roll.lock();
        if roll.has_ended {
            return None;
        }
        roll.members += 1;
        let outbox = Arc::new(Outbox::new(self.shared.outbox_bytes_max));
        // A dispatcher that cannot be reached ends with the server; the member's outbox is closed by nobody then.
        if self.commands.send(Command::Join(id, outbox.clone())).is_err() {
            outbox.close();
        }
        Some(Member { id, group: self.clone(), outbox })
    }

    /// Members, and events that they have in hand.
    pub fn counts(&self) -> (usize, usize) {
        (self.shared.roll.lock().members, self.shared.unconfirmed.load(Ordering::Relaxed))
    }

    /// Whether nobody can join any more.
    pub fn has_ended(&self) -> bool {
        self.shared.roll.lock().has_ended
    }

    /// Ends the group: its subscription was deleted.
    pub fn end(&self) {
        let mut roll = self.shared.roll.lock();
        (roll.has_ended, roll.ending) = (true, Some(Ending::Deleted));
        let _ = self.commands.send(Command::End);
    }
}

impl Member {
    /// Waits for frames and takes all that are there; or how it ended. Cancel-safe.
    pub async fn next(&self) -> Result<Vec<Bytes>, Ending> {
        let mut frames = Vec::new();
        match self.outbox.take(&mut frames).await {
            Taken::Items => Ok(frames),
            Taken::Overflowed => Err(Ending::TooSlow),
            Taken::Closed => Err(self.group.shared.roll.lock().ending.unwrap_or(Ending::GoingAway)),
        }
    }

    /// The member is done with an event and with what it was sent before it.
    pub async fn confirm(&self, seq: Seq) {
        // A group that has ended needs no confirmation.
        let _ = self.group.confirmations.send((self.id, seq)).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.group.shared.roll.lock().members -= 1;
        let _ = self.group.commands.send(Command::Leave(self.id));
    }
}

/// Runs the dispatchers that come until no more can come and all have ended.
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
                        // One group's fault is not the others'.
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
    orders: mpsc::UnboundedReceiver<Command>,
    confirmed: mpsc::Receiver<(MemberId, Seq)>,
    feed: Feed,
    sharing: Sharing,
    outboxes: HashMap<MemberId, Arc<Outbox<Bytes>>>,
    report: Box<dyn Fn(Progress) + Send>,
}

/// However it ends, also unrun or in a panic, nobody is left waiting for it.
impl Drop for Dispatcher {
    fn drop(&mut self) {
        {
            let mut roll = self.shared.roll.lock();
            roll.has_ended = true;
            if std::thread::panicking() {
                roll.ending.get_or_insert(Ending::Failed);
            }
        }
        self.outboxes.values().for_each(|outbox| outbox.close());
        // Nobody can join any more, but somebody may have just before.
        while let Ok(order) = self.orders.try_recv() {
            if let Command::Join(_, outbox) = order {
                outbox.close();
            }
        }
        (self.report)(Progress::Over);
    }
}

impl Dispatcher {
    /// `closing` ends once nobody will take more from the stream than is there.
    async fn run(mut self, closing: watch::Receiver<()>) {
        if let Some(ending) = self.share(closing).await {
            self.shared.roll.lock().ending.get_or_insert(ending);
        }
    }

    /// Shares the stream until it ends or nobody is left, and says how it is for those who are.
    async fn share(&mut self, mut closing: watch::Receiver<()>) -> Option<Ending> {
        let mut wakes = Wakes::default();
        loop {
            let deadline = self.sharing.ledger.next_deadline();
            let is_hungry = self.sharing.is_hungry();
            let chunk = async {
                match is_hungry {
                    true => self.feed.next().await,
                    // What is unconfirmed comes again after a restart, so the end waits for no confirmation.
                    false => {
                        self.feed.ended().await;
                        Ok(Chunk::End)
                    }
                }
            };
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(Command::Join(id, outbox)) => {
                        self.sharing.ledger.join(id);
                        self.outboxes.insert(id, outbox);
                    }
                    Some(Command::Leave(id)) => {
                        // What it confirmed before it left counts, also for the group that may come next.
                        while let Ok((id, seq)) = self.confirmed.try_recv() {
                            self.sharing.ledger.confirm(id, seq);
                        }
                        self.report_position();
                        self.sharing.ledger.leave(id);
                        self.outboxes.remove(&id);
                        let mut roll = self.shared.roll.lock();
                        if roll.members == 0 {
                            roll.has_ended = true;
                            return None;
                        }
                    }
                    Some(Command::End) | None => return None,
                },
                Some((id, seq)) = self.confirmed.recv() => drop(self.sharing.ledger.confirm(id, seq)),
                () = sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => {
                    self.sharing.ledger.expire(Instant::now());
                }
                chunk = chunk => match chunk {
                    Ok(Chunk::Events(runs)) => self.sharing.take(runs, self.feed.position()),
                    Ok(Chunk::FilterChanged | Chunk::FellBehind | Chunk::CaughtUp | Chunk::Lagged { .. }) => {}
                    Ok(Chunk::Complete | Chunk::TooSlow | Chunk::End) => return Some(Ending::GoingAway),
                    Err(error) => {
                        tracing::error!(%error, "read events for a group");
                        return Some(Ending::Failed);
                    }
                },
                // Members who hold all they may would never get to the end of the stream.
                _ = closing.changed(), if !self.sharing.is_hungry() => return Some(Ending::GoingAway),
            }
            for (member, frame) in self.sharing.deal(Instant::now()) {
                if let Some(outbox) = self.outboxes.get(&member) {
                    // The window lets one event stick out, so that one must not overflow the outbox.
                    let bytes = frame.len().min(self.shared.outbox_bytes_max / 2);
                    outbox.push(frame, bytes, &mut wakes);
                }
            }
            wakes.wake_all();
            self.shared.unconfirmed.store(self.sharing.ledger.unconfirmed(), Ordering::Relaxed);
            self.report_position();
        }
    }

    fn report_position(&mut self) {
        if self.sharing.advance() {
            (self.report)(Progress::Confirmed(self.sharing.position));
        }
    }
}

/// The stream on its way into the ledger. No tasks, no clock: a test can drive it.
pub(crate) struct Sharing {
    pub(crate) ledger: Ledger<Bytes>,
    /// Read, and not in the ledger for want of room.
    waiting: VecDeque<(Run, usize)>,
    /// The end of what was read.
    read: Seq,
    /// Everything up to here is confirmed.
    pub(crate) position: Seq,
    keys: SessionHash,
}

/// The sessions come from clients, so the hash is seeded. Not that of tests: one run is like the other.
#[cfg(not(test))]
type SessionHash = foldhash::fast::RandomState;
#[cfg(test)]
type SessionHash = foldhash::fast::FixedState;

impl Sharing {
    pub(crate) fn new(position: Seq, limits: Limits) -> Self {
        let (ledger, keys) = (Ledger::new(position, limits), SessionHash::default());
        Self { ledger, waiting: VecDeque::new(), read: position, position, keys }
    }

    /// Whether more is to be read.
    pub(crate) fn is_hungry(&self) -> bool {
        self.waiting.is_empty() && self.ledger.has_room()
    }

    /// Takes what was read; after it, everything up to `read` was.
    pub(crate) fn take(&mut self, runs: Vec<Run>, read: Seq) {
        self.waiting.extend(runs.into_iter().flat_map(|run| run.range().map(move |index| (run.clone(), index))));
        self.read = self.read.max(read);
    }

    /// What is to be sent to whom by now.
    pub(crate) fn deal(&mut self, now: Instant) -> Vec<(MemberId, Bytes)> {
        while self.ledger.has_room()
            && let Some((run, index)) = self.waiting.pop_front()
        {
            let (batch, seq) = (run.batch(), run.batch().seq(index));
            // Events without a session need no order among themselves.
            let key = match batch.columns(index).field(Field::Session) {
                Some(session) => self.keys.hash_one(session),
                None => self.keys.hash_one(seq),
            };
            // A copy: a slice would keep the whole batch in memory for as long as the event is unconfirmed.
            let frame = Bytes::copy_from_slice(&batch.frames_between(index, index + 1));
            let bytes = frame.len();
            self.ledger.offer(seq, key, frame, bytes);
        }
        self.ledger.take_due(now).into_iter().map(|due| (due.member, due.item)).collect()
    }

    /// Takes note of how far everything is confirmed, and says whether that is further than before.
    pub(crate) fn advance(&mut self) -> bool {
        if self.waiting.is_empty() {
            self.ledger.reached(self.read);
        }
        let before = std::mem::replace(&mut self.position, self.ledger.position());
        self.position > before
    }
}
