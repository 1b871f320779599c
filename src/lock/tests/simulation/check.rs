//! What must hold after every step.

use super::*;

impl Sim {
    /// S-1 to S-4, S-7 of what front ends keep, S-13, S-17.
    pub(super) fn check(&mut self) {
        for &n in &self.names {
            for (i, c) in self.clients.iter().enumerate() {
                for d in &self.clients[i + 1..] {
                    let (a, b) = (c.node.eff(n), d.node.eff(n));
                    assert!(exclusive(a, b), "S-1: {} has {a}, {} has {b} on {n}", c.rid, d.rid);
                }
                let (eff, held) = (c.node.eff(n), c.node.held(n));
                assert!(at_most(eff, held), "S-2: effective {eff} held {held}");
                let recorded = self.recorded.get(&(c.rid, n)).copied().unwrap_or_default();
                assert_eq!(self.server.mode_of(c.rid, n), recorded, "the server's record");
                let queued = c.node.locks.get(&n).is_some_and(|l| l.machine.load().1 > 0);
                if self.pending.is_empty() && c.term == self.term && !queued {
                    assert!(at_most(held, recorded), "S-2: {} holds {held}, the server has {recorded}", c.rid);
                }
                if let Some(floor) = c.floor.get(&n) {
                    assert!(at_most(eff, *floor), "S-17: the mode rose without a grant");
                }
                if let Some(page) = c.pages.get(&n) {
                    assert!(
                        eff.serves(if page.writable { Mode::Write } else { Mode::Read }),
                        "{page:?} lent under {eff}"
                    );
                    assert_eq!(page.value, self.total[&n], "S-7: a stale page of {n} at {}", c.rid);
                }
                let dirty = c.cache.get(&n).is_some_and(|k| k.dirty > 0);
                assert!(c.dead || !dirty || held.writes(), "S-4: dirty under {held}");
                if let Some(l) = c.node.locks.get(&n) {
                    let v = l.hot.word.load();
                    for m in [Mode::Read, Mode::Write, Mode::WriteOnly] {
                        let users = c.using.values().filter(|u| **u == (n, m)).count() as u64;
                        assert_eq!(v.users(m), users, "S-3: users of {m}");
                        assert!(users == 0 || eff.serves(m), "S-3: {m} used under {eff}");
                    }
                }
            }
        }
        for c in &mut self.clients {
            for &n in &self.names {
                let now = c.node.eff(n).reads();
                let generation = c.node.generation(n);
                let (before, last) = c.readable.get(&n).copied().unwrap_or_default();
                if now {
                    assert!(generation > 0 && generation >= last, "S-13: {generation} after {last}");
                    assert!(before || generation > last, "S-13: readable again with an old generation");
                }
                c.readable.insert(n, (now, last.max(generation)));
            }
        }
    }
}
