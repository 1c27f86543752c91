//! A network in memory, for tests with many peers and with faults that come again when the seed does.
//!
//! Faked: addresses (any socket address can be listened on), time (bytes take as long as a link's latency says, on
//! tokio's clock, which a test pauses), TLS (both ends compare keys; nothing is sealed) and faults: refused and cut
//! connections. Real: what travels, its order, back-pressure. On a paused clock and one thread equal seeds give equal
//! [`MemoryNet::trace`]s.

use crate::models::mix;
use assay_net::{Acceptor, ByteStream, Doing, Incoming, NetError, Route, TransportKey, TransportSecret};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// Bytes that an end takes before its peer has to wait.
const WINDOW: usize = 64 << 10;
/// Read at a time, and how many such pieces may be on their way in one direction.
const PIECE: usize = 4 << 10;
const PIECES_MAX: usize = 64;
/// Connections that wait to be accepted; a further one is refused.
const BACKLOG: usize = 128;

/// What goes wrong, and how slowly the rest goes. Drawn anew for each connection.
#[derive(Clone, Debug)]
pub struct Faults {
    /// One way.
    pub latency: Range<Duration>,
    /// Connections of a million that are refused.
    pub refused_ppm: u64,
    /// Connections of a million that are cut.
    pub cut_ppm: u64,
    /// After so many bytes, both directions together.
    pub cut_after: Range<u64>,
}

impl Default for Faults {
    /// None, and no latency.
    fn default() -> Self {
        Self { latency: Duration::ZERO..Duration::ZERO, refused_ppm: 0, cut_ppm: 0, cut_after: 0..0 }
    }
}

/// What happened to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// Nobody listens, or a fault.
    Refused,
    /// It is there.
    Opened,
    /// A fault, or [`MemoryNet::cut`].
    Cut,
    /// An end closed it.
    Closed,
}

/// When, to whom, which one of the connections to it, and what. The time is since the network was made.
pub type Traced = (Duration, SocketAddr, u64, Event);

/// The network. Clones are the same one.
#[derive(Clone, Debug)]
pub struct MemoryNet {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    faults: Faults,
    since: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    doors: BTreeMap<SocketAddr, Door>,
    /// Connections there ever were to an address.
    dialled: BTreeMap<SocketAddr, u64>,
    links: usize,
    trace: Vec<Traced>,
}

impl State {
    fn is_taken(&self, address: SocketAddr) -> bool {
        self.doors.get(&address).is_some_and(|door| !door.waiting.is_closed())
    }
}

#[derive(Debug)]
struct Door {
    key: Option<TransportKey>,
    waiting: mpsc::Sender<Incoming>,
    /// Rises with each [`MemoryNet::cut`].
    cuts: watch::Sender<u64>,
}

impl MemoryNet {
    /// An empty network.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self { shared: Arc::new(Shared { seed, faults, since: Instant::now(), state: Mutex::default() }) }
    }

    /// Cuts every connection to `address`, as when a machine dies or changes its network.
    pub fn cut(&self, address: SocketAddr) {
        if let Some(door) = self.shared.state().doors.get(&address) {
            door.cuts.send_modify(|cuts| *cuts += 1);
        }
    }

    /// Connections that are open.
    #[must_use]
    pub fn links(&self) -> usize {
        self.shared.state().links
    }

    /// Everything that happened so far.
    #[must_use]
    pub fn trace(&self) -> Vec<Traced> {
        self.shared.state().trace.clone()
    }
}

impl assay_net::Transport for MemoryNet {
    fn open(&self, route: Route) -> Doing<'_, ByteStream> {
        Box::pin(async move { self.shared.open(route) })
    }

    fn listen(&self, mut address: SocketAddr, secret: Option<TransportSecret>) -> Doing<'_, Box<dyn Acceptor>> {
        Box::pin(async move {
            let key = secret.map(|secret| secret.public()).transpose()?;
            let (waiting, incoming) = mpsc::channel(BACKLOG);
            let mut state = self.shared.state();
            if address.port() == 0 {
                let free = (1..u16::MAX).find(|&port| !state.is_taken(SocketAddr::new(address.ip(), port)));
                address.set_port(free.ok_or(io::ErrorKind::AddrInUse).map_err(io::Error::from)?);
            } else if state.is_taken(address) {
                return Err(io::Error::from(io::ErrorKind::AddrInUse).into());
            }
            state.doors.insert(address, Door { key, waiting, cuts: watch::Sender::new(0) });
            let acceptor = MemoryAcceptor { address, incoming: tokio::sync::Mutex::new(incoming) };
            Ok(Box::new(acceptor) as Box<dyn Acceptor>)
        })
    }
}

