//! Damaged blocks with a good crc: an error or a valid reading, never a panic, a loop or a read out of bounds.

use proptest::prelude::*;

use super::*;
use crate::block::{BlockView, DirtyContent};
use crate::btree::image::View;
use crate::btree::node::Node;
use crate::btree::{delete, dirty, force, lookup, next, prev, rebalance};
use crate::format::{KeyRange, seal_block};

/// Stores `image` where the root's block is, with a good crc.
fn replace_root(bed: &Bed, root: &BtreeRoot, image: &mut [u8]) {
    let at = root.block_ref.blkno.get() * BLOCK_BYTES as u64;
    seal_block(image);
    bed.dev.write_at(at, image).unwrap();
}

fn image_of(bed: &Bed, r: &BlockRef) -> Vec<u8> {
    let mut image = vec![0; BLOCK_BYTES];
    bed.dev.read_at(r.blkno.get() * BLOCK_BYTES as u64, &mut image).unwrap();
    image
}

/// Every operation, after each of which the tree is either unchanged in content or an error was given.
fn exercise(bed: &mut Bed, root: &BtreeRoot) {
    bed.store = BlockStore::new(bed.dev.clone(), FSID, 4 << 20);
    let fine = |r: Result<()>| match r {
        Ok(()) => {}
        Err(Error::Corrupt { .. } | Error::Stale { .. }) => {}
        Err(e) if e.is(Errno::ENOENT) || e.is(Errno::EEXIST) => {}
        Err(e) => panic!("{e}"),
    };
    for id in [0, 1, 17, 500, 5000] {
        let key = k(id);
        fine(lookup(&bed.reader(), root, &key).map(drop));
        fine(prev(&bed.reader(), root, &key).map(drop));
        let mut at = Key::ZEROS;
        for _ in 0..5000 {
            match next(&bed.reader(), root, &at) {
                Ok(Some((key, _))) if key != Key::ONES => {
                    assert!(key >= at);
                    at = key.next();
                }
                other => {
                    fine(other.map(drop));
                    break;
                }
            }
        }
    }
    // Numbers in damaged references must not confuse the account: it is not the subject here.
    let mut source = Careless(1 << 22);
    let mut changed = *root;
    let mut set = DirtySet::new();
    let mut cow = Cow { store: &bed.store, dirty: &mut set, alloc: &mut source };
    for id in [0, 1, 17, 500, 5000] {
        fine(force(&mut cow, &mut changed, &k(id), &[1; 896]));
        fine(dirty(&mut cow, &mut changed, &k(id)));
        fine(delete(&mut cow, &mut changed, &k(id + 1)));
        fine(rebalance(&mut cow, &mut changed, &k(id)));
    }
    let mut look = Look::default();
    visit(&Reader::new(&bed.store), root, true, &mut look);
}

struct Careless(u64);

impl BlockSource for Careless {
    fn alloc(&mut self) -> Result<MetaBlock> {
        self.0 += 1;
        Ok(MetaBlock(self.0))
    }

    fn free(&mut self, _b: MetaBlock) -> Result<()> {
        Ok(())
    }
}

fn small() -> (Bed, BtreeRoot) {
    let mut bed = Bed::new();
    let items: Vec<_> = (0..40).map(|id| (k(id), id, 0, vec![id as u8; (id as usize * 5) % 90])).collect();
    let root = bed.build(&items);
    bed.reopen();
    (bed, root)
}

fn tall() -> (Bed, BtreeRoot) {
    let mut bed = Bed::new();
    let items: Vec<_> = (0..700).map(|id| (k(id), id, 0, vec![id as u8; 400])).collect();
    let root = bed.build(&items);
    bed.reopen();
    (bed, root)
}

