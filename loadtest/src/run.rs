//! What all tasks of one run share: the clock, the counts and latencies, the verification.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use event_pipeline::event::Timestamp;
use hdrhistogram::Histogram;
use tokio::select;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use crate::latency::{Latency, Operation, histogram};
use crate::measurement::{Measured, Snapshot};
use crate::options::Common;
use crate::progress::Progress;
use crate::target::Target;
use crate::timeline::{STEP, Timeline};
use crate::usage::Watched;
use crate::verification::Verification;

/// The warm-up is not measured: connections settle, and the server allocates its first pages and buffers.
pub const WARM_UP: Duration = Duration::from_secs(1);

/// How often the progress is shown.
const PROGRESS: Duration = Duration::from_millis(250);

/// 20 s after the last request, a server that has not answered will not answer: it waits 5 s for a lock at most.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One run. Everything happens on one thread.
pub struct Run {
    pub start: Instant,
    pub started_at: Timestamp,
    /// What the scenario counts.
    pub counted: Operation,
    measuring: Cell<bool>,
    stopping: Cell<bool>,
    /// Notified when the measured interval begins, and when everything to be measured is over.
    begun: Notify,
    complete: Notify,
    recorders: [Recorder; Operation::ALL.len()],
    /// Parts of the run, by when something was due: the beginning of each but the first.
    phases: Vec<Instant>,
    of_phases: RefCell<Vec<Histogram<u64>>>,
    step: Duration,
    pub verification: RefCell<Verification>,
}

/// The count and the latencies of one kind of operation.
struct Recorder {
    /// Since the start of the run.
    count: Cell<u64>,
    /// Since the end of the timeline's last interval.
    latency: RefCell<Histogram<u64>>,
}

impl Run {
    /// A run that starts now and counts this, with a server whose newest event is `newest`.
    pub fn new(counted: Operation, newest: u64) -> Rc<Self> {
        Rc::new(Self::configured(counted, newest, STEP, &[]))
    }

    /// A run whose timeline has shorter steps, and whose latencies are also reported by phases, each by when something
    /// was due. `phases` are the beginnings of all phases but the first, from the start of the run on.
    pub fn in_phases(counted: Operation, newest: u64, step: Duration, phases: &[Duration]) -> Rc<Self> {
        Rc::new(Self::configured(counted, newest, step, phases))
    }

    fn configured(counted: Operation, newest: u64, step: Duration, phases: &[Duration]) -> Self {
        let start = Instant::now();
        Self {
            start,
            started_at: Timestamp::now(),
            counted,
            measuring: Cell::new(false),
            stopping: Cell::new(false),
            begun: Notify::new(),
            complete: Notify::new(),
            recorders: Operation::ALL.map(|_| Recorder { count: Cell::new(0), latency: RefCell::new(histogram()) }),
            phases: phases.iter().map(|begin| start + *begin).collect(),
            of_phases: RefCell::new(phases.iter().map(|_| histogram()).chain([histogram()]).collect()),
            step,
            verification: RefCell::new(Verification::new(newest)),
        }
    }

    /// Notes a broken promise.
    pub fn violation(&self, words: impl FnOnce() -> String) {
        self.verification.borrow_mut().violation(words);
    }

    /// Compares what was acknowledged with what the server has stored since the run began, when it had stored `before`.
    pub async fn check_stored(&self, target: &Target, before: u64) -> anyhow::Result<()> {
        let stored = target.stored().await? - before;
        self.verification.borrow_mut().check_stored(stored);
        Ok(())
    }

