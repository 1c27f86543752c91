//! `assay doctor`: looks at everything that can be wrong on a machine, changes nothing, and says what to do next.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use assay_num::{Acts, Format, Isa, Kernels, Matrix, Packing, Team};
use assay_store::{CacheFile, CacheState, ModelFile, WeightsError};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::economics::{self, EconomicsArgs};
use crate::inventory::{Purpose, cache_dirs, purpose, size};
use crate::load::{self, CacheArgs, Progress};
use crate::provide::ProvideConfig;
use crate::state::{self, NetworkFile};
use crate::{models, one_line, print};

/// Less memory than this is free: a small model and little else fits.
const MEMORY_LOW: u64 = 1 << 30;
/// Providers of a local network that are looked at.
const PROVIDERS_MAX: usize = 32;

/// Arguments of `assay doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Folder of a local network [default: ~/.assay/local]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Also look at these models: GGUF files
    #[arg(long, value_name = "FILE")]
    pub model: Vec<PathBuf>,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub economics: EconomicsArgs,
    /// JSON-RPC of the network's chain, for --economics
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7412", requires = "economics")]
    pub rpc: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// How a look came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Works, but the user may want to know.
    Note,
    Wrong,
}

/// One line of the report.
#[derive(Debug)]
struct Finding {
    what: String,
    verdict: Verdict,
    text: String,
    /// What to do about it.
    next: Option<String>,
}

impl Finding {
    fn good(what: impl Into<String>, text: impl Into<String>) -> Self {
        Finding { what: what.into(), verdict: Verdict::Good, text: text.into(), next: None }
    }

    fn note(what: impl Into<String>, text: impl Into<String>, next: impl Into<String>) -> Self {
        Finding { verdict: Verdict::Note, next: Some(next.into()), ..Finding::good(what, text) }
    }

    fn wrong(what: impl Into<String>, text: impl Into<String>, next: impl Into<String>) -> Self {
        Finding { verdict: Verdict::Wrong, ..Finding::note(what, text, next) }
    }
}

/// Runs `assay doctor`.
///
/// # Errors
/// Something is wrong.
pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    if args.economics.economics {
        let root = args.dir.clone().map_or_else(state::default_dir, Ok)?;
        return economics::run(&root, &args.rpc, args.economics, args.json);
    }
    let mut findings = kernels();
    findings.push(memory());
    findings.extend(folders(args));
    findings.extend(all_models(args));
    findings.extend(caches(args));
    findings.extend(network(args));
    let n_wrong = findings.iter().filter(|finding| finding.verdict == Verdict::Wrong).count();
    if args.json {
        let rows: Vec<Value> = findings
            .iter()
            .map(|Finding { what, verdict, text, next }| {
                let verdict = format!("{verdict:?}").to_lowercase();
                json!({"what": what, "verdict": verdict, "text": text, "next": next})
            })
            .collect();
        print(&json!({"ok": n_wrong == 0, "findings": rows}).to_string())?;
    } else {
        for Finding { what, verdict, text, next } in &findings {
            let mark = match verdict {
                Verdict::Good => "ok",
                Verdict::Note => "note",
                Verdict::Wrong => "WRONG",
            };
            print(&format!("{mark:<6} {what}: {text}"))?;
            if let Some(next) = next {
                print(&format!("{:<6} -> {next}", ""))?;
            }
        }
    }
    ensure!(n_wrong == 0, "{n_wrong} of {} findings are wrong; each says what to do", findings.len());
    Ok(())
}

/// Each instruction set: whether this CPU has it and whether its kernels compute the canonical bits here.
fn kernels() -> Vec<Finding> {
    let selected = Kernels::detect().isa();
    let expect = Kernels::with_isa(Isa::Scalar).map(self_test);
    let mut findings: Vec<Finding> = Isa::ALL
        .into_iter()
        .map(|isa| {
            let what = format!("kernels {isa}");
            match Kernels::with_isa(isa) {
                None => Finding::good(what, "not on this CPU"),
                Some(kernels) if Some(self_test(kernels)) != expect => Finding::wrong(
                    what,
                    "they compute other bits than the definition",
                    "do not serve answers from this machine: its CPU, its memory or its hypervisor is faulty",
                ),
                Some(_) if isa == selected => Finding::good(what, "used here; all formats give the canonical bits"),
                Some(_) => Finding::good(what, "all formats give the canonical bits"),
            }
        })
        .collect();
    if selected == Isa::Scalar {
        let next = "a CPU with AVX2 or NEON is faster by an order of magnitude";
        findings.push(Finding::note("kernels", "only the plain ones run here", next));
    }
    findings
}

