//! Pulling a file from sources of every kind.

use crate::support::{LAYOUT, bytes, fetch, honest, odd, options, runtime, shelf, source, start};
use assay_dag::{CarReader, Cid, Layout, Leaves, Limits, Profile, Version, car_header, car_section};
use assay_fetch::{Http, PullError, PullOptions, Way, journal_of, part_of, pull};
use assay_store::BlockIndex;
use axum::{Router, http::StatusCode, routing::get};
use std::collections::HashSet;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

const LEN: usize = 100_001;

#[test]
fn every_size_and_layout_comes_whole_in_either_way() {
    let runtime = runtime();
    let wrapped = Layout { leaves: Leaves::Wrapped, version: Version::V0, ..LAYOUT };
    for layout in [LAYOUT, wrapped] {
        for len in [0, 1, 1024, 1025, LEN] {
            let dir = tempfile::tempdir().unwrap();
            let (shelf, root) = shelf(dir.path(), len, layout);
            let source = honest(&runtime, &shelf);
            for way in [Way::Blocks, Way::Car] {
                let out = dir.path().join("deep/out");
                let pulled = fetch(&runtime, root, &out, &options(std::slice::from_ref(&source), way)).unwrap();
                assert_eq!(std::fs::read(&out).unwrap(), bytes(len), "{len} bytes, {way:?}");
                assert_eq!((pulled.len, pulled.resumed), (len as u64, 0));
                assert!(!part_of(&out).exists() && !journal_of(&out).exists());
                // What was pulled can be given on, from what came with it.
                let index = BlockIndex::of(&out, root, pulled.nodes).unwrap();
                for (cid, place) in index.places() {
                    assert!(cid.is_of(&index.read(&cid, place).unwrap().unwrap()));
                }
            }
        }
    }
}

#[test]
fn several_sources_share_the_work() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (shelf, root) = shelf(dir.path(), LEN, LAYOUT);
    let (first, asked_first) = odd(&runtime, &shelf, |_, block| Ok(block));
    let (second, asked_second) = odd(&runtime, &shelf, |_, block| Ok(block));
    let pulled = fetch(&runtime, root, &dir.path().join("out"), &options(&[first, second], Way::Blocks)).unwrap();
    let (first, second) = (asked_first.lock().unwrap().len(), asked_second.lock().unwrap().len());
    assert_eq!(first + second, pulled.blocks as usize);
    assert!(first > 10 && second > 10, "{first} and {second}");
}

#[test]
fn one_flipped_bit_is_refused_at_its_block_and_fetched_elsewhere() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (shelf, root) = shelf(dir.path(), LEN, LAYOUT);
    let bad = shelf.children(&shelf.children(&root)[0].0)[3].0;
    let bad = shelf.children(&bad).get(2).map_or(bad, |child| child.0);
    let (liar, _) = odd(&runtime, &shelf, move |cid, mut block| {
        if *cid == bad {
            block[500] ^= 4;
        }
        Ok(block)
    });
    // Alone it cannot complete the file, and what is missing and why is said.
    let out = dir.path().join("out");
    let error =
        fetch(&runtime, root, &out, &options(std::slice::from_ref(&liar), Way::Blocks)).unwrap_err().to_string();
    assert!(error.contains(&bad.to_string()) && error.contains("sent other bytes"), "{error}");
    assert!(!out.exists());
    // With an honest one beside it the file is right. Only the honest one is asked for that block again.
    let (honest, asked) = odd(&runtime, &shelf, |_, block| Ok(block));
    let pulled = fetch(&runtime, root, &out, &options(&[liar.clone(), honest], Way::Blocks)).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), bytes(LEN));
    assert!(pulled.resumed > 0 && asked.lock().unwrap().contains(&bad));
    for gone in &pulled.dropped {
        assert!(gone.lied && gone.source == liar.to_string() && gone.why.contains(&bad.to_string()), "{gone:?}");
    }
}

