//! Random lives of a network with the gateway's database in it. See `assay_testkit::actions`.

use assay_gateway::{ChannelRow, Store};
use assay_protocol::PayerRow;
use assay_testkit::actions::{Faults, Image, Keys, PROVIDERS, Parties, PayerDisk, Tally, actions, run_on};
use assay_types::{ChannelId, ProviderId};
use std::path::PathBuf;
use std::rc::Rc;
use tokio::runtime::Runtime;

/// Lives in every run of the tests; `ASSAY_LIVES` makes them more.
const LIVES: u64 = 12;
const ACTIONS: usize = 1_000;

/// What `kill -9` leaves: the database and its log, byte by byte.
struct Files([Vec<u8>; 2]);

struct Database {
    runtime: Rc<Runtime>,
    /// Each process has a folder of its own.
    directory: tempfile::TempDir,
    processes: u32,
    channels: Vec<(ChannelId, ProviderId)>,
    store: Store,
}

impl Database {
    fn new(runtime: Rc<Runtime>, keys: &Keys) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let channel = |number| (keys.terms(number).id(), ProviderId(keys.terms(number).config().receiver));
        let channels = (0..PROVIDERS).map(channel).collect();
        let store = runtime.block_on(Store::open(&directory.path().join("0.db"))).unwrap().0;
        Self { runtime, directory, processes: 0, channels, store }
    }

    fn files(&self) -> [PathBuf; 2] {
        ["db", "db-wal"].map(|end| self.directory.path().join(format!("{}.{end}", self.processes)))
    }
}

impl PayerDisk for Database {
    fn load(&mut self, channel: usize) -> PayerRow {
        let row = self.runtime.block_on(self.store.channel(self.channels[channel].0)).unwrap();
        row.map_or_else(PayerRow::default, |row| row.books)
    }

    fn store(&mut self, channel: usize, books: PayerRow) {
        let (channel_id, provider) = self.channels[channel];
        self.runtime.block_on(self.store.put_channel(ChannelRow { channel_id, provider, books })).unwrap();
    }

    fn image(&mut self) -> Image {
        Rc::new(Files(self.files().map(|path| std::fs::read(path).unwrap_or_default())))
    }

    fn go_back(&mut self, image: &Image) {
        let Files(contents) = image.downcast_ref().expect("an image of its own");
        self.processes += 1;
        for (path, content) in self.files().iter().zip(contents) {
            std::fs::write(path, content).unwrap();
        }
        self.store = self.runtime.block_on(Store::open(&self.files()[0])).unwrap().0;
    }
}

#[test]
fn channel_rows_in_the_database_cost_nobody_more_than_a_chunk() {
    let lives = std::env::var("ASSAY_LIVES").map_or(LIVES, |text| text.parse().expect("ASSAY_LIVES is a number"));
    let runtime = Rc::new(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let (mut keys, mut all) = (Keys::default(), Tally::default());
    for seed in 0..lives {
        let faults = if seed % 4 == 3 { Faults::All } else { Faults::Survivable };
        let payer = Box::new(Database::new(Rc::clone(&runtime), &keys));
        let parties = Parties { payer, ..Parties::plain(&keys) };
        println!("seed {seed}, {faults:?}");
        all.add(&run_on(&mut keys, parties, &actions(seed, ACTIONS), faults));
    }
    assert!(all.checkpoints > 0 && all.gateway_older > 0, "{all:?}");
}
