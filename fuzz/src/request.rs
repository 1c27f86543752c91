//! Bodies of requests to the gateway.

use crate::limit::bounded;
use assay_api::{
    ChatRequest, CompletionRequest, EmbeddingRequest, INPUTS_MAX, Limits, RerankRequest, ResponsesRequest,
};
use assay_types::{B256, JobLimits, ModelId};

/// Bytes that one byte of body may become: a list of empty objects is the worst.
const GROWTH_MAX: usize = 256;

pub fn run(data: &[u8]) {
    let bytes_max = GROWTH_MAX * data.len() + (1 << 16);
    let limits = Limits::default();
    let chat = bounded("a chat request", bytes_max, || ChatRequest::parse(data, &limits));
    let messages = bounded("a messages request", bytes_max, || ChatRequest::parse_messages(data, &limits));
    let responses = bounded("a responses request", bytes_max, || ResponsesRequest::parse(data, &limits));
    for request in [chat, messages, responses.map(|request| request.chat)].into_iter().flatten() {
        assert!(!request.messages.is_empty() && request.messages.len() <= limits.messages_max);
    }
    if let Ok(request) = bounded("an embedding request", bytes_max, || EmbeddingRequest::parse(data)) {
        assert!((1..=INPUTS_MAX).contains(&request.input.len()));
    }
    if let Ok(request) = bounded("a rerank request", bytes_max, || RerankRequest::parse(data)) {
        assert!((1..INPUTS_MAX).contains(&request.documents.len()));
    }
    if let Ok(request) = bounded("a completion request", bytes_max, || CompletionRequest::parse(data)) {
        let job = request.options.job(ModelId(B256::ZERO), vec![1], 16, 1, B256::ZERO);
        // Whatever the parser let through is within what a provider accepts.
        let limits = JobLimits { vocab_size: 2, context_length: u32::MAX, dimensions: 0 };
        if job.max_tokens < u32::MAX {
            job.validate(&limits).expect("options were checked");
        }
        let _ = job.request_hash();
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a\u00e9"}]}],"max_tokens":5,"temperature":0.7,"top_p":0.9,"stop":["x","\n"],"seed":-3,"stream":true,"stream_options":{"include_usage":true}}"#,
        r#"{"model":"m","prompt":"hi","max_completion_tokens":4294967295,"top_k":-1,"ignore_eos":true,"n":1,"logit_bias":{}}"#,
        r#"{"model":"m","prompt":[1,2,3],"seed":18446744073709551615,"temperature":1e-7,"top_p":1e300}"#,
        r#"{"model":"m","prompt":[[1]],"provider":{"only":["0x0000000000000000000000000000000000000001"],"ignore":[]}}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"x","tool_calls":[]}],"tools":[],"response_format":{"type":"text"},"user":"u"}"#,
        r#"{"model":"m","max_tokens":9,"system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"f","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"r"}]}],"tools":[{"name":"f","input_schema":{}}],"tool_choice":{"type":"any"},"stop_sequences":["x"]}"#,
        r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"a"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"r"}],"instructions":"i","text":{"format":{"type":"json_object"}},"max_output_tokens":5,"provider":{"sort":"price","max_price":{"prompt":1}}}"#,
        r#"{"model":"m","input":[[1,2],"a"],"encoding_format":"base64","dimensions":8,"assay":{"verify":{"redundant":2}}}"#,
        r#"{"model":"m","query":"q","documents":["a",{"text":"b"}],"top_n":1,"return_documents":true}"#,
        r#"{"a":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}"#,
        r#"{"model":"m","model":"n","messages":[{}]}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
