//! Provider service: admit, run, sign, settle.
