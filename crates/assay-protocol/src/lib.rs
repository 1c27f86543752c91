//! Pure state machines: channels, pricing, routing.
