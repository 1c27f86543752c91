//! Vectors for the arithmetic that a contract repeats: what each instruction of canonical-1 gives for operands drawn
//! from a seed.
//!
//! Owns the list of instructions, the operands and the results, which are Rust's own IEEE operations and the definitions
//! of `assay_num::scalar`. A record is the operands followed by the result, a big-endian u32; a number among the
//! operands is a big-endian u32 as well, weights are bytes as in a file. Record `i` of an instruction follows from its
//! name and `i` alone, so that a longer run begins with the records of a shorter one.
//! Does not know the contract: `contracts/test/Judge*.t.sol` read what this writes.

use alloy_primitives::{B256, hex, keccak256};
use assay_num::{f16, scalar};

/// Records in a file: few enough for the memory of an EVM.
pub const PART: u64 = 4096;

/// An instruction and how its records are made.
pub struct Instruction {
    /// Its name in the files.
    pub name: &'static str,
    /// Bytes of its operands.
    pub operand_len: usize,
    draw: fn(&mut Rng, &mut Vec<u8>),
    result: fn(&Operands<'_>) -> u32,
}

/// Every instruction, in the order of `vectors/judge.json`.
pub const INSTRUCTIONS: &[Instruction] = &[
    Instruction { name: "add", operand_len: 8, draw: draw_pair, result: |x| bits(x.f(0) + x.f(1)) },
    Instruction { name: "sub", operand_len: 8, draw: draw_pair, result: |x| bits(x.f(0) - x.f(1)) },
    Instruction { name: "mul", operand_len: 8, draw: draw_pair, result: |x| bits(x.f(0) * x.f(1)) },
    Instruction { name: "div", operand_len: 8, draw: draw_pair, result: |x| bits(x.f(0) / x.f(1)) },
    Instruction { name: "less", operand_len: 8, draw: draw_pair, result: |x| u32::from(x.f(0) < x.f(1)) },
    Instruction { name: "max", operand_len: 8, draw: draw_pair, result: |x| bits(larger(x.f(0), x.f(1))) },
    Instruction { name: "fma", operand_len: 12, draw: draw_fma, result: |x| bits(scalar::fma(x.f(0), x.f(1), x.f(2))) },
    Instruction { name: "sqrt", operand_len: 4, draw: draw_one, result: |x| bits(x.f(0).sqrt()) },
    Instruction { name: "rint", operand_len: 4, draw: draw_near_integer, result: |x| bits(x.f(0).round_ties_even()) },
    Instruction { name: "fromInt", operand_len: 4, draw: draw_integer, result: |x| bits(x.u(0) as i32 as f32) },
    Instruction { name: "fromHalf", operand_len: 4, draw: draw_half, result: |x| bits(f16::to_f32(x.u(0) as u16)) },
    Instruction { name: "toHalf", operand_len: 4, draw: draw_near_half, result: |x| narrow(x.f(0)) },
    Instruction {
        name: "fromBfloat",
        operand_len: 4,
        draw: draw_half,
        result: |x| bits(f16::bf16_to_f32(x.u(0) as u16)),
    },
    Instruction { name: "exp", operand_len: 4, draw: draw_exponent, result: |x| bits(scalar::exp(x.f(0))) },
    Instruction { name: "silu", operand_len: 4, draw: draw_exponent, result: |x| bits(scalar::silu(x.f(0))) },
    Instruction { name: "gelu", operand_len: 4, draw: draw_exponent, result: |x| bits(scalar::gelu(x.f(0))) },
    Instruction { name: "softcap", operand_len: 8, draw: draw_cap, result: |x| bits(scalar::softcap(x.f(0), x.f(1))) },
    Instruction {
        name: "turnFirst",
        operand_len: 16,
        draw: draw_turn,
        result: |x| bits(scalar::fma(x.f(0), x.f(2), -(x.f(1) * x.f(3)))),
    },
    Instruction {
        name: "turnSecond",
        operand_len: 16,
        draw: draw_turn,
        result: |x| bits(scalar::fma(x.f(0), x.f(3), x.f(1) * x.f(2))),
    },
    Instruction { name: "laneSum", operand_len: 64, draw: draw_lanes, result: |x| bits(scalar::lane_sum(&x.floats())) },
    Instruction {
        name: "inverseRms",
        operand_len: 12,
        draw: draw_mean,
        result: |x| bits(1.0 / (x.f(0) / x.u(1) as f32 + x.f(2)).sqrt()),
    },
    Instruction { name: "quantizeBlock", operand_len: 129, draw: draw_values::<32>, result: quantize_block },
    Instruction {
        name: "quantizeSuperBlock",
        operand_len: 1026,
        draw: draw_values::<256>,
        result: quantize_super_block,
    },
    Instruction { name: "stepQ8", operand_len: 74, draw: |r, out| draw_step(r, out, &[0], 34, 32), result: step_q8 },
    Instruction { name: "stepQ4", operand_len: 58, draw: |r, out| draw_step(r, out, &[0], 18, 32), result: step_q4 },
    Instruction {
        name: "stepQ4K",
        operand_len: 408,
        draw: |r, out| draw_step(r, out, &[0, 2], 144, 256),
        result: step_q4_k,
    },
    Instruction {
        name: "stepQ5K",
        operand_len: 440,
        draw: |r, out| draw_step(r, out, &[0, 2], 176, 256),
        result: step_q5_k,
    },
    Instruction {
        name: "stepQ6K",
        operand_len: 474,
        draw: |r, out| draw_step(r, out, &[208], 210, 256),
        result: step_q6_k,
    },
    Instruction { name: "cellQ8", operand_len: 35, draw: |r, out| draw_cell(r, out, &[0], 34, 32), result: cell_q8 },
    Instruction { name: "cellQ4", operand_len: 19, draw: |r, out| draw_cell(r, out, &[0], 18, 32), result: cell_q4 },
    Instruction {
        name: "cellQ4K",
        operand_len: 145,
        draw: |r, out| draw_cell(r, out, &[0, 2], 144, 256),
        result: cell_q4_k,
    },
    Instruction {
        name: "cellQ5K",
        operand_len: 177,
        draw: |r, out| draw_cell(r, out, &[0, 2], 176, 256),
        result: cell_q5_k,
    },
    Instruction {
        name: "cellQ6K",
        operand_len: 211,
        draw: |r, out| draw_cell(r, out, &[208], 210, 256),
        result: cell_q6_k,
    },
];

impl Instruction {
    /// Bytes of a record.
    pub fn record_len(&self) -> usize {
        self.operand_len + 4
    }

