//! When events are due, if there is a rate.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::watch;

/// Most often that events become due. At a higher rate several are due at once, as in bursts of real
/// traffic; a thread woken more often would take time from the server.
const TICKS_PER_SECOND_MAX: u64 = 1_000;

/// The beat for all producers. Its ticks come from a thread that sleeps: the timers of the runtime are a
/// millisecond coarse, which would be counted as the server's latency.
pub struct Pace {
    start: Instant,
    units_per_second: u64,
    ticks_per_second: u64,
    ticks: watch::Receiver<u64>,
}

impl Pace {
    /// Starts to beat. It ends by itself once everything that listens is gone.
    pub fn start(start: Instant, units_per_second: u64) -> anyhow::Result<Self> {
        let ticks_per_second = units_per_second.min(TICKS_PER_SECOND_MAX);
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
        Ok(Self { start, units_per_second, ticks_per_second, ticks })
    }

    /// What is due of one of `producers` producers, each with its share of the rate.
    pub fn schedule(&self, producer: usize, producers: usize) -> Schedule {
        Schedule {
            start: self.start,
            units_per_second: self.units_per_second,
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
    units_per_second: u64,
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
        let all = tick * self.units_per_second / self.ticks_per_second;
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
            let pace = Pace { start, units_per_second: rate, ticks_per_second, ticks };
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
    fn the_beat_comes_until_nobody_listens() {
        let pace = Pace::start(Instant::now(), 5_000).expect("a thread");
        let mut schedule = pace.schedule(0, 1);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut taken = 0;
        while taken < 50 {
            runtime.block_on(schedule.changed());
            taken += schedule.take(50).map_or(0, |(_, units)| units);
        }
    }
}
