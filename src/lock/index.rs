//! A hash table by lock name that grows in small steps.
//!
//! **Problem.** A table of a million locks that doubles moves all of them at once, which takes a fifth of a second, and whoever
//! asks for a lock meanwhile waits. **Idea.** Many small tables, each of which doubles at a time of its own: the longest step is
//! as many times shorter.

use super::LockName;
use super::table::MixBuild;
use crate::sync::HashMap;

/// As many tables as that: a million locks are four thousand in each.
const TABLES: usize = 256;

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

    pub(super) fn contains(&self, name: &LockName) -> bool {
        self.get(name).is_some()
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::format::Ino;
    use proptest::prelude::*;

    proptest! {
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
                    _ => prop_assert_eq!((index.get(&name), index.contains(&name)), (model.get(&name), model.contains_key(&name))),
                }
                prop_assert_eq!(index.len(), model.len());
            }
            let mut all: Vec<_> = index.iter().map(|(n, v)| (*n, *v)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
