//! The recipe as the user writes it: TOML, read strictly.

use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use crate::{
    DistillConfig, EvalConfig, LoraConfig, StageConfig,
    suggest::{explain, nearest},
};

/// Files longer than this are not recipes.
const MAX_RECIPE_BYTES: u64 = 1 << 20;
const MAX_STAGES: usize = 64;

/// Keys of which a training stage has one.
const BUDGETS: [&str; 3] = ["steps", "tokens", "minutes"];

/// A model, and what to do with it, stage by stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// What the run is called.
    pub name: String,
    /// The model that goes in; absent when the first stage makes one.
    pub model: Option<String>,
    /// The seed of everything random.
    pub seed: u64,
    /// The text on which the input and every stage's result is measured.
    pub eval: Option<EvalConfig>,
    /// What is done, in order.
    #[serde(rename = "stage")]
    pub stages: Vec<StageEntry>,
}

/// A named stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageEntry {
    /// Unique in the recipe: names its folder, and is what `--set name.key=value` speaks of.
    pub name: String,
    /// What it does.
    #[serde(flatten)]
    pub config: StageConfig,
}

/// A recipe that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the recipe is not valid TOML: {0}")]
    Toml(#[from] toml::de::Error),
    /// Some part of it is not what it should be.
    #[error("recipe, {place}: {message}")]
    Invalid {
        /// Which part.
        place: String,
        /// What is wrong, and what would be right.
        message: String,
    },
}

/// A file's text, when it is no longer than a recipe can be.
pub(crate) fn read_text(path: &Path) -> Result<String, RecipeError> {
    let read = |error| RecipeError::Read { path: path.to_owned(), error };
    let n_bytes = std::fs::metadata(path).map_err(read)?.len();
    if n_bytes > MAX_RECIPE_BYTES {
        return Err(invalid("the file", format!("{n_bytes} bytes is too long for a recipe")));
    }
    std::fs::read_to_string(path).map_err(read)
}

impl Recipe {
    /// Reads a recipe file; `overrides` are `stage.key=value`, applied before anything is checked. Relative paths in
    /// the recipe are relative to its folder.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let mut recipe = Self::parse(&read_text(path)?, overrides)?;
        recipe.resolve_paths(path.parent().unwrap_or(Path::new("")));
        Ok(recipe)
    }

    /// Reads a recipe from its text, paths untouched.
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        let mut table: Table = toml::from_str(text)?;
        for text in overrides {
            set(&mut table, text)?;
        }
        let stages = take_stages(&mut table)?;
        let name = take(&mut table, "name")?.unwrap_or_else(|| "run".to_owned());
        let recipe = Self {
            name,
            model: take(&mut table, "model")?,
            seed: take(&mut table, "seed")?.unwrap_or(0),
            eval: take(&mut table, "eval")?,
            stages,
        };
        if let Some(key) = table.keys().next() {
            return Err(unknown("the top", key, &["name", "model", "seed", "eval", "stage"]));
        }
        recipe.check_names()?;
        Ok(recipe)
    }

    fn check_names(&self) -> Result<(), RecipeError> {
        for (index, entry) in self.stages.iter().enumerate() {
            let place = format!("stage {}", index + 1);
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if entry.name.is_empty() || entry.name.len() > 64 || !entry.name.chars().all(plain) {
                return Err(invalid(
                    place,
                    format!("name `{}`: use 1 to 64 letters, digits, - and _", entry.name),
                ));
            }
            if self.stages[..index].iter().any(|other| other.name == entry.name) {
                return Err(invalid(
                    place,
                    format!("a stage before it is named `{}` too: give it a `name`", entry.name),
                ));
            }
        }
        Ok(())
    }

    fn resolve_paths(&mut self, folder: &Path) {
        let resolve = |path: &mut String| {
            if !path.starts_with("hf:") && Path::new(path).is_relative() {
                *path = folder.join(&*path).to_string_lossy().into_owned();
            }
        };
        self.model.iter_mut().for_each(resolve);
        self.eval.iter_mut().for_each(|eval| resolve(&mut eval.data));
        self.stages
            .iter_mut()
            .flat_map(|entry| entry.config.paths_mut())
            .map(|(_, path)| path)
            .for_each(resolve);
    }
}

fn invalid(place: impl Into<String>, message: impl Into<String>) -> RecipeError {
    RecipeError::Invalid { place: place.into(), message: message.into() }
}

fn unknown(place: &str, given: &str, known: &[&str]) -> RecipeError {
    let message = match nearest(given, known) {
        Some(name) => format!("unknown key `{given}`: did you mean `{name}`?"),
        None => format!("unknown key `{given}`: the keys here are {}", known.join(", ")),
    };
    invalid(place, message)
}

