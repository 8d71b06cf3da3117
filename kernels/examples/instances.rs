//! Launches every kernel instance that the modules can use on a CUDA device, each once, on small tensors.
//!
//! `scripts/ptxas.py` runs this with a driver that computes nothing, and keeps the compiler's output for each kernel. Every launch
//! is announced on standard error, so that the output after it can be assigned to it:
//!
//! ```text
//! instance: decode f16 head 128 group 4 tokens 1 splits 4
//! ```
//!
//! An argument restricts it to the instances whose announcement contains it.

use burn_deepspeed_core::block::{BlockFormat, UNIT_BYTES};
use burn_deepspeed_core::kv_source::KvSource;
use burn_deepspeed_core::layout::{Orientation, RotaryLayout};
use burn_deepspeed_core::qk_norm::QkNormKind;
use burn_deepspeed_core::visibility::Window;
use burn_deepspeed_kernels::cube::cache_write::{self, CacheWrite, HeadNorm, Rotation, Squares};
use burn_deepspeed_kernels::cube::gemv::{self, Gemv, Int8, Matrix, NormKind};
use burn_deepspeed_kernels::cube::prefill::mma;
use burn_deepspeed_kernels::cube::{
    Attention, Blocks, CacheTensor, Dequantise, HiddenKeys, Machine, MaskArguments, Rules, TensorHandle, Unsupported,
    decode, dequantise, norm, pad_transform, prefill, softmax,
};
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::prelude::*;
use half::{bf16, f16};

type Tensor = TensorHandle<CudaRuntime>;

const HEAD_SIZES: [usize; 8] = [36, 40, 64, 80, 96, 128, 160, 256];

/// The device, and the words for what it is asked.
struct Lab {
    client: ComputeClient<CudaRuntime>,
    machine: Machine,
    /// What the announcement of an instance must contain.
    only: String,
}

