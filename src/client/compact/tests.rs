//! Compactions against what the original computes, against a model, and what it gets wrong.

use proptest::prelude::*;
use serde_json::Value;
use zerocopy::FromZeros;

use super::*;
use crate::alloc::list::ListBlock;
use crate::block::BlockSource;
use crate::device::{Fault, FaultDevice, FaultOps, MemDevice};
use crate::format::consts::SRCH_COMPACT_SORTED;
use crate::format::layout::{AllocListHead, BlockRef, SrchFile};
use crate::format::srch::{BlockBuilder, Entries, Entry, block_head};
use crate::sync::HashSet;
use crate::txn::srch_file;

/// Numbers of metadata blocks.
struct Numbers(u64);

impl BlockSource for Numbers {
    fn alloc(&mut self) -> Result<crate::format::MetaBlock> {
        self.0 += 1;
        Ok(crate::format::MetaBlock(self.0))
    }
    fn free(&mut self, _: crate::format::MetaBlock) -> Result<()> {
        Ok(())
    }
}

/// A device with files, and stocks for compactions.
struct World {
    store: Arc<BlockStore>,
    faults: Arc<FaultDevice>,
    numbers: Numbers,
}

impl World {
    fn new() -> World {
        let faults = FaultDevice::new(MemDevice::new(60_000 << 16));
        World { store: BlockStore::new(faults.clone(), 7, 16 << 20), faults, numbers: Numbers(10) }
    }

