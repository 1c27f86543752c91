//! Every frame: golden bytes (vectors/frames.json), round trip, mutated and truncated bytes; then whole connections.

use crate::*;
use assay_types::*;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_secs(10);

fn channel() -> ChannelConfig {
    ChannelConfig {
        payer: Address::repeat_byte(0x11),
        payer_authorizer: Address::ZERO,
        receiver: Address::repeat_byte(0x22),
        receiver_authorizer: Address::repeat_byte(0x22),
        token: Address::repeat_byte(0x33),
        withdraw_delay: 86_400,
        salt: B256::repeat_byte(0x44),
    }
}

fn voucher() -> SignedVoucher {
    let voucher = Voucher { channel_id: ChannelId(B256::repeat_byte(0x55)), max_claimable_amount: Amount(1_000_000) };
    SignedVoucher { voucher, signature: Signature([0x66; 65]) }
}

fn receipt() -> SignedReceipt {
    let receipt = Receipt {
        channel_id: ChannelId(B256::repeat_byte(0x55)),
        request_hash: RequestHash(B256::repeat_byte(0x77)),
        response_hash: response_hash(&[1, 2], Finish::Stop),
        model_id: ModelId(B256::repeat_byte(0x88)),
        prompt_tokens: 300,
        output_tokens: 2,
        charged: Amount(17),
        charged_total: Amount(u128::MAX),
        issued_at: 1_790_000_000,
    };
    SignedReceipt { receipt, signature: Signature([0x99; 65]) }
}

fn job() -> Job {
    Job {
        model_id: ModelId(B256::repeat_byte(0x88)),
        prompt: vec![1, 200, 100_000],
        prefix: vec![7],
        max_tokens: 128,
        sampling: Sampling {
            temperature_micro: 700_000,
            top_p_micro: 950_000,
            top_k: 40,
            min_p_micro: 20_000,
            repetition_penalty_micro: 1_100_000,
            frequency_penalty_micro: -500_000,
            presence_penalty_micro: 2_000_000,
            seed: u64::MAX,
        },
        logit_bias: vec![LogitBias { token: 9, bias_micro: -100_000_000 }],
        grammar: Some(Grammar::new(GrammarKind::Regex, "a+")),
        stop: vec!["\n\n".into(), "Ende".into()],
        ignore_eos: false,
        logprobs: Some(5),
        embed: None,
        nonce: B256::repeat_byte(0xaa),
    }
}

fn offer() -> SignedOffer {
    let prices = Prices { input_per_million: Amount(50_000), output_per_million: Amount(150_000) };
    let model = ModelOffer { model_id: job().model_id, name: "assay-tiny".into(), context_length: 512, prices };
    let offer = Offer {
        provider: ProviderId(Address::repeat_byte(0x22)),
        models: vec![model],
        capacity: 16,
        running: 3,
        queued: 1,
        draining: false,
        issued_at: 1_790_000_000,
    };
    SignedOffer { offer, signature: Signature([0xbb; 65]) }
}

fn client_frames() -> Vec<(&'static str, ClientFrame)> {
    let prices = offer().offer.models[0].prices;
    let open = Open { job: job(), channel: channel(), prices, voucher: voucher(), grant: Amount(64) };
    let latest = Some(Done { receipt: receipt(), finish: Finish::Open });
    let request = ChannelRequest { config: channel(), voucher: Some(voucher()), latest };
    vec![
        ("client hello", ClientFrame::Hello(Hello { version: PROTOCOL_VERSION, chain_id: 31_337 })),
        ("offer request", ClientFrame::OfferRequest),
        ("channel request", ClientFrame::ChannelRequest(Box::new(request))),
        ("receipt request", ClientFrame::ReceiptRequest(RequestHash(B256::repeat_byte(0x77)))),
        ("open", ClientFrame::Open(Box::new(open))),
        ("show", ClientFrame::Show),
        ("pay", ClientFrame::Pay(Pay { voucher: voucher(), grant: Amount(128) })),
        ("cancel", ClientFrame::Cancel),
    ]
}

