"""A program in the place of the Claude CLI: its answer is how it was asked, as JSON."""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
    read = [name for name in flags if name.endswith("-file") or name == "mcp-config"]
    files = {name: Path(flags[name]).read_text() for name in read}
    asked = {"flags": flags, "files": files, "stdin": json.loads(sys.stdin.read()), "env": dict(os.environ)}
    session = flags.get("session-id") or flags.get("resume")
    result = {"type": "result", "is_error": False, "session_id": session, "usage": {}}
    print("noise before it begins")
    print(json.dumps(result | {"result": json.dumps(asked), "stop_reason": "end_turn"}))


if __name__ == "__main__":
    main()
