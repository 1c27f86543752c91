//! What a receipt file says, checked against itself: no model, no chain, microseconds.

use assay_types::{
    CANONICAL_PROFILE, ChannelId, Class, Finish, ProviderId, RECEIPT_FILE_VERSION, ReceiptFile, ReceiptPart,
    RequestHash, SignatureError, TOLERANT_PROFILE, receipt_domain, response_hash, settlement_domain,
};

/// Most parts in one file: a stream is spliced a bounded number of times.
pub const PARTS_MAX: usize = 64;

/// What is wrong with a receipt file. `part` counts from 0.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// A format this release does not know.
    #[error("receipt file version {found}; this release reads version {RECEIPT_FILE_VERSION}")]
    Version {
        /// What the file says.
        found: u32,
    },
    /// An arithmetic profile this release does not know.
    #[error("canonical profile {found:?}; this release knows {CANONICAL_PROFILE:?} and {TOLERANT_PROFILE:?}")]
    Profile {
        /// What the manifest says.
        found: String,
    },
    /// No part, or more than [`PARTS_MAX`].
    #[error("{count} parts; a receipt file has 1 to {PARTS_MAX}")]
    PartCount {
        /// How many.
        count: usize,
    },
    /// Two engines that are not canonical do not continue one another's answers.
    #[error("{count} parts; an answer of class tolerant has 1")]
    Spliced {
        /// How many.
        count: usize,
    },
    /// The job is not the one that the file is named after.
    #[error("id {claimed} is not the hash of the job ({computed}): the request was changed")]
    Id {
        /// What the file says.
        claimed: RequestHash,
        /// What its job hashes to.
        computed: RequestHash,
    },
    /// The first job of a file starts from nothing.
    #[error("the job has a prefix of {len} tokens; a receipt file holds the original job")]
    Prefix {
        /// Its length.
        len: usize,
    },
    /// The job names another model than the manifest.
    #[error("the job's modelId is not the hash of the manifest")]
    Manifest,
    /// A field of the receipt contradicts the file.
    #[error("part {part}: {field} does not match: {reason}")]
    Mismatch {
        /// Which part.
        part: usize,
        /// Which field of the receipt.
        field: &'static str,
        /// What it was held against.
        reason: &'static str,
    },
    /// The signature is not the provider's.
    #[error("part {part}: {source}")]
    Signature {
        /// Which part.
        part: usize,
        /// What is wrong.
        source: SignatureError,
    },
}

/// What the statements add up to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statements {
    /// What a replay of the answer can show.
    pub class: Class,
    /// Who signed, in the order of the parts.
    pub providers: Vec<ProviderId>,
    /// Which channels paid, in the order of the parts.
    pub channels: Vec<ChannelId>,
    /// All output tokens, in order.
    pub output: Vec<u32>,
    /// How the answer ended; open or cancelled if it was cut.
    pub finish: Finish,
    /// Sum of the charges in base units of the token.
    pub charged: u128,
}

/// Checks every hash, count and signature of `file`. Linear in the number of tokens times the number of parts.
///
/// # Errors
/// The first [`Fault`].
pub fn check(file: &ReceiptFile) -> Result<Statements, Fault> {
    let class = check_head(file)?;
    let mut statements =
        Statements { class, providers: vec![], channels: vec![], output: vec![], finish: Finish::Open, charged: 0 };
    for (index, part) in file.parts.iter().enumerate() {
        check_part(file, index, part, &statements.output)?;
        statements.providers.push(part.provider);
        statements.channels.push(part.signed.receipt.channel_id);
        statements.output.extend_from_slice(&part.output);
        statements.finish = part.finish;
        statements.charged = statements.charged.saturating_add(part.signed.receipt.charged.0);
    }
    Ok(statements)
}

fn check_head(file: &ReceiptFile) -> Result<Class, Fault> {
    if file.version != RECEIPT_FILE_VERSION {
        return Err(Fault::Version { found: file.version });
    }
    let unknown = || Fault::Profile { found: file.manifest.profile.clone() };
    let class = file.manifest.class().ok_or_else(unknown)?;
    if file.parts.is_empty() || file.parts.len() > PARTS_MAX {
        return Err(Fault::PartCount { count: file.parts.len() });
    }
    if class == Class::Tolerant && file.parts.len() > 1 {
        return Err(Fault::Spliced { count: file.parts.len() });
    }
    if !file.job.prefix.is_empty() {
        return Err(Fault::Prefix { len: file.job.prefix.len() });
    }
    let computed = file.job.request_hash();
    if file.id != computed {
        return Err(Fault::Id { claimed: file.id, computed });
    }
    if file.job.model_id != file.manifest.model_id() {
        return Err(Fault::Manifest);
    }
    Ok(class)
}

fn check_part(file: &ReceiptFile, index: usize, part: &ReceiptPart, so_far: &[u32]) -> Result<(), Fault> {
    let receipt = &part.signed.receipt;
    let expect = |holds: bool, field, reason| {
        if holds { Ok(()) } else { Err(Fault::Mismatch { part: index, field, reason }) }
    };
    let last = index + 1 == file.parts.len();
    let ends = matches!(part.finish, Finish::Stop | Finish::Length);
    expect(last || !ends, "finish", "only the last part ends the answer")?;
    let total = so_far.len() as u64 + part.output.len() as u64;
    expect(total <= u64::from(file.job.max_tokens), "output", "longer than max_tokens")?;
    if file.job.embed.is_some() {
        let is_whole = total == u64::from(file.job.max_tokens) && part.finish == Finish::Length;
        let is_none = part.output.is_empty() && part.finish == Finish::Cancelled;
        expect(file.parts.len() == 1 && (is_whole || is_none), "output", "all values of all vectors, or none")?;
    }
    let job = file.job.resumed_after(so_far);
    expect(receipt.request_hash == job.request_hash(), "requestHash", "hash of the job and the tokens before")?;
    expect(
        receipt.response_hash == response_hash(&part.output, part.finish),
        "responseHash",
        "hash of the output tokens and the finish: a token was changed",
    )?;
    expect(receipt.model_id == job.model_id, "modelId", "the job's model")?;
    expect(receipt.prompt_tokens == job.input_tokens(), "promptTokens", "count of the job's input tokens")?;
    expect(receipt.output_tokens == part.output.len() as u64, "outputTokens", "count of the output tokens")?;
    expect(receipt.charged <= receipt.charged_total, "charged", "not above chargedTotal")?;
    let channel = part.channel.id(&settlement_domain(file.chain_id, file.settlement));
    expect(
        part.channel.is_well_formed() && receipt.channel_id == channel,
        "channelId",
        "hash of the channel configuration",
    )?;
    expect(part.channel.receiver_authorizer == part.provider.0, "provider", "the channel's receiverAuthorizer")?;
    part.signed
        .verify(&receipt_domain(file.chain_id, file.registry), part.provider)
        .map_err(|source| Fault::Signature { part: index, source })
}
