//! What all tasks of one run share: the clock, the figures, the ledger.

use std::cell::{Cell, RefCell};
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use event_pipeline::event::Timestamp;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::select;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use crate::interrupt::Interrupt;
use crate::latency::{Kind, Latency, histogram, micros};
use crate::ledger::Ledger;
use crate::machine;
use crate::target::{Target, TargetArgs};
use crate::timeline::{Point, STEP, Timeline};
use crate::usage::{Cost, Processors, Usage, Watched};

/// Not counted: connections settle, the server's first pages and buffers are allocated.
pub const WARM_UP: Duration = Duration::from_secs(1);

/// How often the progress is shown.
const PROGRESS: Duration = Duration::from_millis(250);

/// Whoever has not answered so long after the last request will not answer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Options of every scenario.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// How long to measure, after a second to warm up; Ctrl-C ends it early
    #[arg(long, global = true, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Measure so many times, and tell the median and the spread
    #[arg(long, global = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Print one JSON object a run instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// Append one JSON object a run to a file, whatever is printed
    #[arg(long, global = true, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write a report with plots, as one page that needs nothing else
    #[arg(long, global = true, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub target: TargetArgs,
    #[arg(skip)]
    pub interrupt: Interrupt,
}

/// One run. Everything happens on one thread.
pub struct Run {
    pub start: Instant,
    pub started_at: Timestamp,
    /// What the scenario counts.
    pub counted: Kind,
    measuring: Cell<bool>,
    stopping: Cell<bool>,
    /// It is measured from now on; what is to be measured is over.
    begun: Notify,
    complete: Notify,
    figures: [Figures; Kind::ALL.len()],
    /// Parts of the run, told apart by when something was due: when each but the first begins.
    phases: Vec<Instant>,
    of_phases: RefCell<Vec<Histogram<u64>>>,
    step: Duration,
    pub ledger: RefCell<Ledger>,
}

/// What is known of one kind of thing.
struct Figures {
    /// So far, from the start on.
    count: Cell<u64>,
    /// Since it was last moved to where it is kept.
    latency: RefCell<Histogram<u64>>,
}

impl Run {
    /// A run that starts now and counts this, with a server whose newest event is `newest`.
    pub fn new(counted: Kind, newest: u64) -> Rc<Self> {
        Rc::new(Self::configured(counted, newest, STEP, &[]))
    }

    /// A run whose timeline has shorter steps, and whose latencies are also told by phases: by when something
    /// was due. Each phase but the first begins so long after the start.
    pub fn in_phases(counted: Kind, newest: u64, step: Duration, phases: &[Duration]) -> Rc<Self> {
        Rc::new(Self::configured(counted, newest, step, phases))
    }

    fn configured(counted: Kind, newest: u64, step: Duration, phases: &[Duration]) -> Self {
        let start = Instant::now();
        Self {
            start,
            started_at: Timestamp::now(),
            counted,
            measuring: Cell::new(false),
            stopping: Cell::new(false),
            begun: Notify::new(),
            complete: Notify::new(),
            figures: Kind::ALL.map(|_| Figures { count: Cell::new(0), latency: RefCell::new(histogram()) }),
            phases: phases.iter().map(|begin| start + *begin).collect(),
            of_phases: RefCell::new(phases.iter().map(|_| histogram()).chain([histogram()]).collect()),
            step,
            ledger: RefCell::new(Ledger::new(newest)),
        }
    }

    /// No new requests from now on.
    pub fn stop(&self) {
        self.stopping.set(true);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// So many more of this: events acknowledged, events received by one subscriber, queries answered.
    #[inline]
    pub fn count(&self, kind: Kind, more: u64) {
        let count = &self.figures[kind as usize].count;
        count.set(count.get() + more);
    }

    /// How many of this so far.
    pub fn counted(&self, kind: Kind) -> u64 {
        self.figures[kind as usize].count.get()
    }

    /// So many took from `due` until `now`. Whether they count is for [`count`](Self::count).
    #[inline]
    pub fn took(&self, kind: Kind, due: Instant, now: Instant, many: u64) {
        if self.measuring.get() && many > 0 {
            let nanos = (now - due).as_nanos() as u64;
            self.figures[kind as usize].latency.borrow_mut().saturating_record_n(nanos, many);
            if kind == self.counted && !self.phases.is_empty() {
                let phase = self.phases.partition_point(|begin| *begin <= due);
                self.of_phases.borrow_mut()[phase].saturating_record_n(nanos, many);
            }
        }
    }

    /// From now on latencies count.
    pub fn begin_to_measure(&self) {
        self.measuring.set(true);
        self.begun.notify_waiters();
    }

    /// Waits until latencies count. Cancel safe.
    pub async fn begun(&self) {
        while !self.is_measuring() {
            self.begun.notified().await;
        }
    }

    /// What is to be measured is over, and need not be waited for any longer.
    pub fn complete(&self) {
        self.complete.notify_one();
    }

    #[cfg(test)]
    pub fn timed(&self, kind: Kind) -> u64 {
        self.figures[kind as usize].latency.borrow().len()
    }

    pub fn is_measuring(&self) -> bool {
        self.measuring.get()
    }

    /// Lets the tasks warm up and measures them. The figures are all from the same interval.
    ///
    /// # Errors
    /// The server's process is gone.
    pub async fn measure(&self, common: &Common, target: &Target) -> anyhow::Result<Measured> {
        let server = target.watched.as_ref();
        let mut bar = Progress::new(self);
        let warm = self.start + WARM_UP;
        while Instant::now() < warm {
            sleep_until((Instant::now() + PROGRESS).min(warm).into()).await;
            bar.show(Instant::now(), &histogram());
        }
        let length = Duration::from_secs(common.seconds);
        let before = Moment::now(self, server)?;
        common.interrupt.measuring();
        self.begin_to_measure();
        let usage = before.server.as_ref();
        let mut timeline = Timeline::new(before.at, length, self.step, before.counts[self.counted as usize], usage);
        let mut total = Kind::ALL.map(|_| histogram());
        let (end, mut progress) = (before.at + length, before.at + PROGRESS);
        let (mut ended_early, mut complete) = (false, false);
        while !ended_early && !complete && Instant::now() < end {
            select! {
                biased;
                () = common.interrupt.wished() => ended_early = true,
                () = self.complete.notified() => complete = true,
                () = sleep_until(progress.min(timeline.due).min(end).into()) => {}
            }
            let now = Instant::now();
            let mut recent = self.figures[self.counted as usize].latency.borrow_mut();
            if now >= progress {
                bar.show(now, &recent);
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
        let after = Moment::now(self, server)?;
        self.measuring.set(false);
        bar.bar.finish_and_clear();
        timeline.add(&self.figures[self.counted as usize].latency.borrow());
        for (total, figures) in total.iter_mut().zip(&self.figures) {
            total.add(&*figures.latency.borrow())?;
        }
        Ok(Measured {
            ended_early,
            timeline: timeline.finish(after.at, after.counts[self.counted as usize], after.server.as_ref()),
            phases: self.of_phases.borrow().iter().map(|latency| Latency::of(self.counted, latency)).collect(),
            ..Measured::between(&before, &after, self.counted, &total)
        })
    }
}

/// Everything that is counted, at one moment.
struct Moment {
    at: Instant,
    counts: [u64; Kind::ALL.len()],
    processors: Processors,
    client: Usage,
    server: Option<Usage>,
}

impl Moment {
    fn now(run: &Run, server: Option<&Watched>) -> anyhow::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            counts: Kind::ALL.map(|kind| run.counted(kind)),
            processors: Processors::now()?,
            client: Usage::of(process::id())?,
            server: server.map(Watched::usage).transpose()?,
        })
    }
}

