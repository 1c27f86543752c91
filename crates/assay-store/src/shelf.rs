//! The files of a folder whose blocks are given away.

use crate::{BlockIndex, Place, StoreError};
use assay_dag::{Cid, Codec, Node};
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, RwLock},
};

/// Blocks of files, found by their hashes.
///
/// A block is read from its file each time and given only if it still is what its name says.
#[derive(Default, Debug)]
pub struct Shelf(RwLock<Files>);

#[derive(Default, Debug)]
struct Files {
    files: Vec<(String, Arc<BlockIndex>)>,
    blocks: HashMap<[u8; 32], (Arc<BlockIndex>, Cid, Place)>,
}

/// A file on a shelf.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shelved {
    /// The name it was put there under.
    pub name: String,
    /// Its root.
    pub root: Cid,
    /// Its bytes.
    pub len: u64,
    /// Where it is.
    pub path: PathBuf,
}

impl Shelf {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file; one of the same name makes place for it.
    pub fn put(&self, name: &str, index: BlockIndex) {
        let mut inner = self.0.write().expect("nobody panics while holding this lock");
        inner.files.retain(|(other, _)| other != name);
        inner.files.push((name.to_owned(), Arc::new(index)));
        let Files { files, blocks } = &mut *inner;
        blocks.clear();
        for (_, index) in files.iter() {
            for (cid, place) in index.places() {
                blocks.insert(*cid.digest(), (Arc::clone(index), cid, place));
            }
        }
    }

    /// What is there.
    #[must_use]
    pub fn files(&self) -> Vec<Shelved> {
        let inner = self.0.read().expect("nobody panics while holding this lock");
        let shelved = |(name, index): &(String, Arc<BlockIndex>)| Shelved {
            name: name.clone(),
            root: index.root,
            len: index.len,
            path: index.path.clone(),
        };
        inner.files.iter().map(shelved).collect()
    }

    /// Whether the block is there, as far as the index knows.
    #[must_use]
    pub fn has(&self, cid: &Cid) -> bool {
        self.find(cid).is_some()
    }

    /// The block; `None` if it is not there or its file was changed.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn block(&self, cid: &Cid) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((index, own, place)) = self.find(cid) else { return Ok(None) };
        index.read(&own, place)
    }

    /// Children of the block and the bytes of the file in each; none if it is a leaf, or not there.
    #[must_use]
    pub fn children(&self, cid: &Cid) -> Vec<(Cid, u64)> {
        let Some((index, own, Place::Node)) = self.find(cid) else { return vec![] };
        let node = index.node(&own).and_then(|block| Node::decode(Codec::DagPb, block).ok());
        match node {
            Some(Node::File(node)) => node.children.iter().map(|child| (child.cid, child.len)).collect(),
            _ => vec![],
        }
    }

    /// Bytes of the file in and below the block.
    #[must_use]
    pub fn len_of(&self, cid: &Cid) -> Option<u64> {
        let (index, own, place) = self.find(cid)?;
        match place {
            Place::Raw { len, .. } | Place::Wrapped { len, .. } => Some(len),
            Place::Node => match Node::decode(Codec::DagPb, index.node(&own)?).ok()? {
                Node::File(node) => Some(node.len),
                Node::Leaf(bytes) => Some(bytes.len() as u64),
                Node::Directory(_) => None,
            },
        }
    }

    /// Where the block is; a name that says another codec for the same bytes names another thing.
    fn find(&self, cid: &Cid) -> Option<(Arc<BlockIndex>, Cid, Place)> {
        let inner = self.0.read().expect("nobody panics while holding this lock");
        inner.blocks.get(cid.digest()).filter(|(_, own, _)| own.codec() == cid.codec()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::Shelf;
    use crate::BlockIndex;
    use assay_dag::{Cid, Codec, Layout, Leaves, Version};

    #[test]
    fn blocks_are_found_whoever_asks_in_which_version() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { chunk_len: 10, links_max: 4, leaves: Leaves::Wrapped, version: Version::V0 };
        let shelf = Shelf::new();
        for (name, byte) in [("a", 1_u8), ("b", 2), ("a", 3)] {
            let path = dir.path().join(format!("{name}{byte}"));
            std::fs::write(&path, vec![byte; 95]).unwrap();
            shelf.put(name, BlockIndex::build(&path, layout, &mut |_| ()).unwrap());
        }
        let files = shelf.files();
        assert_eq!(files.iter().map(|file| (&*file.name, file.len)).collect::<Vec<_>>(), [("b", 95), ("a", 95)]);
        let root = files[1].root;
        assert_eq!((shelf.len_of(&root), shelf.children(&root).iter().map(|child| child.1).sum()), (Some(95), 95_u64));
        let other = Cid::from_digest(Version::V1, Codec::DagPb, *root.digest());
        assert!(other != root && other.is_of(&shelf.block(&other).unwrap().unwrap()));
        assert!(!shelf.has(&Cid::from_digest(Version::V1, Codec::Raw, *root.digest())));
        let leaf = shelf.children(&shelf.children(&root)[0].0)[0];
        assert_eq!((leaf.1, shelf.len_of(&leaf.0), shelf.children(&leaf.0).len()), (10, Some(10), 0));
        // The first file of that name is gone.
        assert_eq!(shelf.block(&Cid::of(Version::V1, Codec::Raw, b"x")).unwrap(), None);
    }
}