#[test]
fn a_stream_with_a_flipped_bit_is_left_and_its_source_named() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (shelf, root) = shelf(dir.path(), LEN, LAYOUT);
    let first = shelf.children(&root)[0].0;
    let mut car = car_header(&root);
    for (cid, flip) in [(root, 0), (first, 1)] {
        let mut block = shelf.block(&cid).unwrap().unwrap();
        block[9] ^= flip;
        car.extend(car_section(&cid, block.len()));
        car.extend(block);
    }
    let liar = source(start(&runtime, Router::new().route("/ipfs/{cid}", get(async || car))));
    let out = dir.path().join("out");
    let sources = [liar.clone(), honest(&runtime, &shelf)];
    let pulled = fetch(&runtime, root, &out, &options(&sources, Way::Car)).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), bytes(LEN));
    let [gone] = &pulled.dropped[..] else { panic!("{:?}", pulled.dropped) };
    assert!(gone.lied && gone.source == liar.to_string() && gone.why.contains(&first.to_string()), "{gone:?}");
}

#[test]
fn sources_without_the_block_or_out_of_order_are_no_obstacle() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (shelf, root) = shelf(dir.path(), LEN, LAYOUT);
    let (empty, _) = odd(&runtime, &shelf, |_, _| Err(StatusCode::NOT_FOUND));
    let (broken, asked) = odd(&runtime, &shelf, |_, _| Err(StatusCode::BAD_GATEWAY));
    let (moved, _) = odd(&runtime, &shelf, |_, _| Err(StatusCode::FOUND));
    let nobody = source("127.0.0.1:1".parse().unwrap());
    let odd_ones = [empty, broken.clone(), moved, nobody];
    let out = dir.path().join("out");
    let all: Vec<_> = odd_ones.iter().cloned().chain([honest(&runtime, &shelf)]).collect();
    for way in [Way::Blocks, Way::Car] {
        let pulled = fetch(&runtime, root, &out, &options(&all, way)).unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), bytes(LEN));
        assert!(pulled.dropped.iter().all(|gone| !gone.lied));
        // A source that fails is left alone after a few tries.
        assert!(asked.lock().unwrap().len() <= 20);
        asked.lock().unwrap().clear();
    }
    let error =
        fetch(&runtime, root, &dir.path().join("other"), &options(&odd_ones, Way::Car)).unwrap_err().to_string();
    assert!(error.contains(&format!("block {root} is not to be had")) && error.contains("502"), "{error}");
    assert!(error.contains(&broken.to_string()), "{error}");
    let error = fetch(&runtime, root, &dir.path().join("other"), &options(&[], Way::Blocks)).unwrap_err().to_string();
    assert!(error.contains("no source to ask"), "{error}");
}

#[test]
fn a_file_that_is_too_large_is_not_begun() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (shelf, root) = shelf(dir.path(), LEN, LAYOUT);
    let limits = Limits { file_len_max: LEN as u64 - 1, ..Limits::default() };
    let options = PullOptions { limits, ..options(&[honest(&runtime, &shelf)], Way::Blocks) };
    let error = fetch(&runtime, root, &dir.path().join("out"), &options).unwrap_err();
    assert!(matches!(error, PullError::Content(_)) && error.to_string().contains("100001 bytes"), "{error}");
}

#[test]
fn two_pulls_of_one_file_do_not_mix() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (shelf, root) = shelf(dir.path(), LEN, LAYOUT);
    let options = options(&[honest(&runtime, &shelf)], Way::Blocks);
    let (out, http) = (dir.path().join("out"), Http::new().unwrap());
    let mut second = None;
    let mut once = |_: &assay_fetch::Progress| {
        second.get_or_insert_with(|| fetch(&runtime, root, &out, &options).unwrap_err());
    };
    pull(runtime.handle(), &http, root, &out, &options, &mut once).unwrap();
    assert!(matches!(second, Some(PullError::InUse { .. })));
}

#[test]
fn damage_to_what_was_left_costs_only_the_damaged_blocks() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (shelf, root) = shelf(dir.path(), LEN, LAYOUT);
    let all = interrupted(&runtime, &shelf, root, dir.path());
    let out = dir.path().join("out");
    // One byte of the first block is wrong now.
    let mut part = std::fs::read(part_of(&out)).unwrap();
    part[7] ^= 1;
    std::fs::write(part_of(&out), &part).unwrap();
    let (source, asked) = odd(&runtime, &shelf, |_, block| Ok(block));
    let pulled = fetch(&runtime, root, &out, &options(&[source], Way::Blocks)).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), bytes(LEN));
    let asked = asked.lock().unwrap();
    let again: Vec<&Cid> = asked.iter().filter(|cid| all.contains(cid)).collect();
    assert_eq!(again.len(), 1, "{again:?}");
    assert_eq!(pulled.blocks as usize, asked.len());
}

