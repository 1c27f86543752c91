//! What the operator's own commands ask a running gateway, over a socket file that only the operator can reach.
//!
//! Keys are made and revoked in the database, by whoever may write it; here the gateway is told to read them at once.

use crate::audit_http::all_providers;
use crate::error::GatewayError;
use crate::gateway::Inner;
use crate::http::{json, typed};
use crate::rescue;
use crate::voice::Shape;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Response, Uri};
use axum::routing::{get, post};
use futures_util::stream;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Commands at once; further ones wait.
const CONNECTIONS_MAX: usize = 16;

/// The socket; its file is removed when this is dropped.
pub(crate) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Takes the place of a socket that a gateway left behind which did not end in order; the caller makes sure that
    /// no other gateway runs on the same folder.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.into() })
    }

    /// Serves until `stop`.
    pub(crate) async fn run(self, inner: Arc<Inner>, stop: CancellationToken) {
        let router = Router::new()
            .route("/keys/reload", post(reload))
            .route("/running", get(running))
            .route("/providers", get(providers))
            .route("/log", get(log))
            .with_state(inner);
        let mut commands = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept(), if commands.len() < CONNECTIONS_MAX => accepted,
                Some(_) = commands.join_next() => continue,
                () = stop.cancelled() => return,
            };
            // Nothing to do about a command that was gone before it was heard.
            let Ok((stream, _)) = accepted else { continue };
            let service = TowerToHyperService::new(router.clone());
            let http = hyper::server::conn::http1::Builder::new();
            commands.spawn(async move { http.serve_connection(TokioIo::new(stream), service).await.is_ok() });
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // What is left behind is replaced at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn reload(State(inner): State<Arc<Inner>>) -> Response<Body> {
    match inner.keys.reload().await {
        Ok(()) => json(&json!({"reloaded": true})),
        Err(error) => rescue::response(&GatewayError::from(error), Shape::OpenAi),
    }
}

async fn running(State(inner): State<Arc<Inner>>) -> Response<Body> {
    json(&inner.running.list())
}

async fn providers(State(inner): State<Arc<Inner>>) -> Response<Body> {
    json(&all_providers(&inner))
}

/// `/log?N`: the last `N` lines; `/log?N,follow`: and those to come.
async fn log(State(inner): State<Arc<Inner>>, uri: Uri) -> Response<Body> {
    let query = uri.query().unwrap_or_default();
    let (lines, follows) = query.strip_suffix(",follow").map_or((query, false), |lines| (lines, true));
    let mut follower = inner.journal.follow(lines.parse().unwrap_or(usize::MAX));
    if !follows {
        let text: String = std::iter::from_fn(|| follower.kept()).map(|line| line.to_string()).collect();
        return typed("application/x-ndjson", text);
    }
    let lines = stream::unfold(follower, async |mut follower| {
        let line = follower.next().await?;
        Some((Ok::<_, Infallible>(Bytes::copy_from_slice(line.as_bytes())), follower))
    });
    typed("application/x-ndjson", Body::from_stream(lines))
}
