//! What a mount can be told (`spec/05 §8.1`), with ranges checked where the value is set.

use std::fmt::Debug;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::format::consts::QUORUM_SLOTS;

/// Options of one mount. Every limit that bounds memory or work is here; the default caches add up to 184 MiB, and unused
/// inodes and names to 72 MiB more. Caches and limits in bytes are 64 KiB to 1 TiB. What is out of its range is refused when
/// the volume is opened.
///
/// ```
/// use scoutfs::VolumeOptions;
///
/// let mut options = VolumeOptions::default();
/// options.parse("quorum_slot_nr=0,orphan_scan_delay_ms=1000,noacl")?;
/// assert_eq!(options.quorum_slot, Some(0));
/// assert!(options.parse("no_such_option").is_err());
/// # Ok::<(), scoutfs::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeOptions {
    /// Quorum slot of this mount, 0..=14. A mount with a slot is a quorum member and may become the leader;
    /// without one it needs another mount to be the server. Option `quorum_slot_nr`.
    pub quorum_slot: Option<u8>,
    /// Refuse everything that changes the volume and write nothing to the devices: a view of the last committed state,
    /// without a server. Option `ro`.
    pub read_only: bool,
    /// POSIX ACLs; without them `system.posix_acl_*` attributes are not supported and the umask always applies.
    /// Options `acl` (default), `noacl`.
    pub acl: bool,
    /// Silence of the leader after which members elect another, 2..=60 s (default 10). Option `quorum_heartbeat_timeout_ms`.
    pub heartbeat_timeout: Duration,
    /// Silence that breaks a connection, at least 4 s (default 24). Option `tcp_keepalive_timeout_ms`. The transport is made by
    /// the caller: `TcpTransport::new((&options).into())` takes it from here.
    pub keepalive_timeout: Duration,
    /// How long the leader gathers mounts for a log merge, 0.1..=60 s (default 0.5). Option `log_merge_wait_timeout_ms`.
    pub log_merge_wait: Duration,
    /// Idle cluster locks kept, 1..=100,000 (default 10,000). Option `lock_idle_count`, which takes 32 and more, like the
    /// original's.
    pub lock_idle_count: u32,
    /// Inode numbers used of each lock group, 1..=1024 (default 1024). Option `ino_alloc_per_lock`.
    pub ino_alloc_per_lock: u32,
    /// Pause between scans for orphans, 0.1..=60 s (default 10), varied by a fifth. Option `orphan_scan_delay_ms`.
    pub orphan_scan_delay: Duration,
    /// Pause between requests for search file compaction when there is none, 0.1..=60 s (default 10). Option
    /// `srch_compact_delay_ms`, which takes 1 s and more.
    pub search_compact_delay: Duration,
    /// Greatest preallocation in 4 KiB blocks, 1..2^52 (default 2048). Option `data_prealloc_blocks`.
    pub data_prealloc_blocks: u64,
    /// Preallocate only for files written in order (default true). Option `data_prealloc_contig_only`.
    pub data_prealloc_contig_only: bool,
    /// Time between background commits, 0.1..=60 s (default 10). Option `commit_interval_ms`.
    pub commit_interval: Duration,
    /// Bytes of clean metadata blocks kept in memory (default 40 MiB). Option `block_cache_mb`.
    pub block_cache_bytes: usize,
    /// Bytes of clean items kept in memory (default 40 MiB). Option `item_cache_mb`.
    pub item_cache_bytes: usize,
    /// Unused inodes kept in memory, 1,024..=16,777,216 (default 131,072), each with about 400 bytes. Option `inode_cache_count`.
    pub cached_inodes: usize,
    /// Bytes of changed items that may wait for a commit (default 40 MiB). Option `item_dirty_mb`.
    pub item_dirty_bytes: usize,
    /// Bytes of clean file data kept in memory (default 32 MiB). Option `data_cache_mb`.
    pub data_cache_bytes: usize,
    /// Bytes of written file data that may wait for a commit (default 32 MiB). Option `data_dirty_mb`.
    pub data_dirty_bytes: usize,
}

