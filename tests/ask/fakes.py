"""A session with a scripted engine, a tokenizer of characters, and a memory and a retriever that show what they did."""

from collections import Counter
from threading import get_ident
from types import SimpleNamespace

from minimemo.ask import Session, answer, evidence, memory, memory_opening, question, session
from minimemo.events import Event
from minimemo.memory.view import Extent
from minimemo.text.words import shingles

ENGLISH = (
    "The plague came to Paris in 1348. ",
    "A report was written by the doctors for the king of France. ",
    "It blamed the heavens, where three planets had met. ",
    "Later the fleas of black rats were found guilty. ",
    "Nothing else of note was built in that year. ",
)
CHINESE = (
    "一三四八年，黑死病传到了巴黎。",
    "医生们为法国国王写了一份医疗报告。",
    "报告把瘟疫归咎于天上三颗行星的会合。",
    "后来人们发现，黑鼠身上的跳蚤才是元凶。",
    "那一年没有别的值得一提的建筑。",
)


class FakeTokenizer:
    """One token a character; control tokens are negative and cannot come from text."""

    stop_ids = frozenset({-9})
    break_ids = frozenset[int]()

    def __init__(self, has_chat_template=True):
        self.has_chat_template = has_chat_template

    def encode(self, text):
        return [ord(char) for char in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i >= 0)

    def turn(self, system):
        if not self.has_chat_template:
            return [-1], []
        return [-1, *self.encode(system or ""), -2], [-3]

    def stream(self):
        return SimpleNamespace(push=lambda token: self.decode([token]), flush=lambda: "")


class FakeCache:
    def __init__(self, capacity, ids=()):
        self.capacity = capacity
        self.ids = list(ids)

    @property
    def length(self):
        return len(self.ids)

    @property
    def nbytes(self):
        return self.capacity

    def truncate(self, n):
        assert 0 <= n <= self.length
        del self.ids[n:]

    def extend(self, ids):
        assert self.length + len(ids) <= self.capacity
        self.ids.extend(ids)

    def __copy__(self):
        raise AssertionError("the memory was copied")

    __deepcopy__ = __copy__


class FakeMemory:
    """Blocks of one token. Views are made of the ids themselves, so a test sees what a prompt stands behind."""

    def __init__(self, documents, openings):
        self.documents = documents
        self.extents = [Extent(len(ids), opening, 1) for ids, opening in zip(documents, openings, strict=True)]
        self.views = []
        self.cache = None

    def load(self, view, room):
        self.views.append(view)
        self.loaded = self.ids(view)
        self.cache = FakeCache(len(self.loaded) + room, self.loaded)
        return self.cache

    def ids(self, view):
        return [self.documents[part.memory][part.block] for part in view.parts]


class FakeEngine:
    """Replies with the first script whose key stands in the prompt (after the document, when there is one)."""

    def __init__(self, script, max_context=6000, likely=()):
        self.script = script
        self.likely = likely  # replies that it finds likelier than others
        self.more = ""  # what it says when it is held to go on
        self.config = SimpleNamespace(max_context=max_context, num_layers=2, hidden_size=8, vocab_size=100)
        self.decoded = 0
        self.read = Counter()  # prefilled tokens of each thread
        self.prompts, self.batches = [], []
        self.sources, self.weighed = [], []  # what replies may copy; what stood before those that were weighed

    @property
    def prefilled(self):
        return self.read.total()

    @property
    def prefilled_here(self):
        return self.read[get_ident()]

    def new_cache(self, capacity):
        return FakeCache(capacity)

    def reply_to(self, ids):
        prompt = FakeTokenizer().decode(ids)
        reply = next((reply for key, reply in self.script.items() if key in prompt), "nothing scripted")
        if isinstance(reply, BaseException):
            raise reply
        return FakeTokenizer().encode(reply)

    def generate(self, cache, ids, *, max_tokens, stop, min_tokens=0, breaks=(), source=None):
        assert cache.length + len(ids) + max_tokens <= self.config.max_context
        if not min_tokens:
            self.prompts.append(FakeTokenizer().decode(ids))
        self.sources.append(source)
        cache.extend(ids)
        self.read[get_ident()] += len(ids)
        for token in (FakeTokenizer().encode(self.more) if min_tokens else self.reply_to(ids))[:max_tokens]:
            yield token
            cache.extend([token])
            self.decoded += 1

    def generate_batch(self, memory, prompts, *, max_tokens, stop, source=()):
        assert memory.length + max(map(len, prompts)) + max_tokens <= self.config.max_context
        self.batches.append([FakeTokenizer().decode(ids) for ids in prompts])
        self.read[get_ident()] += sum(map(len, prompts))
        return [self.reply_to(ids)[:max_tokens] for ids in prompts]

    def likelihoods(self, cache, ids, replies, stop):
        assert cache.length + len(ids) <= cache.capacity
        self.weighed.append(FakeTokenizer().decode([*cache.ids, *ids]))
        self.read[get_ident()] += len(ids)
        return [-1.0 if FakeTokenizer().decode(reply) in self.likely else -2.0 for reply in replies]


