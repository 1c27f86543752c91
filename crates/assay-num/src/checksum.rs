//! A checksum that finds damage at the speed of memory. It keeps nobody from forging anything.

/// Bytes of one round: eight words that do not wait for each other.
const ROUND: usize = 64;

/// Odd, so that multiplying by it loses nothing.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Of `bytes`, read as little-endian words.
///
/// A step is a bijection of the running value for each word and of the word for each running value, so damage within
/// one aligned word of eight bytes is found for certain; any other is missed with a chance of about 2^-64. The length
/// counts: bytes that were cut off are found even if they were zero.
pub fn checksum(bytes: &[u8]) -> u64 {
    let mut lanes: [u64; 8] = std::array::from_fn(|i| FACTOR.wrapping_mul(i as u64 + 1));
    let (rounds, rest) = bytes.as_chunks::<ROUND>();
    let mut round = |bytes: &[u8; ROUND]| {
        for (lane, word) in lanes.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *lane = step(*lane, u64::from_le_bytes(*word));
        }
    };
    rounds.iter().for_each(&mut round);
    let mut last = [0; ROUND];
    last[..rest.len()].copy_from_slice(rest);
    round(&last);
    let sum = lanes.iter().fold(bytes.len() as u64, |sum, lane| step(sum, *lane));
    step(sum, sum >> 32)
}

fn step(value: u64, word: u64) -> u64 {
    (value ^ word).wrapping_mul(FACTOR).rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn every_flipped_bit_and_every_length_changes_it() {
        let mut bytes: Vec<u8> = (0..200u32).map(|i| (i * 37) as u8).collect();
        let whole = checksum(&bytes);
        for bit in 0..8 * bytes.len() {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&bytes), whole, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let zeros = [0; 200];
        let mut sums: Vec<u64> = (0..=200).map(|n| checksum(&zeros[..n])).chain([whole]).collect();
        sums.sort_unstable();
        sums.dedup();
        assert_eq!(sums.len(), 202);
    }

    #[test]
    fn the_value_is_part_of_the_format_of_files() {
        // From an implementation of the text above in Python.
        assert_eq!(checksum(b""), 0x3eb6_32c3_ec29_a74d);
        assert_eq!(checksum(b"assay"), 0xefc1_2d0f_f967_9518);
        assert_eq!(checksum(&[7; 1000]), 0x3ef1_4dcc_bfcd_3315);
    }
}