impl Default for VolumeOptions {
    fn default() -> VolumeOptions {
        VolumeOptions {
            quorum_slot: None,
            read_only: false,
            acl: true,
            heartbeat_timeout: Duration::from_millis(10_000),
            keepalive_timeout: Duration::from_millis(24_000),
            log_merge_wait: Duration::from_millis(500),
            lock_idle_count: 10_000,
            ino_alloc_per_lock: 1024,
            orphan_scan_delay: Duration::from_millis(10_000),
            search_compact_delay: Duration::from_millis(10_000),
            data_prealloc_blocks: 2048,
            data_prealloc_contig_only: true,
            commit_interval: Duration::from_secs(10),
            block_cache_bytes: 40 << 20,
            item_cache_bytes: 40 << 20,
            cached_inodes: 128 << 10,
            item_dirty_bytes: 40 << 20,
            data_cache_bytes: 32 << 20,
            data_dirty_bytes: 32 << 20,
        }
    }
}

impl VolumeOptions {
    /// Options of a mount that is the quorum member of `slot`: the usual choice for a volume used by one node.
    pub fn member(slot: u8) -> VolumeOptions {
        VolumeOptions { quorum_slot: Some(slot), ..VolumeOptions::default() }
    }

    /// Options for a look at the volume without writing to it.
    pub fn read_only() -> VolumeOptions {
        VolumeOptions { read_only: true, ..VolumeOptions::default() }
    }

    /// Refuses values that were set directly and are out of their range.
    pub(crate) fn check(&self) -> Result<()> {
        fn within<T: PartialOrd + Debug>(name: &str, value: T, least: T, most: T) -> Result<()> {
            if least <= value && value <= most {
                return Ok(());
            }
            Err(Error::invalid(format!("option {name}: {value:?} is not in {least:?}..={most:?}")))
        }
        let ms = Duration::from_millis;
        within("quorum_slot", self.quorum_slot.unwrap_or(0), 0, QUORUM_SLOTS as u8 - 1)?;
        within("heartbeat_timeout", self.heartbeat_timeout, ms(2_000), ms(60_000))?;
        within("keepalive_timeout", self.keepalive_timeout, ms(4_000), ms(3_600_000))?;
        within("log_merge_wait", self.log_merge_wait, ms(100), ms(60_000))?;
        within("lock_idle_count", self.lock_idle_count, 1, 100_000)?;
        within("ino_alloc_per_lock", self.ino_alloc_per_lock, 1, 1024)?;
        within("orphan_scan_delay", self.orphan_scan_delay, ms(100), ms(60_000))?;
        within("search_compact_delay", self.search_compact_delay, ms(100), ms(60_000))?;
        within("data_prealloc_blocks", self.data_prealloc_blocks, 1, (1 << 52) - 1)?;
        within("commit_interval", self.commit_interval, ms(100), ms(60_000))?;
        within("cached_inodes", self.cached_inodes, 1 << 10, 1 << 24)?;
        for (name, bytes) in [
            ("block_cache_bytes", self.block_cache_bytes),
            ("item_cache_bytes", self.item_cache_bytes),
            ("item_dirty_bytes", self.item_dirty_bytes),
            ("data_cache_bytes", self.data_cache_bytes),
            ("data_dirty_bytes", self.data_dirty_bytes),
        ] {
            within(name, bytes, 64 << 10, 1 << 40)?;
        }
        Ok(())
    }

