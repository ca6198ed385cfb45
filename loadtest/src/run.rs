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
use crate::schedule::Clock;
use crate::target::Target;
use crate::timeline::Timeline;
use crate::usage::Watched;
use crate::verification::Verification;

/// How often the progress is shown.
const PROGRESS: Duration = Duration::from_millis(250);

/// One run. Everything happens on one thread.
pub struct Run {
    pub start: Instant,
    pub started_at: Timestamp,
    /// What the scenario counts.
    pub counted: Operation,
    /// The measured interval, once it has begun; its end may come to be earlier.
    measured: Cell<Option<(Instant, Instant)>>,
    stopping: Cell<bool>,
    /// Whether what was due and is not sent never will be.
    has_given_up: Cell<bool>,
    /// How much that was.
    pub abandoned: Cell<u64>,
    /// Notified when the measured interval begins, when it is over, and when everything to be measured is over.
    begun: Notify,
    stopped: Notify,
    complete: Notify,
    recorders: [Recorder; Operation::ALL.len()],
    /// Parts of the run, by when something was due: the beginning of each but the first, and their latencies.
    phases: Vec<Instant>,
    of_phases: RefCell<Vec<Histogram<u64>>>,
    timeline: RefCell<Timeline>,
    pub verification: RefCell<Verification>,
}

/// The count and the latencies of one kind of operation.
struct Recorder {
    /// Since the start of the run.
    count: Cell<u64>,
    /// Of what was due in the measured interval.
    latency: RefCell<Histogram<u64>>,
}

impl Run {
    /// A run in one phase.
    #[cfg(test)]
    pub fn new(counted: Operation, newest: u64) -> Rc<Self> {
        Self::in_phases(counted, newest, crate::timeline::STEP, &[])
    }

    /// A run that starts now and counts this, with a server whose newest event is `newest`. Its timeline has such steps,
    /// and its latencies are also reported by phases: `phases` are the beginnings of all but the first, from the start of
    /// the run on.
    pub fn in_phases(counted: Operation, newest: u64, step: Duration, phases: &[Duration]) -> Rc<Self> {
        let start = Instant::now();
        Rc::new(Self {
            start,
            started_at: Timestamp::now(),
            counted,
            measured: Cell::new(None),
            stopping: Cell::new(false),
            has_given_up: Cell::new(false),
            abandoned: Cell::new(0),
            begun: Notify::new(),
            stopped: Notify::new(),
            complete: Notify::new(),
            recorders: Operation::ALL.map(|_| Recorder { count: Cell::new(0), latency: RefCell::new(histogram()) }),
            phases: phases.iter().map(|begin| start + *begin).collect(),
            of_phases: RefCell::new(phases.iter().map(|_| histogram()).chain([histogram()]).collect()),
            timeline: RefCell::new(Timeline::new(step)),
            verification: RefCell::new(Verification::new(newest)),
        })
    }

    /// Notes a broken promise.
    pub fn violation(&self, words: impl FnOnce() -> String) {
        self.verification.borrow_mut().violation(words);
    }

    /// Ends everything that goes on until it is told to end.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.stopped.notify_waiters();
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Waits for the end. Cancel safe.
    pub async fn stopped(&self) {
        while !self.is_stopping() {
            self.stopped.notified().await;
        }
    }

    /// Ends the sending of what was due before the end.
    pub fn give_up(&self) {
        self.has_given_up.set(true);
        self.stopped.notify_waiters();
    }

    pub fn has_given_up(&self) -> bool {
        self.has_given_up.get()
    }

    /// Waits until the run stops or gives up. Cancel safe.
    pub async fn changed(&self) {
        self.stopped.notified().await;
    }

