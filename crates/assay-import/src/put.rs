//! Takes tensors from a folder's weights into the file, each once.

use std::collections::BTreeSet;

use crate::ImportError;
use crate::folder::Weights;
use crate::plan::Import;

pub(crate) struct Put<'i, 'w, 'a> {
    import: &'i mut Import<'a>,
    weights: &'w Weights<'a>,
    /// Before every name in the weights.
    prefix: &'static str,
    taken: BTreeSet<String>,
}

impl<'i, 'w, 'a> Put<'i, 'w, 'a> {
    pub fn new(import: &'i mut Import<'a>, weights: &'w Weights<'a>, prefix: &'static str) -> Self {
        Put { import, weights, prefix, taken: BTreeSet::new() }
    }

    /// A matrix in the chosen format.
    pub fn matrix(&mut self, here: &str, there: &str, rows: u64, k: u64) -> Result<(), ImportError> {
        let tensor = self.weights.tensor(&self.take(there), &[rows, k])?;
        self.import.matrix(here, tensor, rows, k)
    }

    /// A matrix whose rows are heads of `head_dim`, in each of which the two halves become neighbours.
    pub fn rotated(
        &mut self,
        here: &str,
        there: &str,
        (rows, k): (u64, u64),
        head_dim: u64,
    ) -> Result<(), ImportError> {
        let tensor = self.weights.tensor(&self.take(there), &[rows, k])?;
        self.import.rotated(here, tensor, (rows, k), head_dim)
    }

    /// A tensor of `shape`, slowest-varying size first, exact.
    pub fn table(&mut self, here: &str, there: &str, shape: &[u64]) -> Result<(), ImportError> {
        let tensor = self.weights.tensor(&self.take(there), shape)?;
        let dims: Vec<u64> = shape.iter().rev().copied().collect();
        self.import.exact(here, tensor, &dims)
    }

    /// The first name in the weights that was not taken and is not `unused`.
    pub fn left(&self, unused: impl Fn(&str) -> bool) -> Option<&'w str> {
        self.weights.names().find(|name| !unused(name) && !self.taken.contains(*name))
    }

    fn take(&mut self, name: &str) -> String {
        let name = format!("{}{name}", self.prefix);
        self.taken.insert(name.clone());
        name
    }
}
