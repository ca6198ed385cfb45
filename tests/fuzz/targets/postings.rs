//! Posting lists of the segment index: decoding bytes of any origin, and what was encoded.

use event_pipeline::store::segments::{decode, encode};

/// The bytes of a list; or three bytes that choose a damage, and then the runs of a list: the start, the length and the
/// gaps of each.
pub fn postings(data: &[u8]) {
    if let Some(offsets) = decode(data) {
        assert!(offsets.is_sorted_by(|one, next| one < next), "{offsets:?}");
        assert_eq!(decode(&encode(&offsets)), Some(offsets));
    }
    let Some((&[flip, at_high, at_low], runs)) = data.split_first_chunk() else { return };
    let runs = runs.chunks_exact(3).flat_map(|run| {
        let (start, len) = (u16::from_be_bytes([run[0], run[1]]), 1 << (run[2] >> 4));
        (start..=u16::MAX).step_by(1 + usize::from(run[2] & 15)).take(len)
    });
    // So many that the list is stored as a bitmap.
    let mut offsets: Vec<_> = runs.take(10_000).collect();
    offsets.sort_unstable();
    offsets.dedup();
    let mut blob = encode(&offsets);
    assert!(blob.len() <= (8 << 10) + 16, "no list takes more than its bitmap: {}", blob.len());
    assert_eq!(decode(&blob), Some(offsets));

    let at = usize::from(u16::from_be_bytes([at_high, at_low])) % blob.len();
    blob[at] ^= flip;
    if let Some(offsets) = decode(&blob) {
        assert!(offsets.is_sorted_by(|one, next| one < next), "{offsets:?}");
    }
    blob.truncate(at);
    if let Some(offsets) = decode(&blob) {
        assert!(offsets.is_sorted_by(|one, next| one < next), "{offsets:?}");
    }
}
