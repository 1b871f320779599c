//! Contents that a front end shows and lets others change without asking: what the pages of a shared mapping are.
//!
//! Each node has a front end that behaves as a kernel does: it fills a page while it holds the page's lock, lets programs
//! load from and store into the page at any time, and to drop a page has to wait for its lock. With pages that are
//! exclusive or shared as processor caches are, a counter in a page that every node increments must not lose a single
//! increment.

#[path = "common/cluster.rs"]
mod cluster;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use scoutfs::namespace::{Caller, SetAttr};
use scoutfs::{Errno, FrontEnd, Ino, InodeGroup, Loans, Volume};

use cluster::Cluster;

const PAGE: usize = 4096;
const PAGES: usize = 3;

/// A page that the front end has, and how.
struct Page {
    value: u64,
    dirty: bool,
}

/// The cache of one file.
struct Pages {
    volume: OnceLock<Weak<Volume>>,
    ino: Ino,
    /// Was the file opened for writing here? Then whatever is filled may be changed at once.
    writer: bool,
    pages: [Mutex<Option<Page>>; PAGES],
    recalls: AtomicU64,
}

impl Pages {
    fn add(volume: &Arc<Volume>, ino: Ino, writer: bool) -> Arc<Pages> {
        let pages = Arc::new(Pages {
            volume: OnceLock::new(),
            ino,
            writer,
            pages: std::array::from_fn(|_| Mutex::new(None)),
            recalls: AtomicU64::new(0),
        });
        let _ = pages.volume.set(Arc::downgrade(volume));
        volume.add_front_end(pages.clone());
        pages
    }

    fn volume(&self) -> Arc<Volume> {
        self.volume.get().and_then(Weak::upgrade).expect("the volume is open")
    }

    /// A program touches a page; it is filled if need be, behind its lock.
    fn with<R>(&self, at: usize, f: impl FnOnce(&mut Page) -> R) -> R {
        let mut page = self.pages[at].lock().unwrap();
        if page.is_none() {
            let mut buf = [0; PAGE];
            self.volume().lend(self.ino, (at * PAGE) as u64, &mut buf, self.writer).unwrap();
            let value = u64::from_le_bytes(buf[..8].try_into().unwrap());
            *page = Some(Page { value, dirty: false });
        }
        f(page.as_mut().unwrap())
    }

    fn increment(&self, at: usize) {
        assert!(self.writer);
        self.with(at, |page| {
            page.value += 1;
            page.dirty = true;
        });
    }

    fn load(&self, at: usize) -> u64 {
        self.with(at, |page| page.value)
    }
}

impl FrontEnd for Pages {
    fn invalidate(&self, _group: InodeGroup) {}

    fn recall(&self, group: InodeGroup, loans: Loans) {
        assert!(group.contains(self.ino));
        self.recalls.fetch_add(1, Ordering::Relaxed);
        if !loans.includes(self.writer) {
            // None of the pages is meant, and who fills one may be waiting for the end of this recall.
            return;
        }
        for (at, page) in self.pages.iter().enumerate() {
            // As in a kernel: whoever fills the page has its lock.
            let mut page = page.lock().unwrap();
            let Some(p) = page.as_ref() else { continue };
            if p.dirty {
                let bytes = p.value.to_le_bytes();
                self.volume().give_back(&Caller::root(), self.ino, (at * PAGE) as u64, &bytes).unwrap();
            }
            *page = None;
        }
    }
}

/// A leader and two more nodes, a file of some pages, and a front end for it on each: two that change it, one that shows it.
struct Nodes {
    cluster: Cluster,
    volumes: Vec<Arc<Volume>>,
    fronts: Vec<Arc<Pages>>,
    ino: Ino,
}

impl Nodes {
    fn new() -> Nodes {
        let cluster = Cluster::new(1);
        let volumes: Vec<_> = (0..3).map(|i| Arc::new(cluster.mount((i == 0).then_some(0)))).collect();
        // Not in the group of the root directory.
        let dir = volumes[1].mkdir(&Caller::root(), Ino::ROOT, b"dir", 0o755).unwrap().ino;
        let ino = volumes[1].create(&Caller::root(), dir, b"file", 0o644).unwrap().ino;
        volumes[1].write(&Caller::root(), ino, 0, &[0; PAGES * PAGE]).unwrap();
        let fronts = volumes.iter().enumerate().map(|(i, v)| Pages::add(v, ino, i < 2)).collect();
        Nodes { cluster, volumes, fronts, ino }
    }

    fn read(&self, node: usize, at: usize) -> u64 {
        let mut buf = [0; 8];
        assert_eq!(self.volumes[node].read(self.ino, (at * PAGE) as u64, &mut buf).unwrap(), 8);
        u64::from_le_bytes(buf)
    }

    fn end(self) {
        for volume in self.volumes.into_iter().rev() {
            Arc::into_inner(volume).expect("nobody else has it").close().unwrap();
        }
        self.cluster.check();
    }
}

