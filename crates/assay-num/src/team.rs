//! A fixed team of threads that computes one job at a time together with its caller.
//!
//! Owns the threads, the barrier at the start and end of each job, and the splitting of outputs into
//! disjoint chunks. Which thread computes which chunk is left to chance (a slow core takes fewer);
//! no result may depend on it, and none can: a chunk is written by exactly one call.
//!
//! ```text
//! caller:  opens job, wakes the parked | takes part until no index is left | closes job, waits until active == 0
//! worker:  spins, then parks           | active += 1 if still open, takes part, active -= 1, wakes the caller
//! ```
//! The caller waits for nobody who has not begun: when a worker wakes late, the others have done its work
//! and the job is closed. A busy machine therefore slows a job down, but a sleeping worker does not stop it.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};

use crate::float_env;

/// Rounds of spinning before a thread parks: around 50 us, longer than the gap between two layers'
/// jobs, short enough to be harmless when the engine has nothing to do.
const SPINS: usize = 2_000;

/// A fixed team of own threads; the calling thread is one of them.
///
/// One job runs at a time: the type is `Send` but not `Sync`, so a job cannot start another one.
/// Dropping it joins the threads.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    not_sync: PhantomData<Cell<()>>,
}

/// The job of one epoch: `call(thread index)`.
type Job<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// See [`State`].
    state: AtomicU64,
    stop: AtomicBool,
    spins: usize,
    parked: Vec<AtomicBool>,
    /// Written by the caller while the job is closed and no worker active, read by active workers.
    slot: UnsafeCell<Option<Slot>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Number of the job (upper half, wrapping), whether it is open, and how many workers are active in it.
#[derive(Clone, Copy)]
struct State(u64);

impl State {
    const OPEN: u64 = 1 << 31;

    fn opened(epoch: u32) -> State {
        State((u64::from(epoch) << 32) | Self::OPEN)
    }

    fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    fn active(self) -> u64 {
        self.0 & (Self::OPEN - 1)
    }
}

struct Slot {
    /// The lifetime is erased; `Team::barrier` does not return before the job is closed and no worker active.
    job: Job<'static>,
    caller: Thread,
}

#[expect(unsafe_code, reason = "the job slot is shared under the epoch protocol")]
// SAFETY: `slot` is the only field that is not Sync by itself. The caller writes it only while the job is closed with
// no active worker, before it opens the next one (SeqCst). A worker reads it only between raising and lowering the
// number of active workers (AcqRel), and can raise it only while the job is open. `Team` is not Sync, so there
// is one caller at a time. The job is `Sync`.
unsafe impl Sync for Shared {}

impl Team {
    /// Most threads a team may have.
    pub const MAX_THREADS: usize = 256;

