//! Served files: the interface documents, and the web pages with their style sheets and scripts. They are part of the
//! binary, so they always belong to the version of the server that sends them.

use std::io::Write as _;
use std::sync::OnceLock;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use ring::digest::{SHA256, digest};

/// A file that is sent as it is.
#[derive(Debug)]
pub struct File {
    /// Its path on the server, without the prefix `/api/v1`.
    pub path: &'static str,
    /// Without parameters such as a charset: every text is UTF-8.
    pub media_type: &'static str,
    bytes: &'static [u8],
    /// Made at the first request for this file: compressing all files takes longer than the rest of the start.
    encodings: OnceLock<Encodings>,
}

#[derive(Debug)]
struct Encodings {
    plain: Encoded,
    gzip: Encoded,
}

/// The bytes of a file in one content coding, plain or gzip.
#[derive(Debug)]
pub struct Encoded {
    pub bytes: Bytes,
    /// A strong entity tag, in quotes (RFC 9110, 8.8.3).
    pub tag: String,
}

pub const HTML: &str = "text/html";
pub const CSS: &str = "text/css";
pub const SCRIPT: &str = "text/javascript";
pub const JSON: &str = "application/json";

macro_rules! file {
    ($path:literal, $media_type:expr, $source:literal) => {
        File { path: $path, media_type: $media_type, bytes: include_bytes!($source), encodings: OnceLock::new() }
    };
}

static FILES: [File; 15] = [
    file!("/", HTML, "home.html"),
    file!("/docs", HTML, "docs/index.html"),
    file!("/openapi.json", JSON, "../../docs/openapi.json"),
    file!("/asyncapi.json", JSON, "../../docs/asyncapi.json"),
    file!("/assets/home.css", CSS, "home.css"),
    file!("/assets/docs.css", CSS, "docs/docs.css"),
    file!("/assets/docs.js", SCRIPT, "docs/docs.js"),
    file!("/assets/docs-model.js", SCRIPT, "docs/docs-model.js"),
    file!("/assets/docs-schema.js", SCRIPT, "docs/docs-schema.js"),
    file!("/assets/docs-search.js", SCRIPT, "docs/docs-search.js"),
    file!("/assets/docs-snippets.js", SCRIPT, "docs/docs-snippets.js"),
    file!("/assets/docs-text.js", SCRIPT, "docs/docs-text.js"),
    file!("/assets/docs-theme.js", SCRIPT, "docs/docs-theme.js"),
    file!("/assets/docs-try.js", SCRIPT, "docs/docs-try.js"),
    file!("/assets/lit-html.js", SCRIPT, "vendor/lit-html.js"),
];

/// The file at a path, which is given without the prefix `/api/v1`.
pub fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

/// All files, for tests.
pub fn files() -> &'static [File] {
    &FILES
}

impl File {
    pub fn is_page(&self) -> bool {
        self.media_type == HTML
    }

    pub fn plain(&'static self) -> &'static Encoded {
        &self.encodings().plain
    }

    pub fn gzip(&'static self) -> &'static Encoded {
        &self.encodings().gzip
    }

    fn encodings(&'static self) -> &'static Encodings {
        self.encodings.get_or_init(|| {
            let digest = digest(&SHA256, self.bytes);
            let digest: String = digest.as_ref()[..12].iter().map(|byte| format!("{byte:02x}")).collect();
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(self.bytes).expect("a vector takes all");
            let gzip = encoder.finish().expect("a vector takes all").into();
            Encodings {
                plain: Encoded { bytes: Bytes::from_static(self.bytes), tag: format!("\"{digest}\"") },
                gzip: Encoded { bytes: gzip, tag: format!("\"{digest}-gzip\"") },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn both_encodings_of_a_file_have_the_same_content_and_different_tags() {
        for file in files() {
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(&*file.gzip().bytes).read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == file.plain().bytes, "{}", file.path);
            assert_ne!(file.gzip().tag, file.plain().tag);
            assert!(std::str::from_utf8(&unpacked).is_ok(), "{} is a text", file.path);
        }
    }
}
