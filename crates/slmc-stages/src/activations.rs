//! What goes through a model when it reads a text: for those who want to see what its weights are given.

use slmc_ir::{Checkpoint, Role, TokenId};
use slmc_model::{BlockPass, Products};

use crate::embedding::Embedding;

/// Numbers of one kind, of all tokens and blocks together.
#[derive(Clone, Debug, PartialEq)]
pub struct Activations {
    /// What they are.
    pub name: &'static str,
    /// The numbers.
    pub numbers: Vec<f32>,
}

/// Activations of a text: the residual stream after each block, what the output projections are given, and what the down
/// projections are. Takes `4 · n_tokens · n_layers · (d_model + n_heads · d_head + d_ff)` bytes.
///
/// # Errors
/// In words, when a tensor cannot be read or a token is none of the model's.
pub fn activations(checkpoint: &Checkpoint, tokens: &[TokenId]) -> Result<Vec<Activations>, String> {
    let spec = checkpoint.spec();
    if tokens.is_empty() {
        return Err("there is no text to read".to_owned());
    }
    let mut hidden = Embedding::of(checkpoint)?.rows(tokens)?;
    let sizes = [1, tokens.len()];
    let [mut stream, mut mixes, mut products] = [const { Vec::new() }; 3];
    for index in 0..spec.n_layers {
        let block = BlockPass::load(&*checkpoint.weights, index, tokens.len(), Products::Single);
        let block = block.map_err(|e| e.to_string())?;
        let mixed = block.attend(&hidden, sizes);
        let product = block.gated(&mixed.after_attention, sizes);
        hidden = mixed.after_attention;
        block.add(Role::Down, &product, &mut hidden, sizes);
        stream.extend_from_slice(&hidden);
        mixes.extend(mixed.attn_mix);
        products.extend(product);
    }
    let kinds = [
        ("the residual stream", stream),
        ("what output projections are given", mixes),
        ("what down projections are given", products),
    ];
    Ok(kinds.into_iter().map(|(name, numbers)| Activations { name, numbers }).collect())
}
