//! When the events of a recording are due, and a queue of due events for each connection.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::recording::Recording;
use crate::schedule::{Pacer, RateProfile};

/// How often due events are looked for. The offsets of recordings are in milliseconds.
const LOOKS_PER_SECOND: u64 = 1_000;

/// When the events of several classes are due. Each class repeats its recording without end.
pub struct ReplaySchedule {
    /// The offset of each event.
    offsets: Vec<Duration>,
    lap: Duration,
    speed: f64,
    /// The event of the recording with which each class begins.
    begins: Vec<usize>,
    /// The next event of each class: its time, its class, and how many events of its class come before it.
    next: BinaryHeap<Reverse<(Duration, usize, usize)>>,
}

/// An event that is due.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    pub class: usize,
    /// Which event of the recording it is.
    pub event: usize,
    /// Since the start.
    pub at: Duration,
}

impl ReplaySchedule {
    /// Classes that all start now, each with the given event of the recording, `speed` times as fast as recorded.
    pub fn new(recording: &Recording, begins: &[usize], speed: f64) -> Self {
        let offsets = recording.events.iter().map(|event| event.offset).collect();
        let (begins, next) = (begins.to_vec(), BinaryHeap::new());
        let mut schedule = Self { offsets, lap: recording.lap(), speed, begins, next };
        schedule.next = (0..schedule.begins.len()).map(|class| Reverse((schedule.time(class, 0), class, 0))).collect();
        schedule
    }

    /// When the event of a class is due that follows `before` others of the class.
    fn time(&self, class: usize, before: usize) -> Duration {
        let (count, begin) = (self.offsets.len(), self.begins[class]);
        let index = begin + before;
        let recorded = self.offsets[index % count] + self.lap * (index / count) as u32;
        (recorded - self.offsets[begin]).div_f64(self.speed)
    }

    /// Takes the next event that is due by now, if there is one.
    pub fn take(&mut self, now: Duration) -> Option<Due> {
        let Reverse((at, class, before)) = *self.next.peek()?;
        if at > now {
            return None;
        }
        self.next.pop();
        self.next.push(Reverse((self.time(class, before + 1), class, before + 1)));
        Some(Due { class, event: (self.begins[class] + before) % self.offsets.len(), at })
    }

    /// How many events are due until a time.
    pub fn count(&self, until: Duration) -> u64 {
        let of_class = |begin: &usize| {
            let recorded = self.offsets[*begin] + until.mul_f64(self.speed);
            let laps = (recorded.as_nanos() / self.lap.as_nanos()) as u32;
            let of_lap = self.offsets.partition_point(|offset| *offset <= recorded - self.lap * laps);
            u64::from(laps) * self.offsets.len() as u64 + of_lap as u64 - *begin as u64
        };
        self.begins.iter().map(of_class).sum()
    }

    /// Puts each event into its queue when it is due; `queue_of` says which. Never ends.
    ///
    /// # Errors
    /// The system has no thread for the clock.
    pub async fn run(
        mut self,
        start: Instant,
        queues: Vec<Rc<DueQueue>>,
        queue_of: impl Fn(&Due) -> usize,
    ) -> anyhow::Result<()> {
        // One clock for all connections: a thousand connections that each watched it would do nothing else.
        let mut clock = Pacer::start(start, RateProfile::steady(LOOKS_PER_SECOND))?.schedule(0, 1);
        loop {
            clock.changed().await;
            while clock.take(usize::MAX).is_some() {}
            let now = start.elapsed();
            while let Some(due) = self.take(now) {
                queues[queue_of(&due)].add(start + due.at);
            }
        }
    }
}

/// The due times of one connection's events that are not sent.
#[derive(Default)]
pub struct DueQueue {
    due: RefCell<VecDeque<Instant>>,
    more: Notify,
}

impl DueQueue {
    fn add(&self, due: Instant) {
        self.due.borrow_mut().push_back(due);
        self.more.notify_one();
    }

    /// Wakes the producer, so that it notices the end of the run.
    pub fn wake(&self) {
        self.more.notify_one();
    }

    /// Waits until more is due. Cancel safe.
    pub async fn changed(&self) {
        self.more.notified().await;
    }

    /// Takes up to `max` events that are due: since when, and how many.
    pub fn take(&self, max: usize) -> Option<(Instant, usize)> {
        let mut due = self.due.borrow_mut();
        let at = *due.front().filter(|_| max > 0)?;
        let together = due.iter().take(max).take_while(|other| **other == at).count();
        due.drain(..together);
        Some((at, together))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::CLASSROOM;

    #[test]
    fn every_event_is_due_once_a_lap_in_order_at_its_recorded_time() {
        let recording = Recording::parse(CLASSROOM).expect("a recording");
        let (count, lap) = (recording.events.len(), recording.lap());
        for (speed, classes) in [(1.0, 1), (1.0, 3), (10.0, 7), (0.5, 2)] {
            let begins = (0..classes).map(|c| recording.first_from(lap * c / classes)).collect::<Vec<_>>();
            let mut schedule = ReplaySchedule::new(&recording, &begins, speed);
            let mut played = vec![Vec::new(); classes as usize];
            let mut last = Duration::ZERO;
            // In steps, as a clock would go; three laps, and a little of the fourth.
            for now in (0..=1_000).map(|step| (lap * 3).div_f64(speed) * step / 1_000) {
                while let Some(due) = schedule.take(now) {
                    assert!(last <= due.at && due.at <= now);
                    last = due.at;
                    played[due.class].push((due.event, due.at));
                }
                assert_eq!(schedule.count(now), played.iter().map(|played| played.len() as u64).sum::<u64>());
            }
            for (played, begin) in played.iter().zip(begins) {
                assert!(played.len() > 3 * count, "{}", played.len());
                let recorded = |n: usize| recording.events[n % count].offset + lap * (n / count) as u32;
                let expected = (begin..).map(|n| (n % count, (recorded(n) - recorded(begin)).div_f64(speed)));
                assert!(expected.zip(played).all(|(expected, played)| expected == *played));
            }
        }
    }

    #[test]
    fn events_due_together_are_taken_together() {
        let (one, queue) = (Instant::now(), DueQueue::default());
        let two = one + Duration::from_millis(1);
        [one, one, one, two].into_iter().for_each(|due| queue.add(due));
        assert_eq!(queue.take(0), None);
        assert_eq!([queue.take(2), queue.take(2), queue.take(2)], [Some((one, 2)), Some((one, 1)), Some((two, 1))]);
        assert_eq!(queue.take(2), None);
    }
}
