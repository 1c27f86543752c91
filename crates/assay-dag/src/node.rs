//! Blocks with links (dag-pb) and what they mean (UnixFS): protocol buffers of two kinds, one inside the other.
//!
//! ```text
//! dag-pb   2: link { 1: cid, 2: name, 3: size of all below } ...  1: data
//! data     1: type  2: bytes  3: length of the file  4: length of each child's part ...
//! ```
//! Nodes are written as Kubo and Helia write them: links before data, an empty name spelled out, lengths one by one.
//! Read is what the two specifications allow: either order, packed lengths, times and modes, which mean nothing here.

use crate::{BLOCK_LEN_MAX, Cid, CidError, Codec, varint};

const TYPE_RAW: u64 = 0;
const TYPE_DIRECTORY: u64 = 1;
const TYPE_FILE: u64 = 2;

/// A block that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node<'a> {
    /// Bytes of a file.
    Leaf(&'a [u8]),
    /// A file in parts.
    File(FileNode),
    /// Names and what they stand for.
    Directory(Vec<DirectoryEntry>),
}

/// A file, or a part of one, that consists of other blocks' bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileNode {
    /// At least one, in the order of their bytes.
    pub children: Vec<Child>,
    /// Bytes of all of them.
    pub len: u64,
}

/// A part of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Child {
    /// Its block.
    pub cid: Cid,
    /// Bytes of the file in and below it, at least 1.
    pub len: u64,
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: String,
    /// Its block.
    pub cid: Cid,
}

/// Why a block, though it is the one that was named, is no part of a file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NodeError {
    /// It is too long.
    #[error("it has {0} bytes, at most {BLOCK_LEN_MAX} are taken")]
    TooLong(usize),
    /// It is no protocol buffer of its kind.
    #[error("it is damaged: {0}")]
    Malformed(&'static str),
    /// A link cannot be followed.
    #[error("a link in it: {0}")]
    Link(#[from] CidError),
    /// It is a link, a sharded directory or another thing that is no file.
    #[error("UnixFS type {0} is not supported, only files and plain directories")]
    UnknownType(u64),
    /// Lengths do not fit.
    #[error("its lengths disagree: {0}")]
    Lengths(&'static str),
}

impl<'a> Node<'a> {
    /// Reads `block`, whose hash the caller has checked. Takes memory of a few times its length.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn decode(codec: Codec, block: &'a [u8]) -> Result<Self, NodeError> {
        if block.len() > BLOCK_LEN_MAX {
            return Err(NodeError::TooLong(block.len()));
        }
        if codec == Codec::Raw {
            return Ok(Self::Leaf(block));
        }
        let outer = Outer::decode(block)?;
        let inner = Inner::decode(outer.data.ok_or(NodeError::Malformed("it has no UnixFS data"))?)?;
        match inner.kind {
            TYPE_RAW | TYPE_FILE => file(&outer, &inner),
            TYPE_DIRECTORY => {
                let links = outer.links.iter();
                let entries = links.map(|link| Ok(DirectoryEntry { name: link.name.to_owned(), cid: link.cid()? }));
                Ok(Self::Directory(entries.collect::<Result<_, NodeError>>()?))
            }
            other => Err(NodeError::UnknownType(other)),
        }
    }
}

fn file<'a>(outer: &Outer<'a>, inner: &Inner<'a>) -> Result<Node<'a>, NodeError> {
    if outer.links.is_empty() {
        if !inner.lens.is_empty() {
            return Err(NodeError::Lengths("it has lengths of children and no children"));
        }
        if inner.len.is_some_and(|len| len != inner.data.len() as u64) {
            return Err(NodeError::Lengths("its own is not that of its bytes"));
        }
        return Ok(Node::Leaf(inner.data));
    }
    if !inner.data.is_empty() {
        return Err(NodeError::Malformed("bytes of the file beside links"));
    }
    if inner.lens.len() != outer.links.len() {
        return Err(NodeError::Lengths("not one for each child"));
    }
    let mut len = 0_u64;
    let mut children = Vec::with_capacity(outer.links.len());
    for (link, &part) in outer.links.iter().zip(&inner.lens) {
        if part == 0 {
            return Err(NodeError::Lengths("a child has no bytes"));
        }
        len = len.checked_add(part).ok_or(NodeError::Lengths("more than 64 bits"))?;
        children.push(Child { cid: link.cid()?, len: part });
    }
    if inner.len.is_some_and(|stated| stated != len) {
        return Err(NodeError::Lengths("its own is not the sum of its children's"));
    }
    Ok(Node::File(FileNode { children, len }))
}

struct Outer<'a> {
    links: Vec<OuterLink<'a>>,
    data: Option<&'a [u8]>,
}

struct OuterLink<'a> {
    cid: &'a [u8],
    name: &'a str,
}

impl OuterLink<'_> {
    fn cid(&self) -> Result<Cid, CidError> {
        Cid::from_bytes(self.cid)
    }
}

