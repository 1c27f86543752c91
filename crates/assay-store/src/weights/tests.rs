//! A cache is used if it is whole, made anew if it is not, and never gives other weights than the model file.

use super::cache::{Kept, WeightCache, WeightsEvent, WeightsOptions};
use super::file::{WeightsError, WeightsFile, Writer, read_head};
use super::format::{CHUNK_LEN, Flaw, HEAD_LEN};
use super::inventory::{CacheFile, CacheState};
use super::source::Note;
use crate::ModelFile;
use assay_gguf::GgmlType;
use assay_num::{Format, Matrix, PackedStore, PackedStoreError, Packing, SourceRows, Team};
use assay_testkit::models::{self, TinyLlama, tiny_llama};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

struct Fixture {
    dir: tempfile::TempDir,
    options: WeightsOptions,
}

/// What a load came to: the weights as numbers, where they are, and what was said.
struct Loaded {
    weights: Vec<f32>,
    kept: Kept,
    said: Vec<String>,
}

impl Loaded {
    fn is_new(&self) -> bool {
        matches!(self.kept, Kept::File { is_new: true, .. })
    }
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = WeightsOptions { dirs: vec![dir.path().join("cache")], len_min: 0, threads: 2 };
        let fixture = Self { dir, options };
        fixture.write(1);
        fixture
    }

    fn cache(&self) -> PathBuf {
        self.options.dirs[0].clone()
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("model.gguf")
    }

    /// A model, over one MiB packed, in place of the last one.
    fn write(&self, seed: u64) {
        let shape = TinyLlama { layers: 1, d_model: 160, ffn: 64, vocab: 4_001, seed, ..TinyLlama::default() };
        let fresh = self.dir.path().join("fresh");
        fs::write(&fresh, tiny_llama(TinyLlama { format: models::Format::F16, ..shape })).expect("written");
        fs::rename(&fresh, self.model()).expect("renamed");
    }

    fn load(&self) -> Loaded {
        self.load_by(|file, store| all_matrices(file, store))
    }

    fn load_by(&self, load: impl Fn(&ModelFile, &mut dyn PackedStore) -> Result<Vec<f32>, PackedStoreError>) -> Loaded {
        let file = ModelFile::open(self.model()).expect("a model");
        let mut said = vec![];
        let mut report = |event: WeightsEvent<'_>| {
            said.push(match event {
                WeightsEvent::Hashing { .. } => "hashing".to_owned(),
                WeightsEvent::Waiting { .. } => "waiting".to_owned(),
                WeightsEvent::Replacing { error } => format!("replacing: {error}"),
                WeightsEvent::Unusable { error, .. } => format!("unusable: {error}"),
            });
        };
        let (weights, kept) =
            WeightCache::new(&file, &self.options).load(&mut report, |store| load(&file, store)).expect("a load");
        Loaded { weights, kept, said }
    }

    /// The one file of weights.
    fn file(&self) -> PathBuf {
        let files = CacheFile::all(&self.cache()).expect("a directory");
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].path.clone()
    }

    /// Loads with the cache changed by `damage`, which has to be noticed, and once more.
    fn heals(&self, expect: &[f32], what: &str, damage: impl Fn(&Path)) {
        damage(&self.file());
        let healed = self.load();
        assert!(healed.is_new(), "{what}: used as it was");
        assert!(healed.said.iter().any(|said| said.starts_with("replacing: ")), "{what}: {:?}", healed.said);
        let again = self.load();
        assert!(!again.is_new() && again.said.is_empty(), "{what}: {:?}", again.said);
        assert!(healed.weights == expect && again.weights == expect, "{what}: other weights");
    }
}

/// Every matrix of the file, as numbers.
fn all_matrices(file: &ModelFile, store: &mut dyn PackedStore) -> Result<Vec<f32>, PackedStoreError> {
    let mut all = vec![];
    for tensor in file.gguf().tensors().iter().filter(|tensor| tensor.dims.len() == 2) {
        let format = if tensor.ty == GgmlType::F16 { Format::F16 } else { Format::F32 };
        let packing = Packing::new(format, tensor.dims[1] as usize, tensor.dims[0] as usize)?;
        let data = file.gguf().tensor_bytes(file.bytes(), tensor)?;
        all.push(store.place(packing, &SourceRows::new(&packing, &[data])?)?);
    }
    Ok(values(&all))
}