    /// Stops sending new requests.
    pub fn stop(&self) {
        self.stopping.set(true);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Counts `more` of a kind: events acknowledged, events received by one subscriber, queries answered.
    #[inline]
    pub fn count(&self, kind: Operation, more: u64) {
        let count = &self.recorders[kind as usize].count;
        count.set(count.get() + more);
    }

    /// How many of a kind so far.
    pub fn counted(&self, kind: Operation) -> u64 {
        self.recorders[kind as usize].count.get()
    }

    fn counts(&self) -> [u64; Operation::ALL.len()] {
        Operation::ALL.map(|kind| self.counted(kind))
    }

    /// Records the latency of `many` operations, from `due` until `now`. Does not count them: see
    /// [`count`](Self::count).
    #[inline]
    pub fn took(&self, kind: Operation, due: Instant, now: Instant, many: u64) {
        if self.measuring.get() && many > 0 {
            let nanos = (now - due).as_nanos() as u64;
            self.recorders[kind as usize].latency.borrow_mut().saturating_record_n(nanos, many);
            if kind == self.counted && !self.phases.is_empty() {
                let phase = self.phases.partition_point(|begin| *begin <= due);
                self.of_phases.borrow_mut()[phase].saturating_record_n(nanos, many);
            }
        }
    }

    /// Begins the measured interval.
    pub fn begin_to_measure(&self) {
        self.measuring.set(true);
        self.begun.notify_waiters();
    }

    /// Waits for the measured interval. Cancel safe.
    pub async fn begun(&self) {
        while !self.is_measuring() {
            self.begun.notified().await;
        }
    }

    /// Ends the measured interval: everything to be measured is over.
    pub fn complete(&self) {
        self.complete.notify_one();
    }

    #[cfg(test)]
    pub fn timed(&self, kind: Operation) -> u64 {
        self.recorders[kind as usize].latency.borrow().len()
    }

    pub fn is_measuring(&self) -> bool {
        self.measuring.get()
    }

    /// Lets the tasks warm up and measures them. All metrics are of the same interval.
    ///
    /// # Errors
    /// The server's process is gone.
    pub async fn measure(&self, common: &Common, target: &Target) -> anyhow::Result<Measured> {
        let server = target.watched.as_ref();
        let mut bar = Progress::new(self.counted, self.start);
        let warm = self.start + WARM_UP;
        while Instant::now() < warm {
            sleep_until((Instant::now() + PROGRESS).min(warm).into()).await;
            bar.show(Instant::now(), self.counted(self.counted), &histogram());
        }
        let length = Duration::from_secs(common.seconds);
        let before = Snapshot::now(self.counts(), server)?;
        common.interrupt.allow_early_end();
        self.begin_to_measure();
        let usage = before.server.as_ref();
        let mut timeline = Timeline::new(before.at, length, self.step, before.counts[self.counted as usize], usage);
        let mut total = Operation::ALL.map(|_| histogram());
        let (end, mut progress) = (before.at + length, before.at + PROGRESS);
        let (mut ended_early, mut complete) = (false, false);
        while !ended_early && !complete && Instant::now() < end {
            select! {
                biased;
                () = common.interrupt.requested() => ended_early = true,
                () = self.complete.notified() => complete = true,
                () = sleep_until(progress.min(timeline.due).min(end).into()) => {}
            }
            let now = Instant::now();
            let mut recent = self.recorders[self.counted as usize].latency.borrow_mut();
            if now >= progress {
                bar.show(now, self.counted(self.counted), &recent);
                progress = now + PROGRESS;
            }
            if now >= timeline.due {
                let usage = server.map(Watched::usage).transpose()?;
                timeline.add(&recent);
                timeline.end(now, self.counted(self.counted), usage.as_ref());
                total[self.counted as usize].add(&*recent)?;
                recent.reset();
            }
        }
        let after = Snapshot::now(self.counts(), server)?;
        self.measuring.set(false);
        bar.clear();
        timeline.add(&self.recorders[self.counted as usize].latency.borrow());
        for (total, recorders) in total.iter_mut().zip(&self.recorders) {
            total.add(&*recorders.latency.borrow())?;
        }
        Ok(Measured {
            ended_early,
            timeline: timeline.finish(after.at, after.counts[self.counted as usize], after.server.as_ref()),
            phases: self.of_phases.borrow().iter().map(|latency| Latency::of(self.counted, latency)).collect(),
            ..Measured::between(&before, &after, self.counted, &total)
        })
    }
}
