//! The database survives crashes, damage and strangers.

use super::*;
use assay_types::{
    B256, ChannelConfig, Finish, ModelId, Receipt, Signature, SignedReceipt, SignedVoucher, Voucher, response_hash,
};

const IDENTITY: Identity = Identity {
    chain_id: 31_337,
    provider: ProviderId(Address::repeat_byte(2)),
    registry: Address::repeat_byte(3),
    settlement: Address::repeat_byte(4),
};

fn channel(id: u8, ceiling: u128, charged_total: u128) -> ChannelRow {
    let config = ChannelConfig {
        payer: Address::repeat_byte(id),
        payer_authorizer: Address::ZERO,
        receiver: Address::repeat_byte(2),
        receiver_authorizer: Address::repeat_byte(2),
        token: Address::repeat_byte(9),
        withdraw_delay: (1 << 40) - 1,
        salt: B256::repeat_byte(id),
    };
    let voucher = Voucher { channel_id: ChannelId(B256::repeat_byte(id)), max_claimable_amount: Amount(ceiling) };
    let signature = Signature([ceiling as u8; 65]);
    let voucher = SignedVoucher { voucher, signature };
    ChannelRow { config, voucher, charged_total: Amount(charged_total), claimed: Amount::ZERO }
}

fn receipt(channel: &ChannelRow, request: u8, output_tokens: u64, finish: Finish) -> ReceiptRow {
    let receipt = Receipt {
        channel_id: channel.voucher.voucher.channel_id,
        request_hash: RequestHash(B256::repeat_byte(request)),
        response_hash: response_hash(&[], finish),
        model_id: ModelId(B256::repeat_byte(8)),
        prompt_tokens: u64::MAX,
        output_tokens,
        charged: Amount(u128::MAX),
        charged_total: channel.charged_total,
        issued_at: 1,
    };
    ReceiptRow { done: Done { receipt: SignedReceipt { receipt, signature: Signature([request; 65]) }, finish } }
}

async fn put(store: &Store, channel: ChannelRow, receipt: ReceiptRow) -> Result<(), StoreError> {
    let (done, committed) = oneshot::channel();
    store.reserve().await?.send(Write::Receipt { row: Box::new((receipt, channel, Spoken::default())), done });
    committed.await.map_err(|_| StoreError::Closed)?
}

#[tokio::test]
async fn tokens_are_kept_as_receipts_add_them_also_in_a_database_of_before() {
    let directory = tempfile::tempdir().unwrap();
    let (store, writer) = open(&directory).await;
    let row = channel(1, 100, 10);
    let hash = RequestHash(B256::repeat_byte(11));
    put(&store, row, receipt(&row, 12, 1, Finish::Stop)).await.unwrap();
    drop(store);
    writer.await.unwrap();
    // As version 1 left it.
    let file = SqliteConnectOptions::new().filename(directory.path().join("provider.sqlite"));
    let pool = connect(file, 1).await.unwrap();
    sqlx::raw_sql("DROP TABLE inputs; DROP TABLE outputs; PRAGMA user_version = 1;").execute(&pool).await.unwrap();
    pool.close().await;

    let (store, _writer) = open(&directory).await;
    let add = async |count: u64, finish, spoken: Spoken| {
        let (done, committed) = oneshot::channel();
        let rows = (receipt(&row, 11, count, finish), row, spoken);
        store.reserve().await.unwrap().send(Write::Receipt { row: Box::new(rows), done });
        committed.await.unwrap().unwrap();
    };
    add(2, Finish::Open, Spoken { input: vec![7, u32::MAX], first: 0, output: vec![1, 2] }).await;
    add(3, Finish::Stop, Spoken { input: vec![], first: 2, output: vec![3] }).await;
    let expect = Transcript { input: vec![7, u32::MAX], output: vec![1, 2, 3] };
    assert_eq!(store.transcript(hash).await.unwrap(), Some(expect));
    assert_eq!(store.transcript(RequestHash(B256::repeat_byte(12))).await.unwrap(), None, "of before");
    assert!(store.receipt(RequestHash(B256::repeat_byte(12))).await.unwrap().is_some());
}

async fn open(directory: &tempfile::TempDir) -> (Store, JoinHandle<()>) {
    Store::open(&directory.path().join("provider.sqlite"), &IDENTITY).await.unwrap()
}

#[tokio::test]
async fn rows_come_back_as_they_were_also_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let (store, writer) = open(&directory).await;
    let (one, two) = (channel(1, 100, 10), channel(2, u128::MAX, u128::MAX));
    put(&store, one, receipt(&one, 11, 64, Finish::Open)).await.unwrap();
    put(&store, two, receipt(&two, 12, u64::from(u32::MAX), Finish::Length)).await.unwrap();
    // No orderly end.
    writer.abort();
    drop(store);

    let (store, _writer) = open(&directory).await;
    let mut channels = store.channels().await.unwrap();
    channels.sort_by_key(|row| row.charged_total);
    assert_eq!(channels, [one, two]);
    let stored = store.receipt(RequestHash(B256::repeat_byte(11))).await.unwrap();
    assert_eq!(stored, Some(receipt(&one, 11, 64, Finish::Open).done));
    assert_eq!(
        store.latest(two.voucher.voucher.channel_id).await.unwrap(),
        Some(receipt(&two, 12, u64::from(u32::MAX), Finish::Length).done)
    );
    assert_eq!(store.receipt(RequestHash(B256::ZERO)).await.unwrap(), None);
    assert_eq!(store.sums().await.unwrap(), (2, Amount(u128::MAX)));
}

