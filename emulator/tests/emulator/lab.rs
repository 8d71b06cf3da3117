//! Kernels in PTX, run on memory of this process.

use cuda::error::{Fault, Misuse};
use cuda::{Device, Launch, Module, launch};

/// A word that counts as unwritten.
pub const CANARY: u32 = 0x7fc0_beef;

/// A kernel `k` with this body. Its parameters are addresses, in `%p0` to `%p3`; `%t` is the thread. There are registers of every
/// kind: `%q` predicates, `%h` of 16 bits, `%r` of 32, `%x` of 64.
pub fn kernel(declarations: &str, body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d)\n{{\n\
         .reg .pred %q<8>; .reg .b16 %h<8>; .reg .b32 %t; .reg .b32 %r<32>; .reg .b64 %p<4>; .reg .b64 %x<32>;\n{declarations}\n\
         ld.param.u64 %p0, [a]; ld.param.u64 %p1, [b]; ld.param.u64 %p2, [c]; ld.param.u64 %p3, [d];\n\
         mov.u32 %t, %tid.x;\n{body}\nret;\n}}\n"
    )
}

/// What a kernel runs on.
pub struct Run {
    pub grid: u32,
    pub block: u32,
    pub dynamic_shared: usize,
    pub seed: u64,
    /// Threads of the host.
    pub threads: usize,
}

impl Default for Run {
    fn default() -> Self {
        Self { grid: 1, block: 32, dynamic_shared: 0, seed: 0, threads: 1 }
    }
}

impl Run {
    /// Runs a kernel on buffers; each is `Ok` with what it holds, or `Err` with its size if nothing has written it. The buffers
    /// afterwards.
    pub fn on(&self, ptx: &str, buffers: &[Result<Vec<u8>, usize>]) -> Result<Vec<Vec<u8>>, Box<Fault>> {
        let device = Device::new();
        let module = Module::load(ptx, &device).unwrap_or_else(|error| panic!("{error}"));
        let sizes = buffers.iter().map(|buffer| buffer.as_ref().map_or_else(|size| *size, Vec::len));
        let starts: Vec<u64> = sizes.clone().map(|size| device.allocate(size).unwrap()).collect();
        for (start, buffer) in starts.iter().zip(buffers) {
            if let Ok(bytes) = buffer {
                assert!(device.write(*start, bytes, &[CANARY]));
            }
        }
        let mut arguments = [0; 32];
        for (argument, start) in arguments.chunks_exact_mut(8).zip(&starts) {
            argument.copy_from_slice(&start.to_le_bytes());
        }
        let shape = Launch {
            grid: [self.grid, 1, 1],
            block: [self.block, 1, 1],
            dynamic_shared: self.dynamic_shared,
            seed: self.seed,
            lenient: false,
            sample: None,
        };
        launch(module.kernel("k").unwrap(), &shape, &arguments, &device.snapshot(0), self.threads)?;
        Ok(starts.iter().zip(sizes).map(|(start, size)| device.read(*start, size).unwrap()).collect())
    }

    /// The misuse of a kernel.
    pub fn misuse(&self, ptx: &str, buffers: &[Result<Vec<u8>, usize>]) -> Misuse {
        self.on(ptx, buffers).expect_err("the kernel should have been stopped").misuse
    }
}

/// Numbers as bytes.
pub fn bytes<const N: usize, T: Copy>(values: &[T], to_bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| to_bytes(*value)).collect()
}

/// Bytes as words.
pub fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Runs an instruction on numbers of these widths, one set of inputs for each thread; the results. `operation` is followed by its
/// operands: the result and the inputs.
pub fn each(operation: &str, result: u32, inputs: &[u32], values: &[Vec<u64>]) -> Vec<u64> {
    let prefix = |bits: u32| match bits {
        16 => "%h",
        32 => "%r",
        _ => "%x",
    };
    let count = inputs.len();
    let mut body = String::from("mul.wide.u32 %x30, %t, 8; add.s64 %x31, %p1, %x30;\n");
    body += &format!("mul.wide.u32 %x29, %t, {}; add.s64 %x29, %p0, %x29;\n", 8 * count);
    let mut operands = format!("{}7", prefix(result));
    for (index, bits) in inputs.iter().enumerate() {
        let register = format!("{}{}", prefix(*bits), index + 1);
        body += &format!("ld.global.b64 %x28, [%x29+{}];\n", 8 * index);
        body += &match bits {
            64 => format!("mov.b64 {register}, %x28;\n"),
            bits => format!("cvt.u{bits}.u64 {register}, %x28;\n"),
        };
        operands += &format!(", {register}");
    }
    body += &format!("{operation} {operands};\n");
    body += &match result {
        64 => "mov.b64 %x28, %x7;\n".to_string(),
        bits => format!("cvt.u64.u{bits} %x28, {}7;\n", prefix(bits)),
    };
    body += "st.global.b64 [%x31], %x28;";
    let threads = values.len();
    let all: Vec<u64> = values.concat();
    let run = Run { block: threads as u32, ..Run::default() };
    let buffers = [Ok(bytes(&all, u64::to_le_bytes)), Err(8 * threads)];
    let found = run.on(&kernel("", &body), &buffers).unwrap_or_else(|fault| panic!("{operation}: {fault}"));
    found[1].chunks_exact(8).map(|value| u64::from_le_bytes(value.try_into().unwrap())).collect()
}

