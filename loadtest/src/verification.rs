//! Which events were acknowledged, and which promises were broken.

use std::cell::{Cell, RefCell};

use crate::events::Keys;

/// How many violations are described in words; further ones are only counted.
const TOLD_MAX: usize = 10;

/// Ids this far apart are no sequence numbers, and too far apart for a bit each.
const SEQUENCE_SPAN_MAX: u64 = 1 << 36;

/// Sequence numbers of one block, which is read back as a whole or not at all: as many as a page of the server has.
pub const BLOCK: u64 = 1_000;

/// The acknowledgements of all producers, and the violations of a run.
#[derive(Default)]
pub struct Verification {
    /// The last event before the run.
    base: u64,
    /// One bit for each sequence number after `base`.
    seen: Vec<u64>,
    last: u64,
    /// What the acknowledged events say, of all of them or of a sample.
    pub sample: Sample,
    pub acknowledged: u64,
    pub refused: u64,
    /// Events that were refused with 503, where that is to be expected.
    pub turned_away: u64,
    excuses_overload: bool,
    first_refusal: String,
    broken: u64,
    told: Vec<String>,
}

impl Verification {
    pub fn new(base: u64) -> Self {
        Self { base, last: base, sample: Sample::new(base), ..Self::default() }
    }

    /// Permits refusals with 503: the server is overloaded on purpose.
    pub fn excuse_overload(&mut self) {
        self.excuses_overload = true;
    }

    /// Notes that an event that says this was acknowledged under this sequence number.
    #[inline]
    pub fn acknowledge(&mut self, sequence: u64, content: u64) {
        self.acknowledged += 1;
        self.last = self.last.max(sequence);
        let Some(offset) = sequence.checked_sub(self.base + 1).filter(|offset| *offset < SEQUENCE_SPAN_MAX) else {
            let base = self.base;
            return self.violation(|| format!("event {sequence} was acknowledged, which cannot come after {base}"));
        };
        let (word, bit) = ((offset / 64) as usize, 1 << (offset % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            return self.violation(|| format!("event {sequence} was acknowledged twice"));
        }
        self.seen[word] |= bit;
        self.sample.add(sequence, content);
    }

    /// Notes a refusal.
    pub fn refuse(&mut self, events: usize, reason: String) {
        if self.excuses_overload && reason.starts_with("503 ") {
            self.turned_away += events as u64;
            return;
        }
        if self.refused == 0 {
            self.first_refusal = reason;
        }
        self.refused += events as u64;
    }

    /// Notes a broken promise.
    #[cold]
    pub fn violation(&mut self, words: impl FnOnce() -> String) {
        self.broken += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(words());
        }
    }

    /// Compares what was acknowledged with what the server has stored since the run began.
    pub fn check_stored(&mut self, stored: u64) {
        let (acknowledged, given) = (self.acknowledged, self.last - self.base);
        if stored != acknowledged {
            self.violation(|| format!("{acknowledged} events were acknowledged, {stored} are stored"));
        }
        if given != acknowledged {
            self.violation(|| {
                format!("{acknowledged} events were acknowledged, but {given} sequence numbers given out")
            });
        }
    }

    /// The newest event that was acknowledged.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Whether nothing went wrong so far.
    pub fn is_clean(&self) -> bool {
        self.broken == 0 && self.refused == 0
    }

    /// Everything that went wrong, in words.
    pub fn violations(&self) -> Vec<String> {
        let mut told = self.told.clone();
        let more = self.broken - told.len() as u64;
        if more > 0 {
            told.push(format!("and {more} more"));
        }
        if self.refused > 0 {
            told.push(format!("{} events were refused, the first with: {}", self.refused, self.first_refusal));
        }
        told
    }
}

/// What acknowledged events say, to be compared with what is read back: of all events, or once they are too many of
/// blocks drawn by chance, the same ones for the same numbers.
#[derive(Default)]
pub struct Sample {
    base: u64,
    blocks: Vec<Option<Box<[u32; BLOCK as usize]>>>,
    kept: usize,
    /// One of this many blocks is kept.
    one_of: u64,
}

impl Sample {
    /// One million events in 4 MB, read back in some two seconds.
    const BLOCKS_MAX: usize = 1_000;

    fn new(base: u64) -> Self {
        Self { base, one_of: 1, ..Self::default() }
    }

    #[inline]
    fn add(&mut self, sequence: u64, content: u64) {
        let offset = sequence - self.base - 1;
        let (block, place) = ((offset / BLOCK) as usize, (offset % BLOCK) as usize);
        while block >= self.blocks.len() {
            self.begin();
        }
        if let Some(block) = &mut self.blocks[block] {
            block[place] = Self::reduced(content);
        }
    }

    #[cold]
    fn begin(&mut self) {
        let is_kept = Self::is_drawn(self.blocks.len(), self.one_of);
        self.blocks.push(is_kept.then(|| Box::new([0; BLOCK as usize])));
        self.kept += usize::from(is_kept);
        if self.kept > Self::BLOCKS_MAX {
            self.one_of *= 2;
            for (number, block) in self.blocks.iter_mut().enumerate() {
                if !Self::is_drawn(number, self.one_of) {
                    self.kept -= usize::from(block.take().is_some());
                }
            }
        }
    }

