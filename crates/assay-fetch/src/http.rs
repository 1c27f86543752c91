//! A small HTTP client: one GET at a time, answers in pieces, nothing followed that was not asked for.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Request, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{fmt, str::FromStr, time::Duration};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request to the answer's head: a gateway may have to find the block first.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two pieces of a body.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: usize = 8;

/// An address that can be asked: `http` or `https`, with a host and without a user name.
#[derive(Clone, PartialEq, Eq, Debug)]
// Boxed, so that errors that name it are small.
pub struct Url(Box<Uri>);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Not a URL that can be asked.
    #[error("{url:?} is no http:// or https:// address: {what}")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// No connection, or it broke.
    #[error("{url}: {what}")]
    Broken {
        /// Who was asked.
        url: Url,
        /// What happened.
        what: String,
    },
    /// Another status than was hoped for.
    #[error("{url} answers {status}{}", place(.location))]
    Status {
        /// Who was asked.
        url: Url,
        /// The status.
        status: u16,
        /// Where it sends us.
        location: Option<String>,
    },
    /// The body goes on and on.
    #[error("{url} answers with more than {max} bytes")]
    TooLong {
        /// Who was asked.
        url: Url,
        /// The limit.
        max: usize,
    },
    /// A redirect that is not followed.
    #[error("{url} redirects to {location:?}: {what}")]
    Redirect {
        /// Who was asked.
        url: Url,
        /// Where it sends us.
        location: String,
        /// Why we do not go there.
        what: &'static str,
    },
}

fn place(location: &Option<String>) -> String {
    location.as_ref().map_or_else(String::new, |place| format!(" and points to {}", printable(place)))
}

/// A stranger's text in a message: short, without control characters.
fn printable(text: &str) -> String {
    text.chars().take(200).filter(|char| !char.is_control()).collect()
}

impl Url {
    fn check(uri: Uri) -> Result<Self, &'static str> {
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err("it does not begin with http:// or https://");
        }
        match uri.authority() {
            None => Err("it has no host"),
            Some(authority) if authority.as_str().contains('@') => Err("it has a user name"),
            Some(_) => Ok(Self(Box::new(uri))),
        }
    }

    /// This address with `path`, which begins with `/`, behind its own path.
    ///
    /// # Errors
    /// [`HttpError::BadUrl`] if `path` has a character that has to be escaped.
    pub fn join(&self, path: &str) -> Result<Self, HttpError> {
        let base = self.0.path().trim_end_matches('/');
        let authority = self.0.authority().map_or("", |authority| authority.as_str());
        format!("{}://{authority}{base}{path}", self.0.scheme_str().unwrap_or_default()).parse()
    }

    /// Scheme, host and port: what a secret is for.
    fn origin(&self) -> (Option<&str>, Option<&str>, Option<u16>) {
        (self.0.scheme_str(), self.0.host(), self.0.port_u16())
    }

    /// The last part of the path.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.path().rsplit('/').next().unwrap_or_default()
    }

    /// Where `location`, an answer of this address, points.
    fn redirect(&self, location: &str) -> Result<Self, &'static str> {
        let target = if location.starts_with('/') && !location.starts_with("//") {
            let authority = self.0.authority().map_or("", |authority| authority.as_str());
            format!("{}://{authority}{location}", self.0.scheme_str().unwrap_or_default())
        } else {
            location.to_owned()
        };
        let target = Self::check(target.parse().map_err(|_| "it is no address")?)?;
        if self.0.scheme_str() == Some("https") && target.0.scheme_str() != Some("https") {
            return Err("it would leave https");
        }
        Ok(target)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A query may have a signature that is as good as a password.
        let authority = self.0.authority().map_or("", |authority| authority.as_str());
        write!(f, "{}://{authority}{}", self.0.scheme_str().unwrap_or_default(), self.0.path())
    }
}

impl FromStr for Url {
    type Err = HttpError;

    fn from_str(text: &str) -> Result<Self, HttpError> {
        let bad = |what: String| HttpError::BadUrl { url: printable(text), what };
        let uri: Uri = text.parse().map_err(|error: hyper::http::uri::InvalidUri| bad(error.to_string()))?;
        Self::check(uri).map_err(|what| bad(what.to_owned()))
    }
}

