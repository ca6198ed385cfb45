//! The scenario `slow-consumer`: subscribers that do not keep up, their cost for the others, and their catching up.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use event_pipeline::config::Config;
use serde::Serialize;
use tokio::select;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until, timeout};

use crate::answer;
use crate::connection::{Connection, Dial, Scratch};
use crate::deliveries::{Deliveries, FilterBy};
use crate::events::Events;
use crate::flow::Flow;
use crate::latency::Operation;
use crate::machine;
use crate::measurement::Measured;
use crate::options::Common;
use crate::producer::Producer;
use crate::report::{Findings, Report, grouped};
use crate::requests::{Framing, Requests};
use crate::run::{PATIENCE, Run, WARM_UP};
use crate::schedule::Rate;
use crate::subscriber::{Subscribers, subscribe_on};
use crate::target::Target;
use crate::tasks::Tasks;
use crate::timeline::STEP;
use crate::tracker::{Dialect, RequestTracker};
use crate::wire::frames;

/// A small receive buffer for slow subscribers, so that unread events wait in the server and not in the system.
const RECEIVE_BUFFER_BYTES: u32 = 64 << 10;

/// Let some subscribers hang for a third of the time, and measure the effect on the others
///
/// A third of the time all keep up; in the next one the slow ones hang, or read little; then they read on. Verifies
/// that all get every event exactly once and in order: the slow ones too, from the server's storage.
#[derive(Args, Debug, Clone, Serialize)]
pub struct SlowConsumer {
    /// Subscribers that keep up; they are measured
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    fast: u32,
    /// Subscribers that do not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    slow: u32,
    /// What each slow one reads a second while it is slow; by default it hangs
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    slow_bytes_per_second: u32,
    /// Events a second, or max: as fast as the fast ones receive them
    #[arg(long, value_name = "RATE", default_value = "20000")]
    rate: Rate,
    /// Events that are published and not yet received by all fast ones or acknowledged
    #[arg(long, value_name = "N", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    #[command(flatten)]
    #[serde(flatten)]
    events: Events,
}

impl SlowConsumer {
    pub async fn measure(&self, common: &Common) -> anyhow::Result<Report> {
        let subscribers = (self.fast + self.slow) as usize;
        machine::ensure_open_files(subscribers)?;
        let target = Target::new(&common.target.with_slots(subscribers, 1)).await?;
        let (newest, stored) = (target.newest().await?, target.stored().await?);
        let scratch = Scratch::default();
        let deliveries = Deliveries::new(newest, &self.events, &[(FilterBy::All, self.fast)], self.window, true);
        let deliveries = Rc::new(deliveries);
        let connected = Subscribers::connect(deliveries.clone(), &target, &scratch).await?;
        let mut slow = Vec::new();
        let dial = Dial { receive_buffer_bytes: Some(RECEIVE_BUFFER_BYTES), ..Dial::default() };
        for number in 0..self.slow {
            let connection = Connection::dial(&target.authority, dial, &scratch).await?;
            let connection = subscribe_on(connection, &target, "{}").await;
            slow.push(connection.with_context(|| format!("slow subscriber {number}"))?);
        }
        let connection = Connection::web_socket(&target, "/ws/publish", &scratch).await?;
        let requests = Rc::new(Requests::render(&self.events, 1, &Framing::WebSocket, 0, 1));

        let third = Duration::from_secs(common.seconds) / 3;
        let run = Run::in_phases(Operation::Delivery, newest, STEP, &[WARM_UP + third, WARM_UP + 2 * third]);
        let hang = run.start + WARM_UP + third..run.start + WARM_UP + 2 * third;
        let flow = Flow::to_subscribers(self.rate, &run, &deliveries)?;
        let tracker =
            RequestTracker::new(run.clone(), requests, Dialect::WebSocket).with_deliveries(deliveries.clone());
        let mut tasks = Tasks::default();
        tasks.spawn(Producer::new(connection, flow, self.window as usize, tracker).run());
        connected.listen(&run, &mut tasks);
        let progress = Rc::new(Notify::new());
        let slow = slow.into_iter().enumerate().map(|(number, connection)| {
            let slow = Rc::new(Slow::new(number, run.clone(), newest, progress.clone()));
            tasks.spawn_endless(slow.clone().run(connection, hang.clone(), self.slow_bytes_per_second));
            slow
        });
        let slow = slow.collect::<Vec<_>>();
        let measured = tasks.measure(&run, common, &target).await?;
        slow.iter().for_each(|slow| slow.resume.notify_one());
        tasks.finish(&run).await?;
        deliveries.check(&run).await;
        let last = newest + run.counted(Operation::Acknowledgement);
        let done = || slow.iter().all(|slow| slow.last.get() >= last || slow.lost.borrow().is_some());
        while !done() && timeout(PATIENCE, progress.notified()).await.is_ok() {}
        tasks.shutdown().await;
        // The server may cut off a subscriber that takes nothing for this long.
        let patience = match common.target.setting("WRITE_TIMEOUT_SECONDS").map(str::parse) {
            Some(Ok(seconds)) => Duration::from_secs_f64(seconds),
            _ => Config::default().write_timeout,
        };
        let may_be_cut_off = self.slow_bytes_per_second == 0 && third >= patience;
        slow.iter().for_each(|slow| slow.check(last, may_be_cut_off));
        run.check_stored(&target, stored).await?;

        let slowness = match self.slow_bytes_per_second {
            0 => "hang".to_owned(),
            bytes => format!("read {} bytes/s", grouped(f64::from(bytes))),
        };
        let title = format!("{} subscribers that keep up, {} that {slowness} for a while", self.fast, self.slow);
        let mut notes = phases(&measured, third);
        notes.extend(told(&slow, third));
        let findings = Findings::new("slow-consumer", title, self).at(self.rate).noting(notes);
        Ok(Report::new(findings, &run, measured, target.stop()?))
    }
}

