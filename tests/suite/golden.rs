//! The conformance cases: tensors that `transformers`, `diffusers` and DeepSpeed computed.

use burn_deepspeed::{DataType, InferenceBackend, KvCacheType};
use burn_deepspeed_examples::conformance::{Types, case};

use crate::common::{golden, on_each_cpu_backend};

fn every_case_passes<B: InferenceBackend>(types: impl Into<Types>) {
    let types = types.into();
    let folders = case::find(&[golden("cases")]).unwrap();
    assert_eq!(folders.len(), 47);
    for folder in folders {
        passes::<B>(&folder, types);
    }
}

pub fn passes<B: InferenceBackend>(folder: &std::path::Path, types: Types) {
    let result = case::run::<B>(folder, types, None, &Default::default()).unwrap();
    assert!(result.passed(), "{} ({}): {:e} > {:e}", result.name, result.module, result.error, result.tolerance);
}

#[test]
#[cfg(feature = "ndarray")]
fn every_case_passes_on_ndarray() {
    every_case_passes::<burn_ndarray::NdArray>(DataType::Fp32);
}

#[test]
#[cfg(all(feature = "ndarray", feature = "autodiff"))]
fn every_case_passes_on_the_reference_path() {
    every_case_passes::<burn_autodiff::Autodiff<burn_ndarray::NdArray>>(DataType::Fp32);
}

#[test]
#[cfg(feature = "flex")]
fn every_case_passes_on_flex_in_every_float_type() {
    for dtype in [DataType::Fp32, DataType::Fp16, DataType::Bf16] {
        every_case_passes::<burn_flex::Flex>(dtype);
    }
}

/// `conformance --backend wgpu --dtype int8 --kv-cache int8` runs them on the GPU kernels.
fn every_case_passes_in_int8<B: InferenceBackend>() {
    for (dtype, cache) in [
        (DataType::Int8, KvCacheType::default()),
        (DataType::Fp32, KvCacheType::INT8),
        (DataType::Int8, KvCacheType::INT8),
    ] {
        every_case_passes::<B>(Types { dtype, cache });
    }
}

/// Next to activations in f32.
fn every_case_passes_with_a_cache_of_16_bits<B: InferenceBackend>() {
    for cache in [DataType::Fp16.into(), KvCacheType { key: Some(DataType::Bf16), value: Some(DataType::Int8) }] {
        every_case_passes::<B>(Types { dtype: DataType::Fp32, cache });
    }
}

on_each_cpu_backend!(every_case_passes_in_int8, every_case_passes_with_a_cache_of_16_bits);

/// The reference, whose backend stores no such floats.
#[test]
#[cfg(all(feature = "ndarray", feature = "autodiff"))]
fn every_case_passes_with_a_cache_of_16_bits_on_the_reference_path() {
    let types = Types { dtype: DataType::Fp32, cache: DataType::Fp16.into() };
    every_case_passes::<burn_autodiff::Autodiff<burn_ndarray::NdArray>>(types);
}

/// 1, 2, 3 and 4 ranks give the same result. Heads that do not divide are split unevenly; more ranks than heads are an error.
#[cfg(feature = "local")]
fn every_case_passes_on_ranks<B: InferenceBackend>() {
    use burn_deepspeed::parallel::local::LocalCommunicator;
    use burn_deepspeed::{Communicator, ConfigError};

    let weights_of_int8 = Types { dtype: DataType::Int8, cache: KvCacheType::INT8 };
    for types in [DataType::Fp32.into(), weights_of_int8] {
        for ranks in 1..=4 {
            let mut refused = 0;
            for folder in case::find(&[golden("cases")]).unwrap() {
                let results = crate::ranks::on_ranks(LocalCommunicator::group(ranks), |communicator| {
                    let rank = communicator.rank();
                    (rank, case::run::<B>(&folder, types, Some(communicator), &Default::default()))
                });
                for (rank, result) in results {
                    match result {
                        Ok(result) => assert!(
                            result.passed(),
                            "{} on rank {rank} of {ranks}: {:e} > {:e}",
                            result.name,
                            result.error,
                            result.tolerance
                        ),
                        Err(error) => {
                            let error = error.downcast_ref::<ConfigError>();
                            let Some(ConfigError::Ranks { heads, .. }) = error else { panic!("{folder:?}: {error:?}") };
                            assert!(*heads < ranks);
                            refused += usize::from(rank == 0);
                        }
                    }
                }
            }
            // two cases have one head, three have two, one has three
            assert_eq!(refused, [0, 2, 5, 6][ranks - 1]);
        }
    }
}

#[cfg(feature = "local")]
mod ranks {
    use super::every_case_passes_on_ranks;
    use crate::common::on_each_cpu_backend;
    on_each_cpu_backend!(every_case_passes_on_ranks);
}

/// A runner that cannot fail proves nothing.
#[test]
fn a_wrong_expectation_fails() {
    let folder = tempfile::tempdir().unwrap();
    let source = golden("cases/softmax");
    std::fs::copy(source.join("tensors.safetensors"), folder.path().join("tensors.safetensors")).unwrap();
    let text = std::fs::read_to_string(source.join("case.json")).unwrap();
    let broken = text.replace("\"layer_scale\": 1.0", "\"layer_scale\": 1.01");
    assert_ne!(text, broken);
    std::fs::write(folder.path().join("case.json"), broken).unwrap();
    let result =
        case::run::<crate::common::AnyBackend>(folder.path(), DataType::Fp32, None, &Default::default()).unwrap();
    assert!(!result.passed());
}
