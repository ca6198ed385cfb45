//! When the next request may be sent.

use std::future::pending;
use std::rc::Rc;
use std::time::Instant;

use crate::deliveries::Deliveries;
use crate::replay::DueQueue;
use crate::run::Run;
use crate::schedule::{Pacer, Rate, RateProfile, Schedule};

/// What a producer waits for before it sends, besides its window.
pub enum Flow {
    /// Nothing: as fast as answers come (a closed model).
    Window,
    /// Subscribers have received the events sent before.
    Received(Rc<Deliveries>),
    /// The time at which a request is due (an open model). A wait for the window counts as latency.
    Due(Schedule),
    /// The same with the due times of a recording.
    Replayed(Rc<DueQueue>),
}

impl Flow {
    /// The flow of the only producer of a run with subscribers: at a rate, or as fast as they receive.
    pub fn to_subscribers(rate: Rate, run: &Run, deliveries: &Rc<Deliveries>) -> anyhow::Result<Self> {
        Ok(match rate {
            Rate(None) => Self::Received(deliveries.clone()),
            Rate(Some(rate)) => Self::at_rate(rate, run)?,
        })
    }

    /// The flow of the only producer, at this rate.
    pub fn at_rate(per_second: u64, run: &Run) -> anyhow::Result<Self> {
        Ok(Self::Due(Pacer::start(run.start, RateProfile::steady(per_second))?.schedule(0, 1)))
    }

    /// The flow of one of `producers` producers: at its share of the rate, or as fast as answers come if there is none.
    pub fn share(pacer: Option<&Pacer>, producer: usize, producers: usize) -> Self {
        pacer.map_or(Self::Window, |pacer| Self::Due(pacer.schedule(producer, producers)))
    }

    /// Waits until more may be sent. Cancel safe.
    pub async fn changed(&mut self) {
        match self {
            Self::Window => pending().await,
            Self::Received(deliveries) => deliveries.progress().await,
            Self::Due(schedule) => schedule.changed().await,
            Self::Replayed(queue) => queue.changed().await,
        }
    }

    /// How many of at most `max` requests may be sent, and when they were due.
    pub fn take(&mut self, max: usize) -> Option<(Instant, usize)> {
        let max = match self {
            Self::Due(schedule) => return schedule.take(max),
            Self::Replayed(queue) => return queue.take(max),
            Self::Received(deliveries) => deliveries.room(max),
            Self::Window => max,
        };
        (max > 0).then(|| (Instant::now(), max))
    }
}
