//! Quota rules in native form: checks, order, matching (`spec/01 §13.8`, `spec/08 §8`).
//!
//! A rule that the original let in although it cannot work (`op` 2, a source above 3 that does not select) is told
//! apart from corruption: [`QuotaRule::decode`] gives `Ok(None)`, and the reader reports it and goes on.

use zerocopy::{FromBytes, FromZeros};

use super::key::Key;
use super::keys;
use super::layout::QuotaRuleVal;
use crate::error::{Errno, Error, Result};

/// Operation: creation of an inode.
pub const OP_INODE: u8 = 0;
/// Operation: allocation of data.
pub const OP_DATA: u8 = 1;
/// Name source: the number stored in the rule.
pub const SOURCE_LITERAL: u8 = 0;
/// Name source: the project id.
pub const SOURCE_PROJECT: u8 = 1;
/// Name source: the user id.
pub const SOURCE_UID: u8 = 2;
/// Name source: the group id.
pub const SOURCE_GID: u8 = 3;
/// Name flag: the rule applies only if the attribute equals the stored number.
pub const NAME_SELECT: u8 = 1;
/// Rule flag: compare the count of the total instead of its sum.
pub const RULE_TOTL_COUNT: u8 = 1;

/// One of the three names of a rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct QuotaName {
    /// The number.
    pub value: u64,
    /// Where the number of the total's name comes from.
    pub source: u8,
    /// [`NAME_SELECT`] or 0.
    pub flags: u8,
}

/// A rule. Ordering is precedence: of the rules that match, the greatest decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct QuotaRule {
    /// Greater priorities win.
    pub prio: u8,
    /// The three names.
    pub names: [QuotaName; 3],
    /// [`OP_INODE`] or [`OP_DATA`].
    pub op: u8,
    /// The operation fails when the total has reached this.
    pub limit: u64,
    /// [`RULE_TOTL_COUNT`] or 0.
    pub rule_flags: u8,
}

/// What a rule is matched with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct QuotaInput {
    /// Project id.
    pub proj: u64,
    /// User id.
    pub uid: u64,
    /// Group id.
    pub gid: u64,
    /// [`OP_INODE`] or [`OP_DATA`].
    pub op: u8,
}

impl QuotaInput {
    fn attribute(&self, source: u8) -> Option<u64> {
        match source {
            SOURCE_PROJECT => Some(self.proj),
            SOURCE_UID => Some(self.uid),
            SOURCE_GID => Some(self.gid),
            _ => None,
        }
    }
}

impl QuotaRule {
    /// Is the rule one that a caller may add? Stricter than what may be stored.
    pub fn is_valid(&self) -> bool {
        !self.is_corrupt() && self.is_usable()
    }

    /// Would the original refuse to read it?
    fn is_corrupt(&self) -> bool {
        let select = |n: &QuotaName| n.flags & NAME_SELECT != 0;
        if self.rule_flags & !RULE_TOTL_COUNT != 0 || self.op > 2 {
            return true;
        }
        self.names.iter().enumerate().any(|(i, a)| {
            a.flags & !NAME_SELECT != 0
                || select(a)
                    && (!(SOURCE_PROJECT..=SOURCE_GID).contains(&a.source)
                        || self.names[..i].iter().any(|b| select(b) && b.source == a.source && b.value != a.value))
        })
    }

    fn is_usable(&self) -> bool {
        self.op <= OP_DATA && self.names.iter().all(|n| n.source <= SOURCE_GID)
    }

    /// Decodes a stored rule. `Ok(None)` for one that the original accepts and that means nothing: report and ignore.
    pub fn decode(key: &Key, value: &[u8]) -> Result<Option<QuotaRule>> {
        let bad = |why: &str| Error::corrupt(format!("quota rule {key}"), why);
        let val = QuotaRuleVal::read_from_bytes(value).map_err(|_| bad("a value that is not 48 bytes long"))?;
        let rule = QuotaRule::from(&val);
        if rule.is_corrupt() {
            return Err(bad("unknown flags or operation, or names that select wrongly"));
        }
        Ok(rule.is_usable().then_some(rule))
    }

    /// The stored form of a rule that a caller wants to add; `EINVAL` if it is not valid.
    pub fn encode(&self) -> Result<QuotaRuleVal> {
        if !self.is_valid() {
            return Err(Errno::EINVAL.into());
        }
        Ok(self.stored())
    }

    fn stored(&self) -> QuotaRuleVal {
        let mut val = QuotaRuleVal::new_zeroed();
        for (i, n) in self.names.iter().enumerate() {
            val.name_val[i].set(n.value);
            val.name_source[i] = n.source;
            val.name_flags[i] = n.flags;
        }
        val.limit.set(self.limit);
        val.prio = self.prio;
        val.op = self.op;
        val.rule_flags = self.rule_flags;
        val
    }

    /// Hash of the stored form, the second field of its key.
    pub fn hash(&self) -> u64 {
        keys::quota_rule_hash(&self.stored())
    }

    /// Does the rule apply to `input`?
    pub fn matches(&self, input: &QuotaInput) -> bool {
        self.op == input.op
            && self.names.iter().all(|n| n.flags & NAME_SELECT == 0 || input.attribute(n.source) == Some(n.value))
    }

    /// The three numbers that name the total which the rule limits.
    pub fn total_name(&self, input: &QuotaInput) -> [u64; 3] {
        self.names.map(|n| input.attribute(n.source).unwrap_or(n.value))
    }

    /// Is the limit compared with the number of contributions, not their sum?
    pub fn counts(&self) -> bool {
        self.rule_flags & RULE_TOTL_COUNT != 0
    }
}

impl From<&QuotaRuleVal> for QuotaRule {
    fn from(val: &QuotaRuleVal) -> QuotaRule {
        let name =
            |i: usize| QuotaName { value: val.name_val[i].get(), source: val.name_source[i], flags: val.name_flags[i] };
        QuotaRule {
            prio: val.prio,
            names: [name(0), name(1), name(2)],
            op: val.op,
            limit: val.limit.get(),
            rule_flags: val.rule_flags,
        }
    }
}
