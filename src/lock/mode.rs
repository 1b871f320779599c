//! Lock modes and the three tables that everything else follows from (`spec/04 §2`).
//!
//! 1. A mode *serves* a wish when a task that wants the latter may work under the former; the relation is directional
//!    and write does not serve write-only.
//! 2. A granted entry is *compatible* with a requested one by a table that has an own column for the same client; kernel
//!    clients rely on seeing an invalidation in exactly the cells that say no.
//! 3. A conflict between a granted write and a requested read asks for read, every other conflict for null.

use std::fmt;

/// What a holder of a lock may do with the items of its range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Nothing; the server keeps no record of it.
    #[default]
    Null = 0,
    /// Read items; shared with other readers.
    Read = 1,
    /// Read and change items; exclusive.
    Write = 2,
    /// Change items without ever reading them; shared with other blind writers.
    WriteOnly = 3,
}

impl Mode {
    /// All modes, by value.
    #[cfg(test)]
    pub(crate) const ALL: [Mode; 4] = [Mode::Null, Mode::Read, Mode::Write, Mode::WriteOnly];

    /// The mode with this value on the wire; `None` for values that no mode has.
    pub(crate) const fn from_wire(value: u8) -> Option<Mode> {
        match value {
            0 => Some(Mode::Null),
            1 => Some(Mode::Read),
            2 => Some(Mode::Write),
            3 => Some(Mode::WriteOnly),
            _ => None,
        }
    }

    /// The value on the wire.
    pub(crate) const fn wire(self) -> u8 {
        self as u8
    }

    /// May a task that wants `wanted` work under this granted mode?
    pub(crate) const fn serves(self, wanted: Mode) -> bool {
        matches!(
            (self, wanted),
            (Mode::Null, Mode::Null)
                | (Mode::Read | Mode::Write, Mode::Read)
                | (Mode::Write, Mode::Write)
                | (Mode::WriteOnly, Mode::WriteOnly)
        )
    }

    /// Can items be read under this mode?
    pub(crate) const fn reads(self) -> bool {
        matches!(self, Mode::Read | Mode::Write)
    }

    /// Can items be changed under this mode?
    pub(crate) const fn writes(self) -> bool {
        matches!(self, Mode::Write | Mode::WriteOnly)
    }

    /// May the server grant `wanted` while this mode is granted, to the same client or to another one?
    pub(crate) const fn compatible(self, wanted: Mode, same_client: bool) -> bool {
        match (self, wanted) {
            (Mode::Read, Mode::Read) | (Mode::WriteOnly, Mode::WriteOnly) => true,
            (Mode::Read, Mode::Write) => same_client,
            (Mode::Null, _) | (_, Mode::Null) => !same_client,
            _ => false,
        }
    }

    /// The mode that a holder of this mode is asked to go down to because of a conflicting request for `wanted`.
    pub(crate) const fn invalidation_target(self, wanted: Mode) -> Mode {
        match (self, wanted) {
            (Mode::Write, Mode::Read) => Mode::Read,
            _ => Mode::Null,
        }
    }

    /// The greatest mode that is neither above this one nor above `target`: lowering never raises (`spec/04` W-4).
    pub(crate) const fn lowered_to(self, target: Mode) -> Mode {
        match (self, target) {
            (Mode::Write | Mode::Read, Mode::Read) | (Mode::Read, Mode::Write) => Mode::Read,
            (Mode::Write, Mode::Write) => Mode::Write,
            (Mode::WriteOnly, Mode::WriteOnly) => Mode::WriteOnly,
            _ => Mode::Null,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Null => "null",
            Mode::Read => "read",
            Mode::Write => "write",
            Mode::WriteOnly => "write_only",
        })
    }
}
