//! The numbers of one position: what each operation gave there, as leaves and hashes.

use alloy_primitives::B256;

use crate::op::LEAF_NUMBERS;
use crate::tree;

/// What one operation gave at one position.
#[derive(Clone, Debug)]
pub(crate) enum Values {
    /// Numbers, or the bits of an id.
    Numbers(Vec<f32>),
    /// Quantized blocks of `width` values with one scale each.
    Blocks { width: usize, q: Vec<i8>, d: Vec<f32> },
}

/// All operations at one position.
#[derive(Debug)]
pub(crate) struct State {
    pub position: u32,
    /// By operation; none where it has no numbers, or where nobody reads them any more.
    pub values: Vec<Option<Values>>,
    /// By operation: the roots over their leaves.
    pub roots: Vec<B256>,
    /// The first number that is NaN: operation, leaf, slot.
    pub first_nan: Option<(u16, u32, u16)>,
}

impl State {
    pub fn new(position: u32, n_ops: usize) -> State {
        State { position, values: vec![None; n_ops], roots: vec![B256::ZERO; n_ops], first_nan: None }
    }

    /// Numbers of an operation that is no quantizer.
    ///
    /// # Panics
    /// If they were not computed: the graph's order and the last readers say that they were.
    pub fn numbers(&self, op: u16) -> &[f32] {
        match &self.values[usize::from(op)] {
            Some(Values::Numbers(numbers)) => numbers,
            other => panic!("operation {op} has no numbers: {other:?}"),
        }
    }
}

impl Values {
    pub fn leaves(&self) -> usize {
        match self {
            Values::Numbers(numbers) => numbers.len().div_ceil(LEAF_NUMBERS as usize),
            Values::Blocks { d, .. } => d.len(),
        }
    }

    /// Appends the bytes of a leaf.
    pub fn put_leaf(&self, leaf: usize, out: &mut Vec<u8>) {
        match self {
            Values::Numbers(numbers) => {
                let n = LEAF_NUMBERS as usize;
                let end = out.len() + 4 * n;
                let part = &numbers[leaf * n..numbers.len().min((leaf + 1) * n)];
                part.iter().for_each(|number| out.extend_from_slice(&number.to_bits().to_be_bytes()));
                out.resize(end, 0);
            }
            Values::Blocks { width, q, d } => {
                out.extend(q[leaf * width..(leaf + 1) * width].iter().map(|q| *q as u8));
                out.extend_from_slice(&d[leaf].to_bits().to_be_bytes());
            }
        }
    }

    /// Bytes of a leaf.
    pub fn leaf(&self, leaf: usize) -> Vec<u8> {
        let mut bytes = vec![];
        self.put_leaf(leaf, &mut bytes);
        bytes
    }

    /// Hashes of all leaves.
    pub fn hashes(&self) -> Vec<B256> {
        let mut bytes = Vec::with_capacity(261);
        (0..self.leaves())
            .map(|leaf| {
                bytes.clear();
                self.put_leaf(leaf, &mut bytes);
                tree::leaf_hash(&bytes)
            })
            .collect()
    }

    /// Root over all leaves.
    pub fn root(&self) -> B256 {
        tree::root(&self.hashes())
    }

    /// Flips bits of a number; nothing behind the last one of a leaf.
    pub fn flip(&mut self, leaf: usize, slot: usize, bits: u32) {
        let flip = |number: &mut f32| *number = f32::from_bits(number.to_bits() ^ bits);
        match self {
            Values::Numbers(numbers) => {
                numbers.get_mut(leaf * LEAF_NUMBERS as usize + slot).into_iter().for_each(flip);
            }
            Values::Blocks { width, q, d } => {
                if slot == *width {
                    d.get_mut(leaf).into_iter().for_each(flip);
                } else if let Some(q) = q.get_mut(leaf * *width + slot) {
                    *q ^= bits as i8;
                }
            }
        }
    }

    /// Leaf and slot of the first number that is NaN.
    pub fn first_nan(&self) -> Option<(u32, u16)> {
        match self {
            Values::Numbers(numbers) => {
                // Without a branch per number: there is hardly ever one.
                if !numbers.iter().fold(false, |found, number| found | number.is_nan()) {
                    return None;
                }
                let at = numbers.iter().position(|number| number.is_nan())? as u64;
                Some(((at / LEAF_NUMBERS) as u32, (at % LEAF_NUMBERS) as u16))
            }
            Values::Blocks { width, d, .. } => {
                d.iter().position(|d| d.is_nan()).map(|leaf| (leaf as u32, *width as u16))
            }
        }
    }
}