    /// Sets options from a comma separated list of `name` and `name=value`, the form of mount options.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown name, a missing or superfluous value, a value out of range, or an option that may be
    /// given only once and is given twice (`quorum_slot_nr`, `orphan_scan_delay_ms`). Options before the bad one stay set.
    pub fn parse(&mut self, list: &str) -> Result<()> {
        let mut once = Vec::new();
        for option in list.split(',').filter(|o| !o.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((n, v)) => (n, Some(v)),
                None => (option, None),
            };
            if matches!(name, "quorum_slot_nr" | "orphan_scan_delay_ms") {
                if once.contains(&name) {
                    return Err(Error::invalid(format!("option {name} given twice")));
                }
                once.push(name);
            }
            self.set(name, value)?;
        }
        Ok(())
    }

    /// Sets one option by its name. See [`VolumeOptions::parse`].
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<()> {
        let flag = |v: Option<&str>| match v {
            None => Ok(()),
            Some(v) => Err(Error::invalid(format!("option {name} takes no value, not '{v}'"))),
        };
        let num = |min: u64, max: u64| -> Result<u64> {
            let text = value.ok_or_else(|| Error::invalid(format!("option {name} needs a value")))?;
            let n: u64 =
                text.parse().map_err(|_| Error::invalid(format!("option {name}: '{text}' is not a number")))?;
            if n < min || n > max {
                return Err(Error::invalid(format!("option {name}: {n} is not in {min}..={max}")));
            }
            Ok(n)
        };
        let ms = |min, max| num(min, max).map(Duration::from_millis);
        let mib = |max: u64| num(1, max).map(|n| (n << 20) as usize);
        match name {
            "ro" => flag(value).map(|()| self.read_only = true)?,
            "rw" => flag(value).map(|()| self.read_only = false)?,
            "acl" => flag(value).map(|()| self.acl = true)?,
            "noacl" => flag(value).map(|()| self.acl = false)?,
            "quorum_slot_nr" => self.quorum_slot = Some(num(0, 14)? as u8),
            "quorum_heartbeat_timeout_ms" => self.heartbeat_timeout = ms(2_000, 60_000)?,
            "tcp_keepalive_timeout_ms" => self.keepalive_timeout = ms(4_000, 3_600_000)?,
            "log_merge_wait_timeout_ms" => self.log_merge_wait = ms(100, 60_000)?,
            "lock_idle_count" => self.lock_idle_count = num(32, 100_000)? as u32,
            "ino_alloc_per_lock" => self.ino_alloc_per_lock = num(1, 1024)? as u32,
            "orphan_scan_delay_ms" => self.orphan_scan_delay = ms(100, 60_000)?,
            "srch_compact_delay_ms" => self.search_compact_delay = ms(1_000, 60_000)?,
            "data_prealloc_blocks" => self.data_prealloc_blocks = num(1, (1 << 52) - 1)?,
            "data_prealloc_contig_only" => self.data_prealloc_contig_only = num(0, 1)? == 1,
            "commit_interval_ms" => self.commit_interval = ms(100, 60_000)?,
            "block_cache_mb" => self.block_cache_bytes = mib(1 << 20)?,
            "item_cache_mb" => self.item_cache_bytes = mib(1 << 20)?,
            "inode_cache_count" => self.cached_inodes = num(1 << 10, 1 << 24)? as usize,
            "item_dirty_mb" => self.item_dirty_bytes = mib(1 << 20)?,
            "data_cache_mb" => self.data_cache_bytes = mib(1 << 20)?,
            "data_dirty_mb" => self.data_dirty_bytes = mib(1 << 20)?,
            _ => return Err(Error::invalid(format!("unknown option {name}"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_the_original_is_known_and_bounded() {
        let good = "quorum_slot_nr=14,quorum_heartbeat_timeout_ms=2000,tcp_keepalive_timeout_ms=4000,\
                    log_merge_wait_timeout_ms=100,lock_idle_count=32,ino_alloc_per_lock=1,orphan_scan_delay_ms=60000,\
                    data_prealloc_blocks=1,data_prealloc_contig_only=0,acl";
        let mut o = VolumeOptions::default();
        o.parse(good).unwrap();
        assert_eq!((o.quorum_slot, o.lock_idle_count, o.data_prealloc_contig_only), (Some(14), 32, false));
    }

    /// The original accepted keepalive times of 3001..3999 ms, with which no connection works.
    #[test]
    fn defect_53_short_keepalive_is_refused() {
        let mut o = VolumeOptions::default();
        assert!(o.parse("tcp_keepalive_timeout_ms=3999").is_err());
        assert!(o.parse("tcp_keepalive_timeout_ms=4000").is_ok());
    }

    #[test]
    fn bad_options_are_named() {
        for bad in [
            "quorum_slot_nr=15",
            "quorum_slot_nr",
            "quorum_slot_nr=0,quorum_slot_nr=1",
            "acl=1",
            "lock_idle_count=31",
            "lock_idle_count=-1",
            "data_prealloc_contig_only=2",
            "orphan_scan_delay_ms=99",
            "nonsense=1",
        ] {
            let e = VolumeOptions::default().parse(bad).unwrap_err();
            assert!(matches!(e, Error::Invalid(_)), "{bad}: {e}");
            assert!(e.to_string().contains(bad.split(['=', ',']).next().unwrap()), "{bad}: {e}");
        }
    }
}