class FakeRetriever:
    """Scores the sentences of a document by shared character n-grams."""

    def __init__(self, sentences):
        self.queries = []
        self.regions = []
        self.chunks = []
        for text in sentences:
            start = self.chunks[-1].end if self.chunks else 0
            end = start + len(text)
            self.chunks.append(SimpleNamespace(start=start, end=end, text=text, token_start=start, token_end=end))

    sources = ("embedding", "lexical")

    def characters(self, document, start, end):
        return start, end

    def holds(self, word):
        return any(word.casefold() in chunk.text.casefold() for chunk in self.chunks)

    def retrieve(self, queries, k, *, regions=False):
        self.queries.append(list(queries))
        self.regions.append(regions)
        return [self._one(query, k) for query in queries]

    def figured(self, question):
        return None

    def whole(self, most):
        text = "".join(chunk.text for chunk in self.chunks)
        return text if len(text) <= most else ""

    def every(self):
        return [SimpleNamespace(chunk=c, score=1.0, sources=(), document=0, header="") for c in self.chunks]

    def quote(self, query, hits, k=3):
        return hits[:1]

    def _one(self, query, k):
        grams = shingles(query)
        scored = [(len(grams & shingles(c.text)) / max(1, len(grams)), c) for c in self.chunks]
        scored.sort(key=lambda pair: -pair[0])
        return [
            SimpleNamespace(chunk=c, score=score, sources=self.sources, document=0, header="")
            for score, c in scored[:k]
            if score > 0
        ]


EN_SCRIPT = {
    "Sentences of the document": "1. A report was written by the doctors for the king of France.\n2. A report was",
    "Three short questions": "- Which planets had met?\n- Who wrote the report for the king?\n",
    "Short answer:": "The king who ruled France from Paris.",
    "What happens, or is discussed": "The plague came to Paris in 1348. The fleas of black rats were found guilty. And",
    "summary of the whole document": "The plague came to Paris; fleas were guilty.",
    "Answer the question from the passages": "the king of France",
    "Answer the question from the document above, in": "the king of France",
    "Question:": "a king",
}
ZH_SCRIPT = {
    "有助于回答的原句": "一、医生们为法国国王写了一份医疗报告。\n二、报告把瘟疫归咎于天上三颗行星的会合。",
    "小问题": "1. 哪些人写了这份报告？\n2. 国王是哪国人？",
    "简短的答案": "腓力六世陛下",
    "文档里说了什么": "黑死病传到了巴黎。\n跳蚤是元凶。然后",
    "摘要": "黑死病传到巴黎，跳蚤是元凶。",
    "根据段落回答": "法国国王",
    "根据上面的文档回答": "法国国王",
    "问题": "国王",
}


class House:
    """A session with everything in it at hand."""

    def __init__(
        self, sentences=ENGLISH, script=EN_SCRIPT, language="en", *, context=6000, chat=True, engine=None, **options
    ):
        self.document = "".join(sentences)
        self.engine = engine or FakeEngine(script, context)
        self.tokenizer = FakeTokenizer(chat)
        self.retriever = FakeRetriever(sentences)
        opening = memory_opening(language).ids(self.tokenizer)
        self.ids = opening + self.tokenizer.encode(self.document)
        self.memory = FakeMemory([self.ids], [len(opening)])
        self.events: list[Event] = []
        self.session = Session(
            self.engine,
            self.tokenizer,
            self.retriever,
            lambda: self.memory,
            language=language,
            on_event=self.events.append,
            **options,
        )

    @property
    def loads(self):
        return len(self.memory.views)

    def untouched(self):
        return self.memory.cache.ids == self.memory.loaded


def chinese_house(**options):
    return House(CHINESE, ZH_SCRIPT, "zh", **options)


def set_limits(monkeypatch, **constants):
    """Sets constants of the loop, in every module that reads them."""
    for name, value in constants.items():
        holders = [module for module in (answer, evidence, question, memory, session) if hasattr(module, name)]
        assert holders, name
        for module in holders:
            monkeypatch.setattr(module, name, value)


QUESTION = "Who was the report written for?"
ZH_QUESTION = "医疗报告是为谁写的？"
