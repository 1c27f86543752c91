//! The golden typed data that the contracts' tests write: both languages must hash and recover alike.

use assay_types::{
    Address, Amount, B256, ChannelConfig, ChannelId, ModelId, ProviderId, Receipt, RequestHash, ResponseHash,
    Signature, SignedReceipt, SignedVoucher, Voucher, receipt_domain, settlement_domain,
};
use serde_json::Value;
use std::str::FromStr;

fn vectors(list: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(include_str!("../../../vectors/eip712.json")).expect("vectors are JSON");
    let rows = file[list].as_array().expect("a list").clone();
    assert!(rows.len() >= 2, "{list}");
    rows
}

/// The field at a dotted path, parsed.
fn get<T: FromStr<Err: std::fmt::Debug>>(row: &Value, path: &str) -> T {
    let value = path.split('.').fold(row, |v, key| &v[key]);
    value.as_str().unwrap_or_else(|| panic!("{path} in {row}")).parse().unwrap_or_else(|e| panic!("{path}: {e:?}"))
}

fn signature(row: &Value, field: &str) -> Signature {
    serde_json::from_value(row[field].clone()).expect("a signature")
}

#[test]
fn channels_and_vouchers_hash_and_recover_as_the_contract_does() {
    for row in vectors("channels") {
        let domain = settlement_domain(get(&row, "chainId"), get(&row, "verifyingContract"));
        let config = ChannelConfig {
            payer: get(&row, "config.payer"),
            payer_authorizer: get(&row, "config.payerAuthorizer"),
            receiver: get(&row, "config.receiver"),
            receiver_authorizer: get(&row, "config.receiverAuthorizer"),
            token: get(&row, "config.token"),
            withdraw_delay: get(&row, "config.withdrawDelay"),
            salt: get(&row, "config.salt"),
        };
        let channel_id: ChannelId = get(&row, "channelId");
        assert_eq!(config.id(&domain), channel_id, "{row}");
        let voucher = Voucher { channel_id, max_claimable_amount: Amount(get(&row, "maxClaimableAmount")) };
        assert_eq!(voucher.digest(&domain), get::<B256>(&row, "voucherDigest"));
        let signed = SignedVoucher { voucher, signature: signature(&row, "voucherSignature") };
        // The scheme: without a key of its own for vouchers the payer's key signs.
        let authorizer = if config.payer_authorizer == Address::ZERO { config.payer } else { config.payer_authorizer };
        // Nobody has the zero address, so nobody signs for a channel without a payer.
        let somebody = authorizer != Address::ZERO;
        assert_eq!(signed.verify(&domain, authorizer).is_ok(), somebody, "{row}");
        assert!(signed.verify(&domain, config.receiver).is_err());
    }
}

#[test]
fn receipts_hash_and_recover_as_the_court_will() {
    for row in vectors("receipts") {
        let domain = receipt_domain(get(&row, "chainId"), get(&row, "verifyingContract"));
        let receipt = Receipt {
            channel_id: get(&row, "receipt.channelId"),
            request_hash: get::<RequestHash>(&row, "receipt.requestHash"),
            response_hash: get::<ResponseHash>(&row, "receipt.responseHash"),
            model_id: get::<ModelId>(&row, "receipt.modelId"),
            prompt_tokens: get(&row, "receipt.promptTokens"),
            output_tokens: get(&row, "receipt.outputTokens"),
            charged: Amount(get(&row, "receipt.charged")),
            charged_total: Amount(get(&row, "receipt.chargedTotal")),
            issued_at: get(&row, "receipt.issuedAt"),
        };
        assert_eq!(receipt.digest(&domain), get::<B256>(&row, "digest"), "{row}");
        let signed = SignedReceipt { receipt, signature: signature(&row, "signature") };
        assert_eq!(signed.verify(&domain, ProviderId(get(&row, "provider"))), Ok(()), "{row}");
    }
}
