//! Vectors and properties of the format.

use serde_json::Value;

use super::*;

mod items;
mod keys;
mod layouts;
mod names;
mod net;
mod quota;
mod srch;
mod validation;
mod xattr;

/// The vector file `name`.
fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/data/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The elements of a list.
fn list(v: &Value) -> &Vec<Value> {
    v.as_array().expect("a list")
}

/// A number, given as a number or as decimal or 0x text.
fn num(v: &Value) -> u64 {
    match v {
        Value::Number(n) => n.as_u64().or_else(|| n.as_i64().map(|i| i as u64)).expect("64 bits"),
        Value::String(s) => match s.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).expect("hex"),
            None => s.parse().expect("decimal"),
        },
        other => panic!("not a number: {other}"),
    }
}

/// A number given as bare hex text.
fn hexnum(v: &Value) -> u64 {
    u64::from_str_radix(v.as_str().expect("text"), 16).expect("hex")
}

/// A byte string given as hex.
fn hex(v: &Value) -> Vec<u8> {
    let s = v.as_str().expect("text");
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).expect("hex")).collect()
}

/// A key given as text, `zone.first.type.second.third.fourth`.
fn key(v: &Value) -> Key {
    let f: Vec<u64> = v.as_str().expect("text").split('.').map(|n| n.parse().expect("decimal")).collect();
    Key::new(f[0] as u8, f[1], f[2] as u8, f[3], f[4], f[5] as u8)
}

/// The 32 stored bytes of a key.
fn stored(key: &Key) -> Vec<u8> {
    zerocopy::IntoBytes::as_bytes(&key.to_stored()).to_vec()
}

/// Builds a block from `[offset, hex]` runs.
fn sparse(size: &Value, runs: &Value) -> Vec<u8> {
    let mut block = vec![0; num(size) as usize];
    for run in list(runs) {
        let (at, bytes) = (num(&run[0]) as usize, hex(&run[1]));
        block[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    block
}
