//! Memory for file contents: chunks of 32 pages, per file, within one bound for the mount.
//!
//! **Problem.** Programs read and write any byte ranges; the device wants few large requests. Written data has to wait for
//! the commit, and how much may wait must be bounded.
//!
//! **Idea.** Contents are kept in chunks of 128 KiB with three bits for each 4 KiB page. A small file has a small chunk.
//!
//! Invariants:
//! 1. A page whose `valid` bit is clear has no meaning; its memory may hold anything.
//! 2. `dirty` ⇒ `valid`. A page that is being written to the device has its `writing` bit set; if it is changed meanwhile it
//!    is dirty again.
//! 3. A chunk that is `gone` is in no file's map any more and has no dirty page; whoever meets it looks again.
//! 4. Only chunks that nobody else refers to and that are clean are evicted.
//! 5. Dirty pages are counted, for the file and for the mount: one for each `dirty` and one for each `writing` bit.

use std::collections::{BTreeMap, VecDeque};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use crate::sync::{Arc, Mutex, RwLock, Weak};

/// Bytes of a page: a block of the data device.
pub(super) const PAGE: usize = 4096;
/// Pages of a chunk.
pub(super) const CHUNK_PAGES: u64 = 32;
/// Pages of memory kept for reuse, of each size (4 MiB). Getting them from the system, page faults and clearing included,
/// cost half of the time of reading or writing a small file.
const POOL_PAGES: usize = 1024;
/// Sizes of a chunk's memory: 1, 2, 4, 8 or all pages.
const SIZES: usize = 5;
/// How many chunks one insertion looks at to make room.
const EVICT_LOOKS: usize = 16;

/// Aligned, so that devices which bypass the system's cache can use it in place.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Whole([u8; PAGE * CHUNK_PAGES as usize]);

/// Memory of a chunk.
///
/// Few pages are not aligned: aligned pages cost an allocator nearly twice their size, and there are many of them when
/// files are small. A device that needs alignment copies them, as it does with everything small.
enum Memory {
    Few(Vec<[u8; PAGE]>),
    All(Box<Whole>),
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::Few(Vec::new())
    }
}

impl Memory {
    /// Memory of a size, cleared.
    fn new(class: usize) -> Memory {
        if class == SIZES - 1 {
            Memory::All(Whole::new_box_zeroed().expect("128 KiB of memory"))
        } else {
            Memory::Few(vec![[0; PAGE]; 1 << class])
        }
    }

    fn pages(&self) -> usize {
        match self {
            Memory::Few(pages) => pages.len(),
            Memory::All(_) => CHUNK_PAGES as usize,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Few(pages) => pages.as_bytes(),
            Memory::All(whole) => &whole.0,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Few(pages) => pages.as_mut_bytes(),
            Memory::All(whole) => &mut whole.0,
        }
    }
}

/// The bits of `n` pages from page `from` of a chunk.
pub(super) fn mask(from: u64, n: u64) -> u32 {
    debug_assert!(from + n <= CHUNK_PAGES);
    (((1u64 << n) - 1) << from) as u32
}

/// Runs of set bits: (first, number).
pub(super) fn runs(mut bits: u32) -> impl Iterator<Item = (u64, u64)> {
    std::iter::from_fn(move || {
        let from = u64::from(bits.trailing_zeros());
        if from == 32 {
            return None;
        }
        let n = u64::from((bits >> from).trailing_ones());
        bits &= !mask(from, n);
        Some((from, n))
    })
}

/// Up to 32 pages of a file.
pub(super) struct Chunk {
    /// Which 32 pages: page number / 32.
    pub(super) index: u64,
    pub(super) state: RwLock<ChunkState>,
    referenced: AtomicBool,
}

/// What the lock of a chunk protects.
#[derive(Default)]
pub(super) struct ChunkState {
    mem: Memory,
    pub(super) valid: u32,
    pub(super) dirty: u32,
    pub(super) writing: u32,
    pub(super) gone: bool,
}

