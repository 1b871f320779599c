//! Putting the rooms of a mount together, and taking them apart in order.
//!
//! Order of opening: both super blocks are read and checked before anything is written; then the election (if the mount is a
//! member), the connection, the root inode, the first transaction, background work. Closing is the reverse (`spec/04 §7.9`,
//! `spec/05 §7.5`).

use std::net::SocketAddr;

use super::Environment;
use super::watch::{Watch, Watched};
use crate::block::BlockStore;
use crate::client::snapshot::SnapshotLink;
use crate::client::{CacheListener, Inbox, Node, NodeConfig, ServerLink};
use crate::data::{Data, DataParts};
use crate::device::{BlockDevice, FlushGuard, FlushTracker};
use crate::error::{Errno, Error, Result};
use crate::format::check::{self, DeviceRole};
use crate::format::consts::{SMALL_BYTES, SUPER_BLKNO};
use crate::format::layout::SuperBlock;
use crate::format::{Rid, keys};
use crate::lock::{LockName, Mode};
use crate::namespace::{Namespace, NamespaceOptions};
use crate::net::{ClientConn, ClientConnConfig, MemTransport, RECONNECT_WAIT, Transport};
use crate::options::VolumeOptions;
use crate::quorum::{self, MemberConfig, QuorumDisk, QuorumMember};
use crate::server::{ConfirmFencing, Fencer, LocalServer, RefuseFencing, ServerConfig};
use crate::sync::{Arc, OnceLock, Weak, random};
use crate::txn::CommitHook;

/// A mount with all its rooms.
pub(super) struct Mounted {
    pub(super) ns: Arc<Namespace>,
    pub(super) data: Arc<Data>,
    pub(super) node: Arc<Node>,
    pub(super) member: Option<Arc<QuorumMember>>,
    /// The member's server, for a look at it.
    pub(super) server: Weak<LocalServer>,
    /// The present quorum slots.
    pub(super) slots: Vec<(usize, SocketAddr)>,
    /// Empty for a read-only mount, which has no server.
    pub(super) conn: Arc<OnceLock<Weak<ClientConn>>>,
    closed: bool,
    /// Of a mount that writes.
    watch: Option<Watch>,
    /// Last, so that it goes after everything that may write.
    mark: Option<Mark>,
}

/// The checked super blocks of the two devices.
fn read_supers(meta: &dyn BlockDevice, data: &dyn BlockDevice) -> Result<SuperBlock> {
    let mut found = Vec::new();
    for (dev, role) in [(meta, DeviceRole::Meta), (data, DeviceRole::Data)] {
        let at = SUPER_BLKNO * SMALL_BYTES as u64;
        if dev.size() < at + SMALL_BYTES as u64 {
            return Err(Error::invalid(format!("{} is too small to hold a super block", dev.name())));
        }
        let mut block = vec![0; SMALL_BYTES];
        dev.read_at(at, &mut block)?;
        let sb: SuperBlock = match (check::decode_super(&block, &dev.name()), role) {
            // The server role repairs a torn super block from its shadow; until then the mount reads the shadow too.
            (Err(_), DeviceRole::Meta) => *crate::server::read_super(dev)?,
            (sb, _) => sb?,
        };
        check::validate_super(&sb, role, dev.size())?;
        found.push(sb);
    }
    check::validate_super_pair(&found[0], &found[1])?;
    Ok(found[0])
}

fn random_rid() -> u64 {
    loop {
        let rid = random();
        if rid != 0 && rid != u64::MAX {
            return rid;
        }
    }
}

