//! How much space is handed around: fill targets, low marks, budgets and the reserve (`spec/02 §6.2, §6.5`).
//!
//! The original's numbers assume devices of 64 GiB and more. They are policy, so they shrink with the metadata device: a
//! volume with 64 MiB of metadata must be usable, not merely mountable. From 5 GiB on ([`FULL_SIZE_META`]) the stocks of one
//! mount are exactly the original's, from 64 GiB on those of any number, and data numbers are the original's from 32 GiB on.
//!
//! Invariants:
//! 1. `meta_low` ≤ `meta_target` ≤ 8185, the capacity of one list block.
//! 2. Targets never exceed what a volume of the minimum size can give to one server and one client at once.

use super::list::LIST_CAPACITY;

/// Metadata blocks from which on every number is the original's (5 GiB).
pub(crate) const FULL_SIZE_META: u64 = 81_920;

/// Metadata blocks from which on the reserve is the original's (64 GiB, the least that its mkfs makes).
const FULL_RESERVE_META: u64 = 1 << 20;

/// Data blocks from which on data numbers are the original's (32 GiB).
const FULL_SIZE_DATA: u64 = 8 << 20;

/// Fill targets, low marks and budgets of one volume. Metadata counts 64 KiB blocks, data 4 KiB blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stock {
    /// Target of the server's idle list and of a client's `meta_avail`.
    pub(crate) meta_target: u32,
    /// They are filled when they hold fewer than this.
    pub(crate) meta_low: u32,
    /// Metadata given to one log merge request (low mark = target).
    pub(crate) merge_target: u32,
    /// Data given to a client's `data_avail`.
    pub(crate) data_target: u64,
    /// `data_avail` is filled when it holds fewer than this.
    pub(crate) data_low: u64,
    /// A client commits early when fewer data blocks than this are available, unless the LOW flag is set.
    pub(crate) data_refill: u64,
    /// Blocks that one server request may use of the running commit.
    pub(crate) holder_budget: u32,
    /// Blocks that one call of an extent move may use.
    pub(crate) move_budget: u32,
    /// Room that an extent move always leaves.
    pub(crate) move_slack: u32,
    /// The server's list of freed blocks is emptied into the trees when it holds more than this. Emptying it costs several
    /// blocks, however little is in it; the original does it with every commit.
    pub(crate) freed_keep: u32,
    total_meta: u64,
}

/// Mounts beyond this number do not make stocks smaller.
const MAX_PARTS: u64 = 15;

/// Below this many blocks in `data_avail` the server sets LOW, for every size of volume: a kernel client relies on it to
/// stop forcing commits in a loop. Our own client checks with one commit before it believes it.
pub(crate) const DATA_LOW_FLAG: u64 = 262_144;

/// Data requests of at least this many blocks are served directly, smaller ones from the cached extent.
pub(crate) const DATA_LARGE: u64 = 2048;

impl Stock {
    /// The numbers for a volume with these totals (64 KiB and 4 KiB blocks) and one mount.
    pub(crate) fn for_volume(total_meta: u64, total_data: u64) -> Stock {
        Stock::shared(total_meta, total_data, 1)
    }

    /// The numbers for a volume that so many mounts share. A small volume is divided among them, so that what all of them
    /// hold stays a part of it that leaves room to use.
    pub(crate) fn shared(total_meta: u64, total_data: u64, mounts: u64) -> Stock {
        let capacity = LIST_CAPACITY as u64;
        let parts = mounts.clamp(1, MAX_PARTS) + 1;
        let target = (total_meta / (5 * parts)).clamp(64, capacity);
        // A mount asks for more below a 16th of what one mount alone gets, so four mounts is as far as this may go.
        let data_parts = if total_data < FULL_SIZE_DATA { parts.min(5) } else { 2 };
        let data_target = (total_data / (4 * data_parts)).clamp(2048, 1_048_576);
        Stock {
            meta_target: target as u32,
            meta_low: (target / 2) as u32,
            merge_target: (target / 2).min(1028) as u32,
            data_target,
            data_low: data_target / 4,
            data_refill: data_target / 16,
            holder_budget: (target / 4).min(500) as u32,
            move_budget: (target / 8).min(250) as u32,
            move_slack: (target / 8).min(50) as u32,
            freed_keep: (target / 32).clamp(8, 256) as u32,
            total_meta,
        }
    }

    /// Are the numbers smaller than the original's?
    pub(crate) fn is_scaled(&self) -> bool {
        self.total_meta < FULL_SIZE_META
    }

    /// Metadata that is kept back so that frees and merges always go on (`spec/02 §6.5`): with no more than this in the
    /// avail root, mounts refuse operations that allocate.
    pub(crate) fn reserved(&self, clients: u64) -> u64 {
        let clients = clients.max(1);
        if !self.is_scaled() {
            let original = 2 * 8185 + clients * (2 * 8185 + 1028 + 913);
            // Between 5 and 64 GiB, which the original does not make, it would be most of the volume.
            let most = if self.total_meta < FULL_RESERVE_META { self.total_meta / 5 } else { u64::MAX };
            return original.min(most);
        }
        let target = u64::from(self.meta_target);
        // Each mount holds its own stock already; on a small volume a second one for each would leave nothing to use.
        2 * target + (clients - 1) * u64::from(self.merge_target)
    }
}