impl ChunkState {
    /// All bytes there is memory for.
    pub(super) fn bytes(&self) -> &[u8] {
        self.mem.bytes()
    }

    /// All bytes there is memory for.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.mem.bytes_mut()
    }
}

impl Chunk {
    /// Used lately: evict others first.
    pub(super) fn touch(&self) {
        if !self.referenced.load(Relaxed) {
            self.referenced.store(true, Relaxed);
        }
    }
}

/// Which size of memory holds so many pages.
fn size_class(pages: usize) -> usize {
    if pages > CHUNK_PAGES as usize / 4 { SIZES - 1 } else { pages.next_power_of_two().trailing_zeros() as usize }
}

/// The bound on all chunks of a mount.
pub(super) struct Pages {
    limit: usize,
    bytes: AtomicUsize,
    /// Dirty and writing pages.
    dirty: AtomicUsize,
    /// Chunks in maps.
    chunks: AtomicUsize,
    /// All of them, oldest first, and some that are gone already.
    queue: Mutex<VecDeque<(Weak<FilePages>, Weak<Chunk>)>>,
    /// Free memory by size.
    pool: [Mutex<Vec<Memory>>; SIZES],
}

impl Pages {
    /// At most `limit` bytes of clean contents.
    pub(super) fn new(limit: usize) -> Arc<Pages> {
        Arc::new(Pages {
            limit,
            bytes: AtomicUsize::new(0),
            dirty: AtomicUsize::new(0),
            chunks: AtomicUsize::new(0),
            queue: Mutex::new(VecDeque::new()),
            pool: Default::default(),
        })
    }

    /// Bytes of pages that are dirty or being written.
    pub(super) fn dirty_bytes(&self) -> usize {
        self.dirty.load(Acquire) * PAGE
    }

    /// Gives `state` memory for its first `pages` pages.
    pub(super) fn grow(&self, state: &mut ChunkState, pages: usize) {
        let have = state.mem.pages();
        if have >= pages {
            return;
        }
        let class = size_class(pages);
        let free = self.pool[class].lock().pop();
        let mut mem = free.unwrap_or_else(|| Memory::new(class));
        mem.bytes_mut()[..have * PAGE].copy_from_slice(state.bytes());
        self.recycle(std::mem::replace(&mut state.mem, mem));
        self.bytes.fetch_add((state.mem.pages() - have) * PAGE, Relaxed);
    }

    /// Keeps memory for the next chunk of its size, if there is not enough of it already.
    fn recycle(&self, mem: Memory) {
        let pages = mem.pages();
        if pages > 0 {
            let mut pool = self.pool[size_class(pages)].lock();
            if pool.len() * pages < POOL_PAGES {
                pool.push(mem);
            }
        }
    }

    /// The chunk's memory is not used any more.
    fn release(&self, state: &mut ChunkState) {
        let mem = std::mem::take(&mut state.mem);
        self.bytes.fetch_sub(mem.pages() * PAGE, Relaxed);
        self.recycle(mem);
    }

    /// Drops clean chunks until the bound is kept again, or as many as one call should look at.
    pub(super) fn evict(&self) {
        for _ in 0..EVICT_LOOKS {
            let bytes = self.bytes.load(Relaxed);
            if bytes <= self.limit + self.dirty_bytes() {
                return;
            }
            let Some((file, chunk)) = self.queue.lock().pop_front() else { return };
            let (Some(pages), Some(found)) = (file.upgrade(), chunk.upgrade()) else { continue };
            if !pages.evict(&found) {
                self.queue.lock().push_back((file, chunk));
            }
        }
    }

