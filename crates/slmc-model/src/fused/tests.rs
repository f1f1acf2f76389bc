//! Fused operations against the same decoder from Burn's own operations, at odd sizes: values and every gradient.

use burn::tensor::{Device, Gradients, Tensor};
use slmc_ir::TensorKey;
use slmc_kernels::{Distillation, Products};

use crate::{
    Decoder, composed,
    loss::Rows,
    loss_composed,
    test_support::{assert_near, decoder, gradients_of, random},
};

const BATCH: usize = 2;
const SEQ: usize = 37;

#[test]
fn block_and_all_its_gradients() {
    let device = Device::flex().autodiff();
    for everything in [false, true] {
        let decoder = decoder(everything, &device);
        let rope = decoder.rope.table(&decoder.spec, SEQ);
        let shape = [BATCH, SEQ, decoder.spec.d_model];
        let hidden = random(shape, 91, 1.0, &device).require_grad();
        let weights = random(shape, 92, 1.0, &device);
        let keys: Vec<TensorKey> = decoder.keys().into_iter().filter(|key| key.block == Some(0)).collect();

        let (fused, captured) = super::block(&hidden, &decoder, 0, &rope, true).expect("flex is fused");
        let (plain, expected) = composed::block(hidden.clone(), &decoder.blocks[0], &decoder.spec, &rope);
        assert_near("out", fused.clone(), plain.clone());
        let captured = captured.expect("it was asked for");
        assert_near("attn_input", captured.attn_input, expected.attn_input);
        assert_near("attn_mix", captured.attn_mix, expected.attn_mix);
        assert_near("ffn_input", captured.ffn_input, expected.ffn_input);
        assert_near("ffn_product", captured.ffn_product, expected.ffn_product);

        let fused_grads = (fused * weights.clone()).sum().backward();
        let plain_grads = (plain * weights).sum().backward();
        let of = |grads: &Gradients| hidden.grad(grads).expect("the input is a leaf");
        assert_near("hidden", of(&fused_grads), of(&plain_grads));
        let found = gradients_of(&decoder, &fused_grads, &keys);
        let expected = gradients_of(&decoder, &plain_grads, &keys);
        for ((key, found), expected) in keys.iter().zip(found).zip(expected) {
            assert_near(&key.to_string(), found, expected);
        }
    }
}

#[test]
fn without_autodiff_the_block_is_the_same() {
    let device = Device::flex();
    let decoder = decoder(true, &device.clone().autodiff()).for_evaluation();
    let rope = decoder.rope.table(&decoder.spec, SEQ);
    let hidden = random([BATCH, SEQ, decoder.spec.d_model], 91, 1.0, &device);
    let (fused, _) = super::block(&hidden, &decoder, 0, &rope, false).expect("flex is fused");
    assert!(!fused.is_autodiff());
    let (plain, _) = composed::block(hidden, &decoder.blocks[0], &decoder.spec, &rope);
    assert_near("out", fused, plain);
}

#[test]
fn a_frozen_block_passes_gradients_through() {
    let device = Device::flex().autodiff();
    let decoder = decoder(false, &device);
    let frozen = burn::module::Module::no_grad(decoder.clone());
    let rope = decoder.rope.table(&decoder.spec, SEQ);
    let hidden = random([BATCH, SEQ, decoder.spec.d_model], 91, 1.0, &device).require_grad();
    let input_gradient = |decoder: &Decoder| {
        let (out, _) = super::block(&hidden, decoder, 0, &rope, false).expect("flex is fused");
        let grads = out.powi_scalar(2).sum().backward();
        let weight = decoder.blocks[0].query.weight.val();
        assert_eq!(weight.grad(&grads).is_some(), weight.is_require_grad());
        hidden.grad(&grads).expect("the input is a leaf")
    };
    assert_near("hidden", input_gradient(&frozen), input_gradient(&decoder));
}

#[test]
fn final_norm() {
    let device = Device::flex().autodiff();
    let x = random([BATCH, SEQ, 60], 5, 1.0, &device).require_grad();
    let gain = random([60], 6, 1.0, &device).require_grad();
    let weights = random([BATCH, SEQ, 60], 7, 1.0, &device);
    let fused = super::rms_norm(&x, &gain, 1e-5).expect("flex is fused");
    let plain = composed::rms_norm(x.clone(), gain.clone(), 1e-5);
    assert_near("out", fused.clone(), plain.clone());
    let (fused, plain) = ((fused * weights.clone()).sum().backward(), (plain * weights).sum().backward());
    assert_near("x", x.grad(&fused).unwrap(), x.grad(&plain).unwrap());
    assert_near("gain", gain.grad(&fused).unwrap(), gain.grad(&plain).unwrap());
}

fn check_loss(run: impl Fn(bool, Tensor<3>, Tensor<2>) -> (Tensor<1>, Vec<f32>)) {
    let device = Device::flex().autodiff();
    let hidden = random([BATCH, SEQ, 60], 5, 2.0, &device).require_grad();
    let head = random([97, 60], 6, 0.5, &device).require_grad();
    let (fused, fused_parts) = run(true, hidden.clone(), head.clone());
    let (plain, plain_parts) = run(false, hidden.clone(), head.clone());
    assert_near("loss", fused.clone(), plain.clone());
    for (a, b) in fused_parts.iter().zip(&plain_parts) {
        assert!((a - b).abs() < 1e-5 * b.abs(), "{a} {b}");
    }
    // Times two: a loss need not be the last operation.
    let (fused, plain) = ((fused * 2.0).backward(), (plain * 2.0).backward());
    assert_near("hidden", hidden.grad(&fused).unwrap(), hidden.grad(&plain).unwrap());
    assert_near("head", head.grad(&fused).unwrap(), head.grad(&plain).unwrap());
}

#[test]
fn next_token_loss() {
    let targets: Vec<u32> = (0..74).map(|i| i * 13 % 97).collect();
    let mask: Vec<f32> = (0..74).map(|i| [1.0, 0.0, 0.5][i % 3]).collect();
    for mask in [None, Some(mask.as_slice())] {
        check_loss(|fused, hidden, head| {
            let rows = Rows::new(&hidden, &targets, mask);
            let loss = match fused {
                true => super::next_token(&hidden, &head, &rows, Products::Single).expect("flex is fused"),
                false => loss_composed::next_token(hidden, head, &rows),
            };
            (loss, Vec::new())
        });
    }
}

#[test]
fn distillation_loss() {
    let targets: Vec<u32> = (0..74).map(|i| i * 13 % 90).collect();
    let device = Device::flex();
    // The teacher is narrower, and its vocabulary is padded less.
    let teacher_hidden = random([BATCH, SEQ, 40], 8, 2.0, &device);
    let teacher_head = random([90, 40], 9, 0.5, &device);
    for (temperature, alpha) in [(1.0, 1.0), (2.0, 0.6)] {
        check_loss(|fused, hidden, head| {
            let rows = Rows::new(&hidden, &targets, None);
            let settings = Distillation { temperature, alpha };
            let hidden = [hidden, teacher_hidden.clone()];
            let heads = [head, teacher_head.clone()];
            let (loss, parts) = match fused {
                true => super::distillation(&hidden, &heads, &rows, settings, Products::Single)
                    .expect("flex is fused"),
                false => loss_composed::distillation(hidden, heads, &rows, settings),
            };
            (loss, parts.to_vec())
        });
    }
}
