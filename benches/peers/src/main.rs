//! The program of `measure.py` in Rust: burn-deepspeed's CPU kernels, Burn, candle and rten.

mod candle_attention;
mod rten_graph;

use std::process::ExitCode;

fn main() -> ExitCode {
    peers_ours::serve(&[candle_attention::ENGINE, rten_graph::ENGINE])
}
