//! Random calls that often make sense on what a model says is there.

use rand::Rng;
use rand::rngs::StdRng;
use scoutfs::Ino;
use scoutfs::namespace::{RenameFlags, XattrFlags};

use crate::model::{Content, Model};
use crate::op::{KEEP_SIZE, Op, PUNCH, ZERO};

/// The next call.
pub(crate) fn random_op(rng: &mut StdRng, model: &Model) -> Op {
    Chooser { rng, model }.op()
}

struct Chooser<'a> {
    rng: &'a mut StdRng,
    model: &'a Model,
}

impl Chooser<'_> {
    fn some<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.random_range(0..of.len())]
    }

    fn any(&mut self, want: impl Fn(&Content) -> bool) -> Option<Ino> {
        let all: Vec<Ino> = self.model.inodes.iter().filter(|(_, i)| want(&i.content)).map(|(n, _)| *n).collect();
        (!all.is_empty()).then(|| self.some(&all))
    }

    fn dir(&mut self) -> Ino {
        self.any(|c| matches!(c, Content::Dir(_))).expect("the root")
    }

    fn file(&mut self) -> Option<Ino> {
        self.any(|c| matches!(c, Content::File(_)))
    }

    fn inode(&mut self) -> Ino {
        self.any(|_| true).expect("the root")
    }

    /// A name that often exists.
    fn name(&mut self) -> String {
        let nr = self.rng.random_range(0..12);
        if nr == 0 { "n".repeat(self.rng.random_range(200..=255)) } else { format!("name {nr}") }
    }

    fn range(&mut self) -> (u64, u64) {
        let spread = self.some(&[1, 4096, 5000, 100_000, 400_000]);
        (self.rng.random_range(0..spread), self.rng.random_range(1..=spread))
    }

    fn op(&mut self) -> Op {
        let (dir, name, seed) = (self.dir(), self.name(), self.rng.random());
        let (offset, len) = self.range();
        let kind = self.rng.random_range(0..22);
        let Some(ino) = self.file() else { return Op::Create(dir, name) };
        match kind {
            0 | 1 => Op::Mkdir(dir, name),
            2..=5 => Op::Create(dir, name),
            6 => Op::Symlink(dir, name, "t".repeat(self.rng.random_range(1..4000))),
            7..=9 => Op::Write { ino, offset, len: len as usize, seed },
            10 => Op::Append { ino, len: len as usize, seed },
            11 => Op::Truncate(ino, offset),
            12 => Op::Fallocate { ino, mode: self.some(&[0, KEEP_SIZE, PUNCH, ZERO, ZERO | KEEP_SIZE]), offset, len },
            13 | 14 => {
                let flags = self.some(&[XattrFlags::Any, XattrFlags::Any, XattrFlags::Create, XattrFlags::Replace]);
                let (ino, nr) = (self.inode(), self.rng.random_range(0..4));
                Op::SetXattr { ino, name: format!("trusted.x{nr}"), len: offset as usize % 4000, seed, flags }
            }
            15 => Op::RemoveXattr(self.inode(), format!("trusted.x{}", self.rng.random_range(0..4))),
            16 => Op::Link(self.inode(), dir, name),
            17 | 18 => Op::Unlink(dir, name),
            19 => Op::Rmdir(dir, name),
            _ => {
                let to = (self.dir(), self.name());
                let flags = [RenameFlags::NONE, RenameFlags::NONE, RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
                Op::Rename { from: (dir, name), to, flags: self.some(&flags) }
            }
        }
    }
}