    /// Appends the records `first..first + count` to `out`.
    pub fn append(&self, first: u64, count: u64, out: &mut Vec<u8>) {
        let name = self.name.bytes().fold(0, |seed, byte| mix(seed ^ u64::from(byte)));
        for i in first..first + count {
            let start = out.len();
            let mut rng = Rng(mix(name.wrapping_add(mix(i))));
            (self.draw)(&mut rng, out);
            assert_eq!(out.len() - start, self.operand_len, "operands of {}", self.name);
            let result = (self.result)(&Operands(&out[start..]));
            out.extend(result.to_be_bytes());
        }
    }

    /// The records of file number `part` of a run of `count` records.
    pub fn part(&self, part: u64, count: u64) -> Vec<u8> {
        let first = part * PART;
        let mut records = vec![];
        self.append(first, PART.min(count.saturating_sub(first)), &mut records);
        records
    }

    /// Hash of the first `count` records: from zero, over the files, `hash = keccak(hash || keccak(file))`.
    pub fn hash(&self, count: u64) -> B256 {
        (0..count.div_ceil(PART))
            .fold(B256::ZERO, |hash, part| keccak256([hash, keccak256(self.part(part, count))].concat()))
    }
}

/// Records that are checked in every run of the tests: fewer where one costs a contract 20,000 gas and more.
pub fn ci_count(instruction: &Instruction) -> u64 {
    if instruction.operand_len < 100 { 100_000 } else { 8_192 }
}

/// Contents of `vectors/judge.json`.
pub fn golden_json() -> String {
    let rows: Vec<String> = INSTRUCTIONS
        .iter()
        .map(|instruction| {
            let mut golden = vec![];
            instruction.append(0, if instruction.operand_len < 100 { 64 } else { 16 }, &mut golden);
            let count = ci_count(instruction);
            format!(
                "    {{\"name\": \"{}\", \"operandBytes\": {}, \"count\": {count}, \"keccak\": \"{}\",\n     \"golden\": \"{}\"}}",
                instruction.name,
                instruction.operand_len,
                instruction.hash(count),
                hex::encode_prefixed(golden),
            )
        })
        .collect();
    format!("{{\n  \"instructions\": [\n{}\n  ]\n}}\n", rows.join(",\n"))
}

/// Bits of a result; there is one NaN.
fn bits(value: f32) -> u32 {
    if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() }
}

