//! Whether two sets of events are equal, without storing them.

use std::iter::Sum;

/// A set of events, each a sequence number and what it says, reduced to their count and the sum of their hashes: enough
/// to compare two sets.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SetDigest {
    pub count: u64,
    sum: u64,
}

impl SetDigest {
    #[inline]
    pub fn add(&mut self, sequence: u64, content: u64) {
        // splitmix64: sums of neighbouring numbers alone would agree by accident.
        let mut hash = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ content;
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash ^ (hash >> 31));
    }
}

impl Sum for SetDigest {
    /// Of sets that share nothing.
    fn sum<I: Iterator<Item = Self>>(digests: I) -> Self {
        digests
            .fold(Self::default(), |all, one| Self { count: all.count + one.count, sum: all.sum.wrapping_add(one.sum) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_different_sets_differ() {
        let digest = |sequences: &[u64]| {
            let mut digest = SetDigest::default();
            sequences.iter().for_each(|s| digest.add(*s, 7));
            digest
        };
        assert_eq!(digest(&[1, 2, 3]), digest(&[3, 1, 2]));
        assert_ne!(digest(&[1, 4]), digest(&[2, 3]));
        assert_ne!(digest(&[1]), digest(&[1, 1]));
        let mut altered = SetDigest::default();
        altered.add(1, 8);
        assert_ne!(digest(&[1]), altered);
    }
}
