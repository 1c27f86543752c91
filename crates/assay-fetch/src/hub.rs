//! Files of Hugging Face repositories by name.

use crate::http::{Http, HttpError, Url};

/// Largest list of files that is read.
const LIST_BYTES_MAX: usize = 16 << 20;
/// Where repositories are unless the caller says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
const SUFFIX: &str = ".gguf";
/// Taken when nobody says which: a quarter of F16's size, little of its quality lost.
const DEFAULT_FORMAT: &str = "q4_k_m";

/// A host of repositories.
#[derive(Clone, Debug)]
pub struct Hub {
    endpoint: Url,
    token: Option<String>,
}

/// A file of a repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HubFile {
    /// Its path in the repository.
    pub path: String,
    /// Its bytes.
    pub len: u64,
    /// Its hash, if it is published, as it is of large files.
    pub sha256: Option<[u8; 32]>,
}

/// Why there is no file to get.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The host does not answer, or not with a list.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Not `OWNER/NAME`.
    #[error("{0:?} is no repository: it is written OWNER/NAME")]
    BadName(String),
    /// It needs a login, or is not there: the host does not say which.
    #[error("repository {repo} is not there, or needs a login: set HF_TOKEN to a token that may read it")]
    NotThere {
        /// The repository.
        repo: String,
    },
    /// The list is no list.
    #[error("the list of files of {repo} cannot be read")]
    BadList {
        /// The repository.
        repo: String,
    },
    /// None of the files is meant, or several.
    #[error("{repo}: {what}; it has {}", files.join(", "))]
    Choice {
        /// The repository.
        repo: String,
        /// What is wrong with the choice.
        what: String,
        /// What could be chosen.
        files: Vec<String>,
    },
}

impl Hub {
    /// The host at `endpoint` (HF_ENDPOINT), by default Hugging Face itself; `token` (HF_TOKEN) is sent to it alone.
    ///
    /// # Errors
    /// [`HubError::Http`] if `endpoint` is no address.
    pub fn new(endpoint: Option<&str>, token: Option<String>) -> Result<Self, HubError> {
        Ok(Self { endpoint: endpoint.unwrap_or(ENDPOINT).parse()?, token })
    }

    /// What its requests are to be sent with.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The files of `repo`.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn files(&self, http: &Http, repo: &str) -> Result<Vec<HubFile>, HubError> {
        check_name(repo)?;
        let url = self.endpoint.join(&format!("/api/models/{repo}/tree/main?recursive=true"))?;
        let reply = http.follow(&url, &[], self.token()).await?;
        match reply.status.as_u16() {
            200 => (),
            401 | 403 | 404 => return Err(HubError::NotThere { repo: repo.to_owned() }),
            _ => return Err(reply.unexpected().into()),
        }
        let list = reply.bytes(LIST_BYTES_MAX).await?;
        parse(&list).ok_or_else(|| HubError::BadList { repo: repo.to_owned() })
    }

    /// Where a file of `repo` is.
    ///
    /// # Errors
    /// [`HubError::Http`].
    pub fn url(&self, repo: &str, file: &HubFile) -> Result<Url, HubError> {
        check_name(repo)?;
        Ok(self.endpoint.join(&format!("/{repo}/resolve/main/{}", escape(&file.path)))?)
    }
}

/// The GGUF file that `wanted` (a file name, or a format such as `Q8_0`) means; without it the only one, or the one in
/// Q4_K_M.
///
/// # Errors
/// [`HubError::Choice`], with all that could be chosen.
pub fn choose<'a>(repo: &str, files: &'a [HubFile], wanted: Option<&str>) -> Result<&'a HubFile, HubError> {
    let models: Vec<&HubFile> = files.iter().filter(|file| is_model(&file.path)).collect();
    let found: Vec<&HubFile> = match wanted {
        Some(name) => {
            let exact = |file: &&&HubFile| file.path == name || base(&file.path) == name;
            let exact: Vec<&HubFile> = models.iter().filter(exact).copied().collect();
            if exact.is_empty() {
                models.iter().filter(|file| has_format(&file.path, name)).copied().collect()
            } else {
                exact
            }
        }
        None if models.len() == 1 => models.clone(),
        None => models.iter().filter(|file| has_format(&file.path, DEFAULT_FORMAT)).copied().collect(),
    };
    let choice = |what: String| HubError::Choice {
        repo: repo.to_owned(),
        what,
        files: models.iter().map(|file| file.path.clone()).collect(),
    };
    match (found[..].len(), wanted) {
        (1, _) if is_piece(&found[0].path) => {
            Err(choice(format!("{} is one of several pieces of a model", found[0].path)))
        }
        (1, _) => Ok(found[0]),
        _ if models.is_empty() => Err(HubError::Choice {
            repo: repo.to_owned(),
            what: "it has no GGUF file; `assay import` takes folders of safetensors".into(),
            files: files.iter().take(20).map(|file| file.path.clone()).collect(),
        }),
        (0, Some(name)) => Err(choice(format!("no file is or has {name:?}"))),
        (0, None) => Err(choice("say which file, as hf:OWNER/NAME:FILE or hf:OWNER/NAME:FORMAT".into())),
        _ => Err(choice("several files fit; say which, as hf:OWNER/NAME:FILE".into())),
    }
}

