//! Hashes of field values, by which events are counted and listed in memory.

use std::hash::{BuildHasher, Hasher};
use std::sync::LazyLock;

use foldhash::fast::RandomState;

/// The hash of the value of a field. The network thread that parses an event makes it, so the writer hashes no text.
///
/// The values come from clients, so each process has a random seed: no client can choose values that collide. A hash is
/// therefore never stored, and what is stored must not depend on one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ValueHash(u32);

static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::default);

impl ValueHash {
    #[inline]
    pub fn of(value: &[u8]) -> Self {
        let mut hasher = SEED.build_hasher();
        hasher.write(value);
        Self(hasher.finish() as u32)
    }

    /// For a hash table: it finds a bucket by the lowest bits and compares the highest ones. 32 bits are enough for a table
    /// of 65,536 values.
    #[inline]
    pub fn spread(self) -> u64 {
        u64::from(self.0) << 32 | u64::from(self.0)
    }
}
