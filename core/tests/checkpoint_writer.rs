//! Files that are written: what a GGUF holds is read again, and what a file cannot hold is an error before there is a file.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use burn_deepspeed_core::block::{BlockFormat, BlockRows, RowFormats};
use burn_deepspeed_core::checkpoint::{
    BlockedInt8, Checkpoint, CheckpointWriter, Floats, Gguf, HuggingFaceConfig, Metadata, ProjectionParts, ScaleNames,
    WeightNames, WeightPart,
};
use burn_deepspeed_core::element::ElementType;
use burn_deepspeed_core::error::WeightError;
use burn_deepspeed_core::layout::Orientation;
use serde_json::json;

/// Rows in these formats, of bytes that differ.
fn rows(inputs: usize, formats: &[BlockFormat]) -> BlockRows {
    let formats = RowFormats::new(inputs, formats.iter().copied()).unwrap();
    let bytes = (0..formats.bytes()).map(|at| (at * 31 + at / 251) as u8).collect();
    BlockRows { formats, bytes }
}

/// Rows of floats, which are no NaN.
fn floats(inputs: usize, formats: &[BlockFormat]) -> BlockRows {
    let made = RowFormats::new(inputs, formats.iter().copied()).unwrap();
    let values = |row: usize| (0..inputs).map(move |at| (row * inputs + at) as f32 / 8.0 - 1.0).collect::<Vec<_>>();
    let bytes = formats.iter().enumerate().flat_map(|(row, format)| format.quantise(&values(row))).collect();
    BlockRows { formats: made, bytes }
}

fn saved(writer: &CheckpointWriter) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    writer.save(&path).unwrap();
    let checkpoint = Checkpoint::open(path).unwrap();
    (folder, checkpoint)
}

/// The matrix `w.weight` as it is stored.
fn read(checkpoint: &Checkpoint, orientation: Orientation, shape: [usize; 2]) -> BlockRows {
    let names = WeightNames::of("w");
    ProjectionParts::of(checkpoint, &names, orientation, shape, &WeightPart::Whole).blocks(shape, None).unwrap()
}

/// Saves to `name` in a new folder, and checks that this is an error that leaves nothing.
#[track_caller]
fn refused(writer: &CheckpointWriter, name: &str, expected: &[&str]) -> WeightError {
    let folder = tempfile::tempdir().unwrap();
    let error = writer.save(folder.path().join(name)).unwrap_err();
    for expected in expected {
        assert!(error.to_string().contains(expected), "{error}, expected {expected}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was written");
    error
}

#[test]
fn blocks_of_every_format_are_read_byte_for_byte() {
    for format in BlockFormat::ALL {
        let matrix = rows(512, &[format; 5]);
        let mut writer = CheckpointWriter::default();
        writer.insert("a", ElementType::I8, vec![3], vec![1, 2, 3]); // the next tensor begins at the next multiple of 32
        writer.blocks("w.weight", Orientation::OutputInput, (std::slice::from_ref(&matrix), &[0, 1, 2, 3, 4])).unwrap();
        let (_folder, checkpoint) = saved(&writer);
        assert_eq!(checkpoint.shape("w.weight"), Some(&[5, 512][..]));
        assert_eq!(read(&checkpoint, Orientation::OutputInput, [5, 512]), matrix, "{format}");
    }
}

#[test]
fn elements_of_every_type_are_read_byte_for_byte() {
    for (element, size) in [(ElementType::I8, 1), (ElementType::I16, 2), (ElementType::I32, 4), (ElementType::I64, 8)] {
        let values = [-7i64, 0, 1, 99, -128, 127];
        let mut writer = CheckpointWriter::default();
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()[..size].to_vec()).collect();
        writer.insert("x", element, vec![2, 1, 3], bytes);
        let (_folder, checkpoint) = saved(&writer);
        assert_eq!(checkpoint.integers("x", &[2, 1, 3]).unwrap(), values, "{element}");
    }
    let values = [0.5, -1.25, 0.0, 3.0, -0.0, 448.0];
    for element in [ElementType::F64, ElementType::F32, ElementType::Flex32, ElementType::F16, ElementType::BF16] {
        let bytes = values.iter().flat_map(|&value: &f64| match element {
            ElementType::F64 => value.to_le_bytes().to_vec(),
            ElementType::F16 => half::f16::from_f64(value).to_le_bytes().to_vec(),
            ElementType::BF16 => half::bf16::from_f64(value).to_le_bytes().to_vec(),
            _ => (value as f32).to_le_bytes().to_vec(),
        });
        let mut writer = CheckpointWriter::default();
        writer.insert("x", element, vec![2, 1, 1, 3], bytes.collect());
        writer.insert("none", element, vec![0, 3], Vec::new());
        writer.insert("scalar", element, Vec::new(), vec![0; element.size()]);
        let (_folder, checkpoint) = saved(&writer);
        let read = checkpoint.floats("x", &[2, 1, 1, 3], &[0..2, 0..1, 0..1, 0..3], ElementType::F64).unwrap();
        assert_eq!(read, Floats::F64(values.to_vec()), "{element}");
        assert_eq!(checkpoint.shape("none"), Some(&[0, 3][..]));
        assert_eq!(checkpoint.shape("scalar"), Some(&[][..]));
    }
}

