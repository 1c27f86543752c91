//! From a root CID to a file, by the blocks of sources that nobody vouches for.
//!
//! One thread, the caller's, holds the assembly, the file and the journal; tasks of the runtime only fetch. A block is
//! hashed, then written, then noted in the journal. So whatever the moment at which the process dies, the next pull has
//! every block that was noted, and fetches only the others.

use crate::{
    http::Http,
    journal::{Journal, Left},
    source::{Source, SourceError},
};
use assay_dag::{Assembly, AssemblyError, CarError, CarReader, Cid, Codec, Limits, wrapped_leaf};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{runtime::Handle, sync::mpsc, task::JoinSet};

/// Failures in a row after which a source is left alone.
const STRIKES_MAX: u32 = 5;
/// Failures of one source at one block after which it is not asked for that again.
const TRIES_MAX: u32 = 3;
/// Wait after the first failure; the next ones wait longer.
const PAUSE: Duration = Duration::from_millis(100);
/// Pieces of a stream that were received and not yet read.
const PIECES_MAX: usize = 16;
const COPY_LEN: u64 = 1 << 20;

/// How blocks come.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Way {
    /// One by one, over many connections to all sources.
    #[default]
    Blocks,
    /// As one stream of the first source that has it; what is missing afterwards, one by one.
    Car,
}

/// From whom, and how.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Where blocks may be; they are asked, nobody else.
    pub sources: Vec<Source>,
    /// Requests to one source at a time.
    pub per_source: usize,
    /// How blocks come.
    pub way: Way,
    /// How large the file may be.
    pub limits: Limits,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes of the file that are there.
    pub done: u64,
    /// Bytes of the file, once known.
    pub len: Option<u64>,
    /// Bytes that came over the network in this pull.
    pub fetched: u64,
    /// Sources that are still asked.
    pub sources: usize,
}

/// A source that is no longer asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dropped {
    /// Its address.
    pub source: String,
    /// What it did.
    pub why: String,
    /// Whether it sent wrong bytes, rather than none.
    pub lied: bool,
}

/// What a pull came to.
#[derive(Debug)]
pub struct Pulled {
    /// Bytes of the file.
    pub len: u64,
    /// Bytes that were there from an earlier, interrupted pull.
    pub resumed: u64,
    /// Bytes that came over the network.
    pub fetched: u64,
    /// Blocks that did.
    pub blocks: u64,
    /// Sources that were no use.
    pub dropped: Vec<Dropped>,
    /// Blocks that are more than bytes of the file.
    pub nodes: HashMap<Cid, Vec<u8>>,
}

/// Why there is no file. What was checked stays for the next try.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// What the CID names is no file that can be had.
    #[error(transparent)]
    Content(AssemblyError),
    /// Nobody has a block, or nobody is left.
    #[error("block {cid} is not to be had: {}", why.join("; "))]
    Unavailable {
        /// The block.
        cid: Cid,
        /// What each source did.
        why: Vec<String>,
    },
    /// A file cannot be written or read.
    #[error("cannot write {}: {source}", path.display())]
    Disk {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room.
    #[error("no room for {} more bytes in {}: free some and pull again, what is there is kept", missing, path.display())]
    Full {
        /// The partial file.
        path: PathBuf,
        /// What it lacks.
        missing: u64,
    },
    /// Two at a time would write over each other.
    #[error("{} is being pulled by another process", path.display())]
    InUse {
        /// The partial file.
        path: PathBuf,
    },
    /// The runtime is gone.
    #[error("interrupted")]
    Interrupted,
}

/// The file that is written until all of `out` is there.
#[must_use]
pub fn part_of(out: &Path) -> PathBuf {
    with_ending(out, ".part")
}

