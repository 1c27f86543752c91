"""Stock clients of OpenAI's and Anthropic's APIs against a running network, and every example of docs/API.md.

Usage: run.py PATH_OF_ASSAY ENCODER. Starts `assay up` in a temporary folder on free ports, runs the Python checks of this file
and of peers.py, the examples, and the JavaScript checks of node.mjs and ai.mjs against it, stops it, and checks that it stopped cleanly. Prints one line a check
and `N passed, N failed` at the end.
"""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import anthropic
import openai

import peers

HERE = Path(__file__).parent
READY_S_MAX = 60
STOP_S_MAX = 30
CITY = {
    "type": "object", "additionalProperties": False, "required": ["city"],
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
}
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def start(assay: str, encoder: str, state: str):
    """`assay up` as a child; its ready line as a dictionary."""
    process = subprocess.Popen(
        [assay, "up", "--json", "--dir", state, "--port", "0", "--encoder", encoder], stdout=subprocess.PIPE, text=True
    )
    timer = threading.Timer(READY_S_MAX, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    if not line:
        raise SystemExit(f"assay up ended before it was ready, status {process.wait()}")
    return process, {**json.loads(line), "encoder": Path(encoder).stem, "assay": assay, "encoder_file": encoder}


def vector_checks(network):
    """Embeddings with OpenAI's own client, and reranking. Yields (name, function) pairs."""
    client = openai.OpenAI(base_url=network["gateway"], api_key=network["key"], max_retries=0)
    model = network["encoder"]
    texts = ["The cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose in March."]

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5

    def embeds():
        # This client asks for base64 and decodes it; the other way has to give the same numbers.
        packed = client.embeddings.create(model=model, input=texts)
        plain = client.embeddings.create(model=model, input=texts, encoding_format="float", dimensions=384)
        rows = [row.embedding for row in packed.data]
        assert [len(row) for row in rows] == [384] * 3 and [row.index for row in packed.data] == [0, 1, 2], packed
        assert all(abs(x - y) <= 1e-7 for a, b in zip(rows, plain.data) for x, y in zip(a, b.embedding))
        assert cosine(rows[0], rows[1]) > 0.5 > cosine(rows[0], rows[2]), "the model knows what is alike"
        assert packed.usage.prompt_tokens == packed.usage.total_tokens > 15, packed.usage
        one = client.embeddings.create(model=model, input=texts[1]).data[0].embedding
        assert one == rows[1], "what else is in a request changes no bit"

    def many():
        lines = [f"{n} cats and {n % 7} dogs" for n in range(150)]
        reply = client.embeddings.create(model=model, input=lines)
        alone = client.embeddings.create(model=model, input=lines[137])
        assert len(reply.data) == 150 and reply.data[137].embedding == alone.data[0].embedding
        assert len(reply.assay["receipts"]) == 3, reply.assay

    def verifies():
        reply = client.embeddings.create(model=model, input=texts)
        receipt = client.get(f"/receipts/{reply.assay['receipt']}", cast_to=object)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "receipt.json"
            path.write_text(json.dumps(receipt))
            check = [network["assay"], "verify", str(path), "--model", network["encoder_file"]]
            done = subprocess.run(check, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0 and "3 vectors re-derived" in done.stdout, (done.stdout, done.stderr)
            receipt["parts"][0]["output"][5] ^= 1
            path.write_text(json.dumps(receipt))
            assert subprocess.run(check, capture_output=True, text=True, timeout=120).returncode == 1

    def ranks():
        ask = {"model": model, "query": "pets", "documents": texts[::-1], "top_n": 2}
        reply = client.post("/rerank", body=ask, cast_to=object)
        assert [result["index"] for result in reply["results"]] in ([2, 1], [1, 2]), reply
        vectors = [row.embedding for row in client.embeddings.create(model=model, input=["pets", *texts[::-1]]).data]
        for result in reply["results"]:
            assert abs(cosine(vectors[0], vectors[1 + result["index"]]) - result["relevance_score"]) < 1e-6, reply

    def refuses():
        for change, param in [({"input": ["word " * 400]}, "input"), ({"input": ""}, "input"), ({"dimensions": 8}, "dimensions")]:
            try:
                client.embeddings.create(**{"model": model, "input": "a", **change})
            except openai.BadRequestError as error:
                assert error.param == param, error
            else:
                raise AssertionError(f"{change} was accepted")

    return [
        ("python: embeddings, base64 and float", embeds),
        ("python: 150 embeddings in one request", many),
        ("python: the receipt of vectors, verified and changed", verifies),
        ("python: rerank is the cosine of embeddings", ranks),
        ("python: embeddings that are refused", refuses),
    ]


def python_checks(network):
    """Yields (name, function) pairs."""
    client = openai.OpenAI(base_url=network["gateway"], api_key=network["key"], max_retries=0)
    model = client.models.list().data[0].id

    def answers():
        reply = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0)
        assert "Paris" in reply.choices[0].message.content, reply
        assert reply.choices[0].finish_reason == "stop", reply
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens

    def streams():
        whole = client.chat.completions.create(model=model, messages=CAPITAL, seed=7, temperature=1).choices[0]
        chunks = list(
            client.chat.completions.create(
                model=model, messages=CAPITAL, seed=7, temperature=1, stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.message.content, (text, whole.message.content)
        assert chunks[-1].usage.completion_tokens > 0
        assert not chunks[-1].choices

    def completes():
        reply = client.completions.create(model=model, prompt="Once upon a time", max_tokens=24, temperature=0)
        assert reply.usage.completion_tokens <= 24
        streamed = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=24, temperature=0, stream=True
        )
        assert "".join(c.choices[0].text for c in streamed if c.choices) == reply.choices[0].text

    def stops():
        reply = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, stop=["Paris"])
        assert "Paris" not in reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "stop"

    def limits_length():
        reply = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, max_tokens=2)
        assert reply.usage.completion_tokens == 2 and reply.choices[0].finish_reason == "length"

    def biased():
        first = client.completions.create(model=model, prompt="Once upon a time", max_tokens=1, temperature=0)
        raw = client.get(f"/receipts/{first.assay['receipt']}", cast_to=object)
        token = raw["parts"][0]["output"][0]
        ban = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=20, temperature=0, logit_bias={str(token): -100},
            frequency_penalty=0.5, presence_penalty=-0.5, extra_body={"min_p": 0.05, "repetition_penalty": 1.2},
        )
        job = client.get(f"/receipts/{ban.assay['receipt']}", cast_to=object)
        assert token not in job["parts"][0]["output"], job
        assert job["job"]["sampling"]["minPMicro"] == 50_000, job["job"]

    def scored():
        chat = {"logprobs": True, "top_logprobs": 3, "temperature": 0}
        whole = client.chat.completions.create(model=model, messages=CAPITAL, **chat).choices[0]
        tokens = whole.logprobs.content
        assert b"".join(bytes(t.bytes) for t in tokens).decode() == whole.message.content, tokens
        assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in tokens)
        # Greedy takes the most likely token.
        assert all(t.top_logprobs[0].token == t.token for t in tokens), tokens
        streamed = client.chat.completions.create(model=model, messages=CAPITAL, stream=True, **chat)
        again = [t for c in streamed if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
        assert again == tokens
        old = client.completions.create(model=model, prompt="Once upon a time", max_tokens=5, logprobs=2).choices[0]
        assert "".join(old.logprobs.tokens) == old.text and len(old.logprobs.top_logprobs) == 5, old

    def chooses():
        # The small model is sure of capitals at any temperature; of this it is not.
        talk = [{"role": "user", "content": "Tell me a story."}]
        ask = {"model": model, "messages": talk, "n": 3, "seed": 3, "temperature": 2, "max_tokens": 40}
        whole = client.chat.completions.create(**ask)
        texts = [choice.message.content for choice in whole.choices]
        assert [choice.index for choice in whole.choices] == [0, 1, 2] and len(set(texts)) > 1, texts
        assert texts[0] == client.chat.completions.create(**{**ask, "n": 1}).choices[0].message.content
        streamed = ["", "", ""]
        for chunk in client.chat.completions.create(**ask, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
        assert streamed == texts, (streamed, texts)

    def follows_schema():
        schema = {
            "type": "object", "additionalProperties": False, "required": ["city", "big"],
            "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
        }
        form = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": schema}}
        for ask in [{"temperature": 0}, {"temperature": 1, "seed": 4}]:
            reply = client.chat.completions.create(model=model, messages=CAPITAL, response_format=form, **ask)
            value = json.loads(reply.choices[0].message.content)
            assert set(value) == {"city", "big"} and isinstance(value["big"], bool), value
            assert reply.choices[0].finish_reason == "stop"
        digits = client.chat.completions.create(
            model=model, messages=CAPITAL, extra_body={"guided_regex": "[0-9]{3}-[0-9]{2}"}
        )
        assert re.fullmatch("[0-9]{3}-[0-9]{2}", digits.choices[0].message.content), digits

    def calls_tool():
        tools = [{"type": "function", "function": {"name": "rain", "parameters": CITY}}]
        ask = {"model": model, "messages": CAPITAL, "tools": tools, "tool_choice": "required",
               "parallel_tool_calls": False, "temperature": 0}
        choice = client.chat.completions.create(**ask).choices[0]
        assert choice.finish_reason == "tool_calls", choice
        call = choice.message.tool_calls[0]
        assert call.function.name == "rain" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome"), call
        name, arguments = "", ""
        for chunk in client.chat.completions.create(**ask, stream=True):
            for delta in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
        assert (name, arguments) == (call.function.name, call.function.arguments), (name, arguments)

    def responds():
        reply = client.responses.create(model=model, input="What is the capital of France?", temperature=0)
        assert "Paris" in reply.output_text and reply.status == "completed", reply
        assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens, reply.usage
        turns = [{"role": "user", "content": "Hello"}, *reply.output, {"role": "user", "content": "And of Italy?"}]
        assert client.responses.create(model=model, input=turns, max_output_tokens=5).status in ("completed", "incomplete")
        with client.responses.stream(model=model, input="What is the capital of France?", temperature=0) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            assert text == reply.output_text == stream.get_final_response().output_text, text

    def responds_with_call():
        tools = [{"type": "function", "name": "rain", "strict": True, "parameters": CITY}]
        ask = {"model": model, "input": "Rain in Rome?", "tools": tools, "tool_choice": "required",
               "parallel_tool_calls": False, "temperature": 0}
        call = client.responses.create(**ask).output[0]
        assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Paris", "Rome"), call
        with client.responses.stream(**ask) as stream:
            done = [event for event in stream if event.type == "response.function_call_arguments.done"]
        assert [event.arguments for event in done] == [call.arguments], done
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "dry"}
        again = [{"role": "user", "content": "Rain in Rome?"}, call, result]
        assert client.responses.create(model=model, input=again, tools=tools).output

    def has_receipt():
        raw = client.chat.completions.with_raw_response.create(model=model, messages=CAPITAL, temperature=0)
        receipt = client.get(f"/receipts/{raw.headers['x-assay-receipt']}", cast_to=object)
        assert receipt["parts"][0]["output"], receipt

    def refuses(error, call, **expect):
        def check():
            try:
                call()
            except error as e:
                got = {field: getattr(e, field) for field in expect}
                assert got == expect, got
            else:
                raise AssertionError("was accepted")
        return check

    def chat(**change):
        return client.chat.completions.create(**{"model": model, "messages": CAPITAL, **change})

    stranger = client.with_options(api_key="sk-assay-wrong")
    long = [{"role": "user", "content": "word " * 20_000}]
    return [
        ("python: answers the capital of France", answers),
        ("python: stream equals the whole answer of the same seed", streams),
        ("python: completions, whole and streamed", completes),
        ("python: stop string", stops),
        ("python: max_tokens", limits_length),
        ("python: receipt of a reply", has_receipt),
        ("python: logit_bias and penalties", biased),
        ("python: logprobs, whole, streamed and of completions", scored),
        ("python: n choices, whole and streamed", chooses),
        ("python: response_format json_schema and guided_regex", follows_schema),
        ("python: a forced tool call, whole and streamed", calls_tool),
        ("python: responses, whole and streamed", responds),
        ("python: responses with a forced call, whole and streamed, and its output", responds_with_call),
        ("python: bad schema", refuses(openai.BadRequestError, lambda: chat(response_format={
            "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}),
            param="response_format.json_schema.schema")),
        ("python: wrong key", refuses(openai.AuthenticationError, lambda: stranger.models.list(), code="invalid_api_key")),
        ("python: unknown model", refuses(openai.NotFoundError, lambda: chat(model="gpt-9"), code="model_not_found")),
        ("python: bad field", refuses(openai.BadRequestError, lambda: chat(temperature=-1), param="temperature")),
        ("python: context overflow", refuses(openai.BadRequestError, lambda: chat(messages=long), code="context_length_exceeded")),
    ]


def anthropic_checks(network):
    """The Messages API with Anthropic's own client. Yields (name, function) pairs."""
    base = network["gateway"].removesuffix("/v1")
    client = anthropic.Anthropic(base_url=base, api_key=network["key"], max_retries=0)
    model = openai.OpenAI(base_url=network["gateway"], api_key=network["key"]).models.list().data[0].id
    # This client has no parameter for it any more; the API has.
    ask = {"model": model, "max_tokens": 60, "messages": CAPITAL, "extra_body": {"temperature": 0}}

    def answers():
        reply = client.messages.create(**ask, system="You are a helpful assistant.")
        assert reply.content[0].type == "text" and reply.stop_reason == "end_turn", reply
        plain = client.messages.create(**ask)
        assert "Paris" in plain.content[0].text and plain.usage.input_tokens < reply.usage.input_tokens, plain

    def streams():
        whole = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == whole.content[0].text == final.content[0].text, (text, final)
        assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens), final

    def stops():
        reply = client.messages.create(**ask, stop_sequences=["Paris"])
        assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "Paris"), reply
        assert client.messages.create(**{**ask, "max_tokens": 1}).stop_reason == "max_tokens"

    def calls_tool():
        tools = [{"name": "rain", "description": "Whether it rains", "input_schema": CITY}]
        force = {**ask, "max_tokens": 200, "tools": tools, "tool_choice": {"type": "tool", "name": "rain"}}
        reply = client.messages.create(**force)
        call = reply.content[0]
        assert reply.stop_reason == "tool_use" and call.input["city"] in ("Paris", "Rome"), reply
        with client.messages.stream(**force) as stream:
            assert stream.get_final_message().content[0].input == call.input
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "dry"}
        turns = [*CAPITAL, {"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
        assert client.messages.create(**{**ask, "messages": turns}, tools=tools).content

    def refuses(error, status, **change):
        def check():
            try:
                client.with_options(api_key=change.pop("key", network["key"])).messages.create(**{**ask, **change})
            except error as e:
                assert e.status_code == status and e.body["type"] == "error", e.body
            else:
                raise AssertionError("was accepted")
        return check

    return [
        ("anthropic: answers, with and without a system prompt", answers),
        ("anthropic: stream equals the whole answer", streams),
        ("anthropic: stop sequence and max_tokens", stops),
        ("anthropic: a forced tool call, whole and streamed, and its result", calls_tool),
        ("anthropic: wrong key", refuses(anthropic.AuthenticationError, 401, key="sk-assay-wrong")),
        ("anthropic: unknown model", refuses(anthropic.NotFoundError, 404, model="claude-9")),
        ("anthropic: bad field", refuses(anthropic.BadRequestError, 400, extra_body={"temperature": -1})),
    ]


def examples(network):
    """Each block of docs/API.md that is a program has to end well and to print something."""
    os.environ.update(ASSAY_URL=network["gateway"], ASSAY_KEY=network["key"], ASSAY_ENCODER=network["encoder"])
    text = (HERE / "../../docs/API.md").read_text()
    headings = re.compile(r"^##+ ([^\n]*)$|^```(bash|python|ts)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

    def program(command):
        def check():
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HERE)
            assert done.returncode == 0 and done.stdout.strip(), (done.returncode, done.stdout, done.stderr[-2000:])
        return check

    def python(code):
        def check():
            # In this process: importing the clients takes longer than the example.
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, "docs/API.md", "exec"), {"__name__": "example"})
            assert out.getvalue().strip(), "nothing was printed"
        return check

    heading, checks = "", []
    for match in headings.finditer(text):
        title, language, code = match.groups()
        if title:
            heading = title
            continue
        # TypeScript without types is JavaScript.
        ways = {"python": python, "bash": lambda code: program(["bash", "-ec", code]),
                "ts": lambda code: program(["node", "--input-type=module", "-e", code])}
        checks.append((f"docs/API.md, {heading}: {language}", ways[language](code)))
    assert len(checks) >= 20, "the examples are not where they were"
    return checks


