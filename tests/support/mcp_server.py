"""A server of tools that speaks MCP on its streams: ``weather`` says it, and what it finds in VARIABLE."""

import json
import os
import sys


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" in asked:
            result = answer(asked["method"], asked.get("params", {}))
            print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)


def answer(method: str, params: dict[str, object]) -> object:
    match method:
        case "initialize":
            version = params["protocolVersion"]
            return {
                "protocolVersion": version,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "weather", "version": "1"},
            }
        case "tools/list":
            schema = {"type": "object", "properties": {"place": {"type": "string"}}}
            return {"tools": [{"name": "weather", "description": "Say it.", "inputSchema": schema}]}
        case "tools/call":
            arguments = params["arguments"]
            return {"content": [{"type": "text", "text": f"rain {arguments} {os.environ.get('VARIABLE')}"}]}
    return {}


if __name__ == "__main__":
    main()