/// The journal beside it.
#[must_use]
pub fn journal_of(out: &Path) -> PathBuf {
    with_ending(out, ".part.journal")
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Gets the file that `root` names and puts it at `out`, replacing what is there. Blocks the calling thread, which must
/// not be one of the runtime's.
///
/// # Errors
/// [`PullError`].
pub fn pull(
    runtime: &Handle,
    http: &Http,
    root: Cid,
    out: &Path,
    options: &PullOptions,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Pulled, PullError> {
    let mut work = Work::open(root, out, options.limits)?;
    let mut crowd = Crowd::new(runtime, http, options);
    work.tell(&crowd, progress);
    if options.way == Way::Car && work.resumed == 0 && work.nodes.is_empty() {
        by_car(&mut work, &mut crowd, progress)?;
    }
    by_blocks(&mut work, &mut crowd, progress)?;
    work.finish(out)?;
    Ok(Pulled {
        len: work.assembly.done(),
        resumed: work.resumed,
        fetched: work.fetched,
        blocks: work.blocks,
        dropped: crowd.dropped,
        nodes: work.nodes,
    })
}

/// The file that is being put together.
struct Work {
    assembly: Assembly,
    path: PathBuf,
    file: File,
    journal: Journal,
    journal_path: PathBuf,
    nodes: HashMap<Cid, Vec<u8>>,
    resumed: u64,
    fetched: u64,
    blocks: u64,
}

/// Where a block comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Network,
    /// The partial file has it there, and the journal knows.
    Disk {
        offset: u64,
    },
}

impl Work {
    fn open(root: Cid, out: &Path, limits: Limits) -> Result<Self, PullError> {
        let (path, journal_path) = (part_of(out), journal_of(out));
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |source| PullError::Disk { path, source }
        };
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir).map_err(disk(dir))?;
        }
        let opened = Journal::open(&journal_path, root).map_err(disk(&journal_path))?;
        let (journal, left) = opened.ok_or_else(|| PullError::InUse { path: path.clone() })?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(disk(&path))?;
        let assembly = Assembly::new(root, limits);
        let nodes = HashMap::new();
        let mut work = Self { assembly, path, file, journal, journal_path, nodes, resumed: 0, fetched: 0, blocks: 0 };
        work.resume(left)?;
        Ok(work)
    }

    /// Takes what is there, if it is what the journal says.
    fn resume(&mut self, mut left: Left) -> Result<(), PullError> {
        let mut missing = vec![];
        while let Some(cid) = self.assembly.next_block() {
            let (offset, len) = self.assembly.place(&cid).unwrap_or_default();
            let block = if let Some(block) = left.nodes.remove(&cid) {
                Some(block)
            } else if left.leaves.contains(&cid) {
                self.stored(&cid, offset, len)
            } else {
                None
            };
            let Some(block) = block.filter(|block| cid.is_of(block)) else {
                missing.push(cid);
                continue;
            };
            self.take(&cid, &block, Origin::Disk { offset }).map_err(|error| match error {
                Refused::Block(error) => PullError::Content(error),
                Refused::Disk(error) => error,
            })?;
        }
        for cid in missing.into_iter().rev() {
            self.assembly.put_back(cid);
        }
        self.resumed = self.assembly.done();
        Ok(())
    }

    /// The leaf that may be at `offset` of the partial file.
    fn stored(&self, cid: &Cid, offset: u64, len: Option<u64>) -> Option<Vec<u8>> {
        let end = self.file.metadata().ok()?.len();
        let len = len.unwrap_or(end).min(assay_dag::BLOCK_LEN_MAX as u64);
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(if cid.codec() == Codec::Raw { bytes } else { wrapped_leaf(&bytes) })
    }

    /// Checks a block, writes what it holds, notes it.
    fn take(&mut self, cid: &Cid, block: &[u8], origin: Origin) -> Result<(), Refused> {
        let had_len = self.assembly.len().is_some();
        let placed = self.assembly.accept(cid, block).map_err(Refused::Block)?;
        let is_leaf = !placed.offsets.is_empty();
        let is_in_file = is_leaf && (cid.codec() == Codec::Raw || wrapped_leaf(placed.data) == block);
        let write = || -> io::Result<()> {
            if let Some(len) = self.assembly.len().filter(|_| !had_len) {
                self.file.set_len(len)?;
            }
            for &offset in &placed.offsets {
                if origin != (Origin::Disk { offset }) || !is_in_file {
                    self.file.write_all_at(placed.data, offset)?;
                }
            }
            placed.copies.iter().try_for_each(|copy| copy_within(&self.file, copy.from, copy.to, copy.len))
        };
        let written = write();
        let unwritten = placed.data.len() as u64 * placed.offsets.len() as u64;
        written.and_then(|()| self.note(cid, block, is_in_file, origin)).map_err(|error| self.disk(unwritten, error))
    }

    fn note(&mut self, cid: &Cid, block: &[u8], is_in_file: bool, origin: Origin) -> io::Result<()> {
        if origin == Origin::Network {
            self.fetched += block.len() as u64;
            self.blocks += 1;
            if is_in_file { self.journal.leaf(cid)? } else { self.journal.node(cid, block)? }
        }
        if !is_in_file {
            self.nodes.insert(*cid, block.to_vec());
        }
        Ok(())
    }

    /// `unwritten` bytes were accepted and could not be written.
    fn disk(&self, unwritten: u64, source: io::Error) -> Refused {
        let missing = self.assembly.len().unwrap_or(0).saturating_sub(self.assembly.done()) + unwritten;
        Refused::Disk(disk_error(&self.path, missing, source))
    }

    fn finish(&mut self, out: &Path) -> Result<(), PullError> {
        let disk = |source| PullError::Disk { path: out.to_owned(), source };
        self.file.sync_all().map_err(disk)?;
        fs::rename(&self.path, out).map_err(disk)?;
        let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(disk)?;
        // Only now: a crash before leaves a whole file and a journal, which costs nothing.
        let _ = fs::remove_file(&self.journal_path);
        Ok(())
    }

    fn tell(&self, crowd: &Crowd<'_>, progress: &mut dyn FnMut(&Progress)) {
        let sources = crowd.members.iter().filter(|member| member.alive).count();
        progress(&Progress { done: self.assembly.done(), len: self.assembly.len(), fetched: self.fetched, sources });
    }
}

