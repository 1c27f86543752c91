//! Speed of the kernels of every instruction set on this machine, next to the bandwidth of its memory.
//!
//! `cargo run --release -p assay-num --example kernel_speed -- [threads [format [tokens]]]`: with a format, only its products.
//!
//! Each figure is the best of several short runs, because other work on the machine only ever makes a
//! run slower. With one thread, time is the CPU time of the thread where Linux tells it; else the wall clock. Outputs are compared between instruction sets: a fast wrong answer is no result.

use std::hint::black_box;
use std::time::Instant;

use assay_num::sample::{MICRO, SampleParams, SampleScratch, pick};
use assay_num::{
    Acts, AttendScratch, Isa, KV_CHUNK, Kernels, KvChunk, Matrix, MatrixError, Team, f16, read_memory, scalar,
};

const ROWS: usize = 4096;
const K: usize = 4096;
/// Together far beyond the caches.
const MATRICES: usize = 12;

fn main() {
    let team = Team::new(threads());
    let mut rng = Rng(0x1234_5678_9abc_def1);
    println!("{} threads, matrices of {ROWS} x {K}", team.threads());
    read_bandwidth(&team);
    let only = std::env::args().nth(2);
    if only.is_none() {
        barrier(&team);
        elementwise(&mut rng);
        sampling(&mut rng);
        attention(&mut rng);
    }
    let wanted = |name: &str| only.as_ref().is_none_or(|only| only == name);
    if wanted("Q8_0") {
        q8_products(&team, &mut rng);
    }
    for (name, block_bytes, load) in K_FORMATS.into_iter().filter(|(name, ..)| wanted(name)) {
        let bytes = k_bytes(block_bytes, &mut rng);
        let load = || load(ROWS, K, &bytes).expect("the shape is right");
        let seconds = best(2, || drop(black_box(load())));
        println!("{name} repacking         {:7.1} GB/s", bytes.len() as f64 / seconds / 1e9);
        let matrices: Vec<Matrix> = (0..MATRICES).map(|_| load()).collect();
        products(&team, name, &matrices, &BATCHES, &mut rng);
    }
    if wanted("F16") {
        let matrices: Vec<Matrix> = (0..MATRICES / 2).map(|_| f16_matrix(&mut rng)).collect();
        products(&team, "F16", &matrices, &[1, 4, 16, 64], &mut rng);
    }
}

const BATCHES: [usize; 8] = [1, 2, 3, 4, 8, 16, 64, 256];

fn q8_products(team: &Team, rng: &mut Rng) {
    let bytes = q8_bytes(rng);
    let load = || Matrix::from_q8_0(ROWS, K, &bytes).expect("the shape is right");
    let seconds = best(5, || drop(black_box(load())));
    println!("Q8_0 repacking         {:7.1} GB/s", bytes.len() as f64 / seconds / 1e9);
    let q8: Vec<Matrix> = (0..MATRICES).map(|_| load()).collect();
    products(team, "Q8_0", &q8, &BATCHES, rng);
}

/// Seconds of the fastest of `n` runs.
fn best(n: usize, mut run: impl FnMut()) -> f64 {
    (0..n)
        .map(|_| {
            let (wall, cpu) = (Instant::now(), cpu_seconds());
            run();
            match (cpu, cpu_seconds()) {
                (Some(before), Some(after)) => after - before,
                _ => wall.elapsed().as_secs_f64(),
            }
        })
        .fold(f64::INFINITY, f64::min)
}

/// CPU time of this thread; none if it is not the only one or the system does not tell.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn cpu_seconds() -> Option<f64> {
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    #[repr(C)]
    struct Timespec {
        seconds: i64,
        nanoseconds: i64,
    }
    #[expect(unsafe_code, reason = "std has no clock of CPU time")]
    // SAFETY: the declaration is that of POSIX on 64-bit Linux; std links the C library.
    unsafe extern "C" {
        safe fn clock_gettime(clock: i32, time: &mut Timespec) -> i32;
    }
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    if threads() > 1 || clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut time) != 0 {
        return None;
    }
    Some(time.seconds as f64 + time.nanoseconds as f64 * 1e-9)
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn cpu_seconds() -> Option<f64> {
    None
}

