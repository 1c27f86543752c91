//! Newtypes for everything that is identified by a hash or an address, so that one cannot be passed for another.

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Index into a model's vocabulary.
pub type TokenId = u32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // `{:#x}` of an address or hash is lower-case hex without a checksum: stable in logs and URLs.
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = <$inner as std::str::FromStr>::Err;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                s.parse().map(Self)
            }
        }
    };
}

id! {
    /// A model: hash of its [`crate::Manifest`].
    ModelId(B256)
}
id! {
    /// A request: hash of its [`crate::Job`]; unique because the job holds a nonce.
    RequestHash(B256)
}
id! {
    /// An output: hash of its token ids and how it ended.
    ResponseHash(B256)
}
id! {
    /// A payment channel: EIP-712 hash of its [`crate::ChannelConfig`].
    ChannelId(B256)
}
id! {
    /// A provider: the operator address that is registered, staked and signs receipts.
    ProviderId(Address)
}
