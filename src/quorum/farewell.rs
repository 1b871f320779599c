//! Who may leave (`spec/05 §5.10`).

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
pub(crate) fn farewells_to_answer(_mounted: &[MountedState], _farewells: &[u64], _votes_needed: usize) -> Vec<u64> {
    todo!()
}
