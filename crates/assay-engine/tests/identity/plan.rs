//! Which ways are run where.
//!
//! Natively, `assay-tiny` gets the full product: threads 1 and 2; in one piece, in chunks, token by token; with a prefix
//! cache that knows nothing, and one that knows a part; alone and in batches of 2 to 16 (the scalar code, some twenty times
//! slower, in batches of 2, 3 and 16). The large model gets the same with batches of 2 and 5, the scalar code one piece.
//!
//! Under emulation the ways are fewer and compute the first positions only, but for one run with i8mm. Floats run with
//! the plain NEON kernels alone, which dotprod and i8mm share. The large model gets one piece for each kernel.

use assay_num::Isa;

use crate::models::{Size, Subject};

/// How the logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All positions in one step.
    OnePiece,
    /// In steps of uneven sizes.
    Chunks,
    /// One position a step.
    TokenByToken,
    /// In one piece, with a prefix cache that knows nothing.
    CacheMiss,
    /// The rest after what a prefix cache knows.
    CacheHit,
    /// The first positions only, among this many sequences that do other things, it included.
    Batch(usize),
}

#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub way: Way,
    pub threads: usize,
    /// Only the first positions.
    pub is_short: bool,
}

const ALL_WAYS: &[Way] = &[Way::OnePiece, Way::Chunks, Way::TokenByToken, Way::CacheMiss, Way::CacheHit];

/// The runs of a kernel.
pub fn runs(subject: &Subject, isa: Isa) -> Vec<Run> {
    let is_emulated = std::env::var_os("ASSAY_EMULATED").is_some();
    match (subject.size, isa) {
        (_, Isa::Dotprod | Isa::I8mm) if is_emulated && !subject.is_quantized => vec![],
        (Size::Shipped, Isa::Scalar) if is_emulated => product(&[1], &[Way::OnePiece], &[], true),
        (Size::Shipped, _) if is_emulated => {
            let mut runs = product(&[1], &[Way::OnePiece], &[], true);
            runs.extend(product(&[2], &[Way::OnePiece, Way::TokenByToken, Way::CacheHit], &[3], true));
            if isa == Isa::I8mm {
                runs.push(Run { way: Way::OnePiece, threads: 2, is_short: false });
            }
            runs
        }
        (Size::Large, Isa::Scalar) if is_emulated => vec![],
        (Size::Large, _) if is_emulated => product(&[2], &[Way::OnePiece], &[], true),
        (Size::Shipped, Isa::Scalar) => product(&[1, 2], ALL_WAYS, &[2, 3, 16], false),
        (Size::Shipped, _) => product(&[1, 2], ALL_WAYS, &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], false),
        (Size::Large, Isa::Scalar) => product(&[2], &[Way::OnePiece], &[], false),
        (Size::Large, _) => product(&[1, 2], ALL_WAYS, &[2, 5], false),
    }
}

fn product(threads: &[usize], ways: &[Way], batches: &[usize], is_short: bool) -> Vec<Run> {
    let all = || ways.iter().copied().chain(batches.iter().map(|&n| Way::Batch(n)));
    threads.iter().flat_map(|&threads| all().map(move |way| Run { way, threads, is_short })).collect()
}
