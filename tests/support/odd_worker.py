"""A worker without a model, which misbehaves as it is asked; see `ksi_completion.workers` for what it speaks.

    python -I odd_worker.py [broken | refusing | crashing | silent]

``broken`` cannot begin and says why on stderr, ``refusing`` by a report; ``crashing`` is killed before it can
begin, ``silent`` never says that it is ready. Otherwise the last message says what to do:

    echo: TEXT              say TEXT, word by word; so for any text that is none of these
    mode:slow 5 0.2         say 5 words, waiting 0.2 s before each
    mode:gate PATH          say "0 ", and once PATH is there "1 2 3 "
    mode:count ...          say how many characters and messages it was sent
    mode:history            say its messages, as JSON: a list of role and content
    mode:die_once PATH      exit, and make PATH; where that is there, answer
    mode:environment        say its environment, as JSON
    mode:alive 17 18        say which of these processes run, or "none"
    mode:pieces             say "äöü 😀", written in pieces that end within a character
    mode:long 1000000       say as many characters, in one report
    mode:flood 4000000      write as many bytes to stderr, and then answer
    mode:usage 9999999999   count as many tokens of prompt
    mode:garbage            write a line that is no report
    mode:fail rate_limited  fail, as that FailureClass; another word says after how many seconds to come back
    mode:fork               leave a process behind that ignores SIGTERM; say its pid
    mode:hang               answer never, but confirm a cancel
    mode:ignore_cancel      answer never, and do not confirm a cancel
    mode:stubborn           the same, ignore SIGTERM, and leave two processes behind that do, too
    mode:deaf               the same, and read no more
    mode:die                exit in the middle of the answer
    mode:kill               be killed in the middle of the answer

Those that answer never say first one delta: the pids of all its processes. Nothing of it outlives 5 minutes.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

LIFETIME_S = 300

Order = Mapping[str, Any]

REFUSAL = b"""{"report": "failed", "id": null, "kind": "auth", "reason": "no_key", "message": "give me a key"}
"""

lock = threading.Lock()
cancelled: dict[str, threading.Event] = {}


def main(manner: str) -> None:
    signal.alarm(LIFETIME_S)
    match manner:
        case "broken":
            # Its streams end before it does, as with a library that takes its time to unload.
            os.close(1)
            time.sleep(0.1)
            sys.exit("cannot load the model: it is odd")
        case "refusing":
            write(REFUSAL)
        case "crashing":
            os.kill(os.getpid(), signal.SIGKILL)
        case "":
            write(b'{"report": "ready"}\n')
    for line in sys.stdin.buffer:
        take(json.loads(line))
    os._exit(0)


def take(order: Order) -> None:
    ident = order["id"]
    if order["do"] == "cancel":
        cancelled[ident].set()
        return
    cancelled[ident] = threading.Event()
    prompt = order["messages"][-1]["content"].strip()
    if prompt == "mode:stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=work, args=[order, prompt], daemon=True).start()
    if prompt == "mode:deaf":
        time.sleep(LIFETIME_S)


def work(order: Order, prompt: str) -> None:
    mode, *arguments = prompt.split()
    if mode in MODES:
        MODES[mode](order, *arguments)
    elif mode in ENDLESS:
        never_end(order["id"], mode)
    else:
        words = prompt.removeprefix("echo:").split()
        say(order["id"], [word if at == 0 else f" {word}" for at, word in enumerate(words)])


def slow(order: Order, words: str, pause_s: str) -> None:
    say(order["id"], [f"{word} " for word in range(int(words))], pause_s=float(pause_s))


def gate(order: Order, path: str) -> None:
    report("delta", order["id"], text="0 ")
    while not Path(path).exists():
        if cancelled[order["id"]].wait(0.01):
            report("stopped", order["id"])
            return
    report("delta", order["id"], text="1 2 3 ")
    done(order["id"], "0 1 2 3 ", words=4)


def count(order: Order, *_: str) -> None:
    messages = order["messages"]
    characters = sum(len(message["content"]) for message in messages)
    say(order["id"], [f"{characters} characters, {len(messages)} messages"])


def history(order: Order) -> None:
    say(order["id"], [json.dumps([[message["role"], message["content"]] for message in order["messages"]])])


def die_once(order: Order, path: str) -> None:
    try:
        os.open(path, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        say(order["id"], ["alive"])
    else:
        os._exit(3)


def environment(order: Order) -> None:
    say(order["id"], [json.dumps(dict(os.environ))])


def alive(order: Order, *pids: str) -> None:
    say(order["id"], [" ".join(pid for pid in pids if runs(int(pid))) or "none"])


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pieces(order: Order) -> None:
    fields = {"report": "delta", "id": order["id"], "text": "äöü 😀"}
    line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    for at in range(0, len(line), 3):
        write(line[at : at + 3])
    done(order["id"], "äöü 😀", words=1)


def long(order: Order, size: str) -> None:
    say(order["id"], ["x" * int(size)])


def flood(order: Order, size: str) -> None:
    sys.stderr.write("flood\n" * (int(size) // 6))
    sys.stderr.flush()
    say(order["id"], ["flooded"])


def usage(order: Order, tokens: str) -> None:
    done(order["id"], "counted", words=1, prompt_tokens=int(tokens))


def garbage(_order: Order) -> None:
    write(b"Loading the model, please wait...\n")


def fail(order: Order, kind: str, retry_after_s: str = "1.5") -> None:
    failure = {"kind": kind, "reason": "as_asked", "message": f"a failure: {kind}"}
    report("failed", order["id"], **failure, retry_after_s=float(retry_after_s))


def fork(order: Order) -> None:
    say(order["id"], [str(leave_behind())])


ACTS = (
    slow, gate, count, history, die_once, environment, alive, pieces, long, flood, usage, garbage, fail, fork,
)  # fmt: skip
MODES: Mapping[str, Callable[..., None]] = {f"mode:{act.__name__}": act for act in ACTS}
ENDLESS = tuple(f"mode:{name}" for name in ("hang", "ignore_cancel", "stubborn", "deaf", "die", "kill"))


def never_end(ident: str, mode: str) -> None:
    pids = [os.getpid()]
    if mode == "mode:stubborn":
        pids += [leave_behind(), leave_behind()]
    report("delta", ident, text=" ".join(map(str, pids)))
    match mode:
        case "mode:hang":
            cancelled[ident].wait(LIFETIME_S)
            report("stopped", ident)
        case "mode:die":
            sys.stderr.write("it had enough\n")
            sys.stderr.flush()
            os._exit(3)
        case "mode:kill":
            os.kill(os.getpid(), signal.SIGKILL)


def leave_behind() -> int:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(LIFETIME_S)
        os._exit(0)
    return pid


def say(ident: str, pieces: Sequence[str], *, pause_s: float = 0.0) -> None:
    for piece in pieces:
        if cancelled[ident].wait(pause_s):
            report("stopped", ident)
            return
        report("delta", ident, text=piece)
    done(ident, "".join(pieces), words=len(pieces))


def done(ident: str, text: str, *, words: int, prompt_tokens: int = 3) -> None:
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": words, "cached_tokens": 1}
    report("done", ident, text=text, finish_reason="stop", model="odd", usage=counts)


def report(name: str, ident: str, **fields: Any) -> None:
    write(json.dumps({"report": name, "id": ident, **fields}).encode() + b"\n")


def write(data: bytes) -> None:
    with lock:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
