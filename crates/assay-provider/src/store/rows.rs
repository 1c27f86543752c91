//! Rows of the database as values.

use super::{Identity, StoreError};
use assay_net::Done;
use assay_types::{
    Address, Amount, B256, ChannelConfig, ChannelId, Finish, ModelId, ProviderId, Receipt, RequestHash, ResponseHash,
    Signature, SignedReceipt, SignedVoucher, Voucher,
};
use sqlx::{
    Row, SqliteConnection,
    sqlite::{SqlitePool, SqliteRow},
};

/// A channel that was charged at least once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ChannelRow {
    pub config: ChannelConfig,
    /// The highest one.
    pub voucher: SignedVoucher,
    pub charged_total: Amount,
    /// What is known to be claimed on chain.
    pub claimed: Amount,
}

/// A request's latest receipt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReceiptRow {
    pub done: Done,
}

impl ChannelRow {
    pub(super) fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let config = ChannelConfig {
            payer: address(row, "payer")?,
            payer_authorizer: address(row, "payer_authorizer")?,
            receiver: address(row, "receiver")?,
            receiver_authorizer: address(row, "receiver_authorizer")?,
            token: address(row, "token")?,
            withdraw_delay: number(row, "withdraw_delay")?,
            salt: hash(row, "salt")?,
        };
        let voucher =
            Voucher { channel_id: ChannelId(hash(row, "channel_id")?), max_claimable_amount: amount(row, "ceiling")? };
        Ok(Self {
            config,
            voucher: SignedVoucher { voucher, signature: Signature(bytes(row, "voucher_signature")?) },
            charged_total: amount(row, "charged_total")?,
            claimed: amount(row, "claimed")?,
        })
    }

    /// Its id, which the voucher names.
    pub(crate) fn channel_id(&self) -> ChannelId {
        self.voucher.voucher.channel_id
    }

    /// Raises voucher and total; `latest` is the receipt that has the total.
    pub(super) async fn write(&self, connection: &mut SqliteConnection, latest: RequestHash) -> Result<(), StoreError> {
        self.put(connection, latest, "charged_total = excluded.charged_total, latest_request = excluded.latest_request")
            .await
    }

    /// As [`Self::write`], for a receipt out of turn: a total that is not higher changes nothing.
    pub(super) async fn raise(&self, connection: &mut SqliteConnection, latest: RequestHash) -> Result<(), StoreError> {
        self.put(
            connection,
            latest,
            "latest_request = iif(excluded.charged_total > charged_total, excluded.latest_request, latest_request), \
             charged_total = max(charged_total, excluded.charged_total)",
        )
        .await
    }

    async fn put(
        &self,
        connection: &mut SqliteConnection,
        latest: RequestHash,
        totals: &'static str,
    ) -> Result<(), StoreError> {
        let ChannelRow { config, voucher, charged_total, claimed } = self;
        // A text of this file's own constants.
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "INSERT INTO channels VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (channel_id) DO UPDATE SET \
             voucher_signature = iif(excluded.ceiling > ceiling, excluded.voucher_signature, voucher_signature), \
             ceiling = max(ceiling, excluded.ceiling), {totals}",
        )))
        .bind(voucher.voucher.channel_id.0.as_slice())
        .bind(config.payer.as_slice())
        .bind(config.payer_authorizer.as_slice())
        .bind(config.receiver.as_slice())
        .bind(config.receiver_authorizer.as_slice())
        .bind(config.token.as_slice())
        .bind(config.withdraw_delay.cast_signed())
        .bind(config.salt.as_slice())
        .bind(voucher.voucher.max_claimable_amount.0.to_be_bytes().to_vec())
        .bind(voucher.signature.0.as_slice())
        .bind(charged_total.0.to_be_bytes().to_vec())
        .bind(claimed.0.to_be_bytes().to_vec())
        .bind(latest.0.as_slice())
        .execute(connection)
        .await?;
        Ok(())
    }
}

