//! The modules on a Vulkan device (lavapipe will do): which kernels run, how many, and where they write.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_deepspeed::config::MatrixFormat;
use burn_deepspeed::ops::{ContextProblem, Declined, Plan};
use burn_deepspeed::weight::BlockFormat;
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, ElementType, InferenceBackend, Operations,
    QkNorm, QkNormKind, QkNormWeights,
};
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

use crate::common::{golden, seeded};

#[path = "../../kernels/tests/device_panics/mod.rs"]
mod device_panics;

/// Burn's `Wgpu`, which records operations and fuses them.
pub type Fused = burn_wgpu::Wgpu;
/// The same device without fusion.
pub type Raw = burn_cubecl::CubeBackend<cubecl::wgpu::WgpuRuntime, f32, i32, u32>;

/// Runs a test, ends the run if the device's own thread panics, and asks the device for errors: it reports neither by itself.
pub fn checked<B: Backend>(test: impl FnOnce()) {
    device_panics::end_the_run();
    test();
    B::sync(&Default::default()).unwrap();
}

#[test]
#[cfg(feature = "autodiff")]
fn steps_agree_with_the_reference() {
    checked::<Fused>(|| {
        // One set of kernels: a device on the CPU takes minutes to compile more, and their own tests have them all.
        crate::kernels::steps_agree_with_the_reference::<Fused>(&[[6, 2, 40]], &[(Some(65), Some(0.5))], 2e-5)
    });
}

fn plan<B: InferenceBackend>(problem: &ContextProblem, device: &B::Device) -> Plan {
    B::Ops::plan_softmax_context(problem, device)
}

#[test]
fn kernels_say_which_takes_a_step_and_why_they_decline() {
    let device = Default::default();
    let good = ContextProblem::new(ElementType::F16, 1, 64, Some(ElementType::F16.into()));
    assert_eq!(plan::<Fused>(&good, &device), Plan::Kernel("cube::decode"));
    let prompt = ContextProblem { tokens: 100, ..good };
    assert_eq!(plan::<Fused>(&prompt, &device), Plan::Kernel("cube::prefill::simt"));
    for (problem, reason) in [
        (ContextProblem { dtype: ElementType::F64, cache: None, ..good }, Declined::ElementType(ElementType::F64)),
        (
            ContextProblem { cache: Some(ElementType::F32.into()), ..good },
            Declined::CacheType { dtype: ElementType::F16, cache: ElementType::F32 },
        ),
        (ContextProblem { head_dim: 577, ..good }, Declined::HeadDim { head_dim: 577, limit: 576 }),
        (ContextProblem { value_dim: 513, ..good }, Declined::ValueDim { value_dim: 513, limit: 512 }),
        (
            ContextProblem { dtype: ElementType::F32, cache: None, head_dim: 257, ..prompt },
            Declined::HeadDim { head_dim: 257, limit: 256 },
        ),
    ] {
        assert_eq!(plan::<Fused>(&problem, &device), Plan::Reference(reason));
        assert_eq!(plan::<Raw>(&problem, &device), Plan::Reference(reason));
    }
}

/// A layer with every part: norm with bias, QKV bias, rotary positions, grouped heads, output bias.
fn layer() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(64, 4)
        .with_dtype(DataType::Fp32)
        .with_num_kv(Some(2))
        .with_rotary_dim(Some(16))
        .with_num_hidden_layers(Some(1))
        .with_max_out_tokens(2048)
}

/// The kernels that the device runs for one decoding step after 1100 tokens, in order.
fn launches_of_a_step<B: InferenceBackend>(config: &DeepSpeedInferenceConfig, log: &std::path::Path) -> Vec<String> {
    let device = Default::default();
    let attention = config.init_self_attention::<B>(0, &device).unwrap();
    let mut cache = config.init_cache::<B>(1, &device).unwrap();
    cache.step(1100).unwrap().commit();
    let mut logged = std::fs::read_to_string(log).unwrap_or_default().lines().count();
    let mut launches = Vec::new();
    for seed in 0..3 {
        let input: Tensor<B, 3> = seeded([1, 1, 64], seed);
        B::sync(&device).unwrap();
        let mut step = cache.step(1).unwrap();
        let output = attention.forward(input, AttentionMask::none(), step.layer(0)).unwrap();
        step.commit();
        B::sync(&device).unwrap();
        drop(output);
        // A separate thread writes the log.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(String::from).collect();
        launches = lines[logged..].to_vec();
        logged = lines.len();
    }
    launches
}

