//! Times attention on the CPU, on keys and values of each element type: of one token, or of a prompt.
//!
//! ```text
//! cargo run --release -p burn-deepspeed-kernels --example attention -- --threads 1 --keys 2048,16384
//! cargo run --release -p burn-deepspeed-kernels --example attention -- --threads 2 --tokens 512 --keys 512
//! ```

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

use burn_deepspeed_kernels::cpu::attention::{Attention, Cached, Heads};
use burn_deepspeed_kernels::cpu::decode::decode;
use burn_deepspeed_kernels::cpu::flash::flash;
use burn_deepspeed_kernels::cpu::masks::Masks;
use burn_deepspeed_kernels::cpu::threads::Parallelism;
use clap::Parser;
use half::{bf16, f16};

#[derive(Parser)]
#[command(about = "Times attention on the CPU")]
struct Arguments {
    /// Threads.
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    /// Query heads.
    #[arg(long, default_value = "32")]
    heads: usize,
    /// Key/value heads.
    #[arg(long, default_value = "32")]
    kv_heads: usize,
    /// Features of a head.
    #[arg(long, default_value = "128")]
    head_dim: usize,
    /// Queries, the last of the keys. From two on they are computed together, as those of a prompt.
    #[arg(long, default_value = "1")]
    tokens: usize,
    /// Keys, several numbers separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "512,2048,8192")]
    keys: Vec<usize>,
    /// How often each type is timed, in turns.
    #[arg(long, default_value = "40")]
    times: usize,
}

fn numbers(count: usize) -> impl Iterator<Item = f32> {
    (0..count).map(|at| (at.wrapping_mul(2_654_435_761) >> 8 & 0xff) as f32 / 128.0 - 1.0)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn time(arguments: &Arguments, keys: usize) {
    let &Arguments { heads, kv_heads, head_dim, tokens, times, .. } = arguments;
    let count = kv_heads * keys * head_dim;
    let query: Vec<f32> = numbers(heads * tokens * head_dim).map(|x| x / 3.0).collect();
    let short: Vec<f32> = query.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
    let floats: Vec<f32> = numbers(2 * count).collect();
    let halves: Vec<f16> = numbers(2 * count).map(f16::from_f32).collect();
    let brains: Vec<bf16> = numbers(2 * count).map(bf16::from_f32).collect();
    let integers: Vec<i8> = numbers(2 * count).map(|x| (x * 127.0) as i8).collect();
    let scales = vec![1.0 / 127.0; kv_heads * keys];
    let (starts, ends) = ([keys - tokens], [keys]);
    let int8 = |elements| Cached::Int8 { elements: Heads::dense(elements, kv_heads, keys, head_dim), scales: &scales };
    let brain = [&brains[..count], &brains[count..]].map(|own| Heads::dense(own, kv_heads, keys, head_dim).into());
    let forms: [(&str, &[f32], [Cached<'_>; 2]); 5] = [
        (
            "f32",
            &query,
            [&floats[..count], &floats[count..]].map(|own| Heads::dense(own, kv_heads, keys, head_dim).into()),
        ),
        (
            "f16",
            &query,
            [&halves[..count], &halves[count..]].map(|own| Heads::dense(own, kv_heads, keys, head_dim).into()),
        ),
        ("bf16", &query, brain),
        ("bf16 all", &short, brain),
        ("int8", &query, [&integers[..count], &integers[count..]].map(int8)),
    ];
    let mut seconds = [const { Vec::new() }; 5];
    let mut output = vec![0.0; tokens * heads * head_dim];
    for _ in 0..times.max(1) {
        for ((_, query, [key, value]), seconds) in forms.iter().zip(&mut seconds) {
            let problem = Attention {
                batch: 1,
                heads,
                kv_heads,
                tokens,
                capacity: keys,
                head_dim,
                value_dim: head_dim,
                query: Heads::dense(query, heads, tokens, head_dim),
                key: *key,
                value: *value,
                scale: (head_dim as f32).sqrt().recip(),
                sinks: None,
                masks: Masks { causal: true, ..Masks::full(&starts, &ends) },
            };
            let start = Instant::now();
            match tokens {
                1 => decode(&problem, black_box(&mut output)),
                _ => flash(&problem, black_box(&mut output)),
            }
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let medians = seconds.map(median);
    for ((name, ..), seconds) in forms.iter().zip(medians) {
        println!("{keys:6} keys {name:8} {:8.3} ms, {:.2} of f32", seconds * 1e3, seconds / medians[0]);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    Parallelism::threads(arguments.threads)?.run(|| arguments.keys.iter().for_each(|keys| time(&arguments, *keys)));
    Ok(())
}
