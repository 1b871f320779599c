//! Volumes made by the original, unpacked for a test.
//!
//! The archives were made by `tar -S`: old GNU sparse entries, 8 to 12 GiB apparent, a few MiB stored. A general tar
//! reader hands out the holes as zeros, which takes seconds; this one gives only the stored runs. It uses nothing of
//! the crate, so that unit tests inside and integration tests outside share it.

#![allow(dead_code, unreachable_pub, reason = "each test program uses what it needs")]

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Names of all volumes, in order.
pub const ALL: [&str; 9] = [
    "01-fresh-v2",
    "02-fresh-v1",
    "03-small-tree",
    "04-dir-20k",
    "05-archive",
    "06-unclean",
    "07-two-mounts",
    "08-churn",
    "09-v1-tree",
];

/// A volume unpacked into sparse files, which go away with this value.
pub struct Fixture {
    dir: tempfile::TempDir,
    /// The metadata device.
    pub meta: PathBuf,
    /// The data device.
    pub data: PathBuf,
}

impl Fixture {
    /// The folder of the two files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Folder of the packed volume `name`.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures").join(name)
}

/// Unpacks the volume `name` into sparse files in a temporary folder.
pub fn fixture(name: &str) -> Fixture {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let unpack = |device: &str| {
        let path = dir.path().join(format!("{device}.img"));
        let file = File::create_new(&path).expect("the folder is new");
        let size = unpack(name, device, &mut |offset, bytes| {
            file.write_all_at(bytes, offset).expect("the temporary folder has space");
        });
        file.set_len(size).expect("the temporary folder takes sparse files");
        path
    };
    let (meta, data) = (unpack("meta"), unpack("data"));
    Fixture { dir, meta, data }
}

/// Gives every stored run of the device `device` ("meta" or "data") of the volume `name` to `sink`, and returns the
/// size of the device. Runs of zeros inside stored runs are left out too.
pub fn unpack(name: &str, device: &str, sink: &mut dyn FnMut(u64, &[u8])) -> u64 {
    let path = folder(name).join(format!("{device}.img.tar.zst"));
    let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut tar = BufReader::with_capacity(1 << 20, zstd::Decoder::new(file).expect("a zstd stream"));
    let mut head = [0; 512];
    tar.read_exact(&mut head).expect("a tar header");
    assert_eq!(head[156], b'S', "{} is a GNU sparse entry", path.display());
    let mut runs = Vec::new();
    collect_runs(&head[386..482], &mut runs);
    let mut more = head[482] != 0;
    let size = number(&head[483..495]);
    while more {
        tar.read_exact(&mut head).expect("a sparse map block");
        collect_runs(&head[..504], &mut runs);
        more = head[504] != 0;
    }
    let mut buf = vec![0; 1 << 16];
    for (mut offset, mut left) in runs {
        while left > 0 {
            let n = left.min(buf.len() as u64) as usize;
            tar.read_exact(&mut buf[..n]).expect("the stored runs follow the map");
            if buf[..n].iter().any(|&b| b != 0) {
                sink(offset, &buf[..n]);
            }
            offset += n as u64;
            left -= n as u64;
        }
    }
    size
}

/// A text file of the volume `name` that is stored compressed, for example `manifest.jsonl`.
pub fn text(name: &str, file: &str) -> Vec<u8> {
    let path = folder(name).join(format!("{file}.zst"));
    let packed = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    zstd::decode_all(packed).expect("a zstd stream")
}

fn collect_runs(map: &[u8], runs: &mut Vec<(u64, u64)>) {
    for entry in map.chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        runs.push((number(&entry[..12]), number(&entry[12..])));
    }
}

/// A number of a tar header: octal text, or big-endian binary when the top bit is set.
fn number(field: &[u8]) -> u64 {
    if field[0] & 0x80 != 0 {
        return field[1..].iter().fold(0, |v, &b| v << 8 | u64::from(b));
    }
    field.iter().take_while(|b| b.is_ascii_digit()).fold(0, |v, &b| v * 8 + u64::from(b - b'0'))
}
