//! Locks with the `parking_lot` calling convention under the simulation's scheduler.
//!
//! SAFETY of this module: only the holder of the baton runs, so the flags need no ordering; a guard exists only while its flag
//! is set, and the flag is set only when no other guard exists.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::Duration;

use super::{Instant, sched};

/// -1: one writer; n: readers.
#[derive(Debug, Default)]
struct Flag {
    users: AtomicI32,
    waiting: AtomicI32,
}

impl Flag {
    fn key(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    fn acquire(&self, exclusive: bool, what: &'static str) {
        sched::point();
        while !self.try_acquire(exclusive) {
            self.waiting.fetch_add(1, Relaxed);
            sched::block(self.key(), what, None);
            self.waiting.fetch_sub(1, Relaxed);
        }
    }

    fn try_acquire(&self, exclusive: bool) -> bool {
        let users = self.users.load(Relaxed);
        match exclusive {
            true if users == 0 => self.users.store(-1, Relaxed),
            false if users >= 0 => self.users.store(users + 1, Relaxed),
            _ => return false,
        }
        true
    }

    fn release(&self) {
        let users = self.users.load(Relaxed);
        self.users.store(if users < 0 { 0 } else { users - 1 }, Relaxed);
        if self.waiting.load(Relaxed) > 0 {
            sched::wake_all(self.key());
        }
    }
}

#[derive(Default)]
pub(crate) struct Mutex<T: ?Sized> {
    flag: Flag,
    value: UnsafeCell<T>,
}

// SAFETY: see the module.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}
// SAFETY: see the module.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

pub(crate) struct MutexGuard<'a, T: ?Sized>(&'a Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(v: T) -> Self {
        let flag = Flag { users: AtomicI32::new(0), waiting: AtomicI32::new(0) };
        Mutex { flag, value: UnsafeCell::new(v) }
    }
    pub(crate) fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.flag.acquire(true, "mutex");
        MutexGuard(self)
    }
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.flag.try_acquire(true).then_some(MutexGuard(self))
    }
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: ?Sized + std::fmt::Debug> std::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mutex(..)")
    }
}

impl<T: ?Sized> MutexGuard<'_, T> {
    pub(crate) fn unlocked<R>(s: &mut Self, f: impl FnOnce() -> R) -> R {
        s.0.flag.release();
        sched::point();
        let result = f();
        s.0.flag.acquire(true, "mutex");
        result
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: see the module.
        unsafe { &*self.0.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: see the module.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.0.flag.release();
    }
}

/// Result of a wait with a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(u8);

impl Condvar {
    pub(crate) const fn new() -> Self {
        Condvar(0)
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    fn wait_at_most<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, until: Option<Duration>) -> WaitTimeoutResult {
        guard.0.flag.release();
        let late = sched::block(self.key(), "condition", until);
        guard.0.flag.acquire(true, "mutex after condition");
        WaitTimeoutResult(late)
    }

    pub(crate) fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        self.wait_at_most(guard, None);
    }

    pub(crate) fn wait_until<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, at: Instant) -> WaitTimeoutResult {
        self.wait_at_most(guard, Some(at.0))
    }

    pub(crate) fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, time: Duration) -> WaitTimeoutResult {
        self.wait_at_most(guard, Some(sched::now() + time))
    }

    pub(crate) fn notify_one(&self) -> bool {
        sched::wake_one(self.key())
    }

    pub(crate) fn notify_all(&self) {
        sched::wake_all(self.key());
    }
}

#[derive(Default)]
pub(crate) struct RwLock<T: ?Sized> {
    flag: Flag,
    value: UnsafeCell<T>,
}

// SAFETY: see the module.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}
// SAFETY: see the module.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}

pub(crate) struct RwLockReadGuard<'a, T: ?Sized>(&'a RwLock<T>);
pub(crate) struct RwLockWriteGuard<'a, T: ?Sized>(&'a RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) const fn new(v: T) -> Self {
        let flag = Flag { users: AtomicI32::new(0), waiting: AtomicI32::new(0) };
        RwLock { flag, value: UnsafeCell::new(v) }
    }
    pub(crate) fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> RwLock<T> {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.flag.acquire(false, "shared lock");
        RwLockReadGuard(self)
    }
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.flag.acquire(true, "exclusive lock");
        RwLockWriteGuard(self)
    }
    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        self.flag.try_acquire(false).then_some(RwLockReadGuard(self))
    }
    pub(crate) fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        self.flag.try_acquire(true).then_some(RwLockWriteGuard(self))
    }
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: ?Sized + std::fmt::Debug> std::fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RwLock(..)")
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: see the module.
        unsafe { &*self.0.value.get() }
    }
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        self.0.flag.release();
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: see the module.
        unsafe { &*self.0.value.get() }
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: see the module.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.0.flag.release();
    }
}
