//! Where what is done of an evaluation is kept.

use std::{
    env,
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy as _;
use slmc_stages::Keeping;

/// The variable that names another folder than the user's cache.
const FOLDER: &str = "SLMC_CACHE";

/// For an evaluation of these models by this program; `None` where the user has no folder for such things.
pub fn keeping(models: &[&str]) -> Option<Keeping> {
    let named = env::var_os(FOLDER).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let usual = || Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("slmc"));
    // Another build of the program may compute otherwise, and so may another CPU that shares the folder.
    let program = env::current_exe().unwrap_or_default();
    let files: Vec<&Path> = [&*program].into_iter().chain(models.iter().map(Path::new)).collect();
    let settings = [env!("CARGO_PKG_VERSION").to_owned(), slmc_engine::instruction_set().to_owned()];
    Some(Keeping::new(named.or_else(usual)?, &files, &settings))
}
