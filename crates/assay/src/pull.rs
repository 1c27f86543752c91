//! `assay pull`: a model from anywhere, by content address, name, Hugging Face repository, URL or path.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use assay_dag::{Cid, Limits};
use assay_fetch::{Download, Http, Hub, Progress, PullOptions, Source, Url, Way, choose, download, pull};
use assay_store::{BlockIndex, ModelFile};
use serde_json::{Value, json};

use crate::{models, print, start_logging, tell};

/// Works in silence up to this long.
const QUIET: Duration = Duration::from_secs(1);
/// Between two lines of progress on a terminal, and elsewhere.
const REDRAW: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(15);

/// Arguments of `assay pull`.
#[derive(Debug, clap::Args)]
pub struct PullArgs {
    /// CID or ipfs://CID, hf:OWNER/NAME or hf:OWNER/NAME:FILE (or :FORMAT, such as Q8_0), https://..., a file, or the name
    /// that a source of --from has for it
    pub what: String,
    /// Ask this gateway for blocks; can be given several times. Any trustless IPFS gateway, or who runs `assay store serve`
    /// [default: ASSAY_SOURCES, with commas between]
    #[arg(long, value_name = "URL")]
    pub from: Vec<Source>,
    /// Name of the model here [default: what it is called there]
    #[arg(long, conflicts_with = "out")]
    pub name: Option<String>,
    /// Write to this file, rather than to the folder of models
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Take the blocks as one stream of the first source, where connections are few or slow to open
    #[arg(long)]
    pub car: bool,
    /// Requests to each source at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub connections: u8,
    /// Refuse larger files
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().file_len_max)]
    pub max_size: u64,
    /// Replace a file that is there
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What is to be got.
enum What {
    Content(Cid),
    Hub { repo: String, file: Option<String> },
    Url(Url),
    File(PathBuf),
    Name(String),
}

impl What {
    fn parse(text: &str) -> anyhow::Result<(Self, Option<Source>)> {
        if let Some(repo) = text.strip_prefix("hf:") {
            let (repo, file) = repo.split_once(':').map_or((repo, None), |(repo, file)| (repo, Some(file.to_owned())));
            return Ok((Self::Hub { repo: repo.to_owned(), file }, None));
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            // The address of content at a gateway is content, and the gateway a source of it.
            if let Some((gateway, rest)) = text.split_once("/ipfs/") {
                let name = rest.split(['/', '?', '#']).next().unwrap_or(rest);
                return Ok((Self::Content(name.parse()?), Some(gateway.parse()?)));
            }
            return Ok((Self::Url(text.parse()?), None));
        }
        let bare = text.strip_prefix("ipfs://").or(text.strip_prefix("/ipfs/")).unwrap_or(text);
        let what = match bare.parse() {
            Ok(cid) => Self::Content(cid),
            Err(error) if bare.len() != text.len() => return Err(error).context(text.to_owned()),
            Err(_) if Path::new(text).is_file() => Self::File(text.into()),
            Err(_) => Self::Name(text.to_owned()),
        };
        Ok((what, None))
    }
}

/// Runs `assay pull`.
///
/// # Errors
/// What was asked for is not to be had, or cannot be written.
pub fn run(args: &PullArgs) -> anyhow::Result<()> {
    start_logging();
    let (what, named) = What::parse(&args.what)?;
    let mut sources = args.from.clone();
    if sources.is_empty()
        && let Ok(list) = std::env::var("ASSAY_SOURCES")
    {
        let list: Result<_, _> = list.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::parse).collect();
        sources = list.context("ASSAY_SOURCES")?;
    }
    sources.extend(named.filter(|source| !args.from.contains(source)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let http = Http::new()?;
    let job = Job { args, sources, runtime: runtime.handle(), http: &http };
    let done = match what {
        What::Content(cid) => job.content(cid, None),
        What::Name(name) => {
            let cid = job.resolve(&name)?;
            job.content(cid, Some(&name))
        }
        What::Hub { repo, file } => job.hub(&repo, file.as_deref()),
        What::Url(url) => job.download(&Download { url, secret: None, sha256: None, len_max: args.max_size }, None),
        What::File(path) => job.copy(&path),
    };
    // What still runs is of no use any more.
    runtime.shutdown_background();
    let mut row = done?;
    let out = PathBuf::from(row["path"].as_str().unwrap_or_default());
    // It is here either way; that it is no model is better known now than later.
    if let Err(error) = ModelFile::open(&out) {
        tell(format_args!("note: {error}\n"));
        row["isModel"] = json!(false);
    }
    if args.json {
        return print(&row.to_string());
    }
    let name = if models::is_inside(&out) { models::name(&out) } else { out.display().to_string() };
    print(&format!("{name}: {} bytes in {}", row["bytes"], out.display()))
}

struct Job<'a> {
    args: &'a PullArgs,
    sources: Vec<Source>,
    runtime: &'a tokio::runtime::Handle,
    http: &'a Http,
}