fn provider_frames() -> Vec<(&'static str, ProviderFrame)> {
    let hello = ProviderHello { version: PROTOCOL_VERSION, chain_id: 31_337, provider: offer().offer.provider };
    let done = Done { receipt: receipt(), finish: Finish::Stop };
    let report =
        ChannelReport { charged_total: Amount(17), latest: Some(done), open_streams: 2, voucher: Some(voucher()) };
    let scored = TokenLogprobs { token_micro: -1_000, top: vec![(7, -1_000), (100_000, -2_000_000)] };
    vec![
        ("provider hello", ProviderFrame::Hello(hello)),
        ("offer", ProviderFrame::Offer(offer())),
        ("channel", ProviderFrame::Channel(Box::new(report))),
        ("receipt", ProviderFrame::Receipt(Box::new(ReceiptReport { is_running: false, last: Some(done) }))),
        ("accepted", ProviderFrame::Accepted),
        ("committed", ProviderFrame::Committed(B256::repeat_byte(0xcc))),
        ("salt", ProviderFrame::Salt(B256::repeat_byte(0xdd))),
        ("tokens", ProviderFrame::Tokens(vec![0, 127, 128, u32::MAX])),
        ("checkpoint", ProviderFrame::Checkpoint(receipt())),
        ("done", ProviderFrame::Done(done)),
        ("refused", ProviderFrame::Refused(Refused::new(RefusedCode::Internal, "the disk is full"))),
        (
            "scored",
            ProviderFrame::Scored(vec![(7, scored), (128, TokenLogprobs { token_micro: i32::MIN, top: vec![] })]),
        ),
    ]
}

fn bytes_of<T: serde::Serialize>(frame: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode(frame, &mut out).unwrap();
    out
}

#[test]
fn frames_have_their_golden_bytes() {
    let golden: BTreeMap<String, String> = serde_json::from_str(include_str!("../../../vectors/frames.json")).unwrap();
    let mut frames: BTreeMap<String, String> = BTreeMap::new();
    for (name, frame) in client_frames() {
        let bytes = bytes_of(&frame);
        assert_eq!(decode::<ClientFrame>(&bytes[4..]).unwrap(), frame, "{name}");
        frames.insert(name.into(), hex::encode(bytes));
    }
    for (name, frame) in provider_frames() {
        let bytes = bytes_of(&frame);
        assert_eq!(decode::<ProviderFrame>(&bytes[4..]).unwrap(), frame, "{name}");
        frames.insert(name.into(), hex::encode(bytes));
    }
    assert_eq!(frames, golden, "{}", serde_json::to_string_pretty(&frames).unwrap());
}

/// Every truncation fails, every changed byte fails or gives a frame that encodes again.
fn check_damage<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
    name: &str,
    frame: &T,
) {
    let bytes = bytes_of(frame);
    let payload = &bytes[4..];
    for len in 0..payload.len() {
        assert!(decode::<T>(&payload[..len]).is_err(), "{name} cut to {len}");
    }
    let mut longer = payload.to_vec();
    longer.push(0);
    assert_eq!(decode::<T>(&longer), Err(CodecError::TrailingBytes(1)), "{name}");
    for index in 0..payload.len() {
        for change in [0x01, 0x80, 0x7f, 0xff] {
            let mut damaged = payload.to_vec();
            damaged[index] ^= change;
            if let Ok(other) = decode::<T>(&damaged) {
                assert_eq!(decode::<T>(&bytes_of(&other)[4..]).unwrap(), other, "{name} {index} {change}");
            }
        }
    }
}

#[test]
fn damaged_frames_are_errors_not_panics() {
    for (name, frame) in client_frames() {
        check_damage(name, &frame);
    }
    for (name, frame) in provider_frames() {
        check_damage(name, &frame);
    }
}

#[test]
fn a_count_that_lies_takes_no_memory() {
    // Tokens, 2^32 - 1 of them, none there.
    let lying = [5, 0xff, 0xff, 0xff, 0xff, 0x0f];
    assert!(matches!(decode::<ProviderFrame>(&lying), Err(CodecError::Malformed(_))));
}

#[test]
fn a_long_frame_is_not_encoded() {
    let mut out = vec![1, 2, 3];
    let frame = ProviderFrame::Tokens(vec![u32::MAX; 1 << 20]);
    assert!(matches!(encode(&frame, &mut out), Err(CodecError::TooLong { .. })));
    assert_eq!(out, [1, 2, 3]);
    assert_eq!(Refused::new(RefusedCode::Busy, "ä".repeat(400)).message.len(), MESSAGE_LEN_MAX);
}

