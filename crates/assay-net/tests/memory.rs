//! The network in memory: latency, faults that come again, and nothing left behind.

use assay_net::{
    ClientFrame, FRAME_LEN_MAX, Listener, NetError, PROTOCOL_VERSION, ProviderFrame, ProviderHello, Route,
    TransportSecret, connect,
};
use assay_testkit::memory_net::{Event, Faults, MemoryNet, Traced};
use assay_types::{Address, ProviderId};
use std::{net::SocketAddr, time::Duration};
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(10);
const CHAIN: u64 = 7;

fn hello() -> ProviderHello {
    ProviderHello { version: PROTOCOL_VERSION, chain_id: CHAIN, provider: ProviderId(Address::repeat_byte(1)) }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Answers every frame with 1,000 bytes.
async fn serve(net: &MemoryNet, at: SocketAddr, secret: Option<TransportSecret>) -> SocketAddr {
    let listener = Listener::bind(net, at, secret, LIMIT).await.unwrap();
    let address = listener.address().unwrap();
    tokio::spawn(async move {
        loop {
            let guest = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let Ok(mut connection) = guest.welcome(hello(), FRAME_LEN_MAX, LIMIT).await else { return };
                while connection.receiver.recv::<ClientFrame>().await.is_ok() {
                    let answer = ProviderFrame::Tokens(vec![7; 250]);
                    if connection.sender.send(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Asks `count` times; how many answers came.
async fn ask(net: &MemoryNet, route: impl Into<Route>, count: u32) -> Result<u32, NetError> {
    let (mut connection, _) = connect(net, route, CHAIN, LIMIT).await?;
    for answered in 0..count {
        let answer = async {
            connection.sender.send(&ClientFrame::OfferRequest).await?;
            connection.receiver.recv_within::<ProviderFrame>(LIMIT).await
        };
        if answer.await.is_err() {
            return Ok(answered);
        }
    }
    Ok(count)
}

/// Until the links' own tasks have seen that the ends are gone.
async fn settled(net: &MemoryNet) {
    while net.links() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_round_trip_takes_twice_the_latency() {
    let latency = Duration::from_millis(25);
    let net = MemoryNet::new(1, Faults { latency: latency..latency, ..Faults::default() });
    let at = serve(&net, address("10.0.0.1:0"), None).await;
    let begin = Instant::now();
    assert_eq!(ask(&net, at, 3).await.unwrap(), 3);
    // One for the greeting.
    assert_eq!(begin.elapsed(), 8 * latency);
    settled(&net).await;
}

#[tokio::test(start_paused = true)]
async fn only_the_key_that_is_asked_for_answers() {
    let net = MemoryNet::new(1, Faults::default());
    let secret = |byte| TransportSecret::from_seed([byte; 32]);
    let at = serve(&net, address("10.0.0.1:5"), Some(secret(1))).await;
    for (key, is_right) in [(Some(1), true), (Some(2), false), (None, false)] {
        let key = key.map(|byte| secret(byte).public().unwrap());
        let asked = ask(&net, Route { address: at, key }, 1).await;
        assert_eq!(asked.is_ok(), is_right, "{asked:?}");
    }
    let taken = Listener::bind(&net, at, None, LIMIT).await.map(drop);
    assert!(matches!(taken, Err(NetError::Io(error)) if error.kind() == std::io::ErrorKind::AddrInUse));
    assert!(ask(&net, address("10.0.0.1:6"), 1).await.is_err(), "nobody listens there");
}

#[tokio::test(start_paused = true)]
async fn a_cut_ends_every_connection_to_one_address() {
    let net = MemoryNet::new(1, Faults::default());
    let (here, there) =
        (serve(&net, address("10.0.0.1:0"), None).await, serve(&net, address("10.0.0.2:0"), None).await);
    let (mut cut, _) = connect(&net, here, CHAIN, LIMIT).await.unwrap();
    let (mut kept, _) = connect(&net, there, CHAIN, LIMIT).await.unwrap();
    net.cut(here);
    assert!(matches!(cut.receiver.recv::<ProviderFrame>().await, Err(NetError::Closed)));
    assert!(kept.receiver.is_quiet().await);
    assert_eq!((net.links(), net.trace().last().map(|traced| traced.3)), (1, Some(Event::Cut)));
    drop(kept);
    settled(&net).await;
    assert_eq!(ask(&net, here, 1).await.unwrap(), 1, "the next one is not cut");
}

/// 60 connections to three addresses, five at a time.
async fn storm(seed: u64) -> Vec<Traced> {
    let faults = Faults {
        latency: Duration::from_millis(1)..Duration::from_millis(80),
        refused_ppm: 200_000,
        cut_ppm: 400_000,
        cut_after: 0..6_000,
    };
    let net = MemoryNet::new(seed, faults);
    let mut addresses = vec![];
    for host in 1..=3 {
        addresses.push(serve(&net, SocketAddr::from(([10, 0, 0, host], 0)), None).await);
    }
    for _ in 0..12 {
        let (net, addresses) = (&net, &addresses);
        let one = async |i: usize| ask(net, addresses[i % 3], 5).await.ok();
        tokio::join!(one(0), one(1), one(2), one(3), one(4));
    }
    settled(&net).await;
    net.trace()
}

#[tokio::test(start_paused = true)]
async fn equal_seeds_are_equal_storms() {
    let first = storm(1).await;
    assert_eq!(first, storm(1).await);
    assert_ne!(first, storm(2).await);
    let count = |event| first.iter().filter(|traced| traced.3 == event).count();
    let (refused, opened) = (count(Event::Refused), count(Event::Opened));
    assert_eq!(refused + opened, 60);
    assert_eq!(opened, count(Event::Cut) + count(Event::Closed));
    assert!(refused > 3 && count(Event::Cut) > 5 && count(Event::Closed) > 5, "{first:?}");
}
