//! `assay store serve`: gives the models of this machine to anybody, as a trustless IPFS gateway.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use assay_dag::Profile;
use assay_fetch::{routes, serve};
use assay_store::{BlockIndex, Shelf};
use serde_json::json;
use tokio::net::TcpListener;

use crate::load::Progress;
use crate::stop::StopSignals;
use crate::{models, publish, say, start_logging, tell};

/// Arguments of `assay store`.
#[derive(Debug, clap::Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Gives models to anybody who asks: /ipfs/CID as blocks and CAR streams, /models.json as a list
    Serve(ServeArgs),
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// Files, or names that `assay list` shows [default: all of the folder of models]
    models: Vec<String>,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7420")]
    listen: SocketAddr,
    /// How files are cut that were not pulled: unixfs-v1-2025 or unixfs-v0-2015
    #[arg(long, value_name = "NAME", default_value_t)]
    profile: Profile,
    /// Print one JSON object when ready
    #[arg(long)]
    json: bool,
}

/// Runs `assay store`.
///
/// # Errors
/// A file cannot be read, or the address cannot be listened on.
pub fn run(args: &StoreArgs) -> anyhow::Result<()> {
    start_logging();
    let Command::Serve(args) = &args.command;
    let paths: Vec<PathBuf> = match args.models[..] {
        [] => models::all()?,
        _ => args.models.iter().map(|name| models::find(name)).collect(),
    };
    ensure!(!paths.is_empty(), "there is no model to give: name files, or `assay pull` some");
    let shelf = Arc::new(Shelf::new());
    for path in &paths {
        shelf.put(&models::name(path), index(path, args.profile)?);
        // Beside a model that was published, which is found by way of it.
        let manifest = publish::manifest_file(path);
        if manifest.is_file() {
            let name = format!("{}.manifest", models::name(path));
            shelf.put(&name, BlockIndex::build(&manifest, Profile::UnixfsV1.layout(), &mut |_| ())?);
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
        let address = listener.local_addr()?;
        let mut stop = StopSignals::install()?;
        let files = shelf.files();
        if args.json {
            let rows: Vec<_> = files
                .iter()
                .map(|file| json!({"name": file.name, "cid": file.root.to_string(), "bytes": file.len}))
                .collect();
            say(&json!({"url": format!("http://{address}"), "models": rows}).to_string());
        } else {
            for file in &files {
                say(&format!("{}  {}  {} bytes", file.name, file.root, file.len));
            }
            say(&format!("given to anybody at http://{address}: assay pull CID --from http://{address}"));
        }
        serve(listener, routes(shelf), stop.wait()).await;
        Ok(())
    })
}

/// Which block is where in `path`: known from before, or found by hashing all of it.
pub fn index(path: &Path, profile: Profile) -> anyhow::Result<BlockIndex> {
    let kept = models::block_index(path);
    let known = kept.as_ref().and_then(|kept| BlockIndex::load(kept, path));
    // A pulled file keeps the tree that it came with, whatever its profile.
    if let Some(index) = known {
        return Ok(index);
    }
    let total = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    let mut progress = Progress::new("hashing the model");
    let index = BlockIndex::build(path, profile.layout(), &mut |done| progress.show(done, total))?;
    drop(progress);
    if let Some(kept) = kept
        && let Err(error) = index.save(&kept)
    {
        // It costs the next start the time of hashing, nothing else.
        tell(format_args!("note: {error}\n"));
    }
    Ok(index)
}
