//! Adapters on a frozen decoder, against float64 numpy (`tests/reference/lora_check.py`), and against itself where nothing may change a number.

use std::collections::BTreeMap;

use slmc_ir::{
    Activation, Adapter, Biases, Factors, Family, Format, MemorySource, ModelSpec, RopeScaling, TensorKey,
    Weight,
};

use slmc_model::{AdamWHyper, AdapterAdamW, AdapterGrads, Frozen, Rows, fresh_adapter};

/// Relative to the norm of what is expected.
const TOLERANCE: f64 = 1e-5;

fn spec(d_model: usize, d_ff: usize, vocab_size: usize) -> ModelSpec {
    ModelSpec {
        family: Family::Llama,
        vocab_size,
        context_len: 64,
        d_model,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        d_head: d_model / 2,
        d_ff,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: RopeScaling::None,
        activation: Activation::Silu,
        biases: Biases::default(),
        qk_norm: false,
        tied_head: true,
    }
}

/// The script's numbers.
fn numbers(seed: u32, n: usize) -> Vec<f32> {
    (0..n).map(|i| (0.4 * (f64::from(seed) * 12.9898 + i as f64 * 78.233).sin()) as f32).collect()
}

fn source(spec: &ModelSpec) -> MemorySource {
    let weight = |(seed, key): (u32, TensorKey)| {
        let shape = key.shape(spec);
        let mut values = numbers(seed, shape.iter().product());
        if shape.len() == 1 {
            values.iter_mut().for_each(|x| *x = 1.0 + *x / 2.0);
        }
        (key, Weight::from_f32(shape, &values).unwrap())
    };
    MemorySource::new(spec.clone(), (1..).zip(TensorKey::all(spec)).map(weight).collect()).unwrap()
}

fn adapter(spec: &ModelSpec, rank: usize, alpha: f64) -> Adapter {
    let mut factors = BTreeMap::new();
    let keys = (0..spec.n_layers).flat_map(|i| Adapter::ROLES.map(|role| TensorKey::block(i, role)));
    for (seed, key) in (100..).step_by(2).zip(keys) {
        let shape = key.shape(spec);
        let (a, b) = (numbers(seed, rank * shape[1]), numbers(seed + 1, shape[0] * rank));
        factors.insert(key, Factors { a, b });
    }
    Adapter { rank, alpha, factors }
}

/// The script's documents: two in the first row, one and padding in the second.
const INPUTS: [u32; 14] = [1, 5, 3, 7, 2, 9, 4, 8, 10, 3, 1, 5, 0, 0];
const TARGETS: [u32; 14] = [5, 3, 7, 2, 9, 4, 6, 10, 3, 1, 5, 0, 0, 0];
const STARTS: [u32; 14] = [0, 0, 0, 0, 4, 4, 4, 0, 0, 0, 0, 0, 5, 5];
const LEARNT: [usize; 6] = [1, 2, 4, 6, 8, 10];

fn mask() -> Vec<bool> {
    (0..14).map(|i| LEARNT.contains(&i)).collect()
}

fn rows(mask: &[bool]) -> Rows<'_> {
    Rows { inputs: &INPUTS, targets: &TARGETS, mask: Some(mask), starts: Some(&STARTS), seq: 7 }
}

#[track_caller]
fn assert_near(what: &str, found: &[f32], expected: &[f64]) {
    assert_within(TOLERANCE, what, found, expected);
}

#[track_caller]
fn assert_within(tolerance: f64, what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let square = |x: f64| x * x;
    let error = found.iter().zip(expected).map(|(&a, b)| square(f64::from(a) - b)).sum::<f64>().sqrt();
    let norm = expected.iter().map(|&x| square(x)).sum::<f64>().sqrt();
    assert!(norm > 0.0 && error <= tolerance * norm, "{what}: {error} of {norm}");
}

#[test]
fn a_step_is_that_of_float64_numpy() {
    let spec = spec(8, 12, 11);
    let base = Frozen::load(&source(&spec), None).unwrap();
    let before = adapter(&spec, 2, 3.0);
    let mask = mask();
    let (loss, grads) = base.gradients(&before, rows(&mask), false);
    let mut after = before.clone();
    AdapterAdamW::new().step(&mut after, &grads, 1e-2, AdamWHyper::default());

    let golden = include_str!("golden/lora_step.txt");
    let mut n_compared = 0;
    for line in golden.lines() {
        let mut words = line.split(' ');
        let what = words.next().unwrap();
        if what == "loss" {
            assert_near("loss", &[loss], &[words.next().unwrap().parse().unwrap()]);
            continue;
        }
        let block: usize = words.next().unwrap().parse().unwrap();
        let name = words.next().unwrap();
        let role = Adapter::ROLES.into_iter().find(|role| role.name() == name).unwrap();
        let expected: Vec<f64> = words.map(|word| word.parse().unwrap()).collect();
        let key = TensorKey::block(block, role);
        let (gradient, updated) = (grads.get(key).unwrap(), &after.factors[&key]);
        let found = match what {
            "gradient_a" => &gradient.a,
            "gradient_b" => &gradient.b,
            "updated_a" => &updated.a,
            "updated_b" => &updated.b,
            other => panic!("{other}"),
        };
        assert_near(&format!("{what} of {key}"), found, &expected);
        n_compared += 1;
    }
    assert_eq!(n_compared, 2 * 7 * 4);
}

