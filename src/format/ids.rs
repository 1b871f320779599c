//! Number types: what a bare `u64` stands for, so that two kinds cannot be confused.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl From<u64> for $name {
            fn from(v: u64) -> $name {
                $name(v)
            }
        }
    };
}

number! {
    /// Number of a 64 KiB block of the metadata device; 0 is "none".
    MetaBlock
}
number! {
    /// Number of a 4 KiB block of the data device; 0 is "none".
    DataBlock
}
number! {
    /// Inode number; 0 is never valid, 1 is the root directory. Numbers are never reused.
    Ino
}
number! {
    /// A value of the volume's one sequence counter (`spec/02 §8.6`).
    Seq
}
number! {
    /// Random identity of one mount, from mount to unmount.
    Rid
}

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
}
