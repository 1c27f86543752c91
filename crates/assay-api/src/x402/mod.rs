//! Payment by request: x402 version 2 over HTTP, its schemes `exact` (ERC-3009) and `batch-settlement`.
//!
//! Owns the JSON of the three headers and nothing else: what is charged, checked and settled is the gateway's. Fields
//! that a client sends and nobody reads (`resource`, `extensions`, `accepted.extra`) are not represented.

use crate::base64;
use assay_types::{Address, Amount, B256, ChannelConfig, ChannelId, Signature};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Version of the protocol.
pub const VERSION: u32 = 2;
/// Says what has to be paid and how, on a 402.
pub const REQUIRED_HEADER: &str = "payment-required";
/// Carries the payment.
pub const PAYMENT_HEADER: &str = "payment-signature";
/// Says what became of the payment.
pub const RESPONSE_HEADER: &str = "payment-response";
/// Longest payment header that is read; a deposit with its voucher has about 2 KB.
pub const PAYMENT_LEN_MAX: usize = 16 << 10;

/// How a payment is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// One signed transfer a request.
    Exact,
    /// Vouchers on a payment channel.
    BatchSettlement,
}

impl Scheme {
    /// As it stands in the protocol.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::BatchSettlement => "batch-settlement",
        }
    }
}

/// What a 402 says.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequired {
    /// [`VERSION`].
    pub x402_version: u32,
    /// Why, as one of the protocol's codes where it has one.
    pub error: String,
    /// What is paid for.
    pub resource: Resource,
    /// The ways to pay, the payee's favourite first.
    pub accepts: Vec<Requirements>,
}

/// What is paid for.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// Where it is.
    pub url: String,
    /// For people.
    pub description: String,
    /// What the answer is.
    pub mime_type: String,
}

/// One way to pay.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Requirements {
    /// Which way.
    pub scheme: Scheme,
    /// CAIP-2: `eip155:CHAIN_ID`.
    pub network: String,
    /// The price; with a channel the most that the request may cost.
    pub amount: Amount,
    /// The token.
    pub asset: Address,
    /// Who is paid.
    pub pay_to: Address,
    /// How long a signed transfer has to be valid.
    pub max_timeout_seconds: u64,
    /// What the scheme needs besides.
    pub extra: Extra,
}

/// Fields of a scheme.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Extra {
    /// EIP-712 domain of the token.
    pub name: String,
    /// EIP-712 domain of the token.
    pub version: String,
    /// Of a channel: who may claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receiver_authorizer: Option<Address>,
    /// Of a channel: seconds from the wish to withdraw to the withdrawal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withdraw_delay: Option<u64>,
    /// Where the payee's books stand, if the payer's stand elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel_state: Option<ChannelState>,
    /// The payer's own signature as the proof of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub voucher_state: Option<VoucherState>,
}

/// A channel as its payee sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelState {
    /// Which.
    pub channel_id: ChannelId,
    /// On chain.
    pub balance: Amount,
    /// On chain.
    pub total_claimed: Amount,
    /// Unix seconds; 0 if the payer does not withdraw.
    pub withdraw_requested_at: u64,
    /// Decimal.
    pub refund_nonce: String,
    /// Sum of what requests have cost.
    pub charged_cumulative_amount: Amount,
}

/// The last voucher that was taken.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VoucherState {
    /// Its ceiling.
    pub signed_max_claimable: Amount,
    /// By the payer.
    pub signature: Signature,
}

/// What became of a payment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SettleResponse {
    /// Whether it is paid.
    pub success: bool,
    /// If it is not: one of the protocol's codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// Who paid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payer: Option<Address>,
    /// Hash of the transaction; empty if there was none.
    pub transaction: String,
    /// As in [`Requirements::network`].
    pub network: String,
    /// What was moved on chain; empty if nothing was.
    pub amount: String,
    /// Of a channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra: Option<SettleExtra>,
}

/// What became of a channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SettleExtra {
    /// What the request cost; a refund costs nothing and has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub charged_amount: Option<Amount>,
    /// After it.
    pub channel_state: ChannelState,
}

/// What a client sends. The scheme's part is read by [`Self::exact`] or [`Self::channel`].
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentPayload {
    /// [`VERSION`].
    pub x402_version: u32,
    /// Which of the ways the client chose.
    pub accepted: Accepted,
    payload: Value,
}

/// The requirements that a client says it fulfils.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    /// [`Scheme::name`].
    pub scheme: String,
    /// As in [`Requirements`].
    pub network: String,
    /// As in [`Requirements`].
    pub amount: Amount,
    /// As in [`Requirements`].
    pub asset: Address,
    /// As in [`Requirements`].
    pub pay_to: Address,
}

