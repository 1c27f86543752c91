//! One operation of a graph: its word, and how many numbers it gives where.

use alloy_primitives::U256;

/// Positions of a chunk of attention.
pub(crate) const CHUNK: u64 = 256;
/// Numbers in a leaf.
pub(crate) const LEAF_NUMBERS: u64 = 32;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal),+ $(,)?) => {
        /// What an operation does; docs/COURT.md has the table.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)+
        }

        impl Kind {
            /// Every kind, in the order of their numbers.
            pub const ALL: &[Kind] = &[$(Kind::$name,)+];
        }
    };
}

kinds! {
    /// The id of the token at the position.
    Token = 1,
    /// A row of a table.
    Embed = 2,
    /// 16 lanes of the sum of squares of each row.
    Squares = 3,
    /// RMS normalisation.
    Norm = 4,
    /// Blocks of 32 quantized numbers.
    Quantize = 5,
    /// Super-blocks of 256.
    QuantizeSuper = 6,
    /// Product of a block-quantized matrix.
    Product = 7,
    /// Product of a matrix of floats, 16 lanes a row.
    Lanes = 8,
    /// Sums of lanes.
    LaneSum = 9,
    /// Addition of a vector of the model.
    Bias = 10,
    /// Rotation of heads.
    Rotate = 11,
    /// Rounding to binary16.
    Narrow = 12,
    /// Scores of queries with keys.
    Score = 13,
    /// Largest score of each chunk.
    ChunkMax = 14,
    /// Exponentials of scores.
    Weigh = 15,
    /// 16 lanes of the sum of weights of each chunk.
    ChunkLanes = 16,
    /// Weighted values of each chunk.
    ChunkOut = 17,
    /// Largest score up to each chunk.
    RunMax = 18,
    /// Sum of weights up to each chunk.
    RunSum = 19,
    /// Weighted values up to each chunk.
    RunOut = 20,
    /// Output of attention.
    Attended = 21,
    /// Sum of two operations.
    Add = 22,
    /// Activation of the first, times the second.
    Gate = 23,
    /// Soft cap.
    Cap = 24,
    /// The sampler's choice.
    Choose = 25,
}

/// Bits of [`Op::flags`].
pub mod flags {
    /// Only at positions whose output token the request produced.
    pub const HEAD: u8 = 1;
    /// Rotated pairs are neighbours.
    pub const NEIGHBOURS: u8 = 2;
    /// Gelu instead of silu.
    pub const GELU: u8 = 4;
}

/// Columns and bytes of the unit in which a format (the number of GGUF) stores weights; `None` for one that no judge knows.
pub fn unit_of(format: u8) -> Option<(u64, u64)> {
    Some(match format {
        0 => (1, 4),
        1 | 30 => (1, 2),
        2 => (32, 18),
        8 => (32, 34),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        _ => return None,
    })
}

/// An operation. What the fields mean depends on the kind: `contracts/src/Graph.sol`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Op {
    /// What it does.
    pub kind: Kind,
    /// Format of its weights, the number of GGUF.
    pub format: u8,
    /// [`flags`].
    pub flags: u8,
    /// Number of an earlier operation.
    pub a: u16,
    /// As `a`.
    pub b: u16,
    /// As `a`.
    pub c: u16,
    /// 24 bits.
    pub rows: u32,
    /// 24 bits.
    pub cols: u32,
    /// Heads of keys and values, or rotated dimensions.
    pub heads: u16,
    /// First row of a matrix, positions of a table, or length of a window; 24 bits.
    pub extra: u32,
    /// A constant, bits of an f32.
    pub x: u32,
    /// As `x`.
    pub y: u32,
    /// First leaf of a tensor of the model or of a rotation table.
    pub tensor: u32,
}

/// What attention at a position sees: positions `first..first + keys`, in `chunks` chunks from `chunk` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keys {
    /// First position.
    pub first: u64,
    /// Positions.
    pub keys: u64,
    /// Chunk of the first.
    pub chunk: u64,
    /// Chunks.
    pub chunks: u64,
}

impl Keys {
    /// Positions of chunk `i` of those that are seen.
    pub fn chunk_at(&self, i: u64) -> std::ops::Range<u64> {
        let low = (self.chunk + i) * CHUNK;
        low.max(self.first)..(low + CHUNK).min(self.first + self.keys)
    }
}

impl Op {
    /// An operation of a kind with all fields zero.
    pub fn of(kind: Kind) -> Op {
        let (a, b, c, heads) = (0, 0, 0, 0);
        let (rows, cols, extra, x, y, tensor) = (0, 0, 0, 0, 0, 0);
        Op { kind, format: 0, flags: 0, a, b, c, rows, cols, heads, extra, x, y, tensor }
    }

    /// The word of 256 bits that a contract reads.
    ///
    /// # Panics
    /// If a field of 24 bits has more: the compiler refuses such models.
    pub fn word(&self) -> U256 {
        assert!(self.rows | self.cols | self.extra < 1 << 24, "fields of 24 bits: {self:?}");
        let fields = [
            (u64::from(self.kind as u8), 0),
            (self.format.into(), 8),
            (self.flags.into(), 16),
            (self.a.into(), 24),
            (self.b.into(), 40),
            (self.c.into(), 56),
            (self.rows.into(), 72),
            (self.cols.into(), 96),
            (self.heads.into(), 120),
            (self.extra.into(), 136),
            (self.x.into(), 160),
            (self.y.into(), 192),
            (self.tensor.into(), 224),
        ];
        fields.into_iter().fold(U256::ZERO, |word, (field, shift)| word | (U256::from(field) << shift))
    }

