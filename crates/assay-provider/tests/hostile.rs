//! Clients that do not speak the protocol, or speak it to do harm.

mod support;

use assay_net::{
    ClientFrame, Connection, Hello, PROTOCOL_VERSION, ProviderFrame, Refused, RefusedCode, decode, encode,
};
use assay_provider::Limits;
use std::time::Duration;
use support::{LONG, Setup, World, job, limits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn greeted(world: &World, provider: &assay_provider::Provider) -> TcpStream {
    let mut raw = TcpStream::connect(provider.address()).await.unwrap();
    let mut bytes = Vec::new();
    let hello = Hello { version: PROTOCOL_VERSION, chain_id: world.setup.network.chain_id };
    encode(&ClientFrame::Hello(hello), &mut bytes).unwrap();
    raw.write_all(&bytes).await.unwrap();
    let mut len = [0; 4];
    raw.read_exact(&mut len).await.unwrap();
    let mut payload = vec![0; u32::from_le_bytes(len) as usize];
    raw.read_exact(&mut payload).await.unwrap();
    assert!(matches!(decode::<ProviderFrame>(&payload), Ok(ProviderFrame::Hello(_))));
    raw
}

/// Everything until the provider closes; a reset counts as closed.
async fn rest(mut raw: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LONG, raw.read_to_end(&mut answer)).await.expect("the provider closes");
    answer
}

/// splitmix64.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test]
async fn garbage_closes_its_connection_and_nothing_else() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let opened = client.open(&job(200)).await;

    for seed in 0..20 {
        // Unframed, before the greeting.
        let mut raw = TcpStream::connect(provider.address()).await.unwrap();
        let _ = raw.write_all(&noise(seed, 300)).await;
        let _ = raw.shutdown().await;
        assert!(rest(raw).await.is_empty());
        // Well framed, after it.
        let mut raw = greeted(&world, &provider).await;
        let mut bytes = 200u32.to_le_bytes().to_vec();
        // No frame has this kind.
        bytes.push(0xee);
        bytes.extend(noise(seed, 199));
        raw.write_all(&bytes).await.unwrap();
        let answer = rest(raw).await;
        let refused = decode::<ProviderFrame>(&answer[4..]).unwrap();
        assert!(matches!(refused, ProviderFrame::Refused(Refused { code: RefusedCode::Protocol, .. })));
    }
    // The oversized frame is refused by its length.
    let mut raw = greeted(&world, &provider).await;
    raw.write_all(&(1u32 << 20).to_le_bytes()).await.unwrap();
    let answer = rest(raw).await;
    let refused = decode::<ProviderFrame>(&answer[4..]).unwrap();
    assert!(matches!(refused, ProviderFrame::Refused(Refused { code: RefusedCode::Protocol, .. })));

    assert_eq!(client.finish(opened).await.output.len(), 200);
}

#[tokio::test]
async fn damaged_opens_are_refused_or_closed_and_never_served() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let client = world.client(&provider).await;
    let open = client.open_frame(&job(10));
    let mut bytes = Vec::new();
    encode(&ClientFrame::Open(Box::new(open)), &mut bytes).unwrap();
    // Every byte but the nonce and the prompt, which are the client's to choose, is either checked or signed.
    for index in (5..bytes.len()).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[index] ^= 0x10;
        let mut raw = greeted(&world, &provider).await;
        raw.write_all(&damaged).await.unwrap();
        let mut len = [0; 4];
        raw.read_exact(&mut len).await.unwrap();
        let mut payload = vec![0; u32::from_le_bytes(len) as usize];
        raw.read_exact(&mut payload).await.unwrap();
        let answer = decode::<ProviderFrame>(&payload).unwrap();
        assert!(matches!(answer, ProviderFrame::Refused(_) | ProviderFrame::Accepted), "{index}: {answer:?}");
    }
    assert!(!provider.is_broken());
}

#[tokio::test]
async fn a_frame_that_does_not_belong_into_a_job_ends_it() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let opened = client.open(&job(400)).await;
    let second = client.open_frame(&job(10));
    client.send(ClientFrame::Open(Box::new(second))).await;
    while let Ok(frame) = client.next().await {
        assert!(!matches!(frame, ProviderFrame::Accepted | ProviderFrame::Done(_)));
    }
    let mut client = world.client(&provider).await;
    while client.receipt_report(opened.request).await.is_running {}
    assert!(client.receipt_report(opened.request).await.last.is_some());
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_places_come_back() {
    for tight in [Limits { connections_max: 2, ..limits() }, Limits { connections_per_address_max: 2, ..limits() }] {
        third_connection_is_closed(World::new(Setup { limits: tight, ..Setup::default() })).await;
    }
}

async fn third_connection_is_closed(world: World) {
    let provider = world.start().await;
    let mut one = world.client(&provider).await;
    let mut two = world.client(&provider).await;
    one.offer().await;
    two.offer().await;
    assert!(
        assay_net::connect(&assay_net::Sockets, provider.address(), world.setup.network.chain_id, LONG).await.is_err()
    );
    drop(two);
    // The place is free when the provider has seen the end of it.
    let mut three = loop {
        if let Ok((connection, _)) =
            assay_net::connect(&assay_net::Sockets, provider.address(), world.setup.network.chain_id, LONG).await
        {
            break connection;
        }
    };
    three.sender.send(&ClientFrame::OfferRequest).await.unwrap();
    assert!(matches!(three.receiver.recv().await, Ok(ProviderFrame::Offer(_))));
    one.offer().await;
}

#[tokio::test]
async fn silent_connections_are_closed() {
    let short = Duration::from_millis(50);
    let limits = Limits { greeting_timeout: short, idle_timeout: short, ..limits() };
    let world = World::new(Setup { limits, ..Setup::default() });
    let provider = world.start().await;
    let silent = TcpStream::connect(provider.address()).await.unwrap();
    assert!(rest(silent).await.is_empty());
    let idle = greeted(&world, &provider).await;
    assert!(rest(idle).await.is_empty());
}

#[tokio::test]
async fn a_client_that_floods_payments_is_cut() {
    let world = World::new(Setup::default());
    let provider = world.start().await;
    let mut client = world.client(&provider).await;
    let opened = client.open(&job(400)).await;
    let voucher = world.wallet.channel.voucher(opened.terms.grant_after(0));
    let pay = ClientFrame::Pay(assay_net::Pay { voucher, grant: opened.terms.grant_after(0) });
    let Connection { mut sender, mut receiver } = client.connection;
    let flood = async {
        for _ in 0..2_000 {
            if sender.send(&pay).await.is_err() {
                break;
            }
        }
    };
    let ended = async {
        loop {
            match receiver.recv::<ProviderFrame>().await {
                Ok(ProviderFrame::Done(done)) => break done,
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let ((), done) = tokio::join!(flood, ended);
    assert!(done.receipt.receipt.output_tokens <= 64);
}
