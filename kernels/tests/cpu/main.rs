//! Every CPU kernel against plain loops, on sizes that no tile divides.
#![allow(clippy::unwrap_used)]

mod flash;
#[path = "../oracle/mod.rs"]
mod oracle;