    /// Bytes of all chunks.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Entries of the queue.
    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queue.lock().len()
    }

    /// A new chunk is in a map.
    fn enqueue(&self, file: &Arc<FilePages>, chunk: &Arc<Chunk>) {
        let live = self.chunks.fetch_add(1, Relaxed) + 1;
        let mut queue = self.queue.lock();
        queue.push_back((Arc::downgrade(file), Arc::downgrade(chunk)));
        // Chunks also go by being forgotten; their entries must not pile up.
        if queue.len() > 2 * live + 64 {
            queue.retain(|(_, chunk)| chunk.strong_count() > 0);
        }
    }
}

/// The cached contents of one file.
pub(super) struct FilePages {
    all: Arc<Pages>,
    /// Refresh generation of the lock under which clean pages were read.
    generation: AtomicU64,
    chunks: RwLock<BTreeMap<u64, Arc<Chunk>>>,
    dirty: AtomicUsize,
}

impl FilePages {
    pub(super) fn new(all: Arc<Pages>) -> FilePages {
        FilePages {
            all,
            generation: AtomicU64::new(0),
            chunks: RwLock::new(BTreeMap::new()),
            dirty: AtomicUsize::new(0),
        }
    }

    /// The bound that these pages count against.
    pub(super) fn all(&self) -> &Pages {
        &self.all
    }

    /// Contents are used under a lock of this generation: what was read under another one is dropped.
    pub(super) fn validate(&self, generation: u64) {
        if self.generation.load(Acquire) == generation {
            return;
        }
        let mut chunks = self.chunks.write();
        if self.generation.load(Acquire) == generation {
            return;
        }
        chunks.retain(|_, chunk| !self.discard(&mut chunk.state.write()));
        free_if_empty(&mut chunks);
        self.generation.store(generation, Release);
    }

    /// Marks a clean chunk as gone.
    fn discard(&self, state: &mut ChunkState) -> bool {
        if state.dirty != 0 || state.writing != 0 {
            return false;
        }
        state.gone = true;
        state.valid = 0;
        self.all.release(state);
        self.all.chunks.fetch_sub(1, Relaxed);
        true
    }

    /// False: the chunk has to stay. The caller has one reference to it.
    fn evict(&self, chunk: &Arc<Chunk>) -> bool {
        let mut chunks = self.chunks.write();
        if chunks.get(&chunk.index).is_none_or(|c| !Arc::ptr_eq(c, chunk)) {
            return true;
        }
        if chunk.referenced.swap(false, Relaxed) || Arc::strong_count(chunk) > 2 {
            return false;
        }
        if !self.discard(&mut chunk.state.write()) {
            return false;
        }
        chunks.remove(&chunk.index);
        free_if_empty(&mut chunks);
        true
    }

    /// The chunk, if there is one.
    pub(super) fn chunk(&self, index: u64) -> Option<Arc<Chunk>> {
        self.chunks.read().get(&index).cloned()
    }

    /// The chunk, made if there is none.
    pub(super) fn chunk_or_new(self: &Arc<Self>, index: u64) -> Arc<Chunk> {
        if let Some(chunk) = self.chunk(index) {
            return chunk;
        }
        let mut chunks = self.chunks.write();
        let mut fresh = false;
        let chunk = chunks.entry(index).or_insert_with(|| {
            fresh = true;
            Arc::new(Chunk { index, state: RwLock::new(ChunkState::default()), referenced: AtomicBool::new(false) })
        });
        let chunk = chunk.clone();
        drop(chunks);
        if fresh {
            self.all.enqueue(self, &chunk);
        }
        chunk
    }

    /// How many pages from `page` to `last` are not cached, before the first one that is.
    pub(super) fn missing(&self, page: u64, last: u64) -> u64 {
        let chunks = self.chunks.read();
        let mut at = page;
        while at <= last {
            let (index, within) = (at / CHUNK_PAGES, at % CHUNK_PAGES);
            match chunks.get(&index) {
                None => {
                    // Jump over chunks that do not exist.
                    let next = chunks.range(index..).next().map_or(u64::MAX, |(i, _)| *i);
                    at = next.saturating_mul(CHUNK_PAGES).min(last + 1);
                }
                Some(chunk) => {
                    let hole =
                        u64::from((chunk.state.read().valid >> within).trailing_zeros()).min(CHUNK_PAGES - within);
                    at += hole;
                    if hole < CHUNK_PAGES - within {
                        break;
                    }
                }
            }
        }
        at.min(last + 1) - page
    }

