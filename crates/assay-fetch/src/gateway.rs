//! The paths of a trustless gateway (IPFS' "Trustless Gateway Specification"): blocks and CAR streams of a shelf.

use assay_dag::{Cid, car_header, car_section};
use assay_store::Shelf;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    routing::get,
};
use serde_json::json;
use std::{collections::HashSet, io, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
};

const RAW: &str = "application/vnd.ipld.raw";
const CAR: &str = "application/vnd.ipld.car";
/// What a client asks for to see whether this is a gateway: no bytes, in its name.
const PROBE: &str = "bafkqaaa";
/// A content address never changes its content.
const FOREVER: &str = "public, max-age=29030400, immutable";
/// Streams at once; further clients are told to come back.
const STREAMS_MAX: usize = 64;
/// Blocks of a stream that were read and not sent.
const STREAM_AHEAD: usize = 2;
/// A client of a stream that reads nothing.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Giver {
    shelf: Arc<Shelf>,
    streams: Arc<Semaphore>,
}

/// `GET` and `HEAD /ipfs/CID` and `GET /models.json`, the list of files by name.
pub fn routes(shelf: Arc<Shelf>) -> Router {
    let giver = Giver { shelf, streams: Arc::new(Semaphore::new(STREAMS_MAX)) };
    Router::new().route("/ipfs/{*path}", get(ipfs)).route("/models.json", get(models)).with_state(giver)
}

async fn models(State(giver): State<Giver>) -> Response<Body> {
    let files = giver.shelf.files();
    let rows: Vec<_> =
        files.iter().map(|file| json!({"name": file.name, "cid": file.root.to_string(), "bytes": file.len})).collect();
    let mut reply = Response::new(Body::from(serde_json::Value::Array(rows).to_string()));
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// What a client wants to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Raw,
    /// Every time a block occurs, or only the first.
    Car {
        dups: bool,
    },
}

/// How much of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    Block,
    /// Bytes of the file, the last one included; both may count from the end.
    Entity {
        from: i64,
        to: Option<i64>,
    },
}

/// Why a request gets no block.
type Refusal = (StatusCode, String);

async fn ipfs(
    State(giver): State<Giver>,
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response<Body> {
    let reply = answer(&giver, &path, query.as_deref().unwrap_or_default(), &headers).await;
    reply.unwrap_or_else(|(status, text)| {
        let mut reply = Response::new(Body::from(format!("{text}\n")));
        *reply.status_mut() = status;
        let headers = reply.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        reply
    })
}

async fn answer(giver: &Giver, path: &str, query: &str, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
    let bad = |text: String| (StatusCode::BAD_REQUEST, text);
    let (name, rest) = path.split_once('/').unwrap_or((path, ""));
    let format = format(query, headers)?;
    if name == PROBE && rest.is_empty() {
        return Ok(found(Body::empty(), RAW, "probe.bin", "\"bafkqaaa\""));
    }
    let cid: Cid = name.parse().map_err(|error| bad(format!("{error}")))?;
    let scope = scope(query).map_err(bad)?;
    if !rest.trim_matches('/').is_empty() {
        return match format {
            Format::Raw => Err(bad("a block has no path: ask for its CID, or for a CAR".into())),
            Format::Car { .. } => Err((StatusCode::NOT_FOUND, format!("{cid} has nothing named {rest:?} here"))),
        };
    }
    let etag = etag(&cid, format, scope);
    if !giver.shelf.has(&cid) {
        let is_probe = headers.get(header::CACHE_CONTROL).is_some_and(|value| value == "only-if-cached");
        let status = if is_probe { StatusCode::PRECONDITION_FAILED } else { StatusCode::NOT_FOUND };
        return Err((status, format!("block {cid} is not here")));
    }
    if headers.get(header::IF_NONE_MATCH).is_some_and(|tags| matches(tags, &etag)) {
        let mut reply = Response::new(Body::empty());
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        reply.headers_mut().extend(header_value(&etag).map(|tag| (header::ETAG, tag)));
        return Ok(reply);
    }
    match format {
        Format::Raw => raw(giver, cid, &etag).await,
        Format::Car { dups } => {
            let permit = Arc::clone(&giver.streams).try_acquire_owned();
            let permit =
                permit.map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "too many streams; try again".to_owned()))?;
            let content = format!("{CAR}; version=1; order=dfs; dups={}", if dups { "y" } else { "n" });
            let (sender, receiver) = mpsc::channel(STREAM_AHEAD);
            let shelf = Arc::clone(&giver.shelf);
            let runtime = Handle::current();
            tokio::task::spawn_blocking(move || {
                // Who stops reading loses the stream: there are not many.
                let send = |piece| {
                    let sent = async { tokio::time::timeout(CLIENT_TIMEOUT, sender.send(piece)).await };
                    matches!(runtime.block_on(sent), Ok(Ok(())))
                };
                stream(&shelf, cid, scope, dups, &send);
                drop(permit);
            });
            let pieces = futures_util::stream::unfold(receiver, async |mut receiver| {
                receiver.recv().await.map(|piece| (piece, receiver))
            });
            Ok(found(Body::from_stream(pieces), &content, &format!("{cid}.car"), &etag))
        }
    }
}

