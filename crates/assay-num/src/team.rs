//! A fixed team of threads that computes one job at a time together with its caller.
//!
//! Owns the threads, the barrier at the start and end of each job, and the splitting of outputs into
//! disjoint chunks. Which thread computes which chunk is left to chance (a slow core takes fewer);
//! no result may depend on it, and none can: a chunk is written by exactly one call.
//!
//! ```text
//! caller:  publish job, epoch += 1, wake the parked | takes part | waits until running == 0
//! worker:  spins, then parks, until epoch changes   | takes part | running -= 1, wakes the caller
//! ```

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};

use crate::float_env;

/// Most threads a team may have.
pub const MAX_THREADS: usize = 256;

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
    /// Raised by one for every job.
    epoch: AtomicUsize,
    /// Workers that have not finished the current job.
    running: AtomicUsize,
    stop: AtomicBool,
    spins: usize,
    parked: Vec<AtomicBool>,
    /// Written by the caller while no worker runs, read by workers after they saw the new epoch.
    slot: UnsafeCell<Option<Slot>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct Slot {
    /// The lifetime is erased; `Team::run_on_all` does not return before every worker is done with it.
    job: Job<'static>,
    caller: Thread,
}

#[expect(unsafe_code, reason = "the job slot is shared under the epoch protocol")]
// SAFETY: `slot` is the only field that is not Sync by itself. The caller writes it only while
// `running == 0`, before it raises `epoch` (SeqCst); a worker reads it only after it saw the raised epoch and
// before it lowers `running` (AcqRel). `Team` is not Sync, so there is one caller at a time. The job is `Sync`.
unsafe impl Sync for Shared {}

impl Team {
    /// A team of `n_threads` (clamped to 1..=[`MAX_THREADS`]), the caller included: `n_threads - 1` threads start.
    ///
    /// # Panics
    /// If the operating system refuses a thread.
    pub fn new(n_threads: usize) -> Team {
        let n_workers = n_threads.clamp(1, MAX_THREADS) - 1;
        let cores = thread::available_parallelism().map_or(1, |n| n.get());
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            // With more threads than cores a spinning thread keeps the one it waits for from running.
            spins: if n_workers < cores { SPINS } else { 0 },
            parked: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
            slot: UnsafeCell::new(None),
            panic: Mutex::new(None),
        });
        let workers = (0..n_workers)
            .map(|i| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("assay-num-{}", i + 1))
                    .spawn(move || shared.work(i))
                    .expect("the operating system refused a thread")
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

    /// Runs `job(thread)` on every thread and returns when all are done.
    fn barrier(&self, job: Job<'_>) {
        let shared = &*self.shared;
        #[expect(unsafe_code, reason = "lends a borrowed job to the workers")]
        // SAFETY: no worker runs (`running` is 0 between jobs and Team is not Sync), so nothing else accesses the slot.
        // The erased lifetime ends before this function returns: it waits for `running == 0`, and the caller's own
        // part is run under catch_unwind.
        unsafe {
            let job = std::mem::transmute::<Job<'_>, Job<'static>>(job);
            *shared.slot.get() = Some(Slot { job, caller: thread::current() });
        }
        shared.running.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.wake_parked();
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        let mut spins = 0;
        while shared.running.load(Ordering::Acquire) != 0 {
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
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
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
            #[expect(unsafe_code, reason = "reads the job slot of this epoch")]
            // SAFETY: this worker saw the epoch raised and has not lowered `running`: the caller leaves the slot alone.
            let slot = unsafe { (*self.slot.get()).as_ref() };
            let Some(slot) = slot else { return };
            let caller = slot.caller.clone();
            let result = catch_unwind(AssertUnwindSafe(|| {
                float_env::assert_default();
                (slot.job)(i + 1);
            }));
            if let Err(payload) = result {
                self.panic.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(payload);
            }
            if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                caller.unpark();
            }
        }
    }

    /// Returns the new epoch once it differs from `seen`.
    fn wait_for_epoch(&self, i: usize, seen: usize) -> usize {
        for _ in 0..self.spins {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        loop {
            // SeqCst on both sides: either this load sees the new epoch or the caller's swap sees the flag.
            self.parked[i].store(true, Ordering::SeqCst);
            let epoch = self.epoch.load(Ordering::SeqCst);
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
