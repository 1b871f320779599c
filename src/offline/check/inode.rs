//! The items of the merged view, in key order: does each decode, and do those of one inode agree?
//!
//! Only the state of the inode at hand is kept. What must be compared with items elsewhere is stated as facts.

use zerocopy::FromBytes;

use super::account::DataMap;
use super::dirs::Parents;
use super::facts::{EntryFact, Fact, Side};
use super::findings::{Finding, FindingClass, Findings, Severity};
use crate::error::Error;
use crate::format::check::validate_extent;
use crate::format::consts::*;
use crate::format::layout::{InodeItem, SuperBlock, XattrTotlVal};
use crate::format::quota::QuotaRule;
use crate::format::srch::Entry;
use crate::format::xattr::{
    Tags, XattrFirst, indx_key, parse_stored_number, parse_tags, totl_key, validate_xattr_first,
};
use crate::format::{Dirent, DirentKind, Ino, ItemKey, Key, fnv1a_64, symlink_parts, validate_dirent, validate_inode};

use super::super::image::MergedItem;

/// Numbers for the report.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) items: u64,
    pub(super) inodes: u64,
    pub(super) entries: u64,
    pub(super) xattrs: u64,
    pub(super) extents: u64,
    pub(super) data_blocks: u64,
}

/// Takes the facts that items state.
pub(super) type FactSink<'s> = &'s mut dyn FnMut(&Fact, Side, (u64, u64));

/// What the items walk writes to. The second pass has no findings, no map and no parents.
pub(super) struct Outputs<'s> {
    pub(super) facts: FactSink<'s>,
    pub(super) first: Option<FirstPass<'s>>,
}

/// What only the first pass does.
pub(super) struct FirstPass<'s> {
    pub(super) findings: &'s mut Findings,
    pub(super) data: &'s mut DataMap,
    pub(super) parents: &'s mut Parents,
    pub(super) counts: &'s mut Counts,
}

impl Outputs<'_> {
    fn find(&mut self, finding: Finding) {
        if let Some(first) = &mut self.first {
            first.findings.add(finding);
        }
    }

    fn count(&mut self, add: fn(&mut Counts)) {
        if let Some(first) = &mut self.first {
            add(first.counts);
        }
    }

    fn state(&mut self, fact: Fact, side: Side) {
        (self.facts)(&fact, side, (1, 0));
    }
}

/// An xattr of which more parts may follow.
struct OpenXattr {
    key: Key,
    lens: Vec<usize>,
    next: usize,
}

/// What was seen of the inode at hand.
#[derive(Default)]
struct Current {
    ino: u64,
    inode: Option<InodeItem>,
    /// An inode item that does not decode is reported once, not again for each of its other items.
    damaged: bool,
    xattr: Option<OpenXattr>,
    name_bytes: u64,
    entries: u64,
    subdirs: u64,
    links: u64,
    parent: u64,
    symlink_bytes: u64,
    symlink_parts: u64,
    symlink_last: u8,
    online: u64,
    offline: u64,
    extents_end: u64,
}

impl Current {
    fn kind(&self) -> Option<DirentKind> {
        self.inode.as_ref().and_then(|i| DirentKind::from_mode(i.mode.get()))
    }
}

/// Walks the items of the merged view.
pub(super) struct ItemWalk {
    fmt_vers: u64,
    next_ino: u64,
    data_blocks: u64,
    cur: Current,
}

impl ItemWalk {
    /// A walk over the items of the volume with this super block, whose data device has `data_blocks` blocks.
    pub(super) fn new(sb: &SuperBlock, data_blocks: u64) -> ItemWalk {
        let (fmt_vers, next_ino) = (sb.fmt_vers.get(), sb.next_ino.get());
        ItemWalk { fmt_vers, next_ino, data_blocks, cur: Current::default() }
    }

