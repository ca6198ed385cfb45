//! When requests are due: rates, and the one clock that all producers at a rate follow.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::Notify;

use crate::random::Random;

/// Requests are due at whole milliseconds. At more than 1,000 a second several are due at one of them, as in bursts of
/// real traffic; a thread woken more often would take time from the server.
const TICK: Duration = Duration::from_millis(1);

/// A rate counts as reached from this share of it on.
pub const RATE_REACHED: f64 = 0.98;

/// Events a second, or something else a second; `None` is as fast as possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rate(pub Option<u64>);

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "max" => Ok(Self(None)),
            Ok(rate @ 1..=100_000_000) => Ok(Self(Some(rate))),
            _ => Err("neither max nor a whole number from 1 to 100000000"),
        }
    }
}

/// Events a second, which may change at given times.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Each rate with the time at which it begins, in seconds; the first at 0.
    rates: Vec<(f64, f64)>,
    /// Whether events come at random times (a Poisson process) or at equal distances.
    random: bool,
}

impl Profile {
    /// The same rate all the time.
    pub fn steady(per_second: u64) -> Self {
        Self { rates: vec![(0.0, per_second as f64)], random: false }
    }

    /// The same number of events at random times, or not.
    pub fn at_random(self, random: bool) -> Self {
        Self { random, ..self }
    }

    /// Another rate from a later time on.
    pub fn then(mut self, from: Duration, per_second: u64) -> Self {
        self.rates.push((from.as_secs_f64(), per_second as f64));
        self
    }

    /// The events of a time, counted from 0.
    pub fn between(&self, from: Duration, to: Duration) -> f64 {
        let until = |time: Duration| {
            let time = time.as_secs_f64();
            let ends = self.rates.iter().skip(1).map(|(from, _)| *from).chain([f64::INFINITY]);
            let spans = self.rates.iter().zip(ends);
            spans.map(|((from, rate), end)| rate * (time.min(end) - from).max(0.0)).sum::<f64>()
        };
        until(to) - until(from)
    }

    pub fn is_random(&self) -> bool {
        self.random
    }

    /// When this many events are due.
    fn time_of(&self, events: f64) -> f64 {
        let (mut left, mut at) = (events, 0.0);
        for ((from, rate), next) in self.rates.iter().zip(self.rates.iter().skip(1).map(|(from, _)| *from)) {
            let of_span = rate * (next - from);
            if left <= of_span {
                return at + left / rate;
            }
            (left, at) = (left - of_span, next);
        }
        at + left / self.rates.last().expect("at least one rate").1
    }
}

/// The times at which one producer's requests are due, ascending.
#[derive(Clone)]
pub enum Arrivals {
    AtRate(AtRate),
    /// Those of a recording, again and again.
    Recorded(Recorded),
}

/// A share of a rate.
#[derive(Clone)]
pub struct AtRate {
    profile: Profile,
    /// Events of all producers from one request of this one to the next.
    stride: f64,
    /// Events of all producers before the next request of this one.
    next: f64,
    random: Random,
}

/// The events of a recording that one producer sends.
#[derive(Clone)]
pub struct Recorded {
    /// When each of them was sent, and in which order they are.
    pub offsets: Vec<Duration>,
    /// From the start of the recording to that of its repetition.
    pub lap: Duration,
    /// The offset with which the recording begins here.
    pub begin: Duration,
    pub speed: f64,
    /// How many are past.
    pub past: usize,
}

impl Arrivals {
    /// Those of one of `producers` producers, which share `share` of a rate equally and have `events_each` events in
    /// each request.
    pub fn at_rate(profile: &Profile, share: f64, events_each: usize, producer: usize, producers: usize) -> Self {
        let between = events_each as f64 / share;
        let stride = between * producers as f64;
        // Producers take turns: the first request is due once all of its events are.
        let mut arrivals = AtRate {
            profile: profile.clone(),
            stride,
            next: between * (producer + 1) as f64,
            random: Random::new(producer),
        };
        if profile.random {
            arrivals.next = 0.0;
            arrivals.advance();
        }
        Self::AtRate(arrivals)
    }

    /// How many requests are due from one time to another.
    pub fn count(&self, from: Duration, to: Duration) -> u64 {
        let (mut arrivals, mut count) = (self.clone(), 0);
        while arrivals.next() < to {
            count += u64::from(arrivals.next() >= from);
            arrivals.advance();
        }
        count
    }

