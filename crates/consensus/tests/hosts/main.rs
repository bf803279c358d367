//! The consensus layer over real links on loopback, with stores in memory.

mod support;

mod catalog;
mod faults;
mod reads;
mod writes;