    /// A team of `n_threads` (clamped to 1..=[`Team::MAX_THREADS`]), the caller included: `n_threads - 1` threads start.
    /// If the operating system refuses one, the team stays smaller, see [`Team::threads`].
    pub fn new(n_threads: usize) -> Team {
        let n_workers = n_threads.clamp(1, Self::MAX_THREADS) - 1;
        let cores = thread::available_parallelism().map_or(1, |n| n.get());
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            // With more threads than cores a spinning thread keeps the one it waits for from running.
            spins: if n_workers < cores { SPINS } else { 0 },
            parked: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
            slot: UnsafeCell::new(None),
            panic: Mutex::new(None),
        });
        let workers = (0..n_workers)
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                thread::Builder::new().name(format!("assay-num-{}", i + 1)).spawn(move || shared.work(i)).ok()
            })
            .collect();
        Team { shared, workers, not_sync: PhantomData }
    }

    /// Threads that take part in a job, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(i)` once for each i in `0..n_jobs`, spread over the threads.
    ///
    /// # Panics
    /// If a call panics: after all threads have stopped, with the first panic's payload. The team stays
    /// usable. Also if a thread's floating point environment is not the default one.
    pub fn run(&self, n_jobs: usize, f: impl Fn(usize) + Sync) {
        self.run_on_all(n_jobs, |_, i| f(i));
    }

    /// Cuts `out` into chunks of `chunk_len` (the last may be shorter) and calls `f(chunk_index, chunk)` once for each.
    ///
    /// # Panics
    /// As [`Team::run`]; if `chunk_len` is 0 and `out` is not empty.
    pub fn for_each_chunk<T: Send>(&self, out: &mut [T], chunk_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let chunks = Chunks::new(out, chunk_len);
        self.run_on_all(chunks.count(), |_, i| {
            #[expect(unsafe_code, reason = "disjoint chunks of one slice")]
            // SAFETY: run_on_all calls once per index, so no two live chunks overlap.
            let chunk = unsafe { chunks.get(i) };
            f(i, chunk);
        });
    }

    /// As [`Team::for_each_chunk`] with one scratch value per thread: `f(scratch, chunk_index, chunk)`.
    ///
    /// # Panics
    /// As [`Team::for_each_chunk`]; if `scratch` has fewer values than the team has threads.
    pub fn for_each_chunk_with<S: Send, T: Send>(
        &self,
        scratch: &mut [S],
        out: &mut [T],
        chunk_len: usize,
        f: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        assert!(scratch.len() >= self.threads(), "one scratch value per thread is needed");
        let chunks = Chunks::new(out, chunk_len);
        let scratch = Chunks::new(scratch, 1);
        self.run_on_all(chunks.count(), |thread, i| {
            #[expect(unsafe_code, reason = "disjoint chunks of one slice, one scratch value per thread")]
            // SAFETY: run_on_all calls once per index i, and a thread makes its calls one after the other.
            let (chunk, scratch) = unsafe { (chunks.get(i), scratch.get(thread)) };
            f(&mut scratch[0], i, chunk);
        });
    }

    /// Calls `f(thread, i)` once for each i; calls with the same `thread` never overlap in time.
    fn run_on_all(&self, n_jobs: usize, f: impl Fn(usize, usize) + Sync) {
        float_env::assert_default();
        if self.workers.is_empty() || n_jobs <= 1 {
            (0..n_jobs).for_each(|i| f(0, i));
            return;
        }
        let next = AtomicUsize::new(0);
        let share = |thread: usize| {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n_jobs {
                    return;
                }
                f(thread, i);
            }
        };
        self.barrier(&share);
    }

    /// Runs `job(thread)` on the caller and on every worker that comes before the caller is through; returns when none
    /// is active. A job must leave its work to whoever comes, in pieces.
    fn barrier(&self, job: Job<'_>) {
        let shared = &*self.shared;
        #[expect(unsafe_code, reason = "lends a borrowed job to the workers")]
        // SAFETY: the last job is closed, no worker is active and Team is not Sync, so nothing else accesses the slot.
        // The erased lifetime ends before this function returns: it closes the job and waits for the active workers,
        // and the caller's own part is run under catch_unwind.
        unsafe {
            let job = std::mem::transmute::<Job<'_>, Job<'static>>(job);
            *shared.slot.get() = Some(Slot { job, caller: thread::current() });
        }
        let epoch = State(shared.state.load(Ordering::Relaxed)).epoch().wrapping_add(1);
        shared.state.store(State::opened(epoch).0, Ordering::SeqCst);
        self.wake_parked();
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        shared.state.fetch_and(!State::OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while State(shared.state.load(Ordering::Acquire)).active() != 0 {
            if spins < shared.spins {
                spins += 1;
                std::hint::spin_loop();
            } else {
                thread::park();
            }
        }
        let theirs = shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(payload) = own.err().or(theirs) {
            resume_unwind(payload);
        }
    }

    fn wake_parked(&self) {
        for (parked, worker) in self.shared.parked.iter().zip(&self.workers) {
            if parked.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // The next number, but not open: workers notice the change and find nothing to do but to stop.
        self.shared.state.fetch_add(1 << 32, Ordering::SeqCst);
        self.wake_parked();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs; it has none of its own to report.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of worker `i`.
    fn work(&self, i: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_epoch(i, seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if self.enter(seen) {
                self.take_part(i + 1);
            }
        }
    }

    /// Becomes active in job `epoch`, unless it is over.
    fn enter(&self, epoch: u32) -> bool {
        let enter = |state| {
            let state = State(state);
            (state.is_open() && state.epoch() == epoch).then_some(state.0 + 1)
        };
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).is_ok()
    }

    /// Runs the open job as thread `thread`, which is active.
    fn take_part(&self, thread: usize) {
        #[expect(unsafe_code, reason = "reads the slot of the open job")]
        // SAFETY: this worker is active: the caller leaves the slot alone until it is not.
        let slot = unsafe { (*self.slot.get()).as_ref() };
        let slot = slot.expect("an open job is in the slot");
        let caller = slot.caller.clone();
        let result = catch_unwind(AssertUnwindSafe(|| {
            float_env::assert_default();
            (slot.job)(thread);
        }));
        if let Err(payload) = result {
            self.panic.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(payload);
        }
        let before = State(self.state.fetch_sub(1, Ordering::AcqRel));
        if !before.is_open() && before.active() == 1 {
            caller.unpark();
        }
    }

    /// Returns the number of the current job once it differs from `seen`.
    fn wait_for_epoch(&self, i: usize, seen: u32) -> u32 {
        for _ in 0..self.spins {
            let epoch = State(self.state.load(Ordering::Acquire)).epoch();
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        loop {
            // SeqCst on both sides: either this load sees the new number or the caller's swap sees the flag.
            self.parked[i].store(true, Ordering::SeqCst);
            let epoch = State(self.state.load(Ordering::SeqCst)).epoch();
            if epoch != seen {
                self.parked[i].store(false, Ordering::Relaxed);
                return epoch;
            }
            thread::park();
        }
    }
}

/// A slice cut into chunks that several threads take one by one.
struct Chunks<'a, T> {
    start: *mut T,
    len: usize,
    chunk_len: usize,
    slice: PhantomData<&'a mut [T]>,
}

#[expect(unsafe_code, reason = "hands out disjoint parts of a mutable slice")]
// SAFETY: the only access is `get`, whose contract makes the parts disjoint; a part moves to another thread, hence Send.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    fn new(slice: &'a mut [T], chunk_len: usize) -> Self {
        assert!(chunk_len > 0 || slice.is_empty(), "chunk_len is 0");
        Chunks { start: slice.as_mut_ptr(), len: slice.len(), chunk_len: chunk_len.max(1), slice: PhantomData }
    }

    fn count(&self) -> usize {
        self.len.div_ceil(self.chunk_len)
    }

    /// # Safety
    /// While a chunk is alive no other call may ask for the same `i`.
    #[expect(unsafe_code, reason = "hands out disjoint parts of a mutable slice")]
    unsafe fn get(&self, i: usize) -> &'a mut [T] {
        assert!(i < self.count());
        let from = i * self.chunk_len;
        let len = self.chunk_len.min(self.len - from);
        // SAFETY: from + len <= self.len, the slice is borrowed for 'a, and the contract excludes a second reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
