//! The decoder trains: losses, gradients and the optimizer fit together on a tiny model.

use slmc_ir::{Activation, Biases, Family, LanguageModel, ModelSpec, RopeScaling, TokenId, WeightSource};
use slmc_model::{
    AdamW, AdamWHyper, Decoder, DeviceChoice, Distillation, Evaluator, Grads, Products, distillation_loss,
    gradients, next_token_loss,
};

/// Odd sizes on purpose: heads of 8, 8 query heads on 4 key heads, 172 channels in the MLP.
fn spec(everything: bool) -> ModelSpec {
    ModelSpec {
        family: Family::Llama,
        vocab_size: 97,
        context_len: 64,
        d_model: 64,
        n_layers: 2,
        n_heads: 8,
        n_kv_heads: 4,
        d_head: 8,
        d_ff: 172,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: RopeScaling::None,
        activation: Activation::Silu,
        biases: Biases { qkv: everything, attn_output: everything, mlp: everything },
        qk_norm: everything,
        tied_head: !everything,
    }
}

fn tokens(n: usize) -> Vec<TokenId> {
    (0..n as u32).map(|i| (i * 31 + i * i * 7) % 97).collect()
}

fn training(everything: bool) -> Decoder {
    let device = DeviceChoice::Flex.open().unwrap().autodiff();
    Decoder::fresh(&spec(everything), 7, &device)
}

fn loss_and_grads(decoder: &Decoder, recompute: bool) -> (f32, Grads) {
    let (batch, seq) = (2, 37);
    let all = tokens(batch * seq + 1);
    let targets = &all[1..];
    let (loss, (), grads) = gradients(
        decoder,
        &all[..batch * seq],
        batch,
        seq,
        |hidden, head| (next_token_loss(hidden, head, targets, None, Products::Single), ()),
        recompute,
    );
    (loss, grads)
}

fn numbers(grads: &Grads, key: slmc_ir::TensorKey) -> Vec<f32> {
    let gradient = grads.get(key).unwrap_or_else(|| panic!("`{key}` has a gradient"));
    gradient.to_data().as_slice::<f32>().unwrap().to_vec()
}

fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(x, y)| f64::from(*x) - f64::from(*y)));
    difference / norm(&mut b.iter().map(|&y| f64::from(y))).max(1e-12)
}

#[test]
fn every_parameter_has_a_gradient_and_recomputing_changes_none() {
    for everything in [false, true] {
        let decoder = training(everything);
        let (loss, grads) = loss_and_grads(&decoder, false);
        let (loss_again, grads_again) = loss_and_grads(&decoder, true);
        assert_eq!(loss, loss_again);
        assert!((loss - (97_f32).ln()).abs() < 0.1, "a fresh model knows nothing: {loss}");
        for key in decoder.keys() {
            let distance = relative_distance(&numbers(&grads_again, key), &numbers(&grads, key));
            assert!(distance < 1e-5, "{key}: {distance}");
        }
    }
}

#[test]
fn accumulated_gradients_are_sums() {
    let decoder = training(false);
    let (_, once) = loss_and_grads(&decoder, false);
    let (_, mut scaled) = loss_and_grads(&decoder, false);
    scaled.scale(0.5);
    let mut sum = Grads::default();
    sum.accumulate(scaled.clone());
    sum.accumulate(once.clone());
    sum.accumulate(scaled);
    assert!((sum.norm() - 2.0 * once.norm()).abs() < 1e-5 * once.norm());
    for key in decoder.keys() {
        let doubled: Vec<f32> = numbers(&once, key).iter().map(|x| 2.0 * x).collect();
        assert!(relative_distance(&numbers(&sum, key), &doubled) < 1e-6, "{key}");
    }
}

