//! What deleted rows leave in the database: bytes on pages where SQLite stores nothing. When SQLite moves rows between
//! pages, copies of them stay in the unused part of a page that it rebuilds, and on a page that becomes free.
//! `secure_delete` reaches neither. Here they are found, and overwritten with zeros.
//!
//! Nothing reads an unused byte, so finding needs no lock. Overwriting goes past SQLite, straight into the file. That is
//! safe only while no page can change: the write-ahead log is empty, and the caller holds SQLite's lock for writing.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Pages looked at in one step: 256 MiB, about 0.1 s if they are in the system's cache. An ending server waits for one.
const SEARCHED_PAGES: u32 = if cfg!(test) { 16 } else { 65_536 };

/// Pages overwritten at one time: 4 MiB, about 2 ms, during which no event is stored.
const OVERWRITTEN_PAGES: usize = if cfg!(test) { 4 } else { 1_024 };

/// Pages in one read of the file.
const READ_PAGES: u32 = 64;

/// The part of the file that is to be searched.
#[derive(Debug, Clone)]
pub struct Search {
    from: u32,
    /// The last page that the file had when the search began. A later page has no older bytes.
    through: u32,
    /// The free pages without entries of others at that time.
    free: Arc<Pages>,
}

/// What a step of a search came to.
#[derive(Debug)]
pub struct Found {
    /// Pages on which unused bytes are not zero, ascending.
    pub pages: Vec<u32>,
    /// What is left to be searched.
    pub rest: Option<Search>,
}

impl Search {
    /// Begins a search of the whole file. It overwrites the unused bytes of the pages that list the free ones: there are
    /// few, and no search can tell them from pages with events.
    ///
    /// # Errors
    /// A failed read or write, and damage.
    pub fn begin(locked: &File) -> io::Result<Self> {
        let layout = Layout::read(locked)?;
        let free = Free::read(locked, &layout)?;
        for (trunk, unused) in &free.trunks {
            layout.overwrite(locked, *trunk, std::slice::from_ref(unused))?;
        }
        Ok(Self { from: 1, through: layout.pages, free: Arc::new(free.leaves) })
    }

    /// Searches the next part of the file. The file may change meanwhile, and a commit can move a page, with what is unused
    /// on it, to a place that has been searched. So after commits the whole search is repeated.
    ///
    /// # Errors
    /// A failed read.
    pub fn step(self, file: &File) -> io::Result<Found> {
        let layout = Layout::read(file)?;
        let end = self.through.min(layout.pages).saturating_add(1);
        let (stop, mut pages) = (end.min(self.from.saturating_add(SEARCHED_PAGES)), Vec::new());
        let mut buffer = vec![0; layout.page_bytes * READ_PAGES as usize];
        let mut at = self.from;
        while at < stop && pages.len() < OVERWRITTEN_PAGES {
            let count = READ_PAGES.min(stop - at);
            let bytes = &mut buffer[..layout.page_bytes * count as usize];
            file.read_exact_at(bytes, layout.offset(at))?;
            for (page, number) in bytes.chunks_exact(layout.page_bytes).zip(at..) {
                let has_remains = match self.free.has(number) {
                    true => !is_zero(page),
                    false => layout.unused(number, page).into_iter().any(|unused| !is_zero(&page[unused])),
                };
                if has_remains {
                    pages.push(number);
                }
            }
            at += count;
        }
        // After the last pages were found there is a last, empty part: it is reached once they are overwritten and synced.
        let has_more = at < end || !pages.is_empty();
        Ok(Found { pages, rest: has_more.then_some(Search { from: at, ..self }) })
    }
}

/// Overwrites all unused bytes of these pages.
///
/// # Errors
/// A failed read or write, and damage.
pub fn overwrite(locked: &File, pages: &[u32]) -> io::Result<()> {
    let layout = Layout::read(locked)?;
    let free = Free::read(locked, &layout)?;
    let mut page = vec![0; layout.page_bytes];
    for number in pages.iter().copied().filter(|number| *number <= layout.pages) {
        let trunk = free.trunks.iter().find(|(trunk, _)| *trunk == number);
        let unused = match (free.leaves.has(number), trunk) {
            (true, _) => std::iter::once(0..layout.page_bytes).collect(),
            (_, Some((_, unused))) => vec![unused.clone()],
            _ => {
                locked.read_exact_at(&mut page, layout.offset(number))?;
                layout.unused(number, &page)
            }
        };
        layout.overwrite(locked, number, &unused)?;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    // By words, which are most of the time of a search.
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0 && rest.iter().all(|byte| *byte == 0)
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is broken"))
}

fn two(page: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([page[at], page[at + 1]]))
}

