//! When events are due, if there is a rate.

use std::collections::VecDeque;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::watch;

/// Most often that events become due. At a higher rate several are due at once, as in bursts of real
/// traffic; a thread woken more often would take time from the server.
const TICKS_PER_SECOND_MAX: u64 = 1_000;

/// Events a second, or something else a second; `None` is as fast as it goes.
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

/// Units a second over time: a rate, and the times from which on there is another.
#[derive(Debug, Clone)]
pub struct Rhythm {
    /// Each with the time from the start from which on it holds; the first from 0.
    rates: Vec<(Duration, u64)>,
    /// Of these rates it is one of so many equal shares.
    shares: u64,
}

impl Rhythm {
    /// The same rate all the time.
    pub fn steady(units_per_second: u64) -> Self {
        Self { rates: vec![(Duration::ZERO, units_per_second)], shares: 1 }
    }

    /// Another rate from a later time on.
    pub fn then(mut self, from: Duration, units_per_second: u64) -> Self {
        self.rates.push((from, units_per_second));
        self
    }

    /// A share of it, of so many equal ones.
    pub fn divided(&self, shares: u64) -> Self {
        Self { shares: self.shares * shares, ..self.clone() }
    }

    fn ticks_per_second(&self) -> u64 {
        self.rates.iter().map(|(_, rate)| *rate).max().unwrap_or_default().clamp(1, TICKS_PER_SECOND_MAX)
    }

    /// How many units are due with this tick, since the start.
    fn due(&self, tick: u64, ticks_per_second: u64) -> u64 {
        let tick_of = |time: Duration| (time.as_nanos() * u128::from(ticks_per_second) / 1_000_000_000) as u64;
        let ends = self.rates.iter().skip(1).map(|(from, _)| tick_of(*from)).chain([u64::MAX]);
        let spans = self.rates.iter().zip(ends).map(|((from, rate), end)| {
            let ticks = tick.min(end).saturating_sub(tick_of(*from));
            u128::from(*rate) * u128::from(ticks)
        });
        (spans.sum::<u128>() / u128::from(ticks_per_second) / u128::from(self.shares)) as u64
    }
}

/// The beat for all producers. Its ticks come from a thread that sleeps: the timers of the runtime are a
/// millisecond coarse, which would be counted as the server's latency.
pub struct Pace {
    start: Instant,
    rhythm: Rhythm,
    ticks_per_second: u64,
    ticks: watch::Receiver<u64>,
}

impl Pace {
    /// Starts to beat. It ends by itself once everything that listens is gone.
    pub fn start(start: Instant, rhythm: Rhythm) -> anyhow::Result<Self> {
        let ticks_per_second = rhythm.ticks_per_second();
        let (beat, ticks) = watch::channel(0);
        let pacemaker = move || {
            let mut tick = 0;
            while beat.send(tick).is_ok() {
                let elapsed = start.elapsed();
                // More than one if we were kept from running.
                tick = (elapsed.as_nanos() as u64 * ticks_per_second / 1_000_000_000).max(tick) + 1;
                thread::sleep(time(tick, ticks_per_second).saturating_sub(elapsed));
            }
        };
        thread::Builder::new().name("pace".into()).spawn(pacemaker).context("start a thread")?;
        Ok(Self { start, rhythm, ticks_per_second, ticks })
    }

    /// What is due of one of `producers` producers, each with its share of the rate.
    pub fn schedule(&self, producer: usize, producers: usize) -> Schedule {
        self.schedule_of(self.rhythm.clone(), producer, producers)
    }

    /// The same of another rhythm, at the ticks of this one.
    pub fn schedule_of(&self, rhythm: Rhythm, producer: usize, producers: usize) -> Schedule {
        Schedule {
            start: self.start,
            rhythm,
            ticks_per_second: self.ticks_per_second,
            ticks: self.ticks.clone(),
            producer: producer as u64,
            producers: producers as u64,
            next_tick: 0,
            units: 0,
            backlog: VecDeque::new(),
        }
    }
}