/// The error's message with the key it speaks of ("… in `alpha`").
fn one_line(error: &toml::de::Error) -> String {
    error.to_string().trim().replace('\n', " ")
}

fn take<T: DeserializeOwned>(table: &mut Table, key: &str) -> Result<Option<T>, RecipeError> {
    let read = |value: Value| {
        value.try_into().map_err(|e: toml::de::Error| invalid(format!("`{key}`"), explain(&one_line(&e))))
    };
    table.remove(key).map(read).transpose()
}

fn take_stages(table: &mut Table) -> Result<Vec<StageEntry>, RecipeError> {
    let tables: Vec<Table> = take(table, "stage")?.unwrap_or_default();
    if tables.is_empty() {
        return Err(invalid("the top", "a recipe needs at least one [[stage]]"));
    }
    if tables.len() > MAX_STAGES {
        return Err(invalid("the top", format!("{} stages: at most {MAX_STAGES}", tables.len())));
    }
    tables.into_iter().enumerate().map(|(index, table)| stage_entry(index, table)).collect()
}

fn stage_entry(index: usize, mut table: Table) -> Result<StageEntry, RecipeError> {
    let place = format!("stage {}", index + 1);
    let kind: String = take(&mut table, "use")?.ok_or_else(|| {
        invalid(&place, format!("`use` is missing: one of {}", StageConfig::NAMES.join(", ")))
    })?;
    let name = take(&mut table, "name")?.unwrap_or_else(|| kind.clone());
    let place = format!("stage {} ({name})", index + 1);
    let config = match kind.as_str() {
        "fresh" => StageConfig::Fresh(typed(table, &place)?),
        "carve" => StageConfig::Carve(typed(table, &place)?),
        "train" => StageConfig::Train(typed(table, &place)?),
        "distill" => StageConfig::Distill(distill(table, &place)?),
        "lora" => StageConfig::Lora(lora(table, &place)?),
        "rotate" => StageConfig::Rotate(typed(table, &place)?),
        "scale" => StageConfig::Scale(typed(table, &place)?),
        "quantize" => StageConfig::Quantize(typed(table, &place)?),
        "export" => StageConfig::Export(typed(table, &place)?),
        other => {
            let hint = nearest(other, &StageConfig::NAMES)
                .map_or(format!("the stages are {}", StageConfig::NAMES.join(", ")), |n| {
                    format!("did you mean `{n}`?")
                });
            return Err(invalid(place, format!("no stage is called `{other}`: {hint}")));
        }
    };
    Ok(StageEntry { name, config })
}

fn typed<T: DeserializeOwned>(table: Table, place: &str) -> Result<T, RecipeError> {
    Value::Table(table).try_into().map_err(|e: toml::de::Error| invalid(place, explain(&one_line(&e))))
}

/// Distillation is the training loop and some keys more; serde's `flatten` cannot refuse unknown keys, so they
/// are taken out and the rest is read as strictly as ever.
fn distill(mut table: Table, place: &str) -> Result<DistillConfig, RecipeError> {
    let teacher = take(&mut table, "teacher")?;
    let temperature = take(&mut table, "temperature")?.unwrap_or(DistillConfig::TEMPERATURE);
    let alpha = take(&mut table, "alpha")?.unwrap_or(DistillConfig::ALPHA);
    let hidden_weight = take(&mut table, "hidden_weight")?.unwrap_or(0.0);
    let sampled_tokens = take(&mut table, "sampled_tokens")?.unwrap_or(0);
    let sampled_share = take(&mut table, "sampled_share")?.unwrap_or(DistillConfig::SAMPLED_SHARE);
    let fit_tokens = take(&mut table, "fit_tokens")?.unwrap_or(0);
    let fit_sampled_share =
        take(&mut table, "fit_sampled_share")?.unwrap_or(DistillConfig::FIT_SAMPLED_SHARE);
    let teacher_precision =
        take(&mut table, "teacher_precision")?.unwrap_or_else(|| DistillConfig::TEACHER_PRECISION.to_owned());
    let learn = take(&mut table, "learn")?.unwrap_or_else(|| DistillConfig::LEARN.to_owned());
    let train = typed(table, place)?;
    Ok(DistillConfig {
        teacher,
        temperature,
        alpha,
        hidden_weight,
        sampled_tokens,
        sampled_share,
        fit_tokens,
        fit_sampled_share,
        teacher_precision,
        learn,
        train,
    })
}

/// As [`distill`]: the loop's keys and some more.
fn lora(mut table: Table, place: &str) -> Result<LoraConfig, RecipeError> {
    let rank = take(&mut table, "rank")?.unwrap_or(LoraConfig::RANK);
    let alpha = take(&mut table, "alpha")?.unwrap_or(LoraConfig::ALPHA);
    let target = take(&mut table, "target")?.unwrap_or_else(|| LoraConfig::TARGET.to_owned());
    let base_format = take(&mut table, "base_format")?;
    Ok(LoraConfig { rank, alpha, target, base_format, train: typed(table, place)? })
}

