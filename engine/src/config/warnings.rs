//! Warnings about command lines that are allowed but rarely intended: who can use this server, and
//! who knows its keys.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::is_loopback;
use super::resolved::HttpConfig;
use super::typed::HttpArgs;

/// Writable by all users.
const OTHERS_WRITE: u32 = 0o002;

/// One sentence each, for the log.
pub fn warnings(typed: &HttpArgs, http: &HttpConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    if http.api_key.is_none() && !is_loopback(&http.host) {
        warnings.push(format!(
            "--host {} lets everyone who reaches this address use the models: there is no key; set \
             --api-key-file, or listen on 127.0.0.1",
            http.host
        ));
    }
    if http.api_key.is_some() && http.api_key == http.admin_api_key {
        warnings.push(
            "--admin-api-key is the same as --api-key: every client can load and unload models; \
             give them different keys"
                .to_owned(),
        );
    }
    for (flag, file) in [
        ("--api-key-file", &typed.api_key_file),
        ("--admin-api-key-file", &typed.admin_api_key_file),
    ] {
        if let Some(file) = file.as_deref().filter(|file| is_written_by_all(file)) {
            warnings.push(format!(
                "{flag} {}: everyone on this machine can change the key; `chmod o-w` it",
                file.display()
            ));
        }
    }
    warnings
}

/// The file was read before; if it is gone by now, it is not writable either.
fn is_written_by_all(file: &Path) -> bool {
    let mode = std::fs::metadata(file).map(|metadata| metadata.permissions().mode());
    mode.is_ok_and(|mode| mode & OTHERS_WRITE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(typed: &HttpArgs) -> Vec<String> {
        warnings(typed, &typed.resolve().expect("a configuration"))
    }

    #[test]
    fn an_open_server_without_a_key_is_warned_about() {
        let at = |host: &str, key: Option<&str>| {
            of(&HttpArgs {
                host: Some(host.to_owned()),
                api_key: key.map(str::to_owned),
                ..HttpArgs::default()
            })
        };
        for host in ["0.0.0.0", "::", "192.168.0.2"] {
            let found = at(host, None);
            assert!(found[0].contains(&format!("--host {host}")), "{found:?}");
            assert_eq!(at(host, Some("k")), [""; 0]);
        }
        assert_eq!(at("127.0.0.1", None), [""; 0]);
        assert_eq!(of(&HttpArgs::default()), [""; 0]);
    }

    #[test]
    fn equal_keys_and_key_files_that_all_can_write_are_warned_about() {
        let typed = HttpArgs {
            api_key: Some("same".to_owned()),
            admin_api_key: Some("same".to_owned()),
            ..HttpArgs::default()
        };
        let found = of(&typed);
        assert!(found[0].contains("--admin-api-key") && !found[0].contains("same:"));
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("key");
        std::fs::write(&file, "k3y").expect("written");
        let with_mode = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&file, mode).expect("a mode");
            of(&HttpArgs {
                api_key_file: Some(file.clone()),
                ..HttpArgs::default()
            })
        };
        assert_eq!(with_mode(0o644), [""; 0]);
        let found = with_mode(0o666);
        assert!(found[0].starts_with("--api-key-file "), "{found:?}");
        assert!(!found[0].contains("k3y"));
    }
}
