//! Sinks, and the gate on the context: against plain loops, in files, and on ranks.

use burn::module::Module;
use burn::record::{FullPrecisionSettings, NamedMpkFileRecorder};
use burn::tensor::{Bool, Tensor, TensorData, backend::Backend};
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkvLayout, QkvNames, SplitCheckpoint, WeightNames,
    WriteTensors,
};
use burn_deepspeed::ops::attention::{self, Visibility};
use burn_deepspeed::ops::{Attention, Keys, SoftmaxContext};
use burn_deepspeed::weight::{Int8Blocks, Orientation};
use burn_deepspeed::{
    AttentionInit, AttentionMask, ConfigError, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention,
    InferenceBackend, NormType, Operations, Positions, RotaryLayout, WantedOutputs, WeightError, Window,
};

use crate::attention::randomised;
use crate::common::{AnyBackend, Loops, assert_near, on_each_backend, rounds_to_tf32, seeded, values};

/// 6 query heads and 2 key heads of 10 features.
fn config() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(24, 6)
        .with_dtype(DataType::Fp32)
        .with_norm_type(NormType::RMSNorm)
        .with_head_dim(Some(10))
        .with_num_kv(Some(2))
        .with_rotary(RotaryLayout::Half, 4)
        .with_num_hidden_layers(Some(1))
        .with_max_out_tokens(9)
}

fn module<B: InferenceBackend>(config: &DeepSpeedInferenceConfig) -> DeepSpeedSelfAttention<B> {
    randomised(config.init_self_attention(0, &Default::default()).unwrap())
}

fn vector<B: Backend>(values: &[f32]) -> Tensor<B, 1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &Default::default())
}

fn attention_with_sinks_agrees_with_plain_loops<B: InferenceBackend>() {
    attends_with_sinks::<B>(B::Ops::masked_attention);
    // Burn's own products, of which the reference consists, are not exact everywhere.
    if !rounds_to_tf32::<B>() {
        attends_with_sinks::<B>(attention::reference);
    }
}

fn attends_with_sinks<B: InferenceBackend>(attend: fn(Attention<B>) -> Tensor<B, 4>) {
    for (tokens, keys, softcap) in [(1, 5, None), (3, 19, Some(0.7)), (13, 13, None), (9, 40, Some(2.0))] {
        let query = seeded::<B, 4>([2, 6, tokens, 8], 1) * 2.0;
        let (key, value) = (seeded::<B, 4>([2, 2, keys, 8], 2), seeded::<B, 4>([2, 2, keys, 8], 3));
        // The first row sees nothing.
        let padding = |row: usize, key: usize| row == 0 || key == 1;
        let hidden = (0..2).flat_map(|row| (0..keys).map(move |key| padding(row, key))).collect();
        let hidden =
            Tensor::<B, 2, Bool>::from_data(TensorData::new::<bool, _>(hidden, [2, keys]), &Default::default());
        for sinks in [[0.0, 0.5, -0.5, 1.0, 2.0, -2.0], [300.0, -300.0, 20.0, -20.0, 1e30, -1e30]] {
            let (start, window) = (keys - tokens, 7);
            let output = attend(Attention {
                query: query.clone(),
                key: key.clone(),
                value: value.clone(),
                scale: 0.3,
                softcap,
                sinks: Some(vector(&sinks)),
                slopes: None,
                visibility: Visibility {
                    causal: true,
                    window: Some(Window::Back(window)),
                    starts: vec![start],
                    ends: vec![keys],
                },
                mask: AttentionMask::hide(hidden.clone()),
            });
            let hides = |[row, _, token, key]: [usize; 4]| {
                key > start + token || key + window <= start + token || padding(row, key)
            };
            let loops = Loops { scale: 0.3, softcap, slopes: None, bias: &|_| 0.0, hides: &hides };
            let expected = loops.attend_with_sinks(query.clone(), key.clone(), value.clone(), start, Some(&sinks));
            assert!(values(output.clone().narrow(0, 0, 1)).iter().all(|x| *x == 0.0));
            assert_near(output, expected, 1e-5);
        }
        // Infinities are the limits.
        for (sink, share) in [(f32::INFINITY, 0.0), (f32::MAX, 0.0), (f32::NEG_INFINITY, 1.0), (f32::MIN, 1.0)] {
            let attention = |sinks| Attention {
                query: query.clone(),
                key: key.clone(),
                value: value.clone(),
                scale: 0.3,
                softcap,
                sinks,
                slopes: None,
                visibility: Visibility::full(keys),
                mask: AttentionMask::hide(hidden.clone()),
            };
            assert_near(attend(attention(Some(vector(&[sink; 6])))), attend(attention(None)) * share, 1e-6);
        }
    }
}

