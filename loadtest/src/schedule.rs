//! When events are due at a target rate.

use std::collections::VecDeque;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::watch;

/// Most ticks a second. At a higher rate several events are due at a tick, as in bursts of real traffic; a thread woken
/// more often would take time from the server.
const TICKS_PER_SECOND_MAX: u64 = 1_000;

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

/// A rate that changes at given times.
#[derive(Debug, Clone)]
pub struct RateProfile {
    /// Each rate with the time at which it begins; the first at 0.
    rates: Vec<(Duration, u64)>,
    /// The profile is one of this many equal shares of the rates.
    shares: u64,
}

impl RateProfile {
    /// The same rate all the time.
    pub fn steady(units_per_second: u64) -> Self {
        Self { rates: vec![(Duration::ZERO, units_per_second)], shares: 1 }
    }

    /// Another rate from a later time on.
    pub fn then(mut self, from: Duration, units_per_second: u64) -> Self {
        self.rates.push((from, units_per_second));
        self
    }

    /// One of `shares` equal shares of it.
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

/// The clock for all producers at a rate. Its ticks come from a thread that sleeps: the timers of the runtime have a
/// resolution of 1 ms, which would be counted as latency of the server.
pub struct Pacer {
    start: Instant,
    profile: RateProfile,
    ticks_per_second: u64,
    ticks: watch::Receiver<u64>,
}

impl Pacer {
    /// Starts the thread, which ends by itself once all schedules are dropped.
    pub fn start(start: Instant, profile: RateProfile) -> anyhow::Result<Self> {
        let ticks_per_second = profile.ticks_per_second();
        let (beat, ticks) = watch::channel(0);
        let pacemaker = move || {
            let mut tick = 0;
            while beat.send(tick).is_ok() {
                let elapsed = start.elapsed();
                // More than one tick if the thread was kept from running.
                tick = (elapsed.as_nanos() as u64 * ticks_per_second / 1_000_000_000).max(tick) + 1;
                thread::sleep(time(tick, ticks_per_second).saturating_sub(elapsed));
            }
        };
        thread::Builder::new().name("pacer".into()).spawn(pacemaker).context("start a thread")?;
        Ok(Self { start, profile, ticks_per_second, ticks })
    }

    /// The same at a steady rate; `None` where that is as fast as possible.
    pub fn steady(start: Instant, Rate(rate): Rate) -> anyhow::Result<Option<Self>> {
        rate.map(|rate| Self::start(start, RateProfile::steady(rate))).transpose()
    }

    /// The schedule of one of `producers` producers, each with its share of the rate.
    pub fn schedule(&self, producer: usize, producers: usize) -> Schedule {
        self.schedule_of(self.profile.clone(), producer, producers)
    }

    /// The same of another profile, at the ticks of this one.
    pub fn schedule_of(&self, profile: RateProfile, producer: usize, producers: usize) -> Schedule {
        Schedule {
            start: self.start,
            profile,
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

/// When the requests of one producer are due.
pub struct Schedule {
    start: Instant,
    profile: RateProfile,
    ticks_per_second: u64,
    ticks: watch::Receiver<u64>,
    producer: u64,
    producers: u64,
    next_tick: u64,
    /// Due up to `next_tick`.
    units: u64,
    /// Due and not sent: since when, and how many.
    backlog: VecDeque<(Instant, usize)>,
}

impl Schedule {
    /// Waits until more is due. Cancel safe.
    pub async fn changed(&mut self) {
        // An error would mean that the thread has ended: it outlives all schedules.
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

    /// The producer's share of all units that are due with this tick: every n-th, with n producers.
    fn due(&self, tick: u64) -> u64 {
        let all = self.profile.due(tick, self.ticks_per_second);
        (all + self.producers - 1 - self.producer) / self.producers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_due_event_is_taken_once_with_its_intended_send_time() {
        let start = Instant::now();
        for (rate, producers) in [(1, 1), (7, 3), (999, 4), (1_000, 4), (12_345, 64)] {
            let ticks_per_second = rate.min(TICKS_PER_SECOND_MAX);
            let (beat, ticks) = watch::channel(0);
            let pacer = Pacer { start, profile: RateProfile::steady(rate), ticks_per_second, ticks };
            let mut taken = 0;
            let mut schedules = (0..producers).map(|p| pacer.schedule(p, producers)).collect::<Vec<_>>();
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
    fn a_rate_profile_changes_at_its_times() {
        let seconds = Duration::from_secs;
        let profile = RateProfile::steady(10).then(seconds(2), 5_000).then(seconds(3), 10);
        let ticks = profile.ticks_per_second();
        assert_eq!(ticks, TICKS_PER_SECOND_MAX);
        let due = [0, 100, 2_000, 2_001, 3_000, 4_000].map(|tick| profile.due(tick, ticks));
        assert_eq!(due, [0, 1, 20, 25, 5_020, 5_030]);
        let due = [0, 100, 2_000, 2_001, 3_000, 4_000].map(|tick| profile.divided(2).divided(5).due(tick, ticks));
        assert_eq!(due, [0, 0, 2, 2, 502, 503]);
    }

    #[test]
    fn ticks_come_until_all_schedules_are_dropped() {
        let pacer = Pacer::start(Instant::now(), RateProfile::steady(5_000)).expect("a thread");
        let mut schedule = pacer.schedule(0, 1);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut taken = 0;
        while taken < 50 {
            runtime.block_on(schedule.changed());
            taken += schedule.take(50).map_or(0, |(_, units)| units);
        }
    }
}
