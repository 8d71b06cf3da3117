//! The description of a workload, for programs that build the same problem.

use burn_deepspeed_core::layout::Orientation::{InputOutput, OutputInput};
use serde_json::{Value, json};

use crate::workloads::{Addend, ELEMENTS, Problem, Weights, Workload};

impl Workload {
    /// The problem in JSON.
    pub fn describe(&self) -> Value {
        let (kind, sizes) = match self.problem {
            Problem::Copy { megabytes } => ("copy", json!({ "megabytes": megabytes })),
            Problem::Empty => ("launch", json!({})),
            // Descriptions omit int8, so that an int8 cache is compared with the same problem on a float cache, and the norm of a
            // cache write, so that it is compared with a write without one.
            Problem::Decode { batch, heads, kv_heads, head, keys, int8: _ } => {
                ("decode", json!({ "batch": batch, "heads": heads, "kv_heads": kv_heads, "head": head, "keys": keys }))
            }
            Problem::Prefill { batch, heads, head, tokens, causal, addend, int8: _ } => {
                let addend = match addend {
                    Addend::Nothing => Value::Null,
                    Addend::Slopes => json!("alibi"),
                    Addend::Bias => json!("bias"),
                };
                let sizes = json!({
                    "batch": batch, "heads": heads, "head": head, "tokens": tokens, "causal": causal, "addend": addend,
                });
                ("prefill", sizes)
            }
            Problem::Softmax { heads, tokens, masked, triangular } => {
                ("softmax", json!({ "heads": heads, "tokens": tokens, "masked": masked, "triangular": triangular }))
            }
            Problem::CacheWrite { batch, tokens, heads, kv_heads, head, capacity, int8: _, norm: _ } => {
                let sizes = json!({
                    "batch": batch, "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head": head,
                    "capacity": capacity,
                });
                ("cache-write", sizes)
            }
            Problem::Squares { batch, tokens, heads, kv_heads, head } => {
                let sizes = json!({
                    "batch": batch, "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head": head,
                });
                ("squares", sizes)
            }
            Problem::Pad { batch, heads, tokens, head, size } => {
                ("pad", json!({ "batch": batch, "heads": heads, "tokens": tokens, "head": head, "size": size }))
            }
            Problem::Norm { rows, features, rms } => {
                ("norm", json!({ "rows": rows, "features": features, "rms": rms }))
            }
            Problem::Gemv { rows, inputs, outputs, normed, weights } => {
                let kept = match weights {
                    Weights::Dense(OutputInput) => "out-in".into(),
                    Weights::Dense(InputOutput) => "in-out".into(),
                    Weights::Int8 => "int8".into(),
                    Weights::Blocks(format) => String::from(format),
                };
                let sizes = json!({
                    "rows": rows, "inputs": inputs, "outputs": outputs, "normed": normed, "weights": kept,
                });
                ("gemv", sizes)
            }
            Problem::Dequantise { inputs, outputs, format } => {
                let blocks = String::from(format);
                ("dequantise", json!({ "inputs": inputs, "outputs": outputs, "blocks": blocks }))
            }
        };
        // The time of a prompt is that of its arithmetic.
        let l2 = if kind == "prefill" { &["cold"][..] } else { &["cold", "warm"] };
        json!({
            "name": self.name, "kind": kind, "sizes": sizes, "engines": self.engines().collect::<Vec<_>>(), "ours": true,
            "bytes": self.bytes(), "flops": self.flops(), "exponentials": self.exponentials(),
            "bytes_in_sectors": self.bytes_in_sectors(), "shares": self.shares(), "dtypes": ELEMENTS, "l2": l2,
        })
    }
}