/// A prompt in one go and in steps, against its parts composed by hand.
fn a_module_with_sinks_and_a_gate_agrees_with_its_parts<B: InferenceBackend>() {
    let config = config().with_sinks(true).with_context_gate(true).with_local_attention(true).with_window_size(4);
    let module = module::<B>(&config);
    let input = seeded::<B, 3>([2, 7, 24], 3);
    let positions = Positions::sequential(&[0, 0], 7);
    let (norm, sums, mask, spec) = (None, None, AttentionMask::none(), module.spec());
    let projected = B::Ops::qkv_gemm(input.clone(), module.norm(), module.qkv(), true);
    let sinks = module.sinks().map(|sinks| sinks.values());
    let (qkv, keys) = (projected.qkv, Keys::Fresh(&positions));
    let context = B::Ops::softmax_context(SoftmaxContext {
        qkv,
        norm,
        sums,
        sinks,
        keys,
        given: None,
        mask,
        spec,
        want_keys: false,
    })
    .context;
    let gate = B::Ops::linear(projected.inp_norm.unwrap(), module.gate().unwrap());
    let gated: Vec<f32> = values(context)
        .into_iter()
        .zip(values(gate))
        .map(|(context, gate)| (context / (1.0 + (-gate).exp())) as f32)
        .collect();
    let gated = Tensor::<B, 3>::from_data(TensorData::new(gated, [2, 7, 60]), &Default::default());
    let expected = B::Ops::linear(gated.clone(), module.output());

    let (mask, wanted) = (AttentionMask::none(), WantedOutputs::NONE.with_context(true));
    let output = module.forward_detailed(input.clone(), mask, Keys::Fresh(&positions), wanted).unwrap();
    assert_near(output.context.unwrap(), gated, 1e-5);
    assert!(output.inp_norm.is_none());
    assert_near(output.output, expected.clone(), 1e-5);

    let mut cache = config.init_cache::<B>(2, &Default::default()).unwrap();
    let mut start = 0;
    for tokens in [4, 1, 2] {
        let mut step = cache.step(tokens).unwrap();
        let output =
            module.forward(input.clone().narrow(1, start, tokens), AttentionMask::none(), step.layer(0)).unwrap();
        step.commit();
        assert_near(output, expected.clone().narrow(1, start, tokens), 1e-5);
        start += tokens;
    }
}

/// The gate of a post-norm module projects the input as it is.
fn a_gate_without_a_norm_reads_the_input<B: InferenceBackend>() {
    let config = config().with_pre_layer_norm(false).with_context_gate(true);
    let gated = module::<B>(&config);
    let input = seeded::<B, 3>([1, 3, 24], 3);
    let positions = Positions::sequential(&[0], 3);
    let wanted = WantedOutputs::ALL;
    let run = |module: &DeepSpeedSelfAttention<B>| {
        let (mask, keys) = (AttentionMask::none(), Keys::Fresh(&positions));
        module.forward_detailed(input.clone(), mask, keys, wanted).unwrap()
    };
    let output = run(&gated);
    assert!(output.inp_norm.is_none());
    let expected = burn::tensor::activation::sigmoid(B::Ops::linear(input.clone(), gated.gate().unwrap()));
    let mut plain = gated.clone().into_record();
    plain.gate = None;
    let plain =
        config.with_context_gate(false).init_self_attention::<B>(0, &Default::default()).unwrap().load_record(plain);
    assert_near(output.context.unwrap(), run(&plain).context.unwrap() * expected, 1e-5);
}

