"""A stand-in for Knative's queue-proxy, run in a pod: it probes, passes requests on, and drains, as that does.

    python -m tests.support.cluster.queue_proxy

By queue-proxy's own variables: ``USER_PORT``, ``QUEUE_SERVING_PORT``, ``SERVING_READINESS_PROBE``, an object or, with
``ENABLE_MULTI_CONTAINER_PROBES``, an array. Of gRPC probes it knows nothing: the webhook has moved them. ``DRAIN`` is
for how many seconds it goes on serving after SIGTERM; the real one takes 30.
"""

import asyncio
import json
import os
import signal
from typing import Any

import aiohttp
from aiohttp import web

HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host", "content-length"}


class QueueProxy:
    """One pod's."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._target = f"http://127.0.0.1:{os.environ['USER_PORT']}"
        value = json.loads(os.environ["SERVING_READINESS_PROBE"])
        self._probes: list[dict[str, Any]] = value if isinstance(value, list) else [value]
        self._passed = False
        self.ending = asyncio.Event()
        self.drained = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """A probe of the kubelet's or the activator's, or a request."""
        if request.headers.get("K-Network-Probe") == "queue":
            return await self._probe()
        fields = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        fields["Host"] = request.host
        body = request.content if request.body_exists else None
        try:
            async with self._session.request(
                request.method, self._target + request.raw_path, headers=fields, data=body, allow_redirects=False
            ) as got:
                answer = web.StreamResponse(status=got.status)
                for name, value in got.headers.items():
                    if name.lower() not in HOP:
                        answer.headers.add(name, value)
                await answer.prepare(request)
                async for piece in got.content.iter_any():
                    await answer.write(piece)
                return answer
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"{error}\n")

    async def _probe(self) -> web.Response:
        if self.ending.is_set():
            return web.Response(status=410, text="shutting down\n")
        aggressive = not self._passed and all(probe.get("periodSeconds", 0) == 0 for probe in self._probes)
        reasons = await self._run()
        for _ in range(15 if aggressive else 0):
            if not reasons:
                break
            await asyncio.sleep(0.05)
            reasons = await self._run()
        self._passed = not reasons
        return web.Response(status=503, text="; ".join(reasons)) if reasons else web.Response(text="queue\n")

    async def _run(self) -> list[str]:
        return [reason for reason in await asyncio.gather(*map(self._one, self._probes)) if reason]

    async def _one(self, probe: dict[str, Any]) -> str:
        seconds = probe.get("timeoutSeconds", 1) or 1
        try:
            async with asyncio.timeout(seconds):
                if (said := probe.get("httpGet")) is not None:
                    url = f"{said.get('scheme', 'HTTP').lower()}://{said['host']}:{said['port']}{said.get('path', '/')}"
                    fields = {each["name"]: each["value"] for each in said.get("httpHeaders") or ()}
                    fields.setdefault("User-Agent", "kube-probe/1.34")
                    async with self._session.get(url, headers=fields, ssl=False) as answer:
                        return "" if answer.status < 400 else f"{url} answers {answer.status}: {await answer.text()}"
                said = probe["tcpSocket"]
                _, writer = await asyncio.open_connection(said["host"], said["port"])
                writer.close()
                return ""
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            return f"{type(error).__name__} {error}"

    async def wait_for_drain(self, _request: web.Request) -> web.Response:
        """The preStop hook of every user container."""
        await self.drained.wait()
        return web.Response(text="drained\n")


async def main() -> None:
    """Until it has drained."""
    loop = asyncio.get_running_loop()
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=90)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as session:
        proxy = QueueProxy(session)
        loop.add_signal_handler(signal.SIGTERM, proxy.ending.set)
        ports = ((os.environ.get("QUEUE_SERVING_PORT", "8012"), proxy.serve), ("8022", proxy.wait_for_drain))
        runners = []
        for port, handler in ports:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", handler)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "0.0.0.0", int(port)).start()
            runners.append(runner)
        print("serving", flush=True)
        await proxy.ending.wait()
        await asyncio.sleep(float(os.environ.get("DRAIN", "1")))
        proxy.drained.set()
        for runner in runners:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
