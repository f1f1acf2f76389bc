//! Recorded baselines: KL from the file is KL from the logits, and no damage goes unseen.

use slmc_eval::{Baseline, BaselineError, EvalText, Journal, Windowing, compare_pair, compare_with_baseline};
use slmc_ir::{ForwardError, LanguageModel, SilentHost, TokenId};

const VOCAB: usize = 3000;

/// Logits that depend on the last token and a salt: spread like a language model's.
struct Made {
    salt: u64,
    noise: f32,
}

impl LanguageModel for Made {
    fn vocab_size(&self) -> usize {
        VOCAB
    }
    fn context_len(&self) -> usize {
        64
    }
    fn forward(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), ForwardError> {
        for (position, &token) in tokens.iter().enumerate().skip(first) {
            let row: Vec<f32> = (0..VOCAB as u64)
                .map(|i| 3.0 * wave(u64::from(token) * 7919 + i) + self.noise * wave(self.salt + i * 31))
                .collect();
            visit(position, &row);
        }
        Ok(())
    }
}

/// Between -3 and 3, more often in the middle.
fn wave(seed: u64) -> f32 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut sum = 0.0;
    for _ in 0..3 {
        x ^= x >> 29;
        x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        sum += (x >> 40) as f32 / (1_u64 << 23) as f32 - 1.0;
    }
    sum
}

fn text() -> EvalText {
    let tokens: Vec<TokenId> = (0..96).map(|i| (i * 37) % VOCAB as TokenId).collect();
    EvalText::from_tokens(tokens, vec![1; 96], None)
}

#[test]
fn divergence_from_the_file_is_that_from_the_logits() {
    let folder = tempfile::tempdir().unwrap();
    let (path, key) = (folder.path().join("x.base"), "a".repeat(64));
    let windowing = Windowing::llama(32, None);
    let base = || Made { salt: 0, noise: 0.0 };
    Baseline::record(&mut base(), &text(), windowing, &key, &path, &SilentHost).unwrap();
    let recorded = Baseline::open(&path, &key).unwrap();
    let itself =
        compare_with_baseline(&mut base(), &recorded, &text(), windowing, &mut Journal::none(), &SilentHost)
            .unwrap();
    assert!(itself.mean_kld() < 1e-4, "{}", itself.mean_kld());
    assert!(itself.ppl_increase().abs() < 1e-12 && itself.same_top.iter().all(|&same| same));
    for noise in [0.1, 0.5] {
        let model = || Made { salt: 99, noise };
        let found = compare_with_baseline(
            &mut model(),
            &recorded,
            &text(),
            windowing,
            &mut Journal::none(),
            &SilentHost,
        )
        .unwrap();
        let exact =
            compare_pair(&mut model(), &mut base(), &text(), windowing, &mut Journal::none(), &SilentHost)
                .unwrap();
        assert_eq!(found.nlls, exact.nlls);
        assert_eq!(found.same_top, exact.same_top);
        let (found, exact) = (found.mean_kld(), exact.mean_kld());
        assert!((found - exact).abs() < 1e-4 + 0.005 * exact, "noise {noise}: {found} and {exact}");
    }
}

#[test]
fn damage_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let (path, key) = (folder.path().join("x.base"), "a".repeat(64));
    let mut model = Made { salt: 0, noise: 0.0 };
    Baseline::record(&mut model, &text(), Windowing::llama(32, Some(1)), &key, &path, &SilentHost).unwrap();
    assert!(matches!(Baseline::open(&path, &"b".repeat(64)), Err(BaselineError::Other)));
    assert!(Baseline::open(&folder.path().join("absent"), &key).unwrap_err().is_absence());
    let bytes = std::fs::read(&path).unwrap();
    for at in [0, 9, 13, 20, 100, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        assert!(matches!(Baseline::open(&path, &key), Err(BaselineError::Damaged(_))), "byte {at}");
    }
    for len in [0, 10, 87, 200, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(matches!(Baseline::open(&path, &key), Err(BaselineError::Damaged(_))), "{len} bytes");
    }
}
