//! Files, and sources that behave or do not.

use assay_dag::{Cid, Layout, Leaves, Limits, Version};
use assay_fetch::{Http, PullError, PullOptions, Pulled, Source, Way, pull, routes, serve};
use assay_store::{BlockIndex, Shelf};
use axum::{
    Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, runtime::Runtime};

/// Small blocks, so that small files have many.
pub const LAYOUT: Layout = Layout { chunk_len: 1024, links_max: 8, leaves: Leaves::Raw, version: Version::V1 };

/// Larger files repeat themselves, changed.
const PIECE: usize = 16 << 20;

pub fn bytes(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A shelf with one file of `len` bytes in `dir`.
pub fn shelf(dir: &Path, len: usize, layout: Layout) -> (Arc<Shelf>, Cid) {
    let path = dir.join("served");
    let mut file = std::fs::File::create(&path).unwrap();
    let piece = bytes(len.min(PIECE));
    for (number, at) in (0..len).step_by(PIECE).enumerate() {
        // No two pieces are alike.
        let piece: Vec<u8> = piece[..PIECE.min(len - at)].iter().map(|byte| byte ^ number as u8).collect();
        file.write_all(&piece).unwrap();
    }
    let index = BlockIndex::build(&path, layout, &mut |_| ()).unwrap();
    let root = index.root;
    let shelf = Shelf::new();
    shelf.put("served", index);
    (Arc::new(shelf), root)
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn start(runtime: &Runtime, router: Router) -> SocketAddr {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(serve(listener, router, std::future::pending()));
    address
}

pub fn source(address: SocketAddr) -> Source {
    format!("http://{address}").parse().unwrap()
}

/// A source that gives what the shelf has.
pub fn honest(runtime: &Runtime, shelf: &Arc<Shelf>) -> Source {
    source(start(runtime, routes(Arc::clone(shelf))))
}

/// What a source does with a block: the bytes, or a status.
pub type Deed = dyn Fn(&Cid, Vec<u8>) -> Result<Vec<u8>, StatusCode> + Send + Sync;

#[derive(Clone)]
struct Odd {
    shelf: Arc<Shelf>,
    deed: Arc<Deed>,
    asked: Arc<Mutex<Vec<Cid>>>,
}

/// A source that does `deed` with each block; the list is of what it was asked for.
pub fn odd(
    runtime: &Runtime,
    shelf: &Arc<Shelf>,
    deed: impl Fn(&Cid, Vec<u8>) -> Result<Vec<u8>, StatusCode> + Send + Sync + 'static,
) -> (Source, Arc<Mutex<Vec<Cid>>>) {
    let odd = Odd { shelf: Arc::clone(shelf), deed: Arc::new(deed), asked: Arc::default() };
    let asked = Arc::clone(&odd.asked);
    let router = Router::new().route("/ipfs/{cid}", get(give)).with_state(odd);
    (source(start(runtime, router)), asked)
}

async fn give(State(odd): State<Odd>, UrlPath(cid): UrlPath<String>) -> Response {
    let cid: Cid = cid.parse().unwrap();
    odd.asked.lock().unwrap().push(cid);
    let Some(block) = odd.shelf.block(&cid).unwrap() else { return StatusCode::NOT_FOUND.into_response() };
    match (odd.deed)(&cid, block) {
        Ok(block) => block.into_response(),
        Err(status) => status.into_response(),
    }
}

pub fn options(sources: &[Source], way: Way) -> PullOptions {
    PullOptions { sources: sources.to_vec(), per_source: 3, way, limits: Limits::default() }
}

pub fn fetch(runtime: &Runtime, root: Cid, out: &Path, options: &PullOptions) -> Result<Pulled, PullError> {
    pull(runtime.handle(), &Http::new().unwrap(), root, out, options, &mut |_| ())
}
