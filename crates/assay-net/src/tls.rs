//! TLS 1.3 (RFC 8446) with raw public keys (RFC 7250): a provider proves the ed25519 key that the registry lists for
//! it. There are no certificates, names or authorities, and clients stay anonymous: what they must prove they sign.

use crate::{ByteStream, NetError};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::AlwaysResolvesServerRawPublicKeys,
    sign::{CertifiedKey, SigningKey},
};
use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Said in the handshake, so that neither side takes another protocol's peer for its own.
const ALPN: &[u8] = b"assay";
/// SubjectPublicKeyInfo of an ed25519 key up to the key's 32 bytes (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// PKCS #8 of an ed25519 seed up to the seed's 32 bytes (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A provider's ed25519 public key, as the registry has it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransportKey(pub [u8; 32]);

impl fmt::Display for TransportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TransportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransportKey({self})")
    }
}

/// The seed of a [`TransportKey`] (RFC 8032, section 5.1.5). Never printed.
#[derive(Clone)]
pub struct TransportSecret([u8; 32]);

impl TransportSecret {
    /// Of 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    /// For a file that only its owner may read: 64 hexadecimal digits, which [`str::parse`] reads.
    #[must_use]
    pub fn to_text(&self) -> String {
        hex::encode(self.0)
    }

    /// What the registry is to have.
    ///
    /// # Errors
    /// The cryptographic library refuses every key.
    pub fn public(&self) -> Result<TransportKey, NetError> {
        let spki = public_of(&*self.signing_key()?)?;
        let key = spki.strip_prefix(&SPKI_PREFIX).and_then(|key| key.try_into().ok());
        key.map(TransportKey).ok_or_else(|| unusable("it is no ed25519 key"))
    }

    fn signing_key(&self) -> Result<Arc<dyn SigningKey>, NetError> {
        let pkcs8 = [&PKCS8_PREFIX[..], &self.0].concat();
        ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).map_err(unusable)
    }
}

impl fmt::Debug for TransportSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransportSecret(..)")
    }
}

impl FromStr for TransportSecret {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let mut seed = [0; 32];
        hex::decode_to_slice(text, &mut seed).map_err(|_| unusable("it is not 64 hexadecimal digits"))?;
        Ok(Self(seed))
    }
}

fn unusable(why: impl fmt::Display) -> NetError {
    NetError::Key(why.to_string())
}

fn public_of(key: &dyn SigningKey) -> Result<Vec<u8>, NetError> {
    Ok(key.public_key().ok_or_else(|| unusable("its public key is not to be had"))?.to_vec())
}

/// Accepts under the provider's own key.
pub(crate) fn acceptor(secret: &TransportSecret) -> Result<TlsAcceptor, NetError> {
    let key = secret.signing_key()?;
    let raw_key = CertificateDer::from(public_of(&*key)?);
    let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::new(CertifiedKey::new(vec![raw_key], key)));
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Connections are pooled: a resumed session would save little, and its tickets cost bytes on each.
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The client's handshake with the owner of `key`.
pub(crate) async fn connect(stream: TcpStream, address: SocketAddr, key: TransportKey) -> Result<ByteStream, NetError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Pinned { spki: [&SPKI_PREFIX[..], &key.0].concat(), provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(_)) => NetError::WrongPeer(format!("{address} does not have the key {key}")),
            _ => NetError::Io(error),
        }
    })?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(ByteStream::new(reader, writer))
}

/// Takes one key and no other.
#[derive(Debug)]
struct Pinned {
    spki: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if intermediates.is_empty() && end_entity.as_ref() == self.spki {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        raw_key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(raw_key.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