/// Outputs of two matrices, in any order.
#[test]
fn rows_have_the_order_that_is_asked_for() {
    use BlockFormat::{Q4_K, Q6_K};
    let matrices = [rows(256, &[Q4_K, Q4_K]), rows(256, &[Q6_K, Q4_K])];
    let mut writer = CheckpointWriter::default();
    writer.blocks("w.weight", Orientation::OutputInput, (&matrices, &[3, 0, 1])).unwrap();
    let (_folder, checkpoint) = saved(&writer);
    let (first, second) = (&matrices[0].bytes, &matrices[1].bytes);
    let expected = [&second[210..], &first[..144], &first[144..]].concat();
    assert_eq!(read(&checkpoint, Orientation::OutputInput, [3, 256]).bytes, expected);
    let error = writer.blocks("w.weight", Orientation::OutputInput, (&matrices, &[0, 2])).unwrap_err();
    assert!(matches!(&error, WeightError::SeveralFormats { name, .. } if name == "w.weight"), "{error}");
    assert!(error.to_string().contains("Q4_K, Q6_K"), "{error}");
    let error = writer.blocks("w.weight", Orientation::InputOutput, (&matrices, &[0, 1])).unwrap_err();
    assert!(matches!(error, WeightError::TransposedBlocks { format: Q4_K, .. }), "{error}");
    let no_rows: [usize; 0] = [];
    writer.blocks("w.weight", Orientation::OutputInput, (&matrices, &no_rows)).unwrap();
    assert_eq!(saved(&writer).1.shape("w.weight"), Some(&[0, 256][..]));
}

#[test]
#[should_panic(expected = "rows of 256 and of 512 elements")]
fn rows_of_one_tensor_have_one_length() {
    let matrices = [256, 512].map(|inputs| rows(inputs, &[BlockFormat::Q4_K]));
    _ = CheckpointWriter::default().blocks("w.weight", Orientation::OutputInput, (&matrices, &[0, 1]));
}

/// In both orientations and kinds of files.
#[test]
fn rows_of_floats_are_a_tensor_of_floats() {
    use BlockFormat::{BF16, F16, F32};
    for (formats, stored) in
        [([F32; 3], F32), ([F16; 3], F16), ([BF16; 3], BF16), ([F16, BF16, F16], F32), ([BF16, F32, F16], F32)]
    {
        let matrix = floats(7, &formats);
        for orientation in [Orientation::OutputInput, Orientation::InputOutput] {
            for name in ["model.gguf", "model.safetensors"] {
                let mut writer = CheckpointWriter::default();
                writer.blocks("w.weight", orientation, (std::slice::from_ref(&matrix), &[2, 0, 1])).unwrap();
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join(name);
                writer.save(&path).unwrap();
                let checkpoint = Checkpoint::open(&path).unwrap();
                assert_eq!(checkpoint.shape("w.weight"), Some(&orientation.shape(7, 3)[..]));
                let found = read(&checkpoint, orientation, [3, 7]);
                assert_eq!(found.formats, RowFormats::uniform(stored, [3, 7]).unwrap());
                let expected: Vec<f32> =
                    [2, 0, 1].iter().flat_map(|row| (0..7).map(move |at| (row * 7 + at) as f32 / 8.0 - 1.0)).collect();
                assert_eq!(found.bytes, stored.quantise(&expected), "{formats:?} in {name}, {orientation:?}");
            }
        }
    }
}

