//! Looks at a state file without changing it: redb repairs what it opens, and a damaged file must stay as it is for
//! whoever wants to rescue it.
//!
//! redb runs here on a copy-on-write view of the file: what it writes stays in memory and is thrown away.

use redb::{BackendError, StorageBackend, backends::FileBackend};
use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Bound,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

const PAGE: u64 = 4096;

/// A file whose changes stay in memory. Locks are those of the real file.
#[derive(Debug)]
pub(super) struct CopyOnWrite {
    locks: FileBackend,
    file: File,
    view: Mutex<View>,
}

#[derive(Debug)]
struct View {
    /// What redb believes the file's length to be.
    len: u64,
    /// Bytes of the file that may still be seen: cutting and growing again gives zeros.
    file_len: u64,
    pages: HashMap<u64, Box<[u8; PAGE as usize]>>,
}

impl CopyOnWrite {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let locks = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
        let len = file.metadata()?.len();
        Ok(Self { locks, file, view: Mutex::new(View { len, file_len: len, pages: HashMap::new() }) })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page as it would be now.
    fn page(&self, view: &View, index: u64) -> io::Result<Box<[u8; PAGE as usize]>> {
        if let Some(page) = view.pages.get(&index) {
            return Ok(page.clone());
        }
        let mut page = Box::new([0; PAGE as usize]);
        let start = index.saturating_mul(PAGE);
        let known = usize::try_from(view.file_len.saturating_sub(start).min(PAGE)).unwrap_or(0);
        self.file.read_exact_at(&mut page[..known], start)?;
        Ok(page)
    }
}

/// Splits a byte range at page borders: page index, bytes in the page, bytes in the buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done as u64;
        let in_page = usize::try_from(at % PAGE).unwrap_or(0);
        let count = (len - done).min(PAGE as usize - in_page);
        let piece = (at / PAGE, in_page..in_page + count, done..done + count);
        done += count;
        Some(piece)
    })
}

impl StorageBackend for CopyOnWrite {
    fn len(&self) -> io::Result<u64> {
        Ok(self.view().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let view = self.view();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > view.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (index, in_page, in_buffer) in pieces(offset, out.len()) {
            out[in_buffer].copy_from_slice(&self.page(&view, index)?[in_page]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut view = self.view();
        view.len = len;
        view.file_len = view.file_len.min(len);
        view.pages.retain(|index, _| index.saturating_mul(PAGE) < len);
        let border = len / PAGE;
        if let Some(page) = view.pages.get_mut(&border) {
            page[usize::try_from(len % PAGE).unwrap_or(0)..].fill(0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut view = self.view();
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > view.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (index, in_page, in_buffer) in pieces(offset, data.len()) {
            let mut page = self.page(&view, index)?;
            page[in_page].copy_from_slice(&data[in_buffer]);
            view.pages.insert(index, page);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.locks.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.locks.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.locks.query_lock_range(start, end)
    }
}
