//! Hashes that are facts of stored items (`spec/01 §15`) and therefore must be computed exactly.

use zerocopy::IntoBytes;

use super::consts::{BLOOM_BITS, BLOOM_BITS_PER_KEY, BTREE_HASH_BUCKETS};
use super::crc::crc;
use super::key::Key;
use super::layout::StoredKey;

const FNV32_START: u32 = 0x811c_9dc5;
const FNV32_PRIME: u32 = 0x0100_0193;
const FNV64_START: u64 = 0xcbf2_9ce4_8422_2325;
const FNV64_PRIME: u64 = 0x0000_0100_0000_01b3;

/// FNV-1a, 32 bits.
pub const fn fnv1a_32(bytes: &[u8]) -> u32 {
    fnv1a_32_from(FNV32_START, bytes)
}

const fn fnv1a_32_from(mut h: u32, bytes: &[u8]) -> u32 {
    let mut i = 0;
    while i < bytes.len() {
        h = (h ^ bytes[i] as u32).wrapping_mul(FNV32_PRIME);
        i += 1;
    }
    h
}

/// FNV-1a, 64 bits.
pub const fn fnv1a_64(bytes: &[u8]) -> u64 {
    let mut h = FNV64_START;
    let mut i = 0;
    while i < bytes.len() {
        h = (h ^ bytes[i] as u64).wrapping_mul(FNV64_PRIME);
        i += 1;
    }
    h
}

/// Evenly sampled bits of a name, first bit most significant, so that hash order roughly follows name order.
pub fn fingerprint(name: &[u8]) -> u32 {
    let bits = name.len() * 8;
    if bits < 32 {
        // All there are.
        return name.iter().zip([24, 16, 8]).fold(0, |out, (byte, shift)| out | u32::from(*byte) << shift);
    }
    let step = bits / 32;
    // Eight bits of the result come from `step` bytes of the name: from one word, mostly.
    (0..4).fold(0, |out, i| {
        let from = &name[i * step..];
        out << 8
            | match step {
                ..=8 => sample(first_word(from), step),
                _ => (0..8).fold(0, |out, i| out << 1 | u32::from(from[i * step / 8] >> (7 - i * step % 8) & 1)),
            }
    })
}

/// Every `step`-th bit of a word from its first on, eight of them.
#[inline]
fn sample(word: u64, step: usize) -> u32 {
    (0..8).fold(0, |out, i| out << 1 | (word << (i * step) >> 63) as u32)
}

/// The first eight bytes, the first one most significant; what is missing counts as 0.
#[inline]
fn first_word(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(word) => u64::from_be_bytes(*word),
        None => bytes.iter().zip((0..8).rev()).fold(0, |out, (byte, at)| out | u64::from(*byte) << (8 * at)),
    }
}

/// Hash of the name of a directory entry: fingerprint above, FNV-1a 32 below.
pub fn dirent_hash(name: &[u8]) -> u64 {
    u64::from(fingerprint(name)) << 32 | u64::from(fnv1a_32(name))
}

/// Hash of a full xattr name in xattr item keys.
pub fn xattr_hash(name: &[u8]) -> u32 {
    crc(name)
}

/// Hash of a full xattr name in search entries.
pub fn srch_hash(name: &[u8]) -> u64 {
    fnv1a_64(name)
}

/// What hashing the five zero bytes of a key's padding multiplies by.
const KEY_PADDING: u32 =
    FNV32_PRIME.wrapping_mul(FNV32_PRIME).wrapping_mul(FNV32_PRIME).wrapping_mul(FNV32_PRIME).wrapping_mul(FNV32_PRIME);

/// Bytes of a stored key before its padding.
const KEY_BYTES: usize = 27;

/// Home bucket of a key in the hash table of a leaf.
pub fn leaf_hash_bucket(key: &StoredKey) -> usize {
    let h = fnv1a_32_from(FNV32_START, &key.as_bytes()[..KEY_BYTES]).wrapping_mul(KEY_PADDING);
    h as usize % BTREE_HASH_BUCKETS
}

/// [`leaf_hash_bucket`] of eight keys. One hash is a chain of 27 multiplications that wait for each other; eight chains
/// side by side take hardly longer than one, and encoding a leaf needs hundreds.
pub fn leaf_hash_buckets(keys: [&StoredKey; 8]) -> [usize; 8] {
    let keys = keys.map(|key| key.as_bytes().first_chunk::<KEY_BYTES>().expect("a key has 32 bytes"));
    let mut h = [FNV32_START; 8];
    for at in 0..KEY_BYTES {
        for (h, key) in h.iter_mut().zip(&keys) {
            *h = (*h ^ u32::from(key[at])).wrapping_mul(FNV32_PRIME);
        }
    }
    h.map(|h| h.wrapping_mul(KEY_PADDING) as usize % BTREE_HASH_BUCKETS)
}

/// The three bits of a bloom filter that stand for the lock that starts at `lock_start` (`spec/01 §10.3`).
pub fn bloom_bits(lock_start: &Key) -> [u32; BLOOM_BITS_PER_KEY] {
    let h = fnv1a_64(lock_start.to_stored().as_bytes());
    [h as u32 % BLOOM_BITS, (h >> 19) as u32 % BLOOM_BITS, (h >> 38) as u32 % BLOOM_BITS]
}