/// A signed transfer.
#[derive(Clone, Debug, Deserialize)]
pub struct ExactPayment {
    /// By `from`, over a `TransferWithAuthorization`.
    pub signature: Signature,
    /// What is signed.
    pub authorization: TransferFields,
}

/// Fields of a `TransferWithAuthorization`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransferFields {
    /// Who pays.
    pub from: Address,
    /// Who is paid.
    pub to: Address,
    /// How much.
    pub value: Amount,
    /// Valid strictly after this Unix second.
    #[serde(deserialize_with = "decimal")]
    pub valid_after: u64,
    /// Valid strictly before this Unix second.
    #[serde(deserialize_with = "decimal")]
    pub valid_before: u64,
    /// Used once.
    pub nonce: B256,
}

/// A message on a channel.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelPayment {
    /// What is asked.
    #[serde(rename = "type")]
    pub kind: ChannelPaymentKind,
    /// The channel.
    pub channel_config: ChannelConfig,
    /// The new ceiling.
    pub voucher: VoucherFields,
    /// With [`ChannelPaymentKind::Deposit`].
    #[serde(default)]
    pub deposit: Option<Deposit>,
    /// With [`ChannelPaymentKind::Refund`]: how much; all that is left without it.
    #[serde(default)]
    pub amount: Option<Amount>,
}

/// What a message on a channel asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelPaymentKind {
    /// A request whose channel is to be filled first.
    Deposit,
    /// A request.
    Voucher,
    /// The money back that was not used.
    Refund,
}

/// A voucher and its signature.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VoucherFields {
    /// The channel.
    pub channel_id: ChannelId,
    /// Cumulative.
    pub max_claimable_amount: Amount,
    /// By the channel's payer or its authorizer.
    pub signature: Signature,
}

/// Money for a channel.
#[derive(Clone, Debug, Deserialize)]
pub struct Deposit {
    /// How much.
    pub amount: Amount,
    /// The payer's consent.
    pub authorization: DepositAuthorization,
}

/// How a deposit is collected.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DepositAuthorization {
    /// By the ERC-3009 collector. The protocol has another way (Permit2), which is not taken here.
    #[serde(default)]
    pub erc3009_authorization: Option<Erc3009Authorization>,
}

/// A `ReceiveWithAuthorization` for the collector; its nonce is made of channel and salt.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Erc3009Authorization {
    /// Valid strictly after this Unix second.
    #[serde(deserialize_with = "decimal")]
    pub valid_after: u64,
    /// Valid strictly before this Unix second.
    #[serde(deserialize_with = "decimal")]
    pub valid_before: u64,
    /// Used once.
    pub salt: B256,
    /// By the payer.
    pub signature: Signature,
}

/// A payment header holds no payment.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PayloadError {
    /// Longer than [`PAYMENT_LEN_MAX`].
    #[error("the payment has {0} bytes, more than {PAYMENT_LEN_MAX}")]
    TooLong(usize),
    /// Not base64.
    #[error("the payment is not base64")]
    NotBase64,
    /// Not the JSON that the protocol says.
    #[error("the payment is not understood: {0}")]
    Json(String),
}

impl From<serde_json::Error> for PayloadError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

impl PaymentPayload {
    /// Reads the value of [`PAYMENT_HEADER`].
    ///
    /// # Errors
    /// [`PayloadError`].
    pub fn decode(header: &str) -> Result<Self, PayloadError> {
        decode(header)
    }

    /// The payment of scheme `exact`.
    ///
    /// # Errors
    /// [`PayloadError::Json`].
    pub fn exact(self) -> Result<ExactPayment, PayloadError> {
        Ok(serde_json::from_value(self.payload)?)
    }

    /// The message of scheme `batch-settlement`.
    ///
    /// # Errors
    /// [`PayloadError::Json`].
    pub fn channel(self) -> Result<ChannelPayment, PayloadError> {
        Ok(serde_json::from_value(self.payload)?)
    }
}

/// The value of a header.
#[must_use]
pub fn encode(value: &impl Serialize) -> String {
    // Own types of strings and integers always have a JSON form.
    base64::encode(&serde_json::to_vec(value).unwrap_or_default())
}

/// Reads the value of a header.
///
/// # Errors
/// [`PayloadError`].
pub fn decode<T: DeserializeOwned>(header: &str) -> Result<T, PayloadError> {
    if header.len() > PAYMENT_LEN_MAX {
        return Err(PayloadError::TooLong(header.len()));
    }
    let json = base64::decode(header.trim()).ok_or(PayloadError::NotBase64)?;
    Ok(serde_json::from_slice(&json)?)
}