impl Mounted {
    pub(super) fn open(
        meta: Arc<dyn BlockDevice>,
        data_dev: Arc<dyn BlockDevice>,
        options: &VolumeOptions,
        environment: Environment,
    ) -> Result<Mounted> {
        let sb = read_supers(&*meta, &*data_dev)?;
        if !options.read_only && (meta.read_only() || data_dev.read_only()) {
            return Err(Error::Posix(Errno::EROFS));
        }
        let fsid = sb.hdr.fsid.get();
        let rid = random_rid();
        // Nobody but this mount reaches a server on a network of our own.
        let private = environment.transport.is_none();
        let devices = [FlushGuard::new(meta), FlushGuard::new(data_dev)];
        let [meta, raw_data]: [Arc<dyn BlockDevice>; 2] = [devices[0].clone(), devices[1].clone()];
        let data_dev = FlushTracker::new(raw_data.clone());
        let store = BlockStore::new(meta.clone(), fsid, options.block_cache_bytes);
        let fmt_vers = sb.fmt_vers.get();
        let config = NodeConfig { store: store.clone(), data_dev: data_dev.clone(), rid, fmt_vers, private, options };
        let (mut member, mut server, mut mark) = (None, Weak::new(), None);
        let conn = Arc::default();
        let node = if options.read_only {
            Node::new(config, |inbox| {
                Ok(SnapshotLink::start(store.clone(), meta.size(), inbox.clone())? as Arc<dyn ServerLink>)
            })?
        } else {
            let conn = Arc::clone(&conn);
            // A server that others reach flushes what they wrote, of which this side knows nothing.
            let server_data: Arc<dyn BlockDevice> = if private { data_dev } else { raw_data };
            let shared = !private;
            let network =
                Network { store: &store, meta: &meta, data_dev: &server_data, sb: &sb, rid, options, shared, conn };
            network.check()?;
            let fencer: Arc<dyn Fencer> = match environment.fencer {
                Some(fencer) => fencer,
                // Nobody else can be on a network of our own; on a shared one that must never be assumed.
                None if private => Arc::new(ConfirmFencing),
                None => Arc::new(RefuseFencing),
            };
            let transport = environment.transport.unwrap_or_else(|| MemTransport::new());
            fencer.mounted(Rid(rid))?;
            mark = Some(Mark { fencer: fencer.clone(), rid: Rid(rid), clean: false });
            if let Some((started, its_server)) = network.join_quorum(&transport, fencer)? {
                (member, server) = (Some(started), its_server);
            }
            Node::new(config, |inbox| network.connect(transport, inbox))?
        };
        let watch = if options.read_only {
            None
        } else {
            let member = member.as_ref().filter(|_| private).map(Arc::downgrade);
            Some(Watch::start(&node, Watched { devices, member, server: server.clone(), conn: conn.clone() })?)
        };
        let opened = Mounted::build(node.clone(), options);
        match opened {
            Ok((ns, data)) => {
                let slots = quorum::present_slots(&sb.qconf).collect();
                Ok(Mounted { ns, data, node, member, server, slots, conn, closed: false, mark, watch })
            }
            Err(e) => {
                let e = node.reason(e);
                // A mount that fails half way says farewell, so that nobody has to fence it.
                let left = node.leave();
                let quit = member.map_or(Ok(()), |member| member.leave());
                if let Some(mark) = &mut mark {
                    mark.clean = left.and(quit).is_ok();
                }
                Err(e)
            }
        }
    }

    /// Replaces "the mount is over" by the reason, if it has ended by itself.
    pub(super) fn tell<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| self.node.reason(e))
    }

    /// The rooms above the node; the first lock and the first transaction wait for a server.
    fn build(node: Arc<Node>, options: &VolumeOptions) -> Result<(Arc<Namespace>, Arc<Data>)> {
        let data = Data::new(DataParts {
            items: node.items.clone(),
            txn: node.txn.clone(),
            data_dev: node.data_dev.clone(),
            read_only: options.read_only,
            cache_bytes: options.data_cache_bytes,
            dirty_bytes: options.data_dirty_bytes,
            prealloc_blocks: options.data_prealloc_blocks,
            prealloc_contig_only: options.data_prealloc_contig_only,
        })?;
        let caches = NamespaceOptions { cached_inodes: options.cached_inodes, ..NamespaceOptions::default() };
        let ns = Namespace::new(node.clone(), data.clone(), caches);
        node.add_listener(Arc::new(Listener(Arc::downgrade(&data))));
        node.lock(LockName::inode(crate::format::Ino::ROOT), Mode::Read).map(drop)?;
        node.open(&(data.clone() as Arc<dyn CommitHook>))?;
        ns.getattr(crate::format::Ino::ROOT)?;
        let weak = Arc::downgrade(&ns);
        node.start_background(options, Arc::new(move || weak.upgrade().map_or(Ok(()), |ns| ns.tidy_up())))?;
        Ok((ns, data))
    }

    pub(super) fn close(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        self.node.stop_background();
        self.ns.close();
        let left = self.node.leave();
        self.data.close();
        drop(self.watch.take());
        let quit = self.member.take().map_or(Ok(()), |m| m.leave());
        let end = self.tell(left.and(quit));
        if let Some(mark) = &mut self.mark {
            mark.clean = end.is_ok();
        }
        end
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.node.close_forced();
            self.data.close();
            if let Some(member) = self.member.take() {
                member.abandon();
            }
        }
    }
}

/// Tells the fencer when the mount has ended; dropped after everything that may write.
struct Mark {
    fencer: Arc<dyn Fencer>,
    rid: Rid,
    clean: bool,
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.fencer.left(self.rid, self.clean);
    }
}

