//! loom's primitives with the `parking_lot` calling convention.

pub(crate) use loom::sync::{RwLockReadGuard, RwLockWriteGuard, atomic};
pub(crate) use loom::thread;
use std::ops::{Deref, DerefMut};
// Reference counts are not what the models check, and loom's have no weak ones.
pub(crate) use std::sync::{Arc, OnceLock, Weak};

/// Hash table; its order is not modelled.
pub(crate) type HashMap<K, V, S = hashbrown::DefaultHashBuilder> = hashbrown::HashMap<K, V, S>;
/// The same for sets.
pub(crate) type HashSet<K, S = hashbrown::DefaultHashBuilder> = hashbrown::HashSet<K, S>;

#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

/// Holds `None` only inside of [`Condvar::wait`].
pub(crate) struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(v: T) -> Self {
        Mutex(loom::sync::Mutex::new(v))
    }
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().expect("loom mutexes do not poison: a panic ends the model")))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_ref().expect("only empty while waiting")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("only empty while waiting")
    }
}

#[derive(Debug)]
pub(crate) struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Condvar(loom::sync::Condvar::new())
    }
    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let inner = guard.0.take().expect("only empty while waiting");
        guard.0 = Some(self.0.wait(inner).expect("loom mutexes do not poison"));
    }
    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }
}

#[derive(Debug)]
pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(v: T) -> Self {
        RwLock(loom::sync::RwLock::new(v))
    }
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().expect("loom locks do not poison")
    }
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().expect("loom locks do not poison")
    }
}
