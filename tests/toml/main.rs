//! Configuration files of axvisor: real ones, and what is said of wrong ones.

mod errors;
mod real;