struct MemoryAcceptor {
    address: SocketAddr,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Incoming>>,
}

impl Acceptor for MemoryAcceptor {
    fn address(&self) -> Result<SocketAddr, NetError> {
        Ok(self.address)
    }

    fn accept(&self) -> Doing<'_, Incoming> {
        // The sender is gone when somebody else listens here: an accept that never ends, as of a socket that is shut.
        Box::pin(async move { self.incoming.lock().await.recv().await.ok_or(NetError::Closed) })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn open(self: &Arc<Self>, route: Route) -> Result<ByteStream, NetError> {
        let address = route.address;
        let mut state = self.state();
        let count = state.dialled.entry(address).or_default();
        *count += 1;
        let number = *count;
        let mut draws = Draws(self.seed ^ u64::from(address.port()) << 40 ^ number);
        let is_refused = draws.below(1_000_000) < self.faults.refused_ppm;
        let is_cut = draws.below(1_000_000) < self.faults.cut_ppm;
        let bytes = draws.between(self.faults.cut_after.clone());
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let latency = micros(self.faults.latency.start)..micros(self.faults.latency.end);
        let latency = Duration::from_micros(draws.between(latency));

        let (near, far) = (tokio::io::duplex(WINDOW), tokio::io::duplex(WINDOW));
        let opened = match state.doors.get(&address).filter(|_| !is_refused) {
            Some(door) if door.key != route.key => {
                return Err(NetError::WrongPeer(format!("{address} does not have the key that is asked for")));
            }
            Some(door) => {
                let peer = SocketAddr::new(address.ip(), u16::MAX);
                let incoming = Incoming { peer, handshake: Box::pin(async move { Ok(split(far.0)) }) };
                door.waiting.try_send(incoming).is_ok().then(|| door.cuts.subscribe())
            }
            None => None,
        };
        let Some(cuts) = opened else {
            state.trace.push((self.since.elapsed(), address, number, Event::Refused));
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        };
        state.links += 1;
        state.trace.push((self.since.elapsed(), address, number, Event::Opened));
        let link = Link { latency, left: Mutex::new(is_cut.then_some(bytes)) };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let event = link.carry(near.1, far.1, cuts).await;
            let mut state = shared.state();
            state.links -= 1;
            state.trace.push((shared.since.elapsed(), address, number, event));
        });
        Ok(split(near.0))
    }
}

fn split(stream: DuplexStream) -> ByteStream {
    let (reader, writer) = tokio::io::split(stream);
    ByteStream::new(reader, writer)
}

/// One connection.
struct Link {
    latency: Duration,
    /// Bytes until it is cut, if it is.
    left: Mutex<Option<u64>>,
}

impl Link {
    /// Carries bytes both ways until an end is closed or it is cut; dropping both ends then closes the other.
    async fn carry(&self, near: DuplexStream, far: DuplexStream, mut cuts: watch::Receiver<u64>) -> Event {
        let ((near_in, near_out), (far_in, far_out)) = (tokio::io::split(near), tokio::io::split(far));
        tokio::select! {
            event = self.one_way(near_in, far_out) => event,
            event = self.one_way(far_in, near_out) => event,
            _ = cuts.changed() => Event::Cut,
        }
    }

    async fn one_way(
        &self,
        mut from: tokio::io::ReadHalf<DuplexStream>,
        mut to: tokio::io::WriteHalf<DuplexStream>,
    ) -> Event {
        let mut pieces: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut has_ended = false;
        loop {
            let due = pieces.front().map(|(due, _)| *due);
            if due.is_none() && has_ended {
                return Event::Closed;
            }
            let mut piece = vec![0; PIECE];
            tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let (_, bytes) = pieces.pop_front().expect("one is due");
                    if to.write_all(&bytes).await.is_err() {
                        return Event::Closed;
                    }
                }
                read = from.read(&mut piece), if !has_ended && pieces.len() < PIECES_MAX => {
                    let len = read.unwrap_or(0);
                    has_ended = len == 0;
                    if self.is_spent(len as u64) {
                        return Event::Cut;
                    }
                    piece.truncate(len);
                    if len > 0 {
                        pieces.push_back((Instant::now() + self.latency, piece));
                    }
                }
            }
        }
    }

    fn is_spent(&self, bytes: u64) -> bool {
        let mut left = self.left.lock().expect("no panic while held");
        *left = left.map(|left| left.saturating_sub(bytes));
        *left == Some(0)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % bound
    }

    /// The start, of an empty range.
    fn between(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end.saturating_sub(range.start).max(1))
    }
}