/// Runs itself in a separate process, where no other test launches kernels.
#[test]
fn a_decoding_step_of_a_layer_is_five_launches() {
    const LOG: &str = "BURN_DEEPSPEED_TEST_LAUNCH_LOG";
    if let Some(log) = std::env::var_os(LOG) {
        let mut config = CubeClRuntimeConfig::default();
        config.profiling.logger.level = cubecl::config::profiling::ProfilingLogLevel::Minimal;
        config.profiling.logger.file = Some(log.clone().into());
        CubeClRuntimeConfig::set(config);
        let norm = |kind| layer().with_qk_norm(Some(QkNorm::new(kind, QkNormWeights::Shared, 1e-6)));
        let blocks = |format| layer().with_matrix_format(MatrixFormat::Blocks(format));
        for (config, product, write) in [
            (layer(), "Product", &["CacheWrite"][..]),
            (layer().with_sinks(true), "Product", &["CacheWrite"]),
            (norm(QkNormKind::Rms), "Product", &["CacheWriteNorm"]),
            (norm(QkNormKind::RmsOfAllHeads), "Product", &["CacheWriteSquares", "CacheWriteNorm"]),
            (blocks(BlockFormat::Q4_0), "ProductBlocks", &["CacheWrite"]),
        ] {
            let log = log.as_ref();
            for launches in [launches_of_a_step::<Fused>(&config, log), launches_of_a_step::<Raw>(&config, log)] {
                let names: Vec<&str> = launches.iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
                assert_eq!(names, [&[product], write, &["Decode", "Combine", product]].concat());
            }
        }
        // A format that the kernel for a few rows does not read.
        let launches = launches_of_a_step::<Raw>(&blocks(BlockFormat::IQ4_NL), log.as_ref());
        let of = |name| launches.iter().filter(|line| line.split_whitespace().nth(1) == Some(name)).count();
        assert_eq!(["Norm", "Dequantise", "ProductBlocks"].map(of), [1, 2, 0], "{launches:?}");
        return;
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "gpu::a_decoding_step_of_a_layer_is_five_launches", "--nocapture"])
        .env(LOG, log.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{output}{}", String::from_utf8_lossy(&child.stderr));
    assert!(output.contains("1 passed"), "{output}");
}

/// One case of each module and position encoding, and those whose operations lie next to a kernel. `conformance --backend wgpu` runs
/// all of them with fusion.
#[test]
fn cases_pass_without_fusion() {
    for case in [
        "bert",
        "bloom",
        "diffusers_cross",
        "gpt2_padded",
        "gpt_oss",
        "llama_gqa",
        "olmo2",
        "qkv_layernorm",
        "qwen3_next",
        "softmax",
    ] {
        checked::<Raw>(|| crate::golden::passes::<Raw>(&golden("cases").join(case), DataType::Fp32.into()));
    }
}

#[test]
fn what_must_be_fast_is_fast_or_an_error() {
    use burn_deepspeed::AttentionError;
    let device = Default::default();
    let config = layer().with_use_triton(true);
    let attention = config.init_self_attention::<Fused>(0, &device).unwrap();
    checked::<Fused>(|| {
        attention.forward_uncached(seeded([1, 3, 64], 1), AttentionMask::none(), None).unwrap();
        attention.warmup(1, &[1, 20]).unwrap();
    });
    let error = attention.warmup(1, &[4000]).unwrap_err();
    assert!(matches!(error, AttentionError::CacheFull { .. }), "{error}");
    // Heads of 1024 features are more than the kernels take.
    let wide = DeepSpeedInferenceConfig::new(64, 1).with_dtype(DataType::Fp32).with_head_dim(Some(1024));
    let attention = wide.with_require_fast(true).init_self_attention::<Fused>(0, &device).unwrap();
    let error = attention.forward_uncached(seeded([1, 3, 64], 1), AttentionMask::none(), None).unwrap_err();
    assert_eq!(
        error,
        AttentionError::NoFastPath {
            operation: "softmax_context",
            reason: Declined::HeadDim { head_dim: 1024, limit: 576 }
        }
    );
}
