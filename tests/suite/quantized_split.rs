//! Files of several ranks with matrices of int8: each has the scales of its part.

use burn_deepspeed::load::{AttentionNames, NormNames, QkvLayout, QkvNames, SplitCheckpoint};
use burn_deepspeed::weight::Orientation;
use burn_deepspeed::{AttentionInit, DataType, InferenceBackend, TpPlan};
use safetensors::Dtype;

use crate::attention::llama;
use crate::common::on_each_cpu_backend;
use crate::load::{Entry, save};
use crate::quantized_checkpoints::{Matrix, assert_weights, float};

on_each_cpu_backend!(files_of_ranks_keep_their_scales);

impl Matrix {
    /// One of several parts along the inputs, `[out, in / parts]`, with its own scales; `merge_count` joins such parts.
    fn part(&self, part: usize, parts: usize) -> [Entry; 2] {
        let inputs = self.inputs / parts;
        let element = |at: usize| self.element(at / inputs, part * inputs + at % inputs) as u8;
        let scales = (0..self.groups).flat_map(|group| Self::scale(group * parts + part).to_le_bytes());
        [
            (
                self.name.into(),
                Dtype::I8,
                vec![self.outputs, inputs],
                (0..self.outputs * inputs).map(element).collect(),
            ),
            (format!("{}.scale", self.name), Dtype::F32, vec![self.groups], scales.collect()),
        ]
    }
}

/// The output projection out of the files of several ranks is what `merge_count` describes, for any number of them. The parts
/// of QKV have the scales of their file.
fn files_of_ranks_keep_their_scales<B: InferenceBackend>() {
    for (files, kv_heads) in [(1, 2), (2, 2), (3, 6), (4, 4), (6, 2)] {
        let heads = if files == 4 { 12 } else { 6 };
        let (own, own_kv) = (heads / files, (kv_heads / files).max(1));
        let outputs = 8 * (own + 2 * own_kv);
        for [groups, output_groups] in [[1, 1], [outputs, 48], [outputs / 8, 6], [outputs * 3, 96]] {
            let folder = tempfile::tempdir().unwrap();
            // elements and scales of a file are told apart by its number
            let qkv = Matrix { name: "qkv", outputs, inputs: 48, groups, merge_count: 0 };
            let out = Matrix { name: "out", outputs: 48, inputs: 8 * heads, groups: output_groups, merge_count: 0 };
            let paths: Vec<_> = (0..files).map(|file| folder.path().join(format!("{file}.safetensors"))).collect();
            for (file, path) in paths.iter().enumerate() {
                let [mut elements, mut scales] = qkv.entries(Orientation::OutputInput);
                elements.3.iter_mut().for_each(|element| *element ^= file as u8);
                let moved = scales.3.as_chunks::<4>().0.iter();
                let moved = moved.flat_map(|raw| (f32::from_le_bytes(*raw) + file as f32).to_le_bytes()).collect();
                scales.3 = moved;
                let [part, part_scales] = out.part(file, files);
                save(path, &[elements, scales, part, part_scales, float("norm.weight", 48)]);
            }
            let query_weight = |file: usize, output: usize, input: usize| {
                let index = (output * 48 + input) / (outputs * 48 / groups);
                let element = (qkv.element(output, input) as u8 ^ file as u8) as i8;
                f64::from((Matrix::scale(index) + file as f32) * f32::from(element))
            };
            let names = AttentionNames::new(
                QkvNames::Fused { names: qkv.names(), layout: QkvLayout::Concat },
                out.names(),
                Orientation::OutputInput,
            )
            .with_norm(NormNames::of("norm"));
            for (rank, ranks) in [(0, 1), (1, 2), (2, 6)]
                .into_iter()
                .filter(|(_, ranks)| TpPlan::valid_ranks(heads, kv_heads).any(|valid| valid == *ranks))
            {
                for dtype in [DataType::Int8, DataType::Fp32] {
                    let config = llama()
                        .with_heads(heads)
                        .with_num_kv(Some(kv_heads))
                        .with_head_dim(Some(8))
                        .with_qkv_bias(false)
                        .with_output_bias(false)
                        .with_dtype(dtype)
                        .with_mp_size(ranks)
                        .with_local_rank(Some(rank));
                    let split = SplitCheckpoint::open(&paths).unwrap();
                    let module = config.init_self_attention::<B>(0, &Default::default()).unwrap();
                    let module = module.load_split(&split, &names).unwrap();
                    split.finish().unwrap();
                    let shard = module.spec().shard;
                    let parts = module.qkv().separate(8 * shard.len);
                    assert_weights(&parts.query, |output, input| {
                        let head = shard.start + output / 8;
                        query_weight(head / own, head % own * 8 + output % 8, input)
                    });
                    for (first, weight) in [(own, &parts.key), (own + own_kv, &parts.value)] {
                        assert_weights(weight, |output, input| {
                            let head = shard.kv_start + output / 8;
                            // the first file that has a copy of the head
                            let file = if files <= kv_heads { head / own_kv } else { head * files / kv_heads };
                            let place = if files <= kv_heads { head % own_kv } else { 0 };
                            query_weight(file, (first + place) * 8 + output % 8, input)
                        });
                    }
                    assert_weights(module.output(), |output, input| {
                        out.weight_of_parts(files, output, 8 * shard.start + input)
                    });
                    assert_eq!(module.output().int8().is_some(), dtype == DataType::Int8);
                }
            }
        }
    }
}