/// The client. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl Http {
    /// A client that trusts the roots that browsers trust.
    ///
    /// # Errors
    /// [`HttpError::BadUrl`], never in practice: TLS cannot be set up.
    pub fn new() -> Result<Self, HttpError> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let tls = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| HttpError::BadUrl { url: String::new(), what: error.to_string() })?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(tls) })
    }

    /// Asks `url`, whatever the answer is.
    ///
    /// # Errors
    /// [`HttpError::Broken`].
    pub async fn get(&self, url: &Url, headers: &[(HeaderName, String)]) -> Result<Reply, HttpError> {
        let broken = |what: String| HttpError::Broken { url: url.clone(), what };
        let mut request = Request::get(Uri::clone(&url.0));
        let agent = (header::USER_AGENT, concat!("assay/", env!("CARGO_PKG_VERSION")).to_owned());
        for (name, value) in [&agent].into_iter().chain(headers) {
            let value = HeaderValue::from_str(value).map_err(|_| broken(format!("{name} has a strange value")))?;
            request = request.header(name, value);
        }
        let request = request.body(Empty::new()).map_err(|error| broken(error.to_string()))?;
        let reply = tokio::time::timeout(HEAD_TIMEOUT, self.client.request(request))
            .await
            .map_err(|_| broken("no answer in time".into()))?
            .map_err(|error| broken(whole(&error)))?;
        let (head, body) = reply.into_parts();
        Ok(Reply { url: url.clone(), status: head.status, headers: head.headers, body })
    }

    /// As [`Self::get`], going where redirects point. `secret` goes with a request only as long as it stays with the
    /// scheme, host and port of `url`.
    ///
    /// # Errors
    /// [`HttpError::Broken`], [`HttpError::Redirect`].
    pub async fn follow(
        &self,
        url: &Url,
        headers: &[(HeaderName, String)],
        secret: Option<&str>,
    ) -> Result<Reply, HttpError> {
        let mut at = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut headers = headers.to_vec();
            if let Some(secret) = secret.filter(|_| at.origin() == url.origin()) {
                headers.push((header::AUTHORIZATION, format!("Bearer {secret}")));
            }
            let reply = self.get(&at, &headers).await?;
            let Some(location) = reply.location().filter(|_| reply.status.is_redirection()) else { return Ok(reply) };
            let no = |what| HttpError::Redirect { url: at.clone(), location: printable(&location), what };
            at = at.redirect(&location).map_err(no)?;
        }
        let location = printable(&at.to_string());
        Err(HttpError::Redirect { url: url.clone(), location, what: "one redirect too many" })
    }
}

/// An error with its causes: hyper's own text leaves out why a connection failed.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// An answer whose body is not read.
#[derive(Debug)]
pub struct Reply {
    /// Who answered.
    pub url: Url,
    /// With what.
    pub status: StatusCode,
    /// Its head.
    pub headers: HeaderMap,
    body: Incoming,
}

impl Reply {
    /// A header that is text.
    #[must_use]
    pub fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn location(&self) -> Option<String> {
        self.header(header::LOCATION).map(str::to_owned)
    }

    /// The error for a status that is not the one that was hoped for.
    #[must_use]
    pub fn unexpected(&self) -> HttpError {
        HttpError::Status { url: self.url.clone(), status: self.status.as_u16(), location: self.location() }
    }

    /// The next piece of the body, `None` at its end.
    ///
    /// # Errors
    /// [`HttpError::Broken`].
    pub async fn piece(&mut self) -> Result<Option<Bytes>, HttpError> {
        let broken = |what: String| HttpError::Broken { url: self.url.clone(), what };
        loop {
            let frame = tokio::time::timeout(PIECE_TIMEOUT, self.body.frame())
                .await
                .map_err(|_| broken("it stopped sending".into()))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(whole(&error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => (),
                    Ok(data) => return Ok(Some(data)),
                    // Trailers.
                    Err(_) => (),
                },
            }
        }
    }

    /// All of the body.
    ///
    /// # Errors
    /// [`HttpError::Broken`], [`HttpError::TooLong`].
    pub async fn bytes(mut self, max: usize) -> Result<Vec<u8>, HttpError> {
        let mut bytes = vec![];
        while let Some(piece) = self.piece().await? {
            if bytes.len() + piece.len() > max {
                return Err(HttpError::TooLong { url: self.url, max });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::Url;

    #[test]
    fn only_what_can_be_asked_is_an_address() {
        for text in ["ftp://a/b", "/a", "a.gguf", "http://user@a/", "http://user:secret@a/", "https:///x", ""] {
            let error = text.parse::<Url>().unwrap_err().to_string();
            assert!(error.contains("no http:// or https:// address"), "{error}");
        }
        let url: Url = "https://a.example:8/x/y?sig=secret".parse().unwrap();
        assert_eq!((url.to_string().as_str(), url.file_name()), ("https://a.example:8/x/y", "y"));
        assert_eq!(url.join("/ipfs/b?format=raw").unwrap().0.to_string(), "https://a.example:8/x/y/ipfs/b?format=raw");
    }

    #[test]
    fn redirects_stay_on_https_and_lead_to_addresses() {
        let url: Url = "https://a.example/x".parse().unwrap();
        assert_eq!(url.redirect("/y?z").unwrap().0.to_string(), "https://a.example/y?z");
        assert_eq!(url.redirect("https://b.example/").unwrap().0.host(), Some("b.example"));
        for location in ["http://b.example/", "//b.example/", "file:///etc/passwd", "y", "", "https://u@b.example/"] {
            assert!(url.redirect(location).is_err(), "{location}");
        }
        let plain: Url = "http://a.example:1/x".parse().unwrap();
        assert!(plain.redirect("http://b.example/").is_ok());
        assert_ne!(plain.origin(), "http://a.example:2/x".parse::<Url>().unwrap().origin());
    }
}
