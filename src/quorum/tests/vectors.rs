//! What the original's structures and functions give.

use serde_json::Value;
use zerocopy::IntoBytes;

use super::harness::*;
use crate::error::Errno;
use crate::format::check::validate_quorum_block;
use crate::format::layout::QuorumBlock;
use crate::quorum::blocks::{QuorumEvent, SlotBlocks, encode, fresh};
use crate::quorum::config::votes_needed;
use crate::quorum::farewell::{MountedState, farewells_to_answer};
use crate::quorum::message::{Message, MessageKind};
use crate::quorum::scan::{find_server, leaders_to_fence};
use crate::quorum::slot_addr;

fn load(name: &str) -> Vec<Value> {
    let path = format!("{}/tests/data/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).expect("a vector file")).expect("valid JSON")
}

fn number(value: &Value) -> u64 {
    match value {
        Value::String(s) => {
            u64::from_str_radix(s.strip_prefix("0x").expect("strings are hexadecimal"), 16).expect("a number")
        }
        other => other.as_u64().expect("a number"),
    }
}

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().expect("a list").iter().map(number).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn datagrams_are_the_originals() {
    let all = config(&(0..15).collect::<Vec<_>>());
    let kinds = [
        ("request_vote", MessageKind::RequestVote),
        ("vote", MessageKind::Vote),
        ("heartbeat", MessageKind::Heartbeat),
        ("resignation", MessageKind::Resignation),
    ];
    for vector in load("net-quorum-udp") {
        let kind = kinds.iter().find(|(name, _)| vector["type"] == **name).expect("a known type").1;
        let (fsid, from, term) = (number(&vector["fsid"]), number(&vector["from"]) as u8, number(&vector["term"]));
        let message = Message { kind, from, term };
        let bytes = message.encode(fsid);
        assert_eq!(hex(&bytes), vector["hex"].as_str().unwrap());
        assert_eq!(Message::decode(&bytes, fsid, &all), Some(message));
        assert_eq!(Message::decode(&bytes, fsid ^ 1, &all), None);
        assert_eq!(Message::decode(&bytes[..31], fsid, &all), None);
        assert_eq!(Message::decode(&[&bytes[..], &[0]].concat(), fsid, &all), None);
        let absent = config(&(0..15).filter(|slot| *slot != usize::from(from)).collect::<Vec<_>>());
        assert_eq!(Message::decode(&bytes, fsid, &absent), None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Message::decode(&damaged, fsid, &all), None);
        }
    }
}

#[test]
fn blocks_are_the_originals() {
    let names = ["begin", "term", "elect", "fence", "stop", "end"];
    for vector in load("net-quorum-blocks") {
        let slot = number(&vector["slot"]) as usize;
        let mut block = fresh(FSID, slot);
        block.write_nr.set(number(&vector["write_nr"]));
        for event in vector["events"].as_array().unwrap() {
            let index = names.iter().position(|name| event["event"] == *name).unwrap();
            let to = &mut block.events[index];
            to.write_nr.set(number(&event["write_nr"]));
            to.rid.set(number(&event["rid"]));
            to.term.set(number(&event["term"]));
            to.ts.sec.set(number(&event["sec"]));
            to.ts.nsec.set(number(&event["nsec"]) as u32);
        }
        let bytes = encode(&block);
        assert_eq!(hex(&bytes[..280]), vector["first_280_bytes"].as_str().unwrap());
        assert!(bytes[280..].iter().all(|b| *b == 0) && bytes.len() == 4096);
        let read = validate_quorum_block(&bytes, FSID, slot).unwrap();
        assert_eq!(read.as_bytes()[4..], block.as_bytes()[4..]);
    }
}

fn scan_blocks(slots: &Value, present: &[usize]) -> SlotBlocks {
    let mut blocks = (0..15).map(|slot| fresh(FSID, slot)).collect::<Vec<QuorumBlock>>();
    for (slot, events) in present.iter().zip(slots.as_array().unwrap()) {
        for (name, what) in [("elect", QuorumEvent::Elect), ("fence", QuorumEvent::Fence), ("stop", QuorumEvent::Stop)]
        {
            let to = &mut blocks[*slot].events[what.index()];
            to.term.set(number(&events[name]["term"]));
            to.rid.set(number(&events[name]["rid"]));
        }
    }
    SlotBlocks(blocks.into_iter().map(Ok).collect())
}

#[test]
fn servers_and_victims_are_the_originals() {
    for vector in load("net-quorum-scan") {
        let present = numbers(&vector["present_slots"]).iter().map(|n| *n as usize).collect::<Vec<_>>();
        let config = config(&present);
        let blocks = scan_blocks(&vector["slots"], &present);
        match find_server(&config, &blocks) {
            Ok((addr, _)) => {
                let slot = number(&vector["server_slot"]) as usize;
                assert_eq!(Some(addr), slot_addr(&config, slot), "{vector}");
            }
            Err(error) => {
                assert!(error.is(Errno::ENOENT));
                assert!(vector["server_slot"].is_null(), "{vector}");
            }
        }
        let leaders =
            leaders_to_fence(&config, &blocks, number(&vector["our_rid"]), number(&vector["our_term"])).unwrap();
        let got = leaders.iter().map(|l| (l.slot as u64, l.rid)).collect::<Vec<_>>();
        let pair = |v: &Value| match v {
            Value::Array(pair) => (number(&pair[0]), number(&pair[1])),
            object => (number(&object["slot"]), number(&object["rid"])),
        };
        let want = vector["fence"].as_array().unwrap().iter().map(pair).collect::<Vec<_>>();
        assert_eq!(got, want, "{vector}");
    }
}

#[test]
fn farewells_are_answered_as_by_the_original() {
    for vector in load("net-farewell") {
        let mounted = vector["mounted"].as_array().unwrap().iter().map(|m| MountedState {
            rid: number(&m["rid"]),
            quorum: m["quorum"].as_bool().unwrap(),
            locks_pending: m["lock_recovery_pending"].as_bool().unwrap(),
        });
        let needed = number(&vector["votes_needed"]) as usize;
        let slots = (0..number(&vector["configured_slots"]) as usize).collect::<Vec<_>>();
        assert_eq!(votes_needed(&config(&slots)), needed, "{vector}");
        let farewells = numbers(&vector["farewell_requests_in_order"]);
        let mut answered = farewells_to_answer(&mounted.collect::<Vec<_>>(), &farewells, needed);
        answered.sort();
        assert_eq!(answered, numbers(&vector["answered"]), "{vector}");
    }
}