    fn is_drawn(block: usize, one_of: u64) -> bool {
        // The high bits of a product with an odd number are as good as random.
        (block as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & (one_of - 1) == 0
    }

    /// The first sequence number of each block that was kept, ascending.
    pub fn blocks(&self) -> Vec<u64> {
        let kept = self.blocks.iter().enumerate().filter(|(_, block)| block.is_some());
        kept.map(|(number, _)| self.base + 1 + number as u64 * BLOCK).collect()
    }

    /// Whether an event of such a block says what was sent.
    pub fn is_as_sent(&self, sequence: u64, content: u64) -> bool {
        let offset = sequence - self.base - 1;
        let block = self.blocks.get((offset / BLOCK) as usize).and_then(Option::as_ref);
        block.is_some_and(|block| block[(offset % BLOCK) as usize] == Self::reduced(content))
    }

    /// Never 0, which stands for an event that was not acknowledged.
    fn reduced(content: u64) -> u32 {
        (content as u32).max(1)
    }
}

/// The events that every query must show: an event is visible to all queries as soon as it is acknowledged.
pub struct AcknowledgedEvents {
    all: Cell<Acknowledged>,
    sessions: RefCell<Vec<Acknowledged>>,
}

/// How many events were acknowledged, and the newest of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    pub count: u64,
    pub newest: u64,
}

impl AcknowledgedEvents {
    /// None yet, on a server whose newest event is `newest`.
    pub fn new(newest: u64, sessions: u32) -> Self {
        let none = Acknowledged { count: 0, newest: 0 };
        Self { all: Cell::new(Acknowledged { newest, ..none }), sessions: RefCell::new(vec![none; sessions as usize]) }
    }

    #[inline]
    pub fn add(&self, keys: Keys, sequence: u64) {
        self.all.set(self.all.get().and(sequence));
        let session = &mut self.sessions.borrow_mut()[keys.session as usize];
        *session = session.and(sequence);
    }

    /// Of everything.
    pub fn all(&self) -> Acknowledged {
        self.all.get()
    }

    /// Of one session.
    pub fn of_session(&self, session: u32) -> Acknowledged {
        self.sessions.borrow()[session as usize]
    }
}

impl Acknowledged {
    fn and(self, sequence: u64) -> Self {
        Self { count: self.count + 1, newest: self.newest.max(sequence) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_server_breaks_nothing() {
        let mut verification = Verification::new(7);
        [9, 8, 10].into_iter().for_each(|sequence| verification.acknowledge(sequence, 5));
        verification.check_stored(3);
        assert_eq!(verification.violations(), [] as [&str; 0]);
    }

    #[test]
    fn every_broken_promise_is_reported() {
        let mut verification = Verification::new(7);
        [7, 8, 8, 70, u64::MAX].into_iter().for_each(|sequence| verification.acknowledge(sequence, 5));
        verification.last = 70;
        verification.refuse(2, "no".to_owned());
        verification.check_stored(4);
        let told = [
            "event 7 was acknowledged, which cannot come after 7",
            "event 8 was acknowledged twice",
            "event 18446744073709551615 was acknowledged, which cannot come after 7",
            "5 events were acknowledged, 4 are stored",
            "5 events were acknowledged, but 63 sequence numbers given out",
            "2 events were refused, the first with: no",
        ];
        assert_eq!(verification.violations(), told);
    }

    #[test]
    fn only_refusals_with_503_are_excused_in_an_overload() {
        let mut verification = Verification::new(0);
        verification.excuse_overload();
        verification.refuse(3, "503 too much".to_owned());
        assert!(verification.is_clean());
        verification.refuse(2, "500 what?".to_owned());
        assert_eq!((verification.turned_away, verification.refused), (3, 2));
        assert_eq!(verification.violations(), ["2 events were refused, the first with: 500 what?"]);
    }

    #[test]
    fn violations_beyond_the_first_ten_are_counted() {
        let mut verification = Verification::new(0);
        (0..50).for_each(|i| verification.violation(|| format!("{i}")));
        let told = verification.violations();
        assert_eq!((told.len(), told.last().map(String::as_str)), (TOLD_MAX + 1, Some("and 40 more")));
    }

    #[test]
    fn a_sample_of_many_events_is_kept_and_of_few_all() {
        let mut sample = Sample::new(7);
        (8..=7 + 5 * BLOCK).for_each(|sequence| sample.add(sequence, sequence << 40 | sequence));
        assert_eq!(sample.blocks(), [8, 1_008, 2_008, 3_008, 4_008]);
        assert!(sample.is_as_sent(4_711, 4_711) && !sample.is_as_sent(4_711, 4_712) && !sample.is_as_sent(5_008, 0));
        let blocks = 9_000;
        for block in 5..blocks {
            sample.add(8 + block * BLOCK, block);
        }
        let kept = sample.blocks();
        // A sixteenth of 9,000.
        assert!(kept.len() == sample.kept && (400..700).contains(&kept.len()), "{}", kept.len());
        assert!(
            kept.is_sorted() && kept.iter().all(|first| *first < 5_008 || sample.is_as_sent(*first, first / BLOCK))
        );
        assert!(kept.iter().any(|first| *first > 8_000 * BLOCK) && kept.iter().any(|first| *first < 1_000 * BLOCK));
    }
}
