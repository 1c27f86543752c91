//! The trace of small models of every family and format, against the engine and against the definition of one step.

mod cases;
mod disputes;
mod engine;
mod graphs;
mod records;
mod steps;
mod vectors;
