//! One super-block of a row from GGUF bytes into its place among 16 rows. [`SuperBlock`](crate::scalar::SuperBlock)
//! defines the formats column by column; this goes four columns at a time, as fast as memory.

use crate::k_matrix::KBlock;
use crate::scalar::{Q4_K_BYTES, Q5_K_BYTES, Q6_K_BYTES};

/// Four bytes as one number, so that what is done to it is done to each of them.
fn four(bytes: &[u8], n: usize) -> u32 {
    let bytes = bytes.as_chunks::<4>().0[n];
    u32::from_le_bytes(bytes)
}

const LOW: u32 = 0x0f0f_0f0f;

impl<const HIGH: usize, const SCALES: usize, const MINS: usize> KBlock<HIGH, SCALES, MINS> {
    fn set_low(&mut self, i: usize, line: usize, value: u32) {
        self.low[line].as_chunks_mut::<4>().0[i] = value.to_le_bytes();
    }

    fn set_high(&mut self, i: usize, line: usize, value: u32) {
        self.high[line].as_chunks_mut::<4>().0[i] = value.to_le_bytes();
    }

    /// The four low bits of `Q4_K` and `Q5_K`: of 32 bytes, the low halves are columns 64n.., the high halves 64n + 32...
    fn put_low_halves(&mut self, i: usize, bytes: &[u8]) {
        for (n, bytes) in bytes.as_chunks::<32>().0.iter().enumerate() {
            for c in 0..4 {
                let (first, second) = (four(bytes, c), four(bytes, 4 + c));
                self.set_low(i, 8 * n + c, first & LOW | (second & LOW) << 4);
                self.set_low(i, 8 * n + 4 + c, first >> 4 & LOW | second & !LOW);
            }
        }
    }
}

impl<const HIGH: usize> KBlock<HIGH, 8, 8> {
    /// f16 d, f16 dmin and twelve bytes of six-bit scales and minima, packed as
    /// [`SuperBlock::from_q4_k`](crate::scalar::SuperBlock::from_q4_k) says.
    fn put_head(&mut self, i: usize, head: &[u8; 16]) {
        self.d[i] = u16::from_le_bytes([head[0], head[1]]);
        self.dmin[i] = u16::from_le_bytes([head[2], head[3]]);
        for j in 0..4 {
            let (a, b, c) = (head[4 + j], head[8 + j], head[12 + j]);
            self.scales[j][i] = (a & 63) as i8;
            self.mins[j][i] = (b & 63) as i8;
            self.scales[4 + j][i] = (c & 15 | a >> 6 << 4) as i8;
            self.mins[4 + j][i] = (c >> 4 | b >> 6 << 4) as i8;
        }
    }
}

impl KBlock<0, 8, 8> {
    /// Row `i` of the group from a `Q4_K` super-block.
    pub fn put_q4_k(&mut self, i: usize, bytes: &[u8; Q4_K_BYTES]) {
        let (head, low) = bytes.split_first_chunk().expect("144 bytes");
        self.put_head(i, head);
        self.put_low_halves(i, low);
    }
}

impl KBlock<8, 8, 8> {
    /// Row `i` of the group from a `Q5_K` super-block.
    pub fn put_q5_k(&mut self, i: usize, bytes: &[u8; Q5_K_BYTES]) {
        let (head, rest) = bytes.split_first_chunk().expect("176 bytes");
        let (high, low) = rest.split_at(32);
        self.put_head(i, head);
        self.put_low_halves(i, low);
        for j in 0..8 {
            // Bit j of byte 4c + e is the fifth bit of column 32j + 4c + e, which goes to bit c of byte e.
            let bits = (0..8).fold(0, |bits, c| bits | (four(high, c) >> j & 0x0101_0101) << c);
            self.set_high(i, j, bits);
        }
    }
}

impl KBlock<16, 16, 0> {
    /// Row `i` of the group from a `Q6_K` super-block.
    pub fn put_q6_k(&mut self, i: usize, bytes: &[u8; Q6_K_BYTES]) {
        let (low, rest) = bytes.split_at(128);
        let (high, rest) = rest.split_at(64);
        // Each half of 128 columns has 64 bytes of low and 32 of high bits; j counts its 32 columns.
        for half in 0..2 {
            for j in 0..4 {
                let low = &low[64 * half + 32 * (j % 2)..][..32];
                let high = &high[32 * half..][..32];
                let line = 4 * half + j;
                for c in 0..4 {
                    let value = |n: usize| four(low, n) >> (4 * (j / 2)) & LOW;
                    self.set_low(i, 4 * line + c, value(c) | value(4 + c) << 4);
                }
                for c in 0..2 {
                    let value = |n: usize| four(high, n) >> (2 * j) & 0x0303_0303;
                    let first = value(2 * c) | value(2 * c + 1) << 2;
                    let second = value(4 + 2 * c) | value(4 + 2 * c + 1) << 2;
                    self.set_high(i, 2 * line + c, first | second << 4);
                }
            }
        }
        for (line, scale) in self.scales.iter_mut().zip(rest) {
            line[i] = *scale as i8;
        }
        self.d[i] = u16::from_le_bytes([rest[16], rest[17]]);
        self.dmin[i] = 0;
    }
}