/// The bytes that mean something in a small leaf or parent: head, items, hash table, values at the end.
fn interesting() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 32..48usize, 12 => 48..2300usize, 2 => 62000..65536usize, 1 => 32..65536usize]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Defect 16: the original trusts offsets inside a block whose crc is right.
    #[test]
    fn defect_16_any_bytes_with_a_good_crc_are_survived(
        parent in any::<bool>(),
        flips in prop::collection::vec((interesting(), any::<u8>()), 1..4),
    ) {
        let (mut bed, root) = if parent { tall() } else { small() };
        let mut image = image_of(&bed, &root.block_ref);
        for (at, byte) in flips {
            image[at] = byte;
        }
        replace_root(&bed, &root, &mut image);
        exercise(&mut bed, &root);
    }

    #[test]
    fn random_blocks_are_decoded_or_refused(head in prop::collection::vec(any::<u8>(), 16), fill in any::<u8>()) {
        let mut image = [fill; BLOCK_BYTES];
        image[32..48].copy_from_slice(&head);
        if let Ok(view) = View::decode(&image, 1) {
            prop_assert!(view.node(&image).len() <= 1115);
        }
    }
}

/// Every single offset of the AVL tree and every value offset, made wrong in turn.
#[test]
fn every_wrong_link_is_found() {
    let (bed, root) = small();
    let good: Box<[u8; BLOCK_BYTES]> = image_of(&bed, &root.block_ref).try_into().unwrap();
    let fields = (0..40).flat_map(|slot| [0, 2, 4, 48, 50].map(|f| 48 + 56 * slot + f)).chain([32, 34, 36, 38]);
    for at in fields {
        let was = u16::from_le_bytes([good[at], good[at + 1]]);
        for wrong in [0, 1, 16, 72, 48 + 56 * 40 - 32, 62512, 65535, was.wrapping_add(8), was.wrapping_sub(1)] {
            let mut image = good.clone();
            image[at..at + 2].copy_from_slice(&wrong.to_le_bytes());
            let Ok(view) = View::decode(&image, 1) else { continue };
            // What passes is as consistent as before: the same items, or a shorter gap, or values moved in free space.
            let node = view.node(&image);
            assert_eq!(node.len(), 40);
            assert!((0..40).all(|rank| node.key(rank) == k(rank as u64)));
        }
    }
}

#[test]
fn a_block_of_another_level_is_corrupt() {
    let (mut bed, root) = tall();
    let mut image = image_of(&bed, &root.block_ref);
    image[40] = 2;
    replace_root(&bed, &root, &mut image);
    bed.store = BlockStore::new(bed.dev.clone(), FSID, 4 << 20);
    assert!(matches!(lookup(&bed.reader(), &root, &k(1)), Err(Error::Corrupt { .. })));
    let wrong = BtreeRoot { height: 1, ..root };
    assert!(matches!(lookup(&bed.reader(), &wrong, &k(1)), Err(Error::Corrupt { .. })));
    for bad in [BtreeRoot { height: 0, ..root }, BtreeRoot { height: 21, ..root }, BtreeRoot { height: 1, ..EMPTY }] {
        assert!(matches!(lookup(&bed.reader(), &bad, &k(1)), Err(Error::Corrupt { .. })));
        assert!(matches!(force(&mut bed.cow(), &mut bad.clone(), &k(1), &[]), Err(Error::Corrupt { .. })));
    }
}

/// A parent whose child is itself: levels end the walk.
#[test]
fn a_loop_of_references_ends() {
    let (mut bed, root) = tall();
    let mut node = Node::empty_parent(1);
    node.insert_child(0, Key::ONES, &root.block_ref);
    let mut image: Box<[u8; BLOCK_BYTES]> = image_of(&bed, &root.block_ref).try_into().unwrap();
    node.encode(&mut image);
    replace_root(&bed, &root, &mut image[..]);
    exercise(&mut bed, &root);
    let looped = BtreeRoot { height: 20, ..root };
    exercise(&mut bed, &looped);
}