fn four(page: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

/// What the header of the file says.
struct Layout {
    page_bytes: usize,
    pages: u32,
    first_trunk: u32,
    free_pages: u32,
}

/// Bytes of the file's header, which stands before that of the first page.
const HEADER_BYTES: usize = 100;

impl Layout {
    fn read(file: &File) -> io::Result<Self> {
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let page_bytes = match two(&header, 16) {
            1 => 65_536,
            bytes => bytes,
        };
        if page_bytes < 512 || !page_bytes.is_power_of_two() {
            return Err(broken("the header of the file"));
        }
        // Its pages of that kind are not known here. The server makes no such file.
        if four(&header, 52) != 0 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the file has auto_vacuum, so its unused bytes stay",
            ));
        }
        let pages = (file.metadata()?.len() / page_bytes as u64) as u32;
        Ok(Self { page_bytes, pages, first_trunk: four(&header, 32), free_pages: four(&header, 36) })
    }

    fn offset(&self, number: u32) -> u64 {
        u64::from(number - 1) * self.page_bytes as u64
    }

    /// The unused bytes of a page of a tree: the gap between the pointers to its cells and the cells, and what is free
    /// among the cells. None if the page is of another kind, or broken.
    fn unused(&self, number: u32, page: &[u8]) -> Vec<Range<usize>> {
        let header = if number == 1 { HEADER_BYTES } else { 0 };
        let pointers = match page[header] {
            0x0a | 0x0d => header + 8,
            0x02 | 0x05 => header + 12,
            _ => return Vec::new(),
        };
        // All others begin with the number of a page. In files beyond 128 GiB that can look like a page of a tree.
        if number > 1 && four(page, 0) <= self.pages {
            return Vec::new();
        }
        let content = match two(page, header + 5) {
            0 => 65_536,
            content => content,
        };
        let gap = pointers + 2 * two(page, header + 3)..content;
        if gap.start > gap.end || gap.end > page.len() {
            return Vec::new();
        }
        // Where the header is damaged, the gap could have rows that `repair` still finds.
        let mut cells = page[pointers..gap.start].chunks_exact(2).map(|pointer| two(pointer, 0));
        if cells.any(|cell| cell < content || cell >= page.len()) {
            return Vec::new();
        }
        let (mut end, mut next) = (gap.end, two(page, header + 1));
        let mut unused = vec![gap];
        while next != 0 {
            let block = next;
            if block < end || block + 4 > page.len() {
                return Vec::new();
            }
            end = block + two(page, block + 2);
            if end < block + 4 || end > page.len() {
                return Vec::new();
            }
            unused.push(block + 4..end);
            next = two(page, block);
        }
        unused
    }

    fn overwrite(&self, locked: &File, number: u32, unused: &[Range<usize>]) -> io::Result<()> {
        for unused in unused {
            let at = self.offset(number) + unused.start as u64;
            let mut bytes = vec![0; unused.len()];
            locked.read_exact_at(&mut bytes, at)?;
            if !is_zero(&bytes) {
                bytes.fill(0);
                locked.write_all_at(&bytes, at)?;
            }
        }
        Ok(())
    }
}

/// The free pages of a file. Some of them, the trunks, list the others.
struct Free {
    /// Each with its unused bytes.
    trunks: Vec<(u32, Range<usize>)>,
    leaves: Pages,
}

/// Pages by their numbers, a bit for each page of the file.
#[derive(Debug)]
struct Pages(Vec<u64>);

impl Pages {
    fn none_of(pages: u32) -> Self {
        Self(vec![0; pages as usize / 64 + 1])
    }

    fn has(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|bits| bits >> (number % 64) & 1 == 1)
    }

    /// Returns whether it is new.
    fn add(&mut self, number: u32) -> bool {
        let is_new = !self.has(number);
        self.0[number as usize / 64] |= 1 << (number % 64);
        is_new
    }
}

