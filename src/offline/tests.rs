//! Volumes made and changed offline, against the vectors of the original.

use serde_json::Value;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::device::{MemDevice, Recorder, Survive};
use crate::error::Errno;
use crate::format::check::{DeviceRole, decode_list_block, validate_super, validate_super_pair};
use crate::format::consts::*;
use crate::format::layout::*;
use crate::format::{block_crc, block_crc_matches};
use crate::sync::Arc;

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/vectors/format-mkfs.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn unhex(s: &str) -> Vec<u8> {
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
}

/// The block of a vector entry: `[offset, hex]` runs over zeros.
fn image(entry: &Value) -> Vec<u8> {
    let mut block = vec![0; entry["block_size"].as_u64().unwrap() as usize];
    for run in entry["sparse"].as_array().unwrap() {
        let (at, bytes) = (run[0].as_u64().unwrap() as usize, unhex(run[1].as_str().unwrap()));
        block[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    block
}

fn identity(doc: &Value) -> Identity {
    let fixed = &doc["fixed"];
    Identity {
        fsid: u64::from_str_radix(fixed["fsid"].as_str().unwrap(), 16).unwrap(),
        uuid: unhex(fixed["uuid"].as_str().unwrap()).try_into().unwrap(),
        time: (fixed["time_sec"].as_i64().unwrap(), fixed["time_usec"].as_u64().unwrap() as u32 * 1000),
    }
}

fn slots(list: &[&str]) -> Vec<QuorumSlot> {
    list.iter().map(|s| s.parse().unwrap()).collect()
}

fn options(list: &[&str]) -> MkfsOptions {
    MkfsOptions { quorum_slots: slots(list), allow_small: true, ..MkfsOptions::default() }
}

/// Makes the volume of a vector case.
fn make_case(doc: &Value, case: &Value) -> (Arc<MemDevice>, Arc<MemDevice>) {
    let size = |name: &str| case[name].as_u64().unwrap();
    let (meta, data) = (MemDevice::new(size("meta_bytes")), MemDevice::new(size("data_bytes")));
    let list: Vec<&str> = case["slots"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    let zone = size("data_alloc_zone_blocks");
    let options = MkfsOptions {
        format_version: size("format_version"),
        data_alloc_zone_blocks: (zone != 0).then_some(zone),
        identity: Some(identity(doc)),
        ..options(&list)
    };
    mkfs(&*meta, &*data, &options).unwrap();
    (meta, data)
}

fn read(dev: &dyn BlockDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    dev.read_at(offset, &mut buf).unwrap();
    buf
}

fn check_entry(dev: &dyn BlockDevice, entry: &Value, want: &[u8]) {
    let (size, blkno) = (entry["block_size"].as_u64().unwrap(), entry["blkno"].as_u64().unwrap());
    let found = read(dev, size * blkno, size as usize);
    let at = found.iter().zip(want).position(|(a, b)| a != b);
    assert_eq!(at, None, "first wrong byte of {} block {blkno} ({})", entry["dev"], entry["what"]);
}

#[test]
fn new_volumes_are_byte_for_byte_those_of_the_original() {
    let doc = vectors();
    let cases = doc["cases"].as_array().unwrap();
    let list_block = cases[0]["blocks"].as_array().unwrap().iter().find(|b| b["what"] == "alloc list").unwrap();
    for case in cases {
        let (meta, data) = make_case(&doc, case);
        for entry in case["blocks"].as_array().unwrap() {
            let dev = if entry["dev"] == "meta" { &*meta } else { &*data };
            let want = if entry.get("same_as").is_some() { image(list_block) } else { image(entry) };
            check_entry(dev, entry, &want);
        }
        // Quorum blocks 18 to 30 are like the two that are listed.
        let first = read(&*meta, QUORUM_BLKNO * 4096, 4096);
        for blkno in QUORUM_BLKNO..QUORUM_BLKNO + 15 {
            let mut want = first.clone();
            want[24..32].copy_from_slice(&blkno.to_le_bytes());
            let crc = block_crc(&want);
            want[..4].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(read(&*meta, blkno * 4096, 4096), want, "quorum block {blkno}");
        }
        // Nothing else was written: chunks of 64 KiB, one for each block and one for the small blocks of each device.
        assert_eq!(meta.allocated_bytes() + data.allocated_bytes(), 7 * 65536);
    }
}

#[test]
fn offline_operations_leave_the_super_blocks_of_the_original() {
    let doc = vectors();
    let cases = doc["cases"].as_array().unwrap();
    let ops = doc["offline_operations"].as_array().unwrap();
    let check = |op: &Value, meta: &MemDevice, data: &MemDevice| {
        for entry in op["changed"].as_array().unwrap() {
            let dev = if entry["dev"] == "meta" { meta } else { data };
            check_entry(dev, entry, &image(entry));
        }
    };
    let (meta, data) = make_case(&doc, &cases[0]);
    let new_slots = slots(&["1,10.0.0.1,6000", "5,10.0.0.2,6001", "2,10.0.0.3,6002"]);
    let report = change_quorum_config(&*meta, &new_slots).unwrap();
    assert_eq!((report.quorum_version, report.quorum_slots.len()), (2, 3));
    check(&ops[0], &meta, &data);

    let fresh = MemDevice::new(64 << 20);
    check_empty_data_device(&*meta).unwrap();
    prepare_empty_data_device(&*meta, &*fresh).unwrap();
    check(&ops[1], &meta, &fresh);

    let (meta, data) = make_case(&doc, &cases[1]);
    let report = change_format_version(&*meta, &*data, 2).unwrap();
    assert_eq!(report.written.len(), 2);
    check(&ops[2], &meta, &data);
    assert!(change_format_version(&*meta, &*data, 2).unwrap().written.is_empty(), "nothing to do");
    assert!(change_format_version(&*meta, &*data, 1).unwrap_err().is(Errno::EPERM));
    assert_eq!(change_format_version(&*meta, &*data, 3).unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn defect_49_a_half_done_version_change_is_completed() {
    let doc = vectors();
    let (meta, data) = make_case(&doc, &doc["cases"][1]);
    let before = data.snapshot();
    change_format_version(&*meta, &*data, 2).unwrap();
    // Only the first of the two writes was made: no mount accepts the pair.
    let pair = |data: &MemDevice| validate_super_pair(&read_super(&*meta).unwrap(), &read_super(data).unwrap());
    assert_eq!(pair(&before).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(change_format_version(&*meta, &*before, 2).unwrap().written.len(), 1);
    pair(&before).unwrap();
}

#[test]
fn defect_50_nothing_uninitialised_is_stored_in_quorum_slots() {
    let (meta, data) = (MemDevice::new(1 << 30), MemDevice::new(1 << 30));
    mkfs(&*meta, &*data, &options(&["3,10.1.2.3,999"])).unwrap();
    let sb = read_super(&*meta).unwrap();
    for (nr, slot) in sb.qconf.slots.iter().enumerate() {
        assert_eq!(slot.pad, [0; 24]);
        assert_eq!(slot.family.get(), u16::from(nr == 3));
    }
    let block = read(&*meta, SUPER_BLKNO * 4096, 4096);
    assert!(block[size_of::<SuperBlock>()..].iter().all(|&b| b == 0));
}

#[test]
fn defect_80_devices_too_small_for_a_volume_are_refused_before_any_write() {
    let sizes = [0, 4096, 16 * 4096, 65536, (MIN_META_BLOCKS - 1) * 65536];
    for meta_bytes in sizes {
        let (meta, data) = (MemDevice::new(meta_bytes), MemDevice::new(1 << 30));
        assert_eq!(mkfs(&*meta, &*data, &options(&["0,127.0.0.1,1"])).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(meta.allocated_bytes() + data.allocated_bytes(), 0);
    }
    for data_bytes in [0, 64 * 4096, 65 * 4096 - 1] {
        let (meta, data) = (MemDevice::new(1 << 30), MemDevice::new(data_bytes));
        assert_eq!(mkfs(&*meta, &*data, &options(&["0,127.0.0.1,1"])).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(meta.allocated_bytes() + data.allocated_bytes(), 0);
    }
    let (meta, data) = (MemDevice::new(1 << 30), MemDevice::new(65 * 4096));
    mkfs(&*meta, &*data, &options(&["0,127.0.0.1,1"])).unwrap();
    let large = MkfsOptions { allow_small: false, ..options(&["0,127.0.0.1,1"]) };
    assert_eq!(mkfs(&*meta, &*data, &MkfsOptions { force: true, ..large }).unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn defect_80_the_in_use_test_verifies_what_it_reads() {
    let (meta, data) = (MemDevice::new(1 << 30), MemDevice::new(1 << 30));
    mkfs(&*meta, &*data, &options(&["2,127.0.0.1,1"])).unwrap();
    assert_eq!(in_use(&*meta).unwrap(), None);

    let at = (QUORUM_BLKNO + 2) * 4096;
    let mut block = read(&*meta, at, 4096);
    let (mut qb, _) = QuorumBlock::read_from_prefix(&block).unwrap();
    qb.events[QUORUM_EVENT_BEGIN].write_nr.set(1);
    block[..size_of::<QuorumBlock>()].copy_from_slice(qb.as_bytes());
    meta.write_at(at, &block).unwrap();
    assert_eq!(in_use(&*meta).unwrap_err().errno(), Errno::EIO, "wrong checksum");
    seal_block(&mut block);
    meta.write_at(at, &block).unwrap();
    assert!(in_use(&*meta).unwrap().is_some());
    let busy = [
        change_quorum_config(&*meta, &slots(&["0,127.0.0.1,1"])).unwrap_err(),
        prepare_empty_data_device(&*meta, &*data).unwrap_err(),
        change_format_version(&*meta, &*data, 1).unwrap_err(),
    ];
    assert!(busy.iter().all(|e| e.errno() == Errno::EBUSY), "{busy:?}");
    assert!(change_format_version(&*meta, &*data, 2).is_ok(), "nothing to do needs no test");
}

#[test]
fn defect_80_devices_in_the_wrong_place_are_refused() {
    let (meta, data) = (MemDevice::new(1 << 30), MemDevice::new(1 << 30));
    mkfs(&*meta, &*data, &MkfsOptions { format_version: 1, ..options(&["0,127.0.0.1,1"]) }).unwrap();
    let (other_meta, other_data) = (MemDevice::new(1 << 30), MemDevice::new(1 << 30));
    mkfs(&*other_meta, &*other_data, &options(&["0,127.0.0.1,1"])).unwrap();
    assert_eq!(change_format_version(&*data, &*meta, 2).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(change_format_version(&*meta, &*other_data, 2).unwrap_err().errno(), Errno::EIO);
    assert_eq!(change_quorum_config(&*data, &slots(&["1,127.0.0.1,1"])).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(check_empty_data_device(&*data).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(in_use(&*MemDevice::new(1 << 20)).unwrap_err().errno(), Errno::EIO);
    let small = MemDevice::new(1 << 29);
    assert_eq!(prepare_empty_data_device(&*meta, &*small).unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn tiny_volumes_account_for_every_block() {
    for blocks in [MIN_META_BLOCKS, 65, 127, 1024, 1032, 1033, 1034, 4096] {
        let (meta, data) = (MemDevice::new(blocks << 16), MemDevice::new(1 << 22));
        let report = mkfs(&*meta, &*data, &options(&["0,127.0.0.1,1"])).unwrap();
        assert_eq!((report.total_meta_blocks, report.total_data_blocks), (blocks, 1024));
        let sb = read_super(&*meta).unwrap();
        validate_super(&sb, DeviceRole::Meta, meta.size()).unwrap();
        validate_super(&read_super(&*data).unwrap(), DeviceRole::Data, data.size()).unwrap();
        let listed = sb.server_meta_avail[0].total_nr.get();
        let free: u64 = sb.meta_alloc.iter().map(|a| a.total_len.get()).sum();
        assert_eq!(listed + free + 7, blocks);
        assert_eq!(listed == 1024, blocks >= 4096);
        let list = read(&*meta, 3 << 16, 65536);
        assert!(block_crc_matches(&list));
        let (_, entries) = decode_list_block(&list, 3, blocks).unwrap();
        assert_eq!(entries.len() as u64, listed);
    }
}

/// Volume id of a pair that a mount would accept.
fn mountable(meta: &MemDevice, data: &MemDevice) -> Option<u64> {
    let (m, d) = (read_super(meta).ok()?, read_super(data).ok()?);
    validate_super(&m, DeviceRole::Meta, meta.size()).ok()?;
    validate_super(&d, DeviceRole::Data, data.size()).ok()?;
    validate_super_pair(&m, &d).ok()?;
    Some(m.hdr.fsid.get())
}

#[test]
fn a_power_loss_during_mkfs_leaves_the_old_volume_no_volume_or_the_new_one() {
    let (meta, data) = (MemDevice::new(1 << 26), MemDevice::new(1 << 26));
    mkfs(&*meta, &*data, &options(&["0,127.0.0.1,1"])).unwrap();
    let old = meta.snapshot();
    let recorder = Recorder::new();
    let (rmeta, rdata) = (recorder.wrap(&meta), recorder.wrap(&data));
    let report = mkfs(&*rmeta, &*rdata, &MkfsOptions { force: true, ..options(&["0,127.0.0.1,2"]) }).unwrap();
    let old_fsid = read_super(&*old).unwrap().hdr.fsid.get();
    let mut seen = Vec::new();
    for cut in 0..=recorder.position() {
        let ways = [Survive::All, Survive::Nothing].into_iter().chain((0..8).map(Survive::Sectors));
        for survive in ways {
            let image = recorder.image(cut, survive);
            let found = mountable(&image[0], &image[1]);
            let whole = match found {
                None => continue,
                Some(fsid) if fsid == old_fsid => &old,
                Some(fsid) => {
                    assert_eq!(fsid, report.fsid);
                    &meta
                }
            };
            seen.push(found);
            let front = 600 << 16;
            assert!(read(&*image[0], 0, front) == read(&**whole, 0, front), "cut {cut} {survive:?}");
        }
    }
    assert!(seen.contains(&Some(old_fsid)) && seen.contains(&Some(report.fsid)));
    let last = recorder.image(recorder.position(), Survive::Nothing);
    assert_eq!(mountable(&last[0], &last[1]), Some(report.fsid), "what mkfs reports is durable");
}

#[test]
fn devices_that_hold_something_are_not_overwritten() {
    let (meta, data) = (MemDevice::new(1 << 26), MemDevice::new(1 << 26));
    let opts = options(&["0,127.0.0.1,1"]);
    let held: [(u64, &[u8]); 5] =
        [(0, b"XFSB"), (1080, b"\x53\xef"), (510, b"\x55\xaa"), (512, b"EFI PART"), (65600, b"_BHRfS_M")];
    for (at, magic) in held {
        let page = at / 4096 * 4096;
        let mut block = vec![0; 4096];
        block[(at - page) as usize..][..magic.len()].copy_from_slice(magic);
        data.write_at(page, &block).unwrap();
        let err = mkfs(&*meta, &*data, &opts).unwrap_err();
        assert_eq!(err.errno(), Errno::EBUSY, "{err}");
        data.write_at(page, &[0; 4096]).unwrap();
    }
    mkfs(&*meta, &*data, &opts).unwrap();
    assert_eq!(find_signature(&*meta).unwrap(), Some("scoutfs"));
    assert_eq!(mkfs(&*meta, &*data, &opts).unwrap_err().errno(), Errno::EBUSY);
    mkfs(&*meta, &*data, &MkfsOptions { force: true, ..opts }).unwrap();
}

#[test]
fn options_are_checked() {
    let (meta, data) = (MemDevice::new(1 << 26), MemDevice::new(16 << 30));
    let refuse = |change: &dyn Fn(&mut MkfsOptions)| {
        let mut opts = options(&["0,127.0.0.1,1"]);
        change(&mut opts);
        assert_eq!(mkfs(&*meta, &*data, &opts).unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(meta.allocated_bytes(), 0);
    };
    refuse(&|o| o.format_version = 0);
    refuse(&|o| o.format_version = 3);
    refuse(&|o| o.quorum_slots.clear());
    refuse(&|o| o.quorum_slots = slots(&["0,127.0.0.1,1", "0,127.0.0.1,2"]));
    refuse(&|o| o.quorum_slots = slots(&["0,127.0.0.1,1", "1,127.0.0.1,1"]));
    refuse(&|o| o.data_alloc_zone_blocks = Some(MIN_DATA_ZONE_BLOCKS - 1));
    refuse(&|o| o.data_alloc_zone_blocks = Some((16 << 18) + 1));
    refuse(&|o| o.max_meta_bytes = Some(1 << 20));
    refuse(&|o| o.identity = Some(Identity { fsid: 0, ..Identity::random() }));
    let limited = MkfsOptions {
        max_meta_bytes: Some((1 << 25) + 65535),
        max_data_bytes: Some(1 << 40),
        data_alloc_zone_blocks: Some(MIN_DATA_ZONE_BLOCKS),
        ..options(&["14,127.0.0.1,1"])
    };
    let report = mkfs(&*meta, &*data, &limited).unwrap();
    assert_eq!((report.total_meta_blocks, report.total_data_blocks), (512, 4 << 20));
    let text = report.to_string();
    assert!(text.contains("quorum slots:           14: 127.0.0.1:1\n"), "{text}");
}

#[test]
fn quorum_slots_and_sizes_are_parsed_strictly() {
    let vectors: Value = serde_json::from_slice(
        &std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/vectors/format-misc.json")).unwrap(),
    )
    .unwrap();
    for v in vectors["quorum_slots"].as_array().unwrap() {
        let arg = v["arg"].as_str().unwrap();
        match arg.parse::<QuorumSlot>() {
            Ok(slot) => {
                assert_eq!(u64::from(slot.nr), v["slot"].as_u64().unwrap());
                assert_eq!(slot.to_stored().as_bytes(), unhex(v["bytes"].as_str().unwrap()));
                assert_eq!(slot.to_string(), arg);
            }
            // Members refuse this port, so we refuse to configure it.
            Err(e) => assert!(arg.ends_with(",65535"), "{e}"),
        }
    }
    for bad in [
        "",
        "0",
        "0,1.2.3.4",
        "15,1.2.3.4,5",
        "0,1.2.3.4,0",
        "0,1.2.3.4,65535",
        "0,0.0.0.1,5",
        "0,224.0.0.1,5",
        "0,255.255.255.255,5",
        "0,1.2.3,5",
        "0,1.2.3.4,5,",
        "0,1.2.3.4,5 ",
        "+0,1.2.3.4,5",
        "0,1.2.3.4,+5",
        "-1,1.2.3.4,5",
    ] {
        assert!(bad.parse::<QuorumSlot>().is_err(), "{bad}");
    }
    let sizes =
        [("0", 0), ("4096", 4096), ("64K", 65536), ("8g", 8 << 30), ("3T", 3 << 40), ("1P", 1 << 50), ("5M", 5 << 20)];
    for (text, bytes) in sizes {
        assert_eq!(parse_size(text).unwrap(), bytes);
    }
    for bad in ["", "K", "-1", "+1", "1KB", "1 K", "1.5G", "0x10", "99999999999999999999", "16384P"] {
        assert!(parse_size(bad).is_err(), "{bad}");
    }
}
