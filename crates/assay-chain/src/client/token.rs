//! The settlement token: an ERC-20 with ERC-3009; minting exists only on the test coin.

use super::{ChainClient, ChainError};
use crate::bindings::token::TestUSD;
use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_rpc_types_eth::TransactionReceipt;
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{Eip712Domain, SolStruct, SolValue, sol};
use assay_types::{Amount, ChannelId, Signature};

mod typed {
    use super::sol;
    sol! {
        struct TransferWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }
        struct ReceiveWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }
    }
}

/// An ERC-3009 transfer that only the recipient can deliver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceiveAuthorization {
    /// Who pays and signs.
    pub from: Address,
    /// Who is paid and delivers.
    pub to: Address,
    /// How much.
    pub value: Amount,
    /// Valid strictly after this Unix second.
    pub valid_after: u64,
    /// Valid strictly before this Unix second.
    pub valid_before: u64,
    /// Used at most once per payer.
    pub nonce: B256,
}

impl ReceiveAuthorization {
    /// The nonce that binds a deposit to a channel: `keccak256(abi.encode(channelId, salt))`.
    #[must_use]
    pub fn deposit_nonce(channel: ChannelId, salt: B256) -> B256 {
        keccak256((channel.0, salt).abi_encode())
    }

    /// What the payer signs, in the token's domain.
    #[must_use]
    pub fn digest(&self, domain: &Eip712Domain) -> B256 {
        typed::ReceiveWithAuthorization {
            from: self.from,
            to: self.to,
            value: U256::from(self.value.0),
            validAfter: U256::from(self.valid_after),
            validBefore: U256::from(self.valid_before),
            nonce: self.nonce,
        }
        .eip712_signing_hash(domain)
    }

    /// Signs it.
    ///
    /// # Errors
    /// [`ChainError::BadArgument`] if `payer` is not `from`.
    pub fn sign(&self, domain: &Eip712Domain, payer: &PrivateKeySigner) -> Result<Signature, ChainError> {
        if payer.address() != self.from {
            return Err(ChainError::BadArgument(format!("{} cannot sign for {}", payer.address(), self.from)));
        }
        let signature = payer
            .sign_hash_sync(&self.digest(domain))
            .map_err(|error| ChainError::BadArgument(format!("the key cannot sign: {error}")))?;
        Ok(Signature::new(&signature))
    }
}

/// An ERC-3009 transfer that anybody can deliver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransferAuthorization {
    /// Who pays and signs.
    pub from: Address,
    /// Who is paid.
    pub to: Address,
    /// How much.
    pub value: Amount,
    /// Valid strictly after this Unix second.
    pub valid_after: u64,
    /// Valid strictly before this Unix second.
    pub valid_before: u64,
    /// Used at most once per payer.
    pub nonce: B256,
}

impl TransferAuthorization {
    /// What the payer signs, in the token's domain.
    #[must_use]
    pub fn digest(&self, domain: &Eip712Domain) -> B256 {
        typed::TransferWithAuthorization {
            from: self.from,
            to: self.to,
            value: U256::from(self.value.0),
            validAfter: U256::from(self.valid_after),
            validBefore: U256::from(self.valid_before),
            nonce: self.nonce,
        }
        .eip712_signing_hash(domain)
    }

    /// The oldest form of the call, which every ERC-3009 token has.
    fn call(&self, signature: &Signature) -> TestUSD::transferWithAuthorization_1Call {
        let Signature(bytes) = signature;
        TestUSD::transferWithAuthorization_1Call {
            from: self.from,
            to: self.to,
            value: U256::from(self.value.0),
            validAfter: U256::from(self.valid_after),
            validBefore: U256::from(self.valid_before),
            nonce: self.nonce,
            v: bytes[64],
            r: B256::from_slice(&bytes[..32]),
            s: B256::from_slice(&bytes[32..64]),
        }
    }
}

/// The token at an address.
#[derive(Clone)]
pub struct Token {
    client: ChainClient,
    /// Where it is.
    pub address: Address,
}

impl Token {
    /// Does not ask the chain.
    #[must_use]
    pub fn new(client: ChainClient, address: Address) -> Self {
        Self { client, address }
    }

    /// Balance of `owner`.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn balance_of(&self, owner: Address) -> Result<Amount, ChainError> {
        amount(self.client.call(self.address, &TestUSD::balanceOfCall { account: owner }).await?)
    }

    /// What `spender` may take from `owner`; more than `u128::MAX` is reported as that.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn allowance(&self, owner: Address, spender: Address) -> Result<Amount, ChainError> {
        let allowed = self.client.call(self.address, &TestUSD::allowanceCall { owner, spender }).await?;
        Ok(Amount(u128::try_from(allowed).unwrap_or(u128::MAX)))
    }

    /// Lets `spender` take so much from the client's account.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn approve(&self, spender: Address, value: Amount) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &TestUSD::approveCall { spender, value: U256::from(value.0) }).await
    }

    /// Of a whole coin.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn decimals(&self) -> Result<u8, ChainError> {
        self.client.call(self.address, &TestUSD::decimalsCall {}).await
    }

    /// Sends from the client's account.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn transfer(&self, to: Address, value: Amount) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &TestUSD::transferCall { to, value: U256::from(value.0) }).await
    }

    /// Whether somebody else's signed transfer would be done now: signature, time, nonce and balance. Nothing is sent.
    ///
    /// # Errors
    /// [`ChainError::Reverted`] says what is wrong with it.
    pub async fn check_transfer(
        &self,
        authorization: &TransferAuthorization,
        signature: &Signature,
    ) -> Result<(), ChainError> {
        self.client.call(self.address, &authorization.call(signature)).await.map(drop)
    }

    /// Delivers somebody else's signed transfer.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn deliver_transfer(
        &self,
        authorization: &TransferAuthorization,
        signature: &Signature,
    ) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &authorization.call(signature)).await
    }

    /// Makes test coins; only the test coin's owner can.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn mint(&self, to: Address, value: Amount) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &TestUSD::mintCall { to, amount: U256::from(value.0) }).await
    }

    /// The token's EIP-712 domain from its `name` and `version`, checked against its `DOMAIN_SEPARATOR`.
    ///
    /// # Errors
    /// [`ChainError::BadReturn`] if the token builds its domain in another way.
    pub async fn domain(&self) -> Result<Eip712Domain, ChainError> {
        let name = self.client.call(self.address, &TestUSD::nameCall {}).await?;
        let version = self.client.call(self.address, &TestUSD::versionCall {}).await?;
        let separator = self.client.call(self.address, &TestUSD::DOMAIN_SEPARATORCall {}).await?;
        let domain = Eip712Domain::new(
            Some(name.into()),
            Some(version.into()),
            Some(U256::from(self.client.chain_id())),
            Some(self.address),
            None,
        );
        if domain.separator() == separator {
            Ok(domain)
        } else {
            Err(ChainError::BadReturn {
                call: "DOMAIN_SEPARATOR()",
                detail: "not the domain of its name, version, chain and address".into(),
            })
        }
    }
}

pub(super) fn amount(value: U256) -> Result<Amount, ChainError> {
    u128::try_from(value)
        .map(Amount)
        .map_err(|_| ChainError::BadReturn { call: "uint256", detail: format!("{value} is no amount") })
}
