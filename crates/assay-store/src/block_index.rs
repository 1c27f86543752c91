//! Which part of a file is which block, so that the file itself is the store of its blocks.
//!
//! ```text
//! FILE.dag: "assay/blocks/1 LENGTH MODIFIED_NS\n", then a CAR: the root, and every block that is not just file bytes
//! ```

use crate::{StoreError, blocks::cut};
use assay_dag::{CarReader, Cid, Codec, Layout, Node, car_header, car_section, wrapped_leaf};
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

const MAGIC: &str = "assay/blocks/1";
/// Longest index that is read: a terabyte in blocks of half a megabyte has one of 100 MB.
const INDEX_LEN_MAX: u64 = 256 << 20;
/// Longest first line.
const LINE_LEN_MAX: usize = 128;
/// Nodes above each other, as in an assembly.
const DEPTH_MAX: u32 = 32;

/// A file, its root, and its blocks that are more than bytes of the file.
#[derive(Clone, Debug)]
pub struct BlockIndex {
    /// The file.
    pub path: PathBuf,
    /// Its name.
    pub root: Cid,
    /// Its bytes.
    pub len: u64,
    modified_ns: u128,
    nodes: HashMap<Cid, Vec<u8>>,
}

/// Where a block's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// These bytes of the file.
    Raw {
        /// The first of them.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// These bytes of the file, wrapped as [`wrapped_leaf`] does it.
    Wrapped {
        /// The first of them.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// In the index.
    Node,
}

impl BlockIndex {
    /// Hashes the file at `path`; `progress` gets the bytes done.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn build(path: &Path, layout: Layout, progress: &mut dyn FnMut(u64)) -> Result<Self, StoreError> {
        let read = |source| StoreError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read)?;
        let mut nodes = HashMap::new();
        let root = cut(&mut file, layout, &mut |cid, block| drop(nodes.insert(cid, block)), progress).map_err(read)?;
        let (len, modified_ns) = state(path).map_err(read)?;
        Ok(Self { path: path.to_owned(), root: root.cid, len, modified_ns, nodes })
    }

    /// Of a file that was put together from blocks; `nodes` are those that are not just bytes of it.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn of(path: &Path, root: Cid, nodes: HashMap<Cid, Vec<u8>>) -> Result<Self, StoreError> {
        let read = |source| StoreError::Read { path: path.to_owned(), source };
        let (len, modified_ns) = state(path).map_err(read)?;
        Ok(Self { path: path.to_owned(), root, len, modified_ns, nodes })
    }

    /// Reads the index in `index` of the file at `path`. `None` if there is none, it is damaged, or the file changed
    /// since: it can be made anew.
    #[must_use]
    pub fn load(index: &Path, path: &Path) -> Option<Self> {
        let (len, modified_ns) = state(path).ok()?;
        let mut text = vec![];
        File::open(index).ok()?.take(INDEX_LEN_MAX).read_to_end(&mut text).ok()?;
        let end = text.iter().take(LINE_LEN_MAX).position(|&byte| byte == b'\n')?;
        if text.get(..end)? != first_line(len, modified_ns).as_bytes() {
            return None;
        }
        let mut reader = CarReader::new();
        reader.feed(text.get(end + 1..)?);
        let mut nodes = HashMap::new();
        while let Some((cid, block)) = reader.next_block().ok()? {
            if !cid.is_of(&block) {
                return None;
            }
            nodes.insert(cid, block);
        }
        reader.finish().ok()?;
        let root = *reader.roots()?.first()?;
        Some(Self { path: path.to_owned(), root, len, modified_ns, nodes })
    }

    /// Writes the index: beside, and renamed, so that a reader sees a whole one or none.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn save(&self, index: &Path) -> Result<(), StoreError> {
        let fresh = index.with_extension(format!("{}.new", std::process::id()));
        let write = || -> io::Result<()> {
            if let Some(dir) = index.parent() {
                fs::create_dir_all(dir)?;
            }
            let mut file = io::BufWriter::new(File::create(&fresh)?);
            writeln!(file, "{}", first_line(self.len, self.modified_ns))?;
            file.write_all(&car_header(&self.root))?;
            for (cid, block) in &self.nodes {
                file.write_all(&car_section(cid, block.len()))?;
                file.write_all(block)?;
            }
            file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&fresh, index)
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&fresh);
            StoreError::Write { path: index.to_owned(), source }
        })
    }

    /// The block `cid`, if it is one that is more than bytes of the file.
    #[must_use]
    pub fn node(&self, cid: &Cid) -> Option<&[u8]> {
        self.nodes.get(cid).map(Vec::as_slice)
    }

    /// Every block once, in the order of a depth-first walk.
    #[must_use]
    pub fn places(&self) -> Vec<(Cid, Place)> {
        let (mut places, mut seen) = (vec![], HashSet::new());
        let mut todo = vec![(self.root, 0, self.len, 0)];
        while let Some((cid, offset, len, depth)) = todo.pop() {
            if depth > DEPTH_MAX || !seen.insert(cid) {
                continue;
            }
            let Some(block) = self.nodes.get(&cid) else {
                places.push((
                    cid,
                    match cid.codec() {
                        Codec::Raw => Place::Raw { offset, len },
                        Codec::DagPb => Place::Wrapped { offset, len },
                    },
                ));
                continue;
            };
            places.push((cid, Place::Node));
            if let Ok(Node::File(node)) = Node::decode(cid.codec(), block) {
                let first = todo.len();
                let mut at = offset;
                for child in &node.children {
                    todo.push((child.cid, at, child.len, depth + 1));
                    at = at.saturating_add(child.len);
                }
                todo[first..].reverse();
            }
        }
        places
    }

    /// The block at `place`, checked: `None` if the file no longer has it.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn read(&self, cid: &Cid, place: Place) -> Result<Option<Vec<u8>>, StoreError> {
        let block = match place {
            Place::Node => self.nodes.get(cid).cloned(),
            Place::Raw { offset, len } => self.part(offset, len)?,
            Place::Wrapped { offset, len } => self.part(offset, len)?.map(|bytes| wrapped_leaf(&bytes)),
        };
        Ok(block.filter(|block| cid.is_of(block)))
    }

    fn part(&self, offset: u64, len: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || -> io::Result<Option<Vec<u8>>> {
            let mut file = File::open(&self.path)?;
            io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
            let mut bytes = vec![];
            BufReader::new(file).take(len.min(assay_dag::BLOCK_LEN_MAX as u64)).read_to_end(&mut bytes)?;
            Ok((bytes.len() as u64 == len).then_some(bytes))
        };
        read().map_err(|source| StoreError::Read { path: self.path.clone(), source })
    }
}