fn over(
    reader: impl tokio::io::AsyncRead + Send + Unpin + 'static,
    writer: impl tokio::io::AsyncWrite + Send + Unpin + 'static,
) -> Connection {
    Connection::over(ByteStream::new(reader, writer), LIMIT)
}

/// In the clear, on a free port.
async fn listen() -> Listener {
    Listener::bind(&Sockets, "127.0.0.1:0".parse().unwrap(), None, LIMIT).await.unwrap()
}

fn pool() -> Pool {
    Pool::new(Arc::new(Sockets), PoolOptions::new(31_337))
}

fn pair() -> (Connection, Connection) {
    let ((a_in, a_out), (b_in, b_out)) = {
        let (a, b) = tokio::io::duplex(1 << 10);
        (tokio::io::split(a), tokio::io::split(b))
    };
    (over(a_in, a_out), over(b_in, b_out))
}

#[tokio::test]
async fn frames_arrive_in_order_through_a_narrow_pipe() {
    let (mut client, mut provider) = pair();
    let sending = async {
        for (_, frame) in client_frames() {
            client.sender.send(&frame).await.unwrap();
        }
        drop(client);
    };
    let receiving = async {
        for (_, frame) in client_frames() {
            assert_eq!(provider.receiver.recv::<ClientFrame>().await.unwrap(), frame);
        }
        assert!(matches!(provider.receiver.recv::<ClientFrame>().await, Err(NetError::Closed)));
    };
    tokio::join!(sending, receiving);
}