/// Removing the last item of a leaf, and giving up a root, presume shapes; wrong ones are errors and change nothing.
#[test]
fn defect_17_unexpected_shapes_are_errors() {
    // A non-root leaf with one item whose parent has no other child, below a third level.
    let mut bed = Bed::new();
    let put = |bed: &mut Bed, node: Node| {
        let mut r = EMPTY.block_ref;
        *bed.cow().content_mut::<Node>(&mut r).unwrap() = node;
        r
    };
    let mut leaf = Node::default();
    leaf.push(k(5), 0, 0, &[1]);
    let mut right_leaf = Node::default();
    right_leaf.push(k(50), 0, 0, &[1]);
    let (leaf, right_leaf) = (put(&mut bed, leaf), put(&mut bed, right_leaf));
    let mut low = Node::empty_parent(1);
    low.insert_child(0, k(10), &leaf);
    let mut right = Node::empty_parent(1);
    right.insert_child(0, Key::ONES, &right_leaf);
    let (low, right) = (put(&mut bed, low), put(&mut bed, right));
    let mut top = Node::empty_parent(2);
    top.insert_child(0, k(10), &low);
    top.insert_child(1, Key::ONES, &right);
    let mut root = BtreeRoot { block_ref: put(&mut bed, top), height: 3, pad: [0; 7] };
    bed.reopen();
    // Low parents are joined first, then the root gives way, then the leaves are joined: no trouble here.
    delete(&mut bed.cow(), &mut root, &k(5)).unwrap();
    assert_eq!(root.height, 1);
    bed.reopen();
    bed.check(&[&root]);

    // The only child of a parent that is not the root's.
    let mut lonely = Node::empty_parent(1);
    let mut big = Node::default();
    big.push(k(1), 0, 0, &[1]);
    let big = put(&mut bed, big);
    lonely.insert_child(0, Key::ONES, &big);
    let lonely = put(&mut bed, lonely);
    let place = super::super::write::descend(
        &mut bed.cow(),
        &mut BtreeRoot { block_ref: lonely, height: 2, pad: [0; 7] },
        &k(1),
        0,
        super::super::write::Prepare::JOIN.within(true),
    );
    assert!(matches!(place, Err(Error::Corrupt { .. })));
}

/// Empty leaves can be met in trees that the original wrote; they are read, iterated over and filled.
#[test]
fn empty_leaves_are_accepted() {
    let mut bed = Bed::new();
    let mut r = EMPTY.block_ref;
    bed.cow().content_mut::<Node>(&mut r).unwrap();
    let mut root = BtreeRoot { block_ref: r, height: 1, pad: [0; 7] };
    bed.reopen();
    assert!(next(&bed.reader(), &root, &Key::ZEROS).unwrap().is_none());
    assert!(prev(&bed.reader(), &root, &Key::ONES).unwrap().is_none());
    assert!(delete(&mut bed.cow(), &mut root, &k(1)).unwrap_err().is(Errno::ENOENT));
    force(&mut bed.cow(), &mut root, &k(1), &[2]).unwrap();
    delete(&mut bed.cow(), &mut root, &k(1)).unwrap();
    assert_eq!(root, EMPTY);

    // Between others.
    let items: Vec<_> = (0..300).map(|id| (k(id), 0, 0, vec![1; 400])).collect();
    let mut root = bed.build(&items);
    let mut range = KeyRange::ALL;
    super::super::read_leaf(&bed.reader(), &root, &k(150), &mut range, &mut |_, _, _, _| Ok(())).unwrap();
    let place =
        super::super::write::descend(&mut bed.cow(), &mut root, &k(150), 0, super::super::write::Prepare::NOTHING)
            .unwrap();
    *super::super::write::node(&mut bed.cow(), &place.r).unwrap() = Node::default();
    bed.reopen();
    bed.check(&[&root]);
    let left = bed.look(&root).items.len();
    let after = next(&bed.reader(), &root, &k(150)).unwrap().map(|(key, _)| key);
    assert_eq!(after, (range.end < Key::ONES).then(|| k(range.end.first + 1)));
    if range.start > Key::ZEROS {
        assert_eq!(prev(&bed.reader(), &root, &k(150)).unwrap().unwrap().0, range.start.prev());
    }
    assert!(left < 300);
    delete(&mut bed.cow(), &mut root, &k(0)).unwrap_or_else(|e| assert!(e.is(Errno::ENOENT)));
    rebalance(&mut bed.cow(), &mut root, &k(150)).unwrap();
    assert!(bed.look(&root).blocks.iter().all(|b| b.items > 0));
}
