//! Frames between gateway and provider, receipt files, and the small texts that name things.

use crate::limit::bounded;
use assay_net::{ClientFrame, Endpoint, ProviderFrame, decode, encode};
use assay_types::{
    Address, Amount, B256, CANONICAL_PROFILE, ChannelId, Finish, Job, JobLimits, Manifest, ModelId, ProviderId,
    RECEIPT_FILE_VERSION, Receipt, ReceiptFile, ReceiptPart, RequestHash, Sampling, SignedOffer, SignedReceipt,
    response_hash, settlement_domain,
};
use assay_verify::statements;
use serde_json::json;
use std::collections::BTreeMap;
use std::str::FromStr;

/// As `assay_net::decode` promises, and some room for messages of errors.
const GROWTH_MAX: usize = 32;
const SLACK: usize = (1 << 20) + (1 << 14);

pub fn run(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let bytes_max = GROWTH_MAX * data.len() + SLACK;
    match kind % 4 {
        0 => frame::<ClientFrame>(data, bytes_max),
        1 => frame::<ProviderFrame>(data, bytes_max),
        2 => receipt_file(data, bytes_max),
        _ => texts(&String::from_utf8_lossy(data)),
    }
}

fn frame<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(
    data: &[u8],
    bytes_max: usize,
) {
    let Ok(frame) = bounded("a frame", bytes_max, || decode::<T>(data)) else { return };
    let mut bytes = Vec::new();
    encode(&frame, &mut bytes).expect("what was decoded is short enough");
    assert!(bytes.len() <= data.len() + 4, "the canonical encoding is the shortest");
    assert_eq!(decode::<T>(&bytes[4..]).as_ref(), Ok(&frame));
}

fn receipt_file(data: &[u8], bytes_max: usize) {
    if let Ok(file) = bounded("a receipt file", bytes_max, || serde_json::from_slice::<ReceiptFile>(data)) {
        let again = serde_json::to_vec(&file).expect("it has an encoding");
        assert_eq!(serde_json::from_slice::<ReceiptFile>(&again).ok().as_ref(), Some(&file));
        let _ = statements::check(&file);
        let _ = file.job.validate(&JobLimits { vocab_size: 256, context_length: 4096, dimensions: 0 });
    }
    if let Ok(job) = serde_json::from_slice::<Job>(data) {
        assert_eq!(job.resumed_after(&[1]).input_tokens(), job.input_tokens() + 1);
        let _ = job.request_hash();
    }
    let _ = serde_json::from_slice::<SignedOffer>(data).map(|offer| offer.offer.digest(1));
    let _ = serde_json::from_slice::<SignedReceipt>(data);
}

fn texts(text: &str) {
    let _ = Endpoint::from_str(text).map(|endpoint| endpoint.to_string());
    if let Ok(id) = ProviderId::from_str(text) {
        assert_eq!(ProviderId::from_str(&id.to_string()), Ok(id));
    }
    if let Ok(id) = ModelId::from_str(text) {
        assert_eq!(ModelId::from_str(&id.to_string()), Ok(id));
    }
    let _ = (ChannelId::from_str(text), RequestHash::from_str(text));
    if let Ok(amount) = serde_json::from_str::<Amount>(text) {
        let again = serde_json::to_string(&amount).expect("it has an encoding");
        assert_eq!(serde_json::from_str::<Amount>(&again).ok(), Some(amount));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let golden = include_str!("../../vectors/frames.json");
    let golden: BTreeMap<String, String> = serde_json::from_str(golden).expect("names and hex digits");
    let frames: Vec<Vec<u8>> = golden.values().map(|hex| unhex(hex)[4..].to_vec()).collect();
    let mut seeds: Vec<Vec<u8>> = frames.iter().flat_map(|f| [0, 1].map(|kind| [&[kind], &f[..]].concat())).collect();
    let file = serde_json::to_value(receipt_file_of(&frames)).expect("it has an encoding");
    let texts = [
        (2, file.to_string()),
        (2, file["job"].to_string()),
        (3, "tcp://127.0.0.1:7411".to_owned()),
        (3, "tcp://[::1]:1".to_owned()),
        (3, "tcp://example.com:65535".to_owned()),
        (3, "0x0000000000000000000000000000000000000001".to_owned()),
        (3, format!("0x{}", "0a".repeat(32))),
        (3, "\"340282366920938463463374607431768211455\"".to_owned()),
    ];
    seeds.extend(texts.iter().map(|(kind, text)| [&[*kind], text.as_bytes()].concat()));
    // Lists that say they are longer than the frame.
    seeds.push([&[1, 5][..], &[0xff, 0xff, 0xff, 0xff, 0x0f]].concat());
    seeds.push([&[0, 4][..], &[0xff; 9], &[1]].concat());
    seeds
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A file whose statements hold up to the signature.
fn receipt_file_of(frames: &[Vec<u8>]) -> ReceiptFile {
    let signed = frames.iter().find_map(|frame| match decode(frame) {
        Ok(ProviderFrame::Checkpoint(signed)) => Some(signed),
        _ => None,
    });
    let channel = frames.iter().find_map(|frame| match decode(frame) {
        Ok(ClientFrame::ChannelRequest(request)) => Some(request.config),
        _ => None,
    });
    let (mut signed, channel) = signed.zip(channel).expect("both are among the golden frames");
    let manifest = Manifest {
        profile: CANONICAL_PROFILE.into(),
        file_sha256: B256::repeat_byte(1),
        file_len: 10,
        weights_root: B256::repeat_byte(2),
        tokenizer_hash: B256::repeat_byte(3),
        rope_hash: B256::repeat_byte(4),
        graph_hash: B256::repeat_byte(4),
        name: "tiny".into(),
        license: String::new(),
    };
    let job: Job = serde_json::from_value(json!({
        "modelId": manifest.model_id(), "prompt": [70, 71, 72], "maxTokens": 40, "sampling": Sampling::GREEDY,
        "stop": ["x"], "ignoreEos": true, "nonce": B256::repeat_byte(9),
    }))
    .expect("every other field has a default");
    let output = vec![5, 6];
    let (chain_id, settlement) = (1, Address::repeat_byte(2));
    signed.receipt = Receipt {
        channel_id: channel.id(&settlement_domain(chain_id, settlement)),
        request_hash: job.request_hash(),
        response_hash: response_hash(&output, Finish::Stop),
        model_id: job.model_id,
        prompt_tokens: 3,
        output_tokens: 2,
        ..signed.receipt
    };
    let provider = ProviderId(channel.receiver_authorizer);
    ReceiptFile {
        version: RECEIPT_FILE_VERSION,
        id: job.request_hash(),
        chain_id,
        registry: Address::repeat_byte(1),
        settlement,
        manifest,
        job,
        parts: vec![ReceiptPart { provider, channel, output, finish: Finish::Stop, signed }],
    }
}
