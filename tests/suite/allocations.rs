//! A decoding step copies no history: the bytes that it allocates do not depend on the tokens that the cache holds. A layer of
//! int8 holds its elements and scales. A rank reads its part of a file, and loading it takes little more memory than the part.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts for each thread the bytes that it allocates and frees, and the most that it held.
struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static FREED: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

fn held() -> usize {
    BYTES.get().saturating_sub(FREED.get())
}

// SAFETY: every call is passed to the system's allocator as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size()));
        let _ = MOST.try_with(|most| most.set(most.get().max(held())));
        // SAFETY: the caller's layout, unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let _ = FREED.try_with(|freed| freed.set(freed.get() + layout.size()));
        // SAFETY: the pointer came from `alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that this thread allocates while `work` runs.
pub fn allocated(work: impl FnOnce()) -> usize {
    let before = BYTES.get();
    work();
    BYTES.get() - before
}

/// Bytes that this thread allocates while `work` runs and does not free until its result is there.
fn retained<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let (taken, freed) = (BYTES.get(), FREED.get());
    let result = work();
    (result, (BYTES.get() - taken).saturating_sub(FREED.get() - freed))
}

/// The most bytes that this thread holds at a time while `work` runs, over what it held before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = held();
    MOST.set(before);
    let result = work();
    (result, MOST.get() - before)
}

/// Bytes that this thread has read from files so far.
#[cfg(target_os = "linux")]
fn bytes_read() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok())
}

#[cfg(not(target_os = "linux"))]
fn bytes_read() -> Option<usize> {
    None
}

use burn_deepspeed::load::{AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkvLayout, QkvNames, WeightNames};
use burn_deepspeed::weight::{Orientation, QkvWeight};
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, InferenceBackend,
};

use safetensors::Dtype;

use crate::attention::llama;
use crate::common::{on_each_cpu_backend, seeded};
use crate::load::save;

fn a_step_copies_no_history<B: InferenceBackend>() {
    let device = Default::default();
    let config = llama().with_max_out_tokens(4096);
    let attention = config.init_self_attention::<B>(0, &device).unwrap();
    let mut cache = config.init_cache::<B>(1, &device).unwrap();
    let row = 2 * 8 * 4; // bytes of one token's keys, and of its values
    let mut step_at = |history: usize| {
        cache.reset();
        // the content does not matter, only the number of tokens in the rows
        for tokens in [history / 2, history - history / 2] {
            cache.step(tokens).unwrap().commit();
        }
        let input = seeded::<B, 3>([1, 1, 48], 1);
        let bytes = allocated(|| {
            let mut step = cache.step(1).unwrap();
            attention.forward(input, AttentionMask::none(), step.layer(0)).unwrap();
            step.commit();
        });
        assert_eq!(cache.lengths(), [history + 1]);
        bytes
    };
    step_at(4090); // one-time setup, and the scratch memory that threads keep
    let (short, long) = (step_at(100), step_at(4000));
    assert!(long < short + 8 * row, "{short} bytes after 100 tokens, {long} after 4000");
    assert!(long < 4000 * row / 4, "{long} bytes, and the keys alone are {}", 4000 * row);
}