#[test]
fn computing_again_changes_no_bit_and_row_losses_are_the_loss() {
    let spec = spec(8, 12, 11);
    let base = Frozen::load(&source(&spec), None).unwrap();
    let (adapter, mask) = (adapter(&spec, 2, 3.0), mask());
    let (loss, grads) = base.gradients(&adapter, rows(&mask), false);
    let (again, grads_again) = base.gradients(&adapter, rows(&mask), true);
    assert_eq!(loss.to_bits(), again.to_bits());
    for &key in adapter.factors.keys() {
        assert_eq!(grads.get(key), grads_again.get(key), "{key}");
    }
    let found = base.row_losses(Some(&adapter), rows(&mask));
    assert_eq!(found.iter().map(|row| row.n_targets).collect::<Vec<_>>(), [4, 2]);
    let mean = found.iter().map(|row| row.nll).sum::<f64>() / 6.0;
    assert!((mean - f64::from(loss)).abs() < 1e-6 * mean, "{mean} {loss}");
}

#[test]
fn a_packed_base_is_its_decoded_self() {
    let spec = spec(64, 96, 40);
    let float = source(&spec);
    let packed = Frozen::load(&float, Some(Format::Q4_0)).unwrap();
    let rounded = |key: TensorKey| {
        let weight = slmc_ir::WeightSource::read(&float, key).unwrap();
        if !Adapter::ROLES.contains(&key.role) {
            return (key, weight);
        }
        let packed = slmc_blocks::encode_weight(&weight, Format::Q4_0).unwrap();
        (key, slmc_blocks::encode_weight(&packed, Format::F32).unwrap())
    };
    let decoded = TensorKey::all(&spec).into_iter().map(rounded).collect();
    let decoded = Frozen::load(&MemorySource::new(spec.clone(), decoded).unwrap(), None).unwrap();
    let (adapter, mask) = (adapter(&spec, 4, 8.0), mask());
    let (a, b) =
        (packed.gradients(&adapter, rows(&mask), true), decoded.gradients(&adapter, rows(&mask), false));
    assert_eq!(a.0.to_bits(), b.0.to_bits());
    for &key in adapter.factors.keys() {
        assert_eq!(a.1.get(key), b.1.get(key), "{key}");
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_the_threads_no_bit() {
    let spec = spec(64, 96, 40);
    let base = Frozen::load(&source(&spec), None).unwrap();
    let fresh = fresh_adapter(&spec, &Adapter::ROLES, 4, 8.0, 7);
    assert_eq!(fresh, fresh_adapter(&spec, &Adapter::ROLES, 4, 8.0, 7));
    assert_ne!(fresh, fresh_adapter(&spec, &Adapter::ROLES, 4, 8.0, 8));
    fresh.check(&spec).unwrap();
    let mask = mask();
    assert_eq!(base.logits(Some(&fresh), rows(&mask)), base.logits(None, rows(&mask)));
    let on = |n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| {
            let mut adapter = adapter(&spec, 4, 8.0);
            let (_, mut grads) = base.gradients(&adapter, rows(&mask), false);
            grads.clip(0.5);
            AdapterAdamW::new().step(&mut adapter, &grads, 1e-2, AdamWHyper::default());
            adapter
        })
    };
    let one = on(1);
    assert!(one == on(2) && one == on(5));
}

#[test]
fn micro_batches_add_up() {
    let spec = spec(8, 12, 11);
    let base = Frozen::load(&source(&spec), None).unwrap();
    let (adapter, mask) = (adapter(&spec, 2, 3.0), mask());
    let part = |range: std::ops::Range<usize>| Rows {
        inputs: &INPUTS[range.clone()],
        targets: &TARGETS[range.clone()],
        mask: Some(&mask[range.clone()]),
        starts: Some(&STARTS[range]),
        seq: 7,
    };
    let (_, whole) = base.gradients(&adapter, rows(&mask), false);
    let mut sum = AdapterGrads::default();
    sum.accumulate(base.gradients(&adapter, part(0..7), false).1, 4.0 / 6.0);
    sum.accumulate(base.gradients(&adapter, part(7..14), false).1, 2.0 / 6.0);
    assert!((sum.norm() - whole.norm()).abs() < 1e-5 * whole.norm());
    for &key in adapter.factors.keys() {
        let (found, expected) = (sum.get(key).unwrap(), whole.get(key).unwrap());
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        // Both are within the tolerance of the true gradient: so far may they be from each other.
        assert_within(2.0 * TOLERANCE, &key.to_string(), &found.a, &wide(&expected.a));
        assert_within(2.0 * TOLERANCE, &key.to_string(), &found.b, &wide(&expected.b));
    }
}
