//! The one atomic word of a lock: acquire and release of a granted lock touch nothing else.
//!
//! ```text
//!  bit  0..2   effective mode
//!  bit  2      GATE     an invalidation is queued or the lock is shut: acquire and release take the slow path
//!  bit  3      DEAD     no longer in the table: look it up again
//!  bit  4      ORPHAN   the table is gone; the last release frees the lock
//!  bit  5      USED     used since the last sweep for idle locks
//!  bit  6..25  users of read          (19 bits each)
//!  bit 25..44  users of write
//!  bit 44..63  users of write-only
//! ```
//!
//! 1. Users of a mode are only counted while the effective mode serves it, and the effective mode is only lowered by a
//!    compare-exchange that saw no user whom the new mode does not serve: S-3 rests on this word alone.
//! 2. Mode and GATE change only under the lock's mutex; the user counts change anywhere.
//! 3. GATE is set before users are looked at for an invalidation. A release that sees no GATE was before that look; one
//!    that sees it takes the mutex. So the last incompatible user is never missed (L-4).
//! 4. DEAD is set only while the mode is null, so a dead lock serves nobody and a lock with users is in the table.

use super::Mode;
use crate::sync::atomic::{AtomicU64, Ordering};

const MODE: u64 = 0b11;
const GATE: u64 = 1 << 2;
const DEAD: u64 = 1 << 3;
const ORPHAN: u64 = 1 << 4;
const USED: u64 = 1 << 5;
const COUNT: u64 = (1 << 19) - 1;

/// Where the count of each mode starts; null has none.
const SHIFT: [u32; 4] = [0, 6, 25, 44];
/// What one user of each mode adds.
const ONE: [u64; 4] = [0, 1 << SHIFT[1], 1 << SHIFT[2], 1 << SHIFT[3]];
/// The counts of the modes that the index does not serve.
const NOT_SERVED: [u64; 4] = [
    COUNT << SHIFT[1] | COUNT << SHIFT[2] | COUNT << SHIFT[3],
    COUNT << SHIFT[2] | COUNT << SHIFT[3],
    COUNT << SHIFT[3],
    COUNT << SHIFT[1] | COUNT << SHIFT[2],
];
/// Bit `wanted` of element `granted`: does it serve?
const SERVES: [u8; 4] = [0b0001, 0b0010, 0b0110, 0b1000];

/// A value of the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct View(u64);

impl View {
    pub(super) fn mode(self) -> Mode {
        Mode::from_wire((self.0 & MODE) as u8).expect("two bits are always a mode")
    }
    pub(super) fn gate(self) -> bool {
        self.0 & GATE != 0
    }
    pub(super) fn dead(self) -> bool {
        self.0 & DEAD != 0
    }
    pub(super) fn orphan(self) -> bool {
        self.0 & ORPHAN != 0
    }
    pub(super) fn used(self) -> bool {
        self.0 & USED != 0
    }
    pub(super) fn users(self, mode: Mode) -> u64 {
        if mode == Mode::Null { 0 } else { self.0 >> SHIFT[mode as usize] & COUNT }
    }
    pub(super) fn unused(self) -> bool {
        self.0 & NOT_SERVED[Mode::Null as usize] == 0
    }
    fn serves(self, wanted: Mode) -> bool {
        SERVES[(self.0 & MODE) as usize] >> (wanted as u8) & 1 != 0
    }
    fn full(self, mode: Mode) -> bool {
        self.users(mode) == COUNT
    }
}

/// What a release found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Release {
    /// Done; the lock must not be touched any more.
    Done,
    /// Not done: the gate is closed, the caller must take the slow path, still counted as a user.
    Slow,
}

/// The atomic word.
#[derive(Debug)]
pub(super) struct LockWord(AtomicU64);

impl LockWord {
    /// Null, unused.
    pub(super) fn new() -> LockWord {
        LockWord(AtomicU64::new(0))
    }

    pub(super) fn load(&self) -> View {
        View(self.0.load(Ordering::Acquire))
    }

