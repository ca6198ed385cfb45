//! Random numbers that are the same in each run.

/// A plain generator (xorshift): the same events in each run, so that runs can be compared.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: usize) -> Self {
        // An odd multiple spreads small seeds over all bits, and none gives zero, where it would stand still.
        let mut random = Self((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // The first numbers of neighbouring seeds are alike.
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    pub fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.next()) * u64::from(bound)) >> 32) as u32
    }

    /// More than 0, at most 1.
    pub fn unit(&mut self) -> f64 {
        (f64::from(self.next()) + 1.0) / 4_294_967_296.0
    }
}
