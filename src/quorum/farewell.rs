//! Who may leave (`spec/05 §5.10`).
//!
//! Members that are needed for a majority cannot leave while others are mounted; the last majority leaves together.

/// A mounted client as far as farewells are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MountedState {
    /// The mount.
    pub(crate) rid: u64,
    /// QUORUM flag of its mounted client item.
    pub(crate) quorum: bool,
    /// Has it still to recover its locks?
    pub(crate) locks_pending: bool,
}

/// Which of the farewells can be answered now (after reclaiming the rid), in the order in which they asked.
pub(crate) fn farewells_to_answer(mounted: &[MountedState], farewells: &[u64], votes_needed: usize) -> Vec<u64> {
    let find = |rid: u64| mounted.iter().find(|m| m.rid == rid);
    let is_member = |rid: u64| find(rid).is_some_and(|m| m.quorum);
    let mut members = mounted.iter().filter(|m| m.quorum).count();
    let leaving_others = farewells.iter().filter(|rid| find(**rid).is_some_and(|m| !m.quorum)).count();
    let others = mounted.len() - members - leaving_others;
    let mut asking = farewells.iter().filter(|rid| is_member(**rid)).count();
    let mut answer = Vec::new();
    for rid in farewells.iter().copied() {
        if is_member(rid) {
            if members <= votes_needed && !(asking == members && others == 0) {
                continue;
            }
            members -= 1;
            asking -= 1;
        }
        if find(rid).is_none_or(|m| !m.locks_pending) {
            answer.push(rid);
        }
    }
    answer
}
