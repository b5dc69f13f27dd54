//! Secrets in a file that everyone on the host can read.
//!
//! They are warned of, not refused: what a key's name says of its value is a guess.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_yaml::Value;

use super::Config;

/// Parts of keys whose values are secrets themselves. A `key` is mostly the path of one.
const WORDS: [&str; 6] = ["password", "passwd", "passphrase", "secret", "token", "credential"];

impl Config {
    /// What should be said where the file holds a secret, as far as names tell, and everyone on the host can read it.
    #[must_use]
    pub fn open_secret(&self) -> Option<String> {
        let mode = fs::metadata(&self.file).ok()?.permissions().mode();
        if mode & 0o004 == 0 {
            return None;
        }
        let place = self.plugins.iter().find_map(|(name, plugin)| {
            let variable =
                plugin.env.iter().find(|(key, value)| is_secret(key, value)).map(|(key, _)| format!("env.{key}"));
            let place = variable.or_else(|| Some(format!("config.{}", in_mapping(&plugin.config)?)))?;
            Some(format!("plugins.{name}.{place}"))
        })?;
        let file = self.file.display();
        Some(format!("`{place}` looks like a secret, and everyone on this host can read {file}; try: chmod o-r {file}"))
    }
}

/// Where the first secret of a mapping is.
fn in_mapping(mapping: &serde_yaml::Mapping) -> Option<String> {
    mapping.iter().find_map(|(key, value)| {
        let key = key.as_str()?;
        match value {
            Value::String(text) => is_secret(key, text).then(|| key.to_owned()),
            Value::Number(number) => is_secret(key, &number.to_string()).then(|| key.to_owned()),
            Value::Mapping(inner) => Some(format!("{key}.{}", in_mapping(inner)?)),
            _ => None,
        }
    })
}

fn is_secret(key: &str, value: &str) -> bool {
    let key = key.to_ascii_lowercase();
    // A path says where the secret is.
    !value.is_empty() && !value.contains('/') && WORDS.iter().any(|word| key.contains(word))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::config::load;

    #[test]
    fn a_secret_in_an_open_file_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("palisade.yaml");
        let told = |plugin: &str, mode: u32| {
            let plugin = format!("plugins: {{auth: {{command: [sh]{plugin}}}}}\n");
            fs::write(&file, format!("listeners: [{{address: 127.0.0.1:0}}]\n{plugin}")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            load(&file).unwrap().open_secret()
        };
        let expected = |place: &str| {
            let file = file.display();
            Some(format!(
                "`plugins.auth.{place}` looks like a secret, and everyone on this host can read {file}; try: chmod o-r {file}"
            ))
        };
        for (plugin, place) in [
            (", env: {DB_PASSWORD: x}", "env.DB_PASSWORD"),
            (", config: {vault: {apiToken: abc}}", "config.vault.apiToken"),
            (", config: {secret: 7}", "config.secret"),
        ] {
            assert_eq!(told(plugin, 0o644), expected(place));
            assert_eq!(told(plugin, 0o640), None);
        }
        for plugin in ["", ", config: {key: key.pem}", ", config: {token: /run/token}", ", env: {SECRET: ''}"] {
            assert_eq!(told(plugin, 0o644), None, "{plugin}");
        }
    }
}
