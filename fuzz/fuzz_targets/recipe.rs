//! Any text as a recipe: an error, or a recipe that says the same when it is read once more.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slmc_recipe::Recipe;

fuzz_target!(|text: &str| {
    let Ok(recipe) = Recipe::parse(text, &[]) else { return };
    assert!(!recipe.stages.is_empty());
    let again = Recipe::parse(text, &[]).expect("the same text");
    // Not `==`: a NaN differs from itself.
    assert_eq!(format!("{again:?}"), format!("{recipe:?}"));
    let _ = Recipe::parse(text, &["seed=1".to_owned(), "distill.alpha=0.5".to_owned()]);
});