fn narrow(value: f32) -> u32 {
    if value.is_nan() { 0x7e00 } else { u32::from(f16::from_f32_rne(value)) }
}

fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The operands of one record.
struct Operands<'a>(&'a [u8]);

impl Operands<'_> {
    fn u(&self, i: usize) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|j| self.0[4 * i + j]))
    }

    fn f(&self, i: usize) -> f32 {
        f32::from_bits(self.u(i))
    }

    fn floats<const N: usize>(&self) -> [f32; N] {
        std::array::from_fn(|i| self.f(i))
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[at + i])
    }

    /// acc at the beginning, the weights behind it, then N activations and their scale.
    fn acts<const N: usize>(&self, at: usize) -> ([i8; N], f32) {
        let scale = f32::from_bits(u32::from_be_bytes(self.bytes(at + N)));
        (self.bytes::<N>(at).map(|q| q as i8), scale)
    }
}

// ------------------------------------------------------------------ results

fn quantize_block(x: &Operands<'_>) -> u32 {
    let (q, d) = scalar::quantize_block(&x.floats());
    match usize::from(x.0[128]) {
        32 => bits(d),
        i => u32::from(q[i] as u8),
    }
}

fn quantize_super_block(x: &Operands<'_>) -> u32 {
    let (q, d) = scalar::quantize_super_block(&x.floats());
    match usize::from(u16::from_be_bytes(x.bytes(1024))) {
        256 => bits(d),
        i => u32::from(q[i] as u8),
    }
}

fn signed<const N: usize>(bytes: [u8; N]) -> [i8; N] {
    bytes.map(|b| b as i8)
}

/// A step on top of `acc`: the definition starts from +0, so a first block stands for what came before. Its product is
/// `acc * 1` (the scales are 1 and the sum cannot be any f32), hence the definition's own expression is used instead.
fn block_step(acc: f32, w: &[i8; 32], d: u16, acts: ([i8; 32], f32)) -> u32 {
    let isum: i32 = w.iter().zip(&acts.0).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
    let step = scalar::fma(isum as f32, f16::to_f32(d) * acts.1, acc);
    if acc.to_bits() == 0 {
        let whole = scalar::q8_dot(&[(*w, d)], &[acts]);
        assert_eq!(bits(whole), bits(step), "a step from +0 is a row of one block");
    }
    bits(step)
}

fn super_step(acc: f32, block: &scalar::SuperBlock, acts: ([i8; 256], f32)) -> u32 {
    let (mut isum, mut msum) = (0i32, 0i32);
    for (i, (&q, &x)) in block.q.iter().zip(&acts.0).enumerate() {
        isum += i32::from(block.scales[i / 16]) * i32::from(q) * i32::from(x);
        msum += i32::from(block.mins[i / 16]) * i32::from(x);
    }
    let step = scalar::fma(isum as f32, f16::to_f32(block.d) * acts.1, acc);
    let step = if block.mins == [0; 16] && block.dmin == 0 {
        step
    } else {
        scalar::fma(-(msum as f32), f16::to_f32(block.dmin) * acts.1, step)
    };
    // No quantizer gives an infinite scale; with one, the definition's second step of Q6_K would not change nothing.
    if acc.to_bits() == 0 && !acts.1.is_infinite() {
        let whole = scalar::k_dot(std::slice::from_ref(block), &[acts]);
        assert_eq!(bits(whole), bits(step), "a step from +0 is a row of one super-block");
    }
    bits(step)
}

fn nibbles(bytes: [u8; 16]) -> [i8; 32] {
    std::array::from_fn(|i| (bytes[i % 16] >> (4 * (i / 16)) & 15) as i8 - 8)
}

fn step_q8(x: &Operands<'_>) -> u32 {
    block_step(x.f(0), &signed(x.bytes(6)), u16::from_le_bytes(x.bytes(4)), x.acts(38))
}

fn step_q4(x: &Operands<'_>) -> u32 {
    block_step(x.f(0), &nibbles(x.bytes(6)), u16::from_le_bytes(x.bytes(4)), x.acts(22))
}

fn step_q4_k(x: &Operands<'_>) -> u32 {
    super_step(x.f(0), &scalar::SuperBlock::from_q4_k(&x.bytes(4)), x.acts(148))
}

fn step_q5_k(x: &Operands<'_>) -> u32 {
    super_step(x.f(0), &scalar::SuperBlock::from_q5_k(&x.bytes(4)), x.acts(180))
}

