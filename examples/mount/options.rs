//! What `mount` and `node` can be told with `-o`: the options of the library, those of the front end, and how this node meets
//! the others of its cluster.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use scoutfs::device::{self, BlockDevice, DirectIo, FileOptions};
use scoutfs::net::{TcpOptions, TcpTransport};
use scoutfs::server::{CommandFencer, Fencer, HostFencer};
use scoutfs::{Environment, Error, Result, Volume, VolumeOptions};

/// Where the mounts of this host are known, for the fencing among them.
const FENCE_DIR: &str = "/var/lib/scoutfs/mounts";

pub(crate) const HELP: &str = "\
Options of -o, comma separated:
  cluster                  meet other nodes over TCP; the devices are shared
                           (always so for `node`)
  quorum_slot_nr=N         be the member of slot N (without `cluster` the
                           default is 0)
  fence_command=CMD        run CMD (by sh -c) for a node that must be fenced;
                           SCOUTFS_FENCED_REQ_RID, _IP and _REASON tell which.
                           Exit status 0 promises that it writes no more
  fence_dir=DIR            without fence_command: all nodes are on this host
                           and are known and killed through files in DIR
                           (default /var/lib/scoutfs/mounts)
  (In a cluster files have no flock and fcntl locks: EOPNOTSUPP. They can be
   mapped shared from Linux 6.16 on, before: ENODEV.)
  source_addr=IP           address that this node's connections come from
  allow_other, threads=N, max_write_kb=N
                           for the FUSE front end
  ro, acl, noacl, quorum_heartbeat_timeout_ms=N, tcp_keepalive_timeout_ms=N,
  log_merge_wait_timeout_ms=N, lock_idle_count=N, ino_alloc_per_lock=N,
  orphan_scan_delay_ms=N, data_prealloc_blocks=N, data_prealloc_contig_only=0|1,
  commit_interval_ms=N, block_cache_mb=N, item_cache_mb=N, item_dirty_mb=N,
  data_cache_mb=N, data_dirty_mb=N

META and DATA are files, block devices, or nbd://host[:port]/export.";

/// What the front end itself is told.
pub(crate) struct FrontOptions {
    pub(crate) allow_other: bool,
    pub(crate) threads: usize,
    pub(crate) max_write: u32,
    /// Other nodes change the volume too.
    pub(crate) shared: bool,
}

/// Everything after `-o`.
pub(crate) struct Options {
    pub(crate) volume: VolumeOptions,
    pub(crate) front: FrontOptions,
    cluster: bool,
    fence_command: Option<String>,
    fence_dir: PathBuf,
    source: Option<Ipv4Addr>,
}

impl Options {
    /// `cluster`: is it one of several nodes without being told so?
    pub(crate) fn parse(lists: &[String], cluster: bool) -> Result<Options> {
        let mut options = Options {
            volume: VolumeOptions::default(),
            front: FrontOptions { allow_other: false, threads: 4, max_write: 1 << 20, shared: false },
            cluster,
            fence_command: None,
            fence_dir: FENCE_DIR.into(),
            source: None,
        };
        let mut rest = Vec::new();
        for option in lists.iter().flat_map(|l| l.split(',')).filter(|o| !o.is_empty()) {
            let wrong = |what: &str| Error::Invalid(format!("option {option}: {what}"));
            let number = |v: &str, max: usize| match v.parse::<usize>() {
                Ok(n) if (1..=max).contains(&n) => Ok(n),
                _ => Err(wrong(&format!("not in 1..={max}"))),
            };
            match option.split_once('=') {
                None if option == "allow_other" => options.front.allow_other = true,
                None if option == "cluster" => options.cluster = true,
                Some(("threads", v)) => options.front.threads = number(v, 64)?,
                Some(("max_write_kb", v)) => options.front.max_write = (number(v, 16 << 10)? as u32) << 10,
                Some(("fence_command", v)) => options.fence_command = Some(v.to_owned()),
                Some(("fence_dir", v)) => options.fence_dir = v.into(),
                Some(("source_addr", v)) => {
                    options.source = Some(v.parse().map_err(|_| wrong("not an IPv4 address"))?);
                }
                _ => rest.push(option),
            }
        }
        options.volume.parse(&rest.join(","))?;
        // A read-only view is of one moment; nobody changes that.
        options.front.shared = options.cluster && !options.volume.read_only;
        if !options.cluster {
            if options.fence_command.is_some() || options.source.is_some() {
                return Err(Error::Invalid("fence_command and source_addr need the option cluster".into()));
            }
            if options.volume.quorum_slot.is_none() && !options.volume.read_only {
                options.volume.quorum_slot = Some(0);
            }
        }
        Ok(options)
    }

    /// Opens the devices and the volume on them.
    pub(crate) fn open(&self, meta: &Path, data: &Path) -> Result<Volume> {
        let (meta, data) = (self.open_device(meta, DirectIo::Preferred)?, self.open_device(data, DirectIo::Off)?);
        if !self.cluster || self.volume.read_only {
            return Volume::open(meta, data, self.volume.clone());
        }
        let fencer: Arc<dyn Fencer> = match &self.fence_command {
            Some(command) => Arc::new(CommandFencer::new("/bin/sh", ["-c", command])),
            None => Arc::new(HostFencer::new(&self.fence_dir)?.killing()),
        };
        let tcp = TcpOptions { keepalive_timeout: self.volume.keepalive_timeout, source: self.source };
        let environment = Environment { transport: Some(TcpTransport::new(tcp)?), fencer: Some(fencer) };
        Volume::open_in(meta, data, self.volume.clone(), environment)
    }

    fn open_device(&self, location: &Path, direct: DirectIo) -> Result<Arc<dyn BlockDevice>> {
        use std::os::unix::fs::FileTypeExt;
        let exclusive = !self.volume.read_only && !self.cluster;
        // Nodes on other hosts do not see the page cache of this one.
        let is_block = std::fs::metadata(location).is_ok_and(|m| m.file_type().is_block_device());
        let direct = if self.cluster && is_block { DirectIo::Required } else { direct };
        device::open(location, &FileOptions { read_only: self.volume.read_only, exclusive, direct })
    }
}
