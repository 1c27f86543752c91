//! Bounds on memory and messages.

/// Runs `f`; panics if at any moment it held more than `bytes_max` bytes that it had allocated.
pub fn bounded<T>(what: &str, bytes_max: usize, f: impl FnOnce() -> T) -> T {
    let mut result = None;
    let info = allocation_counter::measure(|| result = Some(f()));
    assert!(info.bytes_max <= bytes_max as u64, "{what} allocated {} bytes, {bytes_max} are allowed", info.bytes_max);
    result.unwrap_or_else(|| unreachable!("the closure ran"))
}

/// Checks that a message is fit for a log: short, and without control characters from the input.
pub fn printable(error: &dyn std::error::Error) {
    let message = error.to_string();
    assert!(message.len() <= 4096, "a message of {} bytes", message.len());
    assert!(!message.chars().any(|c| c.is_control() && c != '\n'), "control characters in {message:?}");
}