impl Job<'_> {
    /// Where the file goes, which must be free.
    fn out(&self, name: &str) -> anyhow::Result<PathBuf> {
        let out = match (&self.args.out, &self.args.name) {
            (Some(out), _) => out.clone(),
            (None, chosen) => {
                let name = chosen.as_deref().unwrap_or(name);
                models::path(name).with_context(|| format!("{name:?} is no name for a model; give one with --name"))?
            }
        };
        ensure!(!out.is_dir(), "{} is a folder; name a file with --out", out.display());
        ensure!(self.args.force || !out.exists(), "{} is there already (--force replaces it)", out.display());
        Ok(out)
    }

    /// What a source says that `name` is. Only the name is its word; the bytes are then checked.
    fn resolve(&self, name: &str) -> anyhow::Result<Cid> {
        ensure!(
            !self.sources.is_empty(),
            "{name:?} is no CID, no file and no address; a name needs a source that knows it: --from URL"
        );
        for source in &self.sources {
            match self.runtime.block_on(source.models(self.http)) {
                Ok(models) => {
                    if let Some((_, cid)) = models.iter().find(|(known, _)| known == name) {
                        tell(format_args!("{source} says that {name} is {cid}\n"));
                        return Ok(*cid);
                    }
                }
                Err(error) => tell(format_args!("{source} does not say what it has: {error}\n")),
            }
        }
        bail!("no source has a model named {name:?}");
    }

    fn content(&self, cid: Cid, name: Option<&str>) -> anyhow::Result<Value> {
        ensure!(!self.sources.is_empty(), "say who may have it: --from URL, or ASSAY_SOURCES");
        let out = self.out(name.unwrap_or(&cid.to_string()))?;
        let options = PullOptions {
            sources: self.sources.clone(),
            per_source: usize::from(self.args.connections),
            way: if self.args.car { Way::Car } else { Way::Blocks },
            limits: Limits { file_len_max: self.args.max_size, ..Limits::default() },
        };
        let mut meter = Meter::new();
        let mut show = |now: &Progress| meter.show(now.done, now.len, Some(now.sources));
        let pulled = pull(self.runtime, self.http, cid, &out, &options, &mut show)?;
        drop(meter);
        for gone in &pulled.dropped {
            let word = if gone.lied { "LIED" } else { "was left" };
            tell(format_args!("{} {word}: {}\n", gone.source, gone.why));
        }
        // So that it can be given on without being hashed again.
        if let Some(index) = models::block_index(&out) {
            BlockIndex::of(&out, cid, pulled.nodes)?.save(&index)?;
        }
        let dropped: Vec<_> = pulled
            .dropped
            .iter()
            .map(|gone| json!({"source": gone.source, "why": gone.why, "lied": gone.lied}))
            .collect();
        Ok(json!({
            "path": out, "cid": cid.to_string(), "bytes": pulled.len, "resumed": pulled.resumed,
            "fetched": pulled.fetched, "blocks": pulled.blocks, "dropped": dropped,
        }))
    }

    fn hub(&self, repo: &str, file: Option<&str>) -> anyhow::Result<Value> {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let hub = Hub::new(text("HF_ENDPOINT").as_deref(), text("HF_TOKEN"))?;
        let files = self.runtime.block_on(hub.files(self.http, repo))?;
        let file = choose(repo, &files, file)?;
        let secret = hub.token().map(str::to_owned);
        let what = Download { url: hub.url(repo, file)?, secret, sha256: file.sha256, len_max: self.args.max_size };
        self.download(&what, Some(&file.path))
    }

    fn download(&self, what: &Download, path: Option<&str>) -> anyhow::Result<Value> {
        let file = path.map_or(what.url.file_name(), |path| path.rsplit('/').next().unwrap_or(path));
        let out = self.out(file.strip_suffix(".gguf").unwrap_or(file))?;
        let mut meter = Meter::new();
        let got = download(self.runtime, self.http, what, &out, &mut |done, len| meter.show(done, len, None))?;
        drop(meter);
        let sha256 = hex::encode(got.sha256);
        let published = what.sha256.is_some();
        Ok(json!({
            "path": out, "bytes": got.len, "resumed": got.resumed, "sha256": sha256, "sha256IsPublished": published,
        }))
    }

    fn copy(&self, path: &Path) -> anyhow::Result<Value> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let out = self.out(&name)?;
        let cannot = || format!("cannot write {}", out.display());
        fs::create_dir_all(out.parent().unwrap_or(Path::new("."))).with_context(cannot)?;
        let part = assay_fetch::part_of(&out);
        fs::copy(path, &part).with_context(cannot)?;
        fs::rename(&part, &out).with_context(cannot)?;
        let bytes = fs::metadata(&out).with_context(cannot)?.len();
        Ok(json!({"path": out, "bytes": bytes}))
    }
}

