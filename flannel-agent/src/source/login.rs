//! The user that etcd knows us as.

use std::path::{Path, PathBuf};

use super::SourceError;
use super::options::{EtcdOptions, bad};
use crate::flag::Secret;

/// A user and where its password is.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) user: String,
    password: Password,
}

#[derive(Clone, Debug)]
enum Password {
    Given(Option<Secret>),
    File(PathBuf),
}

impl Login {
    /// `None` without a user.
    pub(super) fn of(options: &EtcdOptions) -> Option<Self> {
        let user = options.username.clone().filter(|user| !user.is_empty())?;
        let password = match &options.password_file {
            Some(file) => Password::File(file.clone()),
            None => Password::Given(options.password.clone()),
        };
        Some(Self { user, password })
    }

    /// The password as it is now: a file is read each time.
    ///
    /// # Errors
    /// The file cannot be read, or has no password in it.
    pub(super) async fn password(&self) -> Result<Secret, SourceError> {
        match &self.password {
            Password::Given(password) => Ok(password.clone().unwrap_or_default()),
            Password::File(file) => {
                let text = super::file::read(file).await.map_err(|error| error.to_string());
                let text = text.and_then(|text| {
                    String::from_utf8(text).map_err(|_| "it is no UTF-8".to_owned())
                });
                in_file(file, text)
            }
        }
    }
}

/// The first line.
fn in_file(file: &Path, text: Result<String, String>) -> Result<Secret, SourceError> {
    let option = || format!("--etcd-password-file {}", file.display());
    let text = text.map_err(|error| bad(&option(), error))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Secret::new(line)),
        _ => Err(bad(&option(), "its first line is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password() {
        let read = |text: &str| in_file(Path::new("/f"), Ok(text.to_owned()));
        for text in ["a b ", "a b \n", "a b \r\n", "a b \nnext\n"] {
            assert_eq!(read(text).unwrap().expose(), "a b ");
        }
        for text in ["", "\n", "\r\nsecond"] {
            let error = read(text).unwrap_err().to_string();
            assert!(
                error.contains("--etcd-password-file /f") && error.contains("empty"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_file_is_read_each_time_and_needs_a_user() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut options =
            EtcdOptions { password_file: Some(file.path().into()), ..EtcdOptions::default() };
        assert!(Login::of(&options).is_none());
        options.username = Some("flannel".to_owned());
        let login = Login::of(&options).unwrap();
        for password in ["one", "two"] {
            std::fs::write(file.path(), password).unwrap();
            assert_eq!(login.password().await.unwrap().expose(), password);
        }
        assert!(!format!("{login:?}").contains("two"));
        drop(file);
        let error = login.password().await.unwrap_err().to_string();
        assert!(
            error.contains("--etcd-password-file") && error.contains("No such file"),
            "{error}"
        );
    }
}
