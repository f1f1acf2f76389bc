//! JSON objects whose keys must differ. `serde_json` keeps the last of two equal keys, and so would let
//! two readers of one file see two files.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};

use crate::shown::shown;

/// Most members of one object: small members take more memory parsed than written.
pub(crate) const MAX_MEMBERS: usize = 1 << 18;

/// An object without equal keys.
#[derive(Debug)]
pub(crate) struct UniqueMap<V>(pub(crate) BTreeMap<String, V>);

impl<V> Default for UniqueMap<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<UniqueMap<V>, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value().map_err(|e| Error::custom(format!("`{}`: {e}", shown(&key))))?;
            insert_unique(&mut map, key, value)?;
        }
        Ok(UniqueMap(map))
    }
}

/// Adds a member whose key must be new.
pub(crate) fn insert_unique<V, E: Error>(
    map: &mut BTreeMap<String, V>,
    key: String,
    value: V,
) -> Result<(), E> {
    if map.contains_key(&key) {
        return Err(duplicate(&key));
    }
    if map.len() == MAX_MEMBERS {
        return Err(E::custom(format!("more than {MAX_MEMBERS} members; no model has so many")));
    }
    map.insert(key, value);
    Ok(())
}

/// The error for a key that is there twice.
pub(crate) fn duplicate<E: Error>(key: &str) -> E {
    E::custom(format!("`{}` is there twice; the file must say one thing", shown(key)))
}