fn first_line(len: u64, modified_ns: u128) -> String {
    format!("{MAGIC} {len} {modified_ns}")
}

/// Length and time of last change.
fn state(path: &Path) -> io::Result<(u64, u128)> {
    let metadata = fs::metadata(path)?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    Ok((metadata.len(), modified))
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_dag::{Leaves, Version};

    fn bytes() -> Vec<u8> {
        (0..1000_u32).map(|i| ((i * i) >> 3) as u8).collect()
    }

    fn layout(leaves: Leaves) -> Layout {
        let version = if leaves == Leaves::Raw { Version::V1 } else { Version::V0 };
        Layout { chunk_len: 64, links_max: 3, leaves, version }
    }

    #[test]
    fn every_block_of_a_file_can_be_read_and_the_index_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, saved) = (dir.path().join("file"), dir.path().join("deep/file.dag"));
        fs::write(&path, bytes()).unwrap();
        for leaves in [Leaves::Raw, Leaves::Wrapped] {
            let index = BlockIndex::build(&path, layout(leaves), &mut |_| ()).unwrap();
            index.save(&saved).unwrap();
            let loaded = BlockIndex::load(&saved, &path).unwrap();
            assert_eq!((loaded.root, loaded.len), (index.root, 1000));
            let places = loaded.places();
            // 16 leaves, and 6 + 2 + 1 nodes above.
            assert_eq!((places.len(), places[0].0), (25, index.root));
            assert_eq!(places, index.places());
            for (cid, place) in places {
                assert!(cid.is_of(&loaded.read(&cid, place).unwrap().unwrap()));
            }
        }
    }

    #[test]
    fn a_changed_file_has_no_index_and_gives_no_wrong_block() {
        let dir = tempfile::tempdir().unwrap();
        let (path, saved) = (dir.path().join("file"), dir.path().join("file.dag"));
        fs::write(&path, bytes()).unwrap();
        let index = BlockIndex::build(&path, layout(Leaves::Raw), &mut |_| ()).unwrap();
        index.save(&saved).unwrap();
        let (cid, place) = index.places().into_iter().find(|(_, place)| matches!(place, Place::Raw { .. })).unwrap();
        let mut other = bytes();
        other[5] ^= 1;
        fs::write(&path, &other).unwrap();
        assert_eq!(index.read(&cid, place).unwrap(), None);
        fs::write(&path, &other[..10]).unwrap();
        assert_eq!(index.read(&cid, place).unwrap(), None);
        assert!(BlockIndex::load(&saved, &path).is_none());
        fs::remove_file(&path).unwrap();
        assert!(matches!(index.read(&cid, place), Err(StoreError::Read { .. })));
    }

    #[test]
    fn a_damaged_index_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (path, saved) = (dir.path().join("file"), dir.path().join("file.dag"));
        fs::write(&path, bytes()).unwrap();
        BlockIndex::build(&path, layout(Leaves::Raw), &mut |_| ()).unwrap().save(&saved).unwrap();
        let whole = fs::read(&saved).unwrap();
        for at in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&saved, &damaged).unwrap();
            assert!(BlockIndex::load(&saved, &path).is_none_or(|index| !index.places().is_empty()));
            fs::write(&saved, &whole[..at]).unwrap();
            let cut = BlockIndex::load(&saved, &path);
            assert!(cut.is_none_or(|index| index.places().len() < 25));
        }
    }
}