    /// Sets dirty bits (the pages become valid); returns how many were not dirty before.
    pub(super) fn set_dirty(&self, state: &mut ChunkState, bits: u32) -> u64 {
        let new = u64::from((bits & !state.dirty).count_ones());
        state.dirty |= bits;
        state.valid |= bits;
        self.count(new as usize);
        new
    }

    fn count(&self, more: usize) {
        self.dirty.fetch_add(more, AcqRel);
        self.all.dirty.fetch_add(more, AcqRel);
    }

    fn uncount(&self, fewer: u32) {
        self.dirty.fetch_sub(fewer as usize, AcqRel);
        self.all.dirty.fetch_sub(fewer as usize, AcqRel);
    }

    /// Is anything dirty or being written?
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Acquire) != 0
    }

    /// Turns dirty pages among `bits` into pages that are being written.
    pub(super) fn start_writing(&self, state: &mut ChunkState, bits: u32) -> u32 {
        if state.gone {
            return 0;
        }
        let bits = bits & state.dirty & !state.writing;
        state.dirty &= !bits;
        state.writing |= bits;
        bits
    }

    /// The pages `bits` have been written, or not. True if pages are dirty again because of that.
    pub(super) fn end_writing(&self, state: &mut ChunkState, bits: u32, written: bool) -> bool {
        state.writing &= !bits;
        let again = if written { 0 } else { bits & state.valid & !state.dirty };
        state.dirty |= again;
        self.uncount((bits & !again).count_ones());
        again != 0
    }

    /// Is any page of `first..=last` dirty or being written?
    pub(super) fn is_busy(&self, first: u64, last: u64) -> bool {
        if !self.is_dirty() {
            return false;
        }
        let chunks = self.chunks.read();
        chunks.range(first / CHUNK_PAGES..=last / CHUNK_PAGES).any(|(_, chunk)| {
            let state = chunk.state.read();
            state.dirty | state.writing != 0
        })
    }

    /// Forgets pages `first..=last`, dirty or not.
    pub(super) fn forget(&self, first: u64, last: u64) {
        let mut chunks = self.chunks.write();
        let (low, high) = (first / CHUNK_PAGES, last / CHUNK_PAGES);
        let mut empty = Vec::new();
        for (index, chunk) in chunks.range(low..=high) {
            let from = if *index == low { first % CHUNK_PAGES } else { 0 };
            let upto = if *index == high { last % CHUNK_PAGES } else { CHUNK_PAGES - 1 };
            let bits = mask(from, upto - from + 1);
            let mut state = chunk.state.write();
            self.uncount((state.dirty & bits).count_ones());
            state.dirty &= !bits;
            state.valid &= !bits;
            if state.valid == 0 && state.writing == 0 && self.discard(&mut state) {
                empty.push(*index);
            }
        }
        for index in empty {
            chunks.remove(&index);
        }
        free_if_empty(&mut chunks);
    }
}

/// A map that was used keeps memory for its next entries, which is a lot for all the files that have none.
fn free_if_empty<K, V>(map: &mut BTreeMap<K, V>) {
    if map.is_empty() {
        *map = BTreeMap::new();
    }
}

impl Drop for FilePages {
    fn drop(&mut self) {
        for chunk in self.chunks.read().values() {
            let mut state = chunk.state.write();
            self.all.dirty.fetch_sub((state.dirty.count_ones() + state.writing.count_ones()) as usize, AcqRel);
            self.all.release(&mut state);
            self.all.chunks.fetch_sub(1, Relaxed);
        }
    }
}
