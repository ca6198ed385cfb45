//! What all tasks of one run share: the clock, the figures, the ledger.

use std::cell::{Cell, RefCell};
use std::io::{IsTerminal, stderr};
use std::process;
use std::rc::Rc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::ledger::Ledger;
use crate::report::Latency;
use crate::target::{Target, TargetArgs};
use crate::usage::{Cost, Machine, Usage};

/// Not counted: connections settle, the server's first pages and buffers are allocated.
const WARM_UP: Duration = Duration::from_secs(1);

/// How often the progress is shown.
const PROGRESS: Duration = Duration::from_millis(250);

/// Whoever has not answered so long after the last request will not answer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Latencies are kept from 1 µs to an hour, to three digits.
const LATENCY_NANOS: (u64, u64, u8) = (1_000, 3_600_000_000_000, 3);

/// Options of every scenario.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// How long to measure, after a second to warm up; Ctrl-C ends it early
    #[arg(long, global = true, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Print one JSON object instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

/// One run. Everything happens on one thread.
pub struct Run {
    pub start: Instant,
    measuring: Cell<bool>,
    stopping: Cell<bool>,
    /// Acknowledged so far.
    events: Cell<u64>,
    /// Received by subscribers so far.
    deliveries: Cell<u64>,
    latency: RefCell<Histogram<u64>>,
    pub ledger: RefCell<Ledger>,
}

impl Run {
    /// A run that starts now, with a server whose newest event is `newest`.
    pub fn new(newest: u64) -> Rc<Self> {
        let (low, high, digits) = LATENCY_NANOS;
        Rc::new(Self {
            start: Instant::now(),
            measuring: Cell::new(false),
            stopping: Cell::new(false),
            events: Cell::new(0),
            deliveries: Cell::new(0),
            latency: RefCell::new(Histogram::new_with_bounds(low, high, digits).expect("bounds that make sense")),
            ledger: RefCell::new(Ledger::new(newest)),
        })
    }

    /// No new requests from now on.
    pub fn stop(&self) {
        self.stopping.set(true);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// So many events were acknowledged.
    pub fn acknowledged(&self, events: u64) {
        self.events.set(self.events.get() + events);
    }

    /// So many events were received by one subscriber.
    pub fn delivered(&self, events: u64) {
        self.deliveries.set(self.deliveries.get() + events);
    }

    pub fn deliveries(&self) -> u64 {
        self.deliveries.get()
    }

    /// So many events took from `due` until `now`.
    #[inline]
    pub fn took(&self, due: Instant, now: Instant, events: u64) {
        if self.measuring.get() {
            self.latency.borrow_mut().saturating_record_n((now - due).as_nanos() as u64, events);
        }
    }

    /// Lets the tasks warm up and measures them. The figures are all from the same interval.
    pub async fn measure(&self, common: &Common, target: &Target, counted: Counted) -> anyhow::Result<Measured> {
        let count = match counted {
            Counted::Events => &self.events,
            Counted::Deliveries => &self.deliveries,
        };
        let bar = progress_bar(counted);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut ticks = interval(PROGRESS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut before = None;
        let mut boundary = self.start + WARM_UP;
        let mut shown = (self.start, 0);
        loop {
            select! {
                biased;
                _ = interrupt.recv() => boundary = Instant::now(),
                _ = terminate.recv() => boundary = Instant::now(),
                () = sleep_until(boundary.into()) => {}
                _ = ticks.tick() => {}
            }
            let now = Instant::now();
            if now < boundary {
                let rate = (count.get() - shown.1) as f64 / (now - shown.0).as_secs_f64();
                shown = (now, count.get());
                bar.set_message(format!("{rate:>11.0}/s  {}", Latency::of(&self.latency.borrow())));
                bar.tick();
            } else if let Some(before) = &before {
                let after = self.moment(target)?;
                self.measuring.set(false);
                bar.finish_and_clear();
                return Ok(Measured::between(before, &after, counted, Latency::of(&self.latency.borrow())));
            } else if now < self.start + WARM_UP {
                bail!("interrupted before anything was measured");
            } else {
                before = Some(self.moment(target)?);
                self.measuring.set(true);
                boundary = Instant::now() + Duration::from_secs(common.seconds);
            }
        }
    }

    fn moment(&self, target: &Target) -> anyhow::Result<Moment> {
        Ok(Moment {
            at: Instant::now(),
            events: self.events.get(),
            deliveries: self.deliveries.get(),
            machine: Machine::now()?,
            client: Usage::of(process::id())?,
            server: target.pid.map(Usage::of).transpose()?,
        })
    }
}

/// What the CPU time is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    Events,
    Deliveries,
}

/// Everything that is counted, at one moment.
struct Moment {
    at: Instant,
    events: u64,
    deliveries: u64,
    machine: Machine,
    client: Usage,
    server: Option<Usage>,
}

/// What happened in the measured interval.
pub struct Measured {
    pub elapsed: Duration,
    pub events: u64,
    pub deliveries: u64,
    pub latency: Latency,
    pub client: Cost,
    /// `None` where the server's process is not known.
    pub server: Option<Cost>,
    /// What of all processors' time was in use.
    pub shares: Shares,
}

impl Measured {
    fn between(before: &Moment, after: &Moment, counted: Counted, latency: Latency) -> Self {
        let elapsed = after.at - before.at;
        let (events, deliveries) = (after.events - before.events, after.deliveries - before.deliveries);
        let units = if counted == Counted::Events { events } else { deliveries };
        let cost = |before, after| Cost::between(before, after, elapsed, units, events);
        let client = cost(&before.client, &after.client);
        let server = before.server.as_ref().zip(after.server.as_ref()).map(|(before, after)| cost(before, after));
        let shares = Shares {
            client: client.cpu.as_secs_f64() / elapsed.as_secs_f64(),
            server: server.as_ref().map(|server| server.cpu.as_secs_f64() / elapsed.as_secs_f64()),
            all: after.machine.busy_since(&before.machine),
            processors: available_parallelism().map_or(1, usize::from),
        };
        Self { elapsed, events, deliveries, latency, client, server, shares }
    }
}

/// What was in use, in processors: 1.5 is one and a half.
#[derive(Debug, Serialize)]
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

fn progress_bar(counted: Counted) -> ProgressBar {
    // It draws only when told to: a thread of its own would take time from the server.
    let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let unit = if counted == Counted::Events { "events" } else { "deliveries" };
    let template = format!("{{spinner}} {{elapsed:>4}}  {unit} {{msg}}");
    let style = ProgressStyle::with_template(&template).expect("a valid template");
    ProgressBar::with_draw_target(None, target).with_style(style)
}
