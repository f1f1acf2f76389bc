//! Where a task's file and its items lie.

use std::path::{Path, PathBuf};

use slmc_data::{Manifest, sha256_bytes, sha256_file};
use slmc_eval::tasks::{Item, TaskFile, read_items};

use crate::GateError;

/// A task that ships with slmc: its name, its file, and the manifest of its data.
struct BuiltIn {
    name: &'static str,
    task: &'static str,
    manifest: &'static str,
}

const BUILT_IN: [BuiltIn; 5] = [
    BuiltIn {
        name: "hellaswag",
        task: include_str!("../../../datasets/tasks/hellaswag.toml"),
        manifest: include_str!("../../../datasets/hellaswag.toml"),
    },
    BuiltIn {
        name: "piqa",
        task: include_str!("../../../datasets/tasks/piqa.toml"),
        manifest: include_str!("../../../datasets/piqa.toml"),
    },
    BuiltIn {
        name: "arc-easy",
        task: include_str!("../../../datasets/tasks/arc-easy.toml"),
        manifest: include_str!("../../../datasets/arc-easy.toml"),
    },
    BuiltIn {
        name: "lambada",
        task: include_str!("../../../datasets/tasks/lambada.toml"),
        manifest: include_str!("../../../datasets/lambada.toml"),
    },
    BuiltIn {
        name: "gsm8k",
        task: include_str!("../../../datasets/tasks/gsm8k.toml"),
        manifest: include_str!("../../../datasets/gsm8k.toml"),
    },
];

/// Names of the tasks that ship with slmc.
pub fn builtin_tasks() -> Vec<&'static str> {
    BUILT_IN.iter().map(|task| task.name).collect()
}

/// A task and the files of its items.
#[derive(Clone, Debug)]
pub struct LocatedTask {
    /// The task.
    pub task: TaskFile,
    /// Its items.
    pub items: PathBuf,
    /// Their labels, where they are apart.
    pub labels: Option<PathBuf>,
}

/// Finds a task: one that ships with slmc by its name, any other by its file. `data_root` is where datasets lie.
///
/// # Errors
/// When there is no such task, its file is wrong, or its data is not there: then the dataset's own word says how to get it.
pub fn locate_task(name: &str, data_root: Option<&Path>) -> Result<LocatedTask, GateError> {
    if let Some(built_in) =
        BUILT_IN.iter().find(|task| task.name == name.to_ascii_lowercase().replace('_', "-"))
    {
        let task = TaskFile::parse(built_in.task, built_in.name)?;
        let place = PathBuf::from(format!("datasets/{}.toml", built_in.name));
        let manifest =
            Manifest::parse(built_in.manifest, &place).map_err(|e| GateError::input(e.to_string()))?;
        return of_manifest(task, &manifest, &place, data_root);
    }
    let path = Path::new(name);
    let text = std::fs::read_to_string(path).map_err(|e| {
        let known = builtin_tasks().join(", ");
        GateError::Input(format!("task `{name}`: the tasks are {known}, or a task's .toml file ({e})"))
    })?;
    let task = TaskFile::parse(&text, name)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let data = folder.join(&task.data);
    if data.extension().is_some_and(|ending| ending == "toml") {
        let manifest = Manifest::read(&data).map_err(|e| GateError::input(e.to_string()))?;
        return of_manifest(task, &manifest, &data, data_root);
    }
    let labels = task.labels.as_ref().map(|labels| folder.join(labels));
    Ok(LocatedTask { task, items: data, labels })
}

fn of_manifest(
    task: TaskFile,
    manifest: &Manifest,
    manifest_path: &Path,
    data_root: Option<&Path>,
) -> Result<LocatedTask, GateError> {
    let locate = |wanted: Option<&String>| {
        let file = match wanted {
            Some(path) => manifest.files.iter().find(|file| file.path == *path),
            None => manifest.files.first(),
        };
        let missing = || {
            let wanted = wanted.map_or("", String::as_str);
            GateError::Input(format!("task `{}`: its dataset has no file `{wanted}`", task.name))
        };
        let file = file.ok_or_else(missing)?;
        manifest.locate(file, manifest_path, data_root).map_err(|e| GateError::input(e.to_string()))
    };
    let items = locate(task.items.as_ref())?;
    let labels = task.labels.as_ref().map(|labels| locate(Some(labels))).transpose()?;
    Ok(LocatedTask { task, items, labels })
}

impl LocatedTask {
    /// Its items, at most `limit`.
    ///
    /// # Errors
    /// When they cannot be read, or one is not what the task says.
    pub fn read(&self, limit: Option<usize>) -> Result<Vec<Item>, GateError> {
        Ok(read_items(&self.task, &self.items, self.labels.as_deref(), limit)?)
    }

    /// What its results follow from, beside the model.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn hash(&self, limit: Option<usize>) -> Result<String, GateError> {
        let hash =
            |path: &Path| sha256_file(path).map_err(|e| GateError::Input(format!("{}: {e}", path.display())));
        let task = serde_json::to_string(&self.task).map_err(|e| GateError::Failed(e.to_string()))?;
        let labels = self.labels.as_deref().map(hash).transpose()?.unwrap_or_default();
        Ok(sha256_bytes(format!("{task}\n{}\n{labels}\n{limit:?}", hash(&self.items)?).as_bytes()))
    }
}
