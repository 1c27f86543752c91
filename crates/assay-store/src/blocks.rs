//! Files as content-addressed blocks.

use assay_dag::{Builder, Cid, Layout, Root};
use std::io::{self, Read};

/// Cuts what `reader` has into blocks, in memory of one block. `node` gets each block that is no leaf, `progress` the
/// bytes that were read.
///
/// # Errors
/// Those of `reader`.
pub fn cut(
    reader: &mut dyn Read,
    layout: Layout,
    node: &mut dyn FnMut(Cid, Vec<u8>),
    progress: &mut dyn FnMut(u64),
) -> io::Result<Root> {
    let mut builder = Builder::new(layout);
    let mut chunk = Vec::with_capacity(layout.chunk_len as usize);
    let mut done = 0;
    loop {
        chunk.clear();
        reader.take(u64::from(layout.chunk_len)).read_to_end(&mut chunk)?;
        if chunk.is_empty() {
            return Ok(builder.finish(node));
        }
        builder.push(layout.leaf(&chunk), node);
        done += chunk.len() as u64;
        progress(done);
    }
}

#[cfg(test)]
mod tests {
    use super::cut;
    use assay_dag::Profile;

    #[test]
    fn a_file_is_cut_as_its_profile_says() {
        let bytes: Vec<u8> = (0..600_000_u32).map(|i| (i >> 8) as u8).collect();
        // Reads of odd lengths.
        struct Slow<'a>(&'a [u8]);
        impl std::io::Read for Slow<'_> {
            fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                let len = into.len().min(self.0.len()).min(1_313);
                into[..len].copy_from_slice(&self.0[..len]);
                self.0 = &self.0[len..];
                Ok(len)
            }
        }
        let layout = Profile::UnixfsV0.layout();
        let (mut nodes, mut seen) = (0, vec![]);
        let root = cut(&mut Slow(&bytes), layout, &mut |_, _| nodes += 1, &mut |done| seen.push(done)).unwrap();
        assert_eq!((root.len, root.blocks, nodes), (600_000, 4, 1));
        assert_eq!(seen, [262_144, 524_288, 600_000]);
        let whole = cut(&mut &bytes[..], layout, &mut |_, _| (), &mut |_| ()).unwrap();
        assert_eq!(whole, root);
    }
}
