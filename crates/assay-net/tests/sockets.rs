//! Streams over real sockets: who proves a key, and who does not.

use assay_net::{
    ClientFrame, Connection, Listener, NetError, PROTOCOL_VERSION, ProviderFrame, ProviderHello, Route, Sockets,
    TransportKey, TransportSecret, connect,
};
use assay_types::{Address, ProviderId};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const LONG: Duration = Duration::from_secs(20);
const CHAIN: u64 = 7;
const FRAME_LEN_MAX: u32 = 1 << 16;

fn secret(byte: u8) -> TransportSecret {
    TransportSecret::from_seed([byte; 32])
}

fn hello() -> ProviderHello {
    ProviderHello { version: PROTOCOL_VERSION, chain_id: CHAIN, provider: ProviderId(Address::repeat_byte(1)) }
}

/// A provider that greets, and answers every question for its offer with a refusal.
async fn provider(secret: Option<TransportSecret>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let loopback = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&Sockets, loopback, secret, LONG).await.unwrap();
    let address = listener.address().unwrap();
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let guest = listener.accept().await.unwrap();
            connections.spawn(async move {
                if let Ok(connection) = guest.welcome(hello(), FRAME_LEN_MAX, LONG).await {
                    answer(connection).await;
                }
            });
        }
    });
    (address, serving)
}

async fn answer(mut connection: Connection) {
    while let Ok(ClientFrame::OfferRequest) = connection.receiver.recv().await {
        let code = assay_net::RefusedCode::Busy;
        let refused = ProviderFrame::Refused(assay_net::Refused::new(code, "x".repeat(300)));
        connection.sender.send(&refused).await.unwrap();
    }
}

async fn ask(connection: &mut Connection) -> Result<ProviderFrame, NetError> {
    connection.sender.send(&ClientFrame::OfferRequest).await?;
    connection.receiver.recv_within(LONG).await
}

#[tokio::test]
async fn the_registered_key_is_what_the_provider_has_to_prove() {
    let (address, _serving) = provider(Some(secret(1))).await;
    let route = Route { address, key: Some(secret(1).public().unwrap()) };
    let (mut connection, hello) = connect(&Sockets, route, CHAIN, LONG).await.unwrap();
    assert_eq!(hello, self::hello());
    for _ in 0..3 {
        assert!(connection.receiver.is_quiet().await);
        assert!(matches!(ask(&mut connection).await.unwrap(), ProviderFrame::Refused(_)));
    }

    // Somebody else at the same address.
    for key in [secret(2).public().unwrap(), TransportKey([0; 32]), TransportKey([0xff; 32])] {
        let error = connect(&Sockets, Route { address, key: Some(key) }, CHAIN, LONG).await.err().unwrap();
        assert!(matches!(error, NetError::WrongPeer(_)), "{error}");
    }
}

#[tokio::test]
async fn a_clear_and_a_sealed_end_do_not_meet() {
    let (sealed, _a) = provider(Some(secret(1))).await;
    assert!(connect(&Sockets, sealed, CHAIN, LONG).await.is_err(), "a client in the clear");
    let (clear, _b) = provider(None).await;
    let key = secret(1).public().unwrap();
    assert!(connect(&Sockets, Route { address: clear, key: Some(key) }, CHAIN, LONG).await.is_err(), "a server");
    assert!(connect(&Sockets, clear, CHAIN, LONG).await.is_ok());
}

#[tokio::test]
async fn a_provider_that_dies_has_closed_the_connection() {
    for secret in [None, Some(secret(1))] {
        let key = secret.as_ref().map(|secret| secret.public().unwrap());
        let (address, serving) = provider(secret).await;
        let (mut connection, _) = connect(&Sockets, Route { address, key }, CHAIN, LONG).await.unwrap();
        serving.abort();
        let end = connection.receiver.recv_within::<ProviderFrame>(LONG).await;
        assert!(matches!(end, Err(NetError::Closed)), "{end:?}");
        assert!(!connection.receiver.is_quiet().await);
    }
}

#[tokio::test]
async fn what_is_no_handshake_ends_only_itself() {
    let (address, _serving) = provider(Some(secret(1))).await;
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 64], &[0xff; 70_000], b""] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The peer may hang up while the long one is written.
        let _ = stream.write_all(noise).await;
        let _ = stream.shutdown().await;
        let mut rest = vec![];
        let _ = stream.read_to_end(&mut rest).await;
    }
    let key = Some(secret(1).public().unwrap());
    assert!(connect(&Sockets, Route { address, key }, CHAIN, LONG).await.is_ok());
}

/// What is between the two: copies bytes both ways and keeps those of the provider.
async fn wiretap(to: SocketAddr) -> (SocketAddr, tokio::task::JoinHandle<io::Result<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let copying = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await?;
        let mut server = TcpStream::connect(to).await?;
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let mut seen = vec![];
        let mut block = vec![0; 4096];
        let answers = async {
            loop {
                let n = from_server.read(&mut block).await?;
                if n == 0 {
                    return Ok(seen);
                }
                seen.extend_from_slice(&block[..n]);
                to_client.write_all(&block[..n]).await?;
            }
        };
        let questions = async {
            let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
            let _ = to_server.shutdown().await;
        };
        tokio::join!(answers, questions).0
    });
    (address, copying)
}

#[tokio::test]
async fn who_listens_in_reads_only_what_is_in_the_clear() {
    for (secret, is_read) in [(None, true), (Some(secret(1)), false)] {
        let key = secret.as_ref().map(|secret| secret.public().unwrap());
        let (address, _serving) = provider(secret).await;
        let (tapped, copying) = wiretap(address).await;
        let (mut connection, _) = connect(&Sockets, Route { address: tapped, key }, CHAIN, LONG).await.unwrap();
        ask(&mut connection).await.unwrap();
        drop(connection);
        let seen = copying.await.unwrap().unwrap();
        assert!(seen.len() > 300);
        assert_eq!(seen.windows(300).any(|window| window == [b'x'; 300]), is_read);
    }
}

#[test]
fn a_secret_survives_its_text_and_is_not_printed() {
    let original = secret(7);
    let read: TransportSecret = original.to_text().parse().unwrap();
    assert_eq!(read.public().unwrap(), original.public().unwrap());
    assert!(!format!("{original:?}").contains("07"));
    for text in ["", "07", &"0g".repeat(32), &"07".repeat(33)] {
        let error = text.parse::<TransportSecret>().unwrap_err().to_string();
        assert!(error.contains("64 hexadecimal digits"), "{error}");
    }
}

/// RFC 8032, section 7.1, test 1.
#[test]
fn the_public_key_is_the_standards() {
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    assert_eq!(seed.parse::<TransportSecret>().unwrap().public().unwrap().to_string(), public);
}