/// When this tick should come, counted from the start.
fn time(tick: u64, ticks_per_second: u64) -> Duration {
    Duration::from_nanos(tick * 1_000_000_000 / ticks_per_second)
}

/// What is due of one producer.
pub struct Schedule {
    start: Instant,
    rhythm: Rhythm,
    ticks_per_second: u64,
    ticks: watch::Receiver<u64>,
    producer: u64,
    producers: u64,
    next_tick: u64,
    /// Due up to `next_tick`.
    units: u64,
    /// Due and not sent: when, and how many.
    backlog: VecDeque<(Instant, usize)>,
}

impl Schedule {
    /// Waits until more is due. Cancel safe.
    pub async fn changed(&mut self) {
        // The thread that beats outlives us.
        let _ = self.ticks.changed().await;
    }

    /// Takes up to `max` units that are due: since when, and how many.
    pub fn take(&mut self, max: usize) -> Option<(Instant, usize)> {
        let tick = *self.ticks.borrow_and_update();
        while self.next_tick <= tick {
            let due = self.due(self.next_tick);
            if due > self.units {
                let at = self.start + time(self.next_tick, self.ticks_per_second);
                self.backlog.push_back((at, (due - self.units) as usize));
                self.units = due;
            }
            self.next_tick += 1;
        }
        let (at, left) = self.backlog.front_mut().filter(|_| max > 0)?;
        let (at, taken) = (*at, max.min(*left));
        *left -= taken;
        if *left == 0 {
            self.backlog.pop_front();
        }
        Some((at, taken))
    }

    /// Our share of all units that are due with this tick: every so-manieth.
    fn due(&self, tick: u64) -> u64 {
        let all = self.rhythm.due(tick, self.ticks_per_second);
        (all + self.producers - 1 - self.producer) / self.producers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_due_is_taken_once_and_dated_as_intended() {
        let start = Instant::now();
        for (rate, producers) in [(1, 1), (7, 3), (999, 4), (1_000, 4), (12_345, 64)] {
            let ticks_per_second = rate.min(TICKS_PER_SECOND_MAX);
            let (beat, ticks) = watch::channel(0);
            let pace = Pace { start, rhythm: Rhythm::steady(rate), ticks_per_second, ticks };
            let mut taken = 0;
            let mut schedules = (0..producers).map(|p| pace.schedule(p, producers)).collect::<Vec<_>>();
            // The last beat skips some ticks.
            for tick in (0..=ticks_per_second).chain([3 * ticks_per_second]) {
                beat.send(tick).expect("they listen");
                for schedule in &mut schedules {
                    assert!(schedule.take(0).is_none());
                    while let Some((at, units)) = schedule.take(5) {
                        assert!((1..=5).contains(&units) && at <= start + time(tick, ticks_per_second));
                        taken += units as u64;
                    }
                }
            }
            assert_eq!(taken, 3 * rate);
        }
    }

    #[test]
    fn a_rhythm_changes_when_it_should() {
        let seconds = Duration::from_secs;
        let rhythm = Rhythm::steady(10).then(seconds(2), 5_000).then(seconds(3), 10);
        let ticks = rhythm.ticks_per_second();
        assert_eq!(ticks, TICKS_PER_SECOND_MAX);
        let due = [0, 100, 2_000, 2_001, 3_000, 4_000].map(|tick| rhythm.due(tick, ticks));
        assert_eq!(due, [0, 1, 20, 25, 5_020, 5_030]);
        let due = [0, 100, 2_000, 2_001, 3_000, 4_000].map(|tick| rhythm.divided(2).divided(5).due(tick, ticks));
        assert_eq!(due, [0, 0, 2, 2, 502, 503]);
    }

    #[test]
    fn the_beat_comes_until_nobody_listens() {
        let pace = Pace::start(Instant::now(), Rhythm::steady(5_000)).expect("a thread");
        let mut schedule = pace.schedule(0, 1);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut taken = 0;
        while taken < 50 {
            runtime.block_on(schedule.changed());
            taken += schedule.take(50).map_or(0, |(_, units)| units);
        }
    }
}
