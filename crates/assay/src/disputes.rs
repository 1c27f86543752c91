//! `assay disputes`: what a network's prosecutor has done, from the records that it keeps. Needs nothing that runs.

use crate::key::{PlaceArgs, columns};
use crate::prosecutor::{Record, Stage, records};
use crate::{print, state, when};
use anyhow::ensure;
use clap::Args;
use std::time::Duration;

/// Between two looks while it is waited.
const PAUSE: Duration = Duration::from_millis(200);

/// Arguments of `assay disputes`.
#[derive(Args)]
pub struct DisputesArgs {
    /// Receipt of one answer, or how its name begins: shows each transaction
    receipt: Option<String>,
    /// Wait until these disputes are over, and there is one; Ctrl-C ends the waiting, not the disputes
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Runs `assay disputes`.
pub fn run(args: &DisputesArgs) -> anyhow::Result<()> {
    let root = args.place.dir.clone().map_or_else(state::default_dir, Ok)?;
    ensure!(
        root.join("network.json").is_file(),
        "no network has run in {}; start one with assay up, or name its folder with --dir",
        root.display()
    );
    let all = loop {
        let mut all = records(&root.join("disputes"))?;
        all.retain(|record| args.receipt.as_ref().is_none_or(|receipt| record.receipt.starts_with(receipt.as_str())));
        if !args.wait || (!all.is_empty() && all.iter().all(|record| record.stage.is_final())) {
            break all;
        }
        std::thread::sleep(PAUSE);
    };
    if let Some(receipt) = &args.receipt {
        ensure!(!all.is_empty(), "no answer whose receipt begins with {receipt} was disputed in {}", root.display());
    }
    if args.place.json {
        return print(&serde_json::to_string_pretty(&all)?);
    }
    if args.receipt.is_some() {
        return all.iter().try_for_each(|record| print(&whole(record)));
    }
    if all.is_empty() {
        return print("no answer was disputed");
    }
    let head =
        ["RECEIPT", "PROVIDER", "STATE", "SLASHED", "REFUNDED", "GAS", "SENT", "SINCE", "LAST STEP"].map(str::to_owned);
    print(&columns(&std::iter::once(head).chain(all.iter().map(row)).collect::<Vec<_>>()))
}

fn row(record: &Record) -> [String; 9] {
    [
        record.receipt.chars().take(18).collect(),
        record.provider.map_or_else(|| "-".into(), |provider| provider.to_string().chars().take(10).collect()),
        word(record.stage).into(),
        record.slashed.map_or_else(|| "-".into(), |slashed| slashed.to_string()),
        record.refunded.map_or_else(|| "-".into(), |refunded| refunded.to_string()),
        record.gas.to_string(),
        record.transactions.len().to_string(),
        when::rfc3339(record.updated_at),
        record.says.clone(),
    ]
}

fn whole(record: &Record) -> String {
    let provider = record.provider.map_or_else(|| "an unknown provider".into(), |provider| provider.to_string());
    let id = record.dispute.map_or_else(|| "not opened".into(), |id| format!("dispute {id}"));
    let mut text = format!(
        "receipt {}\nsigned by {provider}\n{id}, {}: {}\n{} gas in {} transactions",
        record.receipt,
        word(record.stage),
        record.says,
        record.gas,
        record.transactions.len()
    );
    for sent in &record.transactions {
        text += &format!("\n{}\n    transaction {}, block {}, {} gas", sent.says, sent.hash, sent.block, sent.gas);
    }
    text
}

fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Waiting => "waiting",
        Stage::Open => "open",
        Stage::Convicted => "convicted",
        Stage::Lost => "lost",
        Stage::Refused => "not disputed",
    }
}
