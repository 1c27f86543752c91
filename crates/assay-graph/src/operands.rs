//! Which steps a number is made by and what each of them reads: the other implementation of `Judge._operands`.

use crate::op::{CHUNK, Keys, Kind, LEAF_NUMBERS, Op, flags, unit_of};

/// A number of a trace: slot `slot` in leaf `leaf` of operation `op` at `position`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Site {
    /// Position in the request.
    pub position: u32,
    /// Number of the operation.
    pub op: u16,
    /// Leaf of the operation.
    pub leaf: u32,
    /// Number in the leaf: 0 to 31; of a block its values, then its scale.
    pub slot: u16,
}

impl Site {
    /// The site of number `element` of an operation that is no quantizer.
    pub fn of(position: u32, op: u16, element: u64) -> Site {
        let (leaf, slot) = ((element / LEAF_NUMBERS) as u32, (element % LEAF_NUMBERS) as u16);
        Site { position, op, leaf, slot }
    }

    fn element(&self) -> u64 {
        LEAF_NUMBERS * u64::from(self.leaf) + u64::from(self.slot)
    }
}

/// Where a step reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Source {
    /// The trace itself.
    Trace,
    /// The model's tensors.
    Weights,
    /// The rotation tables.
    Rotation,
    /// The tokens of the request.
    Tokens,
}

/// What a step reads. Of the trace: bytes `offset..offset + length` of leaf `leaf` of operation `op` at `position`. Of the
/// model: those of the tensor or table whose first leaf is `leaf`. Of the tokens: the one at `position`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Operand {
    /// Which of them.
    pub source: Source,
    /// Position in the request.
    pub position: u64,
    /// Number of the operation.
    pub op: u16,
    /// Leaf, or the first one of a tensor or table.
    pub leaf: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Operand {
    /// Leaves of the model that it reaches into; 1 of another source.
    pub fn parts(&self) -> u64 {
        match self.source {
            Source::Weights | Source::Rotation => (self.offset + self.length).div_ceil(1024) - self.offset / 1024,
            Source::Trace | Source::Tokens => 1,
        }
    }
}

/// Slots of each leaf of an operation.
pub fn slots(op: &Op) -> u16 {
    op.block().map_or(LEAF_NUMBERS as u16, |block| block as u16 + 1)
}

/// Into how many steps a number is divided; none behind the last number of an operation.
pub fn steps(op: &Op, site: Site, input_tokens: u64) -> u64 {
    let position = u64::from(site.position);
    if op.block().is_some() {
        return 1;
    }
    if site.element() >= op.count_at(position, input_tokens) {
        return 0;
    }
    let cols = u64::from(op.cols);
    match op.kind {
        Kind::Squares | Kind::Lanes => cols / 16,
        Kind::Product => unit_of(op.format).map_or(0, |(columns, _)| cols / columns),
        Kind::Score => cols,
        Kind::ChunkMax | Kind::ChunkLanes | Kind::ChunkOut => {
            let keys = op.keys_at(position);
            let chunk = keys.chunk_at(chunk_of(op, site, &keys).0);
            if op.kind != Kind::ChunkLanes {
                return chunk.end - chunk.start;
            }
            let start = first_of_lane(site.element() % 16, chunk.start);
            chunk.end.saturating_sub(start).div_ceil(16)
        }
        _ => 1,
    }
}

/// What step `step` towards a number reads, in order. `token` is what the first operand of EMBED is said to be: which row is
/// read depends on it.
pub fn operands(op: &Op, site: Site, step: u64, token: u32) -> Vec<Operand> {
    let (e, p) = (site.element(), u64::from(site.position));
    let cols = u64::from(op.cols);
    let number = |op: u16, e: u64| number(p, op, e);
    match op.kind {
        Kind::Token => vec![Operand { source: Source::Tokens, position: p, op: 0, leaf: 0, offset: 0, length: 4 }],
        Kind::Embed => {
            let (columns, length) = unit_of(op.format).unwrap_or((1, 0));
            let unit = (u64::from(token) * cols + e) / columns;
            vec![number(op.a, 0), weights(op, unit * length, length)]
        }
        Kind::Squares => vec![number(op.a, e / 16 * cols + 16 * step + e % 16)],
        Kind::LaneSum => vec![lanes(p, op.a, e)],
        Kind::Norm => vec![number(op.a, e), lanes(p, op.b, e / cols), weights(op, 4 * (e % cols), 4)],
        Kind::Quantize => vec![whole_leaf(p, op.a, site.leaf.into())],
        Kind::QuantizeSuper => (0..8).map(|i| whole_leaf(p, op.a, 8 * u64::from(site.leaf) + i)).collect(),
        Kind::Product => {
            let (columns, length) = unit_of(op.format).unwrap_or((1, 0));
            let unit = (u64::from(op.extra) + e) * (cols / columns) + step;
            let acts = Operand { leaf: step, offset: 0, length: columns + 4, ..number(op.a, 0) };
            vec![weights(op, unit * length, length), acts]
        }
        Kind::Lanes => {
            let column = 16 * step + e % 16;
            let length = unit_of(op.format).map_or(0, |(_, length)| length);
            let row = u64::from(op.extra) + e / 16;
            vec![weights(op, (row * cols + column) * length, length), number(op.a, column)]
        }
        Kind::Bias => vec![number(op.a, e), weights(op, 4 * e, 4)],
        Kind::Rotate => of_rotation(op, p, e),
        Kind::Add | Kind::Gate => vec![number(op.a, e), number(op.b, e)],
        Kind::Narrow | Kind::Cap => vec![number(op.a, e)],
        Kind::Choose => vec![],
        _ => of_attention(op, site, step),
    }
}