fn decimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn header(payload: &Value) -> String {
        encode(&json!({
            "x402Version": 2,
            "resource": {"url": "http://x/"},
            "accepted": {"scheme": "exact", "network": "eip155:1", "amount": "7", "extra": {"name": "t"},
                "asset": format!("{:#x}", Address::repeat_byte(1)), "payTo": format!("{:#x}", Address::repeat_byte(2))},
            "payload": payload,
        }))
    }

    fn exact() -> Value {
        json!({
            "signature": format!("0x{}", "11".repeat(65)),
            "authorization": {"from": format!("{:#x}", Address::repeat_byte(3)), "value": "7", "validAfter": "0",
                "to": format!("{:#x}", Address::repeat_byte(2)), "validBefore": "9",
                "nonce": format!("{:#x}", B256::repeat_byte(4))},
        })
    }

    fn channel(kind: &str) -> Value {
        json!({
            "type": kind,
            "channelConfig": ChannelConfig {
                payer: Address::repeat_byte(1), payer_authorizer: Address::repeat_byte(1),
                receiver: Address::repeat_byte(2), receiver_authorizer: Address::repeat_byte(2),
                token: Address::repeat_byte(3), withdraw_delay: 900, salt: B256::ZERO,
            },
            "voucher": {"channelId": format!("{:#x}", B256::repeat_byte(5)), "maxClaimableAmount": "12",
                "signature": format!("0x{}", "22".repeat(65))},
        })
    }

    #[test]
    fn payments_of_both_schemes_are_read() {
        let payment = PaymentPayload::decode(&header(&exact())).unwrap();
        assert_eq!((payment.x402_version, payment.accepted.amount), (2, Amount(7)));
        assert_eq!(payment.exact().unwrap().authorization.valid_before, 9);

        let mut deposit = channel("deposit");
        deposit["deposit"] = json!({"amount": "50", "authorization": {"erc3009Authorization": {
            "validAfter": "1", "validBefore": "2", "salt": format!("{:#x}", B256::repeat_byte(6)),
            "signature": format!("0x{}", "33".repeat(65))}}});
        let payment = PaymentPayload::decode(&header(&deposit)).unwrap().channel().unwrap();
        assert_eq!(payment.kind, ChannelPaymentKind::Deposit);
        let deposit = payment.deposit.unwrap();
        assert_eq!(deposit.amount, Amount(50));
        assert_eq!(deposit.authorization.erc3009_authorization.unwrap().salt, B256::repeat_byte(6));

        let mut refund = channel("refund");
        refund["amount"] = json!("3");
        let payment = PaymentPayload::decode(&header(&refund)).unwrap().channel().unwrap();
        assert_eq!((payment.kind, payment.amount), (ChannelPaymentKind::Refund, Some(Amount(3))));
    }

    #[test]
    fn what_is_no_payment_is_refused_and_does_not_panic() {
        let whole = header(&exact());
        assert!(matches!(PaymentPayload::decode("%%%"), Err(PayloadError::NotBase64)));
        assert!(matches!(PaymentPayload::decode(&"A".repeat(PAYMENT_LEN_MAX + 4)), Err(PayloadError::TooLong(_))));
        for len in 0..whole.len() {
            assert!(PaymentPayload::decode(&whole[..len]).is_err(), "{len}");
        }
        let broken = |change: fn(&mut Value)| {
            let mut payload = exact();
            change(&mut payload);
            PaymentPayload::decode(&header(&payload)).unwrap().exact().unwrap_err()
        };
        broken(|p| p["signature"] = json!("0x11"));
        broken(|p| p["authorization"]["value"] = json!("-1"));
        broken(|p| p["authorization"]["value"] = json!(7));
        broken(|p| p["authorization"]["validBefore"] = json!(u128::MAX.to_string()));
        broken(|p| p["authorization"]["nonce"] = json!("0x01"));
        broken(|p| *p = json!([]));
        assert!(PaymentPayload::decode(&header(&channel("claim"))).unwrap().channel().is_err());
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let extra = Extra {
            name: "T".into(),
            version: "1".into(),
            receiver_authorizer: None,
            withdraw_delay: None,
            channel_state: None,
            voucher_state: None,
        };
        assert_eq!(serde_json::to_string(&extra).unwrap(), r#"{"name":"T","version":"1"}"#);
        assert_eq!(serde_json::to_string(&Scheme::BatchSettlement).unwrap(), "\"batch-settlement\"");
        assert_eq!(Scheme::Exact.name(), "exact");
    }
}
