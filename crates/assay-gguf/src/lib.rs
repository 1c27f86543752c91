//! GGUF files, tokenizers and chat templates: bytes in, values out.
