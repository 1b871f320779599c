//! Trees of volumes that the original wrote.

use zerocopy::FromBytes;

use super::*;
use crate::format::layout::{LogTrees, SuperBlock};

fn device(name: &str) -> Arc<MemDevice> {
    let size = crate::fixture::unpack(name, "meta", &mut |_, _| {});
    let dev = MemDevice::named(name, size);
    crate::fixture::unpack(name, "meta", &mut |offset, bytes| dev.write_at(offset, bytes).unwrap());
    dev
}

/// Every tree of every volume passes all checks, hash tables and bounds included, and no block is in two of them.
#[test]
fn trees_of_the_original_pass_all_checks() {
    for name in crate::fixture::ALL {
        let dev = device(name);
        let mut small = [0; 4096];
        dev.read_at(16 * 4096, &mut small).unwrap();
        let (sb, _) = SuperBlock::ref_from_prefix(&small).unwrap();
        let store = BlockStore::new(dev, sb.hdr.fsid.get(), 64 << 20);
        let mut blocks = HashSet::new();
        let mut look_at = |root: &BtreeRoot| {
            let mut look = Look::default();
            visit(&Reader::new(&store), root, true, &mut look);
            assert!(look.damage.is_empty(), "{name}: {:?}", look.damage);
            assert!(look.blocks.iter().all(|b| blocks.insert(b.block_ref.blkno.get())), "{name}");
            look.items
        };
        let fs = look_at(&sb.fs_root);
        assert!(fs.len() >= 2, "{name}: the items of the root directory");
        for root in [&sb.log_merge, &sb.mounted_clients, &sb.srch_root, &sb.data_alloc.root] {
            look_at(root);
        }
        sb.meta_alloc.iter().for_each(|a| drop(look_at(&a.root)));
        for (_, _, value) in look_at(&sb.logs_root).values() {
            let logs = LogTrees::ref_from_bytes(value).unwrap();
            for root in [&logs.item_root, &logs.data_avail.root, &logs.data_freed.root] {
                look_at(root);
            }
        }
    }
}
