"""Other libraries' ways to call the OpenAI API, against a running network: LangChain, `llm`. See run.py."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

QUESTION = "What is the capital of France?"


def langchain_checks(network, schema):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="assay-tiny", base_url=network["gateway"], api_key=network["key"], temperature=0, max_retries=0,
        max_tokens=200,
    )

    def answers():
        reply = model.invoke(QUESTION)
        assert "Paris" in reply.content and reply.usage_metadata["output_tokens"] > 0, reply
        assert "".join(chunk.content for chunk in model.stream(QUESTION)) == reply.content

    def follows_schema():
        wanted = {"title": "place", "description": "A place", **schema}
        value = model.with_structured_output(wanted, method="json_schema").invoke(QUESTION)
        assert value["city"] in ("Paris", "Rome"), value

    def calls_tool():
        tool = {"type": "function", "function": {"name": "rain", "description": "d", "parameters": schema}}
        call = model.bind_tools([tool], tool_choice="required").invoke(QUESTION).tool_calls[0]
        assert call["name"] == "rain" and call["args"]["city"] in ("Paris", "Rome"), call

    return [
        ("langchain: invoke and stream", answers),
        ("langchain: structured output", follows_schema),
        ("langchain: a forced tool call", calls_tool),
    ]


def llm_checks(network):
    """The command line `llm`, with the gateway as one of its extra models."""

    def run(*arguments):
        with tempfile.TemporaryDirectory() as home:
            Path(home, "extra-openai-models.yaml").write_text(
                f"- model_id: assay\n  model_name: assay-tiny\n  api_base: {network['gateway']}\n  api_key_name: assay\n"
            )
            Path(home, "keys.json").write_text(json.dumps({"assay": network["key"]}))
            command = [sys.executable, "-m", "llm", "-m", "assay", *arguments, QUESTION]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=120, env={**os.environ, "LLM_USER_PATH": home}
            )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    def answers():
        text = run("--option", "temperature", "0", "--no-stream")
        assert "Paris" in text, text
        assert run("--option", "temperature", "0") == text

    return [("llm: answers, whole and streamed", answers)]