    /// How long was measured.
    pub fn length(&self) -> Duration {
        self.measured.get().map_or(Duration::ZERO, |(begin, end)| end - begin)
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

    /// Records the latency of `many` operations, from `due` until `now`, if they were due in the measured interval: also
    /// when they are over after it, because those that wait longest are. Returns whether they were. Does not count them:
    /// see [`count`](Self::count).
    #[inline]
    pub fn took(&self, kind: Operation, due: Instant, now: Instant, many: u64) -> bool {
        let Some((begin, end)) = self.measured.get() else { return false };
        if many == 0 || due < begin || due >= end {
            return false;
        }
        let nanos = (now - due).as_nanos() as u64;
        self.recorders[kind as usize].latency.borrow_mut().saturating_record_n(nanos, many);
        if kind == self.counted {
            self.timeline.borrow_mut().took(due - begin, nanos, many);
            if !self.phases.is_empty() {
                let phase = self.phases.partition_point(|begin| *begin <= due);
                self.of_phases.borrow_mut()[phase].saturating_record_n(nanos, many);
            }
        }
        true
    }

    /// Begins the measured interval.
    pub fn begin_to_measure(&self, from: Instant, length: Duration) {
        self.measured.set(Some((from, from + length)));
        self.begun.notify_waiters();
    }

    /// Waits for the measured interval. Cancel safe.
    pub async fn begun(&self) {
        while !self.is_measuring() {
            self.begun.notified().await;
        }
    }

    pub fn is_measuring(&self) -> bool {
        self.measured.get().is_some() && !self.is_stopping()
    }

    /// Ends the measured interval: everything to be measured is over.
    pub fn complete(&self) {
        self.complete.notify_one();
    }

    #[cfg(test)]
    pub fn timed(&self, kind: Operation) -> u64 {
        self.recorders[kind as usize].latency.borrow().len()
    }

    /// Lets the tasks warm up, counts and uses for as long as is to be measured, and stops. What was due meanwhile may
    /// still be unanswered then: see [`measured`](Self::measured).
    ///
    /// # Errors
    /// The server's process is gone.
    pub async fn measure(&self, common: &Common, target: &Target, clock: &Clock) -> anyhow::Result<Interval> {
        let server = target.watched.as_ref();
        let mut bar = Progress::new(self.counted, self.start);
        let warm = self.start + common.warm_up();
        while Instant::now() < warm {
            sleep_until((Instant::now() + PROGRESS).min(warm).into()).await;
            bar.show(Instant::now(), self.counted(self.counted), &histogram());
        }
        let length = Duration::from_secs(common.seconds);
        let before = Snapshot::now(self.counts(), server)?;
        let (mut end, mut progress) = (before.at + length, before.at + PROGRESS);
        common.interrupt.allow_early_end();
        self.timeline.borrow_mut().begin(length, self.counted(self.counted), before.server.as_ref());
        clock.end_at(end);
        self.begin_to_measure(before.at, length);
        let mut ended_early = false;
        while Instant::now() < end {
            let sample = before.at + self.timeline.borrow().next_sample();
            select! {
                biased;
                () = common.interrupt.requested() => (ended_early, end) = (true, Instant::now()),
                () = self.complete.notified() => end = Instant::now(),
                () = sleep_until(progress.min(sample).min(end).into()) => {}
            }
            let now = Instant::now();
            if now >= progress {
                let latency = &self.recorders[self.counted as usize].latency;
                bar.show(now, self.counted(self.counted), &latency.borrow());
                progress = now + PROGRESS;
            }
            if now >= sample && now < end {
                let usage = server.map(Watched::usage).transpose()?;
                self.timeline.borrow_mut().sample(now - before.at, self.counted(self.counted), usage.as_ref());
            }
        }
        let after = Snapshot::now(self.counts(), server)?;
        clock.end_at(end);
        self.measured.set(Some((before.at, end)));
        self.stop();
        bar.clear();
        Ok(Interval { before, after, ended_early })
    }

    /// What was measured in this interval, once everything that was due in it is answered.
    pub fn measured(&self, interval: Interval) -> Measured {
        let Interval { before, after, ended_early } = interval;
        let latencies = self.recorders.iter().map(|recorder| recorder.latency.borrow().clone()).collect::<Vec<_>>();
        let counted = after.counts[self.counted as usize];
        self.timeline.borrow_mut().sample(after.at - before.at, counted, after.server.as_ref());
        Measured {
            ended_early,
            timeline: self.timeline.borrow().points(),
            steps: self.timeline.borrow().steps.clone(),
            phases: self.of_phases.borrow().iter().map(|latency| Latency::of(self.counted, latency)).collect(),
            ..Measured::between(&before, &after, self.counted, &latencies)
        }
    }
}

/// Everything that was counted and used when the measured interval began and when it ended.
pub struct Interval {
    before: Snapshot,
    after: Snapshot,
    ended_early: bool,
}
