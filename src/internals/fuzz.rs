//! What the fuzz targets call: every decoder of bytes that come from a device, a peer or a caller.
//!
//! A decoder may refuse; it must not panic, loop or ask for memory beyond its input. Where something is accepted, what can be
//! said of it is asserted.

use zerocopy::{FromBytes, FromZeros};

use crate::block::BlockView;
use crate::btree::View;
use crate::format::check::{self, DeviceRole};
use crate::format::layout::{NetLock, QuorumConfig, SrchFile};
use crate::format::quota::QuotaRule;
use crate::format::srch::{BlockBuilder, Entries};
use crate::format::{Key, Rid, seal_block, validate_dirent, validate_inode, wire, xattr};
use crate::lock::wire as lock_wire;
use crate::namespace::Acl;
use crate::net::FrameReader;
use crate::quorum::Message;

const BLOCK: usize = 65536;
const SMALL: usize = 4096;
/// Blocks of a device on which everything is said to lie.
const DEVICE_BLOCKS: u64 = 100_000;

/// A block of `len` bytes that starts with a header of zeros and goes on with the input, under a right checksum.
fn block(input: &[u8], len: usize) -> Vec<u8> {
    let mut block = vec![0; len];
    let n = input.len().min(len);
    block[..n].copy_from_slice(&input[..n]);
    seal_block(&mut block);
    block
}

/// A tree block: decoded, and all of what is valid read.
pub fn tree_block(input: &[u8]) {
    let mut block = Box::new([0u8; BLOCK]);
    let n = input.len().min(BLOCK - 32);
    block[32..32 + n].copy_from_slice(&input[..n]);
    let Ok(view) = View::decode(&block, 2) else { return };
    let node = view.node(&block);
    for rank in 0..node.len() {
        let key = node.key(rank);
        assert_eq!(node.search(&key), Ok(rank));
        assert!(node.value(rank).len() <= 896);
    }
}

/// Every other block.
pub fn blocks(input: &[u8]) {
    let small = block(input, SMALL);
    if let Ok(sb) = check::decode_super(&small, "fuzz") {
        let _ = check::validate_super(&sb, DeviceRole::Meta, DEVICE_BLOCKS * BLOCK as u64);
        let _ = check::validate_super(&sb, DeviceRole::Data, DEVICE_BLOCKS * SMALL as u64);
        let _ = crate::quorum::validate_config(&sb.qconf, Some(0));
    }
    let _ = check::validate_quorum_block(&small, 1, 3);
    let large = block(input, BLOCK);
    if let Ok((_, numbers)) = check::decode_list_block(&large, 7, DEVICE_BLOCKS) {
        assert!(numbers.iter().all(|n| n.0 < DEVICE_BLOCKS));
    }
    if let Ok(entries) = Entries::new(&large, 7) {
        // Two bytes at least for each entry.
        assert!(entries.take(BLOCK).count() < BLOCK / 2);
    }
    let _ = BlockBuilder::resume(&large, 7);
}

/// The values of items, under keys that are part of the input.
pub fn items(input: &[u8]) {
    let Some((head, value)) = input.split_first_chunk::<32>() else { return };
    let key = crate::format::layout::StoredKey::read_from_bytes(head).map_or(Key::ZEROS, |k| k.to_key());
    let _ = crate::format::ItemKey::parse(&key);
    for version in [1, 2] {
        let _ = validate_inode(crate::format::Ino(key.first), value, version);
    }
    let _ = validate_dirent(&key, value);
    let _ = check::validate_extent(&key, value, DEVICE_BLOCKS);
    let _ = check::validate_free_extent(&key, value, 64..DEVICE_BLOCKS);
    let _ = check::validate_log_trees(Some(&key), value, DEVICE_BLOCKS);
    let _ = check::validate_srch_compact(value, DEVICE_BLOCKS);
    if let Ok(file) = SrchFile::read_from_bytes(value) {
        let _ = check::validate_srch_file(&file, "fuzz", DEVICE_BLOCKS);
    }
    let _ = check::validate_merge_status(value);
    let _ = check::validate_merge_range(value);
    let _ = check::validate_merge_request(value, DEVICE_BLOCKS);
    let _ = check::validate_merge_complete(value, DEVICE_BLOCKS);
    let _ = check::validate_merge_freeing(value, DEVICE_BLOCKS);
    let _ = check::validate_mounted_client(value);
    if let Ok(Some(rule)) = QuotaRule::decode(&key, value) {
        assert!(rule.is_valid());
    }
    if let Ok(first) = xattr::validate_xattr_first(&key, value) {
        let _ = first.part_len(0);
    }
    let _ = Rid(key.first);
}

/// Names and values of extended attributes: tags, numbers, access control lists.
pub fn xattrs(input: &[u8]) {
    let _ = xattr::parse_tags(input);
    let _ = xattr::parse_number(input);
    let _ = xattr::parse_stored_number(input);
    let _ = xattr::totl_key(input);
    let _ = xattr::indx_numbers(input);
    if let Ok(Some(acl)) = Acl::decode(input) {
        // Stored forms may be in any order; ours is one that is read back as the same.
        assert!(matches!(Acl::decode(&acl.encode()), Ok(Some(_))));
    }
}

/// What peers send: frames in any pieces, election datagrams, contents of lock messages.
pub fn messages(input: &[u8]) {
    frames(input);
    let _ = Message::decode(input, 1, &QuorumConfig::new_zeroed());
    let _ = wire::decode_lock_recover(input);
    let _ = lock_wire::parse_recover(input);
    if let Ok(lock) = lock_wire::parse_lock(input) {
        let _ = lock_wire::check(&lock);
    }
    let _ = wire::exact::<NetLock>("fuzz", input);
    if let Some(code) = input.first() {
        let _ = wire::error_from_wire(*code);
    }
}

/// A stream, received in pieces as long as its own bytes say.
fn frames(mut stream: &[u8]) {
    let mut reader = FrameReader::new();
    while !stream.is_empty() {
        let space = reader.space();
        let n = usize::from(stream[0]).clamp(1, stream.len()).min(space.len());
        space[..n].copy_from_slice(&stream[..n]);
        reader.filled(n);
        stream = &stream[n..];
        loop {
            match reader.next() {
                Ok(Some(frame)) => {
                    let _ = (frame.head.cmd.response_len_ok(frame.payload.len()), frame.result());
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// What people type: mount options, quorum slots, sizes.
pub fn arguments(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = crate::VolumeOptions::default().parse(text);
    let _ = text.parse::<crate::offline::QuorumSlot>();
    let _ = crate::offline::parse_size(text);
}