fn the_gate_agrees_with_plain_loops<B: InferenceBackend>() {
    // Transposed, so that neither is contiguous.
    let [context, gate] = [1, 2].map(|seed| seeded::<B, 3>([2, 17, 5], seed).swap_dims(1, 2));
    let gate = gate * 8.0;
    let gated = values(context.clone()).into_iter().zip(values(gate.clone()));
    let gated: Vec<f32> = gated.map(|(context, gate)| (context / (1.0 + (-gate).exp())) as f32).collect();
    let expected = Tensor::from_data(TensorData::new(gated, [2, 5, 17]), &Default::default());
    assert_near(B::Ops::context_gate(context, gate), expected, 1e-6);
}

on_each_backend!(
    the_gate_agrees_with_plain_loops,
    attention_with_sinks_agrees_with_plain_loops,
    a_module_with_sinks_and_a_gate_agrees_with_its_parts,
    a_gate_without_a_norm_reads_the_input,
);

#[test]
#[cfg(feature = "autodiff")]
fn the_reference_agrees_with_plain_loops() {
    attention_with_sinks_agrees_with_plain_loops::<burn_autodiff::Autodiff<AnyBackend>>();
}

/// Heads of other sizes, ragged rows, int8 caches, hidden keys, ALiBi.
#[cfg(feature = "autodiff")]
mod steps {
    use super::{DataType, DeepSpeedInferenceConfig, InferenceBackend};
    use crate::kernels::steps_of_agree_with_the_reference;

    fn agree<B: InferenceBackend>() {
        for ([heads, kv_heads, head_dim], window, gate) in
            [([6, 2, 8], None, true), ([3, 3, 40], Some(65), false), ([4, 1, 96], Some(7), true)]
        {
            let config = DeepSpeedInferenceConfig::new(24, heads)
                .with_dtype(DataType::Fp32)
                .with_head_dim(Some(head_dim))
                .with_num_kv(Some(kv_heads))
                .with_rotary_dim(Some(8))
                .with_sinks(true)
                .with_context_gate(gate)
                .with_local_attention(window.is_some())
                .with_window_size(window.unwrap_or(1))
                .with_num_hidden_layers(Some(1))
                .with_max_out_tokens(90);
            steps_of_agree_with_the_reference::<B>(&config, 1e-5);
        }
    }

    crate::common::on_each_cpu_backend!(agree);
}

fn names() -> AttentionNames {
    let qkv = QkvNames::separate_with_gate("attn", ["q_proj", "k_proj", "v_proj"]);
    AttentionNames::new(qkv, WeightNames::of("attn.o_proj"), Orientation::OutputInput)
        .with_norm(NormNames::of("norm"))
        .with_sinks("attn.sinks")
}

/// The same without a gate.
fn names_without_gate() -> AttentionNames {
    names().with_qkv(QkvNames::fused("attn.qkv", QkvLayout::PerGroup))
}

fn outputs(module: &DeepSpeedSelfAttention<AnyBackend>) -> Vec<f64> {
    values(module.forward_uncached(seeded([2, 5, 24], 7), AttentionMask::none(), None).unwrap())
}

#[test]
fn records_keep_sinks_and_gate() {
    let (device, folder) = (Default::default(), tempfile::tempdir().unwrap());
    let parameters = |config: &DeepSpeedInferenceConfig| module::<AnyBackend>(config).num_params();
    let both = config().with_sinks(true).with_context_gate(true);
    assert_eq!(parameters(&config().with_sinks(true)), parameters(&config()) + 6);
    assert_eq!(parameters(&both), parameters(&config()) + 6 + 25 * 60);
    let without_bias = both.clone().with_qkv_bias(false);
    assert_eq!(parameters(&without_bias), parameters(&config().with_qkv_bias(false)) + 6 + 24 * 60);

    let recorder = NamedMpkFileRecorder::<FullPrecisionSettings>::new();
    let path = folder.path().join("attention");
    for quantised in [false, true] {
        let prepare = |module: DeepSpeedSelfAttention<AnyBackend>| match quantised {
            true => module.quantize(Int8Blocks::PerOutput).unwrap(),
            false => module,
        };
        let module = prepare(module(&both));
        assert_eq!(module.gate().unwrap().int8().is_some(), quantised);
        module.clone().save_file(&path, &recorder).unwrap();
        let fresh = prepare(both.init_self_attention::<AnyBackend>(0, &device).unwrap());
        assert_ne!(outputs(&fresh), outputs(&module));
        assert_eq!(outputs(&fresh.load_file(&path, &recorder, &device).unwrap()), outputs(&module));
    }
}