    /// The next item.
    pub(super) fn item(&mut self, item: &MergedItem, out: &mut Outputs<'_>) {
        out.count(|c| c.items += 1);
        let key = item.key;
        let Some(parsed) = ItemKey::parse(&key) else {
            return out.find(Finding::error(FindingClass::Item, "a key that no item has").key(key));
        };
        let must_be_empty = |out: &mut Outputs<'_>| {
            if !item.value.is_empty() {
                out.find(Finding::error(FindingClass::Item, "an item with a value that should have none").key(key));
            }
        };
        match parsed {
            ItemKey::MetaIndex { seq, ino } => {
                must_be_empty(out);
                out.state(Fact::MetaIndex { seq: seq.0, ino: ino.0 }, Side::Derived);
            }
            ItemKey::DataIndex { seq, ino } => {
                must_be_empty(out);
                out.state(Fact::DataIndex { seq: seq.0, ino: ino.0 }, Side::Derived);
            }
            ItemKey::Orphan { ino } => {
                must_be_empty(out);
                out.state(Fact::Orphan { ino: ino.0 }, Side::Derived);
            }
            ItemKey::Indx { .. } => {
                must_be_empty(out);
                out.state(Fact::ValueIndex(key), Side::Derived);
            }
            ItemKey::Totl { .. } => match XattrTotlVal::read_from_bytes(&item.value) {
                Ok(v) => (out.facts)(&Fact::Total(key), Side::Derived, (v.total.get(), v.count.get())),
                Err(_) => out.find(Finding::error(FindingClass::Item, "a total that is not 16 bytes long").key(key)),
            },
            ItemKey::QuotaRule { hash, .. } => self.quota_rule(&key, hash, &item.value, out),
            _ if key.zone == ZONE_FS => self.inode_item(parsed, item, out),
            _ => out.find(Finding::error(FindingClass::Item, "an item of a server's tree").key(key)),
        }
    }

    fn quota_rule(&self, key: &Key, hash: u64, value: &[u8], out: &mut Outputs<'_>) {
        match QuotaRule::decode(key, value) {
            Ok(Some(rule)) if rule.hash() != hash => {
                out.find(Finding::error(FindingClass::Item, "the key is not the hash of the quota rule").key(*key));
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                let text = "a quota rule that can never apply; the original let it in";
                out.find(Finding::new(Severity::Warning, FindingClass::Item, text).key(*key));
            }
            Err(e) => out.find(bad_item(e, key)),
        }
    }

    fn inode_item(&mut self, parsed: ItemKey, item: &MergedItem, out: &mut Outputs<'_>) {
        let (key, ino) = (item.key, Ino(item.key.first));
        if self.cur.ino != ino.0 {
            self.finish(out);
            self.cur = Current { ino: ino.0, ..Current::default() };
            if ino.0 == 0 || ino.0 >= self.next_ino {
                let text = format!("inode numbers are 1 to {}", self.next_ino.saturating_sub(1));
                out.find(Finding::error(FindingClass::Inode, text).key(key).ino(ino));
            }
            if !matches!(parsed, ItemKey::Inode { .. }) {
                self.cur.damaged = true;
                out.find(Finding::error(FindingClass::Inode, "items without an inode item").key(key).ino(ino));
            }
        }
        if !matches!(parsed, ItemKey::Xattr { .. }) {
            self.close_xattr(out);
        }
        match parsed {
            ItemKey::Inode { ino } => self.inode(ino, item, out),
            ItemKey::Xattr { id, part, .. } => self.xattr(ino, id, part, item, out),
            ItemKey::Dirent { .. } | ItemKey::Readdir { .. } | ItemKey::Backref { .. } => self.entry(parsed, item, out),
            ItemKey::Symlink { part, .. } => self.symlink(part, item, out),
            ItemKey::Extent { .. } => self.extent(item, out),
            _ => {}
        }
    }

    fn inode(&mut self, ino: Ino, item: &MergedItem, out: &mut Outputs<'_>) {
        out.count(|c| c.inodes += 1);
        match validate_inode(ino, &item.value, self.fmt_vers) {
            Ok(inode) => {
                out.state(Fact::MetaIndex { seq: inode.meta_seq.get(), ino: ino.0 }, Side::Source);
                if DirentKind::from_mode(inode.mode.get()) == Some(DirentKind::Regular) {
                    out.state(Fact::DataIndex { seq: inode.data_seq.get(), ino: ino.0 }, Side::Source);
                }
                if inode.nlink.get() == 0 {
                    out.state(Fact::Orphan { ino: ino.0 }, Side::Source);
                }
                self.cur.inode = Some(inode);
            }
            Err(e) => {
                self.cur.damaged = true;
                out.find(bad_item(e, &item.key).ino(ino));
            }
        }
    }

    fn xattr(&mut self, ino: Ino, id: u64, part: u8, item: &MergedItem, out: &mut Outputs<'_>) {
        let key = item.key;
        if let Some(open) = &mut self.cur.xattr {
            let same = (open.key.second, open.key.third) == (key.second, key.third);
            if same && usize::from(part) == open.next && open.lens.get(open.next) == Some(&item.value.len()) {
                open.next += 1;
                return;
            }
        }
        self.close_xattr(out);
        if part != 0 {
            let text = "an xattr part that does not follow from the one before";
            return out.find(Finding::error(FindingClass::Xattr, text).key(key).ino(ino));
        }
        let first = match validate_xattr_first(&key, &item.value) {
            Ok(first) => first,
            Err(e) => return out.find(bad_item(e, &key).ino(ino)),
        };
        out.count(|c| c.xattrs += 1);
        if self.cur.inode.as_ref().is_some_and(|i| id >= i.next_xattr_id.get()) {
            out.find(Finding::error(FindingClass::Xattr, "an xattr id that was not given out yet").key(key).ino(ino));
        }
        self.tagged(ino, id, &key, &first, out);
        let lens = (0..first.parts).map(|p| first.part_len(p)).collect();
        self.cur.xattr = Some(OpenXattr { key, lens, next: 1 });
    }

    fn close_xattr(&mut self, out: &mut Outputs<'_>) {
        if let Some(open) = self.cur.xattr.take()
            && open.next < open.lens.len()
        {
            let text = format!("an xattr with {} of its {} parts", open.next, open.lens.len());
            out.find(Finding::error(FindingClass::Xattr, text).key(open.key).ino(Ino(self.cur.ino)));
        }
    }

    /// The side items that the tags of an xattr call for.
    fn tagged(&self, ino: Ino, id: u64, key: &Key, first: &XattrFirst<'_>, out: &mut Outputs<'_>) {
        let bad = |out: &mut Outputs<'_>, text: &str| {
            out.find(Finding::error(FindingClass::Xattr, text).key(*key).ino(ino));
        };
        let tags = match parse_tags(first.name) {
            Ok(tags) => tags,
            Err(_) => {
                bad(out, "an xattr name with wrong tags");
                Tags::default()
            }
        };
        if tags.srch {
            out.state(Fact::Search(Entry::for_xattr(first.name, ino, id)), Side::Source);
        }
        if tags.indx {
            match indx_key(first.name, ino, id) {
                Ok(k) => out.state(Fact::ValueIndex(k), Side::Source),
                Err(_) => bad(out, "the name of an indexed xattr does not end in two numbers"),
            }
        }
        if tags.totl {
            let value = (first.value_start.len() == first.value_len).then_some(first.value_start);
            match (totl_key(first.name), value.map(parse_stored_number)) {
                (Ok(k), Some(Ok(v))) => (out.facts)(&Fact::Total(k), Side::Source, (v, 1)),
                _ => bad(out, "an xattr with a total whose name or value has no valid number"),
            }
        }
    }

    fn entry(&mut self, parsed: ItemKey, item: &MergedItem, out: &mut Outputs<'_>) {
        let owner = Ino(self.cur.ino);
        let entry = match validate_dirent(&item.key, &item.value) {
            Ok(e) => e,
            Err(e) => return out.find(bad_item(e, &item.key).ino(owner)),
        };
        match parsed {
            ItemKey::Dirent { dir, .. } => {
                out.count(|c| c.entries += 1);
                self.cur.entries += 1;
                self.cur.name_bytes += entry.name.len() as u64;
                self.cur.subdirs += u64::from(entry.kind == Some(DirentKind::Dir));
                self.position(&entry, &item.key, out);
                out.state(Fact::ByPosition(fact(dir, &entry)), Side::Source);
                out.state(Fact::AtTarget(fact(dir, &entry)), Side::Source);
            }
            ItemKey::Readdir { dir, .. } => {
                self.position(&entry, &item.key, out);
                out.state(Fact::ByPosition(fact(dir, &entry)), Side::Derived);
            }
            ItemKey::Backref { dir, .. } => {
                self.cur.links += 1;
                self.cur.parent = dir.0;
                out.state(Fact::AtTarget(fact(dir, &entry)), Side::Derived);
                if self.cur.kind().is_some_and(|k| entry.kind != Some(k)) {
                    let text = "an entry says another file type than the inode";
                    out.find(Finding::error(FindingClass::Directory, text).key(item.key).ino(owner));
                }
            }
            _ => {}
        }
    }

    fn position(&self, entry: &Dirent<'_>, key: &Key, out: &mut Outputs<'_>) {
        let given_out = |i: &InodeItem| (DIRENT_FIRST_POS..i.next_readdir_pos.get()).contains(&entry.pos);
        if self.cur.inode.as_ref().is_some_and(|i| !given_out(i)) {
            let text = "an entry position that was not given out yet";
            out.find(Finding::error(FindingClass::Directory, text).key(*key).ino(Ino(self.cur.ino)));
        }
    }

    fn symlink(&mut self, part: u64, item: &MergedItem, out: &mut Outputs<'_>) {
        if part != self.cur.symlink_parts
            || !self.cur.symlink_bytes.is_multiple_of(PART_BYTES as u64)
            || item.value.is_empty()
        {
            let text = "a symlink part that does not follow from the one before";
            out.find(Finding::error(FindingClass::Inode, text).key(item.key).ino(Ino(self.cur.ino)));
        }
        self.cur.symlink_parts += 1;
        self.cur.symlink_bytes += item.value.len() as u64;
        self.cur.symlink_last = item.value.last().copied().unwrap_or(1);
    }

    fn extent(&mut self, item: &MergedItem, out: &mut Outputs<'_>) {
        let ino = Ino(self.cur.ino);
        let e = match validate_extent(&item.key, &item.value, self.data_blocks) {
            Ok(e) => e,
            Err(e) => return out.find(bad_item(e, &item.key).ino(ino)),
        };
        let bad = |out: &mut Outputs<'_>, text: &str| {
            out.find(Finding::error(FindingClass::Extent, text).key(item.key).ino(ino));
        };
        out.count(|c| c.extents += 1);
        if e.start < self.cur.extents_end {
            bad(out, "an extent that overlaps the one before");
        }
        self.cur.extents_end = e.last() + 1;
        if e.map.is_none() && e.flags & EXTENT_OFFLINE == 0 {
            bad(out, "an extent that is neither mapped nor offline");
        }
        let online = e.map.is_some() && e.flags & EXTENT_UNWRITTEN == 0;
        if online {
            self.cur.online = self.cur.online.saturating_add(e.len);
        } else if e.flags & EXTENT_OFFLINE != 0 {
            self.cur.offline = self.cur.offline.saturating_add(e.len);
        }
        if let (Some(map), Some(first)) = (e.map, &mut out.first) {
            first.counts.data_blocks += e.len;
            if let Some(hit) = first.data.claim(map.0, e.len) {
                let text = format!("{} data blocks from {map} on are used by somebody else too, or free", e.len);
                out.find(Finding::error(FindingClass::Space, text).key(item.key).ino(ino).data_block(hit));
            }
        }
    }

    /// Everything of the inode at hand was seen.
    pub(super) fn finish(&mut self, out: &mut Outputs<'_>) {
        self.close_xattr(out);
        let cur = std::mem::take(&mut self.cur);
        let (Some(inode), Some(kind), false) = (cur.inode, cur.kind(), cur.damaged) else { return };
        let ino = Ino(cur.ino);
        let mut check = |right: bool, class: FindingClass, text: String| {
            if !right {
                out.find(Finding::error(class, text).ino(ino).key(crate::format::keys::inode(ino)));
            }
        };
        let (size, nlink) = (inode.size.get(), u64::from(inode.nlink.get()));
        if kind == DirentKind::Dir {
            let root = ino == Ino::ROOT;
            let links = if root || nlink == 0 { 0 } else { 1 };
            let wrong = |what: &str, is: u64, should: u64| format!("directory {what} {is}, should be {should}");
            check(cur.links == links, FindingClass::Directory, wrong("with entries naming it:", cur.links, links));
            let want = if nlink == 0 { 0 } else { 2 + cur.subdirs };
            check(nlink == want, FindingClass::Directory, wrong("with link count", nlink, want));
            check(size == cur.name_bytes, FindingClass::Directory, wrong("of size", size, cur.name_bytes));
            check(nlink > 0 || cur.entries == 0, FindingClass::Directory, "a removed directory with entries".into());
        } else {
            let text = format!("link count {nlink}, but {} entries name it", cur.links);
            check(nlink == cur.links, FindingClass::Directory, text);
            check(cur.entries == 0, FindingClass::Directory, format!("{} entries in no directory", cur.entries));
        }
        let whole = size == cur.symlink_bytes && cur.symlink_parts == symlink_parts(size) && cur.symlink_last == 0;
        match kind {
            DirentKind::Symlink => {
                check(whole, FindingClass::Inode, "the symlink target is not what the size says".into())
            }
            _ => check(cur.symlink_parts == 0, FindingClass::Inode, "a symlink target of no symlink".into()),
        }
        let (online, offline) = (inode.online_blocks.get(), inode.offline_blocks.get());
        let (seen_online, seen_offline) = (cur.online, cur.offline);
        let text =
            format!("{online} online and {offline} offline blocks, the extents have {seen_online} and {seen_offline}");
        // A deletion removes extents in transactions of its own and leaves the inode item as it is (`spec/06 §3.7`). One that
        // was cut off is started again; until then an inode without links may have fewer blocks than it counts, never more.
        let being_deleted = nlink == 0 && seen_online <= online && seen_offline <= offline;
        let right = (online, offline) == (seen_online, seen_offline);
        check(right || being_deleted, FindingClass::Extent, text.clone());
        check(
            kind == DirentKind::Regular || cur.extents_end == 0,
            FindingClass::Extent,
            "data of no regular file".into(),
        );
        if being_deleted && !right {
            let text = format!("the deletion is not finished: {text}");
            out.find(
                Finding::new(Severity::Note, FindingClass::Extent, text).ino(ino).key(crate::format::keys::inode(ino)),
            );
        }
        if let (DirentKind::Dir, true, Some(first)) = (kind, cur.links == 1, &mut out.first) {
            first.parents.add(ino, Ino(cur.parent));
        }
    }
}

fn fact(dir: Ino, e: &Dirent<'_>) -> EntryFact {
    let kind = e.kind.map_or(u8::MAX, DirentKind::stored);
    EntryFact { dir: dir.0, pos: e.pos, ino: e.ino.0, hash: e.hash, name: fnv1a_64(e.name), kind }
}

fn bad_item(e: Error, key: &Key) -> Finding {
    Finding::error(FindingClass::Item, e.to_string()).key(*key)
}
