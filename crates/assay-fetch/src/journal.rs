//! What an interrupted pull has: beside the partial file, one record for each block that was checked.
//!
//! A CAR: nodes are there whole, a leaf whose bytes are in the partial file has its name and no bytes. Nothing in here is
//! believed: what is taken up again is hashed again. So a record may be lost, torn or wrong; it may only cost a block.

use assay_dag::{CarReader, Cid, car_header, car_section};
use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

const PIECE_LEN: usize = 1 << 20;

/// An open journal, which is this process's alone.
#[derive(Debug)]
pub(crate) struct Journal(File);

/// What a journal said when it was opened.
#[derive(Default, Debug)]
pub(crate) struct Left {
    pub nodes: HashMap<Cid, Vec<u8>>,
    pub leaves: HashSet<Cid>,
}

impl Journal {
    /// Opens or creates the journal for `root`; one for another root is emptied. `None` if another process has it.
    pub fn open(path: &Path, root: Cid) -> io::Result<Option<(Self, Left)>> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let (left, end) = read(&mut file, root)?;
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        if end == 0 {
            file.write_all(&car_header(&root))?;
        }
        Ok(Some((Self(file), left)))
    }

    /// A block that is more than bytes of the file.
    pub fn node(&mut self, cid: &Cid, block: &[u8]) -> io::Result<()> {
        let mut record = car_section(cid, block.len());
        record.extend_from_slice(block);
        self.0.write_all(&record)
    }

    /// A block whose bytes are in the partial file.
    pub fn leaf(&mut self, cid: &Cid) -> io::Result<()> {
        self.0.write_all(&car_section(cid, 0))
    }
}

/// The records up to the first that is damaged or cut, and where that is.
fn read(file: &mut File, root: Cid) -> io::Result<(Left, u64)> {
    let (mut reader, mut left, mut end) = (CarReader::new(), Left::default(), 0);
    let mut piece = vec![0; PIECE_LEN];
    loop {
        let len = file.read(&mut piece)?;
        if len == 0 {
            return Ok((left, end));
        }
        reader.feed(&piece[..len]);
        loop {
            let next = reader.next_block();
            if reader.roots().is_some_and(|roots| roots != [root]) {
                return Ok((Left::default(), 0));
            }
            if reader.roots().is_some() {
                end = reader.position();
            }
            match next {
                Ok(Some((cid, block))) if block.is_empty() => drop(left.leaves.insert(cid)),
                Ok(Some((cid, block))) => drop(left.nodes.insert(cid, block)),
                Ok(None) => break,
                Err(_) => return Ok((left, end)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_dag::{Codec, Version};

    fn cid(byte: u8) -> Cid {
        Cid::of(Version::V1, Codec::Raw, &[byte])
    }

    #[test]
    fn records_come_back_and_a_torn_one_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, left) = Journal::open(&path, cid(0)).unwrap().unwrap();
        assert_eq!((left.nodes.len(), left.leaves.len()), (0, 0));
        journal.node(&cid(1), b"node").unwrap();
        journal.leaf(&cid(2)).unwrap();
        let whole = std::fs::metadata(&path).unwrap().len();
        journal.node(&cid(3), &[9; 100]).unwrap();
        assert!(Journal::open(&path, cid(0)).unwrap().is_none(), "it is in use");
        drop(journal);
        for cut in 1..100 {
            File::options().write(true).open(&path).unwrap().set_len(whole + cut).unwrap();
            let (journal, left) = Journal::open(&path, cid(0)).unwrap().unwrap();
            assert_eq!(left.nodes, HashMap::from([(cid(1), b"node".to_vec())]));
            assert_eq!(left.leaves, HashSet::from([cid(2)]));
            assert_eq!(journal.0.metadata().unwrap().len(), whole);
        }
        let (mut journal, _) = Journal::open(&path, cid(0)).unwrap().unwrap();
        journal.leaf(&cid(4)).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path, cid(0)).unwrap().unwrap().1.leaves.len(), 2);
    }

    #[test]
    fn a_journal_of_another_root_or_of_nothing_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path, cid(0)).unwrap().unwrap();
        journal.leaf(&cid(2)).unwrap();
        drop(journal);
        let (journal, left) = Journal::open(&path, cid(1)).unwrap().unwrap();
        assert!(left.leaves.is_empty());
        drop(journal);
        for damage in [&b""[..], b"\x3a", b"no journal at all", &[0xff; 50]] {
            std::fs::write(&path, damage).unwrap();
            let (mut journal, left) = Journal::open(&path, cid(1)).unwrap().unwrap();
            assert!(left.leaves.is_empty() && left.nodes.is_empty());
            journal.leaf(&cid(5)).unwrap();
            drop(journal);
            assert!(Journal::open(&path, cid(1)).unwrap().unwrap().1.leaves.contains(&cid(5)));
        }
    }
}
