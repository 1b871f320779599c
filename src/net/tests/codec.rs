//! Frames that must be refused, and streams cut anywhere.

use proptest::prelude::*;

use crate::net::codec::{FrameReader, HEADER, Head, MAX_FRAME, Refusal, encode};
use crate::net::command::{Command, MAX_PAYLOAD};

fn frame(head: &Head, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, head, payload);
    bytes
}

fn head() -> Head {
    Head { seq: 1, recv_seq: 0, id: 1, cmd: Command::GetRoots, response: false, error: 0 }
}

/// Feeds bytes in pieces of the given lengths; how many frames came out, or why the stream was refused.
fn feed(bytes: &[u8], mut pieces: impl Iterator<Item = usize>) -> Result<Vec<(Head, Vec<u8>)>, Refusal> {
    let mut reader = FrameReader::new();
    let mut frames = Vec::new();
    let mut left = bytes;
    loop {
        while let Some(frame) = reader.next()? {
            frames.push((frame.head, frame.payload.to_vec()));
        }
        if left.is_empty() {
            return Ok(frames);
        }
        let space = reader.space();
        let n = pieces.next().unwrap_or(usize::MAX).clamp(1, left.len().min(space.len()));
        space[..n].copy_from_slice(&left[..n]);
        left = &left[n..];
        reader.filled(n);
    }
}

fn refused_with(change: impl FnOnce(&mut Vec<u8>)) -> Refusal {
    let mut bytes = frame(&head(), &[]);
    change(&mut bytes);
    feed(&bytes, std::iter::empty()).expect_err("must be refused")
}

#[test]
fn every_check_on_a_header_is_made() {
    assert_eq!(refused_with(|b| b[0] = 0), "sequence number 0");
    assert_eq!(refused_with(|b| b[16] = 0), "request number 0");
    assert_eq!(refused_with(|b| b[26] = 20), "unknown command");
    assert_eq!(refused_with(|b| b[27] = 2), "unknown flags");
    assert_eq!(refused_with(|b| b[27] = 0x81), "unknown flags");
    assert_eq!(refused_with(|b| (b[27], b[28]) = (1, 7)), "unknown error code");
    assert_eq!(refused_with(|b| b[28] = 5), "request with an error code");
    let long = (MAX_PAYLOAD as u16 + 1).to_le_bytes();
    assert_eq!(refused_with(|b| b[24..26].copy_from_slice(&long)), "payload too long");
}

#[test]
fn padding_is_ignored() {
    let mut bytes = frame(&head(), &[]);
    bytes[29..32].fill(0xff);
    assert_eq!(feed(&bytes, std::iter::empty()).unwrap(), vec![(head(), vec![])]);
}

#[test]
fn the_longest_frame_fits() {
    let bytes = frame(&head(), &[7; MAX_PAYLOAD]);
    assert_eq!(bytes.len(), MAX_FRAME);
    assert_eq!(feed(&bytes, std::iter::empty()).unwrap()[0].1.len(), MAX_PAYLOAD);
}

prop_compose! {
    fn any_frame()(seq in 1u64.., recv_seq: u64, id in 1u64.., cmd in 0u8..20, response: bool, error in 0u8..7,
                   payload in prop::collection::vec(any::<u8>(), 0..MAX_PAYLOAD)) -> (Head, Vec<u8>) {
        let cmd = Command::from_wire(cmd).unwrap();
        (Head { seq, recv_seq, id, cmd, response, error: if response { error } else { 0 } }, payload)
    }
}

proptest! {
    #[test]
    fn frames_survive_any_cut(frames in prop::collection::vec(any_frame(), 1..60),
                              pieces in prop::collection::vec(1usize..3000, 1..40)) {
        let bytes = frames.iter().flat_map(|(head, payload)| frame(head, payload)).collect::<Vec<_>>();
        prop_assert_eq!(feed(&bytes, pieces.into_iter().cycle()).unwrap(), frames);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000),
                              pieces in prop::collection::vec(1usize..100, 1..40)) {
        let _ = feed(&bytes, pieces.into_iter().cycle());
    }

    /// One damaged byte gives other frames or a refusal, and never more bytes than were received.
    #[test]
    fn a_damaged_byte_is_bounded(frames in prop::collection::vec(any_frame(), 1..5), at: prop::sample::Index, to: u8) {
        let mut bytes = frames.iter().flat_map(|(head, payload)| frame(head, payload)).collect::<Vec<_>>();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(frames) = feed(&bytes, std::iter::empty()) {
            let total = frames.iter().map(|(_, payload)| HEADER + payload.len()).sum::<usize>();
            prop_assert!(total <= bytes.len());
        }
    }
}
