//! Many new tokens against a cache, or without one: flash attention (<https://arxiv.org/abs/2205.14135>).
//!
//! The engines share masks, addressing and packing: row `r` of a key head is token `r / group` of its query head
//! `r % group`, so grouped heads read every key once.

pub mod mma;
pub mod simt;