/// The bits of products of a fixed matrix in each format with fixed activations, for one and for several tokens.
fn self_test(kernels: Kernels) -> Vec<u32> {
    const ROWS: usize = 40;
    const COLUMNS: usize = 512;
    const TOKENS: usize = 5;
    let team = Team::new(1);
    let mut random = 1u32;
    let mut next = || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    };
    let x: Vec<f32> = (0..TOKENS * COLUMNS).map(|_| f32::from(next()) / 64.0 - 2.0).collect();
    let mut bits = vec![];
    for format in Format::ALL {
        let Ok(packing) = Packing::new(format, ROWS, COLUMNS) else { continue };
        // Bytes below 0x38: as parts of floats they are small and finite.
        let bytes: Vec<u8> = (0..ROWS * packing.row_bytes()).map(|_| next() % 0x38).collect();
        let Ok(matrix) = Matrix::pack(&team, packing, &[&bytes]) else { continue };
        let mut acts = Acts::new();
        for n in [1, TOKENS] {
            let mut out = vec![0.0; n * ROWS];
            kernels.prepare(&team, &x[..n * COLUMNS], n, COLUMNS, matrix.act_kind(), &mut acts);
            kernels.matmul(&team, &matrix, &acts, &mut out);
            bits.extend(out.iter().map(|value| value.to_bits()));
        }
    }
    bits
}

fn memory() -> Finding {
    let cores = load::all_cores();
    let Ok(text) = fs::read_to_string("/proc/meminfo") else {
        return Finding::good("memory", format!("{cores} cores; this system does not say how much memory it has"));
    };
    let kib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (total, free) = (kib("MemTotal").unwrap_or(0) * 1024, kib("MemAvailable").unwrap_or(0) * 1024);
    let text = format!("{} of {} free, {cores} cores", size(free), size(total));
    if free < MEMORY_LOW {
        return Finding::note("memory", text, "`assay show MODEL` says what a model needs");
    }
    Finding::good("memory", text)
}

fn network_dir(args: &DoctorArgs) -> Option<PathBuf> {
    args.dir.clone().or_else(|| state::default_dir().ok())
}

/// The folders in which something is written.
fn folders(args: &DoctorArgs) -> Vec<Finding> {
    let Some(dir) = network_dir(args) else {
        let next = "set HOME, or name folders with --dir and --cache-dir";
        return vec![Finding::wrong("folders", "HOME is not set", next)];
    };
    let mut dirs = vec![dir];
    dirs.extend(args.cache.cache_dir.clone());
    dirs.iter().map(|dir| folder(dir)).collect()
}

fn folder(dir: &Path) -> Finding {
    let what = format!("folder {}", dir.display());
    // The nearest one that is there is where the others would be made.
    let Some(there) = dir.ancestors().find(|dir| dir.exists()) else {
        return Finding::wrong(what, "no such folder", "choose another with --dir");
    };
    let probe = there.join(format!(".assay-doctor-{}", std::process::id()));
    let written = fs::write(&probe, b"probe");
    let _ = fs::remove_file(&probe);
    match written {
        Ok(()) if there == dir => Finding::good(what, "can be written"),
        Ok(()) => Finding::good(what, "not there yet, can be made"),
        Err(error) => {
            Finding::wrong(what, error.to_string(), "make room or change its owner, or choose another folder")
        }
    }
}

fn all_models(args: &DoctorArgs) -> Vec<Finding> {
    let paths = match models::all() {
        Ok(paths) => paths,
        Err(error) => return vec![Finding::wrong("models", one_line(&error), "change the owner of the folder")],
    };
    let one = |path: &PathBuf| {
        let what = format!("model {}", path.display());
        match ModelFile::open(path) {
            Ok(file) => {
                let size = size(file.bytes().len() as u64);
                match purpose(file.gguf()) {
                    Ok(Purpose::Writes(_)) => Finding::good(what, format!("{size}, writes text")),
                    Ok(Purpose::Embeds(_)) => Finding::good(what, format!("{size}, embeds texts")),
                    Err(why) => Finding::note(what, format!("{size}, does not run here"), why.to_string()),
                }
            }
            Err(error) => Finding::wrong(what, error.to_string(), "copy the file again"),
        }
    };
    paths.iter().chain(&args.model).map(one).collect()
}

/// Every byte of every file of prepared weights.
fn caches(args: &DoctorArgs) -> Vec<Finding> {
    let mut dirs = cache_dirs(&args.cache);
    dirs.extend(args.model.iter().flat_map(|model| args.cache.dirs(model)));
    dirs.sort();
    dirs.dedup();
    let mut findings = vec![];
    let mut files = vec![];
    for dir in dirs {
        match CacheFile::all(&dir) {
            Ok(all) => files.extend(all),
            Err(error) => {
                findings.push(Finding::wrong("prepared weights", error.to_string(), "change the owner of the folder"));
            }
        }
    }
    let total = files.iter().map(|file| file.len).sum();
    let (mut progress, mut done) = (Progress::new("checking prepared weights"), 0);
    let team = Team::new(load::all_cores());
    for file in files {
        findings.push(cache(&file, &team));
        done += file.len;
        progress.show(done, total);
    }
    findings
}

