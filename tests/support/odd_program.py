"""A program that answers in lines of JSON, and misbehaves as its prompt says.

    python -I odd_program.py [ARGUMENT]...

    say: TEXT         say TEXT, and end
    argv              say its arguments, as JSON
    environment       say the names of its environment, as JSON
    noise             print what is no JSON, or no object, around its answer
    half              write its lines in pieces that end within a character
    half a pair       say half of a surrogate pair
    line 1000000      say as many characters in one line
    flood 4000000     write as many bytes to stderr first
    stay              say its last word, and stay, deaf to signals
    leave             leave processes behind that ignore SIGTERM, in sessions of their own; say their pids
    no end            end well, without a last word
    deaf              read nothing, say its last word
    exit 65           end with this code
    die               be killed in the middle
    counted           answer never; when it is interrupted, say what it has used
    stubborn          answer never, and hear no signal

Nothing of it outlives 5 minutes.
"""

import json
import os
import signal
import sys
import time

LIFETIME_S = 300


def main() -> int:
    signal.alarm(LIFETIME_S)
    if "deaf" in sys.argv:
        return end("heard nothing")
    prompt = sys.stdin.buffer.read().decode().strip()
    mode, _, rest = prompt.partition(" ")
    return MODES[mode](rest) if mode in MODES else end(prompt.removeprefix("say: "))


def noise(_: str) -> int:
    write("Loading...\n\n[1, 2]\n" + "[" * 100_000 + '\nnull\n{"text": broken\n"text"\n')
    return end("heard")


def flood(size: str) -> int:
    sys.stderr.write("flood\n" * (int(size) // 6))
    sys.stderr.flush()
    return end("flooded")


def no_end(_: str) -> int:
    say(text="half of ")
    return 0


def die(_: str) -> int:
    say(text="half of ")
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def leave(code: str) -> int:
    sys.stderr.write("it had enough\n")
    return int(code)


def half(rest: str) -> int:
    if rest == "a pair":
        write('{"text": "a\\ud800b"}\n{"end": true}\n')
        return 0
    line = (json.dumps({"text": "äöü 😀"}, ensure_ascii=False) + "\n").encode()
    for at in range(0, len(line), 3):
        sys.stdout.buffer.write(line[at : at + 3])
        sys.stdout.buffer.flush()
    write('{"end": true}')  # without the end of the line
    return 0


def stay(mode: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if mode == "counted":
        signal.signal(signal.SIGINT, count)
    say(text="begun", pids=[os.getpid()])
    if mode == "stay":
        end("")
    time.sleep(LIFETIME_S)
    return 0


def count(*_: object) -> None:
    # Not by `say`, in the middle of which the signal may have come.
    os.write(1, b'{"tokens": {"in": 7, "out": 1}, "end": true}\n')
    os._exit(0)


def leave_behind() -> int:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(LIFETIME_S)
        os._exit(0)
    return pid


def end(text: str) -> int:
    if text:
        say(text=text)
    say(end=True, tokens={"in": 3, "out": 1}, session="s-1")
    return 0


def say(**fields: object) -> None:
    write(json.dumps(fields) + "\n")


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


MODES = {
    "argv": lambda _: end(json.dumps(sys.argv[1:])),
    "environment": lambda _: end(json.dumps(sorted(os.environ))),
    "noise": noise,
    "half": half,
    "line": lambda size: end("x" * int(size)),
    "flood": flood,
    "stay": lambda _: stay("stay"),
    "stubborn": lambda _: stay("stubborn"),
    "counted": lambda _: stay("counted"),
    "leave": lambda _: end(json.dumps([leave_behind(), leave_behind()])),
    "no": no_end,
    "exit": leave,
    "die": die,
}

if __name__ == "__main__":
    sys.exit(main())
