//! The files of several ranks: what is told of them, and each error once.

use std::path::PathBuf;

use burn::tensor::DType;
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkvLayout, QkvNames, ReadTensors, SplitCheckpoint,
    WeightNames,
};
use burn_deepspeed::weight::Orientation;
use burn_deepspeed::{ConfigError, DataType, WeightError};
use safetensors::Dtype;

use crate::attention::randomised;
use crate::common::AnyBackend;
use crate::load::{Entry, save};
use crate::resharding::{config, entries, fresh, names, on_rank, write};

type B = AnyBackend;

/// The files of two ranks.
fn files() -> (tempfile::TempDir, [PathBuf; 2], AttentionNames) {
    let folder = tempfile::tempdir().unwrap();
    let paths = [0, 1].map(|rank| folder.path().join(format!("mp_rank_{rank:02}.safetensors")));
    let names = names(QkvNames::fused("qkv", QkvLayout::Concat), Orientation::OutputInput);
    let config = config(4, DataType::Fp32);
    for (rank, path) in paths.iter().enumerate() {
        write(&randomised(fresh::<B>(&on_rank(&config, rank, 2))), path, &names);
    }
    (folder, paths, names)
}

fn error(paths: &[PathBuf], names: &AttentionNames, training_ranks: usize) -> WeightError {
    let split = SplitCheckpoint::open(paths).unwrap();
    let config = config(4, DataType::Fp32).with_training_mp_size(training_ranks);
    fresh::<B>(&config).load_split(&split, names).unwrap_err()
}

#[test]
fn a_tensor_that_one_file_lacks_names_the_file() {
    let (_folder, paths, names) = files();
    let without: Vec<Entry> = entries(&paths[1]).into_iter().filter(|entry| entry.0 != "out.weight").collect();
    save(&paths[1], &without);
    let message = error(&paths, &names, 1).to_string();
    let path = paths[1].display();
    assert!(message.contains(&format!("{path}: the checkpoint has no tensor `out.weight` (nearest: `")), "{message}");
}

/// Each spelling of Megatron's, with the layout of its time: the files of two ranks load as they were written.
#[test]
fn the_names_of_megatron_are_found() {
    let layer = "model.language_model.encoder.layers.0";
    let attention = |block: &str, kv_heads, layout| {
        (format!("{block}.query_key_value"), format!("{block}.dense"), "input_layernorm.", kv_heads, layout)
    };
    let core =
        |norm| ("self_attention.linear_qkv".into(), "self_attention.linear_proj".into(), norm, 4, QkvLayout::PerGroup);
    let spellings: [(String, String, &str, usize, QkvLayout); 5] = [
        attention("attention", 12, QkvLayout::Concat),
        attention("attention", 12, QkvLayout::PerHead),
        attention("self_attention", 12, QkvLayout::PerHead),
        core("input_layernorm."),
        core("self_attention.linear_qkv.layer_norm_"),
    ];
    for (qkv, output, norm, kv_heads, layout) in spellings {
        let at = |path: &str| format!("{layer}.{path}");
        let written = AttentionNames::new(
            QkvNames::fused(&at(&qkv), layout),
            WeightNames::of(&at(&output)),
            Orientation::OutputInput,
        )
        .with_norm(NormNames::new(at(&format!("{norm}weight")), at(&format!("{norm}bias"))));
        let folder = tempfile::tempdir().unwrap();
        let paths = [0, 1].map(|rank| folder.path().join(format!("mp_rank_{rank:02}.safetensors")));
        let config = config(kv_heads, DataType::Fp32);
        for (rank, path) in paths.iter().enumerate() {
            write(&randomised(fresh::<B>(&on_rank(&config, rank, 2))), path, &written);
        }
        let names = AttentionNames::megatron(&Checkpoint::open(&paths[0]).unwrap(), layer, layout);
        assert_eq!(names, written);
        let split = SplitCheckpoint::open(&paths).unwrap();
        fresh::<B>(&config).load_split(&split, &names).unwrap();
        assert_eq!(split.finish().unwrap().loaded.len(), 6);
    }
}

#[test]
fn other_files_than_were_trained_are_counted() {
    let (_folder, paths, names) = files();
    assert_eq!(
        error(&paths, &names, 4).to_string(),
        "2 files were named and `training_mp_size` is 4, the number of ranks that wrote the checkpoint; name the file of every \
         rank, in rank order, or set `training_mp_size` to 2"
    );
    let error = SplitCheckpoint::open(Vec::<PathBuf>::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no file was named; a split checkpoint has one for each rank that wrote it: name them in rank order"
    );
}

