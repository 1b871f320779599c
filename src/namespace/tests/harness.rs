//! One or more mounts with a real server over memory devices, without election and without file contents.

use std::net::SocketAddr;
use std::time::Duration;

use crate::VolumeOptions;
use crate::block::BlockStore;
use crate::client::{Node, NodeConfig};
use crate::device::{BlockDevice, FlushTracker, MemDevice};
use crate::error::Result;
use crate::item::ItemLock;
use crate::namespace::{FileData, Inode, Namespace, NamespaceOptions, Removal};
use crate::net::{ClientConn, ClientConnConfig, MemTransport};
use crate::offline::{MkfsOptions, QuorumSlot, mkfs};
use crate::quorum::ServerStart;
use crate::server::{ConfirmFencing, Server, ServerConfig, ServerHandle, read_super};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};
use crate::txn::{CommitCtx, CommitHook, Hold};

/// Keeps no contents.
pub(super) struct NoData;

impl FileData for NoData {
    fn before_resize(&self, _: &Namespace, _: &Arc<Inode>, _: &ItemLock, _: u64) -> Result<()> {
        Ok(())
    }
    fn resized(&self, _: &Arc<Inode>, _: &ItemLock, _: &Hold<'_>, _: u64, _: u64) {}
    fn plan_removal(&self, _: &Arc<Inode>, _: &ItemLock, _: &Hold<'_>, _: u64) -> Result<Removal> {
        Ok(Removal::default())
    }
    fn removed(&self, _: &Arc<Inode>, _: &Hold<'_>, _: u64) {}
}

impl CommitHook for NoData {
    fn is_dirty(&self) -> bool {
        false
    }
    fn prepare(&self, _: &CommitCtx<'_>) -> Result<()> {
        Ok(())
    }
    fn wait(&self) -> Result<bool> {
        Ok(false)
    }
    fn committed(&self) {}
}

/// A volume with its server.
pub(super) struct Cluster {
    meta: Arc<dyn BlockDevice>,
    data: Arc<dyn BlockDevice>,
    transport: Arc<MemTransport>,
    addr: SocketAddr,
    term: AtomicU64,
    next_rid: AtomicU64,
    server: Mutex<Option<ServerHandle>>,
    fsid: u64,
    fmt_vers: u64,
}

/// One mount of it.
pub(super) struct TestMount {
    pub(super) ns: Arc<Namespace>,
    pub(super) node: Arc<Node>,
}

impl Cluster {
    pub(super) fn new() -> Arc<Cluster> {
        Cluster::with_version(2)
    }

    pub(super) fn with_version(fmt_vers: u64) -> Arc<Cluster> {
        Cluster::with_size(fmt_vers, 256 << 20)
    }

    /// With so many bytes of metadata.
    pub(super) fn with_size(fmt_vers: u64, meta_bytes: u64) -> Arc<Cluster> {
        // RUST_LOG shows what happens when a test fails.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let meta: Arc<dyn BlockDevice> = MemDevice::new(meta_bytes);
        let data: Arc<dyn BlockDevice> = MemDevice::new(256 << 20);
        let addr: SocketAddr = "127.0.0.1:20000".parse().unwrap();
        let SocketAddr::V4(slot) = addr else { unreachable!() };
        let options = MkfsOptions {
            format_version: fmt_vers,
            quorum_slots: vec![QuorumSlot { nr: 0, addr: slot }],
            allow_small: true,
            ..MkfsOptions::default()
        };
        mkfs(&*meta, &*data, &options).unwrap();
        let sb = read_super(&*meta).unwrap();
        let cluster = Arc::new(Cluster {
            meta,
            data,
            transport: MemTransport::new(),
            addr,
            term: AtomicU64::new(1),
            next_rid: AtomicU64::new(0x1000),
            server: Mutex::new(None),
            fsid: sb.hdr.fsid.get(),
            fmt_vers,
        });
        cluster.start_server();
        cluster
    }

    fn store(&self) -> Arc<BlockStore> {
        BlockStore::new(self.meta.clone(), self.fsid, 64 << 20)
    }

    fn start_server(&self) {
        let term = self.term.fetch_add(1, Ordering::Relaxed) + 1;
        let config = ServerConfig {
            store: self.store(),
            data_dev: Some(self.data.clone()),
            flush_data: false,
            private: false,
            only_mount: None,
            transport: self.transport.clone(),
            addr: self.addr,
            fencer: Arc::new(ConfirmFencing),
            merge_wait: Duration::from_millis(100),
            reconnect_wait: Duration::from_secs(20),
            on_change: Arc::new(|| {}),
        };
        *self.server.lock() = Some(
            Server::start(config, ServerStart { term, fence: Vec::new(), has_stopped: Arc::new(|_| false) }).unwrap(),
        );
    }

    pub(super) fn mount(self: &Arc<Self>) -> TestMount {
        self.mount_with(VolumeOptions::default())
    }

    pub(super) fn mount_with(self: &Arc<Self>, options: VolumeOptions) -> TestMount {
        let rid = self.next_rid.fetch_add(1, Ordering::Relaxed);
        let config = NodeConfig {
            store: self.store(),
            data_dev: FlushTracker::new(self.data.clone()),
            rid,
            fmt_vers: self.fmt_vers,
            private: false,
            options: &options,
        };
        let cluster = self.clone();
        let node = Node::new(config, |inbox| {
            let term_of = cluster.clone();
            Ok(ClientConn::start(ClientConnConfig {
                rid,
                fsid: cluster.fsid,
                fmt_vers: cluster.fmt_vers,
                quorum_member: true,
                flushes: true,
                transport: cluster.transport.clone(),
                find_server: Box::new(move || Ok((term_of.addr, term_of.term.load(Ordering::Relaxed)))),
                is_still_mounted: Box::new(|| Ok(true)),
                watch_leader: false,
                handler: inbox.clone(),
            })?)
        })
        .unwrap();
        let data = Arc::new(NoData);
        let ns = Namespace::new(node.clone(), data.clone(), NamespaceOptions::default());
        node.open(&(data as Arc<dyn CommitHook>)).unwrap();
        TestMount { ns, node }
    }
}

impl TestMount {
    pub(super) fn unmount(self) {
        self.ns.close();
        self.node.leave().unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(server) = self.server.lock().take() {
            server.stop();
        }
    }
}
