"""A stand-in for the Kubernetes API server: reviews tokens, publishes keys, issues tokens bound to pods, keeps objects.

It answers as the real one was seen to, in 1.34 and in 1.20, over HTTPS with certificates of its own, and can fail in
the ways that the real one does. Signatures are made and checked with ``cryptography`` alone, so that it agrees with the
daemon's JOSE library by both being right.

In a test: ``with ApiServer(folder) as server: server.token(uid="…")``. As a process, which ends with its standard
input: ``python -m tests.support.api_server --folder DIR`` prints one line of JSON; ``POST /admin/NAME`` with a JSON
object then calls the method of that name (``token``, ``delete_pod``, ``become``, ``rotate``, ``counts``).
"""

import argparse
import asyncio
import base64
import copy
import hashlib
import ipaddress
import json
import ssl
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

from aiohttp import web
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import NameOID

from tests.support.wait import PATIENCE

T = TypeVar("T")
Json = dict[str, Any]

ISSUER = "https://kubernetes.default.svc.cluster.local"
REVIEWS, ACCESS, JWKS, DISCOVERY = (
    "/apis/authentication.k8s.io/v1/tokenreviews",
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    "/openid/v1/jwks",
    "/.well-known/openid-configuration",
)
FAULTS = ("", "forbidden", "garbage", "broken", "html", "bare", "overloaded", "silent", "cut", "echo")
"""``bare``: a 503 without a body; ``html``: a 502 of some proxy; ``echo``: a refusal that quotes the token."""

HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
CURVES: dict[str, tuple[type[ec.EllipticCurve], str, int]] = {
    "ES256": (ec.SECP256R1, "P-256", 32),
    "ES384": (ec.SECP384R1, "P-384", 48),
    "ES512": (ec.SECP521R1, "P-521", 66),
}