impl<'a> Outer<'a> {
    fn decode(block: &'a [u8]) -> Result<Self, NodeError> {
        let mut outer = Self { links: vec![], data: None };
        let mut fields = Fields(block);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Bytes(data)) if outer.data.is_none() => outer.data = Some(data),
                (2, Value::Bytes(link)) => outer.links.push(OuterLink::decode(link)?),
                (1, _) => return Err(NodeError::Malformed("its data are there twice, or a number")),
                _ => return Err(NodeError::Malformed("a field that dag-pb does not have")),
            }
        }
        Ok(outer)
    }
}

impl<'a> OuterLink<'a> {
    fn decode(link: &'a [u8]) -> Result<Self, NodeError> {
        let (mut cid, mut name) = (None, "");
        let mut fields = Fields(link);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Bytes(bytes)) => cid = Some(bytes),
                (2, Value::Bytes(bytes)) => {
                    name = std::str::from_utf8(bytes).map_err(|_| NodeError::Malformed("a name is no UTF-8"))?;
                }
                (3, Value::Number(_)) => (),
                _ => return Err(NodeError::Malformed("a link with a field that dag-pb does not have")),
            }
        }
        Ok(Self { cid: cid.ok_or(NodeError::Malformed("a link to nowhere"))?, name })
    }
}

struct Inner<'a> {
    kind: u64,
    data: &'a [u8],
    len: Option<u64>,
    lens: Vec<u64>,
}

impl<'a> Inner<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, NodeError> {
        let mut inner = Self { kind: u64::MAX, data: &[], len: None, lens: vec![] };
        let mut fields = Fields(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Number(kind)) => inner.kind = kind,
                (2, Value::Bytes(data)) => inner.data = data,
                (3, Value::Number(len)) => inner.len = Some(len),
                (4, Value::Number(len)) => inner.lens.push(len),
                (4, Value::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        inner.lens.push(varint::take(&mut packed).ok_or(NodeError::Malformed("packed lengths"))?);
                    }
                }
                (1..=4, _) => return Err(NodeError::Malformed("a UnixFS field of another kind")),
                // Hash type and fanout of directories, mode and time: nothing that a file's bytes depend on.
                _ => (),
            }
        }
        Ok(inner)
    }
}

/// The fields of a protocol buffer, one after the other.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, NodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let end = NodeError::Malformed("it ends in a field");
        let key = varint::take(&mut self.0).ok_or(end.clone())?;
        let value = match key & 7 {
            0 => Value::Number(varint::take(&mut self.0).ok_or(end)?),
            2 => {
                let len = varint::take(&mut self.0).ok_or(end.clone())?;
                Value::Bytes(varint::take_bytes(&mut self.0, len).ok_or(end)?)
            }
            5 => varint::take_bytes(&mut self.0, 4).map(Value::Bytes).ok_or(end)?,
            1 => varint::take_bytes(&mut self.0, 8).map(Value::Bytes).ok_or(end)?,
            _ => return Err(NodeError::Malformed("a field of an unknown kind")),
        };
        Ok(Some((key >> 3, value)))
    }
}

/// A child as a parent that is being written knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub cid: Cid,
    /// Bytes of the file.
    pub len: u64,
    /// Bytes of its block and all below.
    pub dag_len: u64,
}

/// The block of a file's node over `parts`.
pub(crate) fn encode_node(parts: &[Part]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 * parts.len() + 32);
    let mut link = Vec::with_capacity(64);
    for part in parts {
        link.clear();
        put_bytes(&mut link, 1, &part.cid.to_bytes());
        put_bytes(&mut link, 2, b"");
        put_number(&mut link, 3, part.dag_len);
        put_bytes(&mut out, 2, &link);
    }
    let mut data = Vec::with_capacity(8 * parts.len() + 16);
    put_number(&mut data, 1, TYPE_FILE);
    put_number(&mut data, 3, parts.iter().map(|part| part.len).sum());
    for part in parts {
        put_number(&mut data, 4, part.len);
    }
    put_bytes(&mut out, 1, &data);
    out
}

/// The dag-pb block that holds `bytes` of a file, as profiles without raw leaves have it.
#[must_use]
pub fn wrapped_leaf(bytes: &[u8]) -> Vec<u8> {
    let mut data = Vec::with_capacity(bytes.len() + 16);
    put_number(&mut data, 1, TYPE_FILE);
    if !bytes.is_empty() {
        put_bytes(&mut data, 2, bytes);
    }
    put_number(&mut data, 3, bytes.len() as u64);
    let mut out = Vec::with_capacity(data.len() + 8);
    put_bytes(&mut out, 1, &data);
    out
}

