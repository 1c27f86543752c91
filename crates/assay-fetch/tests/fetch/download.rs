//! Downloads from a host that behaves like those of large files: redirects, ranges, breaks, logins.

use crate::support::{bytes, runtime, start};
use assay_fetch::{Download, DownloadError, Downloaded, Http, Hub, choose, download, part_of};
use axum::{
    Router,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;

const LEN: usize = 300_000;

/// What a host does, and what it saw: path, `Range`, `Authorization`.
#[derive(Clone, Default)]
struct Host {
    file: Arc<Mutex<Vec<u8>>>,
    tag: Arc<Mutex<String>>,
    /// Bytes after which the connection breaks, for each request from the first.
    breaks: Arc<Mutex<Vec<usize>>>,
    redirect: Option<String>,
    secret: Option<&'static str>,
    seen: Arc<Mutex<Vec<(String, String, String)>>>,
}

impl Host {
    fn new() -> Self {
        let host = Self::default();
        *host.file.lock().unwrap() = bytes(LEN);
        *host.tag.lock().unwrap() = "\"one\"".into();
        host
    }

    fn start(&self, runtime: &Runtime) -> String {
        let router = Router::new().route("/{*path}", get(answer)).with_state(self.clone());
        format!("http://{}", start(runtime, router))
    }

    fn ranges(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|seen| seen.1.clone()).collect()
    }
}

async fn answer(State(host): State<Host>, UrlPath(path): UrlPath<String>, headers: HeaderMap) -> Response {
    let text = |name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let (range, login) = (text(header::RANGE), text(header::AUTHORIZATION));
    host.seen.lock().unwrap().push((path.clone(), range.clone(), login.clone()));
    if host.secret.is_some_and(|secret| login != format!("Bearer {secret}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if path.starts_with("api/") {
        let sha256: String =
            Sha256::digest(&*host.file.lock().unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
        let file = |name: &str| serde_json::json!({"type": "file", "path": name, "size": LEN, "lfs": {"oid": sha256}});
        let files = [
            file("q-Q8_0.gguf"),
            file("q-Q4_K_M.gguf"),
            serde_json::json!({"type": "file", "path": "README.md", "size": 3}),
        ];
        return serde_json::Value::from(files.to_vec()).to_string().into_response();
    }
    if let Some(target) = &host.redirect {
        return (StatusCode::FOUND, [(header::LOCATION, format!("{target}/{path}?signature=x"))]).into_response();
    }
    let (file, tag) = (host.file.lock().unwrap().clone(), host.tag.lock().unwrap().clone());
    let is_same = text(header::IF_RANGE).is_empty() || text(header::IF_RANGE) == tag;
    let from: usize = range.strip_prefix("bytes=").map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let from = if is_same { from } else { 0 };
    if from >= file.len() && from > 0 {
        let range = [(header::CONTENT_RANGE, format!("bytes */{}", file.len()))];
        return (StatusCode::RANGE_NOT_SATISFIABLE, range).into_response();
    }
    let cut = {
        let mut breaks = host.breaks.lock().unwrap();
        if breaks.is_empty() { usize::MAX } else { breaks.remove(0) }
    };
    let rest = file[from..].to_vec();
    let len = rest.len();
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> = if cut < len {
        vec![Ok(rest[..cut].to_vec()), Err(std::io::Error::other("the line is cut"))]
    } else {
        vec![Ok(rest)]
    };
    let mut reply = Response::builder().header(header::ETAG, tag).header(header::CONTENT_LENGTH, len);
    if from > 0 {
        let range = format!("bytes {from}-{}/{}", file.len() - 1, file.len());
        reply = reply.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range);
    }
    reply.body(axum::body::Body::from_stream(stream::iter(pieces))).unwrap()
}

fn get_file(runtime: &Runtime, what: &Download, out: &Path) -> Result<Downloaded, DownloadError> {
    download(runtime.handle(), &Http::new().unwrap(), what, out, &mut |_, _| ())
}

fn plain(url: &str) -> Download {
    Download { url: url.parse().unwrap(), secret: None, sha256: None, len_max: 1 << 30 }
}

#[test]
fn a_break_is_gone_on_from() {
    let (runtime, dir, host) = (runtime(), tempfile::tempdir().unwrap(), Host::new());
    *host.breaks.lock().unwrap() = vec![100_000, 0, 50_000];
    let out = dir.path().join("deep/out");
    let got = get_file(&runtime, &plain(&format!("{}/f", host.start(&runtime))), &out).unwrap();
    assert_eq!((got.len, got.resumed, std::fs::read(&out).unwrap()), (LEN as u64, 0, bytes(LEN)));
    assert_eq!(got.sha256, <[u8; 32]>::from(Sha256::digest(bytes(LEN))));
    assert_eq!(host.ranges().first().map(String::as_str), Some(""));
    assert!(host.ranges()[1..].iter().all(|range| range.starts_with("bytes=")), "{:?}", host.ranges());
    assert!(std::fs::read_dir(out.parent().unwrap()).unwrap().count() == 1, "nothing is left beside the file");
}

#[test]
fn an_earlier_try_is_taken_up_if_the_file_is_the_same() {
    let (runtime, dir, host) = (runtime(), tempfile::tempdir().unwrap(), Host::new());
    let what = plain(&format!("{}/f", host.start(&runtime)));
    let out = dir.path().join("out");
    let give_up = |host: &Host| *host.breaks.lock().unwrap() = vec![120_000, 0, 0, 0, 0, 0, 0];
    give_up(&host);
    assert!(matches!(get_file(&runtime, &what, &out), Err(DownloadError::Http(_))));
    let had = std::fs::metadata(part_of(&out)).unwrap().len();
    assert!(had > 0 && !out.exists());
    host.breaks.lock().unwrap().clear();
    let got = get_file(&runtime, &what, &out).unwrap();
    assert_eq!((got.resumed, std::fs::read(&out).unwrap()), (had, bytes(LEN)));
    // Another file under the same address is not glued to the old one.
    give_up(&host);
    get_file(&runtime, &what, &out).unwrap_err();
    host.breaks.lock().unwrap().clear();
    *host.tag.lock().unwrap() = "\"two\"".into();
    host.file.lock().unwrap()[5] ^= 1;
    get_file(&runtime, &what, &out).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), *host.file.lock().unwrap());
}

