//! Quorum slots and sizes as people write them.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use zerocopy::FromZeros;

use crate::error::{Error, Result};
use crate::format::consts::{AF_IPV4, QUORUM_SLOTS};
use crate::format::layout::{InetAddr, QuorumConfig};

/// One configured quorum slot: the address where the member on this slot listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuorumSlot {
    /// Number of the slot, 0 to 14.
    pub nr: u8,
    /// Address and port, both for elections (UDP) and for the server (TCP).
    pub addr: SocketAddrV4,
}

impl QuorumSlot {
    /// Refuses what a member refuses at mount: the original's tool accepts some of it (`spec/01 §7.1`, `§18.1`).
    pub fn check(&self) -> Result<()> {
        let bad = |why: &str| Err(Error::invalid(format!("quorum slot {self}: {why}")));
        let (ip, port) = (self.addr.ip(), self.addr.port());
        if usize::from(self.nr) >= QUORUM_SLOTS {
            return bad("slot numbers are 0 to 14");
        }
        if ip.octets()[0] == 0 || ip.is_multicast() || *ip == Ipv4Addr::BROADCAST {
            return bad("the address is not one of a single host");
        }
        if port == 0 || port == u16::MAX {
            return bad("ports are 1 to 65534");
        }
        Ok(())
    }

    /// The stored form.
    pub fn to_stored(&self) -> InetAddr {
        InetAddr {
            family: AF_IPV4.into(),
            port: self.addr.port().into(),
            addr: u32::from(*self.addr.ip()).into(),
            pad: [0; 24],
        }
    }

    /// The configured slots of a volume. Slots with another family than IPv4 are not configured.
    pub fn list(config: &QuorumConfig) -> Vec<QuorumSlot> {
        let slots = config.slots.iter().enumerate().filter(|(_, s)| s.family.get() == AF_IPV4);
        slots
            .map(|(nr, s)| QuorumSlot { nr: nr as u8, addr: SocketAddrV4::new(s.addr.get().into(), s.port.get()) })
            .collect()
    }
}

impl fmt::Display for QuorumSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.nr, self.addr.ip(), self.addr.port())
    }
}

impl FromStr for QuorumSlot {
    type Err = Error;

    /// Parses `NR,ADDR,PORT` and checks it.
    fn from_str(s: &str) -> Result<QuorumSlot> {
        let bad = || Error::invalid(format!("'{s}' is not a quorum slot: NR,ADDR,PORT, for example 0,127.0.0.1,42000"));
        let mut parts = s.split(',');
        let mut next = || parts.next().filter(|p| !p.starts_with('+')).ok_or_else(bad);
        let nr = next()?.parse().map_err(|_| bad())?;
        let ip = next()?.parse().map_err(|_| bad())?;
        let port = next()?.parse().map_err(|_| bad())?;
        if parts.next().is_some() {
            return Err(bad());
        }
        let slot = QuorumSlot { nr, addr: SocketAddrV4::new(ip, port) };
        slot.check()?;
        Ok(slot)
    }
}

/// The stored configuration with these slots; at least one, no slot and no address twice.
pub(super) fn quorum_config(version: u64, slots: &[QuorumSlot]) -> Result<QuorumConfig> {
    if slots.is_empty() {
        return Err(Error::invalid("at least one quorum slot is needed"));
    }
    let mut config = QuorumConfig::new_zeroed();
    config.version.set(version);
    for (i, slot) in slots.iter().enumerate() {
        slot.check()?;
        if slots[..i].iter().any(|other| other.nr == slot.nr) {
            return Err(Error::invalid(format!("quorum slot {} is given twice", slot.nr)));
        }
        if slots[..i].iter().any(|other| other.addr == slot.addr) {
            return Err(Error::invalid(format!("two quorum slots have the address {}", slot.addr)));
        }
        config.slots[usize::from(slot.nr)] = slot.to_stored();
    }
    Ok(config)
}

/// Parses a size in bytes: an integer, optionally followed by one of `K M G T P` (powers of 1024) and nothing more.
pub fn parse_size(s: &str) -> Result<u64> {
    let bad = || Error::invalid(format!("'{s}' is not a size: an integer and perhaps one of K M G T P"));
    let (digits, shift) = match s.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (&s[..s.len() - 1], 10),
        Some(b'M') => (&s[..s.len() - 1], 20),
        Some(b'G') => (&s[..s.len() - 1], 30),
        Some(b'T') => (&s[..s.len() - 1], 40),
        Some(b'P') => (&s[..s.len() - 1], 50),
        _ => (s, 0),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let n: u64 = digits.parse().map_err(|_| bad())?;
    n.checked_mul(1 << shift).ok_or_else(bad)
}
