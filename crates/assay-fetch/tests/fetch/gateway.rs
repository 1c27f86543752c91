//! What a client of the gateway's paths sees.

use crate::support::{LAYOUT, runtime, shelf, start};
use assay_dag::{Cid, Codec, Version};
use assay_fetch::{Http, Url};
use hyper::header::{self, HeaderName};
use std::collections::HashSet;

struct Client {
    runtime: tokio::runtime::Runtime,
    http: Http,
    base: Url,
}

struct Answer {
    status: u16,
    headers: hyper::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Client {
    fn get(&self, path: &str, headers: &[(HeaderName, &str)]) -> Answer {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.clone(), (*value).to_owned())).collect();
        self.runtime.block_on(async {
            let reply = self.http.get(&self.base.join(path).unwrap(), &headers).await.unwrap();
            let (status, headers) = (reply.status.as_u16(), reply.headers.clone());
            Answer { status, headers, body: reply.bytes(1 << 20).await.unwrap() }
        })
    }

    /// The blocks of a stream, in its order.
    fn car(&self, path: &str) -> Vec<Cid> {
        let answer = self.get(path, &[]);
        assert_eq!(answer.status, 200, "{path}");
        let mut reader = assay_dag::CarReader::new();
        reader.feed(&answer.body);
        let mut cids = vec![];
        while let Some((cid, block)) = reader.next_block().unwrap() {
            assert!(cid.is_of(&block));
            cids.push(cid);
        }
        reader.finish().unwrap();
        cids
    }
}

#[test]
fn a_trustless_gateway_as_its_specification_has_it() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), runtime());
    // 20 leaves below 3 nodes below the root; the last leaf has 5 bytes.
    let (shelf, root) = shelf(dir.path(), 19 * 1024 + 5, LAYOUT);
    let base = format!("http://{}", start(&runtime, assay_fetch::routes(shelf.clone()))).parse().unwrap();
    let client = Client { runtime, http: Http::new().unwrap(), base };
    let raw = format!("/ipfs/{root}?format=raw");

    let answer = client.get(&raw, &[]);
    assert!(answer.status == 200 && root.is_of(&answer.body));
    assert_eq!(answer.header(header::CONTENT_TYPE), "application/vnd.ipld.raw");
    assert_eq!(answer.header(header::CACHE_CONTROL), "public, max-age=29030400, immutable");
    assert_eq!(answer.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    assert_eq!(answer.header(header::CONTENT_DISPOSITION), format!("attachment; filename=\"{root}.bin\""));
    let tag = answer.header(header::ETAG).to_owned();
    assert_eq!(tag, format!("\"{root}.raw\""));
    let again = client.get(&raw, &[(header::IF_NONE_MATCH, &tag)]);
    assert_eq!((again.status, again.body.len(), again.header(header::ETAG)), (304, 0, &*tag));

    let stranger = Cid::of(Version::V1, Codec::Raw, b"not here");
    let status = |path: &str, headers: &[(HeaderName, &str)]| client.get(path, headers).status;
    for (path, expect) in [
        (format!("/ipfs/{stranger}?format=raw"), 404),
        (format!("/ipfs/{stranger}?format=car"), 404),
        ("/ipfs/nonsense?format=raw".into(), 400),
        (format!("/ipfs/{root}"), 400),
        (format!("/ipfs/{root}?format=tar"), 406),
        (format!("/ipfs/{root}/a?format=raw"), 400),
        (format!("/ipfs/{root}/a?format=car"), 404),
        (format!("/ipfs/{root}?format=car&dag-scope=some"), 400),
        (format!("/ipfs/{root}?format=car&entity-bytes=9:1"), 400),
        ("/ipfs/bafkqaaa?format=raw".into(), 200),
        ("/ipns/x?format=raw".into(), 404),
    ] {
        assert_eq!(status(&path, &[]), expect, "{path}");
    }
    assert_eq!(status(&format!("/ipfs/{root}"), &[(header::ACCEPT, "text/html")]), 406);
    let cached = [(header::CACHE_CONTROL, "only-if-cached")];
    assert_eq!((status(&format!("/ipfs/{stranger}?format=raw"), &cached), status(&raw, &cached)), (412, 200));

    let nodes: Vec<Cid> = shelf.children(&root).iter().map(|child| child.0).collect();
    let leaves = |node: usize| -> Vec<Cid> { shelf.children(&nodes[node]).iter().map(|child| child.0).collect() };
    let car = format!("/ipfs/{root}?format=car");
    let all = client.car(&car);
    let expect: Vec<Cid> =
        std::iter::once(root).chain((0..3).flat_map(|i| std::iter::once(nodes[i]).chain(leaves(i)))).collect();
    assert_eq!((all.len(), all == expect, all.iter().collect::<HashSet<_>>().len()), (24, true, 24));
    assert_eq!(client.car(&format!("{car}&dag-scope=block")), [root]);
    let part = |range: &str| client.car(&format!("{car}&dag-scope=entity&entity-bytes={range}"));
    assert_eq!(part("0:0"), [root, nodes[0], leaves(0)[0]]);
    assert_eq!(part("1023:1024"), [root, nodes[0], leaves(0)[0], leaves(0)[1]]);
    assert_eq!(part("-1:*"), [root, nodes[2], leaves(2)[3]]);
    assert_eq!(part("9000000:*"), [root]);
    assert_eq!(client.car(&format!("/ipfs/{}?format=car", leaves(1)[0])), [leaves(1)[0]]);
    let head = client.get(&car, &[(header::ACCEPT, "application/vnd.ipld.car; version=1; dups=y")]);
    assert_eq!(head.header(header::CONTENT_TYPE), "application/vnd.ipld.car; version=1; order=dfs; dups=y");

    let models: serde_json::Value = serde_json::from_slice(&client.get("/models.json", &[]).body).unwrap();
    assert_eq!(models, serde_json::json!([{"name": "served", "cid": root.to_string(), "bytes": 19 * 1024 + 5}]));

    // A file that was changed gives none of the blocks that it no longer has, and a stream is not ended as if whole.
    std::fs::write(dir.path().join("served"), vec![0; 19 * 1024 + 5]).unwrap();
    assert_eq!(status(&format!("/ipfs/{}?format=raw", leaves(0)[0]), &[]), 404);
    let broken = client.runtime.block_on(async {
        let reply = client.http.get(&client.base.join(&car).unwrap(), &[]).await.unwrap();
        reply.bytes(1 << 20).await
    });
    assert!(broken.is_err());
}

#[test]
fn repeated_blocks_come_once_or_each_time() {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let path = dir.path().join("zeros");
    std::fs::write(&path, vec![0; 10 * 1024]).unwrap();
    let index = assay_store::BlockIndex::build(&path, LAYOUT, &mut |_| ()).unwrap();
    let root = index.root;
    let shelf = assay_store::Shelf::new();
    shelf.put("zeros", index);
    let base = format!("http://{}", start(&runtime, assay_fetch::routes(shelf.into()))).parse().unwrap();
    let client = Client { runtime, http: Http::new().unwrap(), base };
    // A root, nodes over 8 and 2 leaves, and a leaf that is there ten times.
    assert_eq!(client.car(&format!("/ipfs/{root}?format=car")).len(), 4);
    assert_eq!(client.car(&format!("/ipfs/{root}?format=car&car-dups=y")).len(), 13);
}
