//! Mapped files: the only place that maps any.

use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io;

/// Bytes of a file, read only and shared with other processes that map it.
///
/// The file must not be written or shortened while it is mapped: like every mapping, this one would show the change,
/// or the process would be killed by SIGBUS. Replacing it by renaming another file over it is safe.
#[derive(Debug)]
pub(crate) struct Map(Mmap);

impl Map {
    /// The whole file.
    pub fn whole(file: &File) -> io::Result<Map> {
        map(&MmapOptions::new(), file)
    }

    /// `len` bytes from `offset` on, which have to be there.
    pub fn part(file: &File, offset: u64, len: usize) -> io::Result<Map> {
        map(MmapOptions::new().offset(offset).len(len), file)
    }

    /// Says that `bytes`, a part of this, are not needed for now, so that they do not count as this process's memory.
    /// They can still be read.
    pub fn release(&self, bytes: &[u8]) {
        let (start, from) = (self.0.as_ptr() as usize, bytes.as_ptr() as usize);
        let inside = start <= from && from + bytes.len() <= start + self.0.len();
        assert!(inside, "released bytes belong to the mapping");
        // It is only advice: a system that does not take it keeps the pages.
        #[cfg(unix)]
        let _ = dont_need(&self.0, from - start, bytes.len());
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[expect(unsafe_code, reason = "there is no safe way to map a file")]
fn map(options: &MmapOptions, file: &File) -> io::Result<Map> {
    // SAFETY: the mapping is shared and read-only, and `&[u8]` into it is only handed out while it is alive. That
    // nobody writes to the file meanwhile is a condition on the user that `Map` states; every reader of these bytes
    // takes any bytes, so a change gives wrong numbers or an error, not memory corruption here.
    Ok(Map(unsafe { options.map(file)? }))
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "dropping pages is unsafe for mappings of other kinds")]
fn dont_need(map: &Mmap, offset: usize, len: usize) -> io::Result<()> {
    // SAFETY: pages of a read-only mapping of a file are read from the file again, unchanged.
    unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) }
}