#[tokio::test(start_paused = true)]
async fn a_frame_in_two_pieces_survives_a_deadline_between_them() {
    let (mut raw, io) = tokio::io::duplex(1 << 10);
    let (reader, writer) = tokio::io::split(io);
    let mut receiver = over(reader, writer).receiver;
    let bytes = bytes_of(&ClientFrame::ReceiptRequest(RequestHash(B256::repeat_byte(0x77))));
    raw.write_all(&bytes[..9]).await.unwrap();
    let early = receiver.recv_within::<ClientFrame>(Duration::from_secs(1)).await;
    assert!(matches!(early, Err(NetError::Timeout { .. })));
    assert!(!receiver.is_quiet().await);
    raw.write_all(&bytes[9..]).await.unwrap();
    assert_eq!(
        receiver.recv::<ClientFrame>().await.unwrap(),
        ClientFrame::ReceiptRequest(RequestHash(B256::repeat_byte(0x77)))
    );
    assert!(receiver.is_quiet().await);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up() {
    let (mut client, _provider) = pair();
    let frame = ProviderFrame::Tokens(vec![u32::MAX; 1_000]);
    let result = client.sender.send(&frame).await;
    assert!(matches!(result, Err(NetError::Timeout { what: "sending", .. })));
}

#[tokio::test]
async fn an_oversized_length_is_refused_before_anything_is_read() {
    let (mut raw, io) = tokio::io::duplex(64);
    let (reader, writer) = tokio::io::split(io);
    let mut receiver = over(reader, writer).receiver;
    receiver.limit_frames(1_000);
    raw.write_all(&1_001u32.to_le_bytes()).await.unwrap();
    let result = receiver.recv::<ClientFrame>().await;
    assert!(matches!(result, Err(NetError::Codec(CodecError::TooLong { len: 1_001, max: 1_000 }))));
}

fn hello() -> ProviderHello {
    ProviderHello { version: PROTOCOL_VERSION, chain_id: 31_337, provider: offer().offer.provider }
}

/// Accepts `count` connections, greets each and answers one offer request on it.
async fn serve(listener: Listener, count: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        let guest = listener.accept().await.unwrap();
        tasks.spawn(async move {
            let Ok(mut connection) = guest.welcome(hello(), FRAME_LEN_MAX, LIMIT).await else { return };
            while let Ok(frame) = connection.receiver.recv::<ClientFrame>().await {
                assert_eq!(frame, ClientFrame::OfferRequest);
                connection.sender.send(&ProviderFrame::Offer(offer())).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn a_pool_reuses_a_connection_and_replaces_a_dead_one() {
    let listener = listen().await;
    let address = listener.address().unwrap();
    let server = tokio::spawn(serve(listener, 2));
    let pool = pool();
    let provider = hello().provider;
    for is_reused in [false, true, true] {
        let mut pooled = pool.get(provider, address.into()).await.unwrap();
        assert_eq!(pooled.is_reused, is_reused);
        pooled.connection.sender.send(&ClientFrame::OfferRequest).await.unwrap();
        assert_eq!(pooled.connection.receiver.recv::<ProviderFrame>().await.unwrap(), ProviderFrame::Offer(offer()));
        pool.give_back(pooled);
    }
    // One that was dropped is closed, one with an unasked-for answer on it is not used again.
    let mut pooled = pool.get(provider, address.into()).await.unwrap();
    pooled.connection.sender.send(&ClientFrame::OfferRequest).await.unwrap();
    let waiting = pooled.connection.receiver.recv::<ProviderFrame>().await.unwrap();
    assert_eq!(waiting, ProviderFrame::Offer(offer()));
    drop(pooled);
    assert!(!pool.get(provider, address.into()).await.unwrap().is_reused);
    pool.forget(provider);
    server.await.unwrap();
}

#[tokio::test]
async fn a_connection_closed_by_the_provider_is_not_lent() {
    let listener = listen().await;
    let address = listener.address().unwrap();
    let pool = pool();
    let provider = hello().provider;
    let (closed, on_close) = tokio::sync::oneshot::channel();
    let server = tokio::spawn(async move {
        drop(listener.accept().await.unwrap().welcome(hello(), FRAME_LEN_MAX, LIMIT).await.unwrap());
        closed.send(()).unwrap();
        listener.accept().await.unwrap().welcome(hello(), FRAME_LEN_MAX, LIMIT).await.unwrap()
    });
    let mut pooled = pool.get(provider, address.into()).await.unwrap();
    on_close.await.unwrap();
    // Wait for the end of the stream without taking anything from it.
    assert!(matches!(pooled.connection.receiver.recv::<ProviderFrame>().await, Err(NetError::Closed)));
    pool.give_back(pooled);
    assert!(!pool.get(provider, address.into()).await.unwrap().is_reused);
    server.await.unwrap();
}

#[tokio::test]
async fn another_version_chain_or_provider_is_refused_with_the_reason() {
    let listener = listen().await;
    let address = listener.address().unwrap();
    let server = tokio::spawn(serve(listener, 4));

    let other_chain = connect(&Sockets, address, 1, LIMIT).await;
    assert!(matches!(other_chain, Err(NetError::Refused(Refused { code: RefusedCode::Network, .. }))));

    let mut raw = tokio::net::TcpStream::connect(address).await.unwrap();
    let next = ClientFrame::Hello(Hello { version: PROTOCOL_VERSION + 1, chain_id: 31_337 });
    raw.write_all(&bytes_of(&next)).await.unwrap();
    let mut answer = Vec::new();
    raw.read_to_end(&mut answer).await.unwrap();
    let refused = decode::<ProviderFrame>(&answer[4..]).unwrap();
    assert!(matches!(refused, ProviderFrame::Refused(Refused { code: RefusedCode::Version, .. })));

    // A web client is no peer: its first four bytes are no length.
    let mut raw = tokio::net::TcpStream::connect(address).await.unwrap();
    raw.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    answer.clear();
    // The end of the stream, or a reset: the rest of the request was never read.
    let _ = raw.read_to_end(&mut answer).await;
    assert!(answer.is_empty());

    let pool = pool();
    let other_provider = pool.get(ProviderId(Address::repeat_byte(1)), address.into()).await;
    assert!(matches!(other_provider, Err(NetError::WrongPeer(_))));
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_greets_is_dropped() {
    let listener = listen().await;
    let client = tokio::net::TcpStream::connect(listener.address().unwrap()).await.unwrap();
    let guest = listener.accept().await.unwrap();
    let result = guest.welcome(hello(), FRAME_LEN_MAX, Duration::from_secs(5)).await.map(|_| ());
    assert!(matches!(result, Err(NetError::Timeout { what: "the greeting", .. })));
    drop(client);
}