async fn raw(giver: &Giver, cid: Cid, etag: &str) -> Result<Response<Body>, Refusal> {
    let shelf = Arc::clone(&giver.shelf);
    let block = tokio::task::spawn_blocking(move || shelf.block(&cid)).await;
    match block {
        Ok(Ok(Some(block))) => Ok(found(Body::from(block), RAW, &format!("{cid}.bin"), etag)),
        Ok(Ok(None)) => {
            tracing::warn!(%cid, "a file changed after it was put on the shelf; its block is not given");
            Err((StatusCode::NOT_FOUND, format!("block {cid} is no longer here")))
        }
        Ok(Err(error)) => {
            tracing::warn!(%cid, %error, "a block cannot be read");
            Err((StatusCode::INTERNAL_SERVER_ERROR, format!("block {cid} cannot be read")))
        }
        Err(error) => {
            tracing::error!(%cid, %error, "reading a block failed");
            Err((StatusCode::INTERNAL_SERVER_ERROR, format!("block {cid} cannot be read")))
        }
    }
}

/// Sends the tree below `root` depth first. An error cuts the connection: a client must not take half for the whole.
/// `send` says whether to go on.
fn stream(shelf: &Shelf, root: Cid, scope: Scope, dups: bool, send: &dyn Fn(io::Result<Bytes>) -> bool) {
    if !send(Ok(car_header(&root).into())) {
        return;
    }
    let len = shelf.len_of(&root).unwrap_or(0);
    let (first, last) = range(scope, len);
    let mut seen = HashSet::new();
    let mut todo = vec![(root, 0_u64)];
    while let Some((cid, offset)) = todo.pop() {
        if !dups && !seen.insert(cid) {
            continue;
        }
        let piece = match shelf.block(&cid) {
            Ok(Some(block)) => {
                let mut piece = car_section(&cid, block.len());
                piece.extend_from_slice(&block);
                Ok(Bytes::from(piece))
            }
            Ok(None) => Err(io::Error::other("a block is no longer here")),
            Err(error) => Err(io::Error::other(error)),
        };
        let is_end = piece.is_err();
        if !send(piece) || is_end {
            return;
        }
        if scope != Scope::Block {
            let mut at = offset;
            let children = shelf.children(&cid).into_iter().filter_map(|(child, len)| {
                let (start, end) = (at, at.saturating_add(len));
                at = end;
                (start <= last && end > first).then_some((child, start))
            });
            let children: Vec<_> = children.collect();
            todo.extend(children.into_iter().rev());
        }
    }
}

/// The bytes that are meant, both included, of a file of `len`.
fn range(scope: Scope, len: u64) -> (u64, u64) {
    let Scope::Entity { from, to } = scope else { return (0, u64::MAX) };
    let place = |at: i64| if at < 0 { len.saturating_sub(at.unsigned_abs()) } else { at.unsigned_abs() };
    (place(from), to.map_or(u64::MAX, place))
}

/// `Accept` counts if it names one of the two; then `format`.
fn format(query: &str, headers: &HeaderMap) -> Result<Format, Refusal> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    for kind in accept.split(',') {
        let mut words = kind.split(';').map(str::trim);
        match words.next() {
            Some(RAW) => return Ok(Format::Raw),
            Some(CAR) => return car(words.filter_map(|word| word.split_once('='))),
            _ => (),
        }
    }
    let options = pairs(query).filter_map(|(key, value)| Some((key.strip_prefix("car-")?, value)));
    match value(query, "format") {
        Some("raw") => Ok(Format::Raw),
        Some("car") => car(options),
        Some(other) => Err((StatusCode::NOT_ACCEPTABLE, format!("format {other:?} is not given, only raw and car"))),
        None if accept.is_empty() || accept.contains('*') => {
            Err((StatusCode::BAD_REQUEST, "say what to give: ?format=raw or ?format=car, or Accept".into()))
        }
        None => Err((StatusCode::NOT_ACCEPTABLE, format!("only {RAW} and {CAR} are given"))),
    }
}

fn car<'a>(options: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Format, Refusal> {
    let mut dups = false;
    for (key, value) in options {
        match (key, value) {
            ("version", "1") | ("order", "dfs" | "unk") => (),
            ("dups", "y" | "n") => dups = value == "y",
            ("version" | "order" | "dups", _) => {
                return Err((StatusCode::NOT_ACCEPTABLE, format!("a CAR with {key}={value:?} is not given")));
            }
            _ => (),
        }
    }
    Ok(Format::Car { dups })
}

