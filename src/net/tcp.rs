//! Streams over TCP, datagrams over UDP (`spec/05 §4.1`).

use std::net::SocketAddr;
use std::time::Duration;

use super::transport::{Datagrams, Listener, Stream, Transport};
use crate::error::Result;
use crate::sync::Arc;

/// Options of [`TcpTransport`].
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Silence that breaks a connection, at least 4 s (mount option `tcp_keepalive_timeout_ms`).
    pub keepalive_timeout: Duration,
}

/// The kernel's network.
pub struct TcpTransport {}

impl TcpTransport {
    /// A transport with these options.
    pub fn new(_options: TcpOptions) -> Result<Arc<TcpTransport>> {
        todo!()
    }
}

impl Transport for TcpTransport {
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