/// Why a block was not taken.
enum Refused {
    Block(AssemblyError),
    Disk(PullError),
}

fn disk_error(path: &Path, missing: u64, source: io::Error) -> PullError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PullError::Full { path, missing },
        _ => PullError::Disk { path, source },
    }
}

fn copy_within(file: &File, from: u64, to: u64, len: u64) -> io::Result<()> {
    let mut buffer = vec![0; len.min(COPY_LEN) as usize];
    let mut done = 0;
    while done < len {
        let part = &mut buffer[..(len - done).min(COPY_LEN) as usize];
        file.read_exact_at(part, from + done)?;
        file.write_all_at(part, to + done)?;
        done += part.len() as u64;
    }
    Ok(())
}

/// The sources, and what each has done so far.
struct Crowd<'a> {
    runtime: &'a Handle,
    http: &'a Http,
    per_source: usize,
    members: Vec<Member>,
    dropped: Vec<Dropped>,
}

struct Member {
    source: Source,
    alive: bool,
    running: usize,
    /// Failures since the last success.
    strikes: u32,
    /// What it could not give, and how often.
    tries: HashMap<Cid, u32>,
    /// Why, the last time.
    trouble: Option<String>,
}

impl<'a> Crowd<'a> {
    fn new(runtime: &'a Handle, http: &'a Http, options: &PullOptions) -> Self {
        let member = |source: &Source| Member {
            source: source.clone(),
            alive: true,
            running: 0,
            strikes: 0,
            tries: HashMap::new(),
            trouble: None,
        };
        let members = options.sources.iter().map(member).collect();
        Self { runtime, http, per_source: options.per_source.max(1), members, dropped: vec![] }
    }