#[test]
fn int8_has_its_scales_beside_blocks() {
    let elements: Vec<i8> = (0..6 * 32).map(|at| at as i8).collect();
    let scales: Vec<f32> = (1..=6).map(|scale| scale as f32).collect();
    let int8 = BlockedInt8 { elements, scales, shape: [6, 32], blocks: [1, 32] };
    let matrix = rows(32, &[BlockFormat::Q5_1; 2]);
    let mut writer = CheckpointWriter::default();
    writer.blocks("w.weight", Orientation::OutputInput, (std::slice::from_ref(&matrix), &[0, 1])).unwrap();
    let order = [0, 1, 2, 3, 4, 5];
    let names = ScaleNames::of("i.weight");
    let one = std::slice::from_ref(&int8);
    writer.int8("i.weight", &names, Orientation::InputOutput, (one, &order)).unwrap();
    let (_folder, checkpoint) = saved(&writer);
    let names = WeightNames::of("i");
    let parts = ProjectionParts::of(&checkpoint, &names, Orientation::InputOutput, [6, 32], &WeightPart::Whole);
    assert!(parts.is_int8());
    assert_eq!(parts.int8([6, 32]).unwrap(), int8);
    assert_eq!(read(&checkpoint, Orientation::OutputInput, [2, 32]), matrix);
    checkpoint.finish().unwrap();
}

#[test]
fn metadata_of_every_type_is_read_again() {
    let values: Vec<(&str, Metadata)> = vec![
        ("general.name", "a model".into()),
        ("text.owned", String::from("é").into()),
        ("integer.u32", u32::MAX.into()),
        ("integer.i32", (-7i32).into()),
        ("integer.i64", (1i64 << 40).into()),
        ("integer.min", i64::MIN.into()),
        ("float.f32", 1e-5f32.into()),
        ("float.f64", 1e-5f64.into()),
        ("float.negative_zero", (-0.0f64).into()),
        ("bool", true.into()),
        ("integers.u32", vec![1u32, u32::MAX].into()),
        ("integers.i32", vec![-1i32, 7].into()),
        ("integers.i64", vec![-1i64, 1 << 40].into()),
        ("floats.f32", vec![0.5f32, f32::INFINITY].into()),
        ("floats.f64", vec![0.1f64, 0.5].into()),
        ("bools", vec![true, false].into()),
        ("texts", vec![String::from("a"), String::new()].into()),
        ("none.integers", Metadata::Integers(Vec::new())),
        ("none.floats", Metadata::Floats(Vec::new())),
        ("none.bools", Metadata::Bools(Vec::new())),
        ("none.texts", Metadata::Texts(Vec::new())),
    ];
    let mut writer = CheckpointWriter::default();
    writer.metadata("bool", "is set again");
    values.iter().for_each(|(key, value)| writer.metadata(key, value.clone()));
    let (_folder, checkpoint) = saved(&writer);
    let gguf = Gguf::open(checkpoint.path()).unwrap();
    for (key, value) in &values {
        assert_eq!(gguf.value(key), Some(value), "{key}");
    }
    assert_eq!(gguf.value("general.alignment"), Some(&Metadata::Integer(32)));
    assert_eq!(gguf.metadata().count(), values.len() + 1);
    // The types, which `Metadata` does not tell apart.
    let bytes = std::fs::read(checkpoint.path()).unwrap();
    for (key, kinds) in [
        ("general.alignment", &[4u32][..]),
        ("integer.u32", &[4]),
        ("integer.i32", &[5]),
        ("integer.i64", &[11]),
        ("float.f32", &[6]),
        ("float.f64", &[12]),
        ("integers.u32", &[9, 4]),
        ("integers.i32", &[9, 5]),
        ("integers.i64", &[9, 11]),
        ("floats.f32", &[9, 6]),
        ("floats.f64", &[9, 12]),
        ("none.integers", &[9, 5]),
    ] {
        let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len();
        let found: Vec<u32> =
            bytes[at..].as_chunks().0.iter().take(kinds.len()).map(|raw| u32::from_le_bytes(*raw)).collect();
        assert_eq!(found, kinds, "{key}");
    }
}

