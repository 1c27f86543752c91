//! The element-wise functions and the normalisation of [`Kernels`]. Definitions: [`crate::scalar`].

use crate::isa::{Kernels, dispatch};
use crate::rope::{RopeStyle, RopeTable};
use crate::scalar;

impl Kernels {
    /// `out[i] = exp(x[i])`, see [`scalar::exp`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn exp(self, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        dispatch!(self, exp(x, out), out.iter_mut().zip(x).for_each(|(out, &x)| *out = scalar::exp(x)));
    }

    /// `out[i] = silu(gate[i]) * up[i]`, see [`scalar::silu`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len());
        dispatch!(
            self,
            silu_mul(gate, up, out),
            out.iter_mut().zip(gate).zip(up).for_each(|((out, &gate), &up)| *out = scalar::silu(gate) * up)
        );
    }

    /// `out[i] = gelu(gate[i]) * up[i]`, see [`scalar::gelu`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gelu_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len());
        dispatch!(
            self,
            gelu_mul(gate, up, out),
            out.iter_mut().zip(gate).zip(up).for_each(|((out, &gate), &up)| *out = scalar::gelu(gate) * up)
        );
    }

    /// `x[i] = gelu_erf(x[i])`, see [`scalar::gelu_erf`].
    pub fn gelu_erf(self, x: &mut [f32]) {
        dispatch!(self, gelu_erf(x), x.iter_mut().for_each(|x| *x = scalar::gelu_erf(*x)));
    }

    /// `x[i] = softcap(x[i], cap)`, see [`scalar::softcap`].
    pub fn softcap(self, x: &mut [f32], cap: f32) {
        dispatch!(self, softcap(x, cap), x.iter_mut().for_each(|x| *x = scalar::softcap(*x, cap)));
    }

    /// `x[i] *= factor`.
    pub fn scale_assign(self, x: &mut [f32], factor: f32) {
        // One IEEE multiplication per element: the compiler's vectors give the same bits.
        x.iter_mut().for_each(|x| *x *= factor);
    }

    /// `x[i] += y[i]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_assign(self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // One IEEE addition per element: the compiler's vectors give the same bits.
        x.iter_mut().zip(y).for_each(|(x, &y)| *x += y);
    }

    /// [`scalar::rms_norm`] of each row of `x: [m, n]` with `w: [n]` into `out: [m, n]`.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn rms_norm(self, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        let n = w.len();
        assert!(n > 0 && x.len().is_multiple_of(n) && x.len() == out.len());
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            dispatch!(self, rms_norm(x, w, eps, out), scalar::rms_norm(x, w, eps, out));
        }
    }

    /// [`scalar::layer_norm`] of each row of `x: [m, n]` with `w: [n]` and `b: [n]` into `out: [m, n]`.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn layer_norm(self, x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) {
        let n = w.len();
        assert!(n > 0 && b.len() == n && x.len().is_multiple_of(n) && x.len() == out.len());
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            dispatch!(self, layer_norm(x, w, b, eps, out), scalar::layer_norm(x, w, b, eps, out));
        }
    }

    /// Rotates the heads `x: [heads, head_dim]` of one token at position `pos` in place, see [`scalar::rope`].
    ///
    /// # Panics
    /// If `x` is no whole number of heads, `table.rope_dims() > head_dim` or `pos` is outside the table.
    pub fn rope(self, x: &mut [f32], head_dim: usize, pos: usize, table: &RopeTable, style: RopeStyle) {
        assert!(head_dim > 0 && x.len().is_multiple_of(head_dim) && table.rope_dims() <= head_dim);
        for head in x.chunks_exact_mut(head_dim) {
            dispatch!(self, rope(head, pos, table, style), scalar::rope(head, pos, table, style));
        }
    }
}
