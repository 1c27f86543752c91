//! `assay publish`: says what a model is and where its blocks are, to whoever reads the chain.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use assay_chain::client::Models;
use assay_chain::{Address, B256, ChainClient, ClientOptions};
use assay_dag::{Cid, Codec, Profile, Version};
use assay_store::{ModelFile, manifest};
use assay_types::{ModelId, keccak256};
use serde_json::json;

use crate::load::Progress;
use crate::{models, print, start_logging, state, store, tell};

/// Arguments of `assay publish`.
#[derive(Debug, clap::Args)]
pub struct PublishArgs {
    /// GGUF file, or a name that `assay list` shows
    pub model: String,
    /// How the file is cut into blocks, if it was not pulled: unixfs-v1-2025 or unixfs-v0-2015
    #[arg(long, value_name = "NAME", default_value_t)]
    pub profile: Profile,
    /// JSON-RPC of the chain to register the model on; without it nothing is sent
    #[arg(long, value_name = "URL", requires_all = ["key_file", "registry"])]
    pub rpc: Option<String>,
    /// File with the publisher's key, in hex; its account pays gas
    #[arg(long, value_name = "FILE", requires = "rpc")]
    pub key_file: Option<PathBuf>,
    /// The chain's model registry (`modelRegistry` of a network's file)
    #[arg(long, value_name = "ADDRESS", requires = "rpc")]
    pub registry: Option<Address>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs `assay publish`.
///
/// # Errors
/// The model cannot be read, or the chain refuses it.
pub fn run(args: &PublishArgs) -> anyhow::Result<()> {
    start_logging();
    let path = models::find(&args.model);
    let file = ModelFile::open(&path)?;
    let mut progress = Progress::new("hashing the weights");
    let manifest = manifest(&file, &mut |done, total| progress.show(done, total))?;
    drop(progress);
    let index = store::index(&path, args.profile)?;
    let id = manifest.model_id();
    // What the registry names: the manifest, and where the file that it follows from is to be had.
    let document = json!({"modelId": id, "manifest": manifest, "cid": index.root.to_string()}).to_string();
    let uri = format!("ipfs://{}", Cid::of(Version::V1, Codec::Raw, document.as_bytes()));
    let beside = manifest_file(&path);
    fs::write(&beside, &document).with_context(|| format!("cannot write {}", beside.display()))?;
    let sent = match (&args.rpc, &args.key_file, args.registry) {
        (Some(rpc), Some(key_file), Some(registry)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Some(runtime.block_on(register(rpc, key_file, registry, id, &uri, keccak256(&document)))?)
        }
        _ => None,
    };
    if args.json {
        return print(
            &json!({
                "modelId": id, "weightsRoot": manifest.weights_root, "cid": index.root.to_string(), "bytes": index.len,
                "manifest": beside, "uri": uri, "transaction": sent.flatten(), "registered": args.rpc.is_some(),
            })
            .to_string(),
        );
    }
    print(&format!("model     {id}\nweights   {}\nfile      {}\nmanifest  {uri}", manifest.weights_root, index.root))?;
    match sent {
        None => tell(format_args!("not registered on a chain (--rpc, --key-file, --registry)\n")),
        Some(None) => tell(format_args!("it is registered like this already\n")),
        Some(Some(transaction)) => print(&format!("registered in transaction {transaction}"))?,
    }
    tell(format_args!("`assay store serve` gives both to others\n"));
    Ok(())
}

/// The manifest of the model at `path`, as it was published.
pub fn manifest_file(path: &Path) -> PathBuf {
    path.with_extension("manifest.json")
}

/// The transaction; `None` if the chain says the same already.
async fn register(
    rpc: &str,
    key_file: &Path,
    registry: Address,
    id: ModelId,
    uri: &str,
    hash: B256,
) -> anyhow::Result<Option<B256>> {
    let client = ChainClient::connect(rpc, state::read_key(key_file)?, ClientOptions::default())
        .await
        .with_context(|| format!("cannot use the chain at {rpc}"))?;
    let us = client.address();
    let models = Models::new(client, registry);
    let known = models.model(id).await.with_context(|| format!("cannot read the model registry at {registry}"))?;
    let receipt = match known {
        None => models.register(id, uri, hash).await?,
        Some(known) if known.uri == uri && known.manifest_hash == hash => return Ok(None),
        Some(known) => {
            ensure!(known.publisher == us, "model {id} was registered by {}, as {}", known.publisher, known.uri);
            if known.manifest_hash != hash {
                bail!("model {id} was registered with another manifest, at {}; that can never change", known.uri);
            }
            models.relocate(id, uri).await?
        }
    };
    Ok(Some(receipt.transaction_hash))
}