    fn drop_member(&mut self, index: usize, why: String, lied: bool) {
        let member = &mut self.members[index];
        if std::mem::replace(&mut member.alive, false) {
            self.dropped.push(Dropped { source: member.source.to_string(), why, lied });
        }
    }

    /// The least busy source that may have `cid`.
    fn pick(&self, cid: &Cid) -> Pick {
        let may = |member: &Member| member.alive && member.tries.get(cid).is_none_or(|&tries| tries < TRIES_MAX);
        let members = self.members.iter().enumerate().filter(|(_, member)| may(member));
        match members.min_by_key(|(_, member)| member.running) {
            None => Pick::Nobody,
            Some((_, member)) if member.running >= self.per_source => Pick::Later,
            Some((index, _)) => Pick::Member(index),
        }
    }

    fn failed(&mut self, index: usize, cid: Cid, error: &SourceError) {
        let member = &mut self.members[index];
        member.trouble = Some(error.to_string());
        let tries = member.tries.entry(cid).or_default();
        if matches!(error, SourceError::NotHere) {
            *tries = TRIES_MAX;
            return;
        }
        *tries += 1;
        member.strikes += 1;
        if member.strikes >= STRIKES_MAX {
            self.drop_member(index, error.to_string(), false);
        }
    }

    fn unavailable(&self, cid: Cid) -> PullError {
        let mut why: Vec<String> = self.dropped.iter().map(|gone| format!("{}: {}", gone.source, gone.why)).collect();
        let left = self.members.iter().filter(|member| member.alive);
        let trouble = |member: &Member| member.trouble.clone().unwrap_or_else(|| SourceError::NotHere.to_string());
        why.extend(left.map(|member| format!("{}: {}", member.source, trouble(member))));
        if why.is_empty() {
            why.push("there is no source to ask".into());
        }
        PullError::Unavailable { cid, why }
    }
}

enum Pick {
    Member(usize),
    /// All who may have it are busy.
    Later,
    Nobody,
}

struct Fetched {
    cid: Cid,
    member: usize,
    result: Result<Vec<u8>, SourceError>,
}

fn by_blocks(work: &mut Work, crowd: &mut Crowd<'_>, progress: &mut dyn FnMut(&Progress)) -> Result<(), PullError> {
    let (sender, mut receiver) = mpsc::channel::<Fetched>(crowd.members.len().max(1) * crowd.per_source);
    // Ends its tasks when this function is left.
    let mut tasks = JoinSet::new();
    while !work.assembly.is_complete() {
        while let Some(cid) = work.assembly.next_block() {
            match crowd.pick(&cid) {
                Pick::Member(member) => {
                    crowd.members[member].running += 1;
                    let (http, source) = (crowd.http.clone(), crowd.members[member].source.clone());
                    let (sender, strikes) = (sender.clone(), crowd.members[member].strikes);
                    let task = async move {
                        tokio::time::sleep(PAUSE * strikes).await;
                        let result = source.block(&http, &cid).await;
                        // Nobody listens any more: the pull has ended.
                        let _ = sender.send(Fetched { cid, member, result }).await;
                    };
                    tasks.spawn_on(task, crowd.runtime);
                }
                Pick::Later => {
                    work.assembly.put_back(cid);
                    break;
                }
                Pick::Nobody => return Err(crowd.unavailable(cid)),
            }
        }
        let Some(Fetched { cid, member, result }) = receiver.blocking_recv() else {
            return Err(PullError::Interrupted);
        };
        while tasks.try_join_next().is_some() {}
        crowd.members[member].running -= 1;
        match result {
            Ok(block) => match work.take(&cid, &block, Origin::Network) {
                Ok(()) => crowd.members[member].strikes = 0,
                Err(Refused::Block(AssemblyError::WrongHash { cid })) => {
                    crowd.drop_member(member, format!("it sent other bytes than block {cid}"), true);
                    work.assembly.put_back(cid);
                }
                Err(Refused::Block(error)) => return Err(PullError::Content(error)),
                Err(Refused::Disk(error)) => return Err(error),
            },
            Err(error) => {
                crowd.failed(member, cid, &error);
                work.assembly.put_back(cid);
            }
        }
        work.tell(crowd, progress);
    }
    Ok(())
}

