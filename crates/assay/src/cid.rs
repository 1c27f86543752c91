//! `assay cid`: a file's content address.

use std::fs::File;
use std::io::Read;

use anyhow::{Context as _, ensure};
use assay_dag::Profile;
use assay_store::cut;
use serde_json::json;

use crate::load::Progress;
use crate::{models, print};

/// Arguments of `assay cid`.
#[derive(Debug, clap::Args)]
pub struct CidArgs {
    /// File, or a name that `assay list` shows; `-` reads standard input
    pub file: String,
    /// How the file is cut into blocks: unixfs-v1-2025 (raw leaves of 1 MiB, CIDv1) or unixfs-v0-2015 (256 KiB, CIDv0)
    #[arg(long, value_name = "NAME", default_value_t)]
    pub profile: Profile,
    /// Print one JSON object: cid, profile, bytes, blocks
    #[arg(long)]
    pub json: bool,
}

/// Runs `assay cid`.
///
/// # Errors
/// The file cannot be read.
pub fn run(args: &CidArgs) -> anyhow::Result<()> {
    let (mut reader, total): (Box<dyn Read>, u64) = if args.file == "-" {
        (Box::new(std::io::stdin().lock()), 0)
    } else {
        let path = models::find(&args.file);
        let cannot = || format!("cannot read {}", path.display());
        let file = File::open(&path).with_context(cannot)?;
        let metadata = file.metadata().with_context(cannot)?;
        ensure!(!metadata.is_dir(), "{} is a folder; name a file in it", path.display());
        (Box::new(file), metadata.len())
    };
    let mut progress = Progress::new("hashing the file");
    // Of a pipe nobody knows the length.
    let show = &mut |done| {
        if total > 0 {
            progress.show(done, total);
        }
    };
    let root = cut(&mut *reader, args.profile.layout(), &mut |_, _| (), show)
        .with_context(|| format!("cannot read {}", args.file))?;
    drop(progress);
    if !args.json {
        return print(&root.cid.to_string());
    }
    let cid = root.cid.to_string();
    let profile = args.profile.name();
    print(&json!({"cid": cid, "profile": profile, "bytes": root.len, "blocks": root.blocks}).to_string())
}
