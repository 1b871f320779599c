//! The commands of the protocol, who may send them, and how long their payloads are (`spec/05 §2.7`).

use std::mem::size_of;

use crate::format::layout::{
    LogMergeComplete, LogMergeRequest, LogTrees, NetGreeting, NetInodeAlloc, NetLock, NetLockRecoverHead,
    NetResizeDevices, NetRoots, NetStatfs, OpenInoMap, OpenInoMapArgs, SrchCompact, StoredKey, VolumeOptionValues,
};

/// Greatest payload of a message.
pub(crate) const MAX_PAYLOAD: usize = 1100;

/// Most locks in one LOCK_RECOVER response.
pub(crate) const MAX_RECOVER_LOCKS: usize = 22;

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $value:expr,)*) => {
        /// What a message is about.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub(crate) enum Command {
            $($(#[$doc])* $name = $value,)*
        }

        impl Command {
            /// All commands, in order of their numbers.
            pub(crate) const ALL: &'static [Command] = &[$(Command::$name,)*];
        }
    };
}

commands! {
    /// First message on every socket.
    Greeting = 0,
    /// A range of inode numbers.
    AllocInodes = 1,
    /// Opens a transaction.
    GetLogTrees = 2,
    /// Closes a transaction.
    CommitLogTrees = 3,
    /// Server asks for a commit.
    SyncLogTrees = 4,
    /// Roots of the readable trees.
    GetRoots = 5,
    /// The stable sequence number.
    GetLastSeq = 6,
    /// Client: lock request. Server: invalidation.
    Lock = 7,
    /// Server asks for the locks a client holds.
    LockRecover = 8,
    /// Work for search file compaction.
    SrchGetCompact = 9,
    /// Result of search file compaction.
    SrchCommitCompact = 10,
    /// Work for a log merge.
    GetLogMerge = 11,
    /// Result of a log merge.
    CommitLogMerge = 12,
    /// Which inodes of a group are in use.
    OpenInoMap = 13,
    /// Reads the volume options.
    GetVolopt = 14,
    /// Sets volume options.
    SetVolopt = 15,
    /// Clears volume options.
    ClearVolopt = 16,
    /// Grows the volume.
    ResizeDevices = 17,
    /// Free space.
    Statfs = 18,
    /// The client leaves.
    Farewell = 19,
}

/// What a wrong length of a request leads to (`spec/05 §4.6`, `§5.5`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WrongLength {
    /// The request is answered with EINVAL.
    Answer,
    /// The socket is broken.
    Break,
}

impl Command {
    /// The command with this number.
    pub(crate) fn from_wire(cmd: u8) -> Option<Command> {
        Command::ALL.get(usize::from(cmd)).copied()
    }

    /// May clients send this request to the server? Greetings are not requests in this sense.
    pub(crate) fn served_by_server(self) -> bool {
        !matches!(self, Command::Greeting | Command::SyncLogTrees | Command::LockRecover)
    }

    /// May the server send this request to clients?
    pub(crate) fn served_by_client(self) -> bool {
        matches!(self, Command::SyncLogTrees | Command::Lock | Command::LockRecover | Command::OpenInoMap)
    }

    /// Is this request answered whatever else its sender says? Of these, a sender may be made to wait with its next message
    /// until some are answered. The others wait for answers of clients, its own among them: holding it up would hold up what
    /// they wait for.
    pub(crate) fn is_answered_alone(self) -> bool {
        !matches!(
            self,
            Command::Greeting
                | Command::SyncLogTrees
                | Command::Lock
                | Command::LockRecover
                | Command::OpenInoMap
                | Command::Farewell
        )
    }

    /// Length of the request's payload.
    pub(crate) fn request_len(self) -> usize {
        match self {
            Command::Greeting => size_of::<NetGreeting>(),
            Command::AllocInodes => 8,
            Command::CommitLogTrees => size_of::<LogTrees>(),
            Command::Lock => size_of::<NetLock>(),
            Command::LockRecover => size_of::<StoredKey>(),
            Command::SrchCommitCompact => size_of::<SrchCompact>(),
            Command::CommitLogMerge => size_of::<LogMergeComplete>(),
            Command::OpenInoMap => size_of::<OpenInoMapArgs>(),
            Command::SetVolopt | Command::ClearVolopt => size_of::<VolumeOptionValues>(),
            Command::ResizeDevices => size_of::<NetResizeDevices>(),
            Command::GetLogTrees
            | Command::SyncLogTrees
            | Command::GetRoots
            | Command::GetLastSeq
            | Command::SrchGetCompact
            | Command::GetLogMerge
            | Command::GetVolopt
            | Command::Statfs
            | Command::Farewell => 0,
        }
    }

    /// Is this the length of a successful response?
    pub(crate) fn response_len_ok(self, len: usize) -> bool {
        let want = match self {
            Command::Greeting => size_of::<NetGreeting>(),
            Command::AllocInodes => size_of::<NetInodeAlloc>(),
            Command::GetLogTrees => size_of::<LogTrees>(),
            Command::GetRoots => size_of::<NetRoots>(),
            Command::GetLastSeq => 8,
            Command::Lock => size_of::<NetLock>(),
            Command::LockRecover => {
                let head = size_of::<NetLockRecoverHead>();
                let each = size_of::<NetLock>();
                return len >= head && (len - head).is_multiple_of(each) && (len - head) / each <= MAX_RECOVER_LOCKS;
            }
            Command::SrchGetCompact => size_of::<SrchCompact>(),
            Command::GetLogMerge => size_of::<LogMergeRequest>(),
            Command::OpenInoMap => size_of::<OpenInoMap>(),
            Command::GetVolopt => size_of::<VolumeOptionValues>(),
            Command::Statfs => size_of::<NetStatfs>(),
            Command::CommitLogTrees
            | Command::SyncLogTrees
            | Command::SrchCommitCompact
            | Command::CommitLogMerge
            | Command::SetVolopt
            | Command::ClearVolopt
            | Command::ResizeDevices
            | Command::Farewell => 0,
        };
        len == want
    }

    /// What a request with a wrong length leads to.
    pub(crate) fn on_wrong_length(self) -> WrongLength {
        match self {
            Command::Greeting
            | Command::Lock
            | Command::LockRecover
            | Command::SyncLogTrees
            | Command::GetLogMerge
            | Command::CommitLogMerge
            | Command::Farewell => WrongLength::Break,
            _ => WrongLength::Answer,
        }
    }
}
