//! candle's two ways to attend on a CPU.

use burn_deepspeed_kernels::cpu::pages::move_to_huge_pages;
use candle_core::{Device, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use peers_ours::{Call, Dense, Engine, Failure, Heads, Workload};

/// The engine.
pub const ENGINE: Engine = Engine { name: "candle", prepare };

/// ALiBi's steepest slopes begin at 2^(-8 / heads).
const ALIBI_MAX_BIAS: f32 = 8.0;

fn prepare(implementation: &str, workload: &Workload) -> std::result::Result<Call, Failure> {
    match implementation {
        "candle-flash" => flash(workload),
        "candle-plain" => plain(workload),
        _ => Err("no such implementation".into()),
    }
}

/// `candle_nn`'s flash attention. Its inputs are `[B, T, N, H]`, and are laid out so before the measured time.
fn flash(workload: &Workload) -> std::result::Result<Call, Failure> {
    let Workload::Attention(heads) = workload else { return Err("not attention alone".into()) };
    let [query, key, value] = inputs(heads)?;
    let in_rows = |tensor: Tensor| tensor.transpose(1, 2)?.contiguous();
    let (query, key, value) = (in_rows(query)?, in_rows(key)?, in_rows(value)?);
    let mask = match heads.plain_causal() {
        true => AttnMask::causal_with_offset(heads.start()),
        false => additive(heads)?.map_or(AttnMask::None, AttnMask::Mask),
    };
    let (scale, alibi) = (heads.scale() as f32, heads.alibi.then_some(ALIBI_MAX_BIAS));
    Ok(call(move || flash_attn::<f32>(&query, &key, &value, scale, mask.clone(), alibi, None)))
}

/// Product, mask, softmax, product, with repeated heads: as the models of `candle-transformers` do.
fn plain(workload: &Workload) -> std::result::Result<Call, Failure> {
    let Workload::Attention(heads) = workload else { return Err("not attention alone".into()) };
    let [query, key, value] = inputs(heads)?;
    let (mask, scale, times) = (additive(heads)?, heads.scale(), heads.heads / heads.kv_heads);
    Ok(call(move || {
        let (key, value) = (repeated(&key, times)?, repeated(&value, times)?);
        let scores = (query.matmul(&key.transpose(2, 3)?)? * scale)?;
        let scores = match &mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        candle_nn::ops::softmax_last_dim(&scores)?.matmul(&value)
    }))
}

fn call(attend: impl Fn() -> Result<Tensor> + 'static) -> Call {
    Box::new(move || {
        let output = attend()?;
        Ok(Box::new(move || Ok(output.flatten_all()?.to_vec1()?)))
    })
}

fn inputs(heads: &Heads) -> Result<[Tensor; 3]> {
    Ok([tensor(heads.query())?, tensor(heads.key())?, tensor(heads.value())?])
}

fn tensor(dense: Dense<f32>) -> Result<Tensor> {
    move_to_huge_pages(&dense.elements);
    Tensor::from_vec(dense.elements, dense.shape.as_slice(), &Device::Cpu)
}

/// What is added to the scores: `-inf` where a key is hidden, and ALiBi's bias.
fn additive(heads: &Heads) -> Result<Option<Tensor>> {
    let hidden = heads.hidden().map(|hidden| {
        let elements = hidden.elements.iter().map(|&hidden| if hidden { f32::NEG_INFINITY } else { 0.0 }).collect();
        tensor(Dense { elements, shape: hidden.shape })
    });
    let bias = heads.bias().map(tensor);
    Ok(match (hidden.transpose()?, bias.transpose()?) {
        (Some(hidden), Some(bias)) => Some(bias.broadcast_add(&hidden)?),
        (hidden, bias) => hidden.or(bias),
    })
}

/// As `candle_transformers::utils::repeat_kv`.
fn repeated(heads: &Tensor, times: usize) -> Result<Tensor> {
    if times == 1 {
        return Ok(heads.clone());
    }
    let (batch, count, tokens, features) = heads.dims4()?;
    Tensor::cat(&vec![heads; times], 2)?.reshape((batch, count * times, tokens, features))
}
