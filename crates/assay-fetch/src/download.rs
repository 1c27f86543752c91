//! One file from one address, in one piece: ranges, resumed after a break, checked against a published SHA-256.

use crate::{
    http::{Http, HttpError, Reply, Url},
    pull::part_of,
};
use hyper::header;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{runtime::Handle, sync::mpsc};

/// Breaks in a row without a byte between them after which it is given up.
const BREAKS_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);
const PIECES_MAX: usize = 16;
/// Longest note beside a partial file.
const NOTE_LEN_MAX: u64 = 4096;

/// What to get.
#[derive(Clone, Debug)]
pub struct Download {
    /// From where; redirects are followed, as that is how hosts of large files work.
    pub url: Url,
    /// Sent to the host of `url` and to nobody else.
    pub secret: Option<String>,
    /// Its hash, if it was published.
    pub sha256: Option<[u8; 32]>,
    /// How large it may be.
    pub len_max: u64,
}

/// What came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Downloaded {
    /// Bytes of the file.
    pub len: u64,
    /// Those that an earlier try had left.
    pub resumed: u64,
    /// Its hash.
    pub sha256: [u8; 32],
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The host does not give it.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Not the bytes that were published.
    #[error("{url} sent a file with SHA-256 {has}, published is {wanted}; it was deleted")]
    WrongHash {
        /// From where.
        url: Url,
        /// What came.
        has: String,
        /// What should have.
        wanted: String,
    },
    /// It goes on and on.
    #[error("{url} has a file of more than {max} bytes")]
    TooLarge {
        /// From where.
        url: Url,
        /// The limit.
        max: u64,
    },
    /// It ends, and says that it should not.
    #[error("{url} sent {has} of {len} bytes")]
    Short {
        /// From where.
        url: Url,
        /// What came.
        has: u64,
        /// What was announced.
        len: u64,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Disk {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Gets a file and puts it at `out`. What an earlier try left is taken up if the host still has the same file. Blocks the
/// calling thread, which must not be one of the runtime's. `progress` gets bytes done and, if it is known, their number.
///
/// # Errors
/// [`DownloadError`].
pub fn download(
    runtime: &Handle,
    http: &Http,
    what: &Download,
    out: &Path,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<Downloaded, DownloadError> {
    let mut part = Part::open(out, what)?;
    let resumed = part.len;
    let mut breaks = 0;
    loop {
        let before = part.len;
        match part.fill(runtime, http, what, progress) {
            Ok(()) => break,
            Err(DownloadError::Http(error @ HttpError::Broken { .. })) => {
                breaks = if part.len > before { 0 } else { breaks + 1 };
                if breaks == BREAKS_MAX {
                    return Err(error.into());
                }
                tracing::debug!(%error, "a download broke and goes on");
                std::thread::sleep(PAUSE * breaks);
            }
            Err(error) => return Err(error),
        }
    }
    part.finish(what, out).map(|(len, sha256)| Downloaded { len, resumed: resumed.min(len), sha256 })
}

/// The partial file, and a note beside it of what it is a part of.
struct Part {
    path: PathBuf,
    note: PathBuf,
    file: File,
    len: u64,
    hash: Sha256,
    /// The host's name for this state of the file.
    tag: Option<String>,
}

impl Part {
    fn open(out: &Path, what: &Download) -> Result<Self, DownloadError> {
        let path = part_of(out);
        let mut note = path.as_os_str().to_owned();
        note.push(".note");
        let note = PathBuf::from(note);
        let open = || -> io::Result<Self> {
            if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
                fs::create_dir_all(dir)?;
            }
            let mut text = String::new();
            if let Ok(file) = File::open(&note) {
                file.take(NOTE_LEN_MAX).read_to_string(&mut text)?;
            }
            let (known, tag) = text.split_once('\n').unwrap_or_default();
            let tag = (!tag.is_empty()).then(|| tag.to_owned());
            // Without a hash, only the host can tell whether it is the same file.
            let is_same = known == identity(what) && (what.sha256.is_some() || tag.is_some());
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(!is_same).open(&path)?;
            let (mut hash, mut len, mut piece) = (Sha256::new(), 0, vec![0; 1 << 20]);
            loop {
                match file.read(&mut piece)? {
                    0 => break,
                    read => {
                        hash.update(&piece[..read]);
                        len += read as u64;
                    }
                }
            }
            Ok(Self { path: path.clone(), note: note.clone(), file, len, hash, tag: tag.filter(|_| is_same) })
        };
        open().map_err(|source| DownloadError::Disk { path: path.clone(), source })
    }

    fn disk(&self, source: io::Error) -> DownloadError {
        DownloadError::Disk { path: self.path.clone(), source }
    }

    /// One request, to the end of the file or until it breaks.
    fn fill(
        &mut self,
        runtime: &Handle,
        http: &Http,
        what: &Download,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<(), DownloadError> {
        let mut headers = vec![];
        if self.len > 0 {
            headers.push((header::RANGE, format!("bytes={}-", self.len)));
            if let Some(tag) = self.tag.clone().filter(|_| what.sha256.is_none()) {
                headers.push((header::IF_RANGE, tag));
            }
        }
        let mut reply = runtime.block_on(http.follow(&what.url, &headers, what.secret.as_deref()))?;
        let len = match reply.status.as_u16() {
            206 => match range(&reply).filter(|&(from, _)| from == self.len) {
                Some((_, len)) => Some(len),
                None => return Err(reply.unexpected().into()),
            },
            200 => {
                self.restart().map_err(|error| self.disk(error))?;
                reply.header(header::CONTENT_LENGTH).and_then(|len| len.parse().ok())
            }
            // All of it is there, or more than all.
            416 if self.len > 0 => {
                let is_whole = reply.header(header::CONTENT_RANGE) == Some(&format!("bytes */{}", self.len));
                if is_whole {
                    return Ok(());
                }
                self.restart().map_err(|error| self.disk(error))?;
                return Err(HttpError::Broken { url: what.url.clone(), what: "its file has changed".into() }.into());
            }
            _ => return Err(reply.unexpected().into()),
        };
        let too_large = || DownloadError::TooLarge { url: what.url.clone(), max: what.len_max };
        if len.is_some_and(|len| len > what.len_max) {
            return Err(too_large());
        }
        self.keep_note(&reply, what).map_err(|error| self.disk(error))?;
        let (sender, mut receiver) = mpsc::channel(PIECES_MAX);
        let task = runtime.spawn(async move {
            loop {
                let piece = reply.piece().await;
                let is_end = !matches!(piece, Ok(Some(_)));
                if sender.send(piece).await.is_err() || is_end {
                    return;
                }
            }
        });
        let mut end = Ok(());
        while let Some(piece) = receiver.blocking_recv() {
            match piece {
                Ok(Some(piece)) if self.len + piece.len() as u64 > what.len_max => end = Err(too_large()),
                Ok(Some(piece)) => end = self.append(&piece).map_err(|error| self.disk(error)),
                Ok(None) => break,
                Err(error) => end = Err(error.into()),
            }
            progress(self.len, len);
            if end.is_err() {
                break;
            }
        }
        task.abort();
        end?;
        match len {
            Some(len) if self.len != len => Err(DownloadError::Short { url: what.url.clone(), has: self.len, len }),
            _ => Ok(()),
        }
    }

    fn append(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        self.hash.update(piece);
        self.len += piece.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.len, self.hash, self.tag) = (0, Sha256::new(), None);
        Ok(())
    }

    fn keep_note(&mut self, reply: &Reply, what: &Download) -> io::Result<()> {
        // A weak tag does not promise the same bytes.
        let tag = reply.header(header::ETAG).filter(|tag| !tag.starts_with("W/"));
        self.tag = tag.map(str::to_owned);
        fs::write(&self.note, format!("{}\n{}", identity(what), self.tag.as_deref().unwrap_or_default()))
    }

    fn finish(self, what: &Download, out: &Path) -> Result<(u64, [u8; 32]), DownloadError> {
        let has: [u8; 32] = self.hash.clone().finalize().into();
        if let Some(wanted) = what.sha256.filter(|wanted| *wanted != has) {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_file(&self.note);
            let (has, wanted) = (hex(&has), hex(&wanted));
            return Err(DownloadError::WrongHash { url: what.url.clone(), has, wanted });
        }
        self.file.sync_all().and_then(|()| fs::rename(&self.path, out)).map_err(|error| self.disk(error))?;
        let _ = fs::remove_file(&self.note);
        Ok((self.len, has))
    }
}

/// What a partial file is a part of. A hash says it whatever the address is.
fn identity(what: &Download) -> String {
    what.sha256.map_or_else(|| what.url.to_string(), |hash| format!("sha256:{}", hex(&hash)))
}

/// First byte and whole length of a part.
fn range(reply: &Reply) -> Option<(u64, u64)> {
    let (range, len) = reply.header(header::CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, len.parse().ok()?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
