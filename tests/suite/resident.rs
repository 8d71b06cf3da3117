//! The memory of a process that loads a rank's part, as the system counts it.

use std::process::Command;

use burn_deepspeed::config::MatrixFormat;
use burn_deepspeed::load::{AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkvLayout, QkvNames, WeightNames};
use burn_deepspeed::weight::Orientation;
use burn_deepspeed::{AttentionInit, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention};

use crate::common::AnyBackend;

/// Where a process finds the file, and of how many ranks it is the first; 0 loads nothing.
const FILE: &str = "BURN_DEEPSPEED_RESIDENT_FILE";
const RANKS: &str = "BURN_DEEPSPEED_RESIDENT_RANKS";
/// In which format it keeps its matrices.
const FORMAT: &str = "BURN_DEEPSPEED_RESIDENT_FORMAT";

const HIDDEN: usize = 2048;
const MIB: usize = 1 << 20;

/// What loading needs in addition to the weights: threads, read buffers, and code. A build of every backend has most code.
const LOADER: usize = 24 * MIB;

fn names() -> AttentionNames {
    let qkv = QkvNames::fused("qkv", QkvLayout::PerHead);
    AttentionNames::new(qkv, WeightNames::of("output"), Orientation::OutputInput).with_norm(NormNames::of("norm"))
}

fn fresh(ranks: usize, format: MatrixFormat) -> DeepSpeedSelfAttention<AnyBackend> {
    let config = DeepSpeedInferenceConfig::new(HIDDEN, 16).with_dtype(DataType::Fp32).with_matrix_format(format);
    let config = config.with_mp_size(ranks).with_local_rank(Some(0));
    config.init_self_attention(0, &Default::default()).unwrap()
}

/// One of the processes that the test below starts.
#[test]
#[ignore = "one of the processes that another test starts"]
fn as_a_process() {
    let ranks: usize = std::env::var(RANKS).unwrap().parse().unwrap();
    if ranks > 0 {
        let checkpoint = Checkpoint::open(std::env::var(FILE).unwrap()).unwrap();
        let format = std::env::var(FORMAT).unwrap().parse().unwrap();
        let attention = fresh(ranks, format).load(&checkpoint, &names()).unwrap();
        assert_eq!(attention.output().input_size(), HIDDEN / ranks);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    println!("peak {} KiB", peak.split_whitespace().nth(1).unwrap());
}

#[test]
#[cfg(target_os = "linux")]
fn a_process_holds_its_part_and_little_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut writer = CheckpointWriter::default();
    fresh(1, MatrixFormat::OfDtype).write(&mut writer, &names()).unwrap();
    writer.save(&path).unwrap();
    let size = std::fs::metadata(&path).unwrap().len() as usize;
    assert!(size > 4 * HIDDEN * HIDDEN * 4);

    let peak = |ranks: usize, format: MatrixFormat| -> usize {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "resident::as_a_process", "--ignored", "--nocapture"])
            .env(FILE, &path)
            .env(RANKS, ranks.to_string())
            .env(FORMAT, format.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("peak ")).unwrap_or_else(|| panic!("{text}"));
        line.strip_suffix(" KiB").unwrap().parse::<usize>().unwrap() * 1024
    };
    let nothing = peak(0, MatrixFormat::OfDtype);
    for format in [MatrixFormat::OfDtype, MatrixFormat::Stored] {
        for ranks in [1, 2, 4, 8] {
            let held = peak(ranks, format).saturating_sub(nothing);
            println!("rank 0 of {ranks}, {format}: {} of {} MiB", held / MIB, size / MIB);
            assert!(held > size / ranks / 2, "{held} bytes: nothing was loaded");
            assert!(held <= size / ranks + LOADER, "rank 0 of {ranks}, {format}, holds {held} bytes of {size}");
        }
    }
}