fn of_rotation(op: &Op, p: u64, e: u64) -> Vec<Operand> {
    let (d, dims) = (e % u64::from(op.cols), u64::from(op.heads));
    if d >= dims {
        return vec![number(p, op.a, e)];
    }
    let half = dims / 2;
    let neighbours = op.has(flags::NEIGHBOURS);
    let pair = if neighbours { d / 2 } else { d % half };
    let first = e - d + if neighbours { 2 * pair } else { pair };
    let second = first + if neighbours { 1 } else { half };
    // Two counts of 8 bytes, the cosines of all positions, the sines.
    let angle = p * half + pair;
    let turn = |at: u64| Operand { source: Source::Rotation, ..weights(op, 16 + 4 * at, 4) };
    vec![number(p, op.a, first), number(p, op.a, second), turn(angle), turn(u64::from(op.extra) * half + angle)]
}

fn of_attention(op: &Op, site: Site, step: u64) -> Vec<Operand> {
    let (e, p) = (site.element(), u64::from(site.position));
    let cols = u64::from(op.cols);
    let keys = op.keys_at(p);
    let (i, head) = chunk_of(op, site, &keys);
    let low = keys.chunk_at(i).start;
    let of_group = |head: u64| head * u64::from(op.heads) / u64::from(op.rows);
    match op.kind {
        Kind::Score => {
            let (head, key) = (e / keys.keys, keys.first + e % keys.keys);
            vec![number(p, op.a, head * cols + step), number(key, op.b, of_group(head) * cols + step)]
        }
        Kind::ChunkMax => vec![number(p, op.a, head * keys.keys + low - keys.first + step)],
        Kind::Weigh => {
            let chunk = (keys.first + e % keys.keys) / CHUNK - keys.chunk;
            vec![number(p, op.a, e), number(p, op.b, e / keys.keys * keys.chunks + chunk)]
        }
        Kind::ChunkLanes => {
            let at = first_of_lane(e % 16, low) + 16 * step;
            vec![number(p, op.a, head * keys.keys + at - keys.first)]
        }
        Kind::ChunkOut => {
            let weight = number(p, op.a, head * keys.keys + low - keys.first + step);
            vec![weight, number(low + step, op.b, of_group(head) * cols + e % cols)]
        }
        Kind::Attended => {
            let last = e / cols * keys.chunks + keys.chunks - 1;
            vec![number(p, op.a, last * cols + e % cols), number(p, op.b, last)]
        }
        _ => {
            let this = if op.kind == Kind::RunSum { lanes(p, op.a, e) } else { number(p, op.a, e) };
            if i == 0 {
                return vec![this];
            }
            // Joining with the chunks before: this operation's own number for them comes last.
            let width = if op.kind == Kind::RunOut { cols } else { 1 };
            let at = head * keys.chunks + i;
            let own = number(p, site.op, e - width);
            if op.kind == Kind::RunMax {
                return vec![this, own];
            }
            vec![this, number(p, op.b, at), number(p, op.c, at), number(p, op.c, at - 1), own]
        }
    }
}

/// The chunk and the head of a number of an operation that gives numbers for each chunk.
fn chunk_of(op: &Op, site: Site, keys: &Keys) -> (u64, u64) {
    let width = match op.kind {
        Kind::ChunkOut | Kind::RunOut => u64::from(op.cols),
        Kind::ChunkLanes => 16,
        _ => 1,
    };
    let at = site.element().checked_div(width).unwrap_or(0);
    (at % keys.chunks, at / keys.chunks)
}

/// The first position from `low` on that belongs to a lane.
pub(crate) fn first_of_lane(lane: u64, low: u64) -> u64 {
    low + (lane + 16 - low % 16) % 16
}

fn number(position: u64, op: u16, e: u64) -> Operand {
    let (leaf, offset) = (e / LEAF_NUMBERS, 4 * (e % LEAF_NUMBERS));
    Operand { source: Source::Trace, position, op, leaf, offset, length: 4 }
}

/// 16 lanes, number `e` of those that an operation gives.
fn lanes(position: u64, op: u16, e: u64) -> Operand {
    Operand { source: Source::Trace, position, op, leaf: e / 2, offset: 64 * (e % 2), length: 64 }
}

fn whole_leaf(position: u64, op: u16, leaf: u64) -> Operand {
    Operand { source: Source::Trace, position, op, leaf, offset: 0, length: 4 * LEAF_NUMBERS }
}

fn weights(op: &Op, offset: u64, length: u64) -> Operand {
    Operand { source: Source::Weights, position: 0, op: 0, leaf: op.tensor.into(), offset, length }
}