/// An element type and its name.
#[derive(Clone, Copy)]
struct Element(StorageType, &'static str);

fn f32_type() -> StorageType {
    f32::as_type_native_unchecked().storage_type()
}

fn elements() -> [Element; 3] {
    [
        Element(f32_type(), "f32"),
        Element(f16::as_type_native_unchecked().storage_type(), "f16"),
        Element(bf16::as_type_native_unchecked().storage_type(), "bf16"),
    ]
}

fn main() {
    let client = CudaRuntime::client(&CudaDevice::default());
    let lab = Lab { machine: Machine::new(&client), client, only: std::env::args().nth(1).unwrap_or_default() };
    for element in elements() {
        lab.cache_writes(element);
        lab.squares(element);
        lab.decodes(element);
        lab.prefills(element);
        lab.norms(element);
        lab.softmaxes(element);
        lab.gemvs(element);
        lab.int8_gemvs(element);
        lab.block_gemvs(element);
        lab.dequantised(element);
        lab.tensor_core_gemvs(element);
        let (heads, padded) = (lab.tensor(&[1, 2, 3, 40], element.0), lab.tensor(&[1, 2, 3, 64], element.0));
        let arguments = pad_transform::PadTransform { heads: &heads, padded: &padded };
        lab.announce(&format!("pad_transform {}", element.1), || {
            pad_transform::launch(&lab.client, &lab.machine, arguments.clone())
        });
    }
}

impl Lab {
    /// A tensor as the runtime lays it out, its rows pitched.
    fn tensor(&self, shape: &[usize], elements: StorageType) -> Tensor {
        TensorHandle::empty(&self.client, shape.to_vec(), elements)
    }

    fn flags(&self, shape: &[usize]) -> Tensor {
        self.tensor(shape, u8::as_type_native_unchecked().storage_type())
    }

    fn int8(&self, shape: &[usize]) -> Tensor {
        self.tensor(shape, i8::as_type_native_unchecked().storage_type())
    }

    /// Launches, and waits for the compiler. Panics if a kernel declines or does not compile.
    fn announce(&self, label: &str, launch: impl FnOnce() -> Result<(), Unsupported>) {
        if !label.contains(&self.only) {
            return;
        }
        eprintln!("instance: {label}");
        launch().unwrap_or_else(|reason| panic!("{label}: {reason}"));
        cubecl::future::block_on(self.client.sync()).unwrap_or_else(|error| panic!("{label}: {error}"));
    }

    fn cache_writes(&self, Element(elements, name): Element) {
        let rotary = |layout, half: usize| {
            let table = self.tensor(&[1, 3, half], f32_type());
            Some(Rotation { layout, cos: table.clone(), sin: table })
        };
        for (label, head, rotation) in [
            ("plain", 128, None),
            ("half", 128, rotary(RotaryLayout::Half, 64)),
            ("half, partial", 80, rotary(RotaryLayout::Half, 10)),
            ("interleaved", 128, rotary(RotaryLayout::Interleaved, 64)),
            ("interleaved, partial", 96, rotary(RotaryLayout::Interleaved, 7)),
        ] {
            let cache = self.tensor(&[2, 2, 16, head], elements);
            let bounds = self.tensor(&[2, 2], u32::as_type_native_unchecked().storage_type());
            for bounds in [None, Some(&bounds)] {
                let values = self.tensor(&[2, 2, 16, head], elements);
                let arguments = CacheWrite {
                    qkv: &self.tensor(&[2, 3, 8 * head], elements),
                    source: KvSource::Own,
                    query: &self.tensor(&[2, 4, 3, head], elements),
                    key: CacheTensor::floats(&cache),
                    value: CacheTensor::floats(&values),
                    norm: None,
                    rotation: rotation.as_ref(),
                    factors: None,
                    bounds,
                    start: 0,
                    end: 3,
                };
                let int8 = self.int8(&[2, 2, 16, head]);
                let scales = self.tensor(&[2, 2, 16], f32_type());
                let quantised = CacheWrite {
                    key: CacheTensor::int8(&int8, &scales),
                    value: CacheTensor::int8(&int8, &scales),
                    ..arguments
                };
                let rows = if bounds.is_some() { "ragged" } else { "even" };
                let norm = self.head_norm(head);
                let normed = |arguments| CacheWrite { norm: Some(&norm), ..arguments };
                let normed = [(normed(arguments), ", norm"), (normed(quantised), ", norm, int8 cache")];
                for (arguments, cache) in [(arguments, ""), (quantised, ", int8 cache")]
                    .into_iter()
                    .chain(normed)
                    .take(if bounds.is_some() { 2 } else { 4 })
                {
                    self.announce(&format!("cache_write {name} {label}, {rows} rows{cache}"), || {
                        cache_write::launch(&self.client, &self.machine, arguments)
                    });
                }
            }
        }
    }

    /// The sums of squares of 4 query heads and 2 key heads.
    fn squares(&self, Element(elements, name): Element) {
        let (qkv, sums) = (self.tensor(&[2, 3, 8 * 128], elements), self.tensor(&[2, 3, 2], f32_type()));
        self.announce(&format!("squares {name}"), || {
            let squares = Squares { qkv: &qkv, features: [4 * 128, 2 * 128], sums: &sums };
            cache_write::launch_squares(&self.client, &self.machine, squares)
        });
    }

    /// LayerNorm of 4 query heads and 2 key heads, with weights of their own.
    fn head_norm(&self, head: usize) -> HeadNorm<CudaRuntime> {
        HeadNorm {
            kind: QkNormKind::LayerNorm,
            epsilon: 1e-5,
            plus_one: false,
            after_rotation: false,
            values: false,
            weights: Some([4, 2].map(|heads| self.tensor(&[heads, head], f32_type()))),
            sums: None,
        }
    }

    /// Launches on tensors of `[batch, heads, tokens, head]`, with a key head for every `group` query heads. If `int8` is set,
    /// the cache is int8.
    #[allow(clippy::too_many_arguments, reason = "the parts of an instance")]
    fn attention(
        &self,
        label: &str,
        elements: StorageType,
        [head, group, tokens, keys]: [usize; 4],
        masks: &MaskArguments<CudaRuntime>,
        int8: bool,
        launch: impl FnOnce(Attention<'_, CudaRuntime>) -> Result<(), Unsupported>,
    ) {
        let (batch, heads) = (2, 8);
        let shape = [batch, heads / group, keys, head];
        let cache = if int8 { self.int8(&shape) } else { self.tensor(&shape, elements) };
        let scales = self.tensor(&shape[..3], f32_type());
        let problem = Attention {
            query: &self.tensor(&[batch, heads, tokens, head], elements),
            key: CacheTensor { elements: &cache, scales: int8.then_some(&scales) },
            value: CacheTensor { elements: &cache, scales: int8.then_some(&scales) },
            context: &self.tensor(&[batch, heads, tokens, head], elements),
            scale: 0.1,
            sinks: None,
            masks,
            keys,
        };
        self.announce(label, || launch(problem));
    }

    fn rules(causal: bool) -> Rules {
        Rules { causal, window: None, softcap: None, start: 0, end: 512 }
    }

    /// Every mask by itself, and all together.
    fn masks(&self, tokens: usize, keys: usize) -> Vec<(&'static str, MaskArguments<CudaRuntime>)> {
        let plain = || MaskArguments::new(Self::rules(true));
        let bounds = self.tensor(&[2, 2], u32::as_type_native_unchecked().storage_type());
        let positions = self.tensor(&[2, keys], i32::as_type_native_unchecked().storage_type());
        let hidden = |positions| Some(HiddenKeys { hidden: self.flags(&[2, keys]), positions });
        let pairs = self.flags(&[1, 1, tokens, keys]);
        let bias = self.tensor(&[1, 8, tokens, keys], f32_type());
        let slopes = self.tensor(&[8], f32_type());
        vec![
            ("full", MaskArguments::new(Self::rules(false))),
            ("window", MaskArguments::new(Rules { window: Some(Window::Back(256)), ..Self::rules(true) })),
            ("symmetric window", MaskArguments::new(Rules { window: Some(Window::Around(128)), ..Self::rules(false) })),
            (
                "chunks",
                MaskArguments {
                    origins: Some(self.tensor(&[2], u32::as_type_native_unchecked().storage_type())),
                    ..MaskArguments::new(Rules { window: Some(Window::Chunk(256)), ..Self::rules(true) })
                },
            ),
            ("softcap", MaskArguments::new(Rules { softcap: Some(30.0), ..Self::rules(true) })),
            ("ragged", MaskArguments { bounds: Some(bounds.clone()), ..plain() }),
            ("padded", MaskArguments { hidden_keys: hidden(None), ..plain() }),
            ("pairs", MaskArguments { hidden_pairs: Some(pairs.clone()), ..plain() }),
            ("bias", MaskArguments { bias: Some(bias.clone()), ..plain() }),
            ("alibi", MaskArguments { slopes: Some(slopes.clone()), ..plain() }),
            (
                "alibi, padded",
                MaskArguments { hidden_keys: hidden(Some(positions.clone())), slopes: Some(slopes.clone()), ..plain() },
            ),
            (
                "every mask",
                MaskArguments {
                    rules: Rules { window: Some(Window::Back(256)), softcap: Some(30.0), ..Self::rules(true) },
                    bounds: Some(bounds),
                    hidden_keys: hidden(Some(positions)),
                    hidden_pairs: Some(pairs),
                    bias: Some(bias),
                    slopes: Some(slopes),
                    origins: None,
                },
            ),
        ]
    }

    fn decodes(&self, Element(elements, name): Element) {
        let causal = MaskArguments::new(Self::rules(true));
        let run_on = |int8, head, group, tokens, splits, masks: &_, more: &str| {
            let label = format!("decode {name} head {head} group {group} tokens {tokens} splits {splits}{more}");
            self.attention(&label, elements, [head, group, tokens, 512], masks, int8, |problem| {
                decode::launch(&self.client, &self.machine, problem, Some(splits)).map(|_| ())
            });
        };
        let run = |head, group, tokens, splits, masks: &_, more: &str| {
            run_on(false, head, group, tokens, splits, masks, more)
        };
        for head in HEAD_SIZES.into_iter().chain([512]) {
            run(head, 1, 1, 4, &causal, "");
            run(head, 4, 1, 1, &causal, "");
            run(head, 8, 2, 4, &causal, "");
            run_on(true, head, 1, 1, 4, &causal, ", int8 cache");
            run_on(true, head, 4, 1, 1, &causal, ", int8 cache");
        }
        for (label, masks) in self.masks(2, 512) {
            run(128, 4, 2, 4, &masks, &format!(", {label}"));
        }
        let sinks = self.tensor(&[8], f32_type());
        for (group, splits) in [(1, 1), (8, 1), (8, 4)] {
            let label = format!("decode {name} head 64 group {group} tokens 1 splits {splits}, sinks");
            self.attention(&label, elements, [64, group, 1, 512], &causal, false, |problem| {
                let problem = Attention { sinks: Some(&sinks), ..problem };
                decode::launch(&self.client, &self.machine, problem, Some(splits)).map(|_| ())
            });
        }
    }

    fn prefills(&self, Element(elements, name): Element) {
        let causal = MaskArguments::new(Self::rules(true));
        let simt_on = |int8, head, group, masks: &_, more: &str| {
            let label = format!("prefill simt {name} head {head} group {group}{more}");
            self.attention(&label, elements, [head, group, 65, 512], masks, int8, |problem| {
                prefill::simt::launch(&self.client, &self.machine, problem)
            });
        };
        let simt = |head, group, masks: &_, more: &str| simt_on(false, head, group, masks, more);
        for head in HEAD_SIZES.into_iter().chain((elements.size() == 2).then_some(512)) {
            simt(head, 1, &causal, "");
            simt_on(true, head, 1, &causal, ", int8 cache");
        }
        for (label, masks) in self.masks(65, 512) {
            simt(128, 4, &masks, &format!(", {label}"));
        }
        let sinks = self.tensor(&[8], f32_type());
        let label = format!("prefill simt {name} head 64 group 8, sinks");
        self.attention(&label, elements, [64, 8, 65, 512], &causal, false, |problem| {
            let problem = Attention { sinks: Some(&sinks), ..problem };
            prefill::simt::launch(&self.client, &self.machine, problem)
        });
        let engine = |head| mma::Engine::tensor_cores(&self.client, &self.machine, elements, head);
        // Planes take 32 rows where that fills the device.
        for (rows, processors) in [(16, u32::MAX), (32, 0)] {
            let machine = Machine { processors, ..self.machine };
            let mma_on = |int8, head, group, masks: &_, more: &str| {
                let Ok(engine) = engine(head) else { return };
                let label = format!("prefill mma {name} head {head} group {group}, {rows} rows{more}");
                self.attention(&label, elements, [head, group, 65, 512], masks, int8, |problem| {
                    mma::launch(&self.client, &machine, problem, engine)
                });
            };
            let mma = |head, group, masks: &_, more: &str| mma_on(false, head, group, masks, more);
            // Larger heads have planes of 16 rows only, and so have masks that hide some of what is in range.
            for head in HEAD_SIZES.into_iter().filter(|head| rows == 16 || *head <= 128) {
                mma(head, 1, &causal, "");
                mma_on(true, head, 1, &causal, ", int8 cache");
            }
            for head in [64, 128] {
                let Ok(engine) = engine(head) else { continue };
                let label = format!("prefill mma {name} head {head} group 8, {rows} rows, sinks");
                self.attention(&label, elements, [head, 8, 65, 512], &causal, false, |problem| {
                    let problem = Attention { sinks: Some(&sinks), ..problem };
                    mma::launch(&self.client, &machine, problem, engine)
                });
            }
            let hides = |label: &str| label.contains("pad") || label.contains("pairs") || label == "every mask";
            for (label, masks) in self.masks(65, 512) {
                if rows == 16 || !hides(label) {
                    mma(128, 4, &masks, &format!(", {label}"));
                }
                if rows == 32 && ["softcap", "bias", "alibi", "every mask"].contains(&label) {
                    mma(64, 4, &masks, &format!(", {label}"));
                }
            }
            if rows == 32 && elements.size() == 2 {
                self.light_biases(Element(elements, name), &machine);
            }
        }
    }

    /// Biases of 16 bits, for which cubes have 256 rows.
    fn light_biases(&self, Element(elements, name): Element, machine: &Machine) {
        let bias = self.tensor(&[1, 8, 256, 512], elements);
        let bounds = self.tensor(&[2, 2], u32::as_type_native_unchecked().storage_type());
        let window = Rules { window: Some(Window::Back(256)), ..Self::rules(true) };
        let rules = [("causal", Self::rules(true)), ("full", Self::rules(false)), ("window", window)];
        for (label, rules) in rules {
            for (bounds, ragged) in [(None, ""), (Some(bounds.clone()), ", ragged")] {
                let masks = MaskArguments { bias: Some(bias.clone()), bounds, ..MaskArguments::new(rules) };
                for head in [72, 96, 128] {
                    let Ok(engine) = mma::Engine::tensor_cores(&self.client, machine, elements, head) else { continue };
                    let label =
                        format!("prefill mma {name} head {head} group 1, 32 rows, {name} bias, {label}{ragged}");
                    self.attention(&label, elements, [head, 1, 256, 512], &masks, false, |problem| {
                        mma::launch(&self.client, machine, problem, engine)
                    });
                }
            }
        }
    }

    fn norms(&self, Element(elements, name): Element) {
        for (rms, features) in [(false, 768), (false, 4096), (true, 4096), (true, 4099), (false, 40960)] {
            let (rows, gamma) = (self.tensor(&[3, features], elements), self.tensor(&[features], elements));
            let arguments = norm::Norm {
                input: &rows,
                residual: None,
                gamma: &gamma,
                beta: (!rms).then_some(&gamma),
                output: &self.tensor(&[3, features], elements),
                epsilon: 1e-5,
                rms,
            };
            let kind = if rms { "RMSNorm" } else { "LayerNorm" };
            self.announce(&format!("norm {name} {kind} of {features}"), || {
                norm::launch(&self.client, &self.machine, arguments)
            });
        }
    }

    fn softmaxes(&self, Element(elements, name): Element) {
        for keys in [128, 2048, 8192, 10007, 32768] {
            for (triangular, window, masked) in [(None, None, false), (Some(0), None, true), (Some(0), Some(256), true)]
            {
                let mask = self.tensor(&[1, 1, 3, keys], elements);
                let alibi = self.tensor(&[2, 1, keys], elements);
                let arguments = softmax::Softmax {
                    scores: &self.tensor(&[1, 2, 3, keys], elements),
                    scale: 1.0,
                    alibi: window.map(|_| &alibi),
                    head_offset: 0,
                    mask: masked.then_some(&mask),
                    triangular,
                    window,
                };
                let what = match (triangular, window) {
                    (None, _) => "plain",
                    (_, None) => "triangle and mask",
                    _ => "triangle, window, mask and ALiBi",
                };
                self.announce(&format!("softmax {name} rows of {keys}, {what}"), || {
                    softmax::launch(&self.client, &self.machine, arguments)
                });
            }
        }
    }

    fn gemvs(&self, Element(elements, name): Element) {
        let (inputs, outputs) = (4096, 6144);
        for (orientation, shape) in
            [(Orientation::OutputInput, [outputs, inputs]), (Orientation::InputOutput, [inputs, outputs])]
        {
            let weights = self.tensor(&shape, elements);
            for rows in [1, 2, 4, 8] {
                for kind in [None, Some(NormKind::LayerNorm), Some(NormKind::RmsNorm)] {
                    let matrix = Matrix::Dense(&weights, orientation);
                    self.gemv(&format!("gemv {name} {orientation:?}"), elements, matrix, [rows, inputs, outputs], kind);
                }
            }
        }
    }

    fn int8_gemvs(&self, Element(elements, name): Element) {
        let outputs = 6144;
        // Loads of 16, 8 and 4 bytes, and of one.
        for (inputs, wide) in [(4096, 4096), (4096, 64), (4088, 4088), (4092, 4092), (4095, 4095)] {
            let bytes = self.tensor(&[outputs, inputs], i8::as_type_native_unchecked().storage_type());
            let scales = self.tensor(&[outputs, inputs / wide], f32_type());
            for rows in if inputs == 4096 { &[1, 2, 4, 8][..] } else { &[1] } {
                for kind in [None, Some(NormKind::LayerNorm)] {
                    let matrix = Matrix::Int8(Int8 { elements: &bytes, scales: &scales, blocks: [1, wide] });
                    let label = format!("gemv {name} int8 of {inputs} in blocks of {wide}");
                    self.gemv(&label, elements, matrix, [*rows, inputs, outputs], kind);
                }
            }
        }
    }

    /// What a few rows of each format take, and rows of blocks that begin inside of a word, on tensor cores and without.
    fn block_gemvs(&self, Element(elements, name): Element) {
        let (inputs, outputs) = (4096, 6144);
        use BlockFormat::{MXFP4, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
        for format in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, MXFP4] {
            let blocks = self.blocks(format, [outputs + 1, inputs]);
            let common = matches!(format, Q4_0 | Q8_0 | Q4_K | Q6_K);
            let many = |rows: &'static [usize]| if common { rows } else { &[1] };
            for (tensor_cores, first, rows) in
                [(true, 0, many(&[1, 2, 4, 8])), (true, 2, &[1]), (false, 0, many(&[1, 8]))]
            {
                let lab = Self {
                    client: self.client.clone(),
                    machine: Machine { tensor_cores, ..self.machine },
                    only: self.only.clone(),
                };
                let kernel = if tensor_cores { "gemv mma" } else { "gemv" };
                let place = if first > 0 { " inside of words" } else { "" };
                for rows in rows {
                    for kind in [None, Some(NormKind::RmsNorm)] {
                        let matrix = Matrix::Blocks(Blocks { bytes: &blocks, first, format, shape: [outputs, inputs] });
                        let label = format!("{kernel} {name} {format}{place}");
                        lab.gemv(&label, elements, matrix, [*rows, inputs, outputs], kind);
                    }
                }
            }
        }
    }

    fn dequantised(&self, Element(elements, name): Element) {
        let shape = [3, 1024];
        for format in BlockFormat::ALL {
            let (bytes, dense) = (self.blocks(format, shape), self.tensor(&shape, elements));
            let arguments =
                Dequantise { blocks: Blocks { bytes: &bytes, first: 0, format, shape }, dense: &dense, row: 0 };
            self.announce(&format!("dequantise {name} {format}"), || {
                dequantise::launch(&self.client, &self.machine, arguments)
            });
        }
    }

    /// The bytes of a matrix of blocks.
    fn blocks(&self, format: BlockFormat, [outputs, inputs]: [usize; 2]) -> Tensor {
        let bytes = outputs * inputs / format.elements() * format.bytes();
        self.tensor(&[bytes.next_multiple_of(UNIT_BYTES)], i8::as_type_native_unchecked().storage_type())
    }

    /// What tensor cores take: cubes of 1, 2 and 6 blocks of outputs besides the 3 of the other products, rows that are no whole
    /// steps. Then what they decline, on the other kernel.
    fn tensor_core_gemvs(&self, Element(elements, name): Element) {
        if elements.size() != 2 {
            return;
        }
        let i8_type = i8::as_type_native_unchecked().storage_type();
        for (inputs, outputs) in [(4096, 2048), (4096, 4096), (4096, 12288), (4112, 12288), (4100, 6144)] {
            let (weights, bytes) =
                (self.tensor(&[outputs, inputs], elements), self.tensor(&[outputs, inputs], i8_type));
            for kind in [None, Some(NormKind::LayerNorm)] {
                let sizes = [8, inputs, outputs];
                let matrix = Matrix::Dense(&weights, Orientation::OutputInput);
                let kernel = if inputs % 16 == 0 { "gemv mma" } else { "gemv" };
                self.gemv(&format!("{kernel} {name} {inputs} to {outputs}"), elements, matrix, sizes, kind);
                for wide in if inputs == 4096 { vec![4096, 64, 32] } else { vec![inputs] } {
                    let scales = self.tensor(&[outputs, inputs / wide], f32_type());
                    let matrix = Matrix::Int8(Int8 { elements: &bytes, scales: &scales, blocks: [1, wide] });
                    let kernel = if wide == 32 { "gemv" } else { kernel };
                    let label = format!("{kernel} {name} int8 of {inputs} to {outputs} in blocks of {wide}");
                    self.gemv(&label, elements, matrix, sizes, kind);
                }
            }
        }
    }

    /// A product of a matrix, with a norm before it and a bias after it, or with neither.
    fn gemv(
        &self,
        label: &str,
        elements: StorageType,
        matrix: Matrix<'_, CudaRuntime>,
        [rows, inputs, outputs]: [usize; 3],
        kind: Option<NormKind>,
    ) {
        let (gamma, bias) = (self.tensor(&[inputs], elements), self.tensor(&[outputs], elements));
        let arguments = Gemv {
            input: &self.tensor(&[rows, inputs], elements),
            norm: kind.map(|kind| gemv::Norm {
                kind,
                gamma: &gamma,
                beta: (kind == NormKind::LayerNorm).then_some(&gamma),
                epsilon: 1e-5,
            }),
            matrix,
            bias: kind.is_some().then_some(&bias),
            output: &self.tensor(&[rows, outputs], elements),
            offset: 0,
            normed: None,
        };
        let norm = kind.map_or(String::new(), |kind| format!(", {kind:?} and bias"));
        self.announce(&format!("{label} rows {rows}{norm}"), || gemv::launch(&self.client, &self.machine, arguments));
    }
}