fn is_model(path: &str) -> bool {
    path.to_ascii_lowercase().ends_with(SUFFIX) && !base(path).to_ascii_lowercase().starts_with("mmproj")
}

/// `-00001-of-00003.gguf`.
fn is_piece(path: &str) -> bool {
    let stem = path.get(..path.len().saturating_sub(SUFFIX.len())).unwrap_or_default();
    let number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut words = stem.rsplit('-');
    matches!((words.next(), words.next(), words.next()), (Some(of), Some("of"), Some(at)) if number(of) && number(at))
}

/// Whether the name ends in the format, whatever the case, as a word of its own.
fn has_format(path: &str, format: &str) -> bool {
    let stem = path.get(..path.len().saturating_sub(SUFFIX.len())).unwrap_or_default().to_ascii_lowercase();
    let before = stem.strip_suffix(&format.to_ascii_lowercase());
    before.is_some_and(|before| before.is_empty() || before.ends_with(['-', '.', '_', '/']))
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn check_name(repo: &str) -> Result<(), HubError> {
    let is_word = |word: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !word.is_empty() && word.len() <= 96 && word.bytes().all(is_plain) && !word.bytes().all(|byte| byte == b'.')
    };
    match repo.split_once('/') {
        Some((owner, name)) if is_word(owner) && is_word(name) => Ok(()),
        _ => Err(HubError::BadName(repo.chars().take(100).collect())),
    }
}

/// Every byte but those that no path needs escaped.
fn escape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn parse(list: &[u8]) -> Option<Vec<HubFile>> {
    let rows: serde_json::Value = serde_json::from_slice(list).ok()?;
    let file = |row: &serde_json::Value| {
        let sha256 = row["lfs"]["oid"].as_str().and_then(digest);
        Some(HubFile { path: row["path"].as_str()?.to_owned(), len: row["size"].as_u64()?, sha256 })
    };
    Some(rows.as_array()?.iter().filter(|row| row["type"] == "file").filter_map(file).collect())
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    let digit = |at: usize| char::from(*hex.as_bytes().get(at)?).to_digit(16);
    let mut out = [0; 32];
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = (digit(2 * at)? << 4 | digit(2 * at + 1)?) as u8;
    }
    (hex.len() == 64).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> Vec<HubFile> {
        paths.iter().map(|path| HubFile { path: (*path).into(), len: 1, sha256: None }).collect()
    }

    #[test]
    fn the_file_that_is_meant_is_chosen() {
        let all = files(&["README.md", "q2-Q8_0.gguf", "q2-q4_k_m.gguf", "sub/q2.Q4_0.gguf", "mmproj-f16.gguf"]);
        let check = |wanted: Option<&str>, expect: &str| assert_eq!(choose("a/b", &all, wanted).unwrap().path, expect);
        check(None, "q2-q4_k_m.gguf");
        check(Some("Q8_0"), "q2-Q8_0.gguf");
        check(Some("q8_0"), "q2-Q8_0.gguf");
        check(Some("Q4_0"), "sub/q2.Q4_0.gguf");
        check(Some("q2.Q4_0.gguf"), "sub/q2.Q4_0.gguf");
        check(Some("q2-q4_k_m.gguf"), "q2-q4_k_m.gguf");
        assert_eq!(choose("a/b", &files(&["x.gguf", "c.json"]), None).unwrap().path, "x.gguf");
    }

    #[test]
    fn a_choice_that_cannot_be_made_lists_what_there_is() {
        let check = |paths: &[&str], wanted: Option<&str>, expect: &str| {
            let error = choose("a/b", &files(paths), wanted).unwrap_err().to_string();
            assert!(error.contains(expect) && paths.iter().all(|path| error.contains(path)), "{error}");
        };
        check(&["x-Q8_0.gguf", "x-F16.gguf"], None, "say which file");
        check(&["x-Q8_0.gguf", "x-F16.gguf"], Some("Q5_0"), "no file is or has \"Q5_0\"");
        check(&["x-Q4_K_M.gguf", "y-Q4_K_M.gguf"], None, "several files fit");
        check(&["model.safetensors"], None, "assay import");
        check(&["x-q4_k_m-00001-of-00002.gguf"], None, "pieces");
    }

    #[test]
    fn names_and_lists_of_strangers() {
        for name in ["a", "a/b/c", "../b", "a/..", "a b/c", "a/b?x", "", "/", "a/"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("Qwen/Qwen2.5-0.5B-Instruct-GGUF").is_ok());
        assert_eq!(escape("a b/ü?.gguf"), "a%20b/%C3%BC%3F.gguf");
        let oid = "ab".repeat(32);
        let list = format!(
            r#"[{{"type":"file","path":"x.gguf","size":5,"lfs":{{"oid":"{oid}"}}}},{{"type":"directory","path":"d","size":0}},{{"type":"file"}},7]"#
        );
        let expect = HubFile { path: "x.gguf".into(), len: 5, sha256: Some([0xab; 32]) };
        assert_eq!(parse(list.as_bytes()), Some(vec![expect]));
        assert_eq!((parse(b"{}"), parse(b"["), digest("ab"), digest(&"zz".repeat(32))), (None, None, None, None));
    }
}