#[test]
fn what_every_rank_has_is_the_same_in_every_file() {
    let (_folder, paths, names) = files();
    let mut other = entries(&paths[1]);
    let bias = other.iter_mut().find(|entry| entry.0 == "out.bias").unwrap();
    bias.3[0] ^= 1;
    save(&paths[1], &other);
    let [first, second] = paths.each_ref().map(|path| path.display());
    assert_eq!(
        error(&paths, &names, 1).to_string(),
        format!(
            "`out.bias` is not the same in {first} and {second}, and every rank has all of it; name the files of one \
             checkpoint"
        )
    );
}

#[test]
fn ranks_that_cannot_have_written_the_heads_are_refused() {
    let (_folder, paths, names) = files();
    let many: Vec<PathBuf> = (0..13).map(|_| paths[0].clone()).collect();
    let message = error(&many, &names, 1).to_string();
    assert!(message.contains("12 query heads and 4 key/value heads over 13 ranks; valid: 1, 2, 3, "), "{message}");
    let refused = |layout| {
        let names = names.clone().with_qkv(QkvNames::fused("qkv", layout));
        let module = fresh::<B>(&config(4, DataType::Fp32));
        module.load(&Checkpoint::open(&paths[0]).unwrap(), &names).unwrap_err()
    };
    for ranks in [0, 13] {
        let error = refused(QkvLayout::PerRank(ranks));
        assert!(
            matches!(error, WeightError::Config(ConfigError::Ranks { heads: 12, ranks: found, .. }) if found == ranks)
        );
    }
    // a rank's file in the layout of more ranks than it has heads for
    let module = fresh::<B>(&on_rank(&config(4, DataType::Fp32), 0, 4));
    let names = names.clone().with_qkv(QkvNames::fused("qkv", QkvLayout::PerRank(4)));
    let error = module.write(&mut CheckpointWriter::default(), &names).unwrap_err();
    assert!(matches!(error, WeightError::Config(ConfigError::Ranks { heads: 3, kv_heads: 1, ranks: 4, .. })));
    let error = config(4, DataType::Fp32).with_training_mp_size(0).resolve(0).unwrap_err();
    assert_eq!(error.to_string(), "`training_mp_size` is 0; it must be at least 1");
}

#[test]
fn a_tensor_of_no_rank_is_unexpected_once() {
    let (_folder, paths, names) = files();
    for path in &paths {
        let mut more = entries(path);
        more.push(("mlp".into(), Dtype::F32, vec![1], vec![0; 4]));
        save(path, &more);
    }
    let split = SplitCheckpoint::open(&paths).unwrap();
    fresh::<B>(&on_rank(&config(4, DataType::Fp32), 3, 4)).load_split(&split, &names).unwrap();
    assert!(matches!(split.finish(), Err(WeightError::Unused(names)) if names == ["mlp"]));
    split.ignore(|name| name == "mlp");
    assert_eq!(split.finish().unwrap().loaded.len(), 6);
}

#[test]
fn a_file_that_is_cut_short_is_an_error() {
    let (_folder, paths, names) = files();
    let checkpoint = Checkpoint::open(&paths[0]).unwrap();
    let length = std::fs::metadata(&paths[0]).unwrap().len();
    std::fs::File::options().write(true).open(&paths[0]).unwrap().set_len(length / 2).unwrap();
    let half = config(4, DataType::Fp32).with_heads(6).with_num_kv(Some(2));
    let message = fresh::<B>(&half).load(&checkpoint, &names).unwrap_err().to_string();
    assert!(message.contains("it ends inside of a tensor that its header lists; it was cut short"), "{message}");
    let message = Checkpoint::open(&paths[0]).unwrap_err().to_string();
    assert!(message.contains("it is not complete"), "{message}");
}

#[test]
#[should_panic(expected = "Checkpoint::slice: `out.weight` has shape [20, 12], and 3..13 of axis 1 is not inside")]
fn a_range_outside_of_the_tensor_is_refused() {
    let (_folder, paths, _) = files();
    let checkpoint = Checkpoint::open(&paths[0]).unwrap();
    let _ = checkpoint.slice::<B, 2>("out.weight", [20, 12], [0..20, 3..13], DType::F32, &Default::default());
}