#[test]
fn a_repository_is_read_with_a_token_that_no_other_host_sees() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let files = Host::new();
    let hub = Host { redirect: Some(files.start(&runtime)), secret: Some("hf_secret"), ..Host::new() };
    let endpoint = hub.start(&runtime);
    let http = Http::new().unwrap();
    let open = Hub::new(Some(&endpoint), None).unwrap();
    let error = runtime.block_on(open.files(&http, "a/b")).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN"), "{error}");
    let ours = Hub::new(Some(&endpoint), Some("hf_secret".into())).unwrap();
    let list = runtime.block_on(ours.files(&http, "a/b")).unwrap();
    let file = choose("a/b", &list, None).unwrap();
    assert_eq!((file.path.as_str(), file.len), ("q-Q4_K_M.gguf", LEN as u64));
    *files.breaks.lock().unwrap() = vec![1_000];
    let url = ours.url("a/b", file).unwrap();
    let what = Download { url, secret: ours.token().map(str::to_owned), sha256: file.sha256, len_max: 1 << 30 };
    let out = dir.path().join("out");
    get_file(&runtime, &what, &out).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), bytes(LEN));
    let (hub, files) = (hub.seen.lock().unwrap(), files.seen.lock().unwrap());
    assert!(hub.iter().skip(1).all(|seen| seen.2 == "Bearer hf_secret") && hub.len() >= 3);
    assert!(files.len() >= 2 && files.iter().all(|seen| seen.2.is_empty()), "{files:?}");
    assert!(hub.iter().any(|seen| seen.0 == "a/b/resolve/main/q-Q4_K_M.gguf"));
}

#[test]
fn other_bytes_than_were_published_are_deleted() {
    let (runtime, dir, host) = (runtime(), tempfile::tempdir().unwrap(), Host::new());
    let what = Download { sha256: Some([7; 32]), ..plain(&format!("{}/f", host.start(&runtime))) };
    let out = dir.path().join("out");
    let error = get_file(&runtime, &what, &out).unwrap_err().to_string();
    assert!(error.contains("published is 0707"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_is_not_a_file_is_said() {
    let (runtime, dir, host) = (runtime(), tempfile::tempdir().unwrap(), Host::new());
    let base = host.start(&runtime);
    let out = dir.path().join("out");
    let check = |what: &Download, expect: &str| {
        let error = get_file(&runtime, what, &out).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
        assert!(!out.exists());
    };
    check(&Download { len_max: LEN as u64 - 1, ..plain(&format!("{base}/f")) }, "more than 299999 bytes");
    let closed = Host { secret: Some("x"), ..Host::new() };
    check(&plain(&format!("{}/f", closed.start(&runtime))), "answers 401");
    // A host that sends to itself for ever, and one that sends to a file of this machine.
    let lost = Host::new();
    let address = lost.start(&runtime);
    let circle = Host { redirect: Some(address), ..Host::new() };
    *lost.file.lock().unwrap() = vec![];
    let elsewhere = Host { redirect: Some("file:///etc".into()), ..Host::new() };
    check(&plain(&format!("{}/f", elsewhere.start(&runtime))), "redirects to");
    assert_eq!(get_file(&runtime, &plain(&format!("{}/f", circle.start(&runtime))), &out).unwrap().len, 0);
}
