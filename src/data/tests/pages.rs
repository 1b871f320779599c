//! Pages in memory.

use crate::data::pages::{FilePages, PAGE, Pages, mask, runs};
use crate::sync::Arc;

#[test]
fn masks_and_runs_are_inverse() {
    for bits in [0u32, 1, 0b1011_0110, u32::MAX, 1 << 31, 0xf000_000f] {
        assert_eq!(runs(bits).fold(0, |all, (from, n)| all | mask(from, n)), bits);
    }
    assert_eq!(runs(0b1011_0110).collect::<Vec<_>>(), [(1, 2), (4, 2), (7, 1)]);
    assert_eq!(mask(0, 32), u32::MAX);
}

fn fill(file: &Arc<FilePages>, all: &Pages, index: u64, dirty: bool) {
    let chunk = file.chunk_or_new(index);
    let mut state = chunk.state.write();
    all.grow(&mut state, 32);
    if dirty {
        file.set_dirty(&mut state, u32::MAX);
    } else {
        state.valid = u32::MAX;
    }
}

#[test]
fn clean_pages_are_evicted_and_dirty_ones_stay() {
    let all = Pages::new(4 * 32 * PAGE);
    let file = Arc::new(FilePages::new(all.clone()));
    for index in 0..64 {
        fill(&file, &all, index, index == 5);
        all.evict();
    }
    let left: Vec<u64> = (0..64).filter(|i| file.chunk(*i).is_some()).collect();
    assert!(left.len() <= 8 && left.contains(&5) && left.contains(&63), "{left:?}");
    assert_eq!(all.dirty_bytes(), 32 * PAGE);
    assert_eq!(file.missing(5 * 32, 6 * 32 + 3), 0);
    assert_eq!(file.missing(6 * 32, 6 * 32 + 3), 4);
    file.forget(5 * 32 + 1, u64::MAX);
    assert_eq!(all.dirty_bytes(), PAGE);
    drop(file);
    assert_eq!(all.dirty_bytes(), 0);
}

#[test]
fn pages_changed_while_they_are_written_are_dirty_again() {
    let all = Pages::new(1 << 20);
    let file = Arc::new(FilePages::new(all.clone()));
    fill(&file, &all, 0, true);
    let chunk = file.chunk(0).unwrap();
    let taken = file.start_writing(&mut chunk.state.write(), mask(0, 4));
    assert_eq!(taken, mask(0, 4));
    file.set_dirty(&mut chunk.state.write(), mask(2, 1));
    assert!(!file.end_writing(&mut chunk.state.write(), taken, true));
    assert_eq!(chunk.state.read().dirty, mask(2, 1) | mask(4, 28));
    assert_eq!(all.dirty_bytes(), 29 * PAGE);
    // A failed write makes the others dirty again as well.
    let taken = file.start_writing(&mut chunk.state.write(), mask(2, 4));
    assert!(file.end_writing(&mut chunk.state.write(), taken, false));
    assert_eq!(all.dirty_bytes(), 29 * PAGE);
    assert!(file.is_dirty());
}

#[test]
fn another_grant_of_the_lock_drops_what_was_read() {
    let all = Pages::new(1 << 20);
    let file = Arc::new(FilePages::new(all.clone()));
    file.validate(3);
    fill(&file, &all, 0, false);
    file.validate(3);
    assert!(file.chunk(0).is_some());
    file.validate(4);
    assert!(file.chunk(0).is_none());
}

#[test]
fn forgotten_chunks_leave_nothing_behind() {
    let all = Pages::new(1 << 20);
    let file = Arc::new(FilePages::new(all.clone()));
    for _ in 0..10_000 {
        fill(&file, &all, 3, true);
        file.forget(0, u64::MAX);
    }
    assert!(all.queued() < 1000, "{} entries", all.queued());
}

/// Memory comes from a stock of used pieces of five sizes.
#[test]
fn chunks_that_grow_keep_their_contents_and_are_counted() {
    let all = Pages::new(1 << 20);
    let file = Arc::new(FilePages::new(all.clone()));
    for round in 1..=3u8 {
        let chunk = file.chunk_or_new(7);
        let mut state = chunk.state.write();
        let mut have = 0;
        for (pages, memory) in [(1, 1), (2, 2), (3, 4), (7, 8), (9, 32), (32, 32)] {
            all.grow(&mut state, pages);
            assert_eq!(all.bytes(), memory * PAGE);
            state.bytes_mut()[have * PAGE..pages * PAGE].fill(pages as u8 * round);
            have = pages;
        }
        for (page, of) in [(0, 1), (1, 2), (2, 3), (3, 7), (6, 7), (7, 9), (8, 9), (9, 32), (31, 32)] {
            assert!(state.bytes()[page * PAGE..][..PAGE].iter().all(|b| *b == of * round), "page {page}");
        }
        state.valid = u32::MAX;
        drop(state);
        drop(chunk);
        file.forget(0, u64::MAX);
        assert_eq!(all.bytes(), 0);
    }
}
