//! Models by id: where a manifest is served and what it hashes to.

use super::{ChainClient, ChainError};
use crate::bindings::models::ModelRegistry;
use alloy_primitives::{Address, B256, U256};
use alloy_rpc_types_eth::TransactionReceipt;
use assay_types::ModelId;

/// Ids of one page; the contract's own limit.
const PAGE_ROWS: usize = 1_000;
/// Models that are listed at most.
const MODELS_MAX: usize = 100_000;

/// One registered model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelRecord {
    /// Where its manifest is served.
    pub uri: String,
    /// What the manifest hashes to.
    pub manifest_hash: B256,
    /// Who registered it.
    pub publisher: Address,
    /// Unix seconds.
    pub registered_at: u64,
}

/// The model registry at an address.
#[derive(Clone)]
pub struct Models {
    client: ChainClient,
    /// Where it is.
    pub address: Address,
}

impl Models {
    /// Does not ask the chain.
    #[must_use]
    pub fn new(client: ChainClient, address: Address) -> Self {
        Self { client, address }
    }

    /// Records a model under the client's name.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `ModelExists`.
    pub async fn register(
        &self,
        model: ModelId,
        uri: &str,
        manifest_hash: B256,
    ) -> Result<TransactionReceipt, ChainError> {
        let call = ModelRegistry::registerCall { modelId: model.0, uri: uri.to_owned(), manifestHash: manifest_hash };
        self.client.send(self.address, &call).await
    }

    /// Says where the manifest is served now.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NotPublisher`.
    pub async fn relocate(&self, model: ModelId, uri: &str) -> Result<TransactionReceipt, ChainError> {
        let call = ModelRegistry::moveCall { modelId: model.0, uri: uri.to_owned() };
        self.client.send(self.address, &call).await
    }

    /// A model, `None` if it is not registered.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn model(&self, model: ModelId) -> Result<Option<ModelRecord>, ChainError> {
        let found = self.client.call(self.address, &ModelRegistry::modelCall { modelId: model.0 }).await?;
        Ok((found.registeredAt != 0).then_some(ModelRecord {
            uri: found.uri,
            manifest_hash: found.manifestHash,
            publisher: found.publisher,
            registered_at: found.registeredAt,
        }))
    }

    /// Ids in the order of registration, at most 100,000. The contract never removes one.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn list(&self) -> Result<Vec<ModelId>, ChainError> {
        let mut ids = Vec::new();
        while ids.len() < MODELS_MAX {
            let call = ModelRegistry::modelIdsPageCall { offset: U256::from(ids.len()), limit: U256::from(PAGE_ROWS) };
            let page = self.client.call(self.address, &call).await?;
            let is_last = page.len() < PAGE_ROWS;
            ids.extend(page.into_iter().map(ModelId));
            if is_last {
                break;
            }
        }
        Ok(ids)
    }
}