    /// When the next request is due, since the start.
    fn next(&self) -> Duration {
        match self {
            Self::AtRate(AtRate { profile, next, .. }) => Duration::from_secs_f64(profile.time_of(*next)),
            Self::Recorded(Recorded { offsets, lap, begin, speed, past }) => {
                let (laps, offset) = (past / offsets.len(), offsets[past % offsets.len()]);
                // Where it begins in the middle, the events before come after its end.
                let laps = laps + usize::from(offset < *begin);
                (offset + *lap * laps as u32 - *begin).div_f64(*speed)
            }
        }
    }

    fn advance(&mut self) {
        match self {
            Self::AtRate(at_rate) => at_rate.advance(),
            Self::Recorded(recorded) => recorded.past += 1,
        }
    }
}

impl AtRate {
    fn advance(&mut self) {
        self.next += match self.profile.random {
            true => -self.stride * self.random.unit().ln(),
            false => self.stride,
        };
    }
}

/// What is due of one producer, and not sent.
#[derive(Debug, Default)]
pub struct Due {
    state: Mutex<Backlog>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Backlog {
    /// Since when, and how many.
    due: VecDeque<(Instant, usize)>,
    /// Whether no more will be due.
    is_complete: bool,
}

impl Due {
    /// Waits until more is due, or no more will be. Cancel safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes up to `max` requests that are due: since when, and how many.
    pub fn take(&self, max: usize) -> Option<(Instant, usize)> {
        let due = &mut self.state.lock().expect("nobody panics while holding it").due;
        let (at, left) = due.front_mut().filter(|_| max > 0)?;
        let (at, taken) = (*at, max.min(*left));
        *left -= taken;
        if *left == 0 {
            due.pop_front();
        }
        Some((at, taken))
    }

    /// Whether all that was due is taken and no more will be.
    pub fn is_over(&self) -> bool {
        let state = self.state.lock().expect("nobody panics while holding it");
        state.is_complete && state.due.is_empty()
    }

