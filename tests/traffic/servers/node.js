// The same on Node's http. Listens on $PORT.
"use strict";
const crypto = require("crypto");
const http = require("http");
const zlib = require("zlib");

const BLOCK = 1 << 20;

function* blocks(size) {
  for (let number = 0; number < size; number += BLOCK) {
    const block = Buffer.alloc(BLOCK);
    for (let at = 0; at < 256; at += 8) block.writeBigUInt64BE(BigInt(number), at);
    for (let at = 256; at < BLOCK; at++) block[at] = at & 255;
    yield block.subarray(0, Math.min(BLOCK, size - number));
  }
}

function drained(response) {
  return new Promise((resolve) => response.once("drain", resolve));
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function answer(request, response) {
  const [name, argument] = request.url.slice(1).split("?")[0].split("/");
  const number = Number(argument) || 0;
  const say = (body) => {
    response.writeHead(200, { "Content-Type": "text/plain", "Content-Length": Buffer.byteLength(body) });
    response.end(body);
  };
  if (name === "upload") {
    let size = 0;
    let crc = 0;
    for await (const part of request) {
      size += part.length;
      crc = zlib.crc32 ? zlib.crc32(part, crc) : 0;
    }
    say(`${size} bytes, ${crc.toString(16).padStart(8, "0")}\n`);
    return;
  }
  const parts = [];
  for await (const part of request) parts.push(part);
  const body = Buffer.concat(parts);
  switch (name) {
    case "echo": {
      const digest = crypto.createHash("sha256").update(body).digest("hex");
      const told = request.headers["x-test"] || "-";
      say(`${request.method} ${request.url}\nX-Test: ${told}\n${body.length} ${digest}\n`);
      return;
    }
    case "fixed":
      say(Buffer.concat([...blocks(number)]));
      return;
    case "download":
      response.writeHead(200, { "Content-Length": number });
      for (const block of blocks(number)) if (!response.write(block)) await drained(response);
      response.end();
      return;
    case "slow":
      response.writeHead(200, { "Content-Length": 13 });
      response.write("first\n");
      await pause(300);
      response.end("second\n");
      return;
    case "chunked":
      response.writeHead(200);
      for (const data of ["one", "two".repeat(1000), "three"]) response.write(data);
      response.end();
      return;
    case "trailers":
      response.writeHead(200, { Trailer: "X-Sum" });
      response.write("with trailers");
      response.addTrailers({ "X-Sum": "13" });
      response.end();
      return;
    case "close":
      response.writeHead(200, { Connection: "close" });
      response.end("to the end");
      return;
    case "sse":
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      for (let event = 0; event < 3; event++) {
        response.write(`data: ${event}\n\n`);
        await pause(number);
      }
      response.end();
      return;
    case "204":
    case "304":
      response.writeHead(Number(name));
      response.end();
      return;
    default:
      response.writeHead(404, { "Content-Length": 0 });
      response.end();
  }
}

// A client that leaves half-way ends its own request and nothing else.
const server = http.createServer((request, response) => answer(request, response).catch(() => response.destroy()));
if (process.env.KEEP_ALIVE_MS) server.keepAliveTimeout = Number(process.env.KEEP_ALIVE_MS);
server.listen(Number(process.env.PORT), "127.0.0.1");