fn values(matrices: &[Matrix]) -> Vec<f32> {
    let mut values = vec![];
    for matrix in matrices {
        let mut row = vec![0.0; matrix.k()];
        for i in 0..matrix.rows() {
            matrix.row_f32(i, &mut row);
            values.extend(&row);
        }
    }
    values
}

fn flip(path: &Path, at: u64, bit: u8) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside");
    file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("written");
}

#[test]
fn the_second_load_packs_nothing_and_gives_the_same_weights() {
    let fixture = Fixture::new();
    let memory = Fixture { options: WeightsOptions { dirs: vec![], ..fixture.options.clone() }, ..Fixture::new() };
    let expect = memory.load();
    assert_eq!((expect.kept, expect.said.len()), (Kept::Memory, 0));
    let first = fixture.load();
    assert!(first.is_new());
    let second = fixture.load();
    assert_eq!(second.kept, Kept::File { path: fixture.file(), is_new: false });
    assert!(second.said.is_empty(), "{:?}", second.said);
    assert!(first.weights == expect.weights && second.weights == expect.weights);
    assert!(fs::metadata(fixture.file()).expect("a file").len() > (CHUNK_LEN + HEAD_LEN) as u64, "two checksums");
}

#[test]
fn a_small_model_stays_in_memory() {
    let mut fixture = Fixture::new();
    fixture.options.len_min = WeightsOptions::LEN_MIN;
    assert_eq!(fixture.load().kept, Kept::Memory);
    assert!(!fixture.cache().exists());
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let fixture = Fixture::new();
    let expect = fixture.load().weights;
    let path = fixture.file();
    let source = read_head(&path).expect("a head").source;
    let len = fs::metadata(&path).expect("a file").len();
    let team = Team::new(2);
    // Every byte of the head and of the table, some of the weights, padding among them.
    let body_end = len - 4096;
    let sampled = (HEAD_LEN as u64..body_end).step_by(9_973);
    for at in (0..HEAD_LEN as u64).chain(sampled).chain(body_end..len) {
        let bit = (at % 8) as u8;
        flip(&path, at, bit);
        assert!(WeightsFile::open(&path, source, &team).is_err(), "byte {at}");
        flip(&path, at, bit);
    }
    assert!(WeightsFile::open(&path, source, &team).is_ok(), "it is whole again");
    for at in [0, 8, 16, 24, 60, 70, 1_000, 4_095, 4_096, 600_000, len - 9, len - 200, len - 1] {
        fixture.heals(&expect, &format!("byte {at}"), |path| flip(path, at, 3));
    }
}

#[test]
fn a_file_that_is_shorter_or_longer_is_made_anew() {
    let fixture = Fixture::new();
    let expect = fixture.load().weights;
    let len = fs::metadata(fixture.file()).expect("a file").len();
    for short in [0, 1, 4_095, 4_096, 4_097, len / 2, len - 8, len - 1, len + 1, len + 4_096] {
        fixture.heals(&expect, &format!("{short} bytes"), |path| {
            fs::File::options().write(true).open(path).and_then(|file| file.set_len(short)).expect("cut");
        });
    }
    fixture.heals(&expect, "zeros", |path| fs::write(path, vec![0; len as usize]).expect("written"));
}

#[test]
fn a_file_of_another_layout_or_model_is_made_anew() {
    let fixture = Fixture::new();
    let expect = fixture.load().weights;
    let change = |what: &str, flaw: Flaw, change: &dyn Fn(&mut super::format::Head)| {
        fixture.heals(&expect, what, |path| {
            let mut head = read_head(path).expect("a head");
            change(&mut head);
            let file = fs::File::options().write(true).open(path).expect("a file");
            file.write_all_at(&head.encode(), 0).expect("written");
            let found = WeightsFile::open(path, read_source(path), &Team::new(1)).map(|_| ());
            match found {
                Err(WeightsError::Flaw { flaw: found, .. }) => assert_eq!(found, flaw),
                found => panic!("{found:?}"),
            }
        });
    };
    change("layout", Flaw::Layout, &|head| head.layout ^= 1);
    change("source", Flaw::Source, &|head| head.source.0[5] ^= 1);
    assert!(Flaw::Layout.is_stale() && !Flaw::Source.is_stale());
    // Another version: only magic and version are known of it.
    fixture.heals(&expect, "version", |path| {
        let file = fs::File::options().write(true).open(path).expect("a file");
        file.write_all_at(&2u32.to_le_bytes(), 8).expect("written");
        assert_eq!(
            CacheFile::all(&fixture.cache()).expect("a directory")[0].state,
            CacheState::Unusable(Flaw::Version { found: 2 })
        );
    });
}

