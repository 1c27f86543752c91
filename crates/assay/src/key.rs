//! `assay key`: makes, lists, changes and revokes API keys of a gateway on this machine.
//!
//! The database is the gateway's; a gateway that runs is told to read it before the command returns, so what a key
//! may do is changed at once.

use crate::{control, print, state, tell, when};
use anyhow::{Context, bail, ensure};
use assay_gateway::{KeyId, KeyLimits, KeyRow, Keys, Store};
use assay_types::Amount;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Arguments of `assay key`.
#[derive(Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Makes a key and prints it, once
    Create {
        /// For whom or what; shown in lists
        name: String,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// All keys, what they may do and what they have spent
    List {
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Changes what a key may do; what is not named stays
    Set {
        /// Number or name of the key
        key: String,
        #[command(flatten)]
        limits: LimitArgs,
        /// Take limits away: rpm, tpm, budget, expiry
        #[arg(long, value_name = "LIMIT", value_delimiter = ',')]
        without: Vec<Limit>,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Makes a key stop working, at once
    Revoke {
        /// Number or name of the key
        key: String,
        #[command(flatten)]
        place: PlaceArgs,
    },
}

#[derive(Args)]
struct LimitArgs {
    /// Requests a minute [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rpm: Option<u32>,
    /// Tokens a minute, prompt and output [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tpm: Option<u32>,
    /// All it may ever spend, in base units of the token: 1000000 is one dollar [default: no limit]
    #[arg(long, value_name = "UNITS")]
    budget: Option<u128>,
    /// Works for this long from now, as in 12h or 30d [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = when::duration)]
    expires_in: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Limit {
    Rpm,
    Tpm,
    Budget,
    Expiry,
}

/// Whose keys.
#[derive(Args)]
pub struct PlaceArgs {
    /// Folder of the network [default: ~/.assay/local]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl PlaceArgs {
    /// The gateway's folder, which must have a database.
    pub fn gateway(&self) -> anyhow::Result<PathBuf> {
        let root = self.dir.clone().map_or_else(state::default_dir, Ok)?;
        let gateway = root.join("gateway");
        let database = state::gateway_database(&gateway);
        ensure!(
            database.is_file(),
            "no gateway has run in {}; start one with assay up, or name its folder with --dir",
            root.display()
        );
        Ok(gateway)
    }
}

/// Runs `assay key`.
pub fn run(args: KeyArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run_async(args.command))
}

async fn run_async(command: KeyCommand) -> anyhow::Result<()> {
    let place = match &command {
        KeyCommand::Create { place, .. }
        | KeyCommand::List { place }
        | KeyCommand::Set { place, .. }
        | KeyCommand::Revoke { place, .. } => place,
    };
    let (gateway, json) = (place.gateway()?, place.json);
    let (store, writer) = Store::open(&state::gateway_database(&gateway)).await?;
    let keys = Keys::open(store.clone()).await?;
    let done = match command {
        KeyCommand::Create { name, limits, .. } => create(&keys, &name, limits.over(KeyLimits::default()), json).await,
        KeyCommand::List { .. } => list(&keys, json).await,
        KeyCommand::Set { key, limits, without, .. } => set(&keys, &key, &limits, &without, json).await,
        KeyCommand::Revoke { key, .. } => revoke(&keys, &key, json).await,
    };
    store.close().await?;
    writer.await?;
    if let Some(said) = done? {
        // What is said has happened: for a running gateway, too.
        tell_gateway(&gateway)?;
        print(&said)?;
    }
    Ok(())
}

fn tell_gateway(gateway: &Path) -> anyhow::Result<()> {
    control::reload_keys(&state::control_socket(gateway))
        .context("the keys were changed; the running gateway takes up to a second to see it")?;
    Ok(())
}

async fn create(keys: &Keys, name: &str, limits: KeyLimits, json: bool) -> anyhow::Result<Option<String>> {
    let taken = keys.list().await?.into_iter().any(|row| row.name == name && row.revoked_at.is_none());
    ensure!(!taken, "there is a key named {name:?}; choose another name, or revoke that one");
    let key = keys.create_limited(name, limits).await?;
    let row = keys.list().await?.pop().context("the new key is in the list")?;
    if !json {
        tell(format_args!("key {} ({name}); it is shown only this once:\n", row.key_id));
        return Ok(Some(key));
    }
    let mut shown = shown(&row);
    shown["key"] = key.into();
    Ok(Some(shown.to_string()))
}

async fn list(keys: &Keys, json: bool) -> anyhow::Result<Option<String>> {
    let rows = keys.list().await?;
    if json {
        print(&Value::from(rows.iter().map(shown).collect::<Vec<_>>()).to_string())?;
        return Ok(None);
    }
    let head =
        ["ID", "NAME", "KEY", "STATE", "RPM", "TPM", "BUDGET", "SPENT", "REFUNDED", "EXPIRES"].map(str::to_owned);
    let limit = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let lines = rows.iter().map(|row| {
        let limits = &row.limits;
        [
            row.key_id.to_string(),
            row.name.clone(),
            row.hint.clone(),
            state_of(row).to_owned(),
            limit(limits.requests_per_minute.map(|n| n.to_string())),
            limit(limits.tokens_per_minute.map(|n| n.to_string())),
            limit(limits.budget.map(|n| n.to_string())),
            row.spent.to_string(),
            row.refunded.to_string(),
            limit(limits.expires_at.map(when::rfc3339)),
        ]
    });
    let table: Vec<[String; 10]> = std::iter::once(head).chain(lines).collect();
    print(&columns(&table))?;
    Ok(None)
}

async fn set(
    keys: &Keys,
    key: &str,
    limits: &LimitArgs,
    without: &[Limit],
    json: bool,
) -> anyhow::Result<Option<String>> {
    let row = find(keys, key).await?;
    let mut now = row.limits;
    for limit in without {
        match limit {
            Limit::Rpm => now.requests_per_minute = None,
            Limit::Tpm => now.tokens_per_minute = None,
            Limit::Budget => now.budget = None,
            Limit::Expiry => now.expires_at = None,
        }
    }
    keys.change(KeyId(row.key_id), limits.over(now)).await?;
    let row = find(keys, &row.key_id.to_string()).await?;
    Ok(Some(if json { shown(&row).to_string() } else { format!("key {} ({}) changed", row.key_id, row.name) }))
}

async fn revoke(keys: &Keys, key: &str, json: bool) -> anyhow::Result<Option<String>> {
    let row = find(keys, key).await?;
    ensure!(keys.revoke(KeyId(row.key_id)).await?, "key {} ({}) was revoked before", row.key_id, row.name);
    let said = format!("key {} ({}) does not work any more", row.key_id, row.name);
    Ok(Some(if json { json!({"id": row.key_id, "name": row.name, "revoked": true}).to_string() } else { said }))
}

/// By number, or by a name that only one key has that works.
async fn find(keys: &Keys, key: &str) -> anyhow::Result<KeyRow> {
    let rows = keys.list().await?;
    if let Some(row) = key.parse().ok().and_then(|id: i64| rows.iter().find(|row| row.key_id == id)) {
        return Ok(row.clone());
    }
    let mut named: Vec<&KeyRow> = rows.iter().filter(|row| row.name == key && row.revoked_at.is_none()).collect();
    match (named.pop(), named.len()) {
        (Some(row), 0) => Ok(row.clone()),
        (Some(_), more) => bail!("{} keys are named {key:?}; say its number, as in `assay key list`", more + 1),
        (None, _) => bail!("no key {key:?} works here; `assay key list` has them all"),
    }
}

impl LimitArgs {
    fn over(&self, limits: KeyLimits) -> KeyLimits {
        KeyLimits {
            requests_per_minute: self.rpm.or(limits.requests_per_minute),
            tokens_per_minute: self.tpm.or(limits.tokens_per_minute),
            budget: self.budget.map(Amount).or(limits.budget),
            expires_at: self.expires_in.map(|seconds| when::now().saturating_add(seconds)).or(limits.expires_at),
        }
    }
}

fn state_of(row: &KeyRow) -> &'static str {
    match (row.revoked_at, row.limits.expires_at) {
        (Some(_), _) => "revoked",
        (None, Some(at)) if at <= when::now() => "expired",
        _ if row.limits.budget.is_some_and(|budget| row.spent >= budget.saturating_add(row.refunded)) => "spent",
        _ => "works",
    }
}

fn shown(row: &KeyRow) -> Value {
    json!({
        "id": row.key_id,
        "name": row.name,
        "hint": row.hint,
        "state": state_of(row),
        "created": when::rfc3339(row.created_at),
        "revoked": row.revoked_at.map(when::rfc3339),
        "requestsPerMinute": row.limits.requests_per_minute,
        "tokensPerMinute": row.limits.tokens_per_minute,
        "budget": row.limits.budget,
        "spent": row.spent,
        "refunded": row.refunded,
        "expires": row.limits.expires_at.map(when::rfc3339),
    })
}

/// Left-aligned columns, two spaces apart.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
