//! The test: which seeds are run, and how one runs.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::actions::Weights;
use super::random::Random;
use super::world::World;

/// Seeds of an ordinary run of the tests: some 5 seconds.
const SEEDS: u64 = 300;
const ACTIONS_PER_SEED: usize = 300;
/// One seed in 100 runs once for each of its actions, with a crash after that action.
const SEEDS_PER_CRASH_EVERY: u64 = 100;
/// Such a run is shorter than others, because there are as many of them as actions.
const ACTIONS_BEFORE_CRASH_MAX: usize = 60;
const ACTIONS_AFTER_CRASH: usize = 15;

#[test]
fn the_store_and_its_feeds_agree_with_a_model_in_any_order_of_actions() {
    let seeds = seeds(SEEDS, 1);
    let crashes_every = number("SIM_CRASH_EVERY").is_some_and(|number| number > 0);
    let next = AtomicU64::new(seeds.start);
    let run_some = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) {
                return;
            }
            match crashes_every || seed % SEEDS_PER_CRASH_EVERY == SEEDS_PER_CRASH_EVERY - 1 {
                true => (0..ACTIONS_BEFORE_CRASH_MAX).for_each(|actions| run_with_crash_after(seed, actions)),
                false => run(seed),
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(run_some)));
    });
}

/// The seeds to run: the one of `SIM_SEED`, or as many as usual from `SIM_FIRST` on, or one for each `part` of
/// `SIM_SEEDS`.
pub fn seeds(usual: u64, part: u64) -> Range<u64> {
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("SIM_FIRST").unwrap_or(0);
            first..first + number("SIM_SEEDS").map_or(usual, |seeds| seeds / part)
        }
    }
}

/// A number that is set in the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn run(seed: u64) {
    Run::begin(seed).act(ACTIONS_PER_SEED).world.then(World::rest).crash().then(World::rest);
}

fn run_with_crash_after(seed: u64, actions: usize) {
    let mut run = Run::begin(seed).act(actions);
    run.log.actions.push("crash".to_owned());
    run.world = run.world.crash();
    run.act(ACTIONS_AFTER_CRASH).world.then(World::rest).restart().then(World::rest);
}

/// One seed: its world, how often each action happens in it, and what has happened.
struct Run {
    log: Log,
    weights: Weights,
    world: World,
}

impl Run {
    fn begin(seed: u64) -> Self {
        let mut random = Random(seed);
        let weights = Weights::random(&mut random);
        Self { log: Log { seed, actions: Vec::new() }, weights, world: World::new(random) }
    }

    fn act(mut self, times: usize) -> Self {
        for _ in 0..times {
            let (name, act) = self.weights.pick(&mut self.world.random);
            self.log.actions.push(format!("{name} ({})", self.world.model.last().0));
            self.world = act(self.world);
            assert_eq!(self.world.server.store.committed(), self.world.model.last());
            assert!(self.world.server.store.queue_len() <= self.world.config.max_queue_size);
        }
        self
    }
}

/// The actions until now, each with the last event before it, printed if one of them panics.
struct Log {
    seed: u64,
    actions: Vec<String>,
}

impl Drop for Log {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("SIM_SEED={} failed in the last of: {}", self.seed, self.actions.join(", "));
        }
    }
}
