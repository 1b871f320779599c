//! A network inside the process.

use std::net::SocketAddr;
use std::time::Duration;

use super::transport::{Datagrams, Listener, Stream, Transport};
use crate::error::Result;
use crate::sync::Arc;

/// All addresses of one in-process network. Clones of the `Arc` share it.
pub struct MemTransport {}

impl MemTransport {
    /// An empty network.
    pub fn new() -> Arc<MemTransport> {
        todo!()
    }
}

impl Transport for MemTransport {
    fn listen(&self, _addr: SocketAddr) -> Result<Arc<dyn Listener>> {
        todo!()
    }

    fn connect(&self, _addr: SocketAddr, _timeout: Duration) -> Result<Arc<dyn Stream>> {
        todo!()
    }

    fn datagrams(&self, _addr: SocketAddr) -> Result<Arc<dyn Datagrams>> {
        todo!()
    }
}