/// A pull that loses its only source after some blocks; the names of those that were noted.
fn interrupted(
    runtime: &tokio::runtime::Runtime,
    shelf: &Arc<assay_store::Shelf>,
    root: Cid,
    dir: &Path,
) -> HashSet<Cid> {
    let given = Mutex::new(0);
    let (source, _) = odd(runtime, shelf, move |_, block| {
        let mut given = given.lock().unwrap();
        *given += 1;
        if *given <= 40 { Ok(block) } else { Err(StatusCode::NOT_FOUND) }
    });
    let out = dir.join("out");
    fetch(runtime, root, &out, &options(&[source], Way::Blocks)).unwrap_err();
    noted(&out)
}

/// The blocks that the journal beside `out` has.
fn noted(out: &Path) -> HashSet<Cid> {
    let mut reader = CarReader::new();
    reader.feed(&std::fs::read(journal_of(out)).unwrap_or_default());
    let mut noted = HashSet::new();
    while let Ok(Some((cid, _))) = reader.next_block() {
        noted.insert(cid);
    }
    noted
}

const CHILD: &str = "ASSAY_FETCH_TEST_CHILD";
/// How large the file is whose pull is killed, if not small.
const KILLED: &str = "ASSAY_FETCH_TEST_BYTES";

/// The process that is killed: this program, told by a variable to pull.
#[test]
fn child() {
    let Ok(words) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = words.split(' ').collect();
    let runtime = runtime();
    let options = options(&[words[0].parse().unwrap()], Way::Blocks);
    fetch(&runtime, words[1].parse().unwrap(), Path::new(words[2]), &options).unwrap();
}

#[test]
fn a_killed_pull_never_fetches_a_noted_block_again() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let len = std::env::var(KILLED).map_or(4 * LEN, |len| len.parse().unwrap());
    let layout = if len > 64 << 20 { Profile::UnixfsV1.layout() } else { LAYOUT };
    let (shelf, root) = shelf(dir.path(), len, layout);
    let out = dir.path().join("out");
    let blocks_max = 3 + len as u32 / layout.chunk_len / 8;
    // The source kills the child when it is asked for so many blocks.
    let victim: Arc<Mutex<Option<Child>>> = Arc::default();
    let fuse = Arc::new(Mutex::new(0_u32));
    let (source, asked) = odd(&runtime, &shelf, {
        let (victim, fuse) = (Arc::clone(&victim), Arc::clone(&fuse));
        move |_, block| {
            let mut fuse = fuse.lock().unwrap();
            *fuse = fuse.saturating_sub(1);
            if *fuse == 0
                && let Some(child) = victim.lock().unwrap().as_mut()
            {
                child.kill().unwrap();
            }
            Ok(block)
        }
    });
    let words = format!("{source} {root} {}", out.display());
    let mut before = HashSet::new();
    let mut kills = 0;
    for seed in 1_u32.. {
        asked.lock().unwrap().clear();
        *fuse.lock().unwrap() = 3 + seed.wrapping_mul(2_654_435_761) % blocks_max;
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "pull::child", "--quiet"]).env(CHILD, &words);
        *victim.lock().unwrap() = Some(command.spawn().unwrap());
        // Waiting without holding the lock that the source needs.
        let status = loop {
            if let Some(status) = victim.lock().unwrap().as_mut().unwrap().try_wait().unwrap() {
                break status;
            }
            std::thread::yield_now();
        };
        let again: Vec<Cid> = asked.lock().unwrap().iter().filter(|cid| before.contains(*cid)).copied().collect();
        assert!(again.is_empty(), "after {kills} kills: {again:?}");
        if status.success() {
            break;
        }
        kills += 1;
        let now = noted(&out);
        assert!(now.is_superset(&before) && kills < 100);
        before = now;
    }
    assert!(kills >= 5, "{kills} kills");
    println!("{len} bytes, {kills} kills");
    assert_eq!(BlockIndex::build(&out, layout, &mut |_| ()).unwrap().root, root);
}