/// Applies one `stage.key=value` (or `key=value` at the top). The value is TOML; what is not TOML is a string.
fn set(table: &mut Table, text: &str) -> Result<(), RecipeError> {
    let place = format!("--set {text}");
    let (path, value) = text.split_once('=').ok_or_else(|| invalid(&place, "write it as stage.key=value"))?;
    let value = value.trim();
    let parsed = toml::from_str::<Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
    let value = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
    let Some((stage, key)) = path.trim().split_once('.') else {
        table.insert(path.trim().to_owned(), value);
        return Ok(());
    };
    if let Some(Value::Table(inner)) = table.get_mut(stage) {
        inner.insert(key.to_owned(), value);
        return Ok(());
    }
    let name_of = |stage: &Value| {
        let text = |key| stage.get(key).and_then(Value::as_str).map(str::to_owned);
        text("name").or_else(|| text("use"))
    };
    let stages = table.get_mut("stage").and_then(Value::as_array_mut);
    let names: Vec<String> = stages.iter().flat_map(|s| s.iter()).filter_map(name_of).collect();
    let found = stages.into_iter().flatten().find(|s| name_of(s).as_deref() == Some(stage));
    match found.and_then(Value::as_table_mut) {
        Some(inner) => {
            // A budget given here takes the place of the recipe's own, whichever of the three that is.
            if BUDGETS.contains(&key) {
                BUDGETS.iter().for_each(|budget| drop(inner.remove(*budget)));
            }
            inner.insert(key.to_owned(), value);
            Ok(())
        }
        None => {
            Err(invalid(place, format!("no stage is named `{stage}`: the stages are {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN_JOB: &str = r#"
        name = "main job"
        model = "teacher"
        [[stage]]
        use = "carve"
        n_layers = 24
        calibration = "books.toml"
        [[stage]]
        use = "distill"
        data = "books.toml"
        minutes = 30
        alpha = 0.5
        [[stage]]
        name = "small"
        use = "quantize"
        format = "q4_0"
    "#;

    #[track_caller]
    fn check_refused(text: &str, overrides: &[&str], expected: &str) {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        let message = Recipe::parse(text, &overrides).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}\nshould say: {expected}");
    }

    #[test]
    fn a_recipe_reads_with_its_defaults() {
        let recipe =
            Recipe::parse(MAIN_JOB, &["distill.steps=5".into(), "small.format=q8_0".into()]).unwrap();
        assert_eq!(recipe.stages.len(), 3);
        let StageConfig::Distill(distill) = &recipe.stages[1].config else {
            panic!("{:?}", recipe.stages[1])
        };
        assert_eq!((distill.alpha, distill.train.steps, distill.train.seq_len), (0.5, Some(5), 256));
        assert_eq!(distill.train.budget(), Ok(crate::Budget::Steps(5)), "this budget replaces the recipe's");
        let StageConfig::Quantize(quantize) = &recipe.stages[2].config else {
            panic!("{:?}", recipe.stages[2])
        };
        assert_eq!(quantize.format.as_deref(), Some("q8_0"));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_a_hint() {
        check_refused("", &[], "at least one [[stage]]");
        check_refused("stage = 3", &[], "`stage`");
        check_refused("modle = 'x'\n[[stage]]\nuse='quantize'\nformat='q4_0'", &[], "did you mean `model`");
        check_refused("[[stage]]\nuse = 'quantise'", &[], "did you mean `quantize`");
        check_refused("[[stage]]\nname = 'a'", &[], "`use` is missing");
        check_refused(
            "[[stage]]\nuse = 'quantize'\nformat = 'q4_0'\nmetod = 'rtn'",
            &[],
            "did you mean `method`",
        );
        check_refused(
            "[[stage]]\nuse = 'distill'\ndata = 'x'\nbatchsize = 2",
            &[],
            "did you mean `batch_size`",
        );
        check_refused("[[stage]]\nuse = 'distill'\ndata = 'x'\nalpha = 'much'", &[], "alpha");
        check_refused("[[stage]]\nuse = 'lora'\ndata = 'x'\nrnak = 4", &[], "rnak");
        check_refused("[[stage]]\nuse = 'lora'\nrank = 4", &[], "data");
        check_refused(MAIN_JOB, &["carv.n_layers=3"], "the stages are carve, distill, small");
        check_refused(MAIN_JOB, &["nonsense"], "stage.key=value");
        check_refused(&MAIN_JOB.replace("\"small\"", "\"../small\""), &[], "letters, digits");
        check_refused(&MAIN_JOB.replace("\"small\"", "\"carve\""), &[], "named `carve` too");
        check_refused("[[stage]\n", &[], "TOML");
    }
}
