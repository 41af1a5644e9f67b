"""OpenAI's API as its own client asks for it."""

from __future__ import annotations

from typing import Any

import pytest

from minimemo.server.openai import SOURCES
from tests.server.conftest import TEXT, Served

openai = pytest.importorskip("openai")
QUESTION: Any = [{"role": "user", "content": "What did user 3 say?"}]


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30) as made:
        yield made


def test_models_are_the_documents_and_all(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["all", "doc", "notes"]
    assert client.models.retrieve("doc").owned_by == "minimemo"
    with pytest.raises(openai.NotFoundError, match="nosuch"):
        client.models.retrieve("nosuch")


def test_a_completion_names_its_sources(client: Any) -> None:
    done = client.chat.completions.create(model="doc", messages=QUESTION, max_completion_tokens=8)
    (choice,) = done.choices
    told = done.model_extra["minimemo"]
    assert done.object == "chat.completion" and done.model == "doc" and choice.finish_reason in ("stop", "length")
    assert choice.message.role == "assistant" and choice.message.content.startswith(told["text"])
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens > 0
    cited = [passage for passage in told["passages"] if passage["cited"]]
    assert len(choice.message.annotations or ()) == len(cited)
    for annotation, passage in zip(choice.message.annotations or (), cited, strict=True):
        assert annotation.type == "url_citation"
        assert annotation.url_citation.url.endswith("/documents/doc/file")
        assert annotation.url_citation.end_index <= len(choice.message.content)
        assert TEXT[passage["start"] : passage["end"]] == passage["text"]
    if cited:
        assert "[1] doc.txt" in choice.message.content.split(SOURCES)[1]


def test_a_stream_is_the_same_answer_in_pieces(client: Any) -> None:
    whole = client.chat.completions.create(model="doc", messages=QUESTION, max_tokens=8)
    stream = client.chat.completions.create(
        model="doc", messages=QUESTION, max_tokens=8, stream=True, stream_options={"include_usage": True},
        temperature=0, seed=1,
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    *_, last, usage = chunks
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.model_extra["minimemo"]["text"] == whole.model_extra["minimemo"]["text"]
    assert usage.choices == [] and usage.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.object == "chat.completion.chunk" for chunk in chunks)


def test_usage_comes_only_where_it_is_asked_for(client: Any) -> None:
    stream = client.chat.completions.create(model="doc", messages=QUESTION, max_tokens=2, stream=True)
    assert all(chunk.choices and chunk.usage is None for chunk in stream)


def test_the_messages_are_a_conversation(client: Any) -> None:
    before = client.chat.completions.create(model="doc", messages=QUESTION, max_tokens=8).choices[0].message.content
    messages = [
        {"role": "system", "content": "You are a pirate."},
        *QUESTION,
        {"role": "assistant", "content": before},
        {"role": "user", "content": [{"type": "text", "text": "And why?"}]},
    ]
    done = client.chat.completions.create(model="doc", messages=messages, max_tokens=4)
    told = done.model_extra["minimemo"]
    assert told["question"] == "And why?" and told["asked"].startswith("What did user 3 say?")
    assert "---" not in told["asked"]  # the list of sources is no part of what was answered


def test_a_whole_shelf_is_asked_as_all(client: Any) -> None:
    done = client.chat.completions.create(model="all", messages=QUESTION, max_tokens=2)
    assert {passage["document"] for passage in done.model_extra["minimemo"]["passages"]} <= {"doc.txt", "notes.md"}
    assert done.model == "all"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"model": "nosuch"}, "nosuch"),
        ({"n": 3}, "n:"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hello"}]}, "last"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "pictures"),
        ({"messages": [{"role": "user", "content": "???"}]}, "question"),
    ],
)
def test_what_cannot_be_done_is_an_error_of_openais_shape(client: Any, more: dict[str, Any], word: str) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(**{"model": "doc", "messages": QUESTION, **more})
    assert raised.value.status_code in (400, 404) and word in raised.value.message
    assert raised.value.type == "invalid_request_error"


def test_an_error_within_a_stream_reaches_the_client(client: Any) -> None:
    """Whether it is told before or within the stream: the official client raises."""
    with pytest.raises(openai.APIError, match="question"):
        list(client.chat.completions.create(
            model="doc", messages=[{"role": "user", "content": "???"}], stream=True,
        ))  # fmt: skip


def test_embeddings_are_of_unit_length_in_both_encodings(client: Any) -> None:
    texts = ["The user said hello.", "Be brief."]
    plain = client.embeddings.create(model="any", input=texts, encoding_format="float")
    coded = client.embeddings.create(model="any", input=texts)  # base64, of its own accord
    for one, other in zip(plain.data, coded.data, strict=True):
        assert sum(x * x for x in one.embedding) == pytest.approx(1, abs=1e-4)
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
