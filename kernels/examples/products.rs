//! Times products on the CPU next to a loop of multiply-adds in registers, which no product can exceed.
//!
//! ```text
//! cargo run --release -p burn-deepspeed-kernels --example products -- --threads 1 --inputs 4096 --outputs 12288
//! ```

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::data_type::InputBits;
use burn_deepspeed_kernels::cpu::pages::move_to_huge_pages;
use burn_deepspeed_kernels::cpu::product::{
    AnyMatrix, BlockMatrix, InputElements, Int8Matrix, Matrix, Product, has_rounded, product, rounded_product,
};
use burn_deepspeed_kernels::cpu::threads::Parallelism;
use clap::Parser;
use pulp::{Arch, Simd, WithSimd};

/// Sums of the loop: more than a multiplication's latency needs, and few enough for 16 registers.
const SUMS: usize = 12;

/// Rounds of the loop.
const ROUNDS: usize = 100_000;

#[derive(Parser)]
#[command(about = "Times products on the CPU")]
struct Arguments {
    /// Threads.
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    /// Features that go in.
    #[arg(long, default_value = "1024")]
    inputs: usize,
    /// Features that come out.
    #[arg(long, default_value = "3072")]
    outputs: usize,
    /// Rows of the sequence, several separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,32,64,128,129,256,512")]
    rows: Vec<usize>,
    /// Formats of blocks, several separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "q4_0,q8_0")]
    formats: Vec<BlockFormat>,
    /// Times matrices of blocks only.
    #[arg(long)]
    blocks: bool,
    /// Times products whose name contains this only.
    #[arg(long, default_value = "")]
    only: String,
    /// How often each product runs.
    #[arg(long, default_value = "20")]
    times: usize,
}

/// Multiply-adds in registers; returns their number.
struct Loop;

impl WithSimd for Loop {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let (factor, other) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(0.25)));
        let mut sums = [simd.splat_f32s(0.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(factor, other, *sum);
            }
        }
        black_box(sums.map(|sum| simd.reduce_sum_f32s(sum)));
        (SUMS * ROUNDS * S::F32_LANES) as f64
    }
}

/// Seconds of the median run.
fn median(times: usize, mut work: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..times.max(1))
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Numbers of up to 24 significant bits, or of 8.
fn numbers(count: usize, elements: InputElements) -> Vec<f32> {
    let bits = match elements {
        InputElements::F32 | InputElements::RoundToBf16 => 24,
        InputElements::Bf16 => 8,
    };
    let whole = |at: usize| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits);
    (0..count).map(|at| whole(at) as f32 / (1 << (bits - 1)) as f32 - 1.0).collect()
}

fn time<W: AnyMatrix>(
    arguments: &Arguments,
    name: &str,
    elements: InputElements,
    matrix: W,
    product: impl Fn(&Product<'_, W>, &mut [f32]),
) {
    if !name.contains(&arguments.only) {
        return;
    }
    for &rows in &arguments.rows {
        let input = numbers(rows * arguments.inputs, elements);
        let mut output = vec![0.0; rows * arguments.outputs];
        let width = arguments.outputs;
        let problem = Product { input: &input, elements, sequence: rows, matrix, bias: None, width, first: 0 };
        let peak = median(arguments.times, || {
            black_box(rayon::broadcast(|_| Arch::new().dispatch(Loop)));
        });
        let peak = rayon::current_num_threads() as f64 * Arch::new().dispatch(Loop) / peak;
        product(&problem, &mut output);
        let seconds = median(arguments.times, || product(&problem, &mut output));
        let rate = (rows * arguments.inputs * arguments.outputs) as f64 / seconds;
        println!(
            "{name:9} {rows:5} rows {:10.3} ms {:7.1} GFLOP/s, {:4.0} % of the loop",
            seconds * 1e3,
            2.0 * rate / 1e9,
            100.0 * rate / peak
        );
    }
}

/// Times a matrix of blocks, with rows as [`product`] has them, and rounded to 16 and to 8 bits.
fn time_blocks(arguments: &Arguments, format: BlockFormat, floats: &[f32]) {
    let Some(row) = format.row_bytes(arguments.inputs) else {
        return println!("{format}: {} inputs are no whole blocks", arguments.inputs);
    };
    let blocks = match format.can_quantise() {
        true => format.quantise(floats),
        // Each f16 of them is about 0.06.
        false => vec![0x2b; arguments.outputs * row],
    };
    let matrix = BlockMatrix { format, blocks: &blocks, inputs: arguments.inputs, outputs: arguments.outputs };
    time(arguments, &format.to_string(), InputElements::F32, matrix, product);
    for (bits, name) in [(InputBits::Fourteen, 16), (InputBits::Eight, 8)].into_iter().filter(|_| has_rounded()) {
        let name = format!("{format}, {name}");
        time(arguments, &name, InputElements::F32, matrix, |problem, output| rounded_product(problem, bits, output));
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let (inputs, outputs) = (arguments.inputs, arguments.outputs);
    let floats = numbers(inputs * outputs, InputElements::Bf16);
    let (any, short) = (InputElements::F32, InputElements::Bf16);
    let integers: Vec<i8> = floats.iter().map(|x| (x * 127.0) as i8).collect();
    let scales = vec![1.0 / 127.0; outputs];
    let int8 =
        Int8Matrix { elements: &integers, inputs, outputs, scales: &scales, output_block: 1, input_block: inputs };
    let blocks = BlockFormat::BF16.quantise(&floats);
    let bf16 = BlockMatrix { format: BlockFormat::BF16, blocks: &blocks, inputs, outputs };
    let all_bits = numbers(inputs * outputs, InputElements::F32);
    let halves = BlockFormat::F16.quantise(&all_bits);
    let f16 = BlockMatrix { format: BlockFormat::F16, blocks: &halves, inputs, outputs };
    // As the parameters of modules are.
    for floats in [&floats, &all_bits] {
        move_to_huge_pages(floats);
    }
    for bytes in [&blocks, &halves] {
        move_to_huge_pages(bytes);
    }
    move_to_huge_pages(&integers);
    Parallelism::threads(arguments.threads)?.run(|| {
        for &format in &arguments.formats {
            time_blocks(&arguments, format, &floats);
        }
        if arguments.blocks {
            return;
        }
        for (name, floats, input_stride, output_stride) in
            [("out,in", &all_bits, 1, inputs), ("in,out", &all_bits, outputs, 1), ("of bf16", &floats, 1, inputs)]
        {
            time(
                &arguments,
                name,
                any,
                Matrix { elements: floats, inputs, outputs, input_stride, output_stride },
                product,
            );
        }
        time(&arguments, "bf16", any, bf16, product);
        time(&arguments, "bf16 both", short, bf16, product);
        time(&arguments, "rounded", InputElements::RoundToBf16, bf16, product);
        time(&arguments, "f16", any, f16, product);
        time(&arguments, "f16, bf16", short, f16, product);
        time(&arguments, "int8", any, int8, product);
        if has_rounded() {
            time(&arguments, "14 bits", any, int8, |problem, output| {
                rounded_product(problem, InputBits::Fourteen, output)
            });
            time(&arguments, "8 bits", any, int8, |problem, output| rounded_product(problem, InputBits::Eight, output));
        }
    });
    Ok(())
}
