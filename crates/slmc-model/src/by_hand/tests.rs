//! Against Burn's autodiff of the composed block, at odd sizes: the value and every gradient.

use burn::tensor::{Device, Tensor};
use slmc_ir::TensorKey;

use super::{Shared, backward, forward};
use crate::{
    composed,
    test_support::{assert_near, decoder, gradients_of, random},
};

/// Under one chunk, one over it, and more than four of the shortest.
const SEQS: [usize; 4] = [2, 37, 65, 300];
const BATCH: usize = 2;

#[test]
fn block_and_all_its_gradients() {
    let device = Device::flex().autodiff();
    for (everything, seq) in [false, true].into_iter().flat_map(|e| SEQS.map(|seq| (e, seq))) {
        let decoder = decoder(everything, &device);
        let spec = &decoder.spec;
        let rope = decoder.rope.table(spec, seq);
        let hidden: Tensor<3> = random([BATCH, seq, spec.d_model], 91, 1.0, &device).require_grad();
        let weights: Tensor<3> = random([BATCH, seq, spec.d_model], 92, 1.0, &device);
        let (expected, _) = composed::block(hidden.clone(), &decoder.blocks[0], spec, &rope);
        let grads = (expected.clone() * weights.clone()).sum().backward();
        let keys: Vec<TensorKey> = decoder.keys().into_iter().filter(|key| key.block == Some(0)).collect();
        let expected_gradients = gradients_of(&decoder, &grads, &keys);

        let plain = decoder.for_evaluation();
        let rows = |x: Tensor<3>| x.without_autodiff().reshape([BATCH * seq, spec.d_model]);
        let shared = Shared::new(spec, &rope, [BATCH, seq], &plain.device());
        let (out, kept) = forward(rows(hidden.clone()), &plain.blocks[0], spec, &shared);
        assert_near("out", out, rows(expected));
        let (d_hidden, found) = backward(kept, rows(weights), &plain.blocks[0], spec, &shared);
        assert_near("hidden", d_hidden, rows(hidden.grad(&grads).expect("the input is a leaf")));
        assert_eq!(found.len(), keys.len());
        for (role, part, gradient) in found {
            let key = TensorKey { block: Some(0), role, part };
            let index = keys.iter().position(|&other| other == key).expect("a parameter of the block");
            assert_near(&format!("{key}, {seq} tokens"), gradient, expected_gradients[index].clone());
        }
    }
}
