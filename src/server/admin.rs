//! Small requests: inode numbers, volume options, growing the volume.

use zerocopy::IntoBytes;

use crate::alloc::extents;
use crate::error::{Errno, Result};
use crate::format::consts::{
    MAX_DATA_BLOCK, MAX_DATA_ZONES, MAX_META_BLOCK, MIN_DATA_ZONE_BLOCKS, SMALL_BYTES, VOLOPT_DATA_ALLOC_ZONE_BLOCKS,
    VOLOPT_UNKNOWN,
};
use crate::format::layout::{NetInodeAlloc, NetResizeDevices, VolumeOptionValues};
use crate::net::Command;

use super::core::{Asker, Outcome, ServerCore, Step, refuse};
use super::trees::own;

impl ServerCore {
    /// ALLOC_INODES (`spec/05 §5.5.1`). Numbers are never given back.
    pub(super) fn step_alloc_inodes(&mut self, from: Asker, count: u64) -> Outcome<Step> {
        let ino = self.trees.sup.next_ino.get();
        let nr = count.min(u64::MAX - ino);
        if nr > 0 {
            self.trees.sup_mut().next_ino = (ino + nr).into();
        }
        self.answer(from, Ok(NetInodeAlloc { ino: ino.into(), nr: nr.into() }.as_bytes().to_vec()));
        Ok(Step::Done)
    }

    /// SET_VOLOPT and CLEAR_VOLOPT (`spec/05 §5.5.9`).
    pub(super) fn step_volopt(&mut self, from: Asker, options: &VolumeOptionValues) -> Outcome<Step> {
        let bits = options.set_bits.get();
        if bits & VOLOPT_UNKNOWN != 0 {
            return refuse(Errno::EINVAL);
        }
        if bits & VOLOPT_DATA_ALLOC_ZONE_BLOCKS != 0 {
            let set = from.cmd == Command::SetVolopt;
            let value = if set { options.data_alloc_zone_blocks.get() } else { 0 };
            if set && !zones_fit(value, self.trees.sup.total_data_blocks.get()) {
                return refuse(Errno::EINVAL);
            }
            let volopt = &mut self.trees.sup_mut().volopt;
            let others = volopt.set_bits.get() & !VOLOPT_DATA_ALLOC_ZONE_BLOCKS;
            volopt.set_bits = (others | if set { VOLOPT_DATA_ALLOC_ZONE_BLOCKS } else { 0 }).into();
            volopt.data_alloc_zone_blocks = value.into();
        }
        self.answer(from, Ok(Vec::new()));
        Ok(Step::Done)
    }

    /// RESIZE_DEVICES (`spec/05 §5.5.10`). Volumes only grow.
    pub(super) fn step_resize(&mut self, from: Asker, totals: &NetResizeDevices) -> Outcome<Step> {
        let old = (self.trees.sup.total_meta_blocks.get(), self.trees.sup.total_data_blocks.get());
        let or_old = |new: u64, old: u64| if new == 0 { old } else { new };
        let meta = or_old(totals.new_total_meta_blocks.get(), old.0);
        let data = or_old(totals.new_total_data_blocks.get(), old.1);
        if meta < old.0 || meta > self.trees.store.meta_blocks().min(MAX_META_BLOCK) {
            return refuse(Errno::EINVAL);
        }
        let device = self.trees.data_dev.as_ref().map_or(0, |d| d.size() / SMALL_BYTES as u64);
        if data < old.1 || (data > old.1 && data > device.min(MAX_DATA_BLOCK)) {
            return refuse(Errno::EINVAL);
        }
        // More zones than there are bits for them could not be recorded.
        let volopt = self.trees.sup.volopt;
        let zones = volopt.set_bits.get() & VOLOPT_DATA_ALLOC_ZONE_BLOCKS != 0;
        if zones && data > old.1 && !zones_fit(volopt.data_alloc_zone_blocks.get(), data) {
            return refuse(Errno::EINVAL);
        }
        if (meta, data) != old {
            self.grow(old, (meta, data))?;
        }
        self.answer(from, Ok(Vec::new()));
        Ok(Step::Done)
    }

    fn grow(&mut self, old: (u64, u64), new: (u64, u64)) -> Result<()> {
        let sup = self.trees.sup_mut();
        sup.total_meta_blocks = new.0.into();
        sup.total_data_blocks = new.1.into();
        let (meta, data) = (self.trees.meta_bounds(), self.trees.data_bounds());
        let avail = self.trees.avail_root;
        let (mut cow, sup) = self.trees.split();
        if new.0 > old.0 {
            own(extents::insert(&mut cow, &mut sup.meta_alloc[avail], meta, old.0, new.0 - old.0))?;
        }
        if new.1 > old.1 {
            own(extents::insert(&mut cow, &mut sup.data_alloc, data, old.1, new.1 - old.1))?;
        }
        self.trees.restock();
        Ok(())
    }
}

/// May data be cut in zones of this size? Every zone needs a bit.
fn zones_fit(zone_blocks: u64, total_data: u64) -> bool {
    zone_blocks >= MIN_DATA_ZONE_BLOCKS
        && zone_blocks <= total_data
        && total_data.div_ceil(zone_blocks.max(1)) <= MAX_DATA_ZONES
}