fn threads() -> usize {
    std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(1)
}

fn all_kernels() -> impl Iterator<Item = Kernels> {
    Isa::available().into_iter().filter_map(Kernels::with_isa)
}

fn read_bandwidth(team: &Team) {
    let lines = vec![[1u64; 8]; 1 << 22];
    let seconds = best(15, || read_memory(team, &lines));
    println!("memory read            {:7.1} GB/s", size_of_val(&lines[..]) as f64 / seconds / 1e9);
}

/// What the smallest job costs when all threads have something to do.
fn barrier(team: &Team) {
    let seconds = best(50, || {
        (0..100).for_each(|_| {
            team.run(team.threads().max(2), |i| {
                black_box(i);
            })
        })
    }) / 100.0;
    println!("smallest job of the team {:5.2} us", seconds * 1e6);
}

fn products(team: &Team, name: &str, matrices: &[Matrix], batches: &[usize], rng: &mut Rng) {
    let most = batches.iter().fold(1, |a, &b| a.max(b));
    let x: Vec<f32> = (0..most * K).map(|_| rng.float() * 4.0).collect();
    let kind = matrices[0].act_kind();
    let only = std::env::args().nth(3).and_then(|m| m.parse().ok());
    for &m in batches.iter().filter(|m| only.is_none_or(|only: usize| only == **m)) {
        let mut first: Option<Vec<f32>> = None;
        for kernels in all_kernels() {
            // The definition takes minutes on the large batches.
            if kernels.isa() == Isa::Scalar && m > 1 {
                continue;
            }
            let (mut acts, mut out) = (Acts::new(), vec![0.0; m * ROWS]);
            let mut next = 0;
            let seconds = if m == 1 {
                kernels.prepare(team, &x[..K], 1, K, kind, &mut acts);
                let runs = if kernels.isa() == Isa::Scalar { 1 } else { 15 };
                best(runs, || matrices.iter().for_each(|matrix| kernels.matmul(team, matrix, &acts, &mut out)))
                    / matrices.len() as f64
            } else {
                best(if m > 16 { 8 } else { 24 }, || {
                    kernels.prepare(team, &x[..m * K], m, K, kind, &mut acts);
                    kernels.matmul(team, &matrices[next % matrices.len()], &acts, &mut out);
                    next += 1;
                })
            };
            kernels.matmul(team, &matrices[0], &acts, &mut out);
            let same =
                first.get_or_insert_with(|| out.clone()).iter().zip(&out).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{} computes other bits", kernels.isa());
            let gb = matrices[0].bytes() as f64 / seconds / 1e9;
            let gop = 2.0 * (ROWS * K * m) as f64 / seconds / 1e9;
            println!("{name:5} M={m:<4} {:10} {gb:7.1} GB/s of weights {gop:8.1} GOP/s", kernels.isa().to_string());
        }
    }
}

fn elementwise(rng: &mut Rng) {
    let team = Team::new(1);
    let x: Vec<f32> = (0..K).map(|_| rng.float() * 8.0).collect();
    for kernels in all_kernels() {
        let (mut out, mut acts) = (vec![0.0; K], Acts::new());
        let per = |seconds: f64| K as f64 * 100.0 / seconds / 1e9;
        let exp = best(20, || (0..100).for_each(|_| kernels.exp(black_box(&x), &mut out)));
        let silu = best(20, || (0..100).for_each(|_| kernels.silu_mul(black_box(&x), &x, &mut out)));
        let norm = best(20, || (0..100).for_each(|_| kernels.rms_norm(black_box(&x), &x, 1e-5, &mut out)));
        let quantize = best(20, || {
            (0..100).for_each(|_| kernels.prepare(&team, black_box(&x), 1, K, assay_num::ActKind::Q8, &mut acts));
        });
        println!(
            "{:10} 10^9 values/s: exp {:.2}, silu_mul {:.2}, rms_norm {:.2}, quantize {:.2}",
            kernels.isa().to_string(),
            per(exp),
            per(silu),
            per(norm),
            per(quantize)
        );
    }
}

