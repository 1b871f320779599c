//! One round of calls of every kind, with syncs in between, for tests that let devices fail or vanish under it.

use scoutfs::Ino;
use scoutfs::namespace::{RenameFlags, XattrFlags};

use crate::op::{KEEP_SIZE, Op, PUNCH, ZERO};

/// Who does the calls, and what it makes of errors.
pub(crate) trait Run {
    /// What ends a round early.
    type Stop;
    /// Does a call that succeeds on a volume without faults; gives the inode that was made, if one was.
    fn op(&mut self, op: Op) -> Result<Ino, Self::Stop>;
    /// Makes everything so far durable.
    fn sync(&mut self) -> Result<(), Self::Stop>;
}

/// Does round `nr`; names of different rounds differ.
pub(crate) fn round<R: Run>(run: &mut R, nr: u64) -> Result<(), R::Stop> {
    let dir = run.op(Op::Mkdir(Ino::ROOT, format!("dir {nr}")))?;
    let small = run.op(Op::Create(dir, "small".into()))?;
    run.op(Op::Write { ino: small, offset: 0, len: 100, seed: nr })?;
    let large = run.op(Op::Create(dir, "large".into()))?;
    run.op(Op::Write { ino: large, offset: 0, len: 300_000, seed: nr + 1 })?;
    run.sync()?;
    run.op(Op::Append { ino: small, len: 5000, seed: nr + 2 })?;
    run.op(Op::Write { ino: large, offset: 100_001, len: 70_000, seed: nr + 3 })?;
    run.op(Op::SetXattr { ino: small, name: "user.a".into(), len: 3000, seed: nr, flags: XattrFlags::Any })?;
    run.op(Op::Link(small, Ino::ROOT, format!("second name {nr}")))?;
    run.op(Op::Symlink(dir, "link".into(), "../nowhere".into()))?;
    run.sync()?;
    run.op(Op::Rename { from: (dir, "large".into()), to: (Ino::ROOT, "large".into()), flags: RenameFlags::NONE })?;
    run.op(Op::Truncate(large, 123_456))?;
    run.op(Op::Fallocate { ino: small, mode: 0, offset: 8192, len: 100_000 })?;
    run.op(Op::Write { ino: small, offset: 40_000, len: 4096, seed: nr + 4 })?;
    run.sync()?;
    run.op(Op::Fallocate { ino: large, mode: PUNCH, offset: 4096, len: 50_000 })?;
    run.op(Op::Fallocate { ino: large, mode: ZERO | KEEP_SIZE, offset: 70_000, len: 20_000 })?;
    let sub = run.op(Op::Mkdir(dir, "sub".into()))?;
    for i in 0..30 {
        let ino = run.op(Op::Create(sub, format!("file {i}")))?;
        run.op(Op::Append { ino, len: i as usize * 100, seed: nr * 100 + i })?;
    }
    run.sync()?;
    for i in 0..25 {
        run.op(Op::Unlink(sub, format!("file {i}")))?;
    }
    run.op(Op::Rename {
        from: (sub, "file 28".into()),
        to: (sub, "file 29".into()),
        flags: if nr.is_multiple_of(2) { RenameFlags::NONE } else { RenameFlags::EXCHANGE },
    })?;
    run.op(Op::RemoveXattr(small, "user.a".into()))?;
    run.sync()?;
    run.op(Op::Mkdir(sub, "empty".into()))?;
    run.op(Op::Rmdir(sub, "empty".into()))?;
    run.op(Op::Unlink(dir, "small".into()))?;
    run.op(Op::Unlink(Ino::ROOT, format!("second name {nr}")))?;
    Ok(())
}
