//! Gemma 1 to 3.

use super::shared::{FOUR_NORMS, LAYER, QK_NORMS, base, decoder};
use crate::checkpoint::gguf::architecture::{Architecture, Difference};
use crate::checkpoint::gguf::settings::Settings;
use crate::error::ConfigError;

pub(super) static GEMMA: Architecture =
    Architecture { name: "gemma", model_type: "gemma", differences: &[Difference::WholeNorms], ..base() };

pub(super) static GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_type: "gemma2",
    layer: &[FOUR_NORMS, LAYER],
    differences: &[Difference::WholeNorms],
    settings: |settings| {
        decoder(settings)?;
        query_scalar(settings, 46)?;
        settings.copy_number("attn_logit_softcapping", "attn_logit_softcapping")?;
        settings.copy_number("final_logit_softcapping", "final_logit_softcapping")?;
        if let Some(window) = settings.size("attention.sliding_window")? {
            settings.set("sliding_window", window);
        }
        Ok(())
    },
    ..base()
};

pub(super) static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_type: "gemma3_text",
    layer: &[FOUR_NORMS, QK_NORMS, LAYER],
    differences: &[Difference::WholeNorms],
    settings: |settings| {
        settings.kv_heads()?;
        settings.rms_epsilon()?;
        settings.head_dim()?;
        query_scalar(settings, 62)?;
        settings.copy_number("final_logit_softcapping", "final_logit_softcapping")?;
        let window = settings.size("attention.sliding_window")?;
        let window = window.ok_or_else(|| settings.unsupported("attention.sliding_window", "absent", "a window"))?;
        settings.set("sliding_window", window);
        if let Some(pattern) = settings.size("attention.sliding_window_pattern")? {
            settings.set("sliding_window_pattern", pattern);
        }
        // Layers with a window have a base of their own, and no scaling.
        let local = settings.number("rope.freq_base_swa")?.unwrap_or(10000.0);
        let full = settings.whole_rope()?;
        let sliding = serde_json::json!({ "rope_type": "default", "rope_theta": local });
        settings.set("rope_parameters", serde_json::json!({ "full_attention": full, "sliding_attention": sliding }));
        Ok(())
    },
    ..base()
};

/// What scores are divided by the root of: the size of a head, but in the largest model, of `layers` layers, hidden size over heads.
fn query_scalar(settings: &mut Settings<'_>, layers: usize) -> Result<(), ConfigError> {
    let sizes = [settings.size("embedding_length")?, settings.size("attention.head_count")?];
    let scalar = match (settings.size("block_count")?, sizes) {
        (Some(count), [Some(hidden), Some(heads)]) if count == layers && heads > 0 => hidden / heads,
        _ => settings.head()?,
    };
    settings.set("query_pre_attn_scalar", scalar);
    Ok(())
}
