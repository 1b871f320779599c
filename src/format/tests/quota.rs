//! Quota rules.

use super::super::keys;
use super::super::quota::*;
use super::*;
use crate::Errno;
use zerocopy::IntoBytes;

fn rule(v: &Value) -> QuotaRule {
    let n = |i: usize| num(&v[i]);
    let name = |i: usize| QuotaName { value: n(i), source: n(i + 1) as u8, flags: n(i + 2) as u8 };
    QuotaRule {
        prio: n(0) as u8,
        names: [name(1), name(4), name(7)],
        op: n(10) as u8,
        limit: n(11),
        rule_flags: n(12) as u8,
    }
}

#[test]
fn rules_are_stored_as_in_the_original() {
    for v in list(&vectors("archive-quota")["encoding"]) {
        let r = rule(&v["rule"]);
        let value = hex(&v["value"]);
        if r.is_valid() {
            assert_eq!(r.encode().unwrap().as_bytes(), value, "{v}");
        }
        assert_eq!(r.hash(), hexnum(&v["hash"]), "{v}");
        let k = keys::quota_rule(r.hash(), 0);
        assert_eq!(stored(&k), hex(&v["key"]), "{v}");
        if let Ok(Some(read)) = QuotaRule::decode(&k, &value) {
            assert_eq!(read, r);
        }
    }
    for v in list(&vectors("format-hashes")["quota_rules"]) {
        let value = hex(&v["value"]);
        let r = QuotaRule::from(&zerocopy::FromBytes::read_from_bytes(&value[..]).unwrap());
        assert_eq!(r.hash(), hexnum(&v["hash"]), "{v}");
        assert_eq!(keys::quota_rule(r.hash(), 0), key(&v["key"]), "{v}");
    }
}

#[test]
fn defect_76_rules_that_cannot_work_are_refused_and_stored_ones_ignored() {
    // The original lets operation 2 and literal sources above 3 in (and then reads past an array).
    for v in list(&vectors("archive-quota")["valid"]) {
        let r = rule(&v[0]);
        let original_accepts = v[1].as_bool().unwrap();
        let nonsense = r.op == 2 || r.names.iter().any(|n| n.source > SOURCE_GID);
        assert_eq!(r.is_valid(), original_accepts && !nonsense, "{v}");
        if !r.is_valid() {
            assert!(r.encode().unwrap_err().is(Errno::EINVAL));
        }
        let mut value = QuotaRule { op: 0, names: Default::default(), rule_flags: 0, ..r }.encode().unwrap();
        value.op = r.op;
        value.rule_flags = r.rule_flags;
        for (i, n) in r.names.iter().enumerate() {
            (value.name_val[i], value.name_source[i], value.name_flags[i]) = (n.value.into(), n.source, n.flags);
        }
        match QuotaRule::decode(&Key::ZEROS, value.as_bytes()) {
            Ok(Some(read)) => assert!(read == r && r.is_valid(), "{v}"),
            Ok(None) => assert!(original_accepts && nonsense, "{v}"),
            Err(e) => assert!(!original_accepts && e.errno() == Errno::EIO, "{v}"),
        }
    }
    assert!(QuotaRule::decode(&Key::ZEROS, &[0; 47]).is_err());
}

#[test]
fn rules_take_precedence_as_in_the_original() {
    for v in list(&vectors("archive-quota")["order"]) {
        // The original sorts the strongest rule first.
        let want = v[2].as_i64().unwrap();
        let ours = rule(&v[0]).cmp(&rule(&v[1])) as i64;
        assert_eq!(ours, want, "{v}");
    }
}

#[test]
fn rules_match_as_in_the_original() {
    for v in list(&vectors("archive-quota")["match"]) {
        let rules: Vec<QuotaRule> = list(&v["rules"]).iter().map(rule).collect();
        for input in list(&v["inputs"]) {
            let attr = |n: &str| num(&input[n]);
            let i = QuotaInput { proj: attr("proj"), uid: attr("uid"), gid: attr("gid"), op: attr("op") as u8 };
            let best = rules.iter().filter(|r| r.matches(&i)).max();
            match best {
                None => assert_eq!(input["none"].as_bool(), Some(true), "{v} {input}"),
                Some(r) => {
                    let want: Vec<u64> = list(&input["totl"]).iter().map(num).collect();
                    assert_eq!(r.total_name(&i).to_vec(), want, "{input}");
                    assert_eq!(r.limit, num(&input["limit"]));
                    assert_eq!(u64::from(r.rule_flags), num(&input["rule_flags"]));
                    assert_eq!(r.counts(), r.rule_flags == 1);
                }
            }
        }
    }
}