    fn write<T>(&mut self, what: impl FnOnce(&mut Cow<'_>) -> T) -> T {
        let mut dirty = DirtySet::new();
        let made = what(&mut Cow { store: &self.store, dirty: &mut dirty, alloc: &mut self.numbers });
        dirty.write_out(&self.store).unwrap();
        made
    }

    /// A log with these entries.
    fn log(&mut self, entries: &[Entry]) -> SrchFile {
        let mut file = SrchFile::new_zeroed();
        self.write(|cow| srch_file::append(cow, &mut file, entries)).unwrap();
        file
    }

    /// A file with blocks that end where they must not: one for each slice, empty ones included.
    fn file_of(&mut self, blocks: &[&[Entry]]) -> SrchFile {
        let mut file = SrchFile::new_zeroed();
        self.write(|cow| {
            for entries in blocks {
                let mut block = BlockBuilder::new();
                entries.iter().for_each(|e| assert!(block.push(*e)));
                if block.is_empty() {
                    srch_file::add_empty_block(cow, &mut file).unwrap();
                } else {
                    srch_file::add_block(cow, &mut file, block).unwrap();
                }
            }
        });
        file
    }

    /// A compaction with `avail` blocks in stock.
    fn compaction(&mut self, work: u8, files: &[SrchFile], avail: u64) -> SrchCompact {
        let mut compact = SrchCompact::new_zeroed();
        (compact.flags, compact.nr) = (work, files.len() as u8);
        files.iter().zip(&mut compact.inputs).for_each(|(f, i)| i.sfl = *f);
        compact.meta_avail = self.stock(avail);
        compact
    }

    fn stock(&mut self, nr: u64) -> AllocListHead {
        let at = self.numbers.alloc().unwrap();
        let first = self.numbers.0 + 1;
        self.numbers.0 += nr;
        let r = BlockRef { blkno: at.0.into(), seq: self.store.nonce().into() };
        let mut dirty = DirtySet::new();
        dirty.insert(r, ListBlock { next: None, blknos: (first..first + nr).collect() });
        dirty.write_out(&self.store).unwrap();
        AllocListHead { block_ref: r, total_nr: nr.into(), first_nr: (nr as u32).into(), flags: 0.into() }
    }

    fn blocks(&self, file: &SrchFile) -> Vec<Vec<u8>> {
        let block = |blk| srch_file::data_block(&self.store, file, blk).unwrap().bytes().to_vec();
        (0..file.blocks.get()).map(block).collect()
    }

    fn entries(&self, file: &SrchFile) -> Vec<Entry> {
        let blocks = self.blocks(file);
        blocks.iter().flat_map(|b| Entries::new(b, 0).unwrap().map(Result::unwrap).collect::<Vec<_>>()).collect()
    }

    /// Works with the limits until it is done; the record after each step.
    fn run(&mut self, compact: &mut SrchCompact, limits: Limits) -> Vec<SrchCompact> {
        let mut steps = Vec::new();
        while compact.flags & SRCH_COMPACT_DONE == 0 {
            (compact.meta_avail, compact.meta_freed) = (self.stock(4000), AllocListHead::new_zeroed());
            work(&self.store, compact, limits).unwrap();
            steps.push(*compact);
        }
        steps
    }
}

const SMALL: Limits = Limits { merge_blocks: 1, sort_entries: 3 };

fn e(hash: u64, ino: u64, id: u64) -> Entry {
    Entry { hash, ino, id }
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/data/vectors/archive-srch.json")).unwrap()
}

fn entry(v: &Value) -> Entry {
    let n = |i: usize| v[i].as_str().map_or_else(|| v[i].as_u64().unwrap(), |s| s.parse().unwrap());
    e(u64::from_str_radix(v[0].as_str().unwrap(), 16).unwrap(), n(1), n(2))
}

fn entries(v: &Value) -> Vec<Entry> {
    v.as_array().unwrap().iter().map(entry).collect()
}

/// Compares a file with its description in the vectors.
fn assert_file(world: &World, file: &SrchFile, want: &Value) {
    assert_eq!(file.blocks.get(), want["blocks"].as_u64().unwrap());
    assert_eq!(file.entries.get(), want["entries"].as_u64().unwrap());
    assert_eq!(u64::from(file.height), want["height"].as_u64().unwrap());
    assert_eq!((Entry::from(file.first), Entry::from(file.last)), (entry(&want["first"]), entry(&want["last"])));
    for (block, want) in world.blocks(file).iter().zip(want["block"].as_array().unwrap()) {
        let head = block_head(block, 0).unwrap();
        assert_eq!(u64::from(head.entry_nr.get()), want["entry_nr"].as_u64().unwrap());
        assert_eq!(u64::from(head.entry_bytes.get()), want["entry_bytes"].as_u64().unwrap());
        for (have, want) in
            [(head.first, "first"), (head.last, "last"), (head.tail, "tail")].map(|(h, n)| (h, &want[n]))
        {
            assert_eq!(Entry::from(have), entry(want));
        }
        if let Some(coded) = want["entries_hex"].as_str() {
            let have: String = block[112..112 + coded.len() / 2].iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(have, coded);
        }
    }
}

#[test]
fn logs_are_sorted_as_by_the_original() {
    let v = &vectors()["log_compaction"];
    for sort_entries in [1, 3, 1000] {
        let mut world = World::new();
        let files: Vec<_> = v["inputs"].as_array().unwrap().iter().map(|i| world.log(&entries(i))).collect();
        let mut compact = world.compaction(SRCH_COMPACT_LOG, &files, 100);
        work(&world.store, &mut compact, Limits { sort_entries, ..SMALL }).unwrap();
        assert_eq!(u64::from(compact.flags), v["flags"].as_u64().unwrap());
        assert_file(&world, &compact.output, &v["output"]);
    }
}

#[test]
fn sorted_files_are_merged_in_the_steps_of_the_original() {
    let v = &vectors()["sorted_compaction"];
    let mut world = World::new();
    let files: Vec<SrchFile> = (0..4)
        .map(|k| {
            world.log(&(0..15_000).map(|i| e(0x1_0000_0000 * (i / 3) + k, 1000 + i * 4 + k, i % 3)).collect::<Vec<_>>())
        })
        .collect();
    for (file, want) in files.iter().zip(v["inputs"].as_array().unwrap()) {
        assert_file(&world, file, want);
    }
    let mut compact = world.compaction(SRCH_COMPACT_SORTED, &files, 100);
    // The original stops after two blocks, when a third would be dirty with the parent.
    let steps = world.run(&mut compact, Limits { merge_blocks: 2, ..SMALL });
    let want = v["steps"].as_array().unwrap();
    assert_eq!(steps.len(), want.len());
    for (step, want) in steps.iter().zip(want) {
        assert_eq!(u64::from(step.flags), want["flags"].as_u64().unwrap());
        let out = (step.output.blocks.get(), step.output.entries.get());
        assert_eq!(out, (want["out_blocks"].as_u64().unwrap(), want["out_entries"].as_u64().unwrap()));
        for (input, want) in step.inputs.iter().zip(want["in"].as_array().unwrap()) {
            let at = (input.blk.get(), input.pos.get());
            assert_eq!(at, (want[0].as_u64().unwrap(), want[1].as_u64().unwrap()));
        }
    }
    assert_file(&world, &compact.output, &v["output"]);
}

/// Search compaction went on as if nothing had happened when its blocks could not be written: the server recorded references
/// to blocks that were never there.
#[test]
fn defect_4_a_failed_write_is_an_error_of_the_compaction() {
    for (ops, n) in [(FaultOps::WRITES, 0), (FaultOps { reads: false, writes: false, flushes: true }, 0)] {
        let mut world = World::new();
        let files = [world.log(&[e(1, 2, 3)]), world.log(&[e(4, 5, 6)])];
        let compact = world.compaction(SRCH_COMPACT_LOG, &files, 100);
        world.faults.fail_nth(ops, n, Fault::Once);
        let mut answer = compact;
        let failed = work(&world.store, &mut answer, LIMITS);
        assert!(failed.is_err());
        world.faults.heal();
        let mut again = compact;
        work(&world.store, &mut again, LIMITS).unwrap();
        assert_eq!(world.entries(&again.output), [e(1, 2, 3), e(4, 5, 6)]);
    }
}

/// When all entries cancelled, the original wrote a file with an empty block, and then failed for ever on compacting it.
#[test]
fn defect_72_cancelled_entries_leave_no_empty_block() {
    let mut world = World::new();
    let files = [world.log(&[e(1, 2, 3), e(7, 7, 7)]), world.log(&[e(7, 7, 7), e(1, 2, 3)])];
    let mut compact = world.compaction(SRCH_COMPACT_LOG, &files, 100);
    work(&world.store, &mut compact, LIMITS).unwrap();
    assert_eq!(compact.flags & SRCH_COMPACT_DONE, SRCH_COMPACT_DONE);
    assert_eq!(compact.output, SrchFile::new_zeroed());

    // The same with sorted files, and with empty blocks in all places.
    let (none, a, b): (&[Entry], _, _) = (&[], [e(1, 1, 1), e(2, 2, 2)], [e(2, 2, 2), e(3, 3, 3)]);
    let files = [
        world.file_of(&[none]),
        world.file_of(&[none, &a, none]),
        world.file_of(&[&a[..1], none, none, &b]),
        world.file_of(&[none, &b[1..], none]),
    ];
    let mut compact = world.compaction(SRCH_COMPACT_SORTED, &files, 100);
    world.run(&mut compact, SMALL);
    assert_eq!((compact.output.blocks.get(), world.entries(&compact.output)), (0, vec![]));
}

#[test]
fn logs_without_room_are_an_error_and_nothing_is_lost() {
    let mut world = World::new();
    let many: Vec<_> = (0..60_000).map(|i| e(i * 0x1234_5678_9abc, i, i)).collect();
    let files = [world.log(&many)];
    let mut compact = world.compaction(SRCH_COMPACT_LOG, &files, 18);
    assert!(work(&world.store, &mut compact, LIMITS).unwrap_err().is(Errno::ENOSPC));
    // Merging stops and goes on instead.
    let mut compact = world.compaction(SRCH_COMPACT_SORTED, &files, 20);
    work(&world.store, &mut compact, LIMITS).unwrap();
    assert_eq!(compact.flags, SRCH_COMPACT_SORTED);
    assert!(compact.output.blocks.get() >= 1);
    world.run(&mut compact, LIMITS);
    assert_eq!(world.entries(&compact.output), many);
}

#[test]
fn files_are_taken_apart_block_by_block_exactly_once() {
    let mut world = World::new();
    // Three levels: 4094 data blocks do not suffice.
    let one = [e(1, 1, 1)];
    let deep = world.file_of(&vec![&one[..]; 4100]);
    assert_eq!(deep.height, 3);
    let files = [deep, SrchFile::new_zeroed(), world.log(&one), world.file_of(&[&one, &one])];
    let mut blocks = HashSet::default();
    let mut all = Vec::new();
    for file in &files {
        for level in 0..file.height {
            for blk in 0..file.blocks.get() {
                let r = srch_file::reference(&world.store, file, level, blk).unwrap().unwrap();
                blocks.insert(r.blkno.get());
            }
        }
    }
    let mut compact = world.compaction(SRCH_COMPACT_DELETE, &files, 10);
    let mut steps = 0;
    while compact.flags & SRCH_COMPACT_DONE == 0 {
        steps += 1;
        let mut alloc = Scarce { room: 1000, freed: Vec::new() };
        let mut dirty = DirtySet::new();
        let mut cow = Cow { store: &world.store, dirty: &mut dirty, alloc: &mut alloc };
        if delete::step(&mut cow, inputs(&mut compact)).unwrap() {
            compact.flags |= SRCH_COMPACT_DONE;
        }
        all.extend(alloc.freed);
    }
    assert!(steps > 4);
    let distinct: HashSet<u64> = all.iter().copied().collect();
    assert_eq!((distinct.len(), &distinct), (all.len(), &blocks));
    // It is finished: nothing more is freed.
    compact.flags &= !SRCH_COMPACT_DONE;
    (compact.meta_avail, compact.meta_freed) = (world.stock(10), AllocListHead::new_zeroed());
    work(&world.store, &mut compact, LIMITS).unwrap();
    assert_eq!(compact.meta_freed, AllocListHead::new_zeroed());
}

/// Room for few frees.
struct Scarce {
    room: u64,
    freed: Vec<u64>,
}

impl BlockSource for Scarce {
    fn alloc(&mut self) -> Result<crate::format::MetaBlock> {
        Err(no_progress())
    }
    fn free(&mut self, b: crate::format::MetaBlock) -> Result<()> {
        self.room -= 1;
        self.freed.push(b.0);
        Ok(())
    }
    fn room(&self) -> (u64, u64) {
        (0, self.room)
    }
}

#[test]
fn impossible_positions_and_orders_are_refused() {
    let mut world = World::new();
    let file = world.log(&[e(1, 1, 1), e(2, 2, 2)]);
    for (blk, pos) in [(0, 1), (0, 3), (1, 1), (2, 0), (u64::MAX, 0), (0, u64::MAX)] {
        let mut compact = world.compaction(SRCH_COMPACT_SORTED, &[file], 100);
        (compact.inputs[0].blk, compact.inputs[0].pos) = (blk.into(), pos.into());
        let failed = work(&world.store, &mut compact, LIMITS).unwrap_err();
        assert!(matches!(failed, Error::Corrupt { .. }), "{blk}:{pos} {failed}");
    }
    let unsorted = world.log(&[e(2, 2, 2), e(1, 1, 1)]);
    let mut compact = world.compaction(SRCH_COMPACT_SORTED, &[unsorted], 100);
    assert!(matches!(work(&world.store, &mut compact, LIMITS), Err(Error::Corrupt { .. })));
}

/// Entries that are there an odd number of times.
fn present(entries: impl IntoIterator<Item = Entry>) -> std::collections::BTreeSet<Entry> {
    let mut set = std::collections::BTreeSet::new();
    for entry in entries {
        if !set.remove(&entry) {
            set.insert(entry);
        }
    }
    set
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_present_stays_the_same(
        logs in prop::collection::vec(prop::collection::vec((0u64..6, 0u64..4, 0u64..3), 0..40), 1..=4),
        room in 1usize..20,
    ) {
        let mut world = World::new();
        let logs: Vec<Vec<Entry>> = logs.iter().map(|l| l.iter().map(|(a, b, c)| e(*a, *b, *c)).collect()).collect();
        let want = present(logs.iter().flatten().copied());
        let files: Vec<SrchFile> = logs.iter().map(|l| world.log(l)).collect();
        let mut compact = world.compaction(SRCH_COMPACT_LOG, &files, 100);
        work(&world.store, &mut compact, Limits { sort_entries: room, ..SMALL }).unwrap();
        let sorted = world.entries(&compact.output);
        prop_assert_eq!(&sorted, &want.iter().copied().collect::<Vec<_>>());
        // As sorted files with odd blocks, merged in small steps.
        let files: Vec<SrchFile> = logs
            .iter()
            .map(|l| {
                let mut l = l.clone();
                l.sort_unstable();
                world.file_of(&l.chunks(room).collect::<Vec<_>>())
            })
            .collect();
        let mut compact = world.compaction(SRCH_COMPACT_SORTED, &files, 100);
        world.run(&mut compact, SMALL);
        prop_assert_eq!(present(world.entries(&compact.output)), want);
    }
}
