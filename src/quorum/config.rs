//! The quorum slots of a volume (`spec/05 §3.1`).

use std::net::{Ipv4Addr, SocketAddr};

use crate::error::{Error, Result};
use crate::format::consts::{AF_IPV4, QUORUM_SLOTS};
use crate::format::layout::QuorumConfig;

/// Address of a slot; `None` if the slot is not present. Only IPv4 exists.
pub(crate) fn slot_addr(config: &QuorumConfig, slot: usize) -> Option<SocketAddr> {
    let addr = config.slots.get(slot)?;
    (addr.family.get() == AF_IPV4).then(|| (Ipv4Addr::from_bits(addr.addr.get()), addr.port.get()).into())
}

/// The present slots, ascending, with their addresses.
pub(crate) fn present_slots(config: &QuorumConfig) -> impl Iterator<Item = (usize, SocketAddr)> + '_ {
    (0..QUORUM_SLOTS).filter_map(|slot| Some((slot, slot_addr(config, slot)?)))
}

/// Votes that make a leader: 1 for one or two present slots, else a majority.
pub(crate) fn votes_needed(config: &QuorumConfig) -> usize {
    match present_slots(config).count() {
        0..=2 => 1,
        present => present / 2 + 1,
    }
}

/// Checks the configuration as a mount must. `own`: the slot this mount is a member with.
pub(crate) fn validate_config(config: &QuorumConfig, own: Option<usize>) -> Result<()> {
    let slots = present_slots(config).collect::<Vec<_>>();
    if slots.is_empty() {
        return Err(Error::invalid("the volume has no quorum slot"));
    }
    if let Some(own) = own.filter(|own| slots.iter().all(|(slot, _)| slot != own)) {
        return Err(Error::invalid(format!("the volume has no quorum slot {own}")));
    }
    for (i, (slot, addr)) in slots.iter().enumerate() {
        let ip = match addr.ip() {
            std::net::IpAddr::V4(ip) => ip,
            std::net::IpAddr::V6(_) => continue,
        };
        if ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0 || matches!(addr.port(), 0 | u16::MAX) {
            return Err(Error::invalid(format!("quorum slot {slot} has the impossible address {addr}")));
        }
        if let Some((other, _)) = slots[..i].iter().find(|(_, a)| a == addr) {
            return Err(Error::invalid(format!("quorum slots {other} and {slot} both have the address {addr}")));
        }
    }
    Ok(())
}