#[test]
fn steps_lower_the_loss_and_evaluation_sees_it() {
    let mut decoder = training(false);
    let mut optimizer = AdamW::new();
    let (before, _) = loss_and_grads(&decoder, false);
    for _ in 0..20 {
        let (_, mut grads) = loss_and_grads(&decoder, false);
        let norm = grads.clip(1.0);
        assert!(norm.is_finite() && grads.norm() <= 1.0001);
        decoder = optimizer.step(decoder, grads, 1e-2, AdamWHyper::default());
    }
    let (after, _) = loss_and_grads(&decoder, false);
    assert!(after < 0.5 * before, "{before} -> {after}");

    // The evaluator's own cross entropy of the same two sequences is the training loss.
    let all = tokens(2 * 37 + 1);
    let mut evaluator = Evaluator::new(&decoder);
    let mut sum = 0.0;
    for start in [0, 37] {
        let mut visited = 0;
        let targets = &all[start + 1..];
        let mut visit = |position: usize, row: &[f32]| {
            assert_eq!(position, visited);
            visited += 1;
            let log_sum = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            sum += log_sum - f64::from(row[targets[position] as usize]);
        };
        evaluator.forward(&all[start..start + 37], 0, &mut visit).unwrap();
        assert_eq!(visited, 37);
    }
    assert!((sum / 74.0 - f64::from(after)).abs() < 1e-4, "{} {after}", sum / 74.0);
}

#[test]
fn optimizer_state_resumes_bit_for_bit() {
    let hyper = AdamWHyper::default();
    let mut unbroken = training(true);
    let mut optimizer = AdamW::new();
    for _ in 0..2 {
        let (_, grads) = loss_and_grads(&unbroken, false);
        unbroken = optimizer.step(unbroken, grads, 1e-3, hyper);
    }
    let device = unbroken.device();
    let mut resumed = Decoder::load(&unbroken.to_source(), &device).unwrap();
    let moments = |of: &AdamW| of.keys().map(|key| of.moment(key).unwrap()).collect::<Vec<_>>();
    let mut restored = AdamW::restore(&resumed, optimizer.n_steps(), moments(&optimizer)).unwrap();
    assert_eq!(moments(&restored), moments(&optimizer));
    let (_, grads) = loss_and_grads(&unbroken, false);
    unbroken = optimizer.step(unbroken, grads, 1e-3, hyper);
    let (_, grads) = loss_and_grads(&resumed, false);
    resumed = restored.step(resumed, grads, 1e-3, hyper);
    let (a, b) = (unbroken.to_source(), resumed.to_source());
    for &key in a.keys() {
        assert_eq!(a.read(key).unwrap().bytes(), b.read(key).unwrap().bytes(), "{key}");
    }
}

#[test]
fn a_teacher_that_is_the_student_teaches_nothing() {
    let student = training(false);
    let teacher = student.for_evaluation();
    let (batch, seq) = (2, 37);
    let all = tokens(batch * seq + 1);
    let run = |alpha: f32| {
        let loss = |hidden: burn::tensor::Tensor<3>, head| {
            let teacher_hidden = hidden.clone().without_autodiff();
            let targets = &all[1..];
            let loss = distillation_loss(
                hidden,
                head,
                teacher_hidden,
                teacher.head(),
                targets,
                Distillation { temperature: 2.0, alpha },
                Products::Single,
            );
            (loss.total, (loss.kl, loss.cross_entropy))
        };
        gradients(&student, &all[..batch * seq], batch, seq, loss, false)
    };
    let (total, (kl, cross_entropy), grads) = run(1.0);
    assert!(kl.abs() < 1e-5 && total.abs() < 1e-5, "{kl} {total}");
    assert!(grads.norm() < 1e-5, "{}", grads.norm());
    let (total, (_, same), grads) = run(0.0);
    let (plain, plain_grads) = loss_and_grads(&student, false);
    assert!((total - plain).abs() < 1e-5 && (same - plain).abs() < 1e-5 && same == cross_entropy);
    for key in student.keys() {
        assert!(relative_distance(&numbers(&grads, key), &numbers(&plain_grads, key)) < 1e-5, "{key}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let (a, b) = (training(true).to_source(), training(true).to_source());
    for &key in a.keys() {
        assert_eq!(a.read(key).unwrap().bytes(), b.read(key).unwrap().bytes());
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let bits_after_two_steps = || {
        let (mut decoder, mut optimizer) = (training(true), AdamW::new());
        for recompute in [false, true] {
            let (_, mut grads) = loss_and_grads(&decoder, recompute);
            grads.clip(0.5);
            decoder = optimizer.step(decoder, grads, 1e-2, AdamWHyper::default());
        }
        let source = decoder.to_source();
        source.keys().iter().map(|&key| source.read(key).unwrap().bytes().clone()).collect::<Vec<_>>()
    };
    let on = |n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(bits_after_two_steps)
    };
    let one = on(1);
    assert!(one == on(2) && one == on(5));
}