    /// The operation of a word; `None` if there is no such kind.
    pub fn from_word(word: U256) -> Option<Op> {
        let field = |shift: usize, bits: usize| {
            let value: U256 = (word >> shift) & ((U256::from(1) << bits) - U256::from(1));
            value.to::<u32>()
        };
        let kind = *Kind::ALL.iter().find(|kind| **kind as u32 == field(0, 8))?;
        Some(Op {
            kind,
            format: field(8, 8) as u8,
            flags: field(16, 8) as u8,
            a: field(24, 16) as u16,
            b: field(40, 16) as u16,
            c: field(56, 16) as u16,
            rows: field(72, 24),
            cols: field(96, 24),
            heads: field(120, 16) as u16,
            extra: field(136, 24),
            x: field(160, 32),
            y: field(192, 32),
            tensor: field(224, 32),
        })
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// What attention sees at a position.
    pub fn keys_at(&self, position: u64) -> Keys {
        let first = match u64::from(self.extra) {
            0 => 0,
            window => (position + 1).saturating_sub(window),
        };
        let chunk = first / CHUNK;
        Keys { first, keys: position + 1 - first, chunk, chunks: position / CHUNK - chunk + 1 }
    }

    /// How many numbers it gives at a position of a request with `input_tokens` tokens of input; a quantizer counts blocks.
    pub fn count_at(&self, position: u64, input_tokens: u64) -> u64 {
        if self.has(flags::HEAD) && position + 1 < input_tokens {
            return 0;
        }
        let (rows, cols) = (u64::from(self.rows), u64::from(self.cols));
        match self.kind {
            Kind::Token | Kind::Choose => 1,
            Kind::Squares | Kind::Lanes => rows * 16,
            Kind::Product | Kind::LaneSum => rows,
            Kind::Norm | Kind::Rotate | Kind::Attended => rows * cols,
            Kind::Quantize => cols / 32,
            Kind::QuantizeSuper => cols / 256,
            Kind::Score | Kind::Weigh => rows * self.keys_at(position).keys,
            Kind::ChunkMax | Kind::RunMax | Kind::RunSum => rows * self.keys_at(position).chunks,
            Kind::ChunkLanes => rows * self.keys_at(position).chunks * 16,
            Kind::ChunkOut | Kind::RunOut => rows * self.keys_at(position).chunks * cols,
            Kind::Embed | Kind::Bias | Kind::Narrow | Kind::Add | Kind::Gate | Kind::Cap => cols,
        }
    }

    /// Columns of a block, if it is a quantizer.
    pub fn block(&self) -> Option<usize> {
        match self.kind {
            Kind::Quantize => Some(32),
            Kind::QuantizeSuper => Some(256),
            _ => None,
        }
    }

    /// Bytes of a leaf: 32 numbers, or a block with its scale.
    pub fn leaf_len(&self) -> usize {
        self.block().map_or(4 * LEAF_NUMBERS as usize, |block| block + 4)
    }

    /// Leaves that it has at a position.
    pub fn leaves_at(&self, position: u64, input_tokens: u64) -> u64 {
        let count = self.count_at(position, input_tokens);
        if self.block().is_some() { count } else { count.div_ceil(LEAF_NUMBERS) }
    }

    /// The earlier operations that it reads, in any order; what a RUN operation reads of itself is not among them.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = u16> {
        use Kind::*;
        let n = match self.kind {
            Token => 0,
            Embed | Squares | Quantize | QuantizeSuper | Product | Lanes | LaneSum | Bias | Rotate | Narrow | Cap
            | Choose | ChunkMax | ChunkLanes | RunMax => 1,
            Norm | Score | Weigh | ChunkOut | Attended | Add | Gate => 2,
            RunSum | RunOut => 3,
        };
        [self.a, self.b, self.c].into_iter().take(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_operations_convert_both_ways() {
        let op = Op {
            kind: Kind::Score,
            format: 14,
            flags: 5,
            a: 0x1234,
            b: 0xfedc,
            c: 0x0f0f,
            rows: 0xabcdef,
            cols: 0x123456,
            heads: 0x8001,
            extra: 0xffffff,
            x: 0x3f80_0001,
            y: 0xc000_0000,
            tensor: 0xdead_beef,
        };
        let word = "0xdeadbeefc00000003f800001ffffff8001123456abcdef0f0ffedc1234050e0d".parse::<U256>().unwrap();
        assert_eq!(op.word(), word);
        assert_eq!(Op::from_word(word), Some(op));
        for kind in [0_u32, 26, 255] {
            assert_eq!(Op::from_word(U256::from(kind)), None);
        }
        for (i, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!((*kind as usize, Op::from_word(U256::from(i + 1))), (i + 1, Some(Op::of(*kind))));
        }
    }

    #[test]
    fn a_window_cuts_the_first_chunk() {
        let all = Op { rows: 2, ..Op::of(Kind::Score) };
        assert_eq!(all.keys_at(300), Keys { first: 0, keys: 301, chunk: 0, chunks: 2 });
        assert_eq!(all.keys_at(300).chunk_at(1), 256..301);
        let window = Op { extra: 50, ..all };
        assert_eq!(window.keys_at(49), Keys { first: 0, keys: 50, chunk: 0, chunks: 1 });
        assert_eq!(window.keys_at(300), Keys { first: 251, keys: 50, chunk: 0, chunks: 2 });
        assert_eq!((window.keys_at(300).chunk_at(0), window.keys_at(300).chunk_at(1)), (251..256, 256..301));
        assert_eq!(window.keys_at(305).chunk_at(0), 256..306);
        assert_eq!(window.count_at(305, 1), 100);
        assert_eq!(Op { kind: Kind::RunOut, cols: 8, ..window }.count_at(300, 1), 32);
    }
}