#[tokio::test]
async fn a_channel_keeps_its_highest_voucher_and_its_last_total() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _writer) = open(&directory).await;
    let rows = [channel(1, 100, 10), channel(1, 200, 20), channel(1, 150, 30)];
    for (request, row) in (0..).zip(rows) {
        put(&store, row, receipt(&row, request, 1, Finish::Stop)).await.unwrap();
    }
    let stored = store.channels().await.unwrap();
    assert_eq!(stored, [ChannelRow { voucher: rows[1].voucher, ..rows[2] }]);
    let id = rows[0].voucher.voucher.channel_id;
    assert_eq!(store.latest(id).await.unwrap().unwrap().receipt.receipt.charged_total, Amount(30));

    store.mark_claimed(id, Amount(25)).await.unwrap();
    store.mark_claimed(id, Amount(20)).await.unwrap();
    // After a reorganization less is claimed than before.
    assert_eq!(store.channels().await.unwrap()[0].claimed, Amount(20));
    // A later receipt does not unclaim.
    let row = channel(1, 200, 40);
    put(&store, row, receipt(&row, 9, 1, Finish::Stop)).await.unwrap();
    assert_eq!(store.channels().await.unwrap()[0].claimed, Amount(20));
}

#[tokio::test]
async fn only_a_longer_receipt_follows_a_checkpoint_and_nothing_follows_the_end() {
    let check = async |first: (u64, Finish), second: (u64, Finish), is_stored: bool| {
        let directory = tempfile::tempdir().unwrap();
        let (store, _writer) = open(&directory).await;
        let row = channel(1, 100, 10);
        put(&store, row, receipt(&row, 5, first.0, first.1)).await.unwrap();
        let result = put(&store, row, receipt(&row, 5, second.0, second.1)).await;
        assert_eq!(result.is_ok(), is_stored, "{first:?} {second:?}");
        let stored = store.receipt(RequestHash(B256::repeat_byte(5))).await.unwrap().unwrap();
        let expect = if is_stored { second } else { first };
        assert_eq!((stored.receipt.receipt.output_tokens, stored.finish), expect);
        if !is_stored {
            // Totals after it would contain what was not stored.
            let next = put(&store, row, receipt(&row, 6, 1, Finish::Stop)).await;
            assert!(matches!(next, Err(StoreError::Closed)));
        }
    };
    check((64, Finish::Open), (128, Finish::Open), true).await;
    check((64, Finish::Open), (65, Finish::Cancelled), true).await;
    check((64, Finish::Open), (64, Finish::Cancelled), false).await;
    check((64, Finish::Open), (10, Finish::Stop), false).await;
    check((64, Finish::Stop), (65, Finish::Stop), false).await;
    check((0, Finish::Cancelled), (10, Finish::Stop), false).await;
}

#[tokio::test]
async fn writes_that_wait_together_are_all_there_when_they_are_answered() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _writer) = open(&directory).await;
    let mut tasks = tokio::task::JoinSet::new();
    for request in 0..200 {
        let store = store.clone();
        tasks.spawn(async move {
            let row = channel(request % 3, 1_000, u128::from(request));
            put(&store, row, receipt(&row, request, 1, Finish::Stop)).await.unwrap();
            assert!(store.receipt(RequestHash(B256::repeat_byte(request))).await.unwrap().is_some());
        });
    }
    assert_eq!(tasks.join_all().await.len(), 200);
    assert_eq!(store.sums().await.unwrap().0, 200);
}

#[tokio::test]
async fn a_file_that_is_not_this_providers_is_named_and_not_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("provider.sqlite");
    let (store, writer) = open(&directory).await;
    let row = channel(1, 100, 10);
    put(&store, row, receipt(&row, 5, 1, Finish::Stop)).await.unwrap();
    drop(store);
    writer.await.unwrap();
    let genuine = std::fs::read(&path).unwrap();

    let check = async |bytes: &[u8], identity: &Identity, expect: &str| {
        std::fs::write(&path, bytes).unwrap();
        let error = Store::open(&path, identity).await.map(drop).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{expect}");
    };
    check(b"SQLite format", &IDENTITY, "too short").await;
    check(b"a letter to someone, longer than a magic", &IDENTITY, "not an SQLite file").await;
    let mut cut = genuine.clone();
    cut.truncate(genuine.len() / 2);
    check(&cut, &IDENTITY, "it was not changed").await;
    let mut scribbled = genuine.clone();
    scribbled[4_096..].fill(0xa5);
    check(&scribbled, &IDENTITY, "it was not changed").await;
    check(&genuine, &Identity { chain_id: 1, ..IDENTITY }, "belongs to provider").await;
    check(&genuine, &Identity { provider: ProviderId::default(), ..IDENTITY }, "belongs to provider").await;
    let mut newer = genuine.clone();
    // The schema version is the 32-bit number at offset 60 of the header.
    newer[60..64].copy_from_slice(&3u32.to_be_bytes());
    check(&newer, &IDENTITY, "schema version 3").await;

    std::fs::write(&path, &genuine).unwrap();
    assert_eq!(open(&directory).await.0.channels().await.unwrap(), [row]);
    let missing = directory.path().join("no/such/directory/provider.sqlite");
    assert!(matches!(Store::open(&missing, &IDENTITY).await.map(drop), Err(StoreError::Open { .. })));
}
