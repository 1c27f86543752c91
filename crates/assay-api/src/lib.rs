//! OpenAI wire types and server-sent events.
