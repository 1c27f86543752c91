//! Writes the generated model of one family to a file: `family ARCHITECTURE FILE`, where "llama-scaled" is a Llama with
//! scaled frequencies. Other engines read the same file to compare with.

use assay_testkit::models::{Family, TinyLlama, tiny_llama};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (name, file) = (args.next().ok_or("no architecture")?, args.next().ok_or("no file")?);
    let family = Family::ALL.into_iter().find(|family| family.name() == name).ok_or("no such family")?;
    Ok(std::fs::write(file, tiny_llama(TinyLlama { family, ..TinyLlama::default() }))?)
}