#[test]
fn new_sinks_are_zero_and_f32() {
    let half = config().with_sinks(true).with_dtype(DataType::Fp32);
    let module = half.init_self_attention::<AnyBackend>(0, &Default::default()).unwrap();
    let sinks = module.sinks().unwrap().values();
    assert_eq!((values(sinks.clone()), sinks.dtype()), (vec![0.0; 6], burn::tensor::DType::F32));
}

/// A query projection of a file holds, for each head, 10 features of its query and 10 of its gate.
#[test]
fn the_gate_of_each_head_follows_its_query_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let query = seeded::<AnyBackend, 2>([120, 24], 1);
    let bias = seeded::<AnyBackend, 1>([120], 2);
    let mut writer = CheckpointWriter::default();
    writer.tensor("attn.q_proj.weight", query.clone()).unwrap();
    writer.tensor("attn.q_proj.bias", bias.clone()).unwrap();
    for (name, seed) in [("k_proj", 3), ("v_proj", 4)] {
        writer.tensor(&format!("attn.{name}.weight"), seeded::<AnyBackend, 2>([20, 24], seed)).unwrap();
        writer.tensor(&format!("attn.{name}.bias"), seeded::<AnyBackend, 1>([20], seed)).unwrap();
    }
    writer.tensor("attn.o_proj.weight", seeded::<AnyBackend, 2>([24, 60], 5)).unwrap();
    writer.tensor("attn.o_proj.bias", seeded::<AnyBackend, 1>([24], 5)).unwrap();
    writer.tensor("norm.weight", seeded::<AnyBackend, 1>([24], 6)).unwrap();
    writer.tensor("attn.sinks", seeded::<AnyBackend, 1>([6], 7)).unwrap();
    writer.save(&path).unwrap();

    let config = config().with_sinks(true).with_context_gate(true).with_transposed_mode(true).with_uneven_heads(true);
    let (rows, biases) = (values(query), values(bias));
    for ranks in [1, 3] {
        for rank in 0..ranks {
            let checkpoint = Checkpoint::open(&path).unwrap();
            let config = config.clone().with_mp_size(ranks).with_local_rank(Some(rank));
            let loaded = module::<AnyBackend>(&config).load(&checkpoint, &names()).unwrap();
            checkpoint.finish().unwrap();
            let own = loaded.spec().shard.queries();
            let features = |first: usize| own.clone().flat_map(move |head| head * 20 + first..head * 20 + first + 10);
            let matrix = |first| features(first).flat_map(|row| rows[row * 24..][..24].to_vec()).collect::<Vec<_>>();
            let width = own.len() * 10;
            let queries = loaded.qkv().separate(width).into_owned().query;
            let gate = loaded.gate().unwrap();
            assert_eq!(values(queries.matrix()), matrix(0));
            assert_eq!(values(gate.matrix()), matrix(10));
            assert_eq!(values(gate.bias().unwrap()), features(10).map(|at| biases[at]).collect::<Vec<_>>());
            assert_eq!(values(loaded.sinks().unwrap().values()), values(seeded::<AnyBackend, 1>([6], 7))[own]);
        }
    }
}

