//! Posting lists of the segment index: decoding bytes of any origin, and what was encoded.

use event_pipeline::store::segments::{decode, encode};

/// The bytes of a list; or, after three that say what is to be damaged, its runs: where each starts, how long it is and
/// how wide its gaps are.
pub fn postings(data: &[u8]) {
    if let Some(offsets) = decode(data) {
        assert!(offsets.is_sorted_by(|one, next| one < next), "{offsets:?}");
        assert_eq!(decode(&encode(&offsets)), Some(offsets));
    }
    let Some((&[flip, at_high, at_low], runs)) = data.split_first_chunk() else { return };
    let mut is_in = vec![false; 1 << 16];
    for run in runs.chunks_exact(3).take(24) {
        let (start, len) = (usize::from(u16::from_be_bytes([run[0], run[1]])), 1 << (run[2] >> 4));
        let step = 1 + usize::from(run[2] & 15);
        is_in[start..].iter_mut().step_by(step).take(len).for_each(|is_in| *is_in = true);
    }
    let offsets: Vec<_> = (0..=u16::MAX).filter(|offset| is_in[usize::from(*offset)]).collect();
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
