//! Whole frames as the original's structures lay them out, and the errors of the wire.

use serde_json::Value;

use crate::error::{Errno, Error};
use crate::net::codec::{FrameReader, Head, encode};
use crate::net::command::Command;
use crate::net::session::Session;

pub(super) fn load(name: &str) -> Value {
    let path = format!("{}/tests/data/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).expect("a vector file")).expect("valid JSON")
}

pub(super) fn number(value: &Value) -> u64 {
    match value {
        Value::String(s) => {
            u64::from_str_radix(s.strip_prefix("0x").expect("strings are hexadecimal"), 16).expect("a number")
        }
        other => other.as_u64().expect("a number"),
    }
}

pub(super) fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("hexadecimal digits").as_bytes();
    let digit = |c: u8| (c as char).to_digit(16).expect("a digit") as u8;
    text.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[test]
fn frames_decode_and_encode_as_the_original_does() {
    let vectors = load("net-messages");
    let vectors = vectors.as_array().unwrap();
    assert_eq!(vectors.len(), 49);
    for vector in vectors {
        let name = &vector["name"];
        let bytes = unhex(&vector["hex"]);
        assert_eq!(bytes.len() as u64, number(&vector["total_bytes"]), "{name}");
        let mut reader = FrameReader::new();
        reader.space()[..bytes.len()].copy_from_slice(&bytes);
        reader.filled(bytes.len());
        let frame = reader.next().unwrap().expect("a whole frame");
        let header = &vector["header"];
        let want = Head {
            seq: number(&header["seq"]),
            recv_seq: number(&header["recv_seq"]),
            id: number(&header["id"]),
            cmd: Command::from_wire(number(&header["cmd"]) as u8).unwrap(),
            response: number(&header["flags"]) == 1,
            error: number(&header["error"]) as u8,
        };
        assert_eq!(frame.head, want, "{name}");
        assert_eq!(frame.payload.len() as u64, number(&header["data_len"]), "{name}");
        let mut again = Vec::new();
        encode(&mut again, &frame.head, frame.payload);
        assert_eq!(again, bytes, "{name}");
        if want.response {
            assert!(want.error != 0 || want.cmd.response_len_ok(frame.payload.len()), "{name}");
        } else {
            assert_eq!(want.cmd.request_len(), frame.payload.len(), "{name}");
            let to_server = vector["direction"].as_str() == Some("client->server");
            let served = if to_server { want.cmd.served_by_server() } else { want.cmd.served_by_client() };
            assert!(served || want.cmd == Command::Greeting, "{name}");
        }
        assert_eq!(reader.next().unwrap(), None, "{name}");
    }
}

/// What a response with this error looks like on the wire.
fn sent_code(errno: i32) -> u8 {
    let mut session = Session::<()>::new(1);
    let error = Error::Posix(Errno(errno));
    session.respond(Command::GetRoots, 1, if errno == 0 { Ok(&[]) } else { Err(&error) });
    let mut out = Vec::new();
    session.transmit(&mut out, 1);
    out[28]
}

#[test]
fn errors_travel_as_the_originals_do() {
    let vectors = load("net-errors");
    for pair in vectors["from_host"].as_array().unwrap() {
        let errno = -pair[0].as_i64().unwrap() as i32;
        assert_eq!(u64::from(sent_code(errno)), number(&pair[1]), "errno {errno}");
    }
    for pair in vectors["to_host"].as_array().unwrap() {
        let code = number(&pair[0]) as u8;
        let want = -pair[1].as_i64().unwrap() as i32;
        let head = Head { seq: 1, recv_seq: 0, id: 1, cmd: Command::Statfs, response: true, error: code };
        let mut bytes = Vec::new();
        encode(&mut bytes, &head, &[]);
        let mut reader = FrameReader::new();
        reader.space()[..bytes.len()].copy_from_slice(&bytes);
        reader.filled(bytes.len());
        match reader.next() {
            // The original would make EINVAL of it, but its header check comes first.
            Err(_) => assert!(code >= 7 && want == Errno::EINVAL.0),
            Ok(frame) => match frame.expect("a whole frame").result() {
                Ok(_) => assert_eq!(want, 0),
                Err(error) => assert_eq!(error.errno().0, want, "code {code}"),
            },
        }
    }
}
