//! What may happen next, and how often.

use super::random::Random;
use super::world::World;

/// How often each action happens with one seed.
pub struct Weights([u64; ACTIONS.len()]);

impl Weights {
    /// The usual numbers, each multiplied by one of this seed.
    pub fn random(random: &mut Random) -> Self {
        Self(ACTIONS.map(|(name, weight, _)| match name {
            "append" | "write" | "step" => weight * random.pick(&[1, 2, 3]),
            _ => weight * random.pick(&[0, 1, 1, 4]),
        }))
    }

    pub fn pick(&self, random: &mut Random) -> (&'static str, Action) {
        let mut left = random.below(self.0.iter().sum());
        let chosen = self.0.iter().position(|weight| left.checked_sub(*weight).map(|rest| left = rest).is_none());
        let (name, _, act) = ACTIONS[chosen.expect("below the sum")];
        (name, act)
    }
}

pub type Action = fn(World) -> World;

/// All actions by their names, and how often each usually happens.
const ACTIONS: [(&str, u64, Action); 28] = [
    ("append", 24, |world| world.then(World::append)),
    ("repeat", 3, |world| world.then(World::repeat)),
    ("write", 16, |world| world.then(World::write)),
    ("fan out", 12, |world| world.then(World::fan_out)),
    ("step", 50, |world| world.then(|w| w.any_subscriber().map(|i| w.step(i)))),
    ("seal", 4, |world| world.then(|w| w.server.parts.seal())),
    ("checkpoint", 4, |world| world.then(World::checkpoint)),
    ("subscribe", 3, |world| world.then(World::subscribe)),
    ("change filter", 3, |world| world.then(World::change_filter)),
    ("unsubscribe", 1, |world| world.then(|w| w.any_subscriber().map(|i| w.subscribers.swap_remove(i)))),
    ("query", 6, |world| world.then(World::query)),
    ("delete", 1, |world| world.then(World::delete)),
    ("delete by filter", 6, |world| world.then(World::delete_by_filter)),
    ("store position", 3, |world| world.then(World::store_position)),
    ("create group", 3, |world| world.then(World::create_group)),
    ("join", 4, |world| world.then(World::join)),
    ("leave", 3, |world| world.then(World::leave)),
    ("step group", 16, |world| world.then(|w| w.with_group(|group, w| _ = group.step(&w.server.store)))),
    ("confirm", 8, |world| world.then(|w| w.with_group(|group, w| group.confirm(&mut w.random, &w.model)))),
    ("time", 2, |world| world.then(|w| w.with_group(|group, w| group.pass_time(&mut w.random, &w.model)))),
    ("disk", 1, |world| world.then(World::limit_disk)),
    ("free space", 1, |world| world.then(World::keep_free)),
    ("clock", 1, |world| world.then(|w| w.server.parts.step_clock_back(w.random.below(10_000_000_000) as i64))),
    ("rest", 1, |world| world.then(World::rest)),
    ("crash", 1, World::crash),
    ("crash in a commit", 1, World::crash_in_commit),
    ("power cut", 1, World::cut_power),
    ("restart", 1, World::restart),
];