fn put_number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint::put(out, field << 3);
    varint::put(out, value);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint::put(out, field << 3 | 2);
    varint::put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Version;

    fn part(byte: u8, len: u64) -> Part {
        Part { cid: Cid::of(Version::V1, Codec::Raw, &[byte]), len, dag_len: len }
    }

    fn decode(block: &[u8]) -> Result<Node<'_>, NodeError> {
        Node::decode(Codec::DagPb, block)
    }

    #[test]
    fn what_is_written_can_be_read() {
        let parts = [part(1, 5), part(2, 5), part(3, 2)];
        let block = encode_node(&parts);
        let Node::File(node) = decode(&block).unwrap() else { panic!("a file") };
        assert_eq!(node.len, 12);
        assert!(node.children.iter().zip(&parts).all(|(child, part)| (child.cid, child.len) == (part.cid, part.len)));
        assert_eq!(decode(&wrapped_leaf(b"abc")).unwrap(), Node::Leaf(b"abc"));
        assert_eq!(decode(&wrapped_leaf(b"")).unwrap(), Node::Leaf(b""));
        assert_eq!(Node::decode(Codec::Raw, b"abc").unwrap(), Node::Leaf(b"abc"));
    }

    #[test]
    fn other_writers_forms_are_read() {
        // Data before links, and lengths packed.
        let link = {
            let mut link = vec![];
            put_bytes(&mut link, 1, &part(1, 5).cid.to_bytes());
            link
        };
        let mut data = vec![];
        put_number(&mut data, 1, TYPE_FILE);
        put_bytes(&mut data, 4, &[5, 7]);
        put_number(&mut data, 7, 0o644);
        let mut block = vec![];
        put_bytes(&mut block, 1, &data);
        put_bytes(&mut block, 2, &link);
        put_bytes(&mut block, 2, &link);
        let Node::File(node) = decode(&block).unwrap() else { panic!("a file") };
        assert_eq!((node.len, node.children.len()), (12, 2));
    }

    #[test]
    fn directories_have_names() {
        let cid = part(1, 1).cid;
        let mut link = vec![];
        put_bytes(&mut link, 1, &cid.to_bytes());
        put_bytes(&mut link, 2, "modèle.gguf".as_bytes());
        put_number(&mut link, 3, 9);
        let mut block = vec![];
        put_bytes(&mut block, 2, &link);
        put_bytes(&mut block, 1, &[8, 1]);
        let entries = vec![DirectoryEntry { name: "modèle.gguf".into(), cid }];
        assert_eq!(decode(&block).unwrap(), Node::Directory(entries));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let check = |block: &[u8], expect: &str| {
            let error = decode(block).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        let node = |kind: u64, len: u64, lens: &[u64], bytes: &[u8], links: usize| {
            let (mut block, mut link, mut data) = (vec![], vec![], vec![]);
            put_bytes(&mut link, 1, &part(1, 5).cid.to_bytes());
            (0..links).for_each(|_| put_bytes(&mut block, 2, &link));
            put_number(&mut data, 1, kind);
            put_bytes(&mut data, 2, bytes);
            put_number(&mut data, 3, len);
            lens.iter().for_each(|&len| put_number(&mut data, 4, len));
            put_bytes(&mut block, 1, &data);
            block
        };
        check(b"", "no UnixFS data");
        check(&[0x0a, 0], "type 18446744073709551615");
        check(&[0x0a, 9, 8], "ends in a field");
        check(&[0x0f, 0], "unknown kind");
        check(&[0x1a, 0], "dag-pb does not have");
        check(&[0x12, 0], "link to nowhere");
        check(&[0x12, 2, 0x0a, 0, 0x0a, 2, 8, 2], "not one for each child");
        check(&[0x12, 2, 0x0a, 0, 0x0a, 6, 8, 2, 0x18, 1, 0x20, 1], "a CID's bytes");
        check(&node(TYPE_FILE, 10, &[5, 5], b"", 1), "not one for each child");
        check(&node(TYPE_FILE, 11, &[5, 5], b"", 2), "not the sum");
        check(&node(TYPE_FILE, 5, &[5, 0], b"", 2), "no bytes");
        check(&node(TYPE_FILE, 5, &[u64::MAX, 6], b"", 2), "64 bits");
        check(&node(TYPE_FILE, 6, &[5], b"x", 1), "beside links");
        check(&node(TYPE_FILE, 2, &[], b"x", 0), "not that of its bytes");
        check(&node(TYPE_FILE, 1, &[1], b"x", 0), "no children");
        check(&node(5, 1, &[], b"x", 0), "type 5");
        assert_eq!(Node::decode(Codec::Raw, &vec![0; BLOCK_LEN_MAX + 1]), Err(NodeError::TooLong(BLOCK_LEN_MAX + 1)));
    }

    #[test]
    fn mutated_blocks_do_not_panic_and_take_little() {
        let parts: Vec<Part> = (0..20).map(|i| part(i, 1 << i)).collect();
        let seeds = [encode_node(&parts), wrapped_leaf(&[7; 40])];
        let mut state = 1_u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize
        };
        for seed in &seeds {
            for _ in 0..20_000 {
                let mut block = seed.clone();
                for _ in 0..=random() % 4 {
                    let at = random() % block.len();
                    match random() % 3 {
                        0 => block[at] ^= 1 << (random() % 8),
                        1 => block.truncate(at.max(1)),
                        _ => block.insert(at, random() as u8),
                    }
                }
                let taken = allocation_counter::measure(|| {
                    let _ = decode(&block);
                });
                assert!(taken.bytes_max <= 64 * 1024, "{} bytes for {}", taken.bytes_max, block.len());
            }
        }
    }
}
