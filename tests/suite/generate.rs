//! Whole checkpoints: greedy decoding against what `transformers` generated.

use std::num::NonZeroUsize;

use burn_deepspeed::InferenceBackend;
use burn_deepspeed_examples::text::{Batch, Model, Options, Sampler, TextModel, check};
use burn_deepspeed_examples::{int8, sums};

use crate::common::{golden, golden_models, on_each_cpu_backend};

fn check_all<B: InferenceBackend>(chunk: Option<NonZeroUsize>) {
    for (name, folder) in golden_models() {
        let (model, report) = Model::<B>::open(&folder, &Options::default(), &Default::default()).unwrap();
        assert!(report.missing.is_empty() && report.unexpected.is_empty(), "{name}: {report}");
        check::run(&model, &folder.join("expected.json"), chunk).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// Heads and MLP split over ranks: two, and three that do not divide the heads.
#[cfg(feature = "local")]
fn every_architecture_generates_the_same_ids_on_ranks<B: InferenceBackend>() {
    use burn_deepspeed::Communicator;
    use burn_deepspeed::parallel::local::LocalCommunicator;
    use std::sync::Arc;

    for (name, folder) in golden_models() {
        for ranks in [2, 3] {
            crate::ranks::on_ranks(LocalCommunicator::group(ranks), |communicator| {
                let communicator: Arc<dyn Communicator> = communicator;
                let options = Options { rank: Some(communicator), uneven_heads: true, ..Options::default() };
                let (model, report) = Model::<B>::open(&folder, &options, &Default::default()).unwrap();
                assert!(report.missing.is_empty() && report.unexpected.is_empty(), "{name}: {report}");
                check::run(&model, &folder.join("expected.json"), None)
                    .unwrap_or_else(|e| panic!("{name} on {ranks} ranks: {e}"));
            });
        }
    }
}

#[cfg(feature = "local")]
mod ranks {
    use super::every_architecture_generates_the_same_ids_on_ranks;
    use crate::common::on_each_cpu_backend;
    on_each_cpu_backend!(every_architecture_generates_the_same_ids_on_ranks);
}

fn every_architecture_generates_the_same_ids<B: InferenceBackend>() {
    check_all::<B>(None);
}

fn prompts_in_pieces_give_the_same_ids<B: InferenceBackend>() {
    check_all::<B>(NonZeroUsize::new(1));
    check_all::<B>(NonZeroUsize::new(4));
}

on_each_cpu_backend!(
    every_architecture_generates_the_same_ids,
    prompts_in_pieces_give_the_same_ids,
    the_adder_adds_sums_it_has_not_seen,
    the_record_of_the_adder_holds_the_weights_of_its_checkpoint,
    int8_costs_no_more_than_is_documented,
);

#[test]
fn sampling_is_greedy_at_zero_and_stays_in_the_nucleus() {
    let logits = [0.0, 3.0, 2.9, -5.0];
    assert_eq!(Sampler::new(0.0, 1.0, 7).unwrap().draw(&logits), 1);
    let mut sampler = Sampler::new(1.0, 0.9, 7).unwrap();
    let drawn: Vec<u32> = (0..200).map(|_| sampler.draw(&logits)).collect();
    assert!(drawn.contains(&1) && drawn.contains(&2));
    assert!(!drawn.contains(&0) && !drawn.contains(&3));
    assert!(Sampler::new(-1.0, 1.0, 0).is_err());
    assert!(Sampler::new(1.0, 0.0, 0).is_err());
}

#[test]
fn a_prompt_longer_than_the_model_is_refused() {
    type B = crate::common::AnyBackend;
    let (model, _) = Model::<B>::open(&golden("models/gpt2"), &Options::default(), &Default::default()).unwrap();
    let session = |batch: &Batch, new| model.session(batch, new);
    let error = session(&Batch::single(&[1; 250]), 7).err().unwrap().to_string();
    assert!(error.contains("knows 256 positions") && error.contains("at most 6"), "{error}");
    let error = session(&Batch::single(&[160]), 1).err().unwrap().to_string();
    assert!(error.contains("token 160 is not in the vocabulary"), "{error}");
}

/// A tokenizer of these tokens, in the order of their ids, with this decoder.
fn tokenizer(tokens: &[&str], decoder: serde_json::Value) -> tokenizers::Tokenizer {
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).into(), id.into())).collect();
    let special = serde_json::json!({ "id": 0, "content": tokens[0], "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true });
    let file = serde_json::json!({ "version": "1.0", "added_tokens": [special], "decoder": decoder,
        "model": { "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true } });
    file.to_string().parse().unwrap()
}

/// Whatever the tokens are, the pieces together are the text that the tokenizer makes of all of them, and a prompt that is left out does
/// not come.
#[test]
fn streamed_pieces_are_the_whole_text() {
    use burn_deepspeed_examples::text::TextStream;
    use serde_json::json;

    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let spaces = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let fallback = json!({ "type": "Sequence", "decoders": [{ "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" }, { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] });
    let words = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    // Of the first and the third the last tokens are the bytes of "é" and of "🙂", in this order.
    let tokenizers = [
        tokenizer(&["<s>", "Ġ", "a", "b", "Ã", "©", "ð", "Ł", "Ļ", "Ĥ"], bytes),
        tokenizer(&["<s>", "▁", "a", "▁b", "é", "c"], spaces),
        tokenizer(&["<s>", "▁", "a", "▁b", "<0xC3>", "<0xA9>", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"], fallback),
        tokenizer(&["[CLS]", "a", "##b", ".", "n't", "##.", "do"], words),
    ];
    for tokenizer in &tokenizers {
        let count = tokenizer.get_vocab_size(true) as u32;
        for seed in 0..600u32 {
            let random = |at: u32| (seed * 97 + at * 31 + seed * at * 7 + seed * seed) / 3 % count;
            let ids: Vec<u32> = (0..seed % 13).map(random).collect();
            let whole = tokenizer.decode(&ids, true).unwrap();
            let pieces = |stream: &mut TextStream<'_>, ids: &[u32]| -> String {
                ids.iter().map(|&id| stream.push(&[id]).unwrap()).collect()
            };
            let mut stream = TextStream::new(tokenizer);
            assert_eq!(pieces(&mut stream, &ids) + &stream.finish().unwrap(), whole, "{ids:?}");

            let (prompt, rest) = ids.split_at(ids.len() / 2);
            let mut stream = TextStream::new(tokenizer);
            stream.push(prompt).unwrap();
            stream.skip().unwrap();
            let generated = pieces(&mut stream, rest) + &stream.finish().unwrap();
            // A character that the prompt begins and the rest ends comes with the rest.
            let before = tokenizer.decode(prompt, true).unwrap();
            match whole.strip_prefix(before.trim_end_matches('\u{fffd}')) {
                Some(after) => assert_eq!(generated, after, "{prompt:?} {rest:?}"),
                None => assert!(whole.ends_with(&generated) && generated.contains('\u{fffd}'), "{prompt:?} {rest:?}"),
            }
        }
    }
    // A character comes when its last byte is there, and special tokens never.
    let pieces = |tokenizer, tokens: &[u32]| -> Vec<String> {
        let mut stream = TextStream::new(tokenizer);
        tokens.iter().map(|&id| stream.push(&[id]).unwrap()).collect()
    };
    assert_eq!(pieces(&tokenizers[0], &[2, 6, 7, 8, 9, 0, 4, 5]), ["a", "", "", "", "🙂", "", "", "é"]);
    // Tokens of one byte are read together, so they wait for another token.
    assert_eq!(pieces(&tokenizers[2], &[2, 6, 7, 8, 9, 0, 4, 5, 2]), ["a", "", "", "", "", "", "", "", "🙂éa"]);
    // What is incomplete at the end is not lost.
    let mut stream = TextStream::new(&tokenizers[0]);
    assert_eq!(stream.push(&[2, 4]).unwrap() + &stream.finish().unwrap(), "a\u{fffd}");
}

/// The trained checkpoint that `generate` runs without a model, on sums that its training never saw.
fn the_adder_adds_sums_it_has_not_seen<B: InferenceBackend>() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/adder");
    let (model, _) = Model::<B>::open(&folder, &Options::default(), &Default::default()).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let unseen: Vec<_> = sums::held_out().into_iter().step_by(3).collect();
    assert!(unseen.len() > 400);
    let score = sums::score(&model, &tokenizer, &unseen).unwrap();
    assert!(score.accuracy() >= 0.95, "{}", score.accuracy());
}

/// `train-adder -- --record` writes the record anew after a change of its format.
fn the_record_of_the_adder_holds_the_weights_of_its_checkpoint<B: InferenceBackend>() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/adder");
    let (checkpoint, _) = Model::<B>::open(&folder, &Options::default(), &Default::default()).unwrap();
    let record = checkpoint.with_record(&folder.join("model")).unwrap();
    let batch = Batch::single(&[3, 9, 12, 4, 7, 13]);
    let logits = |model: &dyn TextModel| model.session(&batch, 1).unwrap().prefill(&batch, None).unwrap().concat();
    for (a, b) in logits(&checkpoint).iter().zip(logits(&*record)) {
        assert!((a - b).abs() <= 1e-4, "{a} and {b}; write model.mpk anew");
    }
}

/// What `docs/int8.md` says: with the largest magnitude of a row or head over 127 as its scale, the logits of checkpoints move by a
/// few percent, and the adder adds.
fn int8_costs_no_more_than_is_documented<B: InferenceBackend>() {
    let open = |folder: &std::path::Path| Model::<B>::open(folder, &Options::default(), &Default::default()).unwrap().0;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/adder");
    let adder = open(&folder);
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let unseen: Vec<_> = sums::held_out().into_iter().step_by(9).collect();
    for kind in int8::KINDS {
        let (logits, tokens) = match kind {
            int8::Kind { weights: true, .. } => (0.08, 0.9),
            int8::Kind { cache, .. } if cache == Default::default() => (1e-5, 0.9999),
            _ => (0.03, 0.94),
        };
        let mut right = 0.0;
        let models = golden_models();
        for (name, folder) in &models {
            let model = open(folder).in_int8(kind.weights, kind.cache).unwrap();
            let found = int8::distance(&*model, &folder.join("expected.json")).unwrap();
            assert!(found.logits <= logits, "{name}, {}: {}", kind.name, found.logits);
            right += found.tokens / models.len() as f64;
        }
        assert!(right >= tokens, "{}: {right}", kind.name);
        if !matches!(kind.name, "keys" | "values") {
            let int8 = adder.in_int8(kind.weights, kind.cache).unwrap();
            let score = sums::score(&*int8, &tokenizer, &unseen).unwrap();
            assert!(score.accuracy() >= 0.98, "{}: {:?}", kind.name, score.mistakes);
        }
    }
}