/// What a mount needs to know to meet the others.
struct Network<'a> {
    store: &'a Arc<BlockStore>,
    meta: &'a Arc<dyn BlockDevice>,
    data_dev: &'a Arc<dyn BlockDevice>,
    sb: &'a SuperBlock,
    rid: u64,
    options: &'a VolumeOptions,
    /// Other mounts may be on the network.
    shared: bool,
    /// The connection, once there is one, so that a server of our own can tell it that it is up.
    conn: Arc<OnceLock<Weak<ClientConn>>>,
}

impl Network<'_> {
    fn check(&self) -> Result<()> {
        quorum::validate_config(&self.sb.qconf, self.options.quorum_slot.map(usize::from))
    }

    fn disk(&self) -> Arc<QuorumDisk> {
        Arc::new(QuorumDisk::new(self.meta.clone(), self.sb.hdr.fsid.get()))
    }

    fn join_quorum(
        &self,
        transport: &Arc<dyn Transport>,
        fencer: Arc<dyn Fencer>,
    ) -> Result<Option<(Arc<QuorumMember>, Weak<LocalServer>)>> {
        let Some(slot) = self.options.quorum_slot.map(usize::from) else { return Ok(None) };
        let addr = quorum::slot_addr(&self.sb.qconf, slot).ok_or_else(|| Error::invalid("the slot is not present"))?;
        let member: Arc<OnceLock<Weak<QuorumMember>>> = Arc::default();
        let (changed, conn) = (member.clone(), self.conn.clone());
        let server = Arc::new(LocalServer::new(ServerConfig {
            store: self.store.clone(),
            data_dev: Some(self.data_dev.clone()),
            flush_data: true,
            private: !self.shared,
            only_mount: (!self.shared).then_some(self.rid),
            transport: transport.clone(),
            addr,
            fencer,
            merge_wait: self.options.log_merge_wait,
            reconnect_wait: RECONNECT_WAIT,
            on_change: Arc::new(move || {
                if let Some(member) = changed.get().and_then(Weak::upgrade) {
                    member.server_changed();
                }
                if let Some(conn) = conn.get().and_then(Weak::upgrade) {
                    conn.wake();
                }
            }),
        }));
        let started = QuorumMember::start(MemberConfig {
            fsid: self.sb.hdr.fsid.get(),
            rid: self.rid,
            slot,
            qconf: self.sb.qconf,
            heartbeat_timeout: self.options.heartbeat_timeout,
            transport: transport.clone(),
            disk: self.disk(),
            server: server.clone(),
        })?;
        let _ = member.set(Arc::downgrade(&started));
        // The server may have become ready before it knew whom to tell.
        started.server_changed();
        Ok(Some((started, Arc::downgrade(&server))))
    }

    fn connect(&self, transport: Arc<dyn Transport>, inbox: &Arc<Inbox>) -> Result<Arc<dyn ServerLink>> {
        let (disk, qconf) = (self.disk(), self.sb.qconf);
        let find_server = move || -> Result<(SocketAddr, u64)> { quorum::find_server(&qconf, &disk.read_all()) };
        let (store, rid) = (self.store.clone(), self.rid);
        let is_still_mounted = move || -> Result<bool> {
            let sb = check::decode_super(&store.read_small(SUPER_BLKNO)?[..], "metadata device")?;
            let reader = crate::btree::Reader::new(&store);
            let found = crate::btree::lookup(&reader, &sb.mounted_clients, &keys::mounted_client(Rid(rid)))?;
            Ok(found.is_some())
        };
        let conn = ClientConn::start(ClientConnConfig {
            rid: self.rid,
            fsid: self.sb.hdr.fsid.get(),
            fmt_vers: self.sb.fmt_vers.get(),
            quorum_member: self.options.quorum_slot.is_some(),
            flushes: self.shared,
            transport,
            find_server: Box::new(find_server),
            is_still_mounted: Box::new(is_still_mounted),
            watch_leader: self.shared,
            handler: inbox.clone(),
        })?;
        let _ = self.conn.set(Arc::downgrade(&conn));
        Ok(conn)
    }
}

/// Drops cached file contents when a lock goes. Cached inodes and names need nothing: they are valid only under the grant
/// under which they were read.
struct Listener(Weak<Data>);

impl CacheListener for Listener {
    fn revoked(&self, name: LockName, to: Mode) {
        if let Some(data) = self.0.upgrade() {
            data.revoked(name, to);
        }
    }
}
