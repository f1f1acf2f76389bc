//! `cargo xtask test`: the tests of the project, with and without real models and texts.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{fetch, repo};

/// Crates that build without Burn and test in seconds.
const LIGHT_CRATES: [&str; 13] = [
    "slmc-ir",
    "slmc-blocks",
    "slmc-formats",
    "slmc-data",
    "slmc-compress",
    "slmc-kernels",
    "slmc-interop",
    "slmc-recipe",
    "slmc-eval",
    "slmc-engine",
    "slmc-gate",
    "slmc-report",
    "xtask",
];

/// The light crates in the dev profile, which checks arithmetic for overflow.
pub fn fast() -> Result<()> {
    let mut cargo = repo::cargo();
    cargo.args(["test", "--locked"]);
    repo::run(cargo.args(LIGHT_CRATES.iter().flat_map(|name| ["-p", name])))
}

/// Crates whose release build does not check arithmetic (Cargo.toml, profile.release).
const UNCHECKED_CRATES: [&str; 4] = ["slmc-blocks", "slmc-kernels", "slmc-compress", "xtask"];

/// Tests with overflow checks and debug assertions, of the crates whose tests have run without. Of the release profile all else
/// stays, so that what they depend on is not built again.
pub fn unchecked() -> Result<()> {
    let mut cargo = repo::cargo();
    cargo.args(["test", "--locked", "--release"]);
    for name in UNCHECKED_CRATES {
        for check in ["overflow-checks", "debug-assertions"] {
            cargo.arg("--config").arg(format!("profile.release.package.{name}.{check}=true"));
        }
    }
    repo::run(cargo.args(UNCHECKED_CRATES.iter().flat_map(|name| ["-p", name])))
}

/// Every test that needs nothing from outside the repository; says which others there are.
pub fn plain() -> Result<()> {
    repo::run(repo::cargo().args(["test", "--locked", "--release", "--workspace"]))?;
    println!(
        "\nNot run: the tests on real models and texts (`ignored` above). `cargo xtask test --real` runs them."
    );
    Ok(())
}

/// The tests on real models and texts: the models are fetched, the texts must be there.
pub fn real() -> Result<()> {
    let data = data_folder()?;
    fetch::run(&[])?;
    let models = std::env::var_os("SLMC_MODELS")
        .map_or_else(|| repo::root().join(fetch::DEFAULT_FOLDER), PathBuf::from);
    // Two at a time: each uses all cores, but not all of the time, and the larger ones take gigabytes.
    let mut ignored = repo::cargo();
    ignored.args(["test", "--locked", "--release", "--workspace", "--lib", "--bins", "--tests"]);
    ignored.args(["--", "--ignored", "--test-threads=2"]);
    repo::run(ignored.env("SLMC_MODELS", models).env("SLMC_DATA", data))
}

/// Where the texts lie: SLMC_DATA, or `shared/data` beside the repository.
fn data_folder() -> Result<PathBuf> {
    let folder = match std::env::var_os("SLMC_DATA") {
        Some(folder) => PathBuf::from(folder),
        None => repo::root().join("../shared/data"),
    };
    let folder = folder.canonicalize().with_context(|| missing(&folder))?;
    if !folder.join("wikitext-2-raw/wiki.test.raw").is_file() {
        bail!(missing(&folder));
    }
    Ok(folder)
}

fn missing(folder: &std::path::Path) -> String {
    format!(
        "the real-model tests need texts and {} has none: set SLMC_DATA to a folder with \
         wikitext-2-raw/wiki.{{valid,test}}.raw (WikiText-2, raw) and text/*.txt (public-domain books); \
         tests/reference/README.md says where to get them. `cargo xtask test` needs nothing",
        folder.display()
    )
}