/// Numbers at the ends and in the middle of what fits into this many bits, and some without a pattern.
pub fn interesting(bits: u32) -> Vec<u64> {
    let top = 1u64 << (bits - 1);
    let mut all = vec![0, 1, 2, 3, 7, 31, 32, 33, 63, 64, top - 1, top, top + 1, top >> 1, u64::MAX, u64::MAX - 1];
    let mut random = 0x1234_5678_9abc_def0u64;
    for _ in 0..15 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        all.push(random ^ random >> 29);
    }
    all.into_iter().map(|value| if bits == 64 { value } else { value & ((1 << bits) - 1) }).collect()
}

/// The bits of floats with every kind of value.
pub fn interesting_floats() -> Vec<u64> {
    let all = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        1.5,
        -2.5,
        0.5,
        3.0e38,
        -3.0e38,
        1.0e-38,
        -1.0e-40,
        1.0e-45,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        0.1,
        1_234.567_8,
        -65504.0,
        65520.0,
        6.1e-5,
        5.9e-8,
        2.0f32.powi(24) + 1.0,
        0.333_333_34,
    ];
    all.iter().map(|value| u64::from(value.to_bits())).collect()
}

/// Every pair of two lists, in pieces of at most 1024.
pub fn pairs(first: &[u64], second: &[u64]) -> Vec<Vec<Vec<u64>>> {
    let all: Vec<Vec<u64>> = first.iter().flat_map(|a| second.iter().map(|b| vec![*a, *b])).collect();
    all.chunks(1024).map(<[_]>::to_vec).collect()
}

/// Checks an instruction of two inputs on every pair of interesting numbers.
pub fn check2(operation: &str, result: u32, bits: [u32; 2], expected: impl Fn(u64, u64) -> u64) {
    let [first, second] = bits.map(interesting);
    for values in pairs(&first, &second) {
        for (found, value) in each(operation, result, &bits, &values).into_iter().zip(&values) {
            assert_eq!(found, expected(value[0], value[1]), "{operation} of {value:x?}");
        }
    }
}

/// Checks an instruction of one input.
pub fn check1(operation: &str, result: u32, bits: u32, expected: impl Fn(u64) -> u64) {
    let values: Vec<Vec<u64>> = interesting(bits).into_iter().map(|value| vec![value]).collect();
    for (found, value) in each(operation, result, &[bits], &values).into_iter().zip(&values) {
        assert_eq!(found, expected(value[0]), "{operation} of {value:x?}");
    }
}

/// Checks an instruction on f32 against a function; a NaN is as good as another.
pub fn check_floats(operation: &str, count: usize, expected: impl Fn(&[f32]) -> f32) {
    let floats = interesting_floats();
    let third: Vec<u64> = floats.iter().step_by(3).copied().collect();
    let values: Vec<Vec<u64>> = match count {
        1 => floats.iter().map(|a| vec![*a]).collect(),
        2 => floats.iter().flat_map(|a| floats.iter().map(move |b| vec![*a, *b])).collect(),
        _ => {
            let pairs = floats.iter().flat_map(|a| floats.iter().map(move |b| (*a, *b)));
            pairs.flat_map(|(a, b)| third.iter().map(move |c| vec![a, b, *c])).collect()
        }
    };
    for values in values.chunks(1024) {
        let found = each(operation, 32, &vec![32; count], values);
        for (found, value) in found.into_iter().zip(values) {
            let inputs: Vec<f32> = value.iter().map(|bits| f32::from_bits(*bits as u32)).collect();
            let (found, expected) = (f32::from_bits(found as u32), expected(&inputs));
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{operation} of {inputs:?}: {found:?}, expected {expected:?}");
        }
    }
}