    fn change(&self, change: impl FnOnce(&mut Backlog)) {
        change(&mut self.state.lock().expect("nobody panics while holding it"));
        self.changed.notify_one();
    }
}

/// The clock of a run. It is a thread that sleeps: the timers of the runtime have a resolution of 1 ms, which would be
/// counted as latency of the server.
#[derive(Default)]
pub struct Scheduler {
    producers: Vec<(Arrivals, Arc<Due>)>,
}

/// Ends the schedules of a running [`Scheduler`]. Dropped, it ends them at once.
#[derive(Default)]
pub struct Clock {
    /// Nanoseconds from the start; what is due then or later is never told.
    end: Arc<AtomicU64>,
    start: Option<Instant>,
    thread: Option<Thread>,
}

impl Scheduler {
    /// Adds a producer; what is due of it is told there.
    pub fn add(&mut self, arrivals: Arrivals) -> Arc<Due> {
        let due = Arc::new(Due::default());
        self.producers.push((arrivals, due.clone()));
        due
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// The system has none.
    pub fn run(self, start: Instant) -> anyhow::Result<Clock> {
        let end = Arc::new(AtomicU64::new(u64::MAX));
        if self.producers.is_empty() {
            return Ok(Clock::default());
        }
        let until = end.clone();
        let tick = move || {
            // One clock for all producers: a thousand that each watched it would do nothing else.
            let Self { mut producers } = self;
            let next = |(at, (arrivals, _)): (usize, &(Arrivals, Arc<Due>))| Reverse((tick_of(arrivals.next()), at));
            let mut queue = producers.iter().enumerate().map(next).collect::<BinaryHeap<_>>();
            while let Some(Reverse((due, at))) = queue.pop() {
                let end = Duration::from_nanos(until.load(Ordering::Acquire));
                if due >= end {
                    break;
                }
                let now = start.elapsed();
                if due > now {
                    queue.push(Reverse((due, at)));
                    // It may be woken early, also because the end has become known.
                    thread::park_timeout(due - now);
                    continue;
                }
                let (arrivals, backlog) = &mut producers[at];
                let mut count = 0;
                while tick_of(arrivals.next()) == due {
                    arrivals.advance();
                    count += 1;
                }
                backlog.change(|backlog| backlog.due.push_back((start + due, count)));
                queue.push(Reverse((tick_of(arrivals.next()), at)));
            }
            producers.iter().for_each(|(_, backlog)| backlog.change(|backlog| backlog.is_complete = true));
        };
        let thread = thread::Builder::new().name("clock".into()).spawn(tick).context("start a thread")?;
        Ok(Clock { end, start: Some(start), thread: Some(thread.thread().clone()) })
    }
}

/// The next whole tick.
fn tick_of(time: Duration) -> Duration {
    TICK * time.as_nanos().div_ceil(TICK.as_nanos()) as u32
}

impl Clock {
    /// What is due at this time or later is not told.
    pub fn end_at(&self, end: Instant) {
        let Some(start) = self.start else { return };
        self.end.store((end - start).as_nanos() as u64, Ordering::Release);
        self.thread.iter().for_each(Thread::unpark);
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.end.store(0, Ordering::Release);
        self.thread.iter().for_each(Thread::unpark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn producers_share_a_rate_and_none_is_due_early(
            rate in 1..5_000_u64, factor in 1..9_u64, producers in 1..9_usize, each in 1..200_usize
        ) {
            let (begin, end, all) = (Duration::from_secs(2), Duration::from_secs(3), Duration::from_secs(5));
            let profile = Profile::steady(rate).then(begin, rate * factor).then(end, rate);
            for until in [begin, end, all] {
                let arrivals = (0..producers).map(|p| Arrivals::at_rate(&profile, 0.5, each, p, producers));
                let counts = arrivals.map(|arrivals| arrivals.count(Duration::ZERO, until)).collect::<Vec<_>>();
                let due = profile.between(Duration::ZERO, until) * 0.5 / each as f64;
                let sum = counts.iter().sum::<u64>() as f64;
                prop_assert!(sum <= due + 1e-6 && sum > due - 1.0 - 1e-6, "{sum} of {due}");
                prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
            }
        }

        #[test]
        fn random_arrivals_come_at_the_rate(rate in 50..500_u64, producer in 0..50_usize) {
            let profile = Profile::steady(rate).at_random(true);
            let seconds = 400;
            let mut arrivals = Arrivals::at_rate(&profile, 1.0, 1, producer, 1);
            let mut seen = vec![0_f64; seconds];
            while arrivals.next() < Duration::from_secs(seconds as u64) {
                seen[arrivals.next().as_secs() as usize] += 1.0;
                arrivals.advance();
            }
            let (mean, rate) = (seen.iter().sum::<f64>() / seconds as f64, rate as f64);
            let variance = seen.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / seconds as f64;
            // Five standard deviations of the mean, and of the variance: that of a Poisson process is its mean.
            prop_assert!((mean - rate).abs() < 5.0 * (rate / seconds as f64).sqrt(), "{mean} of {rate}");
            prop_assert!((variance / rate - 1.0).abs() < 5.0 * (2.0 / seconds as f64).sqrt(), "{variance} of {rate}");
        }
    }

    #[test]
    fn all_that_is_due_before_the_end_is_taken_once() {
        let (start, mut scheduler) = (Instant::now(), Scheduler::default());
        let profile = Profile::steady(5_000);
        let queues = (0..3).map(|p| scheduler.add(Arrivals::at_rate(&profile, 1.0, 1, p, 3))).collect::<Vec<_>>();
        let clock = scheduler.run(start).expect("a thread");
        let end = Duration::from_millis(40);
        clock.end_at(start + end);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut taken = 0;
        for due in &queues {
            while !due.is_over() {
                while let Some((at, count)) = due.take(3) {
                    assert!(count <= 3 && at < start + end && at <= Instant::now());
                    taken += count;
                }
                if !due.is_over() {
                    runtime.block_on(due.changed());
                }
            }
        }
        // What is due within the last millisecond belongs to the next tick, which is the end.
        assert_eq!(taken, 39 * 5);
    }

    #[test]
    fn a_recording_is_repeated_at_its_speed_wherever_it_begins() {
        let millis = |all: &[u64]| all.iter().copied().map(Duration::from_millis).collect::<Vec<_>>();
        let recorded = Recorded {
            offsets: millis(&[300, 10, 200]),
            lap: Duration::from_millis(1_000),
            begin: Duration::from_millis(250),
            speed: 2.0,
            past: 0,
        };
        let mut arrivals = Arrivals::Recorded(recorded);
        let times = (0..5).map(|_| {
            let next = arrivals.next();
            arrivals.advance();
            next
        });
        assert_eq!(times.collect::<Vec<_>>(), millis(&[25, 380, 475, 525, 880]));
    }
}
