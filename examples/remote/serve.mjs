// Handle events from Node.js, with nothing but what comes with it.
//
//   node examples/remote/serve.mjs var/run/daemon.sock &
//   ksi call echo:say text=hello
import { connect } from "node:net";

const path = process.argv[2] ?? process.env.KSI_SOCKET ?? "var/run/daemon.sock";

const handlers = {
  "echo:say": (data) => ({ text: data.text, from: "node", pid: process.pid }),
};

const events = [
  {
    event: "echo:say",
    summary: "Say it again.",
    safe: true,
    schema: {
      type: "object",
      properties: { text: { type: "string", description: "What to say." } },
      required: ["text"],
    },
    reply: {
      type: "object",
      properties: { text: { type: "string" }, from: { type: "string" }, pid: { type: "integer" } },
      required: ["text"],
    },
  },
];

const socket = connect(path);
let rest = "";
socket.setEncoding("utf8");
socket.on("connect", () => {
  const data = { name: "echo", events, max_in_flight: 256 };
  socket.write(JSON.stringify({ event: "plugin:serve", id: "serve", data }) + "\n");
});
socket.on("data", (chunk) => {
  const lines = (rest + chunk).split("\n");
  rest = lines.pop();
  const answers = lines.map((line) => take(JSON.parse(line))).filter(Boolean);
  if (answers.length) socket.write(answers.join("")); // one write for all that came at once
});
socket.on("error", (error) => fail(error.message));
socket.on("close", () => process.exit(0));

function take(frame) {
  if (frame.type === "item") console.log(`serving ${frame.data.events}`);
  if (frame.type === "error") fail(frame.error.message);
  if (frame.type !== "call") return "";
  return JSON.stringify(answer(frame)) + "\n";
}

function answer({ id, event, data }) {
  try {
    return { type: "reply", id, data: handlers[event](data) };
  } catch (error) {
    return { type: "error", id, error: { code: "INTERNAL", message: String(error) } };
  }
}

function fail(message) {
  console.error(message);
  process.exit(1);
}