impl ReceiptRow {
    pub(super) fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let receipt = Receipt {
            channel_id: ChannelId(hash(row, "channel_id")?),
            request_hash: RequestHash(hash(row, "request_hash")?),
            response_hash: ResponseHash(hash(row, "response_hash")?),
            model_id: ModelId(hash(row, "model_id")?),
            prompt_tokens: number(row, "prompt_tokens")?,
            output_tokens: number(row, "output_tokens")?,
            charged: amount(row, "charged")?,
            charged_total: amount(row, "charged_total")?,
            issued_at: number(row, "issued_at")?,
        };
        let receipt = SignedReceipt { receipt, signature: Signature(bytes(row, "signature")?) };
        let finish = match number(row, "finish")? {
            0 => Finish::Open,
            1 => Finish::Stop,
            2 => Finish::Length,
            3 => Finish::Cancelled,
            _ => return Err(StoreError::BadRow("finish")),
        };
        Ok(Self { done: Done { receipt, finish } })
    }

    /// Stores a request's first receipt, or one that follows its checkpoint. Nothing else may replace a receipt: two
    /// for one request and count could be held against the provider.
    pub(super) async fn write(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        if self.put(connection).await? { Ok(()) } else { Err(StoreError::Superseded(self.request())) }
    }

    /// As [`Self::write`]; a receipt that can not follow the stored one is left out.
    pub(super) async fn restore(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        self.put(connection).await.map(drop)
    }

    fn request(&self) -> RequestHash {
        self.done.receipt.receipt.request_hash
    }

    async fn put(&self, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        let Done { receipt: SignedReceipt { receipt, signature }, finish } = &self.done;
        let written = sqlx::query(
            "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (request_hash) DO UPDATE SET response_hash = excluded.response_hash, \
             output_tokens = excluded.output_tokens, charged = excluded.charged, \
             charged_total = excluded.charged_total, issued_at = excluded.issued_at, signature = excluded.signature, \
             finish = excluded.finish \
             WHERE finish = 0 AND excluded.output_tokens > output_tokens AND excluded.channel_id = channel_id",
        )
        .bind(receipt.request_hash.0.as_slice())
        .bind(receipt.channel_id.0.as_slice())
        .bind(receipt.response_hash.0.as_slice())
        .bind(receipt.model_id.0.as_slice())
        .bind(receipt.prompt_tokens.cast_signed())
        .bind(receipt.output_tokens.cast_signed())
        .bind(receipt.charged.0.to_be_bytes().to_vec())
        .bind(receipt.charged_total.0.to_be_bytes().to_vec())
        .bind(receipt.issued_at.cast_signed())
        .bind(signature.0.as_slice())
        .bind(i64::from(finish.code()))
        .execute(connection)
        .await?;
        Ok(written.rows_affected() == 1)
    }
}

pub(super) async fn write_identity(connection: &mut SqliteConnection, identity: &Identity) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO identity VALUES (?, ?, ?, ?)")
        .bind(identity.chain_id.cast_signed())
        .bind(identity.provider.0.as_slice())
        .bind(identity.registry.as_slice())
        .bind(identity.settlement.as_slice())
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn read_identity(pool: &SqlitePool) -> Result<Identity, StoreError> {
    let row = sqlx::query("SELECT * FROM identity").fetch_one(pool).await?;
    Ok(Identity {
        chain_id: number(&row, "chain_id")?,
        provider: ProviderId(address(&row, "provider")?),
        registry: address(&row, "registry")?,
        settlement: address(&row, "settlement")?,
    })
}

fn bytes<const N: usize>(row: &SqliteRow, column: &'static str) -> Result<[u8; N], StoreError> {
    let blob: Vec<u8> = row.try_get(column)?;
    blob.try_into().map_err(|_| StoreError::BadRow(column))
}

pub(super) fn hash(row: &SqliteRow, column: &'static str) -> Result<B256, StoreError> {
    bytes(row, column).map(B256::from)
}

fn address(row: &SqliteRow, column: &'static str) -> Result<Address, StoreError> {
    bytes(row, column).map(Address::from)
}

pub(super) fn amount(row: &SqliteRow, column: &'static str) -> Result<Amount, StoreError> {
    bytes(row, column).map(|bytes| Amount(u128::from_be_bytes(bytes)))
}

pub(super) fn number(row: &SqliteRow, column: &'static str) -> Result<u64, StoreError> {
    Ok(row.try_get::<i64, _>(column)?.cast_unsigned())
}