/// Built, loaded dense and loaded as int8, a layer holds its elements, its scales, and hardly anything else.
fn a_layer_of_int8_holds_its_bytes<B: InferenceBackend>() {
    let (device, folder) = (Default::default(), tempfile::tempdir().unwrap());
    let config = |dtype| DeepSpeedInferenceConfig::new(512, 8).with_dtype(dtype);
    let fresh = |dtype| config(dtype).init_self_attention::<B>(0, &device).unwrap();
    let bytes = |attention: &DeepSpeedSelfAttention<B>| {
        let QkvWeight::Fused(qkv) = attention.qkv() else { panic!() };
        qkv.int8().unwrap().bytes() + attention.output().int8().unwrap().bytes()
    };
    let check = |what: &str, (attention, retained): (DeepSpeedSelfAttention<B>, usize)| {
        let bytes = bytes(&attention);
        assert!(10 * retained <= 11 * bytes, "{what} holds {retained} bytes, and its int8 are {bytes}");
    };
    check("a layer that was never read", retained(|| fresh(DataType::Int8)));
    check(
        "a fresh layer",
        retained(|| {
            let attention = fresh(DataType::Int8);
            attention.forward_uncached(seeded([1, 1, 512], 1), AttentionMask::none(), None).unwrap();
            attention
        }),
    );
    for (dtype, orientation) in [
        (DataType::Fp32, Orientation::OutputInput),
        (DataType::Int8, Orientation::OutputInput),
        (DataType::Int8, Orientation::InputOutput),
    ] {
        let names =
            AttentionNames::new(QkvNames::fused("qkv", QkvLayout::PerHead), WeightNames::of("out"), orientation)
                .with_norm(NormNames::of("norm"));
        let path = folder.path().join("layer.safetensors");
        let mut writer = CheckpointWriter::default();
        fresh(dtype).write(&mut writer, &names).unwrap();
        writer.save(&path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let loaded = retained(|| fresh(DataType::Int8).load(&checkpoint, &names).unwrap());
        assert!(loaded.1 >= bytes(&loaded.0), "what is held was not counted");
        check(&format!("a layer of {dtype}"), loaded);
    }
}

/// Rank 0 of 4 of a layer of 1024 features and 16 heads of 128: `attn` is 8 MiB to 24 MiB, and the rank has a quarter of it.
fn a_rank_reads_and_holds_its_part<B: InferenceBackend>() {
    const PAGE: usize = 4096;
    let (device, folder) = (Default::default(), tempfile::tempdir().unwrap());
    let path = folder.path().join("layer.safetensors");
    let (features, width, outputs) = (1024, 16 * 128, 3 * 16 * 128);
    for (dtype, bytes) in [(Dtype::F32, 4), (Dtype::BF16, 2), (Dtype::I8, 1)] {
        for orientation in [Orientation::OutputInput, Orientation::InputOutput] {
            let names =
                AttentionNames::new(QkvNames::fused("qkv", QkvLayout::Concat), WeightNames::of("out"), orientation)
                    .with_norm(NormNames::of("norm"));
            let int8 = dtype == Dtype::I8;
            let (floats, float_bytes) = if int8 { (Dtype::F32, 4) } else { (dtype, bytes) };
            let filled = |name: &str, dtype, size, shape: &[usize]| {
                (name.to_string(), dtype, shape.to_vec(), vec![0x2c; size * shape.iter().product::<usize>()])
            };
            let vector = |name: &str, len| filled(name, floats, float_bytes, &[len]);
            let mut entries = vec![
                filled("qkv.weight", dtype, bytes, &orientation.shape(features, outputs)),
                filled("out.weight", dtype, bytes, &orientation.shape(width, features)),
                vector("qkv.bias", outputs),
                vector("out.bias", features),
                vector("norm.weight", features),
                vector("norm.bias", features),
            ];
            if int8 {
                entries.extend([vector("qkv.weight.scale", outputs), vector("out.weight.scale", features)]);
            }
            save(&path, &entries);
            let header = u64::from_le_bytes(std::fs::read(&path).unwrap()[..8].try_into().unwrap()) as usize + 8;
            let whole = 3 * features * float_bytes; // norm and output bias
            let split = (outputs + if int8 { outputs } else { 0 }) * float_bytes / 4; // QKV bias and scales
            let scales = if int8 { features * 4 } else { 0 }; // of the output projection
            let quarter = features * (outputs + width) * bytes / 4;
            // Columns less than a page apart are read in one piece.
            let gaps = match orientation {
                Orientation::OutputInput => [(features, width)],
                Orientation::InputOutput => [(3 * features, width)],
            };
            let through: usize = gaps
                .iter()
                .map(|(runs, row)| (runs, row * bytes * 3 / 4))
                .filter(|(_, gap)| *gap < PAGE)
                .map(|(runs, gap)| runs * gap)
                .sum();
            let config = DeepSpeedInferenceConfig::new(features, 16).with_head_dim(Some(128));
            let config = config.with_dtype(if int8 { DataType::Int8 } else { DataType::Fp32 });
            let config = config.with_mp_size(4).with_local_rank(Some(0));
            let fresh = config.init_self_attention::<B>(0, &device).unwrap();
            let before = bytes_read();
            let (loaded, peak) = peak(|| fresh.load(&Checkpoint::open(&path).unwrap(), &names).unwrap());
            let what = format!("rank 0 of 4 of {dtype:?}, {orientation:?},");
            if let Some((before, after)) = before.zip(bytes_read()) {
                let (read, least) = (after - before, quarter + whole + split);
                assert!(read >= least, "{what} read {read} bytes and has {least}");
                let most = header + quarter + whole + split + scales + through + 1024;
                assert!(read <= most, "{what} read {read} bytes, more than {most}");
            }
            let own = features * (outputs + width) / 4 * if int8 { 1 } else { 4 };
            assert!(peak >= own, "what is held was not counted");
            let most = own * 11 / 10 + (1 << 20) + (1 << 18);
            assert!(peak <= most, "{what} held {peak} bytes, and its part are {own}");
            drop(loaded);
        }
    }
}

on_each_cpu_backend!(a_step_copies_no_history, a_layer_of_int8_holds_its_bytes, a_rank_reads_and_holds_its_part);
