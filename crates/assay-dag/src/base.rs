//! The three text encodings that CIDs come in: base32 (RFC 4648, lower case, no padding), base58 (Bitcoin) and base16.

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const BASE58: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

pub(crate) fn to_base32(bytes: &[u8]) -> String {
    let (mut text, mut bits, mut held) = (String::new(), 0_u32, 0_u32);
    for &byte in bytes {
        (bits, held) = ((bits << 8) | u32::from(byte), held + 8);
        while held >= 5 {
            held -= 5;
            text.push(char::from(BASE32[(bits >> held) as usize & 31]));
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        text.push(char::from(BASE32[(bits << (5 - held)) as usize & 31]));
    }
    text
}

/// Either case. `None` for another character, or bits at the end that belong to no byte and are not zero.
pub(crate) fn from_base32(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut held) = (vec![], 0_u32, 0_u32);
    for char in text.bytes() {
        let digit = BASE32.iter().position(|&c| c == char.to_ascii_lowercase())?;
        (bits, held) = ((bits << 5) | digit as u32, held + 5);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    (held < 5 && bits == 0).then_some(bytes)
}

pub(crate) fn to_base58(bytes: &[u8]) -> String {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    let mut digits: Vec<u8> = vec![];
    for &byte in bytes {
        let mut carry = u32::from(byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 58) as u8;
            carry /= 58;
        }
        while carry > 0 {
            digits.push((carry % 58) as u8);
            carry /= 58;
        }
    }
    let digits = digits.iter().rev().map(|&digit| char::from(BASE58[usize::from(digit)]));
    std::iter::repeat_n('1', zeros).chain(digits).collect()
}

/// Takes quadratic time: the caller bounds the text.
pub(crate) fn from_base58(text: &str) -> Option<Vec<u8>> {
    let zeros = text.bytes().take_while(|&char| char == b'1').count();
    let mut bytes: Vec<u8> = vec![];
    for char in text.bytes() {
        let mut carry = BASE58.iter().position(|&c| c == char)? as u32;
        for byte in &mut bytes {
            carry += u32::from(*byte) * 58;
            *byte = carry as u8;
            carry >>= 8;
        }
        if carry > 0 {
            bytes.push(carry as u8);
        }
    }
    bytes.extend(std::iter::repeat_n(0, zeros));
    bytes.reverse();
    Some(bytes)
}

/// Either case.
pub(crate) fn from_base16(text: &str) -> Option<Vec<u8>> {
    let digit = |char: u8| char::from(char).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some((digit(pair[0])? << 4 | digit(*pair.get(1)?)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648_and_base58() {
        for (bytes, text) in [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foobar", "mzxw6ytboi")] {
            assert_eq!(to_base32(bytes.as_bytes()), text);
            assert_eq!(from_base32(text).unwrap(), bytes.as_bytes());
        }
        for (bytes, text) in
            [(&b"Hello World!"[..], "2NEpo7TZRRrLZSi2U"), (&[0, 0, 0x28, 0x7f, 0xb4, 0xcd], "11233QC4")]
        {
            assert_eq!(to_base58(bytes), text);
            assert_eq!(from_base58(text).unwrap(), bytes);
        }
    }

    #[test]
    fn every_length_comes_back() {
        for len in 0..70_u8 {
            let bytes: Vec<u8> = (0..len).map(|i| i.wrapping_mul(37).wrapping_add(len)).collect();
            assert_eq!(from_base32(&to_base32(&bytes)).unwrap(), bytes);
            assert_eq!(from_base58(&to_base58(&bytes)).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_no_text_of_a_base_is_none() {
        assert_eq!(
            (from_base32("m1"), from_base32("mz="), from_base32("b"), from_base32("mf")),
            (None, None, None, None)
        );
        assert_eq!((from_base58("0"), from_base58("I"), from_base58("é")), (None, None, None));
        assert_eq!((from_base16("f"), from_base16("0g"), from_base16("Ff")), (None, None, Some(vec![255])));
    }
}
