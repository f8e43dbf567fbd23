"""A program that answers in lines of JSON: it says again what it reads, word by word.

    echo "Pretty Polly" | python3 parrot.py --model=loud

parrot.yaml tells KSI how to ask it, and what its lines mean.
"""

import argparse
import json
import sys
import threading
import uuid


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["loud", "plain"], default="plain")
    parser.add_argument("--session", default=None)
    options = parser.parse_args()
    heard = sys.stdin.read().strip()
    say(event="started", session=options.session or f"parrot-{uuid.uuid4()}")
    if "cracker" in heard:
        say(event="refused", error={"message": "first a cracker", "status": 429, "wait_s": 2})
        return 1
    if "nonsense" in heard:
        return 65
    words = [word.upper() if options.model == "loud" else word for word in heard.split()]
    for at, word in enumerate(words):
        say(event="word", text=word if at == 0 else f" {word}")
        if word.lower() == "forever":
            threading.Event().wait()
    say(event="finished", tokens={"in": len(heard.split()), "out": len(words)})
    return 0


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    sys.exit(main())
