//! Framing and transport between gateway and provider.