fn sampling(rng: &mut Rng) {
    let logits: Vec<f32> = (0..128_000).map(|_| rng.float() * 6.0).collect();
    let mut scratch = SampleScratch::new();
    print!("sampling of 128,000 logits, us:");
    for (name, temperature_micro, top_p_micro, top_k) in [
        ("greedy", 0, MICRO, 0),
        ("plain", MICRO, MICRO, 0),
        ("top-p 0.9", MICRO, 900_000, 0),
        ("top-k 40", MICRO, MICRO, 40),
    ] {
        let params = SampleParams { temperature_micro, top_p_micro, top_k, min_p_micro: 0, seed: 1 };
        let seconds = best(20, || {
            black_box(pick(&logits, &params, 0, &mut scratch)).expect("the logits are finite");
        });
        print!("  {name} {:.0}", seconds * 1e6);
    }
    println!();
}

/// One kv head of 128 dimensions, 2048 positions: one query, a group of four, a block of 32 prompt tokens.
fn attention(rng: &mut Rng) {
    let (head_dim, n) = (128, 2048);
    let data: Vec<u16> = (0..2 * n * head_dim).map(|_| f16::from_f32_rne(rng.float())).collect();
    let (k, v) = data.split_at(n * head_dim);
    let chunk = KV_CHUNK * head_dim;
    let chunks: Vec<KvChunk<'_>> =
        k.chunks_exact(chunk).zip(v.chunks_exact(chunk)).map(|(k, v)| KvChunk { k, v }).collect();
    for kernels in all_kernels() {
        print!("{:10} attention GFLOP/s:", kernels.isa().to_string());
        for queries in [1, 4, 32] {
            let q: Vec<f32> = (0..queries * head_dim).map(|_| rng.float()).collect();
            let n_keys: Vec<usize> = (0..queries).map(|i| n - queries + 1 + i).collect();
            let (mut out, mut scratch) = (vec![0.0; q.len()], AttendScratch::new());
            let runs = if kernels.isa() == Isa::Scalar { 1 } else { 40 };
            let seconds = best(runs, || kernels.attend_many(&q, &n_keys, &chunks, 0.09, &mut scratch, &mut out));
            print!("  {queries} queries {:.1}", 4.0 * (queries * head_dim * n) as f64 / seconds / 1e9);
        }
        println!();
    }
}

fn q8_bytes(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ROWS * K / 32 * 34);
    for _ in 0..ROWS * K / 32 {
        bytes.extend(f16::from_f32_rne(0.002 + 0.01 * rng.float().abs()).to_le_bytes());
        bytes.extend((0..4).flat_map(|_| rng.next().to_le_bytes()).map(|q| (q as i8).max(-127) as u8));
    }
    bytes
}

/// Name, bytes of a super-block, loader.
type KFormat = (&'static str, usize, fn(usize, usize, &[u8]) -> Result<Matrix, MatrixError>);

const K_FORMATS: [KFormat; 3] = [
    ("Q4_K", scalar::Q4_K_BYTES, Matrix::from_q4_k),
    ("Q5_K", scalar::Q5_K_BYTES, Matrix::from_q5_k),
    ("Q6_K", scalar::Q6_K_BYTES, Matrix::from_q6_k),
];

/// Random super-blocks, their scales small: both places of scales are overwritten, whichever the format has.
fn k_bytes(block_bytes: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..ROWS * K / scalar::SUPER_BLOCK * block_bytes / 8 + 1).flat_map(|_| rng.next().to_le_bytes()).collect();
    bytes.truncate(ROWS * K / scalar::SUPER_BLOCK * block_bytes);
    let d = f16::from_f32_rne(0.001).to_le_bytes();
    for block in bytes.chunks_exact_mut(block_bytes) {
        block[..2].copy_from_slice(&d);
        block[2..4].copy_from_slice(&d);
        block[block_bytes - 2..].copy_from_slice(&d);
    }
    bytes
}

fn f16_matrix(rng: &mut Rng) -> Matrix {
    let bytes: Vec<u8> = (0..ROWS * K).flat_map(|_| f16::from_f32_rne(rng.float() * 0.05).to_le_bytes()).collect();
    Matrix::from_f16(ROWS, K, &bytes).expect("the shape is right")
}

/// xorshift64*.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in -1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
