//! `assay usage`: what was answered for which key, and what it cost.

use crate::key::{PlaceArgs, columns};
use crate::{print, state, when};
use anyhow::ensure;
use assay_gateway::{Store, UsageRow};
use assay_types::Amount;
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;

/// Arguments of `assay usage`.
#[derive(Args)]
pub struct UsageArgs {
    /// Number or name of one key [default: all]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// One line for each answer, comma-separated
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

const CSV_HEAD: &str = "time,receipt,key_id,key,model_id,prompt_tokens,output_tokens,charged_base_units";

#[derive(Default)]
struct Sum {
    name: String,
    answers: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    charged: Amount,
}

/// Runs `assay usage`.
pub fn run(args: &UsageArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run_async(args))
}

async fn run_async(args: &UsageArgs) -> anyhow::Result<()> {
    let (store, writer) = Store::open(&state::gateway_database(&args.place.gateway()?)).await?;
    let is_wanted =
        |row: &UsageRow| args.key.as_ref().is_none_or(|key| *key == row.key_name || key.parse() == Ok(row.key_id));
    let mut sums: BTreeMap<i64, Sum> = BTreeMap::new();
    let mut after = 0;
    let mut out = std::io::stdout().lock();
    if args.csv {
        writeln!(out, "{CSV_HEAD}")?;
    }
    loop {
        // A page at a time: there may be millions.
        let (rows, last) = store.usage(after).await?;
        if rows.is_empty() {
            break;
        }
        after = last;
        for row in rows.into_iter().filter(is_wanted) {
            if args.csv {
                writeln!(out, "{}", csv_line(&row))?;
            } else {
                sums.entry(row.key_id).or_default().add(row);
            }
        }
    }
    drop(out);
    if let Some(key) = args.key.as_ref().filter(|_| sums.is_empty() && !args.csv) {
        let known = store.keys().await?.iter().any(|row| row.name == *key || key.parse() == Ok(row.key_id));
        ensure!(known, "no key {key:?}; `assay key list` has them all");
    }
    store.close().await?;
    writer.await?;
    if args.csv { Ok(()) } else { print(&summary(&sums, args.place.json)) }
}

impl Sum {
    fn add(&mut self, row: UsageRow) {
        self.name = row.key_name;
        self.answers += 1;
        self.prompt_tokens = self.prompt_tokens.saturating_add(row.prompt_tokens);
        self.output_tokens = self.output_tokens.saturating_add(row.output_tokens);
        self.charged = self.charged.saturating_add(row.charged);
    }
}

fn csv_line(row: &UsageRow) -> String {
    let name = row.key_name.replace('"', "\"\"");
    format!(
        "{},{},{},\"{name}\",{},{},{},{}",
        when::rfc3339(row.created_at),
        row.receipt_id,
        row.key_id,
        row.model_id,
        row.prompt_tokens,
        row.output_tokens,
        row.charged
    )
}

fn summary(sums: &BTreeMap<i64, Sum>, json: bool) -> String {
    if json {
        let shown = |(id, sum): (&i64, &Sum)| {
            json!({
                "id": id, "name": sum.name, "answers": sum.answers, "promptTokens": sum.prompt_tokens,
                "outputTokens": sum.output_tokens, "charged": sum.charged,
            })
        };
        return Value::from(sums.iter().map(shown).collect::<Vec<_>>()).to_string();
    }
    let head = ["ID", "NAME", "ANSWERS", "PROMPT TOKENS", "OUTPUT TOKENS", "CHARGED"].map(str::to_owned);
    let lines = sums.iter().map(|(id, sum)| {
        [
            id.to_string(),
            sum.name.clone(),
            sum.answers.to_string(),
            sum.prompt_tokens.to_string(),
            sum.output_tokens.to_string(),
            sum.charged.to_string(),
        ]
    });
    columns(&std::iter::once(head).chain(lines).collect::<Vec<_>>())
}