fn step_q6_k(x: &Operands<'_>) -> u32 {
    super_step(x.f(0), &scalar::SuperBlock::from_q6_k(&x.bytes(4)), x.acts(214))
}

fn cell_q8(x: &Operands<'_>) -> u32 {
    let q = signed::<32>(x.bytes(2))[usize::from(x.0[34])];
    bits(f32::from(q) * f16::to_f32(u16::from_le_bytes(x.bytes(0))))
}

fn cell_q4(x: &Operands<'_>) -> u32 {
    let q = nibbles(x.bytes(2))[usize::from(x.0[18])];
    bits(f32::from(q) * f16::to_f32(u16::from_le_bytes(x.bytes(0))))
}

fn cell_of(block: &scalar::SuperBlock, i: u8) -> u32 {
    let mut cells = [0.0; 256];
    block.to_f32(&mut cells);
    bits(cells[usize::from(i)])
}

fn cell_q4_k(x: &Operands<'_>) -> u32 {
    cell_of(&scalar::SuperBlock::from_q4_k(&x.bytes(0)), x.0[144])
}

fn cell_q5_k(x: &Operands<'_>) -> u32 {
    cell_of(&scalar::SuperBlock::from_q5_k(&x.bytes(0)), x.0[176])
}

fn cell_q6_k(x: &Operands<'_>) -> u32 {
    cell_of(&scalar::SuperBlock::from_q6_k(&x.bytes(0)), x.0[210])
}

// ------------------------------------------------------------------ operands

/// SplitMix64.
struct Rng(u64);

fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Magnitudes at which something changes: zero, the ends of the subnormals, one, the largest, infinity, NaN, the ends of
/// exp, where binary16 begins, has its subnormals and ends.
const EDGES: [u32; 22] = [
    0,
    1,
    2,
    0x007f_ffff,
    0x0080_0000,
    0x0080_0001,
    0x3f7f_ffff,
    0x3f80_0000,
    0x3f80_0001,
    0x3f00_0000,
    0x7f7f_ffff,
    0x7f7f_fffe,
    0x7f80_0000,
    0x7fc0_0000,
    0x42b1_7217,
    0x42b1_7218,
    0x42ae_ac4f,
    0x42ae_ac50,
    0x3300_0000,
    0x3880_0000,
    0x477f_f000,
    0x477f_efff,
];

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Any bits, an edge, a number of few mantissa bits (these make ties), or one of everyday size.
    fn float(&mut self) -> u32 {
        let any = self.next() as u32;
        let sign = any & 0x8000_0000;
        match self.below(8) {
            0 | 1 => any,
            2 => sign | EDGES[self.below(EDGES.len() as u64) as usize],
            3 => any & 0xffff_0000 & !(0x7f_ffff >> self.below(8)),
            4 => sign | any & 0x00ff_ffff,
            _ => sign | ((107 + self.below(40) as u32) << 23) | any & 0x7f_ffff,
        }
    }

    /// Within `low..high`, both small.
    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.below(1 << 24) as f32 / 16_777_216.0)
    }
}

fn put(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_be_bytes());
}

fn draw_one(rng: &mut Rng, out: &mut Vec<u8>) {
    let x = rng.float();
    // Of a negative number there is no root: half as many of them.
    put(out, if rng.below(2) == 0 { x & 0x7fff_ffff } else { x });
}

/// Two numbers; often near each other, so that a sum cancels.
fn draw_pair(rng: &mut Rng, out: &mut Vec<u8>) {
    let a = rng.float();
    let b = match rng.below(4) {
        0 => (a ^ (rng.below(2) as u32) << 31).wrapping_add(rng.below(5) as u32).wrapping_sub(2),
        1 => a.wrapping_add((rng.below(51) as u32).wrapping_sub(25) << 23) ^ (rng.next() as u32 & 0x807f_ffff),
        _ => rng.float(),
    };
    put(out, a);
    put(out, b);
}

/// Three numbers; in half of the cases the third is about as large as the product of the others, or half a unit in its
/// last place away from what it would take to round the other way.
fn draw_fma(rng: &mut Rng, out: &mut Vec<u8>) {
    let (a, b) = (rng.float(), rng.float());
    let product = (f32::from_bits(a) * f32::from_bits(b)).to_bits();
    let c = match rng.below(6) {
        0 => (product ^ 0x8000_0000).wrapping_add(rng.below(5) as u32).wrapping_sub(2),
        1 => product.wrapping_add((rng.below(61) as u32).wrapping_sub(30) << 23) ^ (rng.below(2) as u32) << 31,
        2 => product.wrapping_add(24 << 23) & 0xff80_0000 | rng.below(4) as u32,
        _ => rng.float(),
    };
    put(out, a);
    put(out, b);
    put(out, c);
}

