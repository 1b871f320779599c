//! Changing an unused volume: format version, quorum slots, an empty data device for another (`spec/01 §19`).

use std::fmt;

use zerocopy::FromZeros;

use super::mkfs::format_uuid;
use super::slot::quorum_config;
use super::{QuorumSlot, read_quorum_block, read_super, write_super};
use crate::device::BlockDevice;
use crate::error::{Errno, Error, Result, fail};
use crate::format::consts::*;
use crate::format::layout::SuperBlock;

/// What an operation has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeReport {
    /// Volume id.
    pub fsid: u64,
    /// Identity of the pair of devices.
    pub uuid: [u8; 16],
    /// Format version now.
    pub format_version: u64,
    /// Version of the quorum configuration now.
    pub quorum_version: u64,
    /// Quorum slots now.
    pub quorum_slots: Vec<QuorumSlot>,
    /// Names of the devices that were written; none if there was nothing to do.
    pub written: Vec<String>,
}

impl ChangeReport {
    fn new(sb: &SuperBlock) -> ChangeReport {
        ChangeReport {
            fsid: sb.hdr.fsid.get(),
            uuid: sb.uuid,
            format_version: sb.fmt_vers.get(),
            quorum_version: sb.qconf.version.get(),
            quorum_slots: QuorumSlot::list(&sb.qconf),
            written: Vec::new(),
        }
    }
}

impl fmt::Display for ChangeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  fsid:                   {:016x}", self.fsid)?;
        writeln!(f, "  uuid:                   {}", format_uuid(&self.uuid))?;
        writeln!(f, "  format version:         {}", self.format_version)?;
        writeln!(f, "  quorum config version:  {}", self.quorum_version)?;
        for (i, slot) in self.quorum_slots.iter().enumerate() {
            let label = if i == 0 { "quorum slots:" } else { "" };
            writeln!(f, "  {label:<23} {}: {}", slot.nr, slot.addr)?;
        }
        match self.written.as_slice() {
            [] => writeln!(f, "Nothing to do."),
            written => writeln!(f, "Changed: {}", written.join(", ")),
        }
    }
}

/// Why the volume of `meta` is in use or was not left cleanly, if so: clients are recorded as mounted, or a quorum
/// member has begun and not ended. Every block that is consulted is verified; an unreadable one is an error.
pub fn in_use(meta: &dyn BlockDevice) -> Result<Option<String>> {
    reason_in_use(meta, &read_meta_super(meta)?)
}

fn reason_in_use(meta: &dyn BlockDevice, sb: &SuperBlock) -> Result<Option<String>> {
    if sb.mounted_clients.block_ref.blkno.get() != 0 {
        return Ok(Some("clients are recorded as mounted".into()));
    }
    for slot in QuorumSlot::list(&sb.qconf) {
        let qb = read_quorum_block(meta, sb.hdr.fsid.get(), slot.nr.into())?;
        let nr = |event: usize| qb.events[event].write_nr.get();
        if nr(QUORUM_EVENT_BEGIN) > nr(QUORUM_EVENT_END) {
            return Ok(Some(format!("the quorum member on slot {slot} has begun and not ended")));
        }
    }
    Ok(None)
}

fn refuse_in_use(meta: &dyn BlockDevice, sb: &SuperBlock) -> Result<()> {
    match reason_in_use(meta, sb)? {
        Some(why) => Err(Error::Busy(format!("{}: {why}", meta.name()))),
        None => Ok(()),
    }
}

/// The super block of a metadata device: verified, and marked as that.
fn read_meta_super(meta: &dyn BlockDevice) -> Result<SuperBlock> {
    let sb = read_super(meta)?;
    if sb.flags.get() & SUPER_FLAG_META == 0 {
        return Err(Error::invalid(format!("{} is a data device, not a metadata device", meta.name())));
    }
    Ok(sb)
}