/// One stream after the other until all is there; what none of them had is left to [`by_blocks`].
fn by_car(work: &mut Work, crowd: &mut Crowd<'_>, progress: &mut dyn FnMut(&Progress)) -> Result<(), PullError> {
    for member in 0..crowd.members.len() {
        if work.assembly.is_complete() {
            return Ok(());
        }
        let root = work.assembly.root();
        let (sender, mut receiver) = mpsc::channel(PIECES_MAX);
        let (http, source) = (crowd.http.clone(), crowd.members[member].source.clone());
        let mut tasks = JoinSet::new();
        let task = async move {
            let pieces = async {
                let mut reply = source.car(&http, &root).await?;
                while let Some(piece) = reply.piece().await? {
                    if sender.send(Ok(piece)).await.is_err() {
                        break;
                    }
                }
                Ok::<_, SourceError>(())
            };
            if let Err(error) = pieces.await {
                let _ = sender.send(Err(error)).await;
            }
        };
        tasks.spawn_on(task, crowd.runtime);
        let mut reader = CarReader::new();
        let end: Result<(), Gone> = loop {
            let piece = match receiver.blocking_recv() {
                None => break reader.finish().map_err(Gone::Stream),
                Some(Err(error)) => break Err(Gone::Source(error)),
                Some(Ok(piece)) => piece,
            };
            reader.feed(&piece);
            if let Err(gone) = take_all(work, &mut reader)? {
                break Err(gone);
            }
            work.tell(crowd, progress);
        };
        match end {
            Ok(()) => (),
            Err(Gone::Lied(why)) => crowd.drop_member(member, why, true),
            // It may have the blocks all the same.
            Err(Gone::Stream(error)) => tracing::debug!(%error, "a stream ended early"),
            Err(Gone::Order(cid)) => tracing::debug!(%cid, "a stream has a block before its parent"),
            Err(Gone::Source(error)) => crowd.failed(member, root, &error),
        }
    }
    Ok(())
}

/// Why a stream is not read on.
enum Gone {
    Lied(String),
    Stream(CarError),
    Order(Cid),
    Source(SourceError),
}

fn take_all(work: &mut Work, reader: &mut CarReader) -> Result<Result<(), Gone>, PullError> {
    loop {
        let (cid, block) = match reader.next_block() {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(Gone::Stream(error))),
        };
        // A block may come each time that it occurs.
        if work.assembly.has(&cid) {
            continue;
        }
        match work.take(&cid, &block, Origin::Network) {
            Ok(()) => (),
            Err(Refused::Block(AssemblyError::WrongHash { cid })) => {
                return Ok(Err(Gone::Lied(format!("it sent other bytes than block {cid}"))));
            }
            Err(Refused::Block(AssemblyError::NotWanted { cid })) => return Ok(Err(Gone::Order(cid))),
            Err(Refused::Block(error)) => return Err(PullError::Content(error)),
            Err(Refused::Disk(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_as_such() {
        let check = |kind: io::ErrorKind, expect: &str| {
            let error = disk_error(Path::new("/m/a.gguf.part"), 5, kind.into()).to_string();
            assert!(error.contains(expect) && error.contains("/m/a.gguf.part"), "{error}");
        };
        check(io::ErrorKind::StorageFull, "no room for 5 more bytes");
        check(io::ErrorKind::QuotaExceeded, "no room for 5 more bytes");
        check(io::ErrorKind::PermissionDenied, "cannot write");
    }
}
