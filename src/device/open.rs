//! Devices by what people write on a command line.

use std::path::Path;

use super::{BlockDevice, FileDevice, FileOptions, NbdDevice, NbdOptions, Result, nbd};
use crate::sync::Arc;

/// Opens the device at `location`: an NBD URL (`nbd://host[:port]/export`, `nbd+unix:///export?socket=path`; see
/// [`NbdDevice`]), or the path of a file or block device.
///
/// With `exclusive` nobody else on this host can open a file or block device (see [`FileOptions`]); an NBD export cannot be held
/// exclusively. Without it, and not read-only, the device counts as shared with other nodes: an NBD export must then be made for
/// it. [`DirectIo`](super::DirectIo) means nothing for an NBD export, which has no cache on this side.
///
/// A block device that nodes on several hosts share must be opened with [`DirectIo::Required`](super::DirectIo): each host would see its own page cache.
///
/// ```
/// use scoutfs::device::{self, BlockDevice, FileDevice, FileOptions};
///
/// let dir = std::env::temp_dir().join("scoutfs-open-example");
/// FileDevice::create(&dir, 1 << 20)?;
/// assert_eq!(device::open(&dir, &FileOptions::default())?.size(), 1 << 20);
/// assert!(device::open("nbd://127.0.0.1:1/nothing", &FileOptions::default()).is_err());
/// # std::fs::remove_file(dir).ok();
/// # Ok::<(), scoutfs::Error>(())
/// ```
///
/// # Errors
/// Those of [`FileDevice::open`] and [`NbdDevice::open`].
pub fn open(location: impl AsRef<Path>, options: &FileOptions) -> Result<Arc<dyn BlockDevice>> {
    let path = location.as_ref();
    match path.to_str() {
        Some(url) if nbd::is_url(url) => {
            let shared = !options.exclusive && !options.read_only;
            let options = NbdOptions { read_only: options.read_only, shared, ..NbdOptions::default() };
            Ok(NbdDevice::open(url, &options)?)
        }
        _ => Ok(FileDevice::open(path, options)?),
    }
}