#[test]
fn a_file_with_blocks_states_their_version_and_its_alignment_is_kept() {
    let matrix = rows(32, &[BlockFormat::Q4_0; 3]);
    let mut writer = CheckpointWriter::default();
    writer.insert("a", ElementType::F32, vec![1], vec![0; 4]);
    let version = |writer: &CheckpointWriter| {
        let (folder, checkpoint) = saved(writer);
        let gguf = Gguf::open(checkpoint.path()).unwrap();
        drop(folder);
        gguf.value("general.quantization_version").cloned()
    };
    assert_eq!(version(&writer), None);
    writer.blocks("w.weight", Orientation::OutputInput, (std::slice::from_ref(&matrix), &[0, 1, 2])).unwrap();
    assert_eq!(version(&writer), Some(Metadata::Integer(2)));
    writer.metadata("general.quantization_version", 3);
    assert_eq!(version(&writer), Some(Metadata::Integer(3)));
    for alignment in [8u32, 32, 4096] {
        writer.metadata("general.alignment", alignment);
        let (_folder, checkpoint) = saved(&writer);
        assert_eq!(read(&checkpoint, Orientation::OutputInput, [3, 32]), matrix);
        let bytes = std::fs::read(checkpoint.path()).unwrap();
        let start = bytes.windows(matrix.bytes.len()).position(|window| window == matrix.bytes).unwrap();
        assert_eq!((start % alignment as usize, bytes.len() % alignment as usize), (0, 0));
    }
    for (key, value, expected) in [
        ("general.alignment", Metadata::Integer(24), "power of two"),
        ("general.alignment", Metadata::Integer(4), "power of two"),
        ("general.alignment", Metadata::Integer(1 << 20), "power of two"),
        ("general.alignment", "32".into(), "power of two"),
        ("general.architecture", 7.into(), "is a text"),
        ("split.count", 2.into(), "leave out the keys"),
        ("", true.into(), "ASCII"),
        ("schlüssel", true.into(), "ASCII"),
    ] {
        let mut writer = writer.clone();
        writer.metadata(key, value);
        let error = refused(&writer, "model.gguf", &[&format!("`{key}` is "), expected]);
        assert!(matches!(error, WeightError::Metadata { .. }), "{error}");
    }
}

#[test]
fn what_a_gguf_cannot_hold_is_an_error() {
    let with = |name: &str, element: ElementType, shape: &[usize]| {
        let mut writer = CheckpointWriter::default();
        writer.insert(name, element, shape.to_vec(), vec![0; shape.iter().product::<usize>() * element.size()]);
        writer
    };
    let error = refused(&with("x", ElementType::F32, &[1, 2, 1, 2, 1]), "a.gguf", &["`x` has 5 axes", "at most 4"]);
    assert!(matches!(error, WeightError::GgufAxes { .. }));
    for element in [ElementType::U8, ElementType::U16, ElementType::U32, ElementType::U64, ElementType::Bool] {
        let error = refused(&with("x", element, &[3]), "A.GGUF", &["`x`", &element.to_string(), ".safetensors"]);
        assert!(matches!(error, WeightError::GgufElement { .. }));
    }
    let (fits, long) = ("n".repeat(63), "n".repeat(64));
    assert!(saved(&with(&fits, ElementType::F32, &[1])).1.contains(&fits));
    let error = refused(&with(&long, ElementType::F32, &[1]), "a.gguf", &["64 bytes", "at most 63"]);
    assert!(matches!(error, WeightError::GgufName { .. }));
    let mut writer = CheckpointWriter::default();
    writer.metadata("long", "x".repeat(100_000_000));
    let error = refused(&writer, "a.gguf", &["at most 100000000"]);
    assert!(matches!(error, WeightError::GgufHeader { .. }));
}

/// In either kind of file, also for a shape of more elements than memory has bytes.
#[test]
fn bytes_that_are_not_those_of_the_shape_are_an_error() {
    for (shape, bytes) in [(vec![2, 3], 23), (vec![2, 3], 25), (vec![], 0), (vec![usize::MAX, 16], 0)] {
        let mut writer = CheckpointWriter::default();
        writer.insert("x", ElementType::F32, shape, vec![0; bytes]);
        for name in ["a.gguf", "a.safetensors"] {
            let error = refused(&writer, name, &["`x`", &format!("{bytes} bytes"), "F32"]);
            assert!(matches!(error, WeightError::ByteCount { .. }));
        }
    }
}

