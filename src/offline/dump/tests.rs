//! Dumps of the stored volumes.

use super::*;
use crate::device::MemDevice;
use crate::fixture;

fn text(meta: &dyn BlockDevice, options: &DumpOptions) -> String {
    let mut out = Vec::new();
    dump(meta, options, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn meta(name: &str) -> crate::sync::Arc<MemDevice> {
    let size = fixture::unpack(name, "meta", &mut |_, _| {});
    let dev = MemDevice::new(size);
    fixture::unpack(name, "meta", &mut |offset, bytes| dev.write_at(offset, bytes).unwrap());
    dev
}

#[test]
fn every_volume_of_the_original_is_printed_without_damage() {
    for name in fixture::ALL {
        let dev = meta(name);
        let all = text(&*dev, &DumpOptions::default());
        assert!(!all.contains("DAMAGED") && !all.contains("UNKNOWN"), "{name}");
        assert!(all.contains("filesystem tree: height"), "{name}");
        let short = text(&*dev, &DumpOptions { skip_likely_huge: true });
        assert!(short.len() < all.len() && short.contains("super block 16"), "{name}");
    }
}

#[test]
fn a_dump_has_every_name_of_the_volume() {
    let all = text(&*meta("03-small-tree"), &DumpOptions::default());
    let manifest = String::from_utf8(fixture::text("03-small-tree", "manifest.jsonl")).unwrap();
    let mut names = 0;
    for line in manifest.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        let path = entry["path"].as_str().unwrap();
        let plain = path != "." && !path.starts_with("hex:") && path.is_ascii();
        if let (true, Some(name)) = (plain, path.rsplit('/').next()) {
            let quoted = format!("\"{}\"", name.as_bytes().escape_ascii());
            assert!(all.contains(&quoted), "{path}");
            assert!(all.contains(&format!(" inode {} position", entry["ino"])), "{path}");
            names += 1;
        }
    }
    assert!(names > 200, "{names}");
}

#[test]
fn defect_80_damage_is_reported_and_passed_over_and_nothing_loops() {
    let dev = meta("05-archive");
    let sb = read_super(&*dev).unwrap();
    let whole = text(&*dev, &DumpOptions::default());
    // Every block of the filesystem tree refers to the root again.
    let root = sb.fs_root.block_ref;
    let mut block = vec![0; BLOCK_BYTES];
    dev.read_at(root.blkno.get() << BLOCK_SHIFT, &mut block).unwrap();
    let level = block[40];
    assert!(level > 0, "the tree has parents");
    let mut cut = block.clone();
    cut[20_000] ^= 0xff;
    dev.write_at(root.blkno.get() << BLOCK_SHIFT, &cut).unwrap();
    let damaged = text(&*dev, &DumpOptions::default());
    assert!(damaged.contains("DAMAGED") && damaged.len() < whole.len());

    let nr = u16::from_le_bytes([block[34], block[35]]) as usize;
    for i in 0..nr {
        let off = 48 + 56 * i + 48;
        let val = u16::from_le_bytes([block[off], block[off + 1]]) as usize;
        block[val..val + 8].copy_from_slice(&root.blkno.get().to_le_bytes());
        block[val + 8..val + 16].copy_from_slice(&root.seq.get().to_le_bytes());
    }
    crate::format::seal_block(&mut block);
    dev.write_at(root.blkno.get() << BLOCK_SHIFT, &block).unwrap();
    let looped = text(&*dev, &DumpOptions::default());
    assert_eq!(looped.matches("was printed before").count(), nr);
}

#[test]
fn output_that_fails_ends_the_dump_with_an_error() {
    struct Full(usize);
    impl io::Write for Full {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(buf.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dev = meta("03-small-tree");
    assert!(dump(&*dev, &DumpOptions::default(), &mut Full(5000)).is_err());
    assert!(dump(&*MemDevice::new(1 << 20), &DumpOptions::default(), &mut io::sink()).is_err());
}
