//! What an administrator changes on a volume in use (`spec/05 §5.5.9, §5.5.10`, `spec/08 §9.4, §13`).

use zerocopy::{FromZeros, IntoBytes};

use super::Volume;
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::VOLOPT_DATA_ALLOC_ZONE_BLOCKS;
use crate::format::layout::{NetResizeDevices, VolumeOptionValues};
use crate::namespace::{Caller, Caps};
use crate::net::Command;

impl Volume {
    /// The size in 4 KiB blocks of the zones that mounts allocate data from, if data is allocated in zones. It is recorded
    /// in the volume and counts for all mounts.
    pub fn data_alloc_zone_blocks(&self) -> Result<Option<u64>> {
        let answer = self.mounted.tell(self.mounted.node.link().request(Command::GetVolopt, &[]))?;
        let options: VolumeOptionValues = zerocopy::FromBytes::read_from_bytes(&answer)
            .map_err(|_| Error::corrupt("volume options", format!("{} bytes", answer.len())))?;
        let set = options.set_bits.get() & VOLOPT_DATA_ALLOC_ZONE_BLOCKS != 0;
        Ok(set.then(|| options.data_alloc_zone_blocks.get()))
    }

    /// Sets or clears the size of data zones, in 4 KiB blocks.
    ///
    /// # Errors
    /// `EPERM` without the right to administer; `EINVAL` for a size that is smaller than the format allows, larger than the
    /// data device, or that makes more zones than there are bits for (1,024; defect 13).
    pub fn set_data_alloc_zone_blocks(&self, caller: &Caller, blocks: Option<u64>) -> Result<()> {
        self.may_administer(caller)?;
        let mut options = VolumeOptionValues::new_zeroed();
        options.set_bits = VOLOPT_DATA_ALLOC_ZONE_BLOCKS.into();
        options.data_alloc_zone_blocks = blocks.unwrap_or(0).into();
        let cmd = if blocks.is_some() { Command::SetVolopt } else { Command::ClearVolopt };
        self.mounted.tell(self.mounted.node.link().request(cmd, options.as_bytes())).map(drop)
    }

    /// Uses more of the devices: new totals in 64 KiB blocks of metadata and 4 KiB blocks of data; `None` leaves a device as
    /// it is. The volume stays in use meanwhile. Grow the devices on *every* host first: only the server's can be
    /// checked, and a mount whose device is shorter fails to reach what is new (defect 78).
    ///
    /// # Errors
    /// `EPERM` without the right to administer; `EINVAL` for less than there is, for more than the server's device has, or if
    /// data is allocated in zones of which there would be too many. Nothing is changed then.
    pub fn grow(&self, caller: &Caller, meta_blocks: Option<u64>, data_blocks: Option<u64>) -> Result<()> {
        self.may_administer(caller)?;
        // Zero means "as it is" on the wire.
        if meta_blocks == Some(0) || data_blocks == Some(0) {
            return fail(Errno::EINVAL);
        }
        let totals = NetResizeDevices {
            new_total_meta_blocks: meta_blocks.unwrap_or(0).into(),
            new_total_data_blocks: data_blocks.unwrap_or(0).into(),
        };
        self.mounted.tell(self.mounted.node.link().request(Command::ResizeDevices, totals.as_bytes())).map(drop)
    }

    fn may_administer(&self, caller: &Caller) -> Result<()> {
        if self.mounted.node.read_only {
            return fail(Errno::EROFS);
        }
        if caller.can(Caps::SYS_ADMIN) { Ok(()) } else { fail(Errno::EPERM) }
    }
}