#[test]
fn what_safetensors_cannot_hold_is_an_error() {
    let matrix = rows(32, &[BlockFormat::IQ4_NL; 2]);
    let mut writer = CheckpointWriter::default();
    writer.metadata("format", "pt");
    writer.insert("a", ElementType::U16, vec![1, 1, 1, 1, 1, 2], vec![0; 4]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    writer.save(&path).unwrap();
    let file = std::fs::read(&path).unwrap();
    assert!(file.windows(15).any(|window| window == br#"{"format":"pt"}"#));
    assert_eq!(Checkpoint::open(&path).unwrap().shape("a"), Some(&[1, 1, 1, 1, 1, 2][..]));

    writer.blocks("w.weight", Orientation::OutputInput, (&[matrix], &[0, 1])).unwrap();
    let error = refused(&writer, "model.safetensors", &["`w.weight`", "IQ4_NL", "`.gguf`", "quantize_blocks"]);
    assert!(matches!(error, WeightError::BlocksInSafetensors { format: BlockFormat::IQ4_NL, .. }));
    writer.save(&path).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), file, "the file of before is as it was");

    let mut writer = CheckpointWriter::default();
    writer.metadata("steps", 7);
    refused(&writer, "model.safetensors", &["`steps` is 7", "texts"]);
}

/// Neither a folder that is missing nor one that has the name of the file.
#[test]
fn a_path_that_cannot_be_written_is_named() {
    let writer = CheckpointWriter::default();
    for name in ["no/such/folder/x.gguf", "no/such/folder/x.safetensors"] {
        let message = writer.save(name).unwrap_err().to_string();
        assert!(message.contains(&format!("cannot write {name}")), "{message}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("folder.gguf");
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(writer.save(&path).unwrap_err(), WeightError::Write { .. }));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

fn gpt2(layer: &str, output: &str, embedding: &str) -> CheckpointWriter {
    let mut writer = CheckpointWriter::default();
    for (name, shape) in [(format!("{layer}{output}.weight"), [8, 8]), (format!("{embedding}.weight"), [5, 8])] {
        let bytes = (0..shape[0] * shape[1]).flat_map(|at| (at as f32).to_le_bytes()).collect();
        writer.insert(&name, ElementType::F32, shape.to_vec(), bytes);
    }
    writer
}

/// A file without an architecture has the names and the order of rows that were written, and fits a `config.json`. One with an
/// architecture is read as llama.cpp's.
#[test]
fn names_are_those_of_the_architecture_if_there_is_one() {
    let of_family = gpt2("h.0.", "attn.c_proj", "wte");
    let (_folder, checkpoint) = saved(&of_family);
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["h.0.attn.c_proj.weight", "wte.weight"]);
    let config = json!({ "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1 });
    HuggingFaceConfig::from_json(config).unwrap().check(&checkpoint).unwrap();
    let error = HuggingFaceConfig::from_json_file(checkpoint.path()).unwrap_err().to_string();
    assert!(error.contains("`general.architecture` is missing"), "{error}");

    let mut of_llama_cpp = gpt2("blk.0.", "attn_output", "token_embd");
    of_llama_cpp.metadata("general.architecture", "gpt2");
    let (_folder, checkpoint) = saved(&of_llama_cpp);
    assert!(checkpoint.names().any(|name| name.ends_with("h.0.attn.c_proj.weight")), "{checkpoint:?}");
    let mut wrong = of_family;
    wrong.metadata("general.architecture", "gpt2");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    wrong.save(&path).unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("is no tensor of the architecture `gpt2`"), "{error}");
}

/// The same tensors and metadata give the same bytes, and the file is found in its folder.
#[test]
fn a_file_is_written_twice_with_the_same_bytes() {
    let mut writer = gpt2("h.0.", "attn.c_proj", "wte");
    writer.metadata("b", 1);
    writer.metadata("a", 2);
    let bytes = |path: &Path| {
        writer.save(path).unwrap();
        std::fs::read(path).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let first = bytes(&path);
    assert_eq!(bytes(&path), first);
    assert!(Checkpoint::open(folder.path()).unwrap().contains("wte.weight"));
}
