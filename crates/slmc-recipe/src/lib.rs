//! Recipes: the schema, the checked plan, the Stage contract, the runner and the run folder.
#![deny(missing_docs)]
