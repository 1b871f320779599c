//! The front end of a client: what it was lent it shows, and lets others change, without a use of the lock.

use super::*;

/// What the front end of a client keeps of the item, without using the lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) value: u64,
    pub(super) writable: bool,
    /// Changes that the client does not know of yet.
    pub(super) dirty: u64,
}

impl Client {
    /// What a program stored into a page reaches the client.
    pub(super) fn writes_back(&mut self, name: LockName) {
        let stored = self.pages.get_mut(&name).map_or(0, |p| std::mem::take(&mut p.dirty));
        let cache = self.cache.entry(name).or_default();
        cache.dirty += stored;
        cache.known = cache.known.map(|v| v + stored);
    }
}

impl Sim {
    /// A program stores into a page that the front end was lent for that. Nobody is told.
    pub(super) fn stores(&mut self, i: usize) {
        let rid = self.clients[i].rid;
        let writable = self.clients[i].pages.iter_mut().find(|(_, p)| p.writable);
        let Some((name, page)) = writable else { return };
        page.value += 1;
        page.dirty += 1;
        *self.total.get_mut(name).unwrap() += 1;
        let text = format!("{rid} stores into a page of {name}");
        self.note(text);
    }

    /// A task that waits for a loan loses its patience.
    pub(super) fn insists(&mut self, i: usize) {
        let c = &mut self.clients[i];
        let Some((&task, &(name, mode))) = c.waiting.iter().find(|(t, _)| c.takers.contains(t)) else { return };
        let rid = c.rid;
        if c.node.insist(task, name) {
            c.waiting.remove(&task);
            self.note(format!("{rid} task {task} insists on {name} {mode}"));
            self.starts_using(i, task, name, mode);
        }
        self.drain(i);
    }
}
