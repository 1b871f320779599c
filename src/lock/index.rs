//! What a lock server finds by lock name: a table that grows in small steps, and small sets.
//!
//! **Problem.** A table of a million locks that doubles moves all of them at once, which takes a fifth of a second, and whoever
//! asks for a lock meanwhile waits. **Idea.** Many small tables, each of which doubles at a time of its own: the longest step is
//! as many times shorter.
//!
//! **Problem.** Each request also looks into the sets of what its client and those before it hold, and what it finds there is
//! in no cache. **Idea.** Names come in runs; one word of a set is for 64 consecutive ones, so that it needs a few bits for each.

use super::LockName;
use super::name::{RUN, Run};
use super::table::MixBuild;
use crate::sync::HashMap;

/// As many tables as that in each shard of the server.
const TABLES: usize = 16;

/// Locks by name.
#[derive(Debug)]
pub(super) struct Index<V> {
    tables: Box<[HashMap<LockName, V, MixBuild>]>,
    len: usize,
}

impl<V> Default for Index<V> {
    fn default() -> Index<V> {
        Index { tables: (0..TABLES).map(|_| HashMap::default()).collect(), len: 0 }
    }
}

impl<V> Index<V> {
    /// The tables inside use the low and the highest bits.
    fn table(&self, name: &LockName) -> usize {
        (name.mixed() >> 40) as usize % TABLES
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, name: &LockName) -> Option<&V> {
        self.tables[self.table(name)].get(name)
    }

    pub(super) fn get_mut(&mut self, name: &LockName) -> Option<&mut V> {
        let table = self.table(name);
        self.tables[table].get_mut(name)
    }

    /// The value of `name`; a new one if there was none.
    pub(super) fn entry(&mut self, name: LockName) -> &mut V
    where
        V: Default,
    {
        let table = self.table(&name);
        let len = &mut self.len;
        self.tables[table].entry(name).or_insert_with(|| {
            *len += 1;
            V::default()
        })
    }

    pub(super) fn remove(&mut self, name: &LockName) -> Option<V> {
        let table = self.table(name);
        let removed = self.tables[table].remove(name);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// All, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&LockName, &V)> {
        self.tables.iter().flatten()
    }
}

/// A set of lock names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// By the number of the run, a bit for each name; none is 0.
    runs: HashMap<Run, u64, MixBuild>,
    len: usize,
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn contains(&self, name: &LockName) -> bool {
        let (run, at) = name.run();
        self.runs.get(&run).is_some_and(|word| word & 1 << at != 0)
    }

    pub(super) fn insert(&mut self, name: LockName) {
        let (run, at) = name.run();
        let word = self.runs.entry(run).or_default();
        self.len += usize::from(*word & 1 << at == 0);
        *word |= 1 << at;
    }

    pub(super) fn remove(&mut self, name: &LockName) {
        let (run, at) = name.run();
        let Some(word) = self.runs.get_mut(&run).filter(|word| **word & 1 << at != 0) else { return };
        *word &= !(1 << at);
        self.len -= 1;
        if *word == 0 {
            self.runs.remove(&run);
        }
    }

    /// All, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = LockName> {
        self.runs.iter().flat_map(|(run, word)| {
            (0..RUN).filter(move |at| word & 1 << at != 0).map(move |at| LockName::of_run(*run, at))
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::format::Ino;
    use proptest::prelude::*;

    proptest! {
        /// A set, also of names in the same run and in runs of their own.
        #[test]
        fn behaves_as_a_set(ops in prop::collection::vec((any::<bool>(), 0..200u64, any::<bool>()), 0..400)) {
            let (mut names, mut model) = (Names::default(), std::collections::BTreeSet::new());
            for (insert, n, far) in ops {
                let name = LockName::inode(Ino((n * 1024) << (20 * u32::from(far))));
                if insert {
                    names.insert(name);
                    model.insert(name);
                } else {
                    names.remove(&name);
                    model.remove(&name);
                }
                prop_assert_eq!((names.contains(&name), names.len()), (model.contains(&name), model.len()));
            }
            let mut all: Vec<_> = names.iter().collect();
            all.sort_unstable();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }

        /// The same as one table.
        #[test]
        fn behaves_as_a_map(ops in prop::collection::vec((0..4u8, 0..300u64, any::<u32>()), 0..400)) {
            let (mut index, mut model) = (Index::<u32>::default(), std::collections::BTreeMap::new());
            for (op, n, value) in ops {
                let name = LockName::inode(Ino(n * 1024));
                match op {
                    0 => {
                        *index.entry(name) = value;
                        model.insert(name, value);
                    }
                    1 => prop_assert_eq!(index.remove(&name), model.remove(&name)),
                    2 => prop_assert_eq!(index.get_mut(&name), model.get_mut(&name)),
                    _ => prop_assert_eq!(index.get(&name), model.get(&name)),
                }
                prop_assert_eq!(index.len(), model.len());
            }
            let mut all: Vec<_> = index.iter().map(|(n, v)| (*n, *v)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