/// The latency of the fast subscribers and the memory of the server in each third.
fn phases(measured: &Measured, third: Duration) -> Vec<String> {
    let names = ["Before", "While some are slow", "Afterwards"];
    let told = names.iter().zip(&measured.phases).zip(1..).map(|((name, latency), number)| {
        let until = third.as_secs_f64() * f64::from(number);
        let of_phase = measured.timeline.iter().filter(|point| {
            // The last one ends a little later than it should.
            let end = if number == 3 { f64::INFINITY } else { until };
            (until - third.as_secs_f64()..end).contains(&point.at)
        });
        let memory = of_phase.filter_map(|point| point.server_memory_bytes).max();
        let memory =
            memory.map_or(String::new(), |bytes| format!("; the server held {:.0} MB at most", bytes as f64 / 1e6));
        format!("{name}: delivered in {latency}{memory}.")
    });
    told.collect()
}

/// What the slow subscribers missed, and how long they took to catch up.
fn told(slow: &[Rc<Slow>], third: Duration) -> Vec<String> {
    let lost = slow.iter().filter_map(|slow| slow.lost.borrow().clone()).collect::<Vec<_>>();
    let caught_up = slow.iter().filter_map(|slow| slow.caught_up.get()).collect::<Vec<_>>();
    let missed = slow.iter().filter_map(|slow| slow.missed.get());
    let mut told = Vec::new();
    if let Some(missed) = missed.max() {
        let missed = grouped(missed as f64);
        told.push(format!("After {:.1} s the slow ones were up to {missed} events behind.", third.as_secs_f64()));
    }
    if let Some(longest) = caught_up.iter().max() {
        let (count, longest) = (caught_up.len(), longest.as_secs_f64() * 1e3);
        told.push(format!("{count} of them had these within {longest:.0} ms of reading on."));
    }
    if let Some(first) = lost.first() {
        told.push(format!("{} of them were cut off, the first with: {first}.", lost.len()));
    }
    told
}

/// A subscriber of everything that is slow for a while.
struct Slow {
    number: usize,
    run: Rc<Run>,
    /// The last event before the run.
    newest: u64,
    /// The last event it got.
    last: Cell<u64>,
    /// Makes it read on early.
    resume: Notify,
    /// When it read on, and the newest event then.
    resumed: Cell<Option<(Instant, u64)>>,
    /// How many events it was behind then, and how long it took to have these.
    missed: Cell<Option<u64>>,
    caught_up: Cell<Option<Duration>>,
    /// Why its connection ended.
    lost: RefCell<Option<String>>,
    progress: Rc<Notify>,
}

impl Slow {
    fn new(number: usize, run: Rc<Run>, newest: u64, progress: Rc<Notify>) -> Self {
        let (resume, resumed, missed, caught_up, lost) = Default::default();
        let last = Cell::new(newest);
        Self { number, run, newest, last, resume, resumed, missed, caught_up, lost, progress }
    }