def b64(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def number(value: int, size: int) -> str:
    return b64(value.to_bytes(size, "big"))


class Key:
    """A key that signs tokens: ``RS256`` … ``RS512``, ``ES256`` … ``ES512``."""

    def __init__(self, algorithm: str = "RS256") -> None:
        self.algorithm = algorithm
        self._private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
        if algorithm.startswith("RS"):
            self._private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        else:
            self._private = ec.generate_private_key(CURVES[algorithm][0]())
        public = self._private.public_key()
        self.pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.kid = b64(hashlib.sha256(der).digest())  # as kube-apiserver derives it

    @property
    def jwk(self) -> Json:
        named: Json = {"use": "sig", "kid": self.kid, "alg": self.algorithm}
        if isinstance(self._private, rsa.RSAPrivateKey):
            numbers = self._private.public_key().public_numbers()
            return named | {"kty": "RSA", "n": number(numbers.n, 256), "e": "AQAB"}
        _, curve, size = CURVES[self.algorithm]
        point = self._private.public_key().public_numbers()
        return named | {"kty": "EC", "crv": curve, "x": number(point.x, size), "y": number(point.y, size)}

    def sign(self, claims: Json, **head: object) -> str:
        """A JWT with these claims; ``head`` adds to its header, or takes the place of what is there."""
        parts = [{"alg": self.algorithm, "kid": self.kid} | head, claims]
        signed = ".".join(b64(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
        return f"{signed}.{b64(self._signature(signed.encode()))}"

    def _signature(self, data: bytes) -> bytes:
        digest = HASHES[self.algorithm[2:]]
        if isinstance(self._private, rsa.RSAPrivateKey):
            return self._private.sign(data, padding.PKCS1v15(), digest)
        size = CURVES[self.algorithm][2]
        r, s = decode_dss_signature(self._private.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    def signed(self, data: bytes, signature: bytes) -> bool:
        digest = HASHES[self.algorithm[2:]]
        try:
            if isinstance(self._private, rsa.RSAPrivateKey):
                self._private.public_key().verify(signature, data, padding.PKCS1v15(), digest)
            else:
                size = CURVES[self.algorithm][2]
                r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
                self._private.public_key().verify(encode_dss_signature(r, s), data, ec.ECDSA(digest))
        except InvalidSignature:
            return False
        return True


@cache
def key(name: str, algorithm: str = "RS256") -> Key:
    """The key of this name; made once, for making one takes a tenth of a second."""
    return Key(algorithm)


@dataclass(frozen=True)
class Certificates:
    """PEM of an authority, and of a server on 127.0.0.1 with its private key."""

    authority: bytes
    server: bytes


def made_certificates() -> Certificates:
    """Those of an authority that nobody else knows, good for a day."""

    def made(
        name: str, issuer: str, mine: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, ca: bool
    ) -> bytes:
        now = datetime.now(UTC)
        addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(mine.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(mine.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
            .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), critical=True)
        )
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    private = server.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificates(
        authority=made("test authority", "test authority", authority, authority, ca=True),
        server=made("127.0.0.1", "test authority", server, authority, ca=False) + private,
    )


@cache
def certificates() -> Certificates:
    """Those of the stand-ins of this process."""
    return made_certificates()


class ApiServer:
    """Runs in a thread of its own from ``start`` to ``stop``. What a test sets, it sets between calls.

    ``version`` is ``"1.34"``, or ``"1.20"``, which tells nothing of nodes.
    """

    def __init__(self, folder: Path, version: str = "1.34", port: int = 0) -> None:
        self.folder = folder
        self.port = port
        self.version = version
        self.issuer = ISSUER
        self.knows_audiences = True
        self.fault = ""
        self.delay = 0.0
        self.credentials = {"credentials-of-the-daemon"}
        self.granted = True  # what the daemon asks whether it may
        self.wanted: Json = {}
        self.signing = key("first")
        self.published = [self.signing]
        self.calls: Counter[str] = Counter()
        self.objects: dict[str, Json] = {}  # by their paths
        self.rules: list[Json] | None = None  # of RBAC, for objects; without any, all is allowed
        self.denied: list[str] = []  # what was asked for beyond them
        self.writes = 0
        self.history: list[tuple[int, str, str, Json]] = []  # version, ADDED, MODIFIED or DELETED, path, object
        self.compacted = 0  # what happened up to this version is forgotten
        self.watches = 0  # that are open
        self.release = {"major": "1", "minor": "34"}
        self.agents: set[int] = set()  # connections that asked, by their port
        self.at_once = self.most_at_once = 0
        self._gone: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._runner: web.AppRunner | None = None
        self._trust = folder / "ca.crt"

    # Where it is.

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def kubeconfig(self, token: str | None = None, token_file: Path | None = None, name: str = "kubeconfig") -> Path:
        """Writes the file by which clients reach this server."""
        credential = {"tokenFile": str(token_file)} if token_file else {"token": token or min(self.credentials)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stand-in",
            "clusters": [
                {"name": "here", "cluster": {"server": self.address, "certificate-authority": str(self._trust)}}
            ],
            "users": [{"name": "daemon", "user": credential}],
            "contexts": [{"name": "stand-in", "context": {"cluster": "here", "user": "daemon"}}],
        }
        path = self.folder / name
        path.write_text(json.dumps(content))  # JSON is YAML
        return path

    def service_account(self, token: str | None = None) -> Path:
        """Writes the folder that a pod finds its service account in."""
        folder = self.folder / "serviceaccount"
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(token or min(self.credentials))
        (folder / "namespace").write_text("freeze-proxy")
        (folder / "ca.crt").write_bytes(certificates().authority)
        return folder

    # What a cluster does.

    def token(
        self,
        uid: str | None = None,
        name: str = "pod",
        namespace: str = "default",
        node: str | None = "this-node",
        audience: str = "freeze",
        lifetime: float = 600,
        key: Key | None = None,
        claims: Json | None = None,
    ) -> str:
        """A token as the kubelet asks for and projects it; without ``uid`` one that is bound to no pod.

        ``claims`` take the place of those it would have, and ``None`` among them removes one.
        """
        now = int(time.time())
        bound: Json = {"namespace": namespace, "serviceaccount": {"name": "default", "uid": str(uuid.uuid4())}}
        if uid is not None:
            bound["pod"] = {"name": name, "uid": uid}
            if node is not None and self.version != "1.20":
                bound["node"] = {"name": node, "uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, node))}
        all_claims: Json = {
            "aud": [audience],
            "exp": int(now + lifetime),
            "iat": now,
            "iss": self.issuer,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": bound,
            "nbf": now,
            "sub": f"system:serviceaccount:{namespace}:default",
        } | (claims or {})
        return (key or self.signing).sign({name: value for name, value in all_claims.items() if value is not None})

    def delete_pod(self, uid: str) -> None:
        """Tokens of this pod are no longer accepted."""
        self._gone.add(uid)

    def become(self, fault: str = "", delay: float = 0.0) -> None:
        """From now on answer in this way, this many seconds late."""
        assert fault in FAULTS, fault
        self.fault, self.delay = fault, delay

    def rotate(self, name: str = "second", algorithm: str = "RS256", withdraw: bool = False) -> None:
        """Sign with another key; ``withdraw`` takes the others out of what is published."""
        self.signing = key(name, algorithm)
        self.published = [self.signing] if withdraw else [*self.published, self.signing]

    def counts(self) -> dict[str, int]:
        """How often each path was asked for."""
        return dict(self.calls)

    def put(self, path: str, content: Json) -> None:
        """There is this object; its version changes with each write."""
        self.writes += 1
        content = copy.deepcopy(content)
        content.setdefault("metadata", {})["resourceVersion"] = str(self.writes)
        self.history.append((self.writes, "MODIFIED" if path in self.objects else "ADDED", path, content))
        self.objects[path] = content

    def remove(self, path: str) -> None:
        """There is no such object any more."""
        self.writes += 1
        content = self.objects.pop(path)
        self.history.append((self.writes, "DELETED", path, content))

    def forget(self) -> None:
        """What has happened so far cannot be watched any more: who asks for it is told that it is gone."""
        self.compacted = self.writes

    @property
    def reviews(self) -> int:
        return self.calls[REVIEWS]

    # Its life.

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._trust.write_bytes(certificates().authority)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="API server", daemon=True)
        self._thread.start()
        self.listen()

    def stop(self) -> None:
        assert self._loop
        assert self._thread
        self.vanish()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def listen(self) -> None:
        """Be there; after ``vanish`` at the same address again."""
        self._do(self._listen())

    def vanish(self) -> None:
        """Refuse connections, and cut those there are."""
        self._do(self._vanish())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_post(REVIEWS, self._asked(self._review))
        app.router.add_post(ACCESS, self._asked(self._access))
        app.router.add_get(JWKS, self._asked(self._jwks))
        app.router.add_get(DISCOVERY, self._asked(self._discovery))
        app.router.add_post("/admin/{name}", self._admin)
        app.router.add_get("/version", self._asked(lambda *_: (200, dict(self.release))))
        app.router.add_route("*", "/{path:apis?/.*}", self._asked(self._object))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pem = self.folder / "server.pem"
        pem.write_bytes(certificates().server)
        context.load_cert_chain(pem)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _vanish(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # Its answers.

    def _asked(
        self, answer: Callable[[web.Request, Json], tuple[int, Json]]
    ) -> Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.calls[request.path] += 1
            self.agents.add(request.transport.get_extra_info("peername")[1] if request.transport else 0)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                body = await request.json() if request.can_read_body else {}
                if self.delay:
                    await asyncio.sleep(self.delay)
                return await self._faulty(request, body) or await self._right(request, body, answer)
            finally:
                self.at_once -= 1

        return handle

    async def _right(
        self, request: web.Request, body: Json, answer: Callable[[web.Request, Json], tuple[int, Json]]
    ) -> web.StreamResponse:
        kind, _, credential = request.headers.get("Authorization", "").partition(" ")
        if not credential:
            return failure(403, "Forbidden", f'forbidden: User "system:anonymous" cannot get path "{request.path}"')
        if kind != "Bearer" or credential not in self.credentials:
            return failure(401, "Unauthorized", "Unauthorized")
        if request.query.get("watch") == "true" and self._allowed("watch", request.path):
            return await self._watch(request)
        status, content = answer(request, body)
        return said(status, content)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        """What happens to the objects of a collection, line by line, from a version on."""
        since = int(request.query["resourceVersion"])
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await stream.prepare(request)
        self.watches += 1
        try:
            until = time.monotonic() + float(request.query.get("timeoutSeconds", "60"))
            while time.monotonic() < until and request.transport is not None:
                if since < self.compacted:
                    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                    await stream.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                    break
                for version, what, path, content in self.history[:]:
                    if version > since and _collection(path, request.path) and _selected(request, content):
                        await stream.write(json.dumps({"type": what, "object": content}).encode() + b"\n")
                        since = version
                await asyncio.sleep(0.01)
        except ConnectionResetError:
            pass  # whoever watched has left
        finally:
            self.watches -= 1
        return stream

    async def _faulty(self, request: web.Request, body: Json) -> web.Response | None:
        match self.fault:
            case "forbidden":
                what = "tokenreviews.authentication.k8s.io is forbidden: cannot create resource at the cluster scope"
                return failure(403, "Forbidden", what)
            case "broken":
                return failure(500, "InternalError", "Internal error occurred: etcdserver: leader changed")
            case "overloaded":
                return failure(429, "TooManyRequests", "Too many requests, please try again later.")
            case "garbage":
                return web.Response(body=b'{"status": [1, "\xff', content_type="application/json")
            case "html":
                return web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html")
            case "bare":
                return web.Response(status=503, headers={"Content-Type": ""})
            case "silent":
                await asyncio.sleep(3600)
            case "cut":
                assert request.transport
                request.transport.close()
                return web.Response()
            case "echo":
                return web.json_response(body | {"status": {"error": f"invalid token {body['spec']['token']}"}})
        return None

    def _access(self, _request: web.Request, body: Json) -> tuple[int, Json]:
        self.wanted = body["spec"]
        return 201, body | {"status": {"allowed": self.granted}}

    def _jwks(self, _request: web.Request, _body: Json) -> tuple[int, Json]:
        return 200, {"keys": [key.jwk for key in self.published]}

    def _discovery(self, _request: web.Request, _body: Json) -> tuple[int, Json]:
        return 200, {
            "issuer": self.issuer,
            "jwks_uri": f"https://172.18.0.2:6443{JWKS}",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [key.algorithm for key in self.published],
        }

    def _review(self, _request: web.Request, body: Json) -> tuple[int, Json]:
        spec = body["spec"]
        return 201, body | {"metadata": {}, "status": self._status(spec["token"], spec.get("audiences") or [])}

    def _status(self, token: str, audiences: list[str]) -> Json:
        try:
            head, payload, signature = (unb64(part) for part in token.split("."))
            named = json.loads(head)["kid"]
            signed = token.rpartition(".")[0].encode()
            valid = any(key.kid == named and key.signed(signed, signature) for key in self.published)
            claims = json.loads(payload)
        except (ValueError, KeyError, TypeError):
            return refusal("invalid bearer token")
        if not valid:
            return refusal("[invalid bearer token, square/go-jose: error in cryptographic primitive]")
        if not claims["nbf"] <= time.time() < claims["exp"]:
            return refusal("[invalid bearer token, service account token has expired]")
        common = [audience for audience in audiences if audience in claims["aud"]]
        if not common and self.knows_audiences:
            return refusal(
                f"[invalid bearer token, token audiences {json.dumps(claims['aud'])} "
                f"is invalid for the target audiences {json.dumps(audiences)}]"
            )
        bound = claims["kubernetes.io"]
        extra: dict[str, list[str]] = {}
        if "pod" in bound:
            if bound["pod"]["uid"] in self._gone:
                return refusal("[invalid bearer token, service account token has been invalidated]")
            extra["pod-name"], extra["pod-uid"] = [bound["pod"]["name"]], [bound["pod"]["uid"]]
        if self.version != "1.20":
            extra["credential-id"] = [f"JTI={claims['jti']}"]
            if "node" in bound:
                extra["node-name"], extra["node-uid"] = [bound["node"]["name"]], [bound["node"]["uid"]]
        user = {
            "username": claims["sub"],
            "uid": bound["serviceaccount"]["uid"],
            "groups": [
                "system:serviceaccounts",
                f"system:serviceaccounts:{bound['namespace']}",
                "system:authenticated",
            ],
            "extra": {f"authentication.kubernetes.io/{name}": values for name, values in extra.items()},
        }
        status: Json = {"authenticated": True, "user": user}
        return status | {"audiences": common} if self.knows_audiences else status

    def _object(self, request: web.Request, body: Json) -> tuple[int, Json]:
        """Reads, lists and patches objects, as far as the rules allow it."""
        path = request.path
        verb = {"GET": "get", "PATCH": "patch"}.get(request.method, request.method.lower())
        if path not in self.objects and verb == "get":
            below = [kept for at, kept in self.objects.items() if _collection(at, path)]
            if below or path.rstrip("/").rpartition("/")[2] in COLLECTIONS:
                verb = "list"
        if not self._allowed(verb, path):
            self.denied.append(f"{verb} {path}")
            return failed(403, "Forbidden", f"forbidden: cannot {verb} {path}")
        if verb == "list":
            items = [one for one in below if _selected(request, one)]
            return 200, {
                "kind": "List",
                "apiVersion": "v1",
                "metadata": {"resourceVersion": str(self.writes)},
                "items": items,
            }
        kept = self.objects.get(path)
        if kept is None:
            return failed(404, "NotFound", f"{path} not found")
        if verb == "patch":
            version = (body.get("metadata") or {}).get("resourceVersion")
            if version not in (None, kept["metadata"]["resourceVersion"]):
                return failed(409, "Conflict", "the object has been modified; please apply your changes to the latest")
            self.put(path, merged(kept, body, strategic="strategic" in request.content_type))
        elif verb != "get":
            return failed(405, "MethodNotAllowed", "method not allowed")
        return 200, self.objects[path]

    def _allowed(self, verb: str, path: str) -> bool:
        if self.rules is None:
            return True
        parts = path.strip("/").split("/")
        group = "" if parts[0] == "api" else parts[1]
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if rest[0] == "namespaces" and len(rest) > 2:
            rest = rest[2:]
        name = rest[1] if len(rest) > 1 else ""
        return any(
            group in rule["apiGroups"]
            and rest[0] in rule["resources"]
            and verb in rule["verbs"]
            and name in rule.get("resourceNames", [name])
            for rule in self.rules
        )

    async def _admin(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in ("token", "delete_pod", "become", "rotate", "counts"):
            return web.json_response({"error": f"no method {name}"}, status=404)
        arguments = await request.json() if request.can_read_body else {}
        return web.json_response({"result": getattr(self, name)(**arguments)})


COLLECTIONS = ("pods", "deployments", "daemonsets", "namespaces", "clusterroles", "clusterrolebindings", "services")


def _collection(path: str, collection: str) -> bool:
    """Whether the object at ``path`` is of this collection, of one namespace or of all."""
    above, _, _ = path.rpartition("/")
    parts = above.split("/")
    everywhere = "/".join(parts[:-3] + parts[-1:]) if len(parts) > 4 and parts[-3] == "namespaces" else above
    return collection in (above, everywhere)


def _selected(request: web.Request, content: Json) -> bool:
    """Whether labels and the node are those that are asked for."""
    labels = dict(part.split("=", 1) for part in request.query.get("labelSelector", "").split(",") if part)
    fields = dict(part.split("=", 1) for part in request.query.get("fieldSelector", "").split(",") if part)
    node = fields.get("spec.nodeName")
    return labels.items() <= (content["metadata"].get("labels") or {}).items() and (
        node is None or content["spec"].get("nodeName") == node
    )


def merged(old: Json, change: Json, strategic: bool) -> Json:
    """The object after a merge patch (RFC 7386); a strategic one merges the list ``webhooks`` by names."""
    new = dict(old)
    for name, value in change.items():
        if value is None:
            new.pop(name, None)
        elif isinstance(value, dict):
            new[name] = merged(new.get(name) or {}, value, strategic)
        elif strategic and name == "webhooks":
            changes = {one["name"]: one for one in value}
            new[name] = [merged(one, changes.get(one["name"], {}), strategic) for one in old[name]]
        else:
            new[name] = value
    return new


def refusal(error: str) -> Json:
    """The status of a review that ended badly."""
    return {"user": {}, "error": error}


def said(status: int, content: Json) -> web.Response:
    """An answer whose type is named as the API server does, without a charset: lightkube looks at that."""
    return web.Response(status=status, body=json.dumps(content).encode(), headers={"Content-Type": "application/json"})


def failure(status: int, reason: str, message: str) -> web.Response:
    """A ``Status`` object, as the API server answers whom it does not serve."""
    return said(status, failed(status, reason, message)[1])


def failed(status: int, reason: str, message: str) -> tuple[int, Json]:
    """Its status and its content."""
    return status, {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": status,
    }


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--version", choices=["1.34", "1.20"], default="1.34")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with ApiServer(options.folder, options.version, options.port) as server:
        place = {"address": server.address, "kubeconfig": str(server.kubeconfig()), "ca": str(server.folder / "ca.crt")}
        print(json.dumps(place), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