#[test]
fn files_keep_sinks_and_gate_for_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let gated = config().with_sinks(true).with_context_gate(true).with_uneven_heads(true);
    let plain = gated.clone().with_context_gate(false);
    for (config, names, int8) in
        [(&gated, names(), false), (&gated, names(), true), (&plain, names_without_gate(), false)]
    {
        let prepare = |module: DeepSpeedSelfAttention<AnyBackend>| match int8 {
            true => module.quantize(Int8Blocks::PerOutput).unwrap(),
            false => module,
        };
        let whole = prepare(module(config));
        let mut writer = CheckpointWriter::default();
        whole.write(&mut writer, &names).unwrap();
        writer.save(path("whole")).unwrap();
        let load = |config: &DeepSpeedInferenceConfig| {
            let checkpoint = Checkpoint::open(path("whole")).unwrap();
            let loaded = prepare(module(config)).load(&checkpoint, &names).unwrap();
            checkpoint.finish().unwrap();
            loaded
        };
        assert_eq!(outputs(&load(config)), outputs(&whole));

        // three ranks write a file each, and two read them
        let of_rank = |ranks, rank| config.clone().with_mp_size(ranks).with_local_rank(Some(rank));
        let parts = |module: &DeepSpeedSelfAttention<AnyBackend>| {
            (values(module.sinks().unwrap().values()), module.gate().map(|gate| values(gate.matrix())))
        };
        for rank in 0..3 {
            let part = load(&of_rank(3, rank));
            let own = part.spec().shard.queries();
            assert_eq!(parts(&part).0, parts(&whole).0[own]);
            let mut writer = CheckpointWriter::default();
            part.write(&mut writer, &names).unwrap();
            writer.save(path(&format!("rank{rank}"))).unwrap();
        }
        for rank in 0..2 {
            let split = SplitCheckpoint::open([0, 1, 2].map(|rank| path(&format!("rank{rank}")))).unwrap();
            let part = prepare(module(&of_rank(2, rank))).load_split(&split, &names).unwrap();
            assert_eq!(parts(&part), parts(&load(&of_rank(2, rank))));
        }
    }
}

#[test]
fn sinks_and_gates_that_are_missing_or_unexpected_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let save = |config: &DeepSpeedInferenceConfig, names: &AttentionNames| {
        let mut writer = CheckpointWriter::default();
        module::<AnyBackend>(config).write(&mut writer, names)?;
        writer.save(&path)
    };
    let load = |config: &DeepSpeedInferenceConfig, names: &AttentionNames| {
        let checkpoint = Checkpoint::open(&path).unwrap();
        module::<AnyBackend>(config).load(&checkpoint, names).map(|_| ()).unwrap_err()
    };
    let (sinks, gate) = (config().with_sinks(true), config().with_context_gate(true));
    let mut unnamed = names_without_gate();
    unnamed.sinks = None;

    save(&config(), &names_without_gate()).unwrap();
    assert!(matches!(load(&sinks, &names_without_gate()), WeightError::Missing { name, .. } if name == "attn.sinks"));
    assert!(matches!(load(&sinks, &unnamed), WeightError::NoSinkName));
    assert!(matches!(save(&sinks, &unnamed), Err(WeightError::NoSinkName)));
    save(&sinks, &names_without_gate()).unwrap();
    let error = load(&config(), &names_without_gate());
    assert!(matches!(&error, WeightError::Unexpected { name, .. } if name == "attn.sinks"), "{error}");
    assert!(error.to_string().contains("set `sinks` to true"));

    assert!(matches!(load(&gate, &unnamed), WeightError::NoGateNames));
    assert!(matches!(save(&gate, &names_without_gate()), Err(WeightError::NoGateNames)));
    assert!(matches!(save(&config(), &names()), Err(WeightError::UnexpectedGate(_))));
    save(&gate, &names()).unwrap();
    let error = load(&config(), &names());
    assert!(matches!(&error, WeightError::UnexpectedGate(name) if name == "attn.q_proj.weight"));
    assert!(error.to_string().contains("set `context_gate` to true"));
    // a query projection without gates is too short
    let mut short = CheckpointWriter::default();
    let separate = QkvNames::separate("attn", ["q_proj", "k_proj", "v_proj"]);
    module::<AnyBackend>(&config()).write(&mut short, &names().with_qkv(separate)).unwrap();
    short.save(&path).unwrap();
    let message = load(&gate, &names()).to_string();
    assert!(message.contains("`attn.q_proj.weight`") && message.contains("[120, 24]"), "{message}");
}