impl Free {
    /// # Errors
    /// A failed read, and damage: a page that is in use must not be taken for a free one.
    fn read(locked: &File, layout: &Layout) -> io::Result<Self> {
        let (mut trunks, mut leaves, mut trunk) = (Vec::new(), Pages::none_of(layout.pages), layout.first_trunk);
        let mut count_of_leaves = 0;
        let mut page = vec![0; layout.page_bytes];
        let broken = || broken("the list of free pages");
        while trunk != 0 {
            if trunk == 1 || trunk > layout.pages || trunks.len() + count_of_leaves >= layout.free_pages as usize {
                return Err(broken());
            }
            locked.read_exact_at(&mut page, layout.offset(trunk))?;
            let count = four(&page, 4) as usize;
            let end = 8 + 4 * count;
            if count > layout.page_bytes / 4 - 2 {
                return Err(broken());
            }
            for entry in page[8..end].chunks_exact(4).map(|entry| four(entry, 0)) {
                if entry <= 1 || entry > layout.pages || !leaves.add(entry) {
                    return Err(broken());
                }
                count_of_leaves += 1;
            }
            trunks.push((trunk, end..layout.page_bytes));
            trunk = four(&page, 0);
        }
        match trunks.len() + count_of_leaves == layout.free_pages as usize {
            true => Ok(Self { trunks, leaves }),
            false => Err(broken()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::store::fixture::{close, hand_in, open, path, tick};
    use crate::store::schema;

    #[test]
    fn only_unused_bytes_of_a_page_of_a_tree_are_unused() {
        let layout = Layout { page_bytes: 512, pages: 100, first_trunk: 0, free_pages: 0 };
        let mut page = vec![0xff; 512];
        // A leaf with one cell at 500 and a free block of 20 bytes at 480.
        page[..10].copy_from_slice(&[0x0d, 0x01, 0xe0, 0, 1, 0x01, 0xd0, 0, 0x01, 0xf4]);
        page[480..484].copy_from_slice(&[0, 0, 0, 20]);
        assert_eq!(layout.unused(7, &page), [10..464, 484..500]);
        // The same bytes are a page of an overflow chain in a file that has the page with the number they begin with.
        let large = Layout { pages: 0x0d01_e000, ..layout };
        assert!(large.unused(7, &page).is_empty());
        // Whatever contradicts itself is left as it is.
        for (at, byte) in [(0, 1), (2, 0xff), (5, 0xff), (3, 0xff), (481, 8), (480, 0xff), (483, 3), (483, 40)] {
            let mut broken = page.clone();
            broken[at] = byte;
            assert!(layout.unused(7, &broken).is_empty(), "byte {at} is {byte}");
        }
        // A leaf without a free block, whose cell lies before what its header calls the cells.
        page[1..3].fill(0);
        assert_eq!(layout.unused(7, &page).as_slice(), std::slice::from_ref(&(10..464)));
        page[5..7].copy_from_slice(&[0x01, 0xf8]);
        assert!(layout.unused(7, &page).is_empty());
    }

    #[test]
    fn a_page_that_is_in_use_is_not_taken_for_a_free_one_when_the_list_of_free_pages_is_broken() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, mut parts) = open(&folder);
        let payload = &format!(r#"{{"x":"{}"}}"#, "x".repeat(60_000));
        hand_in(&store, (0..8).map(|_| Event { payload, ..tick() }));
        while parts.write() {}
        close(&store, parts);
        let file = schema::open_writer(&path(&folder)).expect("undamaged");
        file.execute_batch("DELETE FROM events WHERE seq > 2").expect("deleted");
        file.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("moved");
        drop(file);
        let file = File::options().read(true).write(true).open(path(&folder)).expect("a file");
        let search = Search::begin(&file).expect("a whole list");
        assert!((1..=search.through).filter(|page| search.free.has(*page)).count() > 50, "{search:?}");
        let trunk = (four(&read(&file, 32), 0) - 1) as u64 * 4_096;
        for entry in [four(&read(&file, trunk + 12), 0), 0, 1, search.through + 1] {
            let (at, whole) = (trunk + 8, read(&file, trunk + 8));
            file.write_all_at(&entry.to_be_bytes(), at).expect("written");
            let refused = Search::begin(&file).expect_err("a broken list").to_string();
            assert_eq!(refused, "the list of free pages is broken", "{entry}");
            file.write_all_at(&whole, at).expect("written");
        }
    }

    fn read(file: &File, at: u64) -> [u8; 4] {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).expect("read");
        bytes
    }
}