/// Changes the format version of a volume. Only upgrades exist (`EPERM` otherwise).
///
/// Two blocks are written, the metadata device's first. If only the first is, the volume cannot be mounted until the
/// call is made again, which completes it.
pub fn change_format_version(meta: &dyn BlockDevice, data: &dyn BlockDevice, version: u64) -> Result<ChangeReport> {
    let msb = read_super(meta)?;
    let dsb = read_super(data)?;
    if dsb.hdr.fsid != msb.hdr.fsid {
        return Err(Error::corrupt(format!("super block of {}", data.name()), "it belongs to another volume"));
    }
    let (mvers, dvers) = (msb.fmt_vers.get(), dsb.fmt_vers.get());
    if (mvers, dvers) == (version, version) {
        return Ok(ChangeReport::new(&msb));
    }
    if msb.flags.get() & SUPER_FLAG_META == 0 || dsb.flags.get() & SUPER_FLAG_META != 0 {
        return Err(Error::invalid("the metadata device and the data device are swapped"));
    }
    let supported = FORMAT_VERSION_MIN..=FORMAT_VERSION_MAX;
    if let Some(vers) = [mvers, dvers, version].into_iter().find(|v| !supported.contains(v)) {
        return Err(Error::invalid(format!("format version {vers} is not one of 1 and 2")));
    }
    refuse_in_use(meta, &msb)?;
    if mvers > version || dvers > version {
        return fail(Errno::EPERM);
    }
    let mut written = Vec::new();
    for (dev, mut sb) in [(meta, msb), (data, dsb)] {
        if sb.fmt_vers.get() != version {
            sb.fmt_vers.set(version);
            sb.hdr.seq.set(1);
            write_super(dev, &sb)?;
            written.push(dev.name());
        }
    }
    let mut now = msb;
    now.fmt_vers.set(version);
    Ok(ChangeReport { written, ..ChangeReport::new(&now) })
}

/// Replaces all quorum slots of a volume.
pub fn change_quorum_config(meta: &dyn BlockDevice, slots: &[QuorumSlot]) -> Result<ChangeReport> {
    let mut sb = read_meta_super(meta)?;
    let qconf = quorum_config(sb.qconf.version.get().wrapping_add(1), slots)?;
    refuse_in_use(meta, &sb)?;
    sb.qconf = qconf;
    sb.hdr.seq.set(1);
    write_super(meta, &sb)?;
    Ok(ChangeReport { written: vec![meta.name()], ..ChangeReport::new(&sb) })
}

/// May the data device of this volume be exchanged? All its data blocks must be free and back in the server's hands.
pub fn check_empty_data_device(meta: &dyn BlockDevice) -> Result<()> {
    empty_data_super(meta).map(drop)
}

fn empty_data_super(meta: &dyn BlockDevice) -> Result<SuperBlock> {
    let sb = read_meta_super(meta)?;
    refuse_in_use(meta, &sb)?;
    let usable = sb.total_data_blocks.get().saturating_sub(DATA_START);
    let free = sb.data_alloc.total_len.get();
    if free != usable {
        return Err(Error::invalid(format!("{free} of {usable} data blocks are free: the data device is not empty")));
    }
    Ok(sb)
}

/// Makes `data` the data device of a volume that has no data. The old data device, if there still is one, is not
/// touched and must not be used any more. Only the super block of `data` is written.
pub fn prepare_empty_data_device(meta: &dyn BlockDevice, data: &dyn BlockDevice) -> Result<ChangeReport> {
    let msb = empty_data_super(meta)?;
    let (want, have) = (msb.total_data_blocks.get(), data.size() >> SMALL_SHIFT);
    if have < want {
        return Err(Error::invalid(format!("{} has {have} blocks, the volume needs {want}", data.name())));
    }
    let mut dsb = SuperBlock::new_zeroed();
    dsb.hdr = msb.hdr;
    dsb.hdr.seq.set(1);
    dsb.id = msb.id;
    dsb.fmt_vers = msb.fmt_vers;
    dsb.flags.set(msb.flags.get() & !SUPER_FLAG_META);
    dsb.uuid = msb.uuid;
    dsb.seq = msb.seq;
    dsb.total_meta_blocks = msb.total_meta_blocks;
    dsb.total_data_blocks = msb.total_data_blocks;
    write_super(data, &dsb)?;
    Ok(ChangeReport { written: vec![data.name()], ..ChangeReport::new(&msb) })
}