#[test]
fn no_increment_through_a_page_is_lost_and_no_load_is_stale() {
    const INCREMENTS: usize = 200;
    let nodes = Nodes::new();
    // What is in the pages at least: raised after each increment.
    let floors: [AtomicU64; PAGES] = std::array::from_fn(|_| AtomicU64::new(0));
    let (nodes_ref, floors_ref, stop) = (&nodes, &floors, &AtomicBool::new(false));
    thread::scope(|s| {
        let writers: Vec<_> = (0..6)
            .map(|t| {
                s.spawn(move || {
                    for i in 0..INCREMENTS {
                        let at = (i * 7 + t) % PAGES;
                        nodes_ref.fronts[t % 2].increment(at);
                        floors_ref[at].fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        // One sees the pages, one asks the volume.
        s.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // Who looks without pause takes the lock away more often than it is used.
                thread::sleep(Duration::from_millis(2));
                for (at, floor) in floors_ref.iter().enumerate() {
                    let least = floor.load(Ordering::SeqCst);
                    let loaded = nodes_ref.fronts[2].load(at);
                    assert!(loaded >= least, "page {at}: {loaded} after {least}");
                }
            }
        });
        s.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // Who looks without pause takes the lock away more often than it is used.
                thread::sleep(Duration::from_millis(2));
                for (at, floor) in floors_ref.iter().enumerate() {
                    let least = floor.load(Ordering::SeqCst);
                    let read = nodes_ref.read(0, at);
                    // The front end of this node may have it newer; a kernel would write that back before.
                    assert!(read >= least || nodes_ref.fronts[0].load(at) >= least, "page {at}: {read} after {least}");
                }
            }
        });
        let results: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        stop.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|r| r.unwrap());
    });
    // A node without the pages: everything that the others have comes back.
    let total: u64 = (0..PAGES).map(|at| nodes.fronts[1].load(at)).sum();
    assert_eq!(total, (6 * INCREMENTS) as u64);
    assert!(
        nodes.fronts.iter().all(|f| f.recalls.load(Ordering::Relaxed) > 0),
        "nobody was asked to give anything back"
    );
    nodes.end();
}

#[test]
fn pages_that_are_only_shown_stay_with_several_nodes() {
    let nodes = Nodes::new();
    nodes.fronts[0].increment(0);
    assert_eq!((nodes.fronts[2].load(0), nodes.read(1, 0)), (1, 1));
    let before: Vec<u64> = nodes.fronts.iter().map(|f| f.recalls.load(Ordering::Relaxed)).collect();
    assert_eq!(before[0], 1, "what could be changed was asked back once");
    for _ in 0..10 {
        assert_eq!((nodes.fronts[2].load(0), nodes.read(1, 0), nodes.read(0, 0)), (1, 1, 1));
    }
    let after: Vec<u64> = nodes.fronts.iter().map(|f| f.recalls.load(Ordering::Relaxed)).collect();
    assert_eq!(before, after, "reading took something from somebody");
    // A change by a call takes them back.
    nodes.volumes[0].write(&Caller::root(), nodes.ino, 0, &9u64.to_le_bytes()).unwrap();
    assert_eq!((nodes.fronts[2].load(0), nodes.fronts[1].load(0)), (9, 9));
    nodes.end();
}

#[test]
fn a_page_makes_no_file_longer() {
    let nodes = Nodes::new();
    nodes.fronts[0].increment(PAGES - 1);
    // Cut off by a call on the same node, as a front end that was too late would see it.
    let size = SetAttr { size: Some(100), ..SetAttr::default() };
    nodes.volumes[0].setattr(&Caller::root(), nodes.ino, &size).unwrap();
    assert_eq!(nodes.volumes[1].getattr(nodes.ino).unwrap().size, 100);
    // Part of the page is still there.
    let written = nodes.volumes[0].give_back(&Caller::root(), nodes.ino, 0, &[7; PAGE]).unwrap();
    assert_eq!((written, nodes.volumes[1].getattr(nodes.ino).unwrap().size), (100, 100));
    nodes.end();
}

#[test]
fn what_is_filled_while_it_is_asked_back_is_asked_back_again() {
    // Somebody fills a page behind its lock while the front end is asked to give it back and waits for that lock: the fill is
    // answered, and what it brought does not stay.
    let nodes = Nodes::new();
    nodes.fronts[0].increment(0);
    for round in 0..20 {
        thread::scope(|s| {
            let begin = Instant::now();
            let fill = s.spawn(|| nodes.fronts[0].increment(1));
            s.spawn(|| nodes.fronts[0].increment(0));
            let other = s.spawn(|| nodes.fronts[1].increment(round % PAGES));
            fill.join().unwrap();
            other.join().unwrap();
            assert!(begin.elapsed() < Duration::from_secs(20));
        });
    }
    let total: u64 = (0..PAGES).map(|at| nodes.fronts[2].load(at)).sum();
    assert_eq!(total, 61);
    nodes.end();
}

#[test]
fn loans_are_refused_like_reads_and_writes() {
    let nodes = Nodes::new();
    let volume = &nodes.volumes[1];
    let (caller, mut buf) = (Caller::root(), [0; PAGE]);
    let errno = |r: scoutfs::Result<usize>| r.unwrap_err().errno();
    assert_eq!(errno(volume.lend(Ino::ROOT, 0, &mut buf, false)), Errno::EISDIR);
    assert_eq!(errno(volume.give_back(&caller, Ino::ROOT, 0, &buf)), Errno::EISDIR);
    assert_eq!(errno(volume.lend(Ino(1 << 40), 0, &mut buf, true)), Errno::ESTALE);
    // Behind the end there is nothing.
    assert_eq!(volume.lend(nodes.ino, 1 << 40, &mut buf, true).unwrap(), 0);
    let mut called = false;
    volume.exclusively(nodes.ino, || called = true).unwrap();
    assert!(called);
    nodes.end();
}