    /// Reads, between two times at most `rate` bytes a second. Never ends, not even when the connection is lost.
    async fn run(self: Rc<Self>, mut connection: Connection, slow: Range<Instant>, rate: u32) -> anyhow::Result<()> {
        let read = async {
            select! {
                lost = self.read(&mut connection, None) => lost?,
                () = sleep_until(slow.start.into()) => {}
            }
            select! {
                lost = self.read(&mut connection, Some(rate)) => lost?,
                () = sleep_until(slow.end.into()) => {}
                () = self.resume.notified() => {}
            }
            let newest = self.newest + self.run.counted(Operation::Acknowledgement);
            self.resumed.set(Some((Instant::now(), newest)));
            self.missed.set(Some(newest.saturating_sub(self.last.get())));
            self.read(&mut connection, None).await
        };
        let lost: anyhow::Result<()> = read.await;
        self.lost.replace(lost.err().map(|error| format!("{error:#}")));
        self.progress.notify_one();
        pending().await
    }

    /// Reads until the connection is lost, with a rate at most that many bytes a second. Cancel safe.
    async fn read(&self, connection: &mut Connection, rate: Option<u32>) -> anyhow::Result<()> {
        if rate == Some(0) {
            return pending().await;
        }
        // Bytes of an unfinished message are read again.
        let mut held = 0;
        loop {
            let mut new = 0;
            let take = |bytes: &[u8], out: &mut Vec<u8>| {
                let used = frames(bytes, out, |text| self.take(text))?;
                new = bytes.len() - held;
                held = bytes.len() - used;
                Ok(used)
            };
            connection.exchange(take).await?;
            self.progress.notify_one();
            if let Some(rate) = rate {
                sleep(Duration::from_secs_f64(new as f64 / f64::from(rate))).await;
            }
        }
    }

    fn take(&self, text: &[u8]) -> anyhow::Result<()> {
        let Some(sequence) = answer::of_delivery(text)? else { return Ok(()) };
        let last = self.last.replace(sequence);
        if sequence != last + 1 {
            let number = self.number;
            self.run.violation(|| format!("slow subscriber {number} got event {sequence} after {last}"));
        }
        if let Some((since, newest)) = self.resumed.get()
            && sequence >= newest
            && self.caught_up.get().is_none()
        {
            self.caught_up.set(Some(since.elapsed()));
        }
        Ok(())
    }

    /// Notes violations: it must have received every event up to `newest`.
    fn check(&self, newest: u64, may_be_cut_off: bool) {
        let (number, last) = (self.number, self.last.get());
        let mut verification = self.run.verification.borrow_mut();
        match &*self.lost.borrow() {
            Some(_) if may_be_cut_off => {}
            Some(why) => {
                verification.violation(|| format!("slow subscriber {number} was cut off after event {last}: {why}"))
            }
            None if last == newest => {}
            None => verification.violation(|| format!("slow subscriber {number} got events up to {last} of {newest}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(run: &Rc<Run>) -> Slow {
        Slow::new(4, run.clone(), 10, Rc::default())
    }

    fn deliver(slow: &Slow, sequences: impl IntoIterator<Item = u64>) {
        for sequence in sequences {
            let text = format!(r#"{{"id":"evt_{sequence:012x}","event_type":"t"}}"#);
            slow.take(text.as_bytes()).expect("an event");
        }
    }

    #[test]
    fn a_slow_subscriber_has_caught_up_once_it_has_every_event_from_before_it_read_on() {
        let run = Run::new(Operation::Delivery, 10);
        let slow = slow(&run);
        deliver(&slow, 11..=13);
        slow.resumed.set(Some((Instant::now(), 15)));
        deliver(&slow, [14]);
        assert_eq!(slow.caught_up.get(), None);
        deliver(&slow, 15..=17);
        assert!(slow.caught_up.get().is_some());
        slow.check(17, false);
        assert!(run.verification.borrow().is_clean());
    }

    #[test]
    fn every_event_that_a_slow_subscriber_lacks_is_a_violation() {
        let told = |sequences: &[u64], lost: Option<&str>, may_be_cut_off| {
            let run = Run::new(Operation::Delivery, 10);
            let slow = slow(&run);
            deliver(&slow, sequences.iter().copied());
            slow.lost.replace(lost.map(str::to_owned));
            slow.check(13, may_be_cut_off);
            run.verification.borrow().violations()
        };
        assert_eq!(told(&[11, 13], None, false), ["slow subscriber 4 got event 13 after 11"]);
        assert_eq!(told(&[11, 11, 12, 13], None, false), ["slow subscriber 4 got event 11 after 11"]);
        assert_eq!(told(&[11, 12], None, false), ["slow subscriber 4 got events up to 12 of 13"]);
        let cut_off = ["slow subscriber 4 was cut off after event 12: reset"];
        assert_eq!(told(&[11, 12], Some("reset"), false), cut_off);
        assert_eq!(told(&[11, 12], Some("reset"), true), [] as [&str; 0]);
    }
}