fn scope(query: &str) -> Result<Scope, String> {
    let entity = match value(query, "entity-bytes") {
        None => Scope::Entity { from: 0, to: None },
        Some(text) => {
            let bad = || format!("entity-bytes={text:?} is not FROM:TO");
            let (from, to) = text.split_once(':').ok_or_else(bad)?;
            let from: i64 = from.parse().map_err(|_| bad())?;
            let to = if to == "*" { None } else { Some(to.parse().map_err(|_| bad())?) };
            if to.is_some_and(|to: i64| (from < 0) == (to < 0) && to < from) {
                return Err(format!("entity-bytes={text:?} ends before it begins"));
            }
            Scope::Entity { from, to }
        }
    };
    match value(query, "dag-scope") {
        None | Some("all" | "entity") => Ok(entity),
        Some("block") => Ok(Scope::Block),
        Some(other) => Err(format!("dag-scope={other:?} is not block, entity or all")),
    }
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter_map(|pair| pair.split_once('='))
}

fn value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    pairs(query).find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// A CAR's is weak: where it is cut into packets, and which blocks are there twice, may change.
fn etag(cid: &Cid, format: Format, scope: Scope) -> String {
    match (format, scope) {
        (Format::Raw, _) => format!("\"{cid}.raw\""),
        (Format::Car { dups }, Scope::Block) => format!("W/\"{cid}.car.{}.block\"", u8::from(dups)),
        (Format::Car { dups }, Scope::Entity { from, to }) => {
            let to = to.map_or_else(|| "*".to_owned(), |to| to.to_string());
            format!("W/\"{cid}.car.{}.{from}:{to}\"", u8::from(dups))
        }
    }
}

fn matches(tags: &HeaderValue, etag: &str) -> bool {
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let tags = tags.to_str().unwrap_or_default();
    tags.split(',').any(|tag| tag.trim() == "*" || bare(tag) == bare(etag))
}

fn header_value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

fn found(body: Body, content: &str, file: &str, etag: &str) -> Response<Body> {
    let mut reply = Response::new(body);
    let disposition = format!("attachment; filename=\"{file}\"");
    let values = [
        (header::CONTENT_TYPE, content),
        (header::CONTENT_DISPOSITION, &disposition),
        (header::ETAG, etag),
        (header::CACHE_CONTROL, FOREVER),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::VARY, "Accept"),
    ];
    let values = values.into_iter().filter_map(|(name, value)| Some((name, header_value(value)?)));
    reply.headers_mut().extend(values);
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(accept: &str) -> HeaderMap {
        [(header::ACCEPT, HeaderValue::from_str(accept).unwrap())].into_iter().collect()
    }

    #[test]
    fn accept_counts_before_the_query_and_wildcards_do_not() {
        let raw = Ok(Format::Raw);
        let car = |dups| Ok(Format::Car { dups });
        assert_eq!(format("format=raw", &HeaderMap::new()), raw);
        assert_eq!(format("format=car", &accepting("*/*")), car(false));
        assert_eq!(format("format=car&car-dups=y&car-order=dfs", &HeaderMap::new()), car(true));
        assert_eq!(format("format=car", &accepting(RAW)), raw);
        assert_eq!(format("", &accepting("text/html, application/vnd.ipld.car; version=1; dups=y;q=0.9")), car(true));
        let status = |query, accept| format(query, &accepting(accept)).unwrap_err().0.as_u16();
        assert_eq!(format("", &HeaderMap::new()).unwrap_err().0.as_u16(), 400);
        assert_eq!((status("", "*/*"), status("", "text/html"), status("format=tar", "*/*")), (400, 406, 406));
        assert_eq!(
            (status("", "application/vnd.ipld.car; version=2"), status("format=car&car-order=bfs", "*/*")),
            (406, 406)
        );
    }

    #[test]
    fn scopes_and_ranges() {
        let entity = |from, to| Ok(Scope::Entity { from, to });
        assert_eq!(scope("dag-scope=all"), entity(0, None));
        assert_eq!(scope("dag-scope=block&entity-bytes=1:2"), Ok(Scope::Block));
        assert_eq!(scope("entity-bytes=5:*"), entity(5, None));
        assert_eq!(scope("entity-bytes=-5:-1"), entity(-5, Some(-1)));
        for bad in ["entity-bytes=5", "entity-bytes=5:4", "entity-bytes=-1:-5", "entity-bytes=a:b", "dag-scope=tree"] {
            assert!(scope(bad).is_err(), "{bad}");
        }
        let check = |query, len, expect| assert_eq!(range(scope(query).unwrap(), len), expect, "{query}");
        check("entity-bytes=5:9", 100, (5, 9));
        check("entity-bytes=-5:*", 100, (95, u64::MAX));
        check("entity-bytes=-500:-1", 100, (0, 99));
        check("entity-bytes=-9223372036854775808:9223372036854775807", 1, (0, i64::MAX as u64));
    }

    #[test]
    fn tags_match_in_lists_and_weakly() {
        let list = HeaderValue::from_static("\"a\", W/\"b\"");
        assert!(matches(&list, "W/\"a\"") && matches(&list, "\"b\"") && !matches(&list, "\"c\""));
        assert!(matches(&HeaderValue::from_static("*"), "\"c\""));
    }
}
