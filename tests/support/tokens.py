"""A token server for Debian's docker-registry: signs what it is asked for, and remembers who asked."""

import base64
import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web


@dataclass
class TokenServer:
    """Answers GET with a name and a password, and POST with a refresh token."""

    certificate: Path
    key: Path
    password: str = "Basic dXNlcjpwYXNz"
    refresh: str = "long-lived"
    seconds: int = 300
    port: int = 0
    asked: list[web.Request] = field(default_factory=list)

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self.port}/token"

    def auth(self) -> dict[str, Any]:
        """The part of the registry's configuration."""
        return {
            "token": {
                "realm": self.realm,
                "service": "test registry",
                "issuer": "test issuer",
                "rootcertbundle": str(self.certificate),
            }
        }

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        if request.method == "POST":
            form = await request.post()
            if form.get("grant_type") != "refresh_token" or form.get("refresh_token") != self.refresh:
                return web.json_response({"details": "no"}, status=401)
            scopes = str(form.get("scope", "")).split()
        else:
            if request.headers.get("Authorization") != self.password:
                return web.json_response({"details": "no"}, status=401)
            scopes = request.query.getall("scope", [])
        return web.json_response({"token": self.token(scopes), "expires_in": self.seconds})

    def token(self, scopes: list[str]) -> str:
        now = int(time.time())
        access = []
        for scope in scopes:
            resource, _, actions = scope.rpartition(":")
            kind, _, name = resource.partition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        der = "".join(self.certificate.read_text().split("-----")[2].split())
        head = _part(json.dumps({"typ": "JWT", "alg": "RS256", "x5c": [der]}).encode())
        claims = {"iss": "test issuer", "sub": "user", "aud": "test registry", "access": access}
        times = {"exp": now + 300, "nbf": now - 60, "iat": now - 60, "jti": str(now)}
        signed = f"{head}.{_part(json.dumps(claims | times).encode())}"
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.key], input=signed.encode(), capture_output=True, check=True
        )
        return f"{signed}.{_part(done.stdout)}"


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
