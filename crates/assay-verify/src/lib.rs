//! Receipt verification and replay.
