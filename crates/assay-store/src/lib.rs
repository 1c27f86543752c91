//! Model files on disk: mapping, hashing, manifests.