    /// Counts a user if the mode serves and the gate is open.
    #[inline]
    pub(super) fn try_acquire(&self, mode: Mode) -> bool {
        debug_assert!(mode != Mode::Null);
        let mut w = self.0.load(Ordering::Relaxed);
        loop {
            let v = View(w);
            if w & GATE != 0 || !v.serves(mode) || v.full(mode) {
                return false;
            }
            match self.0.compare_exchange_weak(w, (w + ONE[mode as usize]) | USED, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => w = now,
            }
        }
    }

    /// Does the mode serve readers, with the gate open? Remembers that somebody asked, writing only if that is new.
    #[inline]
    pub(super) fn serves_readers(&self) -> bool {
        let w = self.0.load(Ordering::Acquire);
        if w & GATE != 0 || !View(w).serves(Mode::Read) {
            return false;
        }
        if w & USED == 0 {
            self.0.fetch_or(USED, Ordering::Relaxed);
        }
        true
    }

    /// Counts a user although the gate may be closed. Only under the lock's mutex.
    pub(super) fn admit(&self, mode: Mode) -> bool {
        self.update(|v| (v.serves(mode) && !v.full(mode)).then_some((v.0 + ONE[mode as usize]) | USED)).is_ok()
    }

    /// Drops a user if the gate is open.
    #[inline]
    pub(super) fn try_release(&self, mode: Mode) -> Release {
        let mut w = self.0.load(Ordering::Relaxed);
        loop {
            debug_assert!(View(w).users(mode) > 0, "release without a user");
            if w & GATE != 0 {
                return Release::Slow;
            }
            match self.0.compare_exchange_weak(w, w - ONE[mode as usize], Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return Release::Done,
                Err(now) => w = now,
            }
        }
    }

    /// Drops a user whatever the gate says; the view is the state after it.
    pub(super) fn release(&self, mode: Mode) -> View {
        let before = self.0.fetch_sub(ONE[mode as usize], Ordering::AcqRel);
        debug_assert!(View(before).users(mode) > 0, "release without a user");
        View(before - ONE[mode as usize])
    }

    /// Opens or closes the gate. Only under the lock's mutex.
    pub(super) fn set_gate(&self, closed: bool) {
        if closed {
            self.0.fetch_or(GATE, Ordering::AcqRel);
        } else {
            self.0.fetch_and(!GATE, Ordering::AcqRel);
        }
    }

    /// Raises or keeps the mode (a grant). Only under the lock's mutex.
    pub(super) fn raise(&self, to: Mode) {
        let _ = self.update(|v| Some(v.0 & !MODE | to as u64));
    }

    /// Lowers the mode to `to` unless a user is left whom `to` does not serve. Only under the lock's mutex.
    pub(super) fn lower(&self, to: Mode) -> bool {
        self.update(|v| (v.0 & NOT_SERVED[to as usize] == 0).then_some(v.0 & !MODE | to as u64)).is_ok()
    }

    /// Would [`LockWord::lower`] succeed?
    pub(super) fn can_lower(&self, to: Mode) -> bool {
        self.load().0 & NOT_SERVED[to as usize] == 0
    }

    /// Marks the lock as removed if it is null, unused and not yet dead. Only under the lock's mutex and the table's.
    pub(super) fn kill(&self) -> bool {
        self.update(|v| (v.mode() == Mode::Null && v.unused() && !v.dead()).then_some(v.0 | DEAD)).is_ok()
    }

    /// Marks the lock as owned by its users, because the table goes; the view is the state before.
    pub(super) fn orphan(&self) -> View {
        View(self.0.fetch_or(ORPHAN | GATE, Ordering::AcqRel))
    }

    /// Forgets that the lock was used lately.
    pub(super) fn clear_used(&self) {
        self.0.fetch_and(!USED, Ordering::Relaxed);
    }

    fn update(&self, mut f: impl FnMut(View) -> Option<u64>) -> Result<u64, u64> {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |w| f(View(w)))
    }
}
