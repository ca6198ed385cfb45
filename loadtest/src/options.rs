//! Options of every scenario.

use std::time::Duration;

use clap::{Args, Command};

use crate::interrupt::Interrupt;
use crate::schedule::{Profile, Rate};
use crate::target::TargetArgs;

/// Options of every scenario.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// How long to measure; Ctrl-C ends it early
    #[arg(long, global = true, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Seconds before that are not measured: connections settle, and the server allocates its first pages and buffers
    #[arg(long, global = true, value_name = "N", default_value_t = 1.0, value_parser = warm_up)]
    pub warm_up: f64,
    /// Events at a rate come at random times (a Poisson process), as those of many people do, not at equal distances
    #[arg(long, global = true)]
    pub poisson: bool,
    /// Repeat the measurement this many times, and print the median and the spread
    #[arg(long, global = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    #[command(flatten)]
    pub target: TargetArgs,
    #[arg(skip)]
    pub interrupt: Interrupt,
}

fn warm_up(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|seconds| (0.0..=3_600.0).contains(seconds)).ok_or("not a number from 0 to 3600")
}

/// The options of a scenario that is called without any.
pub fn defaults<A: Args>() -> A {
    let matches = A::augment_args(Command::new("")).get_matches_from([""]);
    A::from_arg_matches(&matches).expect("no option is required")
}

impl Common {
    /// The events of a run at a rate; `None` of one that goes as fast as it can.
    pub fn profile(&self, Rate(rate): Rate) -> Option<Profile> {
        rate.map(|rate| Profile::steady(rate).at_random(self.poisson))
    }

    pub fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up)
    }
}