fn cache(file: &CacheFile, team: &Team) -> Finding {
    let what = format!("prepared weights {}", file.path.display());
    let orphans = "`assay rm --orphans` removes it";
    let damaged = "they are made anew at the next start; if it happens again, suspect the disk or the memory";
    match &file.state {
        CacheState::Unfinished => Finding::note(what, "being written, or left by a process that died", orphans),
        CacheState::Unreadable(why) => Finding::wrong(what, why, "change the owner of the file"),
        CacheState::Unusable(flaw) if flaw.is_stale() => Finding::note(what, flaw.to_string(), orphans),
        CacheState::Unusable(flaw) => Finding::wrong(what, flaw.to_string(), damaged),
        CacheState::Ready => match file.check(team) {
            Err(WeightsError::Flaw { flaw, .. }) => Finding::wrong(what, flaw.to_string(), damaged),
            Err(error) => Finding::wrong(what, error.to_string(), damaged),
            Ok(()) if file.models.is_empty() => Finding::note(what, "whole, but their model is gone", orphans),
            Ok(()) => Finding::good(what, format!("{}, every byte as it was written", size(file.len))),
        },
    }
}

/// The state of a local network, as far as files tell.
fn network(args: &DoctorArgs) -> Vec<Finding> {
    let Some(dir) = network_dir(args) else { return vec![] };
    let shown = dir.display();
    if !dir.join("network.json").exists() {
        return vec![Finding::good("network", format!("none in {shown} yet; `assay up` makes one"))];
    }
    let in_use = fs::File::open(dir.join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
    let mut findings = vec![Finding::good("network", format!("{shown}{}", if in_use { ", running" } else { "" }))];
    findings.push(network_file(&dir.join("network.json")));
    // What each kind of database starts with: redb and SQLite.
    findings.push(database(&dir.join("chain/chain.redb"), b"redb"));
    findings.push(database(&dir.join("gateway/gateway.sqlite"), b"SQLite format 3\0"));
    let mut keys = vec![dir.join("deployer.key"), dir.join("gateway.key")];
    for n in 1..=PROVIDERS_MAX {
        let provider = dir.join(format!("provider-{n}"));
        if !provider.exists() {
            break;
        }
        keys.push(provider.join("provider.key"));
        findings.push(json_file::<ProvideConfig>(&provider.join("config.json")));
        if provider.join("provider.sqlite").exists() {
            findings.push(database(&provider.join("provider.sqlite"), b"SQLite format 3\0"));
        }
    }
    findings.extend(keys.iter().map(|path| key(path)));
    findings
}

const RESTORE: &str = "restore it from a backup, or start a new network with --dir";

fn network_file(path: &Path) -> Finding {
    match state::read_json::<NetworkFile>(path) {
        Ok(Some(file)) if file.version != NetworkFile::VERSION => Finding::wrong(
            path.display().to_string(),
            format!("version {}, this release reads {}", file.version, NetworkFile::VERSION),
            "use the release that wrote it, or start a new network with --dir",
        ),
        _ => json_file::<NetworkFile>(path),
    }
}

fn json_file<T: serde::de::DeserializeOwned>(path: &Path) -> Finding {
    let what = path.display().to_string();
    match (state::read_json::<IgnoredAny>(path), state::read_json::<T>(path)) {
        (Ok(Some(_)), Ok(Some(_))) => Finding::good(what, "readable"),
        (Ok(Some(_)), Err(error)) => Finding::wrong(what, one_line(&error), "use the release that wrote it"),
        (Err(error), _) => Finding::wrong(what, one_line(&error), RESTORE),
        _ => Finding::wrong(what, "missing", RESTORE),
    }
}

fn database(path: &Path, magic: &[u8]) -> Finding {
    let what = path.display().to_string();
    let mut start = vec![];
    let read = fs::File::open(path).and_then(|file| file.take(magic.len() as u64).read_to_end(&mut start));
    match read {
        Ok(_) if start == magic => Finding::good(what, "starts as it should"),
        Ok(_) => Finding::wrong(what, "is no database any more", RESTORE),
        Err(error) => Finding::wrong(what, error.to_string(), RESTORE),
    }
}

fn key(path: &Path) -> Finding {
    let what = path.display().to_string();
    match fs::metadata(path) {
        Err(error) => Finding::wrong(what, error.to_string(), RESTORE),
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            Finding::wrong(what, "others than its owner may read it", format!("chmod 600 {}", path.display()))
        }
        Ok(_) => match fs::read_to_string(path).map(|text| text.trim().len()) {
            Ok(64 | 66) => Finding::good(what, "there, for its owner only"),
            _ => Finding::wrong(what, "holds no key", RESTORE),
        },
    }
}
