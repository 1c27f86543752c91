//! Where a provider says it can be reached, as registered on chain: `tls://HOST:PORT`, or `tcp://HOST:PORT` in the clear.

use crate::{Route, TransportKey};
use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

/// A parsed endpoint.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    scheme: Scheme,
    host: String,
    port: u16,
}

/// How bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scheme {
    /// TCP in the clear: for one machine, or a network that is trusted.
    Tcp,
    /// TLS over TCP; the provider proves its registered transport key.
    Tls,
}

impl Scheme {
    fn prefix(self) -> &'static str {
        match self {
            Self::Tcp => "tcp://",
            Self::Tls => "tls://",
        }
    }
}

/// Which addresses a registered endpoint may resolve to. Anyone can register anything: without a policy a gateway
/// could be sent to services of its own network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressPolicy {
    /// Only addresses of the public internet.
    PublicOnly,
    /// Private, loopback and link-local ones, too: a network on one machine or in one building.
    Any,
}

/// Why there is nothing to connect to.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Neither `tls://HOST:PORT` nor `tcp://HOST:PORT`.
    #[error("endpoint {0:?} is neither tls://HOST:PORT nor tcp://HOST:PORT")]
    Malformed(String),
    /// The name does not resolve.
    #[error("endpoint {endpoint} does not resolve: {error}")]
    Unresolved {
        /// Which.
        endpoint: String,
        /// Why.
        error: io::Error,
    },
    /// It resolves only to addresses that the policy denies.
    #[error("endpoint {0} resolves to no public address")]
    Denied(String),
}

/// Longest host name that is looked at (DNS allows 253).
const HOST_LEN_MAX: usize = 253;

impl Endpoint {
    /// Of a socket.
    #[must_use]
    pub fn from_address(scheme: Scheme, address: SocketAddr) -> Self {
        let host = match address.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        Self { scheme, host, port: address.port() }
    }

    /// How bytes travel to it.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Where to connect, and which key to ask for there: the registered one, under TLS.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn route(&self, policy: AddressPolicy, registered: TransportKey) -> Result<Route, EndpointError> {
        let key = (self.scheme == Scheme::Tls).then_some(registered);
        Ok(Route { address: self.resolve(policy).await?, key })
    }

    /// Resolves the name and returns one allowed address, to which the caller connects without resolving again: a
    /// second answer could be another one.
    ///
    /// # Errors
    /// The name does not resolve, or only to denied addresses.
    pub async fn resolve(&self, policy: AddressPolicy) -> Result<SocketAddr, EndpointError> {
        let unresolved = |error| EndpointError::Unresolved { endpoint: self.to_string(), error };
        let name = format!("{}:{}", self.host, self.port);
        let found = tokio::net::lookup_host(name).await.map_err(unresolved)?;
        let mut allowed = found.filter(|address| policy == AddressPolicy::Any || is_public(address.ip()));
        allowed.next().ok_or_else(|| EndpointError::Denied(self.to_string()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}:{}", self.scheme.prefix(), self.host, self.port)
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let malformed = || EndpointError::Malformed(text.chars().take(300).collect());
        let schemes = [Scheme::Tcp, Scheme::Tls].into_iter();
        let found = schemes.filter_map(|scheme| Some((scheme, text.strip_prefix(scheme.prefix())?))).next();
        let (scheme, rest) = found.ok_or_else(malformed)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(malformed)?;
        let is_ipv6 = host.starts_with('[') && host.ends_with(']');
        let allowed =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') || (is_ipv6 && "[:]".contains(c));
        // Digits only: `parse` alone would take a sign.
        let port = Some(port).filter(|p| p.bytes().all(|b| b.is_ascii_digit())).and_then(|p| p.parse().ok());
        match port {
            Some(port) if port > 0 && !host.is_empty() && host.len() <= HOST_LEN_MAX && host.chars().all(allowed) => {
                Ok(Self { scheme, host: host.to_owned(), port })
            }
            _ => Err(malformed()),
        }
    }
}

/// Whether `ip` is on the public internet (RFC 6890 lists what is not); an IPv4 address inside an IPv6 one counts as
/// the IPv4 address.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => {
            if let Some(mapped) = ip.to_ipv4_mapped() {
                return is_public_v4(mapped);
            }
            let first = ip.segments()[0];
            // 2000::/3 is all that is allocated; within it documentation, 6to4, Teredo and benchmarking are not for us.
            let is_global = first & 0xe000 == 0x2000;
            let is_tunnel = first == 0x2002 || (first == 0x2001 && ip.segments()[1] < 0x0200);
            let is_documentation = (first == 0x2001 && ip.segments()[1] == 0x0db8) || first == 0x3fff;
            is_global && !is_tunnel && !is_documentation
        }
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_shared = a == 100 && (64..128).contains(&b);
    let is_reserved = a == 0 || a >= 240 || (a == 192 && b == 0 && c == 0) || (a == 198 && (b == 18 || b == 19));
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || is_shared
        || is_reserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_are_an_endpoint() {
        for text in ["tcp://127.0.0.1:4000", "tls://[::1]:1", "tls://provider-1.example.org:65535"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        let long = format!("tcp://{}:1", "a".repeat(254));
        for text in [
            "",
            "tcp://",
            "127.0.0.1:4000",
            "http://a:1",
            "tcp://a",
            "tcp://a:",
            "tcp://:1",
            "tcp://a:0",
            "tcp://a:65536",
            "tcp://a:+1",
            "tcp://a b:1",
            "tcp://a/b:1",
            "tcp://u@a:1",
            "tcp://::1:1",
            "tcp://a:1/x",
            "tcp://ä:1",
            &long,
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_address_survives() {
        for text in ["127.0.0.1:5", "[fe80::1]:7"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(
                Endpoint::from_address(Scheme::Tls, address).to_string().parse::<Endpoint>().unwrap().to_string(),
                format!("tls://{text}")
            );
        }
    }

    #[test]
    fn inner_addresses_are_not_public() {
        for (ip, expect) in [
            ("8.8.8.8", true),
            ("2606:4700::1111", true),
            ("2001:4860:4860::8888", true),
            ("127.0.0.1", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("224.0.0.1", false),
            ("198.18.0.1", false),
            ("192.0.2.1", false),
            ("192.0.0.8", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("ff02::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("64:ff9b::7f00:1", false),
            ("2002:7f00:1::", false),
            ("2001:db8::1", false),
            ("::127.0.0.1", false),
        ] {
            assert_eq!(is_public(ip.parse().unwrap()), expect, "{ip}");
        }
    }

    #[tokio::test]
    async fn a_denied_address_is_not_resolved() {
        let endpoint: Endpoint = "tcp://127.0.0.1:9".parse().unwrap();
        assert!(matches!(endpoint.resolve(AddressPolicy::PublicOnly).await, Err(EndpointError::Denied(_))));
        assert_eq!(endpoint.resolve(AddressPolicy::Any).await.unwrap(), "127.0.0.1:9".parse().unwrap());
    }
}
