//! What can go wrong between a caller and a contract, with reverts by name.

use crate::bindings::{
    collector::Erc3009Collector::Erc3009CollectorErrors, court::Court::CourtErrors, judge::Judge::JudgeErrors,
    models::ModelRegistry::ModelRegistryErrors, parameters::Parameters::ParametersErrors,
    registry::ProviderRegistry::ProviderRegistryErrors, settlement::BatchSettlement::BatchSettlementErrors,
    token::TestUSD::TestUSDErrors, trial::Trial::TrialErrors,
};
use alloy_primitives::{Address, B256, Bytes};
use alloy_sol_types::{SolInterface, decode_revert_reason};
use alloy_transport::{RpcError, TransportError};
use std::fmt;

/// Why a call or transaction failed.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The URL is not one that can be connected to.
    #[error("{url} is not an http:// or https:// URL: {detail}")]
    BadUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No answer, also after retries.
    #[error("chain endpoint: {detail} ({method})")]
    Transport {
        /// JSON-RPC method.
        method: &'static str,
        /// The last failure.
        detail: String,
    },
    /// The endpoint answered with an error that is not a revert.
    #[error("chain endpoint refused {method}: {message} (code {code})")]
    Refused {
        /// JSON-RPC method.
        method: &'static str,
        /// JSON-RPC code.
        code: i64,
        /// The endpoint's text.
        message: String,
    },
    /// The contract said no; for a transaction, before or after it was in a block.
    #[error("reverted: {0}")]
    Reverted(Revert),
    /// The transaction did not get into a block in time. It still may.
    #[error("transaction {hash} was not in a block after {waited_s} s")]
    ReceiptTimeout {
        /// Its hash.
        hash: B256,
        /// How long was waited.
        waited_s: u64,
    },
    /// The endpoint forgot the transaction and does not take it again.
    #[error("transaction {hash} was dropped: {detail}")]
    Dropped {
        /// Its hash.
        hash: B256,
        /// What sending it again gave.
        detail: String,
    },
    /// There is no code at the address.
    #[error("there is no contract at {address} on chain {chain_id}")]
    NoContract {
        /// Where.
        address: Address,
        /// On which chain.
        chain_id: u64,
    },
    /// The contract answered bytes of another shape than its ABI says.
    #[error("{call} returned something else than its ABI says: {detail}")]
    BadReturn {
        /// Signature of the function.
        call: &'static str,
        /// Why it cannot be decoded.
        detail: String,
    },
    /// The endpoint serves another chain than was expected.
    #[error("the endpoint serves chain {found}, not chain {expected}")]
    OtherChain {
        /// By `eth_chainId`.
        found: u64,
        /// By configuration.
        expected: u64,
    },
    /// A value that no contract would take.
    #[error("{0}")]
    BadArgument(String),
    /// The client's task ended: its runtime was shut down.
    #[error("the chain client was shut down")]
    Closed,
}

impl ChainError {
    /// The revert, if it is one.
    #[must_use]
    pub fn revert(&self) -> Option<&Revert> {
        match self {
            Self::Reverted(revert) => Some(revert),
            _ => None,
        }
    }

    pub(super) fn from_transport(method: &'static str, error: TransportError) -> Self {
        match error {
            RpcError::ErrorResp(payload) => match payload.as_revert_data() {
                Some(data) => Self::Reverted(Revert::new(data)),
                None => Self::Refused { method, code: payload.code, message: payload.message.into_owned() },
            },
            other => Self::Transport { method, detail: other.to_string() },
        }
    }
}

/// Data that a contract reverted with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revert {
    /// Name of the custom error, `Error` for a plain reason, `Panic`, or empty if the data is not known here.
    pub name: &'static str,
    /// With arguments, for people.
    pub text: String,
    /// As returned.
    pub data: Bytes,
}

impl Revert {
    /// Decodes the errors of our contracts, `Error(string)` and `Panic(uint256)`.
    #[must_use]
    pub fn new(data: Bytes) -> Self {
        let selector: Option<[u8; 4]> = data.first_chunk().copied();
        let known = selector.and_then(|selector| {
            named::<BatchSettlementErrors>(BatchSettlementErrors::name_by_selector(selector), &data)
                .or_else(|| named::<TestUSDErrors>(TestUSDErrors::name_by_selector(selector), &data))
                .or_else(|| named::<ProviderRegistryErrors>(ProviderRegistryErrors::name_by_selector(selector), &data))
                .or_else(|| named::<ModelRegistryErrors>(ModelRegistryErrors::name_by_selector(selector), &data))
                .or_else(|| named::<Erc3009CollectorErrors>(Erc3009CollectorErrors::name_by_selector(selector), &data))
                .or_else(|| named::<TrialErrors>(TrialErrors::name_by_selector(selector), &data))
                .or_else(|| named::<CourtErrors>(CourtErrors::name_by_selector(selector), &data))
                .or_else(|| named::<ParametersErrors>(ParametersErrors::name_by_selector(selector), &data))
                .or_else(|| named::<JudgeErrors>(JudgeErrors::name_by_selector(selector), &data))
        });
        let (name, text) = known.unwrap_or_else(|| match (selector, decode_revert_reason(&data)) {
            (Some([0x08, 0xc3, 0x79, 0xa0]), Some(reason)) => ("Error", reason),
            (Some([0x4e, 0x48, 0x7b, 0x71]), Some(reason)) => ("Panic", reason),
            _ => ("", if data.is_empty() { "no reason given".into() } else { format!("unknown error {data}") }),
        });
        Self { name, text, data }
    }
}

fn named<E: SolInterface + fmt::Debug>(name: Option<&'static str>, data: &[u8]) -> Option<(&'static str, String)> {
    let name = name?;
    let error = E::abi_decode(data).ok()?;
    // `Variant(Variant { .. })`: the inner half says it all.
    let text = format!("{error:?}");
    let inner = text.split_once('(').map_or(text.as_str(), |(_, rest)| rest.strip_suffix(')').unwrap_or(rest));
    Some((name, inner.to_owned()))
}

impl fmt::Display for Revert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