#[test]
fn sinks_that_the_layer_does_not_have_or_lacks_are_a_panic() {
    let run = |config: &DeepSpeedInferenceConfig, sinks: Option<usize>| {
        let spec = config.resolve(0).unwrap();
        let positions = Positions::sequential(&[0, 0], 3);
        let context = SoftmaxContext::<AnyBackend> {
            qkv: seeded([2, 3, spec.qkv_width()], 1),
            norm: None,
            sums: None,
            sinks: sinks.map(|heads| seeded([heads], 1)),
            keys: Keys::Fresh(&positions),
            given: None,
            mask: AttentionMask::none(),
            spec: &spec,
            want_keys: false,
        };
        let run =
            std::panic::AssertUnwindSafe(|| drop(<AnyBackend as InferenceBackend>::Ops::softmax_context(context)));
        *std::panic::catch_unwind(run).unwrap_err().downcast::<String>().unwrap()
    };
    assert_eq!(run(&config(), Some(6)), "softmax_context: `sinks` are given, and the layer has no sinks");
    let sinks = config().with_sinks(true);
    assert_eq!(run(&sinks, None), "softmax_context: `sinks` are None, and the layer has sinks");
    assert_eq!(run(&sinks, Some(5)), "softmax_context: `sinks` has shape [5], expected [6]");
}

#[test]
fn attention_of_diffusion_models_has_neither() {
    let plain = DeepSpeedInferenceConfig::new(24, 6).with_dtype(DataType::Fp32);
    for (config, expected) in [
        (plain.clone().with_sinks(true), "it has no sinks; set `sinks` to false"),
        (plain.with_context_gate(true), "it has no gate on the context; set `context_gate` to false"),
    ] {
        let error = config.init_diffusers::<AnyBackend>(0, &Default::default()).map(|_| ()).unwrap_err();
        assert!(matches!(error, ConfigError::WrongModule { .. }));
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn the_gate_is_int8_where_the_projections_are() {
    for (config, expected) in [
        (config().with_dtype(DataType::Int8), true),
        (config().with_enable_qkv_quantization(true), true),
        (config(), false),
    ] {
        let module = config.with_context_gate(true).init_self_attention::<AnyBackend>(0, &Default::default()).unwrap();
        assert_eq!(module.gate().unwrap().int8().is_some(), expected);
        let module = module.with_rounded_activations(true);
        assert!(module.gate().unwrap().input_rounding().bits().is_some());
    }
}

#[cfg(feature = "local")]
mod ranks {
    use burn_deepspeed::parallel::local::LocalCommunicator;

    use super::*;
    use crate::ranks::{on_ranks, prompt_and_steps};

    #[test]
    fn ranks_together_compute_what_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let config = config().with_sinks(true).with_context_gate(true).with_uneven_heads(true);
        let alone = module::<AnyBackend>(&config);
        let mut writer = CheckpointWriter::default();
        alone.write(&mut writer, &names()).unwrap();
        writer.save(&path).unwrap();
        let expected = prompt_and_steps(&alone, &config);
        for ranks in [2, 3] {
            let outputs = on_ranks(LocalCommunicator::group(ranks), |communicator| {
                let config = config.clone().for_rank_of(&*communicator);
                let part = module::<AnyBackend>(&config).load(&Checkpoint::open(&path).unwrap(), &names()).unwrap();
                part.warmup(1, &[3]).unwrap();
                prompt_and_steps(&part.with_communicator(communicator).unwrap(), &config)
            });
            for output in outputs {
                assert_eq!(output.len(), expected.len());
                for (rank, alone) in output.iter().zip(&expected) {
                    assert!((rank - alone).abs() < 1e-5, "{ranks} ranks: {rank} and {alone}");
                }
            }
        }
    }

    #[test]
    fn ranks_of_which_one_has_sinks_are_an_error_on_both() {
        let errors = on_ranks(LocalCommunicator::group(2), |communicator| {
            let sinks = burn_deepspeed::Communicator::rank(&*communicator) == 0;
            let config = config().with_sinks(sinks).for_rank_of(&*communicator);
            let part = module::<AnyBackend>(&config).with_communicator(communicator).unwrap();
            part.forward_uncached(seeded([1, 2, 24], 1), AttentionMask::none(), None).unwrap_err().to_string()
        });
        assert!(
            errors.iter().all(|error| error.contains("`sinks`, `context_gate` or `qkv_clip` is not the same")),
            "{errors:?}"
        );
    }
}