fn draw_near_integer(rng: &mut Rng, out: &mut Vec<u8>) {
    let half = (rng.below(1 << 26) as i64 - (1 << 25)) as f32 * 0.5;
    let scaled = half / (1u32 << rng.below(24)) as f32;
    let x = match rng.below(4) {
        0 => rng.float(),
        1 => ((scaled as i32) as f32 + 0.5).to_bits().wrapping_add(rng.below(3) as u32).wrapping_sub(1),
        2 => half.to_bits(),
        _ => scaled.to_bits(),
    };
    put(out, x);
}

/// i32 of every length, many of them half way between two f32.
fn draw_integer(rng: &mut Rng, out: &mut Vec<u8>) {
    let any = rng.next() as u32;
    let length = rng.below(32) as u32;
    let short = any >> length;
    let tie = (short | 1 << 31 >> length) & !(0x7f >> rng.below(8)) | (rng.below(2) as u32) << rng.below(8);
    let magnitude = match rng.below(4) {
        0 => any,
        1 => tie,
        2 => [0, 1, 0x7fff_ffff, 0x8000_0000, 0x00ff_ffff, 0x0100_0000, 0x0100_0001][rng.below(7) as usize],
        _ => short,
    };
    put(out, if rng.below(2) == 0 { magnitude } else { magnitude.wrapping_neg() });
}

fn draw_half(rng: &mut Rng, out: &mut Vec<u8>) {
    put(out, rng.next() as u32 & 0xffff);
}

/// Half way between two binary16, one unit of f32 to either side, and anything else.
fn draw_near_half(rng: &mut Rng, out: &mut Vec<u8>) {
    let low = rng.below(0x7bff) as u16;
    let (a, b) = (f16::to_f32(low), f16::to_f32(low + 1));
    let middle = (a + (b - a) * 0.5).to_bits();
    let sign = (rng.below(2) as u32) << 31;
    put(
        out,
        match rng.below(4) {
            0 => rng.float(),
            1 => a.to_bits() | sign,
            2 => middle | sign,
            _ => middle.wrapping_add(rng.below(3) as u32).wrapping_sub(1) | sign,
        },
    );
}

fn draw_exponent(rng: &mut Rng, out: &mut Vec<u8>) {
    let x = match rng.below(4) {
        0 => rng.float(),
        1 => rng.between(-1.0, 1.0).to_bits(),
        2 => (rng.below(256) as f32 * std::f32::consts::LN_2 - 88.0).to_bits().wrapping_add(rng.below(7) as u32),
        _ => rng.between(-100.0, 100.0).to_bits(),
    };
    put(out, x);
}

fn draw_cap(rng: &mut Rng, out: &mut Vec<u8>) {
    let cap = [30.0, 50.0, 1e-3, 1e6, 1.0][rng.below(5) as usize];
    let cap = if rng.below(2) == 0 { cap } else { rng.between(0.001, 100.0) };
    let x = match rng.below(4) {
        0 => rng.float(),
        1 => (cap * rng.between(-50.0, 50.0)).to_bits(),
        _ => (cap * rng.between(-3.0, 3.0)).to_bits(),
    };
    put(out, x);
    put(out, cap.to_bits());
}

/// A pair and the cosine and sine of some angle, or four numbers.
fn draw_turn(rng: &mut Rng, out: &mut Vec<u8>) {
    let wild = rng.below(4) == 0;
    put(out, rng.float());
    put(out, rng.float());
    for _ in 0..2 {
        let turn = if wild { rng.float() } else { rng.between(-1.0, 1.0).to_bits() };
        put(out, turn);
    }
}

fn draw_lanes(rng: &mut Rng, out: &mut Vec<u8>) {
    let wild = rng.below(4) == 0;
    for _ in 0..16 {
        let lane = if wild { rng.float() } else { rng.between(-64.0, 64.0).to_bits() };
        put(out, lane);
    }
}

fn draw_mean(rng: &mut Rng, out: &mut Vec<u8>) {
    let sum = if rng.below(4) == 0 { rng.float() } else { rng.between(0.0, 100_000.0).to_bits() };
    let eps = [1e-5f32, 1e-6, 1e-12, 1.0][rng.below(4) as usize];
    put(out, sum);
    put(out, 1 + rng.below(1 << 16) as u32);
    put(out, eps.to_bits());
}

