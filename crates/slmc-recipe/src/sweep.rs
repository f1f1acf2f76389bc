//! A sweep: one recipe at many settings.
//!
//! ```toml
//! recipe = "quickstart.toml"               # relative to this file
//!
//! [grid]                                   # every combination is a point
//! "carve.d_ff" = [320, 256]
//! "quantize.format" = ["q4_0", "q8_0"]
//!
//! [budget]                                 # optional
//! points = 3                               # so many of them, drawn by the seed
//! minutes = 60                             # no point begins later
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use toml::Value;

use crate::{RecipeError, recipe::read_text, suggest::explain};

/// More points than anybody waits for: a slip.
const MAX_POINTS: usize = 10_000;
/// Characters of a point's name.
const MAX_NAME: usize = 80;

/// Settings to try.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// The recipe, relative to the sweep's file.
    pub recipe: PathBuf,
    /// What the sweep is called; the file's name when absent.
    #[serde(default)]
    pub name: String,
    /// Of each setting (`stage.key`) the values that are tried.
    pub grid: BTreeMap<String, Vec<Value>>,
    /// How much of the grid is tried.
    #[serde(default)]
    pub budget: SweepBudget,
}

/// How much of a grid is tried.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepBudget {
    /// Points, drawn from the grid; all of them when absent.
    pub points: Option<usize>,
    /// Minutes after which no point is begun.
    pub minutes: Option<f64>,
}

/// One combination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    /// Its folder's name: its number in the grid and its values.
    pub name: String,
    /// `stage.key=value`, as `slmc run --set` takes them.
    pub settings: Vec<String>,
}

impl Sweep {
    /// Reads a sweep file.
    ///
    /// # Errors
    /// [`RecipeError`] when it cannot be read, is not TOML, or says something else than a sweep does.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let mut sweep = Self::parse(&read_text(path)?)?;
        sweep.recipe = path.parent().unwrap_or(Path::new("")).join(&sweep.recipe);
        if sweep.name.is_empty() {
            sweep.name =
                path.file_stem().map_or_else(|| "sweep".into(), |name| name.to_string_lossy().into());
        }
        Ok(sweep)
    }

    /// Reads a sweep from its text, its path untouched.
    ///
    /// # Errors
    /// As [`Sweep::read`].
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        let invalid =
            |place: &str, message: String| RecipeError::Invalid { place: place.to_owned(), message };
        let table: toml::Table = toml::from_str(text)?;
        let sweep: Self = Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| invalid("the sweep", explain(e.message())))?;
        let mut n_points = 1_usize;
        for (key, values) in &sweep.grid {
            if values.is_empty() {
                return Err(invalid("grid", format!("`{key}` has no values")));
            }
            if !key.contains('.') {
                return Err(invalid(
                    "grid",
                    format!("`{key}`: name a setting of a stage, as \"quantize.format\""),
                ));
            }
            n_points = n_points.saturating_mul(values.len());
        }
        if sweep.grid.is_empty() || n_points > MAX_POINTS {
            let message = format!(
                "1 to {MAX_POINTS} points are tried: this grid has {n_points} from {} settings",
                sweep.grid.len()
            );
            return Err(invalid("grid", message));
        }
        let SweepBudget { points, minutes } = sweep.budget;
        if points == Some(0) || minutes.is_some_and(|minutes| minutes.is_nan() || minutes <= 0.0) {
            return Err(invalid("budget", "points and minutes are more than 0".to_owned()));
        }
        Ok(sweep)
    }

    /// The points, in the order of the grid (the last setting changes fastest); of a budget in points those whose hash
    /// with `seed` is lowest, so that more points later are the same ones and some more.
    pub fn points(&self, seed: u64) -> Vec<Point> {
        let mut combinations: Vec<Vec<(&str, &Value)>> = vec![Vec::new()];
        for (key, values) in &self.grid {
            let mut longer = Vec::new();
            for chosen in &combinations {
                longer.extend(values.iter().map(|value| {
                    let mut chosen = chosen.clone();
                    chosen.push((key.as_str(), value));
                    chosen
                }));
            }
            combinations = longer;
        }
        let mut points: Vec<Point> =
            combinations.iter().enumerate().map(|(index, chosen)| point(index, chosen)).collect();
        if let Some(n_points) = self.budget.points.filter(|&n| n < points.len()) {
            let mut order: Vec<usize> = (0..points.len()).collect();
            let rank =
                |&index: &usize| Sha256::digest(format!("{seed} {}", points[index].settings.join(" ")));
            order.sort_by_cached_key(rank);
            order.truncate(n_points);
            order.sort_unstable();
            points = order.into_iter().map(|index| points[index].clone()).collect();
        }
        points
    }
}

fn point(index: usize, chosen: &[(&str, &Value)]) -> Point {
    let short = |(key, value): &(&str, &Value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{}={value}", key.rsplit('.').next().unwrap_or(key))
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "=_.,-".contains(c) { c } else { '-' };
    let values = chosen.iter().map(short).collect::<Vec<_>>().join(",");
    let values: String = values.chars().map(plain).take(MAX_NAME).collect();
    let settings = chosen.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Point { name: format!("{:03}-{values}", index + 1), settings }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "recipe = \"a.toml\"\n[grid]\n\"q.format\" = [\"q4_0\", \"q8_0\"]\n\"carve.d_ff\" = [320, 256, 192]\n";

    #[test]
    fn every_combination_is_a_point() {
        let points = Sweep::parse(TEXT).unwrap().points(1);
        assert_eq!(points.len(), 6);
        assert_eq!(points[1].name, "002-d_ff=320,format=q8_0");
        assert_eq!(points[1].settings, ["carve.d_ff=320", "q.format=\"q8_0\""]);
    }

    #[test]
    fn a_larger_budget_keeps_the_points_of_a_smaller_one() {
        let with = |n: usize| Sweep::parse(&format!("{TEXT}[budget]\npoints = {n}\n")).unwrap().points(3);
        let (few, more) = (with(2), with(4));
        assert_eq!((few.len(), more.len(), with(9).len()), (2, 4, 6));
        assert!(few.iter().all(|point| more.contains(point)));
    }

    #[test]
    fn slips_are_named() {
        let said = |text: &str| Sweep::parse(text).unwrap_err().to_string();
        assert!(said("recipe = \"a\"\ngird = {}\n").contains("did you mean `grid`"));
        assert!(said("recipe = \"a\"\n[grid]\n\"q.format\" = []\n").contains("no values"));
        assert!(said("recipe = \"a\"\n[grid]\nformat = [1]\n").contains("quantize.format"));
        assert!(said(&format!("{TEXT}[budget]\npoints = 0\n")).contains("more than 0"));
        assert!(said("recipe = \"a\"\n[grid]\n").contains("0 settings"));
    }
}
