//! Frames as bytes: length (`u32`, little-endian), then the postcard encoding of the frame.

use serde::{Serialize, de::DeserializeOwned};

/// Longest frame in bytes, without its length. A job of 128 Ki tokens has at most 640 KiB.
pub const FRAME_LEN_MAX: u32 = 4 << 20;

/// Why bytes are no frame, or a frame has no bytes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// Longer than allowed.
    #[error("a frame of {len} bytes; at most {max} are allowed")]
    TooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u32,
    },
    /// Not the encoding of a frame.
    #[error("the frame does not decode: {0}")]
    Malformed(postcard::Error),
    /// A frame, and something after it.
    #[error("{0} bytes follow the frame inside its length")]
    TrailingBytes(u64),
    /// The frame has no encoding.
    #[error("the frame does not encode: {0}")]
    Unencodable(postcard::Error),
}

/// Appends length and encoding of `frame` to `out`; leaves `out` as it was on an error.
///
/// # Errors
/// The frame is longer than [`FRAME_LEN_MAX`].
pub fn encode<T: Serialize>(frame: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let payload = postcard::to_stdvec(frame).map_err(CodecError::Unencodable)?;
    let len = payload.len() as u64;
    let short = u32::try_from(len).ok().filter(|&len| len <= FRAME_LEN_MAX);
    let short = short.ok_or(CodecError::TooLong { len, max: FRAME_LEN_MAX })?;
    out.extend_from_slice(&short.to_le_bytes());
    out.extend_from_slice(&payload);
    Ok(())
}

/// Reads one frame from exactly its bytes, without the length.
///
/// # Errors
/// They are not one frame. Memory taken meanwhile is at most 32 times `payload` (a list of empty strings) and 1 MiB (what
/// serde reserves at most for a list on its word).
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    let (frame, rest) = postcard::take_from_bytes(payload).map_err(CodecError::Malformed)?;
    if rest.is_empty() { Ok(frame) } else { Err(CodecError::TrailingBytes(rest.len() as u64)) }
}