def main():
    assay, encoder = (os.path.abspath(path) for path in sys.argv[1:3])
    passed = failed = 0

    def count(name, error=None):
        nonlocal passed, failed
        passed += error is None
        failed += error is not None
        print(f"{'ok' if error is None else 'FAILED'}  {name}" + (f": {error!r}" if error else ""), flush=True)

    with tempfile.TemporaryDirectory() as state:
        process, network = start(assay, encoder, state)
        try:
            others = [*anthropic_checks(network), *peers.langchain_checks(network, CITY), *peers.llm_checks(network)]
            for name, check in [*python_checks(network), *vector_checks(network), *others, *examples(network)]:
                try:
                    check()
                    count(name)
                except Exception as error:  # each check stands alone; the error is printed and counted
                    count(name, error)
            for script in ["node.mjs", "ai.mjs"]:
                node = subprocess.run(
                    ["node", str(HERE / script), network["gateway"], network["key"], network["encoder"]], capture_output=True, text=True,
                    timeout=120,
                )
                lines = [line for line in node.stdout.splitlines() if line.startswith("{")]
                for line in lines:
                    result = json.loads(line)
                    count(result["name"], result.get("error"))
                if node.returncode != 0 or not lines:
                    count(f"{script}: ran to its end", node.stderr[-2000:])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(STOP_S_MAX)
                count("assay up: stops with status 0 on TERM", None if status == 0 else status)
            except subprocess.TimeoutExpired:
                process.kill()
                count("assay up: stops with status 0 on TERM", f"still running after {STOP_S_MAX} s")
    print(f"\n{passed} passed, {failed} failed")
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()