/// N activations of one scale, in one of eight cases of any; then which of the results is asked for, N standing for the
/// scale. In a quarter, values are multiples of half a unit of the scale: ties of the rounding.
fn draw_values<const N: usize>(rng: &mut Rng, out: &mut Vec<u8>) {
    let (kind, exponent) = (rng.below(8), rng.below(60) as i32 - 40);
    let unit = 2f32.powi(exponent);
    for i in 0..N {
        let value = match kind {
            0 => rng.float(),
            // Scales of activations this small are subnormal, in binary16 and in f32.
            1 => rng.float() & 0x80ff_ffff | (rng.below(120) as u32) << 23,
            2 | 3 if i == 0 => (127.0 * unit).to_bits(),
            2 | 3 => ((rng.below(509) as f32 - 254.0) * 0.5 * unit).to_bits(),
            _ => (rng.between(-1.0, 1.0) * unit).to_bits(),
        };
        // A value that is not finite in most blocks would leave nothing to test.
        put(out, if value & 0x7f80_0000 == 0x7f80_0000 && rng.below(64) != 0 { value ^ 0x4000_0000 } else { value });
    }
    let asked = rng.below(N as u64 + N as u64 / 8).min(N as u64);
    if N < 256 { out.push(asked as u8) } else { out.extend((asked as u16).to_be_bytes()) }
}

/// `len` bytes of weights with binary16 scales at `scales`: any bytes, or the extremes of all of them.
fn draw_weights(rng: &mut Rng, out: &mut Vec<u8>, scales: &[usize], len: usize) {
    let start = out.len();
    let fill = match rng.below(8) {
        0 => Some([0x00, 0x7f, 0x80, 0xff][rng.below(4) as usize]),
        _ => None,
    };
    for _ in 0..len {
        out.push(fill.unwrap_or(rng.next() as u8));
    }
    for at in scales {
        let any = rng.next() as u16;
        // Finite, small and positive as a rule.
        let scale = match rng.below(8) {
            0 => any,
            1 => any & 0x83ff,
            _ => 0x0400 | any & 0x2bff,
        };
        out[start + at..][..2].copy_from_slice(&scale.to_le_bytes());
    }
}

/// acc, weights, `n` activations, their scale.
fn draw_step(rng: &mut Rng, out: &mut Vec<u8>, scales: &[usize], len: usize, n: usize) {
    let acc = match rng.below(4) {
        0 => 0,
        1 => rng.float(),
        _ => rng.between(-8.0, 8.0).to_bits(),
    };
    put(out, acc);
    draw_weights(rng, out, scales, len);
    let fill = match rng.below(8) {
        0 => Some([0x81, 0x7f, 0, 1][rng.below(4) as usize]),
        _ => None,
    };
    for _ in 0..n {
        // What a quantizer gives: -127 to 127.
        let q = (rng.below(255) as i16 - 127) as i8 as u8;
        out.push(fill.unwrap_or(q));
    }
    let scale = match rng.below(8) {
        0 => rng.float() & 0x7fff_ffff,
        _ => f16::to_f32(0x0400 | rng.next() as u16 & 0x2fff).to_bits(),
    };
    put(out, scale);
}

fn draw_cell(rng: &mut Rng, out: &mut Vec<u8>, scales: &[usize], len: usize, n: u64) {
    draw_weights(rng, out, scales, len);
    out.push(rng.below(n) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both sides read `vectors/judge.json`: the contracts run its records, this says that they are still the ones that
    /// Rust gives. `cargo run --release -p assay-testkit --example judge_vectors golden` writes it.
    #[test]
    fn the_committed_vectors_are_what_rust_computes() {
        assert!(include_str!("../../../vectors/judge.json") == golden_json(), "vectors/judge.json is stale");
    }

    #[test]
    fn a_longer_run_begins_with_the_records_of_a_shorter_one() {
        for instruction in INSTRUCTIONS {
            let (mut whole, mut parts) = (vec![], vec![]);
            instruction.append(0, 40, &mut whole);
            instruction.append(0, 15, &mut parts);
            instruction.append(15, 25, &mut parts);
            assert_eq!(whole.len(), 40 * instruction.record_len());
            assert!(whole == parts, "{}", instruction.name);
        }
    }
}