/// What happened in the measured interval.
pub struct Measured {
    pub elapsed: Duration,
    /// Whether a signal ended it.
    pub ended_early: bool,
    counts: [u64; Kind::ALL.len()],
    /// Of what the run counts, and of whatever else was timed.
    pub latency: Latency,
    pub more_latencies: Vec<Latency>,
    pub timeline: Vec<Point>,
    /// Of what the run counts, by phases.
    pub phases: Vec<Latency>,
    pub client: Cost,
    /// `None` where the server's process is not known.
    pub server: Option<Cost>,
    /// What of all processors' time was in use.
    pub shares: Shares,
}

impl Measured {
    fn between(before: &Moment, after: &Moment, counted: Kind, latencies: &[Histogram<u64>]) -> Self {
        let elapsed = after.at - before.at;
        let counts = Kind::ALL.map(|kind| after.counts[kind as usize] - before.counts[kind as usize]);
        let (units, events) = (counts[counted as usize], counts[Kind::Acknowledgement as usize]);
        let cost = |before, after| Cost::between(before, after, elapsed, units, events);
        let client = cost(&before.client, &after.client);
        let server = before.server.as_ref().zip(after.server.as_ref()).map(|(before, after)| cost(before, after));
        let shares = Shares {
            client: client.cpu.as_secs_f64() / elapsed.as_secs_f64(),
            server: server.as_ref().map(|server| server.cpu.as_secs_f64() / elapsed.as_secs_f64()),
            all: after.processors.busy_since(&before.processors),
            processors: machine::processors(),
        };
        let latency = |kind: Kind| Latency::of(kind, &latencies[kind as usize]);
        let others = Kind::ALL.into_iter().filter(|kind| *kind != counted);
        Self {
            elapsed,
            ended_early: false,
            counts,
            latency: latency(counted),
            more_latencies: others.map(latency).filter(|latency| latency.count > 0).collect(),
            timeline: Vec::new(),
            phases: Vec::new(),
            client,
            server,
            shares,
        }
    }

    pub fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }
}

/// What was in use, in processors: 1.5 is one and a half.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    pub client: f64,
    pub server: Option<f64>,
    /// By whomever.
    pub all: f64,
    /// How many there are.
    pub processors: usize,
}

impl Shares {
    /// By others than the client and the server.
    pub fn others(&self) -> f64 {
        self.server.map_or(0.0, |server| (self.all - server - self.client).max(0.0))
    }
}

/// What a person sees meanwhile.
struct Progress<'r> {
    run: &'r Run,
    bar: ProgressBar,
    /// Until when, and how much, was shown.
    shown: (Instant, u64),
}

impl<'r> Progress<'r> {
    fn new(run: &'r Run) -> Self {
        // It draws only when told to: a thread of its own would take time from the server.
        let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let template = format!("{{spinner}} {{elapsed:>4}}  {} {{msg}}", run.counted.units());
        let style = ProgressStyle::with_template(&template).expect("a valid template");
        Self { run, bar: ProgressBar::with_draw_target(None, target).with_style(style), shown: (run.start, 0) }
    }

    /// Shows the rate since the last time, and these latencies.
    fn show(&mut self, now: Instant, latency: &Histogram<u64>) {
        if self.bar.is_hidden() {
            return;
        }
        let count = self.run.counted(self.run.counted);
        let rate = (count - self.shown.1) as f64 / (now - self.shown.0).as_secs_f64();
        self.shown = (now, count);
        let [p50, p99, max] = [50.0, 99.0, 100.0].map(|percentile| micros(latency, percentile) / 1e3);
        self.bar.set_message(format!("{rate:>11.0}/s   p50 {p50:.3} ms   p99 {p99:.3} ms   max {max:.3} ms"));
        self.bar.tick();
    }
}