/// The source that a file's name states.
fn read_source(path: &Path) -> alloy_primitives::B256 {
    path.file_stem().and_then(|stem| stem.to_str()).expect("a name").parse().expect("a hash")
}

#[test]
fn a_damaged_note_costs_no_more_than_a_hash() {
    let fixture = Fixture::new();
    let expect = fixture.load().weights;
    let note = Note::path(&fixture.cache(), &fixture.model().canonicalize().expect("a path"));
    let len = fs::metadata(&note).expect("a note").len();
    for at in 0..len {
        flip(&note, at, (at % 7) as u8);
        let loaded = fixture.load();
        assert!(!loaded.is_new() && loaded.weights == expect, "byte {at}: {:?}", loaded.said);
    }
    fs::remove_file(&note).expect("removed");
    let loaded = fixture.load();
    assert_eq!((loaded.is_new(), loaded.said), (false, vec!["hashing".to_owned()]));
}

#[test]
fn whoever_comes_at_the_same_time_waits_for_one() {
    let fixture = Fixture::new();
    let barrier = Barrier::new(6);
    let loads: Vec<Loaded> = std::thread::scope(|scope| {
        let load = || {
            barrier.wait();
            fixture.load()
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(loads.iter().filter(|load| load.is_new()).count(), 1);
    assert!(loads.iter().all(|load| load.weights == loads[0].weights && load.kept != Kept::Memory));
    // One file of weights, one note, nothing else.
    assert_eq!(fs::read_dir(fixture.cache()).expect("a directory").count(), 2);
}

#[test]
fn what_a_dead_process_left_is_written_over() {
    let fixture = Fixture::new();
    fixture.load();
    let path = fixture.file();
    let fresh = path.with_extension("weights.new");
    fs::remove_file(&path).expect("removed");
    fs::write(&fresh, vec![7; 5 << 20]).expect("written");
    assert!(fixture.load().is_new());
    assert!(!fresh.exists());
    assert!(!fixture.load().is_new());
}

#[test]
fn a_model_that_asks_for_other_matrices_gets_them() {
    let fixture = Fixture::new();
    fixture.load();
    let reversed = |file: &ModelFile, store: &mut dyn PackedStore| {
        let names: Vec<_> = file.gguf().tensors().iter().filter(|tensor| tensor.dims.len() == 2).collect();
        let mut all = vec![];
        for tensor in names.into_iter().rev() {
            let packing = Packing::new(Format::F16, tensor.dims[1] as usize, tensor.dims[0] as usize)?;
            let data = file.gguf().tensor_bytes(file.bytes(), tensor)?;
            all.push(store.place(packing, &SourceRows::new(&packing, &[data])?)?);
        }
        Ok(values(&all))
    };
    let other = fixture.load_by(reversed);
    assert!(other.is_new() && other.said.iter().any(|said| said.contains("other matrices")), "{:?}", other.said);
    let fewer = fixture.load_by(|file, store| {
        let tensor = file.gguf().tensors().iter().rfind(|tensor| tensor.dims.len() == 2).expect("a matrix");
        let packing = Packing::new(Format::F16, tensor.dims[1] as usize, tensor.dims[0] as usize)?;
        let data = file.gguf().tensor_bytes(file.bytes(), tensor)?;
        Ok(values(&[store.place(packing, &SourceRows::new(&packing, &[data])?)?]))
    });
    assert!(fewer.is_new(), "a file with more matrices than the model is not the model's");
}

#[test]
fn an_error_of_the_load_is_handed_on_and_leaves_nothing() {
    let fixture = Fixture::new();
    let file = ModelFile::open(fixture.model()).expect("a model");
    let load = |store: &mut dyn PackedStore| {
        all_matrices(&file, store)?;
        Err::<(), PackedStoreError>("not this one".into())
    };
    let error = WeightCache::new(&file, &fixture.options).load(&mut |_| {}, load).expect_err("an error");
    assert_eq!(error.to_string(), "not this one");
    assert!(CacheFile::all(&fixture.cache()).expect("a directory").is_empty());
}

#[test]
fn where_nothing_can_be_written_the_next_place_is_used_then_memory() {
    let mut fixture = Fixture::new();
    let blocked = fixture.dir.path().join("blocked");
    fs::write(&blocked, b"no directory").expect("written");
    // Not even root makes a directory there.
    let read_only = PathBuf::from("/proc/assay-cache");
    fixture.options.dirs = vec![blocked.clone(), read_only.clone()];
    let loaded = fixture.load();
    assert_eq!(loaded.kept, Kept::Memory);
    let unusable = loaded.said.iter().filter(|said| said.starts_with("unusable: ")).collect::<Vec<_>>();
    assert!(unusable.len() == 2 && unusable[0].contains("blocked") && unusable[1].contains("/proc"), "{unusable:?}");
    fixture.options.dirs = vec![read_only, fixture.dir.path().join("second")];
    assert!(fixture.load().is_new());
    assert!(!fixture.load().is_new());
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_of_the_cache_with_its_name() {
    let fixture = Fixture::new();
    let model = ModelFile::open(fixture.model()).expect("a model");
    let full = fs::File::options().read(true).write(true).open("/dev/full").expect("a device that is always full");
    let team = Team::new(2);
    let mut writer = Writer::new(&model, &full, Path::new("/cache/x.weights.new"), &team);
    assert!(all_matrices(&model, &mut writer).is_err());
    let said = writer.failure.expect("a failure").to_string();
    assert!(said.contains("/cache/x.weights.new: No space left"), "{said}");
}

#[test]
fn a_changed_model_has_other_weights_and_the_old_file_is_nobodys() {
    let fixture = Fixture::new();
    let first = fixture.load();
    fixture.write(2);
    let second = fixture.load();
    assert!(second.is_new() && second.weights != first.weights);
    let files = CacheFile::all(&fixture.cache()).expect("a directory");
    let of = |kept: &Kept| {
        let Kept::File { path, .. } = kept else { panic!("in memory") };
        files.iter().find(|file| file.path == *path).expect("listed")
    };
    assert!(of(&first.kept).models.is_empty());
    assert_eq!(of(&second.kept).models, [fixture.model().canonicalize().expect("a path")]);
    assert!(files.iter().all(|file| file.state == CacheState::Ready && file.check(&Team::new(1)).is_ok()));
    let own = CacheFile::of(&fixture.cache(), &fixture.model()).expect("a directory").expect("a file");
    assert_eq!(own.path, of(&second.kept).path);
    // Nobody's files go, the model's own stays.
    assert!(of(&first.kept).remove().expect("removed"));
    CacheFile::forget(&fixture.cache(), None);
    assert!(!fixture.load().is_new());
    assert!(own.remove().expect("removed"));
    CacheFile::forget(&fixture.cache(), Some(&fixture.model().canonicalize().expect("a path")));
    assert!(!fixture.cache().exists());
}

#[test]
fn a_damaged_file_is_told_by_a_check_and_one_being_written_is_left_alone() {
    let fixture = Fixture::new();
    fixture.load();
    let path = fixture.file();
    flip(&path, 500_000, 1);
    let file = CacheFile::all(&fixture.cache()).expect("a directory").remove(0);
    assert_eq!(file.state, CacheState::Ready, "the head is whole");
    assert!(file.check(&Team::new(2)).expect_err("damaged").to_string().contains("damaged in MiB 0"));
    let fresh = fs::File::create(path.with_extension("weights.new")).expect("created");
    fresh.lock().expect("locked");
    let unfinished = CacheFile::all(&fixture.cache()).expect("a directory").remove(1);
    assert_eq!(unfinished.state, CacheState::Unfinished);
    assert!(!unfinished.remove().expect("no error"), "another process writes it");
    drop(fresh);
    assert!(unfinished.remove().expect("removed"));
}