/// One line that says how far it is, how fast, how long still, and from how many.
struct Meter {
    started: Instant,
    shown: Option<Instant>,
    /// What was there when the first bytes came.
    first: Option<u64>,
    terminal: bool,
}

impl Meter {
    fn new() -> Self {
        Self { started: Instant::now(), shown: None, first: None, terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, done: u64, len: Option<u64>, sources: Option<usize>) {
        let first = *self.first.get_or_insert(done);
        let pause = if self.terminal { REDRAW } else { LINE };
        let elapsed = self.started.elapsed();
        if elapsed < QUIET || self.shown.is_some_and(|shown| shown.elapsed() < pause) {
            return;
        }
        self.shown = Some(Instant::now());
        let line = line(done, len, (done - first.min(done)) as f64 / elapsed.as_secs_f64(), sources);
        if self.terminal {
            tell(format_args!("\r\x1b[K{line}"));
            let _ = std::io::stderr().flush();
        } else {
            tell(format_args!("{line}\n"));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.terminal && self.shown.is_some() {
            tell(format_args!("\r\x1b[K"));
        }
    }
}

/// `rate` in bytes a second.
fn line(done: u64, len: Option<u64>, rate: f64, sources: Option<usize>) -> String {
    let mega = |bytes: f64| format!("{:.1}", bytes / 1e6);
    let mut line = match len {
        Some(len) => {
            format!("{} of {} MB, {} %", mega(done as f64), mega(len as f64), done * 100 / len.max(1))
        }
        None => format!("{} MB", mega(done as f64)),
    };
    line.push_str(&format!(", {} MB/s", mega(rate)));
    if let Some(left) = len.map(|len| len.saturating_sub(done)).filter(|_| rate > 1.0) {
        let seconds = (left as f64 / rate).ceil() as u64;
        line.push_str(&format!(", {}:{:02} left", seconds / 60, seconds % 60));
    }
    match sources {
        None => (),
        Some(1) => line.push_str(", 1 source"),
        Some(count) => line.push_str(&format!(", {count} sources")),
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_is_told_by_its_form() {
        let cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
        let parse = |text: &str| What::parse(text).unwrap();
        for text in [cid.to_owned(), format!("ipfs://{cid}"), format!("/ipfs/{cid}")] {
            assert!(matches!(parse(&text), (What::Content(found), None) if found.to_string() == cid));
        }
        let (what, source) = parse(&format!("http://127.0.0.1:1/x/ipfs/{cid}?format=raw"));
        assert!(matches!(what, What::Content(_)) && source.unwrap().to_string() == "http://127.0.0.1:1/x");
        assert!(matches!(parse("https://a.example/m.gguf").0, What::Url(_)));
        assert!(matches!(parse("hf:a/b").0, What::Hub { file: None, .. }));
        let (What::Hub { repo, file: Some(file) }, _) = parse("hf:a/b:Q8_0") else { panic!("a repository") };
        assert_eq!((repo.as_str(), file.as_str()), ("a/b", "Q8_0"));
        assert!(matches!(parse("assay-tiny").0, What::Name(_)));
        assert!(What::parse("ipfs://nonsense").is_err() && What::parse("http://x/ipfs/nonsense").is_err());
    }

    #[test]
    fn progress_says_rate_time_and_sources() {
        let text = line(1_500_000, Some(10_000_000), 100_000.0, Some(2));
        assert_eq!(text, "1.5 of 10.0 MB, 15 %, 0.1 MB/s, 1:25 left, 2 sources");
        assert_eq!(line(0, None, 0.0, None), "0.0 MB, 0.0 MB/s");
        assert_eq!(line(0, Some(0), 0.0, Some(1)), "0.0 of 0.0 MB, 0 %, 0.0 MB/s, 1 source");
    }
}
