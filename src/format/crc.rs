//! The checksum of blocks and election messages, and the hash of xattr names.
//!
//! CRC-32C with initial value all ones and **no final inversion**, that is the complement of what libraries call
//! CRC-32C (`spec/01 §2.3`). Computed by the processor's instructions where it has them.

use super::layout::BlockHeader;

/// The stored form of the CRC-32C of `bytes`.
pub fn crc(bytes: &[u8]) -> u32 {
    !crc_fast::crc32_iscsi(bytes)
}

/// The checksum of a whole block, of either size: everything after the checksum field itself.
pub fn block_crc(block: &[u8]) -> u32 {
    crc(block.get(4..).unwrap_or_default())
}

/// Writes the right checksum into the head of a block.
pub fn seal_block(block: &mut [u8]) {
    let crc = block_crc(block);
    block[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Does the checksum in the head of a block match its content?
pub fn block_crc_matches(block: &[u8]) -> bool {
    zerocopy::FromBytes::read_from_prefix(block)
        .is_ok_and(|(hdr, _): (BlockHeader, &[u8])| hdr.crc.get() == block_crc(block))
}
